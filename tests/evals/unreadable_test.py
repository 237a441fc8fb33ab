"""Unreadable items: counted by item in every command; transient failures are retried."""

import json
import shutil

import pytest

from gve_jax.errors import UserError
from gve_jax.media.errors import MediaError, RetryableMediaError
from tests.evals import small_uvrb
from tests.evals.small_uvrb import ColourEncoder, evaluate, make_benchmark, read_jsonl
from tests.situations import situation

PAGE = b"<html>404 Not Found</html>"  # content of a failed download


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    return make_benchmark(tmp_path_factory.mktemp("benchmark"), ("MSRVTT", "CRB-T"))


@pytest.fixture
def data(benchmark, tmp_path):
    """A copy that a test may damage."""
    shutil.copytree(benchmark / "UVRB", tmp_path / "data/UVRB")
    return tmp_path / "data"


class Retrying(ColourEncoder):
    """Records as `GVE` does whether a failure is transient."""

    def encode_valid(self, inputs, ids, quarantine):
        def vector(item, read=self._vector):
            try:
                return read(item)
            except MediaError as error:
                failures.append(error)
                raise

        failures, self._vector = [], vector
        record = quarantine.record
        quarantine.record = lambda *line: record(*line, retry=failures[-1].retry)
        try:
            return super().encode_valid(inputs, ids, quarantine)
        finally:
            del self._vector


def run(data, output, *more, model=None):
    """The results of the command, and the ids that the model embedded."""
    model = model or Retrying()
    options = more if "--datasets" in more else (*more, "--datasets", "MSRVTT")
    return evaluate(data, output, *options, load=lambda _: model), model.asked


def quarantined(output):
    return read_jsonl(output / "quarantine.jsonl")


def damage(data, *names, content=PAGE):
    for name in names:
        (data / f"UVRB/MSRVTT/videos/{name}.mp4").write_bytes(content)


@situation(
    "Evaluation",
    "more damaged files than the allowed share, and the command repeated",
    "refused every time, until they are repaired or allowed",
    since="0.2.0",
)
def test_every_command_refuses_too_many_unreadable_items(data, tmp_path):
    intact = (data / "UVRB/MSRVTT/videos/red_blue.mp4").read_bytes()
    damage(data, "red_blue")
    for _ in range(3):
        with pytest.raises(UserError, match="1 of 10 items could not be read, more than the"):
            run(data, tmp_path / "out")
        assert not (tmp_path / "out/results.json").exists()
        assert [line["id"] for line in quarantined(tmp_path / "out")] == ["MSRVTT.corpus/v0"]
    (tmp_path / "out/quarantine.jsonl").unlink()  # shards decide, not this file
    with pytest.raises(UserError, match="1 of 10 items"):
        run(data, tmp_path / "out")
    results, asked = run(data, tmp_path / "out", "--max-bad-share", "0.1")
    assert asked == [] and results["quarantined"] == 1
    with pytest.raises(UserError, match="1 of 10 items"):  # the default share still applies
        run(data, tmp_path / "out")
    damage(data, "red_blue", content=intact)
    results, asked = run(data, tmp_path / "out")
    assert asked == ["MSRVTT.corpus/v0"] and results["quarantined"] == 0
    assert results["datasets"]["MSRVTT"]["score"] == 1 and quarantined(tmp_path / "out") == []


@pytest.mark.parametrize("more", [("--baseline", "b"), ("--control",), ("--frames", "4")])
def test_other_runs_refuse_too_many_unreadable_items(data, tmp_path, more):
    """A model that cannot read a clip that the first one can."""
    options = ("--datasets", "CRB-T", *more)

    class Picky(small_uvrb.Settings):
        def __init__(self, picky=False, **inputs):
            super().__init__(**inputs)
            self.picky = picky

        def with_inputs(self, **changes):
            return Picky(True, num_frames=changes["num_frames"])

        def _vector(self, item):
            if "red_blue" in str(item.get("video")) and (self.picky or "frame_order" in item):
                raise MediaError(f"{item['video']}: damaged")
            return super()._vector(item)

    for _ in range(2):
        with pytest.raises(UserError, match="1 of 10 items could not be read"):
            evaluate(data, tmp_path / "out", *options, load=lambda name: Picky(name == "b"))


@situation(
    "Evaluation",
    "damaged files of equal bytes, such as error pages of failed downloads",
    "each file counts and is named",
    since="0.2.0",
)
def test_equal_damaged_files_count_individually(data, tmp_path):
    names = ("blue_red", "red_green", "blue_green")
    damage(data, *names)
    with pytest.raises(UserError, match="3 of 10 items could not be read, more than the allowed 2"):
        run(data, tmp_path / "out", "--max-bad-share", "0.2")
    results, _ = run(data, tmp_path / "out", "--max-bad-share", "0.3")
    lines = quarantined(tmp_path / "out")
    assert [line["id"] for line in lines] == [f"MSRVTT.corpus/v{n}" for n in (1, 3, 4)]
    for line, name in zip(lines, names, strict=True):
        assert name in line["path"] and not line["reason"].startswith(line["path"])
    assert results["quarantined"] == 3
    assert results["datasets"]["MSRVTT"]["quarantined"]["documents"] == 3
    left_out = results["datasets"]["MSRVTT"]["left_out"]
    assert left_out == {"queries": [], "documents": ["v1", "v3", "v4"]}


