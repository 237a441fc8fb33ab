"""Compiled programs are kept between runs, within a limit, and damaged files are removed."""

import os
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest

from gve_jax.hardware import programs
from tests.conftest import ROOT
from tests.situations import situation

# Compiles a program, forgets it, and compiles it again; then prints what JAX found in its cache.
CODE = """
import jax, jax.numpy as jnp
from gve_jax.hardware import programs

programs.LEAST_SECONDS = 0.0
events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name))
jax.jit(lambda x: x + 1)(1.0)  # before: JAX has then decided that there is no cache
folder = programs.keep_compiled_programs()
for _ in range(2):
    print(float(jax.jit(lambda x: jnp.sin(x) * 2)(1.0)))
    jax.clear_caches()
print(folder, sum(name.endswith("cache_hits") for name in events) > 0)
"""


def run(cache: Path, **variables) -> subprocess.CompletedProcess:
    env = {name: value for name, value in os.environ.items() if name not in programs.VARIABLES}
    return subprocess.run(
        [sys.executable, "-c", CODE],
        env=env | {"XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(ROOT)} | variables,
        capture_output=True,
        text=True,
        check=True,
    )


def test_a_program_is_compiled_once(tmp_path):
    first, second, (folder, hit) = (line.split() for line in run(tmp_path).stdout.splitlines())
    assert first == second and hit == "True"
    assert Path(folder).parent == tmp_path / "gve_jax" / "compiled"
    assert list(Path(folder).glob("*-cache"))


@situation(
    "Embedding",
    "the cache of compiled programs cannot be written",
    "a line that says so; everything is compiled",
    since="0.3.0",
)
def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "gve_jax").write_text("a file")
    done = run(tmp_path)
    assert done.stdout.split()[-2:] == ["None", "False"]
    assert done.stderr.startswith("compiled programs are not kept: ")
    assert str(tmp_path / "gve_jax") in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", programs.VARIABLES)
def test_the_users_own_cache_is_not_replaced(monkeypatch, name):
    monkeypatch.setenv(name, "0")
    monkeypatch.setattr(programs, "_use", lambda folder: pytest.fail("replaced"))
    assert programs.keep_compiled_programs() is None
    programs.share_compiled_programs("workdir")


def write(folder: Path, name: str, data: bytes, age: float) -> Path:
    path = folder / f"{name}-cache"
    path.write_bytes(data)
    os.utime(path, (time.time() - age,) * 2)
    return path


@situation(
    "Embedding",
    "a kill or a full disk left damaged compiled programs",
    "removed at the next start, and compiled again",
    since="0.3.0",
)
def test_incomplete_files_are_removed(tmp_path):
    data = zlib.compress(os.urandom(1000))
    whole, cut = write(tmp_path, "whole", data, 100), write(tmp_path, "cut", data[:-20], 100)
    other, empty = write(tmp_path, "other", b"junk", 100), write(tmp_path, "empty", b"", 100)
    being_written = write(tmp_path, "new", data[:-20], 1)
    programs.sweep(tmp_path)
    assert whole.exists() and being_written.exists()
    assert not cut.exists() and not other.exists() and not empty.exists()
    for path in (tmp_path / "checked", being_written):  # a minute later
        os.utime(path, (path.stat().st_mtime - 61,) * 2)
    programs.sweep(tmp_path)
    assert whole.exists() and not being_written.exists()


def test_least_recently_used_files_go_first(tmp_path):
    data = zlib.compress(os.urandom(1000))
    old, used, new = (write(tmp_path, name, data, 300) for name in ("a", "b", "c"))
    os.utime(used, (time.time(), time.time() - 300))  # read since
    os.utime(new, (time.time() - 200,) * 2)
    programs.sweep(tmp_path, limit=2 * len(data))
    assert not old.exists() and used.exists() and new.exists()
    programs.sweep(tmp_path, limit=0)
    assert not used.exists() and not new.exists()
