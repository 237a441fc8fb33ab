"""Strips of thumbnails of moments, as JPEG."""

import dataclasses
import io
from pathlib import Path

import numpy as np
from PIL import Image

from gve_jax.index.store import Media
from gve_jax.index.windows import SLACK
from gve_jax.inputs.preprocess import InputSpec
from gve_jax.media.item import Item
from gve_jax.media.outline import Outline
from gve_jax.media.sandbox import Sandbox
from gve_jax.page.queries import Recent

FRAMES = 4  # of a moment of a video
WIDTH, HEIGHT = 256, 144  # of a thumbnail of an image, at most
SPEC = dataclasses.replace(InputSpec(), max_pixels=WIDTH * HEIGHT)  # of frames of a video
STRIPS = 64 << 20  # bytes of JPEG that are kept
OUTLINES = 64 << 20  # bytes of outlines that are kept


class Thumbnails:
    """Reads thumbnails in the sandbox; what it has read is kept in memory."""

    def __init__(self, sandbox: Sandbox):
        self._sandbox = sandbox
        self._strips, self._outlines = Recent(STRIPS), Recent(OUTLINES)

    def strip(self, file: Media, path: Path, start_sec: float, end_sec: float) -> bytes:
        """JPEG of an image, or of frames of a moment from left to right.

        Raises:
          MediaError: a file that cannot be read.
        """
        key = (file.sha256, file.kind, start_sec, end_sec)
        if (strip := self._strips.get(key)) is None:
            if file.kind == "image":
                pictures = self._sandbox.thumbnails(Item(image=path), 1, HEIGHT, WIDTH).frames
            else:
                pictures = self._frames(file, path, start_sec, end_sec)
            strip = _jpeg(np.concatenate(list(pictures), axis=1))
            self._strips.put(key, strip, len(strip))
        return strip

    def _frames(self, file: Media, path: Path, start_sec: float, end_sec: float) -> np.ndarray:
        outline = self._outline(file, path)
        starts = outline.starts(np.arange(outline.total))
        first, stop = np.searchsorted(starts, np.array([start_sec, end_sec]) - SLACK).tolist()
        first = min(first, outline.total - 1)
        stop = max(stop, first + 1)
        # The middles of equal parts: the first frame of a shot may be a fade.
        at = first + (np.arange(FRAMES) + 0.5) / FRAMES * (stop - first)
        at = np.unique(np.minimum(at.astype(np.int64), outline.total - 1))
        return self._sandbox.pictures(path, at, outline, spec=SPEC)

    def _outline(self, file: Media, path: Path) -> Outline:
        if (outline := self._outlines.get(file.sha256)) is None:
            outline = self._sandbox.outline(path)
            self._outlines.put(file.sha256, outline, 32 * outline.total)
        return outline


def _jpeg(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "JPEG", quality=80)
    return file.getvalue()
