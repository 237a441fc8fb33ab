"""Animations frame by frame: what FFmpeg shows, and what the specifications say."""

import hashlib
import io
import itertools
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from gve_jax.media import animation as animation_module
from gve_jax.media.errors import MediaError
from gve_jax.media.limits import Limits
from gve_jax.media.pixels import load_image
from gve_jax.media.sampling import Sampling
from gve_jax.media.video import load_video
from tests.media.animated import (
    BACKGROUND,
    NONE,
    OVER,
    PREVIOUS,
    SOURCE,
    Part,
    apng,
    composed,
    gif,
    on_white,
    png_chunk,
    webp,
)
from tests.media.files import numbered, numbers, picture
from tests.situations import situation

WIDTH, HEIGHT = 8, 6
ALL = Sampling(num_frames=None)
OPAQUE_OR_CLEAR, HALF_CLEAR = (0, 255), (0, 60, 128, 255)
PALETTE = bytes([200, 10, 10, 10, 200, 10, 10, 10, 200, 90, 90, 90])


class Draw:
    """Numbers that no release of numpy changes, since FFmpeg's answer to them is recorded."""

    def __init__(self, seed: str):
        self._bytes = iter(hashlib.shake_256(seed.encode()).digest(1 << 18))

    def below(self, limit: int) -> int:
        return next(self._bytes) % limit

    def array(self, *shape: int, limit: int = 256) -> np.ndarray:
        values = itertools.islice(self._bytes, int(np.prod(shape)))
        return np.array([value % limit for value in values], np.uint8).reshape(shape)

    def area(self, step: int = 1) -> tuple[int, int, int, int]:
        """x, y, width, height of a part that is smaller than the canvas."""
        width, height = 2 + self.below(WIDTH - 2), 2 + self.below(HEIGHT - 2)
        x, y = self.below(WIDTH - width + 1), self.below(HEIGHT - height + 1)
        return x // step * step, y // step * step, width, height

    def part(self, alpha: tuple[int, ...], dispose: int, blend: int, whole=False, step=1) -> Part:
        x, y, width, height = (0, 0, WIDTH, HEIGHT) if whole else self.area(step)
        pixels = self.array(height, width, 4)
        pixels[..., 3] = np.array(alpha)[self.array(height, width, limit=len(alpha))]
        return Part(pixels, x, y, dispose, blend)


def drawn_parts(seed: str, alpha: tuple[int, ...]) -> list[list[Part]]:
    """Animations of four frames with every pair of neighbours (dispose_op, blend_op) there is."""
    draw, found = Draw(seed), []
    kinds = list(itertools.product((NONE, BACKGROUND, PREVIOUS), (SOURCE, OVER)))
    for one, other in itertools.product(kinds, repeat=2):
        first = draw.part(alpha, *one, whole=True)
        found.append([first, *(draw.part(alpha, *kind) for kind in (other, one, other))])
    return found


def drawn_gifs() -> list[tuple[int, tuple, bytes]]:
    """Backgrounds, parts and global palettes: disposal 0 to 3, transparent colours, palettes of
    their own, first frames smaller than the canvas."""
    draw, found = Draw("gif"), []
    for number in range(120):
        shared = None if number % 5 == 0 else draw.array(12).tobytes()
        parts = []
        for k in range(4):
            whole = k == 0 and number % 2 == 0
            x, y, width, height = (0, 0, WIDTH, HEIGHT) if whole else draw.area()
            clear = draw.below(4) if draw.below(2) else None
            own = draw.array(12).tobytes() if shared is None or draw.below(3) == 0 else None
            parts.append((draw.array(height, width, limit=4), x, y, draw.below(4), clear, 10, own))
        found.append((draw.below(4), tuple(parts), shared))
    return found


def frames_of(data: bytes) -> np.ndarray:
    return load_video(data, ALL).frames


def checksum(pictures: list[np.ndarray]) -> int:
    return zlib.crc32(b"".join(frames.tobytes() for frames in pictures))


