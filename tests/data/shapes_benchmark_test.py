"""The miniature UVRB: one positive per query, distractors, the layout of files."""

import json
from collections import Counter

import numpy as np
import pytest

from data.shapes import benchmark, benchmark_files, facts
from data.shapes.instructions import EVALUATION
from data.shapes.motion import is_clear
from data.shapes.render import decode_mp4, render
from data.shapes.scene import HELD_OUT_PAIRS, PHASE_FRAMES, Scene

# Facts of the texts and of the videos, by set with one text per document.
FACTS = {
    "MSRVTT": (facts.short, facts.short),
    "DiDeMo": (facts.events, facts.events),
    "CRB-G": (facts.whole, facts.whole),
    "CRB-S": (facts.spatial, facts.spatial),
    "CRB-T": (facts.temporal, facts.temporal),
    "CMRB": (facts.camera, facts.camera),
    "LoVR-TH": (facts.theme, facts.theme),
    "PEV-K": (facts.keywords, facts.keywords),
    "VDC-O": (facts.main_object, facts.all_objects),
    "VDC-D": (facts.detailed, facts.detailed),
}


@pytest.fixture(scope="module")
def plans() -> dict[str, benchmark.Plan]:
    return benchmark.plan(0)


def scenes(plan: benchmark.Plan) -> list[Scene]:
    return [s for document in plan.documents for s in document]


def test_sets_and_their_sizes(plans):
    assert set(plans) == set(EVALUATION) and len(plans) == 16
    sizes = {name: (len(p.queries), len(p.documents)) for name, p in plans.items()}
    assert sizes["CRB-T"] == (104, 104) and sizes["CMRB"] == (80, 120)
    assert sizes["DREAM-E"] == (200, 100) and sizes["PEV-K"] == (100, 110)
    assert sizes["LoVR-V"] == (40, 50) and sizes["LoVR-C2V"] == (50, 50)
    others = set(sizes) - {"CRB-T", "CMRB", "DREAM-E", "PEV-K", "LoVR-V", "LoVR-C2V"}
    assert {sizes[name] for name in others} == {(100, 100)}
    for plan in plans.values():
        assert all(0 <= q.answer < len(plan.documents) for q in plan.queries)
        assert len(set(plan.documents)) == len(plan.documents)


def test_objects_have_held_out_pairs_only(plans):
    for plan in plans.values():
        for scene in scenes(plan):
            for thing in scene.things:
                turned = [e.argument for e in thing.events if e.action == "turn"]
                assert {(c, thing.shape) for c in (thing.colour, *turned)} <= set(HELD_OUT_PAIRS)


def test_events_are_within_the_frame(plans):
    for name in set(plans) - {"CMRB", "CRB-T"}:
        assert all(is_clear(s) for s in scenes(plans[name])), name


@pytest.mark.parametrize("name", FACTS)
def test_text_matches_one_video_only(plans, name):
    said, shown = FACTS[name]
    plan = plans[name]
    all_shown = [shown(s) for (s,) in plan.documents]
    for query in plan.queries:
        (own,) = plan.documents[query.answer]
        assert [i for i, other in enumerate(all_shown) if said(own) <= other] == [query.answer]
    assert len({q.text for q in plan.queries}) == len(plan.queries)


def test_each_queried_event_occurs_in_one_video(plans):
    plan = plans["DREAM-E"]
    shown = [facts.events(s) for (s,) in plan.documents]
    counts = Counter(fact for video in shown for fact in video)
    for query in plan.queries:
        own = shown[query.answer]
        assert len(own) == 3
        fits = [
            fact
            for fact in own
            if f"{fact[0]} " in query.text
            and f"in the {fact[1]} " in query.text
            and counts[fact] == 1
        ]
        assert fits, query.text
    assert len({q.text for q in plan.queries}) == len(plan.queries)


def test_time_distractors_show_the_same_frames_in_another_order(plans):
    documents = [s for (s,) in plans["CRB-T"].documents]
    for start in range(0, len(documents), 8):
        videos = [render(s) for s in documents[start : start + 8]]
        frames = [sorted(frame.tobytes() for frame in video) for video in videos]
        assert all(f == frames[0] for f in frames)
        assert len({video.tobytes() for video in videos}) == 8


def test_space_distractors_share_shapes_and_events(plans):
    kinds = Counter(
        (*sorted(repr((t.shape, t.size, t.events)) for t in s.things), s.background, s.camera)
        for (s,) in plans["CRB-S"].documents
    )
    assert sum(n for n in kinds.values() if n >= 4) >= 48
    assert plans["CRB-S"].documents == plans["CRB-G"].documents


def test_camera_distractors_share_the_scene(plans):
    still = Counter((s.things, s.background) for (s,) in plans["CMRB"].documents)
    assert sorted(still.values()) == [40, 40, 40]
    assert all(not t.events for (s,) in plans["CMRB"].documents for t in s.things)


