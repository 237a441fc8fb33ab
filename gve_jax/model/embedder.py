"""The General Video Embedder: one batch of texts, images, videos and mixtures -> unit vectors."""

import jax.numpy as jnp
from flax import nnx, struct
from jaxtyping import Array, Bool, Float, Int, UInt8

from gve_jax.model import lora
from gve_jax.model.attention import check_kernel, target_platform
from gve_jax.model.config import ModelConfig
from gve_jax.model.language import LanguageModel
from gve_jax.model.layers import by_rows, permute, unit_rows
from gve_jax.model.vision import VisionTower


@struct.dataclass
class Batch:
    """B items of one static shape. Everything data-dependent was computed on the host.

    F frame pairs an item (0 for text alone), P patch slots a frame pair, S window slots a frame
    pair, V = F * P / 4 merged visual tokens an item. Absent entries are -1 in index arrays.
    """

    tokens: Int[Array, "B L"]  # right-padded; visual placeholders hold the pad id of their kind
    length: Int[Array, " B"]  # tokens of each row; the last of them is pooled
    positions: Int[Array, "3 B L"]  # M-RoPE: time, row, column
    patches: UInt8[Array, "B F P C"]
    patch_mask: Bool[Array, "B F P"]
    patch_coords: Int[Array, "B F P 2"]
    window_slots: Int[Array, "B F S"]  # patch of each window slot
    window_inverse: Int[Array, "B F P"]  # window slot of each patch
    visual_slots: Int[Array, "B L"]  # merged visual token that replaces a token's embedding
    visual_inverse: Int[Array, "B V"]  # token that a merged visual token replaces


@struct.dataclass
class Frames:
    """G frame pairs of any items, for the tower alone; fields as in `Batch`."""

    patches: UInt8[Array, "G P C"]
    patch_mask: Bool[Array, "G P"]
    patch_coords: Int[Array, "G P 2"]
    window_slots: Int[Array, "G S"]
    window_inverse: Int[Array, "G P"]


@struct.dataclass
class Packed:
    """B rows of several items each, for the decoder alone.

    What the items of a row start with in common stands once, at its start, as segment 0; the rest
    of each item follows as a segment of its own, at positions that go on from there. -1 is padding.
    """

    tokens: Int[Array, "B L"]
    positions: Int[Array, "3 B L"]
    segments: Int[Array, "B L"]
    places: Int[Array, "B I"]  # last token of each item; 0 where a row has fewer
    visual: Float[Array, "B L D"] | None  # merged visual tokens where they stand; None: texts alone
    visual_mask: Bool[Array, "B L"] | None


class Embedder(nnx.Module):
    """Qwen2.5-VL, pooled at the last token (`<|endoftext|>`), unit length, float32.

    Args:
      cfg: the shapes.
      rngs: needs a `params` stream.

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
        """The last hidden state of each row, float32, not normalised."""
        places = (batch.length - 1)[:, None]
        x = self.language.pooled(self._placed(batch), batch.positions, places)
        return x[:, 0].astype(jnp.float32)

    def hidden(self, batch: Batch) -> Float[Array, "B L D"]:
        """Hidden states after the final norm, padding included."""
        return self.language(self._placed(batch), batch.positions)

    def packed(self, rows: Packed) -> Float[Array, "B I D"]:
        """`pooled` of the items of packed rows."""
        x = self._embedded(rows.tokens)
        if rows.visual is not None:
            x = jnp.where(rows.visual_mask[..., None], rows.visual.astype(x.dtype), x)
        x = self.language.pooled(x, rows.positions, rows.places, rows.segments)
        return x.astype(jnp.float32)

    def _embedded(self, tokens):
        return by_rows(self.language.embed_tokens[...][tokens].astype(jnp.dtype(self.cfg.dtype)))

    def _placed(self, batch: Batch) -> Float[Array, "B L D"]:
        """Token vectors, with the merged visual tokens where they belong."""
        x = self._embedded(batch.tokens)
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
            placed = permute(merged, batch.visual_slots, batch.visual_inverse)
            x = jnp.where((batch.visual_slots >= 0)[..., None], placed, x)
        return x


def init_params(cfg: ModelConfig, seed: int):
    """(graph, params): the static graph of an `Embedder` and its random parameters, as a nested
    dict of arrays. Call it under `jax.jit` with `out_shardings` for a large model."""
    graph, state = nnx.split(Embedder(cfg, rngs=nnx.Rngs(params=seed)))
    return graph, nnx.to_pure_dict(state)


def make_embed(cfg: ModelConfig, normalize: bool = True):
    """The encoder as a pure function `embed(params, batch, dropout_keys=None) -> float32 [B, D]`.

    Rows have unit length unless `normalize` is false.

    With random keys [B] the adapters of `cfg.lora` drop inputs, as in training; an item's key says
    which. Without them they do not.

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
    """The encoder in two pure functions, for items packed side by side: `tower(params, frames)`
    gives merged visual tokens [G, M, D] in window order, `decode(params, packed)` hidden states
    float32 [B, I, D], not normalised.

    Raises:
      UserError: `cfg.attention` cannot run on this machine.
    """
    build = _builder(cfg)

    def tower(params, frames: Frames) -> Float[Array, "G M D"]:
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
    """Parameters -> the module that holds them; UserError when its kernel cannot run here."""
    heads = (cfg.vision.hidden_size // cfg.vision.num_heads, cfg.text.head_dim)
    check_kernel(cfg.attention, cfg.dtype, heads, target_platform())
    graph, _ = abstract_state(cfg)

    def build(params) -> Embedder:
        _, state = abstract_state(cfg)
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graph, state)

    return build


def abstract_state(cfg: ModelConfig):
    """(graph, state) of an `Embedder` with shapes only: no memory is allocated."""
    return nnx.split(nnx.eval_shape(lambda: Embedder(cfg, rngs=nnx.Rngs(params=0))))
