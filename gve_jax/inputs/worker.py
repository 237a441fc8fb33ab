"""A process that decodes what it is sent, one item after another; `gve_jax.inputs.isolation` starts
it, and nothing else. It loads neither JAX nor a tokenizer, and ends when its pipe is closed.
"""

import errno
import json
import os
import resource
import signal

import numpy as np

from gve_jax.errors import UserError
from gve_jax.inputs.errors import MediaError
from gve_jax.inputs.limits import Limits
from gve_jax.inputs.preprocess import InputSpec, Preprocessor
from gve_jax.inputs.wire import OUT_OF_MEMORY, PREFIX, pack, paths, unpack_item

GRACE = 5.0  # seconds after which a worker without a parent ends itself, past its item's deadline
_MESSAGE = 2000  # characters of an error, at most


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
        retry = getattr(error, "retry", False) or _inaccessible(request["item"])
        named = isinstance(error, MediaError)
        return {"error": text[:_MESSAGE], "named": named, "retry": retry}, []
    merge = preprocess.spec.merge
    shapes = [[t, h * merge, w * merge, float(s)] for _, _, (t, h, w), s in visuals]
    return {"visuals": shapes}, [np.ascontiguousarray(patches) for patches, *_ in visuals]


def _inaccessible(fields: dict) -> bool:
    """Whether one of an item's files, which could not be read, cannot even be opened."""
    for path in paths(fields):
        try:
            if not os.path.isdir(path):
                with open(path, "rb") as file:
                    file.read(1)
        except OSError:
            return True
    return False


def _out_of_memory(error: BaseException | None) -> bool:
    """Whether an allocation failed somewhere below: readers turn that into errors of their own."""
    while error is not None:
        if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
            return True
        error = error.__cause__ or error.__context__
    return False


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
