"""The decoding process of `gve_jax.media.sandbox`: reads untrusted files, one request at a time.

It loads neither JAX nor a tokenizer, and ends when its socket is closed. Before the first request
it gives up its rights (`gve_jax.media.lockdown`): what is needed later is imported here, and files
are opened by the caller.
"""

import errno
import importlib
import json
import os
import resource
import signal
import socket
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from gve_jax.errors import UserError
from gve_jax.inputs.preprocess import InputSpec, Preprocessor
from gve_jax.media.animation import is_animation, read_frames
from gve_jax.media.container import check_size, open_video
from gve_jax.media.errors import LimitError, MediaError, RetryableMediaError
from gve_jax.media.item import Item, source_name
from gve_jax.media.limits import Limits
from gve_jax.media.lockdown import lock_down
from gve_jax.media.outline import read_outline, read_pictures
from gve_jax.media.pixels import IMAGE_FORMATS, load_image
from gve_jax.media.source import PassedFile, open_source, read_source
from gve_jax.media.suffixes import is_animated_gif
from gve_jax.media.video import load_video
from gve_jax.media.wire import OUT_OF_MEMORY, PREFIX, pack, unpack_item
from gve_jax.storage.files import LFS_POINTER, check_lfs_pointer

GRACE = 5.0  # seconds past its deadline after which a worker without a parent ends itself
_MAX_MESSAGE = 2000  # characters of an error
_MOST_FILES = 64  # open at once
_MOST_OPEN = 16  # of them passed by the caller
_CPU_SECONDS = 3600  # after which a process is replaced
# Modules that PyAV, numpy and Pillow import when they first need them.
_LATE_MODULES = (
    *("av.subtitles.codeccontext", "av.subtitles.stream", "av.subtitles.subtitle", "numpy.ma"),
    *("PIL.ImageColor", "PIL.ImageFilter", "PIL.ImagePalette", "PIL.ImageSequence"),
    *(
        f"PIL.{kind}ImagePlugin"
        for kind in "Avif Bmp Gif Jpeg Jpeg2K Mpo Png Ppm Tiff WebP".split()
    ),
)
# Numbers of an OSError that do not come from the content of a file.
_DISK = "EIO ESTALE ETIMEDOUT EACCES EMFILE ENFILE ENOTCONN ECONNRESET EHOSTDOWN ENETDOWN"
_DISK_ERRORS = {getattr(errno, name) for name in _DISK.split()}


class Caller:
    """The process that asks, as the worker sees it."""

    def __init__(self):
        # Descriptors that a library's `printf` does not reach.
        self._requests, self._answers = socket.socket(fileno=os.dup(0)), os.dup(1)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.dup2(2, 1)
        os.close(nothing)

    def receive(self) -> tuple[dict, memoryview, list[int]]:
        """The header, the body and the descriptors of a message."""
        start, passed, _, _ = socket.recv_fds(self._requests, PREFIX.size, 1)
        start += bytes(self._read(PREFIX.size - len(start)))
        header, body = PREFIX.unpack(start)
        return json.loads(bytes(self._read(header))), self._read(body), passed

    def fetch(self, number: int) -> int:
        """The descriptor of a file of the request, by its number.

        Raises:
          RetryableMediaError: the caller cannot open it.
        """
        self.send({"open": number})
        header, _, passed = self.receive()
        if "error" in header:
            raise RetryableMediaError(header["error"])
        return passed[0]

    def send(self, header: dict, arrays: list[np.ndarray] = ()) -> None:
        for part in (pack(header, sum(array.nbytes for array in arrays)), *arrays):
            part, done = memoryview(part).cast("B"), 0
            while done < len(part):
                try:
                    done += os.write(self._answers, part[done:])
                except BrokenPipeError:
                    os._exit(0)

    def _read(self, size: int) -> memoryview:
        data, done = memoryview(bytearray(size)), 0
        while done < size:
            count = os.readv(self._requests.fileno(), [data[done:]])
            if not count:
                os._exit(0)  # the parent closed the socket or ended
            done += count
        return data


