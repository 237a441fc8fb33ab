"""Scores a model on UVRB:

    python -m evals.uvrb --model M --data DIR --output DIR

prints a table and writes OUTPUT/results.json, for each set and ability beside its chance.
`--baseline` adds the untrained model, `--control` the same model shown shuffled frames, `--report`
a page to look at; `--frames`, `--tokens` and `--reencode` ask how far the scores depend on these.
Embeddings of finished sets are kept in OUTPUT/embeddings: repeating the command resumes. Every file
that is written is described in docs/uvrb.md.
"""

import argparse
import functools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from evals.uvrb import check, published, report
from evals.uvrb.beyond import Runs, add_arguments, check_arguments, per_query
from evals.uvrb.compare import compare
from evals.uvrb.compare import load as load_scores
from evals.uvrb.cost import Meter
from evals.uvrb.embeddings import Encoder
from evals.uvrb.evaluate import RULES, Scored, summary
from evals.uvrb.output import print_results, write_results
from evals.uvrb.pictures import Pictures
from evals.uvrb.reader import RetrievalSet, read_set
from evals.uvrb.tasks import MOTION, TASKS, choose
from gve_jax.errors import Parser, UserError, run_cli
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

    rival = load_scores(args.compare) if args.compare else None

    total = sum(map(_size, sets))
    quarantine = Quarantine(args.output / "quarantine.jsonl", args.max_bad_share)
    pictures = Pictures()
    shown = {}  # the examples of each set as HTML, made while its media are at hand
    with _progress() as progress:
        run = Runs(args, quarantine, total, progress)
        model = Meter(load(args.model))

        def look(found: RetrievalSet, one: Scored) -> None:
            if args.report:
                shown[found.task.name] = report.examples(found, one, pictures)

        scored = run.score("model", model, sets, examples=SHOWN_PER_SET, depth=args.trec, then=look)
        results = summary(args.model, model.fingerprint, scored)
        results |= run.beyond(model, sets, motion, scored, results)
        del model
        run.release()
        if args.baseline:
            untrained = Meter(load(args.baseline))
            others = run.score("untrained", untrained, sets)
            results["untrained"] = summary(args.baseline, untrained.fingerprint, others)
            results["untrained"]["paired"] = compare(per_query(scored), per_query(others))
    if rival is not None:
        name, others = rival
        results["compared"] = {"b": name, **compare(per_query(scored), others)}

    results["published"] = published.comparison(results["datasets"])
    results["rules"] = list(RULES)
    results["quarantined"] = quarantine.count
    results["seconds"] = round(time.perf_counter() - started, 1)
    write_results(args.output, results)
    # A file gets lines as wide as the tables: only a terminal has an end.
    print_results(results, Console(width=None if sys.stdout.isatty() else 140), args.published)
    print(quarantine.summary(total))
    if args.report:
        report.write(args.report, results, shown, args.run)
        print(f"report: {args.report}")
    if args.check:
        _check(results)


def _check(results: Mapping) -> None:
    lines = check.failures(results)
    for line in lines:
        print(f"check failed: {line}", file=sys.stderr)
    if lines:
        sys.exit(1)
    print("check passed")


def _size(found: RetrievalSet) -> int:
    return len(found.queries) + len(found.corpus)


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
    add_arguments(parser)
    limits.add_arguments(parser)
    args = parser.parse_args(argv)
    check_arguments(args)
    if not 0 <= args.max_bad_share <= 1:
        parser.error(f"--max-bad-share is {args.max_bad_share}, it must be in 0..1")
    if args.check and not (args.baseline and "shuffled" in args.control):
        parser.error("--check needs --baseline and --control")
    if args.run and not args.report:
        parser.error("--run needs --report")
    return args


if __name__ == "__main__":
    run_cli(main)
