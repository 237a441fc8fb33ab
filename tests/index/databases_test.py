"""An index in LanceDB and in Qdrant: the same answers, at the cost of what has changed."""

import dataclasses
import os

import numpy as np
import pyarrow.parquet
import pytest
from qdrant_client import models

from gve_jax.errors import UserError
from gve_jax.index import Index, databases
from gve_jax.index.databases import open_database
from tests.index.fake import FIXED, SANDBOX, Model
from tests.index.qdrant_server import serve
from tests.situations import situation

MEDIA = {"a/one.mp4": 7, "b's.mp4": 12, "c.jpg": 1, "d.mp4": 40}
KINDS = ("lancedb", "qdrant")


@pytest.fixture(params=[*KINDS, "server"])
def place(request, tmp_path):
    """A store, as `open_database` takes it."""
    if request.param != "server":
        yield f"{request.param}={tmp_path / 'db'}"
        return
    with serve() as (url, _):
        yield f"qdrant={url}"


def fill(index: Index, files: dict[str, int], seed: int = 0, contents: str = "") -> None:
    """Adds files with random vectors of a few directions: some scores are equal."""
    rng = np.random.default_rng(seed)
    pool = rng.normal(size=(40, 8)).astype(np.float32)
    pool /= np.linalg.norm(pool, axis=1, keepdims=True)
    with index._writing() as store:
        for path, count in files.items():
            image = path.endswith(".jpg")
            fields = {
                "path": path,
                "kind": "image" if image else "video",
                "sha256": contents + path,
            }
            fields |= {"size": 1, "mtime_ns": 10**18, "duration": 0.0 if image else count + 1.0}
            begins = np.arange(count, dtype=float)
            moments = np.stack([begins, begins + 2], 1) if not image else np.zeros((1, 2))
            store.add(fields, pool[rng.integers(0, 40, count)], moments)


@pytest.fixture
def index(tmp_path):
    (tmp_path / "media").mkdir()
    (tmp_path / "media" / "metadata.jsonl").write_text('{"path": "d.mp4", "camera": "north"}\n')
    index = Index.create(tmp_path / "index", tmp_path / "media", Model(), sandbox=SANDBOX)
    index._copy_metadata(None)
    fill(index, MEDIA)
    return index


def ask(index: Index, store, seed: int, **options):
    vector = np.random.default_rng(seed).normal(size=8).astype(np.float32)
    hits = index.search(vector=vector / np.linalg.norm(vector), store=store, **options)
    scores = np.array([hit.score for hit in hits])
    inner = [[moment[0] for moment in hit.moments] for hit in hits]
    plain = [
        dataclasses.replace(hit, score=0.0, moments=tuple(moment[1:] for moment in hit.moments))
        for hit in hits
    ]
    return plain, scores, inner


@situation(
    "Search",
    "a query with --store",
    "the answers of the index itself, with scores of the database",
    since="0.3.0",
)
@pytest.mark.filterwarnings("ignore:Local mode")  # of the server's stand-in
def test_answers_are_those_of_the_index(index, place, monkeypatch):
    monkeypatch.setattr(databases, "ROWS", 16)
    monkeypatch.setattr(databases, "BEST", 4)  # more are asked for
    with open_database(place) as store:
        assert index.write_to(store) == (60, 0)
        questions = [
            {},
            {"k": 1, "merge": -1.0},
            {"k": 2, "merge": 0.9},
            {"k": 500},
            {"k": 20, "merge": 0.0},
            {"group_by": "video"},
            {"group_by": "video", "merge": 0.4},
            {"path": "*'s.mp4", "k": 4},
            {"exclude": "d.mp4"},
            {"where": "camera=north", "k": 2},
            {"kind": "image"},
            {"path": "nothing"},
        ]
        cases = [
            (seed, options, most) for seed, options in enumerate(questions) for most in (0, 60)
        ]
        for seed, options, most in cases:
            monkeypatch.setattr(databases, "WHOLE", most)
            found, scores, inner = ask(index, store, seed, **options)
            wanted, exact, within = ask(index, None, seed, **options)
            assert found == wanted, options
            np.testing.assert_allclose(scores, exact, atol=1e-6)
            for one, other in zip(inner, within, strict=True):
                np.testing.assert_allclose(one, other, atol=1e-6)


