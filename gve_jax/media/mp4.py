"""Parses tables of MP4 files that FFmpeg does not expose (ISO/IEC 14496-12)."""

import dataclasses
from collections.abc import Iterator

import numpy as np

_LARGEST = 64 << 20  # maximum bytes of a `moov` or `moof` box; a frame takes about 20
# Flags of `tfhd` and `trun`, with the sizes of the fields that they announce.
_TFHD = {0x01: 8, 0x02: 4, 0x08: 4, 0x10: 4}
_TFHD_DURATION, _TFHD_SIZE = 0x08, 0x10
_TRUN = {0x01: 4, 0x04: 4}
_TRUN_FIELDS = (0x100, 0x200, 0x400, 0x800)  # duration, size, flags, offset of each sample


@dataclasses.dataclass(frozen=True)
class Samples:
    """The samples of a track in the order of the file.

    Attributes:
      sizes: int64 [N], in bytes.
      durations: int64 [N], in units of the track.
      offsets: int64 [N], time of showing minus time of decoding (up to a constant), in units of the
        track; None for fragments, and if the decoder's parameters change at an unknown sample.
      edits: the edit list; None without one.
    """

    sizes: np.ndarray
    durations: np.ndarray
    offsets: np.ndarray | None
    edits: "Edits | None"


@dataclasses.dataclass(frozen=True)
class Edits:
    """The presentation of a track by its edit list.

    Attributes:
      end, shown: seconds at which the presentation ends, and seconds that are not empty; None if it
        ends with the track.
      speeds: rates of the edits, usually 1.0 only.
      pauses: whether there are empty edits after the first one.
    """

    end: float | None
    shown: float | None
    speeds: tuple[float, ...]
    pauses: bool


def read_samples(file, track: int, limit: int) -> Samples | None:
    """Reads the samples of a track from its tables and, in a fragmented file, its fragments.

    Returns None if the tables are inconsistent or have more than `limit` samples. The position of
    `file` is restored.
    """
    offset = file.tell()
    try:
        return _read(file, track, limit)
    except (IndexError, ValueError):  # a table is shorter than it states
        return None
    finally:
        file.seek(offset)


def _read(file, track: int, limit: int) -> Samples | None:
    movie = next(_top_level(file, b"moov"), None)
    if movie is None:
        return None
    trak = next((t for kind, t in _boxes(movie) if kind == b"trak" and _track_id(t) == track), None)
    table = None if trak is None else _inside(trak, b"mdia", b"minf", b"stbl")
    if table is None:
        return None
    sizes = _sizes(table, limit)
    durations = None if sizes is None else _runs(table, b"stts", len(sizes))
    if durations is None:
        return None
    edits = _edits(movie, trak)
    extension = _inside(movie, b"mvex")
    if extension is None:
        offsets = _runs(table, b"ctts", len(sizes))
        # Signed in either version of the box, as FFmpeg reads it.
        if offsets is None:
            return None
        kinds = _inside(table, b"stsd")
        if kinds is None or int.from_bytes(kinds[4:8]) != 1:
            return Samples(sizes, durations, None, edits)
        return Samples(sizes, durations, offsets.astype(np.int32).astype(np.int64), edits)
    parts = [np.stack([durations, sizes])]
    defaults = _defaults(extension, track)
    for fragment in _top_level(file, b"moof"):
        for part in _fragment(fragment, track, defaults, limit - sum(p.shape[1] for p in parts)):
            parts.append(part)
    durations, sizes = np.concatenate(parts, axis=1)
    return Samples(sizes, durations, None, edits)


