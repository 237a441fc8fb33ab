"""Documents encoded again, at a low bitrate or with another codec: does the ranking survive it?

    python -m evals.uvrb ... --reencode crf=40
    python -m evals.uvrb ... --reencode codec=mpeg4,bitrate=100k

Every frame keeps its time, and its picture is upright afterwards; an odd last row or column is
cut, as the codecs need even sides; sound is dropped. Each file is read by a process of its own,
which can be killed, under the limits of `gve_jax.inputs.limits` (but for the seconds: a whole file
takes longer than eight frames). The copies stay in OUTPUT/reencoded, which may be deleted
afterwards.
"""

import dataclasses
import hashlib
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np

from gve_jax.errors import UserError
from gve_jax.inputs.container import open_video
from gve_jax.inputs.errors import MediaError
from gve_jax.inputs.limits import Limits
from gve_jax.inputs.video import upright

SECONDS = 1800.0  # of one file
_REASON = 300  # characters


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
        return "-".join(f"{value}" if key == "codec" else f"{key}{value}"
                        for key, value in parts.items() if value is not None)  # fmt: skip


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
                raise UserError(f"--reencode: {key}={found[key]} is no number, such as crf=40 or "
                                "bitrate=100k")  # fmt: skip
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


class Reencoder:
    """Encodes videos again and keeps the copies.

    `failed` holds why a video could not be, by its path: in its place stands an empty file, which
    the encoder cannot read and puts into the quarantine.

    Args:
      folder: OUTPUT/reencoded.
      coding: how.
      limits: what one file may cost.
    """

    def __init__(self, folder: Path, coding: Coding, limits: Limits | None = None):
        self.folder, self.coding = folder / coding.name, coding
        self.limits = limits or Limits()
        self.failed: dict[str, str] = {}

    def __call__(self, videos: Sequence[Path]) -> list[Path]:
        """The copies of the videos, those that are missing made now, several at once.

        Raises:
          UserError: a video that is a folder of frames.
        """
        for video in videos:
            if os.path.isdir(video):
                raise UserError(f"--reencode: {video} is a folder of frames, not a file")
        self.folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            digests = list(pool.map(_digest, videos))
            first = dict(zip(digests, videos, strict=True))  # the same content once
            list(pool.map(self._copy, first, first.values()))
        return [self.folder / f"{digest}.mp4" for digest in digests]

    def _copy(self, digest: str, video: Path) -> None:
        copy = self.folder / f"{digest}.mp4"
        if copy.exists():
            if not copy.stat().st_size:
                self.failed[str(video)] = "could not be encoded by an earlier command"
            return
        part = copy.with_suffix(f".{os.getpid()}.part")
        setup = json.dumps(
            {"coding": dataclasses.asdict(self.coding), "limits": dataclasses.asdict(self.limits)}
        )
        command = [sys.executable, "-m", "evals.uvrb.reencode", video, part, setup]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace",
                                  timeout=SECONDS, env=environment)  # fmt: skip
            reason = "" if done.returncode == 0 else _last_line(done.stderr)
        except subprocess.TimeoutExpired:
            reason = f"not encoded in {SECONDS:g} seconds"
        if reason:
            self.failed[str(video)] = reason
            part.write_bytes(b"")
        os.replace(part, copy)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
                raise MediaError(f"{name}: more frames than the limit of {limits.frames}")
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


def _last_line(text: str) -> str:
    """One printable line: a file may have chosen these words."""
    lines = text.strip().split("\n")
    return "".join(c if c.isprintable() else "?" for c in lines[-1][:_REASON]) or "it crashed"


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
        sys.exit(str(error) or type(error).__name__)


if __name__ == "__main__":
    _main(*sys.argv[1:])
