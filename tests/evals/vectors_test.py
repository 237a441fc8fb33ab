"""Imported vectors: every format scores as our vectors do, and invalid ones are refused."""

import json

import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evals.uvrb.__main__ import main
from gve_jax.errors import UserError
from tests.evals.evaluate_test import run
from tests.evals.small_uvrb import evaluate, make_benchmark, score_vectors, write_set
from tests.evals.trec_test import check_every_query
from tests.situations import situation

SETS = ("CRB-T", "MSRVTT-I2V")


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    return make_benchmark(tmp_path_factory.mktemp("benchmark"), SETS)


@pytest.fixture(scope="module")
def sides(benchmark, tmp_path_factory):
    """{SET/side: (ids, vectors)} of the colour encoder in random order, and its results."""
    out = tmp_path_factory.mktemp("ours")
    results, _ = run(benchmark, out, "--datasets", ",".join(SETS))
    folder, sides = out / "embeddings/model", {}
    rows = {}
    for path in folder.glob("vectors-*.json"):
        keys = json.loads(path.read_text())["keys"]
        rows |= dict(zip(keys, np.load(path.with_suffix(".npy")), strict=True))
    for path in [folder / f"{name}.{side}.json" for name in SETS for side in ("queries", "corpus")]:
        record = json.loads(path.read_text())
        order = np.random.default_rng(0).permutation(len(record["ids"]))
        vectors = np.stack([rows[key] for key in record["keys"]])
        sides[path.stem.replace(".", "/")] = ([record["ids"][n] for n in order], vectors[order])
    return sides, results


def npy_json(path, ids, vectors):
    np.save(path.with_name(path.name + ".npy"), vectors)
    path.with_name(path.name + ".ids.json").write_text(json.dumps(ids))


def npy_txt(path, ids, vectors):
    np.save(path.with_name(path.name + ".npy"), vectors)
    path.with_name(path.name + ".ids.txt").write_text("".join(f"{id}\n" for id in ids))


def parquet(path, ids, vectors):
    table = pa.table({"id": ids, "vector": list(vectors)})
    pq.write_table(table, path.with_name(path.name + ".parquet"), row_group_size=2)


def fixed_parquet(path, ids, vectors):
    flat = pa.array(vectors.ravel())
    column = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    pq.write_table(pa.table({"vector": column, "id": ids}), path.with_name(path.name + ".parquet"))


def save(folder, sides, write, change=lambda name, ids, vectors: (ids, vectors)):
    for name, (ids, vectors) in sides.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, *change(name, list(ids), vectors.copy()))
    return folder


def score(benchmark, folder, output, *options):
    options = "--embeddings", folder, "--datasets", ",".join(SETS), *options
    return evaluate(benchmark, output, *options)


def scores(results):
    return {
        name: {key: value for key, value in one.items() if key not in ("seconds", "cost")}
        for name, one in results["datasets"].items()
    }


@pytest.mark.parametrize("write", [npy_json, npy_txt, parquet, fixed_parquet])
@situation(
    "Evaluation",
    "vectors of another embedder as .npy with ids, or Parquet, in any order",
    "scored as our vectors are",
    since="0.1.0",
)
def test_every_format_scores_as_our_vectors(benchmark, sides, tmp_path, write):
    vectors, expected = sides
    results = score(benchmark, save(tmp_path / "theirs", vectors, write), tmp_path / "out")
    assert scores(results) == scores(expected)
    assert results["model"] == "theirs" and not results["fingerprint"]["normalized"]


def test_half_precision_and_other_lengths(benchmark, sides, tmp_path):
    def rounded(results):
        return scores(results)["CRB-T"]  # the other set has exact ties, which rounding breaks

    vectors, expected = sides[0], scores(sides[1])
    half = save(tmp_path / "half", vectors, npy_json, lambda _, ids, v: (ids, v.astype("float16")))
    assert rounded(score(benchmark, half, tmp_path / "a")) == expected["CRB-T"]
    far = save(
        tmp_path / "farther", vectors, npy_txt, lambda name, ids, v: (ids, v.astype(float) * 1e300)
    )
    assert rounded(score(benchmark, far, tmp_path / "c", "--normalize")) == expected["CRB-T"]
    far = save(tmp_path / "far", vectors, parquet, lambda name, ids, v: (ids, v * np.float32(1e30)))
    with pytest.raises(UserError, match="queries: the vector of 'q.' is of length 1e\\+30, not 1"):
        score(benchmark, far, tmp_path / "b")
    results = score(benchmark, far, tmp_path / "b", "--normalize", "--model", "their-model")
    assert rounded(results) == expected["CRB-T"]
    assert results["model"] == "their-model" and results["fingerprint"]["normalized"]


