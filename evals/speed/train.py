"""A LoRA training step, compared with transformers + peft + torch in float32.

Both have the same weights, batch and loss.
Texts of 8 to 64 letters with videos of 8 frames; symmetric InfoNCE over the batch; the decoder's
q, k, v, up, gate, down adapted (rank 16), all else frozen; AdamW, clipped. A step is forward,
backward and update from arrays that are ready on both sides. Losses and adapters after the first
steps are compared before anything is timed. The reference runs with gradient checkpointing and
without; the better counts. Each side has its own process, with the allocator its users have: ours
retains freed memory (gve_jax/hardware/malloc.py), with `--same-heap` the reference does, too. With
--gradcache, our plain step is compared with one in chunks instead.
"""

import dataclasses
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from evals.parity.reference import SIZES, Reference, make_example, write_checkpoint
from evals.speed import harness
from evals.speed.items import draw_text
from gve_jax.checkpoints.peft import read_adapter
from gve_jax.distributed.sharding import place_batch
from gve_jax.gve import GVE
from gve_jax.hardware.flops import train, trains
from gve_jax.hardware.malloc import retain_freed_memory
from gve_jax.inputs.batch import Bucket, collate, need
from gve_jax.inputs.counts import Counts
from gve_jax.learning.loss import LossConfig
from gve_jax.learning.optimizer import ADAPTERS, make_optimizer
from gve_jax.learning.state import abstract_state, init_train_state, split
from gve_jax.learning.step import make_train_step
from gve_jax.media.item import Item
from gve_jax.model.batch import Batch
from gve_jax.model.config import REMAT

OPTIMIZER = ConfigDict(
    dict(
        learning_rate=1e-3,
        warmup_steps=0,
        b1=0.9,
        b2=0.999,
        weight_decay=0.1,
        clip_norm=1.0,
        rates=ADAPTERS,
    )
)
TARGETS = r".*layers.*\.(q_proj|k_proj|v_proj|up_proj|gate_proj|down_proj)"
LOSS = LossConfig(duplicate_cosine=None)
COMPARED = 3  # steps


def draw_pairs(
    count: int, size: tuple[int, int], longest: int, seed: int = 0
) -> tuple[list[Item], list[Item]]:
    """Texts of 8 to `longest` letters, and videos of 8 frames of `size` (height, width)."""
    rng = np.random.default_rng(seed)
    texts = [Item(text=draw_text(rng, 8, longest)) for _ in range(count)]
    videos = rng.integers(0, 256, (count, 8, *size, 3)).astype(np.uint8)
    return texts, [Item(video=video, fps=2.0) for video in videos]


OPTIONS = dict(
    size=("small", "widths of the model", SIZES),
    layers=(4, "layers of tower and decoder each"),
    pairs=(16, "pairs of a batch"),
    side=(168, "side of a frame in pixels, a multiple of 28"),
    remat=("full", "what our step recomputes", REMAT),
    repeats=(3, "steps of each variant"),
    gradcache=(int, "pairs of a chunk; compares our plain step with one in chunks"),
    same_heap=(False, "the reference retains freed memory, too"),
)


def measure(folder: Path, args) -> dict:
    retain_freed_memory()
    write_checkpoint(folder / "model", args.size, args.layers, args.layers)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, _start_reference, (folder, args)) as child:
        child.submit(_save_reference, folder / "adapter").result()
        return _measure(child, folder, args)


def _measure(child: ProcessPoolExecutor, folder: Path, args) -> dict:
    model = GVE.from_pretrained(folder / "model", dtype="float32", adapter=folder / "adapter")
    rows = [[example.row for example in side] for side in draw_examples(args, model)]
    ours = Ours(model, rows, args.remat)
    variants = {"ours": ours.step}
    if args.gradcache:
        chunked = Ours(model, rows, args.remat, args.gradcache)
        variants["ours, in chunks"] = chunked.step
    else:
        variants["theirs"] = lambda: child.submit(_step_reference, False).result()
        variants["theirs, checkpointing"] = lambda: child.submit(_step_reference, True).result()
    # Outputs are compared before anything is timed.
    start = time.perf_counter()
    losses = {"ours": [ours.step()]}
    compiling = time.perf_counter() - start
    losses["ours"] += [ours.step() for _ in range(COMPARED - 1)]
    other = list(variants)[1]
    losses[other] = [variants[other]() for _ in range(COMPARED)]
    difference = max(abs(a / b - 1) for a, b in zip(*losses.values(), strict=True))
    if args.gradcache:
        moved = adapters(chunked)
    else:
        child.submit(_save_reference, folder / "moved").result()
        moved = flatten_dict(read_adapter(folder / "moved", model.config)[1], sep="/")
    apart = distance(adapters(ours), moved, adapters(Ours(model, rows, args.remat)))
    if difference > 1e-3 or apart > 2e-2:
        raise SystemExit(f"losses {losses} differ, or adapters' steps, {apart:.1e} apart")
    seconds, medians, ratio = harness.compare_with_best(variants, args.repeats)
    return {
        "tokens": sum(len(row.tokens) for side in rows for row in side),
        "losses": losses,
        "distance of the adapters, of their way": apart,
        "seconds": seconds,
        "ratio": ratio,
        "model GFLOP/s": round(ours.flops / medians["ours"] / 1e9, 1),
        "first step with compiling, seconds": round(compiling, 1),
    }


