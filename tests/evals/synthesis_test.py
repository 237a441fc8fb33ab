"""The two directories of pairs, and the table."""

import argparse

import numpy as np
import pytest

from data.uvrd.settings import TYPES
from evals.synthesis.__main__ import COLLECTED, COMPOSED, RATES, SETS, join, summarize
from gve_jax.streams.pairs import PairSources


def test_copies_only_collected_pairs(world, tmp_path):
    output = tmp_path / "without" / "pairs"
    join((world / "pairs",), output)
    old, new = PairSources(world / "pairs"), PairSources(output)
    assert set(new.sizes) == set(COLLECTED)
    for name, size in new.sizes.items():
        assert size == old.sizes[name]
        rows = np.arange(size)
        assert new.read(name, rows) == old.read(name, rows)
    before = sorted(output.iterdir())
    join((world / "pairs",), output)  # does nothing
    assert sorted(output.iterdir()) == before


def test_no_collected_query_for_videos_has_a_frame_or_clip():
    assert not [name for name in COLLECTED if name.split("_")[0] in ("I2V", "V2V", "TI2V", "TV2V")]
    assert set(RATES) == set(TYPES) and set(COMPOSED) <= set(SETS.split(","))


def test_table_has_means_and_deviations():
    cells = {
        name: {"without": [0.1, 0.2, 0.3], "with": [0.2, 0.4, 0.6]} for name in SETS.split(",")
    }
    cells["MS-TV"] = {"without": [0.3, 0.2, 0.1], "with": [0.4, 0.4, 0.4]}
    args = argparse.Namespace(steps=None, videos=9, scale=1.0, seeds=[4, 5, 6])
    results = summarize(cells, dict.fromkeys(SETS.split(","), 0.01), args)
    composed = results["sets"]["CMP"]
    assert composed["scores"]["without"] == pytest.approx([0.2, 0.2, 0.2])
    assert composed["scores"]["with"] == pytest.approx([0.3, 0.4, 0.5])
    assert composed["with"] == pytest.approx({"mean": 0.4, "std": 0.1})
    assert composed["without"]["std"] == pytest.approx(0) and results["seeds"] == [4, 5, 6]
