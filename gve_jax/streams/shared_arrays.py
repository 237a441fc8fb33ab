"""Batches from a worker to the trainer, in memory that has no name.

grain passes arrays in shared memory that has a name in /dev/shm. It stays there when all processes
of a run are killed together, as schedulers do, and fills the memory of the machine. A memfd is
freed by the kernel with the last process that holds it.
"""

import dataclasses
import os
import pickle
import sys
from typing import Any

import grain
import numpy as np

IS_SUPPORTED = sys.platform == "linux"
_NAME = "gve_jax-batch"
_ALIGNMENT = 64  # of each array, as XLA wants it
_MOST = 1 << 30  # bytes of one read or write; Linux transfers less than 2 GiB at once


class SenderLost(Exception):
    """The process that held the arrays has ended."""


@dataclasses.dataclass(frozen=True)
class _Sent:
    """A batch in the process that sends it. Unpickled elsewhere, it is a `Received`."""

    descriptor: int
    header: bytes  # pickle without the arrays
    spans: tuple[tuple[int, int], ...]  # offset and bytes of each array

    def __reduce__(self):
        inode = os.fstat(self.descriptor).st_ino
        return Received, (os.getpid(), self.descriptor, inode, self.header, self.spans)


class Received:
    """A batch whose arrays are in a memfd of another process, which is opened at once: that process
    may end before the batch is needed."""

    def __init__(self, pid: int, descriptor: int, inode: int, header: bytes, spans: tuple):
        self._header, self._spans, self._file = header, spans, None
        try:
            self._file = os.open(f"/proc/{pid}/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return
        # The process id may belong to another process by now.
        if os.fstat(self._file).st_ino != inode or not _is_memfd(self._file):
            self._close()

    def take(self) -> Any:
        """The batch, in memory of this process. That of the sender is freed.

        Raises:
          SenderLost: the sender ended too early.
        """
        if self._file is None:
            raise SenderLost
        size = max((offset + size for offset, size in self._spans), default=0)
        memory = _aligned(size)
        left = memoryview(memory)
        while left:
            count = os.preadv(self._file, [left[:_MOST]], size - len(left))
            if not count:
                raise SenderLost
            left = left[count:]
        os.ftruncate(self._file, 0)  # frees the memory, and tells the sender
        self._close()
        buffers = [memory[offset : offset + size] for offset, size in self._spans]
        return pickle.loads(self._header, buffers=buffers)

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __del__(self):
        self._close()


class SendArrays(grain.transforms.Map):
    """Puts the arrays of each element into a memfd; runs in a worker, in one thread."""

    def __init__(self):
        self._waiting: list[int] = []  # memfds that have not been taken

    def __reduce__(self):
        return SendArrays, ()

    def map(self, element: Any) -> _Sent:
        for file in [file for file in self._waiting if not os.fstat(file).st_size]:
            self._waiting.remove(file)
            os.close(file)
        pickled: list[pickle.PickleBuffer] = []
        header = pickle.dumps(element, protocol=5, buffer_callback=pickled.append)
        arrays, spans, end = [buffer.raw() for buffer in pickled], [], 0
        for array in arrays:
            start = -(-end // _ALIGNMENT) * _ALIGNMENT
            spans.append((start, array.nbytes))
            end = start + array.nbytes
        file = os.memfd_create(_NAME, os.MFD_CLOEXEC)
        self._waiting.append(file)
        os.ftruncate(file, max(end, 1))  # an empty one counts as taken
        for array, (offset, _) in zip(arrays, spans, strict=True):
            while array:
                count = os.pwrite(file, array[:_MOST], offset)
                array, offset = array[count:], offset + count
        return _Sent(file, header, tuple(spans))


def _is_memfd(descriptor: int) -> bool:
    return os.readlink(f"/proc/self/fd/{descriptor}").startswith(f"/memfd:{_NAME}")


def _aligned(size: int) -> np.ndarray:
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size]
