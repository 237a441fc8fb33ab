"""`python -m data.pairs import | show | check`: see docs/pairs.md."""

import os
import shlex
import sys

from rich.console import Console
from rich.table import Table

from data.pairs.formats import FORMATS
from gve_jax.cli import Parser, run_cli
from gve_jax.errors import UserError
from gve_jax.progress import progress_bar
from gve_jax.storage.filesystem import as_local_path, local_path
from gve_jax.streams.rows import MAX_NEGATIVES


def main() -> None:
    parser = Parser("python -m data.pairs", __doc__)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)

    imports = commands.add_parser("import", help="rows of another toolkit -> a directory of pairs")
    add = imports.add_argument
    add("--format", required=True, choices=sorted(FORMATS))
    add(
        "--input",
        required=True,
        nargs="+",
        metavar="NAME=PATH",
        help="a source: a .jsonl or "
        ".parquet file or a folder of them; NAME begins with its modality pair, as T2V_mine, or "
        "gets that of the first row",
    )
    add("--output", required=True, type=local_path, help="the folder to make")
    add(
        "--media-root",
        type=local_path,
        help="the folder that paths in rows start from and may "
        "not leave (default: that of the input)",
    )
    add(
        "--corpus",
        nargs="+",
        type=_local,
        help="Tevatron's documents: files, or folders of them",
    )
    add(
        "--negatives",
        type=int,
        help="of each pair; rows with fewer are rejects, further ones are "
        f"left out (default: as many as the first pair has, at most {MAX_NEGATIVES})",
    )
    add("--by-reference", action="store_true", help="store paths instead of media")
    add("--max-reject-share", type=float, default=0.01, help="of a source's pairs (0.01)")
    add("--license", default="", help="for the card, as an identifier: cc-by-4.0")
    add("--beam", action="store_true", help="by Apache Beam, many files at once")

    show = commands.add_parser("show", help="prints sources, sizes and first pairs")
    show.add_argument("pairs", help="a directory, or whatever `config.data.pairs` takes")
    show.add_argument("--rows", type=int, default=2, help="of each source (2)")

    check = commands.add_parser(
        "check", help="whether pairs can be trained on: their shape and media"
    )
    check.add_argument("pairs", help="as of show")
    check.add_argument("--batch-size", type=int, default=1, help="pairs of a global batch (1)")
    check.add_argument("--samples", type=int, default=8, help="pairs of each source to decode (8)")
    check.add_argument(
        "--max-bad-share",
        type=float,
        help="share of a source's pairs that may lack a file (default: as in training, 0.01)",
    )

    args = parser.parse_args()
    {"import": _import, "show": _show, "check": _check}[args.command](args)


def _local(text: str) -> str:
    return os.fspath(local_path(text))


def _input(text: str) -> str:
    """`NAME=PATH` with `~` expanded in the path; the name is what precedes the first `=`."""
    name, equals, path = text.partition("=")
    return f"{name}={as_local_path(path)}" if equals else text


def _import(args) -> None:
    from data.pairs import card
    from data.pairs.builder import MANIFEST, run_import

    if not 0 <= args.max_reject_share <= 1:
        raise UserError(f"--max-reject-share must be from 0 to 1, not {args.max_reject_share}")
    if args.negatives is not None and not 0 <= args.negatives <= MAX_NEGATIVES:
        raise UserError(f"--negatives must be from 0 to {MAX_NEGATIVES}, not {args.negatives}")
    if args.media_root is not None and not args.media_root.is_dir():
        raise UserError(f"--media-root {args.media_root}: no such folder")
    if args.corpus and args.format != "tevatron":
        raise UserError("--corpus is for --format tevatron")
    args.input = [_input(text) for text in args.input]
    was_there = (args.output / MANIFEST).is_file()
    tallies = run_import(
        args.output,
        args.input,
        args.format,
        media_root=args.media_root,
        negatives=args.negatives,
        by_reference=args.by_reference,
        corpus=args.corpus,
        max_reject_share=args.max_reject_share,
        license=args.license,
        beam=args.beam,
        command=shlex.join(["python", "-m", "data.pairs", *sys.argv[1:]]),
    )
    for name, tally in tallies.items():
        print(card.line(name, tally))
        for warning in card.warnings(name, tally):
            print(f"warning: {warning}")
    print(f"{args.output} is already imported" if was_there else f"wrote {args.output}")


def _show(args) -> None:
    from gve_jax.media.item import source_name
    from gve_jax.streams.sources import Sources, parse

    def describe(item) -> str:
        text = (item.text or "")[:60]
        media = [
            f"{key} {source_name(getattr(item, key))}"
            for key in ("image", "video")
            if getattr(item, key) is not None
        ]
        return " + ".join([repr(text)] * bool(text) + media)

    sources = Sources(parse(args.pairs))
    sources.check(dict.fromkeys(sources.sizes, 1))
    sources.fetch()
    table = Table(title=args.pairs)
    for column in ("source", "pairs", "id", "query", "positive", "negatives"):
        table.add_column(column)
    for name, size in sources.sizes.items():
        for number, pair in enumerate(sources.read(name, range(min(size, args.rows)))):
            first = (name, f"{size:,}") if number == 0 else ("", "")
            sides = describe(pair["query"]), describe(pair["positive"])
            table.add_row(*first, pair["id"], *sides, str(len(pair["negatives"])))
    Console().print(table)


def _check(args) -> None:
    from data.pairs.check import check_media
    from gve_jax.running.sections import DataConfig
    from gve_jax.streams.sources import Sources, parse

    share = DataConfig.max_bad_share if args.max_bad_share is None else args.max_bad_share
    if not 0 <= share <= 1:
        raise UserError(f"--max-bad-share must be from 0 to 1, not {share}")
    if args.samples < 1:
        raise UserError(f"--samples must be at least 1, not {args.samples}")
    sources = Sources(parse(args.pairs))
    sources.check(dict.fromkeys(sources.sizes, args.batch_size))
    sources.fetch()
    for name, size in sources.sizes.items():
        indices = sorted({number * (size - 1) // 15 for number in range(16)})
        counts = {len(pair["negatives"]) for pair in sources.read(name, indices)}
        if len(counts) > 1:
            raise UserError(
                f"{args.pairs}: source {name!r} has pairs of {sorted(counts)} "
                "negatives; a batch has one number of them"
            )
    pairs = sum(sources.sizes.values())
    with progress_bar("percent") as progress:
        bar = progress.add_task("looking for media", total=pairs)
        warnings = check_media(
            sources, args.samples, share, lambda count: progress.advance(bar, count)
        )
    for warning in (*sources.warnings(), *warnings):
        print(f"warning: {warning}")
    print(
        f"{args.pairs}: {len(sources.sizes)} sources, {pairs:,} pairs, ready for batches of "
        f"{args.batch_size}"
    )


if __name__ == "__main__":
    run_cli(main)
