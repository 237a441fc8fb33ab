"""Scores a model on UVRB:

    python -m evals.uvrb --model M --data DIR --output DIR

prints a table and writes OUTPUT/results.json: the score and chance of each set and ability.
`--baseline` adds the untrained model, `--control` the same model with shuffled frames, `--report`
an HTML page; `--frames`, `--tokens` and `--reencode` show how scores depend on these. DIR contains
UVRB/<SET>/, or the archives <SET>.tar.gz.partNN as released (`python -m data.uvrb.verify` checks
either); `--one-at-a-time` extracts one set, embeds it, and removes it. Embeddings are stored in
OUTPUT/embeddings: repeating the command resumes, on any number of hosts. `--server URL`,
`--mteb NAME` and `--embeddings DIR` score an embedder behind a server, one of MTEB, or stored
vectors (evals/uvrb/vectors.py). `--set NAME=DIR` scores sets of your own. docs/uvrb.md describes
all files.
"""

import argparse
import dataclasses
import datetime
import json
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
from rich.console import Console
from rich.progress import (
    Progress,
    TaskID,
)

from data.uvrb.own import own_sets
from data.uvrb.reader import RetrievalSet
from data.uvrb.sets import Sets
from data.uvrb.tasks import MOMENT, MOTION, POOLS, TASKS, Task, choose
from evals.uvrb import check, embedders, published, report
from evals.uvrb.compare import check_same_ranking, compare, media_note
from evals.uvrb.compare import load as load_scores
from evals.uvrb.cost import Meter
from evals.uvrb.evaluate import RULES, Example, Scored, summary
from evals.uvrb.output import print_results, remove_stale, write_results
from evals.uvrb.per_query import PerQuery
from evals.uvrb.pictures import Pictures
from evals.uvrb.variants import Scorer, add_arguments, check_arguments, paired, per_query
from evals.uvrb.vectors import Vectors
from gve_jax.cli import Parser, run_cli
from gve_jax.distributed import hosts
from gve_jax.distributed.sharding import local_mesh
from gve_jax.errors import UserError
from gve_jax.hardware.malloc import retain_freed_memory
from gve_jax.hardware.programs import keep_compiled_programs
from gve_jax.media import limits
from gve_jax.media.quarantine import Quarantine
from gve_jax.progress import progress_bar
from gve_jax.retrieval.embedding import Encoder
from gve_jax.storage.filesystem import any_path, local_path
from gve_jax.storage.locks import lock_folder

SHOWN_PER_SET = 4  # queries of each set in the report


def main(argv: Sequence[str] | None = None, load: Callable[[str], Encoder] | None = None) -> None:
    """The command line. `load` opens an encoder by its name (default: a `GVE`)."""
    args = _parse(argv)
    args.command = shlex.join(
        ["python", "-m", "evals.uvrb", *(sys.argv[1:] if argv is None else argv)]
    )
    load = load or embedders.opener(args)
    hosts.check_same(_shared_options(args))
    tasks = choose(args.datasets) if args.datasets or not args.own else ()
    if args.check and len(tasks) < len(TASKS):
        raise UserError("--check needs all sixteen sets")

    tasks = (*tasks, *args.own)
    motion = [task for task in tasks if task.name in MOTION or task in args.own]
    if args.control and not motion:
        raise UserError(f"--control needs a motion set, {' or '.join(MOTION)}, or one of --set")
    rival = load_scores(args.compare) if args.compare else None
    if rival is not None and not any(task.name in rival[1] for task in tasks):
        raise UserError(f"--compare: {args.compare} lacks all of these sets")

    with lock_folder(args.output):
        _score(args, tasks, motion, load, rival)


