"""Compares sizes, frames and pixel values with qwen-vl-utils and transformers' processors."""

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

LOW, HIGH = 4 * TOKEN, 200 * TOKEN  # the protocol's pixel limits of a frame


@dataclasses.dataclass(frozen=True)
class Difference:
    """Differences of uint8 values: the largest, the mean, and the share of values that differ.

    `limit` is (largest, share), or None if the difference is only reported.
    """

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


def difference(what: str, ours, theirs, limit=None) -> Difference:
    apart = [np.abs(a.astype(int) - b).ravel() for a, b in zip(ours, theirs, strict=True)]
    apart = np.concatenate(apart)
    return Difference(what, int(apart.max()), float((apart > 0).mean()), float(apart.mean()), limit)


def compare_sizes(count: int) -> list[tuple[str, int, int]]:
    """(what, cases, equal cases) of sizes, with separate lines for those of our guards only."""
    found: dict[str, list[bool]] = {}
    for frames, height, width, low, high, total in draw_sizes(count, seed=2):
        limits = dict(min_pixels=low, max_pixels=high) | ({"total_pixels": total} if total else {})
        if frames:
            theirs = reference.video_size(frames, height, width, **limits)
            high = frame_budget(frames, 28, low, high, total or None)
        else:
            theirs = reference.image_size(height, width, **limits)
        ours = smart_resize(height, width, 28, low, high)
        kind = "sizes of videos" if frames else "sizes of images"
        if min(theirs) == 0:  # torch and Pillow then raise
            found.setdefault("sizes where theirs is 0: ours is within the limit", []).append(
                min(ours) >= 28 and math.prod(ours) <= high
            )
        elif math.prod(theirs) > high:
            found.setdefault("sizes where theirs exceeds the limit: ours is within it", []).append(
                math.prod(ours) <= high
            )
        else:
            found.setdefault(kind, []).append(ours == theirs)
    return [(what, len(equal), sum(equal)) for what, equal in found.items()]


def compare_resizing(clips: dict[str, np.ndarray]) -> Iterator[Difference]:
    """Each mode on frames of videos and on generated ones; `clips` are uint8 [T, H, W, 3]."""
    rng = np.random.default_rng(0)
    generated = [draw_frames(*size, rng) for size in ((240, 320), (97, 530), (900, 300), (60, 44))]
    for name, frames in (("videos", list(clips.values())), ("generated frames", generated)):
        if not frames:
            continue
        for limits in ((LOW, HIGH), (128 * TOKEN, 768 * TOKEN)):
            sizes = [smart_resize(*f.shape[1:3], 28, *limits) for f in frames]
            pairs = list(zip(frames, sizes, strict=True))
            once = [reference.resize_video(f, *size) for f, size in pairs]
            twice = [reference.resize_video(f, *size, native=True) for f, size in pairs]
            tokens = f"{limits[0] // TOKEN} to {limits[1] // TOKEN} tokens"
            for mode, against, theirs, limit in (
                ("exact", "", once, (1, 0.02)),
                ("uint8", "", once, None),
                ("uint8", ", transformers' resizing", twice, (2, 0.02)),
            ):
                ours = [resize(f, *size, "video", mode) for f, size in pairs]
                yield difference(f"{name}, {tokens}, `{mode}`{against}", ours, theirs, limit)


def compare_processors(videos: dict[str, bytes], scratch: Path):
    """Yields Difference: files through reader, resizing and processor."""
    processor = reference.pixel_processors()
    limits = dict(min_pixels=LOW, max_pixels=HIGH)
    ours, theirs = [], []
    for name, data in videos.items():
        path = scratch / name
        path.write_bytes(data)
        frames, _ = reference.read_video(path, 8, **limits)
        theirs.append(levels(processor, frames))
        ours.append(_ours(load_video(path, 8).frames, "video"))
    if videos:
        yield difference("video files, 8 frames", ours, theirs, (1, 0.02))
    odd = draw_frames(112, 84, np.random.default_rng(1)).repeat(7, axis=0)
    odd += np.arange(7, dtype=np.uint8)[:, None, None, None]
    ours, theirs = [_ours(odd, "video")], [levels(processor, odd)]
    yield difference("seven frames: the last one is repeated", ours, theirs, (0, 0))


def compare_images(what, pictures: list, limit) -> Difference:
    """Images through `fetch_image` and processor."""
    processor = reference.pixel_processors()
    ours, theirs = [], []
    for picture in pictures:
        image = reference.read_image(picture, min_pixels=LOW, max_pixels=HIGH)
        theirs.append(levels(processor, image[None], image=True))
        ours.append(_ours(load_image(picture)[None], "image"))
    return difference(what, ours, theirs, limit)


def levels(processor, frames: np.ndarray, image: bool = False) -> np.ndarray:
    """The processor's patches with its normalisation inverted, uint8 [F, P, 1176].

    Raises:
      AssertionError: a value is not an integer in 0..255 within 1e-3.
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
    index = (row // 2 * (width // 28) + col // 2) * 4 + row % 2 * 2 + col % 2
    ordered = np.empty_like(patches)
    ordered[:, index] = patches
    return ordered


def pixel_types(photo: Image.Image) -> dict[str, Image.Image]:
    """One photograph in every pixel format that converts to 8 bits."""
    transparent = photo.convert("RGBA")
    transparent.putalpha(Image.linear_gradient("L").resize(photo.size))
    palette = photo.convert("P", palette=Image.Palette.ADAPTIVE)
    rotated = Image.Exif()
    rotated[0x0112] = 6
    types = {
        "RGB": photo,
        "RGBA": transparent,
        "grey": photo.convert("L"),
        "grey with alpha": transparent.convert("LA"),
        "palette": palette,
        "black and white": photo.convert("1"),
        "CMYK": photo.convert("CMYK"),
        "YCbCr": photo.convert("YCbCr"),
    }
    saved = io.BytesIO()
    photo.save(saved, "JPEG", exif=rotated)
    types["EXIF orientation"] = Image.open(saved)
    saved = io.BytesIO()
    palette.save(saved, "PNG", transparency=bytes(range(256)))
    types["palette with transparency"] = Image.open(saved)
    return types
