"""Re-encodes documents: shows whether scores survive a lower bitrate or another codec.

    python -m evals.uvrb ... --reencode crf=40
    python -m evals.uvrb ... --reencode codec=mpeg4,bitrate=100k

Frames keep their timestamps and are rotated upright; an odd last row or column is cropped, since
the codecs need even sides; sound is dropped. Files are read and written in a sandbox, under the
limits of `gve_jax.media.limits` (except the seconds: re-encoding takes longer than decoding eight
frames). The copies stay in OUTPUT/reencoded, which may be deleted.
"""

import dataclasses
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np

from evals.uvrb.transcode import Coding
from gve_jax.distributed import hosts
from gve_jax.distributed.cores import usable_cores
from gve_jax.errors import UserError
from gve_jax.media.item import Item
from gve_jax.media.limits import Limits
from gve_jax.media.sandbox import Failure, Sandbox, attempt
from gve_jax.storage.digests import file_sha256
from gve_jax.storage.files import atomic_write, write_json

WORKER = "evals.uvrb.transcode"
SECONDS = 1800.0  # limit for one file
_REASON = 300  # characters of a reason


class Reencoder:
    """Re-encodes videos and stores the copies.

    `failed` maps the path of a video that could not be encoded to the reason. Its copy is an empty
    file, which the model cannot read and puts into the quarantine; a JSON file next to it contains
    the reason. Transient failures are retried when the command is repeated.

    Args:
      folder: OUTPUT/reencoded.
      coding: encoder and quality.
      limits: limits for one file.
    """

    def __init__(self, folder: Path, coding: Coding, limits: Limits | None = None):
        self.folder, self.coding = folder / coding.name, coding
        self.limits = dataclasses.replace(limits or Limits(), seconds=SECONDS)
        self._sandbox = Sandbox(self.limits, usable_cores(), worker=WORKER)
        self.failed: dict[str, str] = {}

    def __call__(self, videos: Sequence[Path]) -> list[Path]:
        """The copies of the videos; encodes missing ones in parallel.

        Raises:
          UserError: a video that is a folder of frames.
        """
        for video in videos:
            if os.path.isdir(video):
                raise UserError(f"--reencode: {video} is a folder of frames, not a file")
        self.folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(usable_cores()) as pool:
            digests = list(pool.map(file_sha256, videos))
            # Equal content is encoded once.
            first = dict(zip(reversed(digests), reversed(videos), strict=True))
            if jax.process_index() == 0:
                found = dict(zip(first, pool.map(self._copy, first, first.values()), strict=True))
                for digest, video in zip(digests, videos, strict=True):
                    if found[digest]:
                        reason = found[digest].replace(str(first[digest]), str(video))
                        self.failed[str(video)] = reason
        self._sandbox.close()
        hosts.barrier()  # host 0 encodes, the others wait
        return [self.folder / f"{digest}.mp4" for digest in digests]

    def _copy(self, digest: str, video: Path) -> str:
        """Encodes a copy unless it exists; returns the reason of a failure, or an empty text."""
        copy = self.folder / f"{digest}.mp4"
        if copy.exists():
            reason, retry = _read_failure(copy)
            if not retry:
                return reason
        copy.with_suffix(".json").unlink(missing_ok=True)
        data = attempt(self._encode, video)
        if isinstance(data, Failure):
            record = {"reason": data.reason[:_REASON], "retry": data.retry}
            write_json(copy.with_suffix(".json"), record)
            atomic_write(copy, lambda file: None)
            return record["reason"]
        atomic_write(copy, lambda file: file.write(data))
        return ""

    def _encode(self, video: Path) -> np.ndarray:
        def check(header: dict, body: np.ndarray) -> np.ndarray:
            if header["bytes"] != len(body) or not len(body):
                raise ValueError
            return body

        item, coding = Item(video=video), vars(self.coding)
        return self._sandbox.run("encode", item, check, self.limits.memory, coding=coding)


def _read_failure(copy: Path) -> tuple[str, bool]:
    """Reason of a failure, and whether to retry; an empty text if there is a copy."""
    if copy.stat().st_size:
        return "", False
    try:
        line = json.loads(copy.with_suffix(".json").read_text(encoding="utf-8"))
        return str(line["reason"]), bool(line["retry"])
    except (OSError, ValueError, KeyError, TypeError):
        return "", True  # written by a version without reasons: retry
