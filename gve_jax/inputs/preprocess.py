"""Converts an item to the arrays of a row, before padding (numpy only; also in the sandbox)."""

import dataclasses
import math
import random

import numpy as np

from gve_jax.errors import UserError
from gve_jax.fields import setting
from gve_jax.inputs.layout import window_layout
from gve_jax.inputs.positions import REGIMES, mrope_positions
from gve_jax.inputs.prompt import Prompt
from gve_jax.media.errors import MediaError
from gve_jax.media.item import ALL_FRAMES, Item, is_frames
from gve_jax.media.limits import Limits
from gve_jax.media.pixels import frame_budget, load_image, patchify, smart_resize
from gve_jax.media.resize import RESIZE, resize
from gve_jax.media.sampling import Sampling
from gve_jax.media.video import load_video


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """How media and texts become arrays; a part of every fingerprint.

    Raises:
      UserError: a value out of range, or an unknown mode or regime; the message names the field.
    """

    num_frames: int = setting(8, "frames of a video, uniformly sampled; ignored with fps")
    fps: float | None = setting(None, "frames per second, within min_frames and max_frames")
    min_frames: int = setting(4, "minimum frames of a video, with fps")
    max_frames: int = setting(768, "maximum frames of a video, with fps")
    min_pixels: int = setting(4 * 28 * 28, "minimum pixels of a frame or image")
    max_pixels: int = setting(
        200 * 28 * 28, "maximum pixels of a frame or image; the paper: 200 tokens per frame"
    )
    total_pixels: int | None = setting(None, "maximum pixels of all frames of a video together")
    exif_orientation: bool = setting(False, "rotate images by EXIF; qwen-vl-utils does not")
    resize: str = setting("exact", "resize mode, see gve_jax/media/resize.py")
    max_length: int = 8192  # tokens
    mrope: str = setting("qwen_train", "M-RoPE position regime; qwen_train: released weights")
    patch_size: int = 14
    merge: int = 2  # side of a merged token, in patches
    temporal: int = 2  # frames of a patch
    window_side: int = 8  # patches
    tokens_per_second: int = 2

    @property
    def patch_dim(self) -> int:
        """Size of a patch: channels x frames x height x width."""
        return 3 * self.temporal * self.patch_size**2

    @property
    def merge_unit(self) -> int:
        """Patches in a merged token."""
        return self.merge**2

    def __post_init__(self):
        token = (self.patch_size * self.merge) ** 2
        if self.num_frames < 2 or self.num_frames % 2:
            raise UserError(f"num_frames must be an even number above 0, not {self.num_frames}")
        if self.max_pixels < max(token, self.min_pixels):
            raise UserError(
                f"max_pixels {self.max_pixels} is below min_pixels {self.min_pixels} or the "
                f"{token} of one token"
            )
        if self.fps is not None and not 0 < self.fps < math.inf:
            raise UserError(f"fps must be a number above 0, not {self.fps}")
        for name, least in (("min_frames", 1), ("max_frames", 2)):
            if getattr(self, name) < least:
                raise UserError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if self.max_length < 2:
            raise UserError(f"max_length must be at least 2, not {self.max_length}")
        if self.total_pixels is not None and not self.total_pixels > 0:
            raise UserError(f"total_pixels must be above 0, not {self.total_pixels}")
        if not isinstance(self.exif_orientation, bool):
            raise UserError(
                f"exif_orientation must be True or False, not {self.exif_orientation!r}"
            )
        if self.resize not in RESIZE:
            raise UserError(f"unknown resize mode {self.resize!r}; known: {', '.join(RESIZE)}")
        if self.mrope not in REGIMES:
            raise UserError(f"unknown M-RoPE regime {self.mrope!r}; known: {REGIMES}")


def sampling_of(item: Item, spec: InputSpec) -> Sampling:
    """The sampling of an item's video: the options of the item, then those of the spec.

    Raises:
      UserError: min_frames or max_frames without fps.
    """
    fps = None if is_frames(item.video) else item.fps
    if fps is None and item.num_frames is None:
        fps = spec.fps
    for key in ("min_frames", "max_frames"):
        if fps is None and getattr(item, key) is not None:
            raise UserError(f"{key} requires fps: it bounds the frames of sampling by fps")
    count = item.num_frames or spec.num_frames
    return Sampling(
        num_frames=None if count == ALL_FRAMES else count,
        fps=fps,
        min_frames=item.min_frames or spec.min_frames,
        max_frames=item.max_frames or spec.max_frames,
        start=item.video_start,
        end=item.video_end,
    )


def applies_exif(item: Item, spec: InputSpec) -> bool:
    """Whether the images of an item are rotated by their EXIF orientation."""
    return spec.exif_orientation if item.exif_orientation is None else item.exif_orientation


def pixel_bounds(item: Item, spec: InputSpec) -> tuple[int, int]:
    """Minimum and maximum pixels of a frame or an image of an item.

    Raises:
      UserError: the item's min_pixels exceeds the maximum.
    """
    most = min(item.max_pixels or spec.max_pixels, spec.max_pixels)
    if item.min_pixels is not None and item.min_pixels > most:
        raise UserError(
            f"min_pixels {item.min_pixels} is above the model's max_pixels {most}: "
            "lower it, or raise the model's (with_inputs)"
        )
    return item.min_pixels or spec.min_pixels, most


