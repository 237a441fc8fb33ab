"""Rendered frames show their scenes: checks of decoded mp4 pixels."""

import numpy as np
import pytest

from data.shapes import captions
from data.shapes.motion import PAN, ZOOM, cell_centre, is_clear
from data.shapes.render import decode_mp4, encode_mp4, render
from data.shapes.sampling import sample_crossings, sample_event, sample_scene, swap_phases
from data.shapes.scene import (
    ALL_PAIRS,
    COLOURS,
    DIRECTIONS,
    HELD_OUT_PAIRS,
    PLACES,
    SHAPES,
    SIDES,
    TRAIN_PAIRS,
    Event,
    Scene,
    Thing,
    make_rng,
)


def video(*events: Event, colour="red", shape="circle", size="small", cell=4, camera=None):
    thing = Thing(colour, shape, size, cell, events)
    scene = Scene((thing,), "gray", camera or ("still", "still"))
    return decode_mp4(encode_mp4(render(scene))).astype(float)


def find(frame: np.ndarray, colour: str) -> tuple[float, float, int]:
    """Centre x, y and area of the pixels of a colour in a frame [H, W, 3]."""
    near = np.abs(frame - np.array(COLOURS[colour])).max(axis=-1) < 45
    if not near.any():
        return np.nan, np.nan, 0
    y, x = np.nonzero(near)
    return x.mean(), y.mean(), int(near.sum())


def test_held_out_pairs_share_no_pair_but_every_colour_and_shape():
    assert len(HELD_OUT_PAIRS) == 12 and len(TRAIN_PAIRS) == 36
    assert not set(HELD_OUT_PAIRS) & set(TRAIN_PAIRS)
    for pairs in (TRAIN_PAIRS, HELD_OUT_PAIRS):
        assert {c for c, _ in pairs} == set(COLOURS)
        assert {s for _, s in pairs} == set(SHAPES)


@pytest.mark.parametrize("pairs", [TRAIN_PAIRS, HELD_OUT_PAIRS])
def test_scenes_use_their_pairs_also_after_a_colour_change(pairs):
    for i in range(300):
        scene = sample_scene(make_rng(1, "test", i), pairs)
        seen = [(t.colour, t.shape) for t in scene.things]
        turned = [
            (e.argument, t.shape) for t in scene.things for e in t.events if e.action == "turn"
        ]
        assert len({*seen, *turned}) == len(seen) + len(turned)
        assert {*seen, *turned} <= set(pairs)
        assert len({t.cell for t in scene.things}) == len(seen)
        assert is_clear(scene)


def test_object_is_in_its_cell():
    for cell, place in enumerate(PLACES):
        x, y, _ = find(video(cell=cell)[0], "red")
        assert abs(x - cell_centre(cell)[0]) < 2 and abs(y - cell_centre(cell)[1]) < 2
        assert ("left" in place, "right" in place) == (x < 40, x > 72)
        assert ("top" in place, "bottom" in place) == (y < 40, y > 72)


def test_colours_and_shapes_are_distinguishable():
    areas = {}
    for shape in SHAPES:
        for colour in COLOURS:
            frame = video(colour=colour, shape=shape, size="large")[0]
            found = {c: find(frame, c)[2] for c in COLOURS}
            assert max(found, key=found.get) == colour, (colour, shape, found)
        picture = render(Scene((Thing("red", shape, "large", 4),), "black"), only=0)[0]
        areas[shape] = np.abs(picture.astype(int) - COLOURS["red"]).max(axis=-1) < 60
    for i, one in enumerate(SHAPES):
        for other in SHAPES[i + 1 :]:
            difference = (areas[one] ^ areas[other]).sum()
            assert difference > 0.15 * max(areas[one].sum(), areas[other].sum()), (one, other)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("phase", [0, 1])
def test_move_has_its_direction_and_phase(direction, phase):
    frames = video(Event("move", direction, phase))
    x, y, _ = zip(*(find(f, "red") for f in frames), strict=True)
    dx, dy = DIRECTIONS[direction]
    along = np.array(x) * dx + np.array(y) * dy
    across = np.array(x) * dy + np.array(y) * dx
    during, rest = (slice(0, 8), slice(8, 16))[:: -1 if phase else 1]
    assert along[during][-1] - along[during][0] > 20
    assert np.ptp(along[rest]) < 1.5 and np.ptp(across) < 1.5


def test_grow_shrink_blink_and_turn():
    area = {a: [find(f, "red")[2] for f in video(Event(a, "", 0))] for a in ("grow", "shrink")}
    assert area["grow"][-1] > 2 * area["grow"][0]
    assert area["shrink"][-1] < 0.5 * area["shrink"][0]
    seen = [find(f, "red")[2] > 50 for f in video(Event("blink", "", 1))]
    assert all(seen[:8]) and 2 <= sum(seen[8:]) <= 6 and seen[15]
    frames = video(Event("turn", "blue", 1))
    assert find(frames[7], "red")[2] > 100 and find(frames[7], "blue")[2] == 0
    assert find(frames[15], "blue")[2] > 100 and find(frames[15], "red")[2] == 0


