import pytest

from gve_jax.inputs.padding import Padding


def test_shares_are_of_all_that_was_added():
    padding = Padding()
    assert padding.summary() == "" and padding.shares() == {}
    padding.add({"tokens": 30, "patches": 0}, {"tokens": 40, "patches": 0})
    assert padding.summary() == "padding was 25.0% of tokens"
    padding.add({"tokens": 60, "patches": 90}, {"tokens": 60, "patches": 100})
    assert padding.shares() == pytest.approx({"tokens": 0.1, "patches": 0.1})
    assert padding.summary() == "padding was 10.0% of tokens and 10.0% of patches"
