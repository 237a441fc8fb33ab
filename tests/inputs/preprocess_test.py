"""Items to rows: tokens, positions, patches and visual tokens that agree with each other."""

import pickle

import numpy as np
import pytest
from PIL import Image

from gve_jax.errors import UserError
from gve_jax.inputs.preprocess import InputSpec, Preprocessor
from gve_jax.inputs.prompt import Prompt
from gve_jax.media.errors import MediaError
from gve_jax.media.item import Item
from gve_jax.media.pixels import patchify
from tests.media.animated import Part, apng, png_chunk
from tests.media.files import clip, encode, numbered, numbers, picture
from tests.situations import situation

EXIF = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"  # orientation 6
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
    assert row.tokens[-1] == prompt.pad
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


@situation(
    "Media",
    "two clips of equal frames at different rates",
    "positions in time follow the rate, so the vectors differ",
    since="0.1.0",
)
def test_the_frame_rate_sets_the_positions(preprocess):
    """A clip at half the rate lasts twice as long."""
    ends = []
    for fps in (10, 5):
        row = preprocess(Item(video=encode(numbered(24), fps=fps), max_pixels=PIXELS))
        ends.append(row.positions[0, row.visual_tokens].reshape(4, -1)[:, 0])
    start = ends[0][0]
    assert (ends[0] - start).tolist() == [0, 1, 2, 3]  # floors of 1.2 n
    assert (ends[1] - start).tolist() == [0, 2, 4, 7]  # floors of 2.4 n


@situation(
    "Media",
    "video of one frame, which qwen-vl-utils refuses",
    "accepted; the frame stands twice",
    since="0.1.0",
)
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


def size(row) -> tuple[int, int]:
    gh, gw = row.layouts[0].coords.max(0) + 1
    return int(gh) * 14, int(gw) * 14


@situation(
    "Images and animations",
    "`min_pixels` of an item, as qwen-vl-utils has it",
    "the size that qwen-vl-utils gives, within the model's own max_pixels",
    since="0.2.0",
)
@pytest.mark.parametrize(
    "height, width, low, high, expected",
    [
        # Recorded from smart_resize of qwen-vl-utils 0.0.14; limits in tokens.
        (48, 96, None, None, (56, 84)),
        (48, 96, 16, None, (84, 168)),
        (48, 96, 50, None, (140, 280)),
        (30, 300, 64, None, (84, 728)),
        (480, 640, 100, 150, (280, 392)),
        (100, 100, 120, None, (308, 308)),
    ],
)
def test_the_least_pixels_of_an_image(preprocess, height, width, low, high, expected):
    item = Item(
        image=np.zeros((height, width, 3), np.uint8),
        min_pixels=low and low * 784,
        max_pixels=high and high * 784,
    )
    assert size(preprocess(item)) == expected


@situation(
    "Media",
    "`total_pixels` of an item, as qwen-vl-utils has it",
    "its frames share that many pixels",
    since="0.2.0",
)
@pytest.mark.parametrize(
    "frames, height, width, low, total, expected",
    [
        # Recorded from the arithmetic of fetch_video of qwen-vl-utils 0.0.14; limits in tokens.
        (8, 48, 96, 16, None, (84, 168)),
        (8, 480, 640, None, 64, (84, 112)),
        (8, 480, 640, 20, 64, (84, 140)),  # the least and a twentieth is more than a share
        (7, 480, 640, 20, 40, (84, 140)),
        (8, 480, 640, 50, 64, (168, 224)),
    ],
)
def test_the_least_and_all_pixels_of_a_video(
    preprocess, frames, height, width, low, total, expected
):
    item = Item(
        video=np.zeros((frames, height, width, 3), np.uint8),
        num_frames="all",
        min_pixels=low and low * 784,
        total_pixels=total and total * 784,
    )
    assert size(preprocess(item)) == expected


@pytest.mark.parametrize("kind", ["image", "video"])
def test_the_least_pixels_of_an_item_stay_within_the_model_s_shapes(preprocess, kind):
    media = {kind: np.zeros((4, 48, 96, 3)[kind == "image" :], np.uint8)}
    least = Item(**media, min_pixels=SPEC.max_pixels)
    assert np.prod(size(preprocess(least))) <= SPEC.max_pixels
    with pytest.raises(UserError, match="min_pixels 156801 is above the model's max_pixels 156800"):
        preprocess(Item(**media, min_pixels=SPEC.max_pixels + 1))
    missing = Item(**{kind: "missing"}, min_pixels=SPEC.max_pixels + 1)
    with pytest.raises(UserError, match="min_pixels"):  # before anything is decoded
        preprocess(missing)


