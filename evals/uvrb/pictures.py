"""Images and clips as small JPEGs inside the page."""

import base64
import html
import io
from pathlib import Path

import numpy as np
from PIL import Image

from gve_jax.media.errors import MediaError
from gve_jax.media.item import Item
from gve_jax.media.sandbox import Sandbox

FRAMES = 4
HEIGHT = 84  # pixels of a strip
WIDEST = 160  # pixels of one frame in a strip
GAP = 4
QUALITY = 72
BUDGET = 4_500_000  # characters of all pictures of a page; later ones are left out


class Pictures:
    """Makes `<img>` elements until the page's budget is spent. Files are decoded in a sandbox."""

    def __init__(self, budget: int = BUDGET):
        self._left = budget
        self._encoded: dict[Path, str] = {}
        self._sandbox = Sandbox()

    def clip(self, path: Path, alt: str) -> str:
        """Four frames of a video, the first and the last included, side by side."""
        return self._element(path, alt, Item(video=path))

    def image(self, path: Path, alt: str) -> str:
        return self._element(path, alt, Item(image=path))

    def _element(self, path: Path, alt: str, item: Item) -> str:
        if path not in self._encoded:
            try:
                clip = self._sandbox.thumbnails(item, FRAMES, HEIGHT, WIDEST)
            except MediaError:
                return '<span class="nopicture">cannot be read</span>'
            self._encoded[path] = _strip(clip.frames)
        source = self._encoded[path]
        if len(source) > self._left:
            return '<span class="nopicture">left out to keep the page small</span>'
        self._left -= len(source)
        return f'<img src="{source}" alt="{html.escape(alt)}" height="{HEIGHT}" loading="lazy">'


def _strip(frames: np.ndarray) -> str:
    """Frames uint8 [T, H, W, 3] side by side, as the data URI of a JPEG.

    Very wide frames are lower than the strip: they are letterboxed.
    """
    count, height, width = frames.shape[:3]
    canvas = Image.new("RGB", (count * (width + GAP) - GAP, HEIGHT), (255, 255, 255))
    for number, frame in enumerate(frames):
        left = number * (width + GAP)
        canvas.paste((0, 0, 0), (left, 0, left + width, HEIGHT))
        canvas.paste(Image.fromarray(frame), (left, (HEIGHT - height) // 2))
    buffer = io.BytesIO()
    canvas.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
