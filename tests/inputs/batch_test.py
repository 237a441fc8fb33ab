"""Rows to padded batches: nothing lost, nothing made up, a bounded number of shapes."""

import itertools

import numpy as np
import pytest

from gve_jax.inputs.batch import Bucket, Buckets, collate, default_buckets, join, need, widen
from gve_jax.inputs.layout import window_layout
from gve_jax.inputs.preprocess import InputSpec, Preprocessor, Row
from gve_jax.media.item import Item
from gve_jax.media.pixels import smart_resize
from tests.media.files import numbered

SPEC = InputSpec(max_length=512)
BUCKETS = Buckets(shapes=[[4, 80], (0, 64), (5, 192), (0, 40), (4, 200)], patches=48, windows=3)


@pytest.fixture(scope="module")
def rows(prompt) -> list[Row]:
    preprocess = Preprocessor(prompt, SPEC)
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (84, 112, 3), np.uint8)  # 3 x 4 tokens
    video = rng.integers(0, 256, (6, 84, 56, 3), np.uint8)  # 3 pairs of 3 x 2 tokens
    return [
        preprocess(Item("red", image, video, fps=2.0)),
        preprocess(Item("a red ring moves")),
        preprocess(Item(video=numbered(8)[:, :, :28], fps=3.0)),
    ]


def test_padding_and_fields(rows):
    bucket = Bucket(pairs=5, patches=56, windows=4, length=128)
    batch = collate(rows, bucket, SPEC)
    shapes = {name: (array.shape, array.dtype.name) for name, array in batch.items()}
    assert shapes == {
        "tokens": ((3, 128), "int32"),
        "length": ((3,), "int32"),
        "positions": ((3, 3, 128), "int32"),
        "patches": ((3, 5, 56, 1176), "uint8"),
        "patch_mask": ((3, 5, 56), "bool"),
        "patch_coords": ((3, 5, 56, 2), "int32"),
        "window_slots": ((3, 5, 4 * 64), "int32"),
        "window_inverse": ((3, 5, 56), "int32"),
        "visual_slots": ((3, 128), "int32"),
        "visual_inverse": ((3, 5 * 14), "int32"),
    }
    for b, row in enumerate(rows):
        count = batch["length"][b]
        assert count == len(row.tokens)
        np.testing.assert_array_equal(batch["tokens"][b, :count], row.tokens)
        np.testing.assert_array_equal(batch["positions"][b, :, :count], row.positions)
        assert not batch["tokens"][b, count:].any() and not batch["positions"][b, :, count:].any()
        assert (batch["visual_slots"][b, count:] == -1).all()
        for f in range(bucket.pairs):
            used = len(row.patches[f]) if f < len(row.patches) else 0
            mask = batch["patch_mask"][b, f]
            assert mask[:used].all() and not mask[used:].any()
            if used:
                np.testing.assert_array_equal(batch["patches"][b, f, :used], row.patches[f])
                coords = batch["patch_coords"][b, f, :used]
                np.testing.assert_array_equal(coords, row.layouts[f].coords)
            assert not batch["patches"][b, f, used:].any()
            assert not batch["patch_coords"][b, f, used:].any()


def test_inverse_maps_are_inverses(rows):
    bucket = Bucket(pairs=5, patches=56, windows=4, length=128)
    batch = collate(rows, bucket, SPEC)
    for b, f in itertools.product(range(3), range(5)):
        slots, inverse = batch["window_slots"][b, f], batch["window_inverse"][b, f]
        mask = batch["patch_mask"][b, f]
        np.testing.assert_array_equal(slots[inverse[mask]], np.flatnonzero(mask))
        assert (inverse[~mask] == -1).all()
        assert (slots >= 0).sum() == mask.sum()
    for b, row in enumerate(rows):
        slots, inverse = batch["visual_slots"][b], batch["visual_inverse"][b]
        filled = np.flatnonzero(slots >= 0)
        assert filled.tolist() == row.visual_tokens.tolist()
        np.testing.assert_array_equal(inverse[slots[filled]], filled)
        assert (inverse >= 0).sum() == len(filled)
        # A merged token stands for four patches that exist.
        mask = batch["patch_mask"][b].reshape(5 * 14, 4)
        np.testing.assert_array_equal(mask.all(-1), inverse >= 0)
        np.testing.assert_array_equal(mask.any(-1), inverse >= 0)


