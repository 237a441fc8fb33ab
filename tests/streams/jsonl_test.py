"""Training pairs read from JSONL: the same pairs as after an import, and rows that are refused."""

import base64
import json
import os
import pickle

import numpy as np
import pytest

from data.pairs.builder import run_import
from data.shapes.render import encode_mp4, encode_png
from gve_jax.errors import UserError
from gve_jax.streams import index
from gve_jax.streams import rows as rows_module
from gve_jax.streams.sources import Sources, parse
from tests.situations import situation

FRAMES = np.random.default_rng(0).integers(0, 255, (8, 32, 32, 3), np.uint8)
PNG = encode_png(FRAMES[0])


def row(number=0, **fields):
    return {"id": f"r{number}", "query": f"q{number}", "positive": f"p{number}"} | fields


def write(path, rows, end="\n"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in rows) + end)
    return str(path)


def load(location, cache, chosen=()):
    return Sources(parse(location, str(cache)), chosen)


def query_texts(sources, name):
    return [pair["query"].text for pair in sources.read(name, np.arange(sources.sizes[name]))]


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """A folder with media and rows.jsonl, in which items have every possible form."""
    folder = tmp_path_factory.mktemp("media")
    (folder / "clips").mkdir()
    for number in range(4):
        (folder / "clips" / f"{number}.mp4").write_bytes(encode_mp4(np.roll(FRAMES, number, 0)))
    (folder / "a.png").write_bytes(PNG)
    rows = [
        {
            "query": f"clip {n}",
            "positive": {"video": f"clips/{n}.mp4"},
            "negatives": [{"video": f"clips/{(n + 1) % 4}.mp4"}, {"video": "clips/../clips/3.mp4"}],
        }
        for n in range(4)
    ]
    rows[1] |= {"id": 7, "query": {"text": "clip 1 ärger", "instruction": "Find it."}}
    rows[2]["query"] = {"text": "clip 2", "image": None, "video": ""}
    rows[3]["positive"]["video"] = str(folder / "clips" / "3.mp4")
    rows[3]["negatives"].append({"video": "clips/0.mp4"})  # one more than in the first row
    write(folder / "rows.jsonl", rows[:2] + [rows[2], rows[3]])
    # Empty lines between rows count as lines but not as rows.
    text = (folder / "rows.jsonl").read_text().split("\n")
    (folder / "rows.jsonl").write_text("\n".join([*text[:2], "", " ", *text[2:]]).rstrip("\n"))
    return folder


def test_rows_are_the_same_pairs_as_after_an_import(media, tmp_path):
    rows = str(media / "rows.jsonl")
    run_import(tmp_path / "out", [f"T2V_rows={rows}"], "pair", by_reference=True)
    imported, direct = load(str(tmp_path / "out"), tmp_path), load(rows, tmp_path / "cache")
    assert direct.sizes == imported.sizes == {"T2V_rows": 4}
    order = np.array([3, 0, 2, 1])
    expected = imported.read("T2V_rows", order)
    assert direct.read("T2V_rows", order) == expected
    assert [pair["id"] for pair in expected] == [f"rows.jsonl:{n}" for n in (6, 1, 5)] + ["7"]
    # As it is sent to a worker: by paths, with the stored index.
    assert pickle.loads(pickle.dumps(direct)).read("T2V_rows", order) == expected


def test_media_in_rows_are_bytes(tmp_path):
    data = base64.b64encode(PNG).decode()
    rows = [
        row(0, positive={"image": f"data:image/png;base64,{data}"}),
        row(1, positive={"image": {"bytes": data, "path": None}}),
    ]
    sources = load(write(tmp_path / "x.jsonl", rows), tmp_path)
    assert [p["positive"].image for p in sources.read("T2I_x", np.arange(2))] == [PNG, PNG]


def test_a_source_is_a_task_in_the_order_of_files_and_lines(tmp_path):
    a = [row(0, task="T2T_x"), row(1, task="other"), row(2, task="T2T_x", negatives=["n"])]
    b = [row(3), row(4, task="T2T_x"), row(5, query={"image": "no.png"}, task="other")]
    write(tmp_path / "b" / "rows-00000-of-00002.jsonl", a)
    write(tmp_path / "b" / "rows-00001-of-00002.jsonl", b)
    (tmp_path / "b" / "folder").mkdir()
    sources = load(f"more={tmp_path}/b/*.jsonl", tmp_path)
    assert sources.sizes == {
        "I2T_other_more": 1,
        "T2T_other_more": 1,
        "T2T_rows_more": 1,
        "T2T_x_more": 3,
    }
    assert query_texts(sources, "T2T_x_more") == ["q0", "q2", "q4"]
    assert query_texts(sources, "T2T_rows_more") == ["q3"]
    # The first pair of T2T_x has no negative, so those of other pairs are left out.
    assert [p["negatives"] for p in sources.read("T2T_x_more", np.arange(3))] == [[], [], []]
    assert sources.read("T2T_other_more", np.array([0]))[0]["task"] == "other"
    sources.check(sources.sizes)
    with pytest.raises(UserError, match="and 1 more: source 'T2T_x' has 3 pairs, fewer than"):
        sources.check(sources.sizes | {"T2T_x_more": 4})
    with pytest.raises(IndexError):
        sources.read("T2T_rows_more", np.array([1]))  # a row of another source


