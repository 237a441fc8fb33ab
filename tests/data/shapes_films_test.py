"""Films have the scenes, cuts and fades that their files say, and queries with one answer."""

import json

import av
import numpy as np

from data.shapes.films import FADE, Film, plan_films, write_films
from data.shapes.render import decode_mp4, render
from data.shapes.scene import FPS, SCENE_FRAMES


def test_frames_are_those_of_the_scenes_except_in_fades():
    film = plan_films(0, 2, 10)[0][0]
    film = Film(film.scenes[:3], (16, 10, 9), (False, True))
    frames = np.stack(list(film.frames()))
    assert frames.shape == (35, 112, 112, 3) and film.cuts == [16, 26]
    scenes = [render(scene)[:n] for scene, n in zip(film.scenes, film.lengths, strict=True)]
    plain = np.concatenate(scenes)
    differs = np.flatnonzero((frames != plain).any(axis=(1, 2, 3)))
    assert differs.tolist() == list(range(26 - FADE // 2, 26 + FADE // 2))
    share = (26 - FADE // 2, 0.5 / FADE), (25, 1.5 / FADE)
    for at, part in share:
        mixed = (1 - part) * plain[at] + part * scenes[2][0]
        assert np.abs(frames[at] - mixed).max() <= 0.51


def test_queries_have_one_answer():
    films, moments = plan_films(0, 3, 30)
    assert len(films) == 3 and all(len(film.scenes) == 30 for film in films)
    asked = {(moment.film, moment.first) for moment in moments}
    assert len(asked) == len(moments) and len(moments) == 16
    assert {moment.kind for moment in moments} == {"order", "events"}
    texts = [moment.text for moment in moments]
    assert len(set(texts)) > 0.9 * len(texts)
    assert plan_films(0, 3, 30) == (films, moments) and plan_films(1, 3, 30)[1] != moments


def test_files(tmp_path):
    write_films(tmp_path, 0, 2, 0.7)
    lines = [json.loads(line) for line in (tmp_path / "cuts.jsonl").read_text().splitlines()]
    edges = {}
    for line in lines:
        frames = decode_mp4((tmp_path / "media" / line["path"]).read_bytes())
        edges[line["path"]] = [0, *line["cuts"], len(frames)]
        assert np.diff(edges[line["path"]]).min() >= 6
        assert set(line["fades"]) <= set(line["cuts"])
    queries = [json.loads(line) for line in (tmp_path / "queries.jsonl").read_text().splitlines()]
    for query in queries:
        assert query["end_sec"] - query["start_sec"] == SCENE_FRAMES / FPS
        assert {query["start_sec"] * FPS, query["end_sec"] * FPS} <= set(edges[query["path"]])
    assert any(query["start_sec"] % 4 for query in queries)


def test_slow_scenes_have_the_same_frames(tmp_path):
    for name, seconds in (("fast", 4), ("slow", 8)):
        write_films(tmp_path / name, 0, 1, seconds / 15, scene_seconds=seconds)
    fast, slow = (
        [json.loads(line) for line in (tmp_path / name / "queries.jsonl").read_text().splitlines()]
        for name in ("fast", "slow")
    )
    assert [query["text"] for query in fast] == [query["text"] for query in slow]
    assert [2 * query["start_sec"] for query in fast] == [query["start_sec"] for query in slow]
    with av.open(str(tmp_path / "slow" / "media" / "film-000.mp4")) as file:
        video = file.streams.video[0]
        assert video.average_rate == 2 and video.frames == len(
            decode_mp4((tmp_path / "fast" / "media" / "film-000.mp4").read_bytes())
        )
