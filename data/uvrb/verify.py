"""Checks a copy of UVRB before anything is embedded:

    python -m data.uvrb.verify --data DIR [--datasets MSRVTT,...]

Each set is read as `python -m evals.uvrb` reads it: every list, path and positive; its counts are
compared with the paper's table, and every file is hashed. Archives are not extracted. The authors
have not published hashes: the first run records those of a valid set in DIR/hashes.json, and later
runs compare with them. Exits with status 1 if a set is missing or invalid.
"""

import argparse
import contextlib
import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from data.uvrb.archives import find_parts, scan
from data.uvrb.files import Folder, Listed
from data.uvrb.reader import read_set
from data.uvrb.tasks import MOMENT, Task, choose
from gve_jax.cli import Parser, run_cli
from gve_jax.errors import UserError
from gve_jax.storage.digests import file_sha256
from gve_jax.storage.files import write_json
from gve_jax.storage.filesystem import local_path

_LISTS = tuple(f"jsonl/{name}.jsonl" for name in ("queries", "instances", "corpus"))
_LIST_BYTES = 1 << 30  # limit for a list in an archive, stored on disk during the check
SHOWN = 3  # problems of one kind to print


@dataclass
class Result:
    """The state of one set; each of `problems` is a line."""

    form: str = "missing"
    queries: int | None = None
    corpus: int | None = None
    files: dict[str, str] = field(default_factory=dict)  # SHA-256 by path
    bytes: int = 0
    note: str = ""
    hashes: str = ""
    problems: list[str] = field(default_factory=list)


def main(argv: Sequence[str] | None = None) -> None:
    args = _parse(argv)
    record = args.record or args.data / "hashes.json"
    known = _known(record)
    table = Table(title=f"UVRB in {args.data}", title_justify="left")
    for column in ("set", "form", "queries", "corpus", "files", "GB", "hashes"):
        table.add_column(column, justify="right" if column not in ("set", "form") else "left")
    problems, notes = [], []
    console = Console()
    for task in choose(args.datasets):
        with console.status(f"reading {task.name}") as status:
            result = verify(
                args.data,
                task,
                known,
                lambda read, name=task.name: status.update(f"reading {name}, {read / 1e9:.1f} GB"),
            )
        if not result.problems and result.hashes == "recorded":
            write_json(record, {"sets": known})
        counts = [_count(result.queries, task.queries), _count(result.corpus, task.corpus)]
        table.add_row(
            task.name,
            result.form,
            *counts,
            f"{len(result.files):,}",
            f"{result.bytes / 1e9:.2f}",
            result.hashes,
        )
        problems += result.problems
        notes += [result.note] if result.note else []
    console.print(table)
    for line in notes:
        print(line)
    print(f"hashes: {record} (none are published; these are from the first valid copy)")
    for line in problems:
        print(f"wrong: {line}", file=sys.stderr)
    if problems:
        sys.exit(1)
    print("all sets are valid")


def verify(
    data: Path,
    task: Task,
    known: dict[str, dict[str, str]],
    tick: Callable[[int], object] = lambda read: None,
) -> Result:
    """Checks one set; compares its hashes with `known[NAME]`, or adds them if it is valid."""
    result = Result()
    folder = data / "UVRB" / task.name
    try:
        if folder.is_dir():
            result.form = "folder"
            home = folder.resolve()
            paths = (path for path in folder.rglob("*") if path.is_file())
            for path in sorted(path for path in paths if path.resolve().is_relative_to(home)):
                result.files[path.relative_to(folder).as_posix()] = file_sha256(path)
                result.bytes += path.stat().st_size
                tick(result.bytes)
            _read(data, task, Folder(folder), result)
        elif parts := find_parts(data, task.name) or find_parts(data / "UVRB", task.name):
            result.form = f"{len(parts)} part{'s' * (len(parts) > 1)}"
            with tempfile.TemporaryDirectory() as lists:
                _scan(parts, task, Path(lists), result, tick)
        else:
            result.problems.append(f"{task.name}: neither {folder} nor {task.name}.tar.gz.part00")
    except UserError as error:
        result.problems.append(str(error))
    if not result.problems:
        _compare(task, result, known)
    return result


