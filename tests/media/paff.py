"""H.264 whose frames are coded as pairs of fields (as AVCHD cameras and DVB do), written by hand:
every macroblock is I_PCM, its samples as they are, so that decoded frames are exactly the drawn.
Slices other than those of IDR pictures are P slices none the less: these are no keyframes."""

import io
from fractions import Fraction

import av
import numpy as np

from tests.media.files import numbered

HEIGHT, WIDTH, RATE = 64, 96, 25
GROUP = 8  # frames from one IDR picture to the next
_ACCESS_UNIT_DELIMITER, _SPS, _PPS, _IDR, _SLICE, _SEI = 9, 7, 8, 5, 1, 6
CUT_SEI = b"\x06\x05\xff\x20vendor data of a camera"  # says that it is longer than it is


class Bits:
    def __init__(self):
        self._text = ""

    def put(self, count: int, value: int) -> "Bits":
        self._text += f"{value:0{count}b}" if count else ""
        return self

    def golomb(self, *values: int) -> "Bits":
        for value in values:
            code = f"{value + 1:b}"
            self._text += "0" * (len(code) - 1) + code
        return self

    def align(self) -> "Bits":
        self._text += "0" * (-len(self._text) % 8)
        return self

    def end(self) -> bytes:
        """The bytes, behind the last bit the stop bit."""
        self._text += "1"
        return self.align().bytes()

    def bytes(self) -> bytes:
        return int("1" + self._text, 2).to_bytes(len(self._text) // 8 + 1)[1:]


def unit(reference: int, kind: int, payload: bytes) -> bytes:
    """A NAL unit behind a start code, escaped."""
    data, zeros = bytearray([reference << 5 | kind]), 0
    for byte in payload:
        if zeros >= 2 and byte <= 3:
            data.append(3)
            zeros = 0
        data.append(byte)
        zeros = 0 if byte else zeros + 1
    return b"\0\0\0\1" + bytes(data)


def parameters() -> bytes:
    sps = Bits().put(8, 77).put(8, 0).put(8, 30)  # Main profile
    sps.golomb(0, 4, 0, 4, 1).put(1, 0)  # 8 bits of frame_num, 8 of the order of showing
    sps.golomb(WIDTH // 16 - 1, HEIGHT // 32 - 1)
    sps.put(3, 0b001).put(1, 0)  # fields are allowed; no cropping
    sps.put(1, 1).put(4, 0).put(1, 1).put(32, 1).put(32, 2 * RATE).put(1, 1)  # timing
    sps.put(3, 0).put(1, 1).put(1, 1).golomb(0, 0, 0, 0, 0, 1)  # no frame is moved
    pps = Bits().golomb(0, 0).put(2, 0).golomb(0, 0, 0).put(3, 0).golomb(0, 0, 0).put(3, 0b100)
    return unit(3, _SPS, sps.end()) + unit(3, _PPS, pps.end())


def picture(
    planes: list[np.ndarray],
    number: int,
    order: int,
    *,
    field: int | None,
    idr: int | None = None,
    reference: bool = True,
) -> bytes:
    """A NAL unit of one field (0 the top, 1 the bottom one) or, if None, a frame; `idr` is the id
    of an IDR picture."""
    bits = Bits().golomb(0, 5 if idr is None else 7, 0).put(8, number)
    bits.put(1, 0) if field is None else bits.put(2, 2 + field)
    if idr is not None:
        bits.golomb(idr)
    bits.put(8, order)
    if idr is None:
        bits.put(2, 0)  # references as by default, in their order
    if reference:
        bits.put(2 if idr is not None else 1, 0)
    bits.golomb(0, 1)  # the quantiser; no deblocking
    data = bytearray()
    for row in range(planes[0].shape[0] // 16):
        for column in range(WIDTH // 16):
            bits.golomb(25) if idr is not None else bits.golomb(0, 5 + 25)  # mb_type I_PCM
            data += bits.align().bytes()
            bits = Bits()
            for plane in planes:
                side = 16 * plane.shape[1] // WIDTH
                block = plane[side * row :][:side, side * column :][:, :side]
                data += block.tobytes()
    return unit(int(reference), _SLICE if idr is None else _IDR, bytes(data) + bits.end())


def packets(
    count: int = 24,
    *,
    whole: tuple[int, ...] = (),
    bottom_first: bool = False,
    unreferenced: bool = False,
) -> list[tuple[bytes, ...]]:
    """The coded pictures of each frame: two fields, or one frame for those in `whole`.

    `unreferenced`: nothing may refer to every second frame.
    """
    frames = np.zeros((count, HEIGHT, WIDTH), np.uint8)
    frames[:, :48] = numbered(count)[..., 0]
    frames = (16 + frames.astype(int) * 219 // 255).astype(np.uint8)
    grey = np.full((HEIGHT // 2, WIDTH // 2), 128, np.uint8)
    made, number = [], 0
    for k, luma in enumerate(frames):
        place, reference = k % GROUP, not (unreferenced and k % 2)
        if place == 0:
            number = 0
        head = unit(0, _ACCESS_UNIT_DELIMITER, b"\x10")
        start = head + (parameters() if place == 0 else b"")
        idr = k // GROUP % 2 if place == 0 else None
        if k in whole:
            planes = [luma, grey, grey]
            made.append(
                (
                    start
                    + picture(planes, number, 2 * place, field=None, idr=idr, reference=reference),
                )
            )
        else:
            fields = []
            for field in (1, 0) if bottom_first else (0, 1):
                planes = [plane[field::2] for plane in (luma, grey, grey)]
                fields.append(
                    picture(
                        planes,
                        number,
                        2 * place + len(fields),
                        field=field,
                        idr=None if fields else idr,
                        reference=reference,
                    )
                )
            made.append((start + fields[0], head + fields[1]))
        number += reference
    return made


def mux(
    frames: list[tuple[bytes, ...]],
    container: str,
    *,
    joined: bool = False,
    options: dict | None = None,
) -> bytes:
    """A file with a packet for each picture; `joined`: with one for each frame."""
    raw = b"".join(b"".join(pictures) for pictures in frames)
    buffer = io.BytesIO()
    with (
        av.open(io.BytesIO(raw), format="h264") as source,
        av.open(buffer, "w", format=container, options=options or {}) as out,
    ):
        stream = out.add_stream_from_template(source.streams.video[0])
        stream.time_base = Fraction(1, 2 * RATE)
        for k, pictures in enumerate(frames):
            if joined:
                pictures = (b"".join(pictures),)
            for field, data in enumerate(pictures):
                packet = av.Packet(data)
                packet.stream, packet.time_base = stream, Fraction(1, 2 * RATE)
                packet.pts = packet.dts = 2 * k + field
                packet.duration = 2 // len(pictures)
                packet.is_keyframe = k % GROUP == 0 and field == 0
                out.mux(packet)
    return buffer.getvalue()
