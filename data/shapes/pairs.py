"""Training pairs: each record is a pure function of (seed, family, index).

Sources that share a rendered video form a family, whose function returns one record per source.
Records are `{id, task, query, positive, negatives}` of items `{text, instruction, image (png),
video (mp4)}`; absent fields are empty. Objects have the training pairs of colour and shape.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.pool import Pool

import numpy as np

from data.shapes import captions, edits, instructions
from data.shapes.motion import fullest_frames, is_clear
from data.shapes.render import encode_mp4, encode_png, render
from data.shapes.sampling import (
    add_event,
    sample_camera,
    sample_camera_scene,
    sample_crossings,
    sample_event,
    sample_long,
    sample_scene,
    sample_things,
    set_events,
    swap_phases,
)
from data.shapes.scene import (
    BACKGROUNDS,
    OPPOSITE,
    PHASE_FRAMES,
    TRAIN_PAIRS,
    Scene,
    make_rng,
    pick,
)
from gve_jax.streams.pairs import item_fields

Record = dict

CLIP = slice(2, 14)  # frames of a clip query
CLIP_CRF = 24  # coarser than that of videos, so that the clip is not a copy
MOTIONS = ("move", "enter", "leave", "grow", "shrink")
# Sources with groups of adjacent records whose videos differ in time only. In one batch they are
# hard negatives of each other.
SIBLINGS = {"T2V_crossing": 2, "T2V_motion": 2, "T2V_camera": 2}


def _query(source: str, rng: np.random.Generator, **media) -> dict:
    return item_fields(instruction=pick(rng, instructions.TRAINING[source]), **media)


def _scene_family(rng: np.random.Generator) -> dict[str, tuple]:
    scene = sample_scene(rng, TRAIN_PAIRS)
    frames = render(scene)
    positive = item_fields(video=encode_mp4(frames))
    text, instruction = pick(
        rng,
        (
            (captions.whole(scene, rng, long=False), instructions.EVALUATION["MSRVTT"]),
            (captions.whole(scene, rng, long=True), instructions.EVALUATION["CRB-G"]),
            (captions.events(scene, rng), instructions.EVALUATION["DiDeMo"]),
            (captions.detailed(scene, rng), instructions.EVALUATION["VDC-D"]),
        ),
    )
    still = encode_png(frames[pick(rng, fullest_frames(scene))])
    first = encode_png(frames[0])
    return {
        "T2V_whole": (item_fields(text=text, instruction=instruction), positive),
        "T2V_keywords": (_query("T2V_keywords", rng, text=captions.keywords(scene, rng)), positive),
        "T2V_theme": (_query("T2V_theme", rng, text=captions.theme(scene, rng)), positive),
        "I2V": (_query("I2V", rng, image=still), positive),
        "TI2V": (
            _query("TI2V", rng, image=first, text=captions.what_follows(scene, rng)),
            positive,
        ),
    }


def _place_family(rng: np.random.Generator) -> dict[str, tuple]:
    scene = sample_scene(rng, TRAIN_PAIRS)
    positive = item_fields(video=encode_mp4(render(scene)))
    thing, deed = pick(rng, [(t, e) for t in scene.things for e in t.events])
    return {
        "T2V_spatial": (_query("T2V_spatial", rng, text=captions.spatial(scene, rng)), positive),
        "T2V_object": (_query("T2V_object", rng, text=captions.main_object(scene, rng)), positive),
        "T2V_event": (_query("T2V_event", rng, text=captions.event(thing, deed, rng)), positive),
    }


def _temporal_family(rng: np.random.Generator) -> dict[str, tuple]:
    scene = sample_scene(rng, TRAIN_PAIRS, count=pick(rng, (1, 2)), phases=(0, 1), camera=0.15)
    frames = render(scene)
    swapped = swap_phases(scene)
    # Hard negative: the same objects and positions in another order of time.
    other = render(swapped) if swapped and rng.integers(2) else frames[::-1]
    videos = [item_fields(video=encode_mp4(shown)) for shown in (frames, other)]
    query = _query("T2V_temporal", rng, text=captions.temporal(scene, rng))
    return {"T2V_temporal": (query, videos[0], videos[1:])}


def _crossing_family(rng: np.random.Generator) -> list[Scene]:
    """Two objects cross the frame; the same in one of the seven other directions and orders."""
    scene = sample_crossings(rng, TRAIN_PAIRS)
    orders = [variant for order in (scene, swap_phases(scene)) for variant in _turned(order)]
    return [scene, pick(rng, orders[1:])]


def _turned(scene: Scene) -> list[Scene]:
    """All combinations of the movements and their opposite directions."""
    scenes = [scene]
    for index, thing in enumerate(scene.things):
        (deed,) = thing.events
        back = replace(deed, argument=OPPOSITE[deed.argument])
        scenes += [replace(s, things=set_events(s.things, index, (back,))) for s in list(scenes)]
    return scenes


def _motion_family(rng: np.random.Generator) -> list[Scene]:
    """One object among still ones, with different events."""
    things = sample_things(rng, TRAIN_PAIRS, pick(rng, (1, 2)))
    background, phase = pick(rng, BACKGROUNDS), int(rng.integers(2))
    scenes: list[Scene] = []
    while len(scenes) < SIBLINGS["T2V_motion"]:
        deed = sample_event(rng, things[0], phase, things, TRAIN_PAIRS, MOTIONS)
        scene = Scene(add_event(things, 0, deed), background)
        if deed and scene not in scenes and is_clear(scene):
            scenes.append(scene)
    return scenes


def _camera_family(rng: np.random.Generator) -> list[Scene]:
    """Still objects under different camera movements, half of the time in reverse order."""
    scene = sample_camera_scene(rng, TRAIN_PAIRS)
    scenes = [scene]
    if scene.camera[0] != scene.camera[1] and rng.integers(2):
        scenes.append(replace(scene, camera=scene.camera[::-1]))
    while len(scenes) < SIBLINGS["T2V_camera"]:
        other = replace(scene, camera=sample_camera(rng, moving=1.0))
        if other not in scenes:
            scenes.append(other)
    return scenes


def _long_family(rng: np.random.Generator) -> dict[str, tuple]:
    scenes = sample_long(rng, TRAIN_PAIRS)
    shots = [render(s) for s in scenes]
    positive = item_fields(video=encode_mp4(np.concatenate(shots)))
    clip = encode_mp4(pick(rng, shots)[CLIP], crf=CLIP_CRF)
    return {
        "T2V_long": (_query("T2V_long", rng, text=captions.long(scenes, rng)), positive),
        "V2V": (_query("V2V", rng, video=clip), positive),
    }


def _continuation_family(rng: np.random.Generator) -> dict[str, tuple]:
    scene = sample_scene(rng, TRAIN_PAIRS, phases=(0, 1), camera=0.2)
    frames = render(scene)
    start = encode_mp4(frames[:PHASE_FRAMES])
    text = captions.what_follows(scene, rng, phases=(1,))
    positive = item_fields(video=encode_mp4(frames))
    return {"TV2V": (_query("TV2V", rng, text=text, video=start), positive)}


def _text_family(rng: np.random.Generator) -> dict[str, tuple]:
    scene = sample_scene(rng, TRAIN_PAIRS)
    # Kinds of captions that overlap enough to identify the scene.
    kinds = (
        lambda: captions.whole(scene, rng, long=False),
        lambda: captions.whole(scene, rng, long=True),
        lambda: captions.detailed(scene, rng),
        lambda: captions.keywords(scene, rng),
        lambda: captions.spatial(scene, rng),
    )
    first, second = rng.permutation(len(kinds))[:2].tolist()
    return {"T2T": (_query("T2T", rng, text=kinds[first]()), item_fields(text=kinds[second]()))}


def _image_family(rng: np.random.Generator) -> dict[str, tuple]:
    scene = edits.sample_still(rng, TRAIN_PAIRS)
    image = item_fields(image=encode_png(render(scene, only=0)[0]))
    return {"T2I": (_query("T2I", rng, text=captions.spatial(scene, rng)), image)}


def _moment_family(rng: np.random.Generator) -> dict[str, tuple]:
    scene = sample_scene(rng, TRAIN_PAIRS, count=pick(rng, (2, 3)), busy=0.3, camera=0.7)
    early, late = (
        encode_png(render(scene, only=int(rng.integers(*r)))[0]) for r in ((0, 6), (10, 16))
    )
    if rng.integers(2):
        early, late = late, early
    return {"I2I": (_query("I2I", rng, image=early), item_fields(image=late))}


def _edit_family(rng: np.random.Generator) -> dict[str, tuple]:
    scene = edits.sample_still(rng, TRAIN_PAIRS)
    order, edited = edits.sample_edit(rng, scene, TRAIN_PAIRS)
    before, after = (encode_png(render(s, only=0)[0]) for s in (scene, edited))
    return {
        "TI2I": (_query("TI2I", rng, text=order, image=before), item_fields(image=after)),
        "TI2T": (
            _query("TI2T", rng, text=order, image=before),
            item_fields(text=captions.spatial(edited, rng)),
        ),
    }


def _motion_caption(scene: Scene, rng: np.random.Generator) -> str:
    ((thing, deed),) = [(t, e) for t in scene.things for e in t.events]
    return captions.event(thing, deed, rng)


# family -> (function, size of each of its sources at scale 1).
FAMILIES: dict[str, tuple[Callable[[np.random.Generator], dict[str, tuple]], dict[str, int]]] = {
    "text": (_text_family, {"T2T": 300}),
    "image": (_image_family, {"T2I": 300}),
    "moment": (_moment_family, {"I2I": 200}),
    "edit": (_edit_family, {"TI2I": 300, "TI2T": 300}),
    "scene": (
        _scene_family,
        {"T2V_whole": 900, "T2V_keywords": 600, "T2V_theme": 500, "I2V": 300, "TI2V": 500},
    ),
    "place": (_place_family, {"T2V_spatial": 600, "T2V_object": 500, "T2V_event": 600}),
    "temporal": (_temporal_family, {"T2V_temporal": 600}),
    "long": (_long_family, {"T2V_long": 450, "V2V": 450}),
    "continuation": (_continuation_family, {"TV2V": 400}),
}
# source with siblings -> (scenes of a group, caption, size at scale 1). Order in time is hardest to
# learn and has the most pairs.
GROUPED: dict[str, tuple[Callable, Callable, int]] = {
    "T2V_crossing": (_crossing_family, captions.temporal, 3600),
    "T2V_motion": (_motion_family, _motion_caption, 600),
    "T2V_camera": (_camera_family, captions.camera, 3600),
}
SOURCES: dict[str, str] = {
    source: family for family, (_, sizes) in FAMILIES.items() for source in sizes
} | {source: source for source in GROUPED}


def sizes(scale: float) -> dict[str, int]:
    """Records of each source at `scale`: at least 8, and complete groups of siblings."""
    table = {s: n for _, sizes in FAMILIES.values() for s, n in sizes.items()}
    table |= {source: size for source, (_, _, size) in GROUPED.items()}
    counts = {source: max(8, round(size * scale)) for source, size in table.items()}
    return {s: -(-n // SIBLINGS.get(s, 1)) * SIBLINGS.get(s, 1) for s, n in counts.items()}


def family_sizes(family: str, scale: float) -> dict[str, int]:
    """Records of each source of a family (a grouped source is a family of its own)."""
    counts = sizes(scale)
    return {source: counts[source] for source, owner in SOURCES.items() if owner == family}


def make_records(job: tuple[int, str, int]) -> dict[str, Record]:
    """All records of item `index` of a family: {source: record}. `job` is (seed, family, index)."""
    seed, family, index = job
    if family in GROUPED:
        sides = _sibling(seed, family, index)
    else:
        sides = FAMILIES[family][0](make_rng(seed, f"train/{family}", index))
    records = {}
    for source, (query, positive, *rest) in sides.items():
        records[source] = {
            "id": f"{source}-{index:06d}",
            "task": source,
            "query": query,
            "positive": positive,
            "negatives": rest[0] if rest else [],
        }
    return records


def _sibling(seed: int, source: str, index: int) -> dict[str, tuple]:
    """One of the siblings of a group: samples the group, renders one."""
    sample, caption, _ = GROUPED[source]
    group, number = divmod(index, SIBLINGS[source])
    scene = sample(make_rng(seed, f"train/{source}", group))[number]
    rng = make_rng(seed, f"train/{source}/text", index)
    query = _query(source, rng, text=caption(scene, rng))
    return {source: (query, item_fields(video=encode_mp4(render(scene))))}


def family_records(pool: Pool, seed: int, scale: float, family: str) -> Iterator[dict[str, Record]]:
    """Runs a family in the pool; yields {source: record} in order of index."""
    counts = family_sizes(family, scale)
    jobs = [(seed, family, index) for index in range(max(counts.values()))]
    for index, records in enumerate(pool.imap(make_records, jobs, chunksize=8)):
        yield {source: r for source, r in records.items() if index < counts[source]}
