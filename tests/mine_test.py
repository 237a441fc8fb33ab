"""Mined negatives: those of a brute force, never a positive, the same bytes after a kill."""

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from data.pairs.builder import run_import
from gve_jax import embed
from gve_jax.errors import UserError
from gve_jax.inputs.batch import Buckets
from gve_jax.inputs.preprocess import InputSpec, Preprocessor
from gve_jax.inputs.prompt import Prompt
from gve_jax.media.isolation import Isolated
from gve_jax.mine import main
from gve_jax.mining.corpus import content_digest, kind
from gve_jax.mining.search import Neighbours
from gve_jax.retrieval.negatives import Rule
from gve_jax.storage.files import read_records
from gve_jax.storage.locks import lock_folder
from gve_jax.streams.loader import LoadPairs
from gve_jax.streams.pairs import PairSources
from tests.conftest import ROOT
from tests.situations import situation

WIDTH = 256


@functools.cache
def vector(text: str) -> np.ndarray:
    """A row of +-1/16: products of two are exact, and often equal. `~` gives a twin's vector, a
    number behind `@` how much of it is that of what follows."""
    text = text.removeprefix("~")
    if "@" in text:
        share, text, other = text.split("@")
        own, rest = vector(text), vector(other)
        return np.where(np.arange(WIDTH) < int(share), own, rest)
    rng = np.random.default_rng(list(text.encode()))
    return rng.choice([-1, 1], size=WIDTH).astype(np.float32) / 16


class Prober:
    embedding_dim = WIDTH

    def __init__(self, weights="a", stop_after=10**9):
        self.fingerprint, self.asked, self.left = {"weights": weights}, 0, stop_after

    def encode_valid(self, inputs, ids, quarantine, prompt=None, batch_size=32):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        self.asked += len(ids)
        valid = np.array([item.text != "unreadable" for item in inputs])
        for item, id in zip(inputs, ids, strict=True):
            if item.text == "unreadable":
                quarantine.record(id, "<text>", "bad", 0.0)
        rows = [vector(item.text) for item in inputs if item.text != "unreadable"]
        return np.array(rows, np.float32).reshape(-1, WIDTH), valid


def rows_of(source: int, count: int) -> list[dict]:
    """Queries that lean to their positive, some more than others."""
    rows = []
    for n in range(count):
        # q3 is asked by three pairs, whose positives are all right for it.
        query = 3 if n in (8, 9) else n
        positive = f"p{source}-{n}"
        if n == 12:
            positive = "p0-1"  # another pair's, in both sources
        if n == 13:
            positive = f"~p{source}-2"  # the same vector, not the same text
        rows.append(
            {
                "id": f"{n}",
                "query": f"{60 + n}@p{source}-{query}@q{source}-{query}",
                "positive": positive,
                "negatives": ["old"],
            }
        )
    for n in (8, 9):
        rows[n]["query"] = rows[3]["query"]
    return rows


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mine")
    inputs = []
    for source, count in enumerate((150, 60)):
        rows = rows_of(source, count)
        if source:
            rows[5]["positive"] = rows[7]["query"] = "unreadable"
        path = folder / f"T2T_{source}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        inputs.append(f"T2T_{source}={path}")
    run_import(folder / "pairs", inputs, "pair")
    return folder / "pairs"


def mine(pairs: Path, output: Path, *options, model=None) -> Prober:
    model = model or Prober()
    main(
        [str(a) for a in ("--pairs", pairs, "--output", output, "--model", "m", *options)],
        load=lambda name: model,
    )
    return model


def read(directory: Path) -> dict[tuple[str, str], dict]:
    sources = PairSources(directory)
    return {
        (name, pair["id"]): pair
        for name, size in sources.sizes.items()
        for pair in sources.read(name, np.arange(size))
    }


def ids_of(directory: Path) -> dict[tuple[str, str], list[dict]]:
    records = [record for _, record in read_records(directory / "negatives.jsonl")]
    return {(one["source"], one["id"]): one["negatives"] for one in records}


