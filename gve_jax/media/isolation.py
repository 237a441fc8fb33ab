"""Decodes in processes of their own: a crash, a hang or a bomb costs one item, not the run."""

import collections
import dataclasses
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from gve_jax.errors import UserError
from gve_jax.inputs.layout import window_layout
from gve_jax.inputs.preprocess import InputSpec, Preprocessor, Row, applies_exif
from gve_jax.media.errors import MediaError, RetryableMediaError
from gve_jax.media.item import Item, source_name
from gve_jax.media.wire import MAX_HEADER, OUT_OF_MEMORY, PREFIX, pack, pack_item, paths

WORKER = "gve_jax.media.worker"
START = 120.0  # seconds a process may take to load its libraries
_BOOT = (
    "import importlib, json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "importlib.import_module(sys.argv[2]).main()"
)
_PIPE = 1 << 20  # bytes of a pipe: a clip in a few turns instead of in hundreds
_ENVIRONMENT = {
    # One thread: arrays of a few megabytes gain nothing from more, and each is address space.
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    # glibc gives each clip's memory back and faults it in again for the next: a tenth of the time.
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
}
_REASON = 500  # characters
# Signals of a crash, which a file causes again. Whatever else ends a process may pass: a machine
# that is short of memory (libraries exit then), a scheduler, a disk that went away.
_CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGILL, signal.SIGFPE, signal.SIGTRAP)


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why an item has no row, the seconds that were spent on it, and whether trying again may
    succeed (see `MediaError`)."""

    reason: str
    seconds: float
    retry: bool = False


class Isolated:
    """A `Preprocessor` whose files and bytes are decoded by other processes.

    These load neither JAX nor the tokenizer: they send patches, and the caller makes the row. Each
    item has `limits.seconds` of wall clock and may add `limits.memory` bytes (on Linux). Texts,
    arrays and PIL images are the caller's own and stay in its process. Started when first needed,
    a process serves one item after another, and ends with the caller, however that ends.

    May be called from several threads, in a process that multiprocessing or grain has made, and
    after a fork; travels to another process unstarted.

    Args:
      preprocess: what rows are made by; its limits apply.
      processes: how many at most, and how many items are decoded at once.
    """

    def __init__(self, preprocess: Preprocessor, processes: int):
        if processes < 1:
            raise ValueError(f"processes must be at least 1, not {processes}")
        self.preprocess, self.processes = preprocess, processes
        self._start()

    def __reduce__(self):
        return Isolated, (self.preprocess, self.processes)

    def _start(self) -> None:
        self._owner = os.getpid()
        self._free = threading.Semaphore(self.processes)
        self._idle: list[_Worker] = []
        self._finalizer = weakref.finalize(self, _end, self._idle, self._owner)
        if sys.platform != "linux":
            warnings.warn("limits.memory is kept on Linux only", stacklevel=3)

    def __enter__(self) -> "Isolated":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        """Ends the processes that are not decoding; a later call starts new ones."""
        _end(self._idle, self._owner)

    @property
    def spec(self) -> InputSpec:
        return self.preprocess.spec

    @property
    def pids(self) -> list[int]:
        """Of the processes that wait for an item."""
        return [worker.pid for worker in self._idle]

    def __call__(self, item: Item) -> Row:
        """The very row that `preprocess` would give.

        Raises:
          MediaError: what cannot be read, crashed its process, or went past a limit.
        """
        if not is_untrusted(item):
            return self.preprocess(item)
        if os.getpid() != self._owner:  # forked: the other side's processes are not ours to talk to
            self._start()
        fields, buffers = pack_item(item, applies_exif(item, self.spec))
        with self._free:
            visuals = self._decode(item, fields, buffers)
        return self.preprocess.row(item, visuals)

    def map(
        self, items: Iterable[Item], fit: Callable[[list[Row]], object] | None = None
    ) -> Iterator[Row | Failure]:
        """Rows and failures in the order of `items`, of which a few are decoded ahead.

        Args:
          items: what is read.
          fit: raises ValueError for a row that is too large; that is a failure, too.
        """
        ahead: collections.deque = collections.deque()
        with ThreadPoolExecutor(self.processes) as pool:
            try:
                for item in items:
                    ahead.append(pool.submit(self.attempt, item, fit))
                    if len(ahead) > 2 * self.processes:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                for future in ahead:
                    future.cancel()

    def attempt(self, item: Item, fit: Callable | None = None) -> Row | Failure:
        """`__call__`, but what cannot be read, or does not `fit`, is returned as a `Failure`."""
        began = time.perf_counter()
        try:
            row = self(item)
        except MediaError as error:
            return Failure(str(error), time.perf_counter() - began, error.retry)
        try:
            if fit:
                fit([row])
        except ValueError as error:
            return Failure(str(error), time.perf_counter() - began)
        return row

    def _decode(self, item: Item, fields: dict, buffers: list) -> list[tuple]:
        """Visuals as `Preprocessor.visuals` gives them. What a used process died of may be an
        earlier item's doing: only what happens in a fresh one counts."""
        while True:
            try:
                worker = self._idle.pop()
            except IndexError:
                worker = _Worker(self.preprocess)
            try:
                header, body = worker.ask(fields, buffers)
                visuals = _visuals(header, body, self.spec, _count(item))
            except _Lost as loss:
                worker.kill()
                if worker.served and loss.again:
                    continue
                kind = RetryableMediaError if loss.retry else MediaError
                raise kind(f"{_name(item)}: {loss}") from None
            except BaseException:
                worker.kill()  # interrupted half-way: what it sends next answers no one
                raise
            worker.served += 1
            self._idle.append(worker)
            if "error" in header:
                text = _line(header["error"])
                kind = RetryableMediaError if header.get("retry") else MediaError
                raise kind(text if header.get("named") else f"{_name(item)}: {text}")
            return visuals


