"""Headers, frames and thumbnails of untrusted files: what they contain, and hostile answers."""

import pickle
import time

import numpy as np
import pytest
from PIL import Image

from gve_jax.inputs.preprocess import InputSpec, Preprocessor
from gve_jax.media import sandbox as module
from gve_jax.media.errors import MediaError
from gve_jax.media.item import Item
from gve_jax.media.limits import Limits
from gve_jax.media.outline import Outline
from gve_jax.media.sampling import Timeline
from gve_jax.media.sandbox import Failure, Header, Sandbox, attempt, describe_protection
from gve_jax.media.video import load_video
from gve_jax.media.wire import MAX_HEADER, pack
from tests.media.animated import Part, apng, webp
from tests.media.files import clip, numbered, picture
from tests.situations import situation

SPEC = InputSpec(num_frames=4, max_length=512)
OPERATIONS = {
    "header": lambda sandbox, medium: sandbox.header(medium, "video"),
    "frames": lambda sandbox, medium: sandbox.frames(Item(video=medium), SPEC),
    "thumbnails": lambda sandbox, medium: sandbox.thumbnails(Item(video=medium), 4, 20, 30),
    "visuals": lambda sandbox, medium: sandbox.visuals(Item(video=medium), SPEC),
    "outline": lambda sandbox, medium: sandbox.outline(medium),
    "pictures": lambda sandbox, medium: sandbox.pictures(medium, [0, 3], OUTLINE, size=(20, 30)),
}
OUTLINE = Outline(
    Timeline(8, 10.0), np.zeros(8, np.int64), np.zeros(8, np.int64), np.zeros(8, bool)
)


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox() as opened:
        yield opened


@pytest.fixture(scope="module")
def hostile():
    """One process, in which spells work (see hostile.py)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "WORKER", "tests.media.hostile")
        with Sandbox(Limits(seconds=2.0, memory=1 << 30)) as opened:
            yield opened


class Payload:
    """Runs a command where it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def forge(header: dict, body: bytes = b"") -> bytes:
    return b"FORGE" + pack(header, len(body)) + body


NO_SENSE = "an answer that cannot be"
# Of what isolation_test.py sends back from one operation: all of them share its reading.
GARBAGE = {
    b"FORGE" + (MAX_HEADER + 1).to_bytes(4, "little") + bytes(8): "more than any item has",
    b"FORGE" + b"\x04" + bytes(11) + b"null": "sent no JSON object",
    forge({}): NO_SENSE,
    b"CRASH": r"<5 bytes>: its process died of SIGSEGV: heap corrupted\?\[2J in ff_nowhere",
    b"BOMB": r"needs more memory than 1073741824 bytes \(limits.memory\)",
    b"BUG": "<3 bytes>: KeyError: 'moov'",
    b"SLEEP": r"not decoded in 2 seconds \(limits.seconds\)",
}


@situation(
    "Media",
    "file that takes over the process that reads it, which then sends pickles or garbage",
    "that one item fails with a reason; nothing of it runs in the caller",
    since="0.3.0",
)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_no_answer_runs_code_in_the_caller_or_ends_it(hostile, operation, tmp_path):
    ask = OPERATIONS[operation]
    planted = tmp_path / "planted"
    payload = pickle.dumps(Payload(planted))
    pickle.loads(payload).close()  # it works
    planted.unlink()
    framed = len(payload).to_bytes(4, "little") + bytes(8) + payload
    pickles = {
        b"FORGE" + payload: "more than any item has",
        b"FORGE" + framed: "sent no JSON object",
    }
    good = clip(8)
    expected = ask(hostile, good)
    for medium, reason in (GARBAGE | pickles).items():
        began = time.perf_counter()
        with pytest.raises(MediaError, match=reason) as error:
            ask(hostile, medium)
        assert time.perf_counter() - began < 25
        assert "\n" not in str(error.value) and "\x1b" not in str(error.value)
        assert not planted.exists()
    assert repr(ask(hostile, good)) == repr(expected)