@situation(
    "Search",
    "`index --store` repeated after changes, or after a kill",
    "only what differs is written; nothing is there twice",
    since="0.3.0",
)
@pytest.mark.filterwarnings("ignore:Local mode")
def test_only_changes_are_written(index, place):
    with open_database(f"{place}#clips") as store:
        index.write_to(store)
        assert index.write_to(store) == (0, 0)
        fill(index, {"new.mp4": 5}, seed=1)
        index.remove("b's.mp4")
        moved = index.find("a/one.mp4")
        with index._writing() as own:
            own.commit([{"change": moved.id, "fields": {"path": "moved.mp4"}}])
        assert index.write_to(store) == (5 + 7, 12 + 7)
        assert ask(index, store, 0, k=500)[0] == ask(index, None, 0, k=500)[0]
        # A process that was killed while it wrote a file: some of its moments are missing.
        snapshot, _ = index._opened()
        number = [media.path for media in snapshot.media].index("d.mp4")
        rows = databases.rows_of(snapshot, [number], index.origin)
        store.remove([databases.version_of(snapshot.media[number])])
        part = {name: values[:10] for name, values in rows.columns.items()}
        store.add(databases.Rows(rows.key[:10], part, rows.vector[:10]))
        with pytest.raises(UserError, match="lacks moments of the index; write them with"):
            ask(index, store, 0, k=500)
        assert index.write_to(store) == (40, 10)
        assert sum(store.versions().values()) == len(index) == 53


@situation(
    "Search",
    "a database with vectors of another model, or not of this index",
    "refused in one line with the remedy",
    since="0.3.0",
)
@pytest.mark.parametrize("kind", KINDS)
def test_stores_that_do_not_fit_are_refused(index, tmp_path, kind):
    with open_database(f"{kind}={tmp_path / 'db'}") as store:
        with pytest.raises(UserError, match="is empty; write them with"):
            ask(index, store, 0)
        index.write_to(store)
        (tmp_path / "other").mkdir()
        other = Index.create(tmp_path / "i2", tmp_path / "other", Model("b"), sandbox=SANDBOX)
        fill(other, {"x.mp4": 3})
        for use in (other.write_to, lambda store: ask(other, store, 0)):
            with pytest.raises(UserError, match="vectors of another model .*; choose another"):
                use(store)
        # The same model with other windows: writing would remove the moments of the first.
        windows = Index.create(
            tmp_path / "i3", index.media_folder, Model(), windows=FIXED, sandbox=SANDBOX
        )
        fill(windows, {"x.mp4": 3})
        for use in (windows.write_to, lambda store: ask(windows, store, 0)):
            with pytest.raises(UserError, match="has moments of another index .*; choose another"):
                use(store)
        assert sum(store.versions().values()) == 60
        fill(index, {"x.mp4": 1})
        index.remove("d.mp4")
        with pytest.raises(UserError, match="has moments that the index has not; write them with"):
            ask(index, store, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_that_was_made_again_is_written_again(index, tmp_path, kind):
    # The numbers of its files begin again: only their contents differ.
    again = Index.create(tmp_path / "again", index.media_folder, Model(), sandbox=SANDBOX)
    fill(again, {"a/one.mp4": 7}, seed=1, contents="other")
    index.remove("b's.mp4")
    with open_database(f"{kind}={tmp_path / 'db'}") as store:
        assert index.write_to(store) == (48, 0)
        assert again.write_to(store) == (7, 48)
        assert ask(again, store, 0)[0] == ask(again, None, 0)[0]


def test_points_of_others_are_left(index):
    vector = np.eye(8)[0].tolist()
    with serve() as (url, _), open_database(f"qdrant={url}") as store:
        index.write_to(store)
        id = "6ba7b810-9dad-11d1-80b4-00c04fd430c8"
        store._client.upsert("moments", models.Batch(ids=[id], vectors=[vector], payloads=[{}]))
        with pytest.raises(UserError, match=f"points of another program, such as {id}"):
            index.write_to(store)
        with pytest.raises(UserError, match=f"points of another program, such as {id}"):
            index.search(vector=np.array(vector, np.float32), store=store, k=500)


@pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection")
def test_the_key_of_a_server_is_sent(index, monkeypatch):
    monkeypatch.setenv("QDRANT_API_KEY", "secret")
    with serve() as (url, seen), open_database(f"qdrant={url}") as store:
        index.write_to(store)
        assert {key for *_, key in seen} == {"secret"}
        assert ("PUT", "index", "secret") in seen


def test_a_collection_that_the_user_made_gets_its_indexes(index):
    with serve() as (url, seen):
        with open_database(f"qdrant={url}#mine") as store:
            size = models.VectorParams(size=8, distance=models.Distance.DOT)
            store._client.create_collection("mine", size, shard_number=2)
        with open_database(f"qdrant={url}#mine") as store:
            index.write_to(store)
            assert [request[:2] for request in seen].count(("PUT", "")) == 1
            assert [request[:2] for request in seen].count(("PUT", "index")) == 2
        with open_database(f"qdrant={url}#euclid") as store:
            size = models.VectorParams(size=8, distance=models.Distance.EUCLID)
            store._client.create_collection("euclid", size)
        with open_database(f"qdrant={url}#euclid") as store:
            with pytest.raises(UserError, match="of the distance Dot; choose another"):
                index.write_to(store)


def test_names_of_stores():
    for given in ("lancedb", "qdrant=", "milvus=x", "=x"):
        with pytest.raises(UserError, match="must be lancedb=FOLDER, qdrant=FOLDER or qdrant=http"):
            open_database(given)
    with pytest.raises(UserError, match="did you mean qdrant=http://localhost:6333"):
        open_database("qdrant=localhost:6333")
    with pytest.raises(UserError, match=r"^qdrant=http://127.0.0.1:9#moments: .*refused"):
        open_database("qdrant=http://127.0.0.1:9")


def test_a_folder_in_use_and_a_full_place(tmp_path):
    with open_database(f"qdrant={tmp_path / 'db'}"):
        with pytest.raises(UserError, match="already accessed"):
            open_database(f"qdrant={tmp_path / 'db'}")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="lancedb=.*file"):
        open_database(f"lancedb={tmp_path / 'file'}")


