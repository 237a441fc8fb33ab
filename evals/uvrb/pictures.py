"""Images and clips as small JPEGs inside the page."""

import base64
import html
import io
from pathlib import Path

import numpy as np
from PIL import Image

from gve_jax.media.errors import MediaError
from gve_jax.media.pixels import load_image
from gve_jax.media.video import load_video

FRAMES = 4
HEIGHT = 84  # pixels of a strip
WIDEST = 160  # pixels of one frame in a strip
GAP = 4
QUALITY = 72
BUDGET = 4_500_000  # characters of all pictures of a page; later ones are left out


class Pictures:
    """Makes `<img>` elements until the page's budget is spent."""

    def __init__(self, budget: int = BUDGET):
        self._left = budget
        self._made: dict[Path, str] = {}

    def clip(self, path: Path, alt: str) -> str:
        """Four frames of a video, the first and the last included, side by side."""
        return self._element(path, alt, lambda: _strip(list(load_video(path, FRAMES).frames)))

    def image(self, path: Path, alt: str) -> str:
        return self._element(path, alt, lambda: _strip([load_image(path)]))

    def _element(self, path: Path, alt: str, make) -> str:
        if path not in self._made:
            try:
                self._made[path] = make()
            except MediaError:
                return '<span class="nopicture">cannot be read</span>'
        source = self._made[path]
        if len(source) > self._left:
            return '<span class="nopicture">left out to keep the page small</span>'
        self._left -= len(source)
        return f'<img src="{source}" alt="{html.escape(alt)}" height="{HEIGHT}" loading="lazy">'


def _strip(frames: list[np.ndarray]) -> str:
    """uint8 [H, W, 3] frames side by side as the data URI of a JPEG."""
    small = [_shrunk(frame) for frame in frames]
    width = sum(frame.width for frame in small) + GAP * (len(small) - 1)
    canvas = Image.new("RGB", (width, HEIGHT), (255, 255, 255))
    left = 0
    for frame in small:
        canvas.paste(frame, (left, 0))
        left += frame.width + GAP
    buffer = io.BytesIO()
    canvas.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _shrunk(frame: np.ndarray) -> Image.Image:
    """A frame at the strip's height; a very wide one is letterboxed."""
    image = Image.fromarray(frame)
    scale = min(HEIGHT / image.height, WIDEST / image.width)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    image = image.resize(size, Image.Resampling.LANCZOS)
    if image.height == HEIGHT:
        return image
    boxed = Image.new("RGB", (image.width, HEIGHT), (0, 0, 0))
    boxed.paste(image, (0, (HEIGHT - image.height) // 2))
    return boxed
