"""Long films of the generated world: scenes after each other, joined by cuts and fades, and the
moments that queries ask for: complete scenes of 4 s, or slower ones. The scenes between them break
off at any frame, so that moments do not begin at multiples of their length.

Half of the moments that are asked for are groups of eight scenes that show the same frames in
different orders: only the order of frames tells them from each other. The scenes between them have
pairs of colour and shape that no query asks for.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from data.shapes import captions, facts
from data.shapes.benchmark import time_group
from data.shapes.render import render
from data.shapes.sampling import sample_crossings, sample_scene
from data.shapes.scene import (
    FPS,
    HELD_OUT_PAIRS,
    SCENE_FRAMES,
    TRAIN_PAIRS,
    Scene,
    make_rng,
    pick,
)

FADE = 4  # frames, half of them of each scene
FADES = 0.25  # share of the transitions
SHORTEST = 6  # frames of a scene that no query asks for
# With keyframes where the encoder sees a cut, and with keyframes at a fixed distance only.
ENCODINGS = (
    {"preset": "veryfast", "x264-params": "keyint=250:scenecut=40"},
    {"preset": "ultrafast", "x264-params": "keyint=100:scenecut=0"},
)


@dataclass(frozen=True)
class Film:
    """Scenes, the number of frames that are shown of each, and for each but the first whether it
    is faded in."""

    scenes: tuple[Scene, ...]
    lengths: tuple[int, ...]
    faded: tuple[bool, ...]

    @property
    def cuts(self) -> list[int]:
        """Frames at which a new scene begins, or is half faded in."""
        return np.cumsum(self.lengths)[:-1].tolist()

    def frames(self) -> Iterator[np.ndarray]:
        """The frames, uint8 [112, 112, 3]."""
        for number, scene in enumerate(self.scenes):
            shown = render(scene)[: self.lengths[number]].astype(np.float32)
            for other, begins in ((number - 1, True), (number + 1, False)):
                if not 0 <= other < len(self.scenes):
                    continue
                if not self.faded[max(number, other) - 1]:
                    continue
                # The neighbour's nearest frame is held while it fades.
                nearest = self.lengths[other] - 1 if begins else 0
                near = render(self.scenes[other], only=nearest)[0]
                for k in range(FADE // 2):
                    share = 0.5 - (k + 0.5) / FADE  # of the neighbour
                    at = k if begins else -1 - k
                    shown[at] = (1 - share) * shown[at] + share * near
            yield from np.rint(shown).astype(np.uint8)


@dataclass(frozen=True)
class Moment:
    """What a query asks for: a scene of a film, from its first frame."""

    film: int
    first: int
    text: str
    kind: str  # "order" or "events"
    prompt_name: str


def plan_films(seed: int, count: int, each: int) -> tuple[list[Film], list[Moment]]:
    """Films of `each` scenes, and the moments that are asked for: a third of the scenes of many
    films, more of a few."""
    rng = make_rng(seed, "films", 0)
    total = count * each
    asked: list[tuple[Scene, str]] = []
    orders, events = facts.Distinct(facts.temporal), facts.Distinct(facts.events)
    groups = max(1, min(total // 48, 13))
    while len(asked) < 8 * groups:
        group = time_group(sample_crossings(rng, HELD_OUT_PAIRS))
        if all(orders.admits(scene) for scene in group):
            for scene in group:
                orders.add(scene)
            asked += [(scene, "order") for scene in group]
    for _ in range(10_000):
        if len(asked) == 16 * groups:
            break
        scene = sample_scene(rng, HELD_OUT_PAIRS, busy=0.6)
        if events.admits(scene):
            events.add(scene)
            asked.append((scene, "events"))
    order = rng.permutation(total).tolist()  # scenes of all films
    by_place = dict(zip(order, asked, strict=False))
    films, moments = [], []
    for film in range(count):
        scenes, lengths = [], []
        for number in range(each):
            if found := by_place.get(film * each + number):
                scene, kind = found
                text = (captions.temporal if kind == "order" else captions.events)(scene, rng)
                prompt = "CRB-T" if kind == "order" else "DiDeMo"
                moments.append(Moment(film, sum(lengths), text, kind, prompt))
                lengths.append(SCENE_FRAMES)
            else:
                scene = sample_scene(rng, TRAIN_PAIRS, count=pick(rng, (1, 2, 3)))
                lengths.append(int(rng.integers(SHORTEST, SCENE_FRAMES + 1)))
            scenes.append(scene)
        faded = tuple((rng.random(each - 1) < FADES).tolist())
        films.append(Film(tuple(scenes), tuple(lengths), faded))
    return films, moments


def write_film(path: Path, film: Film, encoding: dict[str, str], fps: Fraction) -> None:
    """Encodes a film as H.264."""
    with av.open(str(path), "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=fps, options=dict(encoding, crf="20"))
        stream.pix_fmt, stream.time_base = "yuv420p", 1 / fps
        for number, array in enumerate(film.frames()):
            if not number:
                stream.height, stream.width = array.shape[:2]
            out.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        out.mux(stream.encode())


def write_films(
    folder: Path, seed: int, count: int, minutes: float, scene_seconds: int = SCENE_FRAMES // FPS
) -> None:
    """Writes `media/film-000.mp4`, ..., `queries.jsonl` (text, prompt_name, kind, path, start_sec,
    end_sec) and `cuts.jsonl` (path, cuts, fades: frames).

    Args:
      minutes: of a film, if none of its scenes broke off.
      scene_seconds: of a complete scene; each has the same 16 frames.
    """
    each = max(4, round(minutes * 60 / scene_seconds))
    films, moments = plan_films(seed, count, each)
    fps = Fraction(SCENE_FRAMES, scene_seconds)
    (folder / "media").mkdir(parents=True, exist_ok=True)
    names = [f"film-{number:03}.mp4" for number in range(count)]
    with open(folder / "cuts.jsonl", "w", encoding="utf-8") as file:
        for number, (name, film) in enumerate(zip(names, films, strict=True)):
            write_film(folder / "media" / name, film, ENCODINGS[number % len(ENCODINGS)], fps)
            fades = [at for at, fade in zip(film.cuts, film.faded, strict=True) if fade]
            file.write(json.dumps({"path": name, "cuts": film.cuts, "fades": fades}) + "\n")
    rows = [
        {
            "text": moment.text,
            "prompt_name": moment.prompt_name,
            "kind": moment.kind,
            "path": names[moment.film],
            "start_sec": moment.first / float(fps),
            "end_sec": (moment.first + SCENE_FRAMES) / float(fps),
        }
        for moment in moments
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "queries.jsonl").write_text(text, encoding="utf-8")
