"""Folders, archives, frames and one set at a time give equal scores; pools; checks of a copy."""

import json
import re
import shutil

import pytest
from PIL import Image

from data.uvrb import verify as verifying
from data.uvrb.files import Folder
from data.uvrb.reader import read_set
from data.uvrb.tasks import NAMES, TASKS, choose
from gve_jax.errors import UserError
from gve_jax.media.video import load_video
from tests.evals.evaluate_test import run
from tests.evals.released import pack
from tests.evals.small_uvrb import (
    CLIPS,
    ColourEncoder,
    make_benchmark,
    read_jsonl,
    write_jsonl,
)
from tests.situations import situation

SETS = ("CRB-T", "MSRVTT-I2V", "LoVR-C2V")


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    return make_benchmark(tmp_path_factory.mktemp("benchmark"), SETS)


@pytest.fixture(scope="module")
def archives(benchmark, tmp_path_factory):
    data = tmp_path_factory.mktemp("archives")
    for name, parts in zip(SETS, (1, 3, 2), strict=True):
        pack(benchmark / "UVRB" / name, data, parts)
    return data


@pytest.fixture(scope="module")
def expected(benchmark, tmp_path_factory):
    results, _ = run(benchmark, tmp_path_factory.mktemp("folders"), "--datasets", ",".join(SETS))
    return results


def check_equal(results, expected):
    for name in SETS:
        ours, theirs = ({**one["datasets"][name]} for one in (results, expected))
        for record in (ours, theirs):  # except times
            record.pop("seconds"), record.pop("cost", None)
        assert ours == theirs, name


def media(folder):
    return [path for path in folder.rglob("*") if path.suffix in (".mp4", ".png")]


def test_archives_score_as_folders_and_are_extracted_once(archives, expected, tmp_path):
    out = tmp_path / "out"
    results, _ = run(archives, out, "--datasets", ",".join(SETS))
    check_equal(results, expected)
    stamps = {path: path.stat().st_mtime_ns for path in media(out)}
    assert len(stamps) == 3 * len(CLIPS) + 5
    results, models = run(archives, out, "--datasets", ",".join(SETS))
    assert models["trained"].asked == []
    assert {path: path.stat().st_mtime_ns for path in media(out)} == stamps


@situation(
    "Evaluation",
    "a disk with room for one extracted set only",
    "--one-at-a-time extracts, embeds and removes set by set",
    since="0.1.0",
)
def test_one_at_a_time_extracts_one_set_and_removes_it(archives, expected, tmp_path, capsys):
    out, cache = tmp_path / "out", tmp_path / "cache"
    extracted = []

    class Looking(ColourEncoder):
        def encode_valid(self, inputs, ids, quarantine):
            extracted.append({path.parts[-3] for path in media(cache)})
            return super().encode_valid(inputs, ids, quarantine)

    options = ("--datasets", ",".join(SETS), "--one-at-a-time", "--cache", str(cache))
    results, _ = run(archives, out, *options, models={"trained": Looking()})
    check_equal(results, expected)
    assert set(map(frozenset, extracted)) == {frozenset([name]) for name in SETS}
    assert media(cache) == []
    assert (cache / "UVRB/CRB-T/jsonl/corpus.jsonl").exists()
    assert "all of 30 items could be read" in capsys.readouterr().out
    # Repeated without the archives: nothing is left to embed.
    empty = tmp_path / "empty"
    empty.mkdir()
    results, models = run(empty, out, *options)
    check_equal(results, expected)
    assert models["trained"].asked == []
    # Missing embeddings are computed again, from the archive.
    for path in (out / "embeddings/model").glob("vectors-*"):
        path.unlink()
    with pytest.raises(UserError, match="CRB-T: its files were removed, and so was its archive"):
        run(empty, out, *options)
    results, models = run(archives, out, *options, "--report", str(tmp_path / "page.html"))
    check_equal(results, expected)
    assert len(models["trained"].asked) > 0
    page = (tmp_path / "page.html").read_text()
    assert "data:image" in page and media(cache) == []
    # The page of a removed set shows the same pictures; only their files are extracted.
    run(archives, out, *options, "--report", str(tmp_path / "again.html"))
    pictures = re.compile('data:image[^"]*').findall
    assert pictures((tmp_path / "again.html").read_text()) == pictures(page) != []
    assert media(cache) == []


