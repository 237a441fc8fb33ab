"""DoRA adapters are merged when they are loaded (VLM2Vec-V2.0 and B3 have them)."""

import dataclasses

import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from gve_jax.checkpoints.peft import read_adapter, write_adapter
from gve_jax.checkpoints.weight_names import sources
from gve_jax.distributed.sharding import make_mesh
from gve_jax.errors import UserError
from gve_jax.gve import _attach
from gve_jax.model import lora
from gve_jax.model.config import LoraConfig
from gve_jax.model.embedder import init_params
from tests.checkpoints.peft_test import edit, rewrite, tensors_of
from tests.model.embedder_test import CFG
from tests.situations import situation

ADAPTED = dataclasses.replace(CFG, lora=LoraConfig(rank=4, alpha=6.0))


@pytest.fixture(scope="module")
def params():
    """A base, and an adapter whose `b` is not zero."""
    base, adapters = lora.split(init_params(ADAPTED, 0)[1])
    rng = np.random.default_rng(0)
    flat = {
        k: rng.normal(size=v.shape).astype(np.float32) for k, v in flatten_dict(adapters).items()
    }
    return base, flat


@pytest.fixture
def written(params, tmp_path):
    """The adapter's files with magnitudes, and its tensors."""
    _, flat = params
    write_adapter(tmp_path, unflatten_dict(flat), ADAPTED, layout="4.49")
    tensors = tensors_of(tmp_path)
    rng = np.random.default_rng(1)
    for name in [name for name in tensors if ".lora_B." in name]:
        magnitude = rng.uniform(0.5, 2, len(tensors[name])).astype(np.float32)
        tensors[name.replace("lora_B.weight", "lora_magnitude_vector")] = magnitude
    edit(tmp_path, use_dora=True)
    rewrite(tmp_path, tensors)
    return tmp_path, tensors


@situation(
    "Models and checkpoints",
    "a DoRA adapter saved by PEFT",
    "merged into the weights when it is loaded",
    since="0.2.0",
)
def test_a_dora_adapter_is_merged_as_its_paper_says(params, written):
    """W' = m * (W + s B A) / |W + s B A| by row of PyTorch's weight, in numpy, in float64."""
    base, _ = params
    directory, tensors = written
    config, merged = _attach(directory, CFG, base, make_mesh({"data": -1}))
    assert config == CFG
    before, after = (flatten_dict(tree, sep="/") for tree in (base, merged))
    assert before.keys() == after.keys()
    changed = 0
    for path, source in sources(CFG, {k: v.shape for k, v in before.items()}).items():
        for layer, name in enumerate(source.names):
            old, new = (
                tree[path][layer] if source.stacked else tree[path] for tree in (before, after)
            )
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            if f"{stem}.lora_magnitude_vector" not in tensors:
                np.testing.assert_array_equal(old, new)
                continue
            a, b, m = (
                tensors[f"{stem}.{part}"].astype(np.float64)
                for part in ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector")
            )
            total = np.asarray(old, np.float64).T + 6.0 / 4 * b @ a
            wanted = m[:, None] * total / np.sqrt((total**2).sum(axis=1, keepdims=True))
            np.testing.assert_allclose(new, wanted.T, rtol=2e-6, atol=1e-6)
            changed += 1
    assert changed == 6 * CFG.text.num_hidden_layers


@pytest.mark.parametrize("suffix", [".default.weight", ".weight", ".default"])
def test_names_of_a_state_dict_are_read_too(written, suffix):
    directory, tensors = written
    _, wanted = read_adapter(directory, CFG)
    ends = "lora_magnitude_vector"
    rewrite(directory, {n.replace(ends, ends + suffix): tensor for n, tensor in tensors.items()})
    _, found = read_adapter(directory, CFG)
    for path, leaf in flatten_dict(wanted).items():
        np.testing.assert_array_equal(leaf, flatten_dict(found)[path])


def test_magnitudes_without_dora_and_dora_without_magnitudes_are_refused(written):
    directory, tensors = written
    edit(directory, use_dora=False)
    with pytest.raises(UserError, match="unexpected: .*lora_magnitude_vector"):
        read_adapter(directory, CFG)
    edit(directory, use_dora=True)
    rewrite(directory, {n: t for n, t in tensors.items() if "magnitude" not in n})
    with pytest.raises(UserError, match="missing: .*lora_magnitude_vector"):
        read_adapter(directory, CFG)
