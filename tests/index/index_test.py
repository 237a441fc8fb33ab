"""An index follows its folder: new, changed, renamed, touched and damaged files; kills."""

import multiprocessing
import os
import random
import shutil
import signal
from pathlib import Path

import pytest
from PIL import Image

from gve_jax.errors import UserError
from gve_jax.index import Index
from gve_jax.index import frames as frames_module
from gve_jax.index.windows import Windows
from gve_jax.storage.locks import lock_for_process
from tests.index.fake import SANDBOX, Model, contents, equal, fill, make_index, movie
from tests.media.files import numbered, picture
from tests.situations import situation


@pytest.fixture
def media(tmp_path) -> Path:
    """Three videos of 4 s, of three windows each, an image and what is passed over."""
    root = tmp_path / "media"
    (root / "sub").mkdir(parents=True)
    (root / "a.mp4").write_bytes(movie(0))
    (root / "b.mkv").write_bytes(movie(5, container="matroska"))
    (root / "sub" / "c.mp4").write_bytes(movie(9))
    (root / "p.png").write_bytes(picture(Image.fromarray(numbered(8)[7])))
    (root / "notes.txt").write_bytes(b"no medium")
    (root / ".hidden.mp4").write_bytes(movie(0))
    return root


@pytest.fixture
def index(tmp_path, media):
    made = make_index(tmp_path / "index", media)
    made.update()
    return made


def paths(index: Index) -> list[str]:
    return [file.path for file in index.files]


def update(index: Index, **options) -> tuple[str, int]:
    """The line of changes, and how many moments were embedded."""
    before = index.model.asked
    changes = index.update(**options)
    return str(changes), index.model.asked - before


def test_a_folder_becomes_moments(index, media):
    assert paths(index) == ["a.mp4", "b.mkv", "p.png", "sub/c.mp4"]
    ids = sorted(contents(index))
    assert ids[:4] == ["a.mp4#0.000-2.000", "a.mp4#1.000-3.000", "a.mp4#2.000-4.000"] + ids[3:4]
    assert len(ids) == len(index) == 10 and "p.png" in ids and index.model.asked == 10
    (hit, *_) = index.search({"image": str(media / "p.png")}, k=1)
    assert (hit.path, hit.kind, hit.start_sec, hit.end_sec) == ("p.png", "image", 0, 0)
    assert hit.score == pytest.approx(1)


@situation(
    "Search",
    "a span of an indexed video as a query",
    "its own moment is the best answer, with a cosine of one",
    since="0.3.0",
)
def test_a_span_finds_its_own_moment(index, media):
    for video in ("sub/c.mp4", media / "sub" / "c.mp4"):
        query = {"video": video, "video_start": 1.0, "video_end": 3.0}
        best = index.search(query, k=1, merge=-1)[0]
        assert (best.path, best.start_sec, best.end_sec) == ("sub/c.mp4", 1, 3)
        assert best.score == pytest.approx(1)
    vector = index.encode_query(query)
    scores = index.timeline(vector, "sub/c.mp4")
    assert [row[:2] for row in scores] == [(0, 2), (1, 3), (2, 4)]
    assert scores[1][2] == pytest.approx(1) and scores[0][2] < 0.99
    with pytest.raises(UserError, match="no frame between 9 s and 12 s of 4.00 s"):
        index.search({"video": "a.mp4", "video_start": 9.0, "video_end": 12.0})
    with pytest.raises(UserError, match="the query: x.mp4: no such file"):
        index.search({"video": "x.mp4"})


@situation(
    "Search",
    "`search index` repeated, the folder unchanged",
    "nothing is read, and the model is not loaded",
    since="0.3.0",
)
def test_repeating_loads_no_model(index, monkeypatch):
    def fail(*_):
        raise AssertionError

    monkeypatch.setattr("gve_jax.index.folder.file_sha256", fail)
    with Index.open(index.folder, load=fail) as again:
        assert str(again.update()) == "0 new, 0 gone, 0 changed, 0 moved"


@situation(
    "Search",
    "new, deleted, changed, renamed and touched files since the last `search index`",
    "only new contents are embedded; renames keep their vectors",
    since="0.3.0",
)
def test_the_index_follows_its_folder(index, media):
    before = contents(index)
    os.utime(media / "a.mp4", (1, 1))
    assert update(index) == ("0 new, 0 gone, 0 changed, 0 moved", 0)
    assert index.files[0].mtime_ns == 10**9
    (media / "b.mkv").rename(media / "sub" / "moved.mkv")
    (media / "p.png").unlink()
    (media / "sub" / "c.mp4").write_bytes(movie(20))
    (media / "new.mp4").write_bytes(movie(30, 20))
    assert update(index) == ("1 new, 1 gone, 1 changed, 1 moved", 4)
    assert paths(index) == ["a.mp4", "new.mp4", "sub/c.mp4", "sub/moved.mkv"]
    after = contents(index)
    assert len(after) == 10
    for span in ("0.000-2.000", "1.000-3.000", "2.000-4.000"):
        assert (after[f"sub/moved.mkv#{span}"] == before[f"b.mkv#{span}"]).all()
        assert (after[f"sub/c.mp4#{span}"] != before[f"sub/c.mp4#{span}"]).any()
    assert update(index) == ("0 new, 0 gone, 0 changed, 0 moved", 0)
    with Index.open(index.folder) as again:
        assert equal(contents(again), after)


