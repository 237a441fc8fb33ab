"""Converts an item to the arrays of a row, before padding (numpy only; also in the sandbox)."""

import dataclasses
import math
import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from gve_jax.errors import UserError
from gve_jax.fields import setting
from gve_jax.inputs.layout import Layout, window_layout
from gve_jax.inputs.positions import REGIMES, mrope_positions
from gve_jax.inputs.profiles import Profile, find_profile
from gve_jax.inputs.prompt import Entry, Prompt, Slot
from gve_jax.media.errors import MediaError
from gve_jax.media.item import ALL_FRAMES, Item, is_frames
from gve_jax.media.limits import Limits
from gve_jax.media.pixels import frame_budget, load_image, patchify, smart_resize
from gve_jax.media.resize import RESIZE, resize
from gve_jax.media.sampling import Sampling
from gve_jax.media.video import load_video
from gve_jax.model.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """How media and texts become arrays; a part of every fingerprint.

    Raises:
      UserError: a value out of range, or an unknown mode or regime; the message names the field.
    """

    profile: str = setting("gve", "prompt and frames, see gve_jax/inputs/profiles.py", later=True)
    num_frames: int = setting(8, "frames of a video, uniformly sampled; ignored with fps")
    fps: float | None = setting(None, "frames per second, within min_frames and max_frames")
    min_frames: int = setting(4, "minimum frames of a video, with fps")
    max_frames: int = setting(768, "maximum frames of a video, with fps")
    min_pixels: int = setting(4 * 28 * 28, "minimum pixels of a frame or image")
    max_pixels: int = setting(
        200 * 28 * 28, "maximum pixels of a frame or image; the paper: 200 tokens per frame"
    )
    image_min_pixels: int | None = setting(
        None, "of an image; None: min_pixels", least=1, later=True
    )
    image_max_pixels: int | None = setting(
        None, "of an image; None: max_pixels", least=1, later=True
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
    timestamps: bool = False  # whether each frame pair is a visual of its own, after its time

    @property
    def largest(self) -> int:
        """Maximum pixels of any frame or image."""
        return max(self.max_pixels, self.image_max_pixels or 0)

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
        for kind in ("", "image_"):
            least, most = pixel_limits(self, kind == "image_")
            if most < max(token, least):
                raise UserError(
                    f"{kind}max_pixels {most} is below {kind}min_pixels {least} or the "
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
        find_profile(self.profile)


def geometry(config: ModelConfig) -> dict[str, int | bool]:
    """The fields of an `InputSpec` that follow from a model."""
    vision = config.vision
    return dict(
        patch_size=vision.patch_size,
        merge=vision.spatial_merge_size,
        temporal=vision.temporal_patch_size,
        window_side=vision.window_side,
        tokens_per_second=vision.tokens_per_second,
        timestamps=config.architecture == "qwen3_vl",
    )


def time_steps(frames: int, profile: Profile, temporal: int) -> int:
    """Frame pairs of a video of that many frames."""
    return frames if profile.frames_as_images else -(-frames // temporal)


def pixel_limits(spec: InputSpec, is_image: bool) -> tuple[int, int]:
    """Minimum and maximum pixels of a frame, or of an image."""
    if not is_image:
        return spec.min_pixels, spec.max_pixels
    return spec.image_min_pixels or spec.min_pixels, spec.image_max_pixels or spec.max_pixels


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


def pixel_bounds(item: Item, spec: InputSpec, is_image: bool) -> tuple[int, int]:
    """Minimum and maximum pixels of a frame, or of an image, of an item.

    Raises:
      UserError: the item's min_pixels exceeds the maximum.
    """
    least, limit = pixel_limits(spec, is_image)
    most = min(item.max_pixels or limit, limit)
    if item.min_pixels is not None and item.min_pixels > most:
        raise UserError(
            f"min_pixels {item.min_pixels} is above the model's max_pixels {most}: "
            "lower it, or raise the model's (with_inputs)"
        )
    return item.min_pixels or least, most


class Medium(NamedTuple):
    """A medium of an item, decoded and resized.

    Attributes:
      kind: "video" or "image".
      frames: uint8 [T, H, W, 3].
      fps: frames per second; 0 for an image.
      times: seconds of each frame from the beginning of the video; empty for an image.
    """

    kind: str
    frames: np.ndarray
    fps: float
    times: Sequence[float]


class Visual(NamedTuple):
    """A medium as patches.

    Attributes:
      kind: "video" or "image".
      patches: uint8 [F, P, patch_dim].
      layout: of each frame pair.
      grid: merged tokens (t, h, w); t is F.
      seconds: between frame pairs; 0 for an image.
      times: seconds of each frame pair from the beginning of the video; empty for an image.
    """

    kind: str
    patches: np.ndarray
    layout: Layout
    grid: tuple[int, int, int]
    seconds: float
    times: Sequence[float]


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

    def frames(self, item: Item) -> list[Medium]:
        """Decodes and resizes the media of an item, in the order of its prompt. Only this method
        reads untrusted files; it does not need the prompt.

        Raises:
          MediaError: unreadable media, or media with more tokens than a sequence.
        """
        spec, found = self.spec, []
        exif = applies_exif(item, spec)
        for is_image, medium in ((False, item.video), (True, item.image)):
            if medium is not None:
                pixel_bounds(item, spec, is_image)  # before anything is decoded
        if item.video is not None:
            rate = item.fps if is_frames(item.video) else None
            clip = load_video(item.video, sampling_of(item, spec), rate, self.limits, exif)
            frames = reorder(clip.frames, item.frame_order)
            found.append(Medium("video", self._resize(frames, item, "video"), clip.fps, clip.times))
        if item.image is not None:
            image = load_image(item.image, self.limits.frame_pixels, exif)
            found.append(Medium("image", self._resize(image[None], item, "image"), 0.0, ()))
        found.sort(key=lambda medium: self._profile.media.index(medium.kind))
        pixels = (spec.patch_size * spec.merge) ** 2
        tokens = 0
        for kind, (count, height, width, _) in ((m.kind, m.frames.shape) for m in found):
            steps = time_steps(count, self._profile, spec.temporal) if kind == "video" else 1
            tokens += steps * (height * width // pixels)
        if tokens > spec.max_length:
            raise MediaError(
                f"too many visual tokens: {tokens} exceed {spec.max_length}; lower num_frames, "
                "max_frames or max_pixels, or raise max_length (with_inputs)"
            )
        return found

    def visuals(self, item: Item) -> list[Visual]:
        """`frames` as patches."""
        spec, visuals = self.spec, []
        for kind, frames, fps, times in self.frames(item):
            rows, columns = (side // spec.patch_size for side in frames.shape[1:3])
            layout = window_layout(rows, columns, spec.window_side, spec.merge)
            if kind == "video" and self._profile.frames_as_images:
                frames = frames.repeat(spec.temporal, axis=0)
                times = np.repeat(times, spec.temporal)
            patches = patchify(frames, layout, spec.patch_size, spec.temporal)
            grid = (len(patches), rows // spec.merge, columns // spec.merge)
            seconds = spec.temporal / fps if fps else 0.0
            visuals.append(Visual(kind, patches, layout, grid, seconds, self._pair_times(times)))
        return visuals

    def _pair_times(self, times: Sequence[float]) -> list[float]:
        """The mean time of each frame pair; an odd last frame is repeated."""
        step = self.spec.temporal
        pairs = [list(times[i : i + step]) for i in range(0, len(times), step)]
        return [float(sum(p) + p[-1] * (step - len(p))) / step for p in pairs]

    def row(self, item: Item, visuals: list[Visual]) -> Row:
        """The row of an item with its decoded visuals; MediaError if they exceed max_length."""
        spec = self.spec
        grids, slots = [], []
        for visual in visuals:
            for pad, stamp, grid in self._slots(visual):
                slots.append(Slot(visual.kind, pad, math.prod(grid), stamp))
                grids.append((grid, visual.seconds if pad == "video" else 0.0))
        try:
            ids, starts = self.prompt.ids(Entry(item.text or "", item.instruction or "", slots))
        except ValueError as error:
            raise MediaError(f"too many visual tokens: {error}") from error

        segments, tokens, done = [], [np.empty(0, np.int32)], 0
        for start, (grid, seconds) in zip(starts, grids, strict=True):
            size = math.prod(grid)
            segments += [("text", start - done), ("visual", grid, seconds)]
            tokens.append(np.arange(start, start + size, dtype=np.int32))
            done = start + size
        segments.append(("text", len(ids) - done))
        return Row(
            tokens=np.array(ids, np.int32),
            positions=mrope_positions(segments, spec.tokens_per_second, spec.mrope),
            patches=[pair for visual in visuals for pair in visual.patches],
            layouts=[visual.layout for visual in visuals for _ in visual.patches],
            visual_tokens=np.concatenate(tokens),
        )

    def _slots(self, visual: Visual) -> Iterator[tuple[str, str, tuple[int, int, int]]]:
        """(kind of the tokens, text before them, grid) of each visual of the prompt."""
        steps, height, width = visual.grid
        if visual.kind == "image":
            yield "image", "", visual.grid
        elif self._profile.frames_as_images:
            yield from [("image", "", (1, height, width))] * steps
        elif self.spec.timestamps:
            for seconds in visual.times:
                yield "video", f"<{seconds:.1f} seconds>", (1, height, width)
        else:
            yield "video", "", visual.grid

    @property
    def _profile(self) -> Profile:
        return find_profile(self.spec.profile)

    def resize_frame(self, frame: np.ndarray, count: int) -> np.ndarray:
        """A frame uint8 [H, W, 3] of a video, resized as one of `count` sampled frames."""
        return self._resize(frame[None], Item(), "video", count)[0]

    def _resize(
        self, frames: np.ndarray, item: Item, kind: str, count: int | None = None
    ) -> np.ndarray:
        spec = self.spec
        factor = spec.patch_size * spec.merge
        least, limit = pixel_bounds(item, spec, kind == "image")
        if kind == "video":
            total = item.total_pixels or spec.total_pixels
            if total or self._profile.video_limits:
                limit = frame_budget(count or len(frames), factor, least, limit, total)
            kind = "image" if self._profile.frames_as_images else kind
        if kind == "image" and self._profile.resized_twice:
            first = smart_resize(*frames.shape[1:3], factor, 4 * factor**2, 16_384 * factor**2)
            frames = resize(frames, *first, kind, spec.resize)
        height, width = smart_resize(*frames.shape[1:3], factor, least, limit)
        return resize(frames, height, width, kind, spec.resize)


def reorder(frames: np.ndarray, order: str) -> np.ndarray:
    """Applies Item.frame_order; "shuffled" is a fixed order for each number of frames."""
    if order == "reversed":
        return frames[::-1]
    if order == "shuffled":
        indices = list(range(len(frames)))
        random.Random(len(frames)).shuffle(indices)
        return frames[indices]
    return frames
