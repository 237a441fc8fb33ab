"""Validation of rows of training pairs, shared by the trainer and the importers.

`parse_line` reads a line of JSONL, and `check_pair` checks a row in the format `pair` of
docs/pairs.md. Both are fast enough for millions of rows and open no file; `as_pair_item` then
resolves the paths.
"""

import base64
import binascii
import json
import os
import re
from collections.abc import Iterator
from typing import BinaryIO

from gve_jax.media.dataset_paths import inside
from gve_jax.media.item import Item, as_item
from gve_jax.storage.files import LONGEST_LINE, parse_json

MAX_NEGATIVES = 3  # negatives per pair in a training step
MODALITY_PAIR = re.compile(r"(?:T|I|V|TI|TV|IV|TIV)2(?:T|I|V|TI|TV|IV|TIV)")
ANYWHERE = ("/",)  # allows any path, if it will be checked when links are followed
_PAIR = frozenset(("id", "task", "query", "positive", "negatives"))
_ITEM = frozenset(("text", "instruction", "image", "video"))
_MEDIA = frozenset(("image", "video"))
_MEDIUM = frozenset(("bytes", "path"))
_ABSENT = (None, "", b"")
_LETTERS = {"text": "T", "image": "I", "video": "V"}
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_DATA = re.compile(r"data:[\w/+.-]*;base64,")
_SURROGATE = re.compile(rb"\\u[dD]")
_decode_json = json.JSONDecoder().decode


class Reject(Exception):
    """A row is not a training pair.

    Attributes:
      reason: the kind of error, for counting.
      detail: the error; the text of the exception.
    """

    def __init__(self, reason: str, detail: object = ""):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, str(detail)

    def __str__(self) -> str:
        return self.detail or self.reason


def is_blank(text: str) -> bool:
    """Whether a text counts as absent: it is empty or only white space, in every format."""
    return not text or text.isspace()


def read_lines(file: BinaryIO) -> Iterator[bytes]:
    """Yields the lines of a file; only the beginning of a line too long for `parse_line`."""
    while line := file.readline(LONGEST_LINE):
        yield line
        while len(line) == LONGEST_LINE and not line.endswith(b"\n"):
            line = file.readline(LONGEST_LINE)


