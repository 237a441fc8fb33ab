"""Two hosts divide the queries and both get what one finds alone."""

import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from gve_jax.retrieval import rank_candidates, rank_positives, screen, top_k
from tests.conftest import ROOT

# 7 queries: one host gets more of them than the other.
_RUN = """
import sys
from gve_jax import hosts
hosts.start()
import numpy as np
from tests.retrieval.hosts_test import find
with hosts.together():
    np.savez(sys.argv[1], **find(None))
"""


def find(mesh) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    queries = rng.choice([-1, 1], size=(7, 64)).astype(np.float32) / 8
    corpus = rng.choice([-1, 1], size=(150, 64)).astype(np.float32) / 8
    ids = [str(i) for i in rng.permutation(150)]
    positives = [rng.choice(20, size=n, replace=False) for n in (1, 6, 0, 2, 3, 1, 1)]
    lists = [range(20 + 10 * n) for n in range(7)]
    ranks = rank_positives(queries, corpus, positives, ids, mesh=mesh)
    among = rank_candidates(queries, corpus, lists, positives, ids, mesh=mesh)
    places, scores = top_k(queries, corpus, ids, 5, mesh=mesh)
    found = {"places": places, "scores": scores}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(screen, "pays", lambda rows, corpus: True)
        patch.setattr(screen, "LEAST_FILLED", 0)
        patch.setattr(screen, "MOST", 0.05)  # some rows are left to float32
        screened = rank_positives(queries, corpus, positives, ids, mesh=mesh)
    for name, each in {"ranks": ranks, "among": among, "screened": screened}.items():
        for key in ("query", "document", "score", "rank", "pessimistic"):
            found[f"{name}.{key}"] = getattr(each, key)
    return found


def test_two_hosts_find_what_one_does(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    job = {"GVE_JAX_COORDINATOR": address, "GVE_JAX_HOSTS": "2", "GVE_JAX_HEARTBEAT_S": "60",
           "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"}  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _RUN, str(tmp_path / f"{host}.npz")], cwd=ROOT, text=True,
            env=os.environ | job | {"GVE_JAX_HOST": str(host)}, stderr=subprocess.PIPE,
        )
        for host in range(2)
    ]  # fmt: skip
    try:
        ends = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], ends
    expected = find(Mesh(np.array(jax.devices()[:1]), ("data",)))
    for key in ("rank", "pessimistic"):  # scores are exact on this grid
        np.testing.assert_array_equal(expected[f"screened.{key}"], expected[f"ranks.{key}"])
    for host in range(2):
        found = np.load(tmp_path / f"{host}.npz")
        for key, value in expected.items():
            np.testing.assert_array_equal(found[key], value, err_msg=f"host {host}: {key}")
