"""Sampling of sources: the source and records of each global batch, as a function of the step."""

import dataclasses
from collections.abc import Mapping, Sequence

import grain
import numpy as np

UNLIMITED = np.iinfo(np.int64).max  # batches of a source that may repeat without end


@dataclasses.dataclass(frozen=True)
class Stage:
    """Steps [first, last) and the sampling weights of the sources in them.

    `weights` are in the order of the sources' names: [sources], met exactly over the stage, or
    [last - first, sources], one row per step, from which the source of that step is drawn.
    """

    first: int
    last: int
    weights: Sequence[float] | np.ndarray


class SpentError(ValueError):
    """All sources are used up before the last step."""


def apportion(weights: Sequence[float], steps: int, budget: np.ndarray | None = None) -> np.ndarray:
    """Divides `steps` among sources in proportion to their weights, by largest remainders, so that
    a stage has its probabilities exactly and not only on average. Returns int64 [sources].

    Args:
      budget: int64 [sources], the batches that each source has left; the excess of a source goes to
        the others by their weights. None: no limit.

    Raises:
      SpentError: the budgets are less than `steps` in total.
    """
    weights = np.asarray(weights, np.float64)
    counts, free = np.zeros(len(weights), np.int64), np.ones(len(weights), bool)
    while True:
        counts[free] = _shares(weights[free], steps - int(counts[~free].sum()))
        over = np.zeros_like(free) if budget is None else free & (counts > budget)
        if not over.any():
            return counts
        counts[over], free[over] = budget[over], False
        if not free.any() and counts.sum() < steps:
            raise SpentError


def _shares(weights: np.ndarray, steps: int) -> np.ndarray:
    if not weights.any():  # all underflowed
        weights = np.ones_like(weights)
    shares = weights / np.sum(weights) * steps
    counts = np.floor(shares).astype(np.int64)
    order = np.argsort(counts - shares, kind="stable")  # largest remainder first
    counts[order[: steps - counts.sum()]] += 1
    return counts


def choose(
    stages: Sequence[Stage], seed: int, budget: np.ndarray | None = None
) -> list[np.ndarray]:
    """Returns the source of each step, int32, by stage. Later stages do not change earlier ones.

    Args:
      stages: all stages from the first on.
      seed: seeds the order of each stage, together with the number of the stage.
      budget: int64 [sources], the batches of each source in the complete run; None: no limit.

    Raises:
      SpentError: all sources are used up before the end of the last stage.
    """
    chosen = []
    for number, stage in enumerate(stages):
        rng = np.random.default_rng([seed, number])
        weights, steps = np.asarray(stage.weights, np.float64), stage.last - stage.first
        left = budget
        if budget is not None:
            used = sum(np.bincount(earlier, minlength=len(budget)) for earlier in chosen)
            left = np.maximum(budget - used, 0)
        if weights.ndim == 1:
            counts = apportion(weights, steps, left)
            order = rng.permutation(np.repeat(np.arange(len(counts)), counts))
        else:
            order = _draw(weights, rng.random(steps), left)
        chosen.append(order.astype(np.int32))
    return chosen


def _draw(weights: np.ndarray, uniform: np.ndarray, budget: np.ndarray | None) -> np.ndarray:
    """Draws an available source for each step, by the weights of that step; int64 [steps]."""
    order, done = np.empty(len(uniform), np.int64), 0
    left = None if budget is None else budget.copy()
    while done < len(uniform):
        rows = weights[done:] if left is None else np.where(left > 0, weights[done:], 0)
        edges = np.cumsum(rows, axis=1)
        if not edges[:, -1].all():
            raise SpentError
        drawn = (edges <= (uniform[done:] * edges[:, -1])[:, None]).sum(axis=1)
        drawn = np.minimum(drawn, edges.shape[1] - 1)  # a product may be rounded up
        order[done:] = drawn
        if left is None:
            return order
        # Draws are valid up to the first one from a source that is used up.
        counts = _occurrences(drawn)
        over = np.flatnonzero(counts >= left[drawn])
        end = len(drawn) if not len(over) else int(over[0])
        left -= np.bincount(drawn[:end], minlength=len(left))
        done += end
    return order


def _occurrences(order: np.ndarray) -> np.ndarray:
    """Returns how often each entry of an order occurred before it, int64."""
    by_source = np.argsort(order, kind="stable")
    starts = np.searchsorted(order[by_source], order[by_source])
    counts = np.empty(len(order), np.int64)
    counts[by_source] = np.arange(len(order)) - starts
    return counts


class StageSelection(grain.transforms.DatasetSelectionMap):
    """Maps the index of a global batch to (source index, batch index within that source).

    The batch index of a source continues over stages, so that no record repeats before the source
    is exhausted. The order within a stage is seeded by (seed, stage). Arguments and errors are
    those of `choose`.
    """

    def __init__(self, stages: Sequence[Stage], seed: int, budget: np.ndarray | None = None):
        self._source = np.concatenate(choose(stages, seed, budget))
        self._key = _occurrences(self._source)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> tuple[int, int]:
        return int(self._source[index]), int(self._key[index])


def epoch_batches(size: int, batch_size: int, together: int = 1) -> int:
    """Number of batches in one pass over a source, without a last partial one."""
    return size // together // (batch_size // together)


def batches(
    sizes: Mapping[str, int],
    batch_sizes: Mapping[str, int],
    stages: Sequence[Stage],
    seed: int,
    siblings: Mapping[str, int] | None = None,
    budget: np.ndarray | None = None,
) -> grain.MapDataset:
    """Returns a MapDataset of (source name, int64 [B] record indices), one per global batch.

    Args:
      sizes: number of records of each source, in the order of `Stage.weights`.
      batch_sizes: number of pairs in a global batch, by source.
      stages: the weights of sources by step.
      seed: seeds the order of sources in each stage, and of records in each epoch.
      siblings: by source, the number of consecutive records that are shuffled as a group and share
        a batch, as hard negatives of each other; must divide the source's size and batch size.
      budget: as in `choose`.
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
    return grain.MapDataset.select_from_datasets(datasets, StageSelection(stages, seed, budget))


@dataclasses.dataclass(frozen=True)
class _Records(grain.transforms.Map):
    """Maps groups of siblings to (source name, indices of their records)."""

    name: str
    together: int

    def map(self, groups):
        return self.name, (groups[:, None] * self.together + np.arange(self.together)).reshape(-1)
