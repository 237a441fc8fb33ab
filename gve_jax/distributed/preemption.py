"""SIGTERM, which schedulers send before they reclaim a machine, and Ctrl-C: save, then stop."""

import os
import signal
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils

from gve_jax.errors import StoppedError

_GRACE_S = 3.0  # for the main thread to end by itself
_NOTHING = "no step to save since the start"
_AGAIN = b"interrupted: stopping after this step; Ctrl-C again stops at once\n"


class Preemption:
    """Context that records SIGTERM and Ctrl-C; the training loop calls `reached` after each step.

    Until the loop sets `unsaved`, nothing needs saving, and a signal ends the process within
    seconds, also during a compilation, in which Python runs no signal handlers. A second Ctrl-C
    raises KeyboardInterrupt.

    With `jax.distributed`, JAX handles SIGTERM, notifies the other hosts and chooses the step after
    which all stop: every process must call `reached` at every step. Decoding processes ignore both
    signals, which a scheduler or a terminal may send to every process of a job.
    """

    def __enter__(self) -> "Preemption":
        self._received: signal.Signals | None = None
        self._distributed, self.unsaved = jax.distributed.is_initialized(), False
        # Python allows handlers in the main thread only; elsewhere SIGTERM ends the process.
        main = threading.current_thread() is threading.main_thread()
        self._installed = not self._distributed and main
        if self._installed:
            self._left = threading.Event()
            reader, self._writer = os.pipe()
            os.set_blocking(self._writer, False)
            threading.Thread(target=self._watch, args=(reader,), daemon=True).start()
            self._previous_fd = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
            self._previous = {
                number: signal.signal(number, self._handle)
                for number in (signal.SIGTERM, signal.SIGINT)
            }
        return self

    def __exit__(self, *_) -> None:
        if self._installed:
            self._left.set()
            for number, handler in self._previous.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(self._previous_fd)
            os.close(self._writer)  # ends the thread

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._received is not None:
            raise KeyboardInterrupt
        self._received = signal.Signals(number)
        if not self.unsaved:
            raise self._stopped(_NOTHING)
        if number == signal.SIGINT:
            os.write(2, _AGAIN)  # print() is not reentrant

    def _watch(self, reader: int) -> None:
        """Ends the process if the main thread is in a compiler, which returns after minutes."""
        with open(reader, "rb", buffering=0) as pipe:
            while received := pipe.read(1):
                known = received[0] in (signal.SIGTERM, signal.SIGINT)
                if not known or self.unsaved or self._left.wait(_GRACE_S) or self.unsaved:
                    continue
                stopped = self._stopped(_NOTHING, signal.Signals(received[0]))
                os.write(2, f"{stopped}\n".encode())
                os._exit(stopped.status)  # as safe as SIGKILL: workers end with their parent

    def reached(self, step: int) -> bool:
        """Whether the job must stop after `step` steps."""
        if self._distributed:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._received is not None

    def stop(self, step: int) -> None:
        """Raises the exception that ends the process with status 143, or 130 after Ctrl-C."""
        raise self._stopped(f"checkpoint saved at step {step}")

    def _stopped(self, what: str, number: signal.Signals | None = None) -> StoppedError:
        number = number or self._received or signal.SIGTERM
        name = "Ctrl-C" if number == signal.SIGINT else number.name
        message = f"received {name}: {what}; repeat the command to resume"
        return StoppedError(message, 128 + number)
