"""A line of JSONL as a training pair: the format `pair` of docs/pairs.md, in two steps. `parse_row`
checks all of a row but its files, fast enough for millions; `as_pair_item` then names these files.
"""

import base64
import binascii
import json
import os
import re

from gve_jax.media.dataset_paths import inside
from gve_jax.media.item import Item, as_item
from gve_jax.storage.files import parse_json

MOST_NEGATIVES = 3  # what a step takes
MODALITY_PAIR = re.compile(r"(?:T|I|V|TI|TV|IV|TIV)2(?:T|I|V|TI|TV|IV|TIV)")
_PAIR = frozenset(("id", "task", "query", "positive", "negatives"))
_ITEM = frozenset(("text", "instruction", "image", "video"))
_LETTERS = {"text": "T", "image": "I", "video": "V"}
_MEDIUM = frozenset(("bytes", "path"))
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_DATA = re.compile(r"data:[\w/+.-]*;base64,")
_decode_json = json.JSONDecoder().decode
_SURROGATE = re.compile(rb"\\u[dD]")


class BadRow(ValueError):
    """Why a line is no pair."""


def is_blank(text: str) -> bool:
    """Whether a text is absent: every format takes white space alone for no text."""
    return not text or text.isspace()


def parse_row(
    line: bytes, roots: tuple[str, ...] | None
) -> tuple[str, str, list[dict[str, str | bytes]]]:
    """(id, task, items) of a row: query, positive, negatives, each a mapping of what it has of
    `text, instruction, image, video`. Media are paths as they stand, or bytes. An id and a task
    that are absent are "".

    Args:
      line: UTF-8, a JSON object.
      roots: the forms, each with a `/` at its end, of the folder that paths start from and may not
        leave; links are followed later. None: rows may not name files.

    Raises:
      BadRow: whatever the importer rejects without opening a file.
    """
    try:
        row = _decode_json(line.decode())
    except UnicodeDecodeError as error:
        raise BadRow(f"not UTF-8: {error.reason}") from error
    except (ValueError, RecursionError) as error:
        raise BadRow(f"not valid JSON: {error}") from error
    if type(row) is not dict:
        raise BadRow(f"expected a JSON object, got {type(row).__name__}")
    if line.count(b'":') != _count_keys(row) or b" :" in line or b"\t:" in line:
        _check_twice(line)  # more keys than were kept, or a text that looks like a key
    if b"\\u" in line and _SURROGATE.search(line):  # rare, and the check of all texts is not cheap
        _check_unicode(row)
    if not row.keys() <= _PAIR:
        _check_keys(row, _PAIR, "a pair")
    for side in ("query", "positive"):
        if side not in row:
            raise BadRow(f"no {side!r}")
    id, task, negatives = row.get("id"), row.get("task"), row.get("negatives")
    if id is not None and (isinstance(id, bool) or not isinstance(id, str | int)):
        raise BadRow(f"{id!r} is not an id")
    if not isinstance(task, str | None):
        raise BadRow(f"task must be a text, not {type(task).__name__}")
    if not isinstance(negatives, list | None):
        raise BadRow(f"negatives must be a list, not {type(negatives).__name__}")
    items = [_item(row["query"], "query", roots), _item(row["positive"], "positive", roots)]
    items += [_item(value, "a negative", roots) for value in negatives or ()]
    return "" if id is None else str(id), task or "", items


def modalities(item: dict) -> str:
    """The modalities of an item that `parse_row` gave, as in the names of sources: `TV`."""
    return "".join(letter for key, letter in _LETTERS.items() if key in item)


def as_pair_item(fields: dict, folder: str, place: str) -> Item:
    """What is embedded, with the true path of its file, which need not exist: that is for the
    quarantine.

    Raises:
      UserError: a path that leaves `folder` by a link; it begins with `place`.
    """
    media = {
        key: str(inside(folder, fields[key], f"{place}: {key}"))
        for key in ("image", "video")
        if isinstance(fields.get(key), str)
    }
    return as_item(fields | media)


def _count_keys(row: dict) -> int:
    """Keys of a pair, its items and their media."""
    negatives = row.get("negatives")
    items = [row.get("query"), row.get("positive")]
    items += negatives if type(negatives) is list else ()
    count = len(row)
    for item in items:
        if type(item) is dict:
            count += len(item)
            count += sum(len(value) for value in item.values() if type(value) is dict)
    return count


def _check_twice(line: bytes) -> None:
    """Raises BadRow for a key given twice: programs differ in which value they take. This takes as
    long as reading the row, so keys are counted before."""
    try:
        parse_json(line.decode())
    except ValueError as error:
        raise BadRow(str(error)) from error


def _check_keys(given: dict, known: frozenset, what: str) -> None:
    # A key without a value says nothing: tables have a column for what any of their rows has.
    unknown = sorted(key for key in given if key not in known and given[key] is not None)
    if unknown:
        raise BadRow(f"unknown key {unknown[0]!r} in {what}")


def _check_unicode(row: dict) -> None:
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise BadRow("half a surrogate pair, such as \\ud800, is no text") from error


def _item(value: object, side: str, roots: tuple[str, ...] | None) -> dict:
    if type(value) is str:
        value = {"text": value}
    if type(value) is not dict:
        raise BadRow(f"{side} must be a text or a mapping, not {type(value).__name__}")
    if not value.keys() <= _ITEM:
        _check_keys(value, _ITEM, side)
    item = {}
    for key, given in value.items():
        if given is None or given == "":
            continue
        if key == "image" or key == "video":
            given = _medium(given, f"{side}: {key}", roots)
        elif type(given) is not str:
            raise BadRow(f"{side}: {key} must be a text, not {type(given).__name__}")
        elif is_blank(given):
            continue
        item[key] = given
    if not item or (len(item) == 1 and "instruction" in item):
        raise BadRow(f"{side} has nothing to embed: give text, image or video")
    return item


def _medium(value: object, what: str, roots: tuple[str, ...] | None) -> str | bytes:
    if type(value) is dict and value and value.keys() <= _MEDIUM:
        data = value.get("bytes")
        if type(data) is str:
            return _decode(data, what)
        value = value.get("path") if data is None else data
    if type(value) is not str:
        raise BadRow(f"{what} must be a path or base64, not {type(value).__name__}")
    if ":" in value:
        if match := _DATA.match(value):
            return _decode(value[match.end() :], what)
        if _URL.match(value):
            raise BadRow(
                f"{what} {value!r} is a URL: mount its bucket or download it, and name the file"
            )
    if not value or "\0" in value:
        raise BadRow(f"{what} {value!r} is not a path")
    if roots is None:
        raise BadRow(
            f"{what} {value!r}: files beside rows in a bucket are not read; mount the "
            "bucket, or import the pairs with their media"
        )
    if value[0] == "/" or ".." in value:
        path = os.path.normpath(os.path.join(roots[0], value))
        if not path.startswith(roots):
            raise BadRow(f"{what} {value!r} leaves the folder {roots[0]}")
    return value


def _decode(text: str, what: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRow(f"{what} is not base64: {error}") from error
    if not data:
        raise BadRow(f"{what} is empty")
    return data
