"""Plans the miniature UVRB: 16 sets with the names and abilities of UVRB's (arXiv 2510.27571).

Objects have pairs of colour and shape that do not occur in training. A plan has scenes, captions
and answers; `benchmark_files` renders it, so that tests can check plans alone.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from data.shapes import captions, facts
from data.shapes.motion import fullest_frames, is_clear
from data.shapes.pairs import CLIP
from data.shapes.sampling import (
    possible_events,
    sample_crossings,
    sample_long,
    sample_scene,
    sample_things,
    turn_options,
)
from data.shapes.scene import (
    BACKGROUNDS,
    CAMERA,
    HELD_OUT_PAIRS,
    OPPOSITE,
    PHASE_FRAMES,
    SIZES,
    Event,
    Scene,
    Thing,
    make_rng,
    pick,
)

Scenes = tuple[Scene, ...]


@dataclass(frozen=True)
class Query:
    """A text, a frame of a scene, a clip of a scene, or a text with one of these.

    Attributes:
      answer: index of the positive document.
      image: (scene, frame).
      clip: (scene, first frame, last frame + 1, whether the encoding is coarse).
    """

    answer: int
    text: str = ""
    image: tuple[Scene, int] | None = None
    clip: tuple[Scene, int, int, bool] | None = None


@dataclass
class Plan:
    """A set; `documents[i]` are the scenes of video i."""

    documents: list[Scenes]
    queries: list[Query] = field(default_factory=list)


def collect(
    rng: np.random.Generator,
    count: int,
    distinct: list[facts.Distinct],
    draw: Callable[[np.random.Generator], Scene],
) -> list[Scene]:
    """`count` scenes that are distinct by every rule, also from scenes that the rules have seen."""
    scenes: list[Scene] = []
    for _ in range(10_000):
        if len(scenes) == count:
            return scenes
        scene = draw(rng)
        if all(d.admits(scene) for d in distinct):
            for d in distinct:
                d.add(scene)
            scenes.append(scene)
    raise RuntimeError(f"only {len(scenes)} of {count} distinct scenes found")


def _general(rng: np.random.Generator) -> Scene:
    return sample_scene(rng, HELD_OUT_PAIRS)


def _captioned(
    rng: np.random.Generator, scenes: list[Scene], caption: Callable, count: int | None = None
) -> Plan:
    """A document per scene, and a query `caption(scene, rng)` for each of the first `count`."""
    queries = [Query(i, text=caption(scene, rng)) for i, scene in enumerate(scenes[:count])]
    return Plan([(s,) for s in scenes], queries)


def _coarse(rng: np.random.Generator, size: float) -> dict[str, Plan]:
    """MSRVTT, MSRVTT-I2V (frames of the same videos) and DiDeMo (a paragraph of events)."""
    count = _scaled(100, size)
    scenes = collect(
        rng, count, [facts.Distinct(facts.short), facts.Distinct(facts.spatial)], _general
    )
    plans = {"MSRVTT": _captioned(rng, scenes, lambda s, r: captions.whole(s, r, long=False))}
    frames = Plan([(s,) for s in scenes])
    for i, scene in enumerate(scenes):
        # Not an empty frame.
        frames.queries.append(Query(i, image=(scene, pick(rng, fullest_frames(scene)))))
    plans["MSRVTT-I2V"] = frames

    def eventful(r: np.random.Generator) -> Scene:
        while True:
            scene = sample_scene(r, HELD_OUT_PAIRS, count=pick(r, (2, 3)), busy=0.6)
            if sum(len(t.events) for t in scene.things) >= 2:
                return scene

    scenes = collect(rng, count, [facts.Distinct(facts.events)], eventful)
    plans["DiDeMo"] = _captioned(rng, scenes, captions.events)
    return plans


def _variants(rng: np.random.Generator) -> list[Scene]:
    """Four scenes with the same shapes and events that differ in cells or in one colour."""
    while True:
        # No movements: from another cell a movement could leave the frame.
        scene = sample_scene(
            rng,
            HELD_OUT_PAIRS,
            count=pick(rng, (2, 3)),
            camera=0.0,
            actions=("grow", "shrink", "blink", "enter", "leave"),
        )
        first, second, *rest = scene.things
        colours = turn_options(first, scene.things, HELD_OUT_PAIRS)
        if not colours:
            continue
        free = [c for c in range(9) if c not in {t.cell for t in scene.things}]
        changed = (
            (first, second),
            (replace(first, cell=second.cell), replace(second, cell=first.cell)),
            (replace(first, cell=pick(rng, free)), second),
            (replace(first, colour=pick(rng, colours)), second),
        )
        four = [replace(scene, things=(*pair, *rest)) for pair in changed]
        if all(is_clear(s) for s in four):
            return four


def _spatial(rng: np.random.Generator, size: float) -> dict[str, Plan]:
    """CRB-G and CRB-S over the same videos; half are groups of four that differ in space only."""
    count = _scaled(100, size)
    distinct = facts.Distinct(facts.spatial)
    scenes: list[Scene] = []
    while len(scenes) < count // 2:
        four = _variants(rng)
        trial = [s for s in four if distinct.admits(s)]
        if len(trial) == 4:
            for scene in four:
                distinct.add(scene)
            scenes += four
    scenes += collect(rng, count - len(scenes), [distinct], _general)
    return {
        "CRB-G": _captioned(rng, scenes, lambda s, r: captions.whole(s, r, long=True)),
        "CRB-S": _captioned(rng, scenes, captions.spatial),
    }


def _objects(rng: np.random.Generator, size: float) -> dict[str, Plan]:
    """VDC-O (the main object at length) and VDC-D (everything) over the same videos."""
    distinct = [
        facts.Distinct(facts.main_object, facts.all_objects),
        facts.Distinct(facts.detailed),
    ]
    scenes = collect(rng, _scaled(100, size), distinct, _general)
    return {
        "VDC-O": _captioned(rng, scenes, captions.main_object),
        "VDC-D": _captioned(rng, scenes, captions.detailed),
    }


def time_group(scene: Scene) -> list[Scene]:
    """The eight orders of two crossings: both directions of each path, either object first.

    All eight show the same 16 frames in different orders.
    """
    group = []
    for turned in ((False, False), (False, True), (True, False), (True, True)):
        for swapped in (False, True):
            things = []
            for thing, turn in zip(scene.things, turned, strict=True):
                (event,) = thing.events
                way = OPPOSITE[event.argument] if turn else event.argument
                phase = 1 - event.phase if swapped else event.phase
                things.append(replace(thing, events=(Event("cross", way, phase),)))
            group.append(replace(scene, things=tuple(things)))
    return group


def _time(rng: np.random.Generator, size: float) -> dict[str, Plan]:
    """CRB-T: groups of eight videos that differ in time only."""
    distinct = facts.Distinct(facts.temporal)
    scenes: list[Scene] = []
    while len(scenes) < 8 * _scaled(13, size, least=2):
        group = time_group(sample_crossings(rng, HELD_OUT_PAIRS))
        if all(distinct.admits(s) for s in group):
            for scene in group:
                distinct.add(scene)
            scenes += group
    return {"CRB-T": _captioned(rng, scenes, captions.temporal)}


def _camera(rng: np.random.Generator, size: float) -> dict[str, Plan]:
    """CMRB: three still lifes with 40 camera motions each; queries for two thirds of them."""
    motions = [(a, b) for a in CAMERA for b in CAMERA if (a, b) != ("still", "still")]
    scenes = []
    names = rng.permutation(len(HELD_OUT_PAIRS)).tolist()
    for i in range(3):
        pairs = tuple(HELD_OUT_PAIRS[n] for n in names[2 * i : 2 * i + 2])
        base = Scene(sample_things(rng, pairs, 2), tuple(BACKGROUNDS)[i])
        chosen = rng.permutation(len(motions))[: _scaled(40, size)].tolist()
        scenes += [replace(base, camera=motions[m]) for m in chosen]
    order = rng.permutation(len(scenes)).tolist()
    scenes = [scenes[i] for i in order]
    return {"CMRB": _captioned(rng, scenes, captions.camera, count=2 * len(scenes) // 3)}


def _events(rng: np.random.Generator, size: float) -> dict[str, Plan]:
    """DREAM-E: videos of three events; each query is an event of one video only."""

    def three(r: np.random.Generator) -> Scene:
        while True:
            scene = sample_scene(r, HELD_OUT_PAIRS, count=pick(r, (2, 3)), busy=0.6, camera=0.2)
            if sum(len(t.events) for t in scene.things) == len(facts.events(scene)) == 3:
                return scene

    scenes = collect(rng, _scaled(100, size), [facts.Distinct(facts.events)], three)
    plan = Plan([(s,) for s in scenes])
    events = [(i, t, e) for i, s in enumerate(scenes) for t in s.things for e in t.events]
    for k in rng.permutation(len(events)).tolist():
        i, thing, event = events[k]
        fact = facts.event(thing, event)
        is_unique = sum(fact <= facts.events(s) for s in scenes) == 1
        if is_unique and len(plan.queries) < 2 * len(scenes):
            plan.queries.append(Query(i, text=captions.event(thing, event, rng)))
    return {"DREAM-E": plan}


def _words(rng: np.random.Generator, size: float) -> dict[str, Plan]:
    """LoVR-TH (themes) and PEV-K (keywords, a tenth of the videos without a query)."""
    count = _scaled(100, size)
    themes = collect(rng, count, [facts.Distinct(facts.theme)], _general)
    words = collect(rng, count + count // 10, [facts.Distinct(facts.keywords)], _general)
    return {
        "LoVR-TH": _captioned(rng, themes, captions.theme),
        "PEV-K": _captioned(rng, words, captions.keywords, count=count),
    }


def _long(rng: np.random.Generator, size: float) -> dict[str, Plan]:
    """LoVR-V (long texts) and LoVR-C2V (a clip of one scene) over the same long videos."""
    distinct = [facts.Distinct(facts.short), facts.Distinct(facts.spatial)]
    documents: list[Scenes] = []
    while len(documents) < _scaled(50, size):
        scenes = sample_long(rng, HELD_OUT_PAIRS)
        # No scene occurs in two videos, so that any scene can be the clip.
        if all(d.admits(s) for d in distinct for s in scenes):
            for d in distinct:
                for s in scenes:
                    d.add(s)
            documents.append(scenes)
    captioned = documents[: _scaled(40, size)]
    texts = [Query(i, text=captions.long(d, rng)) for i, d in enumerate(captioned)]
    clips = [
        Query(i, clip=(pick(rng, d), CLIP.start, CLIP.stop, True)) for i, d in enumerate(documents)
    ]
    return {"LoVR-V": Plan(documents, texts), "LoVR-C2V": Plan(documents, clips)}


def _starts(rng: np.random.Generator, actor: tuple[str, str]) -> list[Scene]:
    """Four scenes with one actor in the cells of a 2x2 block, with different backgrounds and still
    companions."""
    left, top = int(rng.integers(2)), int(rng.integers(2))
    backgrounds = rng.permutation(len(BACKGROUNDS)).tolist()
    others = tuple(p for p in HELD_OUT_PAIRS if p != actor)
    scenes = []
    for i, (row, column) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
        cell = 3 * (top + row) + left + column
        free = tuple(c for c in range(9) if c != cell)
        companion = sample_things(rng, others, 1, cells=free)
        thing = Thing(*actor, size=pick(rng, SIZES), cell=cell)
        scenes.append(Scene((thing, *companion), tuple(BACKGROUNDS)[backgrounds[i]]))
    return scenes


def _with_actor(scene: Scene, *events: Event) -> Scene:
    actor = replace(scene.things[0], events=(*scene.things[0].events, *events))
    return replace(scene, things=(actor, *scene.things[1:]))


def _options(scene: Scene, phase: int, actions: tuple[str, ...]) -> list[Event]:
    actor = scene.things[0]
    return [
        e for a in actions for e in possible_events(actor, phase, a, scene.things, HELD_OUT_PAIRS)
    ]


def _common(
    rng: np.random.Generator, scenes: list[Scene], phase: int, actions: tuple[str, ...]
) -> list[Event]:
    """Events that are possible for the actors of all scenes, in random order."""
    shared = [
        e
        for e in _options(scenes[0], phase, actions)
        if all(e in _options(s, phase, actions) for s in scenes)
    ]
    return [shared[i] for i in rng.permutation(len(shared)).tolist()]


_STAY = ("move", "grow", "shrink", "blink", "turn")  # events after which the actor is still visible


def _image_group(rng: np.random.Generator, actor: tuple[str, str]) -> list[tuple[Scene, Scene]]:
    """(start, continued scene) for 4 starts and 5 continuations of two events."""
    while True:
        starts = _starts(rng, actor)
        chosen: list[tuple[Event, Event]] = []
        while len(chosen) < 5:
            first = _common(rng, starts, 0, _STAY)[0]
            after = [_with_actor(s, first) for s in starts]
            second = _common(rng, after, 1, (*_STAY, "leave"))[0]
            if (first, second) not in chosen:
                chosen.append((first, second))
        group = [(s, _with_actor(s, *events)) for s in starts for events in chosen]
        if all(is_clear(scene) for _, scene in group):
            return group


def _clip_group(rng: np.random.Generator, actor: tuple[str, str]) -> list[Scene]:
    """4 first halves with 5 second halves of one event each."""
    while True:
        # No colour change in the first half: the text names the actor by its colour.
        starts = [
            _with_actor(s, pick(rng, _options(s, 0, ("move", "grow", "shrink", "blink"))))
            for s in _starts(rng, actor)
        ]
        chosen = _common(rng, starts, 1, (*_STAY, "leave"))[:5]
        group = [_with_actor(s, event) for s in starts for event in chosen]
        if len(chosen) == 5 and all(is_clear(scene) for scene in group):
            return group


def _composed(rng: np.random.Generator, size: float) -> dict[str, Plan]:
    """MS-TI and MS-TV: groups of 4 starts and 5 continuations by one actor.

    The text matches four videos, the image (or clip) five, both together one.
    """
    images, clips = Plan([]), Plan([])
    actors = rng.permutation(len(HELD_OUT_PAIRS))[: _scaled(5, size, least=1)].tolist()
    for actor in (HELD_OUT_PAIRS[i] for i in actors):
        for start, scene in _image_group(rng, actor):
            text = captions.what_follows(scene, rng)
            # The image of the start, the same for all five continuations.
            images.queries.append(Query(len(images.documents), text, image=(start, 0)))
            images.documents.append((scene,))
        for scene in _clip_group(rng, actor):
            text = captions.what_follows(scene, rng, phases=(1,))
            clip = (scene, 0, PHASE_FRAMES, False)
            clips.queries.append(Query(len(clips.documents), text, clip=clip))
            clips.documents.append((scene,))
    return {"MS-TI": images, "MS-TV": clips}


def _scaled(count: int, size: float, least: int = 8) -> int:
    return max(least, round(count * min(size, 1.0)))


_MAKERS = (_coarse, _spatial, _objects, _time, _camera, _events, _words, _long, _composed)


def plan(seed: int, scale: float = 1.0) -> dict[str, Plan]:
    """All 16 sets; `scale` below 1 makes them smaller, above 1 has no effect."""
    plans: dict[str, Plan] = {}
    for maker in _MAKERS:
        plans |= maker(make_rng(seed, f"UVRB/{maker.__name__}", 0), scale)
    return plans
