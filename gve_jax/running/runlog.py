"""Metrics of a training run, read one step behind the device."""

import math
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax

from gve_jax.errors import UserError
from gve_jax.hardware import chips
from gve_jax.hardware.flops import Flops
from gve_jax.inputs.counts import Counts
from gve_jax.inputs.padding import Padding
from gve_jax.running.metrics import Progress, open_writers, write_all


class RunLog:
    """Writes metrics, draws the progress bar, and measures speed and waiting time.

    The results of a step are read after the next one is dispatched, so that the device never waits.
    `wait_share` is the share of time spent waiting for batches. Rates leave out the warm-up: steps
    that compile, and the first batches of a stage, while workers start. MFU is the share of the
    chips' bfloat16 peak, and absent for a chip that `gve_jax.hardware.chips` lacks.

    Args:
      flops: returns the FLOPs of a step by the counts of its sides.
      wandb: a project of Weights & Biases.
      profile: (first step, steps) to trace, or ().
    """

    WARMUP = 3  # batches at the start of a stage that are not measured

    def __init__(
        self,
        workdir: Path,
        *,
        first_step: int,
        steps: int,
        every: int,
        learning_rate: Callable[[int], float],
        flops: Callable[[Sequence[Counts]], Flops],
        wandb: str | None = None,
        profile: Sequence[int] = (),
    ):
        self._every, self._learning_rate = every, learning_rate
        self._flops, self._profile = flops, Profile(workdir / "profile", *profile)
        chip = chips.find_chip(jax.devices()[0].device_kind)
        self._peak = chip.flops * jax.device_count() if chip else None
        self._pending, self._seen, self._padding = None, set(), Padding()
        self._stages: dict[int, dict[str, float]] = {}  # scalars of stages by their first step
        self._writers = open_writers(workdir, first_step=first_step, wandb=wandb)
        self.progress = Progress(steps, first_step=first_step)
        self._began, self._steps = time.perf_counter(), 0
        self._warm_time = self._warm_wait = 0.0
        self._warm_steps = self._warm_pairs = self._warm_tokens = 0
        self._warm_flops = Flops(0.0, 0.0)
        self.restart_warmup()

    def restart_warmup(self) -> None:
        self._cold, self._dispatched = self.WARMUP, time.perf_counter()

    def start_stage(self, record: Mapping) -> None:
        """Adds a stage's sigma, and R, P and batches by source, to the line of its first step."""
        scalars = {"pyramid/sigma": record["sigma"]}
        for part in ("R", "P", "batches"):
            scalars |= {f"pyramid/{part}/{name}": value for name, value in record[part].items()}
        self._stages[record["first_step"]] = scalars

    def before_step(self, step: int) -> None:
        """Call it when a batch has arrived: the time since the last dispatch was waiting time."""
        self._received = time.perf_counter()
        self._profile.before(step)

    def after_step(self, step: int, stage: int, batch, scalars: Mapping) -> None:
        """Call it when the step is dispatched; reports the previous step."""
        previous, self._pending = self._pending, (step, stage, batch, scalars)
        self._report(previous)
        self._profile.after(step, scalars)
        now = time.perf_counter()
        work = self._flops(batch.counts.values())
        step_s, wait_s = now - self._dispatched, self._received - self._dispatched
        self._times = {"step_s": step_s, "wait_s": wait_s}
        shapes = tuple(leaf.shape for leaf in jax.tree.leaves(batch.arrays))
        if self._cold > 0 or shapes not in self._seen:
            self._cold -= 1
        else:
            self._warm_time += step_s
            self._warm_wait += wait_s
            self._warm_steps += 1
            self._warm_pairs += len(batch.arrays["valid"])
            self._warm_tokens += batch.used["tokens"]
            self._warm_flops = Flops(*map(sum, zip(self._warm_flops, work, strict=True)))
        self._seen.add(shapes)
        self._padding.add(batch.used, batch.slots)
        self._steps += 1
        self._dispatched = now

    def flush(self) -> None:
        """Waits for the current step and writes its metrics."""
        pending, self._pending = self._pending, None
        self._report(pending)
        self._dispatched = time.perf_counter()

    def _report(self, pending) -> None:
        if pending is None:
            return
        step, stage, batch, scalars = pending
        scalars = {name: float(value) for name, value in scalars.items()}
        check_finite(step, scalars, batch.source, batch.ids)
        speed, wait = self._speed(), self._wait_share()
        self.progress.update(
            step + 1,
            stage=stage,
            loss=scalars["loss"],
            pairs_per_s=speed,
            wait_share=wait,
            step_s=self._warm_time / self._warm_steps if self._warm_steps else None,
        )
        stage_scalars = self._stages.pop(step, {})
        if step % self._every == 0 or stage_scalars:
            write_all(
                self._writers,
                step,
                scalars
                | {
                    f"loss/{batch.source}": scalars["loss"],
                    "learning_rate": float(self._learning_rate(step)),
                    "stage": stage,
                    "task": batch.source,
                    "pairs_per_s": speed,
                    "wait_share": wait,
                    **self._times,
                    **self._rates(),
                    "memory_gb": memory_in_use() / 1e9,
                    **stage_scalars,
                },
            )

    def _rates(self) -> dict[str, float]:
        """Tokens and model FLOPs per second of all devices, without the warm-up."""
        time = self._warm_time or math.inf
        rates = {"tokens_per_s": self._warm_tokens / time}
        for part, flops in self._warm_flops._asdict().items():
            rates[f"tflops_per_s/{part}"] = flops / time / 1e12
        if self._peak:
            rates["mfu"] = self._warm_flops.total / time / self._peak
        return rates

    def _speed(self) -> float:
        return self._warm_pairs / self._warm_time if self._warm_time else 0.0

    def _wait_share(self) -> float:
        return self._warm_wait / self._warm_time if self._warm_time else 0.0

    def close(self) -> dict:
        """Closes the writers; returns the totals and rates since this process started."""
        self._profile.stop()
        for writer in self._writers:
            writer.close()
        return {
            "steps": self._steps,
            "seconds": time.perf_counter() - self._began,
            "pairs_per_s": self._speed(),
            "wait_share": self._wait_share(),
            **self._rates(),
            "memory_gb": memory_in_use() / 1e9,
            "compiled_steps": len(self._seen),
            "padding": self._padding.shares(),
        }

    def summary(self) -> str:
        return (
            f"trained {self._steps} steps in {time.perf_counter() - self._began:.0f} s: "
            f"{self._speed():.0f} pairs/s, waiting for data {self._wait_share():.1%} of the time "
            f"after warm-up, {len(self._seen)} compiled steps; {self._padding.summary()}"
        )