def test_visual_tokens_are_in_raster_order(rows):
    """From a token to its merged patches to their coordinates: rows and columns of M-RoPE."""
    batch = collate(rows, Bucket(pairs=5, patches=56, windows=4, length=128), SPEC)
    coords = batch["patch_coords"].reshape(3, 5 * 14, 4, 2)
    for b, row in enumerate(rows):
        for f in range(len(row.patches)):
            of_pair = [t for t in row.visual_tokens if batch["visual_slots"][b, t] // 14 == f]
            merged = coords[b, batch["visual_slots"][b, of_pair]]
            places = row.positions[1:, of_pair].T - row.positions[1:, of_pair].min(1)
            np.testing.assert_array_equal(merged[:, 0] // 2, places)
            np.testing.assert_array_equal(merged[:, 3] // 2, places)
            assert places.tolist() == sorted(places.tolist())


def test_a_frame_above_the_bucket_is_refused(rows, prompt):
    with pytest.raises(ValueError, match="48 patches exceeds the bucket's 24"):
        collate(rows, Bucket(pairs=5, patches=24, windows=4, length=128), SPEC)
    wide = Preprocessor(prompt, SPEC)(Item(image=np.zeros((28, 280, 3), np.uint8)))
    with pytest.raises(ValueError, match="exceeds"):  # 40 patches, but in three windows
        collate([wide], Bucket(pairs=1, patches=48, windows=2, length=128), SPEC)


def fake(pairs: int, length: int) -> Row:
    return Row(np.zeros(length), np.zeros((3, length)), [None] * pairs, [], np.zeros(0))


@pytest.mark.parametrize(
    "sizes, expected",
    [
        ([(0, 1)], (0, 40)),
        ([(0, 40)], (0, 40)),
        ([(0, 41)], (0, 64)),
        ([(1, 10)], (4, 80)),
        ([(4, 81)], (4, 200)),
        ([(5, 80)], (5, 192)),
        ([(0, 64), (1, 10)], (4, 80)),  # together they get one shape that holds both
        ([(5, 10), (0, 150)], (5, 192)),
    ],
)
def test_the_first_shape_that_fits(sizes, expected):
    bucket = BUCKETS.fit([fake(*size) for size in sizes])
    frame = (48, 3) if expected[0] else (0, 0)
    assert bucket == Bucket(expected[0], *frame, expected[1])


@pytest.mark.parametrize(
    "sizes", [[(0, 65)], [(6, 10)], [(4, 201)], [(5, 193)], [(5, 10), (0, 193)]]
)
def test_inputs_that_exceed_every_shape_are_refused(sizes):
    with pytest.raises(ValueError, match="exceed every declared bucket"):
        BUCKETS.fit([fake(*size) for size in sizes])


def test_shapes_are_among_the_declared_ones():
    seen = set()
    for pairs, length in itertools.product(range(7), range(1, 210, 3)):
        try:
            seen.add(BUCKETS.fit([fake(pairs, length)]))
        except ValueError:
            continue
    assert {(b.pairs, b.length) for b in seen} == set(BUCKETS.shapes)


@pytest.mark.parametrize(
    "shapes",
    [
        [(0, 64), (4, 80)],  # a long text alone may not borrow the shape of a video
        [(0, 200), (4, 80), (5, 192)],
        [(0, 64), (0, 40), (4, 200), (5, 30)],
        [(4, 80), (1, 48)],
    ],
)
def test_max_length_is_the_longest_that_always_fits(shapes):
    buckets = Buckets(shapes, patches=48, windows=3)

    def fits(length: int) -> bool:
        try:
            for kind in {pairs for pairs, _ in shapes}:
                buckets.fit([fake(kind, length)])
        except ValueError:
            return False
        return True

    assert buckets.max_length == max(n for n in range(1, 300) if fits(n))


def _row(pairs: int, length: int, grid: tuple[int, int]) -> Row:
    layout = window_layout(*grid, SPEC.window_side, SPEC.merge)
    return Row(
        np.zeros(length), np.zeros((3, length)), [None] * pairs, [layout] * pairs, np.empty(0)
    )


def test_small_frames_get_small_buckets():
    buckets = Buckets(((0, 64), (4, 64)), patches=800, windows=50, frames=((200, 6), (100, 9)))
    assert buckets.fit([_row(4, 9, (8, 8))]) == Bucket(4, 100, 9, 64)
    assert buckets.fit([_row(4, 9, (10, 12))]) == Bucket(4, 200, 6, 64)
    assert buckets.fit([_row(2, 9, (2, 80))]) == Bucket(4, 800, 50, 64)  # 10 windows
    assert buckets.fit([_row(4, 9, (8, 8)), _row(1, 9, (20, 40))]) == Bucket(4, 800, 50, 64)
    assert buckets.fit([_row(0, 9, (8, 8))]) == Bucket(0, 0, 0, 64)


def test_default_buckets_hold_whatever_the_limits_let_through():
    spec = InputSpec()
    buckets = default_buckets(spec)
    assert (buckets.patches, buckets.windows) == (800, 50)
    assert buckets.max_length == spec.max_length == 8192
    worst = {"patches": 0, "windows": 0}
    sizes = (1, 3, 9, 20, 28, 60, 100, 141, 200, 333, 480, 720, 1080, 2000, 5600)
    for height, width in itertools.product(sizes, sizes):
        if max(height, width) > 200 * min(height, width):
            continue
        rows, cols = smart_resize(height, width, 28, spec.min_pixels, spec.max_pixels)
        grid = rows // 14, cols // 14
        worst["patches"] = max(worst["patches"], grid[0] * grid[1])
        worst["windows"] = max(worst["windows"], window_layout(*grid, 8, 2).windows)
        bucket = buckets.fit([_row(4, 500, grid)])
        assert grid[0] * grid[1] <= bucket.patches
        assert window_layout(*grid, 8, 2).windows <= bucket.windows
        if max(rows, cols) <= 3 * min(rows, cols):
            assert (bucket.patches, bucket.windows) in buckets.frames
    assert worst == {"patches": 800, "windows": 50}  # the bound is reached: no smaller one would do
    for pairs, length in ((0, 8192), (1, 5), (4, 8192), (5, 900), (32, 8192)):
        assert buckets.fit([_row(pairs, length, (4, 4))]).length >= length
    for pairs, length in ((0, 8193), (33, 100)):
        with pytest.raises(ValueError, match="exceed every declared bucket"):
            buckets.fit([_row(pairs, length, (4, 4))])


def test_default_buckets_hold_videos_sampled_by_time():
    buckets = default_buckets(InputSpec(fps=2.0, max_frames=100))
    assert buckets.fit([_row(50, 900, (4, 4))]).pairs == 50
    assert buckets.fit([_row(17, 900, (4, 4))]).pairs == 32
    with pytest.raises(ValueError, match="exceed every declared bucket"):
        buckets.fit([_row(51, 900, (4, 4))])


@pytest.mark.parametrize("kept", [slice(None), slice(1, 2), slice(2, 3)])
def test_widened_arrays_are_those_of_the_wider_bucket(rows, kept):
    rows = rows[kept]
    small, big = BUCKETS.fit(rows), Bucket(pairs=7, patches=64, windows=5, length=208)
    wide, expected = widen(collate(rows, small, SPEC), big, SPEC), collate(rows, big, SPEC)
    assert wide.keys() == expected.keys()
    for name, array in expected.items():
        assert wide[name].dtype == array.dtype
        np.testing.assert_array_equal(wide[name], array, err_msg=name)


def test_parts_of_a_batch_agree_on_the_bucket_of_the_whole(rows):
    parts = [need(rows[:1]), need(rows[1:2]), need(rows[2:])]
    assert BUCKETS.hold(join(parts)) == BUCKETS.fit(rows)
    assert BUCKETS.hold(parts[1]).pairs == 0 and BUCKETS.hold(join(parts)).pairs == 4
