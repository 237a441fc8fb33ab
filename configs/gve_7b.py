"""GVE-7B: the recipe of `configs/gve_3b.py` on Qwen2.5-VL-7B-Instruct.

    python -m gve_jax.train --config configs/gve_7b.py --workdir runs/gve-7b

The forms are the same: `:s`, `:i`, `:own`, `:smoke`. The paper gives both sizes one table of
hyper-parameters; the 7B sees up to 13.73 M pairs (`configs/gve_mixture.py`).
"""

from ml_collections import ConfigDict

from configs import gve_3b


def get_config(form: str = "") -> ConfigDict:
    config = gve_3b.get_config("" if form in gve_3b.FINISHED else form)
    config.pretrained = "Qwen/Qwen2.5-VL-7B-Instruct"  # directory or Hub id
    config.model.vision.out_hidden_size = 3584  # the decoder's width; else the 3B's tower
    config.model.text = ConfigDict(
        dict(
            vocab_size=152_064,
            hidden_size=3584,
            intermediate_size=18_944,
            num_hidden_layers=28,
            num_attention_heads=28,
            num_key_value_heads=4,
            mrope_section=(16, 24, 24),  # frequencies for time, row, column
        )
    )
    gve_3b.finish(config, form)
    return config
