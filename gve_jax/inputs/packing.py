"""Packs rows into few static shapes with little padding, for encoding (numpy).

Training pads each item to a bucket (`gve_jax.inputs.batch`). Encoding has less padding: the tower
encodes frame pairs of all items together, sorted by size, and a row of the decoder holds several
items. Their common prefix, usually the system turn, is in each row only once: a causal model gives
it the same hidden states in every item.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from gve_jax.inputs.batch import Buckets, put_frame
from gve_jax.inputs.preprocess import InputSpec, Row
from gve_jax.model.batch import Frames, Packed

ROW = 512  # tokens of a row of short items, and patches per row of a batch of the tower
ITEM = 16  # tokens of a row per item that it can hold
BATCH = 128  # patches that take as long as starting a batch of the tower (reading its weights)


@dataclasses.dataclass
class Decode:
    """A batch of the decoder: `count` rows of `length` tokens; `rows` lists the items of each."""

    count: int
    length: int
    visual: bool  # whether it has visual tokens
    shared: int  # tokens of the common prefix
    rows: list[list[int]]

    @property
    def shape(self) -> tuple:
        return "decoder", self.count, self.length, self.visual


@dataclasses.dataclass
class Tower:
    """A batch of the tower: `count` frame pairs of `patches` slots and `windows`; `frames` lists
    them as (item, frame pair)."""

    count: int
    patches: int
    windows: int
    frames: list[tuple[int, int]]

    @property
    def shape(self) -> tuple:
        return "tower", self.count, self.patches, self.windows


@dataclasses.dataclass
class Plan:
    """Batches in the order they run, the largest first: a lack of memory shows at once."""

    tower: list[Tower]
    decoder: list[Decode]

    @property
    def shapes(self) -> set[tuple]:
        """The shapes of all batches; each is a compiled program."""
        return {batch.shape for batch in (*self.tower, *self.decoder)}

    @property
    def slots(self) -> dict[str, int]:
        """Numbers of computed tokens and patches, including padding."""
        return {
            "tokens": sum(batch.count * batch.length for batch in self.decoder),
            "patches": sum(batch.count * batch.patches for batch in self.tower),
        }

    def used(self, rows: Mapping[int, Row]) -> dict[str, int]:
        """Numbers of computed tokens and patches, excluding padding."""
        tokens = sum(
            batch.shared + sum(len(rows[index].tokens) - batch.shared for index in row)
            for batch in self.decoder
            for row in batch.rows
        )
        patches = sum(len(rows[i].patches[p]) for batch in self.tower for i, p in batch.frames)
        return {"tokens": tokens, "patches": patches}


def make_plan(
    rows: Mapping[int, Row], buckets: Buckets, size: int, unit: int, share: bool = True
) -> Plan:
    """Plans batches for rows, given by index.

    Args:
      size: maximum number of rows of up to 1,024 tokens in a batch of the decoder; longer rows are
        fewer. A batch of the tower has about 512 patches for each.
      unit: the first axis of every batch is a multiple of it.
      share: whether items share their common prefix.
    """
    visual = {index for index, row in rows.items() if row.patches}
    decoder = []
    for length, shared, packed in _pack(rows, buckets, unit, share):
        for part, count in _batches(packed, _most_rows(length, size, unit), unit):
            has_visual = any(index in visual for row in part for index in row)
            decoder.append(Decode(count, length, has_visual, shared, part))
    grouped: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for index, row in rows.items():
        for pair, layout in enumerate(row.layouts):
            frame = next(s for s in buckets.frame_sizes if layout.fits(*s))
            grouped.setdefault(frame, []).append((index, pair))
    tower, left = [], []
    for frame, frames in sorted(grouped.items(), reverse=True):
        most = _most_frames(frame[0], size, unit)
        full = len(frames) // most * most if frame[1] == 0 else len(frames)
        for part, count in _batches(frames[:full], most, unit):
            tower.append(Tower(count, *frame, part))
        left += [(frame[0], entry) for entry in frames[full:]]
    tower += _merge(left, size, unit)
    return Plan(sorted(tower, key=lambda batch: (-batch.patches, -batch.windows)), decoder)


def _merge(frames: list[tuple[int, tuple[int, int]]], size: int, unit: int) -> list[Tower]:
    """Batches of least cost for frame pairs (patches, entry) without windows, the largest first.

    A smaller frame may be padded to the size of a larger one: a batch costs its patches, and as
    much again as `BATCH` patches.
    """
    costs, choices = [0] * (len(frames) + 1), [0] * len(frames)  # of the frames from each on
    for start in reversed(range(len(frames))):
        patches = frames[start][0]
        costs[start], choices[start] = min(
            (count * patches + BATCH + costs[min(start + count, len(frames))], count)
            for count in _counts(_most_frames(patches, size, unit), unit)
        )
    batches, start = [], 0
    while start < len(frames):
        count = choices[start]
        part = [entry for _, entry in frames[start : start + count]]
        batches.append(Tower(count, frames[start][0], 0, part))
        start += count
    return batches


def declared_shapes(buckets: Buckets, size: int, unit: int) -> set[tuple]:
    """Returns all shapes that `make_plan` can choose, which bound the number of programs."""
    decoder = {
        ("decoder", count, length, visual)
        for length in buckets.lengths
        for count in _counts(_most_rows(length, size, unit), unit)
        for visual in (False, True)
    }
    tower = {
        ("tower", count, *frame)
        for frame in buckets.frame_sizes
        for count in _counts(_most_frames(frame[0], size, unit), unit)
    }
    return decoder | tower


def _most_rows(length: int, size: int, unit: int) -> int:
    return max(size * 2 * ROW // max(length, 2 * ROW) // unit, 1) * unit


def _most_frames(patches: int, size: int, unit: int) -> int:
    return max(size * ROW // patches // unit, 1) * unit


def _counts(most: int, unit: int) -> set[int]:
    return {count for n in range(1, most + 1) for count in batch_sizes(n, most, unit)}


def _batches(items: list, most: int, unit: int) -> Iterable[tuple[list, int]]:
    at = 0
    for count in batch_sizes(len(items), most, unit):
        yield items[at : at + count], count
        at += count


def batch_sizes(count: int, size: int, unit: int) -> list[int]:
    """Sizes of batches for `count` entries: full ones, then `unit` times powers of two.

    These are few sizes, so few programs; at most a quarter of a batch, or one `unit`, is padding.
    """
    sizes = [size] * (count // size)
    left = -(-(count % size) // unit)
    while left:
        above = min(1 << (left - 1).bit_length(), size // unit)
        rows = above if 4 * left >= 3 * above else 1 << (left.bit_length() - 1)
        sizes.append(rows * unit)
        left -= min(left, rows)
    return sizes


def _pack(
    rows: Mapping[int, Row], buckets: Buckets, unit: int, share: bool
) -> list[tuple[int, int, list[list[int]]]]:
    """Assigns items to rows, first fit in decreasing order of length.

    Returns (tokens of a row, tokens of the common prefix, items of each row), the longest first."""
    order = sorted(rows, key=lambda index: (-len(rows[index].tokens), index))
    shared = common_start([rows[index] for index in order]) if share else 0
    total = shared + sum(len(rows[index].tokens) - shared for index in order)
    wanted = min(ROW, -(-total // unit), buckets.lengths[-1])  # few short texts: a short row
    room, vacancies = np.zeros((2, len(order)), np.int64)  # free tokens and items of each row
    packed: list[list[int]] = []
    lengths: list[int] = []
    for index in order:
        need = len(rows[index].tokens) - shared
        fits = np.flatnonzero((room >= need) & (vacancies > 0))
        if len(fits):
            row = fits[0]
        else:
            row, length = len(packed), _row_length(buckets, max(need + shared, wanted))
            packed.append([])
            lengths.append(length)
            room[row], vacancies[row] = length - shared, most_items(length)
        packed[row].append(index)
        room[row] -= need
        vacancies[row] -= 1
    return [
        (length, shared, [row for row, of in zip(packed, lengths, strict=True) if of == length])
        for length in sorted(set(lengths), reverse=True)
    ]


def _row_length(buckets: Buckets, wanted: int) -> int:
    return next(length for length in buckets.lengths if length >= wanted)


def most_items(length: int) -> int:
    """Maximum number of items in a row of `length` tokens."""
    return max(length // ITEM, 1)


def common_start(rows: Sequence[Row]) -> int:
    """Length of the common prefix of rows, without visual tokens and last tokens."""
    if not rows:
        return 0
    most = min(
        min(len(row.tokens) - 1, row.visual_tokens.min(initial=len(row.tokens))) for row in rows
    )
    first = rows[0].tokens[:most]
    for row in rows[1:]:
        differ = np.flatnonzero(row.tokens[: len(first)] != first)
        first = first[: differ[0]] if len(differ) else first
    return len(first)


def collate_decode(
    batch: Decode,
    rows: Mapping[int, Row],
    visuals: Mapping[int, np.ndarray],
    width: int,
    dtype: np.dtype,
) -> dict[str, np.ndarray | None]:
    """The fields of `gve_jax.model.batch.Packed`, by name.

    Args:
      visuals: merged tokens [V, visual] of each item with visuals, in raster order.
      width: of the tower's output, `visual`.
      dtype: of the token embeddings.
    """
    length, shared = batch.length, batch.shared
    sizes = {"B": batch.count, "L": length, "I": most_items(length), "visual": width}
    arrays: dict[str, np.ndarray | None] = Packed.padding(sizes, dtype)
    if not batch.visual:
        arrays |= {"visual": None, "visual_mask": None}
    for b, items in enumerate(batch.rows):
        first = rows[items[0]]
        arrays["tokens"][b, :shared] = first.tokens[:shared]
        arrays["positions"][b, :, :shared] = first.positions[:, :shared]
        arrays["segments"][b, :shared] = 0
        at = shared
        for number, index in enumerate(items):
            row = rows[index]
            part = slice(at, at + len(row.tokens) - shared)
            arrays["tokens"][b, part] = row.tokens[shared:]
            arrays["positions"][b, :, part] = row.positions[:, shared:]
            arrays["segments"][b, part] = number + 1
            arrays["last_token"][b, number] = part.stop - 1
            if index in visuals:
                tokens = row.visual_tokens + at - shared
                arrays["visual"][b, tokens] = visuals[index]
                arrays["visual_mask"][b, tokens] = True
            at = part.stop
    return arrays


def collate_tower(batch: Tower, rows: Mapping[int, Row], spec: InputSpec) -> dict[str, np.ndarray]:
    """The fields of `gve_jax.model.batch.Frames`, by name."""
    slots = batch.windows * spec.window_side**2
    sizes = {"G": batch.count, "P": batch.patches, "S": slots, "patch_dim": spec.patch_dim}
    arrays = Frames.padding(sizes)
    for g, (index, pair) in enumerate(batch.frames):
        put_frame(arrays, g, rows[index].patches[pair], rows[index].layouts[pair])
    return arrays
