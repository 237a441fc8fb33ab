"""The Modality Pyramid: alignment measured at each stage decides what is sampled
(arXiv 2510.27571, section 3.3)."""

from collections.abc import Mapping, Sequence

import numpy as np

# By name: how far sigma is from its first value to its last, after that share of the training.
SIGMAS = {
    "linear": lambda share: share,
    "cosine": lambda share: (1 - np.cos(np.pi * share)) / 2,
    "step": lambda share: np.asarray(share) >= 0.5,
    "constant": lambda share: np.zeros_like(share, np.float64),
}


def sigma_at(
    number: int | np.ndarray, count: int, first: float, last: float, form: str = "linear"
) -> float | np.ndarray:
    """The softmax temperature of a stage of `count`, or of a step: from `first` to `last` (0.1 to
    1.0), linearly unless another form of `SIGMAS` is named."""
    share = np.asarray(number, np.float64) / max(count - 1, 1)
    sigma = first + (last - first) * SIGMAS[form](share)
    return sigma if np.ndim(number) else float(sigma)


def probabilities(
    alignment: Mapping[str, float], sigma: float, sizes: Mapping[str, int] | None = None
) -> dict[str, float]:
    """P(k) proportional to exp(R_k / sigma), or to n_k exp(R_k / sigma).

    Args:
      alignment: R, the mean cosine of positive pairs, by task.
      sigma: temperature; small prefers what is already aligned.
      sizes: n, the number of pairs by task. The paper does not say whether size counts; without
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


def modality(source: str) -> str:
    """The pair of modalities that a source's name begins with: `T2V_whole` is of `T2V`."""
    return source.split("_")[0]
