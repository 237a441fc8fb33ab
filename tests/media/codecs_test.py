"""Codecs, pixel formats and containers as people have them, made with PyAV's own encoders."""

import io
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from gve_jax.media.errors import MediaError
from gve_jax.media.limits import Limits
from gve_jax.media.video import load_video
from tests.media.files import encode, numbered, numbers, picture, textured
from tests.situations import situation

EIGHT = [0, 3, 7, 10, 13, 16, 20, 23]
QUIET = {"libx265": {"x265-params": "log-level=none"}, "libsvtav1": {"preset": "10"}}


def test_the_encoders_these_tests_need_are_there():
    """Without one of them its cases would say nothing."""
    for name in ("libx264", "libx265", "libvpx", "libvpx-vp9", "libsvtav1", "mpeg4", "mjpeg"):
        av.Codec(name, "w")


def brute_force(data: bytes, **options) -> np.ndarray:
    with av.open(io.BytesIO(data)) as file:
        return np.stack([f.to_ndarray(**options) for f in file.decode(video=0)])


@situation(
    "Media",
    "10 bit, 4:2:2, 4:4:4, grey and full range video",
    "decoded to 8-bit RGB",
    since="0.1.0",
)
@pytest.mark.parametrize(
    "codec, pix_fmt",
    [
        ("libx264", "yuv420p10le"),
        ("libx265", "yuv420p10le"),
        ("libsvtav1", "yuv420p10le"),
        ("libx264", "yuv422p"),
        ("libx264", "yuv444p"),
        ("libvpx-vp9", "yuv444p"),
        ("libx264", "gray"),
        ("mjpeg", "yuvj422p"),
    ],
)
def test_pixel_formats(codec, pix_fmt):
    container = "avi" if codec == "mjpeg" else "mp4"
    data = encode(
        numbered(24),
        container=container,
        codec=codec,
        pix_fmt=pix_fmt,
        codec_options=QUIET.get(codec),
    )
    found = load_video(data, 8).frames
    assert numbers(found) == EIGHT and found.dtype == np.uint8
    assert np.abs(found.astype(int) - numbered(24)[EIGHT]).mean() < 8  # black and white


@situation("Media", "video of odd width or height", "every row and column is kept", since="0.1.0")
@pytest.mark.parametrize(
    "codec, container",
    [
        ("mpeg4", "mp4"),
        ("mpeg4", "avi"),
        ("libvpx-vp9", "webm"),
        ("libvpx", "webm"),
        ("libsvtav1", "mp4"),
        ("libx264 444", "mp4"),
    ],
)
@pytest.mark.parametrize("height, width", [(51, 97), (52, 97), (51, 98)])
def test_odd_sizes(codec, container, height, width):
    if codec == "libsvtav1" and height < 64:
        height, width = height + 14, width + 14  # its least side
    frames = np.pad(numbered(24), ((0, 0), (0, height - 48), (0, width - 96), (0, 0)))
    codec, full = codec.split()[0], codec.endswith("444")
    data = encode(
        frames,
        container=container,
        codec=codec,
        codec_options=QUIET.get(codec),
        pix_fmt="yuv444p" if full else "yuv420p",
    )
    found = load_video(data, 8).frames
    assert found.shape[1:3] == (height, width) and numbers(found[:, :48, :96]) == EIGHT


# Kr and Kb of the standards, by FFmpeg's names.
MATRICES = {"smpte170m": (0.299, 0.114), "bt709": (0.2126, 0.0722)}


