"""Sampling weights of stages, compared with values computed by hand; invalid policies."""

import math

import numpy as np
import pytest

from gve_jax.errors import UserError
from gve_jax.learning.curriculum import Curriculum, PyramidConfig
from gve_jax.streams.mixture import Stage, batches, epoch_batches
from tests.situations import situation

SIZES = {"T2T_a": 100, "T2V_b": 300, "T2V_c": 600}
R = {"T2T_a": 0.9, "T2V_b": 0.5, "T2V_c": 0.2}


def make(steps=90, epoch=30, batches=(4, 4, 4), **fields) -> Curriculum:
    sizes = dict(zip(SIZES, batches, strict=True))
    return Curriculum(PyramidConfig(**fields), SIZES, sizes, steps, epoch)


def shares(weights: dict) -> dict:
    return pytest.approx({name: value / sum(weights.values()) for name, value in weights.items()})


@pytest.mark.parametrize(
    "fields, weights",
    [
        (dict(), {n: SIZES[n] * math.exp(R[n] / 0.55) for n in SIZES}),
        (dict(by_size=False), {n: math.exp(R[n] / 0.55) for n in SIZES}),
        (dict(schedule="uniform"), dict.fromkeys(SIZES, 1)),
        (dict(schedule="proportional"), SIZES),
        (
            dict(schedule="manual", weights=(("T2V", (1, 2, 3)), (".*", 5.0))),
            {"T2T_a": 5, "T2V_b": 2, "T2V_c": 2},
        ),
        # R of T2V is the mean of its 900 pairs, of which b has a third.
        (
            dict(task="modality"),
            {
                "T2T_a": 100 * math.exp(0.9 / 0.55),
                "T2V_b": 300 * math.exp(0.3 / 0.55),
                "T2V_c": 600 * math.exp(0.3 / 0.55),
            },
        ),
        (
            dict(task="modality", by_size=False),
            {
                "T2T_a": 3 * math.exp(0.9 / 0.55),
                "T2V_b": math.exp(0.3 / 0.55),
                "T2V_c": 2 * math.exp(0.3 / 0.55),
            },
        ),
        (dict(task="modality", schedule="uniform"), {"T2T_a": 3, "T2V_b": 1, "T2V_c": 2}),
    ],
)
def test_shares_of_the_middle_of_three_stages(fields, weights):
    curriculum = make(**fields)
    record = curriculum.record(1, R)
    assert (record["first_step"], record["last_step"], record["sigma"]) == (30, 60, 0.55)
    assert record["P"] == shares(weights) and record["R"] == R
    assert list(curriculum.weights(record)) == list(record["P"].values())


@situation(
    "Training",
    "pyramid.schedule='proportional', unit='epoch', sources with batches of 64 and of 32 pairs",
    "one pass over each source: P is a share of pairs, and smaller batches are drawn more often",
    since="0.2.0",
)
def test_an_epoch_of_proportional_sampling_is_one_pass_over_each_source():
    sizes, batch_sizes = {"T2T_a": 640, "T2V_b": 640}, {"T2T_a": 64, "T2V_b": 32}
    epochs = {name: epoch_batches(sizes[name], batch_sizes[name]) for name in sizes}
    steps = sum(epochs.values())
    policy = PyramidConfig(schedule="proportional", stages=1, unit="epoch")
    curriculum = Curriculum(policy, sizes, batch_sizes, steps, steps)
    record = curriculum.record(0, dict.fromkeys(sizes, 0.0))
    assert record["P"] == {"T2T_a": 0.5, "T2V_b": 0.5}
    stage = Stage(0, steps, curriculum.weights(record))
    drawn = [
        row.item()
        for source, rows in batches(sizes, batch_sizes, [stage], 0)
        for row in rows + 1000 * (source == "T2V_b")
    ]
    assert sorted(drawn) == [*range(640), *range(1000, 1640)]


@pytest.mark.parametrize("sigma_per", ["stage", "step"])
@pytest.mark.parametrize("schedule", ["pyramid", "uniform"])
def test_shares_are_of_pairs_in_every_schedule(schedule, sigma_per):
    fields = {"schedule": schedule, "sigma_per": sigma_per}
    alike, mixed = make(**fields), make(batches=(8, 4, 2), **fields)
    record = alike.record(1, R)
    assert mixed.record(1, R) == record
    weights = [np.atleast_2d(one.weights(record)) for one in (alike, mixed)]
    pairs = weights[1] * [8, 4, 2]
    np.testing.assert_allclose(pairs / pairs.sum(axis=1, keepdims=True), weights[0], rtol=1e-12)


