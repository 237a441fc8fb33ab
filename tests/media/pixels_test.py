"""Sizes, resizing, patches and images, each against a derivation of its own."""

import io
import math
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from evals.parity.goldens import resize as golden
from gve_jax.inputs.layout import Layout, window_layout
from gve_jax.media.errors import MediaError
from gve_jax.media.pixels import frame_budget, load_image, patchify, smart_resize
from tests.media.animated import png_chunk
from tests.media.files import picture
from tests.situations import situation

TOKEN = 28 * 28


@pytest.mark.parametrize(
    "size, expected",
    [
        # Within the limits: the nearest multiple, a half to the even one.
        ((336, 448), (336, 448)),
        ((70, 98), (56, 112)),  # 2.5 -> 2 and 3.5 -> 4
        ((42, 126), (56, 112)),  # 1.5 -> 2 and 4.5 -> 4
        ((71, 97), (84, 84)),
        ((300, 14), (308, 28)),  # 0.5 -> 0, but a side has one multiple
        # Above 200 tokens: 480 x 640 shrinks by 1.39971 to 12.2 x 16.3 tokens.
        ((480, 640), (336, 448)),
        ((720, 1280), (280, 504)),
        ((1280, 720), (504, 280)),
        ((100, 20000), (28, 5600)),
        # Below 4 tokens: 28 x 28 doubles, 20 x 40 grows by 1.98 to 1.4 x 2.8 tokens.
        ((28, 28), (56, 56)),
        ((20, 40), (56, 84)),
        ((1, 1), (56, 56)),
        ((1, 200), (28, 196)),  # 28 x 196 is enough
    ],
)
def test_sizes_worked_out_by_hand(size, expected):
    assert smart_resize(*size, 28, 4 * TOKEN, 200 * TOKEN) == expected


def reference(height, width, low, high):
    """qwen-vl-utils 0.0.14 as written down in words, without its guards."""
    rows, cols = (max(1, round(side / 28)) for side in (height, width))
    if rows * cols * TOKEN > high:
        beta = math.sqrt(height * width / high)
        return tuple(math.floor(side / beta / 28) * 28 for side in (height, width))
    if rows * cols * TOKEN < low:
        beta = math.sqrt(low / (height * width))
        return tuple(math.ceil(side * beta / 28) * 28 for side in (height, width))
    return rows * 28, cols * 28


@pytest.mark.parametrize("low, high", [(4, 200), (128, 768), (4, 16384)])
def test_sizes_equal_the_reference_where_its_limits_are_far_apart(low, high):
    rng = np.random.default_rng(0)
    for height, width in (2 ** rng.uniform(3, 12, (3000, 2))).astype(int).tolist():
        expected = reference(height, width, low * TOKEN, high * TOKEN)
        if max(height, width) <= 20 * min(height, width) and min(expected) > 0:
            mine = smart_resize(height, width, 28, low * TOKEN, high * TOKEN)
            assert mine == expected, (height, width)


@pytest.fixture(scope="module")
def recorded():
    return np.load(golden.FILE)["sizes"].tolist()


def test_sizes_equal_recorded_ones_of_qwen_vl_utils(recorded):
    for frames, height, width, low, high, total, *expected in recorded:
        if frames:
            high = frame_budget(frames, 28, low, high, total or None)
        mine = smart_resize(height, width, 28, low, high)
        # The guards: without them some sizes are 0, or beyond the budget again.
        if min(expected) > 0 and math.prod(expected) <= high:
            assert list(mine) == expected, (frames, height, width, low, high, total)
        else:
            assert min(mine) >= 28 and math.prod(mine) <= high


@pytest.mark.parametrize(
    "frames, low, high, total, expected",
    [
        (8, 4, 200, None, 200),
        (8, 4, 1000, None, 768),  # of one frame, whatever is asked for
        (768, 4, 768, None, 300),  # 115,200 tokens for 384 pairs
        (767, 4, 768, None, 300),  # an odd last frame is repeated
        (768, 400, 768, None, 420),  # the minimum and a twentieth
        (8, 4, 200, 400 * TOKEN, 100),
        (1, 4, 200, 100 * TOKEN, 100),
        (8, 128, 130, 400 * TOKEN, 130),  # the minimum and a twentieth is 134
    ],
)
def test_budgets_worked_out_by_hand(frames, low, high, total, expected):
    assert frame_budget(frames, 28, low * TOKEN, high * TOKEN, total) == expected * TOKEN


