"""Reads a set in UVRB's layout, and refuses invalid ones."""

import json
import os

import pytest

from data.uvrb import reader
from data.uvrb.reader import read_set
from data.uvrb.tasks import choose
from gve_jax.errors import UserError
from gve_jax.storage.files import read_records
from tests.situations import situation

TASK = choose("MS-TI")[0]


@pytest.fixture
def root(tmp_path):
    """A valid set of two queries and three documents, for tests to damage."""
    root = tmp_path / "UVRB" / TASK.name
    (root / "videos" / "sub").mkdir(parents=True)
    (root / "jsonl").mkdir()
    for name in ("videos/a.mp4", "videos/sub/b.mp4", "videos/c.mp4", "q.png"):
        (root / name).write_bytes(name.encode())
    videos = {"a": "videos/a.mp4", 7: "videos/sub/b.mp4", "c": "videos/c.mp4"}
    write(root, "corpus", [{"id": id, "video": video} for id, video in videos.items()])
    write(root, "instances", [{"qid": "q1", "pos": ["a", 7]}, {"qid": "q2", "pos": ["c"]}])
    queries = [{"id": "q1", "text": "a red ball", "image": "q.png", "video": ""}]
    queries.append({"id": "q2", "text": "", "image": "", "video": "videos/a.mp4"})
    write(root, "queries", queries)
    return root


def write(root, name, records):
    lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
    (root / "jsonl" / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


def read(root):
    return read_set(root.parent.parent, TASK)


def test_reads_a_set_in_file_order(root):
    found = read(root)
    assert [d.id for d in found.corpus] == ["a", "7", "c"]
    assert found.corpus[1].video == (root / "videos/sub/b.mp4").resolve()
    first, second = found.queries
    values = first.text, first.image.name, first.video, first.positives
    assert values == ("a red ball", "q.png", None, ("a", "7"))
    assert (second.text, second.image, second.video.name) == ("", None, "a.mp4")


def corpus_line(**change):
    return {"id": "a", "video": "videos/a.mp4"} | change


LEAVING, LIST = corpus_line(video="../x.mp4"), corpus_line(video=["videos/a.mp4"])


@pytest.mark.parametrize(
    ("name", "records", "message"),
    [
        ("corpus", [corpus_line(), "{oops"], r"corpus\.jsonl:2: not valid JSON"),
        ("corpus", ["[]"], r"corpus\.jsonl:1: expected a JSON object, got list"),
        ("corpus", [corpus_line(), corpus_line()], r"corpus\.jsonl:2: id 'a' occurs twice"),
        ("corpus", [{"video": "videos/a.mp4"}], "no 'id'"),
        ("corpus", [corpus_line(id=True)], "True is not an id"),
        ("corpus", [corpus_line(video="")], "document 'a' has no video"),
        ("corpus", [corpus_line(video="videos/lost.mp4")], "missing video: videos/lost.mp4"),
        ("corpus", [LEAVING], r"jsonl:1: video '../x.mp4' leaves the folder .*MS-TI"),
        ("corpus", [corpus_line(video="/etc/hostname")], "'/etc/hostname' leaves"),
        ("corpus", [corpus_line(video="videos/link.mp4")], "'videos/link.mp4' leaves"),
        ("corpus", [LIST], r"video \['videos/a.mp4'\] is not a path"),
        ("corpus", [], r"MS-TI: corpus\.jsonl is empty"),
        ("instances", [{"qid": "q1", "pos": ["a"]}], "query 'q2' has no positives"),
        ("instances", [{"qid": "q1", "pos": []}], r"instances\.jsonl:1: query 'q1' has no pos"),
        ("instances", [{"qid": "q1", "pos": ["z"]}], "'z' of query 'q1' is not in the corpus"),
        ("instances", [{"qid": "q1", "pos": ["a", "a"]}], "same positive twice"),
        ("instances", [{"qid": "q1", "pos": ["a"]}] * 2, r":2: qid 'q1' occurs twice"),
        ("queries", [], r"MS-TI: queries\.jsonl is empty"),
        ("queries", [{"id": "q1", "text": "x"}], "names query 'q2', not in queries"),
        ("queries", [{"id": "q1", "text": " "}], "query 'q1' has no text, image or video"),
        ("queries", [{"id": "q1", "text": 3}], "'text' is not a string"),
        ("queries", [{"id": "q1", "image": "no.png"}], "missing image: no.png"),
        ("queries", [{"id": "q1", "text": "x"}] * 2, r":2: id 'q1' occurs twice"),
    ],
)
@situation(
    "Evaluation",
    "lists with a duplicate id, a positive that is not in the corpus, a path outside the set",
    "refused; the line names the file, the line or the id",
    since="0.1.0",
)
def test_refuses_invalid_lists(root, tmp_path, name, records, message):
    (tmp_path / "outside.mp4").write_bytes(b"x")
    os.symlink(tmp_path / "outside.mp4", root / "videos/link.mp4")
    write(root, name, records)
    with pytest.raises(UserError, match=message):
        read(root)


def test_lists_are_read_by_read_records(root, monkeypatch):
    """It refuses byte order marks, duplicate keys and Git LFS pointers."""
    names = []

    def spy(path):
        names.append(path.name)
        return read_records(path)

    monkeypatch.setattr(reader, "read_records", spy)
    read(root)
    assert names == ["corpus.jsonl", "instances.jsonl", "queries.jsonl"]
    for name in list(names):
        path = root / "jsonl" / name
        content = path.read_bytes()
        for bad in (b"\xef\xbb\xbf" + content, b"version https://git-lfs.github.com/spec/v1\n"):
            path.write_bytes(bad)
            with pytest.raises(UserError, match=name):
                read(root)
        path.write_bytes(content)


def test_missing_set_and_missing_file(root, tmp_path):
    with pytest.raises(UserError, match="MSRVTT: no such folder"):
        read_set(tmp_path, choose("MSRVTT")[0])
    (root / "jsonl" / "queries.jsonl").unlink()
    with pytest.raises(UserError, match=r"missing file: .*queries\.jsonl"):
        read(root)
