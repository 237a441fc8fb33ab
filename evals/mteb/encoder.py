"""A model of ours as an MTEB encoder: `mteb.evaluate(GVEEncoder(model, "name"), tasks)`."""

from collections.abc import Iterable, Iterator
from typing import Any

import datasets
import numpy as np
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta, ScoringFunction
from mteb.types import PromptType

from evals.uvrb.mteb_result import revision_of
from gve_jax import GVE
from gve_jax.errors import UserError

_MODALITIES = ("text", "image", "video")


class GVEEncoder(AbsEncoder):
    """Embeds MTEB's texts, images, videos and their mixtures.

    Queries carry the instruction that MTEB has for the task, in the system turn; documents carry
    none, as GVE was trained. Videos and images are read by this library and sampled as the model
    says, not by MTEB: torchcodec is not needed.

    Args:
      model: from `GVE.from_pretrained`.
      name: `organisation/model`, under which MTEB files its results.
      adapted_from: the model it was made from, by MTEB's name.
    """

    def __init__(self, model: GVE, name: str, adapted_from: str | None = None):
        if name.count("/") != 1 or not all(name.split("/")):
            raise UserError(f"MTEB's name of a model is organisation/model, not {name!r}")
        self.model = model
        sizes = [leaf.size for leaf in _leaves(model.params)]
        self.mteb_model_meta = ModelMeta(
            loader=None,
            name=name,
            revision=revision_of(model.fingerprint),
            release_date=None,
            languages=["eng-Latn"],
            n_parameters=sum(sizes),
            n_embedding_parameters=model.config.text.vocab_size * model.config.text.hidden_size,
            memory_usage_mb=sum(leaf.nbytes for leaf in _leaves(model.params)) / 2**20,
            max_tokens=model.preprocess.spec.max_length,
            embed_dim=model.embedding_dim,
            license=None,
            open_weights=None,
            public_training_code=None,
            public_training_data=None,
            framework=["JAX"],
            similarity_fn_name=ScoringFunction.COSINE,
            use_instructions=True,
            training_datasets=None,
            adapted_from=adapted_from,
            modalities=list(_MODALITIES),
        )

    def encode(
        self,
        inputs: Iterable,
        *,
        task_metadata,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """Unit rows float32 [N, D]. A medium that cannot be read raises UserError.

        An empty text, which corpora of MTEB hold, is embedded as MTEB's own GVE does it: the chat
        template around nothing.
        """
        instruction = None
        if prompt_type != PromptType.document:
            instruction = self.get_instruction(task_metadata, prompt_type) or None
        return self.model.encode(
            list(items(inputs)),
            prompt=instruction,
            batch_size=batch_size,
            show_progress_bar=show_progress_bar,
            allow_empty_text=True,
        )


def items(inputs: Iterable) -> Iterator[dict]:
    """The items of an MTEB data loader, with encoded media as they are in its dataset.

    The dataset is read past the loader, whose rows would come with decoded videos.

    Raises:
      UserError: a row without a medium in a dataset that has no texts.
    """
    dataset = inputs.dataset
    for name, feature in dataset.features.items():
        if isinstance(feature, datasets.Image | datasets.Video):
            dataset = dataset.cast_column(name, type(feature)(decode=False))
    for index, row in enumerate(dataset):
        item = {key: _medium(row[key]) for key in _MODALITIES if _given(row.get(key))}
        if not item and "text" not in row:
            raise UserError(f"row {index} of MTEB's dataset, id {row.get('id')!r}, has no medium")
        if row.get("fps"):
            item["fps"] = row["fps"]
        yield item


def _given(value) -> bool:
    if isinstance(value, dict):
        return bool(value.get("bytes") or value.get("path"))
    return bool(value)


def _medium(value):
    """Bytes where the dataset holds them, else the path; texts as they are."""
    if isinstance(value, dict):
        return value.get("bytes") or value["path"]
    return value


def _leaves(params) -> list:
    import jax

    return jax.tree.leaves(params)