def brute_force(pairs: Path, first: int, last: int, margin: float, share: float, own: bool):
    """Every pair's ranked texts that the rule allows; sorted lists and loops."""
    every = {key: pair for key, pair in read(pairs).items()}
    documents: dict[str, str] = {}
    for (source, id), pair in every.items():
        documents.setdefault(pair["positive"].text, f"{source}/{id}")
    documents.pop("unreadable", None)
    allowed = {}
    for (source, id), pair in every.items():
        query, positive = pair["query"].text, pair["positive"].text
        if "unreadable" in (query, positive):
            continue
        right = {p["positive"].text for p in every.values() if p["query"].text == query}
        ranked = []
        for text, name in documents.items():
            if own and not any(
                s == source and p["positive"].text == text for (s, _), p in every.items()
            ):
                continue
            near = max(float(vector(text) @ vector(r)) for r in right if r != "unreadable")
            if text not in right and text != query and near < 1 - 1e-5:
                ranked.append((float(vector(text) @ vector(query)), name, text))
        ranked.sort(key=lambda one: (one[0], one[1]), reverse=True)
        score = float(vector(positive) @ vector(query))
        ceiling = min(score - margin, share * score) if score > 0 else score - margin
        window = list(enumerate(ranked, 1))[first - 1 : last]
        allowed[source, id] = [(rank, *one) for rank, one in window if one[0] <= ceiling]
    return allowed


@pytest.mark.parametrize(
    ("first", "last", "margin", "share", "within"),
    [(1, 20, 0.0, 0.95, "modality"), (3, 9, 0.25, 1.0, "all"), (1, 40, 0.1, 0.8, "source")],
)
def test_negatives_are_those_of_a_brute_force(pairs, tmp_path, first, last, margin, share, within):
    mine(
        pairs,
        tmp_path / "out",
        "--ranks",
        f"{first}-{last}",
        "--margin",
        margin,
        "--share",
        share,
        "--within",
        within,
        "--negatives",
        2,
    )
    expected = brute_force(pairs, first, last, margin, share, within == "source")
    found, names = read(tmp_path / "out"), ids_of(tmp_path / "out")
    few = [key for key, ranked in expected.items() if len(ranked) < 2]
    assert set(found) == set(names) == set(expected) - set(few)
    for key, pair in found.items():
        wanted = expected[key][:2]
        assert [item.text for item in pair["negatives"]] == [text for *_, text in wanted], key
        assert [(one["rank"], one["id"]) for one in names[key]] == [
            (rank, name) for rank, _, name, _ in wanted
        ]
    tallies = json.loads((tmp_path / "out" / "mining.json").read_text())["sources"]
    lost = {name: tally["lost"]["too few negatives"] for name, tally in tallies.items()}
    assert sum(lost.values()) == len(few)
    assert tallies["T2T_1"]["lost"]["query unreadable"] == 1
    assert tallies["T2T_1"]["lost"]["positive unreadable"] == 1
    assert sum(tallies["T2T_0"]["negative scores"]) == 2 * tallies["T2T_0"]["mined"]


def test_pairs_may_be_lists_and_wildcards(pairs, tmp_path):
    """The rows that `pairs` was imported from, as JSONL files; the result is the same."""
    mine(pairs, tmp_path / "imported")
    listed = ",".join(f"{pairs.parent}/T2T_{source}.jsonl" for source in (0, 1))
    for number, given in enumerate((listed, f"{pairs.parent}/T2T_*.jsonl")):
        output = tmp_path / str(number)
        mine(given, output)
        assert ids_of(output) == ids_of(tmp_path / "imported")
    mine(f"{pairs.parent}/T2T_0.jsonl", tmp_path / "two", "--pairs", f"{pairs.parent}/T2T_1.jsonl")
    assert ids_of(tmp_path / "two") == ids_of(tmp_path / "imported")
    with pytest.raises(UserError, match="no file matches .*none_.*jsonl"):
        mine(f"{pairs.parent}/none_*.jsonl", tmp_path / "none")


