"""Differences between the two encoders, part by part and end to end."""

import dataclasses
import gc
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from evals.parity.reference import Example, Reference, load_gve, make_example, write_checkpoint
from gve_jax.gve import GVE
from gve_jax.inputs.batch import Bucket, collate
from gve_jax.media.item import Item
from gve_jax.model import rope
from gve_jax.model.batch import Batch
from gve_jax.model.embedder import abstract_state
from gve_jax.model.vision import interpolate_positions, normalise

FLOAT32, BFLOAT16 = "float32", "bfloat16"


@dataclasses.dataclass(frozen=True)
class Line:
    """One comparison: `value` must be at most (or, for a cosine, at least) `limit`."""

    size: str
    part: str
    dtype: str
    measure: str
    value: float
    limit: float | None  # None: reported without a limit

    @property
    def passed(self) -> bool:
        if self.limit is None:
            return True
        cosine = self.measure == "cosine"
        return self.value >= self.limit if cosine else self.value <= self.limit


def draw_items(token: int = 28, seed: int = 0) -> list[Item]:
    """Items of all kinds: grids that are not multiples of the window of 8 x 8 patches, a video with
    an image, text alone; sides are multiples of a merged `token`, so that nothing is resized."""
    rng = np.random.default_rng(seed)

    def pixels(*frames, rows, columns):
        return rng.integers(0, 256, (*frames, rows * token, columns * token, 3)).astype(np.uint8)

    video, short = pixels(6, rows=5, columns=7), pixels(4, rows=4, columns=4)
    return [
        Item(text="a wheel", video=video, fps=2.4, image=pixels(rows=2, columns=3)),
        Item(text="then it rains", instruction="Find the clip.", video=short, fps=2),
        Item(text="what is left of it?", image=pixels(rows=9, columns=2)),
        Item(text="a longer text about nothing in particular, read by a byte at a time"),
    ]


def compare(size: str, folder: Path) -> Iterator[Line]:
    """All lines of one size; writes its checkpoint to `folder`."""
    source = folder / size
    write_checkpoint(source, size)
    model = load_gve(source, size)
    spec = dataclasses.replace(model.preprocess.spec, num_frames=6)
    items = [
        dataclasses.replace(i, num_frames=len(i.video) if i.video is not None else None)
        for i in draw_items(spec.patch_size * spec.merge)
    ]
    examples = [make_example(item, model) for item in items]
    reference = Reference(source)
    for part, found, wanted in _parts(model, spec, examples[0], reference):
        yield Line(size, part, FLOAT32, "relative", relative(found, wanted), 1e-5)

    hidden = _hidden(model, spec, examples)
    wanted = reference.hidden(examples).numpy()
    worst = max(
        relative(hidden[i, :n], wanted[i, :n])
        for i, n in enumerate(len(e.row.tokens) for e in examples)
    )
    yield Line(size, "hidden states, one padded batch", FLOAT32, "relative", worst, 1e-4)
    wanted = np.concatenate([reference.embed([e]) for e in examples])
    yield _cosines(size, "vectors, `encode`", FLOAT32, model.encode(items), wanted, 0.999999)

    hf518 = load_gve(source, size, mrope="hf518")
    label = "vectors, transformers' positions (`hf518`)"
    theirs = reference.embed(examples, own_positions=True)
    yield _cosines(size, label, FLOAT32, hf518.encode(items), theirs, 0.999999)
    for layout in ("4.49", "5"):
        saved = folder / f"{size}-{layout}"
        model.save_pretrained(saved, format="hf", layout=layout)
        again = Reference(saved).embed(examples)
        label = f"vectors, saved by gve_jax in layout {layout}, loaded by transformers"
        yield _cosines(size, label, FLOAT32, again, wanted, 0.999999)
    del model, hf518, reference
    gc.collect()

    half = load_gve(source, size, dtype=BFLOAT16).encode(items)
    yield _cosines(size, "vectors, against transformers in float32", BFLOAT16, half, wanted, 0.999)
    theirs = np.concatenate([Reference(source, BFLOAT16).embed([e]) for e in examples])
    yield _cosines(size, "transformers', against its float32", BFLOAT16, theirs, wanted, None)


def relative(found, wanted) -> float:
    """The largest difference over the largest number."""
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def _cosines(size, part, dtype, found, wanted, limit) -> Line:
    return Line(size, part, dtype, "cosine", float(np.sum(found * wanted, axis=-1).min()), limit)


def _modules(model: GVE):
    graph, state = abstract_state(model.config)
    nnx.replace_by_pure_dict(state, model.params)
    return nnx.merge(graph, state)


def _layer(stacked, index: int):
    graph, state = nnx.split(stacked)
    return nnx.merge(graph, jax.tree.map(lambda leaf: leaf[index], state))


def _bucket(examples: list[Example]) -> Bucket:
    layouts = [layout for e in examples for layout in e.row.layouts]
    return Bucket(
        pairs=max(len(e.row.patches) for e in examples) + 1,
        patches=max(len(layout.coords) for layout in layouts) + 8,
        windows=max(layout.windows for layout in layouts) + 1,
        length=max(len(e.row.tokens) for e in examples) + 7,
    )


