"""The sources of an experiment, from the locations in `config.data.pairs`."""

import glob
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from gve_jax.errors import UserError
from gve_jax.storage.filesystem import as_path, in_workdir, is_gcs_path
from gve_jax.streams import gcs_cache
from gve_jax.streams.index import File
from gve_jax.streams.jsonl import JsonlSources, open_jsonl
from gve_jax.streams.pairs import PairSources

Dataset = PairSources | JsonlSources
METADATA = ("dataset_info.json", "features.json", "metadata.json")
_TFDS = "tfds:"
_SUFFIX = re.compile(r"\w+")
_NAME = re.compile(r"[A-Za-z]\w*(/[\w.+-]+)?(:[\d*]+\.[\d*]+\.[\d*]+)?")


class Sources:
    """Sources by name; reads records by (source, index). Pickles by its paths.

    Args:
      datasets: (suffix, sources) from `parse`. The suffix, unless empty, is added to their names:
        `T2V_whole` of ("synth", ...) is `T2V_whole_synth`.
      chosen: patterns that match full names of sources; (): all sources.

    Attributes:
      sizes, bytes: by chosen source, in the order of names.
      digests: by chosen source, if opening the source has read all its rows.
      known: names of all sources, chosen or not.

    Raises:
      UserError: two sources have the same name; a pattern matches no source.
    """

    def __init__(self, datasets: Sequence[tuple[str, Dataset]], chosen: Sequence[str] = ()):
        self.datasets, self.chosen = tuple(datasets), tuple(chosen)
        entries: dict[str, tuple[Dataset, str]] = {}  # (dataset, name in it) by full name
        for suffix, dataset in self.datasets:
            for name in dataset.sizes:
                known = f"{name}_{suffix}" if suffix else name
                if known in entries:
                    raise UserError(
                        f"data.pairs: source {known!r} is in {entries[known][0].location} and in "
                        f"{dataset.location}; give one of them a name, as NAME={dataset.location}"
                    )
                entries[known] = dataset, name
        self.known = sorted(entries)
        self._entries = {name: entries[name] for name in self._choose()}
        self.sizes, self.bytes, self.digests, self._duplicates = {}, {}, {}, {}
        for full, (dataset, name) in self._entries.items():
            self.sizes[full], self.bytes[full] = dataset.sizes[name], dataset.bytes[name]
            self._duplicates[full] = dataset.duplicates.get(name, 0)
            if name in dataset.digests:
                self.digests[full] = dataset.digests[name]
        self._fetched = False

    def __reduce__(self):
        return Sources, (self.datasets, self.chosen)

    def _choose(self) -> list[str]:
        if not self.chosen:
            return self.known
        chosen, names = set(), self.known
        for pattern in self.chosen:
            try:
                matched = [name for name in names if re.fullmatch(pattern, name)]
            except re.error as error:
                raise UserError(
                    f"data.sources: {pattern!r} is not a regular expression: {error}"
                ) from error
            if not matched:
                where = ", ".join(dataset.location for _, dataset in self.datasets)
                raise UserError(
                    f"data.sources: no source {pattern!r} in {where} (sources: {', '.join(names)})"
                )
            chosen.update(matched)
        return [name for name in names if name in chosen]

    def _by_dataset(self) -> dict[Dataset, dict[str, str]]:
        """The chosen sources of each dataset: {name in the dataset: full name}."""
        datasets: dict[Dataset, dict[str, str]] = {}
        for full, (dataset, name) in self._entries.items():
            datasets.setdefault(dataset, {})[name] = full
        return datasets

    def check(self, batch_sizes: Mapping[str, int]) -> None:
        """As `PairSources.check`, for every dataset in turn; sources without a size are not
        checked."""
        for dataset, names in self._by_dataset().items():
            dataset.check(
                {name: batch_sizes[full] for name, full in names.items() if full in batch_sizes}
            )

    def paths(self) -> list[Path]:
        """The local folders and files of all datasets, for their sizes and times."""
        return [path for _, dataset in self.datasets for path in dataset.paths()]

    def warnings(self) -> list[str]:
        """Returns a warning for each source with negatives that duplicate their own pair."""
        return [
            f"source {name}: {count:,} negatives equal their pair's query or positive; the loss "
            "leaves them out"
            for name, count in self._duplicates.items()
            if count
        ]

    def fetch(self) -> None:
        """Copies the records of chosen sources from GCS unless the cache has them.

        Call it before records are read, in every process that reads or starts workers, but not in
        workers.

        Raises:
          UserError: as `gcs_cache.copy`.
        """
        if self._fetched:
            return
        wanted = [
            file
            for dataset, names in self._by_dataset().items()
            for file in dataset.downloads(names)
        ]
        if wanted:
            gcs_cache.copy(wanted)
        self._fetched = True

    def read(self, source: str, indices: np.ndarray) -> list[dict]:
        """Records as `{"id", "task", "query", "positive", "negatives"}` of items."""
        dataset, name = self._entries[source]
        return dataset.read(name, indices)


