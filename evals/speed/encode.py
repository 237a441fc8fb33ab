"""Encoding a mixed set beside transformers + torch: same weights, same vectors, float32.

64 items: texts of 8 to 300 tokens, images, videos of 8 frames, in random order. Ours is timed from
the arrays, preprocessing included; theirs from finished patches, the model alone. Theirs runs in
right-padded batches in the given order, sorted by length, and one by one; the best of the three
counts. Compiling is stated apart: it is paid once a shape, and kept by JAX's compilation cache.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from evals.parity.reference import SIZES, Reference, make_example, write_checkpoint
from evals.speed.result import in_turns, write_result
from gve_jax.gve import GVE
from gve_jax.inputs.preprocess import Row
from gve_jax.media.item import Item
from gve_jax.storage.filesystem import local_path

FEWEST = 8  # tokens of the shortest text


def draw_items(count: int, seed: int = 0) -> list[Item]:
    """Half texts, a quarter images, a quarter videos; sides in multiples of 28: no resizing."""
    rng = np.random.default_rng(seed)

    def pixels(*shape):
        return rng.integers(0, 256, (*shape, 3)).astype(np.uint8)

    def side(most):
        return 28 * int(rng.integers(4, most + 1))

    items = []
    for i in range(count):
        match i % 4:
            case 0 | 1:
                letters = rng.integers(97, 123, int(rng.integers(FEWEST, 301))).astype(np.uint8)
                items.append(Item(text=bytes(letters).decode()))
            case 2:
                items.append(Item(text="what is it?", image=pixels(side(14), side(14))))
            case 3:
                items.append(Item(text="it moves", video=pixels(8, side(9), side(9)), fps=2.0))
    return [items[i] for i in rng.permutation(count)]


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(prog="python -m evals.speed encode", description=__doc__)
    parser.add_argument("--size", default="3b", choices=SIZES, help="widths of the model")
    parser.add_argument("--layers", type=int, default=2, help="of tower and decoder each")
    parser.add_argument("--items", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=local_path, help="a JSON file to write")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "model"
        write_checkpoint(source, args.size, args.layers, args.layers)
        result = measure(source, args)
    write_result("encode", vars(args), result, args.output)


def measure(source: Path, args) -> dict:
    items = draw_items(args.items)
    model = GVE.from_pretrained(source, dtype="float32")
    examples = [make_example(item, model.preprocess) for item in items]
    tokens = sum(len(e.row.tokens) for e in examples)
    reference = Reference(source)

    def theirs(order, size):
        vectors = np.empty((len(items), model.embedding_dim), np.float32)
        for start in range(0, len(order), size):
            part = order[start : start + size]
            vectors[part] = reference.embed([examples[i] for i in part])
        return vectors

    as_given = list(range(len(items)))
    by_length = sorted(as_given, key=lambda i: -len(examples[i].row.tokens))
    ways = {
        "ours": lambda: model.encode(items, batch_size=args.batch_size),
        "theirs, padded as given": lambda: theirs(as_given, args.batch_size),
        "theirs, sorted": lambda: theirs(by_length, args.batch_size),
        "theirs, one by one": lambda: theirs(as_given, 1),
    }
    began = time.perf_counter()
    first = ways["ours"]()
    warm_up = time.perf_counter() - began
    # Outputs before times.
    worst = min(float(np.sum(first * run(), axis=-1).min()) for run in list(ways.values())[1:])
    if worst < 0.999999:
        raise SystemExit(f"the vectors differ: smallest cosine {worst}")
    seconds = in_turns(ways, args.repeats)
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    best = min(value for name, value in medians.items() if name != "ours")
    return {
        "tokens": tokens,
        "smallest cosine": worst,
        "seconds": {name: sorted(round(v, 3) for v in values) for name, values in seconds.items()},
        "tokens/s": {name: round(tokens / value, 1) for name, value in medians.items()},
        "ratio to the best of theirs": round(best / medians["ours"], 2),
        "first run with compiling, seconds": round(warm_up, 1),
        **padding(dict(enumerate(e.row for e in examples)), model, args.batch_size),
    }


def padding(rows: dict[int, Row], model: GVE, size: int) -> dict[str, float]:
    """What `encode` computes for these rows: shares of padding, of shared tokens, its programs."""
    plan = model.plan(rows, size)
    slots, used = plan.slots, plan.used(rows)
    tokens = sum(len(row.tokens) for row in rows.values())
    return {
        "padding of tokens": round(1 - used["tokens"] / slots["tokens"], 3),
        "tokens shared between items": round(1 - used["tokens"] / tokens, 3),
        "padding of patches": round(1 - used["patches"] / max(slots["patches"], 1), 3),
        "compiled shapes": len(plan.shapes),
    }