@dataclasses.dataclass
class Row:
    """An item as arrays: L tokens, and P patches of each frame pair (P may differ)."""

    tokens: np.ndarray  # int32 [L]
    positions: np.ndarray  # int32 [3, L]
    patches: list[np.ndarray]  # each uint8 [P, patch_dim]
    layouts: list  # a Layout for each frame pair
    visual_tokens: np.ndarray  # int32 [V]: token index of each merged token, in raster order


class Preprocessor:
    """Converts items to rows with a tokenizer and a spec."""

    def __init__(self, prompt: Prompt | None, spec: InputSpec, limits: Limits | None = None):
        self.prompt, self.spec, self.limits = prompt, spec, limits or Limits()

    def __call__(self, item: Item) -> Row:
        """Raises MediaError for unreadable media."""
        return self.row(item, self.visuals(item))

    def frames(self, item: Item) -> list[tuple[str, np.ndarray, float]]:
        """Decodes and resizes the media of an item, the video first. Only this method reads
        untrusted files; it does not need the prompt.

        Returns:
          For each medium "video" or "image", frames uint8 [T, H, W, 3], and frames per second (0
          for an image).

        Raises:
          MediaError: unreadable media, or media with more tokens than a sequence.
        """
        spec, found = self.spec, []
        exif = applies_exif(item, spec)
        pixel_bounds(item, spec)  # before anything is decoded
        if item.video is not None:
            rate = item.fps if is_frames(item.video) else None
            clip = load_video(item.video, sampling_of(item, spec), rate, self.limits, exif)
            frames = _reorder(clip.frames, item.frame_order)
            found.append(("video", self._resize(frames, item, "video"), clip.fps))
        if item.image is not None:
            image = load_image(item.image, self.limits.frame_pixels, exif)
            found.append(("image", self._resize(image[None], item, "image"), 0.0))
        pixels = (spec.patch_size * spec.merge) ** 2
        shapes = [frames.shape for _, frames, _ in found]
        tokens = sum(-(-t // spec.temporal) * (h * w // pixels) for t, h, w, _ in shapes)
        if tokens > spec.max_length:
            raise MediaError(f"too many visual tokens: {tokens} exceed {spec.max_length}")
        return found

    def visuals(self, item: Item) -> list[tuple]:
        """Returns (patches uint8 [F, P, patch_dim], layout, grid of merged tokens (t, h, w),
        seconds per frame pair) of each visual of `frames`."""
        spec, visuals = self.spec, []
        for _, frames, fps in self.frames(item):
            rows, columns = (side // spec.patch_size for side in frames.shape[1:3])
            layout = window_layout(rows, columns, spec.window_side, spec.merge)
            patches = patchify(frames, layout, spec.patch_size, spec.temporal)
            grid = (len(patches), rows // spec.merge, columns // spec.merge)
            visuals.append((patches, layout, grid, spec.temporal / fps if fps else 0.0))
        return visuals

    def row(self, item: Item, visuals: list[tuple]) -> Row:
        """The row of an item with its decoded visuals; MediaError if they exceed max_length."""
        spec = self.spec
        counts = [t * h * w for _, _, (t, h, w), _ in visuals]
        video = counts.pop(0) if item.video is not None else 0
        image = counts.pop(0) if item.image is not None else 0
        try:
            ids, starts = self.prompt.ids(item.text or "", item.instruction or "", video, image)
        except ValueError as error:
            raise MediaError(f"too many visual tokens: {error}") from error

        segments, tokens, done = [], [np.empty(0, np.int32)], 0
        for start, (_, _, grid, seconds) in zip(starts, visuals, strict=True):
            size = grid[0] * grid[1] * grid[2]
            segments += [("text", start - done), ("visual", grid, seconds)]
            tokens.append(np.arange(start, start + size, dtype=np.int32))
            done = start + size
        segments.append(("text", len(ids) - done))
        return Row(
            tokens=np.array(ids, np.int32),
            positions=mrope_positions(segments, spec.tokens_per_second, spec.mrope),
            patches=[pair for patches, *_ in visuals for pair in patches],
            layouts=[layout for patches, layout, *_ in visuals for _ in patches],
            visual_tokens=np.concatenate(tokens),
        )

    def _resize(self, frames: np.ndarray, item: Item, kind: str) -> np.ndarray:
        spec = self.spec
        factor = spec.patch_size * spec.merge
        least, limit = pixel_bounds(item, spec)
        if kind == "video":
            total = item.total_pixels or spec.total_pixels
            limit = frame_budget(len(frames), factor, least, limit, total)
        height, width = smart_resize(*frames.shape[1:3], factor, least, limit)
        return resize(frames, height, width, kind, spec.resize)


def _reorder(frames: np.ndarray, order: str) -> np.ndarray:
    """Applies Item.frame_order; "shuffled" is a fixed order for each number of frames."""
    if order == "reversed":
        return frames[::-1]
    if order == "shuffled":
        indices = list(range(len(frames)))
        random.Random(len(frames)).shuffle(indices)
        return frames[indices]
    return frames
