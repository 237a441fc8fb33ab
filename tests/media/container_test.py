"""Which stream is the video, which containers are read, and the index of packets: the quick one of
an MP4 is the one that reading all packets gives."""

import io
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from gve_jax.media import container, mp4
from gve_jax.media.errors import MediaError
from gve_jax.media.limits import Limits
from gve_jax.media.video import load_video
from tests.media.files import encode, numbered, numbers, picture
from tests.media.seek_test import STREAMS, load_some
from tests.situations import situation

GOLDENS = Path(__file__).parent.parent / "goldens"
EIGHT = [0, 3, 7, 10, 13, 16, 20, 23]


def indices(data: bytes, monkeypatch):
    """The index as it is made, whether that was from the table, and the index by reading all."""
    calls = []
    inner = container._read

    with monkeypatch.context() as patch:
        patch.setattr(container, "_read", lambda *args: calls.append(1) or inner(*args))
        with container.open_video(data, "v", Limits()) as (opened, stream, file):
            quick = container.read_index(opened, stream, file, "v", Limits())
        table = not calls
        patch.setattr(container, "_listed", lambda *_: None)
        with container.open_video(data, "v", Limits()) as (opened, stream, file):
            slow = container.read_index(opened, stream, file, "v", Limits())
    return quick, table, slow


@pytest.mark.parametrize("name", [name for name in STREAMS if name != "vp8"])
@pytest.mark.parametrize("box", ["mp4", "mov"])
@pytest.mark.parametrize("times", [None, [0, 1, 2, 5, 9, 10, 20, 21, 22, 30, 31, 32]])
def test_the_table_of_an_mp4_equals_its_packets(name, box, times, monkeypatch):
    codec, options = STREAMS[name]
    if box == "mov" and codec not in ("libx264", "libx265", "mpeg4"):
        pytest.skip("FFmpeg writes no such mov")
    data = encode(
        numbered(12 if times else 40),
        container=box,
        codec=codec,
        times=times,
        codec_options=options,
    )
    quick, table, slow = indices(data, monkeypatch)
    assert table
    for field in ("pts", "dts", "size", "duration", "key", "shown"):
        np.testing.assert_array_equal(getattr(quick, field), getattr(slow, field), field)


@situation(
    "Media",
    "negative composition offsets; header of fixed size; no edit list",
    "the same frames and times by table and by reading",
    since="0.1.0",
)
@pytest.mark.parametrize(
    "options, shift, table",
    [
        ({}, 0, True),
        ({"moov_size": "4000"}, 0, True),
        ({"movflags": "negative_cts_offsets"}, 0, True),
        ({"use_editlist": "0"}, 0, True),
        ({}, 7, True),  # an empty edit before the first frame
        ({"avoid_negative_ts": "disabled"}, -5, False),  # an edit list that cuts frames away
        ({"movflags": "frag_keyframe+empty_moov"}, 0, False),
        ({"movflags": "frag_keyframe"}, 0, False),
    ],
)
def test_plain_files_and_others(options, shift, table, monkeypatch):
    data = encode(
        numbered(24), options=options, shift=shift, codec_options={"bf": "0" if shift else "3"}
    )
    quick, quickly, slow = indices(data, monkeypatch)
    assert quickly == table
    for field in ("pts", "dts", "size", "duration", "key", "shown"):
        np.testing.assert_array_equal(getattr(quick, field), getattr(slow, field), field)
    if shift >= 0:
        assert numbers(load_video(data, 8).frames) == EIGHT


def test_the_payload_is_not_read(tmp_path):
    """Of a long file only its header, and what is decoded."""
    path = tmp_path / "v.mp4"
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (48, 160, 240, 3)).astype(np.uint8)
    path.write_bytes(encode(frames, codec_options={"x264-params": "keyint=4:bframes=0"}))
    read = 0

    class Counted(io.FileIO):
        def read(self, size=-1):
            nonlocal read
            data = super().read(size)
            read += len(data)
            return data

    with Counted(path) as file, container.av.open(file) as opened:
        stream = opened.streams.video[0]
        read = 0
        index = container.read_index(opened, stream, file, "v", Limits())
    assert len(index.pts) == 48
    assert read < 0.2 * path.stat().st_size


