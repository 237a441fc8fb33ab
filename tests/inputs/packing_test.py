"""Packing: every item once, in declared shapes, taken apart again to what went in."""

import dataclasses
import functools

import numpy as np
import pytest

from gve_jax.inputs.batch import Buckets, default_buckets
from gve_jax.inputs.layout import window_layout
from gve_jax.inputs.packing import (
    BATCH,
    ROW,
    Plan,
    batch_sizes,
    collate_decode,
    collate_tower,
    common_start,
    declared_shapes,
    make_plan,
    most_items,
)
from gve_jax.inputs.preprocess import InputSpec, Row

SPEC = InputSpec(max_length=2048)
BUCKETS = default_buckets(SPEC)
FLAT = dataclasses.replace(SPEC, window_side=0)  # a tower without windows
START = np.arange(900, 914)  # what all items begin with
WIDTH = 6


def make_rows(count: int, seed: int = 0, start=START, spec=SPEC) -> dict[int, Row]:
    """Texts, images and videos of random sizes, under indices that are no ranks."""
    rng = np.random.default_rng(seed)
    rows = {}
    for n in range(count):
        layouts, tokens = [], list(start)
        places: list[int] = []
        if n % 3:
            layout = window_layout(*(2 * rng.integers(4, 12, 2)), spec.window_side, spec.merge)
            layouts = [layout] * int(rng.choice([1, 4]))
            size = len(layouts) * len(layout.merged)
            places = list(range(len(tokens), len(tokens) + size))
            tokens += [7] * size
        tokens += rng.integers(10, 800, int(rng.integers(1, 200))).tolist()
        patches = [
            rng.integers(0, 256, (len(layout.coords), 1176)).astype(np.uint8) for layout in layouts
        ]
        positions = np.stack([np.arange(len(tokens))] * 3).astype(np.int32)
        positions[:, len(start) :] += rng.integers(0, 5, (3, len(tokens) - len(start)))
        rows[10 * n + 3] = Row(
            np.array(tokens, np.int32), positions, patches, layouts, np.array(places, np.int32)
        )
    return rows


@pytest.mark.parametrize("unit", [1, 8])
@pytest.mark.parametrize("share", [True, False])
def test_every_item_and_frame_is_planned_once(unit, share):
    rows = make_rows(70)
    plan = make_plan(rows, BUCKETS, 16, unit, share)
    items = [index for batch in plan.decoder for row in batch.rows for index in row]
    assert sorted(items) == sorted(rows)
    frames = [frame for batch in plan.tower for frame in batch.frames]
    assert sorted(frames) == [(i, p) for i in sorted(rows) for p in range(len(rows[i].patches))]
    for batch in plan.decoder:
        assert batch.shared == (len(START) if share else 0)
        assert len(batch.rows) <= batch.count and batch.count % unit == 0
        for row in batch.rows:
            own = sum(len(rows[index].tokens) - batch.shared for index in row)
            assert batch.shared + own <= batch.length and 0 < len(row) <= most_items(batch.length)
    for batch in plan.tower:
        assert len(batch.frames) <= batch.count and batch.count % unit == 0
        for index, pair in batch.frames:
            assert rows[index].layouts[pair].fits(batch.patches, batch.windows)
    # The dearest batches come first.
    assert [b.length for b in plan.decoder] == sorted(
        (b.length for b in plan.decoder), reverse=True
    )
    assert [b.patches for b in plan.tower] == sorted((b.patches for b in plan.tower), reverse=True)


