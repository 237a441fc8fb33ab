"""Measures the benefit of curricula on the generated world:

    python -m evals.curriculum --output DIR [--seeds 3] [--steps 500] [--arms uniform,pyramid,...]

trains a small quickstart once for each arm and seed, for equal steps, scores each model with
evals.uvrb, and writes OUTPUT/results.json and results.md: means and deviations over the seeds, and
R, batches and loss of each arm by source. `--sources NAME=DIR` also trains each arm with the pairs
of DIR added. Repeating the command resumes; more seeds or arms are added to the finished ones.
"""

import argparse
from collections.abc import Sequence

from evals.ablation import check_comparable, run_python, train_and_score
from evals.curriculum import summary
from gve_jax.cli import Parser, run_cli
from gve_jax.errors import UserError
from gve_jax.storage.files import write_json
from gve_jax.storage.filesystem import local_path
from gve_jax.storage.locks import lock_for_process

CONFIG = "configs/quickstart.py:small"
FIRST_SEED = 42
# Overrides of the configuration, by arm.
ARMS: dict[str, dict[str, object]] = {
    "uniform": {"pyramid.schedule": "uniform"},
    "proportional": {"pyramid.schedule": "proportional"},
    "pyramid": {},
    "pyramid-no-size": {"pyramid.by_size": False},
    "pyramid-per-step": {"pyramid.sigma_per": "step"},
    "pyramid-modality": {"pyramid.task": "modality"},
    "pyramid-falling": {"pyramid.sigma_first": 1.0, "pyramid.sigma_last": 0.1},
}


def main(argv: Sequence[str] | None = None) -> None:
    args = _parse(argv)
    with lock_for_process(args.output):
        _compare(args)


def _compare(args: argparse.Namespace) -> None:
    arms = {name: ARMS[name] for name in args.arms}
    compiled = args.output / "compiled"
    data = args.data or args.output / "data"
    if args.data is None:
        run_python(["-m", "data.shapes", "--output", str(data)], args.output / "data.log", compiled)
    runs, seeds = {}, range(FIRST_SEED, FIRST_SEED + args.seeds)
    # Seed by seed, so that an interrupted ablation compares all arms.
    for seed in seeds:
        for arm, fields in arms.items():
            for name, pairs in _pairs(arm, f"{data}/pairs", args.sources).items():
                fields = fields | {"data.pairs": pairs, "seed": seed, "steps": args.steps}
                workdir = args.output / "runs" / f"{name}-{seed}"
                runs.setdefault(name, {})[seed] = train_and_score(
                    CONFIG, workdir, fields, data, compiled
                )
        # After every seed, so that an interrupted ablation has results.
        check_comparable(path for seeds_of in runs.values() for path in seeds_of.values())
        found = summary.summarize(runs)
        found["settings"] = {
            "config": CONFIG,
            "steps": args.steps,
            "seeds": list(range(FIRST_SEED, seed + 1)),
            "arms": {name: ARMS[name] for name in arms},
            "sources": args.sources,
        }
        write_json(args.output / "results.json", found)
        text = summary.markdown(found)
        (args.output / "results.md").write_text(text, encoding="utf-8")
    print(f"{text}\nwrote {args.output}/results.json and results.md")


def _pairs(arm: str, pairs: str, sources: str | None) -> dict[str, str]:
    if sources is None:
        return {arm: pairs}
    return {arm: pairs, f"{arm}+{sources.split('=')[0]}": f"{pairs},{sources}"}


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("python -m evals.curriculum", __doc__)
    add = parser.add_argument
    add("--output", required=True, type=local_path, help="directory for runs and results")
    text = "folder written by data.shapes (default: generated in OUTPUT/data)"
    add("--data", type=local_path, help=text)
    add("--seeds", type=int, default=3, help="number of seeds (default: 3)")
    add("--steps", type=int, default=500, help="training steps of each run (default: 500)")
    arms = "uniform,proportional,pyramid"
    add("--arms", default=arms, help=f"arms of {', '.join(ARMS)} (default: {arms})")
    text = "NAME=DIR: additional pairs for a second run of each arm; NAME is added to their sources"
    add("--sources", help=text)
    args = parser.parse_args(argv)
    args.arms = args.arms.split(",")
    for name in args.arms:
        if name not in ARMS:
            raise UserError(f"--arms: no arm {name!r}; known: {', '.join(ARMS)}")
    if args.sources and "=" not in args.sources:
        raise UserError(f"--sources {args.sources!r} must be NAME=DIR")
    if args.seeds < 1 or args.steps < 100:
        raise UserError("--seeds must be at least 1 and --steps at least 100")
    return args


if __name__ == "__main__":
    run_cli(main)
