"""Reads rows of JSONL and Parquet files; a malformed row does not end its file."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet

from gve_jax.errors import UserError
from gve_jax.media.walk import walk
from gve_jax.storage.files import check_encoding, check_lfs_pointer
from gve_jax.streams.rows import Reject, parse_line, read_lines

SUFFIXES = (".jsonl", ".parquet")
_BATCH = 32  # rows of Parquet in memory at once; they may hold videos


def input_files(
    path: str | os.PathLike, log: Callable[[str], object] = lambda line: None
) -> list[Path]:
    """The files of an input: the file itself, or those of a folder, of any depth, by name.

    Args:
      log: gets a line about what the walk through a folder passed over.

    Raises:
      UserError: no such file or folder, no .jsonl or .parquet file in it; a link that leaves it.
    """
    path = Path(path)
    if path.is_dir():
        listing = walk(path, lambda name: Path(name).suffix in SUFFIXES)
        if passed_over := listing.passed_over():
            log(f"{path}: {passed_over}")
        if not listing.files:
            raise UserError(f"{path}: holds no {' or '.join(SUFFIXES)} file")
        return [path / file.name for file in listing.files]
    if not path.is_file():
        raise UserError(f"{path}: no such file or folder")
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: not a {' or '.join(SUFFIXES)} file")
    return [path]


def read_rows(
    path: Path, tick: Callable[[int], object] = lambda read: None
) -> Iterator[tuple[str, dict | Reject]]:
    """Each row with its location, `file:number` from 1; a `Reject` instead of a malformed row.

    Args:
      path: .jsonl (UTF-8, an object per line; empty lines do not count) or .parquet.
      tick: called with the bytes of the file that were read since the last call.

    Raises:
      UserError: an unreadable Parquet file, since its rows have no borders; a Git LFS pointer; a
        byte order mark.
    """
    with open(path, "rb") as file:
        head = file.read(64)
    check_lfs_pointer(head, path)
    if path.suffix == ".parquet":
        return _parquet(path, tick)
    check_encoding(f"{path}:1", head)
    return _jsonl(path, tick)


def _jsonl(path: Path, tick) -> Iterator[tuple[str, dict | Reject]]:
    with open(path, "rb") as file:
        for number, line in enumerate(read_lines(file), start=1):
            tick(len(line))
            if line.isspace():
                continue
            try:
                yield f"{path}:{number}", parse_line(line)
            except Reject as reject:
                yield f"{path}:{number}", reject


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
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: not a readable Parquet file ({reason})") from error
