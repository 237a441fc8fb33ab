"""The public encoder: embeds texts, images, videos and mixtures of them as unit vectors."""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Num

from gve_jax.checkpoints.digests import not_finite, weights_digest
from gve_jax.checkpoints.huggingface import copy_tokenizer, save_hf
from gve_jax.checkpoints.orbax import save_params
from gve_jax.checkpoints.peft import read_adapter
from gve_jax.checkpoints.pretrained import FORMAT, open_pretrained
from gve_jax.distributed.cores import usable_cores
from gve_jax.distributed.sharding import ROW_AXES, make_mesh, param_shardings, place_batch
from gve_jax.errors import UnsupportedArgument, UserError, warn_user
from gve_jax.fields import build
from gve_jax.inputs.batch import Buckets, default_buckets
from gve_jax.inputs.packing import Plan, collate_decode, collate_tower, make_plan
from gve_jax.inputs.padding import Padding
from gve_jax.inputs.preprocess import InputSpec, Preprocessor, Row, geometry
from gve_jax.inputs.profiles import Profile, find_profile
from gve_jax.inputs.prompt import Prompt
from gve_jax.inputs.tokenizer import tokenizer_digest
from gve_jax.inputs.user_inputs import Inputs, input_label, read_inputs, split_inputs, warn_of_paths
from gve_jax.media.isolation import Failure, Isolated
from gve_jax.media.item import Item, is_whole
from gve_jax.media.limits import Limits
from gve_jax.media.quarantine import Quarantine, failure
from gve_jax.media.sandbox import Sandbox
from gve_jax.model import lora
from gve_jax.model.batch import Frames, Packed
from gve_jax.model.config import ModelConfig
from gve_jax.model.embedder import make_encode
from gve_jax.progress import has_bars, progress_bar
from gve_jax.retrieval.quantization import PRECISIONS, quantize_embeddings
from gve_jax.retrieval.unit import unit_rows
from gve_jax.sentence_transformers import SentenceTransformersInterface, refuse_arguments
from gve_jax.storage.files import read_json, write_json
from gve_jax.storage.filesystem import as_path, is_gcs_path

FORMATS = ("gve_jax", "hf")
# The version since which equal weights and settings give equal vectors: raise it only with a change
# that alters vectors, because stored ones become invalid. tests/old_formats_test.py compares.
VECTORS_SINCE = "0.2.0"
CHUNK = 16  # batches that are decoded and planned together; bounds the memory


