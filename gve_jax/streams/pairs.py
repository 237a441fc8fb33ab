"""Training pairs on disk (ArrayRecord through TFDS), one split a source, read at random."""

import os
import zlib
from collections.abc import Mapping

import numpy as np
import tensorflow_datasets as tfds

from gve_jax.errors import UserError
from gve_jax.inputs.item import Item, as_item
from gve_jax.inputs.paths import inside

MEDIA_ROOT = "media_root"  # in a directory's metadata: media are stored as paths below this folder


def pair_features() -> tfds.features.FeaturesDict:
    """The schema of a stored pair; media are encoded files, or paths (see MEDIA_ROOT)."""
    text = tfds.features.Text()
    item = {"text": text, "instruction": text, "image": text, "video": text}
    pair = {"id": text, "task": text, "query": item, "positive": item}
    return tfds.features.FeaturesDict(pair | {"negatives": tfds.features.Sequence(item)})


class PairSources:
    """The sources of one TFDS directory; reads records by (source, index). Pickles by its path.

    Args:
      directory: where a TFDS builder wrote ArrayRecord splits, one a source. The part of a name
        before `_` is its modality pair (`T2V_whole` is of `T2V`).

    Raises:
      UserError: no such directory, not of TFDS, of another schema, without a source.
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
        if not self.sizes:
            raise UserError(f"{self.directory}: holds no source")
        found, wanted = (_schema(f) for f in (self._builder.info.features, pair_features()))
        if found != wanted:
            fields = sorted(key for key in found | wanted if found.get(key) != wanted.get(key))
            raise UserError(f"{self.directory}: not of the schema of pairs: {', '.join(fields)}")
        self._root = (self._builder.info.metadata or {}).get(MEDIA_ROOT)
        self._open: dict[str, object] = {}

    def __reduce__(self):
        return PairSources, (self.directory,)

    def check(self, batch_sizes: Mapping[str, int]) -> None:
        """Whether each source of `batch_sizes` can fill one global batch of that many pairs.

        Raises:
          UserError: in one line, every source that is unknown, empty, smaller than its batch, or
            misses a shard.
        """
        problems = []
        for source, batch in batch_sizes.items():
            if source not in self.sizes:
                problems.append(f"no source {source!r} (there are {', '.join(self.sizes)})")
                continue
            lost = [path for path in self._builder.info.splits[source].filepaths
                    if not os.path.isfile(path)]  # fmt: skip
            size = self.sizes[source]
            if lost:
                problems.append(f"source {source!r} misses the shard {os.path.basename(lost[0])}")
            elif size == 0:
                problems.append(f"source {source!r} is empty")
            elif size < batch:
                problems.append(f"source {source!r} has {size} pairs, fewer than batch_size "
                                f"{batch}")  # fmt: skip
        if problems:
            raise UserError(f"{self.directory}: {'; '.join(problems)}")

    def read(self, source: str, indices: np.ndarray) -> list[dict]:
        """Records as `{"id", "task", "query", "positive", "negatives"}` of items."""
        if source not in self._open:
            self._open[source] = self._builder.as_data_source(split=source)
        records = self._open[source].__getitems__([int(i) for i in indices])
        return [_pair(record, self._root) for record in records]


def _schema(features: tfds.features.FeaturesDict) -> dict[str, str]:
    return {key: repr(feature) for key, feature in features.items()}


def _pair(record, root: str | None) -> dict:
    negatives = record["negatives"]
    if isinstance(negatives, dict):  # TFDS gives a Sequence of dicts as a dict of columns
        keys = list(negatives)
        rows = zip(*(negatives[key] for key in keys), strict=True)
        negatives = [dict(zip(keys, row, strict=True)) for row in rows]
    return {
        "id": _text(record["id"]),
        "task": _text(record["task"]),
        "query": _item(record["query"], root),
        "positive": _item(record["positive"], root),
        "negatives": [_item(negative, root) for negative in negatives],
    }


def _item(fields, root: str | None) -> Item:
    item = {key: _text(fields[key]) for key in ("text", "instruction")}
    for key in ("image", "video"):
        medium = bytes(fields[key])
        # A path is judged again when it is read: the files may have changed, or the record.
        item[key] = medium if root is None or not medium else str(inside(root, _text(medium), key))
    return as_item(item)


def _text(value) -> str:
    return value if isinstance(value, str) else bytes(value).decode("utf-8")


def content_id(item: Item) -> int:
    """An int32 that two items share when they hold the same text and media: the loss must not
    call a pair's twin its negative. Media by reference are the same when their paths are."""
    digest = zlib.crc32((item.text or "").encode())
    for medium in (item.image, item.video):
        digest = zlib.crc32(medium.encode() if isinstance(medium, str) else medium or b"", digest)
    return digest - 2**31