def _hidden(model: GVE, spec, examples: list[Example]) -> np.ndarray:
    """[B, L, D] of one batch, padded in each dimension."""
    batch = Batch(**collate([e.row for e in examples], _bucket(examples), spec))
    return np.asarray(_modules(model).hidden(batch))


def _parts(model: GVE, spec, example: Example, reference: Reference):
    """(name, ours, theirs) of each part, with the reference's input for both."""
    recorded = _record(reference, example)
    ours, cfg = _modules(model), model.config
    tower, decoder = ours.visual, ours.language
    # The video alone, as in the reference: its frame pairs have equal sizes.
    pairs, patches = example.video_grid[0], example.video_grid[1] * example.video_grid[2]
    video = dataclasses.replace(
        example.row,
        patches=example.row.patches[:pairs],
        layouts=example.row.layouts[:pairs],
        visual_tokens=example.row.visual_tokens[: pairs * patches // 4],
    )
    windows = example.row.layouts[0].windows
    bucket = Bucket(pairs, patches, windows, len(example.row.tokens))
    batch = Batch(**collate([video], bucket, spec))

    flat = batch.patches[0].reshape(pairs * patches, -1)
    embedded = tower.patch_embed(normalise(jnp.asarray(flat), cfg.vision))
    order = _raster_to_window(example.row.layouts[0].merged, pairs, patches)
    yield "patch embedding", embedded, recorded["patch_embed"][1][order]

    coords, mask = jnp.asarray(batch.patch_coords[0]), jnp.asarray(batch.patch_mask[0])
    if tower.pos_embed is not None:
        learned = interpolate_positions(tower.pos_embed[...], coords, mask)
        first = embedded + learned.reshape(embedded.shape)
        yield "with learned positions", first, recorded["blocks.0"][0]
    size = cfg.vision.hidden_size // cfg.vision.num_heads
    cos_sin = rope.vision_cos_sin(coords, size, cfg.vision.rope_theta)
    slots = None
    if cfg.vision.has_windows:
        slots = (batch.window_slots[0], batch.window_inverse[0], cfg.vision.window_side**2)
    for index in range(cfg.vision.depth):
        full = index in cfg.vision.fullatt_block_indexes
        before, after = recorded[f"blocks.{index}"]
        x = jnp.asarray(before).reshape(pairs, patches, -1)
        x = _layer(tower.blocks, index)(x, cos_sin, mask, slots, jnp.asarray(full))
        kind = "full" if full else "windowed"
        yield f"tower block, {kind}", np.asarray(x).reshape(after.shape), after
    before, after = recorded["merger"]
    merged = tower.merger(jnp.asarray(before).reshape(pairs, patches, -1))
    yield "merger", np.asarray(merged).reshape(after.shape), after
    for index in range(len(cfg.vision.deepstack)):
        before, after = recorded[f"deepstack.{index}"]
        x = jnp.asarray(before).reshape(pairs, patches, -1)
        merged = _layer(tower.deepstack, index)(x)
        yield f"deepstack merger {index}", np.asarray(merged).reshape(after.shape), after

    positions = jnp.asarray(example.row.positions)[None]
    text = cfg.text
    cos_sin = decoder._cos_sin(positions)
    for index in range(text.num_hidden_layers):
        before, after = recorded[f"layers.{index}"]
        found = _layer(decoder.layers, index)(jnp.asarray(before), cos_sin)
        yield f"decoder layer {index}", found, after
    before, after = recorded["norm"]
    yield "final norm", decoder.norm(jnp.asarray(before)), after


def _raster_to_window(merged: np.ndarray, pairs: int, patches: int) -> np.ndarray:
    """Index of the reference's patch (raster order of 2 x 2 blocks) for each of ours, all pairs."""
    inverse = np.argsort(merged)  # ours -> theirs, in merged tokens
    one = (inverse[:, None] * 4 + np.arange(4)).reshape(-1)
    return (np.arange(pairs)[:, None] * patches + one).reshape(-1)


def _record(reference: Reference, example: Example) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(input, output) of each module of the reference, from one run of one item's video."""
    recorded, handles = {}, []
    tower, decoder = reference.core.visual, reference.core.language_model
    modules = {"patch_embed": tower.patch_embed, "merger": tower.merger, "norm": decoder.norm}
    modules |= {f"blocks.{i}": block for i, block in enumerate(tower.blocks)}
    deepstack = getattr(tower, "deepstack_merger_list", ())
    modules |= {f"deepstack.{i}": merger for i, merger in enumerate(deepstack)}
    modules |= {f"layers.{i}": layer for i, layer in enumerate(decoder.layers)}

    def hook(name):
        def keep(module, args, kwargs, output):
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            # The tower runs once per kind of medium; the video's run is the larger one.
            if name not in recorded or before.shape[0] >= recorded[name][0].shape[0]:
                recorded[name] = (before.float().numpy().copy(), after.float().numpy().copy())

        return keep

    for name, module in modules.items():
        handles.append(module.register_forward_hook(hook(name), with_kwargs=True))
    reference.hidden([example])
    for handle in handles:
        handle.remove()
    return recorded