def test_sigma_of_a_step():
    curriculum = make(sigma_per="step")
    record = curriculum.record(2, R)
    table = curriculum.weights(record)
    assert table.shape == (30, 3)
    for row, step in ((0, 60), (29, 89)):
        sigma = 0.1 + 0.9 * step / 89
        assert dict(zip(SIZES, table[row], strict=True)) == shares(
            {n: SIZES[n] * math.exp(R[n] / sigma) for n in SIZES}
        )
    assert record["sigma"] == pytest.approx(0.1 + 0.9 * 60 / 89)
    assert record["sigma_end"] == pytest.approx(1.0)
    assert record["P"] == pytest.approx(dict(zip(SIZES, table.mean(axis=0), strict=True)))


@pytest.mark.parametrize(
    "form, expected",
    [
        ("linear", [0.1, 0.325, 0.55, 0.775, 1.0]),
        ("step", [0.1, 0.1, 1.0, 1.0, 1.0]),
        ("constant", [0.1] * 5),
        (
            "cosine",
            [0.1, 0.1 + 0.45 * (1 - math.sqrt(0.5)), 0.55, 0.55 + 0.45 * math.sqrt(0.5), 1.0],
        ),
    ],
)
def test_schedules_of_sigma(form, expected):
    curriculum = make(stages=5, sigma=form)
    assert [curriculum.record(n, R)["sigma"] for n in range(5)] == pytest.approx(expected)


def test_stages_by_bounds_and_by_epochs():
    assert make(bounds=(10, 80)).bounds == [(0, 10), (10, 80), (80, 90)]
    assert make(unit="epoch").bounds == [(0, 30), (30, 60), (60, 90)]
    assert make(unit="epoch", steps=100, epoch=40).bounds == [(0, 40), (40, 80), (80, 100)]


NAN = float("nan")


@pytest.mark.parametrize(
    "fields, named",
    [
        (dict(schedule="random"), "schedule 'random' must be one of pyramid, uniform"),
        (dict(task="dataset"), "task 'dataset' must be one of source, modality"),
        (dict(sigma_last=0.0), "sigma_last 0.0 must be at least 1e-06"),
        (dict(sigma_first=NAN), "sigma_first nan must be at least 1e-06"),
        (dict(weights=(("a", 1),)), "weights are for schedule 'manual', not 'pyramid'"),
        (dict(schedule="manual"), "schedule 'manual' needs weights"),
        (dict(bounds=(10,)), "bounds name 2 stages, in steps; stages is 3"),
        (dict(bounds=(80, 10)), r"pyramid.bounds \(80, 10\) do not rise within 1..89"),
        (dict(unit="epoch", steps=60), "pyramid.stages 3 of an epoch, 30 steps each, do not fit"),
        (dict(stages=91), r"pyramid.stages 91 is not in 1..90"),
        (dict(schedule="manual", weights=(("T2V", 1),)), "no pattern is found in source 'T2T_a'"),
        (
            dict(schedule="manual", weights=((".*", 1), ("TI", 2))),
            "pattern 'TI' matches no source",
        ),
        (dict(schedule="manual", weights=((".*", (1, 2)),)), "'T2T_a' has 2 for 3 stages"),
        *(
            (
                dict(schedule="manual", weights=(("T2T", 1), ("T2V_c", (1, bad, 1)), ("", 1))),
                f"the weight {bad} of 'T2V_c' must be a number above 0",
            )
            for bad in (0, -1, NAN)
        ),
    ],
)
def test_invalid_policies_are_refused(fields, named):
    with pytest.raises((UserError, ValueError), match=named) as error:
        make(**fields)
    assert "\n" not in str(error.value)


def test_a_tiny_sigma_does_not_overflow():
    record = make(sigma_first=1e-6).record(0, R)
    assert (
        record["P"]["T2T_a"] == pytest.approx(1) and np.isfinite(list(record["P"].values())).all()
    )