class Ours:
    """The trainer's own step on one device, on one batch; `step()` returns the loss.

    Args:
      bucket_of: chooses the static shape of a side's rows (default: the smallest).
    """

    def __init__(
        self,
        model: GVE,
        rows: list[list],
        remat: str,
        chunk: int = 0,
        bucket_of: Callable[[list], Bucket] = need,
    ):
        cfg = dataclasses.replace(model.config, remat_text=remat, remat_vision=remat)
        self.tx, mesh = make_optimizer(OPTIMIZER, 1_000_000), model.mesh
        params, self.frozen = split(model.params, ADAPTERS)
        params = jax.tree.map(lambda leaf: leaf.copy(), params)  # the step donates them
        abstract, _ = abstract_state(cfg, self.tx, mesh, ADAPTERS)
        self.state = init_train_state(params, self.tx, abstract)
        count = np.arange(len(rows[0]), dtype=np.int32)
        query, positive = (
            Batch(**collate(side, bucket_of(side), model.preprocess.spec)) for side in rows
        )
        self.batch = place_batch(
            {
                "query": query,
                "positive": positive,
                "negatives": [],
                "valid": np.ones(len(count), bool),
                "query_id": count,
                "positive_id": ~count,
                "negative_id": np.empty((len(count), 0), np.int32),
            },
            mesh,
        )
        self.run, self.number = make_train_step(cfg, self.tx, LOSS, mesh, chunk=chunk), 0
        sides = [Counts.of_rows(side) for side in rows]
        self.flops = train(cfg, sides, trains(flatten_dict(params, sep="/"))).total

    def step(self) -> float:
        self.state, scalars = self.run(self.state, self.frozen, self.batch, self.number)
        self.number += 1
        jax.block_until_ready(self.state)
        return float(scalars["loss"])


def draw_examples(args, model: GVE) -> list[list]:
    """The same in every process."""
    sides = draw_pairs(args.pairs, (args.side, args.side), 64)
    return [[make_example(item, model) for item in side] for side in sides]


class ReferenceStep:
    """PEFT's model and torch's AdamW on the same batch."""

    def __init__(self, folder: Path, examples: list[list]):
        import torch

        self.torch, self.reference = torch, Reference(folder / "model")
        self.examples = examples
        # After Reference, which declares what torchvision, imported by PEFT, lacks on a CPU.
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(0)
        # `init_lora_weights=False`: B is not zero, so that every adapter has a gradient at once.
        config = LoraConfig(
            r=16, lora_alpha=32, lora_dropout=0.0, target_modules=TARGETS, init_lora_weights=False
        )
        self.model = get_peft_model(self.reference.model, config)
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.trained, lr=OPTIMIZER.learning_rate, weight_decay=OPTIMIZER.weight_decay
        )

    def __call__(self, checkpointing: bool) -> float:
        torch, base = self.torch, self.reference.model
        base.train(checkpointing)  # it checkpoints in training mode only; it has no dropout
        if checkpointing:
            base.gradient_checkpointing_enable({"use_reentrant": False})
        query, positive = (self._embed(side) for side in self.examples)
        cosines = query @ positive.T / LOSS.temperature
        target = torch.arange(len(cosines))
        entropy = torch.nn.functional.cross_entropy
        loss = (entropy(cosines, target) + entropy(cosines.T, target)) / 2
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, OPTIMIZER.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if checkpointing:
            base.gradient_checkpointing_disable()
        return float(loss.detach())

    def _embed(self, examples):
        hidden = self.reference.core(**self.reference.inputs(examples), use_cache=False)
        last = [len(e.row.tokens) - 1 for e in examples]
        pooled = hidden.last_hidden_state[range(len(examples)), last].float()
        return self.torch.nn.functional.normalize(pooled, dim=-1)


_REFERENCE: ReferenceStep | None = None  # in the child process


def _start_reference(folder: Path, args) -> None:
    global _REFERENCE
    if args.same_heap:
        retain_freed_memory()
    model = GVE.from_pretrained(folder / "model", dtype="float32")
    _REFERENCE = ReferenceStep(folder, draw_examples(args, model))


def _step_reference(checkpointing: bool) -> float:
    return _REFERENCE(checkpointing)


def _save_reference(folder: Path) -> None:
    _REFERENCE.model.save_pretrained(folder)


def adapters(ours: Ours) -> dict:
    return flatten_dict(ours.state["params"], sep="/")


def distance(a: dict, b: dict, before: dict) -> float:
    """||a - b|| / ||a - before||."""
    way = sum(float(np.sum((np.asarray(a[name]) - np.asarray(before[name])) ** 2)) for name in a)
    gap = sum(float(np.sum((np.asarray(a[name]) - np.asarray(b[name])) ** 2)) for name in a)
    return (gap / way) ** 0.5
