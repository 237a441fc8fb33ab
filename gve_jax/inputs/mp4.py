"""The one table of an MP4 file that FFmpeg's index of it lacks (ISO/IEC 14496-12, `ctts`)."""

import numpy as np

_LARGEST = 64 << 20  # bytes of a `moov` box; a frame takes some 20 of them


def composition_offsets(file, track: int, samples: int) -> np.ndarray | None:
    """int64 [samples], how much later than it is decoded each sample of a track is shown (up to one
    number for all), in units of the track; None where the file is not of the plain kind.

    `file` is left where it was.
    """
    place = file.tell()
    try:
        moov = _movie(file)
    finally:
        file.seek(place)
    if moov is None:
        return None
    for kind, trak in _boxes(moov):
        if kind == b"mvex":  # more of the track lies in fragments
            return None
        if kind == b"trak" and _track_id(trak) == track:
            table = _inside(trak, b"mdia", b"minf", b"stbl")
            return None if table is None else _offsets(table, samples)
    return None


def _movie(file) -> bytes | None:
    size, at = file.seek(0, 2), 0
    while at + 8 <= size:
        file.seek(at)
        head = file.read(16)
        length, kind = int.from_bytes(head[:4]), head[4:8]
        if length == 1:
            length = int.from_bytes(head[8:])
        if kind == b"moov" and 8 <= length <= min(_LARGEST, size - at):
            file.seek(at + 8)
            return file.read(length - 8)
        if length < 8:
            return None
        at += length
    return None


def _boxes(data: bytes):
    """(kind, content) of the boxes that follow each other in `data`."""
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


def _offsets(table: bytes, samples: int) -> np.ndarray | None:
    kinds = _inside(table, b"stsd")
    if kinds is None or int.from_bytes(kinds[4:8]) != 1:  # the decoder's parameters change midway
        return None
    sizes, content = _inside(table, b"stsz"), _inside(table, b"ctts")
    if sizes is None or int.from_bytes(sizes[8:12]) != samples:
        return None
    if content is None:
        return np.zeros(samples, np.int64)
    rows = int.from_bytes(content[4:8])
    if 8 + 8 * rows != len(content):
        return None
    counts, offsets = np.frombuffer(content, ">u4", offset=8).reshape(rows, 2).astype(np.int64).T
    if counts.sum() != samples:  # before it is used: a hostile count is no reason to allocate
        return None
    return np.repeat(offsets.astype(np.int32).astype(np.int64), counts)  # signed, as FFmpeg reads
