"""The last frame lasts as long as the file says, in every container that says it.

The true lengths are what the files are made of; those of mp4, mov and 3gp are also what FFmpeg's
`ffprobe -show_entries stream=duration` prints.
"""

import base64
import io
import struct
import zlib

import av
import numpy as np
import pytest

from gve_jax.media.errors import MediaError
from gve_jax.media.video import load_video
from tests.media.files import encode, held, numbered, numbers, with_edits
from tests.situations import situation

GIF = [100 * k for k in range(8)], 3000  # as a GIF whose last frame is held
KINDS = {
    "mp4": ("mp4", "libx264", {"bf": "0"}, {}),
    "mp4 with B-frames": ("mp4", "libx264", {"bf": "2"}, {}),
    "mp4 vp9": ("mp4", "libvpx-vp9", {}, {}),
    "mp4 hevc": ("mp4", "libx265", {"x265-params": "log-level=none:bframes=0"}, {}),
    "mov mpeg4": ("mov", "mpeg4", {}, {}),
    "3gp": ("3gp", "mpeg4", {}, {}),
    "fragments": ("mp4", "libx264", {"bf": "0"}, {"movflags": "frag_keyframe+empty_moov"}),
    "half in fragments": ("mp4", "libx264", {"bf": "0"}, {"movflags": "frag_keyframe"}),
    "a fragment a frame": (
        "mp4",
        "libx264",
        {"bf": "0"},
        {"movflags": "frag_every_frame+empty_moov"},
    ),
    "fragments vp9": ("mp4", "libvpx-vp9", {}, {"movflags": "frag_keyframe+empty_moov"}),
    "matroska": ("matroska", "libx264", {"bf": "2"}, {}),
    "webm": ("webm", "libvpx-vp9", {}, {}),
    "flv": ("flv", "flv", {}, {}),
    "flv h264": ("flv", "libx264", {"bf": "0"}, {}),
    "asf": ("asf", "wmv2", {}, {}),
}


def seconds(data: bytes) -> float:
    found = load_video(data, 100)
    return len(found.frames) / found.fps