@pytest.mark.parametrize("share", [True, False])
def test_packed_rows_taken_apart_are_the_items(share):
    rows = make_rows(40, seed=1)
    rng = np.random.default_rng(2)
    visuals = {
        index: rng.standard_normal((len(row.visual_tokens), WIDTH))
        for index, row in rows.items()
        if row.patches
    }
    plan = make_plan(rows, BUCKETS, 4, 1, share)
    seen = 0
    for batch in plan.decoder:
        arrays = collate_decode(batch, rows, visuals, WIDTH, np.dtype(np.float32))
        assert arrays["tokens"].shape == (batch.count, batch.length)
        for b, items in enumerate(batch.rows):
            for number, index in enumerate(items):
                own = arrays["segments"][b] == number + 1
                mine = own | (arrays["segments"][b] == 0)
                np.testing.assert_array_equal(arrays["tokens"][b, mine], rows[index].tokens)
                np.testing.assert_array_equal(
                    arrays["positions"][b][:, mine], rows[index].positions
                )
                assert arrays["last_token"][b, number] == np.flatnonzero(own)[-1]
                if index in visuals:
                    where = np.flatnonzero(mine)[rows[index].visual_tokens]
                    assert arrays["visual_mask"][b, where].all()
                    np.testing.assert_allclose(
                        arrays["visual"][b, where], visuals[index], atol=1e-6
                    )
                seen += 1
            total = sum(len(rows[i].visual_tokens) for i in items)
            if batch.visual:
                assert arrays["visual_mask"][b].sum() == total
            else:
                assert arrays["visual"] is None and total == 0
        for b in range(len(batch.rows), batch.count):  # padding is nobody's
            assert (arrays["segments"][b] == -1).all()
    assert seen == len(rows)


@pytest.mark.parametrize("spec", [SPEC, FLAT], ids=["windows", "none"])
def test_tower_batches_hold_the_frames_they_name(spec):
    rows = make_rows(20, seed=3, spec=spec)
    for batch in make_plan(rows, default_buckets(spec), 4, 1).tower:
        arrays = collate_tower(batch, rows, spec)
        assert arrays["patches"].shape == (batch.count, batch.patches, 1176)
        for g, (index, pair) in enumerate(batch.frames):
            mask = arrays["patch_mask"][g]
            np.testing.assert_array_equal(arrays["patches"][g, mask], rows[index].patches[pair])
            coords = rows[index].layouts[pair].coords
            np.testing.assert_array_equal(arrays["patch_coords"][g, mask], coords)
        assert not arrays["patch_mask"][len(batch.frames) :].any()


def test_shapes_are_among_those_declared_and_few():
    declared = declared_shapes(BUCKETS, 16, 1)
    seen = set()
    for seed in range(30):
        rows = make_rows(1 + 7 * seed, seed)
        seen |= make_plan(rows, BUCKETS, 16, 1).shapes
    assert seen <= declared
    lengths, frames = len(BUCKETS.lengths), len(BUCKETS.frame_sizes)
    assert len(declared) <= 6 * 2 * lengths + 14 * frames
    assert len(make_plan(make_rows(300, 9), BUCKETS, 16, 1).shapes) < 40


