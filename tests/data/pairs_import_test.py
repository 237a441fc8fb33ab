"""Importers: rows of each format, written here, against the pairs one reads out of them by hand."""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from data.pairs import importer, media
from data.pairs.__main__ import main
from gve_jax.errors import UserError
from gve_jax.media import sandbox
from gve_jax.media.item import Item
from gve_jax.media.limits import Limits
from gve_jax.streams import rows as rows_module
from gve_jax.streams import writing
from gve_jax.streams.pairs import PairSources
from gve_jax.streams.rows import Reject, check_pair
from tests.media.files import clip, picture
from tests.situations import situation

ROOT = Path(__file__).resolve().parents[2]
CLIP = clip(8)
RED, BLUE = (picture(Image.new("RGB", (32, 32), colour)) for colour in ("red", "blue"))


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Files beside each other, one of them outside of the media root; the command line; pairs."""
    (tmp_path / "media").mkdir()
    for name, data in {
        "a.mp4": CLIP,
        "red.png": RED,
        "blue.png": BLUE,
        "bad.mp4": b"no video",
        "bad.png": RED[:20],
    }.items():
        (tmp_path / "media" / name).write_bytes(data)
    (tmp_path / "secret.png").write_bytes(RED)
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["data.pairs", *arguments])
        main()
        return capsys.readouterr().out

    return call


def lines(path: str, *rows: dict | str) -> str:
    text = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)
    Path(path).write_text(text + "\n")
    return path


def table(path: str, rows: list[dict]) -> str:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def importing(format: str, *inputs: str, options: tuple = ()) -> tuple:
    return (
        "import",
        "--format",
        format,
        "--input",
        *inputs,
        "--output",
        "out",
        "--media-root",
        "media",
        *options,
    )


def read(source: str, directory: str = "out") -> list[dict]:
    sources = PairSources(directory)
    return sources.read(source, np.arange(sources.sizes[source]))


def made(id: str, task: str, query: Item, positive: Item, *negatives: Item) -> dict:
    return {
        "id": id,
        "task": task,
        "query": query,
        "positive": positive,
        "negatives": list(negatives),
    }


def test_mmeb_rows(run):
    rows = [
        {
            "qry": "<|image_1|>\nWhat is it?\n",
            "qry_image_path": "red.png",
            "pos_text": "a square",
            "pos_image_path": "",
            "neg_text": "a ring",
            "neg_image_path": "",
        },
        {
            "qry": "<|image_1|> And this?",
            "qry_image_path": "blue.png",
            "pos_text": "blue",
            "pos_image_path": None,
            "neg_text": "red",
            "neg_image_path": None,
        },
    ]
    several = {
        "qry": "<|image_1|>\na blue square",
        "qry_image_path": "",
        "pos_text": "",
        "pos_image_path": "blue.png",
        "neg_text": ["", "a ring"],
        "neg_image_path": ["red.png", ""],
    }
    one = table("mmeb.parquet", rows)
    run(*importing("mmeb", f"TI2T_mmeb={one}", f"flickr={lines('f.jsonl', several)}"))
    task = "TI2T_mmeb"
    assert read(task) == [
        made(
            "mmeb.parquet:1",
            task,
            Item(text="What is it?", image=RED),
            Item(text="a square"),
            Item(text="a ring"),
        ),
        made(
            "mmeb.parquet:2",
            task,
            Item(text="And this?", image=BLUE),
            Item(text="blue"),
            Item(text="red"),
        ),
    ]
    task = "T2I_flickr"  # the modality pair found in the rows
    assert read(task) == [
        made(
            "f.jsonl:1",
            task,
            Item(text="a blue square"),
            Item(image=BLUE),
            Item(image=RED),
            Item(text="a ring"),
        )
    ]


def test_tevatron_rows_with_a_corpus(run):
    corpus = lines(
        "corpus.jsonl",
        {"docid": "v1", "text": "", "video": "a.mp4"},
        {"docid": 7, "title": "Red", "text": "a square", "image": None},
        {"docid": "v1", "text": "the id again"},
        {"docid": "n", "document_text": "other words", "document_image": None},
    )
    rows = lines(
        "rows.jsonl",
        {
            "query_id": "q1",
            "query_text": "bars",
            "query_image": None,
            "positive_document_ids": ["v1"],
            "negative_document_ids": ["7", "n"],
        },
        {
            "query_id": "q2",
            "query_text": "bars?",
            "positive_document_ids": ["v1", "v1"],
            "negative_document_ids": ["7", "7", "7"],
        },
    )
    printed = run(*importing("tevatron", f"T2V_bars={rows}", options=("--corpus", corpus)))
    red, video = Item(text="Red a square"), Item(video=CLIP)
    assert read("T2V_bars") == [
        made("q1", "T2V_bars", Item(text="bars"), video, red, Item(text="other words")),
        made("q2", "T2V_bars", Item(text="bars?"), video, red, red),
        made("q2/1", "T2V_bars", Item(text="bars?"), video, red, red),
    ]
    assert "(corpus): 0 pairs, 0 negatives each, 0 bytes, 1 rejects (1 'a docid twice')" in printed
    assert "3 pairs, 2 negatives each" in printed and "2 further negatives left out" in printed


def test_tevatron_rows_with_passages(run):
    passages = [{"docid": "1", "title": "T", "text": "one"}, {"docid": "2", "text": "two"}]
    row = {
        "query_id": 3,
        "query": "q",
        "positive_passages": passages[:1],
        "negative_passages": passages[1:],
    }
    run(*importing("tevatron", f"T2T_msmarco={lines('r.jsonl', row)}"))
    assert read("T2T_msmarco") == [
        made("3", "T2T_msmarco", Item(text="q"), Item(text="T one"), Item(text="two"))
    ]


def test_sentence_transformers_rows(run):
    named = lines(
        "named.jsonl",
        {"negative_2": "c", "positive": {"video": "a.mp4"}, "negative_1": "red.png", "anchor": "q"},
        {
            "anchor": {"text": "red.png"},
            "positive": "a.mp4",
            "negative_1": "see red.png",
            "negative_2": "d",
        },
    )
    stored = table(  # as `datasets` stores its Image feature
        "stored.parquet",
        [
            {"caption": "a square", "picture": {"bytes": RED, "path": None}},
            {"caption": "another", "picture": {"bytes": None, "path": "blue.png"}},
        ],
    )
    run(*importing("sentence-transformers", f"T2V_st={named}", f"T2I_st={stored}"))
    assert read("T2V_st") == [
        made(
            "named.jsonl:1",
            "T2V_st",
            Item(text="q"),
            Item(video=CLIP),
            Item(image=RED),
            Item(text="c"),
        ),
        made(
            "named.jsonl:2",
            "T2V_st",
            Item(text="red.png"),
            Item(video=CLIP),
            Item(text="see red.png"),
            Item(text="d"),
        ),
    ]
    assert read("T2I_st") == [
        made("stored.parquet:1", "T2I_st", Item(text="a square"), Item(image=RED)),
        made("stored.parquet:2", "T2I_st", Item(text="another"), Item(image=BLUE)),
    ]


def swift_row(**changes) -> dict:
    user = "<image>what comes next?"
    return {
        "messages": [
            {"role": "system", "content": "Find the video."},
            {"role": "user", "content": user},
        ],
        "images": ["red.png"],
        "positive_messages": [[{"role": "user", "content": "<video>"}]],
        "positive_videos": [["a.mp4"]],
        "negative_messages": [
            [{"role": "user", "content": "<image> still"}],
            [{"role": "user", "content": "nothing"}],
        ],
        "negative_images": [["blue.png"], []],
    } | changes


def test_swift_rows(run):
    run(*importing("swift", f"TI2V_s={lines('s.jsonl', swift_row())}"))
    query = Item(text="what comes next?", image=RED, instruction="Find the video.")
    assert read("TI2V_s") == [
        made(
            "s.jsonl:1",
            "TI2V_s",
            query,
            Item(video=CLIP),
            Item(text="still", image=BLUE),
            Item(text="nothing"),
        )
    ]


def test_our_own_rows_with_media_inline(run):
    encoded = base64.b64encode(RED).decode()
    row = {
        "id": "p1",
        "task": "T2I_told",
        "query": "red",
        "positive": {"image": {"bytes": encoded}},
        "negatives": [{"image": f"data:image/png;base64,{encoded}", "instruction": "i"}],
    }
    run(*importing("pair", f"T2I_own={lines('p.jsonl', row)}"))
    negative = Item(image=RED, instruction="i")
    assert read("T2I_own") == [made("p1", "T2I_told", Item(text="red"), Item(image=RED), negative)]


@situation(
    "Training data",
    "imported rows whose negatives are their own positive or query, in another file or path",
    "imported with a warning that counts them; training leaves them out of the loss",
    since="0.2.0",
)
@situation(
    "Training data",
    "imported rows whose query is another row's positive",
    "imported with a warning that counts them; in a batch they are not each other's negatives",
    since="0.2.0",
)
@pytest.mark.parametrize("options", [(), ("--by-reference",)])
def test_negatives_with_positive_content_are_counted(run, options):
    Path("media/copy.png").write_bytes(RED)
    rows = lines(
        "p.jsonl",
        {"query": "a", "positive": {"image": "red.png"}, "negatives": [{"image": "copy.png"}]},
        {
            "query": "b",
            "positive": {"image": "blue.png"},
            "negatives": [{"text": "b", "instruction": "i"}],
        },
        {"query": "c", "positive": {"image": "blue.png"}, "negatives": ["d"]},
    )
    said = run(*importing("pair", f"T2I_x={rows}", options=options))
    assert "warning: T2I_x: 2 negatives have the content of their own pair's query" in said
    assert "another pair" not in said
    assert [len(pair["negatives"]) for pair in read("T2I_x")] == [1, 1, 1]
    assert "* T2I_x: 2 negatives" in Path("out/README.md").read_text()
    crossed = lines(
        "q.jsonl",
        {"query": "a", "positive": "b"},
        {"query": "b", "positive": "c"},
        {"query": "e", "positive": "e"},
    )
    said = run("import", "--format", "pair", "--input", f"T2T_y={crossed}", "--output", "out2")
    assert "warning: T2T_y: 1 pairs have a query with the content of another pair's" in said


def test_crossed_pairs_are_counted_as_by_sets():
    contents = np.random.default_rng(0).integers(0, 40, 100).tolist()
    pairs = list(zip(contents[::2], contents[1::2], strict=True))
    expected = sum(
        any(query == other for n, (_, other) in enumerate(pairs) if n != number)
        for number, (query, _) in enumerate(pairs)
    )
    assert importer.count_crossed(contents) == expected
    assert importer.count_crossed([]) == 0


@situation(
    "Training data",
    "an item of white space alone, in any row format",
    "judged as an empty item by every format, imported or trained on directly",
    since="0.2.0",
)
@pytest.mark.parametrize(
    ("format", "row"),
    [
        ("pair", {"query": " \n", "positive": {"video": "a.mp4"}}),
        ("pair", {"query": {"text": "\u3000", "instruction": "i"}, "positive": "b"}),
        ("mmeb", {"qry": " ", "pos_text": "b"}),
        ("tevatron", {"query": "\t", "positive_passages": [{"text": "b"}]}),
        ("sentence-transformers", {"anchor": " ", "positive": "b"}),
        (
            "swift",
            {
                "messages": [{"role": "user", "content": "  "}],
                "positive_messages": [[{"role": "user", "content": "b"}]],
            },
        ),
    ],
)
def test_white_space_alone_is_not_a_text_in_any_format(run, format, row):
    with pytest.raises(UserError, match="no pair of format .*an empty item"):
        run(*importing(format, f"x={lines('rows.jsonl', row)}"))
    if format == "pair":
        with pytest.raises(Reject, match="nothing to embed"):
            check_pair(row)


PAIR = {"query": "q", "positive": {"video": "a.mp4"}}
BAD = {
    "pair": {
        "not JSON": '{"query": ',
        "not an object": "[1]",
        "missing field": {"query": "q"},
        "unknown key": PAIR | {"positive": {"video": "a.mp4", "fps": 2}},
        "wrong type": PAIR | {"query": ["q"]},
        "an empty item": PAIR | {"query": ""},
        "no such media file": PAIR | {"positive": {"video": "b.mp4"}},
        "path outside the media root": PAIR | {"positive": {"video": "../secret.png"}},
        "a URL": PAIR | {"positive": {"video": "https://example.org/a.mp4"}},
        "unreadable video": PAIR | {"positive": {"video": "bad.mp4"}},
        "unreadable image": PAIR | {"query": {"image": "bad.png"}},
        "another modality pair": PAIR | {"positive": "a text"},
        "bad base64": PAIR | {"positive": {"video": {"bytes": "%%"}}},
        "not UTF-8": '{"query": "\\ud800", "positive": {"video": "a.mp4"}}',
    },
    "swift": {
        "tags and media differ": swift_row(images=[]),
        "several images in an item": swift_row(
            messages=[{"role": "user", "content": "<image><image>"}], images=["red.png"] * 2
        ),
        "not one positive": swift_row(positive_messages=[]),
        "a label": swift_row(label=0.7),
        "a role": swift_row(messages=[{"role": "assistant", "content": "x"}], images=[]),
        "several turns": swift_row(messages=[{"role": "user", "content": "x"}] * 2, images=[]),
        "lists of other lengths": swift_row(negative_images=[["blue.png"]]),
        "too few negatives": swift_row(negative_messages=[], negative_images=[]),
    },
    "mmeb": {
        "missing field": {"qry": "x"},
        "several images in an item": {"qry": "<|image_1|> <|image_2|>", "pos_text": "y"},
    },
    "tevatron": {
        "no corpus": {"query_id": "1", "query_text": "q", "positive_document_ids": ["1"]},
        "no positive": {"query": "q", "positive_passages": [], "negative_passages": []},
    },
    "sentence-transformers": {
        "a label": {"sentence1": "a", "sentence2": "b", "score": 0.2},
        "audio": {"anchor": "a", "positive": {"audio": "x.mp3"}},
    },
}
GOOD = {
    "pair": ("T2V_x", PAIR),
    "swift": ("TI2V_x", swift_row()),
    "mmeb": ("T2T_x", {"qry": "x", "pos_text": "y"}),
    "tevatron": ("T2T_x", {"query": "q", "positive_passages": [{"text": "t"}]}),
    "sentence-transformers": ("T2T_x", {"anchor": "a", "positive": "b"}),
}


@pytest.mark.parametrize("format", BAD)
def test_bad_rows_are_rejects_with_their_reasons(run, format):
    name, good = GOOD[format]
    bad = BAD[format]
    rows = lines("rows.jsonl", good, *bad.values(), good)
    printed = run(*importing(format, f"{name}={rows}", options=("--max-reject-share", "0.95")))
    assert f"{name}: 2 pairs" in printed and f"{len(bad)} rejects" in printed
    assert len(read(name)) == 2
    rejects = [json.loads(line) for line in open("out/rejects.jsonl")]
    found = {(reject["place"], reject["reason"]) for reject in rejects}
    assert found == {(f"rows.jsonl:{number}", reason) for number, reason in enumerate(bad, start=2)}


def test_too_many_rejects_end_the_import_and_leave_no_directory(run):
    rows = lines("rows.jsonl", PAIR, *[PAIR] * 2, PAIR | {"query": ""})
    with pytest.raises(UserError, match="1 of 4 pairs are rejects.*0.2.*'an empty item'.*out.rej"):
        run(*importing("pair", f"T2V_x={rows}", options=("--max-reject-share", "0.2")))
    assert not os.path.exists("out") and not os.path.exists("out.building")
    assert json.loads(Path("out.rejects.jsonl").read_text())["place"] == "rows.jsonl:4"


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (["T2V_x"], "is not NAME=PATH"),
        (["T2V-x=rows.jsonl"], "letters, digits"),
        (["T2V_x=none.jsonl"], "no such file"),
        (["T2V_x=media/a.mp4"], "not a .jsonl or .parquet"),
        (["T2V_x=media"], "holds no .jsonl"),
        (["T2V_x=rows.jsonl", "x=rows.jsonl"], "two inputs are named 'T2V_x'"),
        (["T2V_x=empty.jsonl"], "no pair.*no row at all"),
        (["T2I_x=rows.jsonl"], "no pair.*another modality pair"),
        (["T2V_x=broken.parquet"], "not a readable Parquet file"),
    ],
)
def test_inputs_that_are_not_sources_are_refused(run, inputs, message):
    lines("rows.jsonl", PAIR)
    Path("empty.jsonl").touch()
    Path("broken.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(UserError, match=message):
        run(*importing("pair", *inputs))
    assert not os.path.exists("out") and not os.path.exists("out.building")


def test_by_reference_paths_are_stored_and_judged_again(run, tmp_path):
    rows = lines("rows.jsonl", PAIR, {"query": "2", "positive": {"video": "../media/a.mp4"}})
    run(*importing("pair", f"T2V_x={rows}", options=("--by-reference",)))
    found = [pair["positive"] for pair in read("T2V_x")]
    assert found == [Item(video=str(tmp_path / "media" / "a.mp4"))] * 2
    (tmp_path / "media" / "a.mp4").unlink()
    (tmp_path / "media" / "a.mp4").symlink_to(tmp_path / "secret.png")
    with pytest.raises(UserError, match="leaves the folder"):
        read("T2V_x")


def test_an_import_is_repeated_only_if_something_changed(run):
    asked = importing("pair", f"T2V_x={lines('rows.jsonl', PAIR)}", options=("--license", "mit"))
    first = run(*asked)
    stamp = os.stat("out/dataset_info.json").st_mtime_ns
    assert run(*asked) == first.replace("wrote out", "out is already imported")
    assert os.stat("out/dataset_info.json").st_mtime_ns == stamp
    card = Path("out/README.md").read_text()
    assert card.startswith("---\nlicense: mit\n---\n")
    assert f"| T2V_x | T2V | 1 | 0 | 0: 1 | {len(CLIP) + 1:,} | 0 |" in card
    lines("rows.jsonl", PAIR, PAIR)
    with pytest.raises(UserError, match="created with files.rows.jsonl = "):
        run(*asked)
    Path("out/import.json").unlink()
    with pytest.raises(UserError, match="exists and is not an import"):
        run(*asked)


def test_an_import_that_was_killed_leaves_nothing_and_can_be_repeated(run, monkeypatch):
    asked = importing("pair", f"T2V_x={lines('rows.jsonl', *[PAIR] * 5)}")
    whole, started = importer.run, []

    def dying(*args):
        for number, pair in enumerate(whole(*args)):
            started.append(os.path.exists("out.building"))
            if number == 2:
                raise KeyboardInterrupt
            yield pair

    monkeypatch.setattr(importer, "run", dying)
    with pytest.raises(KeyboardInterrupt):
        run(*asked)
    assert all(started) and not os.path.exists("out")
    os.makedirs("out.building/pairs")  # what a kill -9 leaves
    monkeypatch.setattr(importer, "run", whole)
    run(*asked)
    assert len(read("T2V_x")) == 5


def test_a_source_of_several_shards_keeps_its_order(run, monkeypatch):
    monkeypatch.setattr(writing, "SHARD_BYTES", 2000)
    rows = [{"id": str(number), "query": "q", "positive": "p" * 100} for number in range(100)]
    run(*importing("pair", f"T2T_x={lines('rows.jsonl', *rows)}"))
    assert [pair["id"] for pair in read("T2T_x")] == [str(number) for number in range(100)]
    assert len(list(Path("out").glob("*array_record*"))) > 5
    assert "ready" in run("check", "out", "--batch-size", "100")


def test_a_file_that_crashes_or_hangs_its_process_costs_one_pair(run, monkeypatch):
    monkeypatch.setattr(sandbox, "WORKER", "tests.media.hostile")
    with sandbox.Sandbox(Limits(seconds=2)) as opened:
        monkeypatch.setattr(media, "_SANDBOX", opened)
        for name in ("CRASH", "HANG"):
            Path(f"media/{name}.mp4").write_bytes(name.encode())
        bad = [PAIR | {"positive": {"video": f"{name}.mp4"}} for name in ("CRASH", "HANG")]
        rows = lines("r.jsonl", PAIR, bad[0], PAIR, bad[1], PAIR)
        run(*importing("pair", f"T2V_x={rows}", options=("--max-reject-share", "0.5")))
    assert [pair["id"] for pair in read("T2V_x")] == ["r.jsonl:1", "r.jsonl:3", "r.jsonl:5"]
    crash, hang = [json.loads(line)["detail"] for line in open("out/rejects.jsonl")]
    assert "CRASH.mp4: its process died of SIGSEGV" in crash
    assert hang.endswith("HANG.mp4: not decoded in 2 seconds (limits.seconds)")


def test_a_line_without_an_end_is_not_read_whole(run, monkeypatch):
    monkeypatch.setattr(rows_module, "LONGEST_LINE", 1000)
    long = PAIR | {"query": "q" * 5000}
    options = ("--max-reject-share", "0.5")
    run(*importing("pair", f"T2V_x={lines('r.jsonl', PAIR, long, PAIR)}", options=options))
    assert [pair["id"] for pair in read("T2V_x")] == ["r.jsonl:1", "r.jsonl:3"]
    (reject,) = [json.loads(line) for line in open("out/rejects.jsonl")]
    assert (reject["place"], reject["reason"]) == ("r.jsonl:2", "line too long")


def test_show_and_check(run):
    inputs = f"T2V_x={lines('x.jsonl', *[PAIR] * 5)}", f"T2V_y={lines('y.jsonl', *[PAIR] * 3)}"
    run(*importing("pair", *inputs))
    assert "T2V_y" in (printed := run("show", "out")) and "'q'" in printed
    assert "2 sources, 8 pairs, ready for batches of 3" in run("check", "out", "--batch-size", "3")
    with pytest.raises(UserError, match="'T2V_y' has 3 pairs, fewer than batch_size 4$"):
        run("check", "out", "--batch-size", "4")
    (shard,) = Path("out").glob("*T2V_x*array_record*")
    shard.unlink()
    with pytest.raises(UserError, match=f"'T2V_x' lacks the shard {shard.name}$"):
        run("check", "out")
    features = Path("out/features.json")
    features.write_text(features.read_text().replace('"instruction"', '"prompt"'))
    with pytest.raises(
        UserError, match="schema of pairs; fields that differ: negatives, positive, query"
    ):
        run("check", "out")


def test_check_looks_for_the_media_and_decodes_some(run):
    """Of a list of rows, whose media may go missing or be damaged; imports were checked."""
    good = {"id": "g", "query": "q", "positive": {"video": "media/a.mp4"}}
    rows = [good | {"id": str(number)} for number in range(9)]
    lost = good | {"id": "lost", "positive": {"video": "media/none.mp4"}}
    lines("one.jsonl", *rows, lost)
    with pytest.raises(
        UserError,
        match="source T2V_one: files of 1 of 10 pairs do not exist, such as .*none.mp4 of lost",
    ):
        run("check", "one.jsonl")
    printed = run("check", "one.jsonl", "--max-bad-share", "0.1", "--batch-size", "2")
    assert "warning: source T2V_one: files of 1 of 10 pairs" in printed and "ready" in printed
    Path("media/damaged.mp4").write_bytes(b"no video")
    damaged = good | {"positive": {"video": "media/damaged.mp4"}}
    lines("few.jsonl", *rows, damaged)
    assert "1 of 8 decoded pairs cannot be read, such as g: " in run("check", "few.jsonl")
    lines("all.jsonl", *(damaged | {"id": str(number)} for number in range(9)))
    with pytest.raises(UserError, match="8 of 8 decoded pairs cannot be read"):
        run("check", "all.jsonl")


def test_a_repeated_import_says_so_and_a_mended_one_leaves_no_rejects(run):
    bad = PAIR | {"positive": {"video": "none.mp4"}}
    with pytest.raises(UserError, match="all are in .*out.rejects.jsonl"):
        run(*importing("pair", f"T2V_x={lines('r.jsonl', PAIR, bad)}"))
    assert Path("out.rejects.jsonl").exists()
    lines("r.jsonl", PAIR)
    assert run(*importing("pair", "T2V_x=r.jsonl")).endswith("wrote out\n")
    assert not Path("out.rejects.jsonl").exists()
    assert run(*importing("pair", "T2V_x=r.jsonl")).endswith("out is already imported\n")


def test_without_beam_the_option_says_so_in_one_line(run):
    code = (
        "import sys; sys.modules['apache_beam'] = None; sys.argv[1:] = sys.argv[1:];"
        "from data.pairs.__main__ import main; from gve_jax.cli import run_cli; run_cli(main)"
    )
    asked = importing("pair", f"T2V_x={lines('rows.jsonl', PAIR)}", options=("--beam",))
    done = subprocess.run(
        [sys.executable, "-c", code, *asked],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: --beam needs Apache Beam, which is not installed: "
        "pip install -e '.[beam]' in the checkout of gve_jax"
    ]


def test_by_beam_the_same_pairs_come_out(run):
    pytest.importorskip("apache_beam", reason="the extra `beam`")
    os.mkdir("many")
    for number in range(4):
        rows = [{"id": f"{number}-{k}", **PAIR} for k in range(5)]
        lines(f"many/{number}.jsonl", *rows, PAIR | {"query": ""})
    options = ("--max-reject-share", "0.2")
    printed = run(*importing("pair", "T2V_x=many", options=(*options, "--beam")))
    found = read("T2V_x")
    os.rename("out", "beamed")
    assert run(*importing("pair", "T2V_x=many", options=options)) == printed
    key = lambda pair: pair["id"]  # noqa: E731
    assert sorted(found, key=key) == sorted(read("T2V_x"), key=key)
    assert sum(1 for _ in open("beamed/rejects.jsonl")) == 4