def test_two_files_swap_their_names(index, media):
    before = contents(index)
    (media / "a.mp4").rename(media / "x")
    (media / "sub" / "c.mp4").rename(media / "a.mp4")
    (media / "x").rename(media / "sub" / "c.mp4")
    for name in ("a.mp4", "sub/c.mp4"):
        os.utime(media / name)
    line, embedded = update(index)
    after = contents(index)
    for end in ("0.000-2.000", "1.000-3.000"):
        assert (after[f"a.mp4#{end}"] == before[f"sub/c.mp4#{end}"]).all()
        assert (after[f"sub/c.mp4#{end}"] == before[f"a.mp4#{end}"]).all()
    if (media / "a.mp4").stat().st_size == (media / "sub" / "c.mp4").stat().st_size:
        assert (line, embedded) == ("0 new, 0 gone, 0 changed, 2 moved", 0)
    assert embedded == 0


def test_a_file_replaces_another_and_the_old_name_gets_a_new_content(index, media):
    before = contents(index)
    os.replace(media / "a.mp4", media / "sub" / "c.mp4")
    os.utime(media / "sub" / "c.mp4")
    (media / "a.mp4").write_bytes(movie(40))
    line, embedded = update(index)
    after = contents(index)
    assert embedded == 3 and len(after) == 10
    assert (after["sub/c.mp4#0.000-2.000"] == before["a.mp4#0.000-2.000"]).all()
    assert line == "1 new, 1 gone, 0 changed, 1 moved"


def test_a_copy_is_not_embedded_again(index, media):
    shutil.copy(media / "a.mp4", media / "z.mp4")
    assert update(index) == ("1 new, 0 gone, 0 changed, 0 moved", 0)
    found = contents(index)
    assert (found["z.mp4#1.000-3.000"] == found["a.mp4#1.000-3.000"]).all()
    (media / "a.mp4").unlink()
    assert update(index) == ("0 new, 1 gone, 0 changed, 0 moved", 0)


@situation(
    "Search",
    "files of the folder that cannot be read",
    "listed once with the reasons; tried again when they change, or with --retry",
    since="0.3.0",
)
def test_unreadable_files_are_listed_once(index, media, monkeypatch):
    (media / "bad.mp4").write_bytes(movie(0)[:2000])
    (media / "empty.png").write_bytes(b"")
    changes = index.update()
    reasons = {record.path: record.reason for record in changes.unreadable}
    assert reasons.keys() == {"bad.mp4", "empty.png"} and str(changes)[:5] == "0 new"
    assert "not a readable image (the file is empty)" in reasons["empty.png"]
    assert str(media) not in reasons["bad.mp4"].split(":")[0]
    assert index.update().unreadable == ()
    assert [record.path for record in index.unreadable] == ["bad.mp4", "empty.png"]

    reads = []
    outline = type(index.sandbox).outline
    monkeypatch.setattr(
        type(index.sandbox), "outline", lambda self, v: reads.append(v) or outline(self, v)
    )
    os.utime(media / "bad.mp4", (1, 1))
    (media / "bad.mp4").rename(media / "renamed.mp4")
    assert [record.path for record in index.update().unreadable] == ["renamed.mp4"] and not reads
    assert index.update(retry=True).unreadable == () and len(reads) == 1
    (media / "renamed.mp4").write_bytes(movie(50))
    assert update(index) == ("1 new, 0 gone, 0 changed, 0 moved", 3)
    (media / "empty.png").unlink()
    index.update()
    assert index.unreadable == []


def test_a_readable_file_is_damaged_later(index, media):
    (media / "a.mp4").write_bytes(movie(0)[:2000])
    changes = index.update()
    assert [record.path for record in changes.unreadable] == ["a.mp4"]
    assert "a.mp4" not in paths(index)
    (media / "a.mp4").write_bytes(movie(0))
    assert update(index) == ("1 new, 0 gone, 0 changed, 0 moved", 3) and index.unreadable == []


