"""Reads headers of media in a process of its own: a hostile file ends that, and not the import."""

import io
import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import Connection
from pathlib import Path

from PIL import Image

from gve_jax.media.animation import is_animation, read_frames
from gve_jax.media.container import check_size, open_video
from gve_jax.media.limits import Limits
from gve_jax.media.pixels import IMAGE_FORMATS
from gve_jax.storage.files import LFS_POINTER, check_lfs_pointer

SECONDS = 60.0  # for one header,
START = 120.0  # and for the process to load its libraries
_LIMITS = Limits()


def header(kind: str, medium: bytes | Path) -> None:
    """Looks at an "image" or a "video"; raises, anything at all, if it is none."""
    name = f"<{len(medium)} bytes>" if isinstance(medium, bytes) else str(medium)
    with io.BytesIO(medium) if isinstance(medium, bytes) else open(medium, "rb") as file:
        check_lfs_pointer(file.read(len(LFS_POINTER)), name)
    if kind == "video" and is_animation(medium):
        data = medium if isinstance(medium, bytes) else Path(medium).read_bytes()
        read_frames(data, name, _LIMITS)
        return
    if kind == "video":
        with open_video(medium if isinstance(medium, bytes) else str(medium), name, _LIMITS):
            return
    file = io.BytesIO(medium) if isinstance(medium, bytes) else medium
    with Image.open(file, formats=IMAGE_FORMATS) as image:
        check_size(image.width, image.height, name, _LIMITS)


def serve(connection: Connection) -> None:
    """Says "" when it has started, then answers each (kind, medium) with why it cannot be read, or
    with ""; ends when the asker does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to both
    connection.send("")
    while True:
        try:
            kind, medium = connection.recv()
        except EOFError:
            return
        try:
            header(kind, medium)
            why = ""
        except Exception as error:  # Pillow's readers raise all kinds of things on damaged data
            why = str(error) or type(error).__name__
        connection.send(why)


class _Reader:
    def __init__(self):
        self._lock, self._owner, self._process = threading.Lock(), None, None

    def ask(self, kind: str, medium: bytes | Path) -> str:
        with self._lock:
            if self._process is None or self._owner != os.getpid():  # a fork has none of its own
                self._start()
            try:
                self._connection.send((kind, medium))
                if self._connection.poll(SECONDS):
                    return self._connection.recv()
                self._process.kill()
                why = f"reading its header took more than {SECONDS:g} s"
            except (EOFError, OSError):
                why = ""
            self._process.join()
            why = why or f"reading its header ended the reader ({self._process.exitcode})"
            self._connection.close()
            self._process = None
            return why

    def _start(self) -> None:
        # spawn: the child must not hold this end of the pipe, or it would outlive a killed import.
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        self._owner = os.getpid()
        if not self._connection.poll(START) or self._connection.recv():
            raise RuntimeError(f"the process that reads headers did not start in {START:g} s")


_READER = _Reader()


def ask(kind: str, medium: bytes | Path) -> str:
    """Why an "image" or a "video" cannot be read, judged by its header; nothing if it can."""
    return _READER.ask(kind, medium)
