"""One video file encoded again; as a process, which loads no JAX, it reads what is not trusted."""

import dataclasses
import json
import re
import resource
import sys
from pathlib import Path

import av
import numpy as np

from gve_jax.errors import UserError
from gve_jax.media.container import open_video
from gve_jax.media.errors import LimitError, MediaError
from gve_jax.media.limits import Limits
from gve_jax.media.video import upright

MAY_PASS = 3  # status of a process that failed for a reason that may pass: see `MediaError`


@dataclasses.dataclass(frozen=True)
class Coding:
    """How documents are encoded: FFmpeg's encoder, and its crf or bits a second."""

    codec: str = "libx264"
    crf: int | None = None
    bitrate: int | None = None

    @property
    def name(self) -> str:
        """As a folder's name."""
        parts = dataclasses.asdict(self)
        return "-".join(
            f"{value}" if key == "codec" else f"{key}{value}"
            for key, value in parts.items()
            if value is not None
        )


def coding(text: str) -> Coding:
    """Reads `codec=libx265,crf=40` or `bitrate=100k`.

    Raises:
      UserError: another key, a number that is none, an encoder that this FFmpeg has not, neither or
        both of crf and bitrate.
    """
    found = dict(part.partition("=")[::2] for part in text.split(","))
    if unknown := sorted(set(found) - {"codec", "crf", "bitrate"}):
        raise UserError(f"--reencode: unknown key {unknown[0]!r}; known: codec, crf, bitrate")
    numbers = {}
    for key in ("crf", "bitrate"):
        if key in found:
            value = re.fullmatch(r"(\d+)([kM]?)", found[key])
            if not value or (key == "crf" and value[2]):
                raise UserError(
                    f"--reencode: {key}={found[key]} is no number, such as crf=40 or bitrate=100k"
                )
            numbers[key] = int(value[1]) * {"": 1, "k": 1000, "M": 1_000_000}[value[2]]
    if len(numbers) != 1:
        raise UserError("--reencode: give either crf=... or bitrate=...")
    codec = found.get("codec", Coding.codec)
    try:
        known = av.codec.Codec(codec, "w").type == "video"
    except (av.FFmpegError, ValueError):
        known = False
    if not known:
        raise UserError(f"--reencode: this FFmpeg has no video encoder {codec!r}")
    return Coding(codec, **numbers)


def encode(source: Path, target: Path, coding: Coding, limits: Limits) -> None:
    """Encodes one file.

    Raises:
      MediaError: a file that cannot be read, is damaged, or exceeds a limit.
    """
    name = str(source)
    options = {} if coding.crf is None else {"crf": str(coding.crf)}
    with (
        open_video(str(source), name, limits) as (container, stream, _),
        av.open(str(target), "w", format="mp4") as output,
    ):
        made, frames = None, 0
        for frame in container.decode(stream):
            frames += 1
            if frames > limits.frames:
                raise LimitError(f"{name}: more frames than the limit of {limits.frames}")
            if frame.pts is None:
                raise MediaError(f"{name}: a frame without a time")
            picture = frame.to_ndarray(format="rgb24")
            if matrix := frame.side_data.get("DISPLAYMATRIX"):
                picture = upright(picture, bytes(matrix), name)
            height, width = (side // 2 * 2 for side in picture.shape[:2])
            if made is None:
                rate = stream.average_rate or stream.guessed_rate
                made = output.add_stream(coding.codec, rate=rate, options=options)
                made.width, made.height, made.pix_fmt = width, height, "yuv420p"
                made.codec_context.time_base = stream.time_base
                made.thread_count = 1  # files are the parallelism, and the bytes are repeatable
                if coding.bitrate is not None:
                    made.bit_rate = coding.bitrate
            if (width, height) != (made.width, made.height):
                raise MediaError(f"{name}: the size changes midway")
            kept = np.ascontiguousarray(picture[:height, :width])
            again = av.VideoFrame.from_ndarray(kept, format="rgb24")
            again.pts, again.time_base = frame.pts, frame.time_base
            output.mux(made.encode(again))
        if made is None:
            raise MediaError(f"{name}: no frame that can be decoded")
        output.mux(made.encode())


def _main(source: str, target: str, setup: str) -> None:
    """The process of one file."""
    settings = json.loads(setup)
    limits = Limits(**settings["limits"])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        most = now + int(limits.memory)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    except FileNotFoundError:
        pass  # no Linux: no limit of memory, as for decoding
    try:
        encode(Path(source), Path(target), Coding(**settings["coding"]), limits)
    except (MediaError, av.FFmpegError, OSError, EOFError, ValueError, MemoryError) as error:
        print(str(error) or type(error).__name__, file=sys.stderr)
        passes = isinstance(error, OSError | MemoryError) or getattr(error, "retry", False)
        sys.exit(MAY_PASS if passes else 1)


if __name__ == "__main__":
    _main(*sys.argv[1:])
