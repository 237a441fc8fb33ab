"""Loads images, computes sizes and extracts patches as the reference does."""

import math
import os

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from gve_jax.inputs.layout import Layout
from gve_jax.media.errors import LimitError, MediaError
from gve_jax.media.item import source_name
from gve_jax.media.source import PassedFile, open_source
from gve_jax.storage.files import LFS_POINTER

# qwen-vl-utils 0.0.14
MAX_RATIO = 200
VIDEO_MAX_TOKENS = 768  # of a frame
VIDEO_TOTAL_TOKENS = 128_000  # maximum length of a sequence; a video gets nine tenths of it
# Common formats; Pillow reads more, some with external programs (EPS runs Ghostscript).
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_HEAD = 1024  # bytes that identify an unsupported format
# Values without a fixed range: Pillow clips them at 255, so that most images become white.
_DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")


def smart_resize(
    height: int, width: int, factor: int, min_pixels: int, max_pixels: float
) -> tuple[int, int]:
    """Returns a size close to the given one, with sides that are multiples of `factor` (28 for
    Qwen2.5-VL) and an area within the limits (qwen-vl-utils 0.0.14 `smart_resize`, including
    Python's rounding half to even).

    Unlike in the reference, a side is never below `factor` and the area never above `max_pixels`,
    even if the limits are close together.

    Raises:
      MediaError: an aspect ratio above 200, no pixels, `max_pixels` below one merged token.
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
        if rows * cols > max_pixels:  # the short side was raised to `factor`: limit the long one
            longest = int(max_pixels // factor**2) * factor
            rows, cols = min(rows, longest), min(cols, longest)
    return rows, cols


def frame_budget(
    frames: int, factor: int, min_pixels: int, max_pixels: int, total_pixels: float | None
) -> float:
    """Returns the `max_pixels` of a frame of a video (qwen-vl-utils 0.0.14 `fetch_video`).

    Args:
      frames: number of sampled frames.
      factor: side of a merged token in pixels.
      min_pixels, max_pixels: bounds for a frame; the result is at least 1.05 * `min_pixels`, or
        `max_pixels`.
      total_pixels: pixels of all frames, counting a frame pair once; None for the default of
        qwen-vl-utils, 115,200 tokens.
    """
    token = factor**2
    total = 0.9 * VIDEO_TOTAL_TOKENS * token if total_pixels is None else total_pixels
    share = total / (frames + frames % 2) * 2
    return min(max_pixels, max(min(VIDEO_MAX_TOKENS * token, share), int(min_pixels * 1.05)))


def patchify(frames: np.ndarray, layout: Layout, patch: int, temporal: int) -> np.ndarray:
    """Maps frames uint8 [T, H, W, 3] to patches uint8 [T / temporal, P, 3 * temporal * patch**2].

    An odd last frame is repeated. The order within a patch is channel, frame, row, column, as in
    the kernel of the reference's Conv3d; patches are in window order.
    """
    short = -len(frames) % temporal
    if short:
        frames = np.concatenate([frames, np.repeat(frames[-1:], short, axis=0)])
    count, height, width, channels = frames.shape
    grid = frames.reshape(
        count // temporal, temporal, height // patch, patch, width // patch, patch, channels
    )
    row, col = layout.coords.T
    # [P, F, temporal, patch, patch, channels]: numpy moves P first.
    picked = grid[:, :, row, :, col]
    return np.ascontiguousarray(picked.transpose(1, 0, 5, 2, 3, 4)).reshape(
        count // temporal, len(row), -1
    )


def load_image(source, most_pixels: float = math.inf, exif: bool = False) -> np.ndarray:
    """Loads a file, encoded bytes, a PIL image or uint8 [H, W, 3] as uint8 [H, W, 3].

    As in qwen-vl-utils, RGBA is composed on white; in other modes (palettes, grey with alpha)
    transparency is ignored. A file with several images gives the first one.

    Args:
      most_pixels: maximum number of pixels.
      exif: rotate the image by its EXIF orientation, which qwen-vl-utils does not.

    Raises:
      MediaError: an image that Pillow cannot read; an unsupported format or pixel type; an image
        that exceeds `most_pixels` or Pillow's limit for decompression bombs.
    """
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[-1] != 3:
            raise MediaError(
                f"an image array must be uint8 [H, W, 3], not {source.dtype} {list(source.shape)}"
            )
        return source
    if not isinstance(source, str | os.PathLike | bytes | PassedFile | Image.Image):
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
            passed = isinstance(source, bytes | PassedFile)
            file = open_source(source) if passed else source  # Pillow closes what it opens itself
            image = Image.open(file, formats=IMAGE_FORMATS)
        # Users disable Pillow's limit by None.
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
    except Exception as error:  # Pillow's decoders raise any exception on damaged data
        raise MediaError(f"{name}: not a readable image ({error})") from error


def check_mode(image: Image.Image, name: str) -> None:
    """Raises MediaError for pixels with more than 8 bits."""
    if image.mode in _DEEP_MODES:
        raise MediaError(f"{name}: pixels of type {image.mode}; convert them to 8 bits first")


def _unknown_format(source) -> str:
    """Explains why Pillow does not recognize a file, and what to do."""
    with open_source(source) as file:
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
    """Returns the EXIF orientation, 1 to 8; 1 (upright) if it is missing, damaged or invalid."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow's EXIF reader raises any exception on damaged data
        return 1
    return orientation if orientation in range(1, 9) else 1


def turn(picture: np.ndarray, orientation: int) -> np.ndarray:
    """Rotates and mirrors [H, W, 3] by an EXIF orientation, which is the position of the first row
    and column: 1 top left, 2 top right, 3 bottom right, 4 bottom left, 5 left top, 6 right top, 7
    right bottom, 8 left bottom."""
    if orientation in (5, 6, 7, 8):
        picture = picture.transpose(1, 0, 2)
    down = -1 if orientation in (3, 4, 7, 8) else 1
    across = -1 if orientation in (2, 3, 6, 7) else 1
    return np.ascontiguousarray(picture[::down, ::across])
