"""Compares inputs and encoder with transformers, part by part, with random weights:

    make parity        # or, with torch and transformers installed:
    python -m evals.parity --report docs/parity.md

The reference saves checkpoints in the widths, head sizes and rotary sections of released Qwen2-VL,
Qwen2.5-VL (GVE) and Qwen3-VL (two layers each of tower and decoder, few vocabulary rows); gve_jax
loads them with the code that loads the released ones. Inputs are also compared with qwen-vl-utils,
on third-party files that `make parity` downloads, and profiles with MTEB's wrappers. Exits with
status 1 if a limit is exceeded.
"""

import platform
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from evals.parity.assets import Assets
from evals.parity.compare import Line, compare
from evals.parity.inputs import compare_inputs, page
from evals.parity.profiles import CASES, KINDS, compare_profiles
from evals.parity.reference import SIZES
from evals.parity.regimes import check_regimes
from gve_jax.cli import Parser, run_cli
from gve_jax.storage.filesystem import local_path


def main() -> None:
    parser = Parser("python -m evals.parity", __doc__)
    text = f"sizes of {', '.join(SIZES)} (default: all)"
    parser.add_argument("--sizes", default=",".join(SIZES), help=text)
    known = [case.profile for case in CASES]
    text = f"profiles of {', '.join(known)} (default: all; none)"
    parser.add_argument("--profiles", default=",".join(known), help=text)
    parser.add_argument(
        "--assets",
        type=local_path,
        default=Path(sys.prefix, "share", "parity"),
        help="folder of packages with tokenizer, template, videos, photographs",
    )
    parser.add_argument("--report", type=local_path, help="Markdown page to write")
    args = parser.parse_args()
    sizes = args.sizes.split(",")
    if unknown := sorted(set(sizes) - SIZES.keys()):
        parser.error(f"--sizes: unknown size {unknown[0]}; known: {', '.join(SIZES)}")
    profiles = [] if args.profiles == "none" else args.profiles.split(",")
    if unknown := sorted(set(profiles) - set(known)):
        parser.error(f"--profiles: unknown profile {unknown[0]}; known: {', '.join(known)}")
    console, lines, inputs = Console(soft_wrap=True, highlight=False), [], []
    for result in compare_inputs(Assets(args.assets)):
        inputs.append(result)
        text = f"{result.part:32} {result.what:70} {result.value:>34}  {result.limit}"
        console.print(text.rstrip(), style=None if result.passed else "bold red")
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            for line in compare(size, Path(folder)):
                lines.append(line)
                console.print(_text(line), style=None if line.passed else "bold red")
        embedders = []
        for line in compare_profiles(Path(folder), profiles):
            embedders.append(line)
            console.print(_text(line), style=None if line.passed else "bold red")
    regimes = check_regimes()
    console.print(_table(regimes))
    if args.report:
        args.report.write_text(_page(lines, embedders, regimes) + page(inputs), encoding="utf-8")
        console.print(f"report: {args.report}")
    for result in inputs:
        if result.passed is None:
            console.print(f"not compared: {result.what} is missing in {args.assets}")
    passed = [line.passed for line in lines + embedders] + [equal for *_, equal in regimes]
    passed += [result.passed for result in inputs if result.passed is not None]
    failed = passed.count(False)
    console.print(f"{failed} of {len(passed)} comparisons failed")
    sys.exit(1 if failed else 0)


def _text(line: Line) -> str:
    limit = "" if line.limit is None else f"  (limit {line.limit:g})"
    return f"{line.size:18} {line.part:70} {line.dtype:8} {_value(line):>11}{limit}"


def _value(line: Line) -> str:
    if line.measure == "cosine":
        return f"1 - {max(0.0, 1 - line.value):.1e}"
    return f"{line.value:.1e}"


def _table(regimes) -> Table:
    table = Table("regime", "transformers", "cases", "equal")
    for name, version, cases, equal in regimes:
        table.add_row(name, version, str(cases), "yes" if equal else "NO")
    return table


def _page(lines: list[Line], embedders: list[Line], regimes) -> str:
    import jax
    import torch
    import transformers

    sizes = list(dict.fromkeys(line.size for line in lines))
    rows: dict[tuple, dict[str, Line]] = {}
    for line in lines:
        rows.setdefault((line.part, line.dtype, line.measure, line.limit), {})[line.size] = line
    table = [
        f"| part | dtype | {' | '.join(sizes)} | limit |",
        f"| --- | --- | {' | '.join('---' for _ in sizes)} | --- |",
    ]
    for (part, dtype, measure, limit), found in rows.items():
        cells = [_value(found[s]) if s in found else "" for s in sizes]
        bound = "" if limit is None else f"1 - {1 - limit:.0e}" if measure == "cosine" else limit
        table.append(f"| {part} | {dtype} | {' | '.join(cells)} | {bound} |")
    positions = ["| regime | transformers | cases | equal |", "| --- | --- | --- | --- |"]
    positions += [f"| `{n}` | {v} | {c} | {'yes' if e else 'no'} |" for n, v, c, e in regimes]
    smallest: dict[str, dict[str, Line]] = {}
    for line in embedders:
        smallest.setdefault(line.size, {})[line.part] = line
    profiles = [
        f"| profile | {' | '.join(KINDS)} | limit | set right in the wrapper, or not compared |",
        f"| --- | {' | '.join('---' for _ in KINDS)} | --- | --- |",
    ]
    for case in CASES:
        if found := smallest.get(case.profile):
            cells = [_value(found[kind]) if kind in found else "" for kind in KINDS]
            profiles.append(f"| `{case.profile}` | {' | '.join(cells)} | 1 - 1e-05 | {case.note} |")
    return PAGE.format(
        profiles="\n".join(profiles),
        transformers=transformers.__version__,
        torch=torch.__version__.split("+")[0],
        jax=jax.__version__,
        python=platform.python_version(),
        table="\n".join(table),
        regimes="\n".join(positions),
    )


PAGE = """# Parity

Written by `make parity`: transformers {transformers} with torch {torch}, compared with gve_jax with
JAX {jax}, Python {python}, on a CPU. Weights are random (the released ones have the same names,
shapes and files); widths, heads, windows and rotary sections are those of GVE-3B and GVE-7B
(Qwen2.5-VL), Qwen2-VL-2B, Qwen3-VL-2B and 4B (`small` is 512 wide), with two blocks of the tower
and two layers of the decoder.

Each block gets the input of the reference's block. The numbers are the largest difference over the
largest value; for vectors the smallest cosine over four items, as its distance from 1: a video of
3 x 10 x 14 patches with an image, a video, a tall image (18 x 4), a text.

{table}

## Profiles

The vectors of MTEB's own wrapper of each release (mteb 2.26.24) at random weights in the released
layout, float32, 512 wide: the smallest cosine over texts, images from 24 x 36 to 1400 x 1100, clips
of 2 to 8 frames, and each with a text, with and without an instruction. Everything from the prompt
to the resizing is each side's own. An empty cell: the wrapper does not read such items.

{profiles}

## Positions

Each M-RoPE regime gives the same integers as the transformers releases in its row (recorded from
them in `evals/parity/goldens/mrope.npz`; `make test` checks them too):

{regimes}
"""


if __name__ == "__main__":
    run_cli(main)
