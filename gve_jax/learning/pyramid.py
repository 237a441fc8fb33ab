"""The Modality Pyramid: alignment measured at each stage decides what is sampled
(arXiv 2510.27571, section 3.3)."""

from collections.abc import Mapping, Sequence

import numpy as np


def sigma_at(stage: int, stages: int, first: float, last: float) -> float:
    """The softmax temperature of a stage: linear from `first` to `last` (0.1 to 1.0)."""
    return first if stages == 1 else first + (last - first) * stage / (stages - 1)


def probabilities(
    alignment: Mapping[str, float], sigma: float, sizes: Mapping[str, int] | None = None
) -> dict[str, float]:
    """P(k) proportional to exp(R_k / sigma), or to n_k exp(R_k / sigma).

    Args:
      alignment: R, the mean cosine of positive pairs, by source.
      sigma: temperature; small prefers what is already aligned.
      sizes: n, the number of pairs by source. The paper does not say whether size counts; without
        it, a source of thousands is drawn as often as one of millions, and repeats.
    """
    names = list(alignment)
    scores = np.array([alignment[name] for name in names], np.float64) / sigma
    weights = np.exp(scores - scores.max())
    if sizes is not None:
        weights = weights * np.array([sizes[name] for name in names], np.float64)
    return dict(zip(names, (weights / weights.sum()).tolist(), strict=True))


def stage_bounds(steps: int, stages: int) -> list[tuple[int, int]]:
    """Steps [first, last) of each stage, of equal length but for rounding."""
    edges = [round(steps * number / stages) for number in range(stages + 1)]
    return list(zip(edges[:-1], edges[1:], strict=True))


def mean_alignment(similarities: Sequence[np.ndarray]) -> float:
    """R of one source: the mean over its probed pairs' cosines (readable pairs only)."""
    return float(np.concatenate(similarities).mean())
