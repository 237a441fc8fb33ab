"""Weight digests on any mesh and after changes; NaN in any parameter."""

import jax
import ml_dtypes
import numpy as np
import pytest

from gve_jax.checkpoints import digests
from gve_jax.checkpoints.digests import not_finite, weights_digest
from gve_jax.distributed.sharding import make_mesh, param_shardings

RNG = np.random.default_rng(0)


def make(dtype=np.float32) -> dict:
    kernel = RNG.normal(size=(3, 16, 24)).astype(dtype)
    return {
        "language": {
            "embed_tokens": RNG.normal(size=(40, 8)).astype(dtype),
            "layers": {"mlp": {"up_proj": {"kernel": kernel}}},
            "norm": {"weight": RNG.normal(size=8).astype(dtype)},
        }
    }


def place(params, **axes):
    return jax.device_put(params, param_shardings(params, make_mesh(axes)))


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("chunk", [30, 1 << 21])
def test_digest_does_not_depend_on_mesh_and_chunks(dtype, chunk, monkeypatch):
    params = make(dtype)
    expected = weights_digest(jax.tree.map(jax.numpy.asarray, params))
    monkeypatch.setattr(digests, "_CHUNK", chunk)
    for axes in ({"data": 8}, {"fsdp": 8}, {"tensor": 8}, {"data": 2, "fsdp": 2, "tensor": 2}):
        assert weights_digest(place(params, **axes)) == expected


def test_any_change_changes_the_digest():
    params = make()
    embed = params["language"]["embed_tokens"]
    one = embed.copy()
    one[3, 4] = np.nextafter(one[3, 4], 9)
    swapped = embed.copy()
    swapped[[1, 2]] = swapped[[2, 1]]
    changed = [embed, one, swapped, -embed, embed[::-1], embed.astype(ml_dtypes.bfloat16)]
    digests = {
        weights_digest(
            jax.tree.map(
                jax.numpy.asarray,
                params | {"language": {**params["language"], "embed_tokens": value}},
            )
        )
        for value in changed
    }
    assert len(digests) == len(changed)
    renamed = {"visual": params["language"]}
    assert weights_digest(jax.tree.map(jax.numpy.asarray, renamed)) not in digests


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_non_finite_numbers_are_found(bad, dtype):
    params = make(dtype)
    assert not_finite(place(params, fsdp=2, tensor=4)) == []
    params["language"]["layers"]["mlp"]["up_proj"]["kernel"][2, 15, 23] = bad
    assert not_finite(place(params, fsdp=2, tensor=4)) == ["language/layers/mlp/up_proj/kernel"]
    # Large numbers whose sum overflows are finite.
    params["language"]["layers"]["mlp"]["up_proj"]["kernel"][...] = 3e38
    assert not_finite(place(params, data=8)) == []
