"""Sources of several directories: their names, their records, and error messages."""

import json
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest

from data.pairs.builder import run_import
from gve_jax.errors import UserError
from gve_jax.streams.sources import Sources, parse
from tests.situations import situation


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """a/ has T2T_x of 3 pairs and T2T_y of 2, b/ another T2T_x of 4; each has one negative."""
    folder = tmp_path_factory.mktemp("sources")
    for directory, counts in {"a": {"x": 3, "y": 2}, "b": {"x": 4}}.items():
        inputs = []
        for name, count in counts.items():
            rows = [
                {"query": f"{directory} {name} {n}", "positive": "p", "negatives": [f"no {n}"]}
                for n in range(count)
            ]
            path = folder / f"{directory}{name}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            inputs.append(f"T2T_{name}={path}")
        run_import(folder / directory, inputs, "pair")
    return folder


def query_texts(sources, name, *indices):
    return [pair["query"].text for pair in sources.read(name, np.array(indices))]


def test_a_suffix_distinguishes_sources_of_the_same_name(folder):
    sources = Sources(parse(f"{folder}/a, more={folder}/b"))
    assert sources.sizes == {"T2T_x": 3, "T2T_x_more": 4, "T2T_y": 2}
    sources = pickle.loads(pickle.dumps(sources))  # as it is sent to a worker
    assert query_texts(sources, "T2T_x", 2, 0) == ["a x 2", "a x 0"]
    assert query_texts(sources, "T2T_x_more", 3) == ["b x 3"]
    (pair,) = sources.read("T2T_y", np.array([1]))
    assert [item.text for item in pair["negatives"]] == ["no 1"]
    sources.check({"T2T_x": 3, "T2T_x_more": 4, "T2T_y": 2})
    with pytest.raises(UserError, match="/b: source 'T2T_x' has 4 pairs, fewer than batch_size 5"):
        sources.check({"T2T_x": 1, "T2T_x_more": 5, "T2T_y": 1})


def test_patterns_choose_sources_and_directories(folder):
    assert list(Sources(parse(f"{folder}/[a]*"), ["T2T_(x|y)"]).sizes) == ["T2T_x", "T2T_y"]
    assert list(Sources(parse(f"{folder}/a"), ["T2T_y"]).sizes) == ["T2T_y"]


@situation(
    "Training",
    "`--workdir=runs/lr=1e-4`, `a,b`, `exp[1]` or `{x}` with pairs in it",
    "any name works: patterns and commas in the name of a workdir have no meaning",
    since="0.2.0",
)
@pytest.mark.parametrize("name", ["lr=1e-4", "a,b", "exp[1]", "{x}", "a*b", "a b", "date=2024"])
def test_pairs_may_be_in_a_folder_of_any_name(folder, tmp_path, name):
    workdir = tmp_path / name / "run"
    shutil.copytree(folder / "a", workdir / "data" / "a")
    shutil.copy(folder / "ax.jsonl", workdir / "data" / "rows.jsonl")
    sizes = {"T2T_x": 3, "T2T_y": 2}
    assert Sources(parse("{workdir}/data/a", workdir=workdir)).sizes == sizes
    assert Sources(parse("{workdir}/data/[a]*", workdir=workdir)).sizes == sizes
    assert Sources(parse("{workdir}/data/*.jsonl", workdir=workdir)).sizes == {"T2T_rows": 3}
    for locations in (f"{workdir}/data/a", (f"{workdir}/data/a",), {"": f"{workdir}/data/a"}):
        assert Sources(parse(locations)).sizes == sizes
    named = Sources(parse({"more": f"{workdir}/data/a"}))
    assert named.sizes == {"T2T_x_more": 3, "T2T_y_more": 2}


