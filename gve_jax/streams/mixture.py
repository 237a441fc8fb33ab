"""Which source each global batch comes from: a pure function of the step."""

import dataclasses
from collections.abc import Mapping, Sequence

import grain
import numpy as np


@dataclasses.dataclass(frozen=True)
class Stage:
    """Steps [first, last) and how often each source is drawn in them.

    `weights` are the sampling probabilities, one a source, in the order of the sources' names.
    """

    first: int
    last: int
    weights: tuple[float, ...]


def apportion(weights: Sequence[float], steps: int) -> np.ndarray:
    """int64 batches a source: `steps` shared out in proportion to the weights by largest
    remainders, so that a stage keeps its probabilities exactly and not only on average."""
    shares = np.asarray(weights, np.float64) / np.sum(weights) * steps
    counts = np.floor(shares).astype(np.int64)
    order = np.argsort(counts - shares, kind="stable")  # largest remainder first
    counts[order[: steps - counts.sum()]] += 1
    return counts


class StageSelection(grain.transforms.DatasetSelectionMap):
    """Global batch index -> (source index, batch index within that source).

    A source's own batch index counts on over stages, so nothing is repeated before the source is
    exhausted, whatever the stages' weights are. The order within a stage is a permutation seeded
    by (seed, stage).
    """

    def __init__(self, stages: Sequence[Stage], seed: int):
        choices = []
        for number, stage in enumerate(stages):
            counts = apportion(stage.weights, stage.last - stage.first)
            order = np.repeat(np.arange(len(counts)), counts)
            choices.append(np.random.default_rng([seed, number]).permutation(order))
        self._source = np.concatenate(choices).astype(np.int32)
        self._key = np.empty(len(self._source), np.int64)
        for source in np.unique(self._source):
            places = np.flatnonzero(self._source == source)
            self._key[places] = np.arange(len(places))

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> tuple[int, int]:
        return int(self._source[index]), int(self._key[index])


def batches(
    sizes: Mapping[str, int],
    batch_sizes: Mapping[str, int],
    stages: Sequence[Stage],
    seed: int,
    siblings: Mapping[str, int] | None = None,
) -> grain.MapDataset:
    """MapDataset of (source name, int64 [B] record indices): every global batch of one source.

    Args:
      sizes: records of each source; its order names the sources of `Stage.weights`.
      batch_sizes: pairs of a global batch, by source.
      stages: what is drawn when.
      seed: every source is shuffled by a seed of its own, anew each epoch.
      siblings: by source, how many records side by side are shuffled as one and share a batch
        (they are each other's hard negatives); divides that source's size and batch size.
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
    return grain.MapDataset.select_from_datasets(datasets, StageSelection(stages, seed))


@dataclasses.dataclass(frozen=True)
class _Records(grain.transforms.Map):
    """Groups of siblings -> (source name, their records)."""

    name: str
    together: int

    def map(self, groups):
        return self.name, (groups[:, None] * self.together + np.arange(self.together)).reshape(-1)
