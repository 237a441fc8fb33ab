"""Embeds a folder or a list of texts, images and videos:

    python -m gve_jax.embed --model M --input clips/ --output vectors
    python -m gve_jax.embed --model M --input items.jsonl --output vectors --prompt-name MSRVTT

A folder gives its videos and images, by their paths. A line of a JSONL file is an item with an
`id` and any of `text`, `image`, `video`, `instruction`, `num_frames`, ... (gve_jax/inputs/item.py);
its paths are relative to the file's folder, and may not leave it. OUTPUT receives

    vectors-00000.npy, ...  float32 [n, D], unit rows
    ids-00000.jsonl, ...    {"id": ...} of each row
    quarantine.jsonl        {"id", "path", "reason", "seconds"} of what could not be read: no row
    settings.json           model, prompt and input that the vectors are of; compared on resuming
    manifest.json           the same with the list of shards: last, when all is done

Killed at any time, the same command embeds what is missing, with the same result. A changed file,
model or prompt is refused: choose another output. Started on several hosts (docs/pods.md), with an
input and an output that all see, they divide the shards; each has the model on its own devices.
"""

import argparse
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from gve_jax import files, hosts, shares
from gve_jax.errors import Parser, UserError, run_cli
from gve_jax.files import read_records, unique_id, write_array, write_json, write_whole
from gve_jax.heap import keep_freed
from gve_jax.inputs import limits
from gve_jax.inputs.instructions import choose_instruction
from gve_jax.inputs.item import Item, as_item
from gve_jax.inputs.paths import inside
from gve_jax.inputs.quarantine import Quarantine
from gve_jax.inputs.suffixes import media_kind
from gve_jax.sharding import own_mesh

FORMAT = "gve_jax vectors 1"
CHUNK = 512  # items given to the model at once; also how often the progress bar moves
SHARDS, LARGEST = 1024, 4096  # of an output, as long as they have at most so many items each


class Encoder(Protocol):
    """What embeds: `gve_jax.GVE`, or anything with these three."""

    fingerprint: dict
    embedding_dim: int

    def encode_valid(self, inputs, ids, quarantine, prompt=None, batch_size=32): ...


@dataclass(frozen=True)
class Entry:
    """One item, its id, and what tells its content from another."""

    id: str
    item: Item
    stamp: str


def main(argv: Sequence[str] | None = None, load: Callable[[str], Encoder] | None = None) -> None:
    """The command line. `load` makes an encoder of a model's name; by default `GVE`."""
    args = _parse(argv)
    prompt = choose_instruction(args.prompt, args.prompt_name)
    load = load or functools.partial(_load_gve, limits=limits.from_arguments(args))
    quarantine = shares.open_quarantine(args.output, args.max_bad_share)
    entries = hosts.each(lambda: _entries(args.input))
    digest = _digest(entries)
    hosts.check_same({"--input": {"items": len(entries), "digest": digest}})
    model = hosts.each(lambda: load(args.model))
    ids = [entry.id for entry in entries]
    count, shards = embed_all(
        args.output, ids, lambda start, stop: [entry.item for entry in entries[start:stop]],
        digest, model, quarantine, prompt=prompt, shard_size=args.shard_size,
        batch_size=args.batch_size,
    )  # fmt: skip
    if jax.process_index():
        return
    print(f"{args.output}: {count:,} vectors of {model.embedding_dim} in {shards} shards")
    print(model.summary())
    print(quarantine.summary(len(entries)))