@pytest.mark.parametrize(
    "line, named",
    [
        (b'{"query": "q"', "not valid JSON"),
        (b'{"query": "\xff", "positive": "p"}', "not UTF-8"),
        (b"[1]", "expected a JSON object, got list"),
        (b'{"query": "\\ud800", "positive": "p"}', "unpaired surrogate"),
        (b'{"query": "q"}', "no 'positive'"),
        (b'{"query": "q", "positive": "p", "label": 1}', "unknown key 'label' in a pair"),
        (b'{"query": {"text": "q", "fps": 2}, "positive": "p"}', "unknown key 'fps' in query"),
        (b'{"query": "", "positive": "p"}', "query has nothing to embed"),
        (b'{"query": {"instruction": "i"}, "positive": "p"}', "query has nothing to embed"),
        (b'{"query": " \\t", "positive": "p"}', "query has nothing to embed"),
        (b'{"query": "q", "positive": "p", "query": "r"}', "duplicate key 'query'"),
        (b'{"query": {"text": "q" , "text" : "r"}, "positive": "p"}', "duplicate key 'text'"),
        (
            b'{"query": "q", "positive": {"image": {"bytes": "AA==", "bytes": "AQ=="}}}',
            "duplicate key 'bytes'",
        ),
        (b'{"query": 1, "positive": "p"}', "query must be a text or a mapping, not int"),
        (b'{"query": {"text": ["q"]}, "positive": "p"}', "query: text must be a text, not list"),
        (b'{"query": "q", "positive": "p", "id": true}', "True is not an id"),
        (b'{"query": "q", "positive": "p", "task": 3}', "task must be a text"),
        (b'{"query": "q", "positive": "p", "task": "T2T/x"}', "'T2T/x' is not a source name"),
        (
            b'{"query": "q", "positive": "p", "task": "T2V_x"}',
            "row is T2T but its source is named T2V_x",
        ),
        (b'{"query": "q", "positive": "p", "negatives": "n"}', "negatives must be a list"),
        (b'{"query": "q", "positive": "p", "negatives": [""]}', "a negative has nothing to embed"),
        (
            b'{"query": "q", "positive": "p", "negatives": []}',
            r"0 negatives; the first pair of its source, .*x.jsonl:1, has 1",
        ),
        (
            b'{"query": "q", "positive": {"video": "../v.mp4"}}',
            r"positive: video '../v.mp4' leaves",
        ),
        (b'{"query": "q", "positive": {"video": "/etc/v.mp4"}}', r"'/etc/v.mp4' leaves the folder"),
        (
            b'{"query": "q", "positive": {"video": "gs://b/v.mp4"}}',
            "is a URL: download or mount it",
        ),
        (b'{"query": "q", "positive": {"video": 3}}', "positive: video must be a path or base64"),
        (b'{"query": "q", "positive": {"image": {"bytes": "*"}}}', "positive: image is not base64"),
    ],
)
def test_a_bad_row_is_named_with_its_line(tmp_path, line, named):
    good = json.dumps(row(negatives=["n"])).encode()
    (tmp_path / "x.jsonl").write_bytes(b"\n".join([good, b"", line, good]))
    with pytest.raises(UserError, match=rf"^{tmp_path}/x.jsonl:3: .*{named}") as caught:
        load(f"{tmp_path}/x.jsonl", tmp_path)
    assert "\n" not in str(caught.value)


@situation(
    "Training data",
    "a row of JSONL, trained on directly, with a duplicate key",
    "refused with file and line",
    since="0.2.0",
)
def test_texts_that_look_like_keys_are_not_duplicate_keys(tmp_path):
    rows = [
        b'{"query" : "q", "positive" :"p"}',
        json.dumps(row(query={"text": 'he said "text": and "query": so'})).encode(),
        b'{"query": "q", "positive": "\\"positive\\":"}',
    ]
    (tmp_path / "x.jsonl").write_bytes(b"\n".join(rows))
    assert load(f"{tmp_path}/x.jsonl", tmp_path).sizes == {"T2T_x": 3}


