"""Vectors of a folder or a list: complete, in order, resumed after a kill, refused when changed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from gve_jax import GVE
from gve_jax.distributed import work
from gve_jax.embed import main
from gve_jax.errors import UserError
from gve_jax.retrieval.embedding import CHUNK, items_of_shard
from gve_jax.storage.files import differences, read_records
from tests import checkpoint_files
from tests.conftest import ROOT
from tests.media.files import clip, picture
from tests.situations import situation


class Stopped(Exception):
    """As if the process were killed."""


class Lengths:
    """Embeds the length of a text, or the size of a file; refuses files that begin with `bad`."""

    embedding_dim = 3

    def __init__(self, weights="a", stop_after=10**9):
        self.fingerprint, self.asked = {"weights": weights, "inputs": {"num_frames": 8}}, []
        self.stop_after = stop_after

    def summary(self):
        return "nothing was compiled"

    def encode_valid(self, inputs, ids, quarantine, prompt=None, batch_size=32):
        if len(self.asked) >= self.stop_after:
            raise Stopped
        self.asked += ids
        rows, valid = [], []
        for item, id in zip(inputs, ids, strict=True):
            file = item.video or item.image
            data = Path(file).read_bytes() if file else item.text.encode()
            valid.append(not data.startswith(b"bad"))
            if valid[-1]:
                rows.append([len(data), len(prompt or ""), 1.0])
            else:
                quarantine.record(id, file, f"{file}: bad", 0.1)
        rows = np.array(rows, np.float32).reshape(-1, 3)
        return rows / np.linalg.norm(rows, axis=-1, keepdims=True), np.array(valid)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A list of eight items, one of them bad, beside its media."""
    root = tmp_path / "set"
    (root / "sub").mkdir(parents=True)
    for number in range(4):
        (root / "sub" / f"{number}.mp4").write_bytes(b"v" * (10 + number))
    (root / "z.png").write_bytes(b"p" * 30)
    (root / "bad.webm").write_bytes(b"bad")
    (root / "notes.txt").write_bytes(b"no medium")
    records = [
        {"id": "t", "text": "some"},
        {"id": 7, "video": "sub/0.mp4"},
        {"id": "b", "video": "bad.webm"},
        {"id": "p", "image": "z.png", "text": "x"},
        *({"id": f"v{n}", "video": f"sub/{n}.mp4"} for n in range(4)),
    ]
    write(root / "items.jsonl", records)
    return root


def write(path: Path, records: list) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def run(source: Path, output: Path, *options: str, model=None):
    model = model or Lengths()
    arguments = ["--model", "m", "--input", source, "--output", output, "--max-bad-share", "0.5"]
    main([str(a) for a in (*arguments, *options)], load=lambda name: model)
    return model


def stored(output: Path) -> dict[str, list[float]]:
    manifest = json.loads((output / "manifest.json").read_text())
    found = {}
    for shard in manifest["shards"]:
        vectors = np.load(output / shard["vectors"])
        ids = [record["id"] for _, record in read_records(output / shard["ids"])]
        assert len(ids) == shard["count"] == len(vectors) and vectors.dtype == np.float32
        found |= dict(zip(ids, vectors.tolist(), strict=True))
    assert len(found) == manifest["vectors"]
    return found


def contents(output: Path) -> dict[str, bytes]:
    """All files but the lock, which names the last command."""
    names = sorted(path.name for path in output.iterdir() if path.name != ".lock")
    return {name: (output / name).read_bytes() for name in names}


def unit(*row: float) -> list[float]:
    return pytest.approx([x / np.linalg.norm(row) for x in row], abs=1e-6)


def test_the_manifest_says_how_the_decoder_was_confined(folder, tmp_path):
    output, held = tmp_path / "out", {"no_new_privs": True, "landlock": 7, "seccomp": True}
    model = Lengths()
    model.sandbox = held
    run(folder / "items.jsonl", output, model=model)
    settings = (output / "settings.json").read_bytes()
    assert "sandbox" not in json.loads(settings)
    assert json.loads((output / "manifest.json").read_text())["sandbox"] == held
    model.sandbox = None  # nothing was left to decode
    run(folder / "items.jsonl", output, model=model)
    assert json.loads((output / "manifest.json").read_text())["sandbox"] == held
    model.sandbox = held | {"landlock": 0}  # another kernel: the vectors are the same
    run(folder / "items.jsonl", output, model=model)
    assert (output / "settings.json").read_bytes() == settings


