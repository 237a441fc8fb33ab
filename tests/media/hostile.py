"""A decoding worker that media can attack: bytes that begin with a spell work it on the process.

What no sample file does reliably (crash FFmpeg, hang it) is done in the place of the decoder; all
else is the real worker's.
"""

import multiprocessing
import os
import signal
import sys
import time

import numpy as np

from gve_jax.inputs import preprocess
from gve_jax.media import worker
from gve_jax.media.errors import MediaError
from gve_jax.media.video import load_video

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
        status = open("/proc/self/status").read()
        resident = int(status.split("VmRSS:")[1].split()[0])
        modules = [name for name in ("jax", "grain", "huggingface_hub") if name in sys.modules]
        raise MediaError(f"{os.getpid()} {resident} {modules}")


def load(source, *args, **kwargs):
    if isinstance(source, bytes):
        cast(source)
        if source.startswith(b"PRINT"):
            source = source[5:]
    return load_video(source, *args, **kwargs)


def decode_there(isolated, ear) -> None:
    """What a daemonic process of multiprocessing's runs."""
    from gve_jax.media.item import Item
    from tests.media.files import clip

    row = isolated(Item(video=clip(8)))
    daemon = "a daemon" if multiprocessing.current_process().daemon else "no daemon"
    ear.send(f"{len(row.patches)} frame pairs in {daemon}")


def main() -> None:
    preprocess.load_video = load
    worker.GRACE = 0.5
    worker.main()
