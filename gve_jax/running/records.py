"""Files to which a run appends: metrics, TensorBoard events, the quarantine.

GCS objects cannot be appended to. For a gs:// workdir the files are in a local folder, and files
that have changed are copied completely: every half minute in the background, and before each
checkpoint. So a killed run loses only lines of steps that it will repeat.
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

RESUMED = ("metrics.jsonl", "quarantine.jsonl", "wandb.txt")  # files that a resumed run continues
SHARE = 0.05  # maximum share of the time spent on background copies


class Records:
    """Context that copies changed files at its end, also after an error.

    The run writes to `folder`. Only process 0 copies.

    Args:
      workdir: if it is local, it is `folder` itself, and nothing is copied.
      every_s: seconds between copies.

    Raises:
      UserError: the files of an earlier run in GCS cannot be read.
    """

    def __init__(self, workdir: Path, *, every_s: float = 30.0):
        self.workdir, self.folder, self._every_s = workdir, workdir, every_s
        self._remote = is_gcs_path(workdir)
        self._copies = self._remote and jax.process_index() == 0
        self._copied: dict[str, tuple[int, int]] = {}  # size and mtime_ns of each copied file
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
                        self._copied[name] = _state(self.folder / name)
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
            _log.warning("%s; the run's records remain in %s", late, self.folder)
            if error is None:
                raise
        else:
            shutil.rmtree(self.folder, ignore_errors=True)

    def flush(self) -> None:
        """Copies the files that have changed; raises UserError if one cannot be written."""
        if not self._copies:
            return
        with self._lock:
            for path in sorted(self.folder.rglob("*")):
                if path.is_symlink() or not path.is_file():  # W&B links to its latest run
                    continue
                name = path.relative_to(self.folder).as_posix()
                state = _state(path)
                if self._copied.get(name) == state:
                    continue
                try:
                    with open(path, "rb") as file:
                        write_object(self.workdir / name, functools.partial(_copy, file))
                except OSError as error:
                    why = error.strerror or error
                    raise UserError(f"cannot write {self.workdir / name}: {why}") from error
                self._copied[name] = state

    def _run(self) -> None:
        pause = self._every_s
        while not self._end.wait(pause):
            began = time.monotonic()
            try:
                self.flush()
            except UserError as error:  # `flush` before the next checkpoint raises it again
                if not self._warned:
                    _log.warning("%s; retrying", error)
                self._warned = True
            pause = max(self._every_s, (time.monotonic() - began) / SHARE)


def _copy(source: BinaryIO, target: BinaryIO) -> None:
    shutil.copyfileobj(source, target, 1 << 20)


def _state(path: Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns
