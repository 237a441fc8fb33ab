"""Means, deviations and differences of an ablation, from hand-written records."""

import json

import pytest

from evals.curriculum import summary
from gve_jax.errors import UserError

SIZES = {"I2I": 64, "T2V_a": 320}


@pytest.fixture
def runs(tmp_path):
    """Two arms, two seeds; AVG-A is 0.1 and 0.3 of one, 0.2 and 0.2 of the other."""
    found = {}
    for arm, scores in {"uniform": (0.1, 0.3), "pyramid": (0.2, 0.2)}.items():
        for seed, score in enumerate(scores):
            workdir = tmp_path / f"{arm}-{seed}"
            (workdir / "uvrb").mkdir(parents=True)
            results = {
                "averages": dict.fromkeys(summary.AVERAGES, score),
                "abilities": dict.fromkeys(summary.ABILITIES, score / 2),
            }
            (workdir / "uvrb/results.json").write_text(json.dumps(results))
            run = {"data": {"sources": SIZES}, "config": {"batch_size": 32}}
            (workdir / "run.json").write_text(json.dumps(run))
            stages = [
                {
                    "R": {"I2I": 0.5, "T2V_a": 0.1 * seed},
                    "batches": {"I2I": 4, "T2V_a": 1},
                    "last_step": 5,
                },
                {
                    "R": {"I2I": 0.9, "T2V_a": 0.8},
                    "batches": {"I2I": 0, "T2V_a": 5},
                    "last_step": 10,
                },
            ]
            (workdir / "curriculum.json").write_text(json.dumps({"stages": stages}))
            tasks = ["I2I"] * 4 + ["T2V_a"] * 6
            lines = [
                json.dumps({"step": step, "task": task, "loss": float(step)}) + "\n"
                for step, task in enumerate(tasks)
            ]
            (workdir / "metrics.jsonl").write_text("".join(lines))
            found.setdefault(arm, {})[seed] = workdir
    return found


def test_means_deviations_and_differences_at_equal_seeds(runs):
    found = summary.summarize(runs)
    assert found["arms"]["uniform"]["AVG-A"] == pytest.approx({"mean": 0.2, "sd": 0.02**0.5})
    assert found["arms"]["pyramid"]["CG"] == pytest.approx({"mean": 0.1, "sd": 0})
    # +0.1 at the first seed, -0.1 at the second.
    difference = found["differences"]["pyramid - uniform"]["AVG-A"]
    assert difference == pytest.approx({"mean": 0.0, "sd": 0.02**0.5})
    source = found["sources"]["pyramid"]["T2V_a"]
    assert source["passes"] == pytest.approx(6 * 32 / 320) and source["batches_first_stage"] == 1
    assert source["R_first"] == pytest.approx(0.05)  # the mean of both seeds
    assert source["last_loss"] == 8.5  # of steps 8 and 9
    assert "last_loss" not in found["sources"]["pyramid"]["I2I"]


def test_one_seed_has_no_deviation(runs):
    found = summary.summarize({arm: {0: seeds[0]} for arm, seeds in runs.items()})
    found["settings"] = {"config": "c", "steps": 10, "seeds": [0]}
    text = summary.markdown(found)
    assert "| AVG-A | 0.100 | 0.200 |" in text and "| AVG-A | +0.100 |" in text
    assert "±" not in text.split("\n", 1)[1]


def test_names_mistakes(tmp_path):
    from evals.curriculum.__main__ import main

    for arguments, named in (
        (["--arms", "pyramid,none"], "no arm 'none'; known: uniform"),
        (["--sources", "synth"], "--sources 'synth' must be NAME=DIR"),
        (["--seeds", "0"], "--seeds must be at least 1"),
    ):
        with pytest.raises(UserError, match=named):
            main(["--output", str(tmp_path), *arguments])
