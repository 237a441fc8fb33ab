"""Rows of JSONL and Parquet files, one at a time; a bad one does not end the file."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet

from gve_jax.errors import UserError
from gve_jax.media.walk import walk
from gve_jax.storage.files import LONGEST_LINE, check_encoding, check_lfs_pointer, parse_json

ENDINGS = (".jsonl", ".parquet")
_BATCH = 32  # rows of Parquet in memory at once: they may hold videos


class Reject(Exception):
    """A row, or a pair of it, that cannot be a training pair.

    `reason` is one of few phrases, for counting; `detail` says what exactly.
    """

    def __init__(self, reason: str, detail: object = ""):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, str(detail)


def input_files(
    path: str | os.PathLike, tell: Callable[[str], object] = lambda line: None
) -> list[Path]:
    """The files of an input: itself, or those of a folder (of any depth), by name.

    Args:
      tell: gets a line about what the walk through a folder has passed over.

    Raises:
      UserError: no such file or folder, or none in it that is read here; a link that leaves it.
    """
    path = Path(path)
    if path.is_dir():
        listing = walk(path, lambda name: Path(name).suffix in ENDINGS)
        if passed_over := listing.passed_over():
            tell(f"{path}: {passed_over}")
        if not listing.files:
            raise UserError(f"{path}: holds no {' or '.join(ENDINGS)} file")
        return [path / file.name for file in listing.files]
    if not path.is_file():
        raise UserError(f"{path}: no such file or folder")
    if path.suffix not in ENDINGS:
        raise UserError(f"{path}: not a {' or '.join(ENDINGS)} file")
    return [path]


def read_rows(
    path: Path, tick: Callable[[int], object] = lambda read: None
) -> Iterator[tuple[str, dict | Reject]]:
    """Each row with its place, `file:number` from 1; what cannot be read as one is a `Reject`.

    Args:
      path: .jsonl (UTF-8, an object a line; empty lines do not count) or .parquet.
      tick: called with the bytes of the file that were read since the last call.

    Raises:
      UserError: a Parquet file that cannot be read: its rows have no borders to go on from; a Git
        LFS pointer, a byte order mark.
    """
    with open(path, "rb") as file:
        head = file.read(64)
    check_lfs_pointer(head, path)
    if path.suffix != ".parquet":
        check_encoding(f"{path}:1", head)
    return _parquet(path, tick) if path.suffix == ".parquet" else _lines(path, tick)


def _lines(path: Path, tick) -> Iterator[tuple[str, dict | Reject]]:
    with open(path, "rb") as file:
        number = 0
        while line := file.readline(LONGEST_LINE):
            number += 1
            tick(len(line))
            if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
                while (rest := file.readline(LONGEST_LINE)) and not rest.endswith(b"\n"):
                    tick(len(rest))
                yield f"{path}:{number}", Reject("line too long", f"above {LONGEST_LINE} bytes")
            elif line.strip():
                yield f"{path}:{number}", _parse(line)


def _parse(line: bytes) -> dict | Reject:
    try:
        row = parse_json(line.decode())
    except UnicodeDecodeError as error:
        return Reject("not UTF-8", error)
    except (ValueError, RecursionError) as error:
        return Reject("not JSON", error)
    return row if isinstance(row, dict) else Reject("not an object", type(row).__name__)


def _parquet(path: Path, tick) -> Iterator[tuple[str, dict]]:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            size, total, number = path.stat().st_size, max(1, file.metadata.num_rows), 0
            for batch in file.iter_batches(batch_size=_BATCH):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}:{number}", row
                tick(size * batch.num_rows // total)
    except pyarrow.ArrowException as error:
        told = str(error).splitlines()[0]
        raise UserError(f"{path}: not a readable Parquet file ({told})") from error
