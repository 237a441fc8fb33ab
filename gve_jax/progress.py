"""Progress bars on stderr."""

from rich import progress
from rich.console import Console

_COLUMNS = {
    "count": (progress.MofNCompleteColumn, progress.TimeElapsedColumn),
    "percent": (progress.TaskProgressColumn, progress.TimeElapsedColumn),
    "bytes": (progress.DownloadColumn, progress.TransferSpeedColumn),
}


def progress_bar(unit: str = "count", **options) -> progress.Progress:
    """A progress bar with an estimate of the time left.

    Args:
      unit: how progress is shown: "count", "percent" or "bytes".
      options: of `rich.progress.Progress`.
    """
    columns = [progress.TextColumn("{task.description}"), progress.BarColumn()]
    columns += [column() for column in _COLUMNS[unit]]
    console = Console(stderr=True)
    return progress.Progress(*columns, progress.TimeRemainingColumn(), console=console, **options)
