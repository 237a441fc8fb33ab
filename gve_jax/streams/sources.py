"""The sources of an experiment: those of one or of many places, whatever their form."""

import glob
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from gve_jax.errors import UserError
from gve_jax.storage.filesystem import as_path, in_workdir, is_bucket
from gve_jax.streams import gcs_cache
from gve_jax.streams.index import File
from gve_jax.streams.jsonl import JsonlSources, open_jsonl
from gve_jax.streams.pairs import PairSources

Part = PairSources | JsonlSources
METADATA = ("dataset_info.json", "features.json", "metadata.json")
_TFDS = "tfds:"
_SUFFIX = re.compile(r"\w+")
_NAME = re.compile(r"[A-Za-z]\w*(/[\w.+-]+)?(:[\d*]+\.[\d*]+\.[\d*]+)?")


class Sources:
    """Sources by name, wherever they lie; reads records by (source, index). Pickles by its paths.

    Args:
      parts: (suffix, sources) as of `parse`. The suffix, unless empty, is added to their names:
        `T2V_whole` of ("synth", ...) is `T2V_whole_synth`.
      chosen: patterns that match whole names; (): all sources.

    Attributes:
      sizes, bytes: of each chosen source, by sorted name.
      digests: of those chosen sources whose rows were all read to find them.
      known: all names, chosen or not.

    Raises:
      UserError: two sources of one name; a pattern that matches none.
    """

    def __init__(self, parts: Sequence[tuple[str, Part]], chosen: Sequence[str] = ()):
        self.parts, self.chosen = tuple(parts), tuple(chosen)
        found: dict[str, tuple[Part, str]] = {}
        for suffix, part in self.parts:
            for name in part.sizes:
                known = f"{name}_{suffix}" if suffix else name
                if known in found:
                    raise UserError(
                        f"data.pairs: source {known!r} is in {found[known][0].place} and in "
                        f"{part.place}; give one of them a name, as NAME={part.place}"
                    )
                found[known] = part, name
        self.known = sorted(found)
        self._found = {name: found[name] for name in self._choose()}
        self.sizes = {name: part.sizes[own] for name, (part, own) in self._found.items()}
        self.bytes = {name: part.bytes[own] for name, (part, own) in self._found.items()}
        self.digests = {
            name: part.digests[own]
            for name, (part, own) in self._found.items()
            if own in part.digests
        }
        self._duplicates = {
            name: part.duplicates.get(own, 0) for name, (part, own) in self._found.items()
        }
        self._fetched = False

    def __reduce__(self):
        return Sources, (self.parts, self.chosen)

    def _choose(self) -> list[str]:
        if not self.chosen:
            return self.known
        kept, names = set(), self.known
        for pattern in self.chosen:
            try:
                matched = [name for name in names if re.fullmatch(pattern, name)]
            except re.error as error:
                raise UserError(
                    f"data.sources: {pattern!r} is not a regular expression: {error}"
                ) from error
            if not matched:
                where = ", ".join(part.place for _, part in self.parts)
                raise UserError(
                    f"data.sources: no source {pattern!r} in {where} (there are {', '.join(names)})"
                )
            kept.update(matched)
        return [name for name in names if name in kept]

    def _by_part(self) -> dict[Part, dict[str, str]]:
        """The names of the chosen sources of each part, by their own names there."""
        parts: dict[Part, dict[str, str]] = {}
        for name, (part, own) in self._found.items():
            parts.setdefault(part, {})[own] = name
        return parts

    def check(self, batch_sizes: Mapping[str, int]) -> None:
        """As `PairSources.check`, of every part in turn."""
        for part, names in self._by_part().items():
            part.check({own: batch_sizes[name] for own, name in names.items()})

    def warnings(self) -> list[str]:
        """A line about each source whose rows give negatives with the content of their own pair."""
        return [
            f"source {name}: {count:,} negatives are their own pair's query or positive; they are "
            "left out of the loss"
            for name, count in self._duplicates.items()
            if count
        ]

    def fetch(self) -> None:
        """Copies the records of chosen sources that lie in buckets and are not here; before they
        are read, in every process that starts workers or reads, and not in its workers.

        Raises:
          UserError: as `gcs_cache.copy`.
        """
        if self._fetched:
            return
        wanted = [one for part, names in self._by_part().items() for one in part.remote(names)]
        if wanted:
            gcs_cache.copy(wanted)
        self._fetched = True

    def read(self, source: str, indices: np.ndarray) -> list[dict]:
        """Records as `{"id", "task", "query", "positive", "negatives"}` of items."""
        part, own = self._found[source]
        return part.read(own, indices)


def parse(
    given: str | Sequence[str] | Mapping[str, str],
    cache: str = gcs_cache.CACHE,
    workdir: str | os.PathLike = ".",
) -> list[tuple[str, Part]]:
    """(suffix, sources) of each entry of `config.data.pairs`. A mapping gives a suffix and a place
    each, `{"": place}` a place alone; a sequence entries; a text one entry or several by commas. An
    entry is `PLACE` or `NAME=PLACE`. A place is

    - a directory of TFDS with ArrayRecord files, or with `*` several,
    - a file of JSONL, or with `*` several, which then belong together,
    - `NAME[/CONFIG][:VERSION]` of TFDS, also as `tfds:NAME`, in TFDS_DATA_DIR.

    A file or folder that exists under the whole text of an entry is that entry, whatever commas,
    `=`, `*` or brackets its name has. `{workdir}` stands for `workdir`, which is never searched
    for such characters. Directories and files may be in a bucket, `gs://...`: files of JSONL and
    what describes a directory are copied into `cache` here, records by `Sources.fetch`.

    Raises:
      UserError: an entry that is none of these, matches nothing, may be read in two ways, or is
        damaged.
    """
    folder, parts = gcs_cache.cache_folder(in_workdir(cache, workdir)), []
    for suffix, place in _entries(given, workdir):
        if not place.strip():
            raise UserError(f"data.pairs: {place!r} is neither PLACE nor NAME=PLACE")
        if place.endswith(".jsonl"):
            parts.append((suffix, _files(place, folder, workdir)))
        else:
            parts += [(suffix, _directory(found, folder)) for found in _directories(place, workdir)]
    if not parts:
        raise UserError("data.pairs names no pairs")
    return parts


