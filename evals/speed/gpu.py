"""GVE-3B on one GPU in bfloat16: correctness, and how much of the chip is used.

Random weights in the shapes of configs/gve_3b.py, drawn on the device; nothing is downloaded. Parts
run in the given order; the result is written after each figure, so that an interrupted run keeps
them.

    agree   attention kernels and models, compared with float32 on the CPU; an item's vector alone
            and in a batch
    encode  a mixed set, half texts, a quarter images, a quarter videos of 8 frames
    train   a LoRA step of the published recipe: texts that retrieve videos, by remat and kernel

`encode` and `train` also trace the GPU's time by kernel.

Model FLOPs are those of gve_jax/hardware/flops.py: no padding, no recomputation. MFU is their share
of the chip's published dense bfloat16 peak (gve_jax/hardware/chips.py).
"""

import contextlib
import dataclasses
import functools
import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import flax
import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from configs.gve_3b import get_config
from evals.parity.reference import write_tokenizer
from evals.speed import harness
from evals.speed.compile import with_layers
from evals.speed.items import draw_items
from evals.speed.kernels import by_kernel
from evals.speed.train import Ours, draw_pairs
from gve_jax.distributed.sharding import make_mesh, param_shardings, place_batch
from gve_jax.errors import UserError
from gve_jax.gve import GVE
from gve_jax.hardware import chips, flops
from gve_jax.inputs.batch import default_buckets
from gve_jax.inputs.counts import Counts
from gve_jax.inputs.packing import collate_decode, collate_tower
from gve_jax.inputs.preprocess import InputSpec, Preprocessor
from gve_jax.inputs.prompt import Prompt
from gve_jax.media.item import Item
from gve_jax.model.attention import attend, target_platform
from gve_jax.model.batch import Frames, Packed
from gve_jax.model.config import REMAT, ModelConfig
from gve_jax.model.embedder import init_params
from gve_jax.running.sections import model_config, read_settings

PARTS = ("agree", "encode", "train")
KERNELS = ("xla", "cudnn")
FRAME = (280, 560)  # pixels: 200 merged tokens
SMALL_FRAME = (56, 56)
STEPS = "32:full:xla 32:full:cudnn 32:dots:cudnn 64:full:cudnn"


OPTIONS = dict(
    parts=(list(PARTS), "what to measure", PARTS),
    kernels=(list(KERNELS), "attention kernels", KERNELS),
    items=(256, "items of the mixed set"),
    batch_size=(32, "items of an encoded batch"),
    steps=(STEPS.split(), f"training steps, PAIRS:REMAT:KERNEL, REMAT of {', '.join(REMAT)}"),
    repeats=(5, "runs of each variant"),
    small=(False, "tiny float32 model on any device, as a smoke test"),
)


def measure(folder: Path, args) -> dict:
    if not args.small and target_platform() != "gpu":
        backend = jax.default_backend()
        raise UserError(f"gpu needs a GPU, not {backend}; --small runs a tiny model on any device")
    bench = Bench(folder, args)
    bench.machine()
    for part in args.parts:
        getattr(bench, part)()
        gc.collect()
    return bench.result