def test_a_moment_that_the_model_refuses_leaves_its_file_out(tmp_path, media):
    model = Model(refuses=lambda item: item.image is not None)
    with make_index(tmp_path / "index", media, model) as index:
        changes = index.update()
        assert [(bad.path, bad.reason) for bad in changes.unreadable] == [
            ("p.png", "too many tokens")
        ]
        assert paths(index) == ["a.mp4", "b.mkv", "sub/c.mp4"]


@situation(
    "Search",
    "another program writes into the folder during `search index`",
    "a file that changes while it is read is left for the next time",
    since="0.3.0",
)
def test_a_file_that_is_being_written_is_left_for_next_time(index, media, monkeypatch):
    (media / "new.mp4").write_bytes(movie(30))
    (media / "a.mp4").write_bytes(movie(31))
    before, real = contents(index), frames_module.find_cuts

    def grow(sandbox, path, policy, spec, real=frames_module.video_moments):
        with open(path, "ab") as file:
            file.write(b"more")
        return real(sandbox, path, policy, spec)

    monkeypatch.setattr("gve_jax.index.update.video_moments", grow)
    changes = index.update()
    assert changes.busy == ("a.mp4", "new.mp4") and str(changes)[:5] == "0 new"
    assert equal(contents(index), before) and index.unreadable == [] and real
    monkeypatch.undo()
    assert update(index) == ("1 new, 0 gone, 1 changed, 0 moved", 6)


def test_a_file_that_vanishes_is_not_an_error(index, media, monkeypatch):
    (media / "new.mp4").write_bytes(movie(30))

    def vanish(sandbox, path, policy, spec, real=frames_module.video_moments):
        os.unlink(path)
        return real(sandbox, path, policy, spec)

    monkeypatch.setattr("gve_jax.index.update.video_moments", vanish)
    assert index.update().busy == ("new.mp4",)
    assert len(index) == 10 and index.unreadable == []


def test_links_are_passed_over_unless_they_are_followed(index, media, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "o.mp4").write_bytes(movie(33))
    (media / "linked").symlink_to(outside)
    (media / "link.mp4").symlink_to(media / "a.mp4")
    lines = []
    assert update(index, report=lines.append) == ("0 new, 0 gone, 0 changed, 0 moved", 0)
    assert any("2 links" in line and "1 hidden" in line for line in lines)
    assert update(index, follow_links=True) == ("2 new, 0 gone, 0 changed, 0 moved", 3)
    assert "linked/o.mp4" in paths(index)


@situation(
    "Search",
    "the media folder is empty or missing, as a disk that is not mounted",
    "refused; the index stays as it is",
    since="0.3.0",
)
def test_an_empty_folder_does_not_empty_the_index(index, media):
    media.rename(media.with_name("elsewhere"))
    with pytest.raises(UserError, match="no such directory"):
        index.update()
    media.mkdir()
    with pytest.raises(UserError, match="has no videos or images, but its index has 4: is the"):
        index.update()
    assert len(index) == 10


@situation(
    "Search",
    "a query with another model than that of the index",
    "refused by the field of the fingerprint that differs",
    since="0.3.0",
)
def test_another_model_is_refused_by_its_field(index, tmp_path, media):
    with (
        Index.open(index.folder, Model("b")) as other,
        pytest.raises(UserError, match=r"fingerprint of the model: .* weights = a, now b; use the"),
    ):
        other.search("text")
    with pytest.raises(UserError, match="created with fingerprint.weights = a, now b"):
        make_index(index.folder, media, Model("b"))
    with pytest.raises(UserError, match="created with windows.kind = fixed, now shots"):
        make_index(index.folder, media, windows=Windows())
    with pytest.raises(UserError, match="is not empty and not an index"):
        make_index(media, media)


def test_files_are_added_and_removed_one_by_one(index, media):
    (media / "n.mp4").write_bytes(movie(35))
    assert str(index.add("n.mp4")) == "1 new, 0 gone, 0 changed, 0 moved"
    assert str(index.add(media / "n.mp4")) == "0 new, 0 gone, 0 changed, 0 moved"
    assert "n.mp4" in paths(index) and len(index) == 13
    index.remove("n.mp4")
    assert len(index) == 10 and not index.search("x", path="n.mp4")
    with pytest.raises(UserError, match="has no file 'n.mp4'"):
        index.remove("n.mp4")
    (media / "n.mp4").write_bytes(b"bad")
    with pytest.raises(UserError, match="n.mp4: not a readable video"):
        index.add("n.mp4")
    with pytest.raises(UserError, match="is not in the media folder"):
        index.add("../index/index.json")
    with pytest.raises(UserError, match="no such file"):
        index.add("none.mp4")