@pytest.mark.parametrize("space", MATRICES)
@pytest.mark.parametrize("full", [False, True])
def test_colours_are_those_of_the_declared_matrix_and_range(space, full):
    """Against the standards' formula, each 2 x 2 pixels with their one sample of colour (FFmpeg's
    fast way, and decord's), within FFmpeg's rounding to fewer bits."""
    params = f"colormatrix={space}:fullrange={'on' if full else 'off'}:qp=0"
    data = encode(colourful(8), codec_options={"x264-params": params})
    planes = brute_force(data, format="yuv420p" if not full else None)[:8].astype(float)
    height, width = 64, 96
    luma = planes[:, :height]
    chroma = planes[:, height:].reshape(8, 2, height // 2, width // 2)
    cb, cr = np.repeat(np.repeat(chroma, 2, 2), 2, 3).swapaxes(0, 1) - 128
    if full:
        cb, cr = cb / 255, cr / 255
        luma = luma / 255
    else:
        cb, cr = cb / 224, cr / 224
        luma = (luma - 16) / 219
    kr, kb = MATRICES[space]
    red, blue = luma + 2 * (1 - kr) * cr, luma + 2 * (1 - kb) * cb
    green = (luma - kr * red - kb * blue) / (1 - kr - kb)
    expected = np.clip(255 * np.stack([red, green, blue], -1), 0, 255)
    found = load_video(data, 8).frames
    assert np.abs(found - expected).max() < 3
    assert np.abs(found - expected).mean() < 1.3


def colourful(count: int) -> np.ndarray:
    y, x = np.mgrid[:64, :96]
    base = np.stack([np.sin(x / 9), np.cos(y / 7), np.sin((x + y) / 13)], -1)
    return np.stack([128 + 100 * base + 3 * k for k in range(count)]).astype(np.uint8)


@situation(
    "Media",
    "fragments and live recordings without a duration",
    "accepted with the right rate",
    since="0.1.0",
)
@pytest.mark.parametrize(
    "container, codec, options",
    [
        ("mp4", "libx264", {"movflags": "frag_keyframe+empty_moov"}),
        ("mp4", "libx264", {"movflags": "frag_every_frame+empty_moov+default_base_moof"}),
        ("matroska", "libx264", {"live": "1"}),
        ("webm", "libvpx-vp9", {"live": "1"}),
        ("matroska", "libx264", {"reserve_index_space": "0"}),
        ("mpegts", "libx264", {}),
    ],
)
def test_missing_durations(container, codec, options):
    data = encode(numbered(24), container=container, codec=codec, options=options)
    found = load_video(data, 8)
    assert numbers(found.frames) == EIGHT and found.fps == pytest.approx(10 / 3)


@situation(
    "Media",
    "AVI whose header counts too many or too few frames",
    "refused as cut off, or read to its end",
    since="0.1.0",
)
def test_a_wrong_count_of_frames():
    """AVI states it in two places: more than there are is a file cut off, fewer is a lie."""
    data = encode(numbered(24), container="avi", codec="mpeg4")
    places = [data.index(b"avih") + 24, data.index(b"strh") + 40]
    assert all(data[at : at + 4] == (24).to_bytes(4, "little") for at in places)
    for count in (0, 1, 23, 25, 2**31 - 1):
        changed = bytearray(data)
        for at in places:
            changed[at : at + 4] = count.to_bytes(4, "little")
        if count > 24:
            with pytest.raises(MediaError, match="truncated, 24 of|damaged|not a readable"):
                load_video(bytes(changed), 8)
        else:
            found = load_video(bytes(changed), 8)
            assert numbers(found.frames) == EIGHT and found.fps == pytest.approx(10 / 3)


def mux(streams, container: str) -> bytes:
    """`streams`: in order, "audio" or (frames, dispositions)."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as out:
        opened = []
        for stream in streams:
            if stream == "audio":
                opened.append(out.add_stream("aac", rate=48000, layout="mono"))
                continue
            frames, disposition = stream
            video = out.add_stream("libx264", rate=10)
            video.height, video.width, video.pix_fmt = *frames.shape[1:3], "yuv420p"
            video.disposition = disposition
            opened.append(video)
        for stream, target in zip(streams, opened, strict=True):
            if stream == "audio":
                for k in range(100):
                    silence = np.zeros((1, 1024), np.float32)
                    sound = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
                    sound.sample_rate, sound.pts = 48000, 1024 * k
                    out.mux(target.encode(sound))
            else:
                for frame in stream[0]:
                    out.mux(target.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        for target in opened:
            out.mux(target.encode())
    return buffer.getvalue()


DEFAULT, COVER, NONE = (av.stream.Disposition[n] for n in ("default", "attached_pic", "dub"))


@situation("Media", "a file whose first stream is sound", "its video is read", since="0.1.0")
@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts"])
def test_sound_first(container):
    data = mux(["audio", (numbered(24), DEFAULT)], container)
    with av.open(io.BytesIO(data)) as file:
        assert file.streams[0].type == "audio"
    assert numbers(load_video(data, 8).frames) == EIGHT


@pytest.mark.parametrize(
    "first, second, taken",
    [
        (DEFAULT, DEFAULT, 0),
        (NONE, DEFAULT, 1),
        (DEFAULT, NONE, 0),
        (NONE, NONE, 0),
    ],
)
def test_the_stream_marked_as_default_is_taken(first, second, taken):
    """Matroska stores the mark of each stream."""
    frames = numbered(48)
    data = mux([(frames[:24], first), (frames[24:], second)], "matroska")
    assert numbers(load_video(data, 8).frames) == [24 * taken + k for k in EIGHT]


@situation(
    "Media", "a cover picture before the film", "the film is taken for the video", since="0.1.0"
)
def test_a_cover_is_not_a_video():
    cover = picture(Image.fromarray(numbered(2)[1]), "JPEG")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as out:
        art = out.add_stream("mjpeg", rate=10)
        art.height, art.width, art.pix_fmt, art.disposition = 48, 96, "yuvj420p", COVER
        video = out.add_stream("libx264", rate=10)
        video.height, video.width, video.pix_fmt = 48, 96, "yuv420p"
        packet = av.Packet(cover)
        packet.stream, packet.pts, packet.dts, packet.time_base = art, 0, 0, Fraction(1, 10)
        frames = [av.VideoFrame.from_ndarray(f, format="rgb24") for f in numbered(24)]
        packets = [p for frame in [*frames, None] for p in video.encode(frame)]
        for each in [packet, *packets]:
            out.mux(each)
    data = buffer.getvalue()
    with av.open(io.BytesIO(data)) as file:
        assert any(s.disposition & COVER for s in file.streams.video)
    assert numbers(load_video(data, 8).frames) == EIGHT


@situation(
    "Media", "size that changes in the middle of MPEG-TS", "refused with both sizes", since="0.1.0"
)
def test_a_size_that_changes_midway_is_refused():
    small, large = textured(12), np.repeat(np.repeat(textured(12), 2, axis=1), 2, axis=2)
    data = b"".join(encode(frames, container="mpegts") for frames in (small, large))
    with pytest.raises(MediaError, match=r"size changes midway, from \(64, 96\) to \(128, 192\)"):
        load_video(data, 8)
    with pytest.raises(MediaError, match="192 x 128 are above the limit"):
        load_video(data, 8, limits=Limits(frame_pixels=64 * 96))


def test_limits():
    data = encode(numbered(24))
    exact = Limits(frames=24, frame_pixels=48 * 96, streams=1, duration=2.4)
    assert numbers(load_video(data, 8, limits=exact).frames) == EIGHT
    two = mux(["audio", (numbered(24), DEFAULT)], "mp4")
    for source, limits, names in [
        (data, Limits(frames=23), "more frames than the limit of 23"),
        (data, Limits(frame_pixels=48 * 96 - 1), "96 x 48 are above the limit of 4607 pixels"),
        (data, Limits(duration=2.3), "2 s are above the limit of 2.3 s"),
        (two, Limits(streams=1), "2 streams are above the limit of 1"),
    ]:
        with pytest.raises(MediaError, match=names):
            load_video(source, 8, limits=limits)


@situation(
    "Media",
    "small file that promises enormous frames",
    "refused before a frame is made",
    since="0.1.0",
)
@pytest.mark.parametrize(
    "side, names",
    [
        (12_000, "12000 x 12000 are above the limit of 67108864 pixels"),
        (20_000, "not a readable video"),  # FFmpeg has a limit of its own
    ],
)
def test_a_header_that_promises_enormous_frames(side, names):
    """In some kilobytes: refused before a frame is made."""
    data = bytearray(encode(numbered(2), container="avi", codec="rawvideo"))
    at = data.index(b"strf") + 12
    assert data[at : at + 8] == struct.pack("<2i", 96, 48)
    data[at : at + 8] = struct.pack("<2i", side, side)
    with pytest.raises(MediaError, match=names):
        load_video(bytes(data), 8)
