"""Checks a copy of UVRB before anything is embedded:

    python -m data.uvrb.verify --data DIR [--datasets MSRVTT,...]

Each set is read as `python -m evals.uvrb` would read it: every list, every path, every positive;
its counts are compared with the paper's table, and every file is hashed. Archives are read in
place, without extracting them. The authors have published no hashes: the first time, those of a
sound set are recorded in DIR/hashes.json, and later times are compared with it. Exits with 1 if a
set is missing or not as it should be.
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
from data.uvrb.files import Folder, Listed, file_sha256
from data.uvrb.reader import read_set
from data.uvrb.tasks import MOMENT, Task, choose
from gve_jax.errors import Parser, UserError, run_cli
from gve_jax.storage.files import write_json
from gve_jax.storage.filesystem import local_path

_LISTS = tuple(f"jsonl/{name}.jsonl" for name in ("queries", "instances", "corpus"))
_LIST_BYTES = 1 << 30  # of one of an archive, which are held on disk while it is checked
SHOWN = 3  # problems of one kind that are told one by one


@dataclass
class Found:
    """What was found of one set; `problems` are one line each."""

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
            found = verify(
                args.data,
                task,
                known,
                lambda read, name=task.name: status.update(f"reading {name}, {read / 1e9:.1f} GB"),
            )
        if not found.problems and found.hashes == "recorded":
            write_json(record, {"sets": known})
        counts = [_count(found.queries, task.queries), _count(found.corpus, task.corpus)]
        table.add_row(
            task.name,
            found.form,
            *counts,
            f"{len(found.files):,}",
            f"{found.bytes / 1e9:.2f}",
            found.hashes,
        )
        problems += found.problems
        notes += [found.note] if found.note else []
    console.print(table)
    for line in notes:
        print(line)
    print(f"hashes: {record} (none are published; these are of the first sound copy seen here)")
    for line in problems:
        print(f"wrong: {line}", file=sys.stderr)
    if problems:
        sys.exit(1)
    print("all sets are as they should be")


def verify(
    data: Path,
    task: Task,
    known: dict[str, dict[str, str]],
    tick: Callable[[int], object] = lambda read: None,
) -> Found:
    """Checks one set; compares its hashes with `known[NAME]`, or enters them if it is sound."""
    found = Found()
    folder = data / "UVRB" / task.name
    try:
        if folder.is_dir():
            found.form = "folder"
            home = folder.resolve()
            paths = (path for path in folder.rglob("*") if path.is_file())
            for path in sorted(path for path in paths if path.resolve().is_relative_to(home)):
                found.files[path.relative_to(folder).as_posix()] = file_sha256(path)
                found.bytes += path.stat().st_size
                tick(found.bytes)
            _read(data, task, Folder(folder), found)
        elif parts := find_parts(data, task.name) or find_parts(data / "UVRB", task.name):
            found.form = f"{len(parts)} part{'s' * (len(parts) > 1)}"
            with tempfile.TemporaryDirectory() as lists:
                _scan(parts, task, Path(lists), found, tick)
        else:
            found.problems.append(f"{task.name}: neither {folder} nor {task.name}.tar.gz.part00")
    except UserError as error:
        found.problems.append(str(error))
    if not found.problems:
        _compare(task, found, known)
    return found


def _scan(parts: Sequence[Path], task: Task, lists: Path, found: Found, tick: Callable) -> None:
    root = lists / "UVRB" / task.name
    (root / "jsonl").mkdir(parents=True)

    def take(path: str, size: int, blocks) -> None:
        digest, kept = hashlib.sha256(), contextlib.nullcontext()
        if path in _LISTS:
            if size > _LIST_BYTES:
                raise UserError(f"{task.name}: {path} of {size:,} bytes is too large for a list")
            kept = open(root / path, "wb")
        with kept as file:
            for block in blocks:
                digest.update(block)
                if file is not None:
                    file.write(block)
        found.files[path] = digest.hexdigest()
        found.bytes += size

    scan(parts, task.name, take, tick=tick)
    known = {path: [0, 0, digest] for path, digest in found.files.items()}
    try:
        _read(lists, task, Listed(root, known), found)
    except UserError as error:  # of a list that lies in a temporary folder
        raise UserError(_short(str(error), lists)) from error


def _read(home: Path, task: Task, files: Folder, found: Found) -> None:
    missing: list[str] = []
    read = read_set(home, task, files=files, missing=missing)
    found.queries, found.corpus = len(read.queries), len(read.corpus)
    found.problems += [f"{task.name}: {_short(line, home)}" for line in missing[:SHOWN]]
    if more := len(missing) - SHOWN:
        found.problems += [f"{task.name}: {more:,} more media are missing"] if more > 0 else []
    for what in ("queries", "corpus"):
        here, table = getattr(found, what), getattr(task, what)
        pooled = what == "corpus" and task.name in MOMENT
        if here != table and not pooled:
            found.problems.append(f"{task.name}: {what} {here:,}, the paper has {table:,}")
    if task.name in MOMENT:
        found.note = f"{task.name}: the paper prints a corpus of {task.corpus}; {_pool(home, task)}"


def _pool(home: Path, task: Task) -> str:
    """Which readings of the paper's pool the files allow."""
    try:
        read = read_set(home, task, moment_pool="candidates", media=False)
    except UserError as error:
        return f"no candidates ({_short(str(error), home)})"
    sizes = {len(pool) for pool in read.candidates}
    told = f"{min(sizes)}" if len(sizes) == 1 else f"{min(sizes)} to {max(sizes)}"
    return f"each query has {told} candidates: --moment-pool candidates ranks those"


def _short(line: str, home: Path) -> str:
    return line.replace(f"{home.resolve()}/", "").replace(f"{home}/", "")


def _compare(task: Task, found: Found, known: dict[str, dict[str, str]]) -> None:
    if task.name not in known:
        known[task.name], found.hashes = found.files, "recorded"
        return
    old = known[task.name]
    differing = sorted(
        path for path in old.keys() | found.files.keys() if old.get(path) != found.files.get(path)
    )
    found.hashes = f"{len(differing):,} differ" if differing else "the same"
    for path in differing[:SHOWN]:
        what = "is new" if path not in old else "has changed"
        what = what if path in found.files else "is gone"
        found.problems.append(f"{task.name}: {path} {what} since its hash was recorded")


def _count(here: int | None, table: int) -> str:
    return "" if here is None else f"{here:,} of {table:,}"


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
    parser = Parser(
        prog="python -m data.uvrb.verify",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data", required=True, type=local_path, help="directory that holds UVRB/, or the archives"
    )
    parser.add_argument("--datasets", help="comma-separated sets; all sixteen by default")
    parser.add_argument("--record", type=local_path, help="where hashes are kept; DIR/hashes.json")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_cli(main)
