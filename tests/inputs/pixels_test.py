"""Sizes, resizing, patches and images, each against a derivation of its own."""

import io
import math
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from gve_jax.inputs.errors import MediaError
from gve_jax.inputs.layout import Layout, window_layout
from gve_jax.inputs.pixels import frame_budget, load_image, patchify, smart_resize
from tests.goldens import resize as golden
from tests.inputs.media import picture

TOKEN = 28 * 28


@pytest.mark.parametrize("size, expected", [
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
])  # fmt: skip
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


def test_sizes_equal_what_qwen_vl_utils_gave(recorded):
    for frames, height, width, low, high, total, *expected in recorded:
        if frames:
            high = frame_budget(frames, 28, low, high, total or None)
        mine = smart_resize(height, width, 28, low, high)
        # The guards: without them some sizes are 0, or beyond the budget again.
        if min(expected) > 0 and math.prod(expected) <= high:
            assert list(mine) == expected, (frames, height, width, low, high, total)
        else:
            assert min(mine) >= 28 and math.prod(mine) <= high


@pytest.mark.parametrize("frames, low, high, total, expected", [
    (8, 4, 200, None, 200),
    (8, 4, 1000, None, 768),  # of one frame, whatever is asked for
    (768, 4, 768, None, 300),  # 115,200 tokens for 384 pairs
    (767, 4, 768, None, 300),  # an odd last frame is repeated
    (768, 400, 768, None, 420),  # the minimum and a twentieth
    (8, 4, 200, 400 * TOKEN, 100),
    (1, 4, 200, 100 * TOKEN, 100),
    (8, 128, 130, 400 * TOKEN, 130),  # the minimum and a twentieth is 134
])  # fmt: skip
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


@pytest.mark.parametrize("size, high, names", [
    ((10, 2001), 200, "10 x 2001: the ratio is above 200"),
    ((2001, 10), 200, "2001 x 10"),
    ((0, 0), 200, "no pixels"),
    ((64, 64), 0.5, "max_pixels 392"),
])  # fmt: skip
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


def test_rgba_is_put_on_white():
    image = load_image(picture(half_transparent("RGBA")))
    assert (image[:, :4] == 255).all() and (image[:, 4:] == RED[:, 4:]).all()
    blend = Image.new("RGBA", (2, 2), (0, 100, 200, 51))  # a fifth opaque
    assert load_image(blend)[0, 0].tolist() == [204, 224, 244]


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


def test_orientation_of_a_camera_is_not_applied():
    corner = RED.copy()
    corner[0, 0] = 0
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right
    data = picture(Image.fromarray(corner), exif=exif)
    assert Image.open(io.BytesIO(data)).getexif()[0x0112] == 6
    np.testing.assert_array_equal(load_image(data), corner)


@pytest.mark.parametrize("mode", ["I;16", "F", "I"])
def test_deep_pixels_are_refused_not_clipped_to_white(mode):
    dtype = {"I;16": np.uint16, "F": np.float32, "I": np.int32}[mode]
    image = Image.fromarray(np.full((4, 4), 30000, dtype))
    assert image.mode == mode
    with pytest.raises(MediaError, match=f"pixels of type {mode}"):
        load_image(picture(image, "TIFF"))


def png_of(width: int, height: int) -> bytes:
    """A PNG that declares a size and holds nothing."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"")), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_000, 60_000])  # above the limit, and above twice the limit
def test_a_bomb_is_refused_before_it_goes_off(side):
    with pytest.raises(MediaError, match="limit"):
        load_image(png_of(side, side))


@pytest.mark.parametrize("source, names", [
    (b"", "<0 bytes>"),
    (b"no image", "<8 bytes>"),
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
])  # fmt: skip
def test_what_is_no_image_is_named(source, names):
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