@situation(
    "Training data",
    "hard negatives mined where pairs share queries and positives have copies",
    "a positive or a copy of one is never a negative",
    since="0.1.0",
)
def test_positives_and_their_twins_are_never_mined(pairs, tmp_path):
    """Without any margin; each query's own positives would be first."""
    mine(pairs, tmp_path / "out", "--ranks", "1-3", "--share", 1, "--negatives", 1)
    found = read(tmp_path / "out")
    for (source, id), pair in found.items():
        number = source[-1]
        right = {pair["positive"].text}
        if id in ("3", "8", "9"):
            right |= {f"p{number}-{n}" for n in (3, 8, 9)}
        if id in ("2", "13"):
            right |= {f"p{number}-2", f"~p{number}-2"}
        assert not right & {item.text for item in pair["negatives"]}, (source, id)
    assert {"T2T_0", "T2T_1"} == {source for source, _ in found}


def test_random_negatives_are_of_the_window_and_of_the_seed(pairs, tmp_path):
    options = ("--ranks", "5-30", "--negatives", 3, "--choose", "random")
    work = ("--work", tmp_path / "work")
    for seed, name in ((0, "a"), (0, "b"), (1, "c")):
        mine(pairs, tmp_path / name, *options, "--seed", seed, *work)
    a, b, c = (ids_of(tmp_path / name) for name in "abc")
    assert a == b and a != c
    expected = brute_force(pairs, 5, 30, 0, 0.95, False)
    assert any(each["rank"] > 10 for negatives in a.values() for each in negatives)
    for key, negatives in a.items():
        assert len({each["id"] for each in negatives}) == 3
        assert {each["rank"] for each in negatives} <= {rank for rank, *_ in expected[key]}


def test_more_exclusions_than_are_spare_ask_for_more(tmp_path):
    """40 pairs ask the same; a rank needs what lies behind all of their positives."""
    rows = [{"id": str(n), "query": "q", "positive": f"{200 - n}@q@x{n}"} for n in range(40)]
    rows += [{"id": f"o{n}", "query": f"r{n}", "positive": f"{100 - n}@q@y{n}"} for n in range(9)]
    (tmp_path / "T2T_a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run_import(tmp_path / "pairs", [f"T2T_a={tmp_path}/T2T_a.jsonl"], "pair")
    mine(tmp_path / "pairs", tmp_path / "out", "--ranks", "1-5", "--negatives", 3)
    found = ids_of(tmp_path / "out")
    scores = {n: float(vector(f"{100 - n}@q@y{n}") @ vector("q")) for n in range(9)}
    best = sorted(scores, key=lambda n: (scores[n], f"T2T_a/o{n}"), reverse=True)[:3]
    for n in range(40):
        assert [one["id"] for one in found["T2T_a", str(n)]] == [f"T2T_a/o{b}" for b in best]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes()
        for path in sorted(folder.iterdir())
        if path.name not in ("mining.json", "README.md")
    }


@pytest.mark.parametrize(
    "lost",
    [
        (),
        pytest.param(("queries/manifest.json",), marks=pytest.mark.slow),
        pytest.param(("positives/ids-00001.jsonl",), marks=pytest.mark.slow),
        ("ranks-modality-20/all-000000.npz",),
    ],
)
def test_interrupted_and_repeated_gives_the_same_bytes(pairs, tmp_path, lost):
    options = ("--ranks", "1-20", "--shard-size", 50)
    mine(pairs, tmp_path / "whole", *options)
    with pytest.raises(KeyboardInterrupt):
        mine(pairs, tmp_path / "out", *options, model=Prober(stop_after=6))
    assert not (tmp_path / "out").exists()
    mine(pairs, tmp_path / "first", *options, "--work", tmp_path / "out.mining")
    for name in lost:
        (tmp_path / "out.mining" / name).unlink(missing_ok=True)
    again = mine(pairs, tmp_path / "out", *options)
    assert again.asked == (50 if "positives" in "".join(lost) else 0)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert mine(pairs, tmp_path / "out", *options).asked == 0  # done


