"""Searches the moments of a folder of videos and images:

    python -m gve_jax.search index --model M --media clips --index idx
    python -m gve_jax.search query --index idx "a dog jumps into the water"
    python -m gve_jax.search query --index idx --image photo.jpg "but at night"
    python -m gve_jax.search query --index idx --video a.mp4 --from 12 --to 15
    python -m gve_jax.search serve --index idx
    python -m gve_jax.search export --index idx --output moments.parquet

`index` divides videos into windows and embeds each of them. Repeated, it embeds what is new or has
changed, drops what is gone and follows renames; model and windows are those of the index then. It
may be killed at any time. `query` prints the best moments with their files and seconds. See
docs/search.md, and docs/stores.md for LanceDB and Qdrant (`--store`).
"""

import argparse
import contextlib
import functools
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from rich.progress import Progress

from gve_jax.cli import Parser, load_encoder, run_cli
from gve_jax.errors import UserError, install_command
from gve_jax.hardware.malloc import retain_freed_memory
from gve_jax.hardware.programs import keep_compiled_programs
from gve_jax.index.databases import open_database
from gve_jax.index.filters import Filters
from gve_jax.index.index import DTYPES, MERGE, Changes, Index
from gve_jax.index.query import GROUPS, Hit
from gve_jax.index.store import SETTINGS
from gve_jax.index.windows import KINDS, Windows
from gve_jax.inputs.instructions import choose_instruction
from gve_jax.media import limits
from gve_jax.progress import progress_bar
from gve_jax.storage.files import read_json
from gve_jax.storage.filesystem import local_path

SHOWN = 10  # unreadable files that are listed