@situation(
    "Images and animations",
    "APNG with frames that are disposed of to `previous` and blended `over`",
    "the pictures that FFmpeg shows; Pillow's own composition is not used",
    since="0.2.0",
)
def test_every_disposal_and_blending_of_apng_as_in_ffmpeg():
    shown = []
    for parts in drawn_parts("apng", OPAQUE_OR_CLEAR):
        shown.append(frames_of(apng(WIDTH, HEIGHT, parts)))
        np.testing.assert_array_equal(shown[-1], on_white(composed(WIDTH, HEIGHT, parts)))
    # ffmpeg -f apng -i FILE -fps_mode passthrough -pix_fmt rgba, each file, put on white. (A later
    # frame over the whole canvas with `background` and `over` would be shown otherwise there:
    # FFmpeg takes it for a keyframe and drops what it is blended onto.)
    assert checksum(shown) == APNG_CHECKSUM


@situation(
    "Images and animations",
    "APNG with half-transparent frames blended onto transparency",
    "alpha is composed as the PNG specification says, then put on white",
    since="0.2.0",
)
def test_half_transparent_frames_of_apng():
    for parts in drawn_parts("half", HALF_CLEAR):
        found = frames_of(apng(WIDTH, HEIGHT, parts)).astype(int)
        assert np.abs(found - on_white(composed(WIDTH, HEIGHT, parts))).max() <= 1


def test_apng_with_palette_and_without_alpha():
    draw = Draw("palette")
    colours = np.array([[255, 0, 0, 255], [0, 255, 0, 255], [0, 0, 255, 128], [9, 9, 9, 0]])
    extra = png_chunk(b"PLTE", colours[:, :3].astype(np.uint8).tobytes())
    extra += png_chunk(b"tRNS", colours[:, 3].astype(np.uint8).tobytes())
    parts = [draw.part((0,), k % 3, OVER, whole=k == 0) for k in range(5)]
    for part in parts:
        part.pixels[..., 0] %= 4
    shown = [
        Part(colours[p.pixels[..., 0]].astype(np.uint8), p.x, p.y, p.dispose, p.blend)
        for p in parts
    ]
    found = frames_of(apng(WIDTH, HEIGHT, parts, colour=3, extra=extra)).astype(int)
    assert np.abs(found - on_white(composed(WIDTH, HEIGHT, shown))).max() <= 1
    parts = [draw.part((255,), k % 3, k % 2, whole=k == 0) for k in range(5)]
    found = frames_of(apng(WIDTH, HEIGHT, parts, colour=2))
    np.testing.assert_array_equal(found, on_white(composed(WIDTH, HEIGHT, parts)))


@situation(
    "Images and animations",
    "APNG whose default image is not part of the animation, given as a video",
    "the default image is no frame",
    since="0.2.0",
)
@situation(
    "Images and animations",
    "APNG whose default image is not part of the animation, given as an image",
    "its default image",
    since="0.1.0",
)
def test_a_default_image_outside_the_animation_is_not_a_frame():
    pictures = [
        np.dstack([frame, np.full(frame.shape[:2], 255, np.uint8)]) for frame in numbered(5)
    ]
    data = apng(96, 48, [Part(p) for p in pictures[1:]], default=pictures[0])
    found = load_video(data, ALL)
    assert numbers(found.frames) == [1, 2, 3, 4] and found.fps == pytest.approx(10)
    assert numbers(load_image(data)[None]) == [0]
    # Neither does it count where the animation has one frame: then that one is the video.
    one = load_video(apng(96, 48, [Part(pictures[3])], default=pictures[0]), 8)
    assert numbers(one.frames) == [3]
    assert numbers(load_video(apng(96, 48, [Part(pictures[3])]), 8).frames) == [3]


