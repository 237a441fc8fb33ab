"""Writes docs/compatibility.md from the tests that are marked with `tests.situations.situation`:

    python -m tests.compatibility

The marks are read from the source, so that this takes a second and imports no test.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "compatibility.md"
AREAS = (
    "Media",
    "Images and animations",
    "Embedding",
    "Search",
    "Search page",
    "Models and checkpoints",
    "Python API",
    "Evaluation",
    "Training",
    "Training data",
    "Server",
)

_INTRODUCTION = """\
# What happens with your files, models and settings

Situations from public bug reports of video tools, trainers and evaluators, and what gve_jax does
in each. Every row is proven by the test in its last column. `python -m tests.compatibility` writes
this page from the tests; a test fails when it is out of date. To find yours, search the page for a
word of the error message or of the file format.
"""


class Situation(NamedTuple):
    area: str
    given: str
    result: str
    since: str
    test: str  # path of the test file and name of the test


def find_situations(path: Path) -> Iterator[Situation]:
    """The situations that a test file is marked with, in the order of the file.

    Raises:
      ValueError: a mark outside of a test, or one whose arguments are not literals.
    """
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        calls = [call for call in ast.walk(node) if _is_mark(call)]
        if calls and not (isinstance(node, ast.FunctionDef) and node.name.startswith("test_")):
            raise ValueError(f"{path}:{calls[0].lineno}: a situation must mark a test function")
        for call in calls:
            try:
                area, given, result = (ast.literal_eval(value) for value in call.args)
                (since,) = (ast.literal_eval(word.value) for word in call.keywords)
            except ValueError as error:
                raise ValueError(
                    f"{path}:{call.lineno}: a situation takes three string literals and since="
                ) from error
            if area not in AREAS:
                raise ValueError(f"{path}:{call.lineno}: area {area!r} must be one of {AREAS}")
            name = f"{path.relative_to(ROOT).as_posix()}::{node.name}"
            yield Situation(area, given, result, since, name)


def _is_mark(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "situation"
    )


def write_page() -> str:
    """The text of docs/compatibility.md."""
    files = sorted((ROOT / "tests").rglob("*_test.py"))
    found = [situation for path in files for situation in find_situations(path)]
    parts = [_INTRODUCTION]
    for area in AREAS:
        rows = [row for row in found if row.area == area]
        if not rows:
            continue
        parts.append(
            f"\n## {area} ({len(rows)})\n\n| situation | what happens | since | test |\n"
            "| --- | --- | --- | --- |\n"
        )
        for row in rows:
            cells = (row.given, row.result, row.since, f"`{row.test}`")
            parts.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n")
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(write_page(), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)} written")
