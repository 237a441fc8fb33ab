"""Documents encoded again, at a low bitrate or with another codec: does the ranking survive it?

    python -m evals.uvrb ... --reencode crf=40
    python -m evals.uvrb ... --reencode codec=mpeg4,bitrate=100k

Every frame keeps its time, and its picture is upright afterwards; an odd last row or column is
cut, as the codecs need even sides; sound is dropped. Each file is read by a process of its own,
which can be killed, under the limits of `gve_jax.media.limits` (but for the seconds: a whole file
takes longer than eight frames). The copies stay in OUTPUT/reencoded, which may be deleted
afterwards.
"""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax

from data.uvrb.files import file_sha256
from evals.uvrb.transcode import MAY_PASS, Coding
from gve_jax.distributed import hosts
from gve_jax.errors import UserError
from gve_jax.media.limits import Limits
from gve_jax.storage.files import write_json

WORKER = "evals.uvrb.transcode"
SECONDS = 1800.0  # of one file
_REASON = 300  # characters


class Reencoder:
    """Encodes videos again and keeps the copies.

    `failed` holds why a video could not be, by its path: in its place stands an empty file, which
    the encoder cannot read and puts into the quarantine, and the reason in a JSON file beside it.
    What failed for a reason that may pass is encoded again when the command is repeated.

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
            digests = list(pool.map(file_sha256, videos))
            first = dict(zip(reversed(digests), reversed(videos), strict=True))  # each content once
            if jax.process_index() == 0:
                found = dict(zip(first, pool.map(self._copy, first, first.values()), strict=True))
                for digest, video in zip(digests, videos, strict=True):
                    if found[digest]:
                        reason = found[digest].replace(str(first[digest]), str(video))
                        self.failed[str(video)] = reason
        hosts.barrier()  # of several hosts the first one encodes, the others wait
        return [self.folder / f"{digest}.mp4" for digest in digests]

    def _copy(self, digest: str, video: Path) -> str:
        """Makes a copy unless it is there; why it could not be made, or an empty text."""
        copy = self.folder / f"{digest}.mp4"
        if copy.exists():
            reason, may_pass = _read_failure(copy)
            if not may_pass:
                return reason
        part = copy.with_suffix(f".{os.getpid()}.part")
        setup = json.dumps(
            {"coding": dataclasses.asdict(self.coding), "limits": dataclasses.asdict(self.limits)}
        )
        command = [sys.executable, "-m", WORKER, video, part, setup]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=SECONDS,
                env=environment,
            )
            reason = "" if done.returncode == 0 else _last_line(done.stderr)
            # A negative status is a signal: whoever sent it, the next time may be another.
            may_pass = done.returncode < 0 or done.returncode == MAY_PASS
        except subprocess.TimeoutExpired:
            reason, may_pass = f"not encoded in {SECONDS:g} seconds", True
        if reason:
            write_json(copy.with_suffix(".json"), {"reason": reason, "retry": may_pass})
            part.write_bytes(b"")
        else:
            copy.with_suffix(".json").unlink(missing_ok=True)
        os.replace(part, copy)
        return reason


def _read_failure(copy: Path) -> tuple[str, bool]:
    """Why there is no copy but an empty file, and whether that may pass."""
    if copy.stat().st_size:
        return "", False
    try:
        line = json.loads(copy.with_suffix(".json").read_text(encoding="utf-8"))
        return str(line["reason"]), bool(line["retry"])
    except (OSError, ValueError, KeyError, TypeError):
        return "", True  # of a version that did not write it: find out


def _last_line(text: str) -> str:
    """One printable line: a file may have chosen these words."""
    lines = text.strip().split("\n")
    return "".join(c if c.isprintable() else "?" for c in lines[-1][:_REASON]) or "it crashed"
