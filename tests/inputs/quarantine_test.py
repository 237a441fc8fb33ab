"""The record of what could not be read: its lines, a resumed run, the share that stops one."""

import json

import pytest

from gve_jax.errors import UserError
from gve_jax.inputs.quarantine import Quarantine


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
    path.write_text('{"id": "a"}\n' + text, encoding="utf-8")
    with pytest.raises(UserError, match="other.txt:2"):
        Quarantine(path, 0.5)
    assert path.read_text(encoding="utf-8") == '{"id": "a"}\n' + text


def test_check_stops_past_the_share_and_not_at_it(tmp_path):
    quarantine = Quarantine(tmp_path / "q.jsonl", 0.25)
    quarantine.check(0)
    quarantine.record("a", "a.mp4", "bad", 0)
    quarantine.check(4)
    with pytest.raises(UserError, match=r"1 of 3 .* 25\.0%; see .*q\.jsonl"):
        quarantine.check(3)


def test_a_share_of_nothing_stops_at_the_first(tmp_path):
    quarantine = Quarantine(tmp_path / "q.jsonl", 0.0)
    quarantine.check(10)
    quarantine.record("a", "a.mp4", "bad", 0)
    with pytest.raises(UserError):
        quarantine.check(10**6)


@pytest.mark.parametrize("share", [-0.1, 5, float("nan")])
def test_a_share_that_is_none_is_refused(tmp_path, share):
    with pytest.raises(UserError, match="share"):
        Quarantine(tmp_path / "q.jsonl", share)
