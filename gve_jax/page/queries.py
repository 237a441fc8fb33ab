"""Queries of the page: checked, embedded once, and kept with the media that were dropped."""

import collections
import dataclasses
import math
import os
import secrets
import threading
from collections.abc import Hashable
from typing import Any

import numpy as np

from gve_jax.errors import UserError
from gve_jax.index import Index
from gve_jax.index.filters import Filters
from gve_jax.index.frames import span_moment
from gve_jax.index.query import GROUPS
from gve_jax.media.dataset_paths import text_to_path
from gve_jax.media.item import Item

MAX_HITS = 200
MAX_TEXT = 10_000  # characters
UPLOADS = 16  # that are kept, as the frames of a query
VECTORS = 256  # of queries that are kept


class Recent:
    """The most recently used values; safe in threads.

    Args:
      most: sum of the values' weights.
    """

    def __init__(self, most: int):
        self._most, self._weight, self._lock = most, 0, threading.Lock()
        self._values: collections.OrderedDict[Hashable, tuple[Any, int]] = collections.OrderedDict()

    def get(self, key: Hashable) -> Any:
        """The value of a key, or None."""
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key][0]

    def put(self, key: Hashable, value: Any, weight: int = 1) -> None:
        with self._lock:
            self._weight += weight - self._values.pop(key, (None, 0))[1]
            self._values[key] = value, weight
            while self._weight > self._most and len(self._values) > 1:
                self._weight -= self._values.popitem(last=False)[1][1]


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
class Search:
    """A query with its options. Raises UserError for a malformed one."""

    query: Query
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


def read_search(body: object) -> Search:
    """As `read_query`, with `k`, `group_by` and `filters`."""
    query, options = read_query(body, "k", "group_by", "filters")
    if "filters" in options:
        options["filters"] = _read_filters(options["filters"])
    return Search(query, **options)


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


class Encoder:
    """Vectors of queries. A repeated query is not embedded again."""

    def __init__(self, index: Index):
        self._index, self._lock = index, threading.Lock()
        self._vectors, self._uploads = Recent(VECTORS), Recent(UPLOADS)

    def add_upload(self, data: bytes) -> tuple[str, str]:
        """Decodes a dropped file; returns the name by which queries refer to it, and its kind.

        Raises:
          MediaError: not a readable image or video.
        """
        sandbox, spec = self._index.sandbox, self._index.model.preprocess.spec
        kind = sandbox.header(data).kind
        if kind == "image":
            item = Item(image=sandbox.frames(Item(image=data), spec).frames[0])
        else:
            item = span_moment(sandbox, data, None, None, spec, "the video").item
        name = secrets.token_urlsafe(12)
        self._uploads.put(name, item)
        return name, kind

    def vector(self, query: Query) -> np.ndarray:
        """The unit vector of a query, float32 [D].

        Raises:
          UserError: a path or an upload that is not there, or media that cannot be read.
        """
        item, key = self._item(query)
        if (vector := self._vectors.get(key)) is None:
            with self._lock:  # one at a time: more would only wait for each other
                vector = self._index.encode_query(item)
            self._vectors.put(key, vector)
        return vector

    def _item(self, query: Query) -> tuple[Item, Hashable]:
        text, sha256 = query.text or None, None
        if query.upload is not None:
            if (item := self._uploads.get(query.upload)) is None:
                raise UserError("the dropped file is not kept any more: drop it again")
            item = dataclasses.replace(item, text=text)
        elif query.path is not None:
            if (file := self._index.find(query.path)) is None:
                raise UserError(f"the index has no file {query.path[:200]!r}")
            real, sha256 = (
                os.fspath(self._index.media_folder / text_to_path(file.path)),
                file.sha256,
            )
            if file.kind == "image":
                item = Item(image=real, text=text)
            else:
                span = {"video_start": query.start_sec, "video_end": query.end_sec}
                item = Item(video=real, text=text, **span)
        else:
            item = Item(text=text)
        return item, (query, sha256)
