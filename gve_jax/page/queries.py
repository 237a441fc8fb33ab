"""Queries of the page: embedded once, and kept with the media that were dropped."""

import collections
import dataclasses
import secrets
import threading
from collections.abc import Hashable
from typing import Any

import numpy as np

from gve_jax.errors import UserError
from gve_jax.index import Index
from gve_jax.index.frames import span_moment
from gve_jax.index.requests import Query, item_of_file
from gve_jax.media.item import Item

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
            item, sha256 = item_of_file(self._index, query)
        else:
            item = Item(text=text)
        return item, (query, sha256)
