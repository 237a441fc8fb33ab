"""The public encoder: texts, images, videos and their mixtures in, unit vectors out."""

import contextlib
import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Num
from PIL import Image
from rich.console import Console
from rich.progress import Progress

from gve_jax import __version__
from gve_jax.checkpoints.digests import not_finite, weights_digest
from gve_jax.checkpoints.huggingface import copy_tokenizer, save_hf
from gve_jax.checkpoints.orbax import save_params
from gve_jax.checkpoints.peft import read_adapter
from gve_jax.checkpoints.pretrained import FORMAT, open_pretrained
from gve_jax.distributed.sharding import ROW_AXES, make_mesh, param_shardings, place_batch
from gve_jax.errors import UnsupportedArgument, UserError
from gve_jax.fields import build
from gve_jax.inputs.batch import Buckets, default_buckets
from gve_jax.inputs.packing import Plan, collate_decode, collate_tower, make_plan
from gve_jax.inputs.padding import Padding
from gve_jax.inputs.preprocess import InputSpec, Preprocessor, Row
from gve_jax.inputs.prompt import Prompt
from gve_jax.inputs.tokenizer import tokenizer_digest
from gve_jax.inputs.user_inputs import input_label, read_inputs, split_inputs, warn_of_paths
from gve_jax.media.isolation import Failure, Isolated
from gve_jax.media.item import Item, is_whole
from gve_jax.media.limits import Limits
from gve_jax.media.quarantine import Quarantine, failure
from gve_jax.model import lora
from gve_jax.model.batch import Frames, Packed
from gve_jax.model.config import ModelConfig
from gve_jax.model.embedder import make_encode
from gve_jax.retrieval.quantization import PRECISIONS, quantize_embeddings
from gve_jax.retrieval.unit import unit_rows
from gve_jax.sentence_transformers import SentenceTransformersInterface, refuse_arguments
from gve_jax.storage.files import read_json, write_json
from gve_jax.storage.filesystem import as_path, is_bucket

Input = str | os.PathLike | np.ndarray | Image.Image | Mapping | Item | Sequence[Mapping]
Inputs = Input | Sequence[Input]
FORMATS = ("gve_jax", "hf")
CHUNK = 16  # batches decoded ahead and sorted into buckets together: bounds the memory