def main() -> None:
    caller = Caller()
    setup, _, _ = caller.receive()
    limits = Limits(**setup["limits"])
    _import_late_modules()
    _restrict(limits)
    caller.send({"ready": os.getpid(), "sandbox": lock_down()})
    while True:
        try:
            request, body, passed = caller.receive()
        except MemoryError:  # the rest of the request is still in the socket
            os._exit(OUT_OF_MEMORY)
        # The parent kills a worker that takes too long; without a parent, the kernel does.
        signal.setitimer(signal.ITIMER_REAL, limits.seconds + GRACE)
        files = Files(caller.fetch, passed)
        header, arrays = _answer(request, body, limits, files.fetch)
        files.close()
        caller.send(header, arrays)
        signal.setitimer(signal.ITIMER_REAL, 0)
        del request, body, arrays  # free the memory before waiting for the next request


class Files:
    """The descriptors of one request."""

    def __init__(self, fetch: Callable[[int], int], passed: list[int]):
        self._fetch, self._open = fetch, dict(enumerate(passed))

    def fetch(self, number: int) -> int:
        if number not in self._open:
            if len(self._open) == _MOST_OPEN:  # frames are read one after another
                os.close(self._open.pop(next(iter(self._open))))
            self._open[number] = self._fetch(number)
        return self._open[number]

    def close(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)


def _import_late_modules() -> None:
    """Imports what libraries import when they first need it: later no file can be opened."""
    for name in _LATE_MODULES:
        importlib.import_module(name)


def _restrict(limits: Limits) -> None:
    # Ctrl-C and a scheduler's SIGTERM reach the whole process group; the parent handles them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, 1 << 20)  # it writes only messages
    _limit(resource.RLIMIT_NOFILE, _MOST_FILES)
    # Of the process, not of an item: ends one whose caller was killed and that resists the timer.
    _limit(resource.RLIMIT_CPU, int(_CPU_SECONDS + 2 * limits.seconds))
    try:
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        _limit(resource.RLIMIT_AS, now + int(limits.memory))
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")  # a machine short of memory ends this process, not the trainer
    except FileNotFoundError:
        pass  # not Linux: `Sandbox` has warned that memory is not limited


def _limit(kind: int, most: int) -> None:
    """Lowers a limit for good; one that the user or a scheduler set lower stays."""
    _, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    resource.setrlimit(kind, (most, most))


def _answer(
    request: dict, body: memoryview, limits: Limits, fetch: Callable[[int], int]
) -> tuple[dict, list[np.ndarray]]:
    """The header and the arrays of an answer, or the reason why there are none."""
    item = Item()
    try:
        item = unpack_item(request["item"], body, fetch)
        return OPERATIONS[request["operation"]](request, item, limits)
    except Exception as error:  # a damaged file makes libraries raise any class
        if _out_of_memory(error):
            return {"memory": True}, []
        plain = isinstance(error, MediaError | UserError)
        text = str(error) if plain else f"{type(error).__name__}: {error}"
        named = isinstance(error, MediaError)
        retry = getattr(error, "retry", False) or _disk_failed(error)
        try:
            _check_files(item)
        except OSError:  # the disk failed
            retry = True
        except UserError as pointer:
            text, named, retry = str(pointer), True, True
        return {"error": text[:_MAX_MESSAGE], "named": named, "retry": retry}, []


def _visuals(request: dict, item: Item, limits: Limits) -> tuple[dict, list[np.ndarray]]:
    spec = InputSpec(**request["spec"])
    visuals = Preprocessor(None, spec, limits).visuals(item)
    side = spec.merge
    shapes = [
        [visual.kind, visual.grid[0], visual.grid[1] * side, visual.grid[2] * side]
        + [float(visual.seconds), visual.times]
        for visual in visuals
    ]
    return {"visuals": shapes}, [np.ascontiguousarray(visual.patches) for visual in visuals]


def _frames(request: dict, item: Item, limits: Limits) -> tuple[dict, list[np.ndarray]]:
    spec = InputSpec(**request["spec"])
    ((_, frames, fps, _),) = Preprocessor(None, spec, limits).frames(item)
    return {"frames": [*frames.shape[:3], float(fps)]}, [np.ascontiguousarray(frames)]


