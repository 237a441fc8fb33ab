"""Progress on stderr: bars on a terminal or in a notebook, a line each 30 seconds elsewhere."""

import sys
import threading
import time

from rich import progress
from rich.console import Console

EVERY_S = 30.0  # between two lines
_COLUMNS = {
    "count": (progress.MofNCompleteColumn, progress.TimeElapsedColumn),
    "percent": (progress.TaskProgressColumn, progress.TimeElapsedColumn),
    "bytes": (progress.DownloadColumn, progress.TransferSpeedColumn),
}


def progress_bar(unit: str = "count", **options) -> progress.Progress:
    """A progress bar with an estimate of the time left, or lines where stderr shows no bars.

    Args:
      unit: how progress is shown: "count", "percent" or "bytes".
      options: of `rich.progress.Progress`.
    """
    console = Console(stderr=True)
    if not _has_bars(console):
        return _Lines(console=console, **options)
    columns = [progress.TextColumn("{task.description}"), progress.BarColumn()]
    columns += [column() for column in _COLUMNS[unit]]
    return progress.Progress(*columns, progress.TimeRemainingColumn(), console=console, **options)


def has_bars() -> bool:
    """Whether stderr shows bars: a terminal or a notebook."""
    return _has_bars(Console(stderr=True))


def _has_bars(console: Console) -> bool:
    return console.is_terminal or console.is_jupyter


class _Lines(progress.Progress):
    """Prints lines instead of bars: the unfinished tasks each `EVERY_S`, and all at the end."""

    def start(self) -> None:
        if self.disable:
            return
        self._ended = threading.Event()
        self._printer = threading.Thread(target=self._print_regularly, daemon=True)
        self._printer.start()

    def stop(self) -> None:
        if self.disable or self._ended.is_set():
            return
        self._ended.set()
        self._printer.join()
        self._print(self.tasks)

    def refresh(self) -> None:
        """Draws nothing: lines have a time of their own."""

    def _print_regularly(self) -> None:
        while not self._ended.wait(EVERY_S):
            self._print([task for task in self.tasks if not task.finished])

    def _print(self, tasks: list[progress.Task]) -> None:
        for task in tasks:
            if task.visible:
                print(describe(task), file=sys.stderr, flush=True)


def describe(task: progress.Task) -> str:
    """A line: `embedding: 512 of 10,000 (5%), 0:01:30 elapsed, about 0:28:00 left`."""
    done = f"{task.completed:,.0f}"
    if task.total:
        done += f" of {task.total:,.0f} ({task.completed / task.total:.0%})"
    parts = [f"{task.description}: {done}", f"{_clock(task.elapsed or 0)} elapsed"]
    if task.time_remaining and not task.finished:
        parts.append(f"about {_clock(task.time_remaining)} left")
    return ", ".join(parts)


def _clock(seconds: float) -> str:
    return (
        time.strftime("%H:%M:%S", time.gmtime(seconds))
        if seconds < 86400
        else (f"{seconds / 3600:.0f} h")
    )
