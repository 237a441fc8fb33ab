"""What a run appends to as it goes: metrics, TensorBoard's events, the quarantine.

Where the workdir is in a bucket, to which nothing can be appended, the files lie in a folder of
this machine, and those that have changed are copied whole: every half minute behind the run, and
before each checkpoint. So a killed run loses lines of the steps that it will repeat, and no others.
"""

import functools
import logging
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import BinaryIO

import jax

from gve_jax.errors import UserError
from gve_jax.storage.filesystem import is_gcs_path, translate_gcs_errors, write_object

_log = logging.getLogger(__name__)

RESUMED = ("metrics.jsonl", "quarantine.jsonl", "wandb.txt")  # what a repeated run goes on with
SHARE = 0.05  # of the time, at most, is spent on copies behind the run


class Records:
    """Use as a context: what is left is copied at its end, whatever ends the run.

    `folder` is where the files are written. On other processes than the first nothing is copied.

    Args:
      workdir: a local one is `folder` itself, and nothing is copied.
      every_s: seconds between copies.

    Raises:
      UserError: what an earlier run left in the bucket cannot be read.
    """

    def __init__(self, workdir: Path, *, every_s: float = 30.0):
        self.workdir, self.folder, self._every_s = workdir, workdir, every_s
        self._remote = is_gcs_path(workdir)
        self._copies = self._remote and jax.process_index() == 0
        self._known: dict[str, tuple[int, int]] = {}  # (bytes, ns) of what has been copied
        self._lock, self._end = threading.Lock(), threading.Event()
        self._thread, self._warned = None, False

    def __enter__(self) -> "Records":
        if not self._remote:
            return self
        self.folder = Path(tempfile.mkdtemp(prefix="gve_jax-records-"))
        try:
            for name in RESUMED:
                with translate_gcs_errors(self.workdir / name):
                    if (self.workdir / name).exists():
                        (self.folder / name).write_bytes((self.workdir / name).read_bytes())
                        self._known[name] = _state(self.folder / name)
        except OSError as error:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise UserError(f"cannot read {error.filename}: {error.strerror}") from error
        if self._copies:
            self._thread = threading.Thread(target=self._run, name="records", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind, error, trace) -> None:
        if not self._remote:
            return
        self._end.set()
        if self._thread is not None:
            self._thread.join()
        try:
            self.flush()
        except UserError as late:
            _log.warning("%s; the run's records are left in %s", late, self.folder)
            if error is None:
                raise
        else:
            shutil.rmtree(self.folder, ignore_errors=True)

    def flush(self) -> None:
        """Copies what has changed; returns when the bucket has it, UserError if it cannot."""
        if not self._copies:
            return
        with self._lock:
            for path in sorted(self.folder.rglob("*")):
                if path.is_symlink() or not path.is_file():  # W&B links to its latest run
                    continue
                name = path.relative_to(self.folder).as_posix()
                state = _state(path)
                if self._known.get(name) == state:
                    continue
                try:
                    with open(path, "rb") as file:
                        write_object(self.workdir / name, functools.partial(_copy, file))
                except OSError as error:
                    why = error.strerror or error
                    raise UserError(f"cannot write {self.workdir / name}: {why}") from error
                self._known[name] = state

    def _run(self) -> None:
        pause = self._every_s
        while not self._end.wait(pause):
            began = time.monotonic()
            try:
                self.flush()
            except UserError as error:  # the next checkpoint, which must not be lost, stops the run
                if not self._warned:
                    _log.warning("%s; it is tried again", error)
                self._warned = True
            pause = max(self._every_s, (time.monotonic() - began) / SHARE)


def _copy(source: BinaryIO, target: BinaryIO) -> None:
    shutil.copyfileobj(source, target, 1 << 20)


def _state(path: Path) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns
