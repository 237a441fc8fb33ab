"""The numbers of a training run as it goes, one step behind the device."""

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import jax

from gve_jax.errors import UserError
from gve_jax.inputs.padding import Padding
from gve_jax.learning.metrics import Progress, open_writers, write_all


class RunLog:
    """Writes metrics, draws the progress bar, and measures where the time goes.

    Numbers are read one step late, so that the device always has a step to work on.
    `wait_share` is the part of the time in which the loop stood still for want of a batch, counted
    once warm: not the first batches of a stage, while workers start, nor steps that compile.
    """

    WARM = 3  # batches of a stage that count as its start

    def __init__(
        self,
        workdir: Path,
        *,
        first_step: int,
        steps: int,
        batch_size: int,
        every: int,
        learning_rate: Callable[[int], float],
    ):
        self._batch_size, self._every, self._learning_rate = batch_size, every, learning_rate
        self._pending, self._seen, self._padding = None, set(), Padding()
        self._writers = open_writers(workdir, first_step=first_step)
        self.progress = Progress(steps, first_step=first_step)
        self._began, self._steps = time.perf_counter(), 0
        self._warm_time = self._warm_wait = 0.0
        self._warm_steps = 0
        self.warm_up()

    def warm_up(self) -> None:
        self._cold, self._asked = self.WARM, time.perf_counter()

    def dispatching(self) -> None:
        """A batch has come: the time since the last step was dispatched was spent waiting."""
        self._got = time.perf_counter()

    def dispatched(self, step: int, stage: int, batch, scalars: Mapping) -> None:
        previous, self._pending = self._pending, (step, stage, batch, scalars)
        self._report(previous)
        now = time.perf_counter()
        shapes = tuple(leaf.shape for leaf in jax.tree.leaves(batch.arrays))
        if self._cold > 0 or shapes not in self._seen:
            self._cold -= 1
        else:
            self._warm_time += now - self._asked
            self._warm_wait += self._got - self._asked
            self._warm_steps += 1
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
        if not math.isfinite(scalars["loss"]):
            raise UserError(
                f"the loss of step {step} is {scalars['loss']}: source {batch.source}, pairs "
                f"{', '.join(batch.ids)}"
            )
        speed, wait = self._speed(), self._wait_share()
        self.progress.update(
            step + 1, stage=stage, loss=scalars["loss"], pairs_per_s=speed, wait_share=wait
        )
        if step % self._every == 0:
            write_all(
                self._writers,
                step,
                scalars
                | {
                    f"loss/{batch.source}": scalars["loss"],
                    "learning_rate": float(self._learning_rate(step)),
                    "pairs_per_s": speed,
                    "wait_share": wait,
                    "stage": stage,
                    "task": batch.source,
                },
            )

    def _speed(self) -> float:
        if not self._warm_time:
            return 0.0
        return self._warm_steps * self._batch_size / self._warm_time

    def _wait_share(self) -> float:
        return self._warm_wait / self._warm_time if self._warm_time else 0.0

    def close(self) -> dict:
        """Closes the writers; the numbers since this process started, as a dict."""
        for writer in self._writers:
            writer.close()
        return {
            "steps": self._steps,
            "seconds": time.perf_counter() - self._began,
            "pairs_per_s": self._speed(),
            "wait_share": self._wait_share(),
            "compiled_steps": len(self._seen),
            "padding": self._padding.shares(),
        }

    def summary(self) -> str:
        return (
            f"trained {self._steps} steps in {time.perf_counter() - self._began:.0f} s: "
            f"{self._speed():.0f} pairs/s, waiting for data {self._wait_share():.1%} of the time "
            f"once warm, {len(self._seen)} compiled steps; {self._padding.summary()}"
        )
