"""Detects truncated files by the length in their header.

FFmpeg reads a truncated file as if it were complete. Fragmented MP4, MPEG-TS, MPEG program streams
and live recordings state no length.
"""

import os
import struct

from gve_jax.media.errors import MediaError

_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_HEAD, _TAIL = 1 << 16, 1 << 20  # bytes; a page of Ogg has at most 65,307


def check_length(file, name: str) -> None:
    """Raises MediaError for a file that is shorter than its header states. `file` is at its start,
    before and after."""
    head, size = file.read(4096), file.seek(0, os.SEEK_END)
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        _compare(size, _matroska(head), name)
    elif head.startswith(_ASF):
        _compare(size, _asf(file), name)
    elif head.startswith(b"FLV"):
        _check_flv(file, size, name)
    elif head.startswith(b"OggS") and not _ogg_ends(_tail(file, size)):
        raise MediaError(
            f"{name}: truncated, its last page does not end the stream (for a live "
            "recording: ffmpeg -i INPUT -c copy OUTPUT.mkv)"
        )
    file.seek(0)


def _compare(size: int, stated: float, name: str) -> None:
    if size < stated:
        raise MediaError(
            f"{name}: truncated, {size} of {stated:.0f} bytes (if it plays to its end: "
            "ffmpeg -i INPUT -c copy OUTPUT.mkv)"
        )


def _check_flv(file, size: int, name: str) -> None:
    file.seek(0)
    head = file.read(_HEAD)
    stated, seconds = _flv(head, "filesize"), _flv(head, "duration")
    _compare(size, stated, name)
    if seconds and not stated:
        end = _flv_end(_tail(file, size))
        if end < 0.95 * seconds - 1:
            raise MediaError(
                f"{name}: truncated, {max(end, 0):.1f} of {seconds:.1f} s (if it "
                "plays to its end: ffmpeg -i INPUT -c copy OUTPUT.mkv)"
            )


def _tail(file, size: int) -> bytes:
    file.seek(max(0, size - _TAIL))
    return file.read(_TAIL)


def _matroska(head: bytes) -> int:
    at = head.find(b"\x18\x53\x80\x67") + 4
    if not 4 <= at < len(head) or head[at] == 0:
        return 0
    length = 9 - head[at].bit_length()  # of the following number, by leading zeros
    unknown = 2 ** (7 * length) - 1  # of a live recording
    segment = int.from_bytes(head[at : at + length]) & unknown
    return 0 if segment == unknown else at + length + segment


def asf_is_live(file) -> bool:
    """Whether an ASF is a recording without a stated length; moves the position of `file`."""
    return not (fields := _asf_fields(file)) or bool(int.from_bytes(fields[64:68], "little") & 1)


def _asf_fields(file) -> bytes:
    """Returns the fields of the file properties object from the file id on; b"" without it."""
    file.seek(0)
    head = file.read(_HEAD)
    at = head.find(_ASF_PROPERTIES)
    return head[at + 24 : at + 104] if at >= 0 else b""


def _asf(file) -> int:
    return 0 if asf_is_live(file) else int.from_bytes(_asf_fields(file)[16:24], "little")


def _flv(head: bytes, key: str) -> float:
    """Returns a number of the metadata of an FLV; 0 if it is missing."""
    word = key.encode()
    at = head.find(struct.pack(">H", len(word)) + word + b"\0") + len(word) + 3
    if at < len(word) + 3 or at + 8 > len(head):
        return 0
    number = struct.unpack(">d", head[at : at + 8])[0]
    return number if 0 < number < 2**53 else 0


def _flv_end(tail: bytes) -> float:
    """Begin of the last tag of an FLV in seconds; -1 if the tag is truncated."""
    length = int.from_bytes(tail[-4:])
    tag = tail[-4 - length : -4]
    if length < 11 or len(tag) != length or int.from_bytes(tag[1:4]) != length - 11:
        return -1.0
    return (int.from_bytes(tag[4:7]) | tag[7] << 24) / 1000


def _ogg_ends(tail: bytes) -> bool:
    at = tail.rfind(b"OggS")
    if at < 0 or at + 27 > len(tail):
        return False
    segments = tail[at + 26]
    length = 27 + segments + sum(tail[at + 27 : at + 27 + segments])
    return at + length <= len(tail) and bool(tail[at + 5] & 4)
