"""Sampling of sources: exact proportions, no repeats, a pure function of the step."""

import collections

import numpy as np
import pytest

from gve_jax.streams.mixture import (
    SpentError,
    Stage,
    StageSelection,
    apportion,
    batches,
    choose,
    epoch_batches,
)

SIZES = {"I2I": 40, "T2T": 64, "T2V": 23}
BATCH = {"I2I": 4, "T2T": 8, "T2V": 4}
STAGES = [Stage(0, 20, (0.7, 0.2, 0.1)), Stage(20, 41, (0.2, 0.2, 0.6))]


@pytest.mark.parametrize(
    "weights, steps, expected",
    [
        ((0.5, 0.25, 0.25), 8, [4, 2, 2]),
        ((0.5, 0.3, 0.2), 7, [4, 2, 1]),  # 3.5, 2.1, 1.4: the largest remainder gets the step
        ((1.0, 0.0), 5, [5, 0]),
        ((1, 1, 1), 2, [1, 1, 0]),
    ],
)
def test_apportion(weights, steps, expected):
    assert apportion(weights, steps).tolist() == expected


@pytest.mark.parametrize(
    "weights, steps, budget, expected",
    [
        ((0.5, 0.25, 0.25), 8, (2, 9, 9), [2, 3, 3]),
        ((0.8, 0.1, 0.1), 10, (2, 3, 9), [2, 3, 5]),  # the first reaches its limit, then the second
        ((1.0, 0.0), 5, (3, 9), [3, 2]),  # a source without weight is used before the run stops
    ],
)
def test_steps_above_the_budget_of_a_source_go_to_the_others(weights, steps, budget, expected):
    assert apportion(weights, steps, np.array(budget)).tolist() == expected
    with pytest.raises(SpentError):
        apportion(weights, sum(budget) + 1, np.array(budget))


def test_budgets_apply_to_all_stages_together():
    passes = {"I2I": 1, "T2T": 9, "T2V": 2}
    budget = np.array([passes[n] * epoch_batches(SIZES[n], BATCH[n]) for n in SIZES])
    assert budget.tolist() == [10, 72, 10]
    for stages in (
        STAGES,
        [Stage(s.first, s.last, np.tile(s.weights, (s.last - s.first, 1))) for s in STAGES],
    ):
        drawn = list(batches(SIZES, BATCH, stages, 7, budget=budget)[:41])
        seen = collections.defaultdict(list)
        for name, keys in drawn:
            seen[name] += keys.tolist()
        # By their weights the first stage would have 14 batches of I2I, whose budget is 10, and
        # the second too many of T2V.
        assert len(seen["I2I"]) == len(set(seen["I2I"])) == 40
        assert max(collections.Counter(seen["T2V"]).values()) == 2
        assert len(drawn) == 41


def test_steps_are_drawn_from_their_own_weights():
    # The weights change linearly from the first source to the second, and so do the shares.
    ramp = np.linspace(0, 1, 4000)
    (order,) = choose([Stage(0, 4000, np.stack([1 - ramp, ramp], axis=1))], seed=1)
    parts = order.reshape(4, 1000).mean(axis=1)
    np.testing.assert_allclose(parts, [0.125, 0.375, 0.625, 0.875], atol=0.05)
    (again,) = choose([Stage(0, 4000, np.stack([1 - ramp, ramp], axis=1))], seed=1)
    assert (order == again).all()


def read(first=0, last=41, seed=7, stages=STAGES):
    return [(name, keys.tolist()) for name, keys in batches(SIZES, BATCH, stages, seed)[first:last]]


def test_every_stage_has_its_exact_proportions():
    drawn = [name for name, _ in read()]
    assert collections.Counter(drawn[:20]) == {"I2I": 14, "T2T": 4, "T2V": 2}
    second = dict(zip(SIZES, apportion(STAGES[1].weights, 21), strict=True))
    assert collections.Counter(drawn[20:]) == second


def test_a_source_is_exhausted_before_it_repeats():
    seen = collections.defaultdict(list)
    for name, keys in read():
        assert len(set(keys)) == len(keys) == BATCH[name]
        seen[name] += keys
    for name, keys in seen.items():
        epoch = SIZES[name] // BATCH[name] * BATCH[name]
        for first in range(0, len(keys), epoch):
            part = keys[first : first + epoch]
            assert len(set(part)) == len(part)
            assert set(part) <= set(range(SIZES[name]))
    # T2V is used for more than one epoch, and its second epoch has another order.
    assert len(seen["T2V"]) > 20 and seen["T2V"][:20] != seen["T2V"][20:40]


def test_resuming_at_any_step_gives_the_same_batches():
    batches = read()
    for step in (0, 1, 19, 20, 33):
        assert read(first=step) == batches[step:]


def test_a_later_stage_does_not_change_an_earlier_one():
    assert read(last=20) == read(last=20, stages=STAGES[:1])


def test_another_seed_gives_another_order():
    assert read(seed=8) != read()


def test_batch_indices_of_a_source_continue_over_stages():
    selection = StageSelection(STAGES, seed=0)
    per_source = collections.defaultdict(list)
    for index in range(len(selection)):
        source, key = selection[index]
        per_source[source].append(key)
    for keys in per_source.values():
        assert keys == list(np.arange(len(keys)))


def test_siblings_share_a_batch():
    order = batches(SIZES, BATCH, STAGES, 7, siblings={"T2T": 4})[0:41]
    groups = [keys for name, keys in order if name == "T2T"]
    assert groups
    for keys in groups:
        for four in keys.reshape(-1, 4):
            assert four[0] % 4 == 0 and four.tolist() == list(range(four[0], four[0] + 4))
    plain = [(name, keys.tolist()) for name, keys in order if name != "T2T"]
    assert plain == [entry for entry in read() if entry[0] != "T2T"]