class Bench:
    def __init__(self, folder: Path, args):
        self.args, self.folder = args, folder
        self.settings = read_settings(get_config("smoke" if args.small else ""))
        self.config = model_config(self.settings, None)
        self.mesh = make_mesh({"data": -1}, jax.devices()[:1])
        self.frame = SMALL_FRAME if args.small else FRAME
        write_tokenizer(folder / "tokenizer.json")
        self.chip = chips.find_chip(jax.devices()[0].device_kind)
        self.cpu = make_mesh({"data": -1}, jax.devices("cpu")[:1])
        self.result = {}

    def record(self, part: str, name: str, value) -> None:
        """Adds a figure to the result and writes the file."""
        self.result.setdefault(part, {})[name] = value
        print(f"{part}, {name}: {json.dumps(value)}", file=sys.stderr, flush=True)
        with contextlib.redirect_stdout(None):
            harness.write_result("gpu", vars(self.args), self.result, self.args.output)

    @functools.cached_property
    def params(self) -> dict:
        """Parameters of the model, adapters included."""
        return draw_params(self.config, self.mesh)

    def model(self, config: ModelConfig, params: dict, mesh=None, **changes) -> GVE:
        """An encoder, with adapters if `config` has them."""
        config = dataclasses.replace(config, **changes)
        spec = InputSpec(**vars(self.settings.inputs), window_side=config.vision.window_side)
        prompt = Prompt(self.folder / "tokenizer.json", spec.max_length)
        buckets = default_buckets(spec)
        if config.lora is None:
            params = without_adapters(params)
        return GVE(config, params, Preprocessor(prompt, spec), buckets, mesh or self.mesh)

    def mfu(self, work: float, seconds: float) -> float | None:
        return None if self.chip is None else round(work / seconds / self.chip.flops, 4)

    def machine(self) -> None:
        device, size = jax.devices()[0], 256 if self.args.small else 8192
        a, b = (jax.random.normal(jax.random.key(i), (size, size), jnp.bfloat16) for i in (0, 1))
        product = jax.jit(jnp.matmul)
        seconds = harness.median_seconds(lambda: [product(a, b) for _ in range(20)], 3) / 20
        exact = np.asarray(a[:512], np.float64) @ np.asarray(b[:, :512], np.float64)
        a, b = a[:512].astype(jnp.float32) / 3, b[:, :512].astype(jnp.float32)
        distances = {}
        for precision in ("default", "highest"):
            with jax.default_matmul_precision(precision):
                distances[precision] = distance(np.asarray(jnp.matmul(a, b), np.float64) * 3, exact)
        for name, value in {
            "kind": device.device_kind,
            "runtime": device.client.platform_version.splitlines()[0],
            "jaxlib, flax": [jaxlib.__version__, flax.__version__],
            "bytes for arrays": (device.memory_stats() or {}).get("bytes_limit"),
            "published bfloat16 peak, TFLOP/s": self.chip and self.chip.flops / 1e12,
            f"bare product of {size} x {size}, TFLOP/s": round(2 * size**3 / seconds / 1e12, 1),
            "float32 product, distance to float64, by precision": distances,
        }.items():
            self.record("chip", name, value)

    # Part "agree".

    def agree(self) -> None:
        self.agree_attention()
        self.agree_gradients()
        self.agree_vectors("2 + 2 layers", *self.shallow())
        self.agree_vectors("all layers", self.config, self.params)

    def agree_attention(self) -> None:
        """||out - ref|| / ||ref|| of the value and of each gradient, over real rows."""
        v, t = self.config.vision, self.config.text
        length, patches = (64, 16) if self.args.small else (1024, 800)
        rng = np.random.default_rng(0)
        # A packed row: a shared prefix, three items, padding.
        ends = np.array([24, 300, 600, 1000]) * length // 1024
        segments = np.searchsorted(ends, np.arange(length), side="right")
        segments = np.where(segments == len(ends), -1, segments)[None].repeat(2, axis=0)
        keys = np.arange(patches) < np.array([[patches], [patches * 3 // 4]])
        decoder = (t.num_attention_heads, t.num_key_value_heads, t.head_dim)
        tower = (v.num_heads, v.num_heads, v.hidden_size // v.num_heads)
        packed = dict(causal=True, segments=segments.astype(np.int32))
        cases = {
            "decoder, packed": (decoder, length, packed, segments >= 0),
            "decoder, causal": (decoder, length, dict(causal=True), segments >= -1),
            "tower, whole frames": (tower, patches, dict(keys=keys), keys),
        }
        for name, ((heads, groups, size), rows, masks, real) in cases.items():
            shapes = [(2, rows, n, size) for n in (heads, groups, groups, heads)]
            arrays = [jnp.asarray(rng.standard_normal(shape), self.activations) for shape in shapes]

            def outputs(arrays, kernel, real=real, masks=masks):
                query, key, value, cotangent = arrays

                def run(*inputs):
                    mixed = attend(*inputs, kernel=kernel, **masks)
                    return jnp.where(real[..., None, None], mixed, 0)

                mixed, back = jax.vjp(run, query, key, value)
                return mixed, *back(cotangent)

            float32 = jax.device_put([x.astype(jnp.float32) for x in arrays], jax.devices("cpu")[0])
            exact = jax.jit(functools.partial(outputs, kernel="xla"))(float32)
            for kernel in self.args.kernels:
                ours = jax.jit(functools.partial(outputs, kernel=kernel))(arrays)
                names = ("value", "dq", "dk", "dv")
                value = {n: distance(a, b) for n, a, b in zip(names, ours, exact, strict=True)}
                self.record("agree", f"attention, {name}, {kernel}, distance to float32", value)

    @property
    def activations(self):
        return jnp.dtype(self.config.dtype)

    def shallow(self) -> tuple[ModelConfig, dict]:
        """Two layers each at the real widths, no dropout."""
        config = with_layers(self.config, 2, 2)
        lora = dataclasses.replace(config.lora, dropout=0.0)
        config = dataclasses.replace(config, lora=lora, remat_text="none", remat_vision="none")
        flat = flatten_dict(draw_params(config, self.mesh), sep="/")
        for i, name in enumerate(sorted(flat)):  # with B = 0 no gradient would reach A
            if name.endswith("/lora/b"):
                key = jax.random.fold_in(jax.random.key(1), i)
                flat[name] = 0.05 * jax.random.normal(key, flat[name].shape, flat[name].dtype)
        return config, unflatten_dict(flat, sep="/")

    def exact(self, config: ModelConfig, params: dict) -> GVE:
        """The same model in float32 on the CPU; float32 represents bfloat16 weights exactly."""
        if config.lora is None:
            params = without_adapters(params)
        params = jax.tree.map(lambda x: np.asarray(x).astype(np.float32), params)
        params = jax.device_put(params, param_shardings(params, self.cpu))
        config = dataclasses.replace(config, dtype="float32", param_dtype="float32")
        return self.model(config, params, self.cpu, attention="xla")

    def agree_gradients(self) -> None:
        config, params = self.shallow()

        def gradients(model):
            ours = self.training(model, 4, "none")
            with jax.set_mesh(model.mesh):
                grads, scalars = ours.run.gradients(
                    ours.state["params"], ours.frozen, ours.batch, 0
                )
            return flatten_dict(jax.device_get(grads), sep="/"), float(scalars["loss"])

        exact, loss = gradients(self.exact(config, params))

        def flat(grads):
            return np.concatenate([grads[name].ravel() for name in sorted(exact)])

        name = "gradients of adapters, 2 + 2 layers"
        self.record("agree", f"{name}, float32", {"loss": loss})
        found = {}
        for kernel in self.args.kernels:
            found[kernel], loss = gradients(self.model(config, params, attention=kernel))
            leaves = [distance(found[kernel][leaf], exact[leaf]) for leaf in exact]
            value = {
                "loss": loss,
                "distance": distance(flat(found[kernel]), flat(exact)),
                "cosine": float(cosines(flat(found[kernel]), flat(exact))),
                "largest distance of a leaf": max(leaves),
            }
            self.record("agree", f"{name}, {kernel}", value)
        if len(found) == 2:
            apart = distance(*map(flat, found.values()))
            self.record("agree", f"{name}, distance between the kernels", apart)

    def agree_vectors(self, name: str, config: ModelConfig, params: dict) -> None:
        items = draw_items(4, lambda _: self.frame, lambda _: self.frame, seed=1)
        # Few shapes: in this order each item has its own shape when it is alone.
        items.sort(key=lambda item: (item.video is not None, item.image is not None))
        config, found = dataclasses.replace(config, lora=None), {}
        for kernel in self.args.kernels:
            model = self.model(config, params, attention=kernel)
            found[kernel] = vectors = model.encode(items)
            alone = np.concatenate([model.encode([item]) for item in items])
            value = {
                "cosine of alone and in a batch, smallest": float(cosines(vectors, alone).min()),
                "the same batch again, equal bits": bool((vectors == model.encode(items)).all()),
            }
            self.record("agree", f"vectors, {name}, {kernel}", value)
        start = time.perf_counter()
        exact = self.exact(config, params).encode(items)
        for kernel, vectors in found.items():
            value = [round(float(cosine), 7) for cosine in cosines(vectors, exact)]
            self.record("agree", f"vectors, {name}, {kernel}, cosines to float32", value)
        others = float((exact @ exact.T - 2 * np.eye(len(exact))).max())
        self.record("agree", f"vectors, {name}, largest cosine between two items", others)
        self.record(
            "agree", f"vectors, {name}, float32 took, seconds", harness.seconds_since(start)
        )

    # Parts "encode", "train".

    def encode(self) -> None:
        config = dataclasses.replace(self.config, lora=None)
        items = draw_items(self.args.items, lambda _: self.frame, lambda _: self.frame)
        for kernel in self.args.kernels:
            model = self.model(config, self.params, attention=kernel)
            start = time.perf_counter()
            model.encode(items, batch_size=self.args.batch_size)
            warm_up = harness.seconds_since(start)
            seconds = harness.median_seconds(
                lambda m=model: m.encode(items, batch_size=self.args.batch_size), self.args.repeats
            )
            programs = Programs(model, items, self.args.batch_size)
            tower = harness.median_seconds(programs.run_tower, self.args.repeats)
            decoder = harness.median_seconds(programs.run_decoder, self.args.repeats)
            work, count = programs.flops, programs.counts
            value = {
                "seconds": round(seconds, 3),
                "vectors/s": round(len(items) / seconds, 1),
                "tokens/s": round(count.tokens / seconds),
                "MFU": self.mfu(work.total, seconds),
                "programs alone": {
                    "seconds, tower and decoder": [round(tower, 3), round(decoder, 3)],
                    "vectors/s": round(len(items) / (tower + decoder), 1),
                    "MFU": self.mfu(work.total, tower + decoder),
                    "MFU, tower": self.mfu(work.tower, tower),
                    "MFU, decoder": self.mfu(work.decoder, decoder),
                },
                "preparing rows and batches on the host, seconds": programs.host_seconds,
                "first run with compiling, seconds": warm_up,
                "compiled shapes": sorted(map(str, programs.plan.shapes)),
                "padding of tokens, patches": programs.padding,
            }
            self.record("encode", kernel, value)
            traces = {"tower": programs.run_tower, "decoder": programs.run_decoder}
            for name, run in traces.items():
                self.record("encode", f"{kernel}, {name}, traced", traced(run))
        self.record("encode", "tokens", count.tokens)
        self.record("encode", "TFLOP, tower and decoder", [round(x / 1e12, 1) for x in work])

    def training(self, model: GVE, pairs: int, remat: str) -> Ours:
        sides = draw_pairs(pairs, self.frame, 30)
        rows = [[model.preprocess(item) for item in side] for side in sides]
        return Ours(model, rows, remat, bucket_of=self.settings.buckets.fit)

    def train(self) -> None:
        for step in self.args.steps:
            pairs, remat, kernel = step.split(":")
            try:
                self.train_step(step, int(pairs), remat, kernel)
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                self.record("train", step, {"out of memory": str(error).splitlines()[0][:200]})
            gc.collect()

    def train_step(self, name: str, pairs: int, remat: str, kernel: str) -> None:
        model = self.model(self.config, self.params, attention=kernel)
        ours = self.training(model, pairs, remat)
        start = time.perf_counter()
        with jax.set_mesh(self.mesh):
            losses = [ours.step()]
            warm_up = harness.seconds_since(start)
            losses += [ours.step() for _ in range(2)]
            seconds = harness.median_seconds(lambda: losses.append(ours.step()), self.args.repeats)
            stats = jax.devices()[0].memory_stats() or {}
            tokens = [ours.batch[side].tokens.shape[1] for side in ("query", "positive")]
            value = {
                "seconds": round(seconds, 4),
                "pairs/s": round(pairs / seconds, 2),
                "TFLOP": round(ours.flops / 1e12, 1),
                "MFU": self.mfu(ours.flops, seconds),
                "peak memory so far, GB": round(stats.get("peak_bytes_in_use", 0) / 1e9, 1),
                "shapes, tokens": tokens,
                "first step with compiling, seconds": warm_up,
                "losses": [round(loss, 4) for loss in losses[:3]],
            }
            self.record("train", name, value)
            self.record("train", f"{name}, traced", traced(ours.step))


def traced(run: Callable) -> dict:
    """Seconds of the GPU by kernel; `run` is compiled already."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            start = time.perf_counter()
            jax.block_until_ready(run())
            seconds = harness.seconds_since(start)
        return {"seconds by the clock": seconds, **by_kernel(Path(folder))}


class Programs:
    """The programs that `GVE.encode` runs for these items, with their inputs on the device."""

    def __init__(self, model: GVE, items: list[Item], size: int):
        self.model, start = model, time.perf_counter()
        rows = {i: model.preprocess(item) for i, item in enumerate(items)}
        self.counts = Counts.of_rows(rows.values())
        self.flops = flops.encode(model.config, self.counts)
        self.plan, spec = model.plan(rows, size), model.preprocess.spec
        slots, used = self.plan.slots, self.plan.used(rows)
        self.padding = [round(1 - used[k] / max(slots[k], 1), 3) for k in ("tokens", "patches")]
        width = model.embedding_dim
        visuals = {
            i: np.full((len(row.visual_tokens), width), 0.1, np.float32)
            for i, row in rows.items()
            if row.patches
        }
        dtype = jnp.dtype(model.config.dtype)
        frames = [Frames(**collate_tower(batch, rows, spec)) for batch in self.plan.tower]
        packed = [
            Packed(**collate_decode(b, rows, visuals, width, dtype)) for b in self.plan.decoder
        ]
        self.host_seconds = harness.seconds_since(start)
        self.frames, self.packed = (
            [place_batch(batch, model.mesh) for batch in batches] for batches in (frames, packed)
        )

    def run_tower(self):
        return self._run(self.model._tower, self.frames)

    def run_decoder(self):
        return self._run(self.model._decode, self.packed)

    def _run(self, program: Callable, batches: list):
        with jax.set_mesh(self.model.mesh):
            return jax.block_until_ready([program(self.model.params, b) for b in batches])


def draw_params(config: ModelConfig, mesh) -> dict:
    def draw():
        return init_params(config, 0)[1]

    return jax.jit(draw, out_shardings=param_shardings(jax.eval_shape(draw), mesh))()


def without_adapters(params: dict) -> dict:
    flat = flatten_dict(params, sep="/")
    return unflatten_dict({k: v for k, v in flat.items() if "/lora/" not in k}, sep="/")


def distance(a, b) -> float:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def cosines(a, b) -> np.ndarray:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.sum(a * b, -1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
