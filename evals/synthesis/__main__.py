"""Measures the benefit of synthesized pairs for the composed ability on the generated world:

    python -m evals.synthesis --workdir runs/synthesis

trains without and with pairs that data.uvrd synthesizes from raw videos, with equal steps and
seeds. "Without" has the types of pairs that the paper collects (table 6): images, composed queries
for images, texts for videos; no query for a video contains a frame or a clip. "With" adds UVRD's
types, from raw videos that are not used otherwise. WORKDIR receives the world, the pairs, a folder
for each run, and results.json. Repeating the command resumes.
"""

import argparse
import os
import statistics
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from rich.console import Console
from rich.table import Table

from configs import uvrd
from data.shapes.generate import generate
from data.uvrb.tasks import choose
from data.uvrd import world
from data.uvrd.responder import MODEL, Responder
from data.uvrd.run import Job, synthesize
from data.uvrd.settings import Settings
from evals.ablation import check_comparable, mean_and_deviation, read_results, train_and_score
from gve_jax.cli import Parser, run_cli
from gve_jax.storage.artifacts import build_folder
from gve_jax.storage.files import write_json
from gve_jax.storage.filesystem import local_path
from gve_jax.storage.locks import lock_for_process
from gve_jax.streams.writing import pair_info, write_encoded

# No T2T: long texts on both sides take most of a step's time and teach nothing about videos.
COLLECTED = ("T2I", "I2I", "TI2I", "T2V_spatial", "T2V_temporal", "T2V_event")
# Rates of UVRD's types.
RATES = dict(T2T=0.0, T2I=1.0, T2V=1.0, TI2V=1.0, TV2V=1.0, I2V=1.0, V2V=1.0)
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
    for seed in args.seeds:  # both variants of a seed, so that an interrupted run compares equally
        for variant in VARIANTS:
            scored.append(run(args, variant, seed))
            check_comparable(scored)
            for name, record in read_results(scored[-1])["datasets"].items():
                cells.setdefault(name, {}).setdefault(variant, []).append(record["score"])
                chance[name] = record["chance"]
        results = summarize(cells, chance, args)
        write_json(args.workdir / "results.json", results)
    show(results, Console())


def make_pairs(args) -> None:
    """Generates the world, WORKDIR/without/pairs and WORKDIR/with/pairs."""
    data, raw, synthesized = (args.workdir / name for name in ("data", "raw", "uvrd"))
    generate(data, 0, args.scale)
    world.write(raw, args.videos, seed=1, bad=0.1)
    config = uvrd.get_config("world")
    config.pairs.update(RATES)  # the paper's proportions have a tenth of composed pairs
    config.run.max_bad_share = 0.1
    with Responder(raw) as server:
        job = Job(
            source=raw / world.CAPTIONS,
            output=synthesized,
            server=server.url,
            model=MODEL,
            settings=Settings.of(config),
        )
        synthesize(job)
    join([data / "pairs"], args.workdir / "without" / "pairs")
    join([data / "pairs", synthesized], args.workdir / "with" / "pairs")


def join(folders: Iterable[Path], output: Path) -> None:
    """Copies the COLLECTED splits of the world, and those of a synthesis, into one directory."""
    build_folder(output, lambda building: _join(folders, building) or True, output.exists)


def _join(folders: Iterable[Path], output: Path) -> None:
    splits = {}
    for folder in folders:
        builder = tfds.builder_from_directory(folder)
        for name, split in builder.info.splits.items():
            if name in COLLECTED or name.endswith("_uvrd"):
                splits[name] = _read_records(split.filepaths)
    write_encoded(output, pair_info("joined", "Two directories in one.", output), splits)


def _read_records(paths: Iterable) -> Iterator[bytes]:
    for path in paths:
        reader = ArrayRecordReader(os.fspath(path))
        count = reader.num_records()
        for start in range(0, count, _BLOCK):
            yield from reader.read(list(range(start, min(start + _BLOCK, count))))
        reader.close()


def run(args, variant: str, seed: int) -> Path:
    """Trains and scores one run, unless it is finished; returns its folder."""
    folder = args.workdir / variant
    fields: dict[str, object] = {"data.pairs": f"{folder}/pairs", "seed": seed}
    if args.steps:
        fields["steps"] = args.steps
    config = f"configs/synthesis.py{':smoke' if args.smoke else ''}"
    shared = args.workdir / "data", args.workdir / "compiled"
    return train_and_score(config, folder / f"seed{seed}", fields, *shared, ["--datasets", SETS])


def summarize(cells: Mapping, chance: Mapping, args) -> dict:
    """Mean and sample standard deviation over seeds, by set and of the composed sets."""
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
            variant: dict(zip(("mean", "std"), mean_and_deviation(values), strict=True))
            for variant, values in scores.items()
        }
        sets[name] = {"chance": chance[name], "scores": scores} | sides
    settings = {"steps": args.steps, "videos": args.videos, "scale": args.scale}
    return {
        "settings": settings | {"collected": COLLECTED, "rates": RATES},
        "seeds": args.seeds[: len(composed["with"])],
        "sets": sets,
    }


def show(results: Mapping, console: Console) -> None:
    table = Table(title=f"seeds {', '.join(map(str, results['seeds']))}", title_justify="left")
    table.add_column("set")
    for column in ("chance", *VARIANTS, "each seed: with - without"):
        table.add_column(column, justify="right")
    for name, row in results["sets"].items():
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
    parser = Parser("python -m evals.synthesis", __doc__)
    add = parser.add_argument
    add("--workdir", type=local_path, required=True, help="directory for data, runs and results")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds (default: 0 1 2)")
    add("--steps", type=int, help="training steps (default: those of configs/synthesis.py)")
    add("--videos", type=int, default=800, help="raw videos (default: 800)")
    add("--scale", type=float, default=1.0, help="size of the generated world (default: 1.0)")
    add("--smoke", action="store_true", help="a few steps of a tiny model")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_cli(main)
