"""UVRB as TFDS equals what the reader reads, inline and by reference, also from archives."""

import shutil
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from data.uvrb.__main__ import main
from data.uvrb.builder import SPLITS, UVRB, read
from data.uvrb.reader import read_set
from data.uvrb.sets import Sets
from data.uvrb.tasks import choose
from gve_jax.errors import UserError
from gve_jax.media.video import load_video
from tests.data.uvrb_sets_test import write_instances
from tests.evals.released import pack
from tests.evals.small_uvrb import make_benchmark

NAMES = ("MSRVTT-I2V", "MS-TV", "CRB-T")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Images, candidates, and for CRB-T frames instead of videos."""
    data = make_benchmark(tmp_path_factory.mktemp("data"), NAMES)
    lines = [{"qid": f"q{n}", "pos": [f"v{n}"], "neg": [f"v{(n + 1) % 5}"]} for n in range(5)]
    write_instances(data, lines)
    root = data / "UVRB/CRB-T"
    for path in sorted((root / "videos").iterdir()):
        folder = root / "videos_frames" / path.stem
        folder.mkdir(parents=True)
        for number, frame in enumerate(load_video(str(path), 8).frames):
            Image.fromarray(frame).save(folder / f"{number + 5}.png")  # 9.png before 10.png
    shutil.rmtree(root / "videos")
    return data


def write(data, output, *more):
    arguments = ["--data", str(data), "--output", str(output), "--datasets", ",".join(NAMES)]
    main([*arguments, "--moment-pool", "candidates", *more])


def expected(data, name, by_reference):
    """{split: records} of the evaluator's reader."""
    found = read_set(data, choose(name)[0], moment_pool="candidates")

    def medium(path):
        if not path:
            return "" if by_reference else b""
        return str(path) if by_reference else path.read_bytes() if path.is_file() else b""

    queries = [
        {
            "id": q.id,
            "text": q.text,
            "instruction": found.task.instruction,
            "image": medium(q.image),
            "video": medium(q.video),
            "positives": q.positives,
            "candidates": found.candidates[n] if found.candidates else (),
        }
        for n, q in enumerate(found.queries)
    ]
    empty = {"text": "", "instruction": "", "image": medium(None)}
    empty |= {"positives": (), "candidates": ()}
    corpus = [{"id": d.id, "video": medium(d.video)} | empty for d in found.corpus]
    return {"queries": queries, "corpus": corpus}


@pytest.mark.parametrize("by_reference", [False, True])
def test_written_sets_equal_those_of_the_reader(data, tmp_path, by_reference):
    write(data, tmp_path, *["--by-reference"] * by_reference)
    assert "tensorflow" not in sys.modules
    for name in NAMES:
        folder, wanted = tmp_path / "uvrb" / name / "1.0.0", expected(data, name, by_reference)
        for split in SPLITS:
            records = list(read(folder, split))
            frames = [(record.pop("frames"), record.pop("fps")) for record in records]
            assert records == wanted[split], (name, split)
            stored = name == "CRB-T" and split == "corpus"
            assert {rate for _, rate in frames} == {8.0 if stored else None}
            assert {len(found) for found, _ in frames} == {8 * (stored and not by_reference)}
            if stored and not by_reference:
                video = data / "UVRB/CRB-T/videos_frames/red_blue"
                assert frames[0][0] == [(video / f"{n + 5}.png").read_bytes() for n in range(8)]
    # A repeated command changes nothing; other settings are refused.
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    write(data, tmp_path, *["--by-reference"] * by_reference)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    with pytest.raises(UserError, match="written with --by-reference = "):
        write(data, tmp_path, *["--by-reference"] * (not by_reference))


def test_extracts_archives_one_at_a_time(data, tmp_path):
    for name in NAMES:
        pack(data / "UVRB" / name, tmp_path / "archives", 2)
    write(tmp_path / "archives", tmp_path / "out")
    write(data, tmp_path / "folders")
    for name in NAMES:
        for split in SPLITS:
            one, other = (
                list(read(tmp_path / home / "uvrb" / name / "1.0.0", split))
                for home in ("out", "folders")
            )
            assert one == other
    media = [path for path in (tmp_path / "out/sets").rglob("*") if path.suffix in (".mp4", ".png")]
    assert media == []


def test_tfds_builds_equal_datasets(data, tmp_path):
    builder = UVRB(source=Sets(data, tmp_path), config="MSRVTT-I2V", data_dir=str(tmp_path / "a"))
    builder.download_and_prepare()
    write(data, tmp_path / "b")
    for split in SPLITS:
        one = list(read(builder.data_dir, split))
        assert one == list(read(tmp_path / "b/uvrb/MSRVTT-I2V/1.0.0", split))
    loaded = tfds.builder_from_directory(str(tmp_path / "b/uvrb/MSRVTT-I2V/1.0.0"))
    assert loaded.info.splits["queries"].num_examples == 5
    assert np.asarray(loaded.as_data_source(split="corpus")[2]["id"]).item() == b"v2"


def test_names_folders_that_are_not_a_set(tmp_path):
    with pytest.raises(UserError, match="not a UVRB set as TFDS"):
        list(read(tmp_path, "queries"))
