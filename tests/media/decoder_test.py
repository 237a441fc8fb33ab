"""Damage and noise, leading pictures, and what the decoder has to be configured for."""

import io
import logging
import threading

import av
import numpy as np
import pytest

from gve_jax.media import nal_units
from gve_jax.media.decoder import listen
from gve_jax.media.errors import MediaError
from gve_jax.media.sampling import Sampling
from gve_jax.media.video import load_video
from tests.media.files import encode, numbered, numbers, textured
from tests.media.picture_headers_test import brute_force, no_long_way  # noqa: F401
from tests.media.remux import prefixed, put_together, take_apart
from tests.media.seek_test import STREAMS, X264
from tests.situations import situation

EIGHT = [0, 3, 7, 10, 13, 16, 20, 23]
# Messages to the player (SEI) that are cut short or odd: type, size, and less than that.
CUT = {
    "user data": bytes([5, 255, 32]) + b"vendor data of a camera",
    "recovery point": bytes([6, 40]) + b"x",
    "timing": bytes([1, 90]) + b"y",
    "captions": bytes([4, 99, 0xB5, 0, 0x31]) + b"GA94\x03",
}


def with_messages(codec: str, message: bytes, container: str, every=lambda k: True) -> bytes:
    hevc = codec == "libx265"
    data = encode(
        numbered(24), codec=codec, codec_options={"x265-params": "log-level=none"} if hevc else {}
    )
    unit = (b"\x4e\x01" if hevc else b"\x06") + message
    coded = take_apart(data)
    for k, each in enumerate(coded):
        if every(k):
            each.data = prefixed(unit) + each.data
    return put_together(data, coded, container)


def strict_decodes(data: bytes) -> bool:
    with av.open(io.BytesIO(data)) as file:
        file.streams.video[0].codec_context.options = {"err_detect": "explode"}
        try:
            return bool(list(file.decode(video=0)))
        except av.FFmpegError:
            return False


@situation(
    "Media",
    "H.264 or HEVC whose messages to the player (SEI: vendor data, captions, timing) are cut short "
    "while its pictures are intact",
    "accepted, with FFmpeg's frames; seeking works",
    since="0.2.0",
)
@pytest.mark.parametrize("codec", ["libx264", "libx265"])
@pytest.mark.parametrize("message", CUT)
@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts"])
def test_messages_that_are_cut_short_harm_no_picture(codec, message, container, no_long_way):  # noqa: F811
    data = with_messages(codec, CUT[message], container)
    found = load_video(data, 8)
    assert numbers(found.frames) == EIGHT and found.fps == pytest.approx(10 / 3)
    np.testing.assert_array_equal(found.frames, brute_force(data)[EIGHT])


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_ffmpeg_s_strict_decoder_refuses_them(codec):
    """Or the test above would show nothing."""
    assert not strict_decodes(with_messages(codec, CUT["user data"], "mp4"))


@situation(
    "Media",
    "H.264 or HEVC with damaged pictures and cut SEI messages at once",
    "refused as damaged",
    since="0.2.0",
)
@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_damage_beside_noise_is_refused(codec):
    data = with_messages(codec, CUT["user data"], "mp4")
    whole = load_video(data, 24).frames
    with av.open(io.BytesIO(data)) as file:
        spans = [(p.pos, p.size) for p in file.demux(video=0) if p.size]
    rng, refused, noticed = np.random.default_rng(0), 0, 0
    for _ in range(40):
        at, size = spans[rng.integers(len(spans))]
        skip = 4 + len(CUT["user data"]) + 8  # to the picture itself
        damaged = bytearray(data)
        length = min(12, size - skip)
        damaged[at + skip : at + skip + length] = rng.bytes(length)
        try:
            noticed += not np.array_equal(load_video(bytes(damaged), 24).frames, whole)
        except MediaError:
            refused += 1
    # The strict decoder finds as much in files without noise (see the test below).
    assert refused >= 20, (refused, noticed)