class _Lost(Exception):
    """A worker that is of no more use, and why; `again` where it may not be this item's fault.
    `retry` where a later run may succeed."""

    def __init__(self, reason: str, again: bool = True, retry: bool = False):
        super().__init__(reason)
        self.again, self.retry = again, retry


class _Worker:
    """One process: its pipes, its messages, and how many items it has served."""

    def __init__(self, preprocess: Preprocessor):
        self.served, self._limits = 0, preprocess.limits
        self._spec = preprocess.spec
        self._messages = tempfile.TemporaryFile(buffering=0)
        command = [sys.executable, "-c", _BOOT, json.dumps(sys.path), WORKER]
        environment = os.environ | _ENVIRONMENT
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._messages,
            bufsize=0,
            env=environment,
        )
        self._in, self._out = self._process.stdin.fileno(), self._process.stdout.fileno()
        for pipe in (self._in, self._out):
            os.set_blocking(pipe, False)
            if hasattr(fcntl, "F_SETPIPE_SZ"):
                try:
                    fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE)
                except OSError:
                    pass  # a user's pipes may take so much memory together and no more
        setup = {
            "spec": dataclasses.asdict(self._spec),
            "limits": dataclasses.asdict(self._limits),
        }
        try:
            deadline = time.monotonic() + START
            self._send([pack(setup)], deadline)
            self._receive(deadline)
        except BaseException as error:
            self.kill()
            if isinstance(error, _Lost):  # not an item's fault: the installation's
                raise UserError(f"a decoding process does not start: {error}") from error
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, fields: dict, buffers: list) -> tuple[dict, np.ndarray]:
        """The answer's header and body; `_Lost` if there is none in time, or no sane one."""
        deadline = time.monotonic() + self._limits.seconds
        request = {"item": fields}
        if not all(map(os.path.isabs, paths(fields))):
            request["folder"] = os.getcwd()  # may have changed since the process was started
        self._send([pack(request, sum(map(len, buffers))), *buffers], deadline)
        header, body = self._receive(deadline)
        if header.get("memory"):
            raise self._out_of_memory()
        if os.fstat(self._messages.fileno()).st_size:
            self._messages.seek(0)  # of the process too: both share one offset
            self._messages.truncate()  # a crash is explained by its own item's messages
        return header, body

    def kill(self) -> None:
        """Ends the process at once. It is this object's child and not yet waited for, so that its
        number cannot be another's."""
        self._process.kill()
        self._process.wait()
        self._close()

    def end(self) -> None:
        """Lets an idle process end by itself."""
        self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._close()

    def abandon(self) -> None:
        """Closes what a fork has copied; the process is the other side's."""
        self._process.returncode = 0  # else Popen takes it for a child that nobody waited for
        self._close()

    def _close(self) -> None:
        for file in (self._process.stdin, self._process.stdout, self._messages):
            file.close()

    def _send(self, buffers: list, deadline: float) -> None:
        for buffer in buffers:
            left = memoryview(buffer)
            while left:
                self._wait(self._in, select.POLLOUT, deadline)
                try:
                    left = left[os.write(self._in, left) :]
                except BlockingIOError:
                    continue
                except BrokenPipeError:
                    raise self._died() from None

    def _receive(self, deadline: float) -> tuple[dict, np.ndarray]:
        size, body = PREFIX.unpack(self._read(PREFIX.size, deadline))
        if size > MAX_HEADER or body > _most_bytes(self._spec):
            raise _Lost(f"its process sent {size} + {body} bytes, more than any item has")
        try:
            header = json.loads(bytes(self._read(size, deadline)))
        except (ValueError, RecursionError):
            header = None
        if not isinstance(header, dict):
            raise _Lost("its process sent no JSON object")
        return header, self._read(body, deadline)

    def _read(self, size: int, deadline: float) -> np.ndarray:
        data = np.empty(size, np.uint8)
        left = memoryview(data)
        while left:
            self._wait(self._out, select.POLLIN, deadline)
            try:
                count = os.readv(self._out, [left])
            except BlockingIOError:
                continue
            if not count:
                raise self._died()
            left = left[count:]
        return data

    def _wait(self, pipe: int, event: int, deadline: float) -> None:
        poll = select.poll()
        poll.register(pipe, event)
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            raise self._too_slow()

    def _too_slow(self) -> _Lost:
        seconds = self._limits.seconds
        return _Lost(
            f"not decoded in {seconds:g} seconds (limits.seconds)", again=False, retry=True
        )

    def _out_of_memory(self) -> _Lost:
        reason = f"needs more memory than {self._limits.memory} bytes (limits.memory)"
        return _Lost(reason, retry=True)

    def _died(self) -> _Lost:
        try:
            status = self._process.wait(1)
        except subprocess.TimeoutExpired:
            return _Lost("its process closed its pipe")
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
        reason = f"its process {how}" + (f": {_line(last)}" if last else "")
        return _Lost(reason, retry=-status not in _CRASHES)


