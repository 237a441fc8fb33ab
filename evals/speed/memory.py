"""Peak memory of a search in processes of their own, over a memory-mapped corpus of two sizes."""

import importlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

# Anonymous memory: pages of the mapped corpus are the page cache's, and leave when it needs room.
PEAK = """
import importlib, json, sys, threading, time
import numpy as np
module, queries, path = sys.argv[1:]
corpus = np.load(path, mmap_mode="r")
most, done = [0], threading.Event()
def watch():
    while not done.is_set():
        line = next(l for l in open("/proc/self/status") if l.startswith("RssAnon"))
        most[0] = max(most[0], int(line.split()[1]))
        time.sleep(0.002)
thread = threading.Thread(target=watch)
thread.start()
importlib.import_module(module).work(int(queries), corpus)
done.set(); thread.join()
print(json.dumps(most[0]))
"""


def growth(module: str, queries: int, sizes: list[int], width: int) -> dict[str, int]:
    """Peak anonymous MiB of `module.work(queries, corpus)` at each size of the corpus."""
    made = importlib.import_module("evals.speed.rank").vectors
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "corpus.npy"
        for size in sizes:
            array = np.lib.format.open_memmap(path, "w+", np.float32, (size, width))
            for start in range(0, size, 8192):
                array[start : start + 8192] = made(min(8192, size - start), width, start)
            array.flush()
            del array
            done = subprocess.run(
                [sys.executable, "-c", PEAK, module, str(min(queries, 2048)), str(path)],
                capture_output=True,
                text=True,
                check=True,
            )
            found[f"{size} documents"] = round(int(json.loads(done.stdout.splitlines()[-1])) / 1024)
    return found
