"""Atomic writes, JSON and JSONL with locations in errors, and comparison of manifests."""

import codecs
import errno
import json
import os
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from gve_jax.errors import UserError

LONGEST_LINE = 256 * 2**20  # bytes: a file without line ends must not fill the memory


def atomic_write(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Replaces `path` with the output of `write`, or leaves it as it was if the process ends.

    Raises:
      OSError: it names `path`, as for a full disk; the unfinished file is removed.
    """
    if os.fspath(path).startswith("gs://"):
        # Imported late: decoders import this module and do not need the client.
        from gve_jax.storage.filesystem import write_object

        write_object(path, write)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # With the process in its name: two commands may write the same file at once.
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        if error.errno is None:  # from numpy, with the number of bytes not written
            reason = f"{os.strerror(errno.ENOSPC)} ({error})"
            raise OSError(errno.ENOSPC, reason, str(path)) from error
        error.filename = error.filename or str(path)
        raise
    finally:
        part.unlink(missing_ok=True)


def write_array(path: Path, array: np.ndarray) -> None:
    """Writes an .npy file atomically and without pickle."""
    atomic_write(path, lambda file: np.save(file, array, allow_pickle=False))


def write_json(path: Path, value) -> None:
    """Writes JSON atomically; NaN and infinity, which JSON lacks, raise ValueError."""
    text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    atomic_write(path, lambda file: file.write(text.encode()))


LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def check_lfs_pointer(head: bytes, name: object) -> None:
    """Raises UserError if a file that begins with `head` (40 bytes suffice) is a Git LFS pointer,
    which a clone without Git LFS has instead of the file."""
    if head.startswith(LFS_POINTER):
        raise UserError(f"{name}: is a Git LFS pointer, not the file itself; run `git lfs pull`")


def read_json(path: Path, remedy: str = "") -> dict:
    """Reads a file that holds one JSON object; a byte order mark is skipped.

    Args:
      remedy: added to messages: "; delete it".

    Raises:
      UserError: names the file, which cannot be read, is a Git LFS pointer, is not UTF-8 or not a
        JSON object, or has a duplicate key (programs differ in which value they use).
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}){remedy}") from error
    check_lfs_pointer(data, path)
    try:
        fields = parse_json(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        reason = error if data.strip() else "empty"
        raise UserError(f"{path}: damaged ({reason}){remedy}") from error
    if not isinstance(fields, dict):
        raise UserError(f"{path}: damaged (not an object){remedy}")
    return fields


def parse_json(text: str | bytes) -> object:
    """`json.loads`, but a duplicate key in an object raises ValueError."""
    return json.loads(text, object_pairs_hook=_unique_keys)


def _unique_keys(pairs: list[tuple[str, object]]) -> dict:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"duplicate key {next(key for key in keys if keys.count(key) > 1)!r}")
    return fields


def read_records(path: Path) -> Iterator[tuple[str, dict]]:
    """Yields each object of a JSONL file with its location, `file:line`; skips empty lines.

    Raises:
      UserError: the file is missing, is a Git LFS pointer or is not UTF-8; a line, which the
        message names, is too long, is not a JSON object or has a duplicate key.
    """
    if not path.is_file():
        raise UserError(f"missing file: {path}")
    with open(path, "rb") as file:
        check_lfs_pointer(file.peek(64), path)
        for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE), b""), start=1):
            if not line.strip():
                continue
            location = f"{path}:{number}"
            if len(line) >= LONGEST_LINE:
                raise UserError(f"{location}: the line is longer than {LONGEST_LINE} bytes")
            check_encoding(location, line)
            try:
                record = parse_json(line.decode())
            except UnicodeDecodeError as error:
                raise UserError(f"{location}: not UTF-8: {error.reason}") from error
            except (ValueError, RecursionError) as error:
                raise UserError(f"{location}: not valid JSON: {error}") from error
            if rb"\ud" in line.lower() and not _is_encodable(record):
                raise UserError(f"{location}: unpaired surrogate, such as \\ud800, in a string")
            if not isinstance(record, dict):
                raise UserError(f"{location}: expected a JSON object, got {type(record).__name__}")
            yield location, record


def check_encoding(location: str, line: bytes) -> None:
    """Raises UserError, naming `location`, for a line that begins with a byte order mark."""
    if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(f"{location}: UTF-16 (byte order mark); save the file as UTF-8")
    if line.startswith(codecs.BOM_UTF8):
        raise UserError(f"{location}: begins with a byte order mark; save the file without it")


def _is_encodable(value: object) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def text_id(location: str, value: object) -> str:
    """Returns an id as text; raises UserError if `value` is not an id."""
    is_text = isinstance(value, str | int) and not isinstance(value, bool) and value != ""
    if not is_text or "\0" in str(value):  # numpy's strings drop trailing NUL characters
        raise UserError(f"{location}: {value!r} is not an id")
    return str(value)


def unique_id(location: str, record: dict, key: str, seen: Container[str]) -> str:
    """Returns the id under `key`; raises UserError if it is missing, not an id or in `seen`."""
    if key not in record:
        raise UserError(f"{location}: no {key!r}")
    value = text_id(location, record[key])
    if value in seen:
        raise UserError(f"{location}: {key} {value!r} occurs twice")
    return value


def differences(old: object, new: object, field: str = "") -> dict[str, tuple]:
    """Returns the fields that differ between two JSON values: {dotted name: (old, new)}."""
    if isinstance(old, dict) and isinstance(new, dict):
        changed = {}
        for key in sorted(old.keys() | new.keys()):
            name = f"{field}.{key}" if field else key
            changed |= differences(old.get(key), new.get(key), name)
        return changed
    return {} if old == new else {field or "fingerprint": (old, new)}


def check_record(location: object, old: object, new: object, remedy: str) -> None:
    """Raises UserError, naming the first field that differs, unless two manifests are equal.

    Args:
      location: the file or folder of the manifest.
      old: the stored manifest, plain JSON.
      new: the manifest of this command, plain JSON.
      remedy: what the user can do: `choose another --output`.
    """
    for field, (was, now) in differences(old, new).items():
        raise UserError(f"{location}: created with {field} = {was}, now {now}; {remedy}")


def check_or_write_manifest(path: Path, record: dict, remedy: str) -> None:
    """Writes the manifest of a new folder, or compares an existing one as `check_record`.

    Raises:
      UserError: a field differs, or the file is not JSON.
    """
    if not path.exists():
        write_json(path, record)
        return
    check_record(path, read_json(path, f"; {remedy}"), record, remedy)
