"""Collates rows into a batch of a declared static shape (numpy)."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from gve_jax.fields import setting
from gve_jax.inputs.layout import Layout
from gve_jax.inputs.preprocess import InputSpec, Row, time_steps
from gve_jax.inputs.profiles import find_profile
from gve_jax.model.batch import Batch, batch_sizes

# Tokens of the default buckets, in steps of a half and a third: a fifth of them is padding.
_LENGTHS = (64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144)


@dataclasses.dataclass(frozen=True, order=True)
class Bucket:
    """A static shape: frame pairs, patches and windows per frame pair, tokens."""

    pairs: int
    patches: int
    windows: int
    length: int


@dataclasses.dataclass(frozen=True)
class Buckets:
    """The declared static shapes (`config.buckets`), which bound the number of compilations."""

    shapes: tuple[tuple[int, int], ...] = setting(
        help="(frame pairs, tokens) of each shape; a batch uses the first that holds it; 0 frame "
        "pairs: text; longer texts are truncated",
        least=0,
    )
    patches: int = setting(help="patches of a frame pair of the largest frame", least=1)
    windows: int = setting(
        help="attention windows of a frame pair of the largest frame; 0 for towers without", least=0
    )
    frames: tuple[tuple[int, int], ...] = setting(
        (), "(patches, windows) of smaller frames, used where all of a batch fit", least=0
    )

    def __post_init__(self):
        if not self.shapes or min(length for _, length in self.shapes) < 1:
            raise ValueError("shapes must hold at least one (frame pairs, tokens), tokens above 0")
        for name in ("shapes", "frames"):
            ordered = sorted((int(first), int(second)) for first, second in getattr(self, name))
            object.__setattr__(self, name, tuple(ordered))

    @property
    def max_length(self) -> int:
        """Tokens of the longest text that fits with any number of frames."""
        return min(
            # Texts use shapes without frames only, see `fit`.
            max(length for pairs, length in self.shapes if (pairs >= kind if kind else pairs == 0))
            for kind in {pairs for pairs, _ in self.shapes}
        )

    @property
    def lengths(self) -> list[int]:
        """Lengths of the shapes, in ascending order."""
        return sorted({length for _, length in self.shapes})

    @property
    def frame_sizes(self) -> tuple[tuple[int, int], ...]:
        """(patches, windows) of frame pairs, in ascending order."""
        return (*self.frames, (self.patches, self.windows))

    def fit(self, rows: Sequence[Row]) -> Bucket:
        """Returns the first declared shape that holds the rows; ValueError if none does."""
        return self.hold(need(rows))

    def hold(self, exact: Bucket) -> Bucket:
        """Returns the first declared shape that holds `exact`; ValueError if none does."""
        for pairs, length in self.shapes:
            # Frame pairs are padded to the next declared number, but texts have none.
            if exact.pairs <= pairs and exact.length <= length and (exact.pairs or not pairs):
                frame = self._frame(exact) if pairs else (0, 0)
                return Bucket(pairs, *frame, length)
        raise ValueError(
            f"{exact.pairs} frame pairs with {exact.length} tokens exceed every declared bucket"
        )

    def _frame(self, exact: Bucket) -> tuple[int, int]:
        for patches, windows in self.frame_sizes:
            if exact.patches <= patches and exact.windows <= windows:
                return patches, windows
        raise ValueError(f"a frame of {exact.patches} patches exceeds every declared bucket")


def need(rows: Sequence[Row]) -> Bucket:
    """Returns the smallest shape, declared or not, that holds the rows."""
    layouts = {id(layout): layout for row in rows for layout in row.layouts}.values()
    return Bucket(
        max(len(row.patches) for row in rows),
        max((len(layout.coords) for layout in layouts), default=0),
        max((layout.windows for layout in layouts), default=0),
        max(len(row.tokens) for row in rows),
    )


def join(needs: Sequence[Bucket]) -> Bucket:
    """Returns the smallest shape that holds all of `needs`."""
    return Bucket(*(max(sizes) for sizes in zip(*map(dataclasses.astuple, needs), strict=True)))


def default_buckets(spec: InputSpec) -> Buckets:
    """Shapes for all inputs that `spec` permits, with up to eight times its frames, or `max_frames`
    if frames are sampled by time.

    Tokens and frame pairs grow by factors of at most two. Frames with an aspect ratio up to 1:3
    grow by the eighth root of two, from an eighth of the maximum pixels; the last shape holds any
    aspect ratio: a narrow frame has several times as many windows as a square one.
    """
    lengths = [n for n in _LENGTHS if n < spec.max_length] + [spec.max_length]
    profile = find_profile(spec.profile)
    pairs = time_steps(spec.num_frames, profile, spec.temporal)
    most = 8 * pairs
    if spec.fps is not None:
        most = max(most, time_steps(spec.max_frames, profile, spec.temporal))
    doubled = {pairs << n for n in range(1, most.bit_length()) if pairs << n < most}
    kinds = {0, 1, pairs, pairs + 1, most, *doubled}  # + 1: an image beside it
    tokens = spec.largest // (spec.patch_size * spec.merge) ** 2
    patches, side = spec.merge**2, spec.window_side // spec.merge
    frames = [(max(1, round(tokens / 2 ** (step / 8))), 3) for step in range(24, -1, -1)]
    return Buckets(
        shapes=tuple((kind, length) for kind in kinds for length in lengths if length > kind),
        patches=tokens * patches,
        windows=_most_windows(tokens, side, ratio=tokens),
        frames=tuple((n * patches, _most_windows(n, side, ratio)) for n, ratio in frames),
    )


def _most_windows(tokens: int, side: int, ratio: int) -> int:
    """Maximum number of windows of `side` x `side` merged tokens in a grid of `tokens` with an
    aspect ratio up to `ratio`; 0 for a tower without windows, `side` 0."""
    if not side:
        return 0
    grids = ((rows, min(tokens // rows, ratio * rows)) for rows in range(1, tokens + 1))
    return max(-(-rows // side) * -(-cols // side) for rows, cols in grids if rows <= cols)


def collate(rows: Sequence[Row], bucket: Bucket, spec: InputSpec) -> dict[str, np.ndarray]:
    """Returns the fields of a `Batch`, padded to `bucket`."""
    batch = Batch.padding(batch_sizes(len(rows), bucket, spec))
    merged = bucket.patches // spec.merge_unit
    batch["length"][:] = [len(row.tokens) for row in rows]
    for b, row in enumerate(rows):
        count = len(row.tokens)
        batch["tokens"][b, :count] = row.tokens
        batch["positions"][b, :, :count] = row.positions
        done = 0
        for f, (pixels, layout) in enumerate(zip(row.patches, row.layouts, strict=True)):
            put_frame(batch, (b, f), pixels, layout)
            sources = f * merged + layout.merged
            targets = row.visual_tokens[done : done + len(sources)]
            batch["visual_slots"][b, targets] = sources
            batch["visual_inverse"][b, sources] = targets
            done += len(sources)
    return batch


def put_frame(batch: dict[str, np.ndarray], at, pixels: np.ndarray, layout: Layout) -> None:
    """Writes a frame pair's patches and indices to `batch[...][at]`.

    Raises:
      ValueError: the frame pair exceeds the arrays.
    """
    used, windows = len(pixels), len(layout.window_slots)
    room = len(batch["patches"][at])
    if used > room or windows > len(batch["window_slots"][at]):
        raise ValueError(f"a frame of {used} patches exceeds the bucket's {room}")
    batch["patches"][at][:used] = pixels
    batch["patch_mask"][at][:used] = True
    batch["patch_coords"][at][:used] = layout.coords
    batch["window_slots"][at][:windows] = layout.window_slots
    batch["window_inverse"][at][:used] = layout.window_inverse


def widen(batch: dict[str, np.ndarray], bucket: Bucket, spec: InputSpec) -> dict[str, np.ndarray]:
    """Pads a batch further, to a `bucket` that is at least as large in every dimension."""
    size, pairs, patches, _ = batch["patches"].shape
    old, new = patches // spec.merge_unit, bucket.patches // spec.merge_unit
    wide = Batch.padding(batch_sizes(size, bucket, spec))
    if all(wide[name].shape == array.shape for name, array in batch.items()):
        return batch
    # Merged tokens are numbered across the frame pairs of an item: `old` per pair become `new`.
    slots = batch["visual_slots"]
    if old:
        slots = np.where(slots < 0, -1, slots // old * new + slots % old)
    by_pair = wide["visual_inverse"].reshape(size, bucket.pairs, new)
    by_pair[:, :pairs, :old] = batch["visual_inverse"].reshape(size, pairs, old)
    for name, array in (batch | {"visual_slots": slots}).items():
        if name != "visual_inverse":
            wide[name][tuple(map(slice, array.shape))] = array
    return wide