@pytest.mark.parametrize("side", SIDES)
def test_entering_and_leaving(side):
    dx, dy = SIDES[side]
    entering = [find(f, "red") for f in video(Event("enter", side, 1))]
    assert all(area == 0 for _, _, area in entering[:8]) and entering[15][2] > 150
    leaving = [find(f, "red") for f in video(Event("leave", side, 0))]
    assert leaving[0][2] > 150 and all(area == 0 for _, _, area in leaving[8:])
    for near, far in ((entering[15], entering[12]), (leaving[0], leaving[4])):
        assert (far[0] - near[0]) * dx + (far[1] - near[1]) * dy > 10


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_camera_movement_shifts_the_background_in_reverse(direction):
    word = "pan" if direction in ("left", "right") else "tilt"
    frames = video(camera=(f"{word} {direction}", "still"), cell=4)
    first, last = frames[0].mean(axis=-1), frames[9].mean(axis=-1)
    dx, dy = DIRECTIONS[direction]
    # Undo the movement: only then do the backgrounds match, where both frames show them.
    shift = round(PAN)
    moved = np.roll(last, (dy * shift, dx * shift), axis=(0, 1))
    wrong = np.roll(last, (-dy * shift, -dx * shift), axis=(0, 1))
    rows, columns = np.indices(first.shape)
    shown = np.isin(rows - dy * shift, rows) & np.isin(columns - dx * shift, columns)
    shown[35:77, 35:77] = False  # the thing
    error = np.abs(moved - first)[shown].mean()
    assert error < 6 and np.abs(wrong - first)[shown].mean() > 2 * error
    assert np.abs(frames[15] - frames[9]).mean() < 2  # still in the second phase
    x, y, _ = find(frames[9], "red")
    assert (56 - x) * dx + (56 - y) * dy > 15


def test_zoom_changes_sizes_by_its_factor():
    for word, factor in (("zoom in", ZOOM), ("zoom out", 1 / ZOOM)):
        frames = video(camera=("still", word), size="large")
        ratio = find(frames[15], "red")[2] / find(frames[7], "red")[2]
        assert abs(np.sqrt(ratio) - factor) < 0.1


def test_single_frame_equals_the_same_frame_of_the_scene():
    scene = sample_scene(make_rng(3, "test", 0), ALL_PAIRS, count=3, camera=1.0)
    frames = render(scene)
    for k in range(len(frames)):
        assert (render(scene, only=k)[0] == frames[k]).all()


def test_swapping_phases_reverses_a_crossing_scene_up_to_directions():
    scene = sample_crossings(make_rng(3, "test", 1), ALL_PAIRS)
    swapped = swap_phases(scene)
    assert swapped != scene and swap_phases(swapped) == scene
    frames, other = render(scene), render(swapped)
    assert (np.concatenate([frames[8:], frames[:8]]) == other).all()


def test_covered_or_invisible_event_is_not_clear():
    small = Thing("red", "circle", "small", 4, (Event("blink", "", 1),))
    cover = Thing("blue", "square", "large", 5, (Event("move", "left", 0),))
    assert is_clear(Scene((small,), "gray"))
    assert not is_clear(Scene((small, cover), "gray"))
    edge = Thing("red", "circle", "small", 0, (Event("grow", "", 1),))
    assert not is_clear(Scene((edge,), "gray", ("pan right", "pan right")))


def test_captions_describe_the_scene():
    moved = Thing("red", "star", "large", 0, (Event("move", "right", 0), Event("turn", "blue", 1)))
    scene = Scene((moved, Thing("white", "ring", "small", 4)), "teal", ("pan left", "zoom in"))
    for i in range(12):
        rng = make_rng(5, "test", i)
        long = captions.whole(scene, rng, long=True)
        assert "a large red star in the top left" in long and "teal" in long
        spatial = captions.spatial(scene, rng)
        assert "small white ring" in spatial and "center" in spatial
        assert not any(w in spatial for w in ("move", "slide", "turn", "camera", "blue"))
        first, then = captions.temporal(scene, rng).split("star", 1)[1].rsplit("star", 1)
        assert "right" in first and "blue" in then and "teal" not in first + then
        words = captions.keywords(scene, rng).split(", ")
        assert sorted(words) == sorted(captions.keyword_list(scene))
        assert captions.camera(scene, rng).startswith("the camera")


def test_impossible_event_is_not_sampled():
    thing = Thing("red", "circle", "small", 0, (Event("leave", "left", 0),))
    drawn = {sample_event(make_rng(0, "t", i), thing, 1, (thing,), ALL_PAIRS) for i in range(50)}
    assert drawn == {None}
    corner = Thing("red", "circle", "small", 0)
    moves = {
        sample_event(make_rng(0, "t", i), corner, 0, (corner,), ALL_PAIRS, ("move",)).argument
        for i in range(50)
    }
    assert moves == {"right", "down"}