def embed_all(
    output: Path,
    ids: Sequence[str],
    read: Callable[[int, int], list[Item]],
    digest: str,
    model: Encoder,
    quarantine: Quarantine,
    *,
    prompt: str | None = None,
    shard_size: int | None = None,
    batch_size: int = 32,
    told: str = "embedding",
) -> tuple[int, int]:
    """Embeds what is missing of an output, as the module says; its vectors and shards.

    All hosts call it with the same arguments, but for the quarantine, which is each one's own.

    Args:
      ids: of the items, unique.
      read: the items from `start` to `stop`; called for what is embedded, a chunk at a time.
      digest: tells the items and their content from others.
      shard_size: items of a shard; by default as many as `items_of_shard` says.
      told: what the progress bar says.

    Raises:
      UserError: an output of other settings, a damaged one, one that is another folder on another
        host, too many unreadable items.
    """
    size, dim = shard_size or items_of_shard(len(ids)), model.embedding_dim
    settings = {
        "format": FORMAT,
        "fingerprint": model.fingerprint,
        "prompt": prompt,
        "shard_size": size,
        "input": {"items": len(ids), "digest": digest},
    }
    settings = json.loads(json.dumps(settings))
    hosts.check_same(settings)
    hosts.first(lambda: agree(output, settings))
    shares.check_shared(output)
    starts = range(0, len(ids), size)
    shards = [Shard(output, number, ids[start : start + size], start)
              for number, start in enumerate(starts)]  # fmt: skip
    counts: dict[int, int] = {}  # by shard, on host 0

    def missing() -> list[int]:
        found = {n: shard.count(dim) for n, shard in enumerate(shards) if n not in counts}
        counts.update({n: count for n, count in found.items() if count is not None})
        return [n for n in found if n not in counts]

    def finish() -> int:
        if not shares.appears(lambda: not missing()):
            raise UserError(f"{output}: shards of another host do not appear")
        shares.merge_quarantines(quarantine)
        quarantine.check(len(ids))
        count = sum(counts.values())
        sums = {"dim": dim, "vectors": count, "quarantined": len(ids) - count}
        listed = [{"vectors": shard.vectors.name, "ids": shard.ids.name, "count": counts[n]}
                  for n, shard in enumerate(shards)]  # fmt: skip
        write_json(output / "manifest.json", settings | sums | {"shards": listed})
        return count

    wanted = hosts.first(missing)  # once for all: a network's folder may look different elsewhere
    mine = shares.share(wanted)
    embed = functools.partial(model.encode_valid, quarantine=quarantine, prompt=prompt,
                              batch_size=batch_size)  # fmt: skip
    with _progress() as progress:
        others = sum(len(shards[n].expected) for n in set(wanted) - set(mine))
        bar = progress.add_task(told, total=len(ids) - others)
        progress.advance(bar, len(ids) - sum(len(shards[n].expected) for n in wanted))
        for n in mine:
            _embed(shards[n], len(ids), read, embed, quarantine,
                   lambda count: progress.advance(bar, count))  # fmt: skip
            hosts.at(f"after shard {n} of {output}")
    hosts.wait()
    count = hosts.first(finish)
    if not shares.appears((output / "manifest.json").exists):
        raise UserError(f"{output}: the manifest of host 0 does not appear")
    if not shares.appears(lambda: all(shard.sealed for shard in shards)):
        raise UserError(f"{output}: shards of another host do not appear")
    return count, len(shards)


