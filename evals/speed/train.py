"""A LoRA training step beside transformers + peft + torch: same weights, batch, loss; float32.

Texts of 8 to 64 tokens with videos of 8 frames; symmetric InfoNCE over the batch; the decoder's
q, k, v, up, gate, down adapted (rank 16), all else frozen; AdamW, clipped. A step is forward,
backward and update from arrays that are ready on both sides. Losses and adapters after the first
steps are compared before anything is timed. Theirs runs with gradient checkpointing and without;
the better counts. Each side has a process of its own, with the allocator its users have: ours keeps
freed memory (gve_jax/hardware/malloc.py), with `--same-heap` theirs does, too. With --gradcache,
the plain step of ours is compared with one in chunks instead.
"""

import argparse
import contextlib
import dataclasses
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from evals.parity.reference import SIZES, Reference, make_example, write_checkpoint
from evals.speed.result import in_turns, write_result
from gve_jax.checkpoints.peft import read_adapter
from gve_jax.distributed.sharding import place_batch
from gve_jax.gve import GVE
from gve_jax.hardware.flops import train, trains
from gve_jax.hardware.malloc import retain_freed_memory
from gve_jax.inputs.batch import Bucket, collate, need
from gve_jax.inputs.counts import Counts
from gve_jax.learning.loss import LossConfig
from gve_jax.learning.optimizer import ADAPTERS, make_optimizer
from gve_jax.learning.state import abstract_state, split, start
from gve_jax.learning.step import make_train_step
from gve_jax.media.item import Item
from gve_jax.model.batch import Batch
from gve_jax.model.config import REMAT
from gve_jax.storage.filesystem import local_path

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


def draw_pairs(count: int, side: int, seed: int = 0) -> tuple[list[Item], list[Item]]:
    """Texts, and videos of 8 frames of `side` x `side` pixels."""
    rng = np.random.default_rng(seed)
    texts = [
        bytes(rng.integers(97, 123, int(rng.integers(8, 65))).astype(np.uint8)).decode()
        for _ in range(count)
    ]
    videos = rng.integers(0, 256, (count, 8, side, side, 3)).astype(np.uint8)
    return [Item(text=text) for text in texts], [Item(video=v, fps=2.0) for v in videos]


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(prog="python -m evals.speed train", description=__doc__)
    parser.add_argument("--size", default="small", choices=SIZES, help="widths of the model")
    parser.add_argument("--layers", type=int, default=4, help="of tower and decoder each")
    parser.add_argument("--pairs", type=int, default=16, help="of a batch")
    parser.add_argument("--side", type=int, default=168, help="pixels, a multiple of 28")
    parser.add_argument("--remat", default="full", choices=REMAT, help="what ours recomputes")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--gradcache", type=int, help="pairs of a chunk")
    parser.add_argument("--same-heap", action="store_true", help="theirs keeps freed memory, too")
    parser.add_argument("--output", type=local_path, help="a JSON file to write")
    args = parser.parse_args(argv)
    retain_freed_memory()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        result = measure(Path(folder), args, stack)
    write_result("train", vars(args), result, args.output)


def measure(folder: Path, args, stack: contextlib.ExitStack) -> dict:
    write_checkpoint(folder / "model", args.size, args.layers, args.layers)
    theirs = stack.enter_context(Beside(folder, args))
    model = GVE.from_pretrained(folder / "model", dtype="float32", adapter=folder / "adapter")
    rows = [[example.row for example in side] for side in draw_examples(args, model)]
    ours = Ours(model, rows, args.remat)
    ways = {"ours": ours.step}
    if args.gradcache:
        chunked = Ours(model, rows, args.remat, args.gradcache)
        ways["ours, in chunks"] = chunked.step
    else:
        ways |= {
            "theirs": lambda: theirs.step(False),
            "theirs, checkpointing": lambda: theirs.step(True),
        }
    # Outputs before times.
    began = time.perf_counter()
    losses = {"ours": [ours.step()]}
    compiling = time.perf_counter() - began
    losses["ours"] += [ours.step() for _ in range(COMPARED - 1)]
    other = list(ways)[1]
    losses[other] = [ways[other]() for _ in range(COMPARED)]
    off = max(abs(a / b - 1) for a, b in zip(*losses.values(), strict=True))
    moved = adapters(chunked) if args.gradcache else theirs.adapters(folder / "moved", model)
    apart = distance(adapters(ours), moved, adapters(Ours(model, rows, args.remat)))
    if off > 1e-3 or apart > 2e-2:
        raise SystemExit(f"other losses {losses}, adapters' steps {apart:.1e} apart")
    seconds = in_turns(ways, args.repeats)
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    best = min(value for name, value in medians.items() if name != "ours")
    return {
        "tokens": sum(len(row.tokens) for side in rows for row in side),
        "losses": losses,
        "distance of the adapters, of their way": apart,
        "seconds": {name: sorted(round(v, 3) for v in values) for name, values in seconds.items()},
        "ratio": round(best / medians["ours"], 2),
        "model GFLOP/s": round(ours.flops / medians["ours"] / 1e9, 1),
        "first step with compiling, seconds": round(compiling, 1),
    }


