"""Frames of real encoded videos, chosen exactly; and everything that is no video."""

import gzip
import io
import math
import os
import socket
import struct
import zipfile
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from gve_jax.media.errors import MediaError
from gve_jax.media.sampling import Sampling, spread
from gve_jax.media.video import load_video
from tests.media.files import audio_only, clip, encode, numbered, numbers, picture, textured
from tests.situations import situation


def uniform_indices(total, n):
    return spread(0, total - 1, max(1, min(n, total) // 2 * 2))


EIGHT = [0, 3, 7, 10, 13, 16, 20, 23]  # of 24: 23/7 = 3.286 apart, rounded


@pytest.mark.parametrize("count", [1, 2, 3, 7, 24, 60])
@pytest.mark.parametrize("wanted", [2, 8])
def test_exactly_the_chosen_frames_and_their_rate(count, wanted):
    sampled = load_video(clip(count), wanted)
    expected = uniform_indices(count, wanted).tolist()
    assert sampled.frames.dtype == np.uint8 and sampled.frames.shape[1:] == (48, 96, 3)
    assert numbers(sampled.frames) == expected
    assert sampled.fps == pytest.approx(len(expected) / count * 10)


@pytest.mark.parametrize(
    "container, codec",
    [
        ("mp4", "libx265"),
        ("mov", "libx264"),
        ("matroska", "libx264"),
        ("webm", "libvpx-vp9"),
        ("webm", "libvpx"),
        ("avi", "mpeg4"),
        ("mpegts", "libx264"),
        ("mp4", "mpeg4"),
    ],
)
def test_containers_and_codecs_people_have(container, codec):
    sampled = load_video(clip(24, container, codec), 8)
    assert numbers(sampled.frames) == EIGHT and sampled.fps == pytest.approx(10 / 3)


def test_path_and_bytes_are_one_video(tmp_path):
    path = tmp_path / "v.mp4"
    path.write_bytes(clip())
    for source in (path, str(path)):
        sampled = load_video(source, 8)
        np.testing.assert_array_equal(sampled.frames, load_video(clip(), 8).frames)


def test_arrays_and_lists_of_images_are_videos():
    frames = numbered(12)
    expected = uniform_indices(12, 4)
    images = [Image.fromarray(frame) for frame in frames]
    encoded = [picture(image) for image in images]
    for source in (frames, list(frames), images, tuple(encoded)):
        sampled = load_video(source, 4, fps=6.0)
        np.testing.assert_array_equal(sampled.frames, frames[expected])
        assert sampled.fps == pytest.approx(4 / 12 * 6)
    assert load_video(frames, 12).fps == pytest.approx(2.0)  # the reference's default
    assert load_video(frames[:1], 8).frames.shape[0] == 1


@situation(
    "Media",
    "MP4 cut by copy, with an edit list",
    "begins with the frame that the list names",
    since="0.1.0",
)
@pytest.mark.parametrize("shift, first", [(-5, 5), (7, 0)])
def test_a_clip_cut_without_encoding_begins_where_its_edit_list_says(shift, first):
    data = encode(numbered(24), options={"avoid_negative_ts": "disabled"}, shift=shift)
    sampled = load_video(data, 8)
    assert numbers(sampled.frames) == (first + uniform_indices(24 - first, 8)).tolist()


@situation(
    "Media",
    "phone video that is turned or mirrored by its display matrix",
    "its frames are turned upright",
    since="0.1.0",
)
@pytest.mark.parametrize(
    "a, b, c, d",
    [
        (1, 0, 0, 1),
        (0, 1, -1, 0),
        (-1, 0, 0, -1),
        (0, -1, 1, 0),  # turned by quarters
        (-1, 0, 0, 1),
        (1, 0, 0, -1),
        (0, 1, 1, 0),
        (0, -1, -1, 0),  # and mirrored
        (2, 0, 0, 1),
        (0, 0, 0, 0),  # a scale, and no matrix at all: as it is
    ],
)
def test_frames_are_turned_as_the_file_says(a, b, c, d):
    data = encode(textured(8))
    plain = load_video(data, 2).frames
    found = load_video(turned(data, a, b, c, d), 2).frames
    if not any((a, b, c, d)):
        a = d = 1
    height, width = plain.shape[1:3]
    rows, cols = np.mgrid[:height, :width]
    across, down = np.sign(a) * cols + c * rows, b * cols + d * rows
    expected = np.zeros_like(found)
    expected[:, down - down.min(), across - across.min()] = plain
    np.testing.assert_array_equal(found, expected)
    assert found.flags.c_contiguous


@situation("Media", "video rotated by 45 degrees", "refused by name", since="0.1.0")
def test_another_angle_is_refused():
    refused(turned(encode(textured(8)), 0.7071, 0.7071, -0.7071, 0.7071), "rotated by 45 degrees")


def turned(data: bytes, a, b, c, d) -> bytes:
    """An mp4 with another display matrix."""
    at = data.index(b"tkhd") + 44
    matrix = [round(v * 65536) for v in (a, b, 0, c, d, 0, 0, 0)]
    return data[:at] + struct.pack(">9i", *matrix, 1 << 30) + data[at + 36 :]


@situation(
    "Media",
    "anamorphic video (pixels that are not square)",
    "pixels as stored, as in decord",
    since="0.1.0",
)
def test_pixels_that_are_not_square_are_taken_as_they_are():
    data = encode(textured(8), codec_options={"aspect": "2"})
    with av.open(io.BytesIO(data)) as file:
        assert file.streams.video[0].sample_aspect_ratio == 2
    assert load_video(data, 2).frames.shape == (2, 64, 96, 3)


TIMES = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 20, 30, 40, 50, 60, 61, 62, 63, 64, 65]  # tenths of a second


@situation(
    "Media",
    "variable frame rate in MP4, MKV, WebM, MPEG-TS",
    "rate and ranges by the times of the frames",
    since="0.1.0",
)
@pytest.mark.parametrize(
    "container, codec, options, last",
    [
        ("mp4", "libx264", {"bf": "2"}, 1),
        ("matroska", "libx264", {"bf": "2"}, 1),
        ("webm", "libvpx-vp9", {}, 1),
        ("mpegts", "libx264", {"bf": "0"}, 1),
    ],
)
def test_a_variable_rate_goes_by_the_times_of_the_frames(container, codec, options, last):
    data = encode(
        numbered(20), container=container, codec=codec, codec_options=options, times=TIMES
    )
    whole = load_video(data, 8)
    assert numbers(whole.frames) == spread(0, 19, 8).tolist()
    assert whole.fps == pytest.approx(8 / 6.6, rel=0.02)  # 20 frames in 6.6 s
    by_rate = load_video(data, Sampling(fps=1.0))
    assert len(by_rate.frames) == 6 and by_rate.fps == pytest.approx(6 / 6.6, rel=0.02)
    part = load_video(data, Sampling(num_frames=4, start=0.95, end=5.5))
    assert numbers(part.frames) == [10, 11, 12, 13]  # at 2, 3, 4 and 5 s
    assert part.fps == pytest.approx(4 / 4.0, rel=0.02)
    early = load_video(data, Sampling(num_frames=2, end=0.3001))
    assert numbers(early.frames) == [0, 3] and early.fps == pytest.approx(2 / 0.4, rel=0.02)


@situation(
    "Media",
    "29.97 or 23.976 frames a second",
    "the reference's seconds per grid step, to the last bit",
    since="0.1.0",
)
@pytest.mark.parametrize("container", ["mp4", "mov", "matroska", "webm", "avi", "mpegts"])
@pytest.mark.parametrize("rate", [Fraction(30000, 1001), Fraction(24000, 1001), 25, 15])
def test_a_constant_rate_is_the_reference_s_to_the_bit(container, rate):
    """There, frames / total * the average rate of the container: seconds a grid step agree."""
    codec = "libvpx-vp9" if container == "webm" else "mpeg4" if container == "avi" else "libx264"
    data = encode(numbered(60), fps=rate, container=container, codec=codec)
    found = load_video(data, 8)
    assert np.float32(2 / found.fps) == np.float32(2 / (8 / 60 * float(rate)))
    start, end = 0.31, 1.23  # the reference's frames: ceil(start * rate) to floor(end * rate)
    part = load_video(data, Sampling(num_frames=2, start=start, end=end))
    first, last = math.ceil(start * float(rate)), math.floor(end * float(rate))
    assert numbers(part.frames) == [first, last]


def test_sampling_by_rate():
    data = encode(numbered(60), fps=10)
    for sampling, count in {
        Sampling(fps=1.0): 6,
        Sampling(fps=2.5): 14,  # 15, and even
        Sampling(fps=0.1): 4,  # the least
        Sampling(fps=0.1, min_frames=9): 10,
        Sampling(fps=5.0, max_frames=9): 8,
        Sampling(fps=100.0): 60,
        Sampling(fps=1.0, start=2.0, end=4.0): 4,
    }.items():
        found = load_video(data, sampling)
        first = 20 if sampling.start else 0
        last = 40 if sampling.end else 59
        assert numbers(found.frames) == spread(first, last, count).tolist()
        assert found.fps == pytest.approx(count / (last - first + 1) * 10)


@situation(
    "Media",
    "AVI with frames dropped at recording",
    "accepted; the gap counts as time",
    since="0.1.0",
)
def test_frames_dropped_at_recording_are_not_damage():
    """AVI writes an empty chunk for each; nothing was cut off."""
    times = [k if k < 10 else k + 5 for k in range(24)]
    found = load_video(encode(numbered(24), container="avi", codec="mpeg4", times=times), 8)
    assert numbers(found.frames) == EIGHT
    assert found.fps == pytest.approx(8 / 2.9)  # seconds, with those of the gap


def refused(source, names: str | None = None) -> None:
    with pytest.raises(MediaError, match=names) as error:
        load_video(source, 8)
    assert "\n" not in str(error.value)


@situation(
    "Media",
    "text, noise, sound or a picture named .mp4; an empty file; a URL",
    "refused by name, in one line",
    since="0.1.0",
)
def test_files_that_are_not_videos(tmp_path):
    refused(tmp_path / "missing.mp4", "missing.mp4: no such file")
    refused(tmp_path, "no frame")
    refused("http://localhost/v.mp4", "no such file")
    for name, data in {
        "empty.mp4": b"",
        "text.mp4": b"this is a text\n" * 100,
        "noise.mp4": np.random.default_rng(0).bytes(5000),
        "picture.mp4": picture(Image.new("RGB", (32, 32))),
    }.items():
        path = tmp_path / name
        path.write_bytes(data)
        refused(path, f"{name}: not a readable video")
        refused(data, f"<{len(data)} bytes>")
    refused(audio_only(), "no video stream")


@situation(
    "Media",
    "MXF, NUT, IVF, Y4M, raw H.264 or HEVC streams",
    "refused; the message names the containers and how to convert",
    since="0.2.0",
)
@pytest.mark.parametrize(
    "container, codec",
    [
        ("mxf", "mpeg2video"),
        ("nut", "mpeg4"),
        ("ivf", "libvpx"),
        ("yuv4mpegpipe", "rawvideo"),
        ("h264", "libx264"),
        ("hevc", "libx265"),
    ],
)
def test_containers_off_the_list(container, codec):
    if codec == "rawvideo":
        data = b"YUV4MPEG2 W96 H48 F10:1\n" + (b"FRAME\n" + bytes(96 * 48 * 3 // 2)) * 24
    else:
        data = encode(numbered(24), fps=25, container=container, codec=codec)
    refused(data, "not a readable video .*damaged or not supported; supported: mov.*ffmpeg -i")


PLAYLISTS = {
    "list.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:2.4,\n{}\n#EXT-X-ENDLIST\n",
    "list.ffconcat": "ffconcat version 1.0\nfile {}\n",
    "list.mp4": "ffconcat version 1.0\nfile {}\n",
    "list.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video {} RTP/AVP 96\n",
    "list.svg": '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
    '<image xlink:href="{}" width="9" height="9"/></svg>',
    "list.mpd": '<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet '
    'mimeType="video/mp4"><Representation id="0"><BaseURL>{}</BaseURL><SegmentBase/>'
    "</Representation></AdaptationSet></Period></MPD>",
}


@situation(
    "Media",
    "playlist or script that names other files (m3u8, concat, SDP, SVG, DASH)",
    "refused, and no file it names is read",
    since="0.1.0",
)
@pytest.mark.parametrize("name", PLAYLISTS)
@pytest.mark.parametrize("target", ["v.mp4", "file:v.mp4", "concat:v.mp4|v.mp4"])
def test_a_playlist_opens_nothing(tmp_path, monkeypatch, name, target):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "v.mp4").write_bytes(clip())
    os.utime("v.mp4", (1, 1))  # Linux moves the time of access on when that is an old one
    text = PLAYLISTS[name].format(target)
    (tmp_path / name).write_text(text)
    refused(tmp_path / name, name)
    refused(text.encode())
    assert os.stat("v.mp4").st_atime == 1, "the file a playlist names was read"
    load_video(tmp_path / "v.mp4", 2)
    assert os.stat("v.mp4").st_atime > 1, "reading a file is not seen here"


def alias_to(data: bytes, name: str) -> bytes:
    """A QuickTime file (tables at the end) whose samples lie in another file."""
    names = b""
    for kind, path in ((2, os.path.abspath(name).encode()), (18, name.encode())):
        names += struct.pack(">hh", kind, len(path)) + path + bytes(len(path) % 2)
    record = bytes(10) + b"\1v" + bytes(26 + 12) + b"\5v.mp4" + bytes(58 + 16)
    record += struct.pack(">hh", 1, 1) + bytes(16) + names + struct.pack(">hh", -1, 0)
    at = data.rindex(b"dref", 0, data.index(b"stbl")) + 12  # its one entry: itself
    assert int.from_bytes(data[at : at + 4]) == 12
    entry = struct.pack(">I4sI", len(record) + 12, b"alis", 0) + record
    changed = bytearray(data[:at] + entry + data[at + 12 :])
    for kind in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"):
        start = data.rindex(kind, 0, at) - 4
        size = int.from_bytes(data[start : start + 4]) + len(entry) - 12
        changed[start : start + 4] = size.to_bytes(4)
    return bytes(changed)


@situation(
    "Media",
    "QuickTime file whose frames lie in another file (an alias)",
    "the other file is not opened",
    since="0.1.0",
)
def test_a_reference_to_another_file_opens_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "v.mp4").write_bytes(clip())
    (tmp_path / "a.mov").write_bytes(alias_to(clip(24, "mov", "mpeg4"), "v.mp4"))
    os.utime("v.mp4", (1, 1))
    try:
        load_video(tmp_path / "a.mov", 2)
    except MediaError:
        pass
    assert os.stat("v.mp4").st_atime == 1, "the file that the alias names was read"
    options = {"enable_drefs": "1", "use_absolute_path": "1"}  # which nobody sets
    with av.open("a.mov", options=options) as file:
        next(file.demux(video=0))
    assert os.stat("v.mp4").st_atime > 1, "the alias names no file"


@situation(
    "Media", "playlist that names a host", "refused, and no connection is made", since="0.1.0"
)
@pytest.mark.parametrize("name", PLAYLISTS)
@pytest.mark.parametrize("scheme", ["http", "tcp", "rtsp", "hls+http"])
def test_a_playlist_connects_to_nothing(tmp_path, name, scheme):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        target = f"{scheme}://127.0.0.1:{server.getsockname()[1]}/v.ts"
        text = PLAYLISTS[name].format(target)
        (tmp_path / name).write_text(text)
        refused(tmp_path / name, name)
        refused(text.encode())
        refused(target, "no such file")
        with pytest.raises(TimeoutError):
            server.accept()


@situation("Media", "zipped or gzipped video", "refused", since="0.1.0")
def test_archives_are_not_videos(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("v.mp4", clip())
    refused(buffer.getvalue(), "not a readable video")
    refused(gzip.compress(clip()), "not a readable video")


@pytest.mark.parametrize(
    "source, names",
    [
        (5, "int"),
        (object(), "object"),
        ({"path": "v.mp4"}, "dict"),
        (bytearray(b"x"), "bytearray"),
        ([], "no frame"),
        ([1, 2], "int"),
        (["missing.png"], "missing.png"),
        (np.zeros((0, 4, 4, 3), np.uint8), "no frame"),
        (np.zeros((2, 4, 4, 3), np.float32), r"float32 \[2, 4, 4, 3\]"),
        (np.zeros((4, 4, 3), np.uint8), r"\[4, 4, 3\]"),
        ([np.zeros((4, 4, 3), np.uint8), np.zeros((4, 6, 3), np.uint8)], "differ in size"),
    ],
)
def test_values_that_are_not_videos(source, names):
    refused(source, names)


@situation(
    "Media", "MP4 cut short, fragmented or not", "refused, never a shorter clip", since="0.1.0"
)
@pytest.mark.parametrize("options", [{}, {"movflags": "frag_keyframe+empty_moov"}])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_truncated_mp4_is_refused(options, share):
    data = encode(numbered(24), options=options)
    refused(data[: int(len(data) * share)])


@pytest.fixture(scope="module")
def header_first(tmp_path_factory) -> bytes:
    """An mp4 whose tables come first: cut anywhere, it still opens."""
    path = tmp_path_factory.mktemp("video") / "v.mp4"
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as out:
        stream = out.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 96, "yuv420p"
        for frame in numbered(24):
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")):
                out.mux(packet)
        for packet in stream.encode():
            out.mux(packet)
    return path.read_bytes()


def boundaries(data: bytes) -> list[int]:
    """Where each packet ends in the file."""
    with av.open(io.BytesIO(data)) as file:
        return sorted(p.pos + p.size for p in file.demux(video=0) if p.size)


@situation(
    "Media", "MP4, AVI or MKV that ends between two frames", "refused as cut off", since="0.1.0"
)
def test_a_file_cut_between_two_frames_is_refused(header_first):
    assert numbers(load_video(header_first, 8).frames) == EIGHT
    for data in (header_first, clip(24, "avi", "mpeg4"), clip(24, "matroska")):
        ends = boundaries(data)
        for kept in (2, 12, 20, 23):
            refused(data[: ends[kept - 1]], "truncated|not a readable")
            refused(data[: ends[kept - 1] - 1], "truncated|not a readable")


def test_flipped_bits_raise_or_every_frame_decodes(header_first):
    """In the compressed frames; a table of times may be changed into another that is legal."""
    start = header_first.index(b"mdat") + 4
    rng = np.random.default_rng(0)
    outcomes = set()
    for _ in range(150):
        damaged = bytearray(header_first)
        damaged[rng.integers(start, len(damaged))] ^= 1 << rng.integers(8)
        try:
            sampled = load_video(bytes(damaged), 24)
            assert len(sampled.frames) == 24 and sampled.fps == pytest.approx(10)
            outcomes.add("all frames")
        except MediaError:
            outcomes.add("refused")
    assert outcomes == {"all frames", "refused"}


def test_flipped_bits_of_the_header_raise_nothing_else(header_first):
    end = header_first.index(b"mdat") + 4
    for at in range(0, end, 3):
        damaged = bytearray(header_first)
        damaged[at] ^= 1 << (at // 3 % 8)
        try:
            load_video(bytes(damaged), 8)
        except MediaError:
            pass


@situation(
    "Media",
    "MP4 whose table of samples is shorter than its duration",
    "refused as damaged",
    since="0.1.0",
)
def test_a_shortened_table_of_samples_is_refused(header_first):
    at = header_first.index(b"stsz") + 12
    assert header_first[at : at + 4] == (24).to_bytes(4)
    refused(header_first[:at] + (8).to_bytes(4) + header_first[at + 4 :])
