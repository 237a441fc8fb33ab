"""Names of semaphores: those of ended processes are removed, others stay."""

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gve_jax.streams import semaphores
from gve_jax.streams.semaphores import claim_semaphores

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="names of Linux")


@pytest.fixture
def prefix():
    config = multiprocessing.current_process()._config
    before = config["semprefix"]
    yield lambda: config["semprefix"]
    config["semprefix"] = before


def test_a_semaphore_names_the_process_that_made_it(prefix):
    claim_semaphores()
    assert f"-{os.getpid()}-" in prefix()
    lock = multiprocessing.get_context("spawn").Lock()
    assert lock._semlock.name.startswith(prefix())
    found = semaphores.FOLDER / f"sem.{lock._semlock.name[1:]}"
    assert found.exists()
    claim_semaphores()
    assert found.exists()
    del lock
    assert not found.exists()


def test_semaphores_of_ended_processes_are_removed(tmp_path, monkeypatch, prefix):
    monkeypatch.setattr(semaphores, "FOLDER", tmp_path)
    space = os.stat("/proc/self/ns/pid").st_ino
    ended = subprocess.Popen(["true"])
    ended.wait()
    alive = semaphores._start_time(os.getpid())
    assert alive == Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    kept = {
        f"sem.gve_jax-{space}-{os.getpid()}-{alive}-abcd",
        f"sem.gve_jax-{space + 1}-{ended.pid}-5-abcd",  # of another container
        "sem.mp-abcd",
    }
    gone = {
        f"sem.gve_jax-{space}-{ended.pid}-5-abcd",
        f"sem.gve_jax-{space}-{os.getpid()}-{int(alive) - 1}-abcd",  # its id is ours now
    }
    for name in kept | gone:
        (tmp_path / name).touch()
    claim_semaphores()
    assert {path.name for path in tmp_path.iterdir()} == kept
