"""What the importer accepts as a video is what the loader accepts."""

import numpy as np
import pytest
from PIL import Image

from data.pairs.reader import header
from gve_jax.media.errors import MediaError
from gve_jax.media.video import load_video
from tests.media.animated import Part, apng, webp
from tests.media.files import numbered, picture

PARTS = [Part(np.full((6, 8, 4), 255, np.uint8)) for _ in range(3)]
STILL = Image.fromarray(numbered(1)[0])
ANIMATIONS = [
    apng(8, 6, PARTS),
    apng(8, 6, PARTS[:1]),
    apng(8, 6, PARTS, default=PARTS[0].pixels),
    webp(8, 6, PARTS[:1]),
    picture(STILL, "GIF"),
]
OTHERS = [
    picture(STILL, "PNG"),
    picture(STILL, "WEBP"),
    apng(8, 6, PARTS, count=4),
    picture(STILL, "GIF")[:-9],
]


@pytest.mark.parametrize("data", ANIMATIONS)
def test_animations(data, tmp_path):
    (tmp_path / "a").write_bytes(data)
    for source in (data, tmp_path / "a"):
        header("video", source)
        load_video(source, 2)


@pytest.mark.parametrize("data", OTHERS)
def test_what_is_no_animation(data):
    for read in (lambda: header("video", data), lambda: load_video(data, 2)):
        with pytest.raises(MediaError, match="not a readable video"):
            read()