@pytest.mark.parametrize("tokens", [1, 2, 4, 7, 200])
def test_no_size_exceeds_a_bucket_even_where_both_limits_are_one(tokens):
    rng = np.random.default_rng(tokens)
    for height, width in (2 ** rng.uniform(0, 12, (2000, 2))).astype(int).tolist():
        if max(height, width) <= 200 * min(height, width):
            rows, cols = smart_resize(height, width, 28, tokens * TOKEN, tokens * TOKEN)
            assert rows % 28 == cols % 28 == 0 and min(rows, cols) >= 28
            assert rows * cols <= tokens * TOKEN, (height, width)


@pytest.mark.parametrize(
    "size, high, names",
    [
        ((10, 2001), 200, "10 x 2001: the ratio is above 200"),
        ((2001, 10), 200, "2001 x 10"),
        ((0, 0), 200, "no pixels"),
        ((64, 64), 0.5, "max_pixels 392"),
    ],
)
def test_a_size_that_cannot_be_is_named(size, high, names):
    with pytest.raises(MediaError, match=names):
        smart_resize(*size, 28, 4 * TOKEN, int(high * TOKEN))
    smart_resize(10, 2000, 28, 4 * TOKEN, 200 * TOKEN)


@pytest.mark.parametrize("count", [1, 2, 5, 8])
@pytest.mark.parametrize("gh, gw", [(4, 6), (10, 2)])
def test_patches_equal_the_reference_formula(count, gh, gw):
    frames = np.random.default_rng(count).integers(0, 256, (count, gh * 14, gw * 14, 3), np.uint8)
    padded = np.concatenate([frames, frames[-1:]]) if count % 2 else frames
    steps = len(padded) // 2
    reference = padded.transpose(0, 3, 1, 2)  # frames, channels, rows, columns
    reference = reference.reshape(steps, 2, 3, gh // 2, 2, 14, gw // 2, 2, 14)
    reference = reference.transpose(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(steps, gh * gw, 1176)

    # The reference's own order: merged tokens in raster order, four patches each.
    row, col = np.divmod(np.arange(gh * gw // 4), gw // 2)
    inner = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    raster = (2 * np.stack([row, col], -1)[:, None] + inner).reshape(-1, 2)
    mine = patchify(frames, Layout(raster, None, None, None, 0), 14, 2)
    assert mine.dtype == np.uint8
    np.testing.assert_array_equal(mine, reference)

    # In window order each patch still shows what its coordinates say.
    layout = window_layout(gh, gw, 8, 2)
    place = {tuple(pair): i for i, pair in enumerate(raster.tolist())}
    order = [place[tuple(pair)] for pair in layout.coords.tolist()]
    np.testing.assert_array_equal(patchify(frames, layout, 14, 2), reference[:, order])


RED = np.full((6, 8, 3), (200, 30, 40), np.uint8)


def half_transparent(mode: str) -> Image.Image:
    image = Image.fromarray(RED).convert("RGBA")
    image.paste((10, 20, 30, 0), (0, 0, 4, 6))
    return image.convert(mode)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP", "TIFF"])
def test_path_bytes_pil_and_array_are_one_image(tmp_path, kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    data = picture(Image.fromarray(RED), kind, **options)
    path = tmp_path / f"red.{kind.lower()}"
    path.write_bytes(data)
    for source in (data, path, str(path), Image.fromarray(RED), RED):
        image = load_image(source)
        assert image.dtype == np.uint8
        np.testing.assert_array_equal(image, RED)


@situation(
    "Images and animations", "transparent PNG", "put on white, as in qwen-vl-utils", since="0.1.0"
)
def test_rgba_is_put_on_white():
    image = load_image(picture(half_transparent("RGBA")))
    assert (image[:, :4] == 255).all() and (image[:, 4:] == RED[:, 4:]).all()
    blend = Image.new("RGBA", (2, 2), (0, 100, 200, 51))  # a fifth opaque
    assert load_image(blend)[0, 0].tolist() == [204, 224, 244]


@situation(
    "Images and animations",
    "palette PNG with transparent colours, grey with alpha",
    "the colour under the transparency shows, as in qwen-vl-utils",
    since="0.1.0",
)
@pytest.mark.filterwarnings("ignore:Palette images")  # Pillow would have them on RGBA
def test_other_transparency_is_dropped_as_the_reference_drops_it():
    grey = half_transparent("LA")
    hidden = np.asarray(grey)[..., :1].repeat(3, axis=-1)
    np.testing.assert_array_equal(load_image(picture(grey)), hidden)
    palette = Image.fromarray(RED).convert("P", palette=Image.Palette.ADAPTIVE)
    assert palette.mode == "P"
    np.testing.assert_array_equal(load_image(picture(palette)), RED)
    palette.putpalette([200, 30, 40] * 256)
    clear = load_image(picture(palette, transparency=bytes([0] * 256)))
    np.testing.assert_array_equal(clear, RED)


# EXIF's orientation -> the picture [[0, 1, 2], [3, 4, 5]] as it is to be looked at (the first row
# and the first column of what is stored are at: top left, top right, bottom right, bottom left,
# left top, right top, right bottom, left bottom).
UPRIGHT = {
    1: [[0, 1, 2], [3, 4, 5]],
    2: [[2, 1, 0], [5, 4, 3]],
    3: [[5, 4, 3], [2, 1, 0]],
    4: [[3, 4, 5], [0, 1, 2]],
    5: [[0, 3], [1, 4], [2, 5]],
    6: [[3, 0], [4, 1], [5, 2]],
    7: [[5, 2], [4, 1], [3, 0]],
    8: [[2, 5], [1, 4], [0, 3]],
}
NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
SIX = (40 * np.arange(6, dtype=np.uint8)).reshape(2, 3).repeat(8, 0).repeat(8, 1)  # 16 x 24 pixels
SIX = SIX[..., None].repeat(3, -1)
LOSSLESS = {"JPEG": {"quality": 100}, "WEBP": {"lossless": True}, "AVIF": {"quality": 100}}


def spelled(image: np.ndarray) -> list[list[int]]:
    return np.rint(image[4::8, 4::8, 0] / 40.0).astype(int).tolist()


def oriented(kind: str, orientation) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return picture(Image.fromarray(SIX), kind, exif=exif, **LOSSLESS.get(kind, {}))


@situation(
    "Images and animations",
    "photo with an EXIF orientation (JPEG, PNG, WebP, AVIF)",
    "not turned, as in qwen-vl-utils",
    since="0.1.0",
)
@situation(
    "Images and animations",
    "photo with an EXIF orientation, `exif_orientation=True`, of the item or of the model's inputs",
    "upright; also frames of a folder and animations",
    since="0.2.0",
)
@situation(
    "Images and animations",
    "TIFF with an orientation",
    "upright with and without the option: Pillow turns it, here and in qwen-vl-utils",
    since="0.1.0",
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_a_camera(kind, orientation):
    data = oriented(kind, orientation)
    plain = UPRIGHT[orientation if kind == "TIFF" else 1]
    assert spelled(load_image(data)) == plain
    turned = load_image(data, exif=True)
    assert spelled(turned) == UPRIGHT[orientation] and turned.flags.c_contiguous
    opened = Image.open(io.BytesIO(data))
    assert spelled(load_image(opened, exif=True)) == UPRIGHT[orientation]
    if kind != "TIFF":
        assert spelled(load_image(Image.open(io.BytesIO(data)))) == plain


@situation(
    "Images and animations",
    "photo whose EXIF is damaged or says an orientation that does not exist",
    "accepted as it is stored",
    since="0.1.0",
)
@pytest.mark.filterwarnings("ignore")  # Pillow warns of what it finds
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_is_ignored(kind):
    for orientation in (0, 9, 65535):
        data = oriented(kind, orientation)
        assert spelled(load_image(data, exif=True)) == UPRIGHT[1]
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x011A] = 6, "maker", 72.0
    whole, rng = exif.tobytes(), np.random.default_rng(0)
    for number in range(60):
        damaged = bytearray(whole)
        if number % 3 == 0:
            damaged = damaged[: 6 + number % len(whole)]
        elif number % 3 == 1:
            for at in rng.integers(6, len(damaged), 4):
                damaged[at] = rng.integers(256)
        else:
            damaged[6:] = rng.integers(0, 256, number, np.uint8).tobytes()
        data = picture(Image.fromarray(SIX), kind, exif=bytes(damaged), **LOSSLESS.get(kind, {}))
        assert spelled(load_image(data)) == UPRIGHT[1]
        assert spelled(load_image(data, exif=True)) in (UPRIGHT.values())


@situation(
    "Images and animations",
    "JPEG with several pictures (MPO of phones and 3D cameras), TIFF of "
    "several pages, animation given as an image",
    "the first picture",
    since="0.1.0",
)
@pytest.mark.parametrize("kind", ["MPO", "TIFF", "GIF", "WEBP", "PNG"])
def test_an_image_file_of_several_images_gives_the_first(kind):
    colours = ((250, 250, 250), (0, 0, 0))
    first, second = (Image.new("RGB", (16, 16), colour) for colour in colours)
    data = picture(first, kind, save_all=True, append_images=[second])
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert (np.abs(load_image(data).astype(int) - 250) <= 1).all()


@situation(
    "Images and animations",
    "image whose suffix names another format than it has",
    "its content decides",
    since="0.1.0",
)
def test_the_content_decides_the_format_and_not_the_suffix(tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(picture(Image.fromarray(SIX), "JPEG", quality=100))
    assert spelled(load_image(path)) == UPRIGHT[1]


@situation(
    "Images and animations",
    "CMYK JPEG, TIFF in CMYK or LAB",
    "converted to RGB by Pillow, as in qwen-vl-utils",
    since="0.1.0",
)
@pytest.mark.parametrize("kind, mode", [("JPEG", "CMYK"), ("TIFF", "CMYK"), ("TIFF", "LAB")])
def test_other_colour_spaces(kind, mode):
    data = picture(Image.fromarray(RED).convert(mode), kind, **LOSSLESS.get(kind, {}))
    assert np.abs(load_image(data).astype(int) - RED).max() <= 4


@situation(
    "Images and animations",
    "PNG of 16 bits a channel in colour",
    "the upper 8 bits, as in qwen-vl-utils",
    since="0.1.0",
)
@situation(
    "Images and animations",
    "PNG or TIFF of 16 bits of grey, of 32 bits or of floats",
    "refused: Pillow would clip it to white",
    since="0.1.0",
)
def test_sixteen_bits():
    deep = np.random.default_rng(0).integers(0, 65536, (6, 10, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in deep)
    np.testing.assert_array_equal(load_image(png_of(10, 6, 16, 2, rows)), deep >> 8)
    rows = b"".join(b"\0" + row.tobytes() for row in deep[..., 0])
    with pytest.raises(MediaError, match="pixels of type I;16; convert them to 8 bits first"):
        load_image(png_of(10, 6, 16, 0, rows))


@pytest.mark.parametrize("mode", ["I;16", "F", "I"])
def test_deep_pixels_are_refused_not_clipped_to_white(mode):
    dtype = {"I;16": np.uint16, "F": np.float32, "I": np.int32}[mode]
    image = Image.fromarray(np.full((4, 4), 30000, dtype))
    assert image.mode == mode
    with pytest.raises(MediaError, match=f"pixels of type {mode}"):
        load_image(picture(image, "TIFF"))


def png_of(width: int, height: int, depth: int = 8, colour: int = 2, rows: bytes = b"") -> bytes:
    """A PNG that declares a size and, without `rows`, holds nothing."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [png_chunk(b"IHDR", header), png_chunk(b"IDAT", zlib.compress(rows))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + png_chunk(b"IEND", b"")


@situation(
    "Images and animations",
    "image whose header states 60,000 x 60,000 pixels",
    "refused before memory is taken for it",
    since="0.1.0",
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_000, 60_000])  # above the limit, and above twice the limit
def test_a_bomb_is_refused_before_it_goes_off(side):
    with pytest.raises(MediaError, match="limit"):
        load_image(png_of(side, side))


@pytest.mark.parametrize(
    "source, names",
    [
        (b"", "<0 bytes>"),
        (b"no image", "<8 bytes>: not a readable image .cannot identify it: not one of PNG, JPEG,"),
        (b"", "the file is empty"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC is not supported; convert it to JPEG or PNG"),
        (b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG is a drawing"),
        (b"<!DOCTYPE html><html>", "an HTML page, perhaps of a failed download"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
            "Git LFS pointer .git lfs pull",
        ),
        (picture(Image.fromarray(NOISE), "JPEG")[:-99], "image file is truncated"),
        (picture(Image.fromarray(RED))[:50], "<50 bytes>"),
        ("missing.png", "missing.png: no such file"),
        ("", "no such file"),
        (os.path.dirname(__file__), "no such file"),
        (5, "int"),
        (None, "NoneType"),
        ([RED], "list"),
        (bytearray(b"x"), "bytearray"),
        (RED.astype(np.float32), r"float32 \[6, 8, 3\]"),
        (RED[..., 0], r"\[6, 8\]"),
        (np.concatenate([RED, RED[..., :1]], -1), r"\[6, 8, 4\]"),
        # Pillow would hand it to Ghostscript, a program of its own.
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "cannot identify"),
    ],
)
@situation(
    "Images and animations",
    "HEIC photo of a phone, SVG drawing, empty file, HTML page or Git LFS "
    "pointer instead of an image",
    "refused; the message says what it is and what to do",
    since="0.2.0",
)
@situation(
    "Images and animations", "JPEG cut short", "refused; never filled up with grey", since="0.1.0"
)
def test_files_that_are_not_images_are_refused(source, names):
    with pytest.raises(MediaError, match=names) as error:
        load_image(source)
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore")  # Pillow warns of what it finds
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "AVIF"])
def test_a_damaged_image_raises_nothing_else(kind):
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8))
    data = picture(noise, kind)
    for _ in range(60):
        damaged = bytearray(data)
        for at in rng.integers(0, min(len(data), 300), 3):
            damaged[at] ^= 1 << rng.integers(8)
        try:
            assert load_image(bytes(damaged)).ndim == 3
        except MediaError:
            pass
