"""A process that decodes what it is sent, one item after another; `gve_jax.media.isolation` starts
it, and nothing else. It loads neither JAX nor a tokenizer, and ends when its pipe is closed.
"""

import errno
import json
import os
import resource
import signal
from collections.abc import Iterator

import numpy as np

from gve_jax.errors import UserError
from gve_jax.inputs.preprocess import InputSpec, Preprocessor
from gve_jax.media.errors import MediaError
from gve_jax.media.item import Item, source_name
from gve_jax.media.limits import Limits
from gve_jax.media.walk import list_folder
from gve_jax.media.wire import OUT_OF_MEMORY, PREFIX, pack, unpack_item
from gve_jax.storage.files import LFS_POINTER, check_lfs_pointer

GRACE = 5.0  # seconds after which a worker without a parent ends itself, past its item's deadline
_MESSAGE = 2000  # characters of an error, at most
_DISK = {
    errno.EIO,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.EACCES,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOTCONN,
    errno.ECONNRESET,
    errno.EHOSTDOWN,
    errno.ENETDOWN,
}


def main() -> None:
    requests, answers = _private_pipes()
    setup, _ = _receive(requests)
    limits = Limits(**setup["limits"])
    preprocess = Preprocessor(None, InputSpec(**setup["spec"]), limits)
    _restrict(limits)
    _send(answers, {"ready": os.getpid()})
    while True:
        try:
            request, body = _receive(requests)
        except MemoryError:  # the rest of the request is still in the pipe: this process is done
            os._exit(OUT_OF_MEMORY)
        # The parent kills what takes too long. If it is dead itself, the kernel does.
        signal.setitimer(signal.ITIMER_REAL, limits.seconds + GRACE)
        header, patches = _decode(preprocess, request, body)
        _send(answers, header, patches)
        signal.setitimer(signal.ITIMER_REAL, 0)
        del request, body, patches  # nothing of an item may wait with the worker for the next


def _private_pipes() -> tuple[int, int]:
    """Moves both pipes away from where a library's `printf` would reach them."""
    requests, answers = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.close(nothing)
    return requests, answers


def _restrict(limits: Limits) -> None:
    # Ctrl-C and a scheduler's SIGTERM reach the whole group; the parent acts.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))  # it writes nothing but messages
    try:
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        most = now + int(limits.memory)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")  # should the machine run short, not the trainer is ended but this
    except FileNotFoundError:
        pass  # no Linux: `Isolated` has said that there is no limit


def _decode(preprocess: Preprocessor, request: dict, body: memoryview) -> tuple[dict, list]:
    try:
        if "folder" in request:
            os.chdir(request["folder"])
        visuals = preprocess.visuals(unpack_item(request["item"], body))
    except Exception as error:
        if _out_of_memory(error):
            return {"memory": True}, []
        # Whatever else a file makes a library raise is that file's reason, too.
        plain = isinstance(error, MediaError | UserError)
        text = str(error) if plain else f"{type(error).__name__}: {error}"
        named = isinstance(error, MediaError)
        retry = getattr(error, "retry", False) or _disk_failed(error)
        try:
            _check_files(unpack_item(request["item"], body))
        except OSError:  # what cannot be opened now may be there the next time
            retry = True
        except UserError as pointer:
            text, named, retry = str(pointer), True, True
        return {"error": text[:_MESSAGE], "named": named, "retry": retry}, []
    merge = preprocess.spec.merge
    shapes = [[t, h * merge, w * merge, float(s)] for _, _, (t, h, w), s in visuals]
    return {"visuals": shapes}, [np.ascontiguousarray(patches) for patches, *_ in visuals]


def _check_files(item: Item) -> None:
    """Looks for what is wrong with an item's files before what is in them.

    Raises:
      OSError: a file cannot be opened.
      UserError: a Git LFS pointer.
    """
    media = [item.image, *(item.video if isinstance(item.video, list) else [item.video])]
    for medium in media:
        if isinstance(medium, bytes):
            check_lfs_pointer(medium, source_name(medium))
        elif isinstance(medium, str):
            for file in list_folder(medium) if os.path.isdir(medium) else [medium]:
                if not os.path.isfile(file):
                    raise FileNotFoundError(file)
                with open(file, "rb") as opened:
                    check_lfs_pointer(opened.read(len(LFS_POINTER)), file)


def _out_of_memory(error: BaseException | None) -> bool:
    """Whether an allocation failed somewhere below: readers turn that into errors of their own."""
    return any(
        isinstance(cause, MemoryError) or getattr(cause, "errno", None) == errno.ENOMEM
        for cause in _causes(error)
    )


def _disk_failed(error: BaseException) -> bool:
    """Whether the disk, and not what is on it, made an error; FFmpeg uses such numbers for damage,
    too, in classes of its own."""
    return any(
        isinstance(cause, OSError)
        and cause.errno in _DISK
        and not type(cause).__module__.startswith("av.")
        for cause in _causes(error)
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _receive(pipe: int) -> tuple[dict, memoryview]:
    header, body = PREFIX.unpack(_read(pipe, PREFIX.size))
    return json.loads(bytes(_read(pipe, header))), _read(pipe, body)


def _read(pipe: int, size: int) -> memoryview:
    data, done = memoryview(bytearray(size)), 0
    while done < size:
        count = os.readv(pipe, [data[done:]])
        if not count:
            os._exit(0)  # the parent has closed the pipe, or is no more
        done += count
    return data


def _send(pipe: int, header: dict, arrays: list[np.ndarray] = ()) -> None:
    for part in (pack(header, sum(array.nbytes for array in arrays)), *arrays):
        part, done = memoryview(part).cast("B"), 0
        while done < len(part):
            try:
                done += os.write(pipe, part[done:])
            except BrokenPipeError:
                os._exit(0)


if __name__ == "__main__":
    main()
