"""What could not be read: recorded, counted, and past a share a reason to stop."""

import json
import os

from gve_jax.errors import UserError


class Quarantine:
    """Appends `{"id", "path", "reason", "seconds"}` lines to a JSONL file; each id once.

    Args:
      path: the file; lines of an earlier run of the same command are kept and count.
      max_share: the share of unreadable items past which `check` stops the run, 0 to 1.

    Raises:
      UserError: a share that is none, or a file that holds something else.
    """

    def __init__(self, path: str | os.PathLike, max_share: float):
        if not 0 <= max_share <= 1:
            raise UserError(f"the share of unreadable items must be in 0..1, not {max_share}")
        self.path, self.max_share = os.fspath(path), max_share
        self._ids: set[str] = set()
        if os.path.exists(self.path):
            self._resume()

    def _resume(self) -> None:
        with open(self.path, "r+b") as file:
            *lines, torn = file.read().split(b"\n")
            for number, line in enumerate(lines, 1):
                try:
                    self._ids.add(json.loads(line)["id"])
                except (ValueError, KeyError, TypeError) as error:
                    raise UserError(f"{self.path}:{number}: not a quarantine line") from error
            if torn:  # the last line of a killed run: the next record must not be glued to it
                file.truncate(file.tell() - len(torn))

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
