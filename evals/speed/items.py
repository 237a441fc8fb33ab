"""Random items that several benchmarks embed."""

from collections.abc import Callable

import numpy as np

from gve_jax.media.item import Item

Size = Callable[[np.random.Generator], tuple[int, int]]


def draw_text(rng: np.random.Generator, least: int, most: int) -> str:
    """`least` to `most` lowercase letters."""
    letters = rng.integers(97, 123, int(rng.integers(least, most + 1)))
    return bytes(letters.astype(np.uint8)).decode()


def draw_items(count: int, image_size: Size, video_size: Size, seed: int = 0) -> list[Item]:
    """Half texts of 8 to 300 letters, a quarter images, a quarter videos of 8 frames; shuffled.

    Args:
      image_size, video_size: draw (height, width) of an image and of a video.
    """
    rng = np.random.default_rng(seed)

    def draw_pixels(*shape):
        return rng.integers(0, 256, (*shape, 3)).astype(np.uint8)

    items = []
    for i in range(count):
        match i % 4:
            case 0 | 1:
                items.append(Item(text=draw_text(rng, 8, 300)))
            case 2:
                items.append(Item(text="what is it?", image=draw_pixels(*image_size(rng))))
            case 3:
                items.append(Item(text="it moves", video=draw_pixels(8, *video_size(rng)), fps=2.0))
    return [items[i] for i in rng.permutation(count)]
