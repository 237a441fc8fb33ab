"""A small GVE on the generated video world: minutes on two CPU cores.

    python -m data.shapes --output runs/quickstart/data
    python -m gve_jax.train --config configs/quickstart.py --workdir runs/quickstart

`--config configs/quickstart.py:smoke` is the same experiment in seconds: does it run at all?
`:small` is what `python -m evals.curriculum` repeats: a narrower model, fewer steps.
The file states differences from the defaults (docs/configuration.md).
"""

from ml_collections import ConfigDict

from gve_jax.running.sections import base_config


def get_config(form: str = "") -> ConfigDict:
    if form not in ("", "smoke", "small"):
        raise ValueError(f"configs/quickstart.py has no form {form!r}; known: smoke, small")
    config = base_config()
    config.steps = 1150
    config.batch_size = 32
    # The Qwen2.5-VL architecture, small: the same blocks and names.
    config.model.remat_vision = config.model.remat_text = "full"  # faster on a CPU, too
    config.model.vision = ConfigDict(
        dict(
            depth=2,
            hidden_size=128,
            intermediate_size=256,
            num_heads=4,
            out_hidden_size=128,
            fullatt_block_indexes=(1,),
            window_size=28,
        )
    )
    config.model.text = ConfigDict(
        dict(
            vocab_size=1280,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            mrope_section=(4, 6, 6),
        )
    )
    config.inputs.num_frames = 8  # the paper's protocol
    config.inputs.min_pixels = config.inputs.max_pixels = 56 * 56  # 4 merged tokens a frame pair
    config.buckets.shapes = (
        (0, 64), (0, 112), (0, 192),  # texts
        (1, 48), (1, 80),  # an image, with text
        (4, 40), (4, 80),  # a video, with text
        (5, 192),  # a video, an image and text
    )  # fmt: skip
    config.buckets.update(patches=16, windows=4)
    config.data.pairs = "{workdir}/data/pairs"
    config.data.tokenizer = "{workdir}/data/tokenizer.json"
    config.data.siblings.update(T2V_crossing=2, T2V_motion=2, T2V_camera=2)
    config.data.workers = 1
    config.loss.duplicate_cosine = None  # an untrained model puts everything close together
    config.optimizer.learning_rate = 7e-4  # from scratch; the paper's LoRA uses 3e-5
    config.optimizer.warmup_steps = 50
    config.optimizer.b2 = 0.98
    config.optimizer.rates = ((".*", 1.0),)
    config.pyramid.stages = 5  # the paper has one an epoch, and 3 epochs
    config.pyramid.pairs = 32
    config.mesh.data = -1
    config.checkpoint.update(every=100, keep=2)

    if form == "small":
        config.steps = 500
        config.model.vision.update(hidden_size=64, intermediate_size=128, num_heads=2)
        config.model.vision.out_hidden_size = 64
        config.model.text.update(hidden_size=64, intermediate_size=192, num_hidden_layers=2)
        config.model.text.update(num_attention_heads=2, num_key_value_heads=1)
        config.buckets.shapes = ((0, 64), (0, 192), (1, 80), (4, 80), (5, 192))
        config.optimizer.learning_rate = 1.5e-3  # narrower
    if form == "smoke":
        config.steps = 6
        config.batch_size = 8
        config.model.vision.update(hidden_size=32, intermediate_size=48, num_heads=2)
        config.model.vision.out_hidden_size = 32
        config.model.text.update(hidden_size=32, intermediate_size=64, num_hidden_layers=2)
        config.model.text.update(num_attention_heads=2, num_key_value_heads=1)
        config.model.text.mrope_section = (2, 3, 3)
        config.buckets.shapes = ((0, 192), (4, 192))  # few shapes: most of the time is compiling
        config.data.workers = 0
        config.pyramid.pairs = 8
        config.pyramid.stages = 2
        config.checkpoint.every = 2
        config.optimizer.warmup_steps = 2
    return config
