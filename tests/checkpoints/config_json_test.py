"""Configurations in JSON files are read back equal; a field that is wrong is named."""

import dataclasses
import json

import pytest

from gve_jax.errors import UserError
from gve_jax.fields import build
from gve_jax.inputs.batch import Buckets
from gve_jax.inputs.preprocess import InputSpec
from gve_jax.model.config import LoraConfig, ModelConfig
from tests.checkpoint_files import CFG

MODEL = json.loads(json.dumps(CFG.to_dict()))
BUCKETS = {"shapes": [[0, 64], [4, 256]], "patches": 64, "windows": 4, "frames": [[16, 1]]}


@pytest.mark.parametrize(
    "value",
    [
        CFG,
        dataclasses.replace(CFG, lora=LoraConfig(rank=2, alpha=3.5)),
        InputSpec(fps=2.0),
        Buckets(((0, 64), (4, 256)), 64, 4),
    ],
)
def test_a_written_configuration_is_read_back_equal(value):
    assert build(type(value), json.loads(json.dumps(dataclasses.asdict(value))), "x") == value


def _with(part, **changes):
    return MODEL | {part: MODEL[part] | changes}


@pytest.mark.parametrize(
    "kind, value, named",
    [
        (ModelConfig, None, "^x None must be a section of fields"),
        (ModelConfig, [1], r"^x \[1\] must be a section of fields"),
        (ModelConfig, {}, "^x.vision is missing"),
        (ModelConfig, MODEL | {"shape": 1}, "^x.shape: unknown field"),
        (ModelConfig, MODEL | {"lora": "yes"}, "^x.lora 'yes' must be a section of fields"),
        (ModelConfig, MODEL | {"dtype": 32}, "^x.dtype 32 must be a text"),
        (ModelConfig, MODEL | {"vision": []}, r"^x.vision \[\] must be a section of fields"),
        (ModelConfig, _with("vision", depth="2"), "^x.vision.depth '2' must be an integer"),
        (ModelConfig, _with("vision", depth=2.0), "^x.vision.depth 2.0 must be an integer"),
        (ModelConfig, _with("vision", depth=True), "^x.vision.depth True must be an integer"),
        (ModelConfig, _with("vision", fullatt_block_indexes=1), "indexes 1 must be a tuple"),
        (
            ModelConfig,
            _with("vision", fullatt_block_indexes=["1"]),
            r"block_indexes\[0\] '1' must be an integer",
        ),
        (ModelConfig, _with("text", mrope_section=[2, 2]), "mrope_section .* must be a tuple of 3"),
        (ModelConfig, _with("text", rope_theta=None), "^x.text.rope_theta None must be a number"),
        (
            ModelConfig,
            _with("text", rms_norm_eps=float("nan")),
            "rms_norm_eps nan must be finite",
        ),
        (
            ModelConfig,
            _with("text", num_attention_heads=0),
            "num_attention_heads 0 must be",
        ),
        (ModelConfig, _with("vision", patch_size=0), "vision.patch_size 0 must be at least 1"),
        (ModelConfig, _with("text", rms_norm_eps=-1), "text.rms_norm_eps -1.0 must be above 0"),
        (InputSpec, {"num_frames": "8"}, "^x.num_frames '8' must be an integer"),
        (InputSpec, {"num_frames": None}, "^x.num_frames None must be an integer"),
        (InputSpec, {"fps": 10**400}, "^x.fps 1000.* must be finite"),
        (InputSpec, {"fps": "2"}, "^x.fps '2' must be a number"),
        (InputSpec, {"mrope": ["hf452"]}, r"^x.mrope \['hf452'\] must be a text"),
        (InputSpec, {"mrope": "a" * 200}, "."),
        (Buckets, BUCKETS | {"shapes": [[1]]}, r"^x.shapes\[0\] .* must be a tuple of 2"),
        (
            Buckets,
            BUCKETS | {"shapes": [[1, "2"]]},
            r"^x.shapes\[0\]\[1\] '2' must be an integer",
        ),
        (Buckets, BUCKETS | {"shapes": {"1": 2}}, "^x.shapes .* must be a tuple"),
        (Buckets, {"shapes": []}, "^x.patches is missing"),
    ],
)
def test_a_wrong_field_is_named(kind, value, named):
    with pytest.raises(UserError, match=named):
        build(kind, value, "x")
