"""Training pairs stored by TFDS in ArrayRecord files, one split per source, with random access."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.file_adapters import FileFormat

from gve_jax.errors import UserError
from gve_jax.media.dataset_paths import inside
from gve_jax.media.item import Item, as_item
from gve_jax.streams.gcs_cache import RemoteDirectory

MEDIA_ROOT = "media_root"  # in a directory's metadata: media are stored as paths below this folder


def pair_features() -> tfds.features.FeaturesDict:
    """The schema of a stored pair. Media are encoded files, or paths (see MEDIA_ROOT)."""
    text = tfds.features.Text()
    item = {"text": text, "instruction": text, "image": text, "video": text}
    pair = {"id": text, "task": text, "query": item, "positive": item}
    return tfds.features.FeaturesDict(pair | {"negatives": tfds.features.Sequence(item)})


def item_fields(
    text: str = "", image: bytes = b"", video: bytes = b"", instruction: str = ""
) -> dict[str, str | bytes]:
    """Returns the fields of a stored item; empty ones are absent."""
    return {"text": text, "instruction": instruction, "image": image, "video": video}


class PairSources:
    """The sources of one TFDS directory; reads records by (source, index). Pickles by its path.

    Args:
      directory: has the ArrayRecord splits of a TFDS builder, one per source. The part of a name
        before `_` is its modality pair (`T2V` in `T2V_whole`).
      remote: the GCS directory of shards that are not in `directory` yet; not pickled.

    Attributes:
      location: the name in messages.
      sizes, bytes: by source.
      digests, duplicates: empty, since opening a directory reads no row.

    Raises:
      UserError: the directory is missing, is not a TFDS directory, has another schema or no source,
        or its file format has no random access.
    """

    def __init__(self, directory: str | os.PathLike, remote: RemoteDirectory | None = None):
        self.directory, self._remote = os.fspath(directory), remote
        self.location = remote.url if remote else self.directory
        self.digests: dict[str, str] = {}
        self.duplicates: dict[str, int] = {}
        if not os.path.isdir(self.directory):
            raise UserError(f"{self.location}: no such directory of training pairs")
        try:
            self._builder = tfds.builder_from_directory(self.directory)
        except Exception as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{self.location}: not a TFDS directory ({reason})") from error
        splits = sorted(self._builder.info.splits.items())
        self.sizes = {name: split.num_examples for name, split in splits}
        self.bytes = {name: split.num_bytes for name, split in splits}
        if not self.sizes:
            raise UserError(f"{self.location}: contains no source")
        stored, expected = (_schema(f) for f in (self._builder.info.features, pair_features()))
        if stored != expected:
            names = [n for n in sorted(stored | expected) if stored.get(n) != expected.get(n)]
            raise UserError(
                f"{self.location}: not the schema of pairs; fields that differ: {', '.join(names)}"
            )
        formats = self._builder.info.available_file_formats()
        if not formats & FileFormat.with_random_access():
            names = ", ".join(sorted(str(f.value) for f in formats)) or "an unknown format"
            raise UserError(f"{self.location}: stored as {names}, not as array_record")
        self._root = (self._builder.info.metadata or {}).get(MEDIA_ROOT)
        self._open: dict[str, object] = {}

    def __reduce__(self):
        return PairSources, (self.directory,)

    def check(self, batch_sizes: Mapping[str, int]) -> None:
        """Checks that each source of `batch_sizes` fills one global batch of that many pairs.

        Raises:
          UserError: in one line, all sources that are unknown, empty, smaller than their batch, or
            lack a shard.
        """
        problems = too_small(self.sizes, batch_sizes)
        for source in filter(self.sizes.__contains__, batch_sizes):
            if missing := [path.name for path in self._shards(source) if not self._has(path)]:
                problems.append(f"source {source!r} lacks the shard {missing[0]}")
        if problems:
            raise UserError(f"{self.location}: {'; '.join(problems)}")

    def _shards(self, source: str) -> list[Path]:
        return [Path(path) for path in self._builder.info.splits[source].filepaths]

    def _has(self, shard: Path) -> bool:
        return shard.name in self._remote.names if self._remote else os.path.isfile(shard)

    def paths(self) -> list[Path]:
        """The directory."""
        return [Path(self.directory)]

    def downloads(self, sources: Iterable[str]) -> list[tuple[str, Path]]:
        """(URL, path) of each shard of these sources that must be copied from GCS."""
        if self._remote is None:
            return []
        shards = [shard for source in sources for shard in self._shards(source)]
        return [(f"{self._remote.url}/{shard.name}", shard) for shard in shards]

    def read(self, source: str, indices: np.ndarray) -> list[dict]:
        """Records as `{"id", "task", "query", "positive", "negatives"}` of items."""
        if source not in self._open:
            self._open[source] = self._builder.as_data_source(split=source)
        records = self._open[source].__getitems__([int(i) for i in indices])
        return [_pair(record, self._root) for record in records]


def too_small(sizes: Mapping[str, int], batch_sizes: Mapping[str, int]) -> list[str]:
    """Returns a message for each source of `batch_sizes` with too few pairs for a global batch."""
    problems = []
    for source, batch in batch_sizes.items():
        size = sizes.get(source)
        if size is None:
            problems.append(f"no source {source!r} (sources: {', '.join(sizes)})")
        elif size == 0:
            problems.append(f"source {source!r} is empty")
        elif size < batch:
            problems.append(f"source {source!r} has {size} pairs, fewer than batch_size {batch}")
    return problems


def _schema(features: tfds.features.FeaturesDict) -> dict[str, str]:
    return {key: repr(feature) for key, feature in features.items()}


def _pair(record, root: str | None) -> dict:
    negatives = record["negatives"]
    if isinstance(negatives, dict):  # TFDS returns a Sequence of dicts as a dict of columns
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
        # Paths are checked again: files or records may have changed since the import.
        item[key] = medium if root is None or not medium else str(inside(root, _text(medium), key))
    return as_item(item, allow_empty=True)  # the record was checked when it was written


def _text(value) -> str:
    return value if isinstance(value, str) else bytes(value).decode("utf-8")
