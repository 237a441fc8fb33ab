"""What could not be read: recorded, counted, and past a share a reason to stop."""

import json
import os

from gve_jax.errors import UserError


class Quarantine:
    """Appends `{"id", "path", "reason", "seconds"}` lines to a JSONL file; each id once.

    Args:
      path: the file; lines of an earlier run of the same command are kept and count.
      max_share: the share of unreadable items past which `check` stops the run.
    """

    def __init__(self, path: str | os.PathLike, max_share: float):
        self.path, self.max_share = os.fspath(path), max_share
        self._ids: set[str] = set()
        if os.path.exists(self.path):
            with open(self.path, encoding="utf-8") as file:
                for line in file:
                    try:
                        self._ids.add(json.loads(line)["id"])
                    except (ValueError, KeyError):  # the torn last line of a killed run
                        continue

    @property
    def count(self) -> int:
        return len(self._ids)

    def record(self, id: str, path: str, reason: str, seconds: float) -> None:
        if id in self._ids:
            return
        self._ids.add(id)
        os.makedirs(os.path.dirname(self.path) or ".", exist_ok=True)
        line = {"id": id, "path": path, "reason": reason, "seconds": round(seconds, 3)}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def check(self, total: int) -> None:
        """Raises UserError when more than `max_share` of `total` items were unreadable."""
        if self.count > self.max_share * total:
            raise UserError(
                f"{self.count} of {total} items could not be read, more than the allowed "
                f"{self.max_share:.1%}; see {self.path}"
            )