def _top_level(file, wanted: bytes) -> Iterator[bytes]:
    """Yields the contents of all boxes of one kind, without reading others."""
    size, at = file.seek(0, 2), 0
    while at + 8 <= size:
        file.seek(at)
        head = file.read(16)
        length, kind, start = int.from_bytes(head[:4]), head[4:8], 8
        if length == 1:
            length, start = int.from_bytes(head[8:]), 16
        if length < start:
            return
        if kind == wanted and length <= min(_LARGEST, size - at):
            file.seek(at + start)
            yield file.read(length - start)
        at += length


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yields (kind, content) of consecutive boxes in `data`."""
    at = 0
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4])
        if length < 8 or at + length > len(data):
            return
        yield data[at + 4 : at + 8], data[at + 8 : at + length]
        at += length


def _inside(data: bytes, *path: bytes) -> bytes | None:
    for name in path:
        data = next((content for kind, content in _boxes(data) if kind == name), None)
        if data is None:
            return None
    return data


def _track_id(trak: bytes) -> int:
    header = _inside(trak, b"tkhd") or b""
    at = 20 if header[:1] == b"\1" else 12
    return int.from_bytes(header[at : at + 4])


def _sizes(table: bytes, limit: int) -> np.ndarray | None:
    content = _inside(table, b"stsz")
    if content is None or len(content) < 12:
        return None
    size, count = np.frombuffer(content, ">u4", 2, 4).tolist()
    if count > limit:  # checked first, so that a hostile count does not allocate memory
        return None
    if size:
        return np.full(count, size, np.int64)
    return np.frombuffer(content, ">u4", count, 12).astype(np.int64)


def _runs(table: bytes, kind: bytes, samples: int) -> np.ndarray | None:
    """Returns a number for each sample from the (count, number) rows of `stts` or `ctts`; zeros if
    the box is missing, None if it is inconsistent."""
    content = _inside(table, kind)
    if content is None:
        return np.zeros(samples, np.int64)
    rows = int.from_bytes(content[4:8])
    if 8 + 8 * rows != len(content):
        return None
    counts, numbers = np.frombuffer(content, ">u4", offset=8).reshape(rows, 2).astype(np.int64).T
    if counts.sum() != samples:
        return None
    return np.repeat(numbers, counts)


def _edits(movie: bytes, trak: bytes) -> Edits | None:
    header, content = _inside(movie, b"mvhd"), _inside(trak, b"edts", b"elst")
    if content is None or header is None:
        return None
    long = content[:1] == b"\1"
    kind = np.dtype(
        [
            ("duration", ">u8" if long else ">u4"),
            ("start", ">i8" if long else ">i4"),
            ("rate", ">i4"),
        ]
    )
    rows = np.frombuffer(content, kind, int.from_bytes(content[4:8]), 8)
    at = 20 if header[:1] == b"\1" else 12
    units = int.from_bytes(header[at : at + 4])
    filled = rows["start"] >= 0
    lengths = rows["duration"].tolist()
    speeds = tuple(sorted({rate / 65536 for rate in rows["rate"][filled].tolist()}))
    pauses = bool(filled.any() and not filled[filled.argmax() :].all())
    # A duration of 0, or of all ones, is that of the rest of the track.
    if not units or not filled.any() or any(not 0 < length < 2**63 for length in lengths):
        return Edits(None, None, speeds, pauses)
    shown = sum(length for length, some in zip(lengths, filled.tolist(), strict=True) if some)
    return Edits(sum(lengths) / units, shown / units, speeds, pauses)


def _defaults(extension: bytes, track: int) -> tuple[int, int]:
    """Returns the default duration and size of the samples of a track (`trex`)."""
    for kind, content in _boxes(extension):
        if kind == b"trex" and int.from_bytes(content[4:8]) == track:
            return int.from_bytes(content[12:16]), int.from_bytes(content[16:20])
    return 0, 0


def _fragment(fragment: bytes, track: int, defaults: tuple[int, int], limit: int):
    """Yields int64 [2, n], durations and sizes of samples, for each run of a track in a `moof`."""
    for kind, part in _boxes(fragment):
        header = _inside(part, b"tfhd") if kind == b"traf" else None
        if header is None or int.from_bytes(header[4:8]) != track:
            continue
        flags, at, found = int.from_bytes(header[1:4]), 8, list(defaults)
        for flag, length in _TFHD.items():
            if flags & flag:
                if flag in (_TFHD_DURATION, _TFHD_SIZE):
                    found[flag == _TFHD_SIZE] = int.from_bytes(header[at : at + length])
                at += length
        for inner, run in _boxes(part):
            if inner == b"trun":
                columns = _run(run, found, limit)
                limit -= columns.shape[1]
                yield columns


def _run(run: bytes, defaults: list[int], limit: int) -> np.ndarray:
    flags, count = int.from_bytes(run[1:4]), int.from_bytes(run[4:8])
    if count > limit:
        raise ValueError("more samples than the limit")
    start = 8 + sum(length for flag, length in _TRUN.items() if flags & flag)
    fields = [flag for flag in _TRUN_FIELDS if flags & flag]
    rows = np.frombuffer(run, ">u4", count * len(fields), start).reshape(count, len(fields))
    columns = [
        rows[:, fields.index(flag)] if flag in fields else np.full(count, default)
        for flag, default in zip(_TRUN_FIELDS[:2], defaults, strict=True)
    ]
    return np.stack(columns).astype(np.int64)
