"""Locks on output folders: one command at a time may write."""

import contextlib
import fcntl
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax

from gve_jax.distributed import hosts
from gve_jax.errors import UserError

NAME = ".lock"


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Locks `folder` for the processes of one job; creates it if it is missing.

    All hosts of a job enter it together; host 0 holds the lock for all. The kernel releases the
    lock when the process ends, however it ends, so a lock is never stale. A gs:// folder cannot be
    locked: nothing happens.

    Raises:
      UserError: on every host, if another process, which the message names, holds the lock.
    """
    with contextlib.ExitStack() as stack:
        message = None
        if jax.process_index() == 0 and not os.fspath(folder).startswith("gs://"):
            message = _acquire(Path(folder), stack)
        message = hosts.gather(message)[0]
        if message is not None:
            raise UserError(message)
        yield


@contextlib.contextmanager
def lock_for_process(folder: Path) -> Iterator[None]:
    """As `lock_folder`, for a command of one process whose child processes use the devices: asking
    JAX for the index of this host would occupy them."""
    with contextlib.ExitStack() as stack:
        message = _acquire(Path(folder), stack)
        if message is not None:
            raise UserError(message)
        yield


@contextlib.contextmanager
def lock_scratch(folder: Path) -> Iterator[Path]:
    """Locks `folder` for temporary files of one process and yields it, emptied; removes it at exit.

    Raises:
      UserError: another process holds the folder; it names the process.
    """
    with lock_for_process(folder):
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != NAME:
                path.unlink()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def is_free(folder: Path) -> bool:
    """Whether a command may start to write into `folder`: it does not exist, or holds at most a
    lock file."""
    if not folder.exists():
        return True
    return folder.is_dir() and all(path.name == NAME for path in folder.iterdir())


def _acquire(folder: Path, stack: contextlib.ExitStack) -> str | None:
    """Holds the lock until `stack` closes; returns a message if another process holds it."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        # Opened for appending, so as not to truncate what the holder wrote.
        file = stack.enter_context(open(folder / NAME, "a+", encoding="utf-8"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            return f"{folder} is in use by {_describe(file.read())}; wait for it to end, or stop it"
        try:
            if os.path.samestat(os.fstat(file.fileno()), os.stat(folder / NAME)):
                break
        except FileNotFoundError:
            pass
        file.close()  # the previous holder has removed the folder since this file was opened
    holder = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "command": " ".join(sys.argv)[:200],
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    file.truncate(0)
    file.write(json.dumps(holder))
    file.flush()
    return None


def _describe(text: str) -> str:
    try:
        holder = json.loads(text)
        return "process {pid} on {host} since {since} ({command})".format(**holder)
    except (ValueError, KeyError, TypeError):  # the holder has not written its name yet
        return "another process"
