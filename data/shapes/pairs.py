"""Training pairs: each record is a pure function of (seed, family, index).

Sources that can share a rendered video form a family: its function makes one record for each of
its sources. Record: `{id, task, query, positive, negatives}`, items `{text, instruction, image
(png), video (mp4)}`, empty = absent. Only training pairs of colour and shape occur.
"""

from collections.abc import Callable, Iterator
from multiprocessing.pool import Pool

import numpy as np

from data.shapes import captions, edits, instructions
from data.shapes.motion import fullest_frames
from data.shapes.render import encode_mp4, encode_png, render
from data.shapes.sampling import (
    sample_camera_scene,
    sample_crossings,
    sample_long,
    sample_scene,
    swap_phases,
)
from data.shapes.scene import CAMERA, PHASE_FRAMES, TRAIN_PAIRS, Scene, make_rng, pick

Record = dict

CLIP = slice(2, 14)  # the frames of a scene that a clip query shows
CLIP_CRF = 24  # and its coarser encoding: the clip is not a byte copy


def item(text: str = "", image: bytes = b"", video: bytes = b"", instruction: str = "") -> dict:
    return {"text": text, "instruction": instruction, "image": image, "video": video}


def _query(source: str, rng: np.random.Generator, **media) -> dict:
    return item(instruction=pick(rng, instructions.TRAINING[source]), **media)


