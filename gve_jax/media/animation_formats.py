"""Parses GIF, APNG and animated WebP: each frame as a still image, and how it is drawn on the
canvas. `gve_jax.media.animation` composes the frames.

Pillow decodes the still images only: its composition differs from the specifications and from
FFmpeg (Pillow 13: APNG's "previous" after a blended frame, alpha blended onto transparency, a GIF's
disposal 0 after another one, a default image counted as a frame).
"""

import dataclasses
import struct
import zlib
from collections.abc import Iterator
from fractions import Fraction

KEEP, CLEAR, RESTORE = 0, 1, 2  # disposal of a frame's area at its end
TRANSPARENT = (0, 0, 0, 0)
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHECKED = (b"IHDR", b"PLTE", b"tRNS", b"acTL", b"fcTL")  # pixels have zlib's checksum


@dataclasses.dataclass(frozen=True)
class Frame:
    """A frame.

    Attributes:
      box: x, y, width, height on the canvas.
      seconds: duration that the file states.
      still: an image file of this frame, in pieces.
      over: whether it is blended onto the canvas, so that transparent pixels do not replace those
        of the canvas. False for formats without transparency.
      dispose: KEEP, CLEAR or RESTORE.
      fill: RGBA of the area after CLEAR.
    """

    box: tuple[int, int, int, int]
    seconds: Fraction
    still: tuple[bytes, ...]
    over: bool
    dispose: int
    fill: tuple[int, int, int, int] = TRANSPARENT


@dataclasses.dataclass(frozen=True)
class Animation:
    """The size of the canvas, its RGBA before the first frame, and the frames in order."""

    width: int
    height: int
    frames: list[Frame]
    fill: tuple[int, int, int, int] = TRANSPARENT


def parse(data: bytes, most: int) -> Animation | None:
    """Returns the animation of a file; None for a PNG or WebP that does not declare one.

    Args:
      data: the content of the file.
      most: maximum number of frames; with more, `most` + 1 frames are returned.

    Raises:
      ValueError: another format, a truncated or damaged file.
    """
    read = _gif if data.startswith(b"GIF8") else _png if data.startswith(PNG_SIGNATURE) else _webp
    try:
        animation = read(data, most)
    except (struct.error, IndexError) as error:
        raise ValueError("the file is truncated, or a length in it is wrong") from error
    if animation is None:
        return None
    if not animation.frames:
        raise ValueError("an animation without frames")
    for x, y, width, height in (frame.box for frame in animation.frames):
        inside = x + width <= animation.width and y + height <= animation.height
        if not (width and height and (inside or read is _gif)):
            raise ValueError(
                f"a frame of {width} x {height} at {x}, {y} on a canvas of "
                f"{animation.width} x {animation.height}"
            )
    return animation


def _take(data: bytes, start: int, size: int) -> bytes:
    part = data[start : start + size]
    if len(part) < size:
        raise IndexError
    return part


# --- APNG (PNG, third edition: acTL, fcTL, fdAT) -----------------------------------------------


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    offset, kind = len(PNG_SIGNATURE), b""
    while kind != b"IEND":
        size, kind = struct.unpack_from(">I4s", data, offset)
        body = _take(data, offset + 8, size)
        checksum = _take(data, offset + 8 + size, 4)
        if kind in _CHECKED and zlib.crc32(kind + body).to_bytes(4, "big") != checksum:
            raise ValueError(f"a wrong checksum of {kind.decode()}")
        yield kind, body
        offset += 12 + size


def _png_chunk(kind: bytes, body: bytes) -> bytes:
    return b"".join(
        (
            struct.pack(">I", len(body)),
            kind,
            body,
            struct.pack(">I", zlib.crc32(body, zlib.crc32(kind))),
        )
    )


def _png(data: bytes, most: int) -> Animation | None:
    """The default image (IDAT) is a frame if, and only if, an fcTL precedes it."""
    if data[12:16] != b"IHDR":
        raise ValueError("it does not begin with IHDR")
    header, colours, frames, control, pixels = b"", [], [], None, []
    stated, number, image_seen = 0, 0, False

    def finish() -> None:
        if control is None:
            return
        if not pixels:
            raise ValueError(f"frame {len(frames)} has no pixels")
        width, height, x, y, numerator, denominator, dispose, blend = control
        if dispose > RESTORE or blend > 1:
            raise ValueError(f"frame {len(frames)}: dispose_op {dispose}, blend_op {blend}")
        still = (
            PNG_SIGNATURE,
            _png_chunk(b"IHDR", struct.pack(">II", width, height) + header[8:]),
            *colours,
            *(_png_chunk(b"IDAT", part) for part in pixels),
            _png_chunk(b"IEND", b""),
        )
        seconds = Fraction(numerator, denominator or 100)
        clear = header[9] in (4, 6) or any(chunk[4:8] == b"tRNS" for chunk in colours)
        frames.append(Frame((x, y, width, height), seconds, still, clear and blend == 1, dispose))

    for kind, body in _png_chunks(data):
        if kind == b"IHDR":
            header = body
        elif kind in (b"PLTE", b"tRNS"):
            colours.append(_png_chunk(kind, body))
        elif kind == b"acTL" and not image_seen:
            stated = struct.unpack(">II", body)[0]
        elif kind == b"IDAT":
            image_seen = True
            if not stated:
                return None
            if control is not None:
                pixels.append(body)
        elif kind in (b"fcTL", b"fdAT") and stated:
            if int.from_bytes(_take(body, 0, 4), "big") != number:
                raise ValueError(f"chunk {number} of the animation is out of order")
            number += 1
            if kind == b"fcTL":
                finish()
                if len(frames) > most:
                    break
                control, pixels = struct.unpack(">IIIIHHBB", body[4:]), []
            elif control is None:
                raise ValueError("an fdAT chunk before the first fcTL")
            else:
                pixels.append(body[4:])
    else:
        finish()
        if len(frames) < stated:
            raise ValueError(f"{len(frames)} of {stated} frames")
    return Animation(*struct.unpack(">II", header[:8]), frames) if stated else None


