"""Sizes, frames and pixel values beside qwen-vl-utils and transformers' processors."""

import dataclasses
import io
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from evals.parity import reference_inputs as reference
from evals.parity.goldens.resize import TOKEN, draw_frames, draw_sizes
from gve_jax.inputs.layout import window_layout
from gve_jax.media.pixels import frame_budget, load_image, patchify, smart_resize
from gve_jax.media.resize import resize
from gve_jax.media.video import load_video

LOW, HIGH = 4 * TOKEN, 200 * TOKEN  # the protocol's limits of a frame


@dataclasses.dataclass(frozen=True)
class Difference:
    """How far apart uint8 values are: the largest, the mean, and the share that differs at all;
    `limit` is (largest, share), None where the figure is only stated."""

    what: str
    largest: int
    share: float
    mean: float
    limit: tuple[int, float] | None

    @property
    def passed(self) -> bool:
        if self.limit is None:
            return True
        return self.largest <= self.limit[0] and self.share <= self.limit[1]


def difference(what: str, mine, theirs, limit=None) -> Difference:
    apart = [np.abs(a.astype(int) - b).ravel() for a, b in zip(mine, theirs, strict=True)]
    apart = np.concatenate(apart)
    return Difference(what, int(apart.max()), float((apart > 0).mean()), float(apart.mean()), limit)


def compare_sizes(count: int) -> list[tuple[str, int, int]]:
    """(what, cases, equal ones) of sizes; those that only our guards give stand apart."""
    found: dict[str, list[bool]] = {}
    for frames, height, width, low, high, total in draw_sizes(count, seed=2):
        limits = dict(min_pixels=low, max_pixels=high) | ({"total_pixels": total} if total else {})
        if frames:
            theirs = reference.video_size(frames, height, width, **limits)
            high = frame_budget(frames, 28, low, high, total or None)
        else:
            theirs = reference.image_size(height, width, **limits)
        mine = smart_resize(height, width, 28, low, high)
        kind = "sizes of videos" if frames else "sizes of images"
        if min(theirs) == 0:  # torch and Pillow then raise
            found.setdefault("sizes where theirs is 0: ours fits its limit", []).append(
                min(mine) >= 28 and math.prod(mine) <= high
            )
        elif math.prod(theirs) > high:
            found.setdefault("sizes where theirs exceeds its limit: ours fits", []).append(
                math.prod(mine) <= high
            )
        else:
            found.setdefault(kind, []).append(mine == theirs)
    return [(what, len(equal), sum(equal)) for what, equal in found.items()]


def compare_resizing(clips: dict[str, np.ndarray]) -> Iterator[Difference]:
    """Each mode on frames of films and on generated ones; `clips` are uint8 [T, H, W, 3]."""
    rng = np.random.default_rng(0)
    generated = [draw_frames(*size, rng) for size in ((240, 320), (97, 530), (900, 300), (60, 44))]
    for name, frames in (("films", list(clips.values())), ("generated frames", generated)):
        if not frames:
            continue
        for limits in ((LOW, HIGH), (128 * TOKEN, 768 * TOKEN)):
            sizes = [smart_resize(*f.shape[1:3], 28, *limits) for f in frames]
            pairs = list(zip(frames, sizes, strict=True))
            once = [reference.resize_video(f, *size) for f, size in pairs]
            twice = [reference.resize_video(f, *size, native=True) for f, size in pairs]
            tokens = f"{limits[0] // TOKEN} to {limits[1] // TOKEN} tokens"
            for mode, beside, theirs, limit in (
                ("exact", "", once, (1, 0.02)),
                ("uint8", "", once, None),
                ("uint8", ", transformers' own resizing", twice, (2, 0.02)),
            ):
                mine = [resize(f, *size, "video", mode) for f, size in pairs]
                yield difference(f"{name}, {tokens}, `{mode}`{beside}", mine, theirs, limit)