@pytest.mark.parametrize("unit", [1, 8])
def test_frames_without_windows_are_merged_at_least_cost(unit):
    """Beside the least cost of all divisions into batches of declared shapes."""
    buckets, most = default_buckets(FLAT), 4 * ROW
    for seed in range(6):
        rows = make_rows(12, seed, spec=FLAT)
        batches = make_plan(rows, buckets, 4, unit).tower
        frames = [(i, p) for i in sorted(rows) for p in range(len(rows[i].patches))]
        assert sorted(frame for batch in batches for frame in batch.frames) == frames
        declared = declared_shapes(buckets, 4, unit)
        assert {batch.shape for batch in batches} <= declared
        full = [b for b in batches if b.count == max(most // b.patches // unit, 1) * unit]
        left = [b for b in batches if b not in full]
        sizes = sorted((len(rows[i].patches[p]) for b in left for i, p in b.frames), reverse=True)
        counts = {}
        for kind, count, *rest in declared:
            if kind == "tower":
                counts.setdefault(rest[0], set()).add(count)

        @functools.cache
        def least(start, sizes=tuple(sizes), counts=counts):
            if start == len(sizes):
                return 0
            patches = min(size for size in counts if size >= sizes[start])
            return min(
                count * patches + BATCH + least(min(start + count, len(sizes)))
                for count in counts[patches]
            )

        assert sum(b.count * b.patches + BATCH for b in left) <= least(0)


def test_merging_frames_saves_programs():
    rows = make_rows(100, seed=9, spec=FLAT)
    flat = make_plan(rows, default_buckets(FLAT), 8, 1)
    windowed = make_plan(make_rows(100, seed=9), BUCKETS, 8, 1)
    assert len({b.shape for b in flat.tower}) < len({b.shape for b in windowed.tower})
    assert 1 - flat.used(rows)["patches"] / flat.slots["patches"] < 0.15


def test_padding_is_small_and_counted():
    rows = make_rows(400, seed=4)
    plan = make_plan(rows, BUCKETS, 16, 1)
    slots, used = plan.slots, plan.used(rows)
    assert slots["tokens"] == sum(np.prod(b.shape[1:3]) for b in plan.decoder)
    assert used["patches"] == sum(len(p) for row in rows.values() for p in row.patches)
    own = sum(len(row.tokens) - len(START) for row in rows.values())
    starts = sum(len(batch.rows) for batch in plan.decoder) * len(START)
    assert used["tokens"] == own + starts
    assert 1 - used["tokens"] / slots["tokens"] < 0.05
    assert 1 - used["patches"] / slots["patches"] < 0.2


def test_common_start_by_brute_force():
    rng = np.random.default_rng(5)
    for _ in range(200):
        rows = [
            Row(
                rng.integers(0, 2, rng.integers(1, 8)),
                None,
                [],
                [],
                np.array([rng.integers(0, 6)]) if rng.random() < 0.3 else np.empty(0, int),
            )
            for _ in range(rng.integers(1, 5))
        ]
        most = 0
        for n in range(1, 8):
            alike = len({tuple(row.tokens[:n]) for row in rows}) == 1
            whole = all(len(row.tokens) > n for row in rows)
            if alike and whole and all((row.visual_tokens >= n).all() for row in rows):
                most = n
        assert common_start(rows) == most
    assert common_start([]) == 0


def test_items_with_nothing_in_common_share_nothing():
    rows = make_rows(6) | {999: make_rows(1, start=np.array([5]))[3]}
    assert {batch.shared for batch in make_plan(rows, BUCKETS, 8, 1).decoder} == {0}


def test_an_empty_plan():
    assert make_plan({}, BUCKETS, 8, 1) == Plan([], [])


def test_a_frame_larger_than_declared_is_refused_before_it_is_planned():
    small = Buckets(((0, 64), (1, 64)), patches=16, windows=1)
    with pytest.raises(ValueError, match="a frame of 64 patches exceeds every declared"):
        small.fit([Row(np.zeros(4), None, [None], [window_layout(8, 8, 8, 2)], np.empty(0))])


@pytest.mark.parametrize("size, unit", [(32, 1), (32, 8), (24, 8), (8, 8), (1, 1)])
def test_batches_are_of_few_sizes_and_little_padding(size, unit):
    seen = set()
    for count in range(1, 100):
        sizes = batch_sizes(count, size, unit)
        seen |= set(sizes)
        assert sum(sizes) >= count > sum(sizes[:-1])
        assert all(s <= size and s % unit == 0 for s in sizes)
        assert sum(sizes) - count < unit or (sum(sizes) - count) <= sizes[-1] / 4 + unit - 1
    assert len(seen) <= 2 + np.log2(size // unit)
    assert batch_sizes(0, size, unit) == []


def test_one_short_text_gets_a_short_row():
    row = {0: Row(np.arange(30), np.zeros((3, 30), int), [], [], np.empty(0, int))}
    (batch,) = make_plan(row, BUCKETS, 32, 1).decoder
    assert (batch.count, batch.length) == (1, 64)