def items_of_shard(items: int) -> int:
    """At least what the model gets at once, so that hosts can divide them evenly; more where there
    would be too many files."""
    return min(CHUNK * max(1, -(-items // (CHUNK * SHARDS))), LARGEST)


class Shard:
    """Two files of an output, of the expected ids from `start` on; the ids are written last and
    seal it."""

    def __init__(self, output: Path, number: int, expected: Sequence[str], start: int):
        self.vectors = output / f"vectors-{number:05}.npy"
        self.ids = output / f"ids-{number:05}.jsonl"
        self.expected, self.start = expected, start

    @property
    def sealed(self) -> bool:
        return self.ids.exists() and self.vectors.exists()

    def count(self, dim: int) -> int | None:
        """Its vectors, of some of the expected ids; None when it is not finished.

        Raises:
          UserError: files that are damaged or of other items.
        """
        if not self.ids.exists():
            return None
        ids = [record.get("id") for _, record in read_records(self.ids)]
        left = iter(self.expected)
        try:
            shape = np.load(self.vectors, mmap_mode="r", allow_pickle=False).shape
        except (OSError, ValueError) as error:
            raise UserError(f"{self.vectors}: unreadable ({error}); delete {self.ids}") from error
        # Each id is found in what the ids before it have left over: the same order, some missing.
        if shape != (len(ids), dim) or not all(id in left for id in ids):
            raise UserError(
                f"{self.vectors}: {list(shape)} does not fit its ids; delete {self.ids}"
            )
        return len(ids)

    def write(self, vectors: np.ndarray, ids: list[str]) -> None:
        write_array(self.vectors, vectors)
        text = "".join(json.dumps({"id": id}) + "\n" for id in ids)
        write_whole(self.ids, lambda file: file.write(text.encode()))


def _entries(path: Path) -> list[Entry]:
    entries = list(read_folder(path) if path.is_dir() else read_list(path))
    if not entries:
        raise UserError(f"{path}: nothing to embed")
    return entries


def read_list(path: Path) -> Iterator[Entry]:
    """The items of a JSONL file; UserError names the line of one that cannot be."""
    seen: set[str] = set()
    for place, record in read_records(path):
        id = unique_id(place, record, "id", seen)
        seen.add(id)
        fields, files = {key: value for key, value in record.items() if key != "id"}, []
        for key in ("image", "video"):
            if not fields.get(key):
                continue
            value = fields[key]
            frames = key == "video" and isinstance(value, list)
            names = value if frames else [value]
            paths = [str(inside(path.parent, name, f"{place}: {key}")) for name in names]
            fields[key] = paths if frames else paths[0]
            files += paths
        try:
            item = as_item(fields)
        except UserError as error:
            raise UserError(f"{place}: {error}") from error
        yield Entry(id, item, json.dumps([record, [_stamp(file) for file in files]]))


def read_folder(folder: Path) -> Iterator[Entry]:
    """The videos and images of a folder and those below it, in the order of their paths."""
    paths = [Path(above, name) for above, _, names in os.walk(folder) for name in names]
    skipped = 0
    for path in sorted(paths, key=lambda path: path.relative_to(folder).as_posix()):
        kind = media_kind(path)
        if kind is None:
            skipped += 1
            continue
        name = path.relative_to(folder).as_posix()
        file = str(inside(folder, name, f"{folder}:"))
        item = Item(video=file) if kind == "video" else Item(image=file)
        yield Entry(name, item, json.dumps([name, _stamp(file)]))
    if skipped:
        print(f"{folder}: {skipped:,} files are neither videos nor images by their names")


def _stamp(file: str) -> list[int] | None:
    """Size and time of a file, None where there is none: reading it would take as long again."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns]


def _digest(entries: list[Entry]) -> str:
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(entry.stamp.encode() + b"\n")
    return digest.hexdigest()[:16]


def agree(output: Path, settings: dict) -> None:
    """Writes the settings of a new output; UserError, naming the field, if it is of others."""
    path = output / "settings.json"
    if not path.exists() and output.is_dir() and any(output.iterdir()):
        raise UserError(f"{output} is not empty and holds no vectors (no settings.json)")
    files.agree(path, settings, "choose another --output")


def _embed(
    shard: Shard,
    total: int,
    read: Callable,
    embed: Callable,
    quarantine: Quarantine,
    advance: Callable[[int], None],
) -> None:
    vectors, found = [], []
    for at in range(0, len(shard.expected), CHUNK):
        names = list(shard.expected[at : at + CHUNK])
        start = shard.start + at
        rows, valid = embed(read(start, start + len(names)), names)
        quarantine.check(total)
        vectors.append(rows)
        found += [name for name, readable in zip(names, valid, strict=True) if readable]
        advance(len(names))
    shard.write(np.concatenate(vectors), found)


def _progress() -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    return Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True))


def _load_gve(name: str, limits: limits.Limits) -> Encoder:
    from gve_jax import GVE

    return GVE.from_pretrained(name, mesh=own_mesh(), limits=limits, show_progress_bar=True)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m gve_jax.embed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="directory of the model, or its Hub id")
    parser.add_argument("--input", required=True, type=Path, help="a JSONL file, or a folder")
    parser.add_argument("--output", required=True, type=Path, help="folder of the vectors")
    parser.add_argument("--prompt", help="instruction of items that bring none of their own")
    parser.add_argument("--prompt-name", help="the same by its name, MSRVTT")
    parser.add_argument("--batch-size", type=int, default=32, help="items of a batch; 32")
    parser.add_argument("--shard-size", type=int,
                        help=f"items of a shard; {CHUNK}, up to {LARGEST} where there would be "
                        f"more than {SHARDS}")  # fmt: skip
    parser.add_argument("--max-bad-share", type=float, default=0.05,
                        help="stop above this share of unreadable items; 0.05")  # fmt: skip
    limits.add_arguments(parser)
    args = parser.parse_args(argv)
    for name in ("batch_size", "shard_size"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    return args


if __name__ == "__main__":
    keep_freed()
    run_cli(lambda: hosts.run(main))