@pytest.mark.parametrize("change", ["count", "rows", "samples", "track", "limit", "kinds"])
def test_a_table_that_does_not_fit_is_not_used(change):
    data = bytearray(encode(numbered(24), codec_options={"bf": "3"}))
    found = mp4.read_samples(io.BytesIO(bytes(data)), 1, 24)
    assert found.offsets.shape == found.sizes.shape == found.durations.shape == (24,)
    at = data.index(b"ctts")
    if change == "count":
        data[at + 12 : at + 16] = b"\xff\xff\xff\xff"  # as many times the same: not allocated
    elif change == "rows":
        data[at + 8 : at + 12] = b"\xff\xff\xff\xff"
    elif change == "samples":
        at = data.index(b"stsz") + 12
        data[at : at + 4] = (25).to_bytes(4)
    elif change == "kinds":  # two descriptions of samples: the durations hold, the table does not
        kinds = data.index(b"stsd") + 8
        assert data[kinds : kinds + 4] == (1).to_bytes(4)
        data[kinds : kinds + 4] = (2).to_bytes(4)
    track, limit = 2 if change == "track" else 1, 23 if change == "limit" else 24
    again = mp4.read_samples(io.BytesIO(bytes(data)), track, limit)
    if change == "kinds":
        assert again.offsets is None and (again.durations == found.durations).all()
    else:
        assert again is None


@pytest.mark.parametrize(
    "options",
    [
        {"moov_size": "4000"},
        {"movflags": "frag_keyframe+empty_moov"},
    ],
)
def test_random_bytes_are_not_a_table(options):
    data = encode(numbered(24), options=options)
    rng = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(data[: rng.integers(1, len(data))])
        for _ in range(3):
            damaged[rng.integers(min(len(damaged), 1100))] = rng.integers(256)
        found = mp4.read_samples(io.BytesIO(bytes(damaged)), 1, 30)
        assert found is None or found.sizes.shape == found.durations.shape <= (30,)


def test_a_stream_that_begins_midway_does_not_crash():
    """PyAV 18 numbers the streams at the beginning: a later one is off its list, once or always."""

    class Packet:
        size = 1

    class Midway:
        def __init__(self, times):
            self.times = times

        def demux(self, _):
            yield Packet()
            self.times -= 1
            if self.times >= 0:
                yield [][0]

    assert len(list(container.packets(Midway(2), None))) == 3
    with pytest.raises(ValueError, match="too many streams begin midway"):
        list(container.packets(Midway(1000), None))