def _scene_family(rng: np.random.Generator) -> dict[str, tuple]:
    scene = sample_scene(rng, TRAIN_PAIRS)
    frames = render(scene)
    positive = item(video=encode_mp4(frames))
    told, instruction = pick(
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
        "T2V_whole": (item(text=told, instruction=instruction), positive),
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
    positive = item(video=encode_mp4(render(scene)))
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
    # Hard negative: the same things and places, another order of time.
    other = render(swapped) if swapped and rng.integers(2) else frames[::-1]
    return _told_apart("T2V_temporal", captions.temporal(scene, rng), frames, other, rng)


def _crossing_family(rng: np.random.Generator) -> dict[str, tuple]:
    scene = sample_crossings(rng, TRAIN_PAIRS)
    frames = render(scene)
    first, second = frames[:PHASE_FRAMES], frames[PHASE_FRAMES:]
    # Hard negative: the very frames of the scene in one of the seven other orders.
    turned = (first, first[::-1]), (second, second[::-1])
    order = int(rng.integers(1, 8))
    halves = [turned[0][order & 1], turned[1][order >> 1 & 1]][:: -1 if order & 4 else 1]
    other = np.concatenate(halves)
    return _told_apart("T2V_crossing", captions.temporal(scene, rng), frames, other, rng)


def _motion_family(rng: np.random.Generator) -> dict[str, tuple]:
    ways = ("move", "enter", "leave")
    scene = sample_scene(
        rng, TRAIN_PAIRS, count=pick(rng, (1, 2)), busy=0.4, camera=0.0, actions=ways
    )
    thing, deed = pick(rng, [(t, e) for t in scene.things for e in t.events])
    frames = render(scene)
    return _told_apart("T2V_motion", captions.event(thing, deed, rng), frames, frames[::-1], rng)


def _told_apart(source: str, text: str, frames, other, rng) -> dict[str, tuple]:
    """A pair whose hard negative differs in time only."""
    videos = [item(video=encode_mp4(shown)) for shown in (frames, other)]
    return {source: (_query(source, rng, text=text), videos[0], videos[1:])}


def _camera_family(rng: np.random.Generator) -> dict[str, tuple]:
    scene = sample_camera_scene(rng, TRAIN_PAIRS)
    camera = scene.camera[::-1]
    while camera == scene.camera or rng.random() < 0.5:
        camera = (pick(rng, CAMERA), pick(rng, CAMERA))
    other = Scene(scene.things, scene.background, camera)
    query = _query("T2V_camera", rng, text=captions.camera(scene, rng))
    videos = [item(video=encode_mp4(render(s))) for s in (scene, other)]
    return {"T2V_camera": (query, videos[0], videos[1:])}


def _long_family(rng: np.random.Generator) -> dict[str, tuple]:
    scenes = sample_long(rng, TRAIN_PAIRS)
    shots = [render(s) for s in scenes]
    positive = item(video=encode_mp4(np.concatenate(shots)))
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
    return {"TV2V": (_query("TV2V", rng, text=text, video=start), item(video=encode_mp4(frames)))}


def _text_family(rng: np.random.Generator) -> dict[str, tuple]:
    scene = sample_scene(rng, TRAIN_PAIRS)
    # Kinds that tell enough of the same things to be known as one scene.
    kinds = (
        lambda: captions.whole(scene, rng, long=False),
        lambda: captions.whole(scene, rng, long=True),
        lambda: captions.detailed(scene, rng),
        lambda: captions.keywords(scene, rng),
        lambda: captions.spatial(scene, rng),
    )
    first, second = rng.permutation(len(kinds))[:2].tolist()
    return {"T2T": (_query("T2T", rng, text=kinds[first]()), item(text=kinds[second]()))}


def _image_family(rng: np.random.Generator) -> dict[str, tuple]:
    scene = edits.sample_still(rng, TRAIN_PAIRS)
    image = item(image=encode_png(render(scene, only=0)[0]))
    return {"T2I": (_query("T2I", rng, text=captions.spatial(scene, rng)), image)}


def _moment_family(rng: np.random.Generator) -> dict[str, tuple]:
    scene = sample_scene(rng, TRAIN_PAIRS, count=pick(rng, (2, 3)), busy=0.3, camera=0.7)
    early, late = (
        encode_png(render(scene, only=int(rng.integers(*r)))[0]) for r in ((0, 6), (10, 16))
    )
    if rng.integers(2):
        early, late = late, early
    return {"I2I": (_query("I2I", rng, image=early), item(image=late))}


def _edit_family(rng: np.random.Generator) -> dict[str, tuple]:
    scene = edits.sample_still(rng, TRAIN_PAIRS)
    order, edited = edits.sample_edit(rng, scene, TRAIN_PAIRS)
    before, after = (encode_png(render(s, only=0)[0]) for s in (scene, edited))
    return {
        "TI2I": (_query("TI2I", rng, text=order, image=before), item(image=after)),
        "TI2T": (
            _query("TI2T", rng, text=order, image=before),
            item(text=captions.spatial(edited, rng)),
        ),
    }


# family -> (function, size of each of its sources at scale 1). What is about time is hardest to
# learn and has the most pairs.
FAMILIES: dict[str, tuple[Callable[[np.random.Generator], dict[str, tuple]], dict[str, int]]] = {
    "text": (_text_family, {"T2T": 300}),
    "image": (_image_family, {"T2I": 300}),
    "moment": (_moment_family, {"I2I": 200}),
    "edit": (_edit_family, {"TI2I": 300, "TI2T": 300}),
    "scene": (
        _scene_family,
        {"T2V_whole": 900, "T2V_keywords": 700, "T2V_theme": 700, "I2V": 300, "TI2V": 600},
    ),
    "place": (_place_family, {"T2V_spatial": 700, "T2V_object": 700, "T2V_event": 900}),
    "temporal": (_temporal_family, {"T2V_temporal": 900}),
    "crossing": (_crossing_family, {"T2V_crossing": 2000}),
    "motion": (_motion_family, {"T2V_motion": 1000}),
    "camera": (_camera_family, {"T2V_camera": 1500}),
    "long": (_long_family, {"T2V_long": 450, "V2V": 450}),
    "continuation": (_continuation_family, {"TV2V": 400}),
}
SOURCES: dict[str, str] = {
    source: family for family, (_, sizes) in FAMILIES.items() for source in sizes
}


def sizes(scale: float) -> dict[str, int]:
    """Records of each source at `scale`; never under 8."""
    return {s: max(8, round(n * scale)) for _, table in FAMILIES.values() for s, n in table.items()}


def make_records(job: tuple[int, str, int]) -> dict[str, Record]:
    """All records of item `index` of a family: {source: record}. `job` is (seed, family, index)."""
    seed, family, index = job
    made = FAMILIES[family][0](make_rng(seed, f"train/{family}", index))
    records = {}
    for source, (query, positive, *rest) in made.items():
        records[source] = {
            "id": f"{source}-{index:06d}",
            "task": source,
            "query": query,
            "positive": positive,
            "negatives": rest[0] if rest else [],
        }
    return records


def family_records(pool: Pool, seed: int, scale: float, family: str) -> Iterator[dict[str, Record]]:
    """Runs a family in the pool, in order of index; each step gives {source: record}."""
    wanted = {s: sizes(scale)[s] for s in FAMILIES[family][1]}
    jobs = [(seed, family, index) for index in range(max(wanted.values()))]
    for index, records in enumerate(pool.imap(make_records, jobs, chunksize=8)):
        yield {source: r for source, r in records.items() if index < wanted[source]}
