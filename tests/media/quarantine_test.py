"""The record of what could not be read: its lines, a resumed run, the share that stops one."""

import dataclasses
import json
import re

import pytest

from gve_jax.errors import UserError
from gve_jax.inputs.preprocess import InputSpec, Preprocessor
from gve_jax.media import sandbox
from gve_jax.media.isolation import Failure, Isolated
from gve_jax.media.item import Item
from gve_jax.media.limits import Limits
from gve_jax.media.quarantine import Quarantine, failure
from tests.media.files import clip
from tests.situations import situation


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_each_id_is_one_line_of_the_contract(tmp_path):
    path = tmp_path / "run" / "quarantine.jsonl"
    quarantine = Quarantine(path, 0.5)
    assert quarantine.count == 0 and not path.exists()
    quarantine.record("a", "v/ä.mp4", 'no "moov"\nhere', 0.123456)
    quarantine.record("a", "elsewhere", "again", 9)
    quarantine.record("b", "b.png", "corrupt", 1)
    assert lines(path) == [
        {"id": "a", "path": "v/ä.mp4", "reason": 'no "moov"\nhere', "seconds": 0.123},
        {"id": "b", "path": "b.png", "reason": "corrupt", "seconds": 1},
    ]
    assert quarantine.count == 2


@situation(
    "Embedding",
    "a command killed while it wrote a line of quarantine.jsonl",
    "the torn line is dropped, the others count",
    since="0.1.0",
)
@pytest.mark.parametrize("torn", [b"", b'{"id": "c", "pa', b'{"id": "c"}', b"\xff\xc3"])
def test_a_resumed_run_counts_earlier_lines_and_drops_a_torn_one(tmp_path, torn):
    path = tmp_path / "quarantine.jsonl"
    Quarantine(path, 0.5).record("a", "a.mp4", "bad", 0.1)
    Quarantine(path, 0.5).record("b", "b.mp4", "bad", 0.1)
    path.write_bytes(path.read_bytes() + torn)
    resumed = Quarantine(path, 0.5)
    assert resumed.count == 2
    for id in ("a", "c"):
        resumed.record(id, "x", "bad", 0.1)
    assert [line["id"] for line in lines(path)] == ["a", "b", "c"]
    assert Quarantine(path, 0.5).count == 3


@pytest.mark.parametrize("text", ["not json\n", "5\n", "[1]\n", "{}\n", '{"id": ["a"]}\n', "\n"])
def test_another_file_is_not_taken_for_a_quarantine(tmp_path, text):
    path = tmp_path / "other.txt"
    line = '{"id": "a", "path": "a.mp4", "reason": "bad", "seconds": 0.1}\n'
    path.write_text(line + text, encoding="utf-8")
    with pytest.raises(UserError, match="other.txt:2"):
        Quarantine(path, 0.5)
    assert path.read_text(encoding="utf-8") == line + text


def test_check_stops_past_the_share_and_not_at_it(tmp_path):
    quarantine = Quarantine(tmp_path / "q.jsonl", 0.25)
    quarantine.check(0)
    quarantine.record("a", "a.mp4", "bad", 0)
    quarantine.check(4)
    with pytest.raises(UserError, match=r"1 of 3 .* 25\.0%: 1 x bad; see .*q\.jsonl"):
        quarantine.check(3)


def test_a_share_of_nothing_stops_at_the_first(tmp_path):
    quarantine = Quarantine(tmp_path / "q.jsonl", 0.0)
    quarantine.check(10)
    quarantine.record("a", "a.mp4", "bad", 0)
    with pytest.raises(UserError):
        quarantine.check(10**6)


@pytest.mark.parametrize("share", [-0.1, 5, float("nan")])
def test_an_invalid_share_is_refused(tmp_path, share):
    with pytest.raises(UserError, match="share"):
        Quarantine(tmp_path / "q.jsonl", share)


def test_the_sum_groups_reasons_by_what_is_wrong(tmp_path):
    path = tmp_path / "q.jsonl"
    quarantine = Quarantine(path, 1.0)
    assert quarantine.summary(7) == "all of 7 items could be read"
    for number in range(3):
        name = f"a: b/{number}.mp4"
        quarantine.record(str(number), name, f"{name}: cut off, {number} of 24 frames", 0.1)
    for id, name, reason in (
        ("x", "<9 bytes> of x", "<9 bytes>: not a readable video ([Errno 5] '<none>')"),
        ("y", "<10 bytes> of y", "<10 bytes>: not a readable video ([Errno 6] 'elsewhere')"),
        ("z", "a.png", "sides 4 x 1000: the ratio is above 200"),
        ("w", "v.mp4 + i.png", "i.png: no such file"),
        ("v", "v.mp4 + i.png", "v.mp4: no such frame 2.5"),
    ):
        quarantine.record(id, name, reason, 0.1)
    expected = (
        "8 of 1,000 items (0.80%) could not be read: 3 x cut off, N of N frames; 2 x not a "
        "readable video ([Errno N] ...); 1 x sides N x N: the ratio is above N; 2 x other "
        f"reasons; see {path}"
    )
    assert quarantine.summary(1000) == expected
    assert Quarantine(path, 1.0).summary(1000) == expected, "a resumed run knows the earlier ones"