def _scan(parts: Sequence[Path], task: Task, lists: Path, result: Result, tick: Callable) -> None:
    root = lists / "UVRB" / task.name
    (root / "jsonl").mkdir(parents=True)

    def take(path: str, size: int, blocks) -> None:
        digest, target = hashlib.sha256(), contextlib.nullcontext()
        if path in _LISTS:
            if size > _LIST_BYTES:
                raise UserError(f"{task.name}: {path} of {size:,} bytes is too large for a list")
            target = open(root / path, "wb")
        with target as file:
            for block in blocks:
                digest.update(block)
                if file is not None:
                    file.write(block)
        result.files[path] = digest.hexdigest()
        result.bytes += size

    scan(parts, task.name, take, tick=tick)
    known = {path: [0, 0, digest] for path, digest in result.files.items()}
    try:
        _read(lists, task, Listed(root, known), result)
    except UserError as error:  # names a list in the temporary folder
        raise UserError(_short(str(error), lists)) from error


def _read(home: Path, task: Task, files: Folder, result: Result) -> None:
    missing: list[str] = []
    read = read_set(home, task, files=files, missing=missing)
    result.queries, result.corpus = len(read.queries), len(read.corpus)
    result.problems += [f"{task.name}: {_short(line, home)}" for line in missing[:SHOWN]]
    if more := len(missing) - SHOWN:
        result.problems += [f"{task.name}: {more:,} more media are missing"] if more > 0 else []
    for what in ("queries", "corpus"):
        count, printed = getattr(result, what), getattr(task, what)
        pooled = what == "corpus" and task.name in MOMENT
        if count != printed and not pooled:
            result.problems.append(f"{task.name}: {what} {count:,}, the paper has {printed:,}")
    if task.name in MOMENT:
        pool = _describe_pool(home, task)
        result.note = f"{task.name}: the paper prints a corpus of {task.corpus}; {pool}"


def _describe_pool(home: Path, task: Task) -> str:
    """Whether the files have candidates, the other interpretation of the paper's corpus."""
    try:
        read = read_set(home, task, moment_pool="candidates", media=False)
    except UserError as error:
        return f"no candidates ({_short(str(error), home)})"
    sizes = {len(pool) for pool in read.candidates}
    count = f"{min(sizes)}" if len(sizes) == 1 else f"{min(sizes)} to {max(sizes)}"
    return f"each query has {count} candidates: --moment-pool candidates ranks those"


def _short(line: str, home: Path) -> str:
    return line.replace(f"{home.resolve()}/", "").replace(f"{home}/", "")


def _compare(task: Task, result: Result, known: dict[str, dict[str, str]]) -> None:
    if task.name not in known:
        known[task.name], result.hashes = result.files, "recorded"
        return
    old = known[task.name]
    differing = sorted(
        path for path in old.keys() | result.files.keys() if old.get(path) != result.files.get(path)
    )
    result.hashes = f"{len(differing):,} differ" if differing else "the same"
    for path in differing[:SHOWN]:
        what = "is new" if path not in old else "has changed"
        what = what if path in result.files else "is gone"
        result.problems.append(f"{task.name}: {path} {what} since its hash was recorded")


def _count(count: int | None, printed: int) -> str:
    return "" if count is None else f"{count:,} of {printed:,}"


def _known(record: Path) -> dict[str, dict[str, str]]:
    if not record.exists():
        return {}
    try:
        sets = json.loads(record.read_text(encoding="utf-8"))["sets"]
        if not all(isinstance(files, dict) for files in sets.values()):
            raise ValueError("not hashes by file")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{record}: not a record of hashes ({error})") from error
    return sets


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("python -m data.uvrb.verify", __doc__)
    add = parser.add_argument
    text = "directory that contains UVRB/, or the archives"
    add("--data", required=True, type=local_path, help=text)
    add("--datasets", help="comma-separated sets (default: all sixteen)")
    add("--record", type=local_path, help="file of the hashes (default: DATA/hashes.json)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_cli(main)
