"""Bootstrap intervals of scores, and paired tests of two models on the same queries.

The unit is the query; the sets' queries are resampled independently. A metric takes few values (the
hit rate two), so a resample is drawn as the count of each value, which has the same distribution as
drawing query by query at a fraction of the cost. Queries that share documents are treated as
independent, and the corpus as fixed: only the queries vary.
"""

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 10_000  # resamples, and sign flips that are drawn instead of enumerated
LEVEL = 0.95  # confidence of the intervals
EXACT = 1 << 20  # largest number of distinct outcomes of sign flips to enumerate
_SLACK = 1e-12  # sums that differ by less are the same outcome

Combine = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray | None]]


@dataclass(frozen=True)
class Paired:
    """Comparison of model A with model B: mean of a - b, its interval, p-value of no difference.

    exact: whether all sign flips were enumerated; else `DRAWS` of them were drawn.
    """

    difference: float
    interval: tuple[float, float]
    p: float
    exact: bool

    def record(self) -> dict:
        """For JSON."""
        return {
            "difference": self.difference,
            "interval": list(self.interval),
            "p": self.p,
            "exact": self.exact,
        }


def resampled(values: np.ndarray, name: str, draws: int = DRAWS) -> np.ndarray:
    """Means of resamples with replacement, float64 [draws], of values [Q].

    `name` is the seed: a set has the same draws in every run.
    """
    kinds, counts = np.unique(values, return_counts=True)
    drawn = _random("bootstrap", name).multinomial(len(values), counts / len(values), size=draws)
    return drawn @ kinds / len(values)


def interval(means: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """The percentile interval of resampled means."""
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def flipped(differences: np.ndarray, name: str, draws: int = DRAWS) -> np.ndarray:
    """Means float64 [draws] of differences [Q] whose signs are drawn at random.

    Under the hypothesis that both models are equal, a query's a - b is as likely as its b - a.
    """
    kinds, counts = _magnitudes(differences)
    heads = _random("flips", name).binomial(counts, 0.5, size=(draws, len(counts)))
    return (2 * heads - counts) @ kinds / len(differences)


def paired(a: np.ndarray, b: np.ndarray, name: str) -> Paired:
    """Compares two models on the same queries, two-sided: sign flips, and a paired bootstrap.

    Args:
      a, b: a metric of each query, [Q] both, in the same order.
      name: of the set; the seed of the draws.

    With a metric of two values and all flips enumerated this is McNemar's exact test.
    """
    differences = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    mean = float(differences.mean())
    bounds = interval(resampled(differences, name))
    kinds, counts = _magnitudes(differences)
    if math.prod(int(count) + 1 for count in counts) <= EXACT:
        return Paired(mean, bounds, _enumerated(kinds, counts, abs(differences.sum())), True)
    return Paired(mean, bounds, _drawn_p(flipped(differences, name), mean), False)


def paired_over_sets(
    a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray], combine: Combine
) -> dict[str, Paired]:
    """`paired` for combinations of the sets' means (abilities, averages); never enumerated.

    Args:
      a, b: {set: metric of each query}, the same sets and queries.
      combine: from {set: means [draws]} to {ability: [draws], or None}; linear in the means.
    """
    differences = {name: np.asarray(a[name], float) - np.asarray(b[name], float) for name in a}
    means = combine({name: np.array([one.mean()]) for name, one in differences.items()})
    boots = combine({name: resampled(one, name) for name, one in differences.items()})
    flips = combine({name: flipped(one, name) for name, one in differences.items()})
    return {
        name: Paired(float(mean[0]), interval(boots[name]), _drawn_p(flips[name], mean[0]), False)
        for name, mean in means.items()
        if mean is not None
    }


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: p-values adjusted for all tests together."""
    order = np.argsort(p_values, kind="stable")
    adjusted, highest = [0.0] * len(p_values), 0.0
    for position, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - position) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def ranks(values: Sequence[float]) -> np.ndarray:
    """Ranks from 1, averaged over equal values, float64 [N]."""
    values = np.asarray(values, float)
    return ((values[:, None] > values) + (values[:, None] == values) / 2).sum(axis=1) + 0.5


def pearson(a: Sequence[float], b: Sequence[float]) -> float:
    return float(np.corrcoef(a, b)[0, 1])


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    return pearson(ranks(a), ranks(b))


def _magnitudes(differences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct magnitudes of nonzero differences, and their counts."""
    sizes = np.abs(differences)
    # Rounded, so that 0.3 - 0.2 equals 0.2 - 0.1: the error is far below the weight of a query.
    return np.unique(np.round(sizes[sizes > _SLACK], 12), return_counts=True)


def _enumerated(kinds: np.ndarray, counts: np.ndarray, observed: float) -> float:
    """The exact share of sign flips whose sum is at least as far from zero as `observed`."""
    sums, chance = np.zeros(1), np.ones(1)
    for size, count in zip(kinds, counts.tolist(), strict=True):
        heads = np.arange(count + 1)
        ways = [
            math.lgamma(count + 1) - math.lgamma(h + 1) - math.lgamma(count - h + 1)
            for h in range(count + 1)
        ]
        binomial = np.exp(np.array(ways) - count * math.log(2))
        sums = np.add.outer(sums, size * (2 * heads - count)).ravel()
        chance = np.multiply.outer(chance, binomial).ravel()
    return min(1.0, float(chance[np.abs(sums) >= observed - 1e-9].sum()))


def _drawn_p(means: np.ndarray, observed: float) -> float:
    """Counts the observed signs as one of the draws, so that p is never 0."""
    extreme = int((np.abs(means) >= abs(observed) - _SLACK).sum())
    return (1 + extreme) / (1 + len(means))


def _random(purpose: str, name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(f"{purpose} {name}".encode()))
