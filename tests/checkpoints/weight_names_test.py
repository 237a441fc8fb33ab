"""The table of weight names in every layout."""

import jax
import pytest
from flax.traverse_util import flatten_dict

from gve_jax.checkpoints.weight_names import match_names, sources
from gve_jax.model.embedder import init_params
from tests import checkpoint_files
from tests.checkpoint_files import CFG

SHAPES = {
    path: leaf.shape
    for path, leaf in flatten_dict(jax.eval_shape(lambda: init_params(CFG, 0)[1]), sep="/").items()
}


@pytest.mark.parametrize("layout", ["4.49", "5"])
def test_names_and_shapes_equal_those_of_transformers(layout):
    expected = {name: array.shape for name, array in checkpoint_files.tensors(layout).items()}
    found = sources(CFG, SHAPES, layout)
    assert {n: s.shape for s in found.values() for n in s.names} == expected
    assert set(found) == set(SHAPES)
    kernel = found["language/layers/mlp/up_proj/kernel"]
    assert kernel.stacked and kernel.transposed and len(kernel.names) == CFG.text.num_hidden_layers


@pytest.mark.parametrize("layout", ["4.49", "5", "bare"])
@pytest.mark.parametrize("wanted", ["4.49", "5"])
def test_any_layout_is_found(layout, wanted):
    stored = {name: array.shape for name, array in checkpoint_files.tensors(layout).items()}
    names, problems = match_names(sources(CFG, SHAPES, wanted), stored | {"lm_head.weight": (1, 1)})
    assert not problems
    assert sorted(n for found in names.values() for n in found) == sorted(stored)
    layers = names["language/layers/input_layernorm/weight"]
    assert [name.split("layers.")[1][0] for name in layers] == ["0", "1"]


def test_all_problems_are_listed():
    stored = {name: array.shape for name, array in checkpoint_files.tensors("5").items()}
    del stored["model.visual.merger.mlp.0.bias"]
    del stored["model.language_model.layers.1.self_attn.q_proj.weight"]
    stored["model.language_model.norm.weight"] = (47,)
    stored["model.visual.blocks.0.attn.proj.weight"] = (32, 31)
    stored["model.visual.blocks.3.norm1.weight"] = (32,)
    stored["model.language_model.layers.0.self_attn.q_norm.weight"] = (12,)
    stored["classifier.weight"] = (2, 2)
    stored["model.embed_tokens.weight"] = (320, 48)
    _, problems = match_names(sources(CFG, SHAPES, "5"), stored)
    assert sorted(problems) == [
        "duplicate: model.language_model.embed_tokens.weight and model.embed_tokens.weight",
        "misshapen: model.language_model.norm.weight is [47], not [48]",
        "misshapen: model.visual.blocks.0.attn.proj.weight is [32, 31], not [32, 32]",
        "missing: model.language_model.layers.1.self_attn.q_proj.weight",
        "missing: model.visual.merger.mlp.0.bias",
        "unexpected: classifier.weight",
        "unexpected: model.language_model.layers.0.self_attn.q_norm.weight",
        "unexpected: model.visual.blocks.3.norm1.weight",
    ]


def test_parameter_without_a_name_is_refused():
    with pytest.raises(ValueError, match="q_proj/lora/a"):
        sources(CFG, {"language/layers/self_attn/q_proj/lora/a": (2, 48, 4)})
