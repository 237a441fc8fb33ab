"""The loader: unreadable pairs are left out and recorded; content hashes; killed workers."""

import json
import os
import pickle
import re
import signal

import grain
import numpy as np
import pytest

from data.shapes.render import encode_mp4, encode_png
from gve_jax.errors import UserError
from gve_jax.inputs.batch import Buckets
from gve_jax.inputs.preprocess import InputSpec, Preprocessor
from gve_jax.inputs.prompt import Prompt
from gve_jax.media import sandbox
from gve_jax.media.isolation import Isolated
from gve_jax.media.item import Item
from gve_jax.media.limits import Limits
from gve_jax.media.quarantine import Quarantine
from gve_jax.streams.loader import LoadPairs, content_id, device_batches, read_ahead
from gve_jax.streams.sources import Sources, parse
from tests.situations import situation

FRAMES = np.random.default_rng(0).integers(0, 255, (8, 56, 56, 3), np.uint8)
CLIP, IMAGE = encode_mp4(FRAMES), encode_png(FRAMES[0])


class Pairs:
    """A source in memory."""

    def __init__(self, *positives: Item):
        self.positives = positives

    def read(self, source, indices):
        return [
            {
                "id": f"{source}-{i}",
                "query": Item(text=f"clip {i}"),
                "negatives": [],
                "positive": self.positives[i],
            }
            for i in indices
        ]


@pytest.fixture(scope="module")
def preprocess(world):
    spec = InputSpec(min_pixels=56**2, max_pixels=56**2, max_length=64, window_side=2)
    return Isolated(Preprocessor(Prompt(world / "tokenizer.json", 64), spec), 1)


@pytest.mark.parametrize(
    ("positive", "reason"),
    [
        (Item(video=CLIP, image=IMAGE), "5 frame pairs with .* exceed every declared"),
        (Item(video=b"no video"), "video"),
    ],
)
def test_a_pair_that_is_too_large_or_damaged_is_left_out(preprocess, positive, reason):
    good = Item(video=CLIP)
    buckets = Buckets(shapes=((0, 64), (4, 64)), patches=16, windows=4)
    load = LoadPairs(Pairs(good, positive, good), preprocess, buckets)
    batch = load.map(("T2V", np.arange(3)))
    assert batch["valid"].tolist() == [True, False, True]
    (failure,) = batch["failures"]
    assert failure["id"] == "T2V#1:T2V-1/positive"
    assert re.search(reason, failure["reason"])
    # Its row is a placeholder without frames.
    assert not batch["positive"]["patch_mask"][1].any()
    assert batch["positive"]["patch_mask"][[0, 2]].all()


def test_a_pair_whose_file_is_missing_is_left_out(preprocess, tmp_path):
    (tmp_path / "good.mp4").write_bytes(CLIP)
    rows = [{"query": "a clip", "positive": {"video": name}} for name in ("good.mp4", "no.mp4")]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sources = Sources(parse(f"{tmp_path}/x.jsonl", str(tmp_path)))
    buckets = Buckets(shapes=((0, 64), (4, 64)), patches=16, windows=4)
    load = LoadPairs(pickle.loads(pickle.dumps(sources)), preprocess, buckets)
    batch = load.map(("T2V_x", np.arange(2)))
    assert batch["valid"].tolist() == [True, False]
    (failure,) = batch["failures"]
    assert failure["id"] == "T2V_x#1:x.jsonl:2/positive" and failure["path"] == f"{tmp_path}/no.mp4"
    same = LoadPairs(Pairs(Item(video=CLIP)), preprocess, buckets).map(("T2V", np.arange(1)))
    np.testing.assert_array_equal(batch["positive"]["patches"][:1], same["positive"]["patches"])


class _Killed(grain.transforms.Map):
    """Kills its process as the kernel does when memory runs out."""

    def map(self, element):
        os.kill(os.getpid(), signal.SIGKILL)


@situation(
    "Training",
    "a decoding process of data.workers is killed, for example because memory ran out",
    "one line and status 2; the same command resumes",
    since="0.2.0",
)
def test_a_killed_worker_is_an_error_of_one_line():
    stream = read_ahead(grain.MapDataset.source([0, 1]), _Killed(), workers=1)
    with pytest.raises(
        UserError, match="^a decoding process of data.workers was killed by SIGKILL"
    ):
        next(device_batches(stream, None, None))


