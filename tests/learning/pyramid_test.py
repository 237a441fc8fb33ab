"""The sampling rule of the Modality Pyramid, by hand."""

import math

import numpy as np
import pytest

from gve_jax.learning import pyramid


def test_sigma_rises_linearly_over_the_stages():
    assert [pyramid.sigma_at(s, 3, 0.1, 1.0) for s in range(3)] == pytest.approx([0.1, 0.55, 1.0])
    assert pyramid.sigma_at(0, 1, 0.1, 1.0) == 0.1


def test_probabilities_are_the_softmax_of_alignment_over_sigma():
    chances = pyramid.probabilities({"T2T": 0.9, "T2V": 0.5, "TV2V": 0.1}, 0.4)
    weights = [math.exp(0.9 / 0.4), math.exp(0.5 / 0.4), math.exp(0.1 / 0.4)]
    assert list(chances) == ["T2T", "T2V", "TV2V"]
    assert list(chances.values()) == pytest.approx([w / sum(weights) for w in weights])
    # A small sigma prefers what is aligned; a large one is nearly uniform; neither overflows.
    assert pyramid.probabilities({"a": 1.0, "b": 0.0}, 1e-4)["a"] == pytest.approx(1)
    assert pyramid.probabilities({"a": 1.0, "b": 0.0}, 100)["a"] == pytest.approx(0.5, abs=0.01)


def test_probabilities_may_count_the_sources_size():
    chances = pyramid.probabilities({"a": 0.9, "b": 0.5}, 0.4, {"a": 100, "b": 300})
    weights = [100 * math.exp(0.9 / 0.4), 300 * math.exp(0.5 / 0.4)]
    assert list(chances.values()) == pytest.approx([w / sum(weights) for w in weights])


@pytest.mark.parametrize("steps, stages", [(10, 3), (9, 3), (7, 7), (800, 4)])
def test_stages_cover_every_step_once(steps, stages):
    bounds = pyramid.stage_bounds(steps, stages)
    assert [s for first, last in bounds for s in range(first, last)] == list(range(steps))
    sizes = [last - first for first, last in bounds]
    assert len(sizes) == stages and max(sizes) - min(sizes) <= 1


def test_alignment_is_the_mean_over_all_probed_pairs():
    assert pyramid.mean_alignment([np.array([1.0, 0.0]), np.array([0.5])]) == 0.5
