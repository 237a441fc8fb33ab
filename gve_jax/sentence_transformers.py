"""The interface that GVE shares with Sentence Transformers, and errors for the rest of it.

docs/sentence_transformers.md lists the differences.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping

import jax
import numpy as np
from jaxtyping import Float, Int, Num

from gve_jax.errors import UnsupportedArgument, UnsupportedAttribute, UserError, warn_user
from gve_jax.inputs.instructions import INSTRUCTIONS, choose_instruction
from gve_jax.inputs.preprocess import InputSpec
from gve_jax.inputs.prompt import Entry
from gve_jax.inputs.user_inputs import Inputs, input_label, read_inputs, split_inputs
from gve_jax.media.item import Item, is_whole
from gve_jax.retrieval import similarity

_MESH = (
    "choose the devices when loading: GVE.from_pretrained(..., "
    "mesh=gve_jax.distributed.sharding.make_mesh({'data': -1}))"
)
_POOL = (
    "encode uses all devices of the model's mesh and decodes in separate processes; omit it, or "
    "embed a folder with python -m gve_jax.embed"
)
_SAVE = "use save_pretrained(directory), with format='hf' for transformers"
_TRAIN = "train models with python -m gve_jax.train (docs/training.md)"
_DTYPE = "choose it when loading: GVE.from_pretrained(..., dtype='bfloat16')"
_AFTER = "set it after loading: model.{} = ..."

# Alternatives to unsupported arguments, by function. None and the values of _DEFAULTS are accepted.
_ENCODE = {
    "output_value": "only vectors of whole inputs are available; omit it",
    "device": _MESH,
    "pool": _POOL,
    "chunk_size": _POOL,
    "task": "give the instruction of the task: prompt= or prompt_name=",
    "prompts": "give prompt= or prompt_name=; model.prompts holds the named ones",
    "processing_kwargs": "use GVE.with_inputs(...) for all inputs, or the keys of one input",
    "max_seq_length": "use GVE.with_inputs(max_length=...)",
    "sentences": "use inputs",
    "is_pretokenized": "give texts, not tokens",
    "num_workers": _POOL,
}
_LOAD = {
    "model_name_or_path": "use directory, which may be a Hub id",
    "modules": "give a directory or a Hub id",
    "device": _MESH,
    "device_map": _MESH,
    "trust_remote_code": "code of repositories is never run; omit it",
    "cache_folder": "set the environment variable HF_HUB_CACHE",
    "cache_dir": "set the environment variable HF_HUB_CACHE",
    "torch_dtype": "use dtype: 'bfloat16' or 'float32'",
    "model_kwargs": "use dtype=, attention=, mrope= and mesh= of from_pretrained",
    "processor_kwargs": "use GVE.with_inputs(...)",
    "tokenizer_kwargs": "use GVE.with_inputs(...)",
    "config_kwargs": "use dtype=, attention=, mrope= and mesh= of from_pretrained",
    "backend": "it is always JAX; omit it",
    "attn_implementation": "use attention",
    "use_auth_token": "use token",
    "model_card_data": "omit it",
    "prompts": _AFTER.format("prompts"),
    "default_prompt_name": _AFTER.format("default_prompt_name"),
    "similarity_fn_name": _AFTER.format("similarity_fn_name"),
    "truncate_dim": _AFTER.format("truncate_dim"),
}
_DEFAULTS = {"output_value": "sentence_embedding", "trust_remote_code": False}
_ATTRIBUTES = {
    "start_multi_process_pool": _POOL,
    "stop_multi_process_pool": _POOL,
    "encode_multi_process": _POOL,
    "to": _MESH,
    "cuda": _MESH,
    "cpu": _MESH,
    "half": _DTYPE,
    "float": _DTYPE,
    "bfloat16": _DTYPE,
    "dtype": "use model.config.dtype",
    "eval": "encode never applies dropout; omit it",
    "compile": "encode compiles each shape at its first use; omit it",
    "forward": "use encode(inputs)",
    "train": _TRAIN,
    "fit": _TRAIN,
    "old_fit": _TRAIN,
    "parameters": "use model.params, the tree of arrays",
    "named_parameters": "use model.params, the tree of arrays",
    "state_dict": "use model.params, the tree of arrays",
    "tokenizer": "use tokenize(texts), or tokenizers.Tokenizer.from_file("
    "model.preprocess.prompt.path)",
    "processor": "use model.preprocess, or tokenize(texts)",
    "get_max_seq_length": "use model.max_seq_length",
    "truncate_embeddings": "set model.truncate_dim, or use truncate_dim= of encode",
    "truncate_sentence_embeddings": "set model.truncate_dim, or use truncate_dim= of encode",
    "evaluate": "use python -m evals.uvrb or python -m evals.mteb",
    "save": _SAVE,
    "save_to_hub": f"{_SAVE}; then upload it with huggingface_hub's upload_folder",
    "push_to_hub": f"{_SAVE}; then upload it with huggingface_hub's upload_folder",
    "load": "use GVE.from_pretrained(directory)",
    "backend": "it is always JAX",
    "get_backend": "it is always JAX",
    "add_adapter": "use GVE.from_pretrained(..., adapter=directory)",
    "load_adapter": "use GVE.from_pretrained(..., adapter=directory)",
}


_INPUT_OPTIONS = {field.name for kind in (Item, InputSpec) for field in dataclasses.fields(kind)}


def refuse_arguments(function: Callable, given: Mapping) -> None:
    """Raises UnsupportedArgument for the first unsupported argument of `encode` or
    `from_pretrained`, unless its value is the default behavior."""
    name = function.__name__
    hints = _ENCODE if name == "encode" else _LOAD
    for key, value in given.items():
        if key in hints:
            if value is None or (key in _DEFAULTS and value == _DEFAULTS[key]):
                continue
            raise UnsupportedArgument(f"{name} has no argument {key}: {hints[key]}")
        if key in _INPUT_OPTIONS:
            raise UnsupportedArgument(
                f"{name} has no argument {key}: set it in an input, {{'video': ..., {key!r}: ...}} "
                "or, for a field of InputSpec, for all inputs by GVE.with_inputs"
            )
        known = [key for key in inspect.signature(function).parameters if key != "unsupported"]
        raise UnsupportedArgument(f"{name} has no argument {key}; it has: {', '.join(known)}")


class SentenceTransformersInterface:
    """Members that GVE shares with SentenceTransformer, except `encode` itself.

    Attributes:
      prompts: instructions by name, initially those of UVRB's queries. `encode_query` uses "query"
        by default, `encode_document` "document", "passage" or "corpus"; initially unset.
      default_prompt_name: name of the default instruction; None for no instruction.
      truncate_dim: number of dimensions that `encode` keeps by default; None for all.
    """

    def __init__(self):
        self.prompts: dict[str, str] = dict(INSTRUCTIONS)
        self.default_prompt_name: str | None = None
        self.truncate_dim: int | None = None
        self._similarity_fn_name = "cosine"

    def __getattr__(self, name: str):
        if name in _ATTRIBUTES:
            raise UnsupportedAttribute(f"GVE has no {name}: {_ATTRIBUTES[name]}")
        # Raises the original error, which may come from inside a property.
        return object.__getattribute__(self, name)

    @property
    def modalities(self) -> list[str]:
        """What can be embedded; an input may have one of each."""
        return ["text", "image", "video", "message"]

    def supports(self, modality: str | tuple[str, ...]) -> bool:
        """Whether a modality, or several in one input, can be embedded."""
        if isinstance(modality, str):
            return modality in self.modalities
        return set(modality) <= {"text", "image", "video"}

    @property
    def device(self) -> jax.Device:
        """The first of this host's devices in `mesh`, on which `convert_to_tensor` puts tensors."""
        local = (d for d in self.mesh.devices.flat if d.process_index == jax.process_index())
        return next(local)

    @property
    def max_seq_length(self) -> int:
        """Maximal number of tokens of an input; longer texts are truncated."""
        return self.preprocess.spec.max_length

    @max_seq_length.setter
    def max_seq_length(self, value) -> None:
        raise UserError(
            f"max_seq_length cannot be set; use model.with_inputs(max_length={value!r})"
        )

    def encode_query(
        self,
        inputs: Inputs,
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        **options,
    ) -> Num[np.ndarray, "..."] | jax.Array:
        """`encode` for queries, which have the instruction of their task, as in GVE's training.

        The default instruction is `prompts["query"]`, if set; GVE does not set it, because the
        instruction differs by task. For a search in your own videos, give none, or that of the
        nearest task: `prompt_name="MSRVTT"` for texts that describe a short clip, "DiDeMo" for
        several sentences about a long one; measure which finds more (docs/embedding.md).
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
        """`encode` for documents, which have no instruction by default.

        The default is the first of `prompts["document"]`, `["passage"]` and `["corpus"]` that is
        set; GVE sets none of them.
        """
        if prompt is None and prompt_name is None:
            names = (name for name in ("document", "passage", "corpus") if name in self.prompts)
            prompt_name = next(names, None)
        return self.encode(inputs, prompt=prompt, prompt_name=prompt_name, **options)

    def get_embedding_dimension(self) -> int:
        """Dimensions of the vectors that `encode` returns by default."""
        return min(self.embedding_dim, self.truncate_dim or self.embedding_dim)

    def get_sentence_embedding_dimension(self) -> int:
        """The older name of `get_embedding_dimension`."""
        return self.get_embedding_dimension()

    def tokenize(
        self, texts, *, prompt: str | None = None, prompt_name: str | None = None
    ) -> dict[str, Int[np.ndarray, "N L"]]:
        """Tokenizes texts as `encode` does, with the chat template and the end token.

        Args:
          texts: texts, or other inputs without media.
          prompt, prompt_name: as of `encode`.

        Returns:
          `input_ids` and `attention_mask`, int32 [N, L], padded on the right.

        Raises:
          UserError: an input with media, whose number of tokens depends on the file; as `encode`.
        """
        values, single = split_inputs(texts)
        items = read_inputs(values, single)
        instruction = self._instruction(prompt, prompt_name)
        for index, item in enumerate(items):
            if item.image is not None or item.video is not None:
                raise UserError(
                    f"{input_label(index, single)}: tokenize supports texts only; the number of "
                    "tokens of an image or a video is known once it is read"
                )
        entries = [Entry(item.text, item.instruction or instruction or "") for item in items]
        rows = [ids for ids, _ in self.preprocess.prompt.ids_batch(entries)] if entries else []
        shape = len(rows), max(map(len, rows), default=0)
        ids = np.full(shape, self.preprocess.prompt.pad, np.int32)
        mask = np.zeros(shape, np.int32)
        for row, tokens in enumerate(rows):
            ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
        return {"input_ids": ids, "attention_mask": mask}

    @property
    def similarity_fn_name(self) -> str:
        """The function of `similarity`: "cosine" (default), "dot", "euclidean" or "manhattan"."""
        return self._similarity_fn_name

    @similarity_fn_name.setter
    def similarity_fn_name(self, name) -> None:
        self._similarity_fn_name = similarity.check_name(name)

    def similarity(
        self, embeddings1: Float[np.ndarray, "Q D"], embeddings2: Float[np.ndarray, "C D"]
    ) -> Float[np.ndarray, "Q C"]:
        """Similarities of all pairs of rows by `similarity_fn_name`, float32.

        Rows need not have unit length; a vector [D] is one row.

        Raises:
          UserError: matrices of different widths; NaN or infinite numbers; a zero vector.
        """
        return similarity.all_pairs(embeddings1, embeddings2, self.similarity_fn_name)

    def similarity_pairwise(
        self, embeddings1: Float[np.ndarray, "N D"], embeddings2: Float[np.ndarray, "N D"]
    ) -> Float[np.ndarray, " N"]:
        """Similarities of corresponding rows.

        Raises:
          UserError: as `similarity`; different numbers of rows.
        """
        return similarity.by_rows(embeddings1, embeddings2, self.similarity_fn_name)

    def _instruction(self, prompt: str | None, prompt_name: str | None) -> str | None:
        """The instruction of a call, by default that of `default_prompt_name`."""
        if prompt is None and prompt_name is None:
            prompt_name = self.default_prompt_name
        instruction = choose_instruction(prompt, prompt_name, self.prompts)
        profile = self.preprocess.prompt.profile
        if instruction and not profile.takes_instructions:
            warn_user(f"{profile.name} takes no instructions: {instruction!r} is left out")
        return instruction

    def _width(self, truncate_dim: int | None) -> int | None:
        """Number of leading dimensions to keep; None for all."""
        width = self.truncate_dim if truncate_dim is None else truncate_dim
        if width is None:
            return None
        if not is_whole(width) or not 0 < width <= self.embedding_dim:
            raise UserError(
                f"truncate_dim must be an integer in 1..{self.embedding_dim}, not {width!r}"
            )
        shortest = self.preprocess.prompt.profile.shortest
        if width < self.embedding_dim and (shortest is None or width < shortest):
            name = self.preprocess.prompt.profile.name
            warn_user(f"{name} was not trained for vectors of {width} dimensions")
        return int(width)