def test_media_that_attack_the_decoder_do_not_affect_other_pairs(preprocess, monkeypatch):
    monkeypatch.setattr(sandbox, "WORKER", "tests.media.hostile")
    buckets = Buckets(shapes=((0, 64), (4, 64)), patches=16, windows=4)
    spoiled = (b"HANG", b"CRASH", b"BOMB", CLIP[: len(CLIP) // 2])
    good = [Item(video=encode_mp4(FRAMES[::-1])), *[Item(video=CLIP)] * 5]
    limited = Preprocessor(preprocess.preprocess.prompt, preprocess.spec, Limits(seconds=4.0))
    with Isolated(limited, 2) as isolated:
        expected = LoadPairs(Pairs(*good), isolated, buckets).map(("T2V", np.arange(6)))
        mixed = [good[0], *(Item(video=medium) for medium in spoiled), good[5]]
        batch = LoadPairs(Pairs(*mixed), isolated, buckets).map(("T2V", np.arange(6)))
    assert batch["valid"].tolist() == [True, False, False, False, False, True]
    assert [failure["id"] for failure in batch["failures"]] == [
        f"T2V#{number}:T2V-{number}/positive" for number in (1, 2, 3, 4)
    ]
    for failure, reason in zip(
        batch["failures"], ("limits.seconds", "SIGSEGV", "limits.memory", "readable"), strict=True
    ):
        assert reason in failure["reason"] and failure["path"].endswith(f"of {failure['id']}")
    for side in ("query", "positive"):
        for name, array in batch[side].items():
            np.testing.assert_array_equal(array[[0, 5]], expected[side][name][[0, 5]])


@situation(
    "Training data",
    "unreadable media in rows without ids, in files of the same name or sources of equal indices",
    "each unreadable item is counted, and named by source, index of the pair, and id",
    since="0.2.0",
)
def test_unreadable_items_are_counted_by_unique_ids(preprocess, tmp_path):
    row = json.dumps({"query": "a clip", "positive": {"video": "no.mp4"}}) + "\n"
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "rows.jsonl").write_text(2 * row)
    sources = Sources(parse(f"{tmp_path}/*/rows.jsonl,x={tmp_path}/a/rows.jsonl", str(tmp_path)))
    assert sources.sizes == {"T2V_rows": 4, "T2V_rows_x": 2}
    buckets = Buckets(shapes=((0, 64), (4, 64)), patches=16, windows=4)
    load = LoadPairs(sources, preprocess, buckets)
    quarantine = Quarantine(tmp_path / "quarantine.jsonl", 1.0)
    for source, size in sources.sizes.items():
        batch = load.map((source, np.arange(size)))
        assert len(set(batch["ids"])) == size
        for failure in batch["failures"]:
            quarantine.record(**failure)
    assert quarantine.count == 6
    assert "T2V_rows#2:rows.jsonl:1/positive" in quarantine.ids


def test_content_ids_depend_on_text_pixels_and_timing(preprocess, tmp_path):
    """Not on paths or instructions."""
    (tmp_path / "a.mp4").write_bytes(CLIP)
    (tmp_path / "copy.mp4").write_bytes(CLIP)
    frames = list(FRAMES)
    items = [
        Item(video=CLIP),
        Item(video=str(tmp_path / "a.mp4"), instruction="Find it."),
        Item(video=str(tmp_path / "copy.mp4")),
        Item(video=frames, fps=2.0),
        Item(video=frames, fps=0.5),
        Item(video=frames[::-1], fps=2.0),
        Item(image=IMAGE),
        Item(video=CLIP, text="a clip"),
        Item(text="a clip"),
        Item(text="a clip", instruction="Find it."),
        Item(text="a clip."),
    ]
    ids = [content_id(item, preprocess(item)) for item in items]
    assert ids[0] == ids[1] == ids[2] and ids[8] == ids[9]
    assert len(set(ids)) == len(items) - 3
    assert all(-(2**31) <= id < 2**31 for id in ids)