@pytest.mark.parametrize(
    "delay, seconds",
    [
        ((1, 25), 0.04),
        ((2, 100), 0.02),
        ((5, 0), 0.05),  # a denominator of 0 stands for 100
        ((0, 0), 0.1),
        ((0, 10), 0.1),
        ((1, 100), 0.1),
        ((1, 0), 0.1),
        ((1, 1000), 0.1),
    ],
)
def test_delays_of_apng(delay, seconds):
    parts = [Part(Draw("delay").array(HEIGHT, WIDTH, 4), delay=delay) for _ in range(4)]
    assert load_video(apng(WIDTH, HEIGHT, parts), 4).fps == pytest.approx(1 / seconds)


@pytest.mark.parametrize("plays", [0, 1, 3])
def test_an_animation_is_seen_once_however_often_it_plays(plays):
    parts = [Part(Draw("plays").array(HEIGHT, WIDTH, 4)) for _ in range(4)]
    found = load_video(apng(WIDTH, HEIGHT, parts, plays=plays), ALL)
    assert len(found.frames) == 4 and found.fps == pytest.approx(10)


def test_apng_with_a_wrong_count_of_frames():
    parts = [Part(Draw(str(k)).array(HEIGHT, WIDTH, 4)) for k in range(4)]
    assert len(frames_of(apng(WIDTH, HEIGHT, parts, count=2))) == 4  # as in FFmpeg
    with pytest.raises(MediaError, match="not a readable video .4 of 5 frames"):
        frames_of(apng(WIDTH, HEIGHT, parts, count=5))
    with pytest.raises(MediaError, match="a still image"):  # 0 is not allowed
        frames_of(apng(WIDTH, HEIGHT, parts, count=0))


@pytest.mark.parametrize(
    "change, names",
    [
        (
            lambda d: d.replace(
                b"\x00\x00\x00\x08\x00\x00\x00\x06" + b"\0" * 8,
                b"\x00\x00\x00\x09\x00\x00\x00\x06" + b"\0" * 8,
            ),
            "checksum of fcTL",
        ),
        (lambda d: d[:-30], "truncated"),
        (lambda d: d[:-12], "truncated"),
    ],
)
def test_a_damaged_apng_is_refused(change, names):
    parts = [Part(Draw(str(k)).array(HEIGHT, WIDTH, 4)) for k in range(4)]
    with pytest.raises(MediaError, match=f"not a readable video .*{names}"):
        frames_of(change(apng(WIDTH, HEIGHT, parts)))


@pytest.mark.parametrize(
    "part, names",
    [
        (
            Part(np.zeros((3, 3, 4), np.uint8), 6, 0),
            "a frame of 3 x 3 at 6, 0 on a canvas of 8 x 6",
        ),
        (Part(np.zeros((3, 3, 4), np.uint8), dispose=3), "frame 1: dispose_op 3"),
        (Part(np.zeros((3, 3, 4), np.uint8), blend=2), "blend_op 2"),
    ],
)
def test_a_frame_of_apng_that_cannot_be_is_refused(part, names):
    with pytest.raises(MediaError, match=names):
        frames_of(apng(WIDTH, HEIGHT, [Part(np.zeros((HEIGHT, WIDTH, 4), np.uint8)), part]))


def shown_gif(background: int, parts: tuple, shared: bytes | None) -> np.ndarray:
    """The pictures of a GIF, on white: FFmpeg's rules in words of their own."""
    colours = None if shared is None else np.frombuffer(shared, np.uint8).reshape(4, 3)
    fill = [255, 255, 255] if colours is None else colours[background]
    white = parts[0][4] is not None
    canvas = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    canvas[:] = 255 if white else fill
    found = []
    for indices, x, y, disposal, clear, _, own in parts:
        before = canvas.copy()
        area = canvas[y : y + indices.shape[0], x : x + indices.shape[1]]
        drawn = np.ones_like(indices, bool) if clear is None else indices != clear
        area[drawn] = np.frombuffer(own or shared, np.uint8).reshape(4, 3)[indices][drawn]
        found.append(canvas.copy())
        if disposal == 2:
            area[:] = 255 if clear is not None else fill
        elif disposal == 3:
            canvas = before
    return np.stack(found)


