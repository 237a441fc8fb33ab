"""Loads Hugging Face checkpoints into sharded parameters and writes them as streams.

Loading needs the memory of the parameters and a few megabytes: each tensor is read once, in blocks,
into the buffers of this process's shards. Writing holds one tensor.
"""

import contextlib
import functools
import itertools
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from rich.console import Console
from rich.progress import track

from gve_jax.checkpoints import hf_config
from gve_jax.checkpoints.hub import ADAPTER_CONFIG, why_no_weights
from gve_jax.checkpoints.safetensors import DTYPES, Part, StoredTensor, read_header, write_file
from gve_jax.checkpoints.weight_names import LAYOUTS, Source, match_names, sources
from gve_jax.distributed.cores import usable_cores
from gve_jax.distributed.sharding import param_shardings, replicated
from gve_jax.errors import UserError
from gve_jax.inputs.tokenizer import token_ids
from gve_jax.model import lora
from gve_jax.model.config import ModelConfig
from gve_jax.model.embedder import init_params
from gve_jax.storage.files import atomic_write, read_json, write_json
from gve_jax.storage.filesystem import is_gcs_path

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# Files beside the weights that exports copy, for users of transformers.
COMPANIONS = tuple(
    """
    tokenizer_config.json vocab.json merges.txt added_tokens.json special_tokens_map.json
    chat_template.json chat_template.jinja preprocessor_config.json
    video_preprocessor_config.json processor_config.json generation_config.json
    """.split()
)
# Files of a model that are downloaded from GCS or the Hub: no code, no pickles.
FETCHED = ("config.json", "tokenizer.json", "*.safetensors", INDEX, ADAPTER_CONFIG, *COMPANIONS)
_LISTED = 20  # problems listed in a message
_ALIGNMENT = 64  # bytes; JAX on a CPU copies buffers that are not aligned


def stored_tensors(directory: Path) -> dict[str, StoredTensor]:
    """The tensors of a checkpoint of one or many files, by name; reads only the headers.

    Raises:
      UserError: no safetensors, missing files of the index, a damaged file, a tensor in two files
        or not in the file that the index names.
    """
    entries: dict = {}
    if (directory / WEIGHTS).is_file():
        files = [WEIGHTS]
    elif (directory / INDEX).is_file():
        entries = read_json(directory / INDEX).get("weight_map")
        if not isinstance(entries, dict) or not entries:
            raise UserError(f"{directory / INDEX}: damaged (no weight_map)")
        files = sorted(set(map(str, entries.values())))
        for name in files:
            if Path(name).name != name:
                raise UserError(f"{directory / INDEX}: {name!r} is not a file name")
        if missing := [name for name in files if not (directory / name).is_file()]:
            raise UserError(
                f"{directory / INDEX}: {len(missing)} of {len(files)} files are missing: "
                f"{_list(missing)}; download them again"
            )
    else:
        raise UserError(f"{directory}: neither {WEIGHTS} nor {INDEX}{why_no_weights(directory)}")
    tensors: dict[str, StoredTensor] = {}
    for name in files:
        more = read_header(directory / name)
        if duplicates := sorted(tensors.keys() & more.keys()):
            other = tensors[duplicates[0]].path
            raise UserError(f"{directory / name}: {duplicates[0]} is also in {other}")
        tensors |= more
    for name, file in entries.items():
        if name not in tensors or tensors[name].path.name != file:
            raise UserError(f"{directory / INDEX}: lists {name} in {file}, which does not have it")
    return tensors