def tracks(kind: str, *videos, options=None, fonts: int = 0) -> bytes:
    """A file of several video tracks: (codec, frames, whether it is marked as default)."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=kind, options=options or {}) as out:
        opened = []
        for codec, frames, default in videos:
            stream = out.add_stream(codec, rate=10)
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = {"mjpeg": "yuvj420p", "png": "rgb24"}.get(codec, "yuv420p")
            stream.disposition = av.stream.Disposition.default if default else DUB
            opened.append(stream)
        for number in range(fonts):
            out.add_attachment(f"{number}.ttf", "font/ttf", b"\0\1\0\0")
        for stream, (_, frames, _) in zip(opened, videos, strict=True):
            pictures = [av.VideoFrame.from_ndarray(frame, format="rgb24") for frame in frames]
            for one in [*pictures, None]:
                out.mux(stream.encode(one))
    return buffer.getvalue()


DUB = av.stream.Disposition.dub
FILM, STILL = numbered(24), np.full((1, 64, 64, 3), 200, np.uint8)


@situation(
    "Media",
    "a still picture as an ordinary track before the film (MP4, MOV, MKV, AVI)",
    "the film is taken, even where the still is marked as default",
    since="0.2.0",
)
@pytest.mark.parametrize("default", [True, False])
@pytest.mark.parametrize(
    "still, kind, options",
    [
        *(
            (still, kind, {})
            for still in ("mjpeg", "libx264")
            for kind in ("mp4", "matroska", "avi")
        ),
        ("png", "mp4", {}),
        ("png", "mov", {}),
        ("png", "avi", {}),
        ("mjpeg", "mp4", {"movflags": "frag_keyframe+empty_moov"}),
        ("mjpeg", "matroska", {"live": "1"}),
        ("mpeg2video", "mpegts", {}),
    ],
)
def test_the_film_and_not_the_still(kind, options, still, default):
    data = tracks(kind, (still, STILL, default), ("libx264", FILM, False), options=options)
    assert numbers(load_video(data, 8).frames) == EIGHT
    data = tracks(kind, ("libx264", FILM, False), (still, STILL, default), options=options)
    assert numbers(load_video(data, 8).frames) == EIGHT


@situation(
    "Media",
    "several films in one file",
    "the first one marked as default is taken, else the first",
    since="0.1.0",
)
@pytest.mark.parametrize(
    "marks, taken",
    [
        ((0, 0), 0),
        ((0, 1), 1),
        ((1, 0), 0),
        ((1, 1), 0),
        ((0, 0, 1), 2),
    ],
)
def test_one_film_of_several(marks, taken):
    """A still in between changes nothing."""
    frames = numbered(60)
    films = [("libx264", frames[20 * k : 20 * k + 20], bool(m)) for k, m in enumerate(marks)]
    for parts in (films, [films[0], ("mjpeg", STILL, True), *films[1:]]):
        found = load_video(tracks("matroska", *parts), 20)
        assert numbers(found.frames) == list(range(20 * taken, 20 * taken + 20))


def test_pictures_alone_are_a_video_of_one_frame():
    data = tracks("matroska", ("mjpeg", STILL, False), ("mjpeg", STILL[:, :32], True))
    assert load_video(data, 8).frames.shape == (1, 32, 64, 3)


@situation(
    "Media",
    "Matroska with 70 attached fonts (subtitled film)",
    "attached files do not count as streams",
    since="0.2.0",
)
def test_attached_files_are_not_streams():
    data = tracks("matroska", ("libx264", FILM, True), fonts=70)
    with av.open(io.BytesIO(data)) as file:
        assert len(file.streams) == 71
    assert numbers(load_video(data, 8, limits=Limits(streams=1)).frames) == EIGHT
    two = tracks("matroska", ("libx264", FILM, True), ("libx264", FILM, True), fonts=1)
    with pytest.raises(MediaError, match="2 streams are above the limit of 1"):
        load_video(two, 8, limits=Limits(streams=1))


def avif(frames: np.ndarray, **options) -> bytes:
    images = [Image.fromarray(frame) for frame in frames]
    return picture(images[0], "AVIF", save_all=True, append_images=images[1:], **options)


@situation(
    "Images and animations",
    "animated AVIF given as a video",
    "the animation, with the durations that it states, and not the still before it",
    since="0.2.0",
)
@situation(
    "Images and animations",
    "still AVIF given as a video",
    "refused: give it as an image",
    since="0.2.0",
)
def test_avif():
    """Its still picture is a stream of its own for FFmpeg. Durations as given to the encoder."""
    found = load_video(avif(FILM, duration=100), 24)
    assert numbers(found.frames) == list(range(24)) and found.fps == pytest.approx(10)
    found = load_video(avif(FILM[:12], duration=[100] * 11 + [3000]), 12)
    assert numbers(found.frames) == list(range(12)) and found.fps == pytest.approx(12 / 4.1)
    with pytest.raises(MediaError, match="a still image; pass it as an image"):
        load_video(avif(FILM[:1]), 8)


OLD = {
    "wmv7": ("asf", "wmv1"),
    "wmv8": ("asf", "wmv2"),
    "wmv msmpeg4": ("asf", "msmpeg4"),
    "asf h264": ("asf", "libx264"),
    "flv": ("flv", "flv"),
    "flv h264": ("flv", "libx264"),
    "mpg mpeg1": ("mpeg", "mpeg1video"),
    "mpg mpeg2": ("mpeg", "mpeg2video"),
    "vob": ("vob", "mpeg2video"),
    "svcd": ("svcd", "mpeg2video"),
    "m1v": ("mpeg1video", "mpeg1video"),
    "m2v": ("mpeg2video", "mpeg2video"),
    "ogg vp8": ("ogg", "libvpx"),
    "3gp": ("3gp", "mpeg4"),
    "3g2": ("3g2", "libx264"),
    "f4v": ("f4v", "libx264"),
    "ts mpeg2": ("mpegts", "mpeg2video"),
    "divx": ("avi", "msmpeg4"),
    "mkv mpeg2": ("matroska", "mpeg2video"),
}


@situation(
    "Media",
    ".wmv, .asf, .flv, .f4v, .mpg, .mpeg, .vob, .m2v, .ogv, .3gp, .3g2",
    "read, with the frames and the rate that FFmpeg gives",
    since="0.2.0",
)
@pytest.mark.parametrize(
    "name, bf",
    [
        (name, bf)
        for name, (_, codec) in OLD.items()
        for bf in (["0", "2"] if codec in ("libx264", "mpeg1video", "mpeg2video") else [None])
    ],
)
def test_containers_of_old_data_sets(name, bf, monkeypatch):
    kind, codec = OLD[name]
    data = encode(
        numbered(24), fps=25, container=kind, codec=codec, codec_options={"bf": bf} if bf else {}
    )
    with av.open(io.BytesIO(data)) as file:
        every = np.stack([f.to_ndarray(format="rgb24") for f in file.decode(video=0)])
    found = load_video(data, 24)
    np.testing.assert_array_equal(found.frames, every)
    assert numbers(every) == list(range(24)) and found.fps == pytest.approx(25)
    for wanted in (EIGHT, [23], [11, 12], [0, 5, 13]):
        load_some(data, every, wanted, monkeypatch)


def test_theora():
    """PyAV cannot write it. 12 frames at 10 a second, the last for 1.5 s; `ffprobe -show_entries
    stream=duration` says 2.6."""
    found = load_video(GOLDENS / "theora.ogv", 12)
    assert numbers(found.frames) == list(range(12)) and found.fps == pytest.approx(12 / 2.6)


@situation("Media", "FLV of one frame, in which FFmpeg cannot seek", "accepted", since="0.2.0")
def test_a_file_without_seeking():
    clip = load_video(encode(numbered(1), container="flv"), 8)
    assert numbers(clip.frames) == [0] and clip.fps == 10


class _Pipe:
    """What takes bytes and cannot go back."""

    def __init__(self):
        self.data = b""

    def write(self, data: bytes) -> int:
        self.data += bytes(data)
        return len(data)


@situation(
    "Media", "AVI that FFmpeg wrote into a pipe: it states 2**30 frames", "accepted", since="0.2.0"
)
def test_an_avi_without_a_number_of_frames():
    pipe = _Pipe()
    with av.open(io.BytesIO(encode(numbered(24), container="avi", codec="mpeg4"))) as source:
        with av.open(pipe, "w", format="avi") as out:
            stream = out.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(source.streams.video[0]):
                if packet.size:
                    packet.stream = stream
                    out.mux(packet)
    with av.open(io.BytesIO(pipe.data)) as file:
        assert file.streams.video[0].frames == 1 << 30
    clip = load_video(pipe.data, 24)
    assert numbers(clip.frames) == list(range(24)) and clip.fps == pytest.approx(10)
    with pytest.raises(MediaError):
        load_video(pipe.data[: len(pipe.data) // 2], 24)
