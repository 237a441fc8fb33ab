"""Images, sizes, and frames -> patches: the reference's rounding and patch order."""

import io
import math
import os

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from gve_jax.inputs.layout import Layout
from gve_jax.media.errors import LimitError, MediaError
from gve_jax.media.item import source_name
from gve_jax.storage.files import LFS_POINTER

# qwen-vl-utils 0.0.14
MAX_RATIO = 200
VIDEO_MAX_TOKENS = 768  # of a frame
VIDEO_TOTAL_TOKENS = 128_000  # the length of a sequence; nine tenths of it are for a video
# What people have; Pillow reads more, some of it through other programs (EPS runs Ghostscript).
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_HEAD = 1024  # bytes by which a format that is not read is recognized
# Numbers without a fixed range: Pillow clips them at 255, so that most pictures come out white.
_DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")


def smart_resize(
    height: int, width: int, factor: int, min_pixels: int, max_pixels: float
) -> tuple[int, int]:
    """A size near the given one: both sides multiples of `factor` (28 at the real sizes), the area
    within the limits, the ratio kept (qwen-vl-utils 0.0.14 `smart_resize`; Python's `round` is
    banker's rounding, and that is part of it). Guards the reference has not, for limits that are
    close together: a side is never below `factor`, the area never above `max_pixels`.

    Raises:
      MediaError: a ratio of sides above 200, no pixel at all, `max_pixels` below one merged token.
    """
    if min(height, width) < 1:
        raise MediaError(f"sides {height} x {width}: no pixels")
    if max_pixels < factor**2:
        raise MediaError(f"max_pixels {max_pixels} is below one token of {factor} x {factor}")
    if max(height, width) > MAX_RATIO * min(height, width):
        raise MediaError(f"sides {height} x {width}: the ratio is above {MAX_RATIO}")
    rows = max(factor, round(height / factor) * factor)
    cols = max(factor, round(width / factor) * factor)
    if rows * cols < min_pixels:
        beta = math.sqrt(min_pixels / (height * width))
        rows = math.ceil(height * beta / factor) * factor
        cols = math.ceil(width * beta / factor) * factor
    if rows * cols > max_pixels:
        beta = math.sqrt(height * width / max_pixels)
        rows = max(factor, math.floor(height / beta / factor) * factor)
        cols = max(factor, math.floor(width / beta / factor) * factor)
        if rows * cols > max_pixels:  # the short side was lifted to `factor`: cut the long one
            longest = int(max_pixels // factor**2) * factor
            rows, cols = min(rows, longest), min(cols, longest)
    return rows, cols


def frame_budget(
    frames: int, factor: int, min_pixels: int, max_pixels: int, total_pixels: float | None
) -> float:
    """The `max_pixels` of one frame of a video (qwen-vl-utils 0.0.14 `fetch_video`).

    Args:
      frames: of the video, after sampling.
      factor: pixels a side of a merged token.
      min_pixels, max_pixels: of a frame; the first is what a long video can always have, nearly.
      total_pixels: of all frames together, a frame pair counted as one; None is what qwen-vl-utils
        has without an environment variable, 115,200 tokens.
    """
    token = factor**2
    total = 0.9 * VIDEO_TOTAL_TOKENS * token if total_pixels is None else total_pixels
    share = total / (frames + frames % 2) * 2
    return min(max_pixels, max(min(VIDEO_MAX_TOKENS * token, share), int(min_pixels * 1.05)))


def patchify(frames: np.ndarray, layout: Layout, patch: int, temporal: int) -> np.ndarray:
    """uint8 [T, H, W, 3] -> patches uint8 [T / temporal, P, 3 * temporal * patch**2].

    An odd last frame is repeated. A patch is ordered channel, frame, row, column, as the kernel of
    the reference's Conv3d; patches are in the layout's (window) order.
    """
    short = -len(frames) % temporal
    if short:
        frames = np.concatenate([frames, np.repeat(frames[-1:], short, axis=0)])
    count, height, width, channels = frames.shape
    grid = frames.reshape(
        count // temporal, temporal, height // patch, patch, width // patch, patch, channels
    )
    row, col = layout.coords.T
    picked = grid[
        :, :, row, :, col
    ]  # [P, F, temporal, patch, patch, channels]: numpy moves P first
    return np.ascontiguousarray(picked.transpose(1, 0, 5, 2, 3, 4)).reshape(
        count // temporal, len(row), -1
    )


def load_image(source, most_pixels: float = math.inf, exif: bool = False) -> np.ndarray:
    """A path, encoded bytes, a PIL image or uint8 [H, W, 3] -> uint8 [H, W, 3].

    As qwen-vl-utils does: RGBA is put on white; in other modes (palettes, grey with alpha) the
    transparency is dropped and the colour under it shows. A file of several pictures gives its
    first one.

    Args:
      most_pixels: above which a picture is refused.
      exif: turn the picture as its EXIF orientation says. qwen-vl-utils does not.

    Raises:
      MediaError: what Pillow cannot read; a format or pixel type that is not accepted; a picture
        over Pillow's decompression-bomb limit.
    """
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[-1] != 3:
            raise MediaError(
                f"an image array must be uint8 [H, W, 3], not {source.dtype} {list(source.shape)}"
            )
        return source
    if not isinstance(source, str | os.PathLike | bytes | Image.Image):
        raise MediaError(
            f"an image must be a path, bytes, a PIL image or a uint8 array, not "
            f"{type(source).__name__}"
        )
    name = source_name(source)
    if isinstance(source, str | os.PathLike) and not os.path.isfile(source):
        raise MediaError(f"{name}: no such file")
    try:
        if isinstance(source, Image.Image):
            image = source
        else:
            file = io.BytesIO(source) if isinstance(source, bytes) else source
            image = Image.open(file, formats=IMAGE_FORMATS)
        # None is how Pillow's users lift its limit.
        limit = min(Image.MAX_IMAGE_PIXELS or math.inf, most_pixels)
        if image.width * image.height > limit:
            raise LimitError(
                f"{name}: {image.width} x {image.height} pixels is above the limit of {limit}"
            )
        check_mode(image, name)
        if image.mode == "RGBA":
            picture = Image.new("RGB", image.size, (255, 255, 255))
            picture.paste(image, mask=image.getchannel("A"))
        else:
            picture = image.convert("RGB")
        picture = np.asarray(picture)
        return turn(picture, exif_orientation(image)) if exif else picture
    except MediaError:
        raise
    except UnidentifiedImageError as error:
        raise MediaError(f"{name}: not a readable image ({_unknown_format(source)})") from error
    except Exception as error:  # Pillow's decoders raise all kinds of things on damaged data
        raise MediaError(f"{name}: not a readable image ({error})") from error


def check_mode(image: Image.Image, name: str) -> None:
    """MediaError for numbers that do not fit 8 bits."""
    if image.mode in _DEEP_MODES:
        raise MediaError(f"{name}: pixels of type {image.mode}; convert them to 8 bits first")


def _unknown_format(source) -> str:
    """Why Pillow knows no format of a path or bytes, and what to do."""
    if isinstance(source, bytes):
        head = source[:_HEAD]
    else:
        with open(source, "rb") as file:
            head = file.read(_HEAD)
    if not head:
        return "the file is empty"
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS:
        return "HEIC is not supported; convert it to JPEG or PNG first"
    if b"<svg" in head:
        return "SVG is a drawing without pixels; render it to PNG first"
    if head.startswith(LFS_POINTER):
        return "a Git LFS pointer (git lfs pull fetches the file)"
    if b"<html" in head.lower():
        return "an HTML page, perhaps of a failed download"
    return f"cannot identify it: not one of {', '.join(IMAGE_FORMATS)}, or damaged at its beginning"


def exif_orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8. Where it is absent, damaged or meaningless it is 1, upright: no
    reason to refuse a picture."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow's reader of EXIF raises all kinds of things on damaged data
        return 1
    return orientation if orientation in range(1, 9) else 1


def turn(picture: np.ndarray, orientation: int) -> np.ndarray:
    """[H, W, 3] as it is to be looked at; `orientation` says where its first row and column are
    then: 1 top left, 2 top right, 3 bottom right, 4 bottom left, and 5 to 8 left top, right top,
    right bottom, left bottom."""
    if orientation in (5, 6, 7, 8):
        picture = picture.transpose(1, 0, 2)
    down = -1 if orientation in (3, 4, 7, 8) else 1
    across = -1 if orientation in (2, 3, 6, 7) else 1
    return np.ascontiguousarray(picture[::down, ::across])