def parse(
    pairs: str | Sequence[str] | Mapping[str, str],
    cache: str = gcs_cache.CACHE,
    workdir: str | os.PathLike = ".",
) -> list[tuple[str, Dataset]]:
    """Opens each entry of `config.data.pairs`; returns [(suffix, sources)].

    A mapping holds suffixes and locations (`{"": location}`: without a suffix), a sequence holds
    entries, and a text one entry or several separated by commas. An entry is `LOCATION` or
    `NAME=LOCATION`. A location is

    - a TFDS directory with ArrayRecord files, or with `*` several,
    - a JSONL file, or with `*` several, which form one set of sources,
    - `NAME[/CONFIG][:VERSION]` of TFDS, also as `tfds:NAME`, in TFDS_DATA_DIR.

    If a file or folder has the complete text of an entry as its name, the entry means that path,
    even if it contains commas, `=`, `*` or brackets. `{workdir}` is replaced by `workdir`, in which
    such characters have no meaning. Directories and files may be `gs://` paths: JSONL files and the
    metadata of directories are copied to `cache` now, records by `Sources.fetch`.

    Raises:
      UserError: an entry is invalid, matches nothing, is ambiguous, or is damaged.
    """
    folder, datasets = gcs_cache.cache_folder(in_workdir(cache, workdir)), []
    for suffix, location in _entries(pairs, workdir):
        if not location.strip():
            raise UserError(f"data.pairs: {location!r} is neither LOCATION nor NAME=LOCATION")
        if location.endswith(".jsonl"):
            datasets.append((suffix, _files(location, folder, workdir)))
        else:
            datasets += [
                (suffix, _directory(path, folder)) for path in _directories(location, workdir)
            ]
    if not datasets:
        raise UserError("data.pairs is empty; name at least one location")
    return datasets


def _entries(
    pairs: str | Sequence[str] | Mapping[str, str], workdir: str | os.PathLike
) -> list[tuple[str, str]]:
    """(suffix, location) of each entry, before `{workdir}` is replaced."""
    if isinstance(pairs, Mapping):
        for suffix in pairs:
            if suffix and not _SUFFIX.fullmatch(suffix):
                raise UserError(f"data.pairs: the name {suffix!r} must be letters, digits and _")
        return list(pairs.items())
    if isinstance(pairs, str):
        pieces = [piece.strip() for piece in pairs.split(",")]
        complete = (pairs, _named_entry(pairs)[1])
        if len(pieces) > 1 and any(_exists(location, workdir) for location in complete):
            if all(_exists(_named_entry(piece)[1], workdir) for piece in pieces):
                raise UserError(
                    f"data.pairs: {pairs!r} is the name of one path and also a list of "
                    f"{len(pieces)} paths; pass each with --pairs"
                )
            pieces = [pairs]
        pairs = pieces
    return [_entry(text, workdir) for text in pairs]


