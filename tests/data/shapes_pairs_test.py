"""Training pairs: determinism, the stored schema, readable media."""

import io
import json
import multiprocessing
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from data.shapes import instructions, pairs
from data.shapes.generate import read_world
from data.shapes.render import decode_mp4
from data.shapes.scene import COLOURS, FRAME, HELD_OUT_PAIRS, SHAPES, make_rng
from gve_jax.errors import UserError

TIMED = ("T2V_temporal",)
NAMED = re.compile(rf"\b({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})\b")
MEDIA = {"T": "text", "I": "image", "V": "video"}
JOBS = [(7, family, index) for family in dict.fromkeys(pairs.SOURCES.values()) for index in (0, 3)]


def media(item: dict) -> set[str]:
    return {key for key in ("text", "image", "video") if item[key]}


@pytest.fixture(scope="module")
def made() -> list[dict]:
    return [pairs.make_records(job) for job in JOBS]


def test_same_seed_gives_same_bytes_in_another_process(made):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(pairs.make_records, JOBS) == made


def test_other_seed_or_index_gives_other_pairs(made):
    for (_, family, index), records in zip(JOBS, made, strict=True):
        other = pairs.make_records((8, family, index))
        for source, record in records.items():
            assert (
                record["query"] != other[source]["query"]
                or record["positive"] != other[source]["positive"]
            )
    assert made[0] != made[1]


def test_sizes_follow_scale():
    one, two = pairs.sizes(1.0), pairs.sizes(2.0)
    assert set(one) == set(pairs.SOURCES) == set(instructions.TRAINING)
    assert all(two[s] == 2 * n for s, n in one.items()) and min(pairs.sizes(1e-6).values()) == 8


@pytest.mark.parametrize("source", pairs.SIBLINGS)
def test_siblings_differ_in_time_only(source):
    sample, tell, _ = pairs.GROUPED[source]
    for group in range(6):
        scenes = sample(make_rng(0, f"train/{source}", group))
        assert len(scenes) == pairs.SIBLINGS[source]
        assert len(set(scenes)) == len(scenes)
        for scene in scenes[1:]:
            assert scene.background == scenes[0].background
            for one, other in zip(scene.things, scenes[0].things, strict=True):
                assert replace(one, events=()) == replace(other, events=())
    first, second = (pairs.make_records((0, source, index))[source] for index in (0, 1))
    assert first["query"]["text"] != second["query"]["text"]
    assert first["positive"]["video"] != second["positive"]["video"]


def test_no_training_text_names_a_held_out_pair():
    named = set()
    for family in dict.fromkeys(pairs.SOURCES.values()):
        if family in ("long", "temporal", "continuation", *pairs.GROUPED):
            indexes = range(4)  # slow to render, with the same samplers
        else:
            indexes = range(25)
        for index in indexes:
            for record in pairs.make_records((0, family, index)).values():
                for item in (record["query"], record["positive"]):
                    named |= set(NAMED.findall(item["text"]))
    assert len(named) > 30 and not named & set(HELD_OUT_PAIRS)


def test_stored_pairs_have_the_schema_and_decode(world):
    counts = json.loads((world / "manifest.json").read_text())["pairs"]
    builder = tfds.builder_from_directory(str(world / "pairs"))
    assert set(builder.info.splits) == set(pairs.SOURCES)
    seen_ids = set()
    for source in pairs.SOURCES:
        records = builder.as_data_source(source)
        assert len(records) == counts[source] > 0
        for i in (0, len(records) - 1):
            record = records[i]
            assert record["task"].decode() == source
            seen_ids.add(record["id"])
            query, positive, negatives = (record[k] for k in ("query", "positive", "negatives"))
            expected_media = [{MEDIA[x] for x in side} for side in source.split("_")[0].split("2")]
            assert [media(query), media(positive)] == expected_media
            assert query["instruction"] and not positive["instruction"]
            videos = [item["video"] for item in (query, positive) if item["video"]]
            expected = 1 if source in TIMED else 0
            assert {len(column) for column in negatives.values()} == {expected}
            if expected:
                hard = decode_mp4(negatives["video"][0]).astype(int)
                right = decode_mp4(positive["video"]).astype(int)
                assert hard.shape == right.shape and np.abs(hard - right).mean() > 1
            for data in videos:
                frames = decode_mp4(data)
                assert frames.shape[1:] == (FRAME, FRAME, 3) and len(frames) >= 8
            for item in (query, positive):
                if item["image"]:
                    assert Image.open(io.BytesIO(item["image"])).size == (FRAME, FRAME)
    assert len(seen_ids) == 2 * len(pairs.SOURCES)


def test_long_video_contains_the_clip(made):
    record = next(r["V2V"] for r in made if "V2V" in r)
    clip = decode_mp4(record["query"]["video"]).astype(int)
    whole = decode_mp4(record["positive"]["video"]).astype(int)
    assert len(clip) == 12 and len(whole) in (64, 80, 96)
    starts = range(0, len(whole) - len(clip) + 1)
    errors = [np.abs(whole[s : s + len(clip)] - clip).mean() for s in starts]
    assert min(errors) < 3 and int(np.argmin(errors)) % 16 == pairs.CLIP.start


def test_clip_query_is_the_start_of_its_positive(made):
    record = next(r["TV2V"] for r in made if "TV2V" in r)
    clip, whole = (decode_mp4(record[k]["video"]).astype(int) for k in ("query", "positive"))
    assert len(clip) == 8 and np.abs(whole[:8] - clip).mean() < 2


def test_edit_changes_the_image_as_instructed():
    for index in range(30):
        record = pairs.make_records((0, "edit", index))["TI2I"]
        before, after = (
            np.asarray(Image.open(io.BytesIO(record[k]["image"]))).astype(int)
            for k in ("query", "positive")
        )
        changed = (np.abs(before - after).max(axis=-1) > 20).mean()
        ground = "background" in record["query"]["text"]
        assert (changed > 0.5) if ground else (0 < changed < 0.4), record["query"]["text"]


def test_repeated_command_returns_and_other_arguments_are_refused(world, run_shapes):
    before = (world / "manifest.json").stat().st_mtime_ns
    again = run_shapes("--output", str(world), "--scale", "0.01")
    assert again.returncode == 0 and "ready" in again.stdout
    other = run_shapes("--output", str(world), "--scale", "0.01", "--seed", "1")
    assert other.returncode == 2 and other.stderr.count("\n") == 1
    assert "seed = 0, now 1" in other.stderr and str(world) in other.stderr
    assert (world / "manifest.json").stat().st_mtime_ns == before
    assert not world.with_name(world.name + ".building").exists()


def test_folder_with_other_files_is_refused(tmp_path, world):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="manifest"):
        read_world(tmp_path, 0, 1.0)
    broken = tmp_path / "broken"
    broken.mkdir()
    shutil.copy(world / "manifest.json", broken)
    (broken / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="manifest.json: damaged"):
        read_world(broken, 0, 1.0)
    assert read_world(tmp_path / "new", 0, 1.0) is None