def test_media_may_be_missing(benchmark, sides, tmp_path):
    vectors, expected = sides
    bare = tmp_path / "bare"
    for name in SETS:
        (bare / "UVRB" / name / "jsonl").mkdir(parents=True)
        for path in (benchmark / "UVRB" / name / "jsonl").iterdir():
            (bare / "UVRB" / name / "jsonl" / path.name).write_bytes(path.read_bytes())
    folder = save(tmp_path / "theirs", vectors, npy_json)
    assert scores(score(bare, folder, tmp_path / "out")) == scores(expected)


@situation(
    "Evaluation",
    "vectors of another embedder that lack some documents",
    "each counts as unreadable; refused above the allowed share",
    since="0.1.0",
)
def test_missing_vectors_count_as_unreadable(benchmark, sides, tmp_path):
    def drop(name, ids, vectors):
        if name != "CRB-T/corpus":
            return ids, vectors
        keep = [index for index, id in enumerate(ids) if id != "v0"]
        return [ids[index] for index in keep], vectors[keep]

    folder = save(tmp_path / "theirs", sides[0], npy_json, drop)
    with pytest.raises(UserError, match="1 of 20 items could not be read, more than the allowed"):
        score(benchmark, folder, tmp_path / "out", "--max-bad-share", "0.01")
    results = score(benchmark, folder, tmp_path / "out")
    record = results["datasets"]["CRB-T"]
    assert record["quarantined"]["documents"] == 1
    assert record["score"] == pytest.approx(4 / 5)
    line = json.loads((tmp_path / "out/quarantine.jsonl").read_text())
    assert (line["id"], line["reason"]) == ("CRB-T.corpus/v0", "no vector")


def one(value):
    def change(name, ids, vectors):
        if name == "CRB-T/corpus":
            vectors[ids.index("v2")] = value
        return ids, vectors

    return change


def ids_of(change):
    return lambda name, ids, v: (change(ids), v) if name == "CRB-T/corpus" else (ids, v)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (one(np.nan), "CRB-T/corpus: the vector of 'v2' has NaN or infinite numbers"),
        (one(np.inf), "the vector of 'v2' has NaN or infinite numbers"),
        (one(0), "the vector of 'v2' is all zeros and has no direction"),
        (one(0.5), r"the vector of 'v2' is of length 1.225, not 1; --normalize divides by it"),
        (ids_of(lambda ids: ["v0", *ids[1:]] if ids[0] != "v0" else [*ids[:-1], "v0"]), "twice"),
        (ids_of(lambda ids: ["other", *ids[1:]]), "id 'other' is not one of the set's"),
        (ids_of(lambda ids: ids[1:]), "5 vectors, but 4 ids"),
        (ids_of(lambda ids: [[1], *ids[1:]]), r"\[1\] is not an id"),
        (lambda name, ids, v: (ids, np.rint(v).astype(int)), r"int64 \[5, 6\] is not floating"),
        (lambda name, ids, v: (ids, v[:, None]), r"float32 \[5, 1, 6\] is not floating point \[N"),
        (lambda name, ids, v: (ids, v.astype(object)), "not an .npy file of numbers"),
    ],
)
@situation(
    "Evaluation",
    "vectors with NaN, infinity, zeros, other lengths, a duplicate or an unknown id",
    "refused; the line names the file and the id",
    since="0.1.0",
)
def test_refuses_invalid_vectors(benchmark, sides, tmp_path, change, message):
    folder = save(tmp_path / "theirs", sides[0], npy_json, change)
    with pytest.raises(UserError, match=message):
        score(benchmark, folder, tmp_path / "out")
    assert not (tmp_path / "out/results.json").exists()


def test_refuses_different_widths(benchmark, sides, tmp_path):
    def narrow(name, ids, vectors):
        return ids, vectors[:, :5] if "queries" in name else vectors

    folder = save(tmp_path / "theirs", sides[0], npy_json, narrow)
    with pytest.raises(UserError, match="5.*6"):
        score(benchmark, folder, tmp_path / "out", "--normalize")


