"""Dataclasses made of JSON: the right ones are made, the wrong field is named."""

import dataclasses
import json

import pytest

from gve_jax.inputs.batch import Buckets
from gve_jax.inputs.preprocess import InputSpec
from gve_jax.model.config import LoraConfig, ModelConfig
from gve_jax.typed import from_json
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
def test_what_was_written_is_made_again(value):
    assert from_json(type(value), json.loads(json.dumps(dataclasses.asdict(value))), "x") == value


def _with(part, **changes):
    return MODEL | {part: MODEL[part] | changes}


@pytest.mark.parametrize(
    "kind, value, named",
    [
        (ModelConfig, None, "^x is None, not an object"),
        (ModelConfig, [1], r"^x is \[1\], not an object"),
        (ModelConfig, {}, "^x lacks vision, text"),
        (ModelConfig, MODEL | {"shape": 1}, "^x.shape: unknown field"),
        (ModelConfig, MODEL | {"lora": "yes"}, "^x.lora is 'yes', not an object"),
        (ModelConfig, MODEL | {"dtype": 32}, "^x.dtype is 32, not a string"),
        (ModelConfig, MODEL | {"vision": []}, r"^x.vision is \[\], not an object"),
        (ModelConfig, _with("vision", depth="2"), "^x.vision.depth is '2', not a whole number"),
        (ModelConfig, _with("vision", depth=2.0), "^x.vision.depth is 2.0, not a whole number"),
        (ModelConfig, _with("vision", depth=True), "^x.vision.depth is True, not a whole number"),
        (ModelConfig, _with("vision", fullatt_block_indexes=1), "indexes is 1, not a list"),
        (ModelConfig, _with("vision", fullatt_block_indexes=["1"]), r"indexes\[0\] is '1', not a"),
        (ModelConfig, _with("text", mrope_section=[2, 2]), "mrope_section has 2 entries, not 3"),
        (ModelConfig, _with("text", rope_theta=None), "^x.text.rope_theta is None, not a number"),
        (
            ModelConfig,
            _with("text", rms_norm_eps=float("nan")),
            "rms_norm_eps is nan, not a number",
        ),
        (ModelConfig, _with("text", num_attention_heads=0), "num_attention_heads must be positive"),
        (ModelConfig, _with("vision", patch_size=0), "vision.patch_size must be positive"),
        (ModelConfig, _with("text", rms_norm_eps=-1), "text.rms_norm_eps must be positive"),
        (InputSpec, {"num_frames": "8"}, "^x.num_frames is '8', not a whole number"),
        (InputSpec, {"num_frames": None}, "^x.num_frames is None, not a whole number"),
        (InputSpec, {"fps": 10**400}, "^x.fps is 1000.*, not a number"),
        (InputSpec, {"fps": "2"}, "^x.fps is '2', not a number"),
        (InputSpec, {"mrope": ["hf452"]}, r"^x.mrope is \['hf452'\], not a string"),
        (InputSpec, {"mrope": "a" * 200}, "."),
        (Buckets, BUCKETS | {"shapes": [[1]]}, r"^x.shapes\[0\] has 1 entries, not 2"),
        (
            Buckets,
            BUCKETS | {"shapes": [[1, "2"]]},
            r"^x.shapes\[0\]\[1\] is '2', not a whole number",
        ),
        (Buckets, BUCKETS | {"shapes": {"1": 2}}, "^x.shapes is .*, not a list"),
        (Buckets, {"shapes": []}, "^x lacks patches, windows"),
    ],
)
def test_the_field_that_is_wrong_is_named(kind, value, named):
    with pytest.raises(Exception, match=named) as caught:
        from_json(kind, value, "x")
    assert type(caught.value).__name__ in ("ValueError", "UserError")
