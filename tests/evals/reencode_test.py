"""Re-encoded videos: equal frames and timestamps, lower quality; failures have reasons."""

import io

import av
import numpy as np
import pytest

from evals.uvrb import reencode
from evals.uvrb.reencode import Reencoder
from evals.uvrb.transcode import Coding, encode, parse_coding
from gve_jax.media.errors import MediaError
from gve_jax.media.limits import Limits
from gve_jax.media.video import load_video
from tests.evals.small_uvrb import ColourEncoder, evaluate, make_benchmark
from tests.media.files import held
from tests.situations import situation


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """12 frames of a moving gradient with noise, 66 x 50, at 8 frames a second."""
    path = tmp_path_factory.mktemp("clip") / "noisy.mp4"
    rng, ramp = np.random.default_rng(0), np.linspace(0, 200, 66)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8, options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = 66, 50, "yuv420p"
        for shift in range(12):
            image = np.roll(ramp, 5 * shift)[None, :, None] + rng.integers(0, 50, (50, 66, 3))
            image = image.clip(0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


CODECS = {"crf=45": "h264", "codec=mpeg4,bitrate=50k": "mpeg4", "codec=libx265,crf=40": "hevc"}


@pytest.mark.parametrize("text", CODECS)
def test_keeps_frames_and_times_in_fewer_bytes(noisy, tmp_path, text):
    (tmp_path / "x.mp4").write_bytes(encode(noisy, parse_coding(text), Limits()))
    with av.open(str(noisy)) as a, av.open(str(tmp_path / "x.mp4")) as b:
        assert b.streams.video[0].codec_context.name == CODECS[text]
        times = [[float(frame.time) for frame in one.decode(video=0)] for one in (a, b)]
    assert times[1] == pytest.approx(times[0], abs=1e-3) and len(times[0]) == 12
    assert (tmp_path / "x.mp4").stat().st_size < 0.9 * noisy.stat().st_size
    paths = noisy, tmp_path / "x.mp4"
    before, after = (load_video(path, 12).frames.astype(float) for path in paths)
    assert before.shape == after.shape
    assert 2 < np.abs(before - after).mean() < 25  # different pixels, same scene
    assert np.abs(before.mean(axis=(1, 2)) - after.mean(axis=(1, 2))).max() < 12


@situation(
    "Evaluation",
    "a video of one or two frames, re-encoded as HEVC",
    "encoded, every time; before, x265 failed by chance",
    since="0.3.0",
)
@pytest.mark.parametrize("times", [[0], [0, 1000]])
def test_hevc_of_few_frames(times):
    data = held(times, 9000, codec_options={"bf": "0"})
    for _ in range(10):  # it failed in a third of the attempts
        copy = encode(data, Coding("libx265", crf=40), Limits())
        with av.open(io.BytesIO(copy)) as container:
            shown = [round(1000 * float(frame.time)) for frame in container.decode(video=0)]
        assert shown == times


def test_copies_are_reused_and_reproducible(noisy, tmp_path):
    first = Reencoder(tmp_path / "a", Coding(crf=40))([noisy, noisy])
    assert first[0] == first[1] and first[0].parent.name == "libx264-crf40"
    stamp = first[0].stat().st_mtime_ns
    assert Reencoder(tmp_path / "a", Coding(crf=40))([noisy]) == first[:1]
    assert first[0].stat().st_mtime_ns == stamp
    other = Reencoder(tmp_path / "b", Coding(crf=40))([noisy])
    assert other[0].read_bytes() == first[0].read_bytes()  # required to resume embedding
    assert not list((tmp_path / "a").rglob("*.part"))


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(frames=3), "more frames than the limit of 3"),
        (Limits(frame_pixels=100), "above the limit of 100 pixels"),
    ],
)
def test_enforces_limits(noisy, limits, message):
    with pytest.raises(MediaError, match=message):
        encode(noisy, Coding(crf=40), limits)


@situation(
    "Evaluation",
    "a video whose re-encoding took too long, or exceeded a limit that is then raised",
    "encoded again when the command is repeated; damaged files are not retried",
    since="0.2.0",
)
@pytest.mark.parametrize("older", [False, True])
def test_retries_transient_failures(noisy, tmp_path, monkeypatch, older):
    def run(limits=None):
        reencode = Reencoder(tmp_path / "a", Coding(crf=40), limits)
        copies = reencode([noisy, noisy.with_name("twin.mp4")])
        return reencode.failed, [copy.stat().st_size > 0 for copy in copies]

    noisy.with_name("twin.mp4").write_bytes(noisy.read_bytes())
    paths = [str(noisy), str(noisy.with_name("twin.mp4"))]  # equal content: both are reported
    monkeypatch.setattr(reencode, "SECONDS", 0.001)
    late = {path: f"{path}: not decoded in 0.001 seconds (limits.seconds)" for path in paths}
    assert run() == (late, [False, False])
    monkeypatch.setattr(reencode, "SECONDS", 600)
    failed, encoded = run(Limits(frames=3))
    assert encoded == [False, False] and list(failed) == paths
    assert [failed[path] for path in paths] == [
        f"{path}: more frames than the limit of 3" for path in paths
    ]
    if older:  # versions without reasons
        (reason,) = (tmp_path / "a").rglob("*.json")
        reason.unlink()
    assert run() == ({}, [True, True])
    assert not list((tmp_path / "a").rglob("*.json"))


def test_does_not_retry_damaged_files(tmp_path, monkeypatch):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"not a video")
    failed = []
    for _ in range(2):
        reencoder = Reencoder(tmp_path / "a", Coding(crf=40))
        reencoder([bad])
        failed.append(reencoder.failed)
        monkeypatch.setattr(reencode, "attempt", None)
    assert failed[0] == failed[1] and "Invalid data found" in failed[0][str(bad)]


def test_scores_copies_and_counts_failures(tmp_path):
    data = make_benchmark(tmp_path, ("MSRVTT",))
    bad = data / "UVRB/MSRVTT/videos/red_blue.mp4"
    bad.write_bytes(b"not a video")
    output, seen = tmp_path / "out", []

    class Watching(ColourEncoder):
        def encode_valid(self, inputs, ids, quarantine):
            seen.extend(item["video"] for item in inputs if "video" in item)
            return super().encode_valid(inputs, ids, quarantine)

    options = "--datasets", "MSRVTT", "--reencode", "crf=40", "--max-bad-share", "0.5"
    results = evaluate(data, output, *options, load=lambda _: Watching())
    found = results["reencoded"]
    assert found["coding"] == "libx264-crf40" and list(found["failed"]) == [str(bad)]
    assert found["datasets"]["MSRVTT"]["score"] == results["datasets"]["MSRVTT"]["score"] == 0.8
    assert found["datasets"]["MSRVTT"]["quarantined"]["documents"] == 1
    assert found["paired"]["datasets"]["MSRVTT"]["p"] == 1
    copies = [path for path in seen if "reencoded" in path]
    assert len(copies) == 5 and len(seen) == 10