def damaged(path, what):
    files = {
        "no file": lambda: path.with_name("corpus.npy").unlink(),
        "no ids": lambda: path.with_name("corpus.ids.json").unlink(),
        "both": lambda: path.with_name("corpus.parquet").write_bytes(b""),
        "cut": lambda: path.with_name("corpus.npy").write_bytes(b"\x93NUMPY"),
        "ids": lambda: path.with_name("corpus.ids.json").write_text("{"),
    }
    files[what]()


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no file", "CRB-T/corpus.npy and .*corpus.parquet are missing"),
        ("no ids", "missing file: .*corpus.ids.json or corpus.ids.txt"),
        ("both", "both exist; keep one"),
        ("cut", "corpus.npy: not an .npy file of numbers"),
        ("ids", "corpus.ids.json: not valid JSON"),
    ],
)
def test_names_invalid_files(benchmark, sides, tmp_path, what, message):
    folder = save(tmp_path / "theirs", sides[0], npy_json)
    damaged(folder / "CRB-T/corpus", what)
    with pytest.raises(UserError, match=message):
        score(benchmark, folder, tmp_path / "out")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"id": ["v0"], "vectors": [[1.0]]}, "no column 'vector'"),
        ({"id": ["v0"], "vector": [1.0]}, "column 'vector' must be a list of numbers, not double"),
        ({"id": ["v0", "v1"], "vector": [[1.0], [0.0, 1.0]]}, "the vectors differ in length"),
        ({"id": ["v0", "v1"], "vector": [[1.0], None]}, "a vector, or a number in one, is null"),
        ({"id": ["v0"], "vector": [["a"]]}, "is not floating point"),
    ],
)
def test_names_invalid_tables(benchmark, sides, tmp_path, table, message):
    folder = save(tmp_path / "theirs", sides[0], parquet)
    pq.write_table(pa.table(table), folder / "CRB-T/corpus.parquet")
    with pytest.raises(UserError, match=message):
        score(benchmark, folder, tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--embeddings", "x", "--control"], "--control needs a model, not --embeddings"),
        (["--embeddings", "x", "--baseline", "m"], "--baseline needs a model"),
        (["--model", "x", "--normalize"], "--normalize is for --embeddings"),
        (["--embeddings", "nowhere"], "--embeddings nowhere: no such folder"),
        ([], "--model, --server, --mteb or --embeddings is required"),
    ],
)
def test_refuses_conflicting_arguments(benchmark, tmp_path, arguments, message):
    given = ["--data", str(benchmark), "--output", str(tmp_path / "out"), "--datasets", "CRB-T"]
    with pytest.raises(UserError, match=message):
        main([*given, *arguments])


def test_scores_vectors_added_after_a_refusal(benchmark, sides, tmp_path):
    """Earlier missing vectors do not count, nor those of another set."""

    def drop(name, ids, vectors):
        return (ids[1:], vectors[1:]) if name == "CRB-T/corpus" else (ids, vectors)

    sides, results = sides
    folder = save(tmp_path / "v", sides, npy_json, drop)
    out = tmp_path / "out"
    with pytest.raises(UserError, match="1 of 20 items could not be read"):
        score(benchmark, folder, out, "--max-bad-share", "0")
    other = score(benchmark, folder, out, "--max-bad-share", "0", "--datasets", "MSRVTT-I2V")
    assert other["quarantined"] == 0
    save(folder, sides, npy_json)
    again = score(benchmark, folder, out, "--max-bad-share", "0")
    assert again["quarantined"] == 0 and scores(again) == scores(results)
    assert (out / "quarantine.jsonl").read_text() == ""


# ---- extreme numbers: metrics by numpy, and by trec_eval on the run file ------------------------


def brute_force(queries, corpus, positives, ids):
    """Reciprocal ranks by cosines in extended precision, ties by id."""
    wide = np.longdouble
    unit = [
        rows.astype(wide) / np.sqrt((rows.astype(wide) ** 2).sum(axis=1, keepdims=True))
        for rows in (queries, corpus)
    ]
    cosines = unit[0] @ unit[1].T
    found = []
    for row, indices in zip(cosines, positives, strict=True):
        order = sorted(range(len(ids)), key=lambda d, r=row: (r[d], ids[d]), reverse=True)
        found.append(1 / (1 + min(order.index(d) for d in indices)))
    return found


