"""Freed memory that is kept, in a process of its own: the setting is for good."""

import os
import subprocess
import sys

# 64 MB, written, freed, and written again by another thread.
CODE = """
import resource, threading
from gve_jax.hardware.malloc import retain_freed_memory

print(retain_freed_memory())

def touch():
    bytearray(b'x') * (64 << 20)  # NumPy would ask for huge pages

def faults(run):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    run()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def beside():
    thread = threading.Thread(target=touch)
    thread.start()
    thread.join()

print(faults(touch), faults(touch), faults(beside))
"""


def run(**variables) -> list[str]:
    names = [name for name in os.environ if name.startswith("MALLOC_") or name == "GLIBC_TUNABLES"]
    env = {name: value for name, value in os.environ.items() if name not in names} | variables
    done = subprocess.run([sys.executable, "-c", CODE], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_freed_memory_is_used_again_by_any_thread():
    kept, first, again, beside = run()
    assert kept == "True"
    assert int(first) > 10_000  # 16,384 pages
    assert int(again) < 1_000 and int(beside) < 1_000


def test_what_the_user_set_stays():
    kept, _, again, _ = run(MALLOC_ARENA_MAX="2")
    assert kept == "False"
    assert int(again) > 10_000
