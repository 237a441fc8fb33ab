"""Arrays between processes without names in the file system."""

import dataclasses
import hashlib
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from multiprocessing import shared_memory
from pathlib import Path

import grain
import numpy as np
import pytest

from gve_jax.errors import UserError
from gve_jax.streams import shared_arrays
from gve_jax.streams.loader import _next, read_ahead
from gve_jax.streams.semaphores import claim_semaphores
from gve_jax.streams.shared_arrays import Received, SendArrays, SenderLost
from tests.conftest import ROOT
from tests.situations import situation

pytestmark = pytest.mark.skipif(not shared_arrays.IS_SUPPORTED, reason="needs Linux's memfd")


@dataclasses.dataclass
class Size:
    rows: np.ndarray


def batch(number: int) -> dict:
    rng = np.random.default_rng(number)
    return {
        "ids": [f"{number}"],
        "query": {"patches": rng.integers(0, 255, (3, 5, 7), np.uint8), "empty": np.zeros((0, 4))},
        "scalar": np.float32(number),
        "transposed": rng.normal(size=(4, 6)).T,
        "strided": np.arange(20, dtype=np.int32)[::2],
        "size": Size(np.arange(number + 1)),
    }


def assert_same(found: dict, expected: dict) -> None:
    assert found["ids"] == expected["ids"] and found["scalar"] == expected["scalar"]
    np.testing.assert_array_equal(found["size"].rows, expected["size"].rows)
    for key in ("transposed", "strided"):
        np.testing.assert_array_equal(found[key], expected[key])
    for key, array in expected["query"].items():
        assert found["query"][key].dtype == array.dtype
        np.testing.assert_array_equal(found["query"][key], array)


def open_memfds() -> int:
    links = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return sum("gve_jax-batch" in link for link in links)


def test_batches_arrive_unchanged_and_their_memory_is_freed():
    send = pickle.loads(pickle.dumps(SendArrays()))
    for number in range(20):
        received = pickle.loads(pickle.dumps(send.map(batch(number))))
        assert isinstance(received, Received)
        found = received.take()
        assert_same(found, batch(number))
        assert found["query"]["patches"].ctypes.data % 64 == 0
        found["query"]["patches"][:] = 1  # writable
        assert open_memfds() == 1  # the one that the sender has not seen taken
    pickle.loads(pickle.dumps(send.map(batch(0))))  # dropped without being taken
    assert open_memfds() == 1
    assert_same(pickle.loads(pickle.dumps(send.map({**batch(3)}))).take(), batch(3))
    nothing = pickle.loads(pickle.dumps(send.map({"ids": []}))).take()
    assert nothing == {"ids": []}
    for file in send._waiting:
        os.close(file)


def test_a_batch_larger_than_one_write(monkeypatch):
    monkeypatch.setattr(shared_arrays, "_MOST", 1000)
    send = SendArrays()
    data = {"x": np.arange(12_345, dtype=np.int64)}
    found = pickle.loads(pickle.dumps(send.map(data))).take()
    np.testing.assert_array_equal(found["x"], data["x"])
    os.close(send._waiting[0])


def test_another_file_behind_the_same_number_is_not_touched(tmp_path):
    send = SendArrays()
    sent = pickle.dumps(send.map(batch(1)))
    (tmp_path / "precious").write_text("precious")
    with open(tmp_path / "precious", "r+") as file:
        os.dup2(file.fileno(), send._waiting[0])
    with pytest.raises(SenderLost):
        pickle.loads(sent).take()
    assert (tmp_path / "precious").read_text() == "precious"
    os.close(send._waiting[0])


class _Batches(grain.transforms.Map):
    def map(self, number):
        if group := os.environ.get("GVE_JAX_TEST_GROUP"):
            shared_memory._SHM_NAME_PREFIX = f"/{prefix_of(group)}"
        return batch(number)


class _DiesAt(grain.transforms.Map):
    """Kills its process as the kernel does when memory runs out."""

    def map(self, number):
        if number == 6:
            time.sleep(1)
            os.kill(os.getpid(), signal.SIGKILL)
        return batch(number)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stream_of_workers(workers):
    stream = read_ahead(grain.MapDataset.source(list(range(40))), _Batches(), workers, buffer=4)
    iterator = iter(stream)
    for number in range(40):
        if number == 30:
            time.sleep(1)  # the workers are done, and may have ended
        assert_same(_next(iterator), batch(number))
    assert _next(iterator) is None
    iterator.close()
    assert open_memfds() == 0


