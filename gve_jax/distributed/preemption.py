"""Preemption: SIGTERM, which schedulers send before they reclaim a machine."""

import signal
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils

from gve_jax.errors import StoppedError


class Preemption:
    """Context that records SIGTERM; the training loop calls `reached` after each step.

    With `jax.distributed`, JAX handles the signal, notifies the other hosts and chooses the step
    after which all stop: every process must call `reached` at every step. Decoding processes ignore
    the signal, which a scheduler may send to every process of a job.
    """

    def __enter__(self) -> "Preemption":
        self._received, self._distributed = False, jax.distributed.is_initialized()
        # Python allows handlers in the main thread only; elsewhere SIGTERM ends the process.
        main = threading.current_thread() is threading.main_thread()
        self._installed = not self._distributed and main
        if self._installed:
            self._previous = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(self, *_) -> None:
        if self._installed:
            signal.signal(signal.SIGTERM, self._previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._received = True

    def reached(self, step: int) -> bool:
        """Whether the job must stop after `step` steps."""
        if self._distributed:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._received

    def stop(self, step: int) -> None:
        """Raises the exception that ends the process with status 143."""
        raise StoppedError(
            f"received SIGTERM: checkpoint saved at step {step}; repeat the command to resume"
        )
