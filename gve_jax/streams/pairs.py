"""Training pairs on disk (ArrayRecord through TFDS), one split a source, read at random."""

import os
import zlib

import numpy as np
import tensorflow_datasets as tfds

from gve_jax.errors import UserError
from gve_jax.inputs.item import Item, as_item


class PairSources:
    """The sources of one TFDS directory; reads records by (source, index). Pickles by its path.

    Args:
      directory: where a TFDS builder wrote ArrayRecord splits, one a source. The part of a name
        before `_` is its modality pair (`T2V_whole` is of `T2V`).

    Raises:
      UserError: no such directory, or not of TFDS.
    """

    def __init__(self, directory: str | os.PathLike):
        self.directory = os.fspath(directory)
        if not os.path.isdir(self.directory):
            raise UserError(f"{self.directory}: no such directory of training pairs")
        try:
            self._builder = tfds.builder_from_directory(self.directory)
        except Exception as error:
            raise UserError(f"{self.directory}: not a TFDS directory ({error})") from error
        self.sizes = {
            name: split.num_examples for name, split in sorted(self._builder.info.splits.items())
        }
        self.bytes = {
            name: split.num_bytes for name, split in sorted(self._builder.info.splits.items())
        }
        self._open: dict[str, object] = {}

    def __reduce__(self):
        return PairSources, (self.directory,)

    def read(self, source: str, indices: np.ndarray) -> list[dict]:
        """Records as `{"id", "task", "query", "positive", "negatives"}` of items."""
        if source not in self._open:
            self._open[source] = self._builder.as_data_source(split=source)
        records = self._open[source].__getitems__([int(i) for i in indices])
        return [_pair(record) for record in records]


def _pair(record) -> dict:
    negatives = record["negatives"]
    if isinstance(negatives, dict):  # TFDS gives a Sequence of dicts as a dict of columns
        keys = list(negatives)
        rows = zip(*(negatives[key] for key in keys), strict=True)
        negatives = [dict(zip(keys, row, strict=True)) for row in rows]
    return {
        "id": _text(record["id"]),
        "task": _text(record["task"]),
        "query": _item(record["query"]),
        "positive": _item(record["positive"]),
        "negatives": [_item(negative) for negative in negatives],
    }


def _item(fields) -> Item:
    item = {key: _text(fields[key]) for key in ("text", "instruction")}
    item |= {key: bytes(fields[key]) for key in ("image", "video")}
    return as_item(item)


def _text(value) -> str:
    return value if isinstance(value, str) else bytes(value).decode("utf-8")


def content_id(item: Item) -> int:
    """An int32 that two items share when they hold the same text and media: the loss must not
    call a pair's twin its negative."""
    digest = zlib.crc32((item.text or "").encode())
    for medium in (item.image, item.video):
        digest = zlib.crc32(medium or b"", digest)
    return digest - 2**31