def _entries(
    given: str | Sequence[str] | Mapping[str, str], workdir: str | os.PathLike
) -> list[tuple[str, str]]:
    """(suffix, place) of each entry; places are not filled in yet."""
    if isinstance(given, Mapping):
        for suffix in given:
            if suffix and not _SUFFIX.fullmatch(suffix):
                raise UserError(f"data.pairs: the name {suffix!r} must be letters, digits and _")
        return list(given.items())
    if isinstance(given, str):
        pieces = [piece.strip() for piece in given.split(",")]
        whole = (given, _named_entry(given)[1])
        if len(pieces) > 1 and any(_exists(place, workdir) for place in whole):
            if all(_exists(_named_entry(piece)[1], workdir) for piece in pieces):
                raise UserError(
                    f"data.pairs: {given!r} is the name of one path and also a list of "
                    f"{len(pieces)}; give each with --pairs"
                )
            pieces = [given]
        given = pieces
    return [_entry(text, workdir) for text in given]


def _entry(text: str, workdir: str | os.PathLike) -> tuple[str, str]:
    suffix, place = _named_entry(text)
    if suffix and _exists(text, workdir):
        if _exists(place, workdir):
            raise UserError(
                f"data.pairs: {text!r} is the name of a path and also {place!r} with a "
                f"name; write ./{text} for the path"
            )
        return "", text
    return suffix, place


def _named_entry(text: str) -> tuple[str, str]:
    """`NAME=PLACE` as (NAME, PLACE); ("", text) where what precedes the first `=` is not a name."""
    suffix, equals, place = text.partition("=")
    return (suffix, place) if equals and _SUFFIX.fullmatch(suffix) else ("", text)


def _exists(place: str, workdir: str | os.PathLike) -> bool:
    """Whether a local file or folder has this name, as it stands."""
    place = in_workdir(place, workdir)
    return not is_bucket(place) and os.path.exists(os.path.expanduser(place))


def _fill(place: str, workdir: str | os.PathLike) -> str:
    """A place without patterns: `{workdir}` and `~` replaced."""
    place = in_workdir(place, workdir)
    return place if is_bucket(place) else os.fspath(as_path(place))


def _matched(place: str, workdir: str | os.PathLike) -> list[str]:
    """The paths that a place names; patterns of a workdir's own name match nothing but it."""
    if not glob.has_magic(place) or _exists(place, workdir):
        return [_fill(place, workdir)]
    pattern = in_workdir(place, glob.escape(os.fspath(workdir)))
    if is_bucket(pattern):
        return gcs_cache.expand(pattern)
    return sorted(glob.glob(os.path.expanduser(pattern)))


def _files(place: str, cache: Path, workdir: str | os.PathLike) -> JsonlSources:
    matched = _matched(place, workdir)
    if not matched:
        raise UserError(f"data.pairs: no file matches {place}")
    if not is_bucket(matched[0]):
        return open_jsonl([File(os.path.abspath(path), path) for path in matched], cache)
    copies = [(url, gcs_cache.local_path(url, cache)) for url in matched]
    gcs_cache.copy(copies)
    return open_jsonl([File(str(path), url, media=False) for url, path in copies], cache)


def _directories(place: str, workdir: str | os.PathLike) -> list[str]:
    if place.startswith(_TFDS):
        return [_named(place.removeprefix(_TFDS))]
    found = _matched(place, workdir)
    if len(found) != 1 or glob.has_magic(place):
        found = [path for path in found if is_bucket(path) or os.path.isdir(path)]
        if not found:
            raise UserError(f"data.pairs: no directory matches {place}")
        return found
    if not is_bucket(found[0]) and not os.path.isdir(found[0]) and _NAME.fullmatch(place):
        return [_named(place)]
    return found


def _directory(place: str, cache: Path) -> PairSources:
    if not is_bucket(place):
        return PairSources(place)
    folder, bucket = gcs_cache.local_path(place, cache), gcs_cache.list_bucket(place)
    gcs_cache.copy(
        [(f"{bucket.url}/{name}", folder / name) for name in METADATA if name in bucket.names]
    )
    return PairSources(folder, bucket)


def _named(name: str) -> str:
    """The directory of a dataset that TFDS prepared, by its name; found by its files, without the
    code that made them."""
    data_dir = os.environ.get("TFDS_DATA_DIR")  # TFDS looks at it once, when it is imported
    where = data_dir or tfds.core.constants.DATA_DIR
    if not _NAME.fullmatch(name):
        raise UserError(f"data.pairs: {name!r} is not NAME, NAME/CONFIG or NAME:VERSION of TFDS")
    try:
        builder = tfds.core.read_only_builder.builder_from_files(name, data_dir=data_dir)
    except Exception as error:  # TFDS explains in many lines, and by many classes
        raise UserError(
            f"data.pairs: {name}: no such directory, and no dataset of that name in {where} "
            "(TFDS_DATA_DIR)"
        ) from error
    return os.fspath(builder.data_dir)
