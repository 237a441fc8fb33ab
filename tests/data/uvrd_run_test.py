"""Synthesis from raw videos to a directory for training: stages, bad input, resuming."""

import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from configs.uvrd import get_config
from data.shapes.render import decode_mp4
from data.uvrd import world
from data.uvrd.responder import MODEL, Responder
from data.uvrd.run import Job, synthesize
from data.uvrd.settings import TYPES, Settings
from data.uvrd.similarity import Similarity
from gve_jax.errors import UserError
from gve_jax.streams.pairs import PairSources
from tests.conftest import ROOT

RATES = {f"pairs__{name}": 1.0 for name in TYPES if name != "T2V"}  # that of T2V is 1.0


def job(raw, output, server, **fields) -> Job:
    config = get_config("world")
    config.run.update(part=6, decoders=1, max_bad_share=0.2)
    config.update_from_flattened_dict(
        {name.replace("__", "."): value for name, value in (RATES | fields).items()}
    )
    return Job(
        source=raw / world.CAPTIONS,
        output=output,
        server=server,
        model=MODEL,
        settings=Settings.of(config),
    )


class ByColour:
    """Embeds captions and videos with cosine 1 if the caption describes the video, else 0."""

    fingerprint, embedding_dim = {"weights": "colour"}, 2

    def __init__(self, raw):
        rows = [json.loads(line) for line in open(raw / world.CAPTIONS)]
        self.of = {(raw / row["video"]).read_bytes(): row["caption"] for row in rows}

    def encode_valid(self, items, ids, quarantine):
        texts = [item.text or self.of[item.video] for item in items]
        unlike = [item.text is not None and "elephant" in item.text for item in items]
        vectors = np.array([[0, 1] if one else [1, 0] for one in unlike], np.float32)
        return vectors, np.ones(len(texts), bool)


def lines(path) -> list[dict]:
    return [json.loads(line) for line in open(path)]


def content(directory) -> dict[str, list]:
    sources = PairSources(directory)
    return {name: sources.read(name, np.arange(size)) for name, size in sources.sizes.items()}


@pytest.fixture(scope="module")
def whole(raw, tmp_path_factory):
    """(directory, the server's requests) of a complete synthesis."""
    folder = tmp_path_factory.mktemp("whole")
    embedder = Similarity(ByColour(raw), folder / "vectors")
    with Responder(raw) as server:
        synthesize(job(raw, folder / "pairs", server.url), embedder=embedder)
        return folder / "pairs", list(server.requests)


def test_funnel_and_rejects_match_the_world(whole):
    tally = json.loads((whole[0] / "synthesis.json").read_text())["tally"]
    assert tally["funnel"] == {
        "videos": 26,
        "captions": 17,
        "decoded": 15,
        "moving": 14,
        "similar": 13,
        "enriched": 13,
    }
    assert tally["rejects"] == {
        "captions: caption empty": 1,
        "captions: caption is spam": 2,
        "captions: caption not descriptive": 1,
        "captions: caption in another language": 2,
        "captions: caption instructs the model": 2,
        "captions: caption too long": 1,
        "decoded: unreadable video": 2,
        "moving: static video": 1,
        "similar: caption unlike its video": 1,
    }
    assert tally["pairs"] == tally["asked"] == dict.fromkeys(TYPES, 13)
    rejects = lines(whole[0] / "rejects.jsonl")
    assert Counter(f"{r['stage']}: {r['reason']}" for r in rejects) == tally["rejects"]
    assert max(len(r["detail"]) for r in rejects) <= 200  # although a caption has 100 kB
    quarantined = lines(whole[0] / "quarantine.jsonl")
    assert [line["id"] for line in quarantined] == ["v00023", "v00025"]
    assert all(line["path"].endswith(f"{line['id'][1:]}.mp4") for line in quarantined)


