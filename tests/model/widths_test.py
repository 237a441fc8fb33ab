"""The encoder at the widths of released models against transformers (goldens/widths.py)."""

from pathlib import Path

import jax
import numpy as np
import pytest

from gve_jax.inputs.batch import Bucket, collate, need
from gve_jax.model.batch import Batch
from gve_jax.model.config import ModelConfig
from gve_jax.model.embedder import make_embed
from tests.goldens import widths as golden
from tests.model.embedder_test import ROWS, cosine, make_batch, reference_params
from tests.model.references import input_spec, make_row, read_config, read_params

NUMBERS = np.load(Path(golden.__file__).with_suffix(".npz"))


@pytest.mark.slow
@pytest.mark.parametrize("size", golden.SIZES)
def test_vectors_equal_the_reference_at_real_widths(size):
    fields = {k: dict(v) for k, v in golden.SIZES[size].items()}
    cfg = ModelConfig.from_dict(fields)
    params = reference_params(cfg, NUMBERS[f"{size}/names"])
    batch = make_batch([ROWS[n] for n in golden.NUMBERS], Bucket(4, 140, 4, 160))
    compare(size, cfg, params, batch)


@pytest.mark.slow
@pytest.mark.parametrize("size", golden.OTHERS)
def test_vectors_equal_the_reference_at_real_widths_of_other_architectures(size):
    script, _ = golden.OTHERS[size]
    cfg = read_config(NUMBERS, f"{size}/")
    params = read_params(cfg, NUMBERS, f"{size}/")
    spec = input_spec(cfg)
    rows = [make_row(script, number, spec) for number in golden.NUMBERS]
    compare(size, cfg, params, Batch(**collate(rows, need(rows), spec)))


def compare(size, cfg, params, batch):
    found = np.asarray(jax.jit(make_embed(cfg, normalize=False))(params, batch))
    for vector, number in zip(found, golden.NUMBERS, strict=True):
        assert cosine(vector, NUMBERS[f"{size}/{number}/pooled"]) > 0.999999
        last = NUMBERS[f"{size}/{number}/last"]
        assert np.abs(vector - last).max() < 1e-4 * np.abs(last).max()
