"""A model on disk, ours or of the Hugging Face Hub: what its config.json says, and its leaves."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from gve_jax.buckets import as_path, is_bucket
from gve_jax.errors import UserError
from gve_jax.learning.checkpoint import load_params
from gve_jax.model.config import ModelConfig
from gve_jax.model.embedder import init_params
from gve_jax.model.hf_config import from_hf
from gve_jax.pretrained import find_directory, load_hf, read_json
from gve_jax.sharding import param_shardings

FORMAT = "gve_jax 1"


@dataclasses.dataclass(frozen=True)
class Base:
    """A directory with `config.json`, `tokenizer.json` and parameters; only the first is read."""

    directory: Path  # of one in a bucket, the copy on this machine
    fields: dict  # of config.json
    config: ModelConfig  # with the dtype it was asked for
    params: Path  # of a model of ours; where it lies, be that a bucket

    @property
    def ours(self) -> bool:
        """Written by `GVE.save_pretrained`; else a checkpoint that transformers reads."""
        return "model_type" not in self.fields

    @property
    def tokenizer(self) -> Path:
        return self.directory / "tokenizer.json"

    def load(
        self,
        config: ModelConfig,
        mesh: jax.sharding.Mesh,
        keep: Callable[[str], bool] = lambda name: True,
        show: bool = False,
    ) -> dict:
        """The parameters whose paths `keep` accepts, in `config.param_dtype`, sharded by the table.

        Args:
          config: of this model, with any dtypes and kernels.
          show: draws a progress bar on standard error.

        Raises:
          UserError: files that are damaged, or tensors that do not fit `config`.
        """
        if not self.ours:
            return load_hf(self.directory, config, mesh, show, keep)
        shapes = jax.eval_shape(lambda: init_params(config, 0)[1])
        target = jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            shapes,
            param_shardings(shapes, mesh),
        )
        found = flatten_dict(load_params(self.params, target), sep="/")
        return unflatten_dict({k: v for k, v in found.items() if keep(k)}, sep="/")


def open_base(name: str | os.PathLike, dtype: str | None = None) -> Base:
    """The model of a directory, local or in a bucket, or Hub id.

    Args:
      dtype: of parameters and activations. When None, bfloat16 for a released checkpoint, and for
        one of ours what it was saved with.

    Raises:
      UserError: no such model, a damaged config.json, another format or architecture.
    """
    directory = find_directory(name)
    params = (as_path(name) if is_bucket(name) else directory) / "params"
    path = directory / "config.json"
    if not path.is_file():
        raise UserError(f"{directory}: not a model directory (no config.json)")
    fields = read_json(path)
    if "model_type" in fields:
        try:
            return Base(directory, fields, from_hf(fields, dtype or "bfloat16"), params)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: {error}") from error
    if fields.get("format") != FORMAT:
        raise UserError(f"{path}: format {fields.get('format')!r} is not {FORMAT!r}")
    try:
        config = ModelConfig.from_dict(fields["model"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged ({error})") from error
    if dtype:
        config = dataclasses.replace(config, dtype=dtype, param_dtype=dtype)
    return Base(directory, fields, config, params)
