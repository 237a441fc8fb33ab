"""Converts rows of other toolkits to the format `pair`, which `gve_jax.streams.rows` checks.

A draft is `{"id", "task", "query", "positive", "negatives"}`; an item may also hold a `medium`,
whose content decides its kind. A row makes one pair per positive. All functions raise `Reject` for
a row that cannot be a pair.
"""

import re
from collections.abc import Callable

from data.pairs.media import is_medium
from gve_jax.media.suffixes import possible_kinds
from gve_jax.streams.rows import Reject

Item = dict
Draft = dict
Lookup = Callable[[str], dict]  # a document of the corpus by its id

_LABELS = ("label", "labels", "score", "scores")


def _text(row: dict, key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str | None):
        raise Reject("wrong type", f"{key} is {type(value).__name__}, not a text")
    return value or ""


def _needs(row: dict, *keys: str) -> None:
    for key in keys:
        if key not in row:
            raise Reject("missing field", key)


def _list(row: dict, key: str) -> list:
    value = row.get(key)
    if not isinstance(value, list | None):
        raise Reject("wrong type", f"{key} is {type(value).__name__}, not a list")
    return value or []


def _name(value: object, key: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise Reject("wrong type", f"{key} {value!r} is not an id")
    return str(value)


def _draft(query: Item, positive: Item, negatives: list[Item], id=None, task=None) -> Draft:
    return {
        "id": id,
        "task": task,
        "query": query,
        "positive": positive,
        "negatives": negatives,
    }


# --- our own -----------------------------------------------------------------------------------


def pair(row: dict, lookup: Lookup | None = None) -> list[Draft]:
    """The format of drafts itself."""
    return [row]


# --- MMEB, VLM2Vec -----------------------------------------------------------------------------


def mmeb(row: dict, lookup: Lookup | None = None) -> list[Draft]:
    """Rows of MMEB-train as VLM2Vec reads them (TIGER-AI-Lab/VLM2Vec, src/data/dataset/
    mmeb_dataset.py and mmeb_neg_dataset.py, read 2026-11): `qry, qry_image_path, pos_text,
    pos_image_path`, and `neg_text, neg_image_path`, one or a list. Empty means absent.

    `<|image_1|>` in a text marks where Phi-3.5 has the image; VLM2Vec puts the backbone's own token
    there. Our prompt puts the image before the text, so the mark is removed, also
    where there is no image (queries of MMEB's WebQA have the mark and no path).
    """
    _needs(row, "qry", "pos_text")
    texts, paths = row.get("neg_text"), row.get("neg_image_path")
    listed = isinstance(texts, list) or isinstance(paths, list)
    texts = _list(row, "neg_text") if listed else [texts]
    paths = _list(row, "neg_image_path") if listed else [paths]
    if listed and texts and paths and len(texts) != len(paths):
        raise Reject("lists of other lengths", "neg_text and neg_image_path")
    count = max(len(texts), len(paths))
    texts, paths = texts or [None] * count, paths or [None] * count
    negatives = [
        _marked({"neg_text": text, "neg_image_path": path}, "neg_text", "neg_image_path")
        for text, path in zip(texts, paths, strict=True)
    ]
    return [
        _draft(
            _marked(row, "qry", "qry_image_path"),
            _marked(row, "pos_text", "pos_image_path"),
            [item for item in negatives if any(item.values())],
        )
    ]


def _marked(row: dict, text: str, path: str) -> Item:
    value, image = _text(row, text), _text(row, path)
    marks = re.findall(r"<\|image_\d+\|>", value)
    if len(marks) > 1:
        raise Reject("several images in an item", f"{len(marks)} in {text}")
    return {"text": re.sub(r"<\|image_\d+\|>\s*", "", value).strip(), "image": image}


# --- Tevatron ----------------------------------------------------------------------------------


def tevatron(row: dict, lookup: Lookup | None = None) -> list[Draft]:
    """Tevatron's training rows (texttron/tevatron, src/tevatron/retriever/dataset.py of v2, and its
    README, read 2026-11), both generations. Each positive makes a pair, where Tevatron draws one:

    - `query_id, query_text, query_image, query_video, positive_document_ids,
      negative_document_ids`, whose documents `docid, text, image, video` (or `document_text`, ...)
      are in a corpus, with the title that some have as its encoder reads it;
    - `query_id, query, positive_passages, negative_passages`, passages `docid, title, text`; title
      and text are joined by a space, as Tevatron does.
    """
    id = None if row.get("query_id") is None else _name(row["query_id"], "query_id")
    if "positive_passages" in row:
        _needs(row, "query")
        query = {"text": _text(row, "query")}
        positives = [_passage(p) for p in _list(row, "positive_passages")]
        negatives = [_passage(p) for p in _list(row, "negative_passages")]
    else:
        _needs(row, "positive_document_ids")
        if lookup is None:
            raise Reject("no corpus", "rows with document ids need --corpus")
        query = _media(row, "query_")
        if not query.get("text"):
            query["text"] = _text(row, "query")
        positives, negatives = (
            [_document(lookup(_name(id, key))) for id in _list(row, key)]
            for key in ("positive_document_ids", "negative_document_ids")
        )
    if not positives:
        raise Reject("no positive", id or "")
    names = [id if number == 0 else f"{id}/{number}" for number in range(len(positives))]
    return [
        _draft(query, positive, negatives, name if id is not None else None)
        for name, positive in zip(names, positives, strict=True)
    ]


def _passage(passage: object) -> Item:
    if not isinstance(passage, dict):
        raise Reject("wrong type", f"a passage is {type(passage).__name__}, not a mapping")
    _needs(passage, "text")
    return {"text": f"{_text(passage, 'title')} {_text(passage, 'text')}".strip()}


def _document(document: dict) -> Item:
    prefix = "document_" if any(key.startswith("document_") for key in document) else ""
    item = _media(document, prefix)
    item["text"] = f"{_text(document, 'title')} {item['text']}".strip()
    return item


def _media(row: dict, prefix: str) -> Item:
    if row.get(f"{prefix}audio"):
        raise Reject("audio", f"{prefix}audio")
    media = {key: row.get(prefix + key) for key in ("image", "video")}
    return {"text": _text(row, f"{prefix}text"), **media}


# --- Sentence Transformers ---------------------------------------------------------------------


def sentence_transformers(row: dict, lookup: Lookup | None = None) -> list[Draft]:
    """Rows for MultipleNegativesRankingLoss (sbert.net, "Training Overview > Dataset Format" and
    "Input Formats", 6.x, read 2026-11): the columns are anchor, positive and negatives in this
    order, whatever their names; where there are `anchor` (or `query`) and `positive`, names count,
    and negatives are `negative`, `negative_1`, ...

    A value is a text; a path, if it has no space and the ending of a picture or a video (a text
    that looks so is `{"text": ...}`); `{"text", "image", "video"}`; or a file's bytes. Rows with a
    label or a score are for other losses: their second column need not be a positive.
    """
    for label in _LABELS:
        if row.get(label) is not None:
            raise Reject("a label", f"{label}: only rows without one are pairs")
    columns = {key: value for key, value in row.items() if key not in _LABELS}
    anchor = next((key for key in ("anchor", "query") if key in columns), None)
    if anchor and "positive" in columns:
        found = [
            (int(m[1] or 0), key)
            for key in columns
            if (m := re.fullmatch(r"negative(?:_(\d+))?", key))
        ]
        keys = [anchor, "positive", *(key for _, key in sorted(found))]
    else:
        keys = list(columns)
    if len(keys) < 2:
        raise Reject("missing field", "an anchor and a positive")
    query, positive, *negatives = [_column(columns[key], key) for key in keys]
    return [_draft(query, positive, [item for item in negatives if item])]


def _column(value: object, key: str) -> Item:
    if value is None:
        return {}
    if is_medium(value):
        return {"medium": value}
    if isinstance(value, str):
        kinds = () if re.search(r"\s", value) else possible_kinds(value)
        if kinds:
            return {kinds[0] if len(kinds) == 1 else "medium": value}
        return {"text": value}
    if isinstance(value, dict):
        if value.get("audio") is not None:
            raise Reject("audio", key)
        return value
    raise Reject("wrong type", f"{key} is {type(value).__name__}, not a text or a mapping")


# --- ms-swift ----------------------------------------------------------------------------------


def swift(row: dict, lookup: Lookup | None = None) -> list[Draft]:
    """Rows of ms-swift's InfoNCE (modelscope/ms-swift, docs/source_en/BestPractices/Embedding.md,
    read 2026-11): `messages` with `images, videos`; `positive_messages`, exactly one, and
    `negative_messages` are lists of messages, and their media lists of lists. Each `<image>` and
    `<video>` tag stands for one medium, in order. A system message is the instruction.

    A `label` other than 1 belongs to its cosine and contrastive losses; it marks no positive.
    """
    _needs(row, "messages", "positive_messages")
    if row.get("label") not in (None, 1):
        raise Reject("a label", f"label {row['label']!r}")
    positives = _list(row, "positive_messages")
    if len(positives) != 1:
        raise Reject("not one positive", f"{len(positives)} positive_messages")
    query = _messages(_list(row, "messages"), _files(row, ""), "messages")
    (positive,), negatives = (_group(row, side) for side in ("positive", "negative"))
    return [_draft(query, positive, negatives)]


def _files(row: dict, prefix: str) -> dict[str, list]:
    return {kind: _list(row, f"{prefix}{kind}s") for kind in ("image", "video", "audio")}


def _group(row: dict, side: str) -> list[Item]:
    groups, files = _list(row, f"{side}_messages"), _files(row, f"{side}_")
    items = []
    for number, messages in enumerate(groups):
        own = {}
        for kind, lists in files.items():
            if lists and len(lists) != len(groups):
                raise Reject("lists of other lengths", f"{side}_messages and {side}_{kind}s")
            own[kind] = _list({kind: lists[number]}, kind) if lists else []
        items.append(_messages(messages, own, f"{side}_messages"))
    return items


def _messages(messages: object, files: dict[str, list], key: str) -> Item:
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise Reject("wrong type", f"{key} is not a list of messages")
    turns: dict[str, str] = {}
    for message in messages:
        role, content = message.get("role"), _text(message, "content")
        if role not in ("system", "user"):
            raise Reject("a role", f"{role!r} in {key}: an item is a user's turn")
        if role in turns:
            raise Reject("several turns", f"two of {role!r} in {key}")
        turns[role] = content
    item, text = {"instruction": turns.get("system", "")}, turns.get("user", "")
    for kind, media in files.items():
        tags = text.count(f"<{kind}>")
        if tags != len(media):
            raise Reject("tags and media differ", f"{tags} <{kind}> and {len(media)} files: {key}")
        if kind == "audio" and tags:
            raise Reject("audio", key)
        if tags > 1:
            raise Reject(f"several {kind}s in an item", f"{tags} in {key}")
        if tags:
            item[kind] = media[0]
        text = text.replace(f"<{kind}>", "")
    return item | {"text": text.strip()}


FORMATS: dict[str, Callable[..., list[Draft]]] = {
    "pair": pair,
    "mmeb": mmeb,
    "tevatron": tevatron,
    "sentence-transformers": sentence_transformers,
    "swift": swift,
}