def compare_processors(films: dict[str, bytes], scratch: Path):
    """Yields Difference: whole files through their reader, resizing and processor."""
    processor = reference.pixel_processors()
    limits = dict(min_pixels=LOW, max_pixels=HIGH)
    mine, theirs = [], []
    for name, data in films.items():
        path = scratch / name
        path.write_bytes(data)
        frames, _ = reference.read_video(path, 8, **limits)
        theirs.append(levels(processor, frames))
        mine.append(_ours(load_video(path, 8).frames, "video"))
    if films:
        yield difference("files of films, 8 frames", mine, theirs, (1, 0.02))
    odd = draw_frames(112, 84, np.random.default_rng(1)).repeat(7, axis=0)
    odd += np.arange(7, dtype=np.uint8)[:, None, None, None]
    yield difference(
        "seven frames: the last one twice", [_ours(odd, "video")], [levels(processor, odd)], (0, 0)
    )


def compare_images(what, pictures: list, limit) -> Difference:
    """Pictures through `fetch_image` and processor."""
    processor = reference.pixel_processors()
    mine, theirs = [], []
    for picture in pictures:
        image = reference.read_image(picture, min_pixels=LOW, max_pixels=HIGH)
        theirs.append(levels(processor, image[None], image=True))
        mine.append(_ours(load_image(picture)[None], "image"))
    return difference(what, mine, theirs, limit)


def levels(processor, frames: np.ndarray, image: bool = False) -> np.ndarray:
    """The processor's patches as the values 0..255 that they were; uint8 [F, P, 1176].

    Raises:
      AssertionError: a normalised value is no such value, within 1e-3 of one.
    """
    if image:
        part = processor.image_processor(images=[frames[0]], return_tensors="np")
        patches, grid = part["pixel_values"], part["image_grid_thw"][0]
    else:
        part = processor.video_processor(
            videos=[frames], do_sample_frames=False, return_tensors="np"
        )
        patches, grid = part["pixel_values_videos"], part["video_grid_thw"][0]
    assert tuple(grid[1:] * 14) == frames.shape[1:3], "the processor resized again"
    mean = np.repeat([0.48145466, 0.4578275, 0.40821073], 2 * 14 * 14)
    std = np.repeat([0.26862954, 0.26130258, 0.27577711], 2 * 14 * 14)
    values = (patches.astype(np.float64) * std + mean) * 255
    assert np.abs(values - values.round()).max() < 1e-3, "not a normalised uint8"
    return values.round().astype(np.uint8).reshape(grid[0], -1, 1176)


def _ours(frames: np.ndarray, kind: str) -> np.ndarray:
    """Our patches, in the processor's order."""
    high = frame_budget(len(frames), 28, LOW, HIGH, None) if kind == "video" else HIGH
    height, width = smart_resize(*frames.shape[1:3], 28, LOW, high)
    layout = window_layout(height // 14, width // 14, 8, 2)
    patches = patchify(resize(frames, height, width, kind, "exact"), layout, 14, 2)
    row, col = layout.coords.T
    place = (row // 2 * (width // 28) + col // 2) * 4 + row % 2 * 2 + col % 2
    ordered = np.empty_like(patches)
    ordered[:, place] = patches
    return ordered


def pixel_types(photo: Image.Image) -> dict[str, Image.Image]:
    """One photograph as everything a file can hold that converts to 8 bits."""
    clear = photo.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(photo.size))
    palette = photo.convert("P", palette=Image.Palette.ADAPTIVE)
    turned = Image.Exif()
    turned[0x0112] = 6
    types = {
        "RGB": photo,
        "RGBA": clear,
        "grey": photo.convert("L"),
        "grey with alpha": clear.convert("LA"),
        "palette": palette,
        "black and white": photo.convert("1"),
        "CMYK": photo.convert("CMYK"),
        "YCbCr": photo.convert("YCbCr"),
    }
    saved = io.BytesIO()
    photo.save(saved, "JPEG", exif=turned)
    types["EXIF orientation"] = Image.open(saved)
    saved = io.BytesIO()
    palette.save(saved, "PNG", transparency=bytes(range(256)))
    types["palette with transparency"] = Image.open(saved)
    return types