@situation(
    "Media",
    "MP4 whose last frame is held for 3 s (GIF converted by FFmpeg)",
    "accepted; the last frame's duration is read from the sample table",
    since="0.2.0",
)
@situation(
    "Media",
    "fragmented MP4 (DASH, screen recorders) whose last frame is held",
    "the last frame's duration is read from the fragments",
    since="0.2.0",
)
@situation(
    "Media",
    "slideshow of 1 s and 9 s as MP4, MOV, MKV, WebM, FLV or WMV",
    "10 s: the times and durations that the file states",
    since="0.2.0",
)
@pytest.mark.parametrize(
    "times, last, length",
    [
        (*GIF, 3.7),
        ([0, 1000], 9000, 10.0),
        ([1000 * k for k in range(12)], 2000, 13.0),
        ([0, 40, 80, 1000, 1040, 1080, 5000, 5040, 9360, 9400], 600, 10.0),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_last_frame_that_is_held(kind, times, last, length):
    container, codec, codec_options, options = KINDS[kind]
    data = held(times, last, container, codec, codec_options, options)
    found = load_video(data, 100)
    assert numbers(found.frames) == list(range(len(times)))
    assert len(times) / found.fps == pytest.approx(length, abs=0.002)


@situation(
    "Media",
    "a video of one frame that is shown for 9 s",
    "accepted, with a duration of 9 s",
    since="0.2.0",
)
@pytest.mark.parametrize("container", ["mp4", "mov", "matroska"])
def test_one_frame_alone(container):
    assert seconds(held([0], 9000, container)) == pytest.approx(9.0)


def test_a_steady_rate_stays_the_declared_one():
    for container in ("mp4", "matroska"):
        assert seconds(held([100 * k for k in range(10)], 100, container)) == 1.0


@pytest.mark.parametrize("last, length", [(0, 0.8), (1, 0.70006), (800, 0.75)])
def test_a_last_duration_of_nothing_is_that_of_the_others(last, length):
    """In 16,000ths of a second. Writers that do not know it leave 0."""
    data = held([100 * k for k in range(8)], 3000, codec_options={"bf": "0"})
    at = data.index(b"stts") + 8
    assert struct.unpack(">5I", data[at : at + 20]) == (2, 7, 1600, 1, 48000)
    changed = bytearray(data)
    changed[at + 16 : at + 20] = last.to_bytes(4)
    for box, place, length_there in (
        (b"mdhd", 20, 11200 + last),
        (b"elst", 12, 701 + last // 16),
    ):
        start = changed.index(box) + place
        changed[start : start + 4] = length_there.to_bytes(4)
    assert seconds(bytes(changed)) == pytest.approx(length, abs=2e-4)


@situation(
    "Media",
    "Matroska whose last block states no duration (SimpleBlock)",
    "the end is that of the track's DURATION tag, or of the segment",
    since="0.2.0",
)
@pytest.mark.parametrize("codec", ["libx264", "libvpx-vp9"])
def test_matroska_states_the_end_in_three_places(codec):
    data = bytearray(held(*GIF, "matroska", codec, {"bf": "0"} if codec == "libx264" else {}))
    for place in (b"\x9b\x82\x0b\xb8", b"DURATION", None):  # BlockDuration 3000, the tag, Info
        assert seconds(bytes(data)) == pytest.approx(3.7)
        if place:
            at = data.rindex(place)
            data[at] = 0xEC if place[0] == 0x9B else ord("X")  # Void; another tag
    at = data.index(b"\x44\x89\x88")  # Duration, float64
    data[at : at + 11] = b"\xec\x89" + bytes(9)
    assert seconds(bytes(data)) == pytest.approx(0.8)  # as the others


# FFmpeg 5.1: -f lavfi -i testsrc=s=8x8:r=10 -frames:v 4 -c:v gif -pix_fmt rgb8 -bitexact. PyAV does
# not write this.
_GIF_IN_MATROSKA = (
    "c-pO1ZD`k36n_3|%k?F*NTPySoe#Z8EU3^Rn0v7^YKm^BprW=W8{sXbY0$U*wtsGA<Ux$U_9X{arzJ+$GWTHv2@Lzv8("
    "t!4!ypLD)WQiDPXC`9N#8x(%jMkr@Z9IzbI-lEcKk9q*}AK!v|g<B^F@8@g`%-_Wc;PR9j|N~+S=DTR-1agsJo?mc(8)"
    "f8qTihdT+<<Om*tJ3m<e%@9zG%dUNMT1Km@_`-|Sno<mz}-Zx#-Z`HgTdyWrwPmNT@7Tw#sr)!HN4d0(xWJ5QuzLk0o&"
    "QyQgv-i<^PklPNytSokxcWrjs{>E1yF9eNG2ZgpBD56Sa%84@XrlYrp(RNNPZgD+uf~_iDia0nJTfu5^W`n$1xAa?U8h"
    "H@4gbtz*X}2u-z1%FkN0$Tb<FKMTr?gl8uu4<a(G-mEg)YOb^Ql^sxdr0_~O8-s~=@~vOm<)(7FH2(9p^L+1>qDG!LG5"
    "r(<%gV?*1<_KwZ%W8<}``&ZRu44yd9F*)8Yo7eSpZrsp5wy(MQk<0D=2b-4+Xlna>XWJh$)uvDO-t$|5$+l+-VED1l^="
    "sDlHKGw0n;y8livR{V2p|C&$iV;$*uahe1VJzahXN{4gE}G*1<?>42}puuNRA9-K{jMBDIo+SI1z}1$cUU6#6oPuP5~5"
    "zf>Cf%kP4}hIz><vibl~Xfs#-%N=_M+g|bohQYM693}*t9Fd36GgISo3**SoNa4-(e3RYn?R_6$g!qGT7CvXx@#>qK@v"
    "v4-fUWN_{umBH)KoZCTd0+&Vz!um;KnN0oh2TLERDxPi4-p|sh!&!Ugped83&}%9$P%)J?B#Jn6sB+`D2b9OxiXYR*_2"
    "%aG>8V%;Hpp+Ra141&?p*BqicdD(PWxjGc=24)9hu6AQ2Yfkq}8DStO5)$P(Eidkly{Vz3xIDxykMi|R2VMv2j4^q3Hn"
    "#AGpf%!pZHwwS$4J0!spJP{H}B1`0nkysL2Vow1nND7vMCq+_8YDqmsq$nv`ik=cul9VhZPZ=po%9gU1R|%3~8J-E5B$"
    "H+G%*ZU6Ewkr<93%(J!LuT(WVNiGBXX1+El1A@IY~~Iljn?_C1=ao@3>T7-+(5pF6*GI2{b;0%JAvgZL>$0d;QzD&F;D"
    "8XtinO!}ZJ1(!T5Z`<|QlaMKIxw=b;Oxp25w*KGfLVf(7J1JAZ#a;m@<)c6`2YE-K$xE9M$SL3@0m(Eo%H+wf0umjD#d"
    "UP0=v;rrtpz$Ai1-`D#)%6|+eqC7cGkSYkN^E8I|FMlr*l#Oy^YeAXee?C_(R)K*3(9Bt-I?mi-_QOzz2~z6U%XlS4$h"
    "5K=Kd<K`xg#sTE_"
)


@situation(
    "Media",
    "GIF's codec in Matroska, whose blocks state no duration",
    "the last frame lasts as the others; FFmpeg's 10 ms for each are made up",
    since="0.2.0",
)
def test_estimated_durations_are_ignored():
    assert seconds(zlib.decompress(base64.b85decode(_GIF_IN_MATROSKA))) == pytest.approx(0.4)


def test_without_a_stated_end_the_last_frame_lasts_as_the_others():
    assert seconds(held(*GIF, "mpegts", "libx264", {"bf": "0"})) == pytest.approx(0.8)


def padded_avi(count: int) -> bytes:
    """24 frames, then `count` empty chunks: the last frame is shown on. FFmpeg writes such a file
    for a held last frame (ffmpeg -i a.gif -fps_mode vfr a.avi)."""
    data = encode(np.zeros((24, 48, 96, 3), np.uint8), container="avi", codec="mpeg4")
    index = data.index(b"idx1")
    length = int.from_bytes(data[index + 4 : index + 8], "little")
    body = data[:index] + b"00dc\0\0\0\0" * count
    rows = data[index + 8 : index + 8 + length]
    offset = index - data.index(b"movi")
    rows += b"".join(struct.pack("<4s3I", b"00dc", 0, offset + 8 * k, 0) for k in range(count))
    changed = bytearray(body + b"idx1" + len(rows).to_bytes(4, "little") + rows)
    movi = changed.index(b"movi") - 4
    for at, value in (
        (4, len(changed) - 8),
        (movi, index + 8 * count - movi - 4),
        (changed.index(b"avih") + 24, 24 + count),
        (changed.index(b"strh") + 40, 24 + count),
    ):
        changed[at : at + 4] = value.to_bytes(4, "little")
    return bytes(changed)


@situation(
    "Media",
    "AVI whose last frame is held (empty chunks at the end)",
    "accepted, with the frames that its index counts",
    since="0.2.0",
)
def test_empty_chunks_at_the_end_of_an_avi():
    assert seconds(padded_avi(0)) == pytest.approx(2.4)
    assert seconds(padded_avi(30)) == pytest.approx(5.4)
    with pytest.raises(
        MediaError, match="truncated, 24 of 54"
    ):  # without the index that names them
        load_video(padded_avi(30).replace(b"idx1", b"JUNK"), 8)


TICKS = 1024  # a frame of `encode` at 10 a second


# What FFmpeg 8 shows: `ffprobe -show_entries frame=pts_time`, and the pictures.
@situation(
    "Media",
    "MP4 whose edit list ends within a frame, begins late or has several parts",
    "the frames and times that FFmpeg shows",
    since="0.2.0",
)
@pytest.mark.parametrize("bf", ["0", "2"])
@pytest.mark.parametrize(
    "edits, frames, length",
    [
        ([(1200, 0, 1)], range(12), 1.2),
        ([(900, 3, 1)], range(3, 12), 0.9),
        ([(700, 0, 1)], range(7), 0.7),
        ([(730, 0, 1)], range(8), 0.73),
        ([(2000, None, 1), (1200, 0, 1)], range(12), 1.2),
        ([(2000, None, 1), (730, 0, 1)], range(8), 0.73),
        ([(1200, 0, 1), (1200, 0, 1)], [*range(12), *range(12)], 2.4),
        ([(300, 0, 1), (300, 8, 1)], [0, 1, 2, 8, 9, 10], 0.6),
        ([(300, 8, 1), (300, 0, 1)], [8, 9, 10, 0, 1, 2], 0.6),
        ([(5000, 0, 1)], range(12), {"0": 1.2, "2": 5.0}),  # the last is decoded before others
    ],
)
def test_edit_lists(bf, edits, frames, length):
    first = 2 * TICKS if bf == "2" else 0
    data = with_edits(
        encode(numbered(12), codec_options={"bf": bf}),
        [(ms, -1 if at is None else first + at * TICKS, speed) for ms, at, speed in edits],
    )
    found = load_video(data, 100)
    frames = list(frames)
    if len(frames) % 2:
        assert len(found.frames) == len(frames) - 1
    else:
        assert numbers(found.frames) == frames
    length = length[bf] if isinstance(length, dict) else length
    assert len(found.frames) / found.fps == pytest.approx(length, abs=1e-4)


@situation(
    "Media",
    "a very short clip cut by copy (ffmpeg -ss 0.5 -t 0.04 -c copy)",
    "accepted, with the times of its frames and the end of its edit list",
    since="0.2.0",
)
@pytest.mark.parametrize(
    "kept, frames, length",
    [
        (2, [0, 3], 0.4),
        (3, [0, 2, 3], 0.4),
        (4, [0, 1, 2, 3], 0.4),
        (5, [0, 1, 2, 3, 6], 0.7),
    ],
)
def test_a_clip_that_ends_among_b_frames(kept, frames, length):
    """What `-c copy` leaves: packets in the order of decoding, I0 P3 B B P6 B B. The decoding
    durations sum up to less than the presentation; `ffprobe -show_entries frame=pts_time` of such
    a clip of FFmpeg 5 and 9 says 0, 0.04, 0.12 of 0.18 s."""
    options = {"x264-params": "bframes=2:b-adapt=0:b-pyramid=none"}
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=10, options=options)
        stream.height, stream.width, stream.pix_fmt = 48, 96, "yuv420p"
        frames_in = [av.VideoFrame.from_ndarray(f, format="rgb24") for f in numbered(24)]
        packets = [p for frame in [*frames_in, None] for p in stream.encode(frame)]
        for packet in packets[:kept]:
            out.mux(packet)
    data = buffer.getvalue()
    at = data.index(b"elst") + 16
    begin = int.from_bytes(data[at : at + 4])
    found = load_video(with_edits(data, [(round(length * 1000), begin, 1)]), 100)
    assert numbers(found.frames) == frames[: len(frames) // 2 * 2] or len(frames) % 2
    assert len(found.frames) == len(frames) // 2 * 2
    assert len(found.frames) / found.fps == pytest.approx(length, abs=1e-3)


@situation(
    "Media",
    "MP4 whose edit list plays at half or double speed, or pauses midway",
    "refused by name, with the FFmpeg command that drops the list (FFmpeg and decord show "
    "other frames than the list says)",
    since="0.2.0",
)
@pytest.mark.parametrize(
    "edits, names",
    [
        ([(2400, 0, 0.5)], "plays at 0.5 times the speed"),
        ([(600, 0, 2)], "plays at 2 times the speed"),
        ([(600, 0, 0)], "plays at 0 times the speed"),
        ([(300, 0, 1), (1000, -1, 1), (300, 3 * TICKS, 1)], "pauses midway"),
    ],
)
def test_edit_lists_that_nobody_plays(edits, names):
    data = encode(np.zeros((12, 48, 96, 3), np.uint8), codec_options={"bf": "0"})
    with pytest.raises(MediaError, match=f"its edit list {names}.*ffmpeg -ignore_editlist"):
        load_video(with_edits(data, edits), 8)