def test_refuses_a_missing_set_and_a_truncated_archive(archives, tmp_path):
    with pytest.raises(UserError, match="PEV-K: no such folder.*, and no PEV-K.tar.gz.part00 in"):
        run(archives, tmp_path / "out", "--datasets", "PEV-K")
    data = tmp_path / "data"
    shutil.copytree(archives, data)
    (data / "MSRVTT-I2V.tar.gz.part01").unlink()
    with pytest.raises(UserError, match="MSRVTT-I2V: part 01 is missing before"):
        run(data, tmp_path / "out", "--datasets", "MSRVTT-I2V")


def as_frames(root, flat: bool):
    """Replaces the videos of a set with folders of their eight frames."""
    for path in sorted((root / "videos").rglob("*.mp4")):
        below = path.relative_to(root / "videos").with_suffix("")
        folder = root / "videos_frames" / (below.name if flat else below)
        folder.mkdir(parents=True)
        for number, frame in enumerate(load_video(str(path), 8).frames):
            Image.fromarray(frame).save(folder / f"{number}.png")
    shutil.rmtree(root / "videos")


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("packed", [True, False])
@situation(
    "Evaluation",
    "videos that are released as folders of frames",
    "read at 8 frames per second; scored as the videos",
    since="0.1.0",
)
def test_folders_of_frames_score_as_videos(benchmark, expected, tmp_path, flat, packed):
    data = tmp_path / "data"
    root = data / "UVRB/LoVR-C2V"
    shutil.copytree(benchmark / "UVRB/LoVR-C2V", root)
    if not flat:  # VDC's videos have a folder each
        for path in sorted((root / "videos").iterdir()):
            (root / "videos" / path.stem).mkdir()
            path.rename(root / "videos" / path.stem / path.name)
        for table in ("queries", "corpus"):
            path = root / f"jsonl/{table}.jsonl"
            records = read_jsonl(path)
            for record in records:
                stem = record["video"].split("/")[1].removesuffix(".mp4")
                record["video"] = f"videos/{stem}/{stem}.mp4"
            write_jsonl(path, records)
    as_frames(root, flat)
    if packed:
        pack(root, tmp_path / "packed")
        data = tmp_path / "packed"
    seen = []

    class Listening(ColourEncoder):
        def encode_valid(self, inputs, ids, quarantine):
            seen.extend(inputs)
            return super().encode_valid(inputs, ids, quarantine)

    sets = "--datasets", "LoVR-C2V"
    results, _ = run(data, tmp_path / "out", *sets, models={"trained": Listening()})
    frames, videos = (one["datasets"]["LoVR-C2V"] for one in (results, expected))
    assert (frames["score"], frames["corpus"]) == (videos["score"], videos["corpus"])
    assert {item["fps"] for item in seen} == {8.0} and len(seen) == 2 * len(CLIPS)
    _, models = run(data, tmp_path / "out", *sets)
    assert models["trained"].asked == []


def test_refuses_frames_of_two_videos(benchmark, tmp_path):
    root = tmp_path / "UVRB/LoVR-C2V"
    shutil.copytree(benchmark / "UVRB/LoVR-C2V", root)
    as_frames(root, flat=True)
    path = root / "jsonl/corpus.jsonl"
    path.write_text(path.read_text() + '{"id": "other", "video": "clips/red_blue.mp4"}\n')
    with pytest.raises(UserError, match="clips/red_blue.mp4 and videos/red_blue.mp4 share the fra"):
        read_set(tmp_path, choose("LoVR-C2V")[0])
    with pytest.raises(UserError, match="missing video: videos/red_blue.mp4"):
        shutil.rmtree(root / "videos_frames/red_blue")
        read_set(tmp_path, choose("LoVR-C2V")[0])