class GVE(SentenceTransformersInterface):
    """A trained encoder, loaded by `from_pretrained`."""

    def __new__(cls, *args, **kwargs):
        if args and isinstance(args[0], str | os.PathLike):
            raise UnsupportedArgument(f"a model is loaded by GVE.from_pretrained({str(args[0])!r})")
        return super().__new__(cls)

    def __init__(
        self,
        config: ModelConfig,
        params,
        preprocess: Preprocessor,
        buckets: Buckets,
        mesh: jax.sharding.Mesh,
        source: Mapping[str, str] | None = None,
        workers: int | None = None,
    ):
        super().__init__()
        self.source = source  # repository and commit on the Hub, if known
        self.config, self.params, self.preprocess = config, params, preprocess
        self.buckets, self.mesh = buckets, mesh
        self._isolated = Isolated(preprocess, processes=workers or usable_cores())
        self._tower, self._decode = _programs(config)
        self._shapes, self._padding = set(), Padding()

    @functools.cached_property
    def fingerprint(self) -> dict[str, Any]:
        """Everything that vectors depend on; vectors are only mixed if their fingerprints agree."""
        return {
            "code": VECTORS_SINCE,
            "weights": weights_digest(self.params),
            "tokenizer": tokenizer_digest(Path(self.preprocess.prompt.path)),
            "dtype": self.config.dtype,
            **_inputs_fingerprint(self.config, self.preprocess.spec),
        }

    @property
    def sandbox(self) -> dict[str, bool | int] | None:
        """What the system denied to the processes that decoded media; None if there were none. See
        docs/inputs.md, "Isolation and quarantine"."""
        return self.decoder.held

    @property
    def decoder(self) -> Sandbox:
        """The processes that decode media."""
        return self._isolated.sandbox

    @classmethod
    def from_pretrained(
        cls,
        directory: str | os.PathLike,
        mesh: jax.sharding.Mesh | None = None,
        dtype: str | None = None,
        mrope: str | None = None,
        attention: str | None = None,
        adapter: str | os.PathLike | None = None,
        profile: str | None = None,
        limits: Limits | None = None,
        workers: int | None = None,
        show_progress_bar: bool = False,
        revision: str | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        **unsupported,
    ) -> "GVE":
        """Loads a model in gve_jax's own format, or a Hugging Face checkpoint of Qwen2-VL,
        Qwen2.5-VL or Qwen3-VL.

        Models written by `gve_jax.train` or `save_pretrained` have their own input settings.
        Released checkpoints use those of their profile; for GVE, those of the paper: 8 uniformly
        sampled frames of 4 to 200 merged tokens each, 8,192 tokens in total.

        Args:
          directory: a directory with `config.json`, `tokenizer.json` and the parameters (`params/`
            or safetensors files): a local path, `gs://bucket/run/model`, or a Hugging Face Hub id
            such as `Alibaba-NLP/GVE-3B` or `Alibaba-NLP/GVE-3B@main`, which is downloaded once.
            `PROFILE=LOCATION` states the profile too, in every command that takes a model.
          mesh: devices to run on (default: all devices, data parallel).
          dtype: of parameters and activations, "bfloat16", "float32" or "float16" (default: as
            recorded in config.json; bfloat16 for the released checkpoints).
          mrope: a regime of `gve_jax.inputs.positions` (default: that of training; "qwen_train" for
            released checkpoints).
          attention: a kernel of `gve_jax.model.attention` (default: as saved; "xla" for released
            checkpoints).
          adapter: a directory of PEFT's LoRA or DoRA files for this model, local, gs:// or a Hub
            id. LoRA is not merged into the weights; DoRA is, and leaves no adapter.
          profile: a name of `gve_jax.inputs.profiles`: prompt, pooled token, positions and frames
            (default: as recorded; for released checkpoints by architecture and name).
          limits: limits of one media file; files are decoded in separate processes.
          workers: how many processes at most; they start when they are first needed, and stay
            (default: the CPU cores that this process may use).
          show_progress_bar: shows progress on standard error while a released checkpoint is read.
          revision: branch, tag or commit of a Hub id (default: its main branch). The commit is
            recorded in `source`, but is not part of the fingerprint.
          token: for a private repository (default: that of `hf auth login` or HF_TOKEN).
          local_files_only: loads a Hub id from the local cache only.

        Raises:
          UserError: no such directory or id, an unsupported format or architecture, damaged files,
            tensors that do not fit the configuration, NaN weights, a tokenizer or weights other
            than config.json records, a kernel that cannot run here, an adapter that does not fit,
            a profile of another architecture, or none where the name does not decide it.
          UnsupportedArgument: an argument of another library's loader; it names the alternative.
        """
        refuse_arguments(cls.from_pretrained, unsupported)
        if workers is not None and workers < 1:
            raise UserError(f"workers must be at least 1, not {workers}")
        pretrained = open_pretrained(
            directory,
            dtype,
            adapter=adapter,
            revision=revision,
            token=token,
            local_files_only=local_files_only,
        )
        config, path = pretrained.config, pretrained.directory / "config.json"
        try:
            _check_dtype(config.dtype)
            config = dataclasses.replace(config, attention=attention or config.attention)
            spec, buckets = pretrained.inputs(profile) or released_inputs(
                config, pretrained.profile(profile)
            )
            spec = dataclasses.replace(spec, mrope=mrope or spec.mrope)
        except ValueError as error:
            raise UserError(f"{path}: {error}") from error
        prompt = Prompt(pretrained.tokenizer, spec.max_length, find_profile(spec.profile))
        mesh = mesh or make_mesh({"data": -1})
        pretrained.check_tokenizer(pretrained.tokenizer)
        params = pretrained.load(config, mesh, show=show_progress_bar)
        if adapter is not None:
            config, params = _attach(adapter, config, params, mesh)
        if bad := not_finite(params):
            raise UserError(f"{pretrained.directory}: NaN or infinite numbers in {', '.join(bad)}")
        source = pretrained.source
        if adapter is not None and source is not None:
            source = {**source, "adapter": os.fspath(adapter)}
        preprocess = Preprocessor(prompt, spec, limits)
        model = cls(config, params, preprocess, buckets, mesh, source, workers)
        if adapter is None and pretrained.is_native and "params" not in pretrained.fields:
            # Saved by 0.1, without the digest that `load` compares. Hashing takes much longer.
            pretrained.check_weights(model.fingerprint["weights"])
        return model

    def save_pretrained(
        self,
        directory: str | os.PathLike,
        format: str = "gve_jax",
        layout: str = "4.49",
        show_progress_bar: bool = False,
    ) -> None:
        """Writes a directory for `from_pretrained`; `config.json` is written last.

        Args:
          directory: local or gs://, created if absent; a model of the same format is replaced.
          format: "gve_jax" stores everything, adapters included. "hf" is a checkpoint for
            transformers: adapters are merged, there is no head, and the input settings are stored
            under `gve_jax` in config.json.
          layout: names of tensors for "hf", as in transformers "4.49" or "5"; 5 reads both.
          show_progress_bar: shows progress on standard error for "hf".

        Raises:
          UserError: an unknown format, a model of the other format in the directory, a full disk.
        """
        directory = as_path(directory)
        if format not in FORMATS:
            raise UserError(f"format {format!r} is unknown; known: {', '.join(FORMATS)}")
        path = directory / "config.json"
        if path.is_file() and ("model_type" in read_json(path)) != (format == "hf"):
            raise UserError(f"{directory} has a model of another format; choose another directory")
        settings = {
            "inputs": dataclasses.asdict(self.preprocess.spec),
            "buckets": dataclasses.asdict(self.buckets),
            "source": self.source,
        }
        tokenizer = Path(self.preprocess.prompt.path)
        if format == "hf":
            settings["tokenizer"] = tokenizer_digest(tokenizer)
            save_hf(
                directory,
                self.config,
                self.params,
                tokenizer,
                layout=layout,
                extra={"gve_jax": settings},
                show=show_progress_bar,
            )
            return
        if not is_gcs_path(directory):
            directory.mkdir(parents=True, exist_ok=True)
        elif jax.process_index() == 0:
            # The parameters are replaced in place: incomplete until config.json is written again.
            (directory / "config.json").unlink(missing_ok=True)
        digest = save_params(directory / "params", self.params)
        fields = {"format": FORMAT, "model": self.config.to_dict(), "params": digest, **settings}
        fields["fingerprint"] = self.fingerprint  # computed by all processes together
        if jax.process_index() == 0:
            copy_tokenizer(tokenizer, directory)
            write_json(directory / "config.json", fields)

    def with_inputs(self, **changes) -> "GVE":
        """Returns a model with other input settings, such as `num_frames=16` or `fps=1.0,
        max_frames=64`, and the same weights.

        Args:
          changes: fields of `gve_jax.inputs.preprocess.InputSpec`. The shapes of batches become the
            default ones of the new settings.

        Raises:
          UserError: naming the field that is unknown or out of its range.
        """
        fields = dataclasses.asdict(self.preprocess.spec) | changes
        spec = build(InputSpec, fields, "with_inputs")
        prompt, profile = self.preprocess.prompt, find_profile(spec.profile)
        if (prompt.max_length, prompt.profile) != (spec.max_length, profile):
            prompt = Prompt(prompt.path, spec.max_length, profile)
        preprocess = Preprocessor(prompt, spec, self.preprocess.limits)
        model = GVE(
            self.config,
            self.params,
            preprocess,
            default_buckets(spec),
            self.mesh,
            self.source,
            self._isolated.processes,
        )
        model.prompts, model.default_prompt_name = dict(self.prompts), self.default_prompt_name
        model.truncate_dim, model.similarity_fn_name = self.truncate_dim, self.similarity_fn_name
        # The same weights need not be hashed again.
        kept = {k: v for k, v in self.fingerprint.items() if not k.startswith("inputs.")}
        model.fingerprint = kept | _inputs_fingerprint(self.config, spec)
        return model

    @property
    def tokens_encoded(self) -> int:
        """Number of tokens that the decoder has processed so far, visual ones included; a prefix
        that the rows of a batch share counts once."""
        return self._padding.used("tokens")

    @property
    def embedding_dim(self) -> int:
        return self.config.embedding_dim

    def encode(
        self,
        inputs: Inputs,
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        normalize_embeddings: bool = True,
        truncate_dim: int | None = None,
        precision: str = "float32",
        convert_to_tensor: bool = False,
        convert_to_numpy: bool = True,
        allow_empty_text: bool = False,
        **unsupported,
    ) -> Num[np.ndarray, "..."] | jax.Array:
        """Embeds texts, images, videos and mixtures.

        Args:
          inputs: one input or a list of inputs: a text; a mapping with the keys of
            `gve_jax.media.item.Item`; a PIL image; a `pathlib.Path` of a media file or a folder of
            frames; uint8 [H, W, 3] (an image) or [T, H, W, 3] (frames); chat content, a list of
            parts `{"type": "text" | "image" | "video", ...}`; or a conversation, a list of messages
            with role and content. A `str` is always a text, never a path.
          prompt: instruction of inputs without one of their own; "" for no instruction.
          prompt_name: name of the instruction in `prompts`, such as "MSRVTT".
          batch_size: maximal number of items per batch; vectors do not depend on it beyond the
            rounding of the model's dtype.
          show_progress_bar: shows progress on standard error (default: if that is a terminal or a
            notebook, and there is more than one batch).
          normalize_embeddings: scales vectors to unit length; False returns the hidden states.
          truncate_dim: number of leading dimensions to keep, before normalization (default: the
            attribute `truncate_dim`).
          precision: "int8", "uint8", "binary" or "ubinary" quantizes the vectors with their own
            ranges, see `gve_jax.retrieval.quantization.quantize_embeddings`.
          convert_to_tensor: returns a `jax.Array` on `device`, for `torch.from_dlpack`.
          convert_to_numpy: must be True unless `convert_to_tensor` is set.
          allow_empty_text: embeds an empty text as the reference does, as an empty chat template;
            otherwise it is an error.

        Returns:
          float32 [N, D] in the order of `inputs`, or [D] for a single input; int8 or uint8 for the
          quantized precisions, with ceil(D / 8) bytes per vector for the binary ones.

        Raises:
          UserError: naming the index of an input that is malformed, empty or unreadable, or whose
            vector is not finite; an unknown prompt name. `encode_valid` skips unreadable inputs.
          UnsupportedArgument: another argument of Sentence Transformers; it names the alternative.
        """
        refuse_arguments(self.encode, unsupported)
        if not (convert_to_numpy or convert_to_tensor):
            raise UnsupportedArgument(
                "encode does not return a list of tensors; convert_to_tensor=True returns one "
                "tensor, whose rows list(...) gives"
            )
        if precision not in (None, *PRECISIONS):
            raise UserError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
        width = self._width(truncate_dim)
        instruction = self._instruction(prompt, prompt_name)
        values, single = split_inputs(inputs)
        items = read_inputs(values, single, allow_empty_text)
        warn_of_paths(items, single)

        def refuse(index: int, item: Item, failed: Failure):
            raise UserError(f"{input_label(index, single)}: {failed.reason}")

        vectors, _ = self._run(items, instruction, batch_size, show_progress_bar, refuse)
        vectors = np.ascontiguousarray(vectors[:, :width])
        if normalize_embeddings:
            vectors = unit_rows(vectors, "the model")
        if precision not in (None, "float32"):
            vectors = quantize_embeddings(vectors, precision)
        if single:
            vectors = vectors[0]
        return jax.device_put(vectors, self.device) if convert_to_tensor else vectors

    def encode_valid(
        self,
        inputs: Inputs,
        ids: Sequence[str] | None = None,
        quarantine: Quarantine | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = False,
    ) -> tuple[Float[np.ndarray, "N D"], Bool[np.ndarray, " N"]]:
        """`encode` that skips unreadable inputs, in a list.

        Args:
          ids: names of the inputs in the quarantine (default: their indices).
          quarantine: records unreadable inputs, each with the reason. Without one, a warning says
            how many there are, and the reason of the first.
          prompt, batch_size, show_progress_bar: as of `encode`.

        Returns:
          The vectors of the readable inputs, float32 [n, D], and a mask of those inputs, bool [N].

        Raises:
          UserError: as `encode`, but for inputs that cannot be read; a single input.
        """
        failures: list[str] = []

        def record(index: int, item: Item, failed: Failure):
            if quarantine is None:
                failures.append(f"{input_label(index)}: {failed.reason}")
            else:
                name = str(index) if ids is None else ids[index]
                quarantine.record(**failure(name, item, *dataclasses.astuple(failed)))

        values, single = split_inputs(inputs)
        if single:
            raise UserError("inputs must be a list, as ids is, not a single input")
        items = read_inputs(values)
        vectors, valid = self._run(items, prompt, batch_size, show_progress_bar, record)
        if failures:
            warn_user(
                f"{len(failures):,} of {len(items):,} inputs could not be read and were skipped; "
                f"the first: {failures[0]}"
            )
        return unit_rows(vectors, "the model"), valid

    def prepare(self, item: Item, prompt: str | None = None) -> Row | Failure:
        """Reads an item, in the sandbox what is untrusted, and makes its row for `encode_rows`.

        May be called from several threads at once.

        Args:
          prompt: instruction of an item without one of its own.
        """
        (item,) = _with_instruction([item], prompt)
        return self._isolated.attempt(item, self.buckets.fit)

    def encode_rows(self, rows: Sequence[Row], batch_size: int = 32) -> Float[np.ndarray, "N D"]:
        """Hidden states of rows of `prepare`, of which `encode` returns the unit vectors.

        The items of a call are packed together: rounding, and nothing else, depends on the others.
        One thread at a time may call it.

        Raises:
          UserError: a vector is not finite, or zero.
        """
        vectors = np.empty((len(rows), self.embedding_dim), np.float32)
        for start in range(0, len(rows), batch_size * CHUNK):
            chunk = dict(enumerate(rows[start : start + batch_size * CHUNK], start))
            for indices, batch in self._vectors(chunk, batch_size):
                vectors[indices] = batch
        _check_vectors(vectors, np.arange(len(rows)))
        return vectors

    def _run(self, items: list[Item], prompt, batch_size, show, on_error: Callable):
        """Pooled hidden states of the readable items, float32 [n, D], and their mask, bool [N]."""
        if not is_whole(batch_size) or batch_size < 1:
            raise UserError(f"batch_size must be an integer of at least 1, not {batch_size!r}")
        items = _with_instruction(items, prompt)
        vectors = np.empty((len(items), self.embedding_dim), np.float32)
        valid = np.zeros(len(items), bool)
        if show is None:
            show = len(items) > batch_size and has_bars()
        with progress_bar(disable=not show) as progress:
            bar = progress.add_task("embedding", total=len(items))
            for start in range(0, len(items), batch_size * CHUNK):
                chunk = items[start : start + batch_size * CHUNK]
                rows = self._rows(chunk, start, on_error)
                progress.advance(bar, len(chunk) - len(rows))
                for indices, batch in self._vectors(rows, batch_size):
                    vectors[indices] = batch
                    valid[indices] = True
                    progress.advance(bar, len(indices))
            if show:
                progress.console.print(self.summary())
        vectors = vectors[valid]
        _check_vectors(vectors, np.flatnonzero(valid))
        return vectors, valid

    def _rows(self, items: list[Item], start: int, on_error: Callable) -> dict[int, Row]:
        rows = {}
        with contextlib.closing(self._isolated.map(items)) as results:
            for index, (item, result) in enumerate(zip(items, results, strict=True), start):
                if isinstance(result, Failure):
                    on_error(index, item, result)
                else:
                    rows[index] = result
        return rows

    def plan(self, rows: Mapping[int, Row], batch_size: int) -> Plan:
        """The batches into which `encode` divides rows: their shapes and padding."""
        unit = int(np.prod([self.mesh.shape[axis] for axis in ROW_AXES]))
        size = -(-batch_size // unit) * unit
        try:
            for row in rows.values():
                self.buckets.fit([row])
            buckets = self.buckets
        except ValueError:
            # More frames, or larger ones, than the model was trained with. Those of `max_length`
            # hold all that the settings permit.
            buckets = default_buckets(self.preprocess.spec)
        # Splash attention has no segment that is visible to all.
        return make_plan(rows, buckets, size, unit, share=self.config.attention != "splash")

    def _vectors(
        self, rows: dict[int, Row], batch_size: int
    ) -> Iterator[tuple[list[int], np.ndarray]]:
        """(indices of the items, vectors) by batch."""
        plan, spec = self.plan(rows, batch_size), self.preprocess.spec
        self._shapes |= plan.shapes
        self._padding.add(plan.used(rows), plan.slots)
        pairs = {index: [None] * len(row.patches) for index, row in rows.items() if row.patches}
        for batch in plan.tower:
            merged = self._run_program(self._tower, Frames(**collate_tower(batch, rows, spec)))
            for g, (index, pair) in enumerate(batch.frames):
                pairs[index][pair] = merged[g, rows[index].layouts[pair].merged]
        visuals = {index: np.concatenate(parts) for index, parts in pairs.items()}
        for batch in plan.decoder:
            arrays = collate_decode(
                batch, rows, visuals, self.config.visual_dim, jnp.dtype(self.config.dtype)
            )
            hidden = self._run_program(self._decode, Packed(**arrays))
            vectors = [hidden[b, : len(items)] for b, items in enumerate(batch.rows)]
            yield [index for items in batch.rows for index in items], np.concatenate(vectors)

    def summary(self) -> str:
        """Number of compiled shapes, and share of padding, of all calls so far."""
        parts = [f"{len(self._shapes)} compiled shapes", self._padding.summary()]
        return "; ".join(filter(None, parts))

    def _run_program(self, program: Callable, arrays) -> np.ndarray:
        with jax.set_mesh(self.mesh):  # fused attention is sharded over it
            return np.asarray(program(self.params, place_batch(arrays, self.mesh)))


def _with_instruction(items: list[Item], prompt: str | None) -> list[Item]:
    """Items with the instruction `prompt` where they have none of their own."""
    if not prompt:
        return items
    return [
        item if item.instruction else dataclasses.replace(item, instruction=prompt)
        for item in items
    ]


def _check_vectors(vectors: np.ndarray, indices: np.ndarray) -> None:
    """Raises UserError that names the first input, by `indices` [n], whose vector of [n, D] has no
    direction."""
    good = np.isfinite(vectors).all(axis=-1) & vectors.any(axis=-1)
    if not good.all():
        index = int(indices[np.argmin(good)])
        raise UserError(f"input {index}: the model returned a vector that is not finite, or zero")


@functools.lru_cache(maxsize=8)
def _programs(config: ModelConfig) -> tuple[Callable, Callable]:
    """Jitted tower and decoder, shared by all models of a configuration: compiled once."""
    tower, decode = make_encode(config)
    return jax.jit(tower), jax.jit(decode)


def _inputs_fingerprint(config: ModelConfig, spec: InputSpec) -> dict[str, Any]:
    """The input settings of a fingerprint. Those that vectors of version 0.2.0 do not record are
    left out where their values are the only ones there were, so that such vectors stay valid."""
    fields = dataclasses.asdict(spec)
    if config.architecture == "qwen2_5_vl":
        then = {"profile": "gve", "timestamps": False}
        then |= {"image_min_pixels": None, "image_max_pixels": None}
        fields = {k: v for k, v in fields.items() if k not in then or v != then[k]}
    return {f"inputs.{name}": value for name, value in fields.items()}


def released_inputs(config: ModelConfig, profile: Profile) -> tuple[InputSpec, Buckets]:
    """Input settings of a released checkpoint."""
    token = (config.vision.patch_size * config.vision.spatial_merge_size) ** 2
    fields = dict(min_pixels=4 * token, max_pixels=200 * token) | dict(profile.inputs)
    spec = InputSpec(profile=profile.name, **fields, **geometry(config))
    return spec, default_buckets(spec)


def _check_dtype(dtype: str) -> None:
    if dtype not in ("float32", "bfloat16", "float16"):
        raise UserError(f"dtype {dtype!r} must be one of float32, bfloat16, float16")


def _attach(adapter: str | os.PathLike, config: ModelConfig, params, mesh: jax.sharding.Mesh):
    """Adds an adapter from files, DoRA by freeing `params`; returns (config, parameters)."""
    if config.lora is not None:
        raise UserError(f"{adapter}: the model already has an adapter; merge it first")
    adapted, tree = read_adapter(adapter, config)
    params = lora.join(params, jax.device_put(tree, param_shardings(tree, mesh)))
    if not lora.has_magnitudes(tree):
        return adapted, params
    merged = lora.merge(params, adapted, free=True)
    return config, jax.device_put(merged, param_shardings(merged, mesh))
