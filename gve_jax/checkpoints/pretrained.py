"""A model on disk, ours or of the Hugging Face Hub: what its config.json says, and its leaves."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from gve_jax.checkpoints.digests import file_digest
from gve_jax.checkpoints.hf_config import check_preprocessor, from_hf, recorded_dtype
from gve_jax.checkpoints.hub import (
    ADAPTER_CONFIG,
    check_model_directory,
    find_directory,
    hub_source,
)
from gve_jax.checkpoints.huggingface import FETCHED, load_hf, stored_dtype
from gve_jax.distributed.sharding import param_shardings
from gve_jax.errors import UserError
from gve_jax.inputs.batch import Buckets
from gve_jax.inputs.preprocess import InputSpec
from gve_jax.inputs.tokenizer import check_tokenizer, tokenizer_digest
from gve_jax.model.config import ModelConfig
from gve_jax.model.embedder import init_params
from gve_jax.running.checkpoint import load_params
from gve_jax.storage.files import read_json
from gve_jax.storage.filesystem import as_path, is_bucket
from gve_jax.typed import from_json

FORMAT = "gve_jax 1"
_PREPROCESSORS = ("preprocessor_config.json", "video_preprocessor_config.json")


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

    @property
    def exported(self) -> Mapping:
        """What `GVE.save_pretrained` recorded, in either format; empty in a released checkpoint."""
        return self.fields if self.ours else self.fields.get("gve_jax") or {}

    @property
    def source(self) -> dict[str, str] | None:
        """Repository and commit on the Hub that the weights came from, where that is known."""
        return hub_source(self.directory) or self.exported.get("source")

    def inputs(self) -> tuple[InputSpec, Buckets] | None:
        """The recorded input settings; None of a released checkpoint.

        Raises:
          UserError: settings that are missing, unknown or of another type, by their names.
        """
        if not self.exported:
            return None
        name = "" if self.ours else "gve_jax."
        try:
            found = (
                from_json(kind, self.exported.get(part), f"{name}{part}")
                for part, kind in (("inputs", InputSpec), ("buckets", Buckets))
            )
            spec, buckets = found
        except (ValueError, UserError) as error:
            raise UserError(f"{self.directory / 'config.json'}: damaged ({error})") from error
        return spec, buckets

    def check_tokenizer(self, path: Path) -> None:
        """Raises UserError when a tokenizer.json is not the one that the model was made with.

        For a model of ours, and for one exported for transformers, by its recorded digest; for a
        released checkpoint by the ids in config.json. Always by the files beside `path`.
        """
        check_tokenizer(path, self.config.text.vocab_size, self.fields)
        recorded = self.exported.get("tokenizer")
        if self.ours:
            recorded = self.fingerprint.get("tokenizer")
        # gve_jax 0.1 recorded the digest of the file itself.
        if recorded is not None and recorded not in (tokenizer_digest(path), file_digest(path)):
            raise UserError(
                f"{path}: not the tokenizer that {self.directory} was made with (digest "
                f"{tokenizer_digest(path)}, recorded {recorded}); restore that one"
            )

    def check_weights(self, digest: str) -> None:
        """Raises UserError when the digest of all loaded weights is not the recorded one.

        Weights that were converted to another dtype while they were read have another digest; that
        they belong to this model is checked by the digest that `load` compares.
        """
        stored = self.fields["model"].get("param_dtype", ModelConfig.param_dtype)
        recorded = self.fingerprint["weights"]
        if self.config.param_dtype == stored and digest != recorded:
            raise UserError(
                f"{self.params}: the weights are of another model than "
                f"{self.directory / 'config.json'} (digest {digest}, recorded {recorded}); restore "
                "the folder as it was saved"
            )

    @property
    def fingerprint(self) -> Mapping:
        """What a model of ours recorded when it was saved; empty for others."""
        if not self.ours:
            return {}
        found = self.fields.get("fingerprint")
        for name in ("weights", "tokenizer"):
            if not isinstance(found, dict) or not isinstance(found.get(name), str):
                raise UserError(
                    f"{self.directory / 'config.json'}: damaged (fingerprint lacks {name})"
                )
        return found

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
          UserError: files that are damaged or of another model, or tensors that do not fit
            `config`.
        """
        if not self.ours:
            return load_hf(self.directory, config, mesh, show, keep)
        shapes = jax.eval_shape(lambda: init_params(config, 0)[1])
        target = jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            shapes,
            param_shardings(shapes, mesh),
        )
        found = flatten_dict(load_params(self.params, target, self.fields.get("params")), sep="/")
        return unflatten_dict({k: v for k, v in found.items() if keep(k)}, sep="/")


def open_pretrained(
    name: str | os.PathLike,
    dtype: str | None = None,
    *,
    adapter: str | os.PathLike | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> Base:
    """The model of a directory, local or in a bucket, or Hub id.

    Args:
      dtype: of parameters and activations. When None, what config.json records; the dtype of the
        tensors where it records none.
      adapter: that the caller adds. Without one, a directory that holds an adapter beside a model
        is refused: transformers would apply it.
      revision, token, local_files_only: of a Hub id, see `gve_jax.checkpoints.hub.find_directory`.

    Raises:
      UserError: no such model, a damaged config.json, another format or architecture.
    """
    directory = find_directory(
        name, FETCHED, revision=revision, token=token, local_files_only=local_files_only
    )
    check_model_directory(directory)
    params = (as_path(name) if is_bucket(name) else directory) / "params"
    path = directory / "config.json"
    fields = read_json(path)
    if adapter is None and (directory / ADAPTER_CONFIG).is_file():
        raise UserError(
            f"{directory}: holds an adapter beside the model ({ADAPTER_CONFIG}); give the "
            "directory as adapter= as well, or move the adapter away"
        )
    try:
        if "model_type" in fields:
            exported = fields.get("gve_jax")
            if exported is not None and not isinstance(exported, dict):
                raise ValueError(f"gve_jax is {exported!r}, not an object")
            config = from_hf(fields, dtype or "float32")
            dtype = dtype or recorded_dtype(fields) or stored_dtype(directory)
            for each in _PREPROCESSORS:
                if (directory / each).is_file():
                    path = directory / each
                    check_preprocessor(read_json(path), config.vision)
        elif fields.get("format") != FORMAT:
            raise ValueError(f"format {fields.get('format')!r} is not {FORMAT!r}")
        else:
            try:
                config = from_json(ModelConfig, fields.get("model"), "model")
            except ValueError as error:
                raise ValueError(f"damaged ({error})") from error
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    if dtype:
        config = dataclasses.replace(config, dtype=dtype, param_dtype=dtype)
    return Base(directory, fields, config, params)
