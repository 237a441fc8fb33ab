"""English captions of scenes; each kind of caption describes one aspect of a scene.

Functions take a scene and a generator that picks the wording; different wordings have the same
meaning. The vocabulary has about 150 words, so that a small model can learn it.
"""

import numpy as np

from data.shapes.scene import Event, Scene, Thing, pick

_VERBS = {
    "grow": (("grows", "gets bigger"), "growing"),
    "shrink": (("shrinks", "gets smaller"), "shrinking"),
    "blink": (("blinks", "flashes"), "blinking"),
}
_THEMES = {
    "move": "travel",
    "grow": "growth",
    "shrink": "decline",
    "blink": "flashing light",
    "turn": "color change",
    "enter": "arrival",
    "leave": "departure",
    "cross": "passage",
}
_CAMERA = {
    "still": ("stays still", "does not move"),
    "pan left": ("pans left", "turns to the left"),
    "pan right": ("pans right", "turns to the right"),
    "tilt up": ("tilts up", "looks up"),
    "tilt down": ("tilts down", "looks down"),
    "zoom in": ("zooms in", "gets closer"),
    "zoom out": ("zooms out", "gets farther"),
}
_SOURCE_OF = {"right": "left", "left": "right", "up": "bottom", "down": "top"}
_GOAL_OF = {"right": "right", "left": "left", "up": "top", "down": "bottom"}
_COUNTS = ("no objects", "one object", "two objects", "three objects")


def name(thing: Thing) -> str:
    return f"{thing.colour} {thing.shape}"


def full_name(thing: Thing) -> str:
    return f"{thing.size} {thing.colour} {thing.shape}"


