"""The numbers of a training run as it goes, one step behind the device."""

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
    """Writes metrics, draws the progress bar, and measures where the time goes.

    Numbers are read one step late, so that the device always has a step to work on.
    `wait_share` is the part of the time in which the loop stood still for want of a batch, counted
    once warm: not the first batches of a stage, while workers start, nor steps that compile.
    FLOPs are those of the model (`gve_jax.hardware.flops`), MFU their share of the peak of all
    chips in bfloat16; it is absent where the chip is not in `gve_jax.hardware.chips`.

    Args:
      flops: of a step, by what its sides hold.
      wandb: a project of Weights & Biases.
      profile: (first step, steps) to trace, or ().
    """

    WARM = 3  # batches of a stage that count as its start

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
        chip = chips.of_kind(jax.devices()[0].device_kind)
        self._peak = chip.flops * jax.device_count() if chip else None
        self._pending, self._seen, self._padding = None, set(), Padding()
        self._stage: dict[int, dict[str, float]] = {}  # what to tell of a stage, by its first step
        self._writers = open_writers(workdir, first_step=first_step, wandb=wandb)
        self.progress = Progress(steps, first_step=first_step)
        self._began, self._steps = time.perf_counter(), 0
        self._warm_time = self._warm_wait = 0.0
        self._warm_pairs = self._warm_tokens = 0
        self._warm_flops = Flops(0.0, 0.0)
        self.restart_warmup()

    def restart_warmup(self) -> None:
        self._cold, self._asked = self.WARM, time.perf_counter()

    def stage(self, record: Mapping) -> None:
        """A new stage: its sigma, R, P and batches by source, told with its first step."""
        told = {"pyramid/sigma": record["sigma"]}
        for part in ("R", "P", "batches"):
            told |= {f"pyramid/{part}/{name}": value for name, value in record[part].items()}
        self._stage[record["first_step"]] = told

    def before_step(self, step: int) -> None:
        """A batch has come: the time since the last step was dispatched was spent waiting."""
        self._got = time.perf_counter()
        self._profile.before(step)

    def after_step(self, step: int, stage: int, batch, scalars: Mapping) -> None:
        previous, self._pending = self._pending, (step, stage, batch, scalars)
        self._report(previous)
        self._profile.after(step, scalars)
        now = time.perf_counter()
        work = self._flops(batch.counts.values())
        self._times = {"step_s": now - self._asked, "wait_s": self._got - self._asked}
        shapes = tuple(leaf.shape for leaf in jax.tree.leaves(batch.arrays))
        if self._cold > 0 or shapes not in self._seen:
            self._cold -= 1
        else:
            self._warm_time += now - self._asked
            self._warm_wait += self._got - self._asked
            self._warm_pairs += len(batch.arrays["valid"])
            self._warm_tokens += batch.used["tokens"]
            self._warm_flops = Flops(*map(sum, zip(self._warm_flops, work, strict=True)))
        self._seen.add(shapes)
        self._padding.add(batch.used, batch.slots)
        self._steps += 1
        self._asked = now

    def flush(self) -> None:
        """Waits for the step under way and writes its numbers."""
        pending, self._pending = self._pending, None
        self._report(pending)
        self._asked = time.perf_counter()

    def _report(self, pending) -> None:
        if pending is None:
            return
        step, stage, batch, scalars = pending
        scalars = {name: float(value) for name, value in scalars.items()}
        check_finite(step, scalars, batch.source, batch.ids)
        speed, wait = self._speed(), self._wait_share()
        self.progress.update(
            step + 1, stage=stage, loss=scalars["loss"], pairs_per_s=speed, wait_share=wait
        )
        told = self._stage.pop(step, {})
        if step % self._every == 0 or told:
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
                    **told,
                },
            )

    def _rates(self) -> dict[str, float]:
        """Tokens and model FLOPs a second, once warm; of all devices."""
        time = self._warm_time or math.inf
        rates = {"tokens_per_s": self._warm_tokens / time}
        for part, flops in self._warm_flops._asdict().items():
            rates[f"tflops_per_s/{part}"] = flops / time / 1e12
        if self._peak:
            rates["mfu"] = self._warm_flops.total / time / self._peak
        return rates

    def _speed(self) -> float:
        if not self._warm_time:
            return 0.0
        return self._warm_pairs / self._warm_time

    def _wait_share(self) -> float:
        return self._warm_wait / self._warm_time if self._warm_time else 0.0

    def close(self) -> dict:
        """Closes the writers; the numbers since this process started, as a dict."""
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
            f"once warm, {len(self._seen)} compiled steps; {self._padding.summary()}"
        )


def check_finite(step: int, scalars: Mapping[str, float], source: str, ids: Sequence[str]) -> None:
    """Raises UserError, naming the step and its batch, unless every number of a step is finite. The
    loss comes first: what else is not finite mostly follows from it."""
    for name in sorted(scalars, key=lambda name: (name != "loss", name)):
        if not math.isfinite(scalars[name]):
            raise UserError(
                f"the {name.replace('_', ' ')} of step {step} is {scalars[name]}: source {source}, "
                f"pairs {', '.join(ids)}; no checkpoint contains this step"
            )


class Profile:
    """Traces `steps` steps from `first` on, on the first process, for XProf."""

    def __init__(self, directory: Path, first: int = 0, steps: int = 0):
        self._directory, self._on = directory, False
        here = steps and jax.process_index() == 0
        self._first, self._last = (first, first + steps - 1) if here else (-1, -1)

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
    """Bytes: the most that a device of this process has held, where it tells; else this process."""
    told = [device.memory_stats() for device in jax.local_devices()]
    held = [stats["peak_bytes_in_use"] for stats in told if stats and "peak_bytes_in_use" in stats]
    if held:
        return max(held)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
