"""Reads rectangles of tensors from safetensors files, and writes such files as streams.

A file is the length of its header (8 bytes, little-endian), the header (JSON: dtype, shape and
`data_offsets` of each tensor), and the tensors' bytes without gaps. `safetensors.safe_open` also
reads slices, but maps the file: a file that is cut while it is read kills the process (SIGBUS),
pages count as memory of the process, and threads read one after another. Its writer needs all
tensors in memory.
"""

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from gve_jax.errors import UserError
from gve_jax.storage.files import atomic_write, check_lfs_pointer, parse_json

DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_MAX_HEADER = 100_000_000  # bytes; the format's own limit
_BLOCK = 1 << 20  # bytes read at a time: a block is transposed within a core's cache
# Other formats that are saved under this name, by their first bytes.
_OTHERS = {
    b"PK\x03\x04": "a pickle of PyTorch, which is not supported",
    b"\x80\x02": "a pickle, which is not supported",
    b"GGUF": "a GGUF file, which is not supported",
    b"<": "a web page",
    b"{": "a JSON file",
}
_PIECE = 1 << 24  # bytes written at a time: the client of GCS copies them


class Part(NamedTuple):
    """A rectangle of a tensor as a matrix, and its destination `out` [rows, columns]."""

    rows: tuple[int, int]
    columns: tuple[int, int]
    out: np.ndarray


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: `dtype` is the format's name, `start` the offset in bytes."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int

    def read(self, parts: Iterable[Part]) -> None:
        """Fills all `parts`; each byte of their bounding rectangle is read once.

        The tensor is read as a matrix [first axis, all others]. Numbers are converted to the dtype
        of each `out`, which may be a transposed view.

        Raises:
          UserError: the file ends early.
        """
        parts = list(parts)
        dtype, width = DTYPES[self.dtype], math.prod(self.shape[1:])
        first, last = min(p.rows[0] for p in parts), max(p.rows[1] for p in parts)
        left, right = min(p.columns[0] for p in parts), max(p.columns[1] for p in parts)
        step = max(1, _BLOCK // max(1, (right - left) * dtype.itemsize))
        full_rows = right - left == width
        with open(self.path, "rb", buffering=0) as file:
            for row in range(first, last, step):
                count = min(step, last - row)
                block = np.empty((count, right - left), dtype)
                pieces = block.reshape(1, -1) if full_rows else block
                for number, piece in enumerate(pieces, row):
                    self._fill(file, piece, (number * width + left) * dtype.itemsize)
                for part in parts:
                    a, b = max(row, part.rows[0]), min(row + count, part.rows[1])
                    if a < b:
                        columns = slice(part.columns[0] - left, part.columns[1] - left)
                        _assign(
                            part.out[a - part.rows[0] : b - part.rows[0]],
                            block[a - row : b - row, columns],
                        )

    def _fill(self, file, array: np.ndarray, offset: int) -> None:
        buffer, done = memoryview(array.reshape(-1).view(np.uint8)), 0
        while done < len(buffer):
            count = os.preadv(file.fileno(), [buffer[done:]], self.start + offset + done)
            if not count:
                raise UserError(f"{self.path}: the file ends inside {self.name}")
            done += count


def _assign(out: np.ndarray, block: np.ndarray) -> None:
    if out.dtype == block.dtype:  # as integers: numpy copies ml_dtypes one number at a time
        integer = f"u{out.dtype.itemsize}"
        out, block = out.view(integer), block.view(integer)
    out[...] = block


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a file, by name.

    Raises:
      UserError: no such file, another format, a truncated file or one with bytes of no tensor.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            start = file.read(64)
            length = int.from_bytes(start[:8], "little")
            if size < 8 or not 2 <= length <= _MAX_HEADER:
                raise UserError(
                    f"{path}: {_other_format(start, path) or 'not a safetensors file, or damaged'}"
                )
            if size < 8 + length:
                cut = f"truncated, {size} bytes with a header of {length}"
                raise UserError(f"{path}: {_other_format(start, path) or cut}")
            file.seek(8)
            header = parse_json(file.read(length))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged header ({error})") from error
    try:
        header.pop("__metadata__", None)
        tensors, at = {}, 0
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            start, end = entry["data_offsets"]
            shape, dtype = tuple(entry["shape"]), entry["dtype"]
            if not all(type(number) is int for number in (start, end, *shape)):
                raise UserError(f"{path}: the sizes of {name} are not integers")
            if start != at or end < start or not all(n >= 0 for n in shape):
                raise UserError(
                    f"{path}: the header has {name} at bytes {start}..{end}; expected start {at}"
                )
            known = DTYPES.get(dtype)
            if known and end - start != math.prod(shape) * known.itemsize:
                raise UserError(f"{path}: {name} is {dtype} {list(shape)} in {end - start} bytes")
            tensors[name] = StoredTensor(path, name, dtype, shape, 8 + length + start)
            at = end
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: damaged header ({error!r})") from error
    if size != 8 + length + at:
        kind = "truncated" if size < 8 + length + at else "too long"
        raise UserError(f"{path}: {kind}, {size} bytes instead of {8 + length + at}")
    return tensors


def _other_format(start: bytes, path: Path) -> str:
    """Describes a file of another format by its first bytes; "" if unknown."""
    check_lfs_pointer(start, path)
    if not start:
        return "not a safetensors file: it is empty"
    for magic, kind in _OTHERS.items():
        if start.startswith(magic):
            return f"not a safetensors file but {kind}"
    return ""


def write_file(
    path: Path,
    shapes: Mapping[str, tuple[tuple[int, ...], np.dtype]],
    arrays: Iterator[np.ndarray],
) -> None:
    """Writes a file atomically, with one tensor in memory at a time.

    Args:
      path: local or gs://; an existing file is replaced.
      shapes: (shape, dtype) of each tensor by name, in the order of `arrays`.
      arrays: the tensors.
    """
    header, at = {"__metadata__": {"format": "pt"}}, 0  # transformers requires this entry
    for name, (shape, dtype) in shapes.items():
        end = at + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8, as the format asks

    def write(file: BinaryIO) -> None:
        file.write(len(text).to_bytes(8, "little") + text)
        for (name, (shape, dtype)), array in zip(shapes.items(), arrays, strict=True):
            if array.shape != tuple(shape) or array.dtype != dtype:
                raise ValueError(f"{name} is {array.dtype} {array.shape}, not {dtype} {shape}")
            data = memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
            for start in range(0, len(data), _PIECE):
                file.write(data[start : start + _PIECE])

    atomic_write(path, write)
