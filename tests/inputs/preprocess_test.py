"""Items to rows: tokens, positions, patches and visual tokens that agree with each other."""

import pickle

import numpy as np
import pytest
from PIL import Image

from gve_jax.errors import UserError
from gve_jax.inputs.errors import MediaError
from gve_jax.inputs.item import Item
from gve_jax.inputs.pixels import patchify
from gve_jax.inputs.preprocess import InputSpec, Preprocessor
from gve_jax.inputs.prompt import Prompt
from tests.inputs.media import clip, encode, numbered, numbers, picture

SPEC = InputSpec(max_length=512)
PIXELS = 8 * 28 * 28  # the numbered clips, 48 x 96, become 56 x 84: 6 tokens a frame pair


@pytest.fixture(scope="module")
def preprocess(prompt) -> Preprocessor:
    return Preprocessor(prompt, SPEC)


def mended(row, frame_pair: int) -> np.ndarray:
    """The frames [2, H, W, 3] that a frame pair's patches show, put back by their coordinates."""
    coords = row.layouts[frame_pair].coords
    gh, gw = coords.max(0) + 1
    frames = np.zeros((2, gh * 14, gw * 14, 3), np.uint8)
    for patch, (r, c) in zip(row.patches[frame_pair], coords, strict=True):
        square = patch.reshape(3, 2, 14, 14).transpose(1, 2, 3, 0)
        frames[:, r * 14 : r * 14 + 14, c * 14 : c * 14 + 14] = square
    return frames


def spelled(row) -> list[int]:
    return [n for pair in range(len(row.patches)) for n in numbers(mended(row, pair))]


def test_video_image_and_text_agree(preprocess, prompt):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (84, 56, 3), np.uint8))
    row = preprocess(Item("a red ring", picture(image), clip(24), max_pixels=PIXELS))
    assert [len(patches) for patches in row.patches] == [24] * 4 + [24]
    np.testing.assert_array_equal(mended(row, 4), np.stack([np.asarray(image)] * 2))
    assert spelled(row)[:8] == [0, 3, 7, 10, 13, 16, 20, 23]

    video = np.flatnonzero(row.tokens == prompt.video_pad)
    pads = np.flatnonzero(row.tokens == prompt.image_pad)
    assert (len(video), len(pads)) == (4 * 6, 6)
    assert row.visual_tokens.tolist() == video.tolist() + pads.tolist()
    assert row.tokens[-1] == prompt.end
    assert row.positions.shape == (3, len(row.tokens)) and row.positions.dtype == np.int32

    # 8 of 24 frames at 10 a second: 2 frames last 0.6 s, at 2 positions a second 1.2.
    start = row.positions[0, video[0] - 1] + 1
    time, line, column = row.positions[:, video].reshape(3, 4, 2, 3) - start
    assert time[:, 0, 0].tolist() == [0, 1, 2, 3] and (time == time[:, :1, :1]).all()
    assert (line == np.array([[0], [1]])).all() and (column == np.array([0, 1, 2])).all()
    assert (row.positions[:, video[-1] + 1] == start + 4).all()
    still = row.positions[:, pads] - row.positions[:, pads[0] - 1 : pads[0]] - 1
    assert still.T.tolist() == [[0, r, c] for r in range(3) for c in range(2)]


def test_text_alone_has_no_patches(preprocess):
    row = preprocess(Item("a red ring"))
    assert row.patches == [] and row.layouts == [] and len(row.visual_tokens) == 0
    assert (row.positions == np.arange(len(row.tokens))).all()


def test_the_frame_rate_sets_the_positions(preprocess):
    """A clip at half the rate lasts twice as long."""
    ends = []
    for fps in (10, 5):
        row = preprocess(Item(video=encode(numbered(24), fps=fps), max_pixels=PIXELS))
        ends.append(row.positions[0, row.visual_tokens].reshape(4, -1)[:, 0])
    start = ends[0][0]
    assert (ends[0] - start).tolist() == [0, 1, 2, 3]  # floors of 1.2 n
    assert (ends[1] - start).tolist() == [0, 2, 4, 7]  # floors of 2.4 n


