"""Encoding a mixed set, compared with transformers + torch: same weights and vectors, float32.

64 items: texts of 8 to 300 letters, images, videos of 8 frames, in random order. GVE is timed from
the arrays, preprocessing included; transformers from finished patches, the model alone, in
right-padded batches in the given order, sorted by length, and one by one; the best of the three
counts. Compilation is reported separately: it is paid once per shape, and JAX can cache it.
"""

from pathlib import Path
from time import perf_counter

import numpy as np

from evals.parity.reference import SIZES, Reference, load_gve, make_example, write_checkpoint
from evals.speed import harness
from evals.speed.items import draw_items
from gve_jax.gve import GVE
from gve_jax.inputs.preprocess import Row


def draw_side(largest: int, token: int = 28):
    """Draws (height, width), up to `largest` merged tokens each, so that nothing is resized."""
    return lambda rng: tuple(token * int(rng.integers(4, largest + 1)) for _ in range(2))


OPTIONS = dict(
    size=("3b", "widths of the model", SIZES),
    layers=(2, "layers of tower and decoder each"),
    items=(64, "items to encode"),
    batch_size=(8, "items of a batch"),
    repeats=(3, "runs of each variant"),
)


def measure(folder: Path, args) -> dict:
    source = folder / "model"
    write_checkpoint(source, args.size, args.layers, args.layers)
    model = load_gve(source, args.size)
    token = model.preprocess.spec.patch_size * model.preprocess.spec.merge
    items = draw_items(args.items, draw_side(14, token), draw_side(9, token))
    examples = [make_example(item, model) for item in items]
    tokens = sum(len(e.row.tokens) for e in examples)
    reference = Reference(source)

    def encode_reference(order, size):
        vectors = np.empty((len(items), model.embedding_dim), np.float32)
        for start in range(0, len(order), size):
            part = order[start : start + size]
            vectors[part] = reference.embed([examples[i] for i in part])
        return vectors

    as_given = list(range(len(items)))
    by_length = sorted(as_given, key=lambda i: -len(examples[i].row.tokens))
    variants = {
        "ours": lambda: model.encode(items, batch_size=args.batch_size),
        "theirs, padded as given": lambda: encode_reference(as_given, args.batch_size),
        "theirs, sorted": lambda: encode_reference(by_length, args.batch_size),
        "theirs, one by one": lambda: encode_reference(as_given, 1),
    }
    start = perf_counter()
    ours = variants["ours"]()
    warm_up = perf_counter() - start
    # Outputs are compared before anything is timed.
    worst = min(float(np.sum(ours * run(), axis=-1).min()) for run in list(variants.values())[1:])
    if worst < 0.999999:
        raise SystemExit(f"the vectors differ: smallest cosine {worst}")
    seconds, medians, ratio = harness.compare_with_best(variants, args.repeats)
    return {
        "tokens": tokens,
        "smallest cosine": worst,
        "seconds": seconds,
        "tokens/s": {name: round(tokens / value, 1) for name, value in medians.items()},
        "ratio to the best of theirs": ratio,
        "first run with compiling, seconds": round(warm_up, 1),
        **padding(dict(enumerate(e.row for e in examples)), model, args.batch_size),
    }


def padding(rows: dict[int, Row], model: GVE, size: int) -> dict[str, float]:
    """Shares of padding and of shared tokens in what `encode` computes, and its compiled shapes."""
    plan = model.plan(rows, size)
    slots, used = plan.slots, plan.used(rows)
    tokens = sum(len(row.tokens) for row in rows.values())
    return {
        "padding of tokens": round(1 - used["tokens"] / slots["tokens"], 3),
        "tokens shared between items": round(1 - used["tokens"] / tokens, 3),
        "padding of patches": round(1 - used["patches"] / max(slots["patches"], 1), 3),
        "compiled shapes": len(plan.shapes),
    }
