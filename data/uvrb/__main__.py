"""Writes sets of UVRB as TFDS datasets, one at a time:

    python -m data.uvrb --data DIR --output DIR [--datasets MSRVTT,...] [--by-reference]

DIR is what `python -m evals.uvrb` takes: UVRB/<SET>/, or the archives. Written to
OUTPUT/uvrb/<SET>/1.0.0, with media in the records, or by reference to where they lie. A set that is
there already is left alone, so that a killed command can be repeated.
"""

import argparse
from collections.abc import Sequence

from absl import logging
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data.uvrb.builder import build
from data.uvrb.sets import Sets
from data.uvrb.tasks import POOLS, choose
from gve_jax.errors import Parser, run_cli
from gve_jax.storage.filesystem import local_path


def main(argv: Sequence[str] | None = None) -> None:
    args = _parse(argv)
    logging.set_verbosity(logging.ERROR)
    tasks = choose(args.datasets)
    source = Sets(
        args.data,
        args.cache or args.output / "sets",
        moment_pool=args.moment_pool,
        one_at_a_time=not args.by_reference,
    )
    source.check(tasks)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        for found in source.each(tasks):
            bar = progress.add_task(found.task.name, total=source.size([found.task]))
            target = build(
                source,
                found.task,
                args.output,
                args.by_reference,
                lambda records, bar=bar: progress.advance(bar, records),
            )
            print(f"{target}: {len(found.queries):,} queries, {len(found.corpus):,} documents")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m data.uvrb",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data", required=True, type=local_path, help="directory that holds UVRB/, or the archives"
    )
    parser.add_argument("--output", required=True, type=local_path, help="TFDS's data_dir")
    parser.add_argument("--datasets", help="comma-separated sets; all sixteen by default")
    parser.add_argument("--by-reference", action="store_true", help="store paths, not media")
    parser.add_argument(
        "--moment-pool",
        choices=POOLS,
        default="whole",
        help="store candidates of MS-TI's and MS-TV's queries",
    )
    parser.add_argument(
        "--cache", type=local_path, help="where archives are extracted; OUTPUT/sets"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_cli(main)