def test_composed_queries_need_both_parts(plans):
    def deeds(scene: Scene, phases: tuple[int, ...]):
        return [(e.action, e.argument) for e in scene.things[0].events if e.phase in phases]

    for name, phases in (("MS-TI", (0, 1)), ("MS-TV", (1,))):
        plan = plans[name]
        for query in plan.queries:
            (own,) = plan.documents[query.answer]
            if name == "MS-TI":
                given, frame = query.image
                assert frame == 0 and not any(t.events for t in given.things)
                picture = render(given, only=0)
                same_start = [
                    i
                    for i, (s,) in enumerate(plan.documents)
                    if (s.background, [(t.cell, t.colour, t.size) for t in s.things])
                    == (own.background, [(t.cell, t.colour, t.size) for t in given.things])
                ]
                # The document starts as the image, up to the first sixteenth of a movement.
                assert (picture != render(own, only=0)).mean() < 0.1
            else:
                start = render(query.clip[0])[: query.clip[2]]
                assert query.clip[1:3] == (0, PHASE_FRAMES)
                same_start = [
                    i
                    for i, (s,) in enumerate(plan.documents)
                    if s.background == own.background and s.things[1] == own.things[1]
                    if (render(s)[:PHASE_FRAMES] == start).all()
                ]
            same_text = [
                i
                for i, (s,) in enumerate(plan.documents)
                if (s.things[0].colour, s.things[0].shape)
                == (own.things[0].colour, own.things[0].shape)
                and deeds(s, phases) == deeds(own, phases)
            ]
            assert len(same_start) == 5 and len(same_text) == 4
            assert set(same_start) & set(same_text) == {query.answer}


def test_clip_occurs_in_one_long_video(plans):
    plan = plans["LoVR-C2V"]
    assert plan.documents == plans["LoVR-V"].documents
    assert {len(d) for d in plan.documents} == {4, 5, 6}
    for query in plan.queries:
        holders = [i for i, d in enumerate(plan.documents) if query.clip[0] in d]
        assert holders == [query.answer]


def test_files_have_the_layout_of_uvrb(world):
    manifest = json.loads((world / "manifest.json").read_text())
    assert {p.name for p in (world / "UVRB").iterdir()} == set(EVALUATION) == set(manifest["UVRB"])
    for name, counts in manifest["UVRB"].items():
        folder = world / "UVRB" / name
        tables = {
            table: [json.loads(line) for line in (folder / f"jsonl/{table}.jsonl").open()]
            for table in ("queries", "instances", "corpus")
        }
        assert {k: len(tables[k]) for k in ("queries", "corpus")} == counts
        ids = {row["id"] for row in tables["corpus"]}
        assert len(ids) == len(tables["corpus"])
        assert [q["id"] for q in tables["queries"]] == [i["qid"] for i in tables["instances"]]
        assert len({q["id"] for q in tables["queries"]}) == len(tables["queries"])
        assert all(len(i["pos"]) == 1 and set(i["pos"]) <= ids for i in tables["instances"])
        used = set()
        for row in tables["queries"]:
            assert set(row) == {"id", "text", "image", "video"}
            used |= {row["image"], row["video"]} - {""}
            assert bool(row["text"]) == (name not in ("MSRVTT-I2V", "LoVR-C2V"))
            assert bool(row["image"]) == (name in ("MSRVTT-I2V", "MS-TI"))
            assert bool(row["video"]) == (name in ("LoVR-C2V", "MS-TV"))
        for row in tables["corpus"]:
            assert set(row) == {"id", "video"}
            used.add(row["video"])
        there = {
            f"{kind}/{p.name}" for kind in ("videos", "images") for p in folder.glob(f"{kind}/*")
        }
        assert used == there
        frames = decode_mp4((folder / tables["corpus"][0]["video"]).read_bytes())
        assert len(frames) % 16 == 0 and (len(frames) > 16) == name.startswith(
            ("LoVR-V", "LoVR-C2V")
        )


def test_stored_videos_show_the_planned_scenes(world):
    scale = json.loads((world / "manifest.json").read_text())["scale"]
    planned = benchmark.plan(0, scale)
    for name in ("CRB-T", "MS-TV", "DREAM-E"):
        for i in (0, len(planned[name].documents) - 1):
            data = (world / "UVRB" / name / f"videos/d{i:04d}.mp4").read_bytes()
            wanted = render(planned[name].documents[i][0]).astype(int)
            # Colour is stored at half resolution, so only edges may differ much.
            assert np.abs(decode_mp4(data).astype(int) - wanted).mean() < 4


@pytest.mark.parametrize("scale", [0.02, 0.2, 1.0])
def test_equal_vectors_score_chance_on_every_set(scale):
    """If all documents are tied, those with the largest ids come first."""
    for name, planned in benchmark.plan(0, scale).items():
        tables, _ = benchmark_files.layout(name, planned)
        ids = sorted((row["id"] for row in tables["corpus"]), reverse=True)
        assert len(set(ids)) == len(planned.documents)
        answers = [pos for row in tables["instances"] for pos in row["pos"]]
        # Queries of one answer are found or missed together.
        step = max(answers.count(answer) for answer in set(answers)) / len(answers)
        for k in (1, 10):
            found = sum(answer in ids[:k] for answer in answers) / len(answers)
            assert abs(found - min(k / len(ids), 1)) <= step, name