def test_an_input_that_is_empty_or_a_single_video_is_refused(folder, tmp_path):
    with pytest.raises(UserError, match="a file of the kind video; give its folder, or a JSONL"):
        run(folder / "sub/0.mp4", tmp_path / "out")
    with pytest.raises(UserError, match="--input: '' is not a path: it is empty"):
        main(["--model", "m", "--input", "", "--output", str(tmp_path / "out")])


@situation(
    "Embedding",
    "a list with one damaged video",
    "the others get vectors; it is named in quarantine.jsonl with the reason",
    since="0.1.0",
)
def test_a_list_gives_a_row_for_each_readable_item(folder, tmp_path, capsys):
    output = tmp_path / "out"
    run(folder / "items.jsonl", output, "--shard-size", "3", "--prompt", "Find.")
    found = stored(output)
    sizes = {"t": 4, "7": 10, "p": 30, "v0": 10, "v1": 11, "v2": 12, "v3": 13}
    assert list(found) == list(sizes)
    assert all(found[id] == unit(size, 5, 1) for id, size in sizes.items())
    manifest = json.loads((output / "manifest.json").read_text())
    assert [shard["count"] for shard in manifest["shards"]] == [2, 3, 2]
    assert manifest["fingerprint"]["weights"] == "a" and manifest["prompt"] == "Find."
    assert manifest["quarantined"] == 1 and manifest["input"]["items"] == 8
    (line,) = [record for _, record in read_records(output / "quarantine.jsonl")]
    assert line["id"] == "b" and line["path"] == str(folder.resolve() / "bad.webm")
    printed = capsys.readouterr().out
    assert "7 vectors of 3 in 3 shards" in printed
    assert "1 of 8 items (12.50%) could not be read: 1 x bad; see" in printed


def test_a_folder_gives_its_videos_and_images(folder, tmp_path, capsys):
    run(folder, tmp_path / "out")
    names = [f"sub/{number}.mp4" for number in range(4)]
    assert list(stored(tmp_path / "out")) == [*names, "z.png"]
    printed = capsys.readouterr().out
    assert "passed over 2 files (1 .jsonl, 1 .txt), neither videos nor images" in printed


@situation(
    "Embedding",
    "a finished command is repeated",
    "nothing is embedded again, no file changes",
    since="0.1.0",
)
def test_repeating_asks_the_model_for_nothing(folder, tmp_path):
    output = tmp_path / "out"
    run(folder / "items.jsonl", output, "--shard-size", "3")
    before = contents(output)
    assert run(folder / "items.jsonl", output, "--shard-size", "3").asked == []
    assert contents(output) == before


ASKED = {  # lost files, and the number of items that are embedded again
    "ids-00001.jsonl": 2,
    "vectors-00001.npy ids-00001.jsonl": 2,
    "manifest.json": 0,
    "ids-00000.jsonl manifest.json": 1,
}


@situation(
    "Embedding",
    "some files of an output were deleted",
    "their items are embedded again, to the same bytes",
    since="0.1.0",
)
@pytest.mark.parametrize("lost", ASKED)
def test_only_missing_items_are_embedded_again(folder, tmp_path, lost):
    output = tmp_path / "out"
    run(folder / "items.jsonl", output, "--shard-size", "3")
    before = contents(output)
    for name in lost.split():
        (output / name).unlink()
    (output / "vectors-00002.npy.part").write_bytes(b"torn")
    again = run(folder / "items.jsonl", output, "--shard-size", "3")
    # "v0", which is in the second shard, has the content of "7", which is in the first.
    assert len(again.asked) == ASKED[lost]
    assert contents(output) == before


MADE = "settings.json: created with "


@situation(
    "Embedding",
    "an output, and another model or prompt",
    "refused by the field that differs",
    since="0.1.0",
)
@pytest.mark.parametrize(
    "options, model, message",
    [
        ([], Lengths("b"), MADE + "fingerprint.weights = a, now b"),
        (["--prompt-name", "MSRVTT"], None, MADE + "prompt = None, now Find the clip"),
    ],
)
def test_a_change_is_refused_by_its_field(folder, tmp_path, options, model, message):
    output = tmp_path / "out"
    run(folder / "items.jsonl", output, "--shard-size", "3")
    (output / "manifest.json").unlink()  # a run that was interrupted is protected, too
    before = contents(output)
    with pytest.raises(UserError, match=f"{message}.*choose another"):
        run(folder / "items.jsonl", output, "--shard-size", "3", *options, model=model)
    assert contents(output) == before