def a(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def join(parts: list[str]) -> str:
    """Commas and a final "and"."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def verb(event: Event, rng: np.random.Generator) -> str:
    """The event in the third person: "moves left", "turns blue"."""
    match event.action:
        case "move":
            return f"{pick(rng, ('moves', 'slides'))} {event.argument}"
        case "turn":
            return f"{pick(rng, ('turns', 'becomes'))} {event.argument}"
        case "enter":
            return f"{pick(rng, ('enters', 'comes in'))} from the {event.argument}"
        case "leave":
            return f"{pick(rng, ('leaves', 'goes out'))} to the {event.argument}"
        case "cross":
            way = f"from {_SOURCE_OF[event.argument]} to {_GOAL_OF[event.argument]}"
            return f"{pick(rng, ('crosses', 'passes'))} {way}"
        case action:
            return pick(rng, _VERBS[action][0])


def _gerund(event: Event) -> str:
    if event.action in _VERBS:
        return _VERBS[event.action][1]
    word = {
        "move": "moving",
        "turn": "turning",
        "enter": "entering from the",
        "leave": "leaving to the",
        "cross": "crossing",
    }[event.action]
    return f"{word} {event.argument}"


def phase_deed(thing: Thing, phase: int, rng: np.random.Generator) -> str:
    """What an object does in one phase; "is not there" if it is out of the frame."""
    deed = thing.event_in(phase)
    if deed:
        return verb(deed, rng)
    hidden = ("leave", "cross") if phase == 1 else ("enter", "cross")
    other = thing.event_in(1 - phase)
    return "is not there" if other and other.action in hidden else "stays still"


def _deeds(thing: Thing, rng: np.random.Generator) -> str:
    if not thing.events:
        return pick(rng, ("stays still", "does not move"))
    return " then ".join(verb(e, rng) for e in thing.events)


def _camera_deeds(scene: Scene, rng: np.random.Generator) -> str:
    first, second = scene.camera
    if first == second:
        return pick(rng, _CAMERA[first]) + ("" if first == "still" else " all the time")
    return f"{pick(rng, _CAMERA[first])} then {pick(rng, _CAMERA[second])}"


def whole(scene: Scene, rng: np.random.Generator, long: bool | None = None) -> str:
    """Objects, events, camera and background; the long form adds sizes and positions."""
    if long is None:
        long = bool(rng.integers(2))
    if not long:
        deeds = join([f"{a(name(t))} {_deeds(t, rng)}" for t in scene.things])
        ground = scene.background
        text = pick(
            rng, (f"{deeds} on a {ground} background.", f"on a {ground} background {deeds}.")
        )
        if scene.camera != ("still", "still"):
            text += f" the camera {_camera_deeds(scene, rng)}."
        return text
    parts = [f"{a(full_name(t))} in the {t.place} {_deeds(t, rng)}." for t in scene.things]
    parts.append(f"the camera {_camera_deeds(scene, rng)}.")
    ground = pick(
        rng,
        (f"the background is {scene.background}.", f"all is on a {scene.background} background."),
    )
    return " ".join([ground, *parts] if rng.integers(2) else [*parts, ground])


def spatial(scene: Scene, rng: np.random.Generator) -> str:
    """Positions, sizes and colours, without events."""
    ground = scene.background
    match int(rng.integers(3)):
        case 0:
            parts = [f"{a(full_name(t))} is in the {t.place}" for t in scene.things]
            return f"{join(parts)}. the background is {ground}."
        case 1:
            parts = [f"in the {t.place} there is {a(full_name(t))}" for t in scene.things]
            return f"on a {ground} background, {join(parts)}."
        case _:
            parts = [f"{a(full_name(t))} in the {t.place}" for t in scene.things]
            return f"a {ground} background with {join(parts)}."


def _phase_deeds(scene: Scene, phase: int, rng: np.random.Generator) -> str:
    parts = [
        f"the {name(t)} {verb(t.event_in(phase), rng)}" for t in scene.things if t.event_in(phase)
    ]
    if scene.camera[phase] != "still":
        parts.append(f"the camera {pick(rng, _CAMERA[scene.camera[phase]])}")
    return " while ".join(parts) if parts else "nothing happens"


def temporal(scene: Scene, rng: np.random.Generator) -> str:
    """Events in order, without positions and background."""
    first, second = (_phase_deeds(scene, phase, rng) for phase in (0, 1))
    match int(rng.integers(3)):
        case 0:
            return f"first {first}, then {second}."
        case 1:
            return f"at the start {first}. at the end {second}."
        case _:
            return f"{first}, and after that {second}."


def camera(scene: Scene, rng: np.random.Generator) -> str:
    """The camera's movements in order, then briefly objects and background."""
    shown = join([a(name(t)) for t in scene.things])
    text = f"the camera {_camera_deeds(scene, rng)}."
    view = pick(
        rng,
        (
            f"it shows {shown} on a {scene.background} background.",
            f"{shown}, {scene.background} background.",
        ),
    )
    return f"{text} {view}"


def keyword_list(scene: Scene) -> list[str]:
    words = []
    for thing in scene.things:
        words += [name(thing), f"{thing.size} {thing.shape}", thing.place]
        words += [_gerund(e) for e in thing.events]
    words += [f"camera {c}" for c in dict.fromkeys(scene.camera) if c != "still"]
    return [*words, f"{scene.background} background"]


def keywords(scene: Scene, rng: np.random.Generator) -> str:
    """A shuffled list of objects and events, without which object does what."""
    words = keyword_list(scene)
    return ", ".join(words[i] for i in rng.permutation(len(words)))


def event(thing: Thing, deed: Event, rng: np.random.Generator) -> str:
    """One event, with its object's size, colour, shape and position."""
    if rng.integers(2):
        return f"the {full_name(thing)} in the {thing.place} {verb(deed, rng)}."
    return f"in the {thing.place} the {full_name(thing)} {verb(deed, rng)}."


def events(scene: Scene, rng: np.random.Generator) -> str:
    """All events in order, one sentence each."""
    sentences = [
        event(t, e, rng)
        for phase in (0, 1)
        for t in scene.things
        for e in t.events
        if e.phase == phase
    ]
    return " ".join(sentences)


def theme_list(scene: Scene) -> list[str]:
    return [
        f"the {_THEMES[t.events[0].action] if t.events else 'rest'} of {a(t.shape)}"
        for t in scene.things
    ]


def theme(scene: Scene, rng: np.random.Generator) -> str:
    """The subject in abstract words, without colours of objects, positions and directions."""
    text = join(theme_list(scene))
    return pick(
        rng,
        (
            f"a video about {text} on a {scene.background} background.",
            f"the theme is {text}, on {scene.background}.",
        ),
    )


def main_object(scene: Scene, rng: np.random.Generator) -> str:
    """The first object in detail: appearance, position, events, background."""
    thing = scene.things[0]
    parts = [
        pick(
            rng,
            (
                f"the main object is {a(full_name(thing))}.",
                f"the video shows {a(full_name(thing))}.",
            ),
        ),
        pick(rng, (f"its place is the {thing.place}.", f"it belongs in the {thing.place}.")),
    ]
    for phase, start in ((0, "first"), (1, "then")):
        parts.append(f"{start} it {phase_deed(thing, phase, rng)}.")
    parts.append(f"it is on a {scene.background} background.")
    return " ".join(parts)


def detailed(scene: Scene, rng: np.random.Generator) -> str:
    """Count, background, each object's appearance, position and events, and the camera."""
    parts = [f"there {'is' if len(scene.things) == 1 else 'are'} {_COUNTS[len(scene.things)]}"]
    parts[0] += f" on a {scene.background} background."
    for thing in scene.things:
        parts.append(f"{a(full_name(thing))} is in the {thing.place}.")
        parts.append(f"first it {phase_deed(thing, 0, rng)}, then it {phase_deed(thing, 1, rng)}.")
    parts.append(f"the camera {_camera_deeds(scene, rng)}.")
    return " ".join(parts)


def long(scenes: tuple[Scene, ...], rng: np.random.Generator) -> str:
    """Several scenes in order, each with its short caption."""
    first, *others = (whole(s, rng, long=False) for s in scenes)
    return " ".join([first, *(f"next, {text}" for text in others)])


def what_follows(scene: Scene, rng: np.random.Generator, phases: tuple[int, ...] = (0, 1)) -> str:
    """The events of the given phases, as a text for an image or clip of what came before.

    Raises:
        ValueError: nothing happens in these phases.
    """
    deeds = [d for d in (_phase_deeds(scene, p, rng) for p in phases) if d != "nothing happens"]
    if not deeds:
        raise ValueError(f"nothing happens in phases {phases} of {scene}")
    return pick(rng, ("then ", "after this ", "")) + ", then ".join(deeds) + "."
