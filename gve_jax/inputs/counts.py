"""Counts of tokens and patches in a batch, from which its arithmetic follows."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from gve_jax.inputs.preprocess import Row


class Counts(NamedTuple):
    """Of a batch of items, without padding. Counts of batches of one kind (texts, or items with
    visuals) add up field by field."""

    items: float = 0
    tokens: float = 0  # visual ones included
    seen: float = 0  # sum over items of L * (L + 1) / 2: pairs of a token and one that it sees
    patches: float = 0
    full: float = 0  # sum over frame pairs of P**2
    windowed: float = 0  # sum over windows of P**2

    @classmethod
    def of(cls, lengths: Iterable[int], frames: Iterable[Sequence[int]] = ()) -> "Counts":
        """
        Args:
          lengths: tokens of each item.
          frames: of each frame pair of any item, the patches of each of its windows.
        """
        lengths = [float(n) for n in lengths]
        frames = [[float(n) for n in frame] for frame in frames]
        return cls(
            len(lengths),
            sum(lengths),
            sum(n * (n + 1) / 2 for n in lengths),
            sum(map(sum, frames)),
            sum(sum(frame) ** 2 for frame in frames),
            sum(n * n for frame in frames for n in frame),
        )

    @classmethod
    def sum(cls, parts: Iterable[Sequence[float]]) -> "Counts":
        return cls(*map(sum, zip(*parts, strict=True)))

    @classmethod
    def of_rows(cls, rows: Iterable[Row]) -> "Counts":
        rows = list(rows)
        frames = [layout.window_sizes for row in rows for layout in row.layouts]
        return cls.of([len(row.tokens) for row in rows], frames)

    @classmethod
    def of_shape(
        cls, window_side: int, items: int, pairs: int, patches: int, tokens: int
    ) -> "Counts":
        """Of a batch as full as its static shape [B, F, P] and [B, L] allows; a window holds
        `window_side`**2 patches."""
        whole, rest = divmod(patches, window_side**2)
        frame = [window_side**2] * whole + [rest] * bool(rest)
        one = cls.of([tokens], [frame] * pairs)
        return cls(*(field * items for field in one))
