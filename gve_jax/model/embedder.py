"""The General Video Embedder: maps texts, images, videos and mixtures to unit vectors."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from gve_jax.model import lora
from gve_jax.model.attention import check_kernel, target_platform
from gve_jax.model.batch import Batch, Frames, Packed
from gve_jax.model.config import ModelConfig
from gve_jax.model.language import LanguageModel
from gve_jax.model.layers import permute, shard_batch, unit_rows
from gve_jax.model.vision import VisionTower


class Embedder(nnx.Module):
    """A Qwen-VL tower and decoder, pooled at the last token of each row, unit length, float32.

    Args:
      cfg: sizes, dtypes and kernels.
      rngs: has a `params` stream.

    Raises:
      UserError: `cfg.lora.targets` matches no projection.
    """

    def __init__(self, cfg: ModelConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        param_dtype, dtype = jnp.dtype(cfg.param_dtype), jnp.dtype(cfg.dtype)
        kernel = cfg.attention
        self.visual = VisionTower(
            cfg.vision,
            dtype=dtype,
            param_dtype=param_dtype,
            remat=cfg.remat_vision,
            kernel=kernel,
            rngs=rngs,
        )
        self.language = LanguageModel(
            cfg.text, param_dtype=param_dtype, remat=cfg.remat_text, kernel=kernel, rngs=rngs
        )
        if cfg.lora is not None:
            lora.attach(self, cfg.lora, rngs)

    def __call__(self, batch: Batch) -> Float[Array, "B D"]:
        return unit_rows(self.pooled(batch))

    def pooled(self, batch: Batch) -> Float[Array, "B D"]:
        """Last hidden state of each row, float32, not normalized."""
        x, deepstack = self._token_vectors(batch)
        last_token = (batch.length - 1)[:, None]
        x = self.language.pooled(x, batch.positions, last_token, deepstack=deepstack)
        return x[:, 0].astype(jnp.float32)

    def hidden(self, batch: Batch) -> Float[Array, "B L D"]:
        """Hidden states after the final norm, padding included."""
        x, deepstack = self._token_vectors(batch)
        return self.language(x, batch.positions, deepstack)

    def packed(self, rows: Packed) -> Float[Array, "B I D"]:
        """`pooled` of the items of packed rows."""
        x, deepstack = self._embed_tokens(rows.tokens), None
        if rows.visual is not None:
            x, deepstack = self._replace(x, rows.visual_mask, rows.visual.astype(x.dtype))
        x = self.language.pooled(x, rows.positions, rows.last_token, rows.segments, deepstack)
        return x.astype(jnp.float32)

    def _embed_tokens(self, tokens):
        return shard_batch(
            self.language.embed_tokens[...][tokens].astype(jnp.dtype(self.cfg.dtype))
        )

    def _token_vectors(self, batch: Batch):
        """Token embeddings [B, L, D], with those of visual tokens replaced by merged tokens, and
        the deepstack features [taps, B, L, D] or None."""
        x, deepstack = self._embed_tokens(batch.tokens), None
        items, pairs, patches, _ = batch.patches.shape
        if pairs:
            merged = self.visual(
                *(
                    a.reshape(items * pairs, *a.shape[2:])
                    for a in (
                        batch.patches,
                        batch.patch_mask,
                        batch.patch_coords,
                        batch.window_slots,
                        batch.window_inverse,
                    )
                )
            )
            merged = merged.reshape(items, -1, merged.shape[-1])
            visual = permute(merged, batch.visual_slots, batch.visual_inverse)
            x, deepstack = self._replace(x, batch.visual_slots >= 0, visual)
        return x, deepstack

    def _replace(self, x, is_visual, visual):
        """(token vectors, deepstack features) with `visual` [B, L, (1 + taps) * D] in place of the
        embeddings where `is_visual` [B, L]; elsewhere it is zero."""
        taps = len(self.cfg.vision.deepstack)
        merged, *deepstack = jnp.split(visual, 1 + taps, axis=-1) if taps else (visual,)
        x = jnp.where(is_visual[..., None], merged, x)
        return x, jnp.stack(deepstack) if taps else None


def init_params(cfg: ModelConfig, seed: int):
    """Returns (graph, params): the static graph of an `Embedder`, and random parameters as a nested
    dict of arrays. For a large model, call it under `jax.jit` with `out_shardings`."""
    graph, state = nnx.split(Embedder(cfg, rngs=nnx.Rngs(params=seed)))
    return graph, nnx.to_pure_dict(state)


def make_embed(cfg: ModelConfig, normalize: bool = True):
    """Returns a pure function `embed(params, batch, dropout_keys=None) -> float32 [B, D]`.

    Rows have unit length unless `normalize` is false. With random keys [B], the adapters of
    `cfg.lora` drop inputs as in training; an item's key decides which.

    Raises:
      UserError: `cfg.attention` cannot run on this machine.
    """
    build = _builder(cfg)

    def embed(params, batch: Batch, dropout_keys=None) -> Float[Array, "B D"]:
        model = build(params)
        if dropout_keys is not None:
            lora.enable_dropout(model, dropout_keys)
        return model(batch) if normalize else model.pooled(batch)

    return embed


def make_encode(cfg: ModelConfig):
    """Returns two pure functions for packed items: `tower(params, frames)` returns merged visual
    tokens [G, V, D] in window order, `decode(params, packed)` hidden states float32 [B, I, D], not
    normalized.

    Raises:
      UserError: `cfg.attention` cannot run on this machine.
    """
    build = _builder(cfg)

    def tower(params, frames: Frames) -> Float[Array, "G V D"]:
        return build(params).visual(
            frames.patches,
            frames.patch_mask,
            frames.patch_coords,
            frames.window_slots,
            frames.window_inverse,
        )

    def decode(params, rows: Packed) -> Float[Array, "B I D"]:
        return build(params).packed(rows)

    return tower, decode


def _builder(cfg: ModelConfig):
    """Returns a function from parameters to an `Embedder`; UserError if its kernel cannot run."""
    heads = (cfg.vision.hidden_size // cfg.vision.num_heads, cfg.text.head_dim)
    check_kernel(cfg.attention, cfg.dtype, heads, target_platform())
    graph, _ = abstract_state(cfg)

    def build(params) -> Embedder:
        lora.refuse_magnitudes(params)
        _, state = abstract_state(cfg)
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graph, state)

    return build


def abstract_state(cfg: ModelConfig):
    """Returns (graph, state) of an `Embedder` with abstract arrays: allocates no memory."""
    return nnx.split(nnx.eval_shape(lambda: Embedder(cfg, rngs=nnx.Rngs(params=0))))
