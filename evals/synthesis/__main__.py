"""Trains on the generated world's pairs without and with what data.uvrd synthesizes from its raw
videos, the same steps and seeds, and compares the composed ability:

    python -m evals.synthesis --workdir runs/synthesis

"Without" are kinds of pairs that the paper collects (table 6): images, composed queries for images,
texts for videos; nothing asks for a video by a frame or a clip. "With" adds UVRD's types, made of
raw videos that neither side trains on otherwise. WORKDIR receives the world, the pairs, a folder
for each run, and results.json. Repeating the command resumes.
"""

import argparse
import json
import os
import shutil
import statistics
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from rich.console import Console
from rich.table import Table

from configs import uvrd
from data.shapes.generate import generate, is_ready
from data.uvrb.tasks import choose
from data.uvrd import world
from data.uvrd.responder import MODEL, Responder
from data.uvrd.run import Job, synthesize
from data.uvrd.settings import Settings
from evals.ablation import check_comparable, train_and_score
from gve_jax.errors import Parser, run_cli
from gve_jax.storage.files import write_json
from gve_jax.storage.filesystem import local_path
from gve_jax.storage.locks import lock_for_process
from gve_jax.streams.writing import pair_info, write_encoded

# No T2T: long texts on both sides are most of a step's time, and tell nothing of videos.
COLLECTED = ("T2I", "I2I", "TI2I", "T2V_spatial", "T2V_temporal", "T2V_event")
RATES = dict(T2T=0.0, T2I=1.0, T2V=1.0, TI2V=1.0, TV2V=1.0, I2V=1.0, V2V=1.0)  # of UVRD's types
SETS = "MSRVTT,MS-TI,MS-TV,MSRVTT-I2V"
COMPOSED = ("MS-TI", "MS-TV")
VARIANTS = ("without", "with")
_BLOCK = 256  # records copied at a time


def main(argv=None) -> None:
    args = _parse(argv)
    with lock_for_process(args.workdir):
        _compare(args)


def _compare(args) -> None:
    make_pairs(args)
    cells: dict[str, dict[str, list[float]]] = {}
    chance: dict[str, float] = {}
    scored: list[Path] = []
    for seed in args.seeds:  # both sides of a seed, then the next: a stopped run compares the same
        for variant in VARIANTS:
            scored.append(run(args, variant, seed))
            check_comparable(scored)
            results = json.loads((scored[-1] / "uvrb/results.json").read_text(encoding="utf-8"))
            for name, record in results["datasets"].items():
                cells.setdefault(name, {}).setdefault(variant, []).append(record["score"])
                chance[name] = record["chance"]
        text = summarize(cells, chance, args)
        write_json(args.workdir / "results.json", text)
    show(text, Console())


def make_pairs(args) -> None:
    """The world, and WORKDIR/without/pairs and WORKDIR/with/pairs."""
    data, raw, made = (args.workdir / name for name in ("data", "raw", "uvrd"))
    if not is_ready(data, 0, args.scale):
        generate(data, 0, args.scale)
    world.write(raw, args.videos, seed=1, bad=0.1)
    config = uvrd.get_config("world")
    config.pairs.update(RATES)  # not the paper's proportions: its composed pairs are a tenth
    config.run.max_bad_share = 0.1
    with Responder(raw) as server:
        job = Job(
            source=raw / world.CAPTIONS,
            output=made,
            server=server.url,
            model=MODEL,
            settings=Settings.of(config),
        )
        synthesize(job)
    for variant, folders in (("without", (data / "pairs",)), ("with", (data / "pairs", made))):
        join(folders, args.workdir / variant / "pairs")


def join(folders: Iterable[Path], output: Path) -> None:
    """Copies the COLLECTED splits of the world, and all of a synthesis, into one directory."""
    if output.exists():
        return
    building = output.with_name("building")
    shutil.rmtree(building, ignore_errors=True)
    building.parent.mkdir(parents=True, exist_ok=True)
    splits = {}
    for folder in folders:
        builder = tfds.builder_from_directory(folder)
        for name, split in builder.info.splits.items():
            if name in COLLECTED or name.endswith("_uvrd"):
                splits[name] = _records(split.filepaths)
    write_encoded(building, pair_info("joined", "Two directories in one.", building), splits)
    os.rename(building, output)


def _records(paths: Iterable) -> Iterator[bytes]:
    for path in paths:
        reader = ArrayRecordReader(os.fspath(path))
        count = reader.num_records()
        for start in range(0, count, _BLOCK):
            yield from reader.read(list(range(start, min(start + _BLOCK, count))))
        reader.close()


def run(args, variant: str, seed: int) -> Path:
    """The folder of one training and its results; what is there is not made again."""
    folder = args.workdir / variant
    fields: dict[str, object] = {"data.pairs": f"{folder}/pairs", "seed": seed}
    if args.steps:
        fields["steps"] = args.steps
    config = f"configs/synthesis.py{':smoke' if args.smoke else ''}"
    return train_and_score(
        config,
        folder / f"seed{seed}",
        fields,
        args.workdir / "data",
        args.workdir / "compiled",
        ["--datasets", SETS],
    )


def summarize(cells: Mapping, chance: Mapping, args) -> dict:
    """Mean and spread (sample standard deviation) over seeds, by set, and of the composed ones."""
    composed = {
        variant: [
            statistics.fmean(scores)
            for scores in zip(*(cells[name][variant] for name in COMPOSED), strict=True)
        ]
        for variant in VARIANTS
    }
    rows = {task.name: cells[task.name] for task in choose(SETS)} | {"CMP": composed}
    chance = dict(chance) | {"CMP": statistics.fmean(chance[name] for name in COMPOSED)}
    sets = {}
    for name, scores in rows.items():
        sides = {
            variant: {"mean": statistics.fmean(found), "std": _spread(found)}
            for variant, found in scores.items()
        }
        sets[name] = {"chance": chance[name], "scores": scores} | sides
    settings = {"steps": args.steps, "videos": args.videos, "scale": args.scale}
    return {
        "settings": settings | {"collected": COLLECTED, "rates": RATES},
        "seeds": args.seeds[: len(composed["with"])],
        "sets": sets,
    }


def _spread(scores: list[float]) -> float | None:
    return statistics.stdev(scores) if len(scores) > 1 else None


def show(text: Mapping, console: Console) -> None:
    table = Table(title=f"seeds {', '.join(map(str, text['seeds']))}", title_justify="left")
    table.add_column("set")
    for column in ("chance", *VARIANTS, "each seed: with - without"):
        table.add_column(column, justify="right")
    for name, row in text["sets"].items():
        cells = [
            f"{row[v]['mean']:.3f}"
            + (f" ± {row[v]['std']:.3f}" if row[v]["std"] is not None else "")
            for v in VARIANTS
        ]
        scores = zip(row["scores"]["with"], row["scores"]["without"], strict=True)
        gains = ", ".join(f"{a - b:+.3f}" for a, b in scores)
        table.add_row(name, f"{row['chance']:.3f}", *cells, gains)
    console.print(table)


def _parse(argv) -> argparse.Namespace:
    parser = Parser(
        prog="python -m evals.synthesis",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workdir", type=local_path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="of configs/synthesis.py unless given")
    parser.add_argument("--videos", type=int, default=800, help="raw videos (800)")
    parser.add_argument("--scale", type=float, default=1.0, help="of the world (1.0)")
    parser.add_argument("--smoke", action="store_true", help="a few steps of a tiny model")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_cli(main)
