"""GIF, APNG and animated WebP written chunk by chunk, with every choice of disposal and blending
that the formats have and Pillow's writers do not offer."""

import dataclasses
import io
import struct
import zlib

import numpy as np
from PIL import Image

NONE, BACKGROUND, PREVIOUS = 0, 1, 2  # APNG's dispose_op; GIF's disposal methods are one more
SOURCE, OVER = 0, 1  # APNG's blend_op


@dataclasses.dataclass(frozen=True)
class Part:
    """One frame: RGBA [h, w, 4] at an offset, what it does to the canvas before and after."""

    pixels: np.ndarray
    x: int = 0
    y: int = 0
    dispose: int = NONE
    blend: int = SOURCE
    delay: tuple[int, int] = (1, 10)  # APNG: a fraction of a second


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def apng(
    width: int,
    height: int,
    parts: list[Part],
    default: np.ndarray | None = None,
    colour: int = 6,
    extra: bytes = b"",
    plays: int = 0,
    count: int | None = None,
) -> bytes:
    """Colour type 6 (RGBA), 2 (RGB) or 3 (a palette given in `extra`; the red channel is its
    index). `default` is an image that is no frame of the animation."""
    channels = {6: slice(0, 4), 2: slice(0, 3), 3: slice(0, 1)}[colour]

    def packed(pixels):
        rows = pixels[..., channels]
        return zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))

    count = len(parts) if count is None else count
    out = [
        b"\x89PNG\r\n\x1a\n",
        png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)),
        extra,
        png_chunk(b"acTL", struct.pack(">II", count, plays)),
    ]
    if default is not None:
        out.append(png_chunk(b"IDAT", packed(default)))
    number = 0
    for k, part in enumerate(parts):
        h, w = part.pixels.shape[:2]
        control = (number, w, h, part.x, part.y, *part.delay, part.dispose, part.blend)
        out.append(png_chunk(b"fcTL", struct.pack(">IIIIIHHBB", *control)))
        number += 1
        if k == 0 and default is None:
            out.append(png_chunk(b"IDAT", packed(part.pixels)))
        else:
            out.append(png_chunk(b"fdAT", struct.pack(">I", number) + packed(part.pixels)))
            number += 1
    return b"".join(out) + png_chunk(b"IEND", b"")


def gif(
    width: int,
    height: int,
    parts: list[tuple],
    palette: bytes | None,
    background: int = 0,
    loop: bool = True,
) -> bytes:
    """Parts are (indices [h, w], x, y, disposal 0 to 3, transparent index or None, hundredths of a
    second, local palette or None); palettes have 3 x 4 bytes."""
    flags = 0xF1 if palette else 0x70
    out = [b"GIF89a", struct.pack("<HHBBB", width, height, flags, background, 0), palette or b""]
    if loop:
        out.append(b"\x21\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00")
    for indices, x, y, disposal, clear, delay, local in parts:
        out.append(
            b"\x21\xf9\x04"
            + struct.pack("<BHBB", disposal << 2 | (clear is not None), delay, clear or 0, 0)
        )
        h, w = indices.shape
        out.append(b"," + struct.pack("<HHHHB", x, y, w, h, 0x81 if local else 0) + (local or b""))
        out.append(_lzw(indices.reshape(-1).tolist()))
    return b"".join(out) + b";"


def _lzw(values: list[int]) -> bytes:
    """Codes of four bits, the table cleared before it would need a fifth one."""
    codes = []
    for k in range(0, len(values), 3):
        codes += [8, *values[k : k + 3]]
    codes.append(9)
    codes += [0] * (len(codes) % 2)
    data = bytes(low | high << 4 for low, high in zip(codes[::2], codes[1::2], strict=True))
    blocks = [data[k : k + 255] for k in range(0, len(data), 255)]
    return b"\x03" + b"".join(bytes([len(block)]) + block for block in blocks) + b"\0"


def webp(
    width: int,
    height: int,
    parts: list[Part],
    milliseconds: list[int] | None = None,
    background: bytes = b"\0\0\0\0",
    alpha: bool = True,
) -> bytes:
    """Offsets are even; `dispose` is NONE or BACKGROUND."""

    def chunk(kind, data):
        return kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)

    def three(number):
        return struct.pack("<I", number)[:3]

    body = chunk(
        b"VP8X", bytes([0x02 | 0x10 * alpha, 0, 0, 0]) + three(width - 1) + three(height - 1)
    )
    body += chunk(b"ANIM", background + b"\0\0")
    for k, part in enumerate(parts):
        buffer = io.BytesIO()
        Image.fromarray(part.pixels).save(buffer, "WEBP", lossless=True, exact=True)
        picture = buffer.getvalue()[12:]
        h, w = part.pixels.shape[:2]
        flags = (part.blend == SOURCE) << 1 | (part.dispose == BACKGROUND)
        length = milliseconds[k] if milliseconds else 100
        body += chunk(
            b"ANMF",
            three(part.x // 2)
            + three(part.y // 2)
            + three(w - 1)
            + three(h - 1)
            + three(length)
            + bytes([flags])
            + picture,
        )
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def composed(width: int, height: int, parts: list[Part]) -> np.ndarray:
    """uint8 [T, H, W, 4]: the frames as the APNG specification words it, in exact arithmetic."""
    canvas, shown = np.zeros((height, width, 4)), []
    for k, part in enumerate(parts):
        before = canvas.copy()
        h, w = part.pixels.shape[:2]
        area = (slice(part.y, part.y + h), slice(part.x, part.x + w))
        fore, back = part.pixels.astype(float), canvas[area]
        if part.blend == OVER:
            a, b = fore[..., 3:] / 255, back[..., 3:] / 255
            alpha = a + b * (1 - a)
            colour = fore[..., :3] * a + back[..., :3] * b * (1 - a)
            colour = np.divide(colour, alpha, out=np.zeros_like(colour), where=alpha > 0)
            fore = np.concatenate([colour, 255 * alpha], -1)
        canvas[area] = fore
        shown.append(canvas.round().astype(np.uint8))
        if part.dispose == BACKGROUND or (part.dispose == PREVIOUS and k == 0):
            canvas[area] = 0
        elif part.dispose == PREVIOUS:
            canvas = before
    return np.stack(shown)


def on_white(pictures: np.ndarray) -> np.ndarray:
    """[..., 4] -> [..., 3] on white."""
    alpha = pictures[..., 3:].astype(float) / 255
    return (pictures[..., :3] * alpha + 255 * (1 - alpha)).round().astype(np.uint8)
