"""Classifies packets by their picture headers: frames, second fields, hidden and empty packets.

Headers are parsed only as far as necessary, and no picture is decoded. Packets that cannot be
parsed count as frames: if they are not, decoding reveals it.
"""

import re
from collections.abc import Iterator

import numpy as np

from gve_jax.media import nal_units
from gve_jax.media.nal_units import Bits

# HIDDEN: a picture that is never shown; EMPTY: no picture; LEADING: a frame that refers to pictures
# before the first keyframe.
FRAME, SECOND_FIELD, HIDDEN, EMPTY, LEADING = range(5)

# Samples of an MP4 of at least SMALL bytes have a picture. Smaller ones are parsed: they may have
# only parameters or SEI, or mark a skipped frame.
SMALL = HEAD = 2048  # HEAD: bytes of a packet that contain the header of its first picture
_HEADER = 64  # bytes that contain the required fields of a header

# Side data that the demuxer delivers once, with the packet that changes the decoder's state.
_STATE = ("palette", "new_extradata", "param_change")

# The first byte of a slice's NAL unit, and an optional delimiter before it.
_SLICES = {
    "h264": ((0x01, 0x21, 0x41, 0x61, 0x25, 0x45, 0x65), rb"\x09."),
    "hevc": (range(64), rb"\x46\x01."),
}
_H264_PICTURES = (1, 2, 5)  # nal_unit_type of a slice, of its partition A, of an IDR slice
# NAL units without a part of the picture, and their maximum size in bytes (None: any).
_H264_OTHERS = {
    6: None,
    7: None,
    8: None,
    9: 2,
    10: 1,
    11: 1,
    12: None,
    13: None,
    14: None,
    15: None,
    20: None,
} | {kind: None for kind in range(24, 32)}
_HEVC_OTHERS = {32: None, 33: None, 34: None, 35: 3, 36: 2, 37: 2, 38: None, 39: None, 40: None} | {
    kind: None for kind in range(48, 64)
}
_HIGH_PROFILES = (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135)


def carries_state(packet) -> bool:
    """Whether decoding later packets requires the side data of this one."""
    return any(side.data_type in _STATE for side in packet.iter_sidedata())


