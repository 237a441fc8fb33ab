"""Thousands of damaged files: each is decoded or refused with a reason, in time, in bounded memory.

The files are real ones of every container, changed as disks, networks and enemies change them.
"""

import os
import random
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gve_jax.inputs.preprocess import InputSpec, Preprocessor, Row
from gve_jax.media.isolation import Failure, Isolated
from gve_jax.media.item import Item
from gve_jax.media.limits import Limits
from tests.media.files import clip, encode, picture, textured

PER_SEED = int(os.environ.get("GVE_JAX_FUZZ", "150"))  # files made of each medium
DEADLINE = 10.0
SPEC = InputSpec(max_length=512, max_pixels=56 * 56)
ROUND = 400  # files between two looks at memory


def media() -> dict[str, Item]:
    image = Image.fromarray(textured(1)[0])
    frames = [Image.fromarray(frame) for frame in textured(6)]
    videos = {
        "mp4 h264": clip(24, "mp4", "libx264"),
        "mp4 hevc": clip(12, "mp4", "libx265"),
        "mov mpeg4": clip(24, "mov", "mpeg4"),
        "mkv h264": clip(24, "matroska", "libx264"),
        "mkv hevc": clip(12, "matroska", "libx265"),
        "webm vp9": clip(12, "webm", "libvpx-vp9"),
        "webm av1": clip(8, "webm", "libsvtav1"),
        "avi mpeg4": clip(24, "avi", "mpeg4"),
        "ts h264": clip(24, "mpegts", "libx264"),
        "asf wmv2": clip(24, "asf", "wmv2"),
        "flv flv1": clip(24, "flv", "flv"),
        "ogg vp8": clip(24, "ogg", "libvpx"),
        "mpg mpeg2": encode(textured(24)[:, :48], 25, "mpeg", "mpeg2video"),
        "gif": picture(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=100),
    }
    images = {kind: picture(image, kind) for kind in ("PNG", "JPEG", "WEBP", "BMP", "TIFF")}
    return {name: Item(video=data) for name, data in videos.items()} | {
        name: Item(image=data) for name, data in images.items()
    }


def damage(data: bytes, donor: bytes, rng: random.Random) -> bytes:
    """One of: bits flipped, cut off, a piece out, a piece of another file in, a lying field."""
    data = bytearray(data)
    # The head is where a container says what follows: half of the harm is done there.
    span = len(data) if rng.random() < 0.5 else min(len(data), 400)
    at = rng.randrange(span)
    match rng.randrange(6):
        case 0:
            for _ in range(rng.randint(1, 20)):
                data[rng.randrange(span)] ^= 1 << rng.randrange(8)
        case 1:
            del data[rng.randrange(len(data)) :]
        case 2:
            del data[at : at + rng.randint(1, 200)]
        case 3:
            start = rng.randrange(len(donor))
            data[at : at + rng.choice((0, 64, 512))] = donor[start : start + rng.randint(1, 2000)]
        case 4:  # a size, a count, a time: as large, as small, as negative as can be
            size = rng.choice((1, 2, 4, 8))
            value = rng.choice((b"\xff" * 8, bytes(8), b"\x7f" + b"\xff" * 7, b"\x80" + bytes(7)))
            data[at : at + size] = value[:size]
        case 5:
            data[at : at + rng.randint(1, 300)] = rng.randbytes(rng.randint(1, 300))
    return bytes(data)


def resident(pid: int) -> int:
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def files(rng: random.Random):
    whole = media()
    content = [item.video or item.image for item in whole.values()]
    for _ in range(PER_SEED):
        for name, item in whole.items():
            if item.video:
                yield name, Item(video=damage(item.video, rng.choice(content), rng))
            else:
                yield name, Item(image=damage(item.image, rng.choice(content), rng))


LINUX = Path("/proc/self/statm").exists()


@pytest.mark.skipif(not LINUX, reason="memory is read from Linux's /proc")
def test_damaged_files_are_decoded_or_refused_with_a_reason(prompt):
    preprocess = Preprocessor(prompt, SPEC, Limits(seconds=DEADLINE, memory=1 << 30))
    cases = list(files(random.Random(0)))
    assert len(cases) >= 15 * PER_SEED
    found, memory = Counter(), []
    with Isolated(preprocess, processes=2) as isolated:
        for item in media().values():  # undamaged, all of them are read
            assert isinstance(isolated(item), Row)
        for start in range(0, len(cases), ROUND):
            part = cases[start : start + ROUND]
            began = time.perf_counter()
            results = list(isolated.map(item for _, item in part))
            assert time.perf_counter() - began < DEADLINE * len(part)
            assert len(results) == len(part)
            for (name, _), result in zip(part, results, strict=True):
                if isinstance(result, Failure):
                    assert result.reason.strip() and result.seconds < DEADLINE + 5
                    found[name, "refused"] += 1
                else:
                    # What is decoded is whole: every frame pair that the grid promises.
                    tokens = sum(len(layout.merged) for layout in result.layouts)
                    assert tokens == len(result.visual_tokens) > 0
                    assert all(patches.dtype == np.uint8 for patches in result.patches)
                    found[name, "decoded"] += 1
            memory.append((resident(os.getpid()), max(map(resident, isolated.pids))))
    # Damage is refused in every format, and in most of them some of it does no harm.
    assert all(found[name, "refused"] for name in media()), found
    assert sum(found[name, "decoded"] > 0 for name in media()) > 10, found
    caller, worker = zip(*memory, strict=True)
    assert caller[-1] - caller[0] < 64 << 20, "the caller's memory grows"
    assert worker[-1] < worker[0] + (128 << 20), "a worker's memory grows"