def test_metadata_beside_the_media_filters(index, media, tmp_path):
    (media / "metadata.jsonl").write_text('{"path": "a.mp4", "camera": "north"}\n')
    index.update()
    hits = index.search("x", k=20, where="camera=north", merge=-1)
    assert {hit.path for hit in hits} == {"a.mp4"} and hits[0].metadata == {"camera": "north"}
    (tmp_path / "other.jsonl").write_text('{"path": "p.png", "camera": "north"}\n')
    index.update(metadata=tmp_path / "other.jsonl")
    assert [hit.path for hit in index.search("x", where="camera=north")] == ["p.png"]
    (media / "metadata.jsonl").write_text("nonsense\n")
    with pytest.raises(UserError, match="metadata.jsonl:1: not valid JSON"):
        index.update()


def test_a_reader_sees_changes_after_refresh(index, media):
    with Index.open(index.folder, Model(), sandbox=SANDBOX) as reader:
        assert not reader.refresh() and len(reader.search("x", k=50, merge=-1)) == 10
        index.remove("a.mp4")
        assert len(reader.search("x", k=50, merge=-1)) == 10
        assert reader.refresh() and len(reader.search("x", k=50, merge=-1)) == 7


def test_a_reader_that_was_opened_before_the_index_was_compacted(index, monkeypatch):
    monkeypatch.setattr("gve_jax.index.store.COMPACT_ROWS", 1)
    reader = Index.open(index.folder, Model(), sandbox=SANDBOX)
    for path in ("a.mp4", "b.mkv"):
        index.remove(path)
    assert not (index.folder / "vectors-00000.bin").exists()
    assert {hit.path for hit in reader.search("x")} == {"p.png", "sub/c.mp4"}


@situation(
    "Search",
    "`search index` twice at once on one index",
    "the second names the process that holds the lock",
    since="0.3.0",
)
def test_the_second_of_two_writers_names_the_first(index):
    with (
        lock_for_process(index.folder),
        pytest.raises(UserError, match=f"index is in use by process {os.getpid()} on "),
    ):
        index.update()


def test_killed_at_random_bytes_of_its_writes(tmp_path, media, index):
    """A state on disk after a kill is a prefix of the journal, with any rows beyond it."""
    whole, rng = contents(index), random.Random(0)
    journal = (index.folder / "journal.jsonl").read_bytes()
    for _ in range(12):
        cut = rng.randrange(len(journal) + 1)
        copy = tmp_path / "copy"
        shutil.copytree(index.folder, copy)
        (copy / "journal.jsonl").write_bytes(journal[:cut])
        with Index.open(copy, Model(), sandbox=SANDBOX) as again:
            kept = len(again)
            again.update()
            assert again.model.asked == 10 - kept
            assert equal(contents(again), whole)
        shutil.rmtree(copy)


# Its processes have imported what they need when they start.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["tests.index.fake"])


def _kill_and_resume(folder: Path, media: Path, rng: random.Random, kills: int) -> None:
    """Kills `search index` after random times, and checks each time that finished files stay. Once
    an index is complete, another one begins; a process that ends by itself is not counted."""
    files, killed = len(list(media.iterdir())), 0
    with make_index(folder / "whole", media) as index:
        index.update()
        whole = contents(index)
    while killed < kills:
        path, finished = folder / f"{killed:03}", {}
        while killed < kills and len(finished) < files:
            begun = _PROCESSES.Event()
            process = _PROCESSES.Process(target=fill, args=(path, media, begun))
            process.start()
            assert begun.wait(60)
            process.join(rng.uniform(0, 1))
            process.kill()
            process.join()
            killed += process.exitcode == -signal.SIGKILL
            exists = (path / "index.json").exists()
            now = {file.path: file.id for file in Index.open(path).files} if exists else {}
            assert finished.items() <= now.items(), "a finished file was lost, or embedded again"
            finished = now
        model = Model()
        with make_index(path, media, model) as index:
            index.update()
            assert finished.items() <= {file.path: file.id for file in index.files}.items()
            assert model.asked == 3 * (files - len(finished))
            assert equal(contents(index), whole)


def _movies(root: Path, count: int) -> Path:
    root.mkdir()
    for number in range(count):
        (root / f"{number:02}.mp4").write_bytes(movie(number))
    return root


def test_killed_and_repeated(tmp_path):
    _kill_and_resume(tmp_path, _movies(tmp_path / "many", 8), random.Random(1), 1)


@pytest.mark.slow
def test_killed_many_times(tmp_path):
    """GVE_JAX_KILLS=200 kills two hundred times, in three minutes."""
    kills = int(os.environ.get("GVE_JAX_KILLS", 20))
    _kill_and_resume(tmp_path, _movies(tmp_path / "many", 16), random.Random(0), kills)
