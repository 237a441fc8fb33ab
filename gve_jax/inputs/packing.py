"""Packs rows into few static shapes with little padding, for encoding (numpy).

Training pads each item to a bucket (`gve_jax.inputs.batch`). An encoder may do better: frame pairs
of all items go through the tower together, sorted by size, and the decoder takes several items side
by side in one row. What the items start with in common, the system turn mostly, stands once in each
row: a causal model gives those tokens the same hidden states in every item.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from gve_jax.inputs.batch import Buckets, put_frame
from gve_jax.inputs.preprocess import InputSpec, Row
from gve_jax.model.batch import Frames, Packed

ROW = 512  # tokens of a row, where items are short; a batch of the tower has as many patches a row
ITEM = 16  # a row has room for an item every so many tokens


@dataclasses.dataclass
class Decode:
    """A batch of the decoder: `count` rows of `length` tokens; `rows` lists the items of each."""

    count: int
    length: int
    visual: bool  # whether there are visual tokens at all
    shared: int  # tokens that each row starts with, for all its items
    rows: list[list[int]]

    @property
    def shape(self) -> tuple:
        return "decoder", self.count, self.length, self.visual


@dataclasses.dataclass
class Tower:
    """A batch of the tower: `count` frame pairs of `patches` slots and `windows`; `frames` says
    which: (item, frame pair)."""

    count: int
    patches: int
    windows: int
    frames: list[tuple[int, int]]

    @property
    def shape(self) -> tuple:
        return "tower", self.count, self.patches, self.windows


@dataclasses.dataclass
class Plan:
    """Batches in the order they run, the dearest first: what does not fit shows at once."""

    tower: list[Tower]
    decoder: list[Decode]

    @property
    def shapes(self) -> set[tuple]:
        """Each is a program to compile."""
        return {batch.shape for batch in (*self.tower, *self.decoder)}

    @property
    def slots(self) -> dict[str, int]:
        """Tokens and patches that are computed, padding included."""
        return {
            "tokens": sum(batch.count * batch.length for batch in self.decoder),
            "patches": sum(batch.count * batch.patches for batch in self.tower),
        }

    def used(self, rows: Mapping[int, Row]) -> dict[str, int]:
        """Of `slots`, those that are no padding."""
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
    """Batches for rows, given by index.

    Args:
      size: rows of a batch of the decoder, at most, as long as they have up to 1,024 tokens; fewer
        of longer ones. A batch of the tower has about 512 patches for each.
      unit: what the first axis of every batch is a multiple of.
      share: let items share what they start with.
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
    tower = [
        Tower(count, *frame, part)
        for frame, frames in sorted(grouped.items(), reverse=True)
        for part, count in _batches(frames, _most_frames(frame[0], size, unit), unit)
    ]
    return Plan(tower, decoder)


def declared_shapes(buckets: Buckets, size: int, unit: int) -> set[tuple]:
    """Every shape that `make_plan` may choose: the bound on compiled programs."""
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
    """Sizes of the batches that hold `count`: full ones, then `unit` times powers of two.

    Few sizes, so few compiled programs; at most a quarter of a batch is padding, or one `unit`.
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
    """Which items stand side by side: (tokens of a row, shared ones, items of each row), the
    longest first. Each item goes where it fits first, the longest item first."""
    order = sorted(rows, key=lambda index: (-len(rows[index].tokens), index))
    shared = common_start([rows[index] for index in order]) if share else 0
    total = shared + sum(len(rows[index].tokens) - shared for index in order)
    wanted = min(
        ROW, -(-total // unit), buckets.lengths[-1]
    )  # one short text is no reason for a long row
    room, places = np.zeros((2, len(order)), np.int64)  # tokens and items that a row still takes
    packed: list[list[int]] = []
    lengths: list[int] = []
    for index in order:
        need = len(rows[index].tokens) - shared
        fits = np.flatnonzero((room >= need) & (places > 0))
        if len(fits):
            row = fits[0]
        else:
            row, length = len(packed), _row_length(buckets, max(need + shared, wanted))
            packed.append([])
            lengths.append(length)
            room[row], places[row] = length - shared, most_items(length)
        packed[row].append(index)
        room[row] -= need
        places[row] -= 1
    return [
        (length, shared, [row for row, of in zip(packed, lengths, strict=True) if of == length])
        for length in sorted(set(lengths), reverse=True)
    ]


def _row_length(buckets: Buckets, wanted: int) -> int:
    return next(length for length in buckets.lengths if length >= wanted)


def most_items(length: int) -> int:
    """Items that a row of so many tokens takes."""
    return max(length // ITEM, 1)


def common_start(rows: Sequence[Row]) -> int:
    """Tokens that all rows start with, none of them visual and none the last of its row."""
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
      visuals: merged tokens [V, D] of each item that has some, in raster order.
      width, dtype: of the decoder's token vectors.
    """
    length, shared = batch.length, batch.shared
    sizes = {"B": batch.count, "L": length, "I": most_items(length), "D": width}
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
                where = row.visual_tokens + at - shared
                arrays["visual"][b, where] = visuals[index]
                arrays["visual_mask"][b, where] = True
            at = part.stop
    return arrays


def collate_tower(batch: Tower, rows: Mapping[int, Row], spec: InputSpec) -> dict[str, np.ndarray]:
    """The fields of `gve_jax.model.batch.Frames`, by name."""
    slots = batch.windows * spec.window_side**2
    sizes = {"G": batch.count, "P": batch.patches, "S": slots, "C": spec.patch_dim}
    arrays = Frames.padding(sizes)
    for g, (index, pair) in enumerate(batch.frames):
        put_frame(arrays, g, rows[index].patches[pair], rows[index].layouts[pair])
    return arrays
