"""Loading a checkpoint in the exact shapes of GVE-3B: peak memory, bytes read, time.

The checkpoint is generated (released names, bfloat16, several files) and loaded by a process of its
own, through `GVE.from_pretrained`. Memory is what its resident size grew by, at its peak; bytes
read are those of all its read calls. Both are given as multiples of the checkpoint's size.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from evals.parity.reference import write_tokenizer
from evals.speed.compile import GVE_3B, with_layers
from evals.speed.result import write_result
from gve_jax import GVE
from gve_jax.checkpoints import hf_config
from gve_jax.checkpoints.huggingface import INDEX
from gve_jax.checkpoints.safetensors import write_file
from gve_jax.checkpoints.weight_names import sources
from gve_jax.distributed.sharding import make_mesh
from gve_jax.errors import UserError
from gve_jax.inputs.tokenizer import token_ids
from gve_jax.model.embedder import init_params
from gve_jax.storage.files import write_json
from gve_jax.storage.filesystem import local_path

SIZES = {"3b": GVE_3B, "small": with_layers(GVE_3B, 2, 1)}


def generate(directory: Path, size: str, files: int) -> int:
    """Writes a checkpoint of arbitrary numbers; returns the bytes of its tensors."""
    config, dtype = SIZES[size], jnp.dtype("bfloat16")
    write_tokenizer(directory / "tokenizer.json")
    leaves = flatten_dict(jax.eval_shape(lambda: init_params(config, 0)[1]), sep="/")
    found = sources(config, {path: leaf.shape for path, leaf in leaves.items()})
    tensors = [(name, source.shape) for source in found.values() for name in source.names]
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
    """No page of zeros, none like another: nothing a file system could leave out."""
    rng = np.random.default_rng(0)
    pool = rng.normal(0, 0.02, 1 << 20).astype(jnp.bfloat16)
    for shape, _ in shard.values():
        count = int(np.prod(shape))
        start = int(rng.integers(len(pool)))
        yield np.resize(np.roll(pool, -start), count).reshape(shape)


def measure(directory: Path, devices: int) -> dict[str, float]:
    """Loads in this process, once, over virtual CPU devices; peak, bytes read and seconds."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    mesh = make_mesh({"data": 1, "fsdp": devices})
    jnp.ones(8).sum().block_until_ready()
    resident, read, began = _status("VmRSS"), _read_calls(), time.perf_counter()
    model = GVE.from_pretrained(directory, mesh=mesh)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    held = sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(model.params)
        for shard in leaf.addressable_shards
    )
    return {"peak": peak - resident, "read": _read_calls() - read, "held": held, "seconds": seconds}


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def _read_calls() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])  # rchar


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(prog="python -m evals.speed loading", description=__doc__)
    parser.add_argument("--size", default="3b", choices=SIZES)
    parser.add_argument("--files", type=int, default=2)
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 8], help="virtual, CPU")
    parser.add_argument("--folder", type=local_path, help="where the checkpoint lies meanwhile")
    parser.add_argument("--output", type=local_path, help="a JSON file to write")
    parser.add_argument("--measure", type=local_path, help=argparse.SUPPRESS)  # for child processes
    args = parser.parse_args(argv)
    if not Path("/proc/self/io").exists():
        raise UserError("loading: memory and read calls are counted by Linux's /proc")
    if args.measure:
        print(json.dumps(measure(args.measure, args.devices[0])))
        return
    result = {}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        total = generate(Path(folder), args.size, args.files)
        for devices in args.devices:
            command = [sys.executable, "-m", "evals.speed.loading", "--measure", folder]
            done = subprocess.run(
                [*command, "--devices", str(devices)],
                capture_output=True,
                text=True,
                env=os.environ | {"JAX_PLATFORMS": "cpu"},
            )
            if done.returncode:
                raise UserError(f"loading failed: {done.stderr.strip().splitlines()[-1]}")
            found = json.loads(done.stdout)
            result[f"{devices} devices"] = {
                "peak memory / checkpoint": round(found["peak"] / total, 3),
                "bytes read / checkpoint": round(found["read"] / total, 3),
                "parameters held / checkpoint": round(found["held"] / total, 3),
                "seconds": round(found["seconds"], 1),
            }
    settings = {k: v for k, v in vars(args).items() if k not in ("folder", "measure")}
    write_result("loading", settings, {"checkpoint bytes": total} | result, args.output)


if __name__ == "__main__":
    main()