_KILLED = """
import sys
from absl import flags
flags.FLAGS.mark_as_parsed()
from gve_jax import mine
from tests.mine_test import Prober
mine.main(sys.argv[1:], load=lambda name: Prober())
"""


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["positives/settings.json", ".building"])
@situation(
    "Training data",
    "mining that was killed and is repeated",
    "resumes where it was, and writes the same bytes",
    since="0.1.0",
)
def test_killed_and_repeated_gives_the_same_bytes(pairs, tmp_path, stage):
    options = ["--pairs", str(pairs), "--model", "m", "--ranks", "1-20", "--shard-size", "20"]
    process = subprocess.Popen(
        [sys.executable, "-c", _KILLED, *options, "--output", str(tmp_path / "out")],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    work = tmp_path / "out.mining"
    mark = tmp_path / f"out{stage}" if stage.startswith(".") else work / stage
    while not mark.exists() and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    _, err = process.communicate(timeout=300)
    assert mark.exists() or (tmp_path / "out").exists(), err
    # Ranks kept for one device are refused for eight: their last bits may differ.
    again = subprocess.run(
        [sys.executable, "-c", _KILLED, *options, "--output", str(tmp_path / "out")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    assert again.returncode == 0, again.stderr
    mine(pairs, tmp_path / "whole", *options[4:])
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert not list(tmp_path.glob("*.building"))


def on_host(pairs: str, output: str, options: list[str], stop_after: list[int]) -> list:
    """What a host of the pair does: how much its model was asked for, and the tiles it compared."""
    model, tiles = Prober(stop_after=stop_after[jax.process_index()]), []
    compare = Neighbours._compare

    def tallies(self, search, numbers, advance):
        tiles.extend(f"{search.name} {n}" for n in numbers)
        compare(self, search, numbers, advance)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Neighbours, "_compare", tallies)
        try:
            mine(Path(pairs), Path(output), *options, model=model)
        except KeyboardInterrupt:
            pass
    return [model.asked, tiles]


def test_two_hosts_divide_the_work_and_give_the_bytes_of_one(two_hosts, pairs, tmp_path):
    """Ended at different places, and repeated; with every file, also those of the card."""
    options, most = ["--ranks", "1-20", "--shard-size", "20", "--within", "source"], 10**9
    alone, out = tmp_path / "alone" / "mined", tmp_path / "pair" / "mined"
    total = mine(pairs, alone, *options).asked

    def run(*stop_after: int) -> list:
        return two_hosts.run("tests.mine_test:on_host", str(pairs), str(out), options, stop_after)

    (first, _), (second, _) = run(3, 2)
    assert first == 3 * 20 and second == 2 * 20 and not out.exists()
    (more, tiles), (others, theirs) = run(most, most)
    assert first + second + more + others == total and min(more, others) > 0
    assert tiles == ["T2T_0 0"] and theirs == ["T2T_1 0"]
    every = {path.name: path.read_bytes() for path in out.iterdir()}
    assert every == {path.name: path.read_bytes() for path in alone.iterdir()}
    assert run(most, most) == [[0, []], [0, []]]  # done

    shutil.rmtree(out)
    (out.with_name("mined.mining") / "ranks-source-20" / "T2T_1-000000.npz").unlink()
    assert run(most, most) == [[0, ["T2T_1 0"]], [0, []]]
    assert {path.name: path.read_bytes() for path in out.iterdir()} == every
    options[1] = "1-21"
    assert set(run(most, most)) == {
        f"{out}: created with ranks = [1, 20], now [1, 21]; remove it or choose another --output"
    }


def write(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_another_corpus_with_vectors_made_before(pairs, tmp_path):
    """No model: vectors of queries and positives from another work folder, of the corpus by embed;
    documents with a positive's text, id or vector are none's negatives."""
    documents = [{"id": f"d{n}", "text": f"80@p0-{n}@z{n}"} for n in range(150)]
    documents += [
        {"id": "same text", "text": "p0-20"},
        {"id": "twin", "text": "~p0-21"},
        {"id": "T2T_0/22", "text": "230@p0-22@z"},
    ]
    corpus = write(tmp_path / "corpus.jsonl", documents)

    class Embedder(Prober):
        def summary(self):
            return ""

    embed.main(
        ["--model", "m", "--input", str(corpus), "--output", str(tmp_path / "vectors")],
        load=lambda name: Embedder(),
    )
    mine(pairs, tmp_path / "own")
    work = tmp_path / "own.mining"
    options = [
        "--pairs",
        pairs,
        "--output",
        tmp_path / "out",
        "--corpus",
        corpus,
        "--ranks",
        "1-5",
        "--corpus-vectors",
        tmp_path / "vectors",
        "--queries-vectors",
        work / "queries",
        "--positives-vectors",
        work / "positives",
        "--share",
        "1",
    ]
    main([str(option) for option in options])
    found = ids_of(tmp_path / "out")
    never = {(20, "same text"), (21, "twin"), (22, "T2T_0/22")}
    for n in (20, 21, 22, 40):
        query = vector(f"{60 + n}@p0-{n}@q0-{n}")
        others = [d for d in documents if (n, d["id"]) not in never]
        ranked = sorted(((vector(d["text"]) @ query, d["id"]) for d in others), reverse=True)
        allowed = [id for score, id in ranked if score <= vector(f"p0-{n}") @ query]
        assert found["T2T_0", str(n)][0]["id"] == allowed[0]
    assert read(tmp_path / "out")["T2T_0", "40"]["negatives"][0].text.startswith("80@")

    (work / "queries" / "manifest.json").write_text(
        (work / "queries" / "manifest.json").read_text().replace('"weights": "a"', '"weights": "b"')
    )
    options[3] = tmp_path / "other"
    with pytest.raises(UserError, match="queries and positives have different vectors: weights"):
        main([str(option) for option in options])


@pytest.mark.parametrize(
    ("scores", "positive", "rule", "expected"),
    [
        ([0.9, 0.8, 0.7, 0.6], 0.8, Rule((1, 4), share=1, count=2), [1, 2]),
        ([0.9, 0.8, 0.7, 0.6], 0.8, Rule((1, 4), share=0.95, count=3), [2, 3]),
        ([0.9, 0.8, 0.7, 0.6], 0.8, Rule((1, 4), margin=0.15, share=1, count=3), [3]),
        ([0.9, 0.8, 0.7, 0.6], 2.0, Rule((2, 3), share=1, count=3), [1, 2]),
        ([0.1, -0.2, -0.3], -0.2, Rule((1, 3), share=0.5, count=2), [1, 2]),  # no share below 0
        ([0.9, 0.8, 0.7, 0.6], 0.1, Rule((2, 3), share=None, count=3), [1, 2]),
        ([], 0.5, Rule((1, 9), count=1), []),
    ],
)
def test_the_rule_by_hand(scores, positive, rule, expected):
    found = rule.pick(np.array(scores, np.float64), positive, (0, 0))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--ranks", "0-5"], "'0-5' is not FIRST-LAST"),
        (["--ranks", "7-5"], "'7-5' is not FIRST-LAST"),
        (["--ranks", "1-2", "--negatives", "3"], "no room for 3 negatives"),
        (["--negatives", "4"], "--negatives must be 1 to 3"),
        (["--share", "nan"], "--share must be 0 to 1"),
        (["--margin", "-1"], "--margin must be 0 to 2"),
        (["--seed", "-1"], "--seed must not be negative"),
        (["--corpus-vectors", "x"], "--corpus-vectors requires --corpus"),
        (["--corpus", "none.jsonl"], "none.jsonl: no such file or folder"),
        (["--ranks", "1-9", "--share", "0"], "fewer than 1 negatives, above --max-lost-share 0.5"),
        (["--margin", "x"], "--margin: invalid"),
        (["--queries-vectors", "none"], "none: no finished vectors"),
    ],
)
def test_invalid_options_give_one_line(pairs, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    if "--share" in options and "0" in options:
        options = [*options, "--margin", "1.9"]
    with pytest.raises(UserError, match=message) as error:
        mine(pairs, tmp_path / "out", *options)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_a_changed_model_or_rule_is_named(pairs, tmp_path):
    options = ("--ranks", "1-20")
    mine(pairs, tmp_path / "out", *options)
    with pytest.raises(UserError, match="out: created with ranks = .*choose another --output"):
        mine(pairs, tmp_path / "out", "--ranks", "1-21")
    with pytest.raises(UserError, match="json: created with fingerprint.weights = a, now b"):
        mine(
            pairs, tmp_path / "new", *options, "--work", tmp_path / "out.mining", model=Prober("b")
        )
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and is not mined pairs"):
        mine(pairs, tmp_path / "other", *options)


class ByContent(Prober):
    """A random vector for every content; nothing is decoded."""

    def encode_valid(self, inputs, ids, quarantine, prompt=None, batch_size=32):
        rows = [vector(content_digest(item).hex()) for item in inputs]
        return np.array(rows), np.ones(len(rows), bool)


def test_training_reads_mined_media(world, tmp_path):
    mine(
        world / "pairs",
        tmp_path / "out",
        "--share",
        "none",
        "--negatives",
        2,
        "--ranks",
        "1-9",
        model=ByContent(),
    )
    sources, names = PairSources(tmp_path / "out"), ids_of(tmp_path / "out")
    assert sources.sizes == PairSources(world / "pairs").sizes
    documents = {
        f"{source}/{id}": pair["positive"] for (source, id), pair in read(world / "pairs").items()
    }
    mined = read(tmp_path / "out")
    for key, pair in read(world / "pairs").items():
        again = mined[key]
        assert [again[side] for side in ("query", "positive", "task")] == [
            pair[side] for side in ("query", "positive", "task")
        ]
        assert again["negatives"] == [documents[one["id"]] for one in names[key]]
        assert {kind(item) for item in again["negatives"]} == {kind(pair["positive"])}

    spec = InputSpec(min_pixels=56**2, max_pixels=56**2, max_length=128, window_side=2)
    with Isolated(Preprocessor(Prompt(world / "tokenizer.json", 128), spec), 1) as preprocess:
        buckets = Buckets(shapes=((0, 128), (4, 128)), patches=16, windows=4)
        batch = LoadPairs(sources, preprocess, buckets).map(("T2V_whole", np.arange(3)))
    assert batch["valid"].all(), batch["failures"]
    assert batch["negative0"]["patch_mask"].all() and batch["negative1"]["patch_mask"].all()
    assert (batch["negative0"]["patches"] != batch["positive"]["patches"]).any(axis=(1, 2, 3)).all()


# ---- what is lost counts by item, and is counted again by every command --------------------------


def lost_pairs(folder: Path, unreadable: int) -> Path:
    """60 pairs; the same unreadable text, as of failed downloads, is the positive of some."""
    rows = rows_of(0, 60)
    for n in range(unreadable):
        rows[20 + n]["positive"] = "unreadable"
    path = folder / "T2T_0.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run_import(folder / "pairs", [f"T2T_0={path}"], "pair")
    return folder / "pairs"


@situation(
    "Training data",
    "mining of pairs of which many have the same damaged file",
    "each pair counts and is named; above the allowed share refused, also when repeated",
    since="0.2.0",
)
def test_items_that_are_the_same_count_each(tmp_path):
    pairs = lost_pairs(tmp_path, 12)
    options = ("--ranks", "1-20", "--shard-size", "20")
    for _ in range(2):
        with pytest.raises(UserError, match="12 of 60 items could not be read, more than the"):
            mine(pairs, tmp_path / "out", *options)
        assert not (tmp_path / "out").exists()
    lines = [line for _, line in read_records(tmp_path / "out.mining/quarantine.jsonl")]
    assert [line["id"] for line in lines] == [f"positives/T2T_0/{n}" for n in range(20, 32)]
    assert {line["reason"] for line in lines} == {"bad"}
    mine(pairs, tmp_path / "out", *options, "--max-bad-share", "0.2")
    tallies = json.loads((tmp_path / "out/mining.json").read_text())["sources"]["T2T_0"]
    assert tallies["lost"]["positive unreadable"] == 12
    with pytest.raises(
        UserError, match="out lacks 12 of 60 pairs .positive unreadable., more than"
    ):
        mine(pairs, tmp_path / "out", *options)
    with pytest.raises(UserError, match="fewer than 1 negatives, above --max-lost-share"):
        mine(
            pairs,
            tmp_path / "few",
            "--work",
            tmp_path / "out.mining",
            "--share",
            "0",
            "--max-bad-share",
            "0.2",
            *options,
        )


def test_given_vectors_that_lack_a_shared_item(tmp_path):
    pairs = lost_pairs(tmp_path, 12)
    mine(pairs, tmp_path / "own", "--ranks", "1-20", "--max-bad-share", "0.2")
    work = tmp_path / "own.mining"
    given = ("--queries-vectors", work / "queries", "--positives-vectors", work / "positives")
    with pytest.raises(UserError, match="no vector for 12 of 60 positives, the first 'T2T_0/20'"):
        mine(pairs, tmp_path / "out", "--ranks", "1-20", *given)
    mine(pairs, tmp_path / "out", "--ranks", "1-20", *given, "--max-bad-share", "0.2")
    assert (
        contents(tmp_path / "out")["negatives.jsonl"]
        == (contents(tmp_path / "own")["negatives.jsonl"])
    )


@situation(
    "Training data",
    "vectors given for mining with huge, tiny or non-finite numbers, or lengths a little off one",
    "refused by the true length; up to 0.001 off, compared by cosines",
    since="0.2.0",
)
@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (1e20, "not of unit length: its norm is 1e.20"),
        (1e-25, "its norm is 1e-25"),
        (np.nan, "contains NaN"),
        (np.inf, "contains infinite"),
        (0, "is all zeros"),
        (1.0009, None),
    ],
)
def test_given_vectors_of_any_length(pairs, tmp_path, scale, message):
    options = ("--ranks", "1-20")
    mine(pairs, tmp_path / "own", *options)
    work = tmp_path / "own.mining"
    (path,) = (work / "queries").glob("vectors-*.npy")
    rows = np.load(path)
    with np.errstate(invalid="ignore"):
        rows[3] *= np.float32(scale)
    np.save(path, rows)
    given = ("--queries-vectors", work / "queries", "--positives-vectors", work / "positives")
    if message:
        with pytest.raises(UserError, match=f"queries: vector 3 .*{message}"):
            mine(pairs, tmp_path / "out", *options, *given)
        return
    mine(pairs, tmp_path / "out", *options, *given)
    ours, other = ((tmp_path / name / "negatives.jsonl").read_text() for name in ("own", "out"))
    assert [json.loads(line) for line in ours.splitlines()] == [
        json.loads(line) for line in other.splitlines()
    ]


@situation(
    "Training data",
    "two commands that mine into one output at once",
    "the second is refused and names the process that holds it",
    since="0.2.0",
)
@pytest.mark.parametrize("held", ["out.mining", "work"])
def test_the_output_and_the_work_folder_are_locked(pairs, tmp_path, held):
    with lock_folder(tmp_path / held):
        with pytest.raises(UserError, match=f"{held} is in use by process {os.getpid()} on "):
            mine(pairs, tmp_path / "out", "--work", tmp_path / "work")
    assert not (tmp_path / "out").exists()