@pytest.mark.parametrize("name", ["h264", "h264 open", "hevc"])
def test_damage_is_found_as_often_with_noise_as_without(name):
    """The same damage to the same pictures: what is refused in the plain file, is refused here."""
    codec, options = STREAMS[name]
    plain = encode(textured(24), codec=codec, codec_options=options)
    coded = take_apart(plain)
    head = b"\x4e\x01" if codec == "libx265" else b"\x06"
    noise = prefixed(head + CUT["user data"])
    rng, missed, found = np.random.default_rng(1), 0, 0
    for _ in range(60):
        k = int(rng.integers(len(coded)))
        data = bytearray(coded[k].data)
        at = int(rng.integers(5, len(data)))
        data[at : at + 4] = rng.bytes(len(data[at : at + 4]))
        refused = []
        for extra in (b"", noise):
            changed = take_apart(plain)
            for j, each in enumerate(changed):
                each.data = extra + (bytes(data) if j == k else each.data)
            try:
                load_video(put_together(plain, changed, "matroska"), 24)
                refused.append(False)
            except MediaError:
                refused.append(True)
        found += refused[0]
        missed += refused[0] and not refused[1]
    assert found > 15 and missed <= 1, (found, missed)


OPEN = {
    "b-pyramid": "open-gop=1:bframes=3:b-pyramid=normal",
    "blu-ray": "open-gop=1:b-pyramid=strict:bluray-compat=1:slices=4:level=41:nal-hrd=vbr:"
    "vbv-maxrate=4000:vbv-bufsize=4000",
    "fields": "open-gop=1:bframes=3:tff=1",
}


@situation(
    "Media",
    "H.264 with open groups and a pyramid of B-frames (x264 open-gop=1, Blu-ray)",
    "seeks; only the groups of the wanted frames are decoded",
    since="0.2.0",
)
@pytest.mark.parametrize("name", OPEN)
@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts"])
def test_open_groups_with_a_pyramid_are_sought(name, container, no_long_way):  # noqa: F811
    data = encode(
        textured(60), container=container, codec_options={"x264-params": X264 + OPEN[name]}
    )
    every = brute_force(data)
    later = Sampling(num_frames=4, start=2.05, end=4.45)
    for sampling, places in ((8, [0, 8, 17, 25, 34, 42, 51, 59]), (later, [21, 29, 36, 44])):
        np.testing.assert_array_equal(load_video(data, sampling).frames, every[places])


LEADING = {
    "h264": ("libx264", {"x264-params": X264 + "open-gop=1:bframes=3:b-pyramid=normal"}),
    "hevc": STREAMS["hevc"],
    "mpeg2": ("mpeg2video", {"bf": "2", "b_strategy": "0"}),
    "hevc radl": STREAMS["hevc radl"],
    "mpeg4": STREAMS["mpeg4 b"],
}


def cut(name: str, container: str, begin: float) -> tuple:
    """A clip from the second keyframe on, which is shown at frame `begin`; its packets."""
    codec, encoder = LEADING[name]
    box = "mpegts" if "mpegts" in (container, codec) or codec == "mpeg2video" else "matroska"
    data = encode(textured(60), container=box, codec=codec, codec_options=encoder)
    coded = take_apart(data)
    clip = coded[[k for k, each in enumerate(coded) if each.key][1] :]
    shift = clip[0].pts - begin
    for k, each in enumerate(clip):
        each.pts -= shift
        each.dts = begin + k - 6
    return put_together(data, clip, container), clip


@situation(
    "Media",
    "a clip cut without encoding (`-ss X -c copy`) out of open groups of H.264, HEVC or MPEG-2, in "
    "MP4, MKV or MPEG-TS",
    "accepted; leading pictures, whose references were cut away, are left out, as the standards "
    "say, and no other",
    since="0.2.0",
)
@pytest.mark.parametrize("name", LEADING)
@pytest.mark.parametrize(
    "container, begin",
    [
        ("mp4", 8),
        ("mov", 8),
        ("matroska", 8),
        ("matroska", 3),
        ("mpegts", 8),
    ],
)
def test_leading_pictures_without_their_references_are_left_out(name, container, begin):
    data, clip = cut(name, container, begin)
    every = brute_force(data)  # FFmpeg's frames
    shown = numbers(every[:, :48])
    assert shown == list(range(shown[0], 60))
    leading = sum(each.pts < clip[0].pts for each in clip[1:])
    assert len(every) in (len(clip), len(clip) - leading)
    if name != "hevc radl":
        assert len(every) < len(clip)
    elif container not in ("mp4", "mov"):  # whose edit list may begin at the keyframe
        assert len(every) == len(clip)
    places = np.linspace(0, len(every) - 1, 8).round().astype(int)
    found = load_video(data, 8)
    np.testing.assert_array_equal(found.frames, every[places])
    assert found.fps == pytest.approx(8 / len(every) * 10, rel=0.05)


