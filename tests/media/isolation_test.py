"""Decoding in other processes: the same rows, whatever a medium does to the process it is in."""

import dataclasses
import errno
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from gve_jax.inputs.preprocess import InputSpec, Preprocessor, Row
from gve_jax.media import sandbox, worker
from gve_jax.media.errors import MediaError
from gve_jax.media.isolation import Failure, Isolated
from gve_jax.media.item import Item
from gve_jax.media.limits import Limits
from gve_jax.media.wire import pack, pack_item, unpack_item
from tests.conftest import ROOT
from tests.media.files import clip, numbered, picture
from tests.situations import situation
from tests.storage.files_test import POINTER

SPEC = InputSpec(max_length=512)
LIMITS = Limits(seconds=4.0, memory=1 << 30)  # only the clock tells a hang from a slow crash


@pytest.fixture(scope="module")
def preprocess(prompt) -> Preprocessor:
    return Preprocessor(prompt, SPEC, LIMITS)


@pytest.fixture
def isolated(preprocess, monkeypatch):
    """One process, in which spells work (see hostile.py)."""
    monkeypatch.setattr(sandbox, "WORKER", "tests.media.hostile")
    with Isolated(preprocess, 1) as made:
        yield made


def assert_same(found: Row, expected: Row) -> None:
    assert len(found.patches) == len(expected.patches)
    for mine, theirs in zip(found.patches, expected.patches, strict=True):
        assert mine.dtype == np.uint8
        np.testing.assert_array_equal(mine, theirs)
    for name in ("tokens", "positions", "visual_tokens"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    for mine, theirs in zip(found.layouts, expected.layouts, strict=True):
        np.testing.assert_array_equal(mine.window_inverse, theirs.window_inverse)
        np.testing.assert_array_equal(mine.coords, theirs.coords)


def process_id(isolated: Isolated) -> int:
    return int(isolated.attempt(Item(video=b"ASK")).reason.split()[0])


def test_rows_are_those_of_the_caller_s_own_process(isolated, preprocess, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("ä.mp4").write_bytes(clip(24))
    frames = [Image.fromarray(frame) for frame in numbered(6)]
    clear = Image.new("RGBA", (56, 84), (255, 0, 0, 100))
    Path("0.png").write_bytes(picture(frames[0]))
    items = [
        Item("red", video=clip(24)),
        Item("red", video="ä.mp4", num_frames=np.int64(4), frame_order="reversed"),
        Item(
            video=tmp_path / "ä.mp4",
            image=picture(clear),
            instruction="Find ü.",
            max_pixels=np.int32(9 * 784),
        ),
        Item(image=clear, video=clip(7)),
        Item(video=["0.png", picture(frames[1]), frames[2], numbered(6)[3]], fps=np.float32(3)),
        Item(image=numbered(6)[3], video=clip(3)),
    ]
    for item in items:
        assert_same(isolated(item), preprocess(item))
    first = process_id(isolated)
    monkeypatch.chdir("/")  # a process that is already running must look where the caller is now
    with pytest.raises(MediaError, match="^0.png: no such file$"):
        isolated(Item(image="0.png"))
    assert process_id(isolated) == first


def test_decoded_media_need_no_process(isolated, preprocess):
    image = Image.fromarray(numbered(3)[2])
    items = [
        Item("red"),
        Item(video=numbered(8), fps=2.0),
        Item(image=image),
        Item(video=[image] * 4, image=numbered(1)[0]),
    ]
    for item in items:
        assert_same(isolated(item), preprocess(item))
    assert not isolated.pids


def answer(*visuals, bytes_: int = 0, kind: str = "video", times=(0.0,)) -> bytes:
    visuals = [[kind, *visual, list(times)] for visual in visuals]
    return b"FORGE" + pack({"visuals": visuals}, bytes_) + bytes(bytes_)


PATCHES = 4 * 1176  # bytes of the least picture
ATTACKS = {
    b"CRASH": r"<5 bytes>: its process died of SIGSEGV: heap corrupted\?\[2J in ff_nowhere",
    b"HANG": r"<4 bytes>: not decoded in 4 seconds \(limits.seconds\)",
    b"SLEEP": r"<5 bytes>: not decoded in 4 seconds \(limits.seconds\)",
    b"BOMB": r"<4 bytes>: needs more memory than 1073741824 bytes \(limits.memory\)",
    b"BUG": "<3 bytes>: KeyError: 'moov'",
    b"FORGE" + b"x" * 12: "sent 2021161080 .* bytes, more than any item has",
    b"FORGE" + pack({}, 1 << 40): "sent .* more than any item has",
    b"FORGE" + b"\x05" + bytes(11) + b"[" * 5: "sent no JSON object",
    b"FORGE" + b"\x04" + bytes(11) + b"null": "sent no JSON object",
    b"FORGE" + (60_000).to_bytes(4, "little") + bytes(8) + b"[" * 60_000: "sent no JSON object",
    answer(): "an answer that cannot be",
    answer([1, 2, 2, 0.0]): "an answer that cannot be",  # patches missing
    answer([1, 2, 2, 0.0], bytes_=PATCHES + 1): "an answer that cannot be",  # too many
    answer([1, 2, 2, 0.0], [1, 2, 2, 0.0], bytes_=2 * PATCHES): "an answer that cannot be",
    answer([1, 1, 4, 0.0], bytes_=PATCHES): "an answer that cannot be",  # half a token high
    answer([-1, -2, 2, 0.0], bytes_=PATCHES): "an answer that cannot be",
    answer([1, 2, 2, float("nan")], bytes_=PATCHES): "an answer that cannot be",
    answer([1.0, 2, 2, 0.0], bytes_=PATCHES): "an answer that cannot be",
    answer([1, "2", 2, 0.0], bytes_=PATCHES): "an answer that cannot be",
    answer([1, 2, 402, 0.0], bytes_=201 * PATCHES): "an answer that cannot be",  # > max_pixels
    answer([1, 2, 2, 0.0], bytes_=PATCHES, kind="image"): "an answer that cannot be",
    answer([1, 2, 2, 0.0], bytes_=PATCHES, times=()): "an answer that cannot be",
    answer([1, 2, 2, 0.0], bytes_=PATCHES, times=(-1.0,)): "an answer that cannot be",
    answer([4, 28, 28, 0.0], bytes_=4 * 196 * PATCHES): "more than any item has",  # > max_length
    b"FORGE{}": "not decoded in 4 seconds",
}


@situation(
    "Media",
    "file that crashes, hangs or overflows the decoder",
    "that one item fails with a reason; the others are unchanged",
    since="0.1.0",
)
@pytest.mark.parametrize("medium", ATTACKS, ids=lambda medium: repr(medium[:24]))
def test_an_attack_costs_one_item(isolated, preprocess, medium):
    good = Item("red", video=clip(8))
    expected = preprocess(good)
    assert_same(isolated(good), expected)
    began = time.perf_counter()
    with pytest.raises(MediaError, match=ATTACKS[medium]) as error:
        isolated(Item(video=medium))
    assert "\n" not in str(error.value) and "\x1b" not in str(error.value)
    # Its deadline, and where it may have been an earlier item's fault, a second try.
    assert time.perf_counter() - began < 2 * LIMITS.seconds + 20
    assert_same(isolated(good), expected)


def test_output_of_a_library_is_not_an_answer(isolated, preprocess):
    good = Item(video=clip(8))
    for _ in range(12):  # 1.2 MB in all: more than a process may write into one file
        assert_same(isolated(Item(video=b"PRINT" + clip(8))), preprocess(good))
    assert isolated.attempt(Item(video=b"CRASH")).reason.endswith("in ff_nowhere")


def test_harm_done_by_one_item_does_not_cost_the_next(isolated, preprocess):
    assert isolated.attempt(Item(video=b"SEED")).reason == "planted"
    first = isolated.pids[0]
    good = Item(video=clip(8))
    assert_same(isolated(good), preprocess(good))  # the process aborts; a fresh one does not
    assert isolated.pids[0] != first


def test_the_process_is_small_and_stays(isolated):
    ids = {process_id(isolated) for _ in range(3)}
    pid, modules = isolated.attempt(Item(video=b"ASK")).reason.split(" ", 1)
    resident = _status(int(pid)).split("VmRSS:")[1].split()[0]
    assert len(ids) == 1 and ids != {os.getpid()}
    assert "jax" not in modules and "grain" not in modules
    assert int(resident) < 100_000, "kilobytes"
    isolated.close()
    assert not Path(f"/proc/{ids.pop()}").exists()


@situation(
    "Images and animations",
    "small PNG that unpacks to hundreds of megabytes",
    "refused within `limits.memory`, which the message names",
    since="0.1.0",
)
def test_a_picture_that_unpacks_to_more_than_the_limit(prompt):
    """64 million pixels in 8 kB: within the limit of pixels, 192 MB as RGB."""
    bomb = picture(Image.new("1", (8000, 8000)))
    assert len(bomb) < 20_000
    with Isolated(Preprocessor(prompt, SPEC, Limits(memory=100_000_000)), 1) as isolated:
        with pytest.raises(MediaError, match=r"more memory than 100000000 bytes \(limits.memory\)"):
            isolated(Item(image=bomb))
        isolated(Item(image=picture(Image.new("1", (900, 900)))))
    with Isolated(Preprocessor(prompt, SPEC, Limits(memory=1 << 30)), 1) as isolated:
        assert len(isolated(Item(image=bomb)).patches) == 1


def test_an_item_larger_than_the_limit_itself(prompt):
    with Isolated(Preprocessor(prompt, SPEC, Limits(memory=100_000_000)), 1) as isolated:
        with pytest.raises(MediaError, match=r"limits.memory"):
            isolated(Item(video=bytes(200_000_000)))


def test_map_keeps_the_order_and_reads_a_little_ahead(preprocess, monkeypatch):
    monkeypatch.setattr(sandbox, "WORKER", "tests.media.hostile")
    given = []

    def items():
        for number in range(20):
            given.append(number)
            yield Item(video=b"CRASH") if number in (3, 4) else Item(str(number), video=clip(8))

    with Isolated(preprocess, 2) as isolated:
        found = isolated.map(items())
        next(found)
        assert len(given) <= 6
        results = [None, *found]
        assert len(isolated.pids) == 2
    failures = [n for n, result in enumerate(results) if isinstance(result, Failure)]
    assert failures == [3, 4] and "SIGSEGV" in results[3].reason and results[3].seconds > 0
    for number in (1, 2, 5, 19):
        assert_same(results[number], preprocess(Item(str(number), video=clip(8))))


def test_threads_share_the_processes(preprocess):
    expected = {count: preprocess(Item(video=clip(count))) for count in (6, 8, 24)}
    failed = []

    def run(seed):
        try:
            for count in np.random.default_rng(seed).permutation([6, 8, 24] * 5):
                assert_same(isolated(Item(video=clip(int(count)))), expected[count])
        except BaseException as error:
            failed.append(error)

    with Isolated(preprocess, 2) as isolated:
        threads = [threading.Thread(target=run, args=(seed,)) for seed in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed and 1 <= len(isolated.pids) <= 2


def test_orientation_and_all_frames_are_the_same_in_the_other_process(preprocess):
    """A PIL image beside a file is turned by the caller, a file where it is decoded."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = picture(Image.fromarray(numbered(6)[5]), "JPEG", exif=exif)
    with Isolated(preprocess, 1) as isolated:
        for orientation in (True, False, None):
            item = Item(
                video=[data, Image.open(io.BytesIO(data)), data],
                num_frames="all",
                image=Image.open(io.BytesIO(data)),
                exif_orientation=orientation,
                min_pixels=20 * 784,
                max_pixels=30 * 784,
            )
            assert_same(isolated(item), preprocess(item))


def test_the_plain_fields_of_an_item_travel_unchanged():
    item = Item("ä\n", video=b"abc", fps=np.float64(0.1), num_frames=np.int64(4))
    fields, buffers, files = pack_item(item)
    assert not files
    again = unpack_item(json.loads(json.dumps(fields)), memoryview(b"".join(buffers)), None)
    assert again == item and type(again.num_frames) is int


# What a caller's process does besides calling, in one without JAX, so that it may fork.
_CALLER = """
import multiprocessing, os, signal, sys, time
from gve_jax.media import isolation, sandbox
from gve_jax.media.item import Item
from gve_jax.media.limits import Limits
from gve_jax.inputs.preprocess import InputSpec, Preprocessor
from gve_jax.inputs.prompt import Prompt
from tests.media.hostile import decode_there
from tests.media.files import clip
from tests.situations import situation

sandbox.WORKER = "tests.media.hostile"
def make(seconds=60.0):
    preprocess = Preprocessor(Prompt(sys.argv[2], 512), InputSpec(max_length=512),
                              Limits(seconds=seconds))
    return isolation.Isolated(preprocess, 1)

def pid_of(isolated):
    return int(isolated.attempt(Item(video=b"ASK")).reason.split()[0])
"""


def run_caller(tokenizer_file, code: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", _CALLER + code, "caller", str(tokenizer_file)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def gone(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not Path(f"/proc/{pid}").exists() or "\nState:\tZ" in _status(pid):
            return True
        time.sleep(0.02)
    return False


def _status(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return "\nState:\tZ"


@pytest.mark.parametrize("medium", ["ASK", "SLEEP", "HANG"])
def test_a_process_ends_with_a_caller_that_is_killed(tokenizer_file, medium):
    """Idle at once; in the middle of an item no later than a moment past its deadline."""
    code = f"""
isolated = make(1.0)
print(pid_of(isolated), flush=True)
while True:
    isolated.attempt(Item(video=b"{medium}"))
    time.sleep(0.3)
"""
    caller = run_caller(tokenizer_file, code)
    worker = int(caller.stdout.readline())
    time.sleep(0.5)
    caller.send_signal(signal.SIGKILL)
    caller.communicate()
    assert gone(worker, 60)


def test_a_process_ends_with_a_caller_that_forgets_it(tokenizer_file):
    caller = run_caller(tokenizer_file, "isolated = make(); print(pid_of(isolated))")
    out, err = caller.communicate(timeout=60)
    assert caller.returncode == 0 and not err
    assert gone(int(out), 60)


def test_daemonic_processes_and_forks_have_processes_of_their_own(tokenizer_file):
    code = """
isolated = make()
mine = pid_of(isolated)
context = multiprocessing.get_context("spawn")
mouth, ear = context.Pipe()
child = context.Process(target=decode_there, args=(isolated, ear), daemon=True)
child.start()
print(mouth.recv())
child.join()
child = os.fork()
if not child:
    theirs = pid_of(isolated)
    os._exit(0 if theirs != mine and pid_of(isolated) == theirs else 3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), pid_of(isolated) == mine)
"""
    out, err = run_caller(tokenizer_file, code).communicate(timeout=60)
    assert out.splitlines() == ["4 frame pairs in a daemon", "0 True"], err


@situation(
    "Media",
    "a clone without Git LFS: pointer files instead of videos and images",
    "each is refused as a pointer, with `git lfs pull`",
    since="0.2.0",
)
@pytest.mark.parametrize("name", ["v.mp4", "i.png", "frames/0.png"])
def test_a_git_lfs_pointer_is_named(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(POINTER)
    given = path.parent if name.startswith("frames") else path
    key = "image" if name == "i.png" else "video"
    with Isolated(Preprocessor(None, InputSpec(num_frames=4)), 1) as isolated:
        for medium in [str(given)] + [POINTER] * (given == path):
            failed = isolated.attempt(Item(**{key: medium}))
            named = f"<{len(POINTER)} bytes>" if medium is POINTER else str(path)
            assert failed.reason.startswith(f"{named}: is a Git LFS pointer"), failed
            assert "git lfs pull" in failed.reason and failed.retry


def test_a_disk_that_fails_may_recover_and_damage_does_not(monkeypatch):
    def fails(number):
        def load(*arguments):
            try:
                raise OSError(number, os.strerror(number))
            except OSError as error:
                raise MediaError(f"v.mp4: not a readable video ({error})") from error

        return load

    spec = dataclasses.asdict(InputSpec(num_frames=4))
    item = pack_item(Item(video=b"abc"))[0]
    request = {"operation": "visuals", "item": item, "spec": spec}
    for number, retry in ((errno.EIO, True), (errno.ESTALE, True), (errno.EINVAL, False)):
        monkeypatch.setattr(Preprocessor, "frames", fails(number))
        header, _ = worker._answer(request, memoryview(b"abc"), Limits(), None)
        assert header["retry"] == retry and header["error"].startswith("v.mp4: not a readable")
    monkeypatch.undo()
    with pytest.raises(av.FFmpegError):  # damage, with an error number of the system
        av.open(io.BytesIO(b""))
    header, _ = worker._answer(request, memoryview(b"abc"), Limits(), None)
    assert not header["retry"]