def main(argv: Sequence[str] | None = None, load: Callable[[str], Any] | None = None) -> None:
    """The command line. `load` opens an encoder by its name (default: a `GVE`)."""
    args = _parse(argv)
    load = load or functools.partial(load_encoder, **limits.decoding_options(args))
    COMMANDS[args.command][1](args, load)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("python -m gve_jax.search", __doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (add_arguments, _, text) in COMMANDS.items():
        command = commands.add_parser(
            name, help=text, prog=f"{parser.prog} {name}", doc=f"{text[0].upper()}{text[1:]}."
        )
        command.add_argument("--index", required=True, type=local_path, help="folder of the index")
        add_arguments(command)
        limits.add_arguments(command)
    return parser.parse_args(argv)


# ---- index ---------------------------------------------------------------------------------------


def _add_index_arguments(parser: argparse.ArgumentParser) -> None:
    default = Windows()
    parser.add_argument(
        "--model",
        help="directory of the model, or its Hub id, ORG/NAME or ORG/NAME@REVISION (default: that "
        "of the index)",
    )
    parser.add_argument(
        "--media", type=local_path, help="folder of videos and images (default: that of the index)"
    )
    parser.add_argument("--prompt", help="instruction of the moments (default: none)")
    parser.add_argument("--prompt-name", help="that instruction by its name")
    parser.add_argument(
        "--windows",
        choices=KINDS,
        help=f"how videos are divided (default: {default.kind})",
    )
    parser.add_argument(
        "--length",
        type=float,
        help=f"seconds of a window (fixed), or at most (shots) (default: {default.length:g})",
    )
    parser.add_argument(
        "--stride",
        type=float,
        help=f"seconds between the begins of fixed windows (default: {default.stride:g})",
    )
    parser.add_argument(
        "--shortest",
        type=float,
        help="seconds; shorter shots join a neighbour "
        f"(default: {default.shortest:g}, or half of --length)",
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="of the stored vectors; float16 halves the index (default: float32)",
    )
    parser.add_argument(
        "--metadata",
        type=local_path,
        help="JSONL with a `path` and any other keys in each line (default: metadata.jsonl in the "
        "media folder)",
    )
    parser.add_argument("--batch-size", type=int, default=32, help="batch size (default: 32)")
    parser.add_argument(
        "--retry",
        action="store_true",
        help="read unreadable files again although they have not changed",
    )
    parser.add_argument(
        "--follow-links",
        action="store_true",
        help="follow links, also out of the media folder (default: links are passed over)",
    )
    _add_store_argument(parser, "make this database hold the same moments afterwards")


def _add_store_argument(parser: argparse.ArgumentParser, purpose: str) -> None:
    parser.add_argument(
        "--store",
        metavar="KIND=PLACE",
        help=f"{purpose}: lancedb=FOLDER, qdrant=http://HOST:PORT or qdrant=FOLDER, perhaps with "
        "#TABLE (default: none)",
    )


def _index(args: argparse.Namespace, load: Callable) -> None:
    if args.batch_size < 1:
        raise UserError("--batch-size must be at least 1")
    store = open_database(args.store) if args.store else None
    index = _open_or_create(args, load)
    with index, progress_bar() as progress:
        changes = index.update(
            retry=args.retry,
            follow_links=args.follow_links,
            metadata=args.metadata,
            batch_size=args.batch_size,
            report=functools.partial(progress.console.print, markup=False, soft_wrap=True),
            progress=_show(progress, "embedding"),
        )
    _print_changes(index, changes)
    if store:
        with store, progress_bar() as progress:
            added, removed = index.write_to(store, _show(progress, f"writing to {store.name}"))
        print(f"{store.name}: {added:,} moments added, {removed:,} removed")


def _show(progress: Progress, description: str) -> Callable[[int, int], None]:
    """Shows the numbers of finished and of all things, from the first call on."""

    def show(done: int, total: int) -> None:
        bar = progress.task_ids[0] if progress.task_ids else progress.add_task(description)
        progress.update(bar, completed=done, total=total)

    return show


def _open_or_create(args: argparse.Namespace, load: Callable) -> Index:
    old = args.index / SETTINGS
    options = {"load": load, "limits": limits.from_arguments(args), "processes": args.workers}
    if not old.is_file():
        for name in ("model", "media"):
            if getattr(args, name) is None:
                raise UserError(f"--{name} is missing: {args.index} is not an index yet")
        prompt = choose_instruction(args.prompt, args.prompt_name)
        return Index.create(
            args.index,
            args.media,
            args.model,
            windows=_windows(args, Windows()),
            prompt=prompt,
            dtype=args.dtype or "float32",
            **options,
        )
    settings = read_json(old)
    same = args.model is None or args.model == settings.get("model")
    same = same or os.path.abspath(args.model) == settings.get("model")
    index = Index.open(args.index, None if same else args.model, **options)
    if not same:
        _ = index.model  # compares the fingerprints
    given = {
        "media": args.media and os.path.abspath(args.media),
        "prompt": choose_instruction(args.prompt, args.prompt_name),
        "dtype": args.dtype,
        "windows": _windows(args, index.windows),
    }
    for name, value in given.items():
        was = index.windows if name == "windows" else settings[name]
        if value is not None and value != was:
            raise UserError(
                f"{old}: created with {name} = {was}, now {value}; choose another --index"
            )
    return index


def _windows(args: argparse.Namespace, default: Windows) -> Windows:
    length = default.length if args.length is None else args.length
    stride, shortest = args.stride, args.shortest
    return Windows(
        kind=args.windows or default.kind,
        length=length,
        stride=min(default.stride, length) if stride is None else stride,
        shortest=min(default.shortest, length / 2) if shortest is None else shortest,
    )


def _print_changes(index: Index, changes: Changes) -> None:
    for record in changes.unreadable[:SHOWN]:
        print(f"unreadable: {record.path}: {record.reason}")
    if len(changes.unreadable) > SHOWN:
        print(f"unreadable: {len(changes.unreadable) - SHOWN:,} more")
    for path in changes.busy[:SHOWN]:
        print(f"left for next time, as it is being written: {path}")
    print(changes)
    text = f"{index.folder}: {len(index):,} moments of {len(index.files):,} files"
    if bad := index.unreadable:
        text += f"; {len(bad):,} unreadable (python -m gve_jax.search unreadable --index ...)"
    print(text)


# ---- query ---------------------------------------------------------------------------------------


def _add_query_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("text", nargs="?", help="text of the query")
    parser.add_argument("--image", type=local_path, help="image of the query")
    parser.add_argument(
        "--video",
        type=local_path,
        help="video of the query: a file, or the path of one in the index",
    )
    parser.add_argument("--from", type=float, dest="start", help="seconds at which it begins")
    parser.add_argument("--to", type=float, dest="end", help="seconds at which it ends")
    parser.add_argument("--prompt", help="instruction of the query (default: the model's)")
    parser.add_argument("--prompt-name", help="that instruction by its name")
    parser.add_argument(
        "--model", help="directory or Hub id of the model (default: that of the index)"
    )
    parser.add_argument("-k", type=int, default=10, help="number of hits (default: 10)")
    parser.add_argument(
        "--group-by",
        choices=GROUPS,
        default="moment",
        help="video: one hit for each file (default: moment)",
    )
    parser.add_argument(
        "--merge",
        type=float,
        default=MERGE,
        metavar="SHARE",
        help="join neighbours that are worse by at most this share of the distance to the median "
        f"score; negative: never (default: {MERGE:g})",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object for each hit")
    _add_store_argument(parser, "compute the scores in this database")
    group = parser.add_argument_group("filters (all must hold)")
    group.add_argument(
        "--path", action="append", default=[], metavar="GLOB", help="paths, such as 'cam1/*.mp4'"
    )
    group.add_argument(
        "--exclude", action="append", default=[], metavar="GLOB", help="paths that are left out"
    )
    group.add_argument("--kind", choices=("video", "image"), help="videos or images only")
    group.add_argument("--min-duration", type=float, metavar="SECONDS", help="of the whole video")
    group.add_argument("--max-duration", type=float, metavar="SECONDS", help="of the whole video")
    group.add_argument(
        "--after",
        metavar="DATE",
        help="2026-01-31 or 2026-01-31T12:00; of `date` in the metadata, or of the file",
    )
    group.add_argument("--before", metavar="DATE", help="that day included")
    group.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="CONDITION",
        help="on your metadata: 'camera=north', 'year>=2020', 'title~*dog*' (= != < <= > >= ~)",
    )


def _query(args: argparse.Namespace, load: Callable) -> None:
    item = {"text": args.text, "image": args.image, "video": args.video}
    if args.video is None and not (args.start is args.end is None):
        raise UserError("--from and --to are of --video, which is missing")
    item |= {"video_start": args.start, "video_end": args.end}
    item = {name: value for name, value in item.items() if value is not None}
    if not item:
        raise UserError("nothing to search for: give a text, --image or --video")
    filters = Filters(
        path=args.path,
        exclude=args.exclude,
        kind=args.kind,
        min_duration=args.min_duration,
        max_duration=args.max_duration,
        after=args.after,
        before=args.before,
        where=args.where,
    )
    options = {"load": load, "limits": limits.from_arguments(args), "processes": args.workers or 1}
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(open_database(args.store)) if args.store else None
        index = stack.enter_context(Index.open(args.index, args.model, **options))
        hits = index.search(
            item,
            args.k,
            group_by=args.group_by,
            merge=args.merge,
            prompt=args.prompt,
            prompt_name=args.prompt_name,
            filters=filters,
            store=store,
        )
    if args.json:
        for hit in hits:
            print(json.dumps(hit.to_json()))
        return
    if not hits:
        print(
            "no moment fulfils the filters" if len(index) else "the index is empty", file=sys.stderr
        )
    print_hits(hits)


def print_hits(hits: Sequence[Hit]) -> None:
    """A line for each hit: rank, score, file, start and end in seconds."""
    width = max((len(hit.path) for hit in hits), default=0)
    for hit in hits:
        times = f"{hit.start_sec:10.2f} {hit.end_sec:10.2f}" if hit.kind == "video" else ""
        print(f"{hit.rank:4}  {hit.score:.4f}  {hit.path:{width}} {times}".rstrip())


# ---- unreadable ----------------------------------------------------------------------------------


def _unreadable(args: argparse.Namespace, load: Callable) -> None:
    for record in Index.open(args.index).unreadable:
        if args.json:
            print(json.dumps({"path": record.path, "reason": record.reason}))
        else:
            print(f"{record.path}: {record.reason}")


def _add_unreadable_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print a JSON object for each file")


# ---- export --------------------------------------------------------------------------------------


def _add_export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", required=True, type=local_path, help="file.parquet or folder.lance to write"
    )