class Headers:
    """Reads the packets of one stream, in the order of decoding."""

    def __init__(self, context):
        self.codec, self._intra = context.codec.canonical_name, context.codec.intra_only
        self._read = getattr(self, f"_read_{self.codec}", None)
        # Whether packets so far lead the first keyframe; None before it.
        self._leads: bool | None = None
        self._searched = self.codec in ("h264", "hevc", "mpeg4")  # for start codes
        self._slice: re.Pattern | None = None
        # bool [256], whether a packet begins with a slice, by its first byte after the length.
        self.slices: np.ndarray | None = None
        self.length = 0  # size of the length before each NAL unit; 0 for start codes
        self._sps, self._pps, self._first = {}, {}, None
        self.fields = False  # whether a packet may be one field of a frame
        # packed: a packet had two frames of MPEG-4, and its placeholder is still to come.
        self._time_bits, self._packed = 0, False
        header = bytes(context.extradata or b"")
        if self.codec in ("h264", "hevc"):
            self._open_nal_units(header)
        elif self.codec == "mpeg4":
            self._read_vol(header)

    @property
    def known(self) -> bool:
        """Whether the headers of this codec tell which packets have a frame."""
        return self._read is not None or self.codec in ("mpeg1video", "mpeg2video") or self._intra

    def read(self, packet) -> int:
        """Returns FRAME, SECOND_FIELD, HIDDEN, EMPTY or LEADING."""
        if self._leads is None:
            self._leads = True if packet.is_keyframe else None
        elif self._leads:
            self._leads = self.refers_back(bytes(memoryview(packet)[:HEAD]))
            if self._leads:
                return LEADING
        if self._read is None:
            return FRAME
        data = memoryview(packet)
        if not self._searched:
            return self.read_bytes(data)
        if self._begins_with_slice(data):
            return FRAME
        holds = self.read_bytes(bytes(data if self.codec == "mpeg4" else data[:HEAD]))
        if holds == EMPTY and len(data) > HEAD:
            holds = self.read_bytes(bytes(data))
        return holds

    def read_bytes(self, data) -> int:
        """As `read`, for all or the first bytes of a packet."""
        if self._read is None:
            return FRAME
        try:
            return self._read(data)
        except (IndexError, ValueError):
            return FRAME

    def _begins_with_slice(self, data) -> bool:
        """A fast check for most packets; False if uncertain."""
        if self._slice is None or self.fields:
            return False
        return bool(self._slice.match(data, self.length))

    def refers_back(self, data: bytes) -> bool:
        """Whether a packet after the first keyframe, or after leading ones, is leading."""
        if self.codec == "hevc":
            return any(unit[0] >> 1 & 63 in (8, 9) for unit in self._nal_units(data))  # RASL
        if self.codec == "mpeg4":
            at = data.find(b"\0\0\1\xb6")
            return at >= 0 and len(data) > at + 4 and data[at + 4] >> 6 == 2  # a B-VOP
        at = data.find(b"\0\0\1\0") if self.codec in ("mpeg1video", "mpeg2video") else -1
        return at >= 0 and len(data) > at + 5 and data[at + 5] >> 3 & 7 == 3  # a B-picture

    def _read_vp8(self, data: bytes) -> int:
        return FRAME if data[0] & 0x10 else HIDDEN  # a reference that is never shown

    def _read_vp9(self, data: bytes) -> int:
        if data[-1] >> 5 == 0b110:  # several frames in one packet; the last one is shown
            return FRAME
        bits = Bits(data[:_HEADER])
        if bits.take(2) != 2:
            return FRAME
        if bits.take(1) + 2 * bits.take(1) == 3:
            bits.take(1)
        if bits.take(1):  # an earlier picture is shown now
            return FRAME
        bits.take(1)
        return FRAME if bits.take(1) else HIDDEN

    def _read_av1(self, data: bytes) -> int:
        at, hidden = 0, 0
        while at < len(data):
            head = data[at]
            at += 1 + (head >> 2 & 1)
            size = len(data) - at
            if head & 2:
                size, at = _leb128(data, at)
            kind, body = head >> 3 & 15, data[at : at + _HEADER]
            if kind == 1 and body[0] >> 3 & 1:  # a still picture, with shorter headers
                return FRAME
            if kind in (3, 6):
                if body[0] & 0x80 or body[0] & 0x10:  # show_existing_frame, show_frame
                    return FRAME
                hidden += 1
            at += size
        return HIDDEN if hidden else FRAME

    def _read_mpeg4(self, data: bytes) -> int:
        """HIDDEN for a VOP that is not coded, which extends the previous frame. In a packed stream
        it is the placeholder of a frame that an earlier packet contained: packets from there on
        give the frame of the previous packet."""
        self._read_vol(data)
        at = data.find(b"\0\0\1\xb6")
        if at >= 0 and data.find(b"\0\0\1\xb6", at + 4) >= 0:
            self._packed = True
            return FRAME
        if at < 0 or not self._time_bits:
            return FRAME
        bits = Bits(data[at + 4 : at + _HEADER])
        bits.take(2)
        while bits.take(1):
            pass
        bits.take(1 + self._time_bits + 1)
        ends = at + _HEADER >= len(data) and bits.left < 32  # only stuffing follows
        if bits.take(1) or not ends:
            return FRAME
        packed, self._packed = self._packed, False
        return FRAME if packed else HIDDEN

    def _read_vol(self, data: bytes) -> None:
        at = next(
            (
                i
                for i in range(len(data) - 8)
                if data[i : i + 3] == b"\0\0\1" and data[i + 3] >> 4 == 2
            ),
            None,
        )
        if at is None:
            return
        bits = Bits(data[at + 4 : at + _HEADER])
        bits.take(9)
        if bits.take(1):
            bits.take(7)
        if bits.take(4) == 15:
            bits.take(16)
        if bits.take(1):
            bits.take(3)
            if bits.take(1):
                bits.take(79)
        bits.take(3)
        self._time_bits = max(1, (bits.take(16) - 1).bit_length())

    def _read_h264(self, data: bytes) -> int:
        parts = []
        for unit in self._nal_units(data):
            kind = unit[0] & 31
            if kind in (7, 8):
                self._read_parameters(kind, unit)
            elif kind in _H264_PICTURES:
                if not self.fields:
                    return FRAME
                part = self._read_slice(unit)
                if part is not None and part not in parts:
                    parts.append(part)
            elif not _is_aside(unit, kind, _H264_OTHERS):
                return FRAME
        if not parts:
            return EMPTY
        first, self._first = self._first, None
        if len(parts) > 1 or parts[0][1] is None:  # both fields, or no field
            return FRAME
        ((number, bottom),) = parts
        if first is not None and first[0] == number and first[1] != bottom:
            return SECOND_FIELD
        self._first = number, bottom
        return FRAME

    def _read_hevc(self, data: bytes) -> int:
        for unit in self._nal_units(data):
            kind = unit[0] >> 1 & 63
            if not _is_aside(unit, kind, _HEVC_OTHERS):
                return FRAME
        return EMPTY

    def _open_nal_units(self, header: bytes) -> None:
        self.length, units = nal_units.open_header(header, self.codec)
        heads, delimiter = _SLICES[self.codec]
        if self.length:
            self.slices = np.isin(np.arange(256), heads)
        code = b"" if self.length else rb"\x00?\x00\x00\x01(?:%b\x00?\x00\x00\x01)?" % delimiter
        self._slice = re.compile(code + b"[" + re.escape(bytes(heads)) + b"]", re.DOTALL)
        if self.codec == "h264":
            for unit in units:
                if unit[0] & 31 in (7, 8):
                    self._read_parameters(unit[0] & 31, unit)

    def _nal_units(self, data: bytes) -> Iterator[bytes]:
        return nal_units.split(data, self.length)

    def _read_parameters(self, kind: int, unit: bytes) -> None:
        try:
            if kind == 8:
                bits = Bits(nal_units.unescape(unit[1:_HEADER]))
                self._pps[bits.golomb()] = bits.golomb()
            else:
                number, *values = _sequence(Bits(nal_units.unescape(unit[1 : 16 * _HEADER])))
                self._sps[number] = values
                self.fields = any(not frames_only for _, frames_only, _ in self._sps.values())
        except IndexError:
            pass

    def _read_slice(self, unit: bytes):
        """(frame_num, bottom_field_flag or None) of the first slice of a picture."""
        bits = Bits(nal_units.unescape(unit[1:_HEADER]))
        if bits.golomb():  # a later slice
            return None
        bits.golomb()
        sps = self._sps.get(self._pps.get(bits.golomb()))
        if sps is None:
            raise ValueError("unknown parameters")
        frame_bits, frames_only, planes = sps
        bits.take(2 * planes)
        number = bits.take(frame_bits)
        field = not frames_only and bits.take(1)
        return number, bits.take(1) if field else None