def _score(
    args: argparse.Namespace,
    tasks: Sequence[Task],
    motion: Sequence[Task],
    load: Callable[[str], Encoder],
    rival: tuple[dict, dict[str, PerQuery]] | None,
) -> None:
    """Runs the command: scores all variants, writes the files, prints the tables."""
    started = time.perf_counter()
    opened: dict[str, RetrievalSet] = {}
    shown = {}  # examples of each set for the report, read while its media are available
    pictures = Pictures()
    progress = progress_bar()
    source = _source(args, progress)
    source.check(tasks)
    with progress:
        source.ready(tasks)
        quarantine = _quarantine(args, tasks)
        scorer = Scorer(args, source, quarantine, progress, local_mesh())
        if args.embeddings:
            model = Vectors(args.embeddings, quarantine, source.total, args.normalize)
        else:
            model = Meter(load(args.model))
        scorer.check_sweeps(model)
        hosts.check_same({"model": dict(model.fingerprint), "items": source.total})

        def add_examples(found: RetrievalSet, one: Scored) -> None:
            opened[found.task.name] = found
            if args.report and jax.process_index() == 0:
                media = {path for example in one.examples for path in _media(found, example)}
                found.files.fetch(media)  # if its set was embedded and removed earlier
                shown[found.task.name] = report.examples(found, one, pictures)

        scored = scorer.score(
            "model", model, tasks, examples=SHOWN_PER_SET, depth=args.trec, then=add_examples
        )
        results = summary(args.model, model.fingerprint, scored)
        results |= scorer.score_variants(model, tasks, motion, scored, results)
        sandbox = getattr(model, "sandbox", None)  # None: stored vectors, or another decoder
        usage = getattr(model, "usage", None)  # of a server
        del model
        scorer.release()
        if args.baseline:
            untrained = Meter(load(args.baseline))
            others = scorer.score("untrained", untrained, tasks)
            results["untrained"] = summary(args.baseline, untrained.fingerprint, others)
            results["untrained"]["paired"] = paired(scored, others)
    if jax.process_index():
        return  # every host has the same results, the first one writes them
    results["digests"] = {name: one.digests for name, one in scored.items()}
    results["published"] = published.comparison(results["datasets"])
    results["rules"] = list(RULES)
    results["pools"] = {task.name: opened[task.name].pool for task in tasks if task.name in MOMENT}
    results["quarantined"] = quarantine.count
    results["sandbox"] = sandbox
    if usage is not None:
        results["server"] = dataclasses.asdict(usage)
        if args.price is not None:
            results["server"]["cost_usd"] = round(usage.tokens * args.price / 1e6, 6)
    results["date"] = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    results["command"] = args.command
    results["seconds"] = round(time.perf_counter() - started, 1)
    written = {*scorer.written, *write_results(args.output, results)}
    if removed := remove_stale(args.output, written):
        print(f"removed files of an earlier command: {', '.join(removed)}")
    if rival is not None:
        theirs, others = rival
        check_same_ranking(results, theirs)
        if note := media_note(results, theirs):
            print(note)
        results["compared"] = {"b": theirs["model"], **compare(per_query(scored), others)}
        write_results(args.output, results)
    # Lines as wide as the tables unless a terminal limits them.
    print_results(results, Console(width=None if sys.stdout.isatty() else 140), args.published)
    print(quarantine.summary(source.total))
    if usage is not None:
        print(_describe_usage(usage, results["server"].get("cost_usd")))
    if args.report:
        report.write(args.report, results, shown, args.run)
        print(f"report: {args.report}")
    if args.check:
        _check(results)


def _shared_options(args: argparse.Namespace) -> dict:
    """Options that must be equal on all hosts. Paths may differ; models are compared by weights."""
    options = {
        name: value
        for name, value in vars(args).items()
        if not isinstance(value, Path) and name not in ("model", "baseline", "command", "set")
    }
    options["baseline"] = args.baseline is not None
    options["own"] = [(task.name, task.instruction, task.metric) for task in args.own]
    return {"options": json.loads(json.dumps(options, default=str))}


def _media(found: RetrievalSet, example: Example) -> list[Path]:
    """Media of an example in the report."""
    query = found.queries[example.query]
    videos = [found.corpus[index].video for index in (*example.documents, example.right)]
    return [path for path in (query.image, query.video, *videos) if path]


def _source(args: argparse.Namespace, progress: Progress) -> Sets:
    bars: dict[str, TaskID] = {}

    def tick(name: str, done: int, total: int) -> None:
        if name not in bars:
            bars[name] = progress.add_task(f"extracting {name}", total=total)
        progress.update(bars[name], completed=done, visible=done < total)

    return Sets(
        args.data or Path(),
        args.cache or args.output / "sets",
        args.output / "digests",
        moment_pool=args.moment_pool,
        media=args.embeddings is None,
        one_at_a_time=args.one_at_a_time,
        tick=tick,
    )


