"""Search: equal to brute force, ties in order, filters, merged neighbours."""

import itertools

import numpy as np
import pytest

from gve_jax.errors import UserError
from gve_jax.index.filters import Filters, read_metadata
from gve_jax.index.query import Snapshot, widen
from gve_jax.index.store import create_store

DIM = 16


def write(folder, files: dict[str, np.ndarray], dtype="float32", spans=None, **fields) -> Snapshot:
    """An index of files with these vectors, of windows of 1 s that touch."""
    store = create_store(folder, {"dim": DIM, "dtype": dtype})
    for path, vectors in files.items():
        count = len(vectors)
        moments = np.stack([np.arange(count), np.arange(count) + 1.0], axis=1)
        store.add(
            dict(path=path, kind="video", sha256=path, size=1, mtime_ns=0, duration=float(count))
            | {key: value[path] for key, value in fields.items() if path in value},
            vectors,
            moments if spans is None else spans[path],
        )
    return Snapshot(store)


def unit(rng, count: int) -> np.ndarray:
    rows = rng.normal(size=(count, DIM))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def along(scores) -> np.ndarray:
    """Unit vectors with these cosines to the first axis."""
    rows = np.zeros((len(scores), DIM), np.float32)
    rows[:, 0] = scores
    rows[:, 1] = np.sqrt(1 - np.square(rows[:, 0]))
    return rows


QUERY = np.eye(DIM, dtype=np.float32)[0]


def test_copies_tie_in_the_order_of_paths(tmp_path):
    """Also where a product with a matrix rounds a row differently in another place."""
    rng = np.random.default_rng(0)
    store = create_store(tmp_path, {"dim": 512, "dtype": "float32"})
    copy, *queries = rng.normal(size=(21, 512)).astype(np.float32)
    for number in rng.permutation(7).tolist():
        fields = dict(path=f"{number}.mp4", kind="video", sha256="", size=1, mtime_ns=0)
        store.add(fields | {"duration": 1.0}, copy[None], np.array([[0.0, 1.0]]))
    snapshot = Snapshot(store)
    for query in queries:
        hits = snapshot.hits(snapshot.scores(query), 7, merge=-1)
        assert [hit.path for hit in hits] == [f"{number}.mp4" for number in range(7)]
        assert len({hit.score for hit in hits}) == 1


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("k", [1, 7, 300, 5000])
def test_equals_brute_force(tmp_path, dtype, k):
    rng = np.random.default_rng(k)
    files = {f"{n:03}.mp4": unit(rng, int(rng.integers(1, 30))) for n in rng.permutation(60)}
    snapshot, query = write(tmp_path, files, dtype), unit(rng, 1)[0]
    hits = snapshot.hits(snapshot.scores(query), k, merge=-1)
    expected = [
        (-float(row.astype(dtype).astype(np.float32) @ query), path, float(n))
        for path, rows in files.items()
        for n, row in enumerate(rows)
    ]
    expected.sort()
    assert len(hits) == min(k, len(expected))
    assert [(hit.path, hit.start_sec) for hit in hits] == [row[1:] for row in expected[:k]]
    assert [hit.score for hit in hits] == pytest.approx([-row[0] for row in expected[:k]], abs=1e-6)
    assert [hit.rank for hit in hits] == list(range(1, len(hits) + 1))


def test_every_float16_is_widened_exactly():
    values = np.arange(2**16, dtype=np.uint16).view(np.float16)
    values = values[np.isfinite(values)].reshape(1, -1)
    wide = widen(values, np.empty(values.shape, np.float32))
    assert (wide == values.astype(np.float32)).all()
    assert (np.signbit(wide) == np.signbit(values)).all()


def test_ties_are_in_the_order_of_paths_and_begins(tmp_path):
    files = {path: along([0.5] * 400) for path in ("b", "c", "a")}
    snapshot = write(tmp_path, files)
    hits = snapshot.hits(snapshot.scores(QUERY), 900, merge=-1)
    expected = list(itertools.product("abc", range(400)))[:900]
    assert [(hit.path, hit.start_sec) for hit in hits] == expected


def test_neighbours_that_answer_together_are_one_hit(tmp_path):
    files = {
        "a": along([0.1, 0.8, 0.9, 0.85, 0.1, 0.7, 0.1]),
        "b": along([0.0, 0.6, 0.0, 0.1, 0.1, 0.1, 0.1]),
    }
    snapshot = write(tmp_path, files)
    scores = snapshot.scores(QUERY)

    def spans(**options):
        found = snapshot.hits(scores, 4, **options)
        return [(hit.path, hit.start_sec, hit.end_sec) for hit in found]

    assert spans(merge=-1) == [("a", 2, 3), ("a", 3, 4), ("a", 1, 2), ("a", 5, 6)]
    assert spans(merge=0.2)[:3] == [("a", 1, 4), ("a", 5, 6), ("b", 1, 2)]
    assert spans(merge=0.1)[:3] == [("a", 2, 4), ("a", 1, 2), ("a", 5, 6)]
    best = snapshot.hits(scores, 1, merge=0.2)[0]
    assert (best.best_start_sec, best.best_end_sec) == (2, 3) and best.score == pytest.approx(0.9)


