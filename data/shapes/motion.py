"""Positions at each frame of a scene, in pixels; x to the right, y down; T = 16 frames."""

import numpy as np

from data.shapes.scene import (
    COLOURS,
    DIRECTIONS,
    FRAME,
    PHASE_FRAMES,
    SCENE_FRAMES,
    SIDES,
    SIZES,
    Scene,
    Thing,
)

GRID = (25.0, 56.0, 87.0)  # centres of the cells
_REACH = (16.0, 96.0)  # centres of moving things stay inside
GROWTH = 1.7  # radius at the end over radius at the start; its inverse when shrinking
PAN = 34.0  # world pixels a phase; half of it, the step of 4 frames a scene, under half a period
ZOOM = 1.4

# Progress of each phase, [2, T]: symmetric, so that a reversed clip is exactly the reversed event.
_TIME = (np.arange(SCENE_FRAMES) + 0.5) / PHASE_FRAMES
_PROGRESS = np.stack([np.clip(_TIME, 0, 1), np.clip(_TIME - 1, 0, 1)])
_PHASE_OF = np.arange(SCENE_FRAMES) // PHASE_FRAMES
_BLINK = np.isin(np.arange(PHASE_FRAMES), (0, 3, 4, 7))


def step_length(position: float, sign: int) -> float:
    """Pixels that an object at `position` moves along one axis; 0 if it would leave the frame."""
    for length in (46.0, 31.0):
        if _REACH[0] <= position + sign * length <= _REACH[1]:
            return length
    return 0.0


def cell_centre(cell: int) -> tuple[float, float]:
    return GRID[cell % 3], GRID[cell // 3]


def camera_track(scene: Scene) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The camera: world x and y of the frame's centre, and the zoom, float [T] each."""
    x, y = np.full((2, SCENE_FRAMES), FRAME / 2)
    zoom = np.ones(SCENE_FRAMES)
    for movement, progress in zip(scene.camera, _PROGRESS, strict=True):
        if movement.startswith("zoom"):
            zoom = zoom * ZOOM ** (progress if movement == "zoom in" else -progress)
        elif movement != "still":
            dx, dy = DIRECTIONS[movement.split()[1]]
            x, y = x + dx * PAN * progress, y + dy * PAN * progress
    return x, y, zoom


def thing_track(thing: Thing) -> dict[str, np.ndarray]:
    """An object in world pixels: x, y, radius float [T], colour [T, 3], visible bool [T]."""
    home_x, home_y = cell_centre(thing.cell)
    x, y = np.full(SCENE_FRAMES, home_x), np.full(SCENE_FRAMES, home_y)
    radius = np.full(SCENE_FRAMES, SIZES[thing.size])
    colour = np.tile(np.array(COLOURS[thing.colour], np.float32), (SCENE_FRAMES, 1))
    visible = np.ones(SCENE_FRAMES, bool)
    for event in thing.events:
        progress, inside = _PROGRESS[event.phase], _PHASE_OF == event.phase
        if event.action == "move":
            dx, dy = DIRECTIONS[event.argument]
            x = x + dx * step_length(x[-1], dx) * progress
            y = y + dy * step_length(y[-1], dy) * progress
        elif event.action in ("grow", "shrink"):
            radius = radius * GROWTH ** (progress if event.action == "grow" else -progress)
        elif event.action == "blink":
            visible[inside] &= _BLINK
        elif event.action == "turn":
            colour[progress > 0.5] = COLOURS[event.argument]
        elif event.action in ("enter", "leave"):
            dx, dy = SIDES[event.argument]
            margin = radius[-1] + 4
            far = [(-margin, None, FRAME + margin)[d + 1] for d in (dx, dy)]
            share = progress if event.action == "leave" else 1 - progress
            x = x if far[0] is None else x + (far[0] - x[-1]) * share
            y = y if far[1] is None else y + (far[1] - y[-1]) * share
        else:  # cross
            dx, dy = DIRECTIONS[event.argument]
            x, y = x + dx * FRAME * (progress - 0.5), y + dy * FRAME * (progress - 0.5)
            visible &= inside
    return {"x": x, "y": y, "radius": radius, "colour": colour, "visible": visible}


def _clear_frames(scene: Scene) -> np.ndarray:
    """Whether each object's centre is within the frame and not covered, bool [things, T]."""
    camera_x, camera_y, zoom = camera_track(scene)
    tracks = [thing_track(t) for t in scene.things]
    x, y = (np.stack([t[axis] for t in tracks]) for axis in "xy")
    clear = np.maximum(np.abs(x - camera_x), np.abs(y - camera_y)) * zoom < FRAME / 2
    for above, track in enumerate(tracks):  # a later thing is drawn over the earlier ones
        distance = np.hypot(x[:above] - x[above], y[:above] - y[above])
        clear[:above] &= ~(track["visible"] & (distance < track["radius"]))
    return clear


def fullest_frames(scene: Scene) -> list[int]:
    """The frames with the most visible objects."""
    visible = np.stack([thing_track(t)["visible"] for t in scene.things])
    count = (_clear_frames(scene) & visible).sum(axis=0)
    return np.flatnonzero(count == count.max()).tolist()


def is_clear(scene: Scene) -> bool:
    """Whether each event and each still object is visible in 3 of the 8 frames of its phase."""
    for thing, clear in zip(scene.things, _clear_frames(scene), strict=True):
        for phase in {e.phase for e in thing.events} or {0}:
            if clear[_PHASE_OF == phase].sum() < 3:
                return False
    return True
