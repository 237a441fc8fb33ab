"""A GVE model as an MTEB encoder: `mteb.evaluate(GVEEncoder(model, "name"), tasks)`."""

from collections.abc import Iterable, Iterator
from typing import Any

import datasets
import jax
import numpy as np
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta
from mteb.types import PromptType

from evals.mteb.files import MODALITIES, model_meta
from gve_jax import GVE
from gve_jax.errors import UserError


class GVEEncoder(AbsEncoder):
    """Embeds MTEB's texts, images, videos and their mixtures.

    Queries carry MTEB's instruction for the task in the system turn; documents carry none, as in
    GVE's training. This library reads videos and images and samples them as the model is
    configured; MTEB does not read them, so torchcodec is not needed.

    Args:
      model: from `GVE.from_pretrained`.
      name: `organisation/model`, for MTEB's result files.
      adapted_from: MTEB's name of the base model.
    """

    def __init__(self, model: GVE, name: str, adapted_from: str | None = None):
        if name.count("/") != 1 or not all(name.split("/")):
            raise UserError(f"MTEB's name of a model must be organisation/model, not {name!r}")
        self.model = model
        leaves = jax.tree.leaves(model.params)
        known = {
            "n_parameters": sum(leaf.size for leaf in leaves),
            "n_embedding_parameters": model.config.text.vocab_size * model.config.text.hidden_size,
            "memory_usage_mb": sum(leaf.nbytes for leaf in leaves) / 2**20,
            "embed_dim": model.embedding_dim,
            "max_tokens": model.preprocess.spec.max_length,
            "adapted_from": adapted_from,
        }
        meta = model_meta(name, model.fingerprint) | known
        del meta["is_cross_encoder"]  # a deprecated argument of ModelMeta, although it writes it
        self.mteb_model_meta = ModelMeta(**meta)

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

        Some MTEB corpora contain empty texts. They are embedded as MTEB's own GVE embeds them: as
        the chat template around nothing.
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
    """The items of an MTEB data loader, with media as encoded in its dataset.

    Reads the dataset directly: the loader's rows contain decoded videos.

    Raises:
      UserError: a row without a medium in a dataset that has no texts.
    """
    dataset = inputs.dataset
    for name, feature in dataset.features.items():
        if isinstance(feature, datasets.Image | datasets.Video):
            dataset = dataset.cast_column(name, type(feature)(decode=False))
    for index, row in enumerate(dataset):
        item = {key: _medium(row[key]) for key in MODALITIES if _has_content(row.get(key))}
        if not item and "text" not in row:
            raise UserError(f"row {index} of MTEB's dataset, id {row.get('id')!r}, has no medium")
        if row.get("fps"):
            item["fps"] = row["fps"]
        yield item


def _has_content(value) -> bool:
    if isinstance(value, dict):
        return bool(value.get("bytes") or value.get("path"))
    return bool(value)


def _medium(value):
    """Bytes if the dataset contains them, else the path; texts unchanged."""
    if isinstance(value, dict):
        return value.get("bytes") or value["path"]
    return value
