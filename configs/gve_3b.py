"""GVE-3B: LoRA on Qwen2.5-VL-3B-Instruct with the published hyper-parameters (arXiv 2510.27571).

    python -m gve_jax.train --config configs/gve_3b.py --workdir runs/gve-3b

The file states differences from the defaults (docs/configuration.md). "Table 9", "A.8" and sections
are the paper's; values that it does not state are marked. `configs/gve_mixture.py` is the mixture;
docs/reproduce.md describes how to obtain it. Forms:

    gve_3b.py         GVE: collected and synthesized pairs, the Modality Pyramid
    gve_3b.py:s       GVE-s: the same pairs, no curriculum: sources in proportion to their size
    gve_3b.py:i       GVE-i: collected pairs alone, no curriculum
    gve_3b.py:own     GVE's recipe on pairs of your own, `--config.data.pairs=PAIRS`, and on any
                      base: its config.json decides the shapes
    gve_3b.py:smoke   at tiny widths, from random weights, on the generated world of
                      `python -m data.shapes --output WORKDIR/data`: does it run at all?
"""

from ml_collections import ConfigDict

from configs import gve_mixture
from gve_jax.model.config import LORA_TARGETS
from gve_jax.running.sections import base_config

FORMS = ("i", "s", "own", "smoke")
FINISHED = ("own", "smoke")  # forms of `finish`


def get_config(form: str = "") -> ConfigDict:
    if form and form not in FORMS:
        raise ValueError(f"this configuration has no form {form!r}; known: {', '.join(FORMS)}")
    mixture = gve_mixture.COLLECTED if form == "i" else gve_mixture.ALL
    config = base_config()
    config.seed = 42  # Table 9
    config.steps = 12_000  # its curves end there: 12.55 M pairs, once (it also says: 3 epochs)
    config.batch_size = 2048  # of the largest batches: 64 on each of 32 A100s
    config.pretrained = "Qwen/Qwen2.5-VL-3B-Instruct"
    config.model.update(dtype="bfloat16", param_dtype="bfloat16")  # Table 9
    config.model.update(remat_vision="full", remat_text="full")  # Table 9: gradient checkpointing
    lora = dict(rank=16, alpha=32.0, dropout=0.1, targets=LORA_TARGETS)  # Table 9
    config.model.lora = ConfigDict(lora)
    # As in the config.json of `pretrained`, which is compared: a planner needs no weights.
    config.model.vision = ConfigDict(
        dict(
            depth=32,
            hidden_size=1280,
            intermediate_size=3420,
            num_heads=16,
            out_hidden_size=2048,
            fullatt_block_indexes=(7, 15, 23, 31),
            window_size=112,
        )
    )
    config.model.text = ConfigDict(
        dict(
            vocab_size=151_936,
            hidden_size=2048,
            intermediate_size=11_008,
            num_hidden_layers=36,
            num_attention_heads=16,
            num_key_value_heads=2,
            mrope_section=(16, 24, 24),
        )
    )
    config.inputs.num_frames = 8  # A.8
    config.buckets.shapes = (
        (0, 64), (0, 128), (0, 256), (0, 512), (0, 1280),  # texts
        (1, 256), (1, 512), (1, 1280),  # an image of at most 200 tokens, with text
        (4, 896), (4, 1280),  # a video of at most 800, with text
        (5, 1280),  # a video, an image and text
    )  # fmt: skip
    config.buckets.frames = ((800, 18),)  # sides up to 1:3
    config.buckets.patches = 800  # 200 tokens of 2 x 2
    config.buckets.windows = 50  # a strip touches the most

    config.data.pairs = "data/gve/*"
    config.data.sources = gve_mixture.names(mixture)
    config.data.batch_sizes = gve_mixture.batch_sizes(mixture)  # table 6: 32 or 64 per GPU
    config.data.repeat = ()  # not stated: "small, valuable" sources were repeated

    config.gradcache_chunk = 0  # A.8: supported, but off
    config.loss.temperature = 0.03  # Table 9
    config.loss.duplicate_cosine = 1e-5  # not stated; of the class the authors built on
    config.optimizer.learning_rate = 3e-5  # Table 9
    config.optimizer.warmup_steps = 100  # not stated, as b1, b2 and clip_norm
    config.optimizer.weight_decay = 0.1  # Table 9
    # Tower, merger, embeddings and the decoder's weights are frozen (figure 4).
    config.optimizer.rates = ((r"/lora/[ab]$", 1.0), (".*", 0.0))
    config.pyramid.stages = 3  # one an epoch, and 3 epochs; section 3.3
    config.pyramid.sigma_first = 0.1  # section 3.3
    config.pyramid.sigma_last = 1.0  # section 3.3
    # Section 3.3. None, the initial weights, where it cannot be had.
    config.pyramid.prober = "Alibaba-NLP/gme-Qwen2-VL-7B-Instruct"
    config.mesh.update(data=1, fsdp=-1)
    config.export = ("gve_jax", "peft")

    if form in ("i", "s"):
        config.pyramid.schedule = "proportional"
        config.pyramid.prober = None
    finish(config, form)
    return config


def finish(config: ConfigDict, form: str) -> None:
    """The forms that replace fields of a complete configuration."""
    if form == "own":
        config.batch_size = 1024
        config.pyramid.prober = None
        config.data.sources = config.data.batch_sizes = ()
        del config.model.vision, config.model.text  # as in the config.json of `pretrained`
    if form == "smoke":
        make_small(config)


def make_small(config: ConfigDict) -> None:
    """The same recipe in seconds on a CPU."""
    config.steps = 2
    config.batch_size = 8
    config.pretrained = None
    config.model.dtype = config.model.param_dtype = "float32"
    config.model.vision.update(depth=2, hidden_size=32, intermediate_size=48, num_heads=2)
    config.model.vision.update(out_hidden_size=32, fullatt_block_indexes=(1,), window_size=28)
    config.model.text.update(vocab_size=1280, hidden_size=32, intermediate_size=64)
    config.model.text.update(num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)
    config.model.text.mrope_section = (2, 3, 3)
    config.inputs.min_pixels = config.inputs.max_pixels = 56 * 56
    config.buckets.update(shapes=((0, 192), (4, 192)), frames=(), patches=16, windows=4)
    config.data.pairs = "{workdir}/data/pairs"
    config.data.sources = config.data.batch_sizes = ()
    config.data.tokenizer = "{workdir}/data/tokenizer.json"
    config.data.workers = 0
    config.optimizer.warmup_steps = 1
    config.loss.duplicate_cosine = None  # an untrained model puts everything close together
    config.pyramid.stages = 1
    config.pyramid.pairs = 8
    config.pyramid.prober = None
    config.mesh.update(data=-1, fsdp=1)
