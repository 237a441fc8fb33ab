"""A small GVE on the generated video world: minutes on two CPU cores.

    python -m data.shapes --output runs/quickstart/data
    python -m gve_jax.train --config configs/quickstart.py --workdir runs/quickstart

`--config configs/quickstart.py:smoke` is the same experiment in seconds: does it run at all?
`:small` is what `python -m evals.curriculum` repeats: a narrower model, fewer steps.
"""

import dataclasses

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from gve_jax.media.limits import Limits


def get_config(form: str = "") -> ConfigDict:
    if form not in ("", "smoke", "small"):
        raise ValueError(f"configs/quickstart.py has no form {form!r}; known: smoke, small")
    config = ConfigDict()
    config.seed = 42  # the paper's
    config.steps = 1150  # optimizer steps, all stages together
    config.batch_size = 32  # pairs of a global batch

    config.pretrained = placeholder(str)  # directory or Hub id to start from; None: random weights
    config.quantize = placeholder(str)  # "nf4" or "int8": a frozen decoder in few bits (QLoRA)

    # The Qwen2.5-VL architecture, small: same blocks, same names (see gve_jax/model/config.py).
    config.model = ConfigDict()
    config.model.dtype = "float32"  # of activations; bfloat16 gains nothing on a CPU
    config.model.param_dtype = "float32"
    config.model.remat_vision = "full"  # recompute activations: on a CPU faster, too
    config.model.remat_text = "full"  # or "dots" (keep the projections'), "none"
    config.model.attention = "xla"  # or "cudnn" (NVIDIA, bfloat16), "splash" (TPU)
    config.model.vision = ConfigDict(
        dict(
            depth=2,
            hidden_size=128,
            intermediate_size=256,
            num_heads=4,
            out_hidden_size=128,  # the decoder's width
            fullatt_block_indexes=(1,),  # the others attend within windows
            window_size=28,  # pixels
        )
    )
    config.model.text = ConfigDict(
        dict(
            vocab_size=1280,  # at least the tokenizer's
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            mrope_section=(4, 6, 6),  # frequencies for time, row, column
        )
    )

    config.inputs = ConfigDict()
    config.inputs.num_frames = 8  # the paper's protocol, uniformly sampled
    config.inputs.min_pixels = 56 * 56
    config.inputs.max_pixels = 56 * 56  # 4 merged tokens a frame pair
    config.inputs.mrope = "qwen_train"  # position regime of the released weights

    # Static shapes, as (frame pairs, tokens): a batch takes the first that holds it.
    config.buckets = ConfigDict()
    config.buckets.shapes = (
        (0, 64), (0, 112), (0, 192),  # texts
        (1, 48), (1, 80),  # an image, with text
        (4, 40), (4, 80),  # a video, with text
        (5, 192),  # a video, an image and text
    )  # fmt: skip
    config.buckets.patches = 16  # patches of a frame pair
    config.buckets.windows = 4  # attention windows of a frame pair

    config.data = ConfigDict()
    # TFDS directories or names, files of JSONL, also gs://. NAME=LOCATION adds a name to
    # its sources', several by commas, with * for many.
    config.data.pairs = "{workdir}/data/pairs"
    config.data.cache = "~/.cache/gve_jax/pairs"  # copies of gs:// and indices of JSONL; local
    config.data.sources = ()  # patterns of whole names, those that train; (): all
    config.data.tokenizer = "{workdir}/data/tokenizer.json"
    config.data.batch_sizes = ()  # (pattern, pairs of a global batch); else batch_size
    config.data.repeat = ()  # (pattern, passes over a source at most); else any number
    # Records side by side that differ in time only: they share a batch, as hard negatives.
    config.data.siblings = ConfigDict(dict(T2V_crossing=2, T2V_motion=2, T2V_camera=2))
    config.data.workers = 1  # decoding processes; 0 decodes in threads
    config.data.max_bad_share = 0.01  # unreadable pairs past which the run stops

    # What one file may cost: pixels, frames, streams, seconds, bytes (gve_jax/media/limits.py).
    config.limits = ConfigDict(dataclasses.asdict(Limits()))

    config.gradcache_chunk = 0  # pairs encoded at a time for one loss; 0: all of the batch
    config.loss = ConfigDict()
    config.loss.temperature = 0.03  # the paper's
    config.loss.form = "plain"  # where cosines live: or "all_gather", "ring" (learning/loss.py)
    # Pairs with the same content are no negatives of each other; by cosine, too, would leave none:
    # an untrained model puts everything close together.
    config.loss.duplicate_cosine = placeholder(float)
    config.loss.false_negative_margin = placeholder(float)  # above the positive: no negative
    config.loss.learned_temperature = False
    config.loss.matryoshka = ()  # lengths that vectors are cut to; (): whole ones alone
    config.loss.matryoshka_weights = ()

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 7e-4  # from scratch; the paper's LoRA uses 3e-5
    config.optimizer.warmup_steps = 50
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.98
    config.optimizer.weight_decay = 0.1  # the paper's
    config.optimizer.clip_norm = 1.0
    # (pattern, factor of the learning rate): the first pattern found in a parameter's path; 0
    # freezes. Here everything trains.
    config.optimizer.rates = ((".*", 1.0),)

    # The Modality Pyramid: P(task) ~ size * exp(R / sigma), R probed as each stage starts. What
    # fields may be: gve_jax/learning/curriculum.py.
    config.pyramid = ConfigDict()
    config.pyramid.stages = 5  # the paper has one an epoch, and 3 epochs
    config.pyramid.unit = "steps"  # equal parts of the run; "epoch": a pass over all records each
    config.pyramid.bounds = ()  # or the first steps of the stages after the first
    config.pyramid.schedule = "pyramid"  # or "uniform", "proportional", "manual"
    config.pyramid.weights = ()  # of "manual": (pattern, weight, or one a stage)
    config.pyramid.task = "source"  # what R and P are of; or "modality": its pair, split by size
    config.pyramid.by_size = True  # the paper does not say; False: P ~ exp(R / sigma) alone
    config.pyramid.sigma = "linear"  # over the run; or "cosine", "step", "constant"
    config.pyramid.sigma_per = "stage"  # or "step": each step is drawn with its own
    config.pyramid.sigma_first = 0.1
    config.pyramid.sigma_last = 1.0
    config.pyramid.prober = placeholder(str)  # of the first stage: a model, or scores as JSON
    config.pyramid.pairs = 32  # pairs probed of each source

    config.mesh = ConfigDict(dict(data=-1, fsdp=1, tensor=1))  # -1: all devices left

    config.checkpoint = ConfigDict()
    config.checkpoint.every = 100  # steps
    config.checkpoint.keep = 2
    config.log_every = 1  # steps between lines of metrics.jsonl
    config.wandb = placeholder(str)  # a Weights & Biases project to send them to as well
    config.profile = ()  # (first step, steps) to trace, for XProf: WORKDIR/profile
    config.export = ("gve_jax",)  # forms of the trained model: "gve_jax", "peft", "hf"

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