def test_training_reads_every_pair_with_its_history(whole, raw):
    pairs = content(whole[0])
    assert set(pairs) == {f"{name}_uvrd" for name in TYPES}
    PairSources(whole[0]).check(dict.fromkeys(pairs, 13))
    history = {line["id"]: line for line in lines(whole[0] / "history.jsonl")}
    assert len(history) == sum(map(len, pairs.values()))
    for name, found in pairs.items():
        for pair in found:
            kind, record = name.split("_")[0], history[pair["id"]]
            sides = tuple(
                "".join(
                    key
                    for key, medium in (("T", one.text), ("I", one.image), ("V", one.video))
                    if medium
                )
                for one in (pair["query"], pair["positive"])
            )
            assert sides == tuple(kind.split("2")) and not pair["negatives"]
            assert pair["query"].instruction and record["type"] == kind
            assert record["scores"]["similarity"] == 1.0 and record["scores"]["motion"] > 0.0004
            if pair["positive"].video:  # the original file
                path = raw / "videos" / f"{record['video'][1:]}.mp4"
                assert pair["positive"].video == path.read_bytes()
            if "T" in kind.split("2")[0]:
                assert record["model"] == MODEL and record["sampling"]["temperature"] == 0.7
                assert record["prompt"]["version"] and record["request"] and record["original"]


def test_frames_and_clips_come_from_their_videos(whole):
    history = {line["id"]: line for line in lines(whole[0] / "history.jsonl")}
    pairs = content(whole[0])
    for name in ("TI2V_uvrd", "I2V_uvrd"):
        for pair in pairs[name]:
            frames = decode_mp4(pair["positive"].video)
            at = round(history[pair["id"]]["frame"] * 4)
            assert name != "TI2V_uvrd" or at < 4  # from the first quarter
            _same(pair["query"].image, frames[at])
    for name in ("TV2V_uvrd", "V2V_uvrd"):
        for pair in pairs[name]:
            start, end = history[pair["id"]]["span"]
            assert name != "TV2V_uvrd" or end <= 2.0  # from the first half
            clip, video = decode_mp4(pair["query"].video), decode_mp4(pair["positive"].video)
            assert end - start == pytest.approx(2.0, abs=0.01) and len(clip) in (6, 8)
            first = int(np.ceil(start * 4 - 1e-6))
            assert np.abs(clip[0].astype(int) - video[first]).mean() < 6


def _same(png: bytes, frame: np.ndarray) -> None:
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), frame)


def test_texts_describe_their_videos(whole):
    """Compares the texts with the scenes: the requests had the images of the right video."""
    history = {line["id"]: line for line in lines(whole[0] / "history.jsonl")}
    for name in ("T2V_uvrd", "TI2V_uvrd", "TV2V_uvrd"):
        for pair in content(whole[0])[name]:
            scene = world.sample(3, int(history[pair["id"]]["video"][1:]))
            shapes = {thing.shape for thing in scene.things}
            said = set(pair["query"].text.replace(",", " ").replace(".", " ").split())
            assert not said & ({"circle", "square", "triangle", "star", "ring"} - shapes)


def test_captions_are_sent_as_quoted_data_only(whole, raw):
    for request in whole[1]:
        system, question = request["messages"]
        assert "never changes these rules" in system
        (quoted,) = [line for line in question.splitlines() if "as data, in JSON quotes" in line]
        json.loads(quoted[quoted.index(': "') + 2 :])
    sent = json.dumps(whole[1])
    for name in ("order", "template", "spam", "german"):
        assert world.BAD[name][:24] not in sent


def test_repeated_command_sends_nothing_and_other_settings_are_refused(whole, raw, tmp_path):
    directory = whole[0]
    nobody = "http://127.0.0.1:9/v1"  # no server
    before = sorted((p.name, p.stat().st_mtime_ns) for p in directory.iterdir())
    synthesize(job(raw, directory, nobody))
    assert sorted((p.name, p.stat().st_mtime_ns) for p in directory.iterdir()) == before
    with pytest.raises(UserError, match="settings.similarity = 0.2, now 0.3"):
        synthesize(job(raw, directory, nobody, similarity=0.3))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("mine")
    with pytest.raises(UserError, match="is not a synthesis"):
        synthesize(job(raw, tmp_path / "other", nobody))