def test_one_frame_and_three_frames(preprocess):
    one = preprocess(Item(video=clip(1), max_pixels=PIXELS))
    assert spelled(one) == [0, 0]  # an odd frame is repeated
    three = preprocess(Item(video=clip(3), max_pixels=PIXELS))
    assert spelled(three) == [0, 2]


def test_items_choose_frames_and_pixels(preprocess):
    row = preprocess(Item(video=clip(24), num_frames=4, max_pixels=PIXELS))
    assert spelled(row) == [0, 8, 15, 23]
    large = preprocess(Item(image=np.zeros((1000, 1000, 3), np.uint8)))
    assert len(large.patches[0]) == 4 * 14 * 14  # 196 of at most 200 tokens
    more = preprocess(Item(image=np.zeros((1000, 1000, 3), np.uint8), max_pixels=10**9))
    assert len(more.patches[0]) == 4 * 14 * 14, "an item can only lower the limit"
    small = preprocess(Item(image=np.zeros((1000, 1000, 3), np.uint8), max_pixels=784))
    assert len(small.patches[0]) == 4


def test_frame_order_changes_the_frames_and_nothing_else(preprocess):
    rows = {
        order: preprocess(Item(video=clip(24), max_pixels=PIXELS, frame_order=order))
        for order in ("forward", "reversed", "shuffled")
    }
    forward = spelled(rows["forward"])
    assert spelled(rows["reversed"]) == forward[::-1]
    # Random(8) of Python: the control stays the same between versions.
    assert spelled(rows["shuffled"]) == [forward[i] for i in (5, 0, 6, 4, 1, 7, 2, 3)]
    for row in rows.values():
        np.testing.assert_array_equal(row.tokens, rows["forward"].tokens)
        np.testing.assert_array_equal(row.positions, rows["forward"].positions)


@pytest.mark.parametrize("count", range(2, 65, 2))
def test_shuffled_is_never_nearly_in_order(preprocess, count):
    frames = numbered(count)
    item = Item(video=frames, fps=2.0, num_frames=count, max_pixels=784, frame_order="shuffled")
    small = Preprocessor(preprocess.prompt, InputSpec(min_pixels=784, max_length=512))
    order = np.array(spelled(small(item)))
    assert sorted(order) == list(range(count))
    assert (order == np.arange(count)).mean() <= 0.25


def test_what_cannot_be_read_is_media_error(preprocess, tokenizer_file):
    for item in (Item(video=b"x"), Item(image="missing.png"), Item(text="a", video=b""),
                 Item(image=np.zeros((4, 1000, 3), np.uint8)), Item(video=clip(4), max_pixels=700),
                 Item(image=np.zeros((0, 0, 3), np.uint8))):  # fmt: skip
        with pytest.raises(MediaError):
            preprocess(item)
    short = Preprocessor(Prompt(tokenizer_file, 30), SPEC)
    with pytest.raises(MediaError, match="too many visual tokens"):
        short(Item(video=clip(24), max_pixels=PIXELS))


def test_it_travels_to_workers(preprocess):
    item = Item("red", video=clip(8), max_pixels=PIXELS)
    mine, theirs = preprocess(item), pickle.loads(pickle.dumps(preprocess))(item)
    np.testing.assert_array_equal(mine.tokens, theirs.tokens)
    np.testing.assert_array_equal(np.stack(mine.patches), np.stack(theirs.patches))


def test_patches_of_a_video_equal_patchify_of_its_frames(preprocess):
    frames = numbered(8)[:, :28, :56]
    row = preprocess(Item(video=frames, fps=4.0, max_pixels=2 * 784))
    expected = patchify(frames, row.layouts[0], 14, 2)
    np.testing.assert_array_equal(np.stack(row.patches), expected)


@pytest.mark.parametrize("field, value", [
    ("num_frames", 7), ("num_frames", 0), ("max_pixels", 100), ("max_pixels", 3000),
    ("max_length", 1), ("mrope", "hf999"),
])  # fmt: skip
def test_a_spec_that_cannot_be_names_its_field(field, value):
    with pytest.raises(UserError, match=field if field != "mrope" else "M-RoPE regime 'hf999'"):
        InputSpec(**{field: value})
