"""Scores a model on UVRB:

    python -m evals.uvrb --model M --data DIR --output DIR

prints a table and writes OUTPUT/results.json, for each set and ability beside its chance.
`--baseline` adds the untrained model, `--control` the same model shown shuffled frames, `--report`
a page to look at; `--frames`, `--tokens` and `--reencode` ask how far the scores depend on these.
DIR holds UVRB/<SET>/, or the archives <SET>.tar.gz.partNN as they are released
(`python -m data.uvrb.verify` checks either); `--one-at-a-time` extracts one set, embeds it, and
removes it again. Embeddings are kept in OUTPUT/embeddings: repeating the command resumes, on any
number of hosts. `--embeddings DIR` scores vectors made elsewhere (evals/uvrb/vectors.py). Every
file that is written is described in docs/uvrb.md.
"""

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from data.uvrb.reader import RetrievalSet
from data.uvrb.sets import Sets
from data.uvrb.tasks import MOMENT, MOTION, POOLS, TASKS, Task, choose
from evals.uvrb import check, published, report
from evals.uvrb.compare import check_same_ranking, compare, media_note
from evals.uvrb.compare import load as load_scores
from evals.uvrb.cost import Meter
from evals.uvrb.embeddings import Encoder
from evals.uvrb.evaluate import RULES, Example, Scored, summary
from evals.uvrb.output import print_results, remove_stale, write_results
from evals.uvrb.per_query import PerQuery
from evals.uvrb.pictures import Pictures
from evals.uvrb.variants import Runs, add_arguments, check_arguments, paired, per_query
from evals.uvrb.vectors import Vectors
from gve_jax.distributed import hosts
from gve_jax.distributed.sharding import local_mesh
from gve_jax.errors import Parser, UserError, run_cli
from gve_jax.hardware.malloc import retain_freed_memory
from gve_jax.media import limits
from gve_jax.media.quarantine import Quarantine
from gve_jax.storage.filesystem import any_path, local_path
from gve_jax.storage.locks import lock_folder

SHOWN_PER_SET = 4  # queries of each set in the report


def main(argv: Sequence[str] | None = None, load: Callable[[str], Encoder] | None = None) -> None:
    """The command line. `load` makes an encoder of a model's name; by default `GVE`."""
    args = _parse(argv)
    load = load or functools.partial(_load_gve, limits=limits.from_arguments(args))
    hosts.check_same(_shared_options(args))
    tasks = choose(args.datasets)
    motion = [task for task in tasks if task.name in MOTION]
    if args.control and not motion:
        raise UserError(f"--control needs a motion set: {' or '.join(MOTION)}")
    if args.check and len(tasks) < len(TASKS):
        raise UserError("--check needs all sixteen sets")

    rival = load_scores(args.compare) if args.compare else None
    if rival is not None and not any(task.name in rival[1] for task in tasks):
        raise UserError(f"--compare: {args.compare} has none of these sets")

    with lock_folder(args.output):
        _score(args, tasks, motion, load, rival)


def _score(
    args: argparse.Namespace,
    tasks: Sequence[Task],
    motion: Sequence[Task],
    load: Callable[[str], Encoder],
    rival: tuple[dict, dict[str, PerQuery]] | None,
) -> None:
    """All runs of the command, what they write, and what is printed."""
    started = time.perf_counter()
    opened: dict[str, RetrievalSet] = {}
    shown = {}  # examples of each set for the report, read while its media are available
    pictures = Pictures()
    progress = _progress()
    source = _source(args, progress)
    source.check(tasks)
    with progress:
        source.ready(tasks)
        quarantine = _quarantine(args, tasks)
        run = Runs(args, source, quarantine, progress, local_mesh())
        if args.embeddings:
            model = Vectors(args.embeddings, quarantine, source.total, args.normalize)
        else:
            model = Meter(load(args.model))
        run.check(model)
        hosts.check_same({"model": dict(model.fingerprint), "items": source.total})

        def look(found: RetrievalSet, one: Scored) -> None:
            opened[found.task.name] = found
            if args.report and jax.process_index() == 0:
                media = {path for example in one.examples for path in _media(found, example)}
                found.files.fetch(media)  # of a set that was embedded, and discarded, before
                shown[found.task.name] = report.examples(found, one, pictures)

        scored = run.score(
            "model", model, tasks, examples=SHOWN_PER_SET, depth=args.trec, then=look
        )
        results = summary(args.model, model.fingerprint, scored)
        results |= run.beyond(model, tasks, motion, scored, results)
        del model
        run.release()
        if args.baseline:
            untrained = Meter(load(args.baseline))
            others = run.score("untrained", untrained, tasks)
            results["untrained"] = summary(args.baseline, untrained.fingerprint, others)
            results["untrained"]["paired"] = paired(scored, others)
    if jax.process_index():
        return  # every host has the same results, the first one writes them
    results["digests"] = {name: one.digests for name, one in scored.items()}
    results["published"] = published.comparison(results["datasets"])
    results["rules"] = list(RULES)
    results["pools"] = {task.name: opened[task.name].pool for task in tasks if task.name in MOMENT}
    results["quarantined"] = quarantine.count
    results["seconds"] = round(time.perf_counter() - started, 1)
    kept = write_results(args.output, results)
    if removed := remove_stale(args.output, {*run.written, *kept}):
        print(f"removed what an earlier command had left: {', '.join(removed)}")
    if rival is not None:
        theirs, others = rival
        check_same_ranking(results, theirs)
        if note := media_note(results, theirs):
            print(note)
        results["compared"] = {"b": theirs["model"], **compare(per_query(scored), others)}
        write_results(args.output, results)
    # A file gets lines as wide as the tables: only a terminal has an end.
    print_results(results, Console(width=None if sys.stdout.isatty() else 140), args.published)
    print(quarantine.summary(source.total))
    if args.report:
        report.write(args.report, results, shown, args.run)
        print(f"report: {args.report}")
    if args.check:
        _check(results)