def _is_aside(unit: bytes, kind: int, others: dict) -> bool:
    """Whether a NAL unit has no part of a picture, by its kind and size."""
    most = others.get(kind, 0)
    return most is None or len(unit.rstrip(b"\0")) <= most


def _sequence(bits: Bits) -> tuple[int, int, bool, bool]:
    """(id, bits of frame_num, frame_mbs_only_flag, separate_colour_plane_flag) of an H.264 SPS."""
    profile = bits.take(24) >> 16
    number, planes = bits.golomb(), 0
    if profile in _HIGH_PROFILES:
        chroma = bits.golomb()
        if chroma == 3:
            planes = bits.take(1)
        bits.golomb()
        bits.golomb()
        bits.take(1)
        if bits.take(1):
            for k in range(12 if chroma == 3 else 8):
                if bits.take(1):
                    _skip_scaling_list(bits, 16 if k < 6 else 64)
    frame_bits = bits.golomb() + 4
    order = bits.golomb()
    if order == 0:
        bits.golomb()
    elif order == 1:
        bits.take(1)
        bits.golomb()
        bits.golomb()
        for _ in range(min(bits.golomb(), 255)):
            bits.golomb()
    bits.golomb()
    bits.take(1)
    bits.golomb()
    bits.golomb()
    return number, frame_bits, bool(bits.take(1)), bool(planes)


def _skip_scaling_list(bits: Bits, size: int) -> None:
    last = following = 8
    for _ in range(size):
        if following:
            code = bits.golomb()
            following = (last + (code + 1) // 2 * (1 if code % 2 else -1)) % 256
        last = following or last


def _leb128(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 56, 7):
        value |= (data[at] & 0x7F) << shift
        at += 1
        if not data[at - 1] & 0x80:
            break
    return value, at