def test_moments_that_a_hit_overlaps_make_no_hit_of_their_own(tmp_path):
    spans = {"a": np.array([[n, n + 4.0] for n in range(8)])}
    files = {"a": along([0.1, 0.5, 0.9, 0.5, 0.2, 0.1, 0.4, 0.1])}
    snapshot = write(tmp_path, files, spans=spans)
    hits = snapshot.hits(snapshot.scores(QUERY), 8, merge=0.0)
    assert [(hit.start_sec, hit.end_sec) for hit in hits] == [(2, 6), (6, 10), (4, 8), (0, 4)]


def test_grouped_by_video(tmp_path):
    files = {"a": along([0.9, 0.1, 0.8, 0.1]), "b": along([0.1, 0.7]), "c": along([0.2])}
    snapshot = write(tmp_path, files)
    hits = snapshot.hits(snapshot.scores(QUERY), 3, group_by="video", merge=0.0)
    assert [(hit.path, hit.start_sec) for hit in hits] == [("a", 0), ("b", 1), ("c", 0)]
    assert [moment[1:] for moment in hits[0].moments] == [(0, 1), (2, 3), (1, 2), (3, 4)]
    assert hits[0].to_json()["moments"][1] == pytest.approx(
        {"score": 0.8, "start_sec": 2, "end_sec": 3}
    )
    with pytest.raises(UserError, match="group_by must be one of"):
        snapshot.hits(snapshot.scores(QUERY), 3, group_by="clip")


METADATA = {
    "cam1/a.mp4": {"year": 2020, "tags": ["dog", "beach"], "date": "2020-05-01", "night": True},
    "cam1/b.mp4": {"year": 2021, "title": "A Dog's day", "date": "2021-05-01T12:00"},
    "cam2/c.mp4": {"tags": ["cat"]},
}


@pytest.mark.parametrize(
    "fields, names",
    [
        ({}, "abcd"),
        ({"path": "cam1/*"}, "ab"),
        ({"path": ["cam1/a*", "cam2/*"]}, "acd"),
        ({"exclude": "*/a.mp4"}, "bcd"),
        ({"kind": "image"}, "d"),
        ({"min_duration": 2, "max_duration": 3}, "bc"),
        ({"after": "2021-01-01"}, "bcd"),
        ({"before": "2020-05-01"}, "a"),
        ({"before": "2020-04-30"}, ""),
        ({"after": "2021-05-01T12:30", "before": "2022-01-01"}, ""),
        ({"where": "year>=2020"}, "ab"),
        ({"where": ["year>=2020", "year<2021"]}, "a"),
        ({"where": "tags=dog"}, "a"),
        ({"where": "tags!=dog"}, "bcd"),
        ({"where": "title~*dog*"}, "b"),
        ({"where": "night=true"}, "a"),
        ({"where": "year=2021", "path": "cam1/*"}, "b"),
    ],
)
def test_filters(tmp_path, fields, names):
    rng = np.random.default_rng(0)
    files = {path: unit(rng, n + 1) for n, path in enumerate([*METADATA, "cam2/d.png"])}
    late = 1_700_000_000 * 10**9  # in 2023
    snapshot = write(
        tmp_path,
        files,
        kind={"cam2/d.png": "image"},
        mtime_ns={"cam2/c.mp4": late, "cam2/d.png": late},
    )
    chosen = Filters(**fields).choose(snapshot.media, METADATA)
    scores = snapshot.scores(files["cam1/b.mp4"][0], chosen)
    hits = snapshot.hits(scores, 100, merge=-1, metadata=METADATA)
    assert sorted({hit.path[5] for hit in hits}) == sorted(names)
    assert len(hits) == sum(len(rows) for path, rows in files.items() if path[5] in names)
    whole = snapshot.scores(files["cam1/b.mp4"][0])
    rows = scores > -np.inf
    assert scores[rows] == pytest.approx(whole[rows], abs=1e-6)
    for hit in hits:
        assert hit.metadata == METADATA.get(hit.path, {})


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"where": "year"}, "condition 'year' must be KEY=VALUE"),
        ({"where": "year>new"}, "'new' must be a number, as 2020 is"),
        ({"after": "yesterday"}, "after 'yesterday' must be a date"),
        ({"kind": "audio"}, "kind must be video or image"),
    ],
)
def test_malformed_filters_are_named(tmp_path, fields, message):
    snapshot = write(tmp_path, {path: along([0.5]) for path in METADATA})
    with pytest.raises(UserError, match=message):
        Filters(**fields).choose(snapshot.media, METADATA)


def test_metadata_is_read_by_path(tmp_path):
    path = tmp_path / "metadata.jsonl"
    path.write_text('{"path": "./a.mp4", "x": 1}\n\n{"path": "b.mp4"}\n')
    assert read_metadata(path) == {"a.mp4": {"x": 1}, "b.mp4": {}}
    path.write_text('{"path": "a.mp4"}\n{"path": "./a.mp4"}\n')
    with pytest.raises(UserError, match="metadata.jsonl:2: path 'a.mp4' occurs twice"):
        read_metadata(path)
    path.write_text('{"file": "a.mp4"}\n')
    with pytest.raises(UserError, match="metadata.jsonl:1: no 'path'"):
        read_metadata(path)
