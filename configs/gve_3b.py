"""GVE-3B: LoRA on Qwen2.5-VL-3B-Instruct with the published hyper-parameters (arXiv 2510.27571).

    python -m gve_jax.train --config configs/gve_3b.py --workdir runs/gve-3b

"Table 9", "A.8" and sections are the paper's; what it does not state is said so. The mixture is
`configs/gve_mixture.py`, and docs/reproduce.md tells how to come by it. Forms:

    gve_3b.py         GVE: collected and synthesized pairs, the Modality Pyramid
    gve_3b.py:s       GVE-s: the same pairs, no curriculum: sources in proportion to their size
    gve_3b.py:i       GVE-i: collected pairs alone, no curriculum
    gve_3b.py:own     GVE's recipe on pairs of your own: `--config.data.pairs=PAIRS`
    gve_3b.py:smoke   at tiny widths, from random weights, on the generated world of
                      `python -m data.shapes --output WORKDIR/data`: does it run at all?
"""

import dataclasses

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import gve_mixture
from gve_jax.media.limits import Limits
from gve_jax.model.config import LORA_TARGETS

FORMS = ("i", "s", "own", "smoke")


def get_config(form: str = "") -> ConfigDict:
    if form and form not in FORMS:
        raise ValueError(f"this configuration has no form {form!r}; known: {', '.join(FORMS)}")
    mixture = gve_mixture.COLLECTED if form == "i" else gve_mixture.ALL
    config = ConfigDict()
    config.seed = 42  # Table 9
    config.steps = 12_000  # its curves end there: 12.55 M pairs, once (it also says: 3 epochs)
    config.batch_size = 2048  # pairs of the largest global batches: 64 on each of 32 A100s
    config.pretrained = placeholder(str)  # so that it may be overridden with None, too
    config.pretrained = "Qwen/Qwen2.5-VL-3B-Instruct"  # directory or Hub id; brings the tokenizer
    config.quantize = placeholder(str)  # "nf4" or "int8": the frozen decoder in few bits, one GPU

    config.model = ConfigDict()
    config.model.dtype = "bfloat16"  # of activations; Table 9
    config.model.param_dtype = "bfloat16"  # of the frozen weights; adapters are float32
    config.model.remat_vision = "full"  # Table 9: gradient checkpointing
    config.model.remat_text = "full"  # "dots" is faster where memory allows
    config.model.attention = "xla"  # "cudnn" on NVIDIA, "splash" on TPU
    config.model.lora = ConfigDict()
    config.model.lora.rank = 16  # Table 9
    config.model.lora.alpha = 32.0  # Table 9
    config.model.lora.dropout = 0.1  # Table 9
    config.model.lora.targets = LORA_TARGETS  # Table 9: q, k, v, up, gate, down of the decoder
    # As in the config.json of `pretrained`, which is compared: a planner needs no weights.
    config.model.vision = ConfigDict(
        dict(
            depth=32,
            hidden_size=1280,
            intermediate_size=3420,
            num_heads=16,
            out_hidden_size=2048,  # the decoder's width
            fullatt_block_indexes=(7, 15, 23, 31),  # the others attend within windows
            window_size=112,  # pixels
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
            mrope_section=(16, 24, 24),  # frequencies for time, row, column
        )
    )

    config.inputs = ConfigDict()
    config.inputs.num_frames = 8  # A.8; uniformly sampled
    config.inputs.min_pixels = 4 * 28 * 28  # of a frame or an image; the processor's
    config.inputs.max_pixels = 200 * 28 * 28  # at most 200 tokens a frame, as it is evaluated
    config.inputs.mrope = "qwen_train"  # position regime of the released weights

    # Static shapes, as (frame pairs, tokens): a batch takes the first that holds it. Texts longer
    # than the longest are cut.
    config.buckets = ConfigDict()
    config.buckets.shapes = (
        (0, 64), (0, 128), (0, 256), (0, 512), (0, 1280),  # texts
        (1, 256), (1, 512), (1, 1280),  # an image of at most 200 tokens, with text
        (4, 896), (4, 1280),  # a video of at most 800, with text
        (5, 1280),  # a video, an image and text
    )  # fmt: skip
    config.buckets.frames = ((800, 18),)  # patches and windows of frames with sides up to 1:3
    config.buckets.patches = 800  # of any frame pair: 200 tokens of 2 x 2
    config.buckets.windows = 50  # of any frame pair: a strip touches the most

    config.data = ConfigDict()
    # TFDS directories or names, files of JSONL, also gs://. NAME=LOCATION adds a name to
    # its sources', several by commas, with * for many; 0 to 3 hard negatives a pair.
    config.data.pairs = "data/gve/*"
    config.data.cache = "~/.cache/gve_jax/pairs"  # copies of gs:// and indices of JSONL; local
    config.data.sources = gve_mixture.names(mixture)  # patterns of whole names; (): all there are
    # (pattern, share of batch_size), else 1; table 6: 32 or 64 pairs a GPU by source.
    config.data.batch_sizes = gve_mixture.batch_sizes(mixture)
    # (pattern, passes over a source at most), else any number. Not stated: "small, valuable" ones
    # were repeated.
    config.data.repeat = ()
    config.data.tokenizer = placeholder(str)  # None: that of `pretrained`
    config.data.siblings = ConfigDict()  # source: records side by side that share a batch
    config.data.workers = 8  # decoding processes of a host; the order does not depend on it
    config.data.max_bad_share = 0.01  # unreadable pairs past which the run stops

    # What one file may cost: pixels, frames, streams, seconds, bytes (gve_jax/media/limits.py).
    config.limits = ConfigDict(dataclasses.asdict(Limits()))

    config.gradcache_chunk = 0  # pairs encoded at a time; 0: all at once (A.8: supported, but off)
    config.loss = ConfigDict()
    config.loss.temperature = 0.03  # Table 9, fixed
    config.loss.form = "plain"  # where cosines live: or "all_gather", "ring" (learning/loss.py)
    config.loss.duplicate_cosine = 1e-5  # of 1: no negative; of the class the authors built on
    config.loss.false_negative_margin = placeholder(float)  # 0.1 there, in another class; None: off
    config.loss.learned_temperature = False
    config.loss.matryoshka = ()  # lengths that vectors are cut to; (): whole ones alone
    config.loss.matryoshka_weights = ()

    config.optimizer = ConfigDict()  # AdamW with a cosine schedule; Table 9
    config.optimizer.learning_rate = 3e-5  # Table 9
    config.optimizer.warmup_steps = 100  # not stated
    config.optimizer.b1 = 0.9  # not stated: AdamW's usual
    config.optimizer.b2 = 0.999  # not stated: AdamW's usual
    config.optimizer.weight_decay = 0.1  # Table 9
    config.optimizer.clip_norm = 1.0  # not stated
    # (pattern, factor of the learning rate): the first pattern found in a parameter's path; 0
    # freezes. Tower, merger, embeddings and the decoder's own weights are frozen (figure 4).
    config.optimizer.rates = ((r"/lora/[ab]$", 1.0), (".*", 0.0))

    # The Modality Pyramid: P(task) ~ size * exp(R / sigma), R probed as each stage starts. What
    # fields may be: gve_jax/learning/curriculum.py.
    config.pyramid = ConfigDict()
    config.pyramid.stages = 3  # one an epoch, and 3 epochs; section 3.3
    config.pyramid.unit = "steps"  # of equal parts: its curves end after about one epoch, not 3
    config.pyramid.bounds = ()  # or the first steps of the stages after the first
    config.pyramid.schedule = "pyramid"  # or "uniform", "proportional", "manual"
    config.pyramid.weights = ()  # of "manual": (pattern, weight, or one a stage)
    config.pyramid.task = "source"  # not stated; "modality": pairs of modalities, split by size
    config.pyramid.by_size = True  # not stated; False would show 4 k pairs as often as 5 M
    config.pyramid.sigma = "linear"  # section 3.3
    config.pyramid.sigma_per = "stage"  # not stated; "step": each step is drawn with its own
    config.pyramid.sigma_first = 0.1  # section 3.3
    config.pyramid.sigma_last = 1.0  # section 3.3
    config.pyramid.prober = placeholder(str)  # section 3.3: GME-7B; here the start, unless named
    config.pyramid.pairs = 1024  # probed of each source; not stated

    config.mesh = ConfigDict(dict(data=1, fsdp=-1, tensor=1))  # -1: all devices left

    config.checkpoint = ConfigDict()
    config.checkpoint.every = 200  # steps
    config.checkpoint.keep = 3
    config.log_every = 1  # steps between lines of metrics.jsonl
    config.wandb = placeholder(str)  # a Weights & Biases project to send them to as well
    config.profile = ()  # (first step, steps) to trace, for XProf: WORKDIR/profile
    config.export = ("gve_jax", "peft")  # forms of the trained model; "hf": merged, for others

    if form in ("i", "s"):
        config.pyramid.schedule = "proportional"
    if form == "own":
        config.batch_size = 1024
        config.data.sources = config.data.batch_sizes = ()
    if form == "smoke":
        make_small(config)
    return config


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
    config.mesh.update(data=-1, fsdp=1)