@situation(
    "Embedding",
    "damaged files in an output, or a pickle in their place",
    "refused by name; nothing is unpickled",
    since="0.1.0",
)
@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda out: (out / "vectors-00000.npy").write_bytes(b"x"), "unreadable"),
        (lambda out: (out / "vectors-00000.npy").write_bytes(b""), "unreadable"),
        (
            lambda out: np.save(out / "vectors-00000.npy", np.eye(3, dtype=np.float32)),
            "does not fit",
        ),
        (
            lambda out: np.save(out / "vectors-00000.npy", np.array([{}] * 2)),
            "unreadable",
        ),  # a pickle
        (lambda out: write(out / "ids-00000.jsonl", [{"id": "7"}, {"id": "t"}]), "does not fit"),
        (lambda out: write(out / "ids-00000.jsonl", [{"id": "t"}]), "does not fit"),
        (
            lambda out: (out / "ids-00000.jsonl").write_text("{"),
            "ids-00000.jsonl:1: not valid JSON",
        ),
        (lambda out: (out / "settings.json").write_text("{"), "settings.json: damaged"),
        (lambda out: (out / "settings.json").unlink(), "has no vectors"),
    ],
)
def test_damaged_outputs_are_named(folder, tmp_path, damage, message):
    output = tmp_path / "out"
    run(folder / "items.jsonl", output, "--shard-size", "3")
    damage(output)
    with pytest.raises(UserError, match=message):
        run(folder / "items.jsonl", output, "--shard-size", "3")


@situation(
    "Embedding",
    "a list with an id twice, an unknown key, a path out of its folder",
    "refused by file and line before the model is loaded",
    since="0.1.0",
)
@pytest.mark.parametrize(
    "records, message",
    [
        ([], "nothing to embed"),
        ([{"text": "x"}], r"items.jsonl:1: no 'id'"),
        ([{"id": "a", "text": "x"}, {"id": "a", "text": "y"}], ":2: id 'a' occurs twice"),
        ([{"id": "a"}], ":1: nothing to embed"),
        ([{"id": "a", "vidoe": "sub/0.mp4"}], ":1: unknown key 'vidoe'"),
        ([{"id": "a", "video": "../set2/0.mp4"}], "video '../set2/0.mp4' leaves the folder"),
        ([{"id": "a", "video": "/etc/passwd"}], "'/etc/passwd' leaves"),
        ([{"id": "a", "image": "link/passwd"}], "'link/passwd' leaves"),
        ([{"id": "a", "video": ["z.png", "link/passwd"]}], "'link/passwd' leaves"),
        ([{"id": "a", "image": {"path": "z.png"}}], "is not a path"),
        ([{"id": "a", "video": "sub/0.mp4", "num_frames": 7}], ":1: num_frames"),
        (["text"], ":1: expected a JSON object"),
    ],
)
def test_an_invalid_list_is_refused_with_its_line(folder, tmp_path, records, message):
    (folder / "link").symlink_to("/etc")
    write(folder / "items.jsonl", records)
    with pytest.raises(UserError, match=message) as error:
        run(folder / "items.jsonl", tmp_path / "out")
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options, message",
    [
        (["--batch-size", "0"], "--batch-size must be at least 1"),
        (["--shard-size", "x"], "--shard-size"),
        (["--max-bad-share", "2"], "share"),
        (["--limits.seconds", "0"], "limits.seconds must be above 0"),
        (["--limits.sconds", "1"], "sconds"),
        (["--prompt", "a", "--prompt-name", "MSRVTT"], "not both"),
    ],
)
def test_options_that_cannot_be(folder, tmp_path, options, message):
    arguments = ["--model", "m", "--input", folder, "--output", tmp_path / "out", *options]
    with pytest.raises(UserError, match=message):
        main([str(argument) for argument in arguments])


