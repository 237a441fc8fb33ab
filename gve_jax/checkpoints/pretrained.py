"""Opens a model on disk or on the Hub: its configuration first, its parameters on request."""

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
from gve_jax.checkpoints.orbax import load_params
from gve_jax.distributed.sharding import param_shardings
from gve_jax.errors import UserError
from gve_jax.fields import build
from gve_jax.inputs.batch import Buckets
from gve_jax.inputs.preprocess import InputSpec
from gve_jax.inputs.profiles import PROFILES, Profile, choose_profile
from gve_jax.inputs.tokenizer import check_tokenizer, tokenizer_digest
from gve_jax.model.config import ModelConfig
from gve_jax.model.embedder import init_params
from gve_jax.storage.files import read_json
from gve_jax.storage.filesystem import as_path, is_gcs_path

FORMAT = "gve_jax 1"
_PREPROCESSORS = ("preprocessor_config.json", "video_preprocessor_config.json")


@dataclasses.dataclass(frozen=True)
class PretrainedModel:
    """A directory with `config.json`, which is read, `tokenizer.json` and parameters.

    Attributes:
      directory: local; the local copy of a gs:// path.
      fields: contents of config.json.
      config: with the requested dtype.
      params: folder of the parameters of a native model, local or a gs:// path.
      names: what the caller and the files call it, its adapter first.
      stated: the profile in its name, PROFILE=LOCATION.
    """

    directory: Path
    fields: dict
    config: ModelConfig
    params: Path
    names: tuple[str, ...]
    stated: str | None

    @property
    def is_native(self) -> bool:
        """Whether it has gve_jax's own format; otherwise it is a checkpoint of transformers."""
        return "model_type" not in self.fields

    @property
    def tokenizer(self) -> Path:
        return self.directory / "tokenizer.json"

    @property
    def exported(self) -> Mapping:
        """What `GVE.save_pretrained` recorded, in either format; empty for released checkpoints."""
        return self.fields if self.is_native else self.fields.get("gve_jax") or {}

    @property
    def source(self) -> dict[str, str] | None:
        """Repository and commit on the Hub that the weights came from, if known."""
        return hub_source(self.directory) or self.exported.get("source")

    def profile(self, name: str | None) -> Profile:
        """The profile of a released checkpoint, by default according to its names.

        Raises:
          UserError: a profile of another architecture; the names do not decide it.
        """
        kinds = str(self.fields.get("model_type")), *(self.fields.keys() & {"emb_token_ids"})
        called = *kinds, *self.names
        return choose_profile(name or self.stated, self.config.architecture, called)

    def inputs(self, profile: str | None = None) -> tuple[InputSpec, Buckets] | None:
        """The recorded input settings; None for a released checkpoint.

        Raises:
          UserError: naming a setting that is missing, unknown or of another type; another profile
            than the recorded one.
        """
        if not self.exported:
            return None
        name = "" if self.is_native else "gve_jax."
        try:
            spec = build(InputSpec, self.exported.get("inputs"), f"{name}inputs")
            buckets = build(Buckets, self.exported.get("buckets"), f"{name}buckets")
        except UserError as error:
            raise UserError(f"{self.directory / 'config.json'}: damaged ({error})") from error
        if (profile := profile or self.stated) not in (None, spec.profile):
            raise UserError(
                f"{self.directory}: was trained or saved with profile {spec.profile}, not {profile}"
            )
        return spec, buckets

    def check_tokenizer(self, path: Path) -> None:
        """Raises UserError if a tokenizer.json is not the one that the model was trained with.

        Compares the digest that native and exported models record, the token ids in config.json
        of released checkpoints, and the other tokenizer files beside `path`.
        """
        check_tokenizer(path, self.config.text.vocab_size, self.fields)
        recorded = self.exported.get("tokenizer")
        if self.is_native:
            recorded = self.fingerprint.get("tokenizer")
        # gve_jax 0.1 recorded the digest of the file itself.
        if recorded is not None and recorded not in (tokenizer_digest(path), file_digest(path)):
            raise UserError(
                f"{path}: not the tokenizer that {self.directory} was made with (digest "
                f"{tokenizer_digest(path)}, recorded {recorded}); restore the original file"
            )

    def check_weights(self, digest: str) -> None:
        """Raises UserError if the digest of all loaded weights is not the recorded one.

        Weights that were converted to another dtype have another digest and are not compared.
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
        """The recorded fingerprint of a native model; empty for others."""
        if not self.is_native:
            return {}
        recorded = self.fields.get("fingerprint")
        for name in ("weights", "tokenizer"):
            if not isinstance(recorded, dict) or not isinstance(recorded.get(name), str):
                raise UserError(
                    f"{self.directory / 'config.json'}: damaged (fingerprint lacks {name})"
                )
        return recorded

    def load(
        self,
        config: ModelConfig,
        mesh: jax.sharding.Mesh,
        keep: Callable[[str], bool] = lambda name: True,
        show: bool = False,
    ) -> dict:
        """Loads parameters in `config.param_dtype`, sharded by the rules of `param_shardings`.

        Args:
          config: of this model, with any dtypes and kernels.
          keep: which parameters to load, by their paths.
          show: draws a progress bar on standard error.

        Raises:
          UserError: damaged files or files of another model, or tensors that do not fit `config`.
        """
        if not self.is_native:
            return load_hf(self.directory, config, mesh, show, keep)
        shapes = jax.eval_shape(lambda: init_params(config, 0)[1])
        target = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            shapes,
            param_shardings(shapes, mesh),
        )
        params = flatten_dict(load_params(self.params, target, self.fields.get("params")), sep="/")
        return unflatten_dict({k: v for k, v in params.items() if keep(k)}, sep="/")


def open_pretrained(
    name: str | os.PathLike,
    dtype: str | None = None,
    *,
    adapter: str | os.PathLike | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> PretrainedModel:
    """Opens a local directory, a gs:// path or a Hub id.

    Args:
      name: LOCATION, or PROFILE=LOCATION with a name of `gve_jax.inputs.profiles`.
      dtype: of parameters and activations; by default what config.json records, or the dtype of
        the tensors.
      adapter: the adapter that the caller adds. Without it, a directory with an adapter beside the
        model is refused, because transformers would apply that adapter.
      revision, token, local_files_only: as of `gve_jax.checkpoints.hub.find_directory`.

    Raises:
      UserError: no such model, a damaged config.json, another format or architecture.
    """
    name, stated = _split_profile(name)
    directory = find_directory(
        name, FETCHED, revision=revision, token=token, local_files_only=local_files_only
    )
    check_model_directory(directory)
    params = (as_path(name) if is_gcs_path(name) else directory) / "params"
    path = directory / "config.json"
    fields = read_json(path)
    if adapter is None and (directory / ADAPTER_CONFIG).is_file():
        raise UserError(
            f"{directory}: holds an adapter beside the model ({ADAPTER_CONFIG}); pass the "
            "directory as adapter= as well, or move the adapter away"
        )
    try:
        if "model_type" in fields:
            exported = fields.get("gve_jax")
            if exported is not None and not isinstance(exported, dict):
                raise ValueError(f"gve_jax is {exported!r}, not an object")
            config = from_hf(fields, dtype or "float32")
            dtype = dtype or recorded_dtype(fields) or stored_dtype(directory)
            for file in _PREPROCESSORS:
                if (directory / file).is_file():
                    path = directory / file
                    check_preprocessor(read_json(path), config.vision)
        elif fields.get("format") != FORMAT:
            raise ValueError(f"format {fields.get('format')!r} is not {FORMAT!r}")
        else:
            try:
                config = build(ModelConfig, fields.get("model"), "model")
            except UserError as error:
                raise ValueError(f"damaged ({error})") from error
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    if dtype:
        config = dataclasses.replace(config, dtype=dtype, param_dtype=dtype)
    given = (adapter, name, (hub_source(directory) or {}).get("repository"), directory.resolve())
    names = tuple(Path(each).name for each in given if each is not None)
    return PretrainedModel(directory, fields, config, params, names, stated)


def _split_profile(name: str | os.PathLike) -> tuple[str | os.PathLike, str | None]:
    """Splits PROFILE=LOCATION; the profile of any other name is None."""
    profile, equals, location = name.partition("=") if isinstance(name, str) else ("", "", "")
    return (location, profile) if equals and profile in PROFILES else (name, None)
