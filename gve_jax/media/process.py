"""One decoding process as its parent sees it: pipes, deadlines and why it ended."""

import dataclasses
import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import numpy as np

from gve_jax.errors import UserError
from gve_jax.media.errors import MediaError
from gve_jax.media.limits import Limits
from gve_jax.media.source import open_regular
from gve_jax.media.wire import MAX_HEADER, OUT_OF_MEMORY, PREFIX, pack

START = 120.0  # seconds a process may take to load its libraries
_BOOT = (
    "import importlib, json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "importlib.import_module(sys.argv[2]).main()"
)
_PIPE_BYTES = 1 << 20  # a clip passes in a few reads instead of hundreds
_ENVIRONMENT = {
    # Arrays of a few megabytes gain nothing from more threads, and each takes address space.
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    # By default glibc returns the memory of each clip and faults it in again: a tenth of the time.
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
}
# What a process gets of the caller's environment; other variables may hold keys and passwords.
_INHERITED = ("PATH", "HOME", "LANG", "TMPDIR", "TZ")
_INHERITED_PREFIXES = ("PYTHON", "LD_", "DYLD_", "LC_", "GVE_JAX_")
_NO_SIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)
_MAX_REASON = 500  # characters
# Signals of a crash, which the same file causes again. Anything else may be transient: a machine
# short of memory (libraries exit then), a scheduler, a disk that went away.
_CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGILL, signal.SIGFPE, signal.SIGTRAP)


class WorkerLost(Exception):
    """A worker that must not be used again, and why.

    Attributes:
      again: whether an earlier item may be the cause, so that a fresh process should try.
      retry: whether a later run may succeed (see `MediaError`).
    """

    def __init__(self, reason: str, again: bool = True, retry: bool = False):
        super().__init__(reason)
        self.again, self.retry = again, retry