def is_untrusted(item: Item) -> bool:
    """Whether any of an item's media is a file or encoded bytes, which have to be decoded."""
    media = [item.image]
    media += item.video if isinstance(item.video, list | tuple) else [item.video]
    return any(isinstance(medium, str | os.PathLike | bytes) for medium in media)


def _count(item: Item) -> int:
    return (item.video is not None) + (item.image is not None)


def _visuals(header: dict, body: np.ndarray, spec: InputSpec, count: int) -> list[tuple]:
    """An answer as `Preprocessor.visuals` gives it, every number checked: what decoded a hostile
    file may have been taken over by it."""
    if "error" in header:
        return []
    visuals, place = [], 0
    width = 3 * spec.temporal * spec.patch_size**2
    try:
        for frames, rows, columns, seconds in header["visuals"]:
            sides_fit = all(0 < side and side % spec.merge == 0 for side in (rows, columns))
            if not (sides_fit and 0 < frames and 0 <= seconds < float("inf")):
                raise ValueError
            if rows * columns * spec.patch_size**2 > spec.max_pixels:
                raise ValueError
            size = frames * rows * columns * width
            patches = body[place : place + size].reshape(frames, rows * columns, width)
            place += size
            layout = window_layout(rows, columns, spec.window_side, spec.merge)
            grid = (frames, rows // spec.merge, columns // spec.merge)
            visuals.append((patches, layout, grid, seconds))
        tokens = sum(t * h * w for _, _, (t, h, w), _ in visuals)
        if len(visuals) != count or place != len(body) or tokens > spec.max_length:
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise _Lost(f"its process sent an answer that cannot be: {_line(str(header))}") from None
    return visuals


def _most_bytes(spec: InputSpec) -> int:
    """Of the patches of one item: each `merge**2` of them are a token."""
    return spec.max_length * spec.merge**2 * 3 * spec.temporal * spec.patch_size**2


def _name(item: Item) -> str:
    return source_name(item.video if item.video is not None else item.image)


def _line(text: str) -> str:
    """One printable line: a file may have chosen these words."""
    text = " ".join(str(text).split())[:_REASON]
    return "".join(c if c.isprintable() else "?" for c in text)


def _end(workers: list[_Worker], owner: int) -> None:
    ours = os.getpid() == owner
    while workers:
        worker = workers.pop()
        worker.end() if ours else worker.abandon()
