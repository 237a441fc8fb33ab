"""Code in the pages is run or marked `<!-- not run: REASON -->`; commands' arguments are parsed."""

import argparse
import importlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs import quickstart
from gve_jax import GVE, cli
from gve_jax.embed import main as embed
from tests import checkpoint_files
from tests.conftest import ROOT
from tests.media.files import clip, numbered

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(
    r"^(?: *<!-- not run: (?P<reason>.+?) -->\n)?(?P<indent> *)```(?P<language>\w+)\n"
    r"(?P<body>.*?)^ *```$",
    re.DOTALL | re.MULTILINE,
)


def blocks(language: str) -> list[tuple[str, str, str | None]]:
    """(page:line, text, reason not to run it) of every block of a language."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in _BLOCK.finditer(text):
            if match["language"] == language:
                line = text.count("\n", 0, match.start("body")) + 1
                body = re.sub(rf"^{match['indent']}", "", match["body"], flags=re.MULTILINE)
                found.append((f"{page.relative_to(ROOT)}:{line}", body, match["reason"]))
    return found


def commands(text: str) -> list[list[str]]:
    """The `python -m` commands of this project in a shell block: module, then arguments."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        if match := re.search(r"python -m ((?:gve_jax|data|evals)\.\S+)(.*)", line):
            rest = match[2].split(" --run ")[0]
            if rest.count('"') % 2:  # the command is an argument of a scheduler's
                rest = rest.rstrip().removesuffix('"')
            found.append([match[1], *shlex.split(rest, comments=True)])
    return found


class Parsed(Exception):
    pass


COMMANDS = [
    pytest.param(command, id=f"{place} {command[0]}")
    for place, text, _ in blocks("bash")
    for command in commands(text)
    if not {"...", "--help"} & set(command) and not any("[" in word for word in command)
]


@pytest.mark.parametrize("command", COMMANDS)
def test_arguments_of_commands_parse(command, monkeypatch):
    name, *arguments = command
    if name == "evals.mteb":
        pytest.importorskip("mteb")
    if not hasattr(importlib.import_module(name), "main"):
        name += ".__main__"
    module = importlib.import_module(name)

    def stop(parse):
        def parsed(*arguments, **options):
            parse(*arguments, **options)
            raise Parsed

        return parsed

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    for function in ("parse_args", "parse_known_args"):
        real = getattr(argparse.ArgumentParser, function)
        monkeypatch.setattr(argparse.ArgumentParser, function, stop(real))
    for owner in {cli, module}:
        if hasattr(owner, "parse_arguments"):
            monkeypatch.setattr(owner, "parse_arguments", stop(cli.parse_arguments))
    with pytest.raises(Parsed):
        module.main()


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for place, text, _ in blocks("bash"):
        for target in re.findall(r"^make ([a-z-]+)", text, re.MULTILINE):
            assert target in targets, f"{place}: make {target}"


@pytest.mark.parametrize(
    "text", [pytest.param(text, id=place) for place, text, _ in blocks("json")]
)
def test_json_is_valid(text):
    decoder, rest = json.JSONDecoder(), text.strip()
    while rest:
        _, end = decoder.raw_decode(rest)
        rest = rest[end:].strip()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, world) -> Path:
    """What the pages' examples refer to."""
    folder = tmp_path_factory.mktemp("docs")
    checkpoint_files.write(folder / "runs/quickstart/model")
    for name in ("a.mp4", "b.mp4", "clips/a.mp4"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(clip(8))
    for name in ("0.jpg", "1.jpg", "2.jpg", "b.png", "cat.png"):
        Image.fromarray(numbered(1)[0]).save(folder / name)
    items = [block for place, block, _ in blocks("json") if place.startswith("README")][0]
    (folder / "items.jsonl").write_text(items)
    (folder / "pairs").symlink_to(world / "pairs")
    arguments = ["--input", folder / "clips", "--output", folder / "clip-vectors"]
    embed(["--model", str(folder / "runs/quickstart/model"), *map(str, arguments)])
    return folder


PYTHON = [
    pytest.param(text, id=place)
    for place, text, reason in blocks("python")
    if reason is None and "sentence_transformers" not in place  # run by that page's own test
]


@pytest.mark.parametrize("text", PYTHON)
def test_python_runs(text, folder, monkeypatch):
    monkeypatch.chdir(folder)
    vectors = np.random.default_rng(0).normal(size=(2, 9, 8)).astype(np.float32)
    queries, corpus = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    names = {
        "config": quickstart.get_config(),
        "queries": queries,
        "corpus": corpus,
        "positives": [[n] for n in range(9)],
        "candidates": [[n, (n + 1) % 9] for n in range(9)],
        "ids": [f"d{n}" for n in range(9)],
    }
    if re.search(r"\bmodel\b", text):
        names["model"] = GVE.from_pretrained("runs/quickstart/model")
    exec(compile(text, "page", "exec"), names)


SHELL = [pytest.param(text, id=place) for place, text, reason in blocks("bash") if reason is None]


@pytest.mark.slow
@pytest.mark.parametrize("text", SHELL)
def test_shell_commands_run(text, folder):
    (folder / "gve_jax").exists() or (folder / "gve_jax").symlink_to(ROOT / "gve_jax")
    for name, *arguments in commands(text):
        run = [sys.executable, "-m", name, *arguments]
        done = subprocess.run(run, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
