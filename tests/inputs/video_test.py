"""Frames of real encoded videos, chosen exactly; and everything that is no video."""

import numpy as np
import pytest
from PIL import Image

from gve_jax.inputs.errors import MediaError
from gve_jax.inputs.sampling import spread
from gve_jax.inputs.video import load_video
from tests.inputs.media import audio_only, clip, encode, numbered, numbers, picture


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


@pytest.mark.parametrize("container, codec", [
    ("mp4", "libx265"), ("mov", "libx264"), ("matroska", "libx264"), ("webm", "libvpx-vp9"),
    ("webm", "libvpx"), ("avi", "mpeg4"), ("mpegts", "libx264"), ("mp4", "mpeg4"),
])  # fmt: skip
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


@pytest.mark.parametrize("shift, first", [(-5, 5), (7, 0)])
def test_a_clip_cut_without_encoding_begins_where_its_edit_list_says(shift, first):
    data = encode(numbered(24), options={"avoid_negative_ts": "disabled"}, shift=shift)
    sampled = load_video(data, 8)
    assert numbers(sampled.frames) == (first + uniform_indices(24 - first, 8)).tolist()


def test_frames_dropped_at_recording_are_no_damage():
    """AVI writes an empty chunk for each; nothing was cut off."""
    import io

    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="avi") as out:
        stream = out.add_stream("mpeg4", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 96, "yuv420p"
        for k, array in enumerate(numbered(24)):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            frame.pts = k if k < 10 else k + 5
            for packet in stream.encode(frame):
                out.mux(packet)
        for packet in stream.encode():
            out.mux(packet)
    assert numbers(load_video(buffer.getvalue(), 8).frames) == EIGHT


def refused(source, names: str | None = None) -> None:
    with pytest.raises(MediaError, match=names) as error:
        load_video(source, 8)
    assert "\n" not in str(error.value)


def test_files_that_are_no_video(tmp_path):
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


@pytest.mark.parametrize("container, codec", [("flv", "flv1"), ("mpeg", "mpeg2video")])
def test_containers_off_the_list(container, codec):
    refused(clip(24, container, codec), "not a readable video")


@pytest.mark.parametrize("name, text", [
    ("list.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:2.4,\n{}\n#EXT-X-ENDLIST\n"),
    ("list.ffconcat", "ffconcat version 1.0\nfile {}\n"),
    ("list.mp4", "ffconcat version 1.0\nfile {}\n"),
])  # fmt: skip
@pytest.mark.parametrize("target", ["v.mp4", "file:v.mp4"])
def test_a_playlist_opens_nothing(tmp_path, monkeypatch, name, text, target):
    import os

    monkeypatch.chdir(tmp_path)
    (tmp_path / "v.mp4").write_bytes(clip())
    os.utime("v.mp4", (1, 1))  # Linux moves the time of access on when that is an old one
    (tmp_path / name).write_text(text.format(target))
    refused(tmp_path / name, name)
    refused(text.format(target).encode())
    assert os.stat("v.mp4").st_atime == 1, "the file a playlist names was read"


@pytest.mark.parametrize("source, names", [
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
])  # fmt: skip
def test_values_that_are_no_video(source, names):
    refused(source, names)


@pytest.mark.parametrize("options", [{}, {"movflags": "frag_keyframe+empty_moov"}])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_truncated_mp4_is_refused(options, share):
    data = encode(numbered(24), options=options)
    refused(data[: int(len(data) * share)])


@pytest.fixture(scope="module")
def header_first(tmp_path_factory) -> bytes:
    """An mp4 whose tables come first: cut anywhere, it still opens."""
    import av

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
    import io

    import av

    with av.open(io.BytesIO(data)) as file:
        return sorted(p.pos + p.size for p in file.demux(video=0) if p.size)


def test_a_file_cut_between_two_frames_is_refused(header_first):
    assert numbers(load_video(header_first, 8).frames) == EIGHT
    for data in (header_first, clip(24, "avi", "mpeg4"), clip(24, "matroska")):
        ends = boundaries(data)
        for kept in (2, 12, 20, 23):
            refused(data[: ends[kept - 1]], "cut off|not a readable")
            refused(data[: ends[kept - 1] - 1], "cut off|not a readable")


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


def test_a_shortened_table_of_samples_is_refused(header_first):
    at = header_first.index(b"stsz") + 12
    assert header_first[at : at + 4] == (24).to_bytes(4)
    refused(header_first[:at] + (8).to_bytes(4) + header_first[at + 4 :])
