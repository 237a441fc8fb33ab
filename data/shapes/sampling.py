"""Samples scenes, and lists the possible events of objects."""

from dataclasses import replace

import numpy as np

from data.shapes.motion import cell_centre, is_clear, step_length
from data.shapes.scene import (
    BACKGROUNDS,
    CAMERA,
    DIRECTIONS,
    SIDES,
    SIZES,
    Event,
    Pairs,
    Scene,
    Thing,
    pick,
)

# Events, repeated by weight; only `sample_crossings` has crossings.
ACTIONS = ("move", "move", "move", "grow", "shrink", "blink", "turn", "enter", "leave")


def sample_things(
    rng: np.random.Generator, pairs: Pairs, count: int, cells: tuple[int, ...] = tuple(range(9))
) -> tuple[Thing, ...]:
    """`count` still objects in different cells with different pairs of colour and shape."""
    chosen = rng.permutation(len(pairs))[:count]
    where = rng.permutation(len(cells))[:count]
    return tuple(
        Thing(*pairs[p], size=pick(rng, SIZES), cell=cells[w])
        for p, w in zip(chosen.tolist(), where.tolist(), strict=True)
    )


def turn_options(thing: Thing, things: tuple[Thing, ...], pairs: Pairs) -> list[str]:
    """Colours that the object can turn: the new pair is in `pairs` and not taken."""
    taken = {(t.colour, t.shape) for t in things}
    taken |= {(e.argument, t.shape) for t in things for e in t.events if e.action == "turn"}
    return [c for c, s in pairs if s == thing.shape and (c, s) not in taken]


def possible_events(
    thing: Thing, phase: int, action: str, things: tuple[Thing, ...], pairs: Pairs
) -> list[Event]:
    """The events of an action that are possible for `thing` in `phase`, after its earlier event."""
    before = thing.event_in(0) if phase == 1 else None
    if before is not None:
        if before.action in ("leave", "cross") or action in ("enter", "cross"):
            return []
        if before.action == action != "move" or {before.action, action} == {"grow", "shrink"}:
            return []
    match action:
        case "move":
            x, y = cell_centre(thing.cell)
            if before is not None and before.action == "move":
                dx, dy = DIRECTIONS[before.argument]
                x, y = x + dx * step_length(x, dx), y + dy * step_length(y, dy)
            arguments = [
                d
                for d, (dx, dy) in DIRECTIONS.items()
                if (step_length(x, dx) if dx else step_length(y, dy))
            ]
        case "turn":
            arguments = turn_options(thing, things, pairs)
        case "enter" | "leave":
            arguments = list(SIDES)
        case "cross":
            # The cell of the caption is half-way along the path.
            row, column = divmod(thing.cell, 3)
            arguments = (["left", "right"] if column == 1 else []) + (
                ["up", "down"] if row == 1 else []
            )
        case _:
            arguments = [""]
    return [Event(action, argument, phase) for argument in arguments]


def sample_event(
    rng: np.random.Generator,
    thing: Thing,
    phase: int,
    things: tuple[Thing, ...],
    pairs: Pairs,
    actions: tuple[str, ...] = ACTIONS,
) -> Event | None:
    """An event that can follow the earlier ones, or None if the sampled action cannot."""
    options = possible_events(thing, phase, pick(rng, actions), things, pairs)
    return pick(rng, options) if options else None


def sample_camera(rng: np.random.Generator, moving: float) -> tuple[str, str]:
    """Two camera movements; at least one is not still with probability `moving`."""
    if rng.random() >= moving:
        return "still", "still"
    while True:
        camera = (pick(rng, CAMERA), pick(rng, CAMERA))
        if camera != ("still", "still"):
            return camera


def sample_scene(
    rng: np.random.Generator,
    pairs: Pairs,
    *,
    count: int | None = None,
    phases: tuple[int, ...] = (),
    busy: float = 0.5,
    camera: float = 0.3,
    backgrounds: tuple[str, ...] = tuple(BACKGROUNDS),
    actions: tuple[str, ...] = ACTIONS,
) -> Scene:
    """A scene with at least one event, all within the frame.

    Args:
        pairs: allowed (colour, shape) pairs.
        count: number of objects, 1 to 3; sampled if None.
        phases: phases with at least one event; one of the two if empty.
        busy: probability of an event of an object in a phase.
        camera: probability that the camera moves.
        backgrounds, actions: allowed ones.
    """
    count = count or pick(rng, (1, 2, 2, 3))
    required = phases or (int(rng.integers(2)),)
    while True:
        things = sample_things(rng, pairs, count)
        for phase in (0, 1):
            for i in range(count):
                if rng.random() < busy:
                    things = add_event(
                        things, i, sample_event(rng, things[i], phase, things, pairs, actions)
                    )
        scene = Scene(things, pick(rng, backgrounds), sample_camera(rng, camera))
        if all(any(t.event_in(p) for t in things) for p in required) and is_clear(scene):
            return scene


def add_event(things: tuple[Thing, ...], index: int, event: Event | None) -> tuple[Thing, ...]:
    """Adds an event to one of the objects, unless `event` is None."""
    if event is None:
        return things
    return set_events(things, index, (*things[index].events, event))


def set_events(
    things: tuple[Thing, ...], index: int, events: tuple[Event, ...]
) -> tuple[Thing, ...]:
    changed = replace(things[index], events=events)
    return (*things[:index], changed, *things[index + 1 :])


def sample_crossings(rng: np.random.Generator, pairs: Pairs) -> Scene:
    """Two large objects that cross the frame, one in each phase."""
    things = sample_things(rng, pairs, 2, cells=(1, 3, 4, 5, 7))
    things = tuple(replace(thing, size="large") for thing in things)
    first = int(rng.integers(2))
    for i in (0, 1):
        phase = 0 if i == first else 1
        things = add_event(
            things, i, sample_event(rng, things[i], phase, things, pairs, ("cross",))
        )
    return Scene(things, pick(rng, BACKGROUNDS))


def swap_phases(scene: Scene) -> Scene | None:
    """The same events in the other order; None if that scene is impossible or equal.

    Objects with two events cannot be swapped: they could leave the frame or change unseen.
    """
    if any(len(t.events) > 1 for t in scene.things):
        return None
    things = tuple(
        replace(t, events=tuple(replace(e, phase=1 - e.phase) for e in t.events))
        for t in scene.things
    )
    swapped = replace(scene, things=things, camera=scene.camera[::-1])
    return swapped if swapped != scene else None


def sample_long(rng: np.random.Generator, pairs: Pairs) -> tuple[Scene, ...]:
    """Four to six scenes; neighbours have different backgrounds."""
    scenes: list[Scene] = []
    for _ in range(int(rng.integers(4, 7))):
        free = tuple(g for g in BACKGROUNDS if not scenes or g != scenes[-1].background)
        scenes.append(
            sample_scene(rng, pairs, count=pick(rng, (1, 2)), camera=0.2, backgrounds=free)
        )
    return tuple(scenes)


def sample_camera_scene(rng: np.random.Generator, pairs: Pairs) -> Scene:
    """Still objects under a moving camera."""
    things = sample_things(rng, pairs, pick(rng, (1, 2, 3)))
    return Scene(things, pick(rng, BACKGROUNDS), sample_camera(rng, moving=1.0))
