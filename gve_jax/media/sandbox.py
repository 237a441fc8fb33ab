"""Reads untrusted files in other processes: a crash, a hang or a bomb costs one item, not the run.

Every operation sends an item and gets a JSON header and raw bytes back. All numbers of an answer
are checked, since a hostile file may have taken over the process that sends it.
"""

import dataclasses
import math
import os
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from gve_jax.inputs.layout import window_layout
from gve_jax.inputs.preprocess import InputSpec, Visual, applies_exif, pixel_limits
from gve_jax.inputs.profiles import find_profile
from gve_jax.media.errors import MediaError, RetryableMediaError
from gve_jax.media.item import Item, source_name
from gve_jax.media.limits import Limits
from gve_jax.media.outline import Outline
from gve_jax.media.process import WorkerLost, WorkerProcess, printable
from gve_jax.media.sampling import Timeline
from gve_jax.media.video import Clip
from gve_jax.media.wire import pack_item

WORKER = "gve_jax.media.worker"
_warned = False
_NAMES = {"no_new_privs": "no_new_privs", "landlock": "Landlock", "seccomp": "seccomp"}
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why an item could not be read, the seconds spent on it, and whether trying again may succeed
    (see `MediaError`)."""

    reason: str
    seconds: float
    retry: bool = False


@dataclasses.dataclass(frozen=True)
class Header:
    """What the header of a file states.

    Attributes:
      kind: "image" or "video".
      width, height: pixels of a frame, as stored.
      seconds: duration of a video; None where the container does not state one.
    """

    kind: str
    width: int
    height: int
    seconds: float | None = None


def attempt(read: Callable[..., T], *args) -> T | Failure:
    """`read(*args)`; a MediaError becomes a `Failure`."""
    began = time.perf_counter()
    try:
        return read(*args)
    except MediaError as error:
        return Failure(str(error), time.perf_counter() - began, error.retry)


class Sandbox:
    """A pool of decoding processes.

    The processes load neither JAX nor a tokenizer. Each request has `limits.seconds` of wall clock
    and may add `limits.memory` bytes (on Linux). A process starts when it is first needed, serves
    one request after another, and ends with the caller, however the caller ends.

    May be called from several threads, in a process of multiprocessing or grain, and after a fork.
    A pickled copy starts its own processes.

    Args:
      limits: for each request.
      processes: how many at most, and how many requests are served at once.
      worker: module of their program (default: WORKER); one of its own adds operations for `run`.
    """

    def __init__(self, limits: Limits | None = None, processes: int = 1, worker: str | None = None):
        if processes < 1:
            raise ValueError(f"processes must be at least 1, not {processes}")
        self.limits, self.processes = limits or Limits(), processes
        self._worker = worker
        self._protection: dict[str, bool | int] | None = None
        self._start()

    def __reduce__(self):
        return Sandbox, (self.limits, self.processes, self._worker)

    def _start(self) -> None:
        self._owner = os.getpid()
        self._free = threading.Semaphore(self.processes)
        self._idle: list[WorkerProcess] = []
        self._finalizer = weakref.finalize(self, _end, self._idle, self._owner)
        if sys.platform != "linux":
            warnings.warn("limits.memory is only enforced on Linux", stacklevel=3)

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        """Ends the idle processes; a later call starts new ones."""
        _end(self._idle, self._owner)

    @property
    def pids(self) -> list[int]:
        """Process ids of the idle processes."""
        return [worker.pid for worker in self._idle]

    def header(self, medium: str | os.PathLike | bytes, kind: str | None = None) -> Header:
        """Reads the header of a file as an "image" or a "video"; None: as its content says.

        An animated GIF is a video; any other animation is an image. Damage past the header is not
        noticed.

        Raises:
          MediaError: not a readable file of this kind, or a frame above the limits.
        """

        def check(header: dict, body: np.ndarray) -> Header:
            found, width, height, seconds = header["header"]
            if found not in ((kind,) if kind else ("image", "video")) or len(body):
                raise ValueError
            if not 0 < _whole(width) * _whole(height) <= self.limits.frame_pixels:
                raise ValueError
            if seconds is not None and not math.isfinite(seconds):
                raise ValueError
            return Header(found, width, height, seconds)

        return self.run("header", Item(video=medium), check, 0, kind=kind)

    def frames(self, item: Item, spec: InputSpec) -> Clip:
        """Sampled and resized frames of an item with one image or one video.

        Raises:
          MediaError: media that cannot be read, or have more tokens than `spec.max_length`.
        """
        most = spec.max_length * spec.temporal * (spec.merge * spec.patch_size) ** 2 * 3

        def check(header: dict, body: np.ndarray) -> Clip:
            return _clip(header, body, spec.max_pixels)

        fields = dataclasses.asdict(spec)
        return self.run("frames", item, check, most, applies_exif(item, spec), spec=fields)

    def thumbnails(self, item: Item, count: int, height: int, width: int) -> Clip:
        """An image, or `count` frames of a video, the first and the last included; resized to fit
        into `height` and `width`.

        Raises:
          MediaError: media that cannot be read.
        """
        most = height * width

        def check(header: dict, body: np.ndarray) -> Clip:
            clip = _clip(header, body, most)
            if clip.frames.shape[1] > height or clip.frames.shape[2] > width:
                raise ValueError
            return clip

        size = {"count": count, "height": height, "width": width}
        return self.run("thumbnails", item, check, count * most * 3, **size)

    def outline(self, video: str | os.PathLike | bytes) -> Outline:
        """The frames of a video without decoding them.

        Raises:
          MediaError: a file that cannot be read, or is not a video.
        """
        most = 8 * 3 * (self.limits.frames + 1) + self.limits.frames

        def check(header: dict, body: np.ndarray) -> Outline:
            return _outline(header, body, self.limits)

        same = _identity(video)
        return self.run("outline", Item(video=video), check, most, identity=same)

    def pictures(
        self,
        video: str | os.PathLike | bytes,
        positions: Sequence[int],
        outline: Outline,
        *,
        spec: InputSpec | None = None,
        count: int = 1,
        size: tuple[int, int] | None = None,
    ) -> np.ndarray:
        """Frames of a video, uint8 [N, H, W, 3], at ascending `positions` of its outline; frames
        from which others are predicted are decoded with them. See `read_pictures`.

        Args:
          spec: resizes frames as for a model, as `count` frames of an item.
          size: height and width to which frames are averaged instead, coarsely and unrotated.

        Raises:
          MediaError: a file that cannot be read.
        """
        most = self.limits.frame_pixels
        if size or spec:
            most = size[0] * size[1] if size else spec.max_pixels

        def check(header: dict, body: np.ndarray) -> np.ndarray:
            found, height, width = map(_whole, header["pictures"])
            if found != len(positions) or height * width > most:
                raise ValueError
            if size and (height, width) != tuple(size):
                raise ValueError
            return body.reshape(found, height, width, 3)

        request = {"positions": [int(position) for position in positions], "count": count}
        request |= {"total": outline.total, "size": size and list(size)}
        request |= {"identity": _identity(video)}
        fields = dataclasses.asdict(spec) if spec else None
        bytes_ = len(positions) * most * 3
        return self.run("pictures", Item(video=video), check, bytes_, spec=fields, **request)

    def visuals(self, item: Item, spec: InputSpec) -> list[Visual]:
        """As `Preprocessor.visuals`."""
        # merge**2 patches are a token.
        most = spec.max_length * spec.merge**2 * 3 * spec.temporal * spec.patch_size**2

        def check(header: dict, body: np.ndarray) -> list[Visual]:
            return _visuals(header, body, spec, item)

        fields = dataclasses.asdict(spec)
        return self.run("visuals", item, check, most, applies_exif(item, spec), spec=fields)

    @property
    def held(self) -> dict[str, bool | int] | None:
        """As `protection`; None if no process has been started."""
        return self._protection and dict(self._protection)

    def protection(self) -> dict[str, bool | int]:
        """What holds for the decoding processes, for records: `no_new_privs`, the version of
        `landlock` (0: none), `seccomp`. Starts a process if none has been started."""
        if self._protection is None:
            with self._free:
                self._idle.append(self._new_worker())
        return dict(self._protection)

    def _new_worker(self) -> WorkerProcess:
        worker = WorkerProcess(self._worker or WORKER, self.limits)
        self._protection = worker.protection
        _warn_once(worker.protection)
        return worker

    def run(
        self,
        operation: str,
        item: Item,
        check: Callable[[dict, np.ndarray], T],
        most_bytes: int,
        exif: bool = False,
        **arguments,
    ) -> T:
        """`check` of the answer to a request.

        Args:
          check: raises KeyError, TypeError or ValueError for an answer that cannot be.
          most_bytes: of the body of the answer.
          exif: whether PIL images are rotated before they are sent.
          arguments: fields of the request.

        Raises:
          MediaError: the file cannot be read, crashed its process, or exceeded a limit.
        """
        fields, buffers, files = pack_item(item, exif)
        request = {"operation": operation, "item": fields} | arguments
        name = source_name(item.video if item.video is not None else item.image)
        if os.getpid() != self._owner:  # after a fork, the processes belong to the other side
            self._start()
        with self._free:
            while True:
                try:
                    worker = self._idle.pop()
                except IndexError:
                    worker = self._new_worker()
                try:
                    header, body = worker.ask(request, buffers, most_bytes, files)
                    result = None if "error" in header else _checked(check, header, body)
                except WorkerLost as loss:
                    worker.kill()
                    # An earlier item may have damaged a used process: only a fresh one counts.
                    if worker.served and loss.again:
                        continue
                    kind = RetryableMediaError if loss.retry else MediaError
                    raise kind(f"{name}: {loss}") from None
                except MediaError:  # its file cannot be opened
                    self._idle.append(worker)
                    raise
                except BaseException:
                    worker.kill()  # interrupted: its next answer would belong to this request
                    raise
                worker.served += 1
                self._idle.append(worker)
                if "error" in header:
                    text = printable(header["error"])
                    kind = RetryableMediaError if header.get("retry") else MediaError
                    raise kind(text if header.get("named") else f"{name}: {text}")
                return result


def describe_protection(protection: dict[str, bool | int]) -> str:
    """`protection` of a sandbox in words: `no_new_privs, Landlock 6, seccomp`."""
    found = [
        f"{_NAMES[key]} {value}" if key == "landlock" else _NAMES[key]
        for key, value in protection.items()
        if value
    ]
    return ", ".join(found) or "nothing"


def _warn_once(protection: dict[str, bool | int]) -> None:
    global _warned
    lacking = [name for key, name in _NAMES.items() if not protection[key]]
    if lacking and not _warned:
        _warned = True
        warnings.warn(
            f"decoding processes are not fully sandboxed: this system lacks {', '.join(lacking)}; "
            "a file that takes over the decoder has more rights than it should (docs/inputs.md)",
            stacklevel=2,
        )


def _checked(check: Callable[[dict, np.ndarray], T], header: dict, body: np.ndarray) -> T:
    try:
        return check(header, body)
    except (KeyError, TypeError, ValueError, OverflowError):
        reason = f"its process sent an answer that cannot be: {printable(str(header))}"
        raise WorkerLost(reason) from None


def _whole(value: object) -> int:
    if type(value) is not int or value <= 0:
        raise ValueError
    return value


def _identity(video: str | os.PathLike | bytes) -> list[int] | None:
    """Equal for the same content of a file; None for bytes and missing files."""
    try:
        status = None if isinstance(video, bytes) else os.stat(video)
    except (OSError, ValueError):  # ValueError: a null byte
        return None
    return status and [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns]


def _outline(header: dict, body: np.ndarray, limits: Limits) -> Outline:
    """As `_clip`, of an outline."""
    total, rate, timed, pixels = header["outline"]
    _whole(pixels)
    if _whole(total) and not (0 < rate < math.inf and timed in (0, total + 1)):
        raise ValueError
    if len(body) != 8 * timed + 17 * total:
        raise ValueError
    numbers = body[: 8 * (timed + 2 * total)]
    times = numbers[: 8 * timed].copy().view(np.float64)
    first, sizes = numbers[8 * timed :].copy().view(np.int64).reshape(2, total)
    if timed and not (np.isfinite(times).all() and times[0] >= 0 and (np.diff(times) > 0).all()):
        raise ValueError
    if first.min() < 0 or sizes.min() < 0:
        raise ValueError
    key = body[8 * (timed + 2 * total) :].astype(bool)
    shown = Timeline(total, float(rate), times if timed else None)
    outline = Outline(shown, first, sizes, key, pixels)
    # Whoever divides it into windows makes as many as its duration asks for.
    if not outline.seconds <= limits.duration:
        raise ValueError
    return outline


def _clip(header: dict, body: np.ndarray, most_pixels: int) -> Clip:
    """The frames of an answer.

    Raises:
      KeyError, TypeError, ValueError: an answer that cannot be.
    """
    *shape, fps = header["frames"]
    count, height, width = map(_whole, shape)
    if height * width > most_pixels or not 0 <= fps < float("inf"):
        raise ValueError
    return Clip(body.reshape(count, height, width, 3), float(fps))


def _visuals(header: dict, body: np.ndarray, spec: InputSpec, item: Item) -> list[Visual]:
    """As `_clip`, of patches."""
    visuals, offset, width = [], 0, spec.patch_dim
    for kind, frames, rows, columns, seconds, times in header["visuals"]:
        sides_fit = all(0 < side and side % spec.merge == 0 for side in (rows, columns))
        if not (sides_fit and 0 < frames and 0 <= seconds < float("inf")):
            raise ValueError
        if rows * columns * spec.patch_size**2 > pixel_limits(spec, kind == "image")[1]:
            raise ValueError
        if len(times) != (frames if kind == "video" else 0):
            raise ValueError
        if not all(0 <= float(time) < float("inf") for time in times):
            raise ValueError
        size = frames * rows * columns * width
        patches = body[offset : offset + size].reshape(frames, rows * columns, width)
        offset += size
        layout = window_layout(rows, columns, spec.window_side, spec.merge)
        grid = (frames, rows // spec.merge, columns // spec.merge)
        visuals.append(Visual(kind, patches, layout, grid, seconds, times))
    tokens = sum(math.prod(visual.grid) for visual in visuals)
    order = find_profile(spec.profile).media
    kinds = [kind for kind in order if getattr(item, kind) is not None]
    if (
        [visual.kind for visual in visuals] != kinds
        or offset != len(body)
        or tokens > spec.max_length
    ):
        raise ValueError
    return visuals


def _end(workers: list[WorkerProcess], owner: int) -> None:
    is_owner = os.getpid() == owner
    while workers:
        worker = workers.pop()
        worker.end() if is_owner else worker.abandon()