@situation(
    "Images and animations",
    "GIF of partial frames, with disposal, transparency and local palettes mixed",
    "the pictures that FFmpeg shows, transparent parts on white",
    since="0.2.0",
)
def test_gifs_as_in_ffmpeg():
    shown = []
    for background, parts, shared in drawn_gifs():
        shown.append(frames_of(gif(WIDTH, HEIGHT, list(parts), shared, background)))
        np.testing.assert_array_equal(shown[-1], shown_gif(background, parts, shared))
    # ffmpeg -f gif -i FILE -fps_mode passthrough -pix_fmt rgba, each file, put on white.
    assert checksum(shown) == GIF_CHECKSUM


def block(value: int, width: int = WIDTH, height: int = HEIGHT, x: int = 0, y: int = 0, **more):
    options = {"disposal": 0, "clear": None, "delay": 10, "own": None} | more
    return (np.full((height, width), value), x, y, *options.values())


def test_gif_frames_that_do_not_fit_the_canvas():
    data = gif(WIDTH, HEIGHT, [block(0, 10, 9), block(1, 3, 3, 6, 4)], PALETTE)
    found = frames_of(data)  # cut at its edges, as in FFmpeg
    assert found.shape == (2, HEIGHT, WIDTH, 3)
    assert (found[1] == list(PALETTE[3:6])).all(-1).sum() == 2 * 2
    data = gif(0, 0, [block(0), block(1, 3, 3, 2, 2)], PALETTE)  # a canvas that is not stated
    assert frames_of(data).shape == (2, HEIGHT, WIDTH, 3)
    large = data.replace(
        struct.pack("<BIHH", 0x2C, 0, 8, 6), struct.pack("<BIHH", 0x2C, 0, 9000, 9000)
    )
    with pytest.raises(MediaError, match="9000 x 9000 are above the limit"):
        frames_of(large)


def test_gif_delays_and_odd_colours():
    delays = gif(WIDTH, HEIGHT, [block(0, delay=d) for d in (0, 1, 2, 10)], PALETTE)
    assert load_video(delays, 4).fps == pytest.approx(4 / 0.32)  # 0.1, 0.1, 0.02, 0.1 s
    past = gif(WIDTH, HEIGHT, [block(2, 4, 3), block(1, clear=200)], PALETTE, background=200)
    found = frames_of(past)
    assert found[0, 5, 7].tolist() == [255] * 3, "there is no background colour 200"
    assert found[1, 5, 7].tolist() == list(PALETTE[3:6])


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d[:-1],
        lambda d: d[:-2],
        lambda d: d[:-1] + b"\0\0;",
        lambda d: d + b"more",
    ],
)
@situation(
    "Images and animations",
    "GIF without its last byte, or with bytes after it",
    "accepted: all its pictures are there",
    since="0.1.0",
)
def test_a_gif_with_an_untidy_end(change):
    assert len(frames_of(change(gif(WIDTH, HEIGHT, [block(0), block(1)], PALETTE)))) == 2


@pytest.mark.parametrize("cut", [3, 4, 30, 60])
def test_a_gif_cut_short_is_refused(cut):
    with pytest.raises(MediaError, match="not a readable video"):
        frames_of(gif(WIDTH, HEIGHT, [block(0), block(1)], PALETTE)[:-cut])


