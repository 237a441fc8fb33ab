"""What each stage of a run samples, by its configuration: host side, numpy only."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from gve_jax.errors import UserError
from gve_jax.fields import check_rules, setting
from gve_jax.learning.patterns import assign
from gve_jax.learning.pyramid import SIGMAS, modality, probabilities, sigma_at, stage_bounds

SCHEDULES = ("pyramid", "uniform", "proportional", "manual")


@dataclasses.dataclass(frozen=True)
class PyramidConfig:
    """`config.pyramid`. Where the paper (section 3.3) leaves something open, the default says what
    is done; all of it may be compared by `python -m evals.curriculum`.

    Attributes:
      stages: how many times R is probed and the mixture decided.
      unit: "steps": stages are equal parts of the run; "epoch": a stage is one pass over all
        records, the last one takes the rest (the paper: one an epoch).
      bounds: the steps at which the stages after the first begin; (): as `unit` says.
      schedule: what P follows. "pyramid": exp(R / sigma); "uniform": all tasks alike;
        "proportional": the number of pairs; "manual": `weights`. R is probed and shown in each.
      weights: of "manual": (pattern, weight, or one a stage), the first pattern found in a
        source's name.
      task: what R and P are of: a "source", or a "modality" pair, whose R is the mean of its
        sources' by size, and whose share they divide by size. The paper does not say.
      by_size: P ~ size * exp(R / sigma), else exp(R / sigma). The paper does not say.
      sigma: its way from `sigma_first` to `sigma_last`: "linear" as in the paper, "cosine",
        "step" (the last one from half way on) or "constant" (the first one).
      sigma_per: "stage", or "step": each step is drawn with its own. The paper does not say.
      prober: whose R decides the first stage. None: the run's own start; a directory or Hub id of
        any GVE or Qwen2.5-VL checkpoint; or a JSON file {task: R}. Later stages are probed by the
        run's own weights.
      pairs: probed of each source; the paper does not say.

    Raises:
      ValueError: a value that is none of those.
    """

    stages: int = setting(3, least=1)
    unit: str = setting("steps", choices=("steps", "epoch"))
    bounds: tuple[int, ...] = setting((), least=1)
    schedule: str = setting("pyramid", choices=SCHEDULES)
    weights: tuple[tuple[str, float | tuple[float, ...]], ...] = ()
    task: str = setting("source", choices=("source", "modality"))
    by_size: bool = True
    sigma: str = setting("linear", choices=tuple(SIGMAS))
    sigma_per: str = setting("stage", choices=("stage", "step"))
    sigma_first: float = setting(0.1, least=1e-6)
    sigma_last: float = setting(1.0, least=1e-6)
    prober: str | None = None
    pairs: int = setting(1024, least=1)

    def __post_init__(self):
        check_rules(self)
        if bool(self.weights) != (self.schedule == "manual"):
            raise ValueError(
                f"weights are for schedule 'manual', not {self.schedule!r}"
                if self.weights
                else "schedule 'manual' needs weights"
            )
        if self.bounds and (self.unit == "epoch" or len(self.bounds) != self.stages - 1):
            raise ValueError(
                f"bounds name {len(self.bounds) + 1} stages, in steps; stages is "
                f"{self.stages}, unit {self.unit!r}"
            )


class Curriculum:
    """The stages of a run, and the record that decides each.

    P is a share of pairs, in every schedule: a source with smaller batches gets more of them, so
    that "proportional" passes over each source equally often. (The paper's P multiplies sizes, but
    it does not say whether it draws pairs or batches; its batches are of two sizes.)

    Args:
      config: the policy.
      sizes: pairs of each source; the order of its names is that of all weights.
      batch_sizes: pairs of a global batch of each source.
      steps: of the whole run.
      epoch: steps of one pass over all records.

    Attributes:
      bounds: steps [first, last) of each stage.
      tasks: the sources of each task.

    Raises:
      UserError: stages that do not fit the steps; manual weights that miss a source, are of
        another number than the stages, or not above 0.
    """

    def __init__(
        self,
        config: PyramidConfig,
        sizes: Mapping[str, int],
        batch_sizes: Mapping[str, int],
        steps: int,
        epoch: int,
    ):
        self.config, self.sizes, self.steps = config, dict(sizes), steps
        batch = np.array([batch_sizes[name] for name in sizes], np.float64)
        self._batches_per_pair = batch.min() / batch  # relative; exactly 1 where all are alike
        self.bounds = self._bounds(epoch)
        self.tasks: dict[str, list[str]] = {}
        for name in sizes:
            task = modality(name) if config.task == "modality" else name
            self.tasks.setdefault(task, []).append(name)
        self._manual = self._weights() if config.schedule == "manual" else None

    def _bounds(self, epoch: int) -> list[tuple[int, int]]:
        stages, steps = self.config.stages, self.steps
        if not 0 < stages <= steps:
            raise UserError(f"pyramid.stages {stages} is not in 1..{steps}")
        if self.config.unit == "epoch":
            if (stages - 1) * epoch >= steps:
                raise UserError(
                    f"pyramid.stages {stages} of an epoch, {epoch} steps each, do not fit into "
                    f"steps {steps}"
                )
            edges = [*(number * epoch for number in range(stages)), steps]
        elif self.config.bounds:
            edges = [0, *self.config.bounds, steps]
            if sorted(set(edges)) != edges:
                raise UserError(
                    f"pyramid.bounds {self.config.bounds} do not rise within 1..{steps - 1}"
                )
        else:
            return stage_bounds(steps, stages)
        return list(zip(edges[:-1], edges[1:], strict=True))

    def _weights(self) -> np.ndarray:
        """float64 [stages, K] of the policy table."""
        rows, stages = [], self.config.stages
        table = assign("pyramid.weights", self.config.weights, self.sizes)
        for name, value in table.items():
            if value is None:
                raise UserError(f"pyramid.weights: no pattern is found in source {name!r}")
            row = [value] * stages if isinstance(value, int | float) else list(value)
            if len(row) != stages:
                raise UserError(f"pyramid.weights: {name!r} has {len(row)} for {stages} stages")
            if bad := [weight for weight in row if not 0 < weight < math.inf]:
                raise UserError(
                    f"pyramid.weights: the weight {bad[0]!r} of {name!r} must be a number above 0"
                )
            rows.append(row)
        return np.array(rows, np.float64).T

    def record(self, number: int, alignment: Mapping[str, float]) -> dict:
        """Stage `number` by R of each source: plain JSON, kept in the checkpoint."""
        first, last = self.bounds[number]
        sigma = self._sigma(number)
        told = {"stage": number, "first_step": first, "last_step": last, "sigma": sigma[0]}
        if self.config.sigma_per == "step":
            told["sigma_end"] = sigma[-1]
        told["R"] = {name: float(alignment[name]) for name in self.sizes}
        weights = self._rows(number, told["R"], sigma)
        mean = np.mean(weights, axis=0)
        return told | {"P": dict(zip(self.sizes, mean.tolist(), strict=True))}

    def weights(self, record: Mapping) -> Sequence[float] | np.ndarray:
        """What `streams.mixture.Stage` takes, shares of batches, of a stage decided before."""
        if self.config.sigma_per == "stage" or self.config.schedule != "pyramid":
            return tuple(
                np.array([record["P"][name] for name in self.sizes]) * self._batches_per_pair
            )
        number = record["stage"]
        rows = np.array(self._rows(number, record["R"], self._sigma(number)))
        return rows * self._batches_per_pair

    def _sigma(self, number: int) -> list[float]:
        """One of the stage, or one a step."""
        config = self.config
        ends = config.sigma_first, config.sigma_last, config.sigma
        if config.sigma_per == "stage":
            return [sigma_at(number, config.stages, *ends)]
        return sigma_at(np.arange(*self.bounds[number]), self.steps, *ends).tolist()

    def _rows(self, number: int, alignment: Mapping[str, float], sigma: list[float]) -> list:
        """Weights of all sources, a row for each sigma."""
        if self._manual is not None:
            row = self._manual[number]
            return [row / row.sum()]
        sizes = {task: sum(self.sizes[n] for n in names) for task, names in self.tasks.items()}
        known = {
            task: sum(alignment[n] * self.sizes[n] for n in names) / sizes[task]
            for task, names in self.tasks.items()
        }
        if self.config.schedule == "pyramid":
            count = sizes if self.config.by_size else None
            chances = [probabilities(known, one, count) for one in sigma]
        else:
            equal = dict.fromkeys(known, 0.0)
            count = sizes if self.config.schedule == "proportional" else None
            chances = [probabilities(equal, 1.0, count)]
        # A source's share of its task: the tasks' order is that of their first sources.
        task = {name: task for task, names in self.tasks.items() for name in names}
        share = [self.sizes[name] / sizes[task[name]] for name in self.sizes]
        column = [list(self.tasks).index(task[name]) for name in self.sizes]
        table = np.array([list(row.values()) for row in chances])
        return list(table[:, column] * share)