@situation(
    "Training data",
    "`config.data.pairs=date=2024/rows.jsonl`: a path with `=`",
    "the file is read if it exists; an ambiguous text is refused",
    since="0.2.0",
)
def test_an_existing_path_is_used_and_an_ambiguous_text_refused(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("date=2024", "p,q", "2024"):
        (tmp_path / name).mkdir()
        shutil.copy(folder / "ax.jsonl", tmp_path / name / "rows.jsonl")
    (tmp_path / "2024" / "rows.jsonl").unlink()
    assert Sources(parse("date=2024/rows.jsonl")).sizes == {"T2T_rows": 3}
    assert Sources(parse("p,q/rows.jsonl")).sizes == {"T2T_rows": 3}
    assert Sources(parse("more=~/p,q/rows.jsonl")).sizes == {"T2T_rows_more": 3}
    shutil.copy(folder / "ax.jsonl", tmp_path / "2024" / "rows.jsonl")
    with pytest.raises(UserError, match="is the name of a path and also NAME=2024/rows.jsonl;"):
        parse("date=2024/rows.jsonl")
    assert Sources(parse("./date=2024/rows.jsonl")).sizes == {"T2T_rows": 3}
    (tmp_path / "p").mkdir()
    (tmp_path / "q").mkdir()
    with pytest.raises(UserError, match="'p,q' is the name of one path and also a list of 2"):
        parse("p,q")
    with pytest.raises(UserError, match="data.pairs: the name 'a-b' must be letters, digits"):
        parse({"a-b": "p"})
    with pytest.raises(UserError, match="data.pairs is empty"):
        parse(())


@pytest.mark.parametrize(
    "locations, chosen, named",
    [
        ("{0}/a,{0}/b", (), "source 'T2T_x' is in .*/a and in .*/b; give one of them a name"),
        (
            "{0}/a",
            ("T2T_z",),
            r"data.sources: no source 'T2T_z' in .*/a \(sources: T2T_x, T2T_y\)",
        ),
        ("{0}/a", ("T2T_(",), "is not a regular expression"),
        ("{0}/c*", (), "no directory matches .*/c"),
        ("{0}/a,", (), "'' is neither LOCATION nor NAME=LOCATION"),
        ("{0}/none", (), "none: no such directory"),
    ],
)
def test_errors_name_the_source_or_location(folder, locations, chosen, named):
    with pytest.raises(UserError, match=named):
        Sources(parse(locations.format(folder)), chosen)


def test_a_missing_shard_is_named(folder, tmp_path):
    run_import(tmp_path / "a", [f"T2T_x={folder}/ax.jsonl"], "pair")
    (shard,) = (tmp_path / "a").glob("*array_record*")
    shard.unlink()
    with pytest.raises(UserError, match=f"source 'T2T_x' lacks the shard {shard.name}"):
        Sources(parse(f"{tmp_path}/a")).check({"T2T_x": 1})


def test_a_tfds_name_is_opened_without_its_code_and_without_tensorflow(folder, tmp_path):
    for version, origin in (("1.0.0", "a"), ("1.2.0", "b"), ("small/2.0.0", "b")):
        shutil.copytree(folder / origin, tmp_path / "gve_pairs" / version)
    code = f"""
import os, sys
os.environ["TFDS_DATA_DIR"] = {str(tmp_path)!r}
from gve_jax.errors import UserError
from gve_jax.streams.sources import Sources, parse
for location in sys.argv[1:]:
    try:
        parts = parse(location)
        print(parts[0][1].location, Sources(parts).read("T2T_x", [1])[0]["query"].text)
    except UserError as error:
        print(error)
assert "tensorflow" not in sys.modules, "TensorFlow was imported"
"""
    locations = (
        "gve_pairs",
        "tfds:gve_pairs:1.0.0",
        "gve_pairs/small:2.0.0",
        "tfds:gve_pairs:1.0.*",
        "gve_pairs:3.0.0",
        "tfds:nothing",
        "tfds:x y",
    )
    done = subprocess.run([sys.executable, "-c", code, *locations], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    none = f"no such directory, and no dataset of that name in {tmp_path} (TFDS_DATA_DIR)"
    assert done.stdout.splitlines() == [
        f"{tmp_path}/gve_pairs/1.2.0 b x 1",
        f"{tmp_path}/gve_pairs/1.0.0 a x 1",
        f"{tmp_path}/gve_pairs/small/2.0.0 b x 1",
        f"{tmp_path}/gve_pairs/1.0.0 a x 1",
        f"data.pairs: gve_pairs:3.0.0: {none}",
        f"data.pairs: nothing: {none}",
        "data.pairs: 'x y' is not NAME, NAME/CONFIG or NAME:VERSION of TFDS",
    ]
