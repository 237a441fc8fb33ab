"""Searches as JSON, as the page and the server of vectors answer them."""

import dataclasses
import math
import os
import threading

import numpy as np

from gve_jax.errors import UserError
from gve_jax.index.filters import Filters
from gve_jax.index.index import Index
from gve_jax.index.query import GROUPS
from gve_jax.media.dataset_paths import text_to_path
from gve_jax.media.item import Item

MAX_HITS = 200
MAX_TEXT = 10_000  # characters
OPTIONS = ("k", "group_by", "filters")


@dataclasses.dataclass(frozen=True)
class Query:
    """What is searched for: a text, a span of a file of the index or an upload, or a text with one
    of these.

    Raises:
      UserError: a field of another type, or nothing to search for; it names the field.
    """

    text: str | None = None
    path: str | None = None
    start_sec: float | None = None
    end_sec: float | None = None
    upload: str | None = None

    def __post_init__(self):
        for name in ("text", "path", "upload"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise UserError(f"{name} must be a string")
        if len(self.text or "") > MAX_TEXT:
            raise UserError(f"text must have at most {MAX_TEXT:,} characters")
        for name in ("start_sec", "end_sec"):
            _check_number(name, getattr(self, name))
        if self.path is not None and self.upload is not None:
            raise UserError("give a path or an upload, and not both")
        if not (self.text or self.path or self.upload):
            raise UserError("nothing to search for: give text, path or upload")


@dataclasses.dataclass(frozen=True)
class Options:
    """Of a search. Raises UserError for a malformed one."""

    k: int = 20
    group_by: str = "moment"
    filters: Filters = dataclasses.field(default_factory=Filters)

    def __post_init__(self):
        if type(self.k) is not int or not 1 <= self.k <= MAX_HITS:
            raise UserError(f"k must be in 1..{MAX_HITS}")
        if self.group_by not in GROUPS:
            raise UserError(f"group_by must be one of {', '.join(GROUPS)}")


def read_query(body: object, *others: str) -> tuple[Query, dict]:
    """The query of a JSON object, and its fields named in `others`.

    Raises:
      UserError: another field, or a malformed query.
    """
    if not isinstance(body, dict):
        raise UserError("the body must be a JSON object")
    own = {field.name for field in dataclasses.fields(Query)}
    if unknown := sorted(body.keys() - own - set(others)):
        raise UserError(
            f"unknown field {unknown[0]!r}; fields: {', '.join([*sorted(own), *others])}"
        )
    query = Query(**{name: body[name] for name in own & body.keys()})
    return query, {name: body[name] for name in others if body.get(name) is not None}


def read_search(body: object) -> tuple[Query, Options]:
    """The query of a JSON object with the fields of `Query` and `Options`. Raises UserError."""
    query, fields = read_query(body, *OPTIONS)
    return query, read_options(fields)


def read_options(fields: dict) -> Options:
    """Options that are present in `fields`. Raises UserError."""
    if "filters" in fields:
        fields = fields | {"filters": _read_filters(fields["filters"])}
    return Options(**fields)


def _read_filters(fields: object) -> Filters:
    if not isinstance(fields, dict):
        raise UserError("filters must be an object")
    names = {field.name for field in dataclasses.fields(Filters)}
    if unknown := sorted(fields.keys() - names):
        raise UserError(
            f"filters: unknown field {unknown[0]!r}; fields: {', '.join(sorted(names))}"
        )
    fields = {name: value for name, value in fields.items() if value is not None}
    for name, value in fields.items():
        if name.endswith("duration"):
            _check_number(f"filters: {name}", value)
        elif name in ("path", "exclude", "where"):
            values = value if isinstance(value, list) else [value]
            if len(values) > 100 or not all(isinstance(each, str) for each in values):
                raise UserError(f"filters: {name} must be a string or a list of strings")
        elif not isinstance(value, str):
            raise UserError(f"filters: {name} must be a string")
    return Filters(**fields)


def _check_number(name: str, value: object) -> None:
    good = isinstance(value, int | float) and not isinstance(value, bool)
    if value is not None and not (good and math.isfinite(value) and value >= 0):
        raise UserError(f"{name} must be a number of at least 0")


def item_of_file(index: Index, query: Query) -> tuple[Item, str]:
    """The item of a query with a path, and the SHA-256 of that file.

    Raises:
      UserError: the index has no such file.
    """
    if (file := index.find(query.path)) is None:
        raise UserError(f"the index has no file {query.path[:200]!r}")
    real, text = os.fspath(index.media_folder / text_to_path(file.path)), query.text or None
    if file.kind == "image":
        return Item(image=real, text=text), file.sha256
    span = {"video_start": query.start_sec, "video_end": query.end_sec}
    return Item(video=real, text=text, **span), file.sha256


class LiveIndex:
    """An index that follows what other processes change in it; safe in threads."""

    def __init__(self, index: Index):
        self.index, self._version, self._lock = index, 0, threading.Lock()

    def refresh(self) -> int:
        """Follows changes of the index; the number of changes that were seen."""
        with self._lock:
            self._version += self.index.refresh()
            return self._version

    def describe(self) -> dict:
        version, index = self.refresh(), self.index
        return {
            "version": version,
            "files": len(index.files),
            "moments": len(index),
            "unreadable": len(index.unreadable),
            "media": index.media_folder.name,
        }

    def answer(self, options: Options, vector: np.ndarray) -> dict:
        """The response to a search whose query has the unit vector `vector`, float32 [D]."""
        version = self.refresh()
        hits = self.index.search(
            vector=vector, k=options.k, group_by=options.group_by, filters=options.filters
        )
        return {"data": [hit.to_json() for hit in hits], "version": version}
