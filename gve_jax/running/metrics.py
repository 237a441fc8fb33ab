"""Metric writers (JSON lines, TensorBoard, W&B) and the progress bar of a training run.

Only process 0 writes: the others have no writers and a silent bar.
"""

import json
import logging
import math
import numbers
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, TextIO

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as RichProgress
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from gve_jax.errors import UserError, install_command

_log = logging.getLogger(__name__)

Value = float | int | str | jax.Array
"""A scalar: a number, a 0-d array, or a string such as the name of a task."""


class MetricWriter(Protocol):
    """Writes scalars. Both methods raise UserError, naming the file, if it cannot be written."""

    def write(self, step: int, scalars: Mapping[str, Value]) -> None: ...

    def close(self) -> None: ...


class JsonlWriter:
    """Appends one JSON object per line: `step`, `time` (seconds since 1970), then the scalars.

    NaN and infinity, which JSON lacks, become null. Existing lines from `first_step` on are dropped
    first, so that the file of a resumed run has each step once.
    """

    def __init__(self, path: str | os.PathLike, *, first_step: int = 0):
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists():
                _drop_lines_from(self.path, first_step)
            self._file = self.path.open("a", encoding="utf-8", buffering=1)
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def write(self, step: int, scalars: Mapping[str, Value]) -> None:
        line = {"step": step, "time": time.time()}
        for name, value in scalars.items():
            value = _plain(value)
            line[name] = None if isinstance(value, float) and not math.isfinite(value) else value
        try:
            self._file.write(json.dumps(line, allow_nan=False) + "\n")
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            raise _unwritable(self.path, error) from error


class TensorBoardWriter:
    """Writes the numbers among the scalars as TensorBoard events, one event per step.

    TensorBoard hides earlier events from `first_step` on.
    """

    def __init__(self, directory: str | os.PathLike, *, first_step: int = 0):
        self.directory = Path(directory)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            # Not SummaryWriter: it writes from a thread, which a full disk kills, and then blocks
            # on its queue forever. File names hold the time in seconds only: add the process.
            self._file = EventsWriter(str(self.directory / "events"), f".{os.getpid()}")
            start = SessionLog(status=SessionLog.START)
            self._put(Event(wall_time=time.time(), step=first_step, session_log=start))
        except OSError as error:
            raise _unwritable(self.directory, error) from error

    def write(self, step: int, scalars: Mapping[str, Value]) -> None:
        plain = {name: _plain(value) for name, value in scalars.items()}
        values = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in plain.items()
            if not isinstance(value, str)
        ]
        self._put(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            raise _unwritable(self.directory, error) from error

    def _put(self, event: Event) -> None:
        try:
            self._file.write_event(event)
            self._file.flush()
        except OSError as error:
            raise _unwritable(self.directory, error) from error


class WandbWriter:
    """Sends scalars to Weights & Biases through its client (the extra `wandb`).

    The client's environment variables apply: WANDB_MODE=offline writes local files only. A resumed
    run continues the W&B run whose id is in `wandb.txt` in `workdir`.

    Raises:
      UserError: the client is not installed, or cannot start.
    """

    def __init__(self, workdir: str | os.PathLike, project: str):
        try:
            import wandb
        except ImportError as error:
            raise UserError(f"config.wandb needs wandb: {install_command('wandb')}") from error
        path = Path(workdir, "wandb.txt")
        try:
            id = path.read_text(encoding="utf-8").strip() if path.exists() else None
            self._run = wandb.init(project=project, dir=os.fspath(workdir), id=id, resume="allow")
            path.write_text(self._run.id, encoding="utf-8")
        except OSError as error:
            raise _unwritable(path, error) from error
        except Exception as error:
            raise UserError(f"config.wandb: {' '.join(str(error).split())}") from error

    def write(self, step: int, scalars: Mapping[str, Value]) -> None:
        self._run.log({name: _plain(value) for name, value in scalars.items()}, step=step)

    def close(self) -> None:
        self._run.finish()


def open_writers(
    workdir: str | os.PathLike, *, first_step: int = 0, wandb: str | None = None
) -> list[MetricWriter]:
    """Opens `metrics.jsonl` and `tensorboard/` in `workdir`, and the W&B project `wandb`; returns
    no writers on processes other than the first."""
    if jax.process_index() != 0:
        return []
    writers = [
        JsonlWriter(Path(workdir, "metrics.jsonl"), first_step=first_step),
        TensorBoardWriter(Path(workdir, "tensorboard"), first_step=first_step),
    ]
    return writers if wandb is None else [*writers, WandbWriter(workdir, wandb)]


def write_all(writers: Sequence[MetricWriter], step: int, scalars: Mapping[str, Value]) -> None:
    """Writes the scalars of one step to all writers; waits for the arrays among them."""
    if writers:
        fetched = {name: _plain(value) for name, value in scalars.items()}
        for writer in writers:
            writer.write(step, fetched)


class Progress:
    """Progress bar: step, stage, loss, pairs/s, share of time spent waiting for data, time left.

    If the stream is not a terminal, it prints a line every `every_s` seconds and at the last step.
    """

    def __init__(
        self,
        total: int,
        *,
        first_step: int = 0,
        stream: TextIO | None = None,
        every_s: float = 30.0,
    ):
        self._total, self._every_s = total, every_s
        self._last_line = -math.inf
        self._console = Console(file=stream or sys.stderr, quiet=jax.process_index() != 0)
        self._bar = None
        if self._console.is_terminal:
            description = TextColumn("{task.description}", markup=False)
            columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(None), description)
            self._bar = RichProgress(*columns, console=self._console)
            self._task = self._bar.add_task("", total=total, completed=first_step)

    def __enter__(self) -> "Progress":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        if self._bar:
            self._bar.stop()

    def update(
        self,
        step: int,
        *,
        stage: int,
        loss: float,
        pairs_per_s: float,
        wait_share: float,
        step_s: float | None,
    ) -> None:
        """Shows the state after `step` steps.

        Args:
          wait_share: a fraction of the time.
          step_s: seconds of a step that compiles nothing, for the time left; None: not known yet.
        """
        now = time.monotonic()
        left = "?" if step_s is None else _clock(step_s * (self._total - step))
        text = (
            f"stage {stage}  loss {loss:.4f}  {pairs_per_s:.1f} pairs/s  "
            f"waiting {wait_share:.1%}  {left} left"
        )
        if self._bar:
            self._bar.update(self._task, completed=step, description=text)
        elif now - self._last_line >= self._every_s or step == self._total:
            self._last_line = now
            self.note(f"step {step}/{self._total}  {text}")

    def note(self, message: str) -> None:
        """Prints a line, above the bar if there is one."""
        self._console.print(message, markup=False, highlight=False, soft_wrap=True)


def _drop_lines_from(path: Path, first_step: int) -> None:
    """Rewrites the file with earlier steps only; a killed run may have cut off its last line."""
    lines, unreadable = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["step"] < first_step:
                lines.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            unreadable += 1
    if unreadable:
        _log.warning("%s: dropped %d unreadable line(s)", path, unreadable)
    rewritten = path.with_name(path.name + ".tmp")
    rewritten.write_text("".join(lines), encoding="utf-8")
    os.replace(rewritten, path)


def _plain(value: Value) -> float | int | str:
    if isinstance(value, str | int | float):
        return value
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(f"cannot write {path}: {error.strerror or error}")


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
