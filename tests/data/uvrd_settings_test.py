"""Fields of configs/uvrd.py: checks, documentation, proportions of pairs, prompts."""

import re
import subprocess
import sys

import numpy as np
import pytest

from configs.uvrd import PAPER, get_config
from data.uvrd import prompts
from data.uvrd.compose import count_at, pair_counts
from data.uvrd.settings import TYPES, Settings
from gve_jax.errors import UserError
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("similarity", 2.0),
        ("pairs.T2V", 6.0),
        ("profiles.spatial", 0.5),
        ("lengths.summary", (9, 3)),
        ("lengths.slack", 1.0),
        ("text.language", "tlh"),
        ("video.num_frames", 7),
        ("video.least_motion", -0.1),
        ("frame.format", "gif"),
        ("clip.least_seconds", 11.0),
        ("server.schema", "yaml"),
        ("calls.concurrency", 0),
        ("calls.most_failures", 1.5),
        ("run.part", 0),
    ],
)
def test_invalid_field_is_named(field, value):
    config = get_config()
    config.update_from_flattened_dict({field: value})
    section = field.split(".")[0]
    with pytest.raises(UserError, match=rf"config\.({field}|{section}) "):
        Settings.of(config)


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--config.video.colour=7", "--config.video.colour: unknown field"),
        (
            "--config=configs/uvrd.py:moon",
            "--config configs/uvrd.py:moon: configs/uvrd.py has no form",
        ),
        ("--colour=7", "Unknown command line flag 'colour'"),
    ],
)
def test_invalid_argument_is_one_line(argument, said):
    command = [sys.executable, "-m", "data.uvrd", "--config=configs/uvrd.py", argument]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {said}")
    assert len(done.stderr.splitlines()) == 1


def test_unknown_and_missing_fields_are_named():
    config = get_config()
    config.text.colour = 1
    with pytest.raises(UserError, match="config.text.colour"):
        Settings.of(config)
    config = get_config()
    del config.clip
    with pytest.raises(UserError, match="config.clip is missing"):
        Settings.of(config)


def test_every_field_is_documented():
    page = (ROOT / "docs" / "uvrd.md").read_text()
    fields = set(re.findall(r"config\.([a-z_.]+) = ", (ROOT / "configs" / "uvrd.py").read_text()))
    fields -= set(
        "limits pairs profiles lengths text video frame clip server calls run".split()
    )  # sections
    assert len(fields) > 40
    assert not [field for field in sorted(fields) if f"`{field}`" not in page]


def test_consecutive_videos_get_exact_proportions():
    for rate in (0.0, 0.1, 89 / 879, 0.5, 1.0, 2.5):
        counts = np.array([count_at(rate, index, 0.37) for index in range(2000)])
        for length in (7, 100, 2000):  # any videos in a row
            sums = np.convolve(counts, np.ones(length), "valid")
            assert np.abs(sums - rate * length).max() < 1 + 1e-9


def test_default_proportions_are_those_of_the_paper():
    settings = Settings.of(get_config())
    counts = dict.fromkeys(TYPES, 0)
    for index in range(8790):
        for name, count in pair_counts(index, settings).items():
            counts[name] += count
    assert all(abs(counts[name] - 10 * PAPER[name]) <= 1 for name in TYPES)


def test_changed_prompt_needs_a_new_version():
    # To change a prompt or its schema, raise its version and record the digest here.
    known = {
        "video_captions": ("1", "34ed235b681d"),
        "frame_captions": ("1", "1a2ba075c3f0"),
        "image_query": ("1", "95c7994831fe"),
        "clip_query": ("1", "4cf57ec7e6c2"),
    }
    assert {n: (p["version"], p["digest"]) for n, p in prompts.records().items()} == known
