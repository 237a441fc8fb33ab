"""The bytes of a medium: in memory, at a path, or in a file that another process opened."""

import io
import os
import stat
from collections.abc import Callable
from typing import BinaryIO

from gve_jax.media.errors import RetryableMediaError


class PassedFile:
    """A file that the caller of a decoding process opens: the process itself cannot open any.

    Args:
      name: its path, for messages.
      fetch: returns its descriptor, which stays open while it is used. Raises MediaError.

    Attributes:
      was_opened: whether it has been opened.
    """

    def __init__(self, name: str, fetch: Callable[[], int]):
        self.name, self._fetch, self.was_opened = name, fetch, False

    def open(self) -> BinaryIO:
        descriptor = self._fetch()
        self.was_opened = True
        return io.BufferedReader(_Reader(descriptor, self.name))


class PassedFolder(list):
    """The frames of a folder as `PassedFile`s, in their order."""

    def __init__(self, name: str, files: list[PassedFile]):
        super().__init__(files)
        self.name = name


class _Reader(io.RawIOBase):
    """Reads a descriptor at an offset of its own: several readers may share the descriptor."""

    def __init__(self, descriptor: int, name: str):
        self._descriptor, self._offset = descriptor, 0
        self.name = name  # FFmpeg considers the suffix, as in a file that is opened by its path

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        count = os.preadv(self._descriptor, [buffer], self._offset)
        self._offset += count
        return count

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_CUR:
            offset += self._offset
        elif whence == os.SEEK_END:
            offset += os.lseek(self._descriptor, 0, os.SEEK_END)
        if offset < 0:
            raise OSError(22, "negative offset")
        self._offset = offset
        return offset

    def tell(self) -> int:
        return self._offset


def open_source(source: bytes | str | os.PathLike | PassedFile) -> BinaryIO:
    """Opens a medium for reading."""
    if isinstance(source, bytes):
        return io.BytesIO(source)
    return source.open() if isinstance(source, PassedFile) else open(source, "rb")


def read_source(source: bytes | str | os.PathLike | PassedFile) -> bytes:
    if isinstance(source, bytes):
        return source
    with open_source(source) as file:
        return file.read()


def is_file(source: str | os.PathLike | PassedFile) -> bool:
    return isinstance(source, PassedFile) or os.path.isfile(source)


def open_regular(path: str) -> int:
    """The descriptor of a file, for reading.

    Raises:
      RetryableMediaError: there is no file, or it cannot be opened.
    """
    try:
        # Opening a pipe without a writer would wait.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a null byte
        raise RetryableMediaError(f"{path}: no such file") from None
    except OSError as error:
        raise RetryableMediaError(f"{path}: cannot be opened ({error.strerror})") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise RetryableMediaError(f"{path}: no such file")
    return descriptor