@situation(
    "Training data",
    "JSONL, trained on directly, with a byte order mark, in UTF-16, or "
    "replaced by a Git LFS pointer",
    "refused with the file's name and a remedy",
    since="0.2.0",
)
@pytest.mark.parametrize(
    "start, named",
    [
        (b"\xef\xbb\xbf", "x.jsonl:1: begins with a byte order mark"),
        (b"\xff\xfe", "x.jsonl:1: UTF-16"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:", "git lfs pull"),
    ],
)
def test_files_in_another_encoding_and_lfs_pointers_are_refused(tmp_path, start, named):
    (tmp_path / "x.jsonl").write_bytes(start + json.dumps(row()).encode())
    with pytest.raises(UserError, match=named):
        load(f"{tmp_path}/x.jsonl", tmp_path)


def test_a_line_that_is_too_long_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(rows_module, "LONGEST_LINE", 1000)
    write(tmp_path / "x.jsonl", [row(), row(query="q" * 1000)])
    with pytest.raises(UserError, match="x.jsonl:2: the line is longer than 1000 bytes"):
        load(f"{tmp_path}/x.jsonl", tmp_path)


@pytest.mark.parametrize(
    "location, named",
    [
        ("none.jsonl", "none.jsonl: No such file"),
        ("none*.jsonl", "no file matches .*none"),
        ("empty.jsonl", "empty.jsonl: contains no pair"),
        ("a.jsonl,{0}/b/a.jsonl", "source 'T2T_a' is in .*/a.jsonl and in .*/b/a.jsonl; give one"),
    ],
)
def test_errors_name_the_file(tmp_path, location, named):
    (tmp_path / "empty.jsonl").write_text("\n")
    write(tmp_path / "a.jsonl", [row()])
    write(tmp_path / "b" / "a.jsonl", [row()])
    with pytest.raises(UserError, match=named):
        load(f"{tmp_path}/{location.format(tmp_path)}", tmp_path)


def test_an_index_is_built_once_and_shared(tmp_path, monkeypatch):
    path = write(tmp_path / "x.jsonl", [row(n) for n in range(5)])
    first = load(path, tmp_path / "cache")
    monkeypatch.setattr(index, "parse_line", None)  # the rows must not be read again
    again = load(path, tmp_path / "cache")
    assert (again.sizes, again.bytes, again.digests) == (first.sizes, first.bytes, first.digests)
    assert query_texts(again, "T2T_x") == [f"q{n}" for n in range(5)]
    assert pickle.loads(pickle.dumps(again)).sizes == first.sizes
    # A damaged index is rebuilt.
    monkeypatch.undo()
    for stored in (tmp_path / "cache" / "index").iterdir():
        stored.write_bytes(stored.read_bytes()[:20])
    assert query_texts(load(path, tmp_path / "cache"), "T2T_x") == [f"q{n}" for n in range(5)]


def test_if_the_cache_cannot_be_written_the_index_stays_in_memory(tmp_path):
    path = write(tmp_path / "x.jsonl", [row(n) for n in range(5)])
    (tmp_path / "cache").write_text("a file, not a folder")
    sources = pickle.loads(pickle.dumps(load(path, tmp_path / "cache")))
    assert query_texts(sources, "T2T_x") == [f"q{n}" for n in range(5)]


def test_a_file_that_has_changed_is_refused(tmp_path):
    path = write(tmp_path / "x.jsonl", [row(n) for n in range(5)])
    sources = load(path, tmp_path / "cache")
    write(tmp_path / "x.jsonl", [row(n + 1) for n in range(5)])
    os.utime(path, ns=(1, 1))  # the clock may be too coarse
    with pytest.raises(UserError, match=r"x.jsonl:2: the file has changed .*; restore it"):
        sources.read("T2T_x", np.array([1]))
    changed = load(path, tmp_path / "cache")
    assert query_texts(changed, "T2T_x") == [f"q{n + 1}" for n in range(5)]
    assert (changed.sizes, changed.bytes) == (sources.sizes, sources.bytes)
    assert changed.digests != sources.digests
    # A digest depends only on the rows of its source.
    other = [row(9, task="T2T_other"), *(row(n + 1) for n in range(5))]
    assert (
        load(write(tmp_path / "y" / "x.jsonl", other), tmp_path / "cache").digests["T2T_x"]
        == changed.digests["T2T_x"]
    )


def test_a_link_out_of_the_folder_is_not_followed(tmp_path):
    (tmp_path / "secret.png").write_bytes(PNG)
    path = write(tmp_path / "in" / "x.jsonl", [row(positive={"image": "a.png"})])
    sources = load(path, tmp_path)
    (tmp_path / "in" / "a.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(UserError, match=r"x.jsonl:1: image 'a.png' leaves the folder"):
        sources.read("T2I_x", np.array([0]))