# Answers, as header and number of bytes.
FORGED = {
    "header": [
        ({"header": ["audio", 2, 2, 1.0]}, 0),
        ({"header": ["image", 2, 2, 1.0]}, 0),  # a video was asked for
        ({"header": [["video"], 2, 2, 1.0]}, 0),
        ({"header": ["video", 0, 2, 1.0]}, 0),
        ({"header": ["video", 2.0, 2, 1.0]}, 0),
        ({"header": ["video", True, 2, 1.0]}, 0),
        ({"header": ["video", 2, "2", 1.0]}, 0),
        ({"header": ["video", 1 << 40, 1 << 40, 1.0]}, 0),
        ({"header": ["video", 2, 2, float("nan")]}, 0),
        ({"header": ["video", 2, 2, "1"]}, 0),
        ({"header": ["video", 2, 2, 10**400]}, 0),
        ({"header": ["video", 2, 2]}, 0),
        ({"header": ["video", 2, 2, 1.0]}, 1),
        ({"header": None}, 0),
        ({}, 0),
    ],
    "frames": [
        ({"frames": [1, 2, 2, 1.0]}, 0),
        ({"frames": [1, 2, 2, 1.0]}, 13),
        ({"frames": [0, 2, 2, 1.0]}, 0),
        ({"frames": [-1, -2, 2, 1.0]}, 12),
        ({"frames": [1, 2.0, 2, 1.0]}, 12),
        ({"frames": [1, 2, 2, float("inf")]}, 12),
        ({"frames": [1, 2, 2, -1.0]}, 12),
        ({"frames": [1, 2, 2, "1"]}, 12),
        ({"frames": [1 << 70, 1, 1, 1.0]}, 12),
        ({"frames": [1, 2, 2]}, 12),
        ({"frames": "frames"}, 12),
        ({}, 12),
        ({"frames": [1, 1, 200_000, 1.0]}, 600_000),  # above max_pixels
    ],
    "thumbnails": [
        ({"frames": [1, 1, 31, 1.0]}, 93),
        ({"frames": [1, 21, 1, 1.0]}, 63),
        ({"frames": [1, 20, 31, 1.0]}, 1860),
    ],
    "outline": [
        ({"outline": [1, 10.0, 0, 4]}, 16),
        ({"outline": [1, 10.0, 2, 4]}, 17),
        ({"outline": [1, 10.0, 2, 4]}, 33),  # times that do not rise
        ({"outline": [1, 10.0, 1, 4]}, 25),
        ({"outline": [1, 10.0, "0", 4]}, 17),
        ({"outline": [1, 0.0, 0, 4]}, 17),
        ({"outline": [1, 1e-9, 0, 4]}, 17),  # longer than the limit
        ({"outline": [1, float("nan"), 0, 4]}, 17),
        ({"outline": [1, 10**400, 0, 4]}, 17),
        ({"outline": [0, 10.0, 0, 4]}, 0),
        ({"outline": [-1, 10.0, 0, 4]}, 17),
        ({"outline": [1, 10.0, 0, 0]}, 17),
        ({"outline": [1, 10.0, 0]}, 17),
        ({}, 17),
    ],
    "pictures": [
        ({"pictures": [2, 20, 30]}, 3599),
        ({"pictures": [1, 20, 30]}, 1800),
        ({"pictures": [2, 30, 20]}, 3600),
        ({"pictures": [2, 20, 30.0]}, 3600),
        ({"pictures": [2, 20]}, 3600),
        ({}, 3600),
    ],
}
FORGED["thumbnails"] += FORGED["frames"]


@pytest.mark.parametrize("operation", FORGED)
def test_numbers_that_cannot_be_are_refused(operation, monkeypatch):
    class Forger:
        served = 0
        protection = {"no_new_privs": True, "landlock": 1, "seccomp": True}

        def __init__(self, module, limits):
            pass

        def ask(self, request, buffers, most_bytes, files):
            header, size = answer
            return header, np.zeros(size, np.uint8)

        def kill(self):
            killed.append(answer)

    killed = []
    monkeypatch.setattr(module, "WorkerProcess", Forger)
    for answer in FORGED[operation]:
        with pytest.raises(MediaError, match=NO_SENSE):
            OPERATIONS[operation](Sandbox(), b"x")
        assert killed.pop() == answer


def test_more_bytes_than_the_operation_may_return(hostile):
    for operation, size in (("header", 1), ("thumbnails", 4 * 20 * 30 * 3 + 1)):
        with pytest.raises(MediaError, match="more than any item has"):
            OPERATIONS[operation](hostile, forge({}, bytes(size)))


