"""The one table of media suffixes: which files are videos and which are images, by their names."""

import os

from gve_jax.media.source import PassedFile, open_source

# What gve_jax/media/container.py opens; the format of a file is recognized by its content.
_VIDEOS = (
    ".3g2 .3gp .apng .asf .avi .avifs .divx .f4v .flv .m1v .m2p .m2t .m2ts .m2v .m4v .mk3d .mkv "
    ".mov .mp4 .mpe .mpeg .mpg .mts .ogm .ogv .qt .ts .vob .webm .wmv"
)
_IMAGES = ".avif .bmp .jfif .jp2 .jpe .jpeg .jpg .pbm .pgm .png .ppm .tif .tiff .webp"
KINDS: dict[str, tuple[str, ...]] = (
    dict.fromkeys(_VIDEOS.split(), ("video",))
    | dict.fromkeys(_IMAGES.split(), ("image",))
    | {".gif": ("image", "video")}
)
_MAX_OFFSET = 1 << 28  # bytes in which the second frame of a GIF is looked for


def possible_kinds(name: str | os.PathLike) -> tuple[str, ...]:
    """The kinds, "image" or "video", that a file may be by its suffix; () for any other file."""
    return KINDS.get(os.path.splitext(name)[1].lower(), ())


def media_kind(path: str | os.PathLike) -> str | None:
    """ "video" or "image"; None for a suffix of neither.

    A GIF with more than one frame is a video, which takes a look into the file. PNG, WebP and AVIF
    are images, animated or not (give them as `video` where the animation is meant).
    """
    kinds = possible_kinds(path)
    if len(kinds) > 1:
        return "video" if is_animated_gif(path) else "image"
    return kinds[0] if kinds else None


def is_animated_gif(source: bytes | str | os.PathLike | PassedFile) -> bool:
    """Whether a file or bytes are a GIF of more than one frame; False if they cannot be read.

    Blocks are skipped by their lengths up to the second frame; nothing is decoded.
    """
    try:
        with open_source(source) as file:
            return _has_second_frame(file)
    except (OSError, IndexError):  # IndexError: the end of the file
        return False


def _has_second_frame(file) -> bool:
    header = file.read(13)
    if not header.startswith(b"GIF8"):
        return False
    file.seek(_palette_bytes(header[10]), os.SEEK_CUR)
    frames = 0
    while file.tell() < _MAX_OFFSET:
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
        while (length := file.read(1)[0]) and file.tell() < _MAX_OFFSET:
            file.seek(length, os.SEEK_CUR)
    return False


def _palette_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0