def _shared_options(args: argparse.Namespace) -> dict:
    """What all hosts must be asked for. Paths may differ; the model is compared by its weights."""
    options = {
        name: value
        for name, value in vars(args).items()
        if not isinstance(value, Path) and name not in ("model", "baseline")
    }
    options["baseline"] = args.baseline is not None
    return {"options": json.loads(json.dumps(options, default=str))}


def _media(found: RetrievalSet, example: Example) -> list[Path]:
    """What the report shows of an example."""
    query = found.queries[example.query]
    videos = [found.corpus[place].video for place in (*example.documents, example.right)]
    return [path for path in (query.image, query.video, *videos) if path]


def _source(args: argparse.Namespace, progress: Progress) -> Sets:
    bars: dict[str, TaskID] = {}

    def tick(name: str, done: int, total: int) -> None:
        if name not in bars:
            bars[name] = progress.add_task(f"extracting {name}", total=total)
        progress.update(bars[name], completed=done, visible=done < total)

    return Sets(
        args.data,
        args.cache or args.output / "sets",
        args.output / "digests",
        moment_pool=args.moment_pool,
        media=args.embeddings is None,
        one_at_a_time=args.one_at_a_time,
        tick=tick,
    )


def _quarantine(args: argparse.Namespace, tasks: Sequence[Task]) -> Quarantine:
    """Host 0 writes it for all: they know the same failures.

    Only this command's sets count: OUTPUT may hold others, whose items are not in its total."""
    prefixes = tuple(f"{task.name}." for task in tasks)
    path, first = args.output / "quarantine.jsonl", jax.process_index() == 0
    if first:
        for left in args.output.glob("quarantine-*.jsonl"):
            left.unlink()  # of other hosts, before version 0.2.0
    return Quarantine(path, args.max_bad_share, prefixes=prefixes, writes=first)


def _check(results: Mapping) -> None:
    lines = check.failures(results)
    for line in lines:
        print(f"check failed: {line}", file=sys.stderr)
    if lines:
        sys.exit(1)
    print("check passed")


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

    return GVE.from_pretrained(name, mesh=local_mesh(), limits=limits)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    summary_line, _, rest = __doc__.partition("\n\n")
    parser = Parser(
        prog="python -m evals.uvrb",
        description=f"{summary_line}\n\n{rest}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", help="directory of the model; with --embeddings, its name")
    parser.add_argument(
        "--data", required=True, type=local_path, help="directory that holds UVRB/, or the archives"
    )
    parser.add_argument(
        "--output", required=True, type=local_path, help="where results are written"
    )
    parser.add_argument("--datasets", help="comma-separated sets; all sixteen by default")
    parser.add_argument("--embeddings", type=local_path, help="score the vectors in this directory")
    parser.add_argument(
        "--normalize", action="store_true", help="bring the vectors of --embeddings to unit length"
    )
    parser.add_argument(
        "--moment-pool",
        choices=POOLS,
        default="whole",
        help="rank MS-TI and MS-TV in the whole corpus, or each query in its own "
        "candidates; the paper does not say which",
    )
    parser.add_argument(
        "--cache", type=local_path, help="where archives are extracted; OUTPUT/sets"
    )
    parser.add_argument(
        "--one-at-a-time",
        action="store_true",
        help="remove each extraction when its set is embedded",
    )
    parser.add_argument("--baseline", help="directory of the same model, untrained")
    parser.add_argument("--report", type=local_path, help="HTML file to write")
    parser.add_argument(
        "--run", type=any_path, help="workdir of the training, for the report's curves"
    )
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
    if args.embeddings:
        for name in ("baseline", "control", "frames", "tokens", "reencode", "check"):
            if getattr(args, name):
                parser.error(f"--{name} needs a model, not --embeddings")
        args.model = args.model or args.embeddings.resolve().name
    elif not args.model:
        parser.error("--model is missing, or --embeddings")
    elif args.normalize:
        parser.error("--normalize is for --embeddings")
    if args.run and not args.report:
        parser.error("--run needs --report")
    return args


if __name__ == "__main__":
    retain_freed_memory()
    run_cli(lambda: hosts.run(main))