@pytest.mark.parametrize("container", ["mpegts", "matroska"])
@situation(
    "Media",
    'a recording of H.264 with open groups that begins in the middle ("mmco: unref short failure")',
    "accepted from the first keyframe on",
    since="0.2.0",
)
def test_a_recording_of_open_groups_that_begins_in_the_middle(container, no_long_way):  # noqa: F811
    data, _ = cut("h264", container, 8)
    assert not strict_decodes(data)
    every = brute_force(data)
    np.testing.assert_array_equal(load_video(data, 2).frames, every[[0, -1]])


def paletted(codec: str, container: str, count: int = 24) -> bytes:
    """Frames of two colours out of a palette that is no grey one."""
    buffer = io.BytesIO()
    palette = np.zeros((256, 4), np.uint8)  # alpha, red, green, blue
    palette[:, 0], palette[1], palette[0] = 255, (255, 250, 240, 230), (255, 20, 30, 60)
    with av.open(buffer, "w", format=container) as out:
        stream = out.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 96, "pal8"
        for k, picture in enumerate(numbered(count)):
            indices = (picture[..., 0] > 128).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray((indices, palette), format="pal8")
            frame.pts = k
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return buffer.getvalue()


@situation(
    "Media",
    "AVI or MOV of raw video with a palette (pal8), which the file delivers once",
    "the true colours, bit for bit what decoding everything gives",
    since="0.2.0",
)
@pytest.mark.parametrize(
    "codec, container",
    [
        ("rawvideo", "avi"),
        ("rawvideo", "mov"),
        ("zmbv", "avi"),
        ("png", "mov"),
    ],
)
def test_a_palette_that_comes_once(codec, container):
    data = paletted(codec, container)
    every = brute_force(data)
    assert len(every) == 24 and numbers(every) == list(range(24))
    assert every[23, 24, 8].tolist() == [250, 240, 230]  # a white bar
    for sampling in (8, 24, Sampling(num_frames=2, start=1.05)):
        found = load_video(data, sampling).frames
        places = {8: EIGHT, 24: range(24)}.get(sampling, [11, 23])
        np.testing.assert_array_equal(found, every[list(places)])


def test_listening_leaves_ffmpeg_s_log_as_it_was(caplog):
    level = av.logging.get_level()
    with listen() as outer:
        with listen() as inner:
            av.logging.log(av.logging.ERROR, "x", "one")
            av.logging.log(av.logging.ERROR, "x", "one")  # alike, and not left out
        heard: list = []

        def other():
            with listen() as messages:
                av.logging.log(av.logging.ERROR, "x", "three")
                heard.extend(messages)

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        av.logging.log(av.logging.ERROR, "x", "two")
    assert [text for _, _, text in inner] == ["one", "one"]
    assert [text for _, _, text in outer] == ["two"]
    assert [text for _, _, text in heard] == ["three"]
    assert av.logging.get_level() == level and av.logging.get_skip_repeated()
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_hevc_without_its_messages():
    message, slice_ = b"\x4e\x01\x05\x01a\x80", b"\x02\x01picture"
    assert nal_units.without_sei(prefixed(message) + prefixed(slice_), 4) == prefixed(slice_)
    code = b"\0\0\0\1"
    assert nal_units.without_sei(code + message + code + slice_, 0) == code + slice_
    assert nal_units.without_sei(prefixed(slice_), 4) == prefixed(slice_)
    header = b"\1" + bytes(20) + b"\3"
    sps, sei = b"\x42\x01sps", b"\x4e\x01sei"
    arrays = [bytes([kind, 0, 1, 0, len(unit)]) + unit for kind, unit in ((33, sps), (39, sei))]
    whole = header + b"\2" + b"".join(arrays)
    assert nal_units.header_without_sei(whole) == header + b"\1" + arrays[0]
    for k in range(len(whole)):
        nal_units.header_without_sei(whole[:k])
        nal_units.open_header(whole[:k], "hevc")
        nal_units.open_header(whole[:k], "h264")