# --- GIF89a ------------------------------------------------------------------------------------


def _gif_blocks(data: bytes, offset: int) -> tuple[bytes, int]:
    """Sub-blocks with their lengths and their end, and where the next block begins. The end may be
    missing where the file ends."""
    start = offset
    while offset < len(data) and data[offset]:
        offset += 1 + data[offset]
    if offset > len(data):
        raise IndexError
    return data[start:offset] + b"\0", offset + 1


def _gif(data: bytes, most: int) -> Animation:
    """As FFmpeg reads it: before the first frame, and where a frame is cleared, there is the
    background colour if that frame has no transparent one, otherwise nothing."""
    width, height, flags, background, _ = struct.unpack_from("<HHBBB", data, 6)
    size = 3 << (flags & 7) + 1 if flags & 0x80 else 0
    palette, offset = _take(data, 13, size), 13 + size
    colour = palette[3 * background : 3 * background + 3]
    fill = (*colour, 255) if len(colour) == 3 else TRANSPARENT
    frames, control, first = [], None, TRANSPARENT
    while offset < len(data) and data[offset] != 0x3B and len(frames) <= most:
        kind, offset = data[offset], offset + 1
        if kind == 0x21:
            label, (blocks, offset) = data[offset], _gif_blocks(data, offset + 1)
            if label == 0xF9 and blocks[0] >= 4:
                control = struct.unpack_from("<BHB", blocks, 1)
        elif kind == 0x2C:
            x, y, wide, high, local = struct.unpack_from("<HHHHB", data, offset)
            size = 3 << (local & 7) + 1 if local & 0x80 else 0
            colours, offset = _take(data, offset + 9, size) or palette, offset + 9 + size
            codes, (pixels, offset) = _take(data, offset, 1), _gif_blocks(data, offset + 1)
            bits, delay, clear = control or (0, 0, 0)
            transparent = bool(bits & 1)
            if not frames:
                width, height = width or x + wide, height or y + high
                first = TRANSPARENT if transparent else fill
            depth = 0x80 | (len(colours) // 3).bit_length() - 2 if colours else 0
            still = (
                b"GIF89a",
                struct.pack("<HHBBB", wide, high, depth, 0, 0),
                colours,
                b"\x21\xf9\x04" + struct.pack("<BHBB", transparent, 0, clear, 0),
                b"," + struct.pack("<HHHHB", 0, 0, wide, high, local & 0x40),
                codes,
                pixels,
                b";",
            )
            dispose = {2: CLEAR, 3: RESTORE}.get(bits >> 2 & 7, KEEP)
            left = TRANSPARENT if transparent else fill
            box = (x, y, wide, high)
            frames.append(Frame(box, Fraction(delay, 100), still, transparent, dispose, left))
            control = None
    return Animation(width, height, frames, first)


# --- WebP --------------------------------------------------------------------------------------


def _riff_chunks(data: bytes, offset: int, end: int) -> Iterator[tuple[bytes, bytes]]:
    while offset + 8 <= end:
        kind, size = struct.unpack_from("<4sI", data, offset)
        if offset + 8 + size > end:
            raise IndexError
        yield kind, data[offset + 8 : offset + 8 + size]
        offset += 8 + size + size % 2


def _riff_chunk(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def _uint24(data: bytes, offset: int) -> int:
    return int.from_bytes(_take(data, offset, 3), "little")


def _webp(data: bytes, most: int) -> Animation | None:
    """The background colour is ignored, which the specification permits: the background is
    transparent, as in libwebp."""
    end = 8 + int.from_bytes(_take(data, 4, 4), "little")
    canvas, frames = None, []
    if end > len(data):
        raise IndexError
    for kind, body in _riff_chunks(data, 12, end):
        if kind == b"VP8X":
            if not body[0] & 0x02:
                return None
            canvas = _uint24(body, 4) + 1, _uint24(body, 7) + 1
        elif canvas is None:
            return None
        elif kind == b"ANMF" and len(frames) <= most:
            x, y, width, height, length = (_uint24(body, offset) for offset in range(0, 15, 3))
            parts = {
                kind: _riff_chunk(kind, part)
                for kind, part in _riff_chunks(body, 16, len(body))
                if kind in (b"ALPH", b"VP8 ", b"VP8L")
            }
            clear = parts.keys() != {b"VP8 "}
            # Declares alpha, which Pillow otherwise ignores.
            alpha = _riff_chunk(b"VP8X", b"\x10\0\0\0" + body[6:12])
            pieces = [alpha] * clear + list(parts.values())
            still = (b"RIFF", struct.pack("<I", 4 + sum(map(len, pieces))), b"WEBP", *pieces)
            frames.append(
                Frame(
                    (2 * x, 2 * y, width + 1, height + 1),
                    Fraction(length, 1000),
                    still,
                    clear and not body[15] & 2,
                    CLEAR if body[15] & 1 else KEEP,
                )
            )
    return None if canvas is None else Animation(*canvas, frames)
