"""What GVE has of the interface of Sentence Transformers, and what it refuses by name.

docs/sentence_transformers.md lists each difference.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping

import jax
import numpy as np
from jaxtyping import Float, Int

from gve_jax.errors import UnsupportedArgument, UnsupportedAttribute, UserError
from gve_jax.inputs.instructions import INSTRUCTIONS, choose_instruction
from gve_jax.inputs.preprocess import InputSpec
from gve_jax.inputs.user_inputs import input_label, read_inputs, split_inputs
from gve_jax.media.item import Item
from gve_jax.retrieval import similarity

_MESH = (
    "the devices are chosen when the model is loaded: "
    "GVE.from_pretrained(..., "
    "mesh=gve_jax.distributed.sharding.make_mesh({'data': -1}))"
)
_POOL = (
    "encode uses all devices of the model's mesh and decodes in processes of its own; leave "
    "it out, or embed a folder by python -m gve_jax.embed"
)
_SAVE = "save_pretrained(directory) writes it, with format='hf' for transformers"
_TRAIN = "models are trained by python -m gve_jax.train (docs/training.md)"
_DTYPE = "choose it when the model is loaded: GVE.from_pretrained(..., dtype='bfloat16')"
_AFTER = "set it on the model once it is loaded: model.{} = ..."

# Arguments by the function that refuses them: None, or the value here, changes nothing and passes.
_ENCODE = {
    "output_value": "only the vector of a whole input is given; leave it out",
    "device": _MESH,
    "pool": _POOL,
    "chunk_size": _POOL,
    "task": "instructions tell the task: prompt= or prompt_name=",
    "prompts": "give prompt= or prompt_name=; model.prompts holds the named ones",
    "processing_kwargs": "GVE.with_inputs(...) sets them for all inputs, its own keys for one",
    "max_seq_length": "GVE.with_inputs(max_length=...) sets it",
    "sentences": "it is named inputs here",
    "is_pretokenized": "give texts, not tokens",
    "num_workers": _POOL,
}
_LOAD = {
    "model_name_or_path": "it is named directory here, and may be an id on the Hub",
    "modules": "give a directory or an id on the Hub",
    "device": _MESH,
    "device_map": _MESH,
    "trust_remote_code": "no code of a repository is run; leave it out",
    "cache_folder": "HF_HUB_CACHE in the environment names the folder of downloads",
    "cache_dir": "HF_HUB_CACHE in the environment names the folder of downloads",
    "torch_dtype": "it is named dtype here: 'bfloat16' or 'float32'",
    "model_kwargs": "dtype=, attention=, mrope= and mesh= are arguments of from_pretrained",
    "processor_kwargs": "GVE.with_inputs(...) changes how inputs are read",
    "tokenizer_kwargs": "GVE.with_inputs(...) changes how inputs are read",
    "config_kwargs": "dtype=, attention=, mrope= and mesh= are arguments of from_pretrained",
    "backend": "it is always JAX; leave it out",
    "attn_implementation": "it is named attention here",
    "use_auth_token": "it is named token here",
    "model_card_data": "leave it out",
    "prompts": _AFTER.format("prompts"),
    "default_prompt_name": _AFTER.format("default_prompt_name"),
    "similarity_fn_name": _AFTER.format("similarity_fn_name"),
    "truncate_dim": _AFTER.format("truncate_dim"),
}
_HARMLESS = {"output_value": "sentence_embedding", "trust_remote_code": False}
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
    "dtype": "model.config.dtype names it",
    "eval": "encode never drops inputs: leave it out",
    "compile": "programs are compiled when a shape is first seen: leave it out",
    "forward": "encode(inputs) gives the vectors",
    "train": _TRAIN,
    "fit": _TRAIN,
    "old_fit": _TRAIN,
    "parameters": "model.params is the tree of arrays",
    "named_parameters": "model.params is the tree of arrays",
    "state_dict": "model.params is the tree of arrays",
    "tokenizer": "tokenize(texts) gives the tokens; tokenizers.Tokenizer.from_file("
    "model.preprocess.prompt.path) is the tokenizer",
    "processor": "model.preprocess reads inputs, tokenize(texts) gives the tokens",
    "get_max_seq_length": "model.max_seq_length has it",
    "truncate_embeddings": "set model.truncate_dim, or give truncate_dim= to encode",
    "truncate_sentence_embeddings": "set model.truncate_dim, or give truncate_dim= to encode",
    "evaluate": "python -m evals.uvrb and python -m evals.mteb evaluate models",
    "save": _SAVE,
    "save_to_hub": f"{_SAVE}; huggingface_hub's upload_folder uploads it",
    "push_to_hub": f"{_SAVE}; huggingface_hub's upload_folder uploads it",
    "load": "GVE.from_pretrained(directory) loads a model",
    "backend": "it is always JAX",
    "get_backend": "it is always JAX",
    "add_adapter": "GVE.from_pretrained(..., adapter=directory) loads one",
    "load_adapter": "GVE.from_pretrained(..., adapter=directory) loads one",
}


_INPUT_OPTIONS = {field.name for kind in (Item, InputSpec) for field in dataclasses.fields(kind)}


def refuse_arguments(function: Callable, given: Mapping) -> None:
    """Raises UnsupportedArgument for the first argument that `function`, GVE's `encode` or
    `from_pretrained`, was given beyond its own, unless it says what happens anyway."""
    name = function.__name__
    hints = _ENCODE if name == "encode" else _LOAD
    for key, value in given.items():
        if key in hints:
            if value is None or (key in _HARMLESS and value == _HARMLESS[key]):
                continue
            raise UnsupportedArgument(f"{name} takes no {key}: {hints[key]}")
        if key in _INPUT_OPTIONS:
            raise UnsupportedArgument(
                f"{name} takes no {key}: give it with an input, {{'video': ..., {key!r}: ...}}, or "
                "for all inputs by GVE.with_inputs where it is a field of InputSpec"
            )
        known = [key for key in inspect.signature(function).parameters if key != "unsupported"]
        raise UnsupportedArgument(f"{name} takes no {key}; it takes: {', '.join(known)}")


class SentenceTransformersInterface:
    """The members that GVE shares with SentenceTransformer, beyond its encode functions.

    Attributes:
      prompts: named instructions; at first those of UVRB's queries. "query" is what `encode_query`
        takes by default, "document", "passage" or "corpus" what `encode_document` does; GVE has
        none of them.
      default_prompt_name: of the instruction of calls that name none; None for no instruction.
      truncate_dim: dimensions that `encode` keeps by default; None for all.
    """

    def __init__(self):
        self.prompts: dict[str, str] = dict(INSTRUCTIONS)
        self.default_prompt_name: str | None = None
        self.truncate_dim: int | None = None
        self._similarity_fn_name = "cosine"

    def __getattr__(self, name: str):
        if name in _ATTRIBUTES:
            raise UnsupportedAttribute(f"GVE has no {name}: {_ATTRIBUTES[name]}")
        # Raises what the first look-up did: it may come from inside a property.
        return object.__getattribute__(self, name)

    @property
    def modalities(self) -> list[str]:
        """What can be embedded; an input may hold one of each."""
        return ["text", "image", "video", "message"]

    def supports(self, modality: str | tuple[str, ...]) -> bool:
        """Whether a modality, or several in one input, can be embedded."""
        if isinstance(modality, str):
            return modality in self.modalities
        return set(modality) <= {"text", "image", "video"}

    @property
    def device(self) -> jax.Device:
        """The first of this host's devices of `mesh`: tensors of `convert_to_tensor` are on it."""
        own = (d for d in self.mesh.devices.flat if d.process_index == jax.process_index())
        return next(own)

    @property
    def max_seq_length(self) -> int:
        """Tokens of an input, at most; longer texts are cut."""
        return self.preprocess.spec.max_length

    @max_seq_length.setter
    def max_seq_length(self, value) -> None:
        raise UserError(
            f"max_seq_length cannot be set: model.with_inputs(max_length={value!r}) "
            "gives the same model with it"
        )

    def get_embedding_dimension(self) -> int:
        """Dimensions of the vectors that `encode` gives by default."""
        return min(self.embedding_dim, self.truncate_dim or self.embedding_dim)

    def get_sentence_embedding_dimension(self) -> int:
        """The older name of `get_embedding_dimension`."""
        return self.get_embedding_dimension()

    def tokenize(
        self, texts, *, prompt: str | None = None, prompt_name: str | None = None
    ) -> dict[str, Int[np.ndarray, "N L"]]:
        """The tokens of texts as the model sees them: the chat template and the end token included.

        Args:
          texts: texts, or other inputs without media.
          prompt, prompt_name: as of `encode`.

        Returns:
          `input_ids` and `attention_mask`, int32 [N, L], padded on the right.

        Raises:
          UserError: an input with media, of which the file decides the tokens; or as `encode`.
        """
        values, single = split_inputs(texts)
        items = read_inputs(values, single)
        instruction = self._instruction(prompt, prompt_name)
        for index, item in enumerate(items):
            if item.image is not None or item.video is not None:
                raise UserError(
                    f"{input_label(index, single)}: tokenize takes texts; how many "
                    "tokens a medium has is known once it is read"
                )
        entries = [(item.text, item.instruction or instruction or "", 0, 0) for item in items]
        rows = [ids for ids, _ in self.preprocess.prompt.ids_batch(entries)] if entries else []
        shape = len(rows), max(map(len, rows), default=0)
        ids = np.full(shape, self.preprocess.prompt.end, np.int32)
        mask = np.zeros(shape, np.int32)
        for row, found in enumerate(rows):
            ids[row, : len(found)], mask[row, : len(found)] = found, 1
        return {"input_ids": ids, "attention_mask": mask}

    @property
    def similarity_fn_name(self) -> str:
        """What `similarity` computes: "cosine" unless set to "dot", "euclidean", "manhattan"."""
        return self._similarity_fn_name

    @similarity_fn_name.setter
    def similarity_fn_name(self, name) -> None:
        self._similarity_fn_name = similarity.check_name(name)

    def similarity(
        self, embeddings1: Float[np.ndarray, "Q D"], embeddings2: Float[np.ndarray, "C D"]
    ) -> Float[np.ndarray, "Q C"]:
        """Similarities of all rows of one with all rows of the other, float32: cosines, or as
        `similarity_fn_name` says. The rows need not have unit length; one vector [D] is a row.

        Raises:
          UserError: not two matrices of one width; a row with NaN or infinite numbers, or without a
            direction.
        """
        return similarity.all_pairs(embeddings1, embeddings2, self.similarity_fn_name)

    def similarity_pairwise(
        self, embeddings1: Float[np.ndarray, "N D"], embeddings2: Float[np.ndarray, "N D"]
    ) -> Float[np.ndarray, " N"]:
        """As `similarity`, of each row of one with the same row of the other.

        Raises:
          UserError: as `similarity`, and numbers of rows that differ.
        """
        return similarity.by_rows(embeddings1, embeddings2, self.similarity_fn_name)

    def _instruction(self, prompt: str | None, prompt_name: str | None) -> str | None:
        """The instruction of a call: the one given, else that of `default_prompt_name`."""
        if prompt is None and prompt_name is None:
            prompt_name = self.default_prompt_name
        return choose_instruction(prompt, prompt_name, self.prompts)
