"""A decoding worker that media can attack: bytes that begin with a spell work it on the process.

No sample file crashes or hangs FFmpeg reliably, so spells act before the decoder does; all else is
the real worker.
"""

import dataclasses
import multiprocessing
import os
import signal
import sys
import time

import numpy as np

from gve_jax.media import worker
from gve_jax.media.errors import MediaError
from gve_jax.media.item import Item
from gve_jax.media.source import PassedFile

LEAKED = []


def cast(spell: bytes) -> None:
    if spell.startswith(b"CRASH"):
        os.write(2, b"a line before\nheap corrupted\x1b[2J in ff_nowhere\n")
        os.kill(os.getpid(), signal.SIGSEGV)
    if spell.startswith(b"HANG"):
        while True:  # holds the lock of the interpreter most of the time
            pass
    if spell.startswith(b"SLEEP"):
        time.sleep(3600)
    if spell.startswith(b"BOMB"):
        try:
            np.ones(1 << 36, np.uint8)
        except MemoryError as error:  # as Pillow's and PyAV's callers wrap it
            raise MediaError("not a readable video ()") from error
    if spell.startswith(b"SEED"):  # does harm that only the next item meets
        LEAKED.append(1)
        raise MediaError("planted")
    if LEAKED:
        os.abort()
    if spell.startswith(b"BUG"):
        raise KeyError("moov")
    if spell.startswith(b"PRINT"):
        print("to standard output", flush=True)
        os.write(1, b"x" * 100_000)
        os.write(2, b"y" * 100_000)
    if spell.startswith(b"FORGE"):  # taken over: answers by itself, whatever it likes
        os.write(4, spell[5:])
        time.sleep(3600)
    if spell.startswith(b"ASK"):
        modules = [name for name in ("jax", "grain", "huggingface_hub") if name in sys.modules]
        raise MediaError(f"{os.getpid()} {modules}")


def enchant(operation):
    """An operation of the worker that first obeys the spell of the video that it is given."""

    def run(request: dict, item: Item, limits):
        if isinstance(item.video, bytes):
            cast(item.video)
            if item.video.startswith(b"PRINT"):
                item = dataclasses.replace(item, video=item.video[5:])
        elif isinstance(item.video, PassedFile):
            with item.video.open() as file:
                cast(file.read(8))
        return operation(request, item, limits)

    return run


def decode_there(isolated, ear) -> None:
    """What a daemonic process of multiprocessing's runs."""
    from tests.media.files import clip

    row = isolated(Item(video=clip(8)))
    daemon = "a daemon" if multiprocessing.current_process().daemon else "no daemon"
    ear.send(f"{len(row.patches)} frame pairs in {daemon}")


def main() -> None:
    operations = worker.OPERATIONS
    operations.update({name: enchant(operation) for name, operation in operations.items()})
    worker.GRACE = 0.5
    worker.main()