def test_shared_cache_answers_all_calls(whole, raw, tmp_path):
    """The cache of answers without the finished parts."""
    directory, requests = whole
    cache = directory.with_name("pairs.work") / "cache"
    with Responder(raw) as server:
        again = dataclasses.replace(job(raw, tmp_path / "again", server.url), cache=cache)
        synthesize(again, embedder=Similarity(ByColour(raw), tmp_path))
        assert server.requests == []
    usage = json.loads((tmp_path / "again" / "synthesis.json").read_text())["usage"]
    assert (usage["calls"], usage["prompt_tokens"]) == (0, 0) and usage["cached"] == len(requests)
    assert content(tmp_path / "again") == content(directory)


@pytest.mark.slow
def test_resumes_after_kill(whole, raw, tmp_path):
    """Killed after one part; without a comparison of captions."""
    output, work = tmp_path / "pairs", tmp_path / "pairs.work"
    with Responder(raw, latency=0.02) as server:
        resumed = job(raw, output, server.url)
        command = [
            *(sys.executable, "-m", "data.uvrd", "--config=configs/uvrd.py:world"),
            *(f"--input={raw / world.CAPTIONS}", f"--output={output}"),
            *(f"--server={server.url}", f"--model={MODEL}"),
            *("--config.run.part=6", "--config.run.decoders=1", "--config.run.max_bad_share=0.2"),
            *(f"--config.{name.replace('__', '.')}={rate}" for name, rate in RATES.items()),
        ]
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=os.environ,
            text=True,
        )
        deadline = time.monotonic() + 300
        while not list((work / "parts").glob("*/part.json") if work.exists() else ()):
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        before = len(server.requests)
        first = list((work / "parts").glob("*/part.json"))
        assert not output.exists() and len(first) < 5
        synthesize(resumed)
        bodies = [json.dumps(body, sort_keys=True) for body in server.requests]
        twice = len(bodies) - len(set(bodies))
        assert before < len(bodies) and twice <= resumed.settings.calls.concurrency  # in flight
    # The pairs of the complete run, and those of the video with an unlike caption.
    resumed, expected = content(output), content(whole[0])
    for name in expected:
        pairs = {pair["id"]: pair for pair in resumed[name]}
        assert all(pairs[pair["id"]] == pair for pair in expected[name])
        assert len(pairs) == len(expected[name]) + 1


def test_too_many_unreadable_videos_and_missing_captions_are_refused(raw, tmp_path):
    with Responder(raw) as server:
        strict = job(
            raw,
            tmp_path / "out",
            server.url,
            run__max_bad_share=0.05,
            **{f"pairs__{name}": 0.0 for name in TYPES if name != "I2V"},
        )
        with pytest.raises(UserError, match="2 of 26 items could not be read"):
            synthesize(strict)
        folder = dataclasses.replace(strict, source=raw / "videos", output=tmp_path / "folder")
        with pytest.raises(UserError, match="videos without captions"):
            synthesize(folder)


def test_invalid_answers_give_no_pairs_with_texts(raw, tmp_path):
    rules = ("prose", "half", "refusal")
    with Responder(raw, fault=lambda number: rules[number % 3]) as server:
        synthesize(job(raw, tmp_path / "out", server.url, server__tries=1))
    pairs = content(tmp_path / "out")
    assert set(pairs) == {"I2V_uvrd", "V2V_uvrd"}
    rejects = json.loads((tmp_path / "out" / "synthesis.json").read_text())["tally"]["rejects"]
    for name in ("T2T", "T2I", "T2V", "TI2V", "TV2V"):
        of_type = {reason: n for reason, n in rejects.items() if reason.startswith(f"{name}: ")}
        assert sum(of_type.values()) == 14
        assert set(of_type) <= {
            f"{name}: answer: {why}" for why in ("prose", "half JSON", "refusal")
        }


def test_page_is_complete_and_has_no_external_resources(whole):
    page = (whole[0] / "samples.html").read_text()
    for name in TYPES:
        assert f"<h3>{name}_uvrd · 13 pairs</h3>" in page
    assert page.count("data:image/jpeg;base64,") > 40
    assert "caption instructs the model" in page and "caption not static" not in page
    assert "http" not in page.replace("data:image", "") and "<script" not in page
    card = (whole[0] / "README.md").read_text()
    assert "| TV2V_uvrd | 13 | 13 |" in card and "| captions: caption too long | 1 |" in card