def check_finite(step: int, scalars: Mapping[str, float], source: str, ids: Sequence[str]) -> None:
    """Raises UserError, naming the step and its batch, unless every scalar of a step is finite.

    The loss is checked first: other values that are not finite mostly follow from it.
    """
    for name in sorted(scalars, key=lambda name: (name != "loss", name)):
        if not math.isfinite(scalars[name]):
            raise UserError(
                f"the {name.replace('_', ' ')} of step {step} is {scalars[name]}: source {source}, "
                f"pairs {', '.join(ids)}; no checkpoint contains this step"
            )


class Profile:
    """Traces steps `first` to `first + steps - 1` on process 0, for XProf."""

    def __init__(self, directory: Path, first: int = 0, steps: int = 0):
        self._directory, self._on = directory, False
        enabled = steps and jax.process_index() == 0
        self._first, self._last = (first, first + steps - 1) if enabled else (-1, -1)

    def before(self, step: int) -> None:
        if step == self._first:
            jax.profiler.start_trace(self._directory)
            self._on = True

    def after(self, step: int, result) -> None:
        if self._on and step >= self._last:
            jax.block_until_ready(result)
            self.stop()

    def stop(self) -> None:
        if self._on:
            self._on = False
            jax.profiler.stop_trace()


def memory_in_use() -> float:
    """Peak memory in bytes of a device of this process, or of the process if devices have none."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    if peaks := [device["peak_bytes_in_use"] for device in stats if "peak_bytes_in_use" in device]:
        return max(peaks)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