def test_a_worker_that_is_killed_while_its_batches_wait():
    stream = read_ahead(grain.MapDataset.source(list(range(40))), _DiesAt(), 1, buffer=2)
    iterator = iter(stream)
    assert_same(_next(iterator), batch(0))
    time.sleep(2)
    with pytest.raises(UserError, match="^a decoding process of data.workers was killed"):
        while _next(iterator) is not None:
            pass
    iterator.close()


# A trainer's part in this: workers that make batches, and nothing else.
_TRAINER = """
import sys, time
import grain
from tests.streams.shared_arrays_test import _Batches
from gve_jax.streams.loader import _next, read_ahead

if __name__ == "__main__":
    iterator = iter(read_ahead(grain.MapDataset.range(10**6), _Batches(), workers=2, buffer=8))
    print("ready", flush=True)
    while True:
        _next(iterator)
        print("batch", flush=True)
        time.sleep(0.05)
"""


def processes_of(group: str) -> list[str]:
    found = []
    for process in Path("/proc").iterdir():
        try:
            if (
                process.name.isdigit()
                and f"GVE_JAX_TEST_GROUP={group}\0".encode() in (process / "environ").read_bytes()
            ):
                found.append(process.name)
        except OSError:
            continue
    return found


def wait_for(condition, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def prefix_of(group: str) -> str:
    """How names of shared memory begin in a test's trainer: other programs have some, too."""
    return f"g{hashlib.sha256(group.encode()).hexdigest()[:6]}"


def segments(group: str, pid: int) -> list[str]:
    names = [path.name for path in Path("/dev/shm").iterdir()]
    own = re.compile(rf"{prefix_of(group)}|sem\.gve_jax-\d+-{pid}-")
    return [name for name in names if own.match(name)]


@situation(
    "Training",
    "the trainer is killed (SIGKILL), alone or with all its processes, also in its first seconds",
    "no process and no shared memory stays",
    since="0.3.0",
)
@pytest.mark.parametrize("delay", [0.0, 1.0, None])
def test_nothing_outlives_a_killed_trainer(delay, tmp_path):
    _kill(tmp_path, delay, whole_group=delay is None)


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.0, 0.3, 1.0, 2.0, 5.0, None])
@pytest.mark.parametrize("whole_group", [False, True])
def test_nothing_outlives_a_killed_trainer_at_any_time(delay, whole_group, tmp_path):
    _kill(tmp_path, delay, whole_group)


def _kill(folder: Path, delay: float | None, whole_group: bool) -> None:
    """Kills a trainer `delay` seconds after its first worker appeared; None: after a batch."""
    script = folder / "trainer.py"
    script.write_text(_TRAINER)
    trainer = subprocess.Popen(
        [sys.executable, script],
        env=os.environ | {"PYTHONPATH": str(ROOT), "GVE_JAX_TEST_GROUP": str(folder)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        if delay is None:
            while trainer.stdout.readline() != "batch\n":
                assert trainer.poll() is None
        else:
            assert wait_for(lambda: len(processes_of(str(folder))) > 1, 600)
            time.sleep(delay)
        if whole_group:
            os.killpg(trainer.pid, signal.SIGKILL)
        else:
            trainer.kill()
        trainer.wait()
        assert wait_for(lambda: not processes_of(str(folder)), 120)
    finally:
        for pid in processes_of(str(folder)):
            os.kill(int(pid), signal.SIGKILL)
    claim_semaphores()  # as the next run does
    assert not segments(str(folder), trainer.pid)


def test_a_worker_compares_its_parent_with_who_started_it():
    """A trainer that died while the worker imported its modules has made `getppid` that of init."""
    process = multiprocessing.get_context("spawn").Process(target=_watch_a_dead_parent)
    process.start()
    process.join(120)
    assert process.exitcode == 1


def _watch_a_dead_parent() -> None:
    from gve_jax.streams import loader

    os.getppid = lambda: 1
    loader._start_worker(0, 1)
    time.sleep(300)
