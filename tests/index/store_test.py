"""Journal and shards: what a killed process left, compaction, damage, other readers."""

import json

import numpy as np
import pytest

from gve_jax.errors import UserError
from gve_jax.index import store as module
from gve_jax.index.query import Snapshot
from gve_jax.index.store import Store, create_store


@pytest.fixture
def store(tmp_path) -> Store:
    return create_store(tmp_path / "index", {"dim": 4, "dtype": "float32"})


def add(store: Store, path: str, count: int = 3, **options) -> np.ndarray:
    """Adds a file whose vectors follow from its path; returns them."""
    vectors = expected(path, count)
    spans = np.stack([np.arange(count), np.arange(count) + 1.0], axis=1)
    fields = dict(path=path, kind="video", sha256=path, size=1, mtime_ns=2, duration=float(count))
    store.add(fields, vectors, spans, **options)
    return vectors


def expected(path: str, count: int) -> np.ndarray:
    rows = np.random.default_rng(list(path.encode())).normal(size=(count, 4))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def check(store: Store, files: dict[str, int]) -> None:
    snapshot = Snapshot(store)
    assert {media.path: media.count for media in snapshot.media} == files
    assert store.paths.keys() == files.keys()
    vectors = snapshot.vectors()
    for number, media in enumerate(snapshot.media):
        rows = slice(*snapshot.edges[number : number + 2])
        assert (vectors[rows] == expected(media.path, media.count)).all()
        assert snapshot.spans[rows].tolist() == [[n, n + 1] for n in range(media.count)]


def test_files_are_found_again(store):
    add(store, "a"), add(store, "b", 5)
    store.commit([{"change": 0, "fields": {"path": "c"}}, {"remove": 1}])
    again = Store(store.folder)
    assert [media.path for media in again.media.values()] == ["c"] and again.removed_rows == 5
    assert add(Store(store.folder, write=True), "d") is not None
    assert [media.id for media in Store(store.folder).media.values()] == [0, 2]


def test_moments_are_stored_in_the_order_of_their_begins(store):
    vectors, spans = expected("a", 3), np.array([[4.0, 8], [0, 4], [2, 6]])
    fields = dict(path="a", kind="video", sha256="", size=1, mtime_ns=2, duration=8.0)
    store.add(fields, vectors, spans)
    snapshot = Snapshot(Store(store.folder))
    assert snapshot.spans[:, 0].tolist() == [0, 2, 4]
    assert (snapshot.vectors() == vectors[[1, 2, 0]]).all()


def test_a_swap_of_two_paths(store):
    add(store, "a"), add(store, "b")
    store.commit([{"change": 0, "fields": {"path": "b"}}, {"change": 1, "fields": {"path": "a"}}])
    for opened in (store, Store(store.folder)):
        assert opened.paths == {"b": 0, "a": 1}


@pytest.mark.parametrize("cut", range(0, 400, 7))
def test_killed_at_any_byte_of_the_journal(tmp_path, store, cut):
    for path in "abc":
        add(store, path)
    journal = store.folder / "journal.jsonl"
    lines = journal.read_bytes()
    journal.write_bytes(lines[: min(cut, len(lines))])
    complete = "abc"[: lines[:cut].count(b"\n")]
    check(Store(store.folder), dict.fromkeys(complete, 3))  # a reader changes nothing
    writer = Store(store.folder, write=True)
    add(writer, "d", 2)
    check(Store(store.folder), dict.fromkeys(complete, 3) | {"d": 2})
    size = (store.folder / "vectors-00000.bin").stat().st_size
    assert size == (3 * len(complete) + 2) * 16


def test_shards_have_a_largest_size(store, monkeypatch):
    monkeypatch.setattr(module, "SHARD_BYTES", 100)
    for path in "abcdef":
        add(store, path)
    assert len(list(store.folder.glob("vectors-*.bin"))) == 3
    check(Store(store.folder), dict.fromkeys("abcdef", 3))


def test_removed_rows_are_dropped_once_they_are_most(store, monkeypatch):
    monkeypatch.setattr(module, "COMPACT_ROWS", 4)
    monkeypatch.setattr(module, "SHARD_BYTES", 200)
    for path in "abcdef":
        add(store, path)
    reader = Snapshot(Store(store.folder))
    before = reader.vectors()
    store.commit([{"unreadable": dict(path="x", reason="r", sha256="", size=1, mtime_ns=1)}])
    store.commit([{"remove": 0}])
    assert not store.compact()
    store.commit([{"remove": number} for number in (1, 3, 5)])
    assert store.compact() and store.removed_rows == 0
    for opened in (store, Store(store.folder), Store(store.folder, write=True)):
        check(opened, dict.fromkeys("ce", 3))
        assert opened.unreadable["x"].reason == "r"
    files = sorted(path.name for path in store.folder.glob("*.bin"))
    assert files == ["moments-00002.bin", "vectors-00002.bin"]
    assert (reader.vectors() == before).all()  # it was opened before
    add(store, "g")
    check(Store(store.folder), dict.fromkeys("ceg", 3))
    assert store.media[store.paths["g"]].id == 6


def test_killed_while_it_is_compacted(store, monkeypatch):
    monkeypatch.setattr(module, "COMPACT_ROWS", 1)

    def stop(path, write):
        raise KeyboardInterrupt

    add(store, "a"), add(store, "b"), add(store, "c")
    store.commit([{"remove": 0}, {"remove": 1}])
    monkeypatch.setattr(module, "atomic_write", stop)
    with pytest.raises(KeyboardInterrupt):
        store.compact()
    check(Store(store.folder, write=True), {"c": 3})
    assert len(list(store.folder.glob("*.bin"))) == 2


def test_another_process_sees_when_it_has_changed(store):
    reader = Store(store.folder)
    assert not reader.is_stale()
    add(store, "a")
    assert reader.is_stale() and not store.is_stale()
    with open(store.folder / "journal.jsonl", "ab") as file:
        file.write(b'[{"add"')
    assert not store.is_stale()  # half a line


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("index.json", b"{", "index.json: damaged"),
        ("index.json", b'{"format": "x"}', "format 'x', not 'gve_jax index 1'"),
        ("journal.jsonl", b"nonsense\n", "journal.jsonl:1: damaged"),
        ("journal.jsonl", b'[{"remove": 7}]\n', "journal.jsonl:1: damaged"),
        ("journal.jsonl", b'[{"destroy": 7}]\n', "journal.jsonl:1: damaged"),
        ("vectors-00000.bin", b"short", "vectors-00000.bin: damaged or missing"),
    ],
)
def test_damage_is_named(store, name, content, message):
    add(store, "a")
    (store.folder / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        Snapshot(Store(store.folder))


def test_opening_does_not_read_vectors(store):
    add(store, "a")
    (store.folder / "vectors-00000.bin").write_bytes(b"")
    Store(store.folder)
    with pytest.raises(UserError, match="not an index"):
        Store(store.folder / "other")
    assert json.loads((store.folder / "index.json").read_text())["dim"] == 4