@situation(
    "Embedding",
    "more files cannot be read than --max-bad-share allows",
    "the command stops with status 2",
    since="0.1.0",
)
def test_too_many_unreadable_items_stop_it(folder, tmp_path):
    with pytest.raises(UserError, match="1 of 8 items could not be read"):
        run(folder / "items.jsonl", tmp_path / "out", "--max-bad-share", "0.1")


@pytest.mark.parametrize(
    "items, size",
    [(1, 512), (512 * 1024, 512), (512 * 1024 + 1, 1024), (3_000_000, 3072), (10**8, 4096)],
)
def test_shards_are_as_small_as_a_thousand_files_allow(items, size):
    assert items_of_shard(items) == size and size % CHUNK == 0


def test_differences_are_named_by_their_field():
    old, new = {"a": {"b": 1, "c": 2}, "d": [1]}, {"a": {"b": 1, "c": 3}, "e": None, "d": [2]}
    assert differences(old, new) == {"a.c": (2, 3), "d": ([1], [2])}


# --- two hosts ---


def on_host(source: str, output: str, options: dict) -> list[str]:
    """Embeds on a host of the pair; returns the requested ids. Options may differ on host 1."""
    options |= options.get("host 1", {}) if jax.process_index() else {}
    model = Lengths(options.get("weights", "a"), options.get("stop_after", 10**9))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work, "SHARED_S", 1)
        try:
            run(
                Path(options.get("source", source)),
                Path(options.get("output", output)),
                "--shard-size",
                "2",
                model=model,
            )
        except Stopped:
            pass
    return model.asked


ON_HOST = "tests.embed_test:on_host"


@situation(
    "Embedding",
    "several hosts with a shared folder",
    "they divide the shards, and write the files of one host",
    since="0.1.0",
)
def test_two_hosts_divide_the_shards_and_give_the_files_of_one(two_hosts, folder, tmp_path):
    source, output = folder / "items.jsonl", tmp_path / "out"
    run(source, tmp_path / "alone", "--shard-size", "2")
    first, second = two_hosts.run(ON_HOST, str(source), str(output), {})
    assert first == ["t", "7", "v0", "v1"]
    assert second == ["b", "p", "v2", "v3"]  # one of which nobody can read
    # The quarantine, too: host 0 has taken in what the other one recorded.
    assert contents(output) == contents(tmp_path / "alone")
    assert two_hosts.run(ON_HOST, str(source), str(output), {}) == [[], []]
    assert run(source, output, "--shard-size", "2").asked == []


@situation(
    "Embedding",
    "several hosts that were killed, started again",
    "what is missing is divided again",
    since="0.1.0",
)
def test_two_hosts_that_ended_go_on_where_they_were(two_hosts, folder, tmp_path):
    source, output = folder / "items.jsonl", tmp_path / "out"
    run(source, tmp_path / "alone", "--shard-size", "2")
    options = {"stop_after": 0, "host 1": {"stop_after": 2}}  # both before they would meet
    assert two_hosts.run(ON_HOST, str(source), str(output), options) == [[], ["b", "p"]]
    assert not (output / "manifest.json").exists()
    # Three shards are left, which are divided anew.
    again = two_hosts.run(ON_HOST, str(source), str(output), {})
    assert again == [["t", "7", "v2", "v3"], ["v0", "v1"]]
    assert contents(output) == contents(tmp_path / "alone")


def test_one_host_resumes_the_output_of_two(two_hosts, folder, tmp_path):
    source, output = folder / "items.jsonl", tmp_path / "out"
    run(source, tmp_path / "alone", "--shard-size", "2")
    options = {"stop_after": 0, "host 1": {"stop_after": 2}}
    two_hosts.run(ON_HOST, str(source), str(output), options)
    assert (output / "quarantine-1.jsonl").exists()
    with open(output / "quarantine-1.jsonl", "a") as file:
        file.write('{"id": "to')  # killed while it wrote
    assert run(source, output, "--shard-size", "2").asked == ["t", "7", "v0", "v1", "v2", "v3"]
    assert contents(output) == contents(tmp_path / "alone")


