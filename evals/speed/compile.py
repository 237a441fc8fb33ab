"""Compiling the encoder: layers are scanned, so depth should cost next to nothing.

Only shapes are needed: no weights are allocated.
"""

import dataclasses

import jax
import numpy as np

from evals.speed import harness
from gve_jax.inputs.batch import Bucket
from gve_jax.model.batch import Batch, batch_sizes
from gve_jax.model.config import ModelConfig, TextConfig, VisionConfig
from gve_jax.model.embedder import init_params, make_embed

GVE_3B = ModelConfig(
    vision=VisionConfig(
        depth=32,
        hidden_size=1280,
        intermediate_size=3420,
        num_heads=16,
        out_hidden_size=2048,
        fullatt_block_indexes=(7, 15, 23, 31),
    ),
    text=TextConfig(
        vocab_size=151_936,
        hidden_size=2048,
        intermediate_size=11008,
        num_hidden_layers=36,
        num_attention_heads=16,
        num_key_value_heads=2,
        mrope_section=(16, 24, 24),
    ),
    dtype="bfloat16",
    param_dtype="bfloat16",
)


def with_layers(config: ModelConfig, tower: int, decoder: int) -> ModelConfig:
    vision = dataclasses.replace(
        config.vision, depth=tower, fullatt_block_indexes=tuple(range(tower - 1, 0, -8))
    )
    text = dataclasses.replace(config.text, num_hidden_layers=decoder)
    return dataclasses.replace(config, vision=vision, text=text)


def make_compile(config: ModelConfig):
    """A function that traces and compiles `embed` for one video of 8 frames with text."""
    params = jax.eval_shape(lambda: init_params(config, 0)[1])
    bucket = Bucket(pairs=4, patches=800, windows=16, length=1024)
    batch = Batch.abstract(batch_sizes(1, bucket, config.vision))

    def compile_embed():
        jax.clear_caches()
        jax.jit(make_embed(config)).lower(params, batch).compile()

    return compile_embed


OPTIONS = {"repeats": (3, "compilations of each model")}


def measure(_folder, args) -> dict:
    jax.config.update("jax_enable_compilation_cache", False)
    variants = {
        f"{tower} + {decoder} layers": make_compile(with_layers(GVE_3B, tower, decoder))
        for tower, decoder in ((2, 2), (32, 36))
    }
    taken = harness.take_turns(variants, args.repeats)
    shallow, deep = (np.median(values) for values in taken.values())
    return {
        "seconds": {name: values[:, 0].round(2).tolist() for name, values in taken.items()},
        "ratio of medians": round(float(deep / shallow), 2),
    }
