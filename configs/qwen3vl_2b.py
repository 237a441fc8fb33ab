"""GVE's recipe (`configs/gve_3b.py`) on Qwen3-VL-2B-Instruct.

    python -m gve_jax.train --config configs/qwen3vl_2b.py --workdir runs/qwen3vl-2b

The paper trains Qwen2.5-VL; here its hyper-parameters train a newer base. The forms are the same:
`:s`, `:i`, `:own`, `:smoke`. A frame still has at most 200 merged tokens, of 32 x 32 pixels; each
frame pair has its time as text before it.
"""

from ml_collections import ConfigDict

from configs import gve_3b
from gve_jax.model.config import HALF


def get_config(form: str = "") -> ConfigDict:
    config = gve_3b.get_config("" if form in gve_3b.FINISHED else form)
    config.pretrained = "Qwen/Qwen3-VL-2B-Instruct"
    config.model.architecture = "qwen3_vl"
    config.model.vision = ConfigDict(
        dict(
            depth=24,
            hidden_size=1024,
            intermediate_size=4096,
            num_heads=16,
            out_hidden_size=2048,
            patch_size=16,
            fullatt_block_indexes=tuple(range(24)),
            window_size=0,
            tokens_per_second=0,
            norm="layer",
            mlp="gelu_tanh",
            patch_bias=True,
            position_side=48,
            deepstack=(5, 11, 17),
            pixel_mean=HALF,
            pixel_std=HALF,
        )
    )
    config.model.text = ConfigDict(
        dict(
            vocab_size=151_936,
            hidden_size=2048,
            intermediate_size=6144,
            num_hidden_layers=28,
            num_attention_heads=16,
            num_key_value_heads=8,
            head_dim=128,
            mrope_section=(24, 20, 20),
            mrope_interleaved=True,
            rope_theta=5_000_000.0,
            qkv_bias=False,
            qk_norm=True,
        )
    )
    config.inputs.min_pixels = 4 * 32**2
    config.inputs.max_pixels = 200 * 32**2
    config.buckets.frames = ()
    config.buckets.windows = 0
    gve_3b.finish(config, form)
    if form == "smoke":
        config.model.vision.update(fullatt_block_indexes=(0, 1), window_size=0)
        config.model.vision.update(position_side=4, deepstack=(0,))
        config.model.text.update(head_dim=16)
        config.inputs.min_pixels = config.inputs.max_pixels = 64 * 64
        config.buckets.update(shapes=((0, 192), (4, 224)), windows=0)
    return config