def _entry(text: str, workdir: str | os.PathLike) -> tuple[str, str]:
    suffix, location = _named_entry(text)
    if suffix and _exists(text, workdir):
        if _exists(location, workdir):
            raise UserError(
                f"data.pairs: {text!r} is the name of a path and also NAME={location}; write "
                f"./{text} for the path"
            )
        return "", text
    return suffix, location


def _named_entry(text: str) -> tuple[str, str]:
    """Splits `NAME=LOCATION`; ("", text) if no name precedes the first `=`."""
    suffix, equals, location = text.partition("=")
    return (suffix, location) if equals and _SUFFIX.fullmatch(suffix) else ("", text)


def _exists(location: str, workdir: str | os.PathLike) -> bool:
    """Whether a local file or folder has exactly this name."""
    location = in_workdir(location, workdir)
    return not is_gcs_path(location) and os.path.exists(os.path.expanduser(location))


def _fill(location: str, workdir: str | os.PathLike) -> str:
    """Replaces `{workdir}` and `~`."""
    location = in_workdir(location, workdir)
    return location if is_gcs_path(location) else os.fspath(as_path(location))


def _matched(location: str, workdir: str | os.PathLike) -> list[str]:
    """The paths that match a location; glob characters in `workdir` are literal."""
    if not glob.has_magic(location) or _exists(location, workdir):
        return [_fill(location, workdir)]
    pattern = in_workdir(location, glob.escape(os.fspath(workdir)))
    if is_gcs_path(pattern):
        return gcs_cache.expand(pattern)
    return sorted(glob.glob(os.path.expanduser(pattern)))


def _files(location: str, cache: Path, workdir: str | os.PathLike) -> JsonlSources:
    matched = _matched(location, workdir)
    if not matched:
        raise UserError(f"data.pairs: no file matches {location}")
    if not is_gcs_path(matched[0]):
        return open_jsonl([File(os.path.abspath(path), path) for path in matched], cache)
    copies = [(url, gcs_cache.local_path(url, cache)) for url in matched]
    gcs_cache.copy(copies)
    return open_jsonl([File(str(path), url, media=False) for url, path in copies], cache)


def _directories(location: str, workdir: str | os.PathLike) -> list[str]:
    if location.startswith(_TFDS):
        return [_tfds_directory(location.removeprefix(_TFDS))]
    paths = _matched(location, workdir)
    if len(paths) != 1 or glob.has_magic(location):
        paths = [path for path in paths if is_gcs_path(path) or os.path.isdir(path)]
        if not paths:
            raise UserError(f"data.pairs: no directory matches {location}")
        return paths
    if not is_gcs_path(paths[0]) and not os.path.isdir(paths[0]) and _NAME.fullmatch(location):
        return [_tfds_directory(location)]
    return paths


def _directory(location: str, cache: Path) -> PairSources:
    if not is_gcs_path(location):
        return PairSources(location)
    folder, remote = gcs_cache.local_path(location, cache), gcs_cache.list_directory(location)
    gcs_cache.copy(
        [(f"{remote.url}/{name}", folder / name) for name in METADATA if name in remote.names]
    )
    return PairSources(folder, remote)


def _tfds_directory(name: str) -> str:
    """The directory of a dataset that TFDS prepared; the code of its builder is not needed."""
    data_dir = os.environ.get("TFDS_DATA_DIR")  # TFDS reads it only when it is imported
    searched = data_dir or tfds.core.constants.DATA_DIR
    if not _NAME.fullmatch(name):
        raise UserError(f"data.pairs: {name!r} is not NAME, NAME/CONFIG or NAME:VERSION of TFDS")
    try:
        builder = tfds.core.read_only_builder.builder_from_files(name, data_dir=data_dir)
    except Exception as error:  # TFDS raises many classes, with long messages
        raise UserError(
            f"data.pairs: {name}: no such directory, and no dataset of that name in {searched} "
            "(TFDS_DATA_DIR)"
        ) from error
    return os.fspath(builder.data_dir)