def _export(args: argparse.Namespace, load: Callable) -> None:
    try:
        count = Index.open(args.index).export(args.output)
    except ImportError as error:
        raise UserError(
            f"export needs {error.name}, which is not installed: pip install 'gve_jax[import]'"
        ) from error
    print(f"{args.output}: {count:,} moments")


# ---- serve ---------------------------------------------------------------------------------------


def _add_serve_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", help="directory or Hub id of the model (default: that of the index)"
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address; if other machines can reach it, the page has a key (default: 127.0.0.1)",
    )
    parser.add_argument("--port", type=int, default=0, help="0: a free one (default: 0)")
    parser.add_argument(
        "--no-browser", action="store_true", help="print the address, and open no browser"
    )
    parser.add_argument(
        "--max-upload", type=int, default=256, help="MiB of a dropped file (default: 256)"
    )


def _serve(args: argparse.Namespace, load: Callable) -> None:
    try:
        from gve_jax.page.server import make_server, open_browser
        from gve_jax.serving.sockets import bind
    except ImportError as error:
        raise UserError(
            f"the page needs {error.name}, which is not installed: {install_command('serve')}"
        ) from error
    if args.max_upload < 1:
        raise UserError("--max-upload must be at least 1")
    options = {"load": load, "limits": limits.from_arguments(args), "processes": args.workers}
    with Index.open(args.index, args.model, **options) as index:
        listener = bind(args.host, args.port)
        _ = index.model  # before the page is announced

        def ready(url: str) -> None:
            print(f"{index.folder}: {len(index):,} moments at {url} (Ctrl-C ends)", flush=True)
            if not args.no_browser:
                open_browser(url)

        upload = args.max_upload << 20
        server = make_server(index, listener, args.host, max_upload=upload, ready=ready)
        server.run(sockets=[listener])


# By name: adds its arguments, runs it, help.
COMMANDS: dict[str, tuple[Callable, Callable, str]] = {
    "index": (_add_index_arguments, _index, "make an index of a folder, or bring it up to date"),
    "query": (_add_query_arguments, _query, "search an index"),
    "unreadable": (
        _add_unreadable_arguments,
        _unreadable,
        "list the files that could not be read, with the reasons",
    ),
    "export": (_add_export_arguments, _export, "write the moments of an index as a table"),
    "serve": (_add_serve_arguments, _serve, "search an index in a local page"),
}


if __name__ == "__main__":
    retain_freed_memory()
    keep_compiled_programs()
    run_cli(main)