def test_content_that_failed_in_another_set_counts(data, tmp_path):
    for name in ("MSRVTT", "CRB-T"):
        (data / f"UVRB/{name}/videos/red_blue.mp4").write_bytes(PAGE)
    results, _ = run(data, tmp_path / "o", "--datasets", "MSRVTT,CRB-T", "--max-bad-share", "0.1")
    assert results["quarantined"] == 2
    for options in (("CRB-T",), ("MSRVTT,CRB-T",)):
        with pytest.raises(UserError, match="could not be read"):
            run(data, tmp_path / "o", "--max-bad-share", "0.09", "--datasets", *options)


@situation(
    "Evaluation",
    "a video that took too long to decode on a busy machine",
    "the repeated command retries it; the old failure does not count",
    since="0.2.0",
)
@pytest.mark.parametrize("allowed", ["0.05", "1"])
@pytest.mark.parametrize("plain", [False, True], ids=["retry-flag", "named-limit"])
def test_retries_transient_failures(data, tmp_path, monkeypatch, allowed, plain):
    real, busy = small_uvrb.load_video, True

    def flaky(path, *rest):
        if busy and "red_blue" in str(path):
            kind = MediaError if plain else RetryableMediaError
            raise kind(f"{path}: not decoded in 60 seconds" + plain * " (limits.seconds)")
        return real(path, *rest)

    monkeypatch.setattr(small_uvrb, "load_video", flaky)
    out, options = tmp_path / "out", ("--max-bad-share", allowed)
    make = ColourEncoder if plain else Retrying
    try:
        results, _ = run(data, out, *options, model=make())
        assert results["quarantined"] == 1 and results["datasets"]["MSRVTT"]["score"] == 0.8
    except UserError:
        assert allowed == "0.05"
    assert [line["id"] for line in quarantined(out)] == ["MSRVTT.corpus/v0"]
    assert quarantined(out)[0]["retry"]
    busy = False
    results, asked = run(data, out, *options, model=make())
    assert asked == ["MSRVTT.corpus/v0"] and results["quarantined"] == 0
    assert results["datasets"]["MSRVTT"]["score"] == 1 and quarantined(out) == []
    assert run(data, out, *options, model=make())[1] == []  # nothing left to do


def test_repeated_failure_counts_with_the_last_reason(data, tmp_path, monkeypatch):
    reasons = [RetryableMediaError("too slow"), RetryableMediaError("too large"), MediaError("bad")]

    def fails(path, *rest):
        if "red_blue" in str(path):
            raise reasons[min(len(calls), 3) - 1]
        return real(path, *rest)

    real, calls = small_uvrb.load_video, []
    monkeypatch.setattr(small_uvrb, "load_video", fails)
    for expected in ("too slow", "too large", "bad", "bad"):
        calls.append(expected)
        _, asked = run(data, tmp_path / "out", "--max-bad-share", "0.1")
        assert [line["reason"] for line in quarantined(tmp_path / "out")] == [expected]
        assert ("MSRVTT.corpus/v0" in asked) == (len(calls) < 4)  # damage is not retried


def test_tries_each_content_once_per_command(data, tmp_path, monkeypatch):
    """A slow file of two sets is tried once per command."""

    def slow(path, *rest):
        raise RetryableMediaError(f"{path}: slow")

    monkeypatch.setattr(small_uvrb, "load_video", slow)
    documents = [f"MSRVTT.corpus/v{n}" for n in range(5)]
    for _ in range(2):
        model = Retrying()
        with pytest.raises(UserError, match="not one document can be read"):
            run(data, tmp_path / "out", "--max-bad-share", "1", model=model)
        assert [id for id in model.asked if "corpus" in id] == documents


def test_retries_failures_in_shards_without_reasons(data, tmp_path):
    damage(data, "red_blue")
    run(data, tmp_path / "out", "--max-bad-share", "0.1")
    for path in (tmp_path / "out/embeddings/model").glob("vectors-*.json"):
        record = json.loads(path.read_text())
        del record["failures"]
        path.write_text(json.dumps(record))
    (tmp_path / "out/quarantine.jsonl").unlink()
    for asked in (["MSRVTT.corpus/v0"], []):
        results, found = run(data, tmp_path / "out", "--max-bad-share", "0.1")
        assert found == asked and results["quarantined"] == 1
        assert "not a readable video" in quarantined(tmp_path / "out")[0]["reason"]


def test_embeds_a_repaired_item_of_a_finished_set(data, tmp_path):
    intact = (data / "UVRB/MSRVTT/videos/red_blue.mp4").read_bytes()
    damage(data, "red_blue")
    run(data, tmp_path / "out", "--max-bad-share", "0.1")
    damage(data, "red_blue", content=intact)
    results, asked = run(data, tmp_path / "out")
    assert asked == ["MSRVTT.corpus/v0"] and results["datasets"]["MSRVTT"]["score"] == 1
