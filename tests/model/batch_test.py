"""A field's one declaration gives its arrays, its abstract values and its sharding."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding

from gve_jax.distributed.sharding import ROWS
from gve_jax.inputs.batch import Bucket
from gve_jax.inputs.preprocess import InputSpec
from gve_jax.model.batch import Batch, Frames, Packed, batch_sizes
from gve_jax.model.config import VisionConfig

SIZES = dict(B=4, L=8, F=2, P=16, patch_dim=12, S=64, V=8, G=3, I=2, visual=6)
FLOATING = {"visual"}
INDICES = {"window_slots", "window_inverse", "visual_slots", "visual_inverse", "segments"}


@pytest.mark.parametrize("kind", [Batch, Frames, Packed])
def test_arrays_and_abstract_values_agree(kind, mesh):
    arrays = kind.padding(SIZES)
    abstract = kind.abstract(SIZES, NamedSharding(mesh, ROWS))
    for name, array in arrays.items():
        declared = getattr(abstract, name)
        assert (array.shape, array.dtype) == (declared.shape, declared.dtype)
        assert declared.sharding.spec == ROWS and array.shape[0] in (SIZES["B"], SIZES["G"])
        assert np.issubdtype(array.dtype, np.floating) == (name in FLOATING)
        assert (array == (-1 if name in INDICES else int(name == "length"))).all()
    assert len(jax.tree.leaves(abstract)) == len(arrays)


def test_positions_are_batch_first():
    assert Batch.padding(SIZES)["positions"].shape == (4, 3, 8)
    assert Packed.padding(SIZES)["positions"].shape == (4, 3, 8)


def test_sizes_of_the_released_architecture():
    widths = dict(hidden_size=16, intermediate_size=32, num_heads=2, out_hidden_size=16)
    vision = VisionConfig(depth=2, fullatt_block_indexes=(1,), **widths)
    bucket = Bucket(pairs=4, patches=800, windows=18, length=896)
    sizes = batch_sizes(2, bucket, vision)
    assert sizes == batch_sizes(2, bucket, InputSpec())
    assert sizes == dict(B=2, L=896, F=4, P=800, patch_dim=1176, S=18 * 64, V=800)
