"""Which files are videos and which are images, by the ends of their names."""

import io
import os

# What gve_jax/media/container.py opens; a file's format itself is recognized by its content.
VIDEOS = frozenset(
    ".3g2 .3gp .apng .asf .avi .avifs .divx .f4v .flv .m1v .m2p .m2t .m2ts .m2v .m4v .mk3d .mkv "
    ".mov .mp4 .mpe .mpeg .mpg .mts .ogm .ogv .qt .ts .vob .webm .wmv".split()
)
IMAGES = frozenset(
    ".avif .bmp .gif .jfif .jp2 .jpe .jpeg .jpg .pbm .pgm .png .ppm .tif .tiff .webp".split()
)
_FAR = 1 << 28  # bytes in which the second frame of a GIF is looked for


def media_kind(path: str | os.PathLike) -> str | None:
    """ "video", "image", or None for a name that has neither's suffix.

    A GIF is a video if it has more than one frame, which takes looking into it. PNG, WebP and AVIF
    are images whether they move or not (give them as `video` where the animation is meant).
    """
    suffix = os.path.splitext(path)[1].lower()
    if suffix in VIDEOS:
        return "video"
    if suffix not in IMAGES:
        return None
    return "video" if suffix == ".gif" and is_animated_gif(path) else "image"


def is_animated_gif(source: bytes | str | os.PathLike) -> bool:
    """Whether a file or bytes are a GIF of more than one frame; false for what cannot be read.

    Blocks are skipped by their lengths up to the second frame, and nothing is decoded.
    """
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
            return _has_second_frame(file)
    except (OSError, IndexError):  # IndexError: the end of the file
        return False


def _has_second_frame(file) -> bool:
    header = file.read(13)
    if not header.startswith(b"GIF8"):
        return False
    file.seek(_palette_bytes(header[10]), os.SEEK_CUR)
    frames = 0
    while file.tell() < _FAR:
        kind = file.read(1)
        if kind == b"\x2c":  # an image
            frames += 1
            if frames > 1:
                return True
            file.seek(_palette_bytes(file.read(9)[8]) + 1, os.SEEK_CUR)
        elif kind == b"\x21":  # an extension
            file.seek(1, os.SEEK_CUR)
        else:  # the end, or damage
            return False
        while (length := file.read(1)[0]) and file.tell() < _FAR:
            file.seek(length, os.SEEK_CUR)
    return False


def _palette_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0