def _list(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def stored_dtype(directory: Path) -> str:
    """The widest dtype of a checkpoint's tensors."""
    dtypes = {t.dtype for t in stored_tensors(directory).values()} & DTYPES.keys()
    return str(max((DTYPES[name] for name in dtypes), key=lambda d: d.itemsize, default="float32"))


def load_hf(
    directory: Path,
    config: ModelConfig,
    mesh: jax.sharding.Mesh,
    show: bool = False,
    keep: Callable[[str], bool] = lambda path: True,
):
    """Loads parameters in `config.param_dtype`, sharded by the rules of `param_shardings`.

    Args:
      directory: has one or many safetensors files.
      config: of the checkpoint, without adapters.
      mesh: devices of the parameters; identical shards of one process are read once.
      show: draws a progress bar on standard error.
      keep: which parameters to load, by their paths.

    Raises:
      UserError: a damaged file; all tensors that are missing, unexpected, misshapen or not of a
        floating dtype.
    """
    shapes = jax.eval_shape(lambda: init_params(config, 0)[1])
    shardings = flatten_dict(param_shardings(shapes, mesh), sep="/")
    leaves = flatten_dict(shapes, sep="/")
    stored = stored_tensors(directory)
    wanted = sources(config, {path: leaf.shape for path, leaf in leaves.items()})
    names, problems = match_names(wanted, {name: t.shape for name, t in stored.items()})
    used = [name for tensors in names.values() for name in tensors if name]
    problems += [
        f"dtype: {name} is {stored[name].dtype}, not one of {', '.join(DTYPES)}"
        for name in used
        if stored[name].dtype not in DTYPES
    ]
    if problems:
        more = f"\n  and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
        listed = "\n  ".join(problems[:_LISTED])
        raise UserError(f"{directory}: {len(problems)} tensors do not fit:\n  {listed}{more}")
    # Largest first: if a buffer must be copied, memory is still free.
    order = sorted(filter(keep, leaves), key=lambda path: -leaves[path].size)
    params = {}
    with ThreadPoolExecutor(min(8, usable_cores())) as pool:
        for path in _track(order, "loading", show):
            tensors = [stored[name] for name in names[path]]
            leaf, sharding = leaves[path], shardings[path]
            params[path] = _load_leaf(leaf, sharding, wanted[path], tensors, pool)
    return unflatten_dict(params, sep="/")


def _load_leaf(leaf, sharding, source: Source, tensors: list[StoredTensor], pool) -> jax.Array:
    def bounds(index) -> tuple[tuple[int, int], ...]:
        return tuple(s.indices(size)[:2] for s, size in zip(index, leaf.shape, strict=True))

    indices = sharding.addressable_devices_indices_map(leaf.shape).values()
    shards = {shard: _empty(shard, leaf.dtype) for shard in map(bounds, indices)}

    def read(layer: int) -> None:
        parts = []
        for ranges, out in shards.items():
            if source.stacked:
                (first, last), *ranges = ranges
                if not first <= layer < last:
                    continue
                out = out[layer - first]
            parts.append(_part(list(ranges), out, source.transposed))
        if parts:
            tensors[layer].read(parts)

    list(pool.map(read, range(len(tensors))))
    array = jax.make_array_from_callback(leaf.shape, sharding, lambda index: shards[bounds(index)])
    return array.block_until_ready()  # limits the number of buffers on the host


def _part(ranges: list[tuple[int, int]], out: np.ndarray, transposed: bool) -> Part:
    if out.ndim == 1:
        return Part(ranges[0], (0, 1), out[:, None])
    return Part(ranges[1], ranges[0], out.T) if transposed else Part(*ranges, out)


def _empty(ranges: tuple[tuple[int, int], ...], dtype) -> np.ndarray:
    """An aligned, uninitialized array."""
    shape = [stop - start for start, stop in ranges]
    size = int(np.prod(shape)) * dtype.itemsize
    buffer = np.empty(size + _ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % _ALIGNMENT
    return buffer[start : start + size].view(dtype).reshape(shape)


def save_hf(
    directory: Path,
    config: ModelConfig,
    params,
    tokenizer: Path,
    *,
    layout: str = "4.49",
    dtype: str | None = None,
    shard_bytes: float = 5e9,
    extra: Mapping | None = None,
    show: bool = False,
) -> None:
    """Writes a checkpoint for transformers and `load_hf`; `config.json` is written last.

    The checkpoint has no head: config.json ties it to the token embeddings. Adapters are merged
    into the weights. All processes of a job must call this; the first one writes.

    Args:
      tokenizer: tokenizer.json to copy, together with the `COMPANIONS` beside it.
      layout: keys and config of transformers "4.49", which later releases read too, or "5".
      dtype: of the tensors; by default unchanged.
      shard_bytes: maximal size of a file, unless one tensor is larger.
      extra: further fields of config.json.

    Raises:
      UserError: an unknown layout or dtype; the directory cannot be written.
    """
    if layout not in LAYOUTS:
        raise UserError(f"layout {layout!r} is unknown; known: {', '.join(LAYOUTS)}")
    if config.lora is not None:
        params = lora.merge(params, config)
    dtype = dtype or config.param_dtype
    if dtype not in map(str, DTYPES.values()):
        raise UserError(f"dtype {dtype!r} cannot be stored; {', '.join(map(str, DTYPES.values()))}")
    leaves = flatten_dict(params, sep="/")
    by_path = sources(config, {path: leaf.shape for path, leaf in leaves.items()}, layout)
    try:
        fields = hf_config.to_hf(config, token_ids(tokenizer), dtype, layout) | dict(extra or {})
    except ValueError as error:
        raise UserError(str(error)) from error
    files = _divide(by_path, jnp.dtype(dtype), shard_bytes)
    arrays = _tensors(by_path, leaves, dtype)
    try:
        if jax.process_index() == 0:
            if not is_gcs_path(directory):
                directory.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                (directory / "config.json").unlink()  # incomplete until it is written again
        for name in _track(files, "saving", show):
            part = itertools.islice(arrays, len(files[name]))
            if jax.process_index() == 0:
                write_file(directory / name, files[name], part)
            else:
                list(part)
        if jax.process_index() == 0:
            _write_rest(directory, files, tokenizer)
            write_json(directory / "config.json", fields)
    except OSError as error:
        raise UserError(f"cannot save in {directory}: {error.strerror or error}") from error


def _divide(by_path: Mapping[str, Source], dtype, shard_bytes: float) -> dict[str, dict]:
    """(shape, dtype) of each tensor by file and name, in the order of writing."""
    shards, room = [{}], shard_bytes
    for source in by_path.values():
        size = int(np.prod(source.shape)) * dtype.itemsize
        for name in source.names:
            if size > room and shards[-1]:
                shards.append({})
                room = shard_bytes
            shards[-1][name] = (source.shape, dtype)
            room -= size
    if len(shards) == 1:
        return {WEIGHTS: shards[0]}
    return {
        f"model-{number:05}-of-{len(shards):05}.safetensors": shard
        for number, shard in enumerate(shards, 1)
    }


def _tensors(by_path: Mapping[str, Source], leaves, dtype: str) -> Iterator[np.ndarray]:
    """The tensors in the order of `by_path`, one on the host at a time."""
    for path, source in by_path.items():
        leaf = leaves[path]
        whole = replicated(leaf.sharding.mesh) if hasattr(leaf.sharding, "mesh") else leaf.sharding
        pick = _make_pick(source._replace(names=()), dtype, whole)
        for layer in range(len(source.names)):
            yield np.asarray(pick(leaf, layer))


@functools.cache
def _make_pick(source: Source, dtype: str, sharding):
    """A compiled function that returns a layer of a parameter as a tensor of a checkpoint."""

    def pick(leaf, layer):
        if source.stacked:
            leaf = jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False)
        leaf = leaf.astype(dtype)
        return (leaf.T if source.transposed else leaf).reshape(source.shape)

    return jax.jit(pick, out_shardings=sharding)


def _write_rest(directory: Path, files: Mapping[str, Mapping], tokenizer: Path) -> None:
    index = directory / INDEX
    if len(files) > 1:
        total = sum(
            int(np.prod(shape)) * dtype.itemsize
            for shard in files.values()
            for shape, dtype in shard.values()
        )
        weight_map = {name: file for file, shard in files.items() for name in shard}
        write_json(index, {"metadata": {"total_size": total}, "weight_map": weight_map})
    else:
        index.unlink(missing_ok=True)
    for old in directory.glob("model*.safetensors"):  # of the replaced checkpoint
        if old.name not in files and (old.name == WEIGHTS or "-of-" in old.name):
            old.unlink()
    copy_tokenizer(tokenizer, directory)


def copy_tokenizer(tokenizer: Path, directory: Path) -> None:
    """Copies a tokenizer.json and the `COMPANIONS` beside it."""
    for source in (tokenizer, *(tokenizer.parent / name for name in COMPANIONS)):
        target = directory / ("tokenizer.json" if source is tokenizer else source.name)
        if not source.is_file():
            continue
        if is_gcs_path(target):
            atomic_write(target, lambda file, source=source: file.write(source.read_bytes()))
        elif not (target.exists() and target.samefile(source)):
            shutil.copyfile(source, target)


def _track(names, label: str, show: bool):
    return track(names, label, console=Console(stderr=True), disable=not show)
