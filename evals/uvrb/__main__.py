"""Scores a model on UVRB:

    python -m evals.uvrb --model M --data DIR --output DIR

prints a table and writes OUTPUT/results.json, for each set and ability beside its chance.
`--baseline` adds the untrained model, `--control` the same model shown shuffled frames, `--report`
a page to look at. Embeddings of finished sets are kept in OUTPUT/embeddings: repeating the command
resumes.
"""

import argparse
import functools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from evals.uvrb import check, report
from evals.uvrb.embeddings import Embedder, Encoder
from evals.uvrb.evaluate import RULES, Scored, score_set, summary
from evals.uvrb.reader import RetrievalSet, read_set
from evals.uvrb.scores import ABILITIES, AVERAGES
from evals.uvrb.tasks import MOTION, TASKS, choose
from gve_jax.errors import Parser, UserError, run_cli
from gve_jax.files import write_json
from gve_jax.heap import keep_freed
from gve_jax.inputs import limits
from gve_jax.inputs.quarantine import Quarantine

SHOWN_PER_SET = 4  # queries of each set in the report


def main(argv: Sequence[str] | None = None, load: Callable[[str], Encoder] | None = None) -> None:
    """The command line. `load` makes an encoder of a model's name; by default `GVE`."""
    args = _parse(argv)
    load = load or functools.partial(_load_gve, limits=limits.from_arguments(args))
    started = time.perf_counter()
    sets = [read_set(args.data, task) for task in choose(args.datasets)]
    motion = [found for found in sets if found.task.name in MOTION]
    if args.control and not motion:
        raise UserError(f"--control needs a motion set: {' or '.join(MOTION)}")
    if args.check and len(sets) < len(TASKS):
        raise UserError("--check needs all sixteen sets")

    total = sum(map(_size, sets))
    quarantine = Quarantine(args.output / "quarantine.jsonl", args.max_bad_share)
    model = load(args.model)
    with _progress() as progress:
        embedder = Embedder(model, args.output / "embeddings" / "model", quarantine, total)
        scored = _score("model", sets, embedder, progress, examples=SHOWN_PER_SET)
        results = summary(args.model, model.fingerprint, _records(scored))
        if args.control:
            embedder = embedder.sibling(args.output / "embeddings" / "control")
            control = _score("shuffled", motion, embedder, progress, frame_order="shuffled")
            results["control"] = {"frame_order": "shuffled", "datasets": _records(control)}
        del model, embedder
        if args.baseline:
            model = load(args.baseline)
            embedder = Embedder(model, args.output / "embeddings" / "untrained", quarantine, total)
            untrained = _score("untrained", sets, embedder, progress)
            results["untrained"] = summary(args.baseline, model.fingerprint, _records(untrained))

    results["rules"] = list(RULES)
    results["quarantined"] = quarantine.count
    results["seconds"] = round(time.perf_counter() - started, 1)
    write_json(args.output / "results.json", results)
    print_results(results, Console())
    print(quarantine.summary(total))
    if args.report:
        examples = {name: one.examples for name, one in scored.items()}
        report.write(args.report, results, sets, examples, args.run)
        print(f"report: {args.report}")
    if args.check:
        _check(results)


def print_results(results: Mapping, console: Console) -> None:
    """The table of sets, the table of abilities, what could not be read, and the rules."""
    untrained, control = results.get("untrained"), results.get("control")
    extra = [name for name, one in (("untrained", untrained), ("shuffled", control)) if one]
    table = Table(title=escape(f"UVRB · {results['model']}"), title_justify="left")
    for column in ("set", "ability", "metric"):
        table.add_column(column)
    for column in ("score", "chance", *extra):
        table.add_column(column, justify="right")
    for task in TASKS:
        record = results["datasets"].get(task.name)
        if record is None:
            continue
        others = [one["datasets"].get(task.name, {}).get("score")
                  for one in (untrained, control) if one]  # fmt: skip
        cells = [record["score"], record["chance"], *others]
        table.add_row(task.name, task.ability, task.label, *map(_cell, cells))
    console.print(table)

    table = Table(title="abilities", title_justify="left")
    table.add_column("")
    for column in ("score", "chance", *(["untrained"] if untrained else [])):
        table.add_column(column, justify="right")
    for part, names in (("abilities", ABILITIES), ("averages", AVERAGES)):
        for name in (name for name in names if results[part][name] is not None):
            sides = [results, results["chance"], *([untrained] if untrained else [])]
            table.add_row(name, *(_cell(side[part][name]) for side in sides))
        table.add_section()
    if table.row_count:  # none, when no ability has all its sets
        console.print(table)

    lost = {name: r["quarantined"] for name, r in results["datasets"].items()
            if any(r["quarantined"].values())}  # fmt: skip
    for name, counts in lost.items():
        said = ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in counts.items())
        console.print(f"{name}: unreadable: {said}")
    for rule in results["rules"]:
        console.print(f"- {rule}")


def _score(
    label: str,
    sets: Sequence[RetrievalSet],
    embedder: Embedder,
    progress: Progress,
    frame_order: str = "forward",
    examples: int = 0,
) -> dict[str, Scored]:
    bar = progress.add_task(label, total=sum(map(_size, sets)))
    scored = {}
    for found in sets:
        progress.update(bar, description=f"{label} {found.task.name}")
        scored[found.task.name] = score_set(
            found,
            embedder,
            advance=lambda items: progress.advance(bar, items),
            frame_order=frame_order,
            examples=examples,
        )
    progress.update(bar, description=label)
    return scored


def _check(results: Mapping) -> None:
    lines = check.failures(results)
    for line in lines:
        print(f"check failed: {line}", file=sys.stderr)
    if lines:
        sys.exit(1)
    print("check passed")


def _records(scored: Mapping[str, Scored]) -> dict[str, dict]:
    return {name: one.record for name, one in scored.items()}


def _size(found: RetrievalSet) -> int:
    return len(found.queries) + len(found.corpus)


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description:<22}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


def _load_gve(name: str, limits: limits.Limits) -> Encoder:
    from gve_jax import GVE

    return GVE.from_pretrained(name, limits=limits)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    summary_line, _, rest = __doc__.partition("\n\n")
    parser = Parser(
        prog="python -m evals.uvrb",
        description=f"{summary_line}\n\n{rest}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="directory of the model")
    parser.add_argument("--data", required=True, type=Path, help="directory that holds UVRB/")
    parser.add_argument("--output", required=True, type=Path, help="where results are written")
    parser.add_argument("--datasets", help="comma-separated sets; all sixteen by default")
    parser.add_argument("--baseline", help="directory of the same model, untrained")
    parser.add_argument(
        "--control", action="store_true", help="score the motion sets with shuffled frames too"
    )
    parser.add_argument("--report", type=Path, help="HTML file to write")
    parser.add_argument("--run", type=Path, help="workdir of the training, for the report's curves")
    parser.add_argument(
        "--max-bad-share",
        type=float,
        default=0.05,
        help="stop above this share of unreadable items",
    )
    parser.add_argument(
        "--check", action="store_true", help="exit 1 unless the scores beat chance and controls"
    )
    limits.add_arguments(parser)
    args = parser.parse_args(argv)
    if not 0 <= args.max_bad_share <= 1:
        parser.error(f"--max-bad-share is {args.max_bad_share}, it must be in 0..1")
    if args.check and not (args.baseline and args.control):
        parser.error("--check needs --baseline and --control")
    if args.run and not args.report:
        parser.error("--run needs --report")
    return args


if __name__ == "__main__":
    keep_freed()
    run_cli(main)