PARTS = [Part(np.full((6, 8, 4), 255, np.uint8)) for _ in range(3)]
STILL = Image.fromarray(numbered(1)[0])
ANIMATIONS = [
    apng(8, 6, PARTS),
    apng(8, 6, PARTS[:1]),
    apng(8, 6, PARTS, default=PARTS[0].pixels),
    webp(8, 6, PARTS[:1]),
    picture(STILL, "GIF"),
]
OTHERS = [
    picture(STILL, "PNG"),
    picture(STILL, "WEBP"),
    apng(8, 6, PARTS, count=4),
    picture(STILL, "GIF")[:-9],
]


@pytest.mark.parametrize("data", ANIMATIONS)
def test_header_accepts_the_animations_that_can_be_loaded(sandbox, data, tmp_path):
    (tmp_path / "a").write_bytes(data)
    height, width = load_video(data, 2).frames.shape[1:3]
    for source in (data, tmp_path / "a"):
        assert sandbox.header(source, "video") == Header("video", width, height)
        load_video(source, 2)


@pytest.mark.parametrize("data", OTHERS)
def test_header_refuses_media_that_cannot_be_loaded(sandbox, data):
    for read in (lambda: sandbox.header(data, "video"), lambda: load_video(data, 2)):
        with pytest.raises(MediaError, match="not a readable video"):
            read()


def test_header_finds_the_kind_of_a_file(sandbox):
    frames = [Image.fromarray(frame) for frame in numbered(2)]
    moving = picture(frames[0], "GIF", save_all=True, append_images=frames[1:])
    height, width = numbered(1).shape[1:3]
    for data, kind in (
        (picture(frames[0]), "image"),
        (picture(frames[0], "GIF"), "image"),
        (moving, "video"),
        (apng(width, height, [Part(np.full((height, width, 4), 9, np.uint8))] * 2), "image"),
    ):
        assert sandbox.header(data) == Header(kind, width, height)
    found = sandbox.header(clip(24))
    assert found.kind == "video" and found.seconds == pytest.approx(2.4)
    for kind in (None, "image", "video"):
        failed = attempt(sandbox.header, b"neither", kind)
        assert isinstance(failed, Failure) and failed.reason.startswith("<7 bytes>: ")
    limited = Sandbox(Limits(frame_pixels=100))
    for data in (picture(frames[0]), clip(3)):
        with limited, pytest.raises(MediaError, match="above the limit of 100 pixels"):
            limited.header(data)


def test_frames_are_those_that_patches_are_made_of(sandbox):
    item = Item(video=clip(12), frame_order="reversed")
    ((_, frames, fps, _),) = Preprocessor(None, SPEC).frames(item)
    found = sandbox.frames(item, SPEC)
    np.testing.assert_array_equal(found.frames, frames)
    assert found.fps == fps
    image = sandbox.frames(Item(image=picture(STILL)), SPEC)
    assert len(image.frames) == 1 and image.fps == 0
    with pytest.raises(MediaError, match="too many visual tokens: [0-9]+ exceed 3"):
        small = InputSpec(num_frames=4, max_length=3)
        sandbox.frames(Item(video=clip(12), max_pixels=4 * 784), small)


@pytest.mark.parametrize(("height", "width", "expected"), [(20, 300, 20), (300, 30, 30)])
def test_thumbnails_fit_the_box_and_keep_their_proportions(sandbox, height, width, expected):
    whole = load_video(clip(24), 4).frames
    found = sandbox.thumbnails(Item(video=clip(24)), 4, height, width).frames
    assert len(found) == 4
    small = found.shape[1] if height < width else found.shape[2]
    assert small == expected
    ratio = whole.shape[1] / whole.shape[2]
    assert found.shape[1] / found.shape[2] == pytest.approx(ratio, rel=0.06)
    first = Image.fromarray(whole[0]).resize(found.shape[2:0:-1], Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(found[0], np.asarray(first))
    image = sandbox.thumbnails(Item(image=picture(STILL)), 4, height, width)
    assert len(image.frames) == 1


def test_protection_in_words():
    held = {"no_new_privs": True, "landlock": 6, "seccomp": True}
    assert describe_protection(held) == "no_new_privs, Landlock 6, seccomp"
    assert describe_protection(dict.fromkeys(held, 0)) == "nothing"
