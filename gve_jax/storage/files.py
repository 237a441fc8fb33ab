"""Files that are whole or absent, lines of JSON, records and what two of them differ in."""

import codecs
import errno
import json
import os
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from gve_jax.errors import UserError

LONGEST_LINE = 256 * 2**20  # bytes: a file without line ends must not be read whole


def atomic_write(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """`path` holds what it held before or all that `write` writes, whenever the process ends.

    A full disk is an OSError that names `path`; what was written until then is removed."""
    if os.fspath(path).startswith("gs://"):
        # Not above: decoders import this file, and need none of it.
        from gve_jax.storage.filesystem import write_object

        write_object(path, write)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # By process: two commands may write the same file at once.
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        if error.errno is None:  # numpy says only how many bytes it could not write
            raise OSError(errno.ENOSPC, str(error), str(path)) from error
        error.filename = error.filename or str(path)
        raise
    finally:
        part.unlink(missing_ok=True)


def write_array(path: Path, array: np.ndarray) -> None:
    """An .npy file, whole or not at all; never with a pickle in it."""
    atomic_write(path, lambda file: np.save(file, array, allow_pickle=False))


def write_json(path: Path, value) -> None:
    """JSON, whole or not at all; NaN and infinity, which it has not, raise ValueError."""
    text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    atomic_write(path, lambda file: file.write(text.encode()))


LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def check_lfs_pointer(head: bytes, name: object) -> None:
    """Raises UserError if a file that begins with `head` (40 bytes suffice) is a Git LFS pointer,
    as a clone without Git LFS leaves it in the file's place."""
    if head.startswith(LFS_POINTER):
        raise UserError(f"{name}: is a Git LFS pointer, not the file itself; run `git lfs pull`")


def read_json(path: Path) -> dict:
    """The JSON object in a file; a byte order mark before it is skipped.

    Raises:
      UserError: naming the file, when it cannot be read, is a Git LFS pointer, is not UTF-8 or not
        a JSON object, or gives a key twice (programs differ in which of the two they take).
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    check_lfs_pointer(data, path)
    try:
        fields = parse_json(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({error if data.strip() else 'empty'})") from error
    if not isinstance(fields, dict):
        raise UserError(f"{path}: damaged (not an object)")
    return fields


def parse_json(text: str | bytes) -> object:
    """`json.loads`, but a key given twice in one object is a ValueError."""
    return json.loads(text, object_pairs_hook=_unique_keys)


def _unique_keys(pairs: list[tuple[str, object]]) -> dict:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)!r} is given twice")
    return found


def read_records(path: Path) -> Iterator[tuple[str, dict]]:
    """Each object of a JSONL file with its place, `file:line`; empty lines are skipped.

    Raises:
      UserError: no such file, a Git LFS pointer, not UTF-8, a line that is too long, is no JSON
        object or gives a key twice; it names the line.
    """
    if not path.is_file():
        raise UserError(f"missing file: {path}")
    with open(path, "rb") as file:
        check_lfs_pointer(file.peek(64), path)
        for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE), b""), start=1):
            if not line.strip():
                continue
            place = f"{path}:{number}"
            if len(line) >= LONGEST_LINE:
                raise UserError(f"{place}: a line of more than {LONGEST_LINE} bytes")
            check_encoding(place, line)
            try:
                record = parse_json(line.decode())
            except UnicodeDecodeError as error:
                raise UserError(f"{place}: not UTF-8: {error.reason}") from error
            except (ValueError, RecursionError) as error:
                raise UserError(f"{place}: not valid JSON: {error}") from error
            if rb"\ud" in line.lower() and not _encodes(record):
                raise UserError(f"{place}: half a surrogate pair, such as \\ud800, is no text")
            if not isinstance(record, dict):
                raise UserError(f"{place}: expected a JSON object, got {type(record).__name__}")
            yield place, record


def check_encoding(place: str, line: bytes) -> None:
    """UserError, naming the place, for a line that begins with a byte order mark."""
    if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(f"{place}: UTF-16 (byte order mark); save the file as UTF-8")
    if line.startswith(codecs.BOM_UTF8):
        raise UserError(f"{place}: begins with a byte order mark (BOM); save the file without it")


def _encodes(value: object) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def text_id(place: str, value: object) -> str:
    """An id as text; UserError with its place if it is none."""
    if (
        isinstance(value, bool)
        or not isinstance(value, str | int)
        or value == ""
        or (
            "\0" in str(value)  # which numpy's strings lose at their end
        )
    ):
        raise UserError(f"{place}: {value!r} is not an id")
    return str(value)


def unique_id(place: str, record: dict, key: str, seen: Container[str]) -> str:
    """The id under `key`, which none of `seen` may be; UserError with its place."""
    if key not in record:
        raise UserError(f"{place}: no {key!r}")
    value = text_id(place, record[key])
    if value in seen:
        raise UserError(f"{place}: {key} {value!r} occurs twice")
    return value


def differences(old: object, new: object, field: str = "") -> dict[str, tuple]:
    """Fields by dotted name that differ between two JSON values, with both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = {}
        for key in sorted(old.keys() | new.keys()):
            name = f"{field}.{key}" if field else key
            found |= differences(old.get(key), new.get(key), name)
        return found
    return {} if old == new else {field or "fingerprint": (old, new)}


def check_record(place: object, old: object, new: object, remedy: str) -> None:
    """UserError, naming the first field that differs, unless what a record says is what is asked.

    Args:
      place: the file or folder that holds the record.
      old, new: plain JSON.
      remedy: what may be done, `choose another --output`.
    """
    for field, (was, now) in differences(old, new).items():
        raise UserError(f"{place}: made with {field} = {was}, now {now}; {remedy}")


def check_or_write_manifest(path: Path, record: dict, remedy: str) -> None:
    """Writes the record of a new folder; see `check_record` where there is one.

    Raises:
      UserError: also a file that is no JSON.
    """
    if not path.exists():
        write_json(path, record)
        return
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON: {error}; {remedy}") from error
    check_record(path, old, record, remedy)
