"""Imports point down: each room imports its own tier and those below it (docs/development.md)."""

import ast
from pathlib import Path

import pytest

from tests.conftest import ROOT

# From the bottom up. The last tier holds commands, which no library code imports.
TIERS = """
    errors fields progress
    storage distributed
    model media inputs
    learning streams retrieval checkpoints
    running index mining hardware gve sentence_transformers serving page
    cli
    train embed search serve mine convert plan
"""
TIER = {room: tier for tier, rooms in enumerate(TIERS.split("\n")) for room in rooms.split()}
COMMANDS = {room for room, tier in TIER.items() if tier == max(TIER.values())}
# Each folder may import itself and those before it.
FOLDERS = ("gve_jax", "configs", "data", "evals")


def modules_imported(path: Path) -> set[str]:
    """Names of this project's modules and their members that a file imports, at any depth."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] in (*FOLDERS, "tests")}


def sources() -> list[Path]:
    return [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def room(module: str) -> str | None:
    """`media` of `gve_jax.media.video`; None for a name of the package itself."""
    name = module.split(".")[1]
    return name if name in TIER else None


def test_every_room_has_a_tier():
    rooms = {path.stem for path in (ROOT / "gve_jax").iterdir() if path.suffix in ("", ".py")}
    assert rooms - {"__init__", "__pycache__"} <= TIER.keys()


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    folder, *inside = path.relative_to(ROOT).with_suffix("").parts
    for name in modules_imported(path):
        top = name.split(".")[0]
        assert top in FOLDERS[: FOLDERS.index(folder) + 1], f"{folder} must not import {name}"
        if top != "gve_jax" or (target := room(name)) is None:
            continue
        assert target not in COMMANDS or folder != "gve_jax", f"{name} is a command"
        if folder == "gve_jax" and inside[0] != "__init__":
            assert TIER[target] <= TIER[inside[0]], f"{inside[0]} lies below {target}"
