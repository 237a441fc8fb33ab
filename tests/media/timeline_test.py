"""Clocks that restart, jump or wrap: the frames follow each other as they were recorded.

Recordings are made with known rates; what they sum up to is arithmetic. 33 bits at 90 kHz wrap
after 95,443.7 s (ISO/IEC 13818-1).
"""

import io

import av
import numpy as np
import pytest

from gve_jax.media.errors import MediaError
from gve_jax.media.limits import Limits
from gve_jax.media.packets import NO_TIME, Index
from gve_jax.media.sampling import Sampling
from gve_jax.media.timeline import timeline
from gve_jax.media.video import load_video
from tests.media.files import encode, held, numbered, numbers
from tests.situations import situation

WRAP = 2**33 / 90000 * 10  # frames at 10 a second


def recording(first: int, count: int, shift: float = 0, bf="0", container="mpegts", **options):
    return encode(
        numbered(first + count)[first:],
        container=container,
        shift=shift,
        codec_options={"bf": bf},
        **options,
    )


JUMPS = {
    "restarts": (0, 0), "restarts after 1,000 s": (10_000, 0), "restarts late": (934_460, 0),
    "jumps by 30 s": (0, 324), "jumps by 25 h": (0, 900_000), "overlaps by 0.5 s": (0, 19),
    "overlaps by one frame": (0, 23), "goes on": (0, 24), "wraps": (WRAP - 40, WRAP - 16),
}  # fmt: skip


@situation(
    "Media",
    "MPEG-TS of two recordings: the clock restarts, overlaps, or jumps by 30 s or by 26 hours",
    "the recordings follow each other at their own rate",
    since="0.2.0",
)
@pytest.mark.parametrize("bf", ["0", "2"])
@pytest.mark.parametrize("name", JUMPS)
def test_two_recordings_in_one_stream(name, bf):
    first, second = JUMPS[name]
    data = recording(0, 24, first, bf) + recording(24, 24, second, bf)
    found = load_video(data, 48)
    assert numbers(found.frames) == list(range(48))
    assert found.fps == pytest.approx(10, rel=1e-4)
    part = load_video(data, Sampling(2, start=2.35, end=2.55))  # seconds of what is shown
    assert numbers(part.frames) == [24, 25]


@situation(
    "Media",
    "MPEG-TS whose 33-bit clock wraps within the recording",
    "the times continue past the wrap",
    since="0.2.0",
)
@pytest.mark.parametrize("bf", ["0", "2"])
@pytest.mark.parametrize("before", [2, 30, 740])  # frames: FFmpeg knows of the first 60 s
def test_a_clock_that_wraps(bf, before):
    data = recording(0, 48, WRAP - 14 - before, bf)
    if before > 48:
        data += recording(48, 12, WRAP + 34 - before + 720, bf)
        assert load_video(data, 60).fps == pytest.approx(10, rel=1e-4)
        return
    found = load_video(data, 48)
    assert numbers(found.frames) == list(range(48)) and found.fps == pytest.approx(10, rel=1e-4)


@situation(
    "Media",
    "a recording interrupted for 5 s (MPEG-TS)",
    "accepted; a step of up to 10 s counts as time that passed",
    since="0.2.0",
)
def test_a_short_gap_is_time_that_passes():
    data = recording(0, 24) + recording(24, 24, 74)
    found = load_video(data, 48)
    assert 48 / found.fps == pytest.approx(9.8, rel=1e-4)  # 2.3 s, 5.1 s to the next, 2.4 s
    assert numbers(load_video(data, Sampling(2, start=7.35, end=7.55)).frames) == [24, 25]


def test_three_recordings_of_different_rates():
    data = b"".join(recording(first, 16, 0, fps=fps) for first, fps in ((0, 25), (16, 10), (32, 5)))
    found = load_video(data, 48)
    assert numbers(found.frames) == list(range(48))
    assert 48 / found.fps == pytest.approx(16 / 25 + 1.6 + 3.2, rel=1e-4)


@pytest.mark.parametrize(
    "container, codec",
    [
        ("mpeg", "mpeg2video"),
        ("flv", "libx264"),
        ("matroska", "libx264"),
        ("webm", "libvpx-vp9"),
    ],
)
def test_two_files_one_after_the_other(container, codec):
    """As `cat a.mkv b.mkv` makes them; the second header of an FLV is left out."""
    rate, options = (25, {"bf": "2"}) if codec == "mpeg2video" else (10, {})
    parts = [
        encode(
            numbered(48)[k : k + 24],
            fps=rate,
            container=container,
            codec=codec,
            codec_options=options,
        )
        for k in (0, 24)
    ]
    data = parts[0] + parts[1][13 if container == "flv" else 0 :]
    found = load_video(data, 48)
    assert numbers(found.frames) == list(range(48)) and found.fps == pytest.approx(rate, rel=1e-4)


@situation(
    "Media",
    "MPEG-TS in which another program begins midway",
    "refused, with the FFmpeg command that takes the first (FFmpeg and "
    "decord stop there without an error)",
    since="0.2.0",
)
def test_a_recording_of_other_streams():
    other = {"mpegts_start_pid": "0x200", "mpegts_pmt_start_pid": "0x1100"}
    data = recording(0, 24) + recording(24, 24, options=other)
    with pytest.raises(
        MediaError, match="another video stream begins midway.*ffmpeg -i INPUT -map"
    ):
        load_video(data, 8)