def parse_line(line: bytes) -> dict:
    """Parses a line of `read_lines` as a JSON object.

    Raises:
      Reject: the line is too long, is not a JSON object in UTF-8, or has a duplicate key.
    """
    if len(line) >= LONGEST_LINE:
        raise Reject("line too long", f"the line is longer than {LONGEST_LINE} bytes")
    try:
        row = _decode_json(line.decode())
        if type(row) is not dict:
            raise Reject("not an object", f"expected a JSON object, got {type(row).__name__}")
        # Programs differ in which value of a duplicate key they use. A search for duplicates takes
        # as long as parsing, so keys are counted first: the counts differ for a duplicate key, and
        # for a text that looks like a key.
        if line.count(b'":') != _count_keys(row) or b" :" in line or b"\t:" in line:
            row = parse_json(line.decode())
        if b"\\u" in line and _SURROGATE.search(line):  # rare; checking every text is slow
            json.dumps(row, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise Reject("not UTF-8", f"not UTF-8: {error.reason}") from error
    except UnicodeEncodeError as error:
        raise Reject("not UTF-8", "unpaired surrogate, such as \\ud800, in a string") from error
    except (ValueError, RecursionError) as error:
        raise Reject("not JSON", f"not valid JSON: {error}") from error
    return row


def _count_keys(value: dict | list) -> int:
    if type(value) is dict:
        count, value = len(value), value.values()
    else:
        count = 0
    for entry in value:
        kind = type(entry)
        if kind is dict or kind is list:
            count += _count_keys(entry)
    return count


def check_pair(
    row: dict, roots: tuple[str, ...] | None = ANYWHERE, media: frozenset[str] = _MEDIA
) -> tuple[str, str, list[dict[str, str | bytes]]]:
    """Checks a pair and returns (id, task, items): query, positive, negatives.

    Items are mappings with some of `text, instruction, image, video`; media are unresolved paths or
    bytes. An absent id or task is "".

    Args:
      roots: the folder from which paths start and which they must not leave, and its other names,
        each with a trailing `/`; links are followed later. None: rows must not name files.
      media: the keys of an item that hold media.

    Raises:
      Reject: an error that can be detected without opening a file.
    """
    if not row.keys() <= _PAIR:
        _check_keys(row, _PAIR, "a pair")
    for side in ("query", "positive"):
        if side not in row:
            raise Reject("missing field", f"no {side!r}")
    id, task, negatives = row.get("id"), row.get("task"), row.get("negatives")
    if id is not None and (isinstance(id, bool) or not isinstance(id, str | int)):
        raise Reject("wrong type", f"{id!r} is not an id")
    if not isinstance(task, str | None):
        raise Reject("wrong type", f"task must be a text, not {type(task).__name__}")
    if not isinstance(negatives, list | None):
        raise Reject("wrong type", f"negatives must be a list, not {type(negatives).__name__}")
    items = [_item(row[side], side, roots, media) for side in ("query", "positive")]
    items += [_item(value, "a negative", roots, media) for value in negatives or ()]
    return "" if id is None else str(id), task or "", items


def modalities(item: dict) -> str:
    """The modalities of an item, as in the names of sources: `TV`."""
    return "".join(letter for key, letter in _LETTERS.items() if item.get(key))


def as_pair_item(fields: dict, folder: str, location: str) -> Item:
    """Makes an Item with resolved paths; a missing file is left for the quarantine to record.

    Raises:
      UserError: a link leads out of `folder`; the message begins with `location`.
    """
    media = {
        key: str(inside(folder, fields[key], f"{location}: {key}"))
        for key in ("image", "video")
        if isinstance(fields.get(key), str)
    }
    return as_item(fields | media)


def _check_keys(fields: dict, known: frozenset, what: str) -> None:
    # Tables have a column for each key of any row, so a key without a value is ignored.
    unknown = sorted(key for key in fields if key not in known and fields[key] is not None)
    if unknown:
        raise Reject("unknown key", f"unknown key {unknown[0]!r} in {what}")


def _item(value: object, side: str, roots: tuple[str, ...] | None, media: frozenset[str]) -> dict:
    if type(value) is str:
        if value and not value.isspace():
            return {"text": value}
        value = {}
    if type(value) is not dict:
        kind = type(value).__name__
        raise Reject("wrong type", f"{side} must be a text or a mapping, not {kind}")
    if not value.keys() <= _ITEM:
        _check_keys(value, _ITEM | media, side)
    item = {}
    for key, content in value.items():
        if not content and content in _ABSENT:
            continue
        if key in media:
            content = parse_medium(content, f"{side}: {key}", roots)
        elif type(content) is not str:
            kind = type(content).__name__
            raise Reject("wrong type", f"{side}: {key} must be a text, not {kind}")
        elif is_blank(content):
            continue
        item[key] = content
    if not item or (len(item) == 1 and "instruction" in item):
        raise Reject("an empty item", f"{side} has nothing to embed: give text, image or video")
    return item


def parse_medium(value: object, what: str, roots: tuple[str, ...] | None = ANYWHERE) -> str | bytes:
    """Returns the bytes of a medium, or its unresolved path.

    Args:
      value: a path, absolute or relative to the folder; a `data:` URI in base64; bytes; or the
        `{"bytes", "path"}` of Hugging Face `datasets`, where bytes (in JSON: base64) take
        precedence over the path.
      what: names the medium in messages.
      roots: as in `check_pair`.

    Raises:
      Reject: another type, a URL, invalid base64, a path that leaves the folder.
    """
    if type(value) is dict and value and value.keys() <= _MEDIUM:
        data = value.get("bytes")
        if type(data) is str:
            return _decode(data, what)
        value = value.get("path") if data is None else data
    if type(value) is bytes:
        return value
    if type(value) is not str:
        raise Reject("wrong type", f"{what} must be a path or base64, not {type(value).__name__}")
    if ":" in value:
        if match := _DATA.match(value):
            return _decode(value[match.end() :], what)
        if _URL.match(value):
            raise Reject(
                "a URL",
                f"{what} {value!r} is a URL: download or mount it, and name the local file",
            )
    if not value or "\0" in value:
        raise Reject("no such media file", f"{what} {value!r} is not a path")
    if roots is None:
        raise Reject(
            "no such media file",
            f"{what} {value!r}: rows on GCS cannot name media files; mount the bucket, or import "
            "the pairs with their media",
        )
    if value[0] == "/" or ".." in value:
        path = os.path.normpath(os.path.join(roots[0], value))
        if not path.startswith(roots):
            detail = f"{what} {value!r} leaves the folder {roots[0]}"
            raise Reject("path outside the media root", detail)
    return value


def _decode(text: str, what: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Reject("bad base64", f"{what} is not base64: {error}") from error
    if not data:
        raise Reject("bad base64", f"{what} is empty")
    return data
