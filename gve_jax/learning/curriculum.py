"""The sampling of each stage of a run, by its configuration: on the host, numpy only."""

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
    """`config.pyramid`. Where the paper (section 3.3) leaves a choice open, the default is ours;
    `python -m evals.curriculum` compares them.

    Raises:
      ValueError: an invalid value or combination.
    """

    stages: int = setting(3, "stages; alignment R is measured when each starts", least=1)
    unit: str = setting(
        "steps",
        "length of a stage: equal parts of the steps, or one pass over all pairs",
        choices=("steps", "epoch"),
    )
    bounds: tuple[int, ...] = setting(
        (), "first steps of the stages after the first; (): by unit", least=1
    )
    schedule: str = setting(
        "pyramid",
        "sampling: exp(R / sigma), all tasks equally, by number of pairs, or by weights",
        choices=SCHEDULES,
    )
    weights: tuple[tuple[str, float | tuple[float, ...]], ...] = setting(
        (), "for schedule manual: (source pattern, weight or one weight per stage)"
    )
    task: str = setting(
        "source",
        "unit of R and P; modality: pairs of modalities, divided among sources by size",
        choices=("source", "modality"),
    )
    by_size: bool = setting(True, "P ~ size * exp(R / sigma); False: without the size")
    sigma: str = setting("linear", "schedule from sigma_first to sigma_last", choices=tuple(SIGMAS))
    sigma_per: str = setting(
        "stage", "whether sigma changes per stage or per step", choices=("stage", "step")
    )
    sigma_first: float = setting(0.1, "first sigma", least=1e-6)
    sigma_last: float = setting(1.0, "last sigma", least=1e-6)
    prober: str | None = setting(
        None,
        "source of R for the first stage: directory or Hub id of a model, or a JSON file "
        "{task: R}; none: the initial weights",
    )
    pairs: int = setting(1024, "pairs per source from which R is measured", least=1)

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
        """float64 [stages, sources] of the policy table."""
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
        record = {"stage": number, "first_step": first, "last_step": last, "sigma": sigma[0]}
        if self.config.sigma_per == "step":
            record["sigma_end"] = sigma[-1]
        record["R"] = {name: float(alignment[name]) for name in self.sizes}
        weights = self._rows(number, record["R"], sigma)
        mean = np.mean(weights, axis=0)
        return record | {"P": dict(zip(self.sizes, mean.tolist(), strict=True))}

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