class Ours:
    """The trainer's own step on one device, on one batch; `step()` returns the loss.

    Args:
      hold: the static shape of a side's rows; by default the least that holds them.
    """

    def __init__(
        self,
        model: GVE,
        rows: list[list],
        remat: str,
        chunk: int = 0,
        hold: Callable[[list], Bucket] = need,
    ):
        cfg = dataclasses.replace(model.config, remat_text=remat, remat_vision=remat)
        self.tx, mesh = make_optimizer(OPTIMIZER, 1_000_000), model.mesh
        params, self.frozen = split(model.params, ADAPTERS)
        params = jax.tree.map(lambda leaf: leaf.copy(), params)  # the step takes them over
        abstract, _ = abstract_state(cfg, self.tx, mesh, ADAPTERS)
        self.state = start(params, self.tx, abstract)
        count = np.arange(len(rows[0]), dtype=np.int32)
        query, positive = (
            Batch(**collate(side, hold(side), model.preprocess.spec)) for side in rows
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


class Beside:
    """`Theirs` in a process of its own."""

    def __init__(self, folder: Path, args):
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, folder, args), daemon=True)
        self.process.start()
        other.close()  # or a child that ended would be waited for
        self.pipe.recv()

    def _call(self, *what):
        self.pipe.send(what)
        return self.pipe.recv()

    def step(self, checkpointing: bool) -> float:
        return self._call("step", checkpointing)

    def adapters(self, folder: Path, model: GVE) -> dict:
        self._call("save", folder)
        return flatten_dict(read_adapter(folder, model.config)[1], sep="/")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.join()


def _serve(pipe, folder: Path, args) -> None:
    if args.same_heap:
        retain_freed_memory()
    theirs = Theirs(folder)
    examples = draw_examples(args, GVE.from_pretrained(folder / "model", dtype="float32"))
    pipe.send("ready")
    while True:
        what, value = pipe.recv()
        if what == "step":
            pipe.send(theirs.step(examples, checkpointing=value))
        else:
            theirs.model.save_pretrained(value)
            pipe.send("saved")


def draw_examples(args, model: GVE) -> list[list]:
    """The same in every process."""
    sides = draw_pairs(args.pairs, args.side)
    return [[make_example(item, model.preprocess) for item in side] for side in sides]


class Theirs:
    """PEFT's model and torch's AdamW on the same batch."""

    def __init__(self, folder: Path):
        import torch

        self.torch, self.reference = torch, Reference(folder / "model")
        # Only now: Reference first declares what torchvision, which PEFT imports, lacks on a CPU.
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(0)
        # `init_lora_weights=False`: b is not zero, so that every adapter has a gradient at once.
        config = LoraConfig(
            r=16, lora_alpha=32, lora_dropout=0.0, target_modules=TARGETS, init_lora_weights=False
        )
        self.model = get_peft_model(self.reference.model, config)
        self.model.save_pretrained(folder / "adapter")
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.trained, lr=OPTIMIZER.learning_rate, weight_decay=OPTIMIZER.weight_decay
        )

    def step(self, examples, checkpointing: bool) -> float:
        torch, base = self.torch, self.reference.model
        base.train(checkpointing)  # it checkpoints in training mode only; it has no dropout
        if checkpointing:
            base.gradient_checkpointing_enable({"use_reentrant": False})
        query, positive = (self._embed(side) for side in examples)
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


def adapters(ours: Ours) -> dict:
    return flatten_dict(ours.state["params"], sep="/")


def distance(a: dict, b: dict, before: dict) -> float:
    """How far two ends are apart, as a share of the way from where both began."""
    way = sum(float(np.sum((np.asarray(a[name]) - np.asarray(before[name])) ** 2)) for name in a)
    gap = sum(float(np.sum((np.asarray(a[name]) - np.asarray(b[name])) ** 2)) for name in a)
    return (gap / way) ** 0.5