@situation(
    "Media",
    'an odd number of frames (array, list of images or paths, folder) with `num_frames="all"`',
    "every frame once, the last one twice, as qwen-vl-utils takes them",
    since="0.2.0",
)
@situation(
    "Media",
    "an array, a list or a folder of frames without `num_frames`",
    "sampled like a video: the model's number, evenly spaced",
    since="0.1.0",
)
@pytest.mark.parametrize("count", [1, 2, 3, 7, 11])
def test_all_frames_are_taken_where_the_caller_says_so(preprocess, tmp_path, count):
    frames = numbered(count)
    images = [Image.fromarray(frame) for frame in frames]
    for k, image in enumerate(images):
        image.save(tmp_path / f"{k}.png")
    paths = [str(tmp_path / f"{k}.png") for k in range(count)]
    expected = [*range(count)] + [count - 1] * (count % 2)
    for video in (frames, list(frames), images, tuple(paths), tmp_path, str(tmp_path)):
        for fps, spec in ((None, SPEC), (4.0, InputSpec(fps=1.0, max_length=512))):
            item = Item(video=video, num_frames="all", fps=fps, max_pixels=PIXELS)
            row = Preprocessor(preprocess.prompt, spec)(item)
            assert spelled(row) == expected
            # Two frames of a step last 2 / fps seconds, at 2 positions a second.
            step = 2 if fps is None else 1
            times = row.positions[0, row.visual_tokens].reshape(len(row.patches), -1)[:, 0]
            assert (times - times[0]).tolist() == [step * k for k in range(len(row.patches))]
    part = Item(
        video=numbered(11),
        num_frames="all",
        fps=2.0,
        video_start=1.0,
        video_end=3.0,
        max_pixels=PIXELS,
    )
    assert spelled(preprocess(part)) == [2, 3, 4, 5, 6, 6]


def turned(kind: str = "JPEG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return picture(Image.fromarray(numbered(6)[5]), kind, exif=exif)


def test_orientation_is_the_item_s_choice_or_else_the_spec_s(preprocess, tmp_path):
    (tmp_path / "0.jpg").write_bytes(turned())
    upright = Preprocessor(preprocess.prompt, InputSpec(max_length=512, exif_orientation=True))
    opened = Image.open(tmp_path / "0.jpg")
    frames = np.concatenate([numbered(2), np.full((2, 48, 96, 1), 255, np.uint8)], -1)
    animation = apng(96, 48, list(map(Part, frames)), extra=png_chunk(b"eXIf", EXIF))
    for media in (
        {"image": turned()},
        {"image": opened},
        {"video": tmp_path},
        {"video": [turned("PNG")] * 2},
        {"video": [opened]},
        {"video": animation},
    ):
        for preprocessor, own, expected in (
            (preprocess, None, False),
            (preprocess, True, True),
            (preprocess, False, False),
            (upright, None, True),
            (upright, False, False),
            (upright, True, True),
        ):
            item = Item(**media, max_pixels=PIXELS, exif_orientation=own)
            assert size(preprocessor(item)) == ((84, 56) if expected else (56, 84))


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


def test_unreadable_media_raise_media_error(preprocess, tokenizer_file):
    for item in (
        Item(video=b"x"),
        Item(image="missing.png"),
        Item(text="a", video=b""),
        Item(image=np.zeros((4, 1000, 3), np.uint8)),
        Item(video=clip(4), max_pixels=700),
        Item(image=np.zeros((0, 0, 3), np.uint8)),
    ):
        with pytest.raises(MediaError):
            preprocess(item)
    short = Preprocessor(Prompt(tokenizer_file, 30), SPEC)
    with pytest.raises(MediaError, match="too many visual tokens"):
        short(Item(video=clip(24), max_pixels=PIXELS))


def test_pickles(preprocess):
    item = Item("red", video=clip(8), max_pixels=PIXELS)
    mine, theirs = preprocess(item), pickle.loads(pickle.dumps(preprocess))(item)
    np.testing.assert_array_equal(mine.tokens, theirs.tokens)
    np.testing.assert_array_equal(np.stack(mine.patches), np.stack(theirs.patches))


def test_patches_of_a_video_equal_patchify_of_its_frames(preprocess):
    frames = numbered(8)[:, :28, :56]
    row = preprocess(Item(video=frames, fps=4.0, max_pixels=2 * 784))
    expected = patchify(frames, row.layouts[0], 14, 2)
    np.testing.assert_array_equal(np.stack(row.patches), expected)


@pytest.mark.parametrize(
    "field, value",
    [
        ("num_frames", 7),
        ("num_frames", 0),
        ("max_pixels", 100),
        ("max_pixels", 3000),
        ("max_length", 1),
        ("mrope", "hf999"),
        ("exif_orientation", 1),
    ],
)
def test_an_invalid_spec_names_its_field(field, value):
    with pytest.raises(UserError, match=field if field != "mrope" else "M-RoPE regime 'hf999'"):
        InputSpec(**{field: value})
