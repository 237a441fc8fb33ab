"""Reads one set in UVRB's own layout (https://huggingface.co/datasets/Alibaba-NLP/UVRB).

    DIR/UVRB/<NAME>/jsonl/queries.jsonl    {"id", "text", "image", "video"}, unused ones empty
    DIR/UVRB/<NAME>/jsonl/instances.jsonl  {"qid", "pos": [corpus ids]}
    DIR/UVRB/<NAME>/jsonl/corpus.jsonl     {"id", "video"}

Media are paths relative to DIR/UVRB/<NAME>. A benchmark that is read wrongly still gives a number,
so everything that does not fit is refused.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from evals.uvrb.tasks import Task
from gve_jax.errors import UserError
from gve_jax.files import read_records, text_id, unique_id
from gve_jax.inputs.paths import inside


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
    """A video of the corpus."""

    id: str
    video: Path


@dataclass(frozen=True)
class RetrievalSet:
    """One set as read from disk, in file order; ids are unique, media exist inside `root`."""

    task: Task
    root: Path
    queries: tuple[Query, ...]
    corpus: tuple[Document, ...]


def read_set(data: str | os.PathLike, task: Task) -> RetrievalSet:
    """Reads and checks one set.

    Args:
      data: the directory that holds `UVRB/`.
      task: the row of the table.

    Raises:
      UserError: a missing file or video, a line that is not the expected JSON, an id that occurs
        twice, a path that leaves the set, a positive that is not in the corpus, a query without
        positives or content. The message names the file, the line or the id.
    """
    root = Path(data) / "UVRB" / task.name
    if not root.is_dir():
        raise UserError(f"{task.name}: no such folder: {root} (choose sets with --datasets)")
    home = root.resolve()

    corpus: dict[str, Document] = {}
    for place, record in read_records(root / "jsonl" / "corpus.jsonl"):
        document = unique_id(place, record, "id", corpus)
        video = _media(place, record, "video", home)
        if video is None:
            raise UserError(f"{place}: document {document!r} has no video")
        corpus[document] = Document(document, video)
    if not corpus:
        raise UserError(f"{task.name}: corpus.jsonl is empty")

    positives: dict[str, tuple[str, ...]] = {}
    for place, record in read_records(root / "jsonl" / "instances.jsonl"):
        query = unique_id(place, record, "qid", positives)
        positives[query] = _positives(place, record, query, corpus)

    queries: dict[str, Query] = {}
    for place, record in read_records(root / "jsonl" / "queries.jsonl"):
        query = unique_id(place, record, "id", queries)
        text = record.get("text") or ""
        if not isinstance(text, str):
            raise UserError(f"{place}: 'text' is not a string")
        image = _media(place, record, "image", home)
        video = _media(place, record, "video", home)
        if not (text.strip() or image or video):
            raise UserError(f"{place}: query {query!r} has no text, image or video")
        if query not in positives:
            raise UserError(f"{place}: query {query!r} has no positives in instances.jsonl")
        queries[query] = Query(query, text, image, video, positives[query])

    if not queries:
        raise UserError(f"{task.name}: queries.jsonl is empty")
    orphans = sorted(set(positives) - set(queries))
    if orphans:
        raise UserError(f"{task.name}: instances.jsonl names query {orphans[0]!r}, not in queries")
    return RetrievalSet(task, root, tuple(queries.values()), tuple(corpus.values()))


def _positives(place: str, record: dict, query: str, corpus: dict) -> tuple[str, ...]:
    values = record.get("pos")
    if not isinstance(values, list) or not values:
        raise UserError(f"{place}: query {query!r} has no positives")
    ids = tuple(text_id(place, value) for value in values)
    for value in ids:
        if value not in corpus:
            raise UserError(f"{place}: positive {value!r} of query {query!r} is not in the corpus")
    if len(set(ids)) != len(ids):
        raise UserError(f"{place}: query {query!r} has the same positive twice")
    return ids


def _media(place: str, record: dict, key: str, home: Path) -> Path | None:
    """The path of a medium, inside the set's own folder even through links; None when unused."""
    value = record.get(key) or ""
    if not value:
        return None
    path = inside(home, value, f"{place}: {key}")
    if not path.is_file():
        raise UserError(f"{place}: missing {key}: {value}")
    return path
