"""Which source each global batch comes from: a pure function of the step."""

import dataclasses
from collections.abc import Mapping, Sequence

import grain
import numpy as np

UNLIMITED = np.iinfo(np.int64).max  # batches of a source that may repeat for ever


@dataclasses.dataclass(frozen=True)
class Stage:
    """Steps [first, last) and how often each source is drawn in them.

    `weights` are in the order of the sources' names: [K], shared out over the stage exactly, or
    [last - first, K], one row a step, from which that step is drawn.
    """

    first: int
    last: int
    weights: Sequence[float] | np.ndarray


class SpentError(ValueError):
    """No source may repeat any more, and steps are left."""


def apportion(weights: Sequence[float], steps: int, room: np.ndarray | None = None) -> np.ndarray:
    """int64 batches a source: `steps` shared out in proportion to the weights by largest
    remainders, so that a stage keeps its probabilities exactly and not only on average.

    What a source has no `room` for, int64 [K], goes to the others, by their weights.

    Raises:
      SpentError: there is no room for so many steps.
    """
    weights = np.asarray(weights, np.float64)
    counts, free = np.zeros(len(weights), np.int64), np.ones(len(weights), bool)
    while True:
        counts[free] = _shares(weights[free], steps - int(counts[~free].sum()))
        over = np.zeros_like(free) if room is None else free & (counts > room)
        if not over.any():
            return counts
        counts[over], free[over] = room[over], False
        if not free.any() and counts.sum() < steps:
            raise SpentError


def _shares(weights: np.ndarray, steps: int) -> np.ndarray:
    if not weights.any():  # too small for a float
        weights = np.ones_like(weights)
    shares = weights / np.sum(weights) * steps
    counts = np.floor(shares).astype(np.int64)
    order = np.argsort(counts - shares, kind="stable")  # largest remainder first
    counts[order[: steps - counts.sum()]] += 1
    return counts


def choose(stages: Sequence[Stage], seed: int, room: np.ndarray | None = None) -> list[np.ndarray]:
    """The source of each step, int32, by stage; a stage does not change what is before it.

    Args:
      stages: from the first on.
      seed: with a stage's number, of its order.
      room: int64 [K], the batches that a source may give in the whole run; None: no limit.

    Raises:
      SpentError: all sources are spent before the last stage's end.
    """
    chosen = []
    for number, stage in enumerate(stages):
        rng = np.random.default_rng([seed, number])
        weights, steps = np.asarray(stage.weights, np.float64), stage.last - stage.first
        left = room
        if room is not None:
            used = sum(np.bincount(one, minlength=len(room)) for one in chosen)
            left = np.maximum(room - used, 0)
        if weights.ndim == 1:
            counts = apportion(weights, steps, left)
            order = rng.permutation(np.repeat(np.arange(len(counts)), counts))
        else:
            order = _drawn(weights, rng.random(steps), left)
        chosen.append(order.astype(np.int32))
    return chosen


def _drawn(weights: np.ndarray, uniform: np.ndarray, room: np.ndarray | None) -> np.ndarray:
    """A source a step, each from its own weights, int64 [steps]; a spent one is drawn no more."""
    order, at = np.empty(len(uniform), np.int64), 0
    left = None if room is None else room.copy()
    while at < len(uniform):
        rows = weights[at:] if left is None else np.where(left > 0, weights[at:], 0)
        edges = np.cumsum(rows, axis=1)
        if not edges[:, -1].all():
            raise SpentError
        found = (edges <= (uniform[at:] * edges[:, -1])[:, None]).sum(axis=1)
        found = np.minimum(found, edges.shape[1] - 1)  # a product that was rounded up
        order[at:] = found
        if left is None:
            return order
        # Up to the first step that asks for more than there is, the draws stand.
        counts = _places(found)
        over = np.flatnonzero(counts >= left[found])
        end = len(found) if not len(over) else int(over[0])
        left -= np.bincount(found[:end], minlength=len(left))
        at += end
    return order


def _places(order: np.ndarray) -> np.ndarray:
    """How often each entry of an order came before, int64."""
    by_source = np.argsort(order, kind="stable")
    starts = np.searchsorted(order[by_source], order[by_source])
    places = np.empty(len(order), np.int64)
    places[by_source] = np.arange(len(order)) - starts
    return places


class StageSelection(grain.transforms.DatasetSelectionMap):
    """Global batch index -> (source index, batch index within that source).

    A source's own batch index counts on over stages, so nothing is repeated before the source is
    exhausted, whatever the stages' weights are. The order within a stage is seeded by (seed,
    stage). Arguments and errors as of `choose`.
    """

    def __init__(self, stages: Sequence[Stage], seed: int, room: np.ndarray | None = None):
        self._source = np.concatenate(choose(stages, seed, room))
        self._key = _places(self._source)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> tuple[int, int]:
        return int(self._source[index]), int(self._key[index])


def epoch_batches(size: int, batch_size: int, together: int = 1) -> int:
    """Batches of one pass over a source; records that fill none are left for another pass."""
    return size // together // (batch_size // together)


def batches(
    sizes: Mapping[str, int],
    batch_sizes: Mapping[str, int],
    stages: Sequence[Stage],
    seed: int,
    siblings: Mapping[str, int] | None = None,
    room: np.ndarray | None = None,
) -> grain.MapDataset:
    """MapDataset of (source name, int64 [B] record indices): every global batch of one source.

    Args:
      sizes: records of each source; its order names the sources of `Stage.weights`.
      batch_sizes: pairs of a global batch, by source.
      stages: what is drawn when.
      seed: every source is shuffled by a seed of its own, anew each epoch.
      siblings: by source, how many records side by side are shuffled as one and share a batch
        (they are each other's hard negatives); divides that source's size and batch size.
      room: as of `choose`.
    """
    siblings = siblings or {}
    datasets = []
    for number, (name, size) in enumerate(sizes.items()):
        together = siblings.get(name, 1)
        datasets.append(
            grain.MapDataset.range(size // together)
            .shuffle(seed=int(np.random.default_rng([seed, number]).integers(2**31)))
            .batch(batch_sizes[name] // together, drop_remainder=True, batch_fn=np.array)
            .map(_Records(name, together))
            .repeat()
        )
    return grain.MapDataset.select_from_datasets(datasets, StageSelection(stages, seed, room))


@dataclasses.dataclass(frozen=True)
class _Records(grain.transforms.Map):
    """Groups of siblings -> (source name, their records)."""

    name: str
    together: int

    def map(self, groups):
        return self.name, (groups[:, None] * self.together + np.arange(self.together)).reshape(-1)
