"""GradCache: the gradient of the whole batch, dropout included, in the memory of a chunk."""

import dataclasses

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from gve_jax.distributed.sharding import make_mesh, place_batch
from gve_jax.errors import UserError
from gve_jax.inputs.batch import Bucket
from gve_jax.learning.gradcache import check_chunk, merge_chunks, take_chunk
from gve_jax.learning.loss import LossConfig
from gve_jax.learning.optimizer import ADAPTERS
from gve_jax.learning.state import init_state
from gve_jax.learning.step import make_train_step
from gve_jax.model.config import LoraConfig
from tests.learning.step_test import TX
from tests.model.embedder_test import BUCKET, CFG, ROWS, make_batch
from tests.situations import situation

RATES = ((r"^loss/", 1.0), *ADAPTERS)
LOSS = LossConfig(learned_temperature=True, form="all_gather")


def adapted(dropout=0.3):
    lora = LoraConfig(rank=4, alpha=8.0, dropout=dropout, targets=r"_proj$|qkv$")
    return dataclasses.replace(CFG, lora=lora)


def pairs(count=16, visual=True):
    """Texts with a video or a text each and one hard negative; one pair is unreadable."""
    rng = np.random.default_rng(1)
    texts, positives = ROWS[3:], ROWS if visual else ROWS[3:]

    def side(rows, bucket):
        batch = make_batch([rows[n % len(rows)] for n in range(count)], bucket)
        batch.tokens[:] = np.where(
            (batch.tokens > 0) & (batch.visual_slots < 0),
            rng.integers(1, 300, batch.tokens.shape),
            batch.tokens,
        )
        return batch

    text = Bucket(0, 0, 0, 40)
    return {
        "query": side(texts, text),
        "positive": side(positives, BUCKET if visual else text),
        "negatives": [side(texts, text)],
        "valid": np.arange(count) != 3,
        "query_id": np.arange(count, dtype=np.int32),
        "positive_id": np.arange(count, dtype=np.int32),
        "negative_id": np.arange(count, 2 * count, dtype=np.int32)[:, None],
    }


@pytest.fixture(
    scope="module",
    params=[False, pytest.param(True, marks=pytest.mark.slow)],
    ids=["texts", "videos"],
)
def gradients(request):
    cfg, found = adapted(), {}
    for name, axes, chunk in (
        ("whole", {"data": 2, "fsdp": 2, "tensor": 2}, 0),
        ("chunks", {"data": 4, "tensor": 2}, 4),
    ):
        mesh = make_mesh(axes)
        state, frozen = init_state(cfg, TX, mesh, 3, RATES, LOSS)
        # New adapters have b = 0, and then a has no gradient.
        params = jax.tree.map(lambda leaf: leaf + 0.02, state["params"])
        step = make_train_step(cfg, TX, LOSS, mesh, chunk=chunk, seed=5)
        batch = place_batch(pairs(visual=request.param), mesh)
        found[name] = jax.device_get(step.gradients(params, frozen, batch, 7))
        found[name, "next"] = jax.device_get(step.gradients(params, frozen, batch, 8)[1])
    return found


@situation(
    "Training",
    "GradCache with LoRA dropout",
    "the gradients of the whole batch, dropout included",
    since="0.1.0",
)
def test_gradients_are_those_of_the_whole_batch_dropout_included(gradients, request):
    """In chunks and on another mesh."""
    visual = request.node.callspec.params["gradients"]
    (expected, scalars), (found, scalars_too) = gradients["whole"], gradients["chunks"]
    for scalar in scalars:
        assert scalars_too[scalar] == pytest.approx(scalars[scalar], rel=1e-4), scalar
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5 * largest, rtol=1e-3),
        found,
        expected,
    )
    for name, leaf in flatten_dict(found, sep="/").items():
        assert np.abs(leaf).max() > 0 or (name.startswith("visual/") and not visual), name


def test_dropout_follows_the_step(gradients):
    assert abs(gradients["whole"][1]["loss"] - gradients["whole", "next"]["loss"]) > 1e-3


def test_chunks_are_equal_shares_of_every_device_and_come_back_in_order():
    mesh = make_mesh({"data": 4, "tensor": 2})
    x = np.arange(16 * 3).reshape(16, 3)
    placed = place_batch(x, mesh)
    parts = [np.asarray(take_chunk(placed, n, 2, mesh)) for n in range(2)]
    assert parts[0][:, 0].tolist() == [0, 3, 12, 15, 24, 27, 36, 39]  # rows 0, 1, 4, 5, 8, ...
    assert np.array_equal(np.sort(np.concatenate(parts), axis=0), x)
    back = jax.jit(lambda parts: merge_chunks(parts, mesh))(np.stack(parts))
    np.testing.assert_array_equal(back, x)


@pytest.mark.slow
def test_memory_is_that_of_a_chunk():
    cfg, mesh = adapted(), make_mesh({"data": 8})
    state, frozen = init_state(cfg, TX, mesh, 3, RATES, LOSS)
    used = {}
    for size, chunk in ((16, 8), (64, 8)):
        step = make_train_step(cfg, TX, LOSS, mesh, chunk=chunk)
        batch = place_batch(pairs(size, visual=False) | {"negatives": []}, mesh)
        compiled = step.gradients.lower(state["params"], frozen, batch, 0).compile()
        used[size, chunk] = compiled.memory_analysis().temp_size_in_bytes
    # What grows are the vectors of all pairs and their cosines.
    assert used[64, 8] < 1.15 * used[16, 8]


@pytest.mark.parametrize("chunk, size", [(3, 16), (32, 16), (4, 16), (-8, 16)])
def test_a_chunk_that_does_not_fit_is_named(chunk, size):
    with pytest.raises(UserError, match=f"gradcache_chunk {chunk} must divide batch_size {size}"):
        check_chunk(chunk, size, make_mesh({"data": 8}))
