"""Counts of tokens, patches and attention pairs in a batch, from which its FLOPs follow."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from gve_jax.inputs.preprocess import Row


class Counts(NamedTuple):
    """Counts of a batch of items, without padding. Counts of batches of one kind (texts, or items
    with visuals) add up field by field."""

    items: float = 0
    tokens: float = 0  # including visual tokens
    causal_pairs: float = 0  # of causal attention: sum over items of L * (L + 1) / 2
    patches: float = 0
    full_pairs: float = 0  # of full attention: sum over frame pairs of P**2
    window_pairs: float = 0  # of window attention: sum over windows of P**2

    @classmethod
    def of(cls, lengths: Iterable[int], frames: Iterable[Sequence[int]] = ()) -> "Counts":
        """
        Args:
          lengths: number of tokens of each item.
          frames: for each frame pair of all items, the number of patches in each window.
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
        """Counts of a batch that fills its static shape [B, F, P] and [B, L]; a window holds
        `window_side`**2 patches, or all of a frame pair if that is 0."""
        full, rest = divmod(patches, window_side**2 or patches or 1)
        frame = [window_side**2 or patches] * full + [rest] * bool(rest)
        item = cls.of([tokens], [frame] * pairs)
        return cls(*(field * items for field in item))
