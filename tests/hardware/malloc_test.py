"""Reuse of freed memory, tested in separate processes because the setting is permanent."""

import os
import subprocess
import sys

# Writes and frees 64 MB twice in the main thread and once in another.
CODE = """
import resource, threading
from gve_jax.hardware.malloc import retain_freed_memory

print(retain_freed_memory())

def touch():
    bytearray(b'x') * (64 << 20)  # not NumPy, which requests huge pages

def faults(run):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    run()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def in_thread():
    thread = threading.Thread(target=touch)
    thread.start()
    thread.join()

print(faults(touch), faults(touch), faults(in_thread))
"""


def run(**variables) -> list[str]:
    names = [name for name in os.environ if name.startswith("MALLOC_") or name == "GLIBC_TUNABLES"]
    env = {name: value for name, value in os.environ.items() if name not in names} | variables
    done = subprocess.run([sys.executable, "-c", CODE], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_freed_memory_is_reused_by_any_thread():
    retained, first, again, in_thread = run()
    assert retained == "True"
    assert int(first) > 10_000  # 16,384 pages
    assert int(again) < 1_000 and int(in_thread) < 1_000


def test_a_setting_of_the_user_is_not_overridden():
    retained, _, again, _ = run(MALLOC_ARENA_MAX="2")
    assert retained == "False"
    assert int(again) > 10_000
