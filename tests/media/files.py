"""Media made on the spot: videos whose every frame spells its number, images, a tokenizer."""

import contextlib
import io
import os
import struct
from fractions import Fraction
from functools import cache

import av
import numpy as np
from PIL import Image

from data.shapes import tokenizer

HEIGHT, WIDTH, BARS = 48, 96, 6


def numbered(count: int) -> np.ndarray:
    """uint8 [count, 48, 96, 3]: frame k shows k in binary, bit b as a white or black bar."""
    frames = np.zeros((count, HEIGHT, WIDTH, 3), np.uint8)
    for bit in range(BARS):
        on = (np.arange(count) >> bit) & 1
        frames[:, :, bit * 16 : bit * 16 + 16] = 255 * on[:, None, None, None]
    return frames


def numbers(frames: np.ndarray) -> list[int]:
    """The numbers that frames of any size spell."""
    columns = ((np.arange(BARS) + 0.5) / BARS * frames.shape[2]).astype(int)
    bits = frames[:, frames.shape[1] // 2, columns, 0] > 128
    return (bits @ (1 << np.arange(BARS))).tolist()


@cache
def textured(count: int) -> np.ndarray:
    """uint8 [count, 64, 96, 3]: the bars of `numbered` above a picture that moves, with grain."""
    rng = np.random.default_rng(0)
    frames = np.zeros((count, HEIGHT + 16, WIDTH, 3), np.uint8)
    frames[:, :HEIGHT] = numbered(count)
    picture = rng.integers(0, 200, (16, 2 * WIDTH, 3))
    for k in range(count):
        moved = picture[:, 2 * k % WIDTH : 2 * k % WIDTH + WIDTH]
        frames[k, HEIGHT:] = moved + rng.integers(0, 20, moved.shape)
    return frames


@contextlib.contextmanager
def ordinary_priority():
    """Puts this thread's scheduling back afterwards. Run as root on Linux, SVT-AV1 makes the thread
    that opens it a real-time one, which then starves all other processes of the machine."""
    if not hasattr(os, "sched_getscheduler"):
        yield
        return
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        if os.sched_getscheduler(0) != before[0]:
            os.sched_setscheduler(0, *before)


def encode(
    frames: np.ndarray,
    fps: int | Fraction = 10,
    container: str = "mp4",
    codec: str = "libx264",
    options: dict | None = None,
    shift: int = 0,
    codec_options: dict | None = None,
    times: list[int] | None = None,
    pix_fmt: str = "yuv420p",
) -> bytes:
    """An encoded video; `options` are the container's; `shift` moves all timestamps by frames;
    `times` are those of the frames, in units of 1 / fps."""
    buffer = io.BytesIO()
    if codec_options is None:
        codec_options = {"bf": "0"} if shift else {}
    with ordinary_priority(), av.open(buffer, "w", format=container, options=options or {}) as out:
        stream = out.add_stream(codec, rate=fps, options=codec_options)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pix_fmt
        stream.codec_context.gop_size = 12
        packets = []
        for k, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            frame.pts = times[k] if times else k
            packets += stream.encode(frame)
        for packet in packets + stream.encode():
            if shift:
                offset = round(shift / fps / packet.time_base)
                packet.pts, packet.dts = packet.pts + offset, packet.dts + offset
            out.mux(packet)
    return buffer.getvalue()


def held(
    times: list[int],
    last: int,
    container: str = "mp4",
    codec: str = "libx264",
    codec_options: dict | None = None,
    options: dict | None = None,
) -> bytes:
    """`numbered` frames shown at `times`, the last one for `last`, all in ms."""
    buffer, length = (
        io.BytesIO(),
        dict(zip(times, np.diff([*times, times[-1] + last]), strict=True)),
    )
    with av.open(buffer, "w", format=container, options=options or {}) as out:
        stream = out.add_stream(codec, rate=1000, options=codec_options or {})
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        packets = []
        for array, time in zip(numbered(len(times)), times, strict=True):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            packets += stream.encode(frame)
        for packet in packets + stream.encode():
            ms = round(packet.pts * packet.time_base * 1000)
            packet.duration = round(Fraction(int(length[ms]), 1000) / packet.time_base)
            out.mux(packet)
    return buffer.getvalue()


def with_edits(data: bytes, edits: list[tuple[int, int, float]]) -> bytes:
    """An MP4 of one track, its tables at the end, with another edit list: (ms of presentation, time
    of the media or -1, speed)."""
    start = data.index(b"edts") - 4
    length = int.from_bytes(data[start : start + 4])
    rows = b"".join(struct.pack(">Iii", ms, at, round(x * 65536)) for ms, at, x in edits)
    content = struct.pack(">II", 0, len(edits)) + rows
    box = struct.pack(">I4s", len(content) + 8, b"elst") + content
    box = struct.pack(">I4s", len(box) + 8, b"edts") + box
    changed = bytearray(data[:start] + box + data[start + length :])
    for kind in (b"moov", b"trak"):
        at = data.rindex(kind, 0, start) - 4
        size = int.from_bytes(data[at : at + 4]) + len(box) - length
        changed[at : at + 4] = size.to_bytes(4)
    return bytes(changed)


@cache
def clip(count: int = 24, container: str = "mp4", codec: str = "libx264") -> bytes:
    return encode(numbered(count), container=container, codec=codec)


def audio_only() -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as out:
        stream = out.add_stream("aac", rate=48000, layout="mono")
        silence = np.zeros((1, 1024), np.float32)
        frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
        frame.sample_rate = 48000
        for packet in stream.encode(frame) + stream.encode():
            out.mux(packet)
    return buffer.getvalue()


def picture(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@cache
def small_tokenizer():
    texts = [
        "a red ring moves to the left",
        "system user assistant",
        "You are a helpful assistant.",
    ]
    return tokenizer.train(iter(texts * 20))