def _thumbnails(request: dict, item: Item, limits: Limits) -> tuple[dict, list[np.ndarray]]:
    if item.video is None:
        frames, fps = load_image(item.image, limits.frame_pixels)[None], 0.0
    else:
        clip = load_video(item.video, request["count"], limits=limits)
        frames, fps = clip.frames, clip.fps
    height, width = frames.shape[1:3]
    scale = min(request["height"] / height, request["width"] / width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    images = [Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS) for frame in frames]
    frames = np.stack([np.asarray(image) for image in images])
    return {"frames": [*frames.shape[:3], float(fps)]}, [frames]


def _header(request: dict, item: Item, limits: Limits) -> tuple[dict, list[np.ndarray]]:
    kind, medium, name = request["kind"], item.video, source_name(item.video)
    if kind is None and is_animated_gif(medium):
        kind = "video"
    if kind is None:
        try:
            return _read_header("image", medium, name, limits)
        except Exception as error:
            if isinstance(error, LimitError) or _out_of_memory(error):
                raise
            kind = "video"
    return _read_header(kind, medium, name, limits)


def _read_header(
    kind: str, medium: PassedFile | bytes, name: str, limits: Limits
) -> tuple[dict, list]:
    seconds = None
    if kind == "image":
        with (
            open_source(medium) as file,
            Image.open(file, formats=IMAGE_FORMATS) as image,
        ):
            width, height = image.size
        check_size(width, height, name, limits)
    elif is_animation(medium):
        animation = read_frames(read_source(medium), name, limits)
        width, height = animation.width, animation.height
    else:
        with open_video(medium, name, limits) as (container, stream, _):
            width, height = stream.width, stream.height
            seconds = container.duration and container.duration / 1e6
    return {"header": [kind, width, height, seconds]}, []


def _outline(request: dict, item: Item, limits: Limits) -> tuple[dict, list[np.ndarray]]:
    found = read_outline(item.video, limits, request["identity"])
    shown = found.timeline
    times = np.zeros(0) if shown.times is None else np.asarray(shown.times, np.float64)
    arrays = [times, found.first.astype(np.int64), found.bytes.astype(np.int64)]
    header = {"outline": [int(shown.total), float(shown.rate), len(times), int(found.pixels)]}
    return header, [*arrays, found.key.astype(np.uint8)]


def _pictures(request: dict, item: Item, limits: Limits) -> tuple[dict, list[np.ndarray]]:
    spec = request["spec"] and InputSpec(**request["spec"])
    positions, size = np.array(request["positions"], np.int64), request["size"]
    frames = read_pictures(
        item.video,
        positions,
        request["total"],
        limits,
        spec,
        request["count"],
        size,
        request["identity"],
    )
    return {"pictures": list(frames.shape[:3])}, [np.ascontiguousarray(frames)]


OPERATIONS: dict[str, Callable[[dict, Item, Limits], tuple[dict, list[np.ndarray]]]] = {
    "header": _header,
    "frames": _frames,
    "outline": _outline,
    "pictures": _pictures,
    "thumbnails": _thumbnails,
    "visuals": _visuals,
}


def _check_files(item: Item) -> None:
    """Checks the files of an item that could not be read, as far as they were opened.

    Raises:
      OSError: a file cannot be read.
      UserError: a Git LFS pointer.
    """
    media = [item.image, *(item.video if isinstance(item.video, list) else [item.video])]
    for medium in media:
        if isinstance(medium, bytes) or isinstance(medium, PassedFile) and medium.was_opened:
            with open_source(medium) as opened:
                check_lfs_pointer(opened.read(len(LFS_POINTER)), source_name(medium))


def _out_of_memory(error: BaseException | None) -> bool:
    """Whether an allocation failed somewhere below: readers wrap that into errors of their own."""
    return any(
        isinstance(cause, MemoryError) or getattr(cause, "errno", None) == errno.ENOMEM
        for cause in _causes(error)
    )


def _disk_failed(error: BaseException) -> bool:
    """Whether the disk failed. FFmpeg uses the same numbers for damage, in classes of its own."""
    return any(
        isinstance(cause, OSError)
        and cause.errno in _DISK_ERRORS
        and not type(cause).__module__.startswith("av.")
        for cause in _causes(error)
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


if __name__ == "__main__":
    main()