def world(width=16):
    """Queries near the mean of their positives; 40 in 60 documents."""
    rng = np.random.default_rng(0)
    corpus = rng.normal(size=(60, width))
    corpus /= np.linalg.norm(corpus, axis=1, keepdims=True)
    positives = [rng.choice(60, rng.integers(1, 14), replace=False).tolist() for _ in range(40)]
    queries = np.stack([corpus[indices].mean(axis=0) for indices in positives])
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    queries += 0.25 * rng.normal(size=queries.shape)
    return queries / np.linalg.norm(queries, axis=1, keepdims=True), corpus, positives


def lengths(rows):
    return rows * np.where(np.arange(len(rows)) % 2, 1.0009, 0.9991)[:, None]


NORMALIZE = ("--normalize",)
FORMATS = {
    "float64": (lambda rows: rows, ()),
    "big endian": (lambda rows: rows.astype(">f4"), ()),
    "column by column": (lambda rows: np.asfortranarray(rows.astype("f4")), ()),
    "long double": (lambda rows: rows.astype(np.longdouble), ()),
    "float16": (lambda rows: rows.astype("f2"), ()),
    "lengths of 1 +- 0.0009": (lengths, ()),
    "lengths of 1 +- 0.0009, float32": (lambda rows: lengths(rows).astype("f4"), ()),
    "1e20": (lambda rows: (rows * 1e20).astype("f4"), NORMALIZE),
    "1e-25": (lambda rows: (rows * 1e-25).astype("f4"), NORMALIZE),
    "1e-42, subnormal": (lambda rows: (rows * 1e-42).astype("f4"), NORMALIZE),
    "1e300": (lambda rows: rows * 1e300, NORMALIZE),
    "1e-300": (lambda rows: rows * 1e-300, NORMALIZE),
    "many lengths": (lambda rows: rows * 10.0 ** (np.arange(len(rows))[:, None] - 20), NORMALIZE),
}


@situation(
    "Evaluation",
    "vectors of another embedder as float16, float64, big-endian, huge or tiny numbers",
    "scored by their cosines, or refused with a remedy",
    since="0.1.0",
)
@pytest.mark.parametrize("form", FORMATS)
def test_ranks_numbers_of_any_size_by_cosines(tmp_path, form):
    queries, corpus, positives = world()
    convert, options = FORMATS[form]
    queries, corpus = convert(queries), convert(corpus)
    ids, names = [f"d{n}" for n in range(60)], [f"q{n}" for n in range(40)]
    write_set(tmp_path, "MSRVTT", names, [[ids[d] for d in indices] for indices in positives], ids)
    if options:
        with pytest.raises(UserError, match="is of length .*, not 1; --normalize divides by it"):
            score_vectors(tmp_path, "MSRVTT", names, queries, ids, corpus)
    options = (*options, "--trec", "60")
    _, out = score_vectors(tmp_path, "MSRVTT", names, queries, ids, corpus, *options)
    with np.load(out / "per_query/MSRVTT.npz") as file:
        assert file["mrr"] == pytest.approx(brute_force(queries, corpus, positives, ids))
    assert check_every_query(out, "MSRVTT") == 40


@situation(
    "Evaluation",
    "vectors whose lengths are a little off one (1.0009)",
    "ranked by cosines, not by products",
    since="0.2.0",
)
def test_does_not_prefer_longer_vectors(tmp_path):
    """Two documents whose cosines differ by less than their lengths."""
    query = np.array([[1.0, 0, 0]])
    corpus = np.array([[0.9, np.sqrt(0.19), 0], [0.8999, np.sqrt(1 - 0.8999**2), 0]])
    corpus *= [[0.9992], [1.0008]]
    write_set(tmp_path, "MSRVTT", ["q"], [["a"]], ["a", "b"])
    assert query @ corpus[0] < query @ corpus[1]
    results, _ = score_vectors(tmp_path, "MSRVTT", ["q"], query, ["a", "b"], corpus)
    assert results["datasets"]["MSRVTT"]["score"] == 1


def test_names_bfloat16(benchmark, sides, tmp_path):
    folder = save(
        tmp_path / "v", sides[0], npy_json, lambda name, ids, v: (ids, v.astype(ml_dtypes.bfloat16))
    )
    with pytest.raises(UserError, match="not floating point .N, D.; .npy files have no bfloat16"):
        score(benchmark, folder, tmp_path / "out")