def test_digests_depend_on_content(tmp_path):
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames/0.png").write_bytes(b"one")
    record = tmp_path / "digests.json"
    files = Folder(tmp_path, record)
    first = files.digest(tmp_path.resolve() / "a")
    frames = files.digest(tmp_path.resolve() / "frames")
    files.save()
    stored = json.loads(record.read_text())
    again = Folder(tmp_path, record)
    assert again.digest(tmp_path.resolve() / "a") == first
    (tmp_path / "a").write_bytes(b"two!")
    (tmp_path / "frames/0.png").rename(tmp_path / "frames/1.png")
    assert again.digest(tmp_path.resolve() / "a") != first
    assert again.digest(tmp_path.resolve() / "frames") != frames
    again.save()
    assert json.loads(record.read_text()) != stored
    record.write_text("[]")
    with pytest.raises(UserError, match="digests.json: damaged"):
        Folder(tmp_path, record)


# ---- pools ------------------------------------------------------------------------------------


@pytest.fixture
def pooled(tmp_path):
    """MS-TV with `candidates` for q0, and `neg` for the other queries."""
    make_benchmark(tmp_path, ("MS-TV", "MSRVTT"))
    lines = [{"qid": "q0", "pos": ["v0"], "candidates": ["v3", "v0"]}]
    lines += [{"qid": f"q{n}", "pos": [f"v{n}"], "neg": [f"v{n - 1}"]} for n in range(1, 5)]
    write_instances(tmp_path, lines)
    return tmp_path


def write_instances(data, lines, name="MS-TV"):
    write_jsonl(data / f"UVRB/{name}/jsonl/instances.jsonl", lines)


def test_reads_both_pools(pooled):
    task, other = choose("MS-TV")[0], choose("MSRVTT")[0]
    whole = read_set(pooled, task)
    assert whole.pool == "whole" and whole.candidates is None
    pool = read_set(pooled, task, moment_pool="candidates")
    assert pool.pool == "candidates"
    assert pool.candidates[:2] == (("v3", "v0"), ("v1", "v0")) and len(pool.candidates) == 5
    assert read_set(pooled, other, moment_pool="candidates").pool == "whole"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({}, "has no 'candidates' or 'neg'; rank it in the whole corpus with --moment-pool whole"),
        ({"candidates": []}, "query 'q0' has no candidates"),
        ({"candidates": ["v1"]}, "positive 'v0' of query 'q0' is not among its candidates"),
        ({"candidates": ["v0", "x"]}, "candidate 'x' of query 'q0' is not in the corpus"),
        ({"candidates": ["v0", "v0"]}, "the same candidate twice"),
        ({"neg": ["v0"]}, "query 'q0' has 'v0' as positive and as negative"),
        ({"negatives": ["x"]}, "negative 'x' of query 'q0' is not in the corpus"),
    ],
)
def test_refuses_invalid_candidates(pooled, line, message):
    write_instances(pooled, [{"qid": "q0", "pos": ["v0"]} | line])
    with pytest.raises(UserError, match=message):
        read_set(pooled, choose("MS-TV")[0], moment_pool="candidates")


# ---- checks of a copy ----------------------------------------------------------------------


@pytest.fixture
def full(tmp_path):
    """MSRVTT with a thousand queries and documents, as in the paper, of five clips."""
    make_benchmark(tmp_path, ("MSRVTT", "MS-TV"))
    root = tmp_path / "UVRB/MSRVTT/jsonl"
    names = sorted(path.name for path in (tmp_path / "clips").iterdir())
    shutil.rmtree(tmp_path / "clips")
    for table, line in (
        ("queries", lambda n: {"id": n, "text": f"clip {n}", "image": "", "video": ""}),
        ("instances", lambda n: {"qid": n, "pos": [n]}),
        ("corpus", lambda n: {"id": n, "video": f"videos/{names[n % 5]}"}),
    ):
        write_jsonl(root / f"{table}.jsonl", map(line, range(1000)))
    return tmp_path


