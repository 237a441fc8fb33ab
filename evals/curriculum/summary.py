"""Means and deviations of scores over arms and seeds; batches and loss by source."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from evals.ablation import mean_and_deviation, read_results
from evals.uvrb.scores import ABILITIES, AVERAGES

NAMES = AVERAGES + ABILITIES
LAST = 0.2  # share of a run at its end that "last loss" averages over


def summarize(runs: Mapping[str, Mapping[int, Path]]) -> dict:
    """Scores of each run; mean and sample standard deviation of each arm and of the differences
    between arms with equal seeds; R, batches, passes and loss by source.

    Args:
      runs: workdirs of scored runs, by arm and seed; all arms have the same seeds.
    """
    scores = {
        arm: {str(seed): _read_scores(workdir) for seed, workdir in seeds.items()}
        for arm, seeds in runs.items()
    }
    arms = {arm: _spread(list(one.values())) for arm, one in scores.items()}
    differences = {
        f"{arm} - {other}": _spread(
            [{n: scores[arm][s][n] - scores[other][s][n] for n in NAMES} for s in scores[arm]]
        )
        for at, arm in enumerate(runs)
        for other in list(runs)[:at]
    }
    sources = {
        arm: _mean([source_table(workdir) for workdir in seeds.values()])
        for arm, seeds in runs.items()
    }
    return {"scores": scores, "arms": arms, "differences": differences, "sources": sources}


def _read_scores(workdir: Path) -> dict[str, float]:
    results = read_results(workdir)
    return {name: results["averages" if name in AVERAGES else "abilities"][name] for name in NAMES}


def _spread(rows: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float | None]]:
    values = {name: mean_and_deviation([row[name] for row in rows]) for name in NAMES}
    return {name: {"mean": mean, "sd": deviation} for name, (mean, deviation) in values.items()}


def source_table(workdir: Path) -> dict[str, dict[str, float]]:
    """For each source: R at the start of the first and of the last stage, batches, passes, and the
    mean loss of its batches in the last part of the run (absent without any)."""
    stages = json.loads((workdir / "curriculum.json").read_text(encoding="utf-8"))["stages"]
    run = json.loads((workdir / "run.json").read_text(encoding="utf-8"))
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    steps = stages[-1]["last_step"]
    sizes, batch = run["data"]["sources"], run["config"]["batch_size"]
    found = {}
    for name in stages[0]["R"]:
        batches = sum(stage["batches"][name] for stage in stages)
        last = [
            line["loss"]
            for line in lines
            if line["task"] == name and line["step"] >= (1 - LAST) * steps
        ]
        found[name] = {
            "pairs": sizes[name],
            "R_first": stages[0]["R"][name],
            "R_last": stages[-1]["R"][name],
            "batches_first_stage": stages[0]["batches"][name],
            "batches": batches,
            "passes": batches * batch / sizes[name],
        }
        if last:
            found[name]["last_loss"] = float(np.mean(last))
    return found


def _mean(tables: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for source in tables[0]:
        keys = sorted(set().union(*(table[source] for table in tables)))
        known = {key: [t[source][key] for t in tables if key in t[source]] for key in keys}
        found[source] = {key: float(np.mean(values)) for key, values in known.items()}
    return found


def markdown(found: Mapping) -> str:
    """The tables of `summarize`, as Markdown."""
    settings, arms = found["settings"], list(found["arms"])
    lines = [
        f"`{settings['config']}`, {settings['steps']} steps, seeds "
        f"{', '.join(map(str, settings['seeds']))}: mean ± sample standard deviation over seeds.",
        "",
        f"| | {' | '.join(arms)} |",
        f"| --- |{' ---: |' * len(arms)}",
    ]
    for name in NAMES:
        cells = [_plus_minus(found["arms"][arm][name]) for arm in arms]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    differences = found["differences"]
    if differences:
        lines += ["", "Differences at the same seed:", ""]
        lines += [f"| | {' | '.join(differences)} |", f"| --- |{' ---: |' * len(differences)}"]
        for name in NAMES:
            cells = [_plus_minus(one[name], signed=True) for one in differences.values()]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    for arm in arms:
        lines += ["", f"**{arm}**, by source:", "", _HEAD]
        for source, row in found["sources"][arm].items():
            loss = f"{row['last_loss']:.2f}" if "last_loss" in row else ""
            lines.append(
                f"| {source} | {row['pairs']:.0f} | {row['R_first']:.3f} | {row['R_last']:.3f} | "
                f"{row['batches_first_stage']:.0f} | {row['batches']:.0f} | {row['passes']:.2f} | "
                f"{loss} |"
            )
    return "\n".join(lines) + "\n"


_HEAD = (
    "| source | pairs | R, first | R, last stage | batches, first stage | batches | passes | "
    f"loss, last {LAST:.0%} |\n| --- |" + " ---: |" * 7
)


def _plus_minus(value: Mapping[str, float | None], signed: bool = False) -> str:
    spread = "" if value["sd"] is None else f" ± {value['sd']:.3f}"
    return f"{value['mean']:{'+' if signed else ''}.3f}{spread}"