class GVE(SentenceTransformersInterface):
    """A trained encoder. Make one with `from_pretrained`."""

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
    ):
        super().__init__()
        self.source = source  # repository and commit on the Hub, where the weights come from there
        self.config, self.params, self.preprocess = config, params, preprocess
        self.buckets, self.mesh = buckets, mesh
        self._isolated = Isolated(preprocess, processes=os.cpu_count() or 1)
        self._tower, self._decode = map(jax.jit, make_encode(config))
        self._shapes, self._padding = set(), Padding()

    @functools.cached_property
    def fingerprint(self) -> dict[str, Any]:
        """What vectors depend on; stored with them, and compared before they are mixed."""
        return {
            "code": __version__,
            "weights": weights_digest(self.params),
            "tokenizer": tokenizer_digest(Path(self.preprocess.prompt.path)),
            "dtype": self.config.dtype,
            **{f"inputs.{k}": v for k, v in dataclasses.asdict(self.preprocess.spec).items()},
        }

    @classmethod
    def from_pretrained(
        cls,
        directory: str | os.PathLike,
        mesh: jax.sharding.Mesh | None = None,
        dtype: str | None = None,
        mrope: str | None = None,
        attention: str | None = None,
        adapter: str | os.PathLike | None = None,
        limits: Limits | None = None,
        show_progress_bar: bool = False,
        revision: str | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        **unsupported,
    ) -> "GVE":
        """Loads a model of ours, or a Hugging Face checkpoint of the Qwen2.5-VL architecture.

        A directory that `gve_jax.train` or `save_pretrained` wrote brings its own input settings
        along. A released checkpoint gets those of the GVE paper: 8 frames, uniformly sampled, of at
        most 200 merged tokens each (and at least 4), 8,192 tokens in all.

        Args:
          directory: holds `config.json`, `tokenizer.json` and the parameters: `params/`, or one or
            many safetensors files. Or such a directory in a bucket, `gs://bucket/run/model`, or the
            id of such a repository on the Hugging Face Hub, `Alibaba-NLP/GVE-3B`, with a revision
            `Alibaba-NLP/GVE-3B@main`; what of it is read as files is downloaded once.
          mesh: where it runs; all devices as data parallel when absent.
          dtype: of parameters and activations, "bfloat16", "float32" or "float16". When absent,
            what config.json records: bfloat16 for the released checkpoints, float32 for one that
            was exported in float32.
          mrope: a regime of `gve_jax.inputs.positions`. When absent, "qwen_train" for a released
            checkpoint, and for one of ours what it was trained with.
          attention: a kernel of `gve_jax.model.attention`. When absent, "xla" for a released
            checkpoint, and for one of ours what it was saved with.
          adapter: a directory of PEFT's LoRA files for this model, local, in a bucket, or a Hub id;
            it stays apart from the weights.
          limits: what one file or one string of encoded bytes may cost; they are decoded in
            processes of their own.
          show_progress_bar: draws one on standard error while a released checkpoint is read.
          revision: of a Hub id: a branch, a tag or a commit; its main branch when absent. The
            commit that was found is in `source`, which exports carry along; fingerprints depend on
            the weights, not on where they came from.
          token: of a private repository; when absent the one of `hf auth login` or HF_TOKEN.
          local_files_only: takes a Hub id from the local cache and asks no network.

        Raises:
          UserError: no such directory or id, another format or architecture, damaged files, tensors
            that do not fit the configuration, NaN weights, another model's tokenizer or weights
            than config.json records, a kernel that cannot run here, an adapter that does not fit.
          UnsupportedArgument: an argument of other libraries' loaders; it names what to use.
        """
        refuse_arguments(cls.from_pretrained, unsupported)
        base = open_pretrained(
            directory,
            dtype,
            adapter=adapter,
            revision=revision,
            token=token,
            local_files_only=local_files_only,
        )
        config, path = base.config, base.directory / "config.json"
        try:
            _check_dtype(config.dtype)
            config = dataclasses.replace(config, attention=attention or config.attention)
            settings = base.inputs()
            if settings is None:
                spec = _paper_spec(config)
                buckets = default_buckets(spec)
            else:
                spec, buckets = settings
            spec = dataclasses.replace(spec, mrope=mrope or spec.mrope)
        except ValueError as error:
            raise UserError(f"{path}: {error}") from error
        prompt = Prompt(base.tokenizer, spec.max_length)
        mesh = mesh or make_mesh({"data": -1})
        base.check_tokenizer(base.tokenizer)
        params = base.load(config, mesh, show=show_progress_bar)
        if adapter is not None:
            config, params = _attach(adapter, config, params, mesh)
        if bad := not_finite(params):
            raise UserError(f"{base.directory}: NaN or infinite numbers in {', '.join(bad)}")
        source = base.source
        if adapter is not None and source is not None:
            source = {**source, "adapter": os.fspath(adapter)}
        made = cls(config, params, Preprocessor(prompt, spec, limits), buckets, mesh, source)
        if adapter is None and base.is_native and "params" not in base.fields:
            # Saved by 0.1, without the digest that loading compares: hashing takes much longer.
            base.check_weights(made.fingerprint["weights"])
        return made

    def save_pretrained(
        self,
        directory: str | os.PathLike,
        format: str = "gve_jax",
        layout: str = "4.49",
        show_progress_bar: bool = False,
    ) -> None:
        """Writes a directory that `from_pretrained` reads; `config.json` last, as its seal.

        Args:
          directory: made if absent, local or in a bucket; a model of the same format there is
            replaced.
          format: "gve_jax" keeps everything, adapters and resumable arrays included. "hf" is a
            checkpoint that transformers loads: adapters are merged, there is no head, and the input
            settings stand under `gve_jax` in its config.json.
          layout: of "hf": names as transformers 4.49 writes them, or as "5" does; 5 reads both.
          show_progress_bar: draws one on standard error for "hf".

        Raises:
          UserError: an unknown format, a model of the other one in the directory, a full disk.
        """
        directory = as_path(directory)
        if format not in FORMATS:
            raise UserError(f"format {format!r} is unknown; known: {', '.join(FORMATS)}")
        check_free(directory, format)
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
        if not is_bucket(directory):
            directory.mkdir(parents=True, exist_ok=True)
        elif jax.process_index() == 0:
            # There the parameters are replaced in place: unsealed from here to the end.
            (directory / "config.json").unlink(missing_ok=True)
        digest = save_params(directory / "params", self.params)
        text = {"format": FORMAT, "model": self.config.to_dict(), "params": digest, **settings}
        text["fingerprint"] = self.fingerprint  # every process takes part in it
        if jax.process_index() == 0:
            copy_tokenizer(tokenizer, directory)
            write_json(directory / "config.json", text)

    def with_inputs(self, **changes) -> "GVE":
        """The same weights, not copied, with other input settings: `num_frames=16`.

        Args:
          changes: fields of `gve_jax.inputs.preprocess.InputSpec`. The shapes of batches are then
            the default ones of the new settings, not those the model was trained with.

        Raises:
          UserError: a number that cannot be; it names the field.
        """
        fields = dataclasses.asdict(self.preprocess.spec) | changes
        spec = build(InputSpec, fields, "with_inputs")
        preprocess = Preprocessor(self.preprocess.prompt, spec, self.preprocess.limits)
        made = GVE(
            self.config, self.params, preprocess, default_buckets(spec), self.mesh, self.source
        )
        made.prompts, made.default_prompt_name = dict(self.prompts), self.default_prompt_name
        made.truncate_dim, made.similarity_fn_name = self.truncate_dim, self.similarity_fn_name
        # The weights are those of `self`: they need not be hashed again.
        inputs = {f"inputs.{name}": value for name, value in dataclasses.asdict(spec).items()}
        made.fingerprint = {**self.fingerprint, **inputs}
        return made

    @property
    def tokens_encoded(self) -> int:
        """Tokens that all calls have put through the decoder so far, visual ones included; what
        the rows of a batch begin with alike goes through it once."""
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
          inputs: one input or a list of them. An input is a text; a mapping with the keys of
            `gve_jax.media.item.Item`; a PIL image; a `pathlib.Path` of a media file or of a folder
            of frames; uint8 [H, W, 3], an image, or [T, H, W, 3], frames; chat content, a list of
            parts `{"type": "text" | "image" | "video", ...}`, or a conversation, a list of messages
            with role and content. A `str` is always a text, also where it is a path.
          prompt: the instruction of inputs that bring none of their own; "" for none.
          prompt_name: the same by its name in `prompts`, "MSRVTT".
          batch_size: items of a batch, at most; vectors differ by the rounding of the model's
            dtype alone.
          show_progress_bar: draws one on standard error; when None, where that is a terminal and
            there is more than one batch.
          normalize_embeddings: unit length. False gives the hidden states as they are.
          truncate_dim: keeps this many leading dimensions, and normalises those; when None, as the
            attribute `truncate_dim` says.
          precision: "int8", "uint8", "binary" or "ubinary" quantize, as
            `gve_jax.retrieval.quantization.quantize_embeddings` does with the
            ranges of these very vectors.
          convert_to_tensor: gives a `jax.Array` on `device`, which `torch.from_dlpack` takes.
          convert_to_numpy: only True, the default; `convert_to_tensor` goes before it.
          allow_empty_text: an empty text is embedded as the reference embeds it, the chat template
            around nothing; otherwise it is refused.

        Returns:
          float32 [N, D], in the order of `inputs`, or [D] of a single input; int8 or uint8 where
          `precision` says so, of ceil(D / 8) bytes for the binary ones.

        Raises:
          UserError: an input that is malformed, empty or cannot be read; a prompt of an unknown
            name; vectors that are not finite. Inputs are named by their index.
          UnsupportedArgument: another argument of Sentence Transformers; it names what to use.
        """
        refuse_arguments(self.encode, unsupported)
        if not (convert_to_numpy or convert_to_tensor):
            raise UnsupportedArgument(
                "encode gives no list of tensors: convert_to_tensor=True "
                "gives one tensor, list(...) of it its rows"
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

    def encode_query(
        self,
        inputs: Inputs,
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        **options,
    ) -> Num[np.ndarray, "..."] | jax.Array:
        """`encode` for queries: they carry the instruction of the task, as GVE was trained.

        Without `prompt` and `prompt_name` that is `prompts["query"]` where there is one. GVE has
        none of its own, since the instruction differs by task: then the queries carry none.
        """
        if prompt is None and prompt_name is None and "query" in self.prompts:
            prompt_name = "query"
        return self.encode(inputs, prompt=prompt, prompt_name=prompt_name, **options)

    def encode_document(
        self,
        inputs: Inputs,
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        **options,
    ) -> Num[np.ndarray, "..."] | jax.Array:
        """`encode` for what is searched: it carries no instruction unless one is given, by `prompt`
        or `prompt_name`, or `prompts` has one for "document", "passage" or "corpus"."""
        if prompt is None and prompt_name is None:
            names = (name for name in ("document", "passage", "corpus") if name in self.prompts)
            prompt_name = next(names, None)
        return self.encode(inputs, prompt=prompt, prompt_name=prompt_name, **options)

    def encode_valid(
        self,
        inputs: Inputs,
        ids: Sequence[str],
        quarantine: Quarantine,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = False,
    ) -> tuple[np.ndarray, np.ndarray]:
        """`encode`, but what cannot be read is put into the quarantine under its id.

        Returns the vectors of the readable inputs, float32 [n, D], and which those are, bool [N].
        """

        def record(index: int, item: Item, failed: Failure):
            quarantine.record(**failure(ids[index], item, *dataclasses.astuple(failed)))

        values, single = split_inputs(inputs)
        if single:
            raise UserError("inputs must be a list, as ids is, not a single input")
        items = read_inputs(values)
        vectors, valid = self._run(items, prompt, batch_size, show_progress_bar, record)
        return unit_rows(vectors, "the model"), valid

    def _width(self, truncate_dim: int | None) -> int | None:
        """Leading dimensions to keep; None for all."""
        width = self.truncate_dim if truncate_dim is None else truncate_dim
        if width is None:
            return None
        if not is_whole(width) or not 0 < width <= self.embedding_dim:
            raise UserError(
                f"truncate_dim must be a whole number in 1..{self.embedding_dim}, not {width!r}"
            )
        return int(width)

    def _run(self, items: list[Item], prompt, batch_size, show, on_error: Callable):
        """Pooled hidden states of the readable items, float32 [n, D], and which those are."""
        if not is_whole(batch_size) or batch_size < 1:
            raise UserError(f"batch_size must be a whole number of at least 1, not {batch_size!r}")
        if prompt:
            items = [
                item if item.instruction else dataclasses.replace(item, instruction=prompt)
                for item in items
            ]
        vectors = np.empty((len(items), self.embedding_dim), np.float32)
        valid = np.zeros(len(items), bool)
        if show is None:
            show = len(items) > batch_size and sys.stderr.isatty()
        with Progress(console=Console(stderr=True), disable=not show) as progress:
            bar = progress.add_task("embedding", total=len(items))
            for start in range(0, len(items), batch_size * CHUNK):
                chunk = items[start : start + batch_size * CHUNK]
                rows = self._rows(chunk, start, on_error)
                progress.advance(bar, len(chunk) - len(rows))
                for places, vector in self._vectors(rows, batch_size):
                    vectors[places] = vector
                    valid[places] = True
                    progress.advance(bar, len(places))
            if show:
                progress.print(self.summary())
        found = vectors[valid]
        good = np.isfinite(found).all(axis=-1) & found.any(axis=-1)
        if not good.all():
            index = int(np.flatnonzero(valid)[np.argmin(good)])
            raise UserError(f"input {index}: the model gives a vector that is not finite, or zero")
        return found, valid

    def _rows(self, items: list[Item], start: int, on_error: Callable) -> dict[int, Row]:
        rows = {}
        with contextlib.closing(self._isolated.map(items, self.buckets.fit)) as results:
            for index, (item, result) in enumerate(zip(items, results, strict=True), start):
                if isinstance(result, Failure):
                    on_error(index, item, result)
                else:
                    rows[index] = result
        return rows

    def plan(self, rows: Mapping[int, Row], batch_size: int) -> Plan:
        """The batches that `encode` makes of rows: their shapes, and how much is padding."""
        unit = int(np.prod([self.mesh.shape[axis] for axis in ROW_AXES]))
        size = -(-batch_size // unit) * unit
        # Splash attention knows no segment that all see.
        return make_plan(rows, self.buckets, size, unit, share=self.config.attention != "splash")

    def _vectors(
        self, rows: dict[int, Row], batch_size: int
    ) -> Iterator[tuple[list[int], np.ndarray]]:
        """(places, vectors) of batch after batch."""
        plan, spec = self.plan(rows, batch_size), self.preprocess.spec
        self._shapes |= plan.shapes
        self._padding.add(plan.used(rows), plan.slots)
        pairs = {index: [None] * len(row.patches) for index, row in rows.items() if row.patches}
        for batch in plan.tower:
            merged = self._run_program(self._tower, Frames(**collate_tower(batch, rows, spec)))
            for g, (index, pair) in enumerate(batch.frames):
                pairs[index][pair] = merged[g, rows[index].layouts[pair].merged]
        visuals = {index: np.concatenate(found) for index, found in pairs.items()}
        for batch in plan.decoder:
            arrays = collate_decode(
                batch, rows, visuals, self.embedding_dim, jnp.dtype(self.config.dtype)
            )
            hidden = self._run_program(self._decode, Packed(**arrays))
            kept = [hidden[b, : len(items)] for b, items in enumerate(batch.rows)]
            yield [index for items in batch.rows for index in items], np.concatenate(kept)

    def summary(self) -> str:
        """What encoding has cost so far: compiled shapes, and the share that was padding."""
        told = [f"{len(self._shapes)} compiled shapes", self._padding.summary()]
        return "; ".join(filter(None, told))

    def _run_program(self, program: Callable, arrays) -> np.ndarray:
        with jax.set_mesh(self.mesh):  # fused attention splits itself over it
            return np.asarray(program(self.params, place_batch(arrays, self.mesh)))


def check_free(directory: Path, format: str) -> None:
    """Raises UserError when a model of the other format lies there: two in one would mix."""
    path = directory / "config.json"
    if path.is_file() and ("model_type" in read_json(path)) != (format == "hf"):
        raise UserError(f"{directory} holds a model of another format; choose another directory")


def _paper_spec(config: ModelConfig) -> InputSpec:
    """Input settings of a model that was saved without any."""
    vision = config.vision
    token = (vision.patch_size * vision.spatial_merge_size) ** 2
    return InputSpec(
        min_pixels=4 * token,
        max_pixels=200 * token,
        patch_size=vision.patch_size,
        merge=vision.spatial_merge_size,
        temporal=vision.temporal_patch_size,
        window_side=vision.window_side,
        tokens_per_second=vision.tokens_per_second,
    )


def _check_dtype(dtype: str) -> None:
    if dtype not in ("float32", "bfloat16", "float16"):
        raise UserError(f"dtype {dtype!r} is not one of float32, bfloat16, float16")


def _attach(adapter: str | os.PathLike, config: ModelConfig, params, mesh: jax.sharding.Mesh):
    """(config, parameters) with an adapter from files beside the base's."""
    if config.lora is not None:
        raise UserError(f"{adapter}: the model has an adapter already; merge it first")
    config, tree = read_adapter(adapter, config)
    return config, lora.join(params, jax.device_put(tree, param_shardings(tree, mesh)))
