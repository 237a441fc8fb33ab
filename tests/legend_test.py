"""The legend of dimension letters in gve_jax/__init__.py is complete."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import gve_jax

ROOT = Path(gve_jax.__file__).parents[1]
KINDS = {"Bool", "Float", "Int", "UInt8"}  # of jaxtyping
# `[B, L, D]`, `[Q, ceil(D / 8)]`, `[N]`; not a subscript of code or a list of values.
SHAPE = re.compile(r"\[((?:[A-Z]|\w+)(?:[ ,]+[\w*+/(). ]+)*)\]")


def texts(source: str, tree: ast.AST) -> Iterator[str]:
    """Comments and docstrings."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.string
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def letters(path: Path) -> set[str]:
    """Single capital letters in the annotations of arrays and in shapes of comments."""
    source = path.read_text(encoding="utf-8")
    tree, found = ast.parse(source), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and getattr(node.value, "id", "") in KINDS:
            found |= set(re.findall(r"\b[A-Z]\b", node.slice.elts[1].value))
    for text in texts(source, tree):
        for shape in SHAPE.findall(text):
            found |= set(re.findall(r"\b[A-Z]\b", shape))
    return found


def test_legend_has_every_letter_and_no_other():
    legend = set(re.findall(r"^    ([A-Z])   ", gve_jax.__doc__, re.MULTILINE))
    files = [
        path for folder in ("gve_jax", "data", "evals") for path in (ROOT / folder).rglob("*.py")
    ]
    used = {letter: str(path) for path in files for letter in letters(path)}
    assert {letter: used[letter] for letter in used.keys() - legend} == {}
    assert legend - used.keys() == set()