@pytest.mark.parametrize(
    "item, path",
    [
        (Item(video="a.mp4"), "a.mp4"),
        (Item("t", image="b.png", video="a.mp4"), "a.mp4 + b.png"),
        (Item(video=b"abc"), "<3 bytes> of T2V-7"),
        (Item(image=b"abc", video="a.mp4"), "a.mp4 + <3 bytes> of T2V-7"),
        (Item("too long"), "<text> of T2V-7"),
    ],
)
def test_a_medium_without_a_path_is_named_by_its_record(item, path):
    line = failure("T2V-7", item, "bad", 0.12345)
    assert line == {"id": "T2V-7", "path": path, "reason": "bad", "seconds": 0.123}


def test_retried_items_leave_count_and_file(tmp_path):
    path = tmp_path / "q.jsonl"
    first = Quarantine(path, 0.5)
    for id in ("A/1", "A/2", "B/1"):
        first.record(id, "x.mp4", "bad", 0)
    again = Quarantine(path, 0.5, prefixes=("A/",))
    assert again.count == 2, "another command's items are not of this total"
    again.forget(["A/1", "A/3", "B/1"])
    assert again.count == 1
    assert [line["id"] for line in lines(path)] == ["A/2", "B/1"]
    again.record("A/1", "x.mp4", "still bad", 0)
    assert [line["id"] for line in lines(path)] == ["A/2", "B/1", "A/1"]


def test_of_a_copy_the_place_that_stays_is_named(tmp_path):
    quarantine = Quarantine(tmp_path / "q.jsonl", 0.1, shown="gs://bucket/run/q.jsonl")
    quarantine.record("a", "a.mp4", "broken", 0.1)
    assert quarantine.summary(2).endswith("see gs://bucket/run/q.jsonl")
    with pytest.raises(UserError, match="see gs://bucket/run/q.jsonl$"):
        quarantine.check(2)
    assert (tmp_path / "q.jsonl").is_file()


def test_transient_failures_are_forgotten_when_the_command_is_repeated(tmp_path):
    path = tmp_path / "q.jsonl"
    first = Quarantine(path, 0.5)
    first.record("slow", "s.mp4", "not decoded in 60 seconds", 60, retry=True)
    first.record("damaged", "d.mp4", "damaged", 0)
    assert [line.get("retry") for line in lines(path)] == [True, None]
    again = Quarantine(path, 0.5)
    assert again.count == 2 and again.is_permanent("damaged") and not again.is_permanent("slow")
    assert again.forget_retryable() == ("slow",)
    assert again.count == 1 and [line["id"] for line in lines(path)] == ["damaged"]
    assert again.forget_retryable() == ()


def test_a_failure_holds_for_the_content_that_it_was_recorded_with(tmp_path):
    path = tmp_path / "q.jsonl"
    first = Quarantine(path, 0.5)
    first.stamps = {"a": "12", "b": "34"}
    first.record("a", "a.mp4", "damaged", 0)
    assert lines(path)[0]["stamp"] == "12"
    again = Quarantine(path, 0.5)
    assert again.is_permanent("a", "12") and not again.is_permanent("a", "99")
    assert not again.is_permanent("b", "34"), "it was never recorded"


@pytest.mark.parametrize(
    "change, retry",
    [
        (lambda path: path.unlink(), True),
        (lambda path: path.write_bytes(b"no video"), False),
        (lambda path: path.write_bytes(path.read_bytes()[:1000]), False),
    ],
)
def test_a_missing_file_may_come_back_and_a_damaged_one_stays_damaged(tmp_path, change, retry):
    path = tmp_path / "v.mp4"
    path.write_bytes(clip(8))
    change(path)
    with Isolated(Preprocessor(None, InputSpec(num_frames=4)), 1) as isolated:
        failed = isolated.attempt(Item(video=str(path)))
    assert isinstance(failed, Failure) and failed.retry == retry
    assert failure("id", Item(video=str(path)), *dataclasses.astuple(failed)).get("retry") == (
        True if retry else None
    )


def test_time_memory_and_limits_may_pass(tmp_path, monkeypatch):
    path = tmp_path / "v.mp4"
    path.write_bytes(clip(8))
    # A worker of the tests' own asks for the memory: FFmpeg may crash where it gets none.
    monkeypatch.setattr(sandbox, "WORKER", "tests.media.hostile")
    for limits, video, reason in (
        (Limits(seconds=1e-6), str(path), "limits.seconds"),
        (Limits(), b"BOMB", "limits.memory"),
        (Limits(frames=2), str(path), "above the limit|than the limit"),
    ):
        with Isolated(Preprocessor(None, InputSpec(num_frames=4), limits), 1) as isolated:
            failed = isolated.attempt(Item(video=video))
        assert isinstance(failed, Failure) and failed.retry, failed
        assert re.search(reason, failed.reason)
