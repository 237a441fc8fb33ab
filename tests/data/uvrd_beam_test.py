"""Synthesis with Apache Beam: the same pairs, and retries of failed workers."""

import dataclasses
import json

import pytest

from data.uvrd import part, world
from data.uvrd.responder import Responder
from data.uvrd.run import synthesize
from tests.data.uvrd_run_test import content, job

pytest.importorskip("apache_beam", reason="Apache Beam is not installed: extra `beam`")
RUNNER = ["--runner=DirectRunner"]


def by_id(directory) -> dict[str, dict]:
    return {
        name: {pair["id"]: pair for pair in found} for name, found in content(directory).items()
    }


def test_beam_gives_the_same_pairs(raw, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Responder(raw) as server:
        plain = job(raw, tmp_path / "plain", server.url)
        synthesize(plain)
        asked = len(server.requests)
        synthesize(dataclasses.replace(plain, output=tmp_path / "beam"), beam=RUNNER)
        assert len(server.requests) == 2 * asked
        synthesize(dataclasses.replace(plain, output=tmp_path / "beam"), beam=RUNNER)
        assert len(server.requests) == 2 * asked
    assert by_id(tmp_path / "beam") == by_id(tmp_path / "plain")
    plain, beam = (
        json.loads((tmp_path / name / "synthesis.json").read_text()) for name in ("plain", "beam")
    )
    assert plain == beam


def test_failed_worker_loses_no_answers(raw, tmp_path, monkeypatch):
    """Half of the parts fail at first; a repeated command makes only those."""
    monkeypatch.chdir(tmp_path)
    write, failed = part.Parts.write, []

    def once(self, number, *rest):
        if number % 2 and number not in failed:
            failed.append(number)
            raise OSError("the worker is gone")
        write(self, number, *rest)

    monkeypatch.setattr(part.Parts, "write", once)
    with Responder(raw) as server:
        asked = job(raw, tmp_path / "beam", server.url)
        for _ in range(10):
            try:
                synthesize(asked, beam=RUNNER)
                break
            except Exception as error:
                assert "the worker is gone" in str(error)
        assert failed
        bodies = [json.dumps(body, sort_keys=True) for body in server.requests]
        assert len(bodies) == len(set(bodies))  # answers of the failed parts were cached
    assert sum(map(len, content(tmp_path / "beam").values())) == 7 * 14
    assert (raw / world.CAPTIONS).exists()
