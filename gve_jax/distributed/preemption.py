"""A job that is told to end: SIGTERM, as schedulers send it before they take the machine away."""

import signal
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils

from gve_jax.errors import StoppedError


class Preemption:
    """Notes SIGTERM while it is entered; the loop asks `reached` after each step.

    Where `jax.distributed` runs, JAX has taken the signal, tells the other hosts, and has all of
    them stop after the same step: every process must ask at every step. Decoding processes ignore
    the signal, which a scheduler may send to all of a job's.
    """

    def __enter__(self) -> "Preemption":
        self._told, self._before = False, None
        self._distributed = jax.distributed.is_initialized()
        # Only the main thread may: a run in another one, of a notebook, ends as its process does.
        self._ours = not self._distributed and threading.current_thread() is threading.main_thread()
        if self._ours:
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_) -> None:
        if self._ours:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._told = True

    def reached(self, step: int) -> bool:
        """Whether the job ends after `step` steps."""
        if self._distributed:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._told

    def stop(self, step: int) -> None:
        """Raises the exception that ends the process with status 143."""
        raise StoppedError(
            f"told to end (SIGTERM): saved at step {step}; repeat the command to resume"
        )