@situation(
    "Media",
    "MPEG-TS in which sound begins midway (broadcasts)",
    "accepted, with all frames",
    since="0.2.0",
)
def test_sound_that_begins_midway():
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mpegts") as out:
        film = out.add_stream("libx264", rate=10, options={"bf": "0"})
        film.height, film.width, film.pix_fmt = 48, 96, "yuv420p"
        sound = out.add_stream("aac", rate=48000, layout="mono")
        for number, frame in enumerate(numbered(48)[24:]):
            out.mux(film.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            silence = np.zeros((1, 4800), np.float32)
            silence = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
            silence.sample_rate, silence.pts = 48000, 4800 * number
            out.mux(sound.encode(silence))
        out.mux(film.encode(None) + sound.encode(None))
    data = recording(0, 24) + buffer.getvalue()
    found = load_video(data, 48)
    assert numbers(found.frames) == list(range(48)) and found.fps == pytest.approx(10, rel=1e-4)


@situation(
    "Media",
    "screen recording that was paused for an hour (MP4, MKV, WebM, FLV)",
    "the frame before is held for an hour, as the file states",
    since="0.2.0",
)
@pytest.mark.parametrize(
    "container, codec",
    [
        ("mp4", "libx264"),
        ("mov", "mpeg4"),
        ("matroska", "libx264"),
        ("webm", "libvpx-vp9"),
        ("flv", "flv"),
    ],
)
def test_a_pause_that_a_file_states_is_kept(container, codec):
    times = [0, 100, 200, 3_600_000, 3_600_100, 3_600_200]
    found = load_video(held(times, 100, container, codec), 6)
    assert 6 / found.fps == pytest.approx(3600.3, abs=0.01)


def test_slides_of_more_than_ten_seconds():
    """Each takes as long as the others: no jump."""
    data = held([0, 15_000, 30_000, 45_000], 15_000, "mpegts", "libx264", {"bf": "0"})
    assert 4 / load_video(data, 4).fps == pytest.approx(60.0)


def made(pts, dts=None, rate=10.0, tick=0.001, **fields) -> Index:
    pts = np.array(pts)
    count = len(pts)
    defaults = {"duration": np.zeros(count, np.int64), "key": np.arange(count) % 4 == 0}
    fields = defaults | fields
    return Index(
        pts,
        pts if dts is None else np.array(dts),
        np.ones(count, np.int64),
        fields.pop("duration"),
        fields.pop("key"),
        np.ones(count, bool),
        np.zeros(count, bool),
        np.zeros(count, np.int64),
        tick,
        rate,
        **fields,
    )


def seconds(index: Index) -> float:
    found = timeline(index, np.arange(len(index.pts)), "v", Limits())
    return found.total / found.rate


@pytest.mark.parametrize(
    "pts, length",
    [
        ([0, 100, 200, 300], 0.4),
        ([0, 100, 200, 5300], 5.4),  # 5.1 s passed, and 0.1 as usual
        ([0, 100, 200, 30_200], 0.4),
        ([0, 100, 200, 30_200, 30_300, 90_000, 90_100, 90_200], 0.8),
        ([50_000, 50_100, 50_200, 50_300, 0, 100, 200, 300], 0.8),
        ([0, 20_000, 40_000, 60_000], 80.0),
        ([7], 0.1),
        ([7, 7, 7, 7], 0.4),  # no times: the declared rate
    ],
)
def test_steps_of_a_clock_that_may_restart(pts, length):
    assert seconds(made(pts, restarts=True)) == pytest.approx(length)


@pytest.mark.parametrize(
    "pts, length",
    [
        ([0, 100, 200, 30_200], 30.3),
        ([50_000, 50_100, 50_200, 50_300, 0, 100, 200, 300], 0.8),
        ([0, 200, 100, 400, 300, 500], 0.6),  # frames in another order
        ([0, 3000, 1000, 2000, 6000, 4000, 5000], 7.0),
    ],
)
def test_steps_of_a_continuous_clock(pts, length):
    dts = pts if len(pts) == 8 else sorted(pts)
    assert seconds(made(pts, dts)) == pytest.approx(length)


def test_times_that_are_unknown():
    unknown = [NO_TIME] * 4
    assert seconds(made(unknown, unknown)) == pytest.approx(0.4)
    assert seconds(made(unknown, [0, 100, 200, 600])) == pytest.approx(0.7)
    assert seconds(made([0, 100, 200, 600], timed=False)) == pytest.approx(0.4)
    assert seconds(made([0, 1, 2, 3], [0, 100, 200, 600], showing=False)) == pytest.approx(0.7)
    with pytest.raises(MediaError, match="no frame rate and no timestamps.*ffmpeg -r"):
        seconds(made(unknown, unknown, rate=0.0))
    assert seconds(made([0, 100, 200, 600], rate=0.0)) == pytest.approx(0.7)
    assert seconds(made([0], rate=0.0, duration=np.array([9000]))) == pytest.approx(9.0)