def _quarantine(args: argparse.Namespace, tasks: Sequence[Task]) -> Quarantine:
    """Host 0 writes it, since all hosts know the same failures.

    Counts only this command's sets: OUTPUT may contain others, whose items are not in its total."""
    prefixes = tuple(f"{task.name}." for task in tasks)
    path, first = args.output / "quarantine.jsonl", jax.process_index() == 0
    if first:
        for left in args.output.glob("quarantine-*.jsonl"):
            left.unlink()  # of other hosts, before version 0.2.0
    return Quarantine(path, args.max_bad_share, prefixes=prefixes, writes=first)


def _describe_usage(usage, cost: float | None) -> str:
    tokens = f"{usage.tokens:,} tokens"
    if usage.unknown:
        tokens += f" (not stated in {usage.unknown:,} answers)"
    line = f"server: {usage.requests:,} requests, {usage.retries:,} retries, {tokens}"
    return line if cost is None else f"{line}, ${cost:,.4f}"


def _check(results: Mapping) -> None:
    lines = check.failures(results)
    for line in lines:
        print(f"check failed: {line}", file=sys.stderr)
    if lines:
        sys.exit(1)
    print("check passed")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("python -m evals.uvrb", __doc__)
    add = parser.add_argument
    embedders.add_arguments(parser)
    text = "directory that contains UVRB/, or the archives"
    add("--data", type=local_path, help=text)
    add("--output", required=True, type=local_path, help="directory for the results")
    text = "comma-separated sets (default: all sixteen, or none with --set)"
    add("--datasets", help=text)
    text = "also score a set of your own, in the layout of docs/uvrb.md; repeatable"
    add("--set", action="append", default=[], metavar="NAME=DIR", help=text)
    text = "instruction of the queries of --set (default: that of DIR/set.json, else none)"
    add("--instruction", metavar="TEXT", help=text)
    text = (
        "metric of --set: R@K, P@K, recall@K, nDCG@K or MRR (default: that of set.json, else R@1)"
    )
    add("--metric", help=text)
    text = (
        "documents that MS-TI and MS-TV are ranked against: the whole corpus, or each query's "
        "candidates; the paper does not specify it (default: whole)"
    )
    add("--moment-pool", choices=POOLS, default="whole", help=text)
    text = "directory for extracted archives (default: OUTPUT/sets)"
    add("--cache", type=local_path, help=text)
    text = "remove a set's extracted archive after embedding it"
    add("--one-at-a-time", action="store_true", help=text)
    add("--baseline", help="directory of the same model, untrained")
    add("--report", type=local_path, help="HTML file to write")
    text = "workdir of the training, for the curves in the report"
    add("--run", type=any_path, help=text)
    text = "stop if a larger share of items is unreadable (default: 0.05)"
    add("--max-bad-share", type=float, default=0.05, help=text)
    text = "exit with status 1 unless the scores beat chance and controls"
    add("--check", action="store_true", help=text)
    add_arguments(parser)
    limits.add_arguments(parser)
    args = parser.parse_args(argv)
    check_arguments(args)
    args.own = own_sets(args.set, args.instruction, args.metric)
    for name in ("instruction", "metric"):
        if getattr(args, name) is not None and not args.own:
            parser.error(f"--{name} is for the sets of --set")
    if args.data is None and (args.datasets or not args.own):
        parser.error("--data is required for the sets of UVRB")
    if not 0 <= args.max_bad_share <= 1:
        parser.error(f"--max-bad-share {args.max_bad_share} must be in 0..1")
    if args.check and not (args.baseline and "shuffled" in args.control):
        parser.error("--check needs --baseline and --control")
    embedders.check_arguments(args, parser.error)
    if args.run and not args.report:
        parser.error("--run needs --report")
    return args


if __name__ == "__main__":
    retain_freed_memory()
    keep_compiled_programs()
    run_cli(lambda: hosts.run(main), resumes=True)
