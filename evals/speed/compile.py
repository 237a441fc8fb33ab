"""Compiling the encoder: layers are scanned, so depth should cost next to nothing.

Only shapes are needed: no weights are allocated.
"""

import argparse
import dataclasses
import time

import jax

from evals.speed.result import write_result
from gve_jax.inputs.batch import Bucket
from gve_jax.model.batch import Batch, batch_sizes
from gve_jax.model.config import ModelConfig, TextConfig, VisionConfig
from gve_jax.model.embedder import init_params, make_embed
from gve_jax.storage.filesystem import local_path

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


def seconds_to_compile(config: ModelConfig) -> float:
    """Tracing and compiling `embed` for one video of 8 frames with text."""
    params = jax.eval_shape(lambda: init_params(config, 0)[1])
    bucket = Bucket(pairs=4, patches=800, windows=16, length=1024)
    batch = Batch.abstract(batch_sizes(1, bucket, config.vision))
    began = time.perf_counter()
    jax.jit(make_embed(config)).lower(params, batch).compile()
    return time.perf_counter() - began


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(prog="python -m evals.speed compile", description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=local_path, help="a JSON file to write")
    args = parser.parse_args(argv)
    jax.config.update("jax_enable_compilation_cache", False)
    shapes = {"2 + 2 layers": (2, 2), "32 + 36 layers": (32, 36)}
    seconds = {name: [] for name in shapes}
    for _ in range(args.repeats):
        for name, depths in shapes.items():
            jax.clear_caches()
            seconds[name].append(round(seconds_to_compile(with_layers(GVE_3B, *depths)), 2))
    shallow, deep = (sorted(values)[len(values) // 2] for values in seconds.values())
    result = {"seconds": seconds, "ratio of medians": round(deep / shallow, 2)}
    write_result("compile", vars(args), result, args.output)