def check(data, *more):
    """The exit status of `python -m data.uvrb.verify`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "200")
        try:
            verifying.main(["--data", str(data), *more])
        except SystemExit as exit:
            return exit.code
    return 0


def test_records_and_compares_a_valid_copy(full, capsys):
    sets = ("--datasets", "MSRVTT")
    assert check(full, *sets) == 0
    out = capsys.readouterr().out
    assert "1,000 of 1,000" in out and "recorded" in out and "none are published" in out
    recorded = json.loads((full / "hashes.json").read_text())["sets"]["MSRVTT"]
    assert len(recorded) == 3 + 5
    # The archive of the set has equal hashes.
    pack(full / "UVRB/MSRVTT", full / "packed", 3)
    assert check(full / "packed", *sets, "--record", str(full / "hashes.json")) == 0
    assert "the same" in capsys.readouterr().out
    clip = next((full / "UVRB/MSRVTT/videos").iterdir())
    clip.write_bytes(clip.read_bytes() + b"x")
    assert check(full, *sets) == 1
    assert f"MSRVTT: videos/{clip.name} has changed since its hash" in capsys.readouterr().err


def test_names_missing_media(full, capsys):
    for clip in sorted((full / "UVRB/MSRVTT/videos").iterdir())[1:]:
        clip.unlink()
    path = full / "UVRB/MSRVTT/jsonl/corpus.jsonl"
    path.write_text(path.read_text() + '{"id": "more", "video": "videos/blue_green.mp4"}\n')
    pack(full / "UVRB/MSRVTT", full / "packed", 3)
    for data in (full, full / "packed"):
        assert check(data, "--datasets", "MSRVTT") == 1
        wrong = capsys.readouterr().err
        assert "jsonl/corpus.jsonl:2: missing video: videos/" in wrong
        assert "MSRVTT: 797 more media are missing" in wrong
        assert "MSRVTT: corpus 1,001, the paper has 1,000" in wrong
        assert not (data / "hashes.json").exists()
    (full / "packed/MSRVTT.tar.gz.part02").unlink()
    assert check(full / "packed", "--datasets", "MSRVTT,CMRB") == 1
    wrong = capsys.readouterr().err
    assert "wrong: MSRVTT: the archive ends too early" in wrong
    assert "wrong: CMRB: neither" in wrong


def test_reports_available_pools(full, capsys):
    assert check(full, "--datasets", "MS-TV") == 1  # five queries instead of 400
    printed = capsys.readouterr()
    assert "MS-TV: the paper prints a corpus of 10; no candidates" in printed.out
    assert "MS-TV: queries 5, the paper has 400" in printed.err and "corpus" not in printed.err
    lines = [{"qid": f"q{n}", "pos": [f"v{n}"], "neg": [f"v{n - 1}"]} for n in range(1, 5)]
    write_instances(full, [{"qid": "q0", "pos": ["v0"], "candidates": ["v0"]}, *lines])
    check(full, "--datasets", "MS-TV")
    assert "each query has 1 to 2 candidates: --moment-pool" in capsys.readouterr().out


def test_table_matches_the_paper():
    assert len(TASKS) == len(set(NAMES)) == 16
    more = {task.name: task.corpus - task.queries for task in TASKS if task.kind != "CMP"}
    assert {name: count for name, count in more.items() if count} == {
        "CMRB": 343,
        "DREAM-E": -5251,
        "PEV-K": 573,
        "LoVR-V": 367,
        "VDC-D": 27,
    }
    assert [task.kind for task in TASKS].count("TXT") == 12
    assert {task.name for task in TASKS if task.label == "R@10"} == {"CMRB", "LoVR-TH"}
    assert {task.name for task in TASKS if task.label == "P@1"} == {"MS-TI", "MS-TV"}
    assert {task.name for task in TASKS if task.words is None} == {"MSRVTT-I2V", "LoVR-C2V"}
