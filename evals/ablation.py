"""Runs of ablations: trained and scored by child processes; finished runs are reused."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from evals.uvrb.digests import difference
from gve_jax.errors import UserError
from gve_jax.storage.files import write_json


def train_and_score(
    config: str,
    workdir: Path,
    fields: Mapping[str, object],
    data: Path,
    compiled: Path,
    scoring: Sequence[str] = (),
) -> Path:
    """Trains a run and writes its scores to `workdir/uvrb/results.json`, unless they exist.

    Args:
      config: the experiment's config file.
      fields: overrides of the config that define this run.
      data: a folder written by data.shapes: tokenizer and benchmark.
      compiled: a folder of compiled programs that all runs share.
      scoring: additional arguments of evals.uvrb.

    Raises:
      UserError: `workdir` has a run with other fields; a process failed, with its last line.
    """
    results = workdir / "uvrb" / "results.json"
    if results.exists():
        known = json.loads((workdir / "fields.json").read_text(encoding="utf-8"))
        if known != fields:
            changed = next(k for k in known | fields if known.get(k) != fields.get(k))
            raise UserError(
                f"{workdir} was trained with {changed} {known.get(changed)!r}, not "
                f"{fields.get(changed)!r}; use another folder"
            )
        return workdir
    start = time.perf_counter()
    write_json(workdir / "fields.json", fields)
    train = ["-m", "gve_jax.train", "--config", config, f"--workdir={workdir}"]
    train += [f"--config.{name}={value}" for name, value in fields.items()]
    train += [f"--config.data.tokenizer={data}/tokenizer.json"]
    run_python(train, workdir / "train.log", compiled)
    trained = time.perf_counter()
    score = ["-m", "evals.uvrb", "--model", f"{workdir}/model", "--data", str(data)]
    score += ["--output", f"{workdir}/uvrb", *scoring]
    run_python(score, workdir / "uvrb.log", compiled)
    averages = read_results(workdir)["averages"]
    print(
        f"{workdir.parent.name}/{workdir.name}: trained in {trained - start:.0f} s, scored in "
        f"{time.perf_counter() - trained:.0f} s"
        + "".join(f", {name} {v:.3f}" for name, v in averages.items() if v is not None),
        flush=True,
    )
    return workdir


def read_results(workdir: Path) -> dict:
    """The scores of a run that `train_and_score` finished."""
    return json.loads((workdir / "uvrb" / "results.json").read_text(encoding="utf-8"))


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation; the latter is None for one value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def check_comparable(workdirs: Iterable[Path]) -> None:
    """Raises UserError unless runs were scored on equal sets: equal data and unreadable items.

    Results of versions before 0.2.0 lack this information and pass.
    """
    first = None
    for workdir in workdirs:
        path, results = workdir / "uvrb" / "results.json", read_results(workdir)
        if "digests" not in results:
            continue
        first = first or (path, results)
        for name in results["datasets"]:
            if reason := name in first[1]["datasets"] and difference(first[1], results, name):
                raise UserError(
                    f"{path} and {first[0]}: {name}: {reason}; delete one of them to score it again"
                )


def run_python(arguments: list[str], log: Path, compiled: Path) -> None:
    """Runs Python with its output in a log file; an error shows the last line of it."""
    log.parent.mkdir(parents=True, exist_ok=True)
    variables = {  # all runs share their compiled programs
        "JAX_COMPILATION_CACHE_DIR": str(compiled.resolve()),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
        # Otherwise lines printed before an error would follow it in the log.
        "PYTHONUNBUFFERED": "1",
    }
    with open(log, "w", encoding="utf-8") as file:
        done = subprocess.run(
            [sys.executable, *arguments],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | variables,
        )
    if done.returncode:
        last = log.read_text(encoding="utf-8").strip().splitlines()[-1:]
        raise UserError(f"{' '.join(arguments[:3])} failed: {''.join(last)} (see {log})")