@situation(
    "Images and animations",
    "animated WebP of partial frames, blended or not, disposed of or not",
    "the pictures of the WebP specification, transparent parts on white; the "
    "background colour is not painted, as in libwebp",
    since="0.1.0",
)
@situation(
    "Images and animations",
    "animated WebP that does not say that it has transparent parts",
    "transparent parts are white; Pillow shows them black",
    since="0.2.0",
)
@pytest.mark.parametrize("says_alpha", [True, False])
@pytest.mark.parametrize("alpha", [OPAQUE_OR_CLEAR, HALF_CLEAR])
def test_webp_frames(alpha, says_alpha):
    draw = Draw("webp")
    for kinds in itertools.product((NONE, BACKGROUND), (SOURCE, OVER), (NONE, BACKGROUND)):
        blend, dispose = kinds[1], (kinds[0], kinds[2])
        parts = [draw.part(alpha, dispose[k % 2], blend, step=2) for k in range(4)]
        data = webp(WIDTH, HEIGHT, parts, background=b"\1\2\3\xff", alpha=says_alpha)
        found = frames_of(data).astype(int)
        assert np.abs(found - on_white(composed(WIDTH, HEIGHT, parts))).max() <= 1


def test_webp_of_lossy_frames_equals_libwebp():
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (32, 48, 3), np.uint8)) for _ in range(4)]
    data = picture(images[0], "WEBP", save_all=True, append_images=images[1:], duration=100)
    with Image.open(io.BytesIO(data)) as image:
        expected = []
        for k in range(4):
            image.seek(k)
            expected.append(np.asarray(image.convert("RGB")))
    np.testing.assert_array_equal(frames_of(data), np.stack(expected))


def test_webp_durations_and_a_single_frame():
    parts = [Part(Draw(str(k)).array(HEIGHT, WIDTH, 4)) for k in range(4)]
    data = webp(WIDTH, HEIGHT, parts, milliseconds=[0, 5, 10, 20])
    assert load_video(data, 4).fps == pytest.approx(4 / 0.32)
    assert len(frames_of(data + b"xx")) == 4
    assert len(frames_of(webp(WIDTH, HEIGHT, parts[:1]))) == 1
    with pytest.raises(MediaError, match="truncated"):
        frames_of(data[:-20])


@pytest.mark.parametrize("kind", ["apng", "gif", "webp"])
@pytest.mark.parametrize("wanted", [[3], [0, 7], [2, 3, 6], [5, 6, 7]])
def test_frames_are_right_whichever_are_wanted(kind, wanted, monkeypatch):
    draw = Draw("wanted")
    parts = [
        draw.part(
            OPAQUE_OR_CLEAR, k % (2 if kind == "webp" else 3), k // 2 % 2, whole=k % 4 == 0, step=2
        )
        for k in range(8)
    ]
    if kind == "gif":
        data = gif(
            WIDTH,
            HEIGHT,
            list(drawn_gifs()[1][1]) + list(drawn_gifs()[2][1]),
            drawn_gifs()[1][2] or PALETTE,
        )
    else:
        data = (apng if kind == "apng" else webp)(WIDTH, HEIGHT, parts)
    whole = frames_of(data)
    choose = lambda sampling, timeline, name: (np.array(wanted), 1.0)  # noqa: E731
    monkeypatch.setattr(animation_module, "sample", choose)
    np.testing.assert_array_equal(frames_of(data), whole[wanted])


def test_only_frames_that_show_are_decoded(monkeypatch):
    read, draw = [], animation_module._draw
    monkeypatch.setattr(animation_module, "_draw", lambda *a: (read.append(1), draw(*a)))
    opaque = [Part(np.dstack([frame, np.full((48, 96), 255, np.uint8)])) for frame in numbered(24)]
    assert numbers(load_video(apng(96, 48, opaque, colour=2), 4).frames) == [0, 8, 15, 23]
    assert len(read) == 4


def test_limits_of_animations():
    parts = [Part(np.zeros((HEIGHT, WIDTH, 4), np.uint8)) for _ in range(24)]
    for data in (apng(WIDTH, HEIGHT, parts), webp(WIDTH, HEIGHT, parts)):
        with pytest.raises(MediaError, match="at least 24 frames are above the limit of 23"):
            load_video(data, 8, limits=Limits(frames=23))
        assert len(load_video(data, 8, limits=Limits(frames=24)).frames) == 8


APNG_CHECKSUM = 2268386056
GIF_CHECKSUM = 2317918297
