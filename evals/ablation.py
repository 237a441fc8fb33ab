"""One run of an ablation: trained and scored in processes of its own; what is finished is kept."""

import json
import os
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
    """A finished run and its scores in `workdir/uvrb/results.json`; what is there is not redone.

    Args:
      config: the experiment's file.
      fields: of it, those that make this run; another run in `workdir` is refused by them.
      data: a folder that data.shapes wrote: tokenizer and benchmark.
      compiled: a folder of compiled programs that all runs share.
      scoring: further arguments of evals.uvrb.

    Raises:
      UserError: another run in `workdir`; a process that failed, with its last line.
    """
    results = workdir / "uvrb" / "results.json"
    if results.exists():
        known = json.loads((workdir / "fields.json").read_text(encoding="utf-8"))
        if known != fields:
            changed = next(k for k in known | fields if known.get(k) != fields.get(k))
            raise UserError(
                f"{workdir} was made with {changed} {known.get(changed)!r}, not "
                f"{fields.get(changed)!r}; use another folder"
            )
        return workdir
    began = time.perf_counter()
    write_json(workdir / "fields.json", fields)
    train = ["-m", "gve_jax.train", "--config", config, f"--workdir={workdir}"]
    train += [f"--config.{name}={value}" for name, value in fields.items()]
    train += [f"--config.data.tokenizer={data}/tokenizer.json"]
    run_python(train, workdir / "train.log", compiled)
    trained = time.perf_counter()
    score = ["-m", "evals.uvrb", "--model", f"{workdir}/model", "--data", str(data)]
    score += ["--output", f"{workdir}/uvrb", *scoring]
    run_python(score, workdir / "uvrb.log", compiled)
    averages = json.loads(results.read_text(encoding="utf-8"))["averages"]
    print(
        f"{workdir.parent.name}/{workdir.name}: trained in {trained - began:.0f} s, scored in "
        f"{time.perf_counter() - trained:.0f} s"
        + "".join(f", {name} {v:.3f}" for name, v in averages.items() if v is not None),
        flush=True,
    )
    return workdir


def check_comparable(workdirs: Iterable[Path]) -> None:
    """UserError where scored runs were not scored on the same sets: other data in one of them, or
    items that only one could not read. Runs of a version before 0.2.0 do not say, and pass."""
    first = None
    for workdir in workdirs:
        path = workdir / "uvrb" / "results.json"
        results = json.loads(path.read_text(encoding="utf-8"))
        if "digests" not in results:
            continue
        first = first or (path, results)
        for name in results["datasets"]:
            if why := name in first[1]["datasets"] and difference(first[1], results, name):
                raise UserError(
                    f"{path} and {first[0]}: {name}: {why}; delete one of them to score it again"
                )


def run_python(arguments: list[str], log: Path, compiled: Path) -> None:
    """Runs Python; what it prints goes to a file, whose last line an error shows."""
    log.parent.mkdir(parents=True, exist_ok=True)
    # All runs have the same programs: each is compiled once.
    kept = {
        "JAX_COMPILATION_CACHE_DIR": str(compiled.resolve()),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
        # A file is written in blocks: what was printed would stand below the error it led to.
        "PYTHONUNBUFFERED": "1",
    }
    with open(log, "w", encoding="utf-8") as file:
        done = subprocess.run(
            [sys.executable, *arguments],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | kept,
        )
    if done.returncode:
        last = log.read_text(encoding="utf-8").strip().splitlines()[-1:]
        raise UserError(f"{' '.join(arguments[:3])} failed: {''.join(last)} (all of it: {log})")