class WorkerProcess:
    """A running decoding process.

    Args:
      module: whose `main` runs, `gve_jax.media.worker`.
      limits: for each request.

    Attributes:
      served: answered requests.
      protection: what `gve_jax.media.lockdown` achieved in it.

    Raises:
      UserError: the process does not start.
    """

    def __init__(self, module: str, limits: Limits):
        self.served, self._limits = 0, limits
        self._messages = tempfile.TemporaryFile(buffering=0)
        self._requests, theirs = socket.socketpair()
        command = [sys.executable, "-c", _BOOT, json.dumps(sys.path), module]
        self._process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=self._messages,
            bufsize=0,
            env=_environment(),
        )
        theirs.close()
        self._requests.shutdown(socket.SHUT_RD)
        self._requests.setblocking(False)
        self._out = self._process.stdout.fileno()
        self._writable, self._readable = select.poll(), select.poll()
        self._writable.register(self._requests, select.POLLOUT)
        self._readable.register(self._out, select.POLLIN)
        os.set_blocking(self._out, False)
        self._requests.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _PIPE_BYTES)
        if hasattr(fcntl, "F_SETPIPE_SZ"):
            try:
                fcntl.fcntl(self._out, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
            except OSError:
                pass  # above the kernel's limit for all pipes of a user
        try:
            deadline = time.monotonic() + START
            self._send([pack({"limits": dataclasses.asdict(limits)})], deadline)
            self.protection = _protection(self._receive(deadline, 0)[0])
        except BaseException as error:
            self.kill()
            if isinstance(error, WorkerLost):  # the installation, not a file
                raise UserError(f"a decoding process does not start: {error}") from error
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(
        self, request: dict, buffers: list, most_bytes: int, files: Sequence[str] = ()
    ) -> tuple[dict, np.ndarray]:
        """The header and the body, of at most `most_bytes`, of the answer.

        Args:
          files: paths of the files that the process may ask for, by their numbers. A single one
            is passed with the request.

        Raises:
          MediaError: the single file cannot be opened.
          WorkerLost: no answer in time, or a malformed one.
        """
        deadline = time.monotonic() + self._limits.seconds
        message = [pack(request | {"passed": len(files) == 1}, sum(map(len, buffers))), *buffers]
        if len(files) == 1:
            self._send_file(message, files[0], deadline)
        else:
            self._send(message, deadline)
        header, body = self._receive(deadline, most_bytes)
        while "open" in header:
            self._pass_file(header["open"], files, deadline)
            header, body = self._receive(deadline, most_bytes)
        if header.get("memory"):
            raise self._out_of_memory()
        if os.fstat(self._messages.fileno()).st_size:
            # Both processes share one offset. A crash is explained by messages of its own item.
            self._messages.seek(0)
            self._messages.truncate()
        return header, body

    def kill(self) -> None:
        """Ends the process at once. It has not been waited for, so its pid is not reused yet."""
        self._process.kill()
        self._process.wait()
        self._close()

    def end(self) -> None:
        """Lets an idle process end by itself."""
        self._requests.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._close()

    def abandon(self) -> None:
        """Closes the copies that a fork made; the process belongs to the other side."""
        self._process.returncode = 0  # else Popen tries to wait for it
        self._close()

    def _close(self) -> None:
        for file in (self._requests, self._process.stdout, self._messages):
            file.close()

    def _send(self, buffers: list, deadline: float) -> None:
        for buffer in buffers:
            left = memoryview(buffer)
            while left:
                self._wait(self._writable, deadline)
                try:
                    left = left[self._requests.send(left, _NO_SIGNAL) :]
                except BlockingIOError:
                    continue
                except (BrokenPipeError, ConnectionResetError):
                    raise self._died() from None

    def _send_file(self, buffers: list, path: str, deadline: float) -> None:
        """Sends a message and a file's descriptor. Raises MediaError if it cannot be opened."""
        descriptor = open_regular(path)
        try:
            self._wait(self._writable, deadline)
            first = memoryview(buffers[0])
            try:
                sent = socket.send_fds(self._requests, [first], [descriptor], _NO_SIGNAL)
            except BlockingIOError:  # nothing was sent: the buffer has less room than it seemed
                sent = 0
            except (BrokenPipeError, ConnectionResetError):
                raise self._died() from None
        finally:
            os.close(descriptor)
        if not sent:
            return self._send_file(buffers, path, deadline)
        return self._send([first[sent:], *buffers[1:]], deadline)

    def _pass_file(self, number: object, files: Sequence[str], deadline: float) -> None:
        """Answers a process that asks for a file by its number."""
        if type(number) is not int or not 0 <= number < len(files):
            raise WorkerLost(f"its process asked for the file {printable(repr(number))}")
        try:
            self._send_file([pack({})], files[number], deadline)
        except MediaError as error:
            self._send([pack({"error": str(error)})], deadline)

    def _receive(self, deadline: float, most_bytes: int) -> tuple[dict, np.ndarray]:
        size, body = PREFIX.unpack(self._read(PREFIX.size, deadline))
        if size > MAX_HEADER or body > most_bytes:
            raise WorkerLost(f"its process sent {size} + {body} bytes, more than any item has")
        try:
            header = json.loads(bytes(self._read(size, deadline)))
        except (ValueError, RecursionError):
            header = None
        if not isinstance(header, dict):
            raise WorkerLost("its process sent no JSON object")
        return header, self._read(body, deadline)

    def _read(self, size: int, deadline: float) -> np.ndarray:
        data = np.empty(size, np.uint8)
        left = memoryview(data)
        while left:
            self._wait(self._readable, deadline)
            try:
                count = os.readv(self._out, [left])
            except BlockingIOError:
                continue
            if not count:
                raise self._died()
            left = left[count:]
        return data

    def _wait(self, poll: select.poll, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            raise self._too_slow()

    def _too_slow(self) -> WorkerLost:
        seconds = self._limits.seconds
        return WorkerLost(
            f"not decoded in {seconds:g} seconds (limits.seconds)", again=False, retry=True
        )

    def _out_of_memory(self) -> WorkerLost:
        reason = f"needs more memory than {self._limits.memory} bytes (limits.memory)"
        return WorkerLost(reason, retry=True)

    def _died(self) -> WorkerLost:
        try:
            status = self._process.wait(1)
        except subprocess.TimeoutExpired:
            return WorkerLost("its process closed its pipe")
        if status == OUT_OF_MEMORY:
            return self._out_of_memory()
        if status == -signal.SIGALRM:  # its own clock, where this process was held up itself
            return self._too_slow()
        try:
            how = f"died of {signal.Signals(-status).name}" if status < 0 else f"exited ({status})"
        except ValueError:  # a real-time signal has no name
            how = f"died of signal {-status}"
        self._messages.seek(max(0, self._messages.seek(0, os.SEEK_END) - 4096))
        last = self._messages.read().decode(errors="replace").strip().split("\n")[-1]
        reason = f"its process {how}" + (f": {printable(last)}" if last else "")
        return WorkerLost(reason, retry=-status not in _CRASHES)


def printable(text: str) -> str:
    """One printable line: a file may have chosen these words."""
    text = " ".join(str(text).split())[:_MAX_REASON]
    return "".join(c if c.isprintable() else "?" for c in text)


def _environment() -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in _INHERITED or name.startswith(_INHERITED_PREFIXES)
    }
    return kept | _ENVIRONMENT


def _protection(header: dict) -> dict[str, bool | int]:
    try:
        found = header["sandbox"]
        return {
            "no_new_privs": found["no_new_privs"] is True,
            "landlock": int(found["landlock"]),
            "seccomp": found["seccomp"] is True,
        }
    except (KeyError, TypeError, ValueError):
        raise WorkerLost("its process does not say how it is protected") from None
