"""One medium of each format, codec and mode that is read, for tests that compare two readers."""

import numpy as np
from PIL import Image

from gve_jax.media.item import Item
from tests.conftest import ROOT
from tests.media.animated import Part, apng, webp
from tests.media.files import clip, encode, picture, textured

VIDEOS = """
    mp4/libx264 mp4/libx265 mp4/libsvtav1 mov/mpeg4 matroska/libx264 matroska/libx265
    webm/libvpx-vp9
    webm/libvpx avi/mpeg4 mpegts/libx264 asf/wmv2 flv/flv ogg/libvpx
"""
IMAGES = {
    "JPEG": {},
    "JPEG with EXIF": {"exif": True},
    "MPO": {"save_all": True},
    "TIFF": {},
    "TIFF lzw": {"compression": "tiff_lzw"},
    "TIFF jpeg": {"compression": "jpeg"},
    "TIFF deflate with EXIF": {"compression": "tiff_adobe_deflate", "exif": True},
    "JPEG2000": {},
    "AVIF": {},
    "AVIF with EXIF": {"exif": True},
    "PPM": {},
    "BMP": {},
    "GIF": {},
    "WEBP": {},
    "WEBP lossless with EXIF": {"lossless": True, "exif": True},
    "PNG with EXIF": {"exif": True},
}


def samples() -> dict[str, Item]:
    image = Image.fromarray(textured(1)[0])
    exif = Image.Exif()
    exif[0x0112] = 6
    found = {}
    for name in VIDEOS.split():
        container, codec = name.split("/")
        found[name] = Item(video=clip(12, container, codec))
    for codec, pixels in (
        ("libx264", "yuv420p10le"),
        ("libx264", "yuv444p"),
        ("mjpeg", "yuvj422p"),
    ):
        container = "avi" if codec == "mjpeg" else "mp4"
        data = encode(textured(12)[:, :48], container=container, codec=codec, pix_fmt=pixels)
        found[f"{codec} {pixels}"] = Item(video=data)
    found["mpeg2"] = Item(video=encode(textured(24)[:, :48], 25, "mpeg", "mpeg2video"))
    found["theora"] = Item(video=(ROOT / "tests/goldens/theora.ogv").read_bytes())
    parts = [
        Part(np.random.default_rng(n).integers(0, 255, (28, 28, 4), np.uint8)) for n in range(3)
    ]
    found["APNG"] = Item(video=apng(28, 28, parts))
    found["animated WebP"] = Item(video=webp(28, 28, parts))
    frames = [Image.fromarray(frame) for frame in textured(6)]
    moving = picture(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=100)
    found["animated GIF"] = Item(video=moving)
    for name, options in IMAGES.items():
        options = options | ({"exif": exif} if "exif" in options else {})
        if "save_all" in options:
            options["append_images"] = [image]
        found[name] = Item(image=picture(image, name.split()[0], **options), exif_orientation=True)
    for mode in ("P", "L", "LA", "RGBA", "1"):
        found[f"PNG {mode}"] = Item(image=picture(image.convert("L").convert(mode), "PNG"))
    found["TIFF CMYK"] = Item(image=picture(image.convert("CMYK"), "TIFF"))
    return found
