"""Writes sets of UVRB as TFDS datasets, one at a time:

    python -m data.uvrb --data DIR --output DIR [--datasets MSRVTT,...] [--by-reference]

DIR is that of `python -m evals.uvrb`: UVRB/<SET>/, or the archives. Each set is written to
OUTPUT/uvrb/<SET>/1.0.0, with media in the records or by reference to their paths. Sets that exist
are skipped, so that a killed command can be repeated.
"""

import argparse
from collections.abc import Sequence

from absl import logging

from data.uvrb.builder import build
from data.uvrb.sets import Sets
from data.uvrb.tasks import POOLS, choose
from gve_jax.cli import Parser, run_cli
from gve_jax.progress import progress_bar
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
    with progress_bar() as progress:
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
    parser = Parser("python -m data.uvrb", __doc__)
    add = parser.add_argument
    text = "directory that contains UVRB/, or the archives"
    add("--data", required=True, type=local_path, help=text)
    add("--output", required=True, type=local_path, help="TFDS data_dir")
    add("--datasets", help="comma-separated sets (default: all sixteen)")
    add("--by-reference", action="store_true", help="store paths instead of media")
    text = "whether queries of MS-TI and MS-TV store their candidates (default: whole)"
    add("--moment-pool", choices=POOLS, default="whole", help=text)
    text = "directory for extracted archives (default: OUTPUT/sets)"
    add("--cache", type=local_path, help=text)
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_cli(main)
