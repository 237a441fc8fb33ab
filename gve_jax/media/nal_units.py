"""Parsers of NAL units, the units of H.264 and HEVC streams."""

from collections.abc import Iterator

_HEVC_SEI = (39, 40)  # nal_unit_type


def open_header(header: bytes, codec: str) -> tuple[int, list[bytes]]:
    """Parses the extradata of a decoder: an avcC or hvcC box, or plain units.

    Returns the size of the length field before each unit of a packet (0 for start codes), and the
    units of the header.
    """
    if header[:1] != b"\1":
        return 0, list(split(header, 0))
    offset, units = (21, _hvcc_units) if codec == "hevc" else (4, _avcc_units)
    return (header[offset] & 3) + 1 if len(header) > offset else 4, list(units(header))


def split(data: bytes, length: int) -> Iterator[bytes]:
    """Yields the units of a packet; the last one may be truncated."""
    at = 0
    if length and not data.startswith(b"\0\0\0\1"):
        while at + length < len(data):
            size = int.from_bytes(data[at : at + length])
            at += length
            if size:
                yield data[at : at + size]
            at += size
        return
    at = data.find(b"\0\0\1")
    while at >= 0:
        following = data.find(b"\0\0\1", at + 3)
        unit = data[at + 3 : following if following >= 0 else len(data)]
        if following >= 0:
            unit = unit.rstrip(b"\0")
        if unit:
            yield unit
        at = following


def without_sei(data: bytes, length: int) -> bytes:
    """Removes supplemental enhancement information (SEI) from a packet of HEVC."""
    units = list(split(data, length))
    kept = [unit for unit in units if unit[0] >> 1 & 63 not in _HEVC_SEI]
    if len(kept) == len(units):
        return data
    codes = length and not data.startswith(b"\0\0\0\1")
    return b"".join((len(unit).to_bytes(length) if codes else b"\0\0\0\1") + unit for unit in kept)


def header_without_sei(header: bytes) -> bytes:
    """Removes supplemental enhancement information (SEI) from an hvcC box."""
    if header[:1] != b"\1" or len(header) < 23:
        return without_sei(header, 0)
    kept = [(kind, units) for kind, units in _arrays(header) if kind & 63 not in _HEVC_SEI]
    parts = [header[:22], bytes([len(kept)])]
    for kind, units in kept:
        parts += [bytes([kind]), len(units).to_bytes(2)]
        parts += [len(unit).to_bytes(2) + unit for unit in units]
    return b"".join(parts)


def unescape(data: bytes) -> bytes:
    """Returns the payload of a unit, without emulation prevention bytes."""
    return data.replace(b"\0\0\3", b"\0\0")


class Bits:
    """Reads the bits of a header in order; raises IndexError after the last."""

    def __init__(self, data: bytes):
        self._value, self._left = int.from_bytes(data), 8 * len(data)

    def take(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise IndexError("the header ends")
        return self._value >> self._left & (1 << count) - 1

    def golomb(self) -> int:
        """Reads an unsigned Exp-Golomb code."""
        zeros = 0
        while not self.take(1):
            zeros += 1
        return (1 << zeros) - 1 + self.take(zeros)

    @property
    def left(self) -> int:
        return self._left


def _avcc_units(header: bytes) -> Iterator[bytes]:
    at = 5
    for mask in (31, 255):
        count = header[at] & mask if at < len(header) else 0
        at += 1
        for _ in range(count):
            size = int.from_bytes(header[at : at + 2])
            if size and at + 2 < len(header):
                yield header[at + 2 : at + 2 + size]
            at += 2 + size


def _hvcc_units(header: bytes) -> Iterator[bytes]:
    for _, units in _arrays(header):
        yield from units


def _arrays(header: bytes) -> Iterator[tuple[int, list[bytes]]]:
    at = 23
    for _ in range(header[22] if len(header) > 22 else 0):
        if at + 3 > len(header):
            return
        kind, units, count = header[at], [], int.from_bytes(header[at + 1 : at + 3])
        at += 3
        for _ in range(count):
            size = int.from_bytes(header[at : at + 2])
            units.append(header[at + 2 : at + 2 + size])
            at += 2 + size
            if at > len(header):
                break
        yield kind, units
