"""Reads one set in UVRB's layout (https://huggingface.co/datasets/Alibaba-NLP/UVRB).

    DIR/UVRB/<NAME>/jsonl/queries.jsonl    {"id", "text", "image", "video"}, unused ones empty
    DIR/UVRB/<NAME>/jsonl/instances.jsonl  {"qid", "pos": [corpus ids]}
    DIR/UVRB/<NAME>/jsonl/corpus.jsonl     {"id", "video"}

Media are paths relative to DIR/UVRB/<NAME>. If a video is missing but its frames are in
`videos_frames/<path or stem of the video>/`, those are read, at 8 frames per second. A benchmark
that is read incorrectly still gives a number, so anything unexpected is refused.
"""

import functools
import json
import os
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from data.uvrb.files import Folder
from data.uvrb.tasks import MOMENT, Task
from gve_jax.errors import UserError
from gve_jax.media.dataset_paths import inside
from gve_jax.storage.files import read_records, text_id, unique_id

FRAMES = "videos_frames"
_NEGATIVES = ("neg", "negatives")
_CANDIDATES = "candidates"


@dataclass(frozen=True)
class Query:
    """A query: at least one of text, image and video, and the ids of its positives."""

    id: str
    text: str
    image: Path | None
    video: Path | None
    positives: tuple[str, ...]


@dataclass(frozen=True)
class Document:
    """A video of the corpus, a file or a folder of frames."""

    id: str
    video: Path


@dataclass(frozen=True)
class RetrievalSet:
    """One set as read from disk, in file order; ids are unique, media exist inside `root`.

    pool: "whole" ranks each query in the whole corpus, "candidates" in its `candidates`: ids of
      documents for each query, including its positives; None for "whole".
    files: digests and source of the media.
    """

    task: Task
    root: Path
    queries: tuple[Query, ...]
    corpus: tuple[Document, ...]
    pool: str = "whole"
    candidates: tuple[tuple[str, ...], ...] | None = None
    files: Folder | None = field(default=None, compare=False, repr=False)

    @functools.cached_property
    def query_index(self) -> dict[str, int]:
        """The index of each query by its id."""
        return {query.id: index for index, query in enumerate(self.queries)}


def read_set(
    data: str | os.PathLike,
    task: Task,
    *,
    moment_pool: str = "whole",
    files: Folder | None = None,
    media: bool = True,
    missing: list[str] | None = None,
) -> RetrievalSet:
    """Reads and checks one set.

    Args:
      data: the directory that contains `UVRB/`; unused for a set of one's own.
      task: the set.
      moment_pool: one of POOLS, for MS-TI and MS-TV; other sets are ranked in the whole corpus.
      files: files of the set (default: those on disk).
      media: False does not check that media exist, if they are not read.
      missing: receives missing media instead of an error.

    Raises:
      UserError: a missing file or video, a line that is not the expected JSON, a duplicate id, a
        path outside the set, a positive that is not in the corpus, a query without positives,
        candidates (if they are ranked) or content, two videos with one folder of frames. The
        message names the file, the line or the id.
    """
    root = task.folder_in(Path(data))
    if not root.is_dir():
        raise UserError(f"{task.name}: no such folder: {root} (choose sets with --datasets)")
    files = files or Folder(root)
    find = _Media(root.resolve(), files, media, missing)
    pool = moment_pool if task.name in MOMENT else "whole"

    corpus: dict[str, Document] = {}
    for location, record in read_records(root / "jsonl" / "corpus.jsonl"):
        document = unique_id(location, record, "id", corpus)
        video = find.video(location, record)
        if video is None:
            raise UserError(f"{location}: document {document!r} has no video")
        corpus[document] = Document(document, video)
    if not corpus:
        raise UserError(f"{task.name}: corpus.jsonl is empty")

    positives: dict[str, tuple[str, ...]] = {}
    candidates: dict[str, tuple[str, ...]] = {}
    for location, record in read_records(root / "jsonl" / "instances.jsonl"):
        query = unique_id(location, record, "qid", positives)
        positives[query] = _documents(location, record, "pos", query, corpus)
        if pool == "candidates":
            candidates[query] = _candidates(location, record, query, corpus, positives[query])

    queries: dict[str, Query] = {}
    for location, record in read_records(root / "jsonl" / "queries.jsonl"):
        query = unique_id(location, record, "id", queries)
        text = record.get("text") or ""
        if not isinstance(text, str):
            raise UserError(f"{location}: 'text' is not a string")
        image = find.image(location, record)
        video = find.video(location, record)
        if not (text.strip() or image or video):
            raise UserError(f"{location}: query {query!r} has no text, image or video")
        if query not in positives:
            raise UserError(f"{location}: query {query!r} has no positives in instances.jsonl")
        queries[query] = Query(query, text, image, video, positives[query])

    if not queries:
        raise UserError(f"{task.name}: queries.jsonl is empty")
    orphans = sorted(set(positives) - set(queries))
    if orphans:
        raise UserError(f"{task.name}: instances.jsonl names query {orphans[0]!r}, not in queries")
    return RetrievalSet(
        task,
        root,
        tuple(queries.values()),
        tuple(corpus.values()),
        pool,
        tuple(candidates[query] for query in queries) if pool == "candidates" else None,
        files,
    )


