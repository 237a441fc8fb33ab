"""Loading a checkpoint in the exact shapes of GVE-3B: peak memory, bytes read, time.

The checkpoint is generated (released names, bfloat16, several files) and loaded by a child process
through `GVE.from_pretrained`. Memory is the peak growth of its resident size; bytes read are those
of all its read calls. Both are multiples of the checkpoint's size.
"""

import resource
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from evals.parity.reference import write_tokenizer
from evals.speed import harness
from evals.speed.compile import GVE_3B, with_layers
from gve_jax import GVE
from gve_jax.checkpoints import hf_config
from gve_jax.checkpoints.huggingface import INDEX
from gve_jax.checkpoints.safetensors import write_file
from gve_jax.checkpoints.weight_names import sources
from gve_jax.distributed.sharding import make_mesh
from gve_jax.inputs.tokenizer import token_ids
from gve_jax.model.embedder import init_params
from gve_jax.storage.files import write_json
from gve_jax.storage.filesystem import local_path

SIZES = {"3b": GVE_3B, "small": with_layers(GVE_3B, 2, 1)}


def generate(directory: Path, size: str, files: int) -> int:
    """Writes a checkpoint of random numbers; returns the bytes of its tensors."""
    config, dtype = SIZES[size], jnp.dtype("bfloat16")
    write_tokenizer(directory / "tokenizer.json")
    leaves = flatten_dict(jax.eval_shape(lambda: init_params(config, 0)[1]), sep="/")
    shapes = {path: leaf.shape for path, leaf in leaves.items()}
    known = sources(config, shapes).values()
    tensors = [(name, source.shape) for source in known for name in source.names]
    total = sum(int(np.prod(shape)) for _, shape in tensors) * dtype.itemsize
    shards, filled = [{} for _ in range(files)], 0
    for name, shape in tensors:
        shards[filled * files // total][name] = (shape, dtype)
        filled += int(np.prod(shape)) * dtype.itemsize
    names = [f"model-{n + 1:05}-of-{files:05}.safetensors" for n in range(files)]
    for name, shard in zip(names, shards, strict=True):
        write_file(directory / name, shard, _numbers(shard))
    weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
    write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    fields = hf_config.to_hf(config, token_ids(directory / "tokenizer.json"), "bfloat16", "4.49")
    write_json(directory / "config.json", fields)
    return total


def _numbers(shard) -> Iterator[np.ndarray]:
    """No two pages are equal and none is zero, so that no file system can omit or share them."""
    rng = np.random.default_rng(0)
    pool = rng.normal(0, 0.02, 1 << 20).astype(jnp.bfloat16)
    for shape, _ in shard.values():
        count = int(np.prod(shape))
        start = int(rng.integers(len(pool)))
        yield np.resize(np.roll(pool, -start), count).reshape(shape)


def load(directory: str, devices: int) -> dict[str, float]:
    """Loads once over virtual CPU devices; runs in a child process."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    mesh = make_mesh({"data": 1, "fsdp": devices})
    jnp.ones(8).sum().block_until_ready()
    resident, read, start = harness.memory_bytes(), _bytes_read(), time.perf_counter()
    model = GVE.from_pretrained(directory, mesh=mesh)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    held = sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(model.params)
        for shard in leaf.addressable_shards
    )
    return {"peak": peak - resident, "read": _bytes_read() - read, "held": held, "seconds": seconds}


def _bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])  # rchar


OPTIONS = dict(
    size=("3b", "shapes of the model", SIZES),
    files=(2, "files of the checkpoint"),
    devices=([1, 8], "virtual CPU devices of each run"),
    folder=(local_path, "folder for the checkpoint, instead of a temporary one"),
)


def measure(folder: Path, args) -> dict:
    harness.require_proc("loading")
    total = generate(folder, args.size, args.files)
    result = {"checkpoint bytes": total}
    for devices in args.devices:
        child = f"{__name__}:load", str(folder), devices
        measured = harness.run_in_child(*child, env={"JAX_PLATFORMS": "cpu"})
        result[f"{devices} devices"] = {
            "peak memory / checkpoint": round(measured["peak"] / total, 3),
            "bytes read / checkpoint": round(measured["read"] / total, 3),
            "parameters held / checkpoint": round(measured["held"] / total, 3),
            "seconds": round(measured["seconds"], 1),
        }
    return result
