"""Filters of a query: by path, duration, date and the user's own metadata."""

import dataclasses
import datetime
import fnmatch
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from gve_jax.errors import UserError
from gve_jax.index.store import Media
from gve_jax.storage.files import read_records

METADATA = "metadata.jsonl"  # beside the media, and a copy of it in the index
_CONDITION = re.compile(r"\s*([^=!<>~]+?)\s*(!=|<=|>=|=|<|>|~)\s*(.*)", re.DOTALL)
_COMPARE: dict[str, Callable] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclasses.dataclass(frozen=True)
class Filters:
    """Which files a query searches; all conditions must hold.

    Attributes:
      path: patterns of paths, such as "cam1/*.mp4"; one of them must match.
      exclude: patterns of which none may match.
      kind: "video" or "image".
      min_duration, max_duration: seconds.
      after, before: dates or times in ISO format; the date of a file is the `date` of its metadata,
        or the time of its modification. A date alone covers its whole day.
      where: conditions on metadata: "camera=north", "year>=2020", "title~*dog*", "tags=dog", with
        = != < <= > >= and ~ for a pattern. A list fulfils what one of its values fulfils.

    Raises:
      UserError: a condition or a date that cannot be read.
    """

    path: Sequence[str] = ()
    exclude: Sequence[str] = ()
    kind: str | None = None
    min_duration: float | None = None
    max_duration: float | None = None
    after: str | None = None
    before: str | None = None
    where: Sequence[str] = ()

    def __post_init__(self):
        for name in ("path", "exclude", "where"):
            if isinstance(value := getattr(self, name), str):
                object.__setattr__(self, name, (value,))
        if self.kind not in (None, "video", "image"):
            raise UserError(f"kind must be video or image, not {self.kind!r}")

    def choose(self, media: Sequence[Media], metadata: Mapping[str, Mapping]) -> np.ndarray | None:
        """bool [files], the files that are searched; None for all."""
        tests = list(self._tests(metadata))
        if not tests:
            return None
        return np.array([all(test(file) for test in tests) for file in media], bool)

    def _tests(self, metadata: Mapping[str, Mapping]):
        if self.path:
            yield lambda file: any(fnmatch.fnmatchcase(file.path, p) for p in self.path)
        if self.exclude:
            yield lambda file: not any(fnmatch.fnmatchcase(file.path, p) for p in self.exclude)
        if self.kind:
            yield lambda file: file.kind == self.kind
        if self.min_duration is not None:
            yield lambda file: file.duration >= self.min_duration
        if self.max_duration is not None:
            yield lambda file: file.duration <= self.max_duration
        if self.after is not None:
            first = _time(self.after, "after")
            yield lambda file: _date(file, metadata) >= first
        if self.before is not None:
            last = _time(self.before, "before", end=True)
            yield lambda file: _date(file, metadata) < last
        for condition in self.where:
            test = _condition(condition)
            yield lambda file, test=test: test(metadata.get(file.path, {}))


def read_metadata(path: Path) -> dict[str, dict]:
    """The user's metadata by path of the medium.

    Raises:
      UserError: a line without a `path`, or two lines of the same path.
    """
    found: dict[str, dict] = {}
    for location, record in read_records(path):
        name = record.pop("path", None)
        if not isinstance(name, str) or not name:
            raise UserError(f"{location}: no 'path' of a file in the media folder")
        name = name.removeprefix("./")
        if name in found:
            raise UserError(f"{location}: path {name!r} occurs twice")
        found[name] = record
    return found


def _condition(text: str) -> Callable[[Mapping], bool]:
    match = _CONDITION.fullmatch(text)
    if not match:
        raise UserError(
            f"condition {text!r} must be KEY=VALUE, or with != < <= > >= or ~ (a pattern)"
        )
    key, compare, wanted = match.groups()

    def test(fields: Mapping) -> bool:
        value = fields.get(key)
        values = value if isinstance(value, list) else [value]
        if compare == "!=":
            return not any(_equal(one, wanted) for one in values)
        return any(one is not None and _holds(one, compare, wanted) for one in values)

    return test


def _holds(value, compare: str, wanted: str) -> bool:
    if compare == "=":
        return _equal(value, wanted)
    if compare == "~":
        return fnmatch.fnmatchcase(str(value).lower(), wanted.lower())
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return _COMPARE[compare](value, float(wanted))
        except ValueError:
            raise UserError(f"{wanted!r} must be a number, as {value!r} is") from None
    return _COMPARE[compare](str(value), wanted)


def _equal(value, wanted: str) -> bool:
    if isinstance(value, bool):
        return wanted.lower() == str(value).lower()
    if isinstance(value, int | float):
        try:
            return value == float(wanted)
        except ValueError:
            return False
    return value is not None and str(value) == wanted


def _time(text: str, name: str, end: bool = False) -> float:
    """Seconds since 1970 of a date or a time; `end`: of the end of the day of a date alone."""
    try:
        time = datetime.datetime.fromisoformat(text)
    except (ValueError, TypeError):
        raise UserError(
            f"{name} {text!r} must be a date such as 2026-01-31, or a time 2026-01-31T12:00"
        ) from None
    if end and len(text) <= len("2026-01-31"):
        time += datetime.timedelta(days=1)
    return time.timestamp()


def _date(file: Media, metadata: Mapping[str, Mapping]) -> float:
    stated = metadata.get(file.path, {}).get("date")
    if stated is None:
        return file.mtime_ns / 1e9
    return _time(stated, f"metadata of {file.path!r}: date")
