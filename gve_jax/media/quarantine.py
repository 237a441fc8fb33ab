"""Records and counts items that could not be read; stops a run above a share of them."""

import collections
import dataclasses
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import jax

from gve_jax.errors import UserError
from gve_jax.media.item import Item, source_name
from gve_jax.storage.files import atomic_write, read_records

TOP = 3  # reasons that a summary names
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclasses.dataclass(frozen=True)
class _Line:
    """The part of a line that stays in memory."""

    kind: str
    retry: bool
    stamp: str | None

    @classmethod
    def of(cls, record: Mapping) -> "_Line":
        return cls(_kind(record), record.get("retry", False) is True, record.get("stamp"))


class Quarantine:
    """Appends `{"id", "path", "reason", "seconds"}` lines to a JSONL file; each id once.

    A line has `"retry": true` if trying again may succeed (see `MediaError`), and the `"stamp"` of
    the caller, if any, which identifies the content of the item.

    Args:
      path: the file; lines of an earlier run of the same command are kept and count.
      max_share: the share of unreadable items past which `check` stops the run, 0 to 1.
      writes: False counts only: another host of the job writes the file.
      prefixes: of the ids that count, where the file also holds those of other commands.
      shown: the file's name in messages, where `path` is a copy that does not stay.

    Raises:
      UserError: a share outside of 0 to 1, or a file that holds something else.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        max_share: float,
        *,
        writes: bool = True,
        prefixes: tuple[str, ...] = ("",),
        shown: str | os.PathLike | None = None,
    ):
        if not 0 <= max_share <= 1:
            raise UserError(f"the share of unreadable items must be in 0..1, not {max_share}")
        self.path, self.max_share = os.fspath(path), max_share
        self._shown = self.path if shown is None else os.fspath(shown)
        self._writes, self._prefixes = writes, prefixes
        self.stamps: Mapping[str, str] = {}  # of contents by id, for the lines to come
        self._lines: dict[str, _Line] = {}  # by id
        if os.path.exists(self.path):
            self._resume()

    def _resume(self) -> None:
        with open(self.path, "r+b") as file:
            *lines, torn = file.read().split(b"\n")
            for number, line in enumerate(lines, 1):
                try:
                    record = json.loads(line)
                    if record["id"].startswith(self._prefixes):
                        self._lines[record["id"]] = _Line.of(record)
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    raise UserError(f"{self.path}:{number}: not a quarantine line") from error
            if torn and self._writes:
                # The last line of a killed run: the next record must not be glued to it.
                file.truncate(file.tell() - len(torn))

    @property
    def count(self) -> int:
        return len(self._lines)

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(self._lines)

    def record(
        self,
        id: str,
        path: str,
        reason: str,
        seconds: float,
        retry: bool = False,
        stamp: str | None = None,
    ) -> None:
        if id in self._lines:
            return
        line = {"id": id, "path": _utf8(path), "reason": _utf8(reason.removeprefix(f"{path}: "))}
        line["seconds"] = round(seconds, 3)
        stamp = stamp or self.stamps.get(id)
        line |= ({"retry": True} if retry else {}) | ({"stamp": stamp} if stamp else {})
        self._lines[id] = _Line.of(line)
        if not self._writes:
            return
        os.makedirs(os.path.dirname(self.path) or ".", exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def forget(self, ids: Iterable[str]) -> None:
        """Takes out ids that are tried again: what failed then may be readable now."""
        again = [id for id in ids if self._lines.pop(id, None) is not None]
        if again and self._writes and os.path.exists(self.path):
            gone = set(again)
            with open(self.path, "rb") as file:
                kept = [line for line in file if json.loads(line)["id"] not in gone]
            atomic_write(Path(self.path), lambda file: file.writelines(kept))

    def forget_retryable(self) -> tuple[str, ...]:
        """Takes out what may be readable now, as a repeated command should; returns the ids."""
        again = tuple(id for id, line in self._lines.items() if line.retry)
        self.forget(again)
        return again

    def is_permanent(self, id: str, stamp: str | None = None) -> bool:
        """Whether `id` is recorded, for this content, with a reason that does not pass."""
        line = self._lines.get(id)
        return line is not None and not line.retry and line.stamp == stamp

    def summary(self, total: int) -> str:
        """The sum in a line: how many of `total`, their share, and why, the commonest first."""
        if not self.count:
            return f"all of {total:,} items could be read"
        kinds = self._kinds()
        why = [f"{count:,} x {kind}" for kind, count in kinds[:TOP]]
        if rest := sum(count for _, count in kinds[TOP:]):
            why.append(f"{rest:,} x other reasons")
        share = f"{self.count:,} of {total:,} items ({self.count / total:.2%}) could not be read"
        return f"{share}: {'; '.join(why)}; see {self._shown}"

    def _kinds(self) -> list[tuple[str, int]]:
        """The reasons with their numbers, the commonest first."""
        return collections.Counter(line.kind for line in self._lines.values()).most_common()

    def is_exceeded(self, total: int) -> bool:
        """Whether more than `max_share` of `total` items were unreadable."""
        return self.count > self.max_share * total

    def check(self, total: int) -> None:
        """Raises UserError when more than `max_share` of `total` items were unreadable."""
        if self.is_exceeded(total):
            kind, count = self._kinds()[0]
            raise UserError(
                f"{self.count} of {total} items could not be read, more than the allowed "
                f"{self.max_share:.1%}: {count:,} x {kind}; see {self._shown}"
            )


def failure(id: str, item: Item, reason: str, seconds: float, retry: bool = False) -> dict:
    """The line of an item: `path` names its medium, one without a path by the record it is of."""
    media = [medium for medium in (item.video, item.image) if medium is not None]
    names = [source_name(medium) for medium in media] or ["<text>"]
    names = [f"{name} of {id}" if name.startswith("<") else name for name in names]
    line = {"id": id, "path": " + ".join(names), "reason": reason, "seconds": round(seconds, 3)}
    return line | ({"retry": True} if retry else {})


def _utf8(text: str) -> str:
    """`text` with the bytes of file names that are not UTF-8 as `\\xe9`: no reader of JSON takes
    the halves of surrogate pairs that stand for them."""
    return _SURROGATE.sub(lambda half: f"\\x{ord(half[0]) & 0xFF:02x}", text)


def _kind(record: Mapping) -> str:
    """A reason without names and numbers, to count similar ones together."""
    kind = record["reason"]
    for name in record["path"].split(" + "):
        kind = kind.removeprefix(f"{name}: ")
    kind = re.sub("^<[^>]*>: ", "", kind)  # a medium without a path
    kind = re.sub(r"'[^']*'|\"[^\"]*\"", "...", kind)
    return re.sub(r"\d+(\.\d+)?", "N", kind)[:120]


def open_quarantine(
    folder: Path, max_share: float, prefixes: tuple[str, ...] = ("",)
) -> Quarantine:
    """The quarantine of this host of a job; see `merge_quarantines`."""
    host = jax.process_index()
    name = f"quarantine-{host}.jsonl" if host else "quarantine.jsonl"
    return Quarantine(folder / name, max_share, prefixes=prefixes)


def merge_quarantines(quarantine: Quarantine) -> None:
    """On host 0: adds the records of the other hosts, which are done, and removes their files."""
    for path in sorted(Path(quarantine.path).parent.glob("quarantine-*.jsonl")):
        Quarantine(path, 1.0)  # removes the last line if a killed host left it incomplete
        for _, line in read_records(path):
            quarantine.record(**line)
        path.unlink()