@situation(
    "Search",
    "`search export`, the output exists",
    "refused; otherwise the file is complete or absent",
    since="0.3.0",
)
@pytest.mark.parametrize("suffix", ["parquet", "lance"])
def test_export(index, tmp_path, suffix, monkeypatch):
    monkeypatch.setattr(databases, "ROWS", 16)
    output = tmp_path / f"moments.{suffix}"
    assert index.export(output) == 60
    if suffix == "parquet":
        table = pyarrow.parquet.read_table(output)
        assert pyarrow.parquet.ParquetFile(output).num_row_groups == 2
    else:
        import lancedb

        table = lancedb.connect(tmp_path).open_table("moments").to_arrow()
    ids, vectors = index.load_vectors()
    assert table["id"].to_pylist() == ids
    np.testing.assert_array_equal(np.stack(table["vector"].to_numpy()), vectors)
    rows = table.select(["media", "kind", "start_sec", "end_sec", "metadata"]).to_pylist()
    assert rows[8] == {
        "media": "b's.mp4", "kind": "video", "start_sec": 1.0, "end_sec": 3.0, "metadata": None,
    }  # fmt: skip
    assert rows[-1]["metadata"] == '{"camera": "north"}'
    assert set(table["fingerprint"].to_pylist()) == {index.fingerprint}
    assert b'"weights": "a"' in table.schema.metadata[b"gve_jax"]
    with pytest.raises(UserError, match="exists; choose another --output"):
        index.export(output)
    assert sorted(os.listdir(tmp_path)) == sorted(["index", "media", output.name])
    with pytest.raises(UserError, match=r"must end with .parquet or .lance"):
        index.export(tmp_path / "moments.csv")


def test_half_precision_is_kept(tmp_path):
    (tmp_path / "media").mkdir()
    index = Index.create(
        tmp_path / "index", tmp_path / "media", Model(), dtype="float16", sandbox=SANDBOX
    )
    fill(index, MEDIA)
    index.export(tmp_path / "moments.parquet")
    vector = pyarrow.parquet.read_table(tmp_path / "moments.parquet")["vector"]
    assert str(vector.type.value_type) == "halffloat"
    for kind in KINDS:
        with open_database(f"{kind}={tmp_path / kind}") as store:
            index.write_to(store)
            found, scores, _ = ask(index, store, 0, k=50)
            wanted, exact, _ = ask(index, None, 0, k=50)
            assert found == wanted
            np.testing.assert_allclose(scores, exact, atol=1e-6)