_KINDS = {"pos": "positive", _CANDIDATES: "candidate"} | dict.fromkeys(_NEGATIVES, "negative")


def _documents(location: str, record: dict, key: str, query: str, corpus: dict) -> tuple[str, ...]:
    values, kind = record.get(key), _KINDS[key]
    if isinstance(values, str | int):
        raise UserError(
            f"{location}: {key!r} of query {query!r} must be a list of ids, such as "
            f"{json.dumps([values])}, not {json.dumps(values)}"
        )
    if not isinstance(values, list) or not values:
        raise UserError(f"{location}: query {query!r} has no {kind}s")
    ids = tuple(text_id(location, value) for value in values)
    for value in ids:
        if value not in corpus:
            raise UserError(f"{location}: {kind} {value!r} of query {query!r} is not in the corpus")
    if len(set(ids)) != len(ids):
        raise UserError(f"{location}: query {query!r} has the same {kind} twice")
    return ids


def _candidates(
    location: str, record: dict, query: str, corpus: dict, positives: tuple[str, ...]
) -> tuple[str, ...]:
    """A query's pool: all of `candidates`, or the positives and `neg`."""
    if _CANDIDATES in record:
        ids = _documents(location, record, _CANDIDATES, query, corpus)
        if missing := sorted(set(positives) - set(ids)):
            lost = f"positive {missing[0]!r} of query {query!r}"
            raise UserError(f"{location}: {lost} is not among its candidates")
        return ids
    key = next((key for key in _NEGATIVES if key in record), None)
    if key is None:
        raise UserError(
            f"{location}: query {query!r} has no '{_CANDIDATES}' or '{_NEGATIVES[0]}'; "
            "rank it in the whole corpus with --moment-pool whole"
        )
    ids = _documents(location, record, key, query, corpus)
    if both := sorted(set(positives) & set(ids)):
        raise UserError(f"{location}: query {query!r} has {both[0]!r} as positive and as negative")
    return positives + ids


class _Media:
    """Finds the media of a set, inside its folder even through links."""

    def __init__(self, home: Path, files: Folder, required: bool, missing: list[str] | None):
        self._home, self._files = home, files
        self._required, self._missing = required, missing
        self._frames: dict[Path, str] = {}  # video of each folder of frames

    def image(self, location: str, record: dict) -> Path | None:
        value = record.get("image") or ""
        if not value:
            return None
        path = inside(self._home, value, f"{location}: image")
        if self._required and not self._files.exists(path):
            self._miss(f"{location}: missing image: {value}")
        return path

    def video(self, location: str, record: dict) -> Path | None:
        """The file, or the folder of frames; None when unused."""
        value = record.get("video") or ""
        if not value:
            return None
        path = inside(self._home, value, f"{location}: video")
        if not self._required or self._files.exists(path) or self._files.has_folder(path):
            return path
        for name in dict.fromkeys(_frame_folders(value)):
            folder = inside(self._home, name, f"{location}: video")
            if self._files.has_folder(folder):
                owner = self._frames.setdefault(folder, value)
                if owner != value:
                    raise UserError(f"{location}: {value} and {owner} share the frames in {name}")
                return folder
        self._miss(f"{location}: missing video: {value}")
        return path

    def _miss(self, what: str) -> None:
        if self._missing is None:
            raise UserError(what)
        self._missing.append(what)


def _frame_folders(video: str) -> tuple[str, str]:
    """Possible folders of a video's frames: by its path without the first folder, or its stem."""
    path = PurePosixPath(video)
    below = path.relative_to(path.parts[0]) if len(path.parts) > 1 else path
    return f"{FRAMES}/{below.with_suffix('')}", f"{FRAMES}/{path.stem}"
