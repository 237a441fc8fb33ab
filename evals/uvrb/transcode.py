"""Re-encodes videos: the program of decoding processes that also encode."""

import dataclasses
import io
import re

import av
import numpy as np

from gve_jax.errors import UserError
from gve_jax.media import worker
from gve_jax.media.container import open_video
from gve_jax.media.errors import LimitError, MediaError
from gve_jax.media.item import Item, source_name
from gve_jax.media.limits import Limits
from gve_jax.media.video import upright


@dataclasses.dataclass(frozen=True)
class Coding:
    """An FFmpeg encoder with its crf or bits per second."""

    codec: str = "libx264"
    crf: int | None = None
    bitrate: int | None = None

    @property
    def name(self) -> str:
        """Name of the folder of the copies."""
        parts = dataclasses.asdict(self)
        return "-".join(
            f"{value}" if key == "codec" else f"{key}{value}"
            for key, value in parts.items()
            if value is not None
        )


def parse_coding(text: str) -> Coding:
    """Parses `codec=libx265,crf=40` or `bitrate=100k`.

    Raises:
      UserError: an unknown key, an invalid number, an encoder that this FFmpeg lacks, or not
        exactly one of crf and bitrate.
    """
    found = dict(part.partition("=")[::2] for part in text.split(","))
    if unknown := sorted(set(found) - {"codec", "crf", "bitrate"}):
        raise UserError(f"--reencode: unknown key {unknown[0]!r}; known: codec, crf, bitrate")
    numbers = {}
    for key in ("crf", "bitrate"):
        if key in found:
            value = re.fullmatch(r"(\d+)([kM]?)", found[key])
            if not value or (key == "crf" and value[2]):
                example = "a number, such as crf=40 or bitrate=100k"
                raise UserError(f"--reencode: {key}={found[key]} must be {example}")
            numbers[key] = int(value[1]) * {"": 1, "k": 1000, "M": 1_000_000}[value[2]]
    if len(numbers) != 1:
        raise UserError("--reencode needs either crf=... or bitrate=...")
    codec = found.get("codec", Coding.codec)
    try:
        known = av.codec.Codec(codec, "w").type == "video"
    except (av.FFmpegError, ValueError):
        known = False
    if not known:
        raise UserError(f"--reencode: this FFmpeg has no video encoder {codec!r}")
    return Coding(codec, **numbers)


def encode(source, coding: Coding, limits: Limits) -> bytes:
    """Encodes one medium (see `open_source`) as MP4.

    Raises:
      MediaError: a file that cannot be read, is damaged, or exceeds a limit.
    """
    name, buffer = source_name(source), io.BytesIO()
    options = {} if coding.crf is None else {"crf": str(coding.crf)}
    if coding.codec == "libx265":
        # With B-frames, FFmpeg 8 gives the packets of one or two frames decoding times by chance.
        options["x265-params"] = "log-level=none:bframes=0"
    with (
        open_video(source, name, limits) as (container, stream, _),
        av.open(buffer, "w", format="mp4") as output,
    ):
        encoder = None
        for count, frame in enumerate(container.decode(stream), start=1):
            if count > limits.frames:
                raise LimitError(f"{name}: more frames than the limit of {limits.frames}")
            if frame.pts is None:
                raise MediaError(f"{name}: a frame without a timestamp")
            picture = frame.to_ndarray(format="rgb24")
            if matrix := frame.side_data.get("DISPLAYMATRIX"):
                picture = upright(picture, bytes(matrix), name)
            height, width = (side // 2 * 2 for side in picture.shape[:2])
            if encoder is None:
                rate = stream.average_rate or stream.guessed_rate
                encoder = output.add_stream(coding.codec, rate=rate, options=options)
                encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
                encoder.codec_context.time_base = stream.time_base
                # One thread gives reproducible bytes; files are encoded in parallel.
                encoder.thread_count = 1
                if coding.bitrate is not None:
                    encoder.bit_rate = coding.bitrate
            if (width, height) != (encoder.width, encoder.height):
                raise MediaError(f"{name}: the frame size changes")
            picture = np.ascontiguousarray(picture[:height, :width])
            copy = av.VideoFrame.from_ndarray(picture, format="rgb24")
            copy.pts, copy.time_base = frame.pts, frame.time_base
            output.mux(encoder.encode(copy))
        if encoder is None:
            raise MediaError(f"{name}: no decodable frame")
        output.mux(encoder.encode())
    return buffer.getvalue()


def _encode(request: dict, item: Item, limits: Limits) -> tuple[dict, list[np.ndarray]]:
    data = encode(item.video, Coding(**request["coding"]), limits)
    return {"bytes": len(data)}, [np.frombuffer(data, np.uint8)]


def main() -> None:
    worker.OPERATIONS["encode"] = _encode
    worker.main()