@situation(
    "Embedding",
    "hosts with another model, list or output folder each",
    "refused on every host, by the field",
    since="0.1.0",
)
@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"weights": "b"},
            "settings.json: created with fingerprint.weights = a, now b; choose another",
        ),
        (
            {"host 1": {"weights": "b"}},
            "host 1 was started with fingerprint.weights = b, host 0 with a",
        ),
        ({"host 1": {"output": "elsewhere"}}, "is not the same folder on hosts 0 and 1"),
        ({"host 1": {"source": "none.jsonl"}}, "host 1: missing file: none.jsonl"),
        ({"host 1": {"source": "set"}}, "host 1 was started with --input."),
    ],
)
def test_both_hosts_report_an_error(two_hosts, folder, tmp_path, options, message):
    source, output = folder / "items.jsonl", tmp_path / "out"
    run(source, output, "--shard-size", "2")
    before = contents(output)
    other = options.get("host 1", {})
    for key in ("output", "source"):
        if other.get(key) in ("elsewhere", "set"):
            other[key] = str(tmp_path / other[key])
    one, two = two_hosts.run(ON_HOST, str(source), str(output), options)
    assert message in one and message in two  # each names the folder by its own path
    assert contents(output) == before


# --- the command itself, with a model in the released format ---


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> tuple[Path, Path]:
    """A small checkpoint, and a folder of nine media, of which one is cut off."""
    root = tmp_path_factory.mktemp("released")
    media = root / "media"
    media.mkdir()
    rng = np.random.default_rng(0)
    for number in range(5):
        (media / f"{number}.mp4").write_bytes(clip(6 + 2 * number))
    for number in range(3):
        image = Image.fromarray(rng.integers(0, 256, (56, 84, 3), np.uint8))
        (media / f"{number}.png").write_bytes(picture(image))
    (media / "cut.mp4").write_bytes(clip(24)[:1000])
    return checkpoint_files.write(root / "model"), media


def command(released, output: Path, *options: str, kill: bool = False):
    """Runs it in shards of two; with `kill`, SIGKILL when the second one is sealed."""
    model, media = released
    arguments = [
        sys.executable,
        "-m",
        "gve_jax.embed",
        "--model",
        model,
        "--input",
        media,
        "--output",
        output,
        "--shard-size",
        "2",
        "--max-bad-share",
        "0.2",
        *options,
    ]
    process = subprocess.Popen(
        list(map(str, arguments)),
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    if kill:
        while not (output / "ids-00001.jsonl").exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


@pytest.mark.slow
@situation(
    "Embedding",
    "a first `embed` command killed (SIGKILL) at any time, then repeated",
    "the output is that of a run that was not killed",
    since="0.1.0",
)
def test_killed_and_repeated_gives_the_same_files(released, tmp_path):
    code, out, err = command(released, tmp_path / "whole")
    assert code == 0, err
    assert "8 vectors" in out and "1 of 9 items" in out and "1 x not a readable video" in out
    code, *_ = command(released, tmp_path / "killed", kill=True)
    assert code == -signal.SIGKILL and not (tmp_path / "killed" / "manifest.json").exists()
    sealed = (tmp_path / "killed" / "ids-00001.jsonl").stat().st_mtime_ns
    code, _, err = command(released, tmp_path / "killed")
    assert code == 0, err
    assert (tmp_path / "killed" / "ids-00001.jsonl").stat().st_mtime_ns == sealed
    whole, killed = contents(tmp_path / "whole"), contents(tmp_path / "killed")
    whole.pop("quarantine.jsonl"), killed.pop("quarantine.jsonl")  # these say how long it took
    assert killed == whole

    model, media = released
    names = [name for name in sorted(path.name for path in media.iterdir()) if name != "cut.mp4"]
    vectors = GVE.from_pretrained(model).encode(
        [{"image" if name.endswith("png") else "video": str(media / name)} for name in names]
    )
    found = stored(tmp_path / "whole")
    assert list(found) == names
    np.testing.assert_allclose([found[name] for name in names], vectors, atol=2e-2)  # bfloat16


def test_a_mistake_is_one_line_and_help_is_a_text(released, tmp_path):
    code, _, err = command(released, tmp_path / "out", "--prompt-name", "nothing")
    assert code == 2 and err.startswith("error: unknown prompt_name") and err.count("\n") == 1
    model, media = released
    shutil.copytree(media, tmp_path / "few")
    code, _, err = command((tmp_path / "no model", media), tmp_path / "out")
    assert code == 2 and "no model" in err and "Traceback" not in err
    code, out, _ = command(released, tmp_path / "out", "--help")
    assert code == 0 and "--limits.seconds" in out and "quarantine.jsonl" in out
