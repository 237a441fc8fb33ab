"""Eight virtual CPU devices, so that shardings are real; set before any test uses JAX."""

import atexit
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import fsspec
import jax
import numpy as np
import pytest
from absl import flags

from gve_jax.inputs.prompt import Prompt
from tests.fake_gcs import FakeGcs
from tests.media.files import small_tokenizer

ROOT = Path(__file__).resolve().parents[1]

# XLA runs CPU devices in a pool of as many threads as there are devices or cores. A collective
# blocks a thread, and a device may be in several at once (two encoders of one step): with eight
# threads, eight devices then wait for each other forever. NPROC sets the size of the pool.
os.environ["NPROC"] = "32"
# Devices that wait for each other end the process after 40 s, which eight of them on two busy cores
# may take; the variables reach the processes that tests start, too.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_cpu_collective_call_terminate_timeout_seconds=300"
)
# A fusion that MLIR's emitters compile takes twice as long to compile. Other releases of JAX refuse
# the flag and end the process.
if jax.__version_info__[:2] == (0, 10):
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
# The trainer's tests start it again and again: each program is compiled once a session. The
# variables reach the workers of pytest-xdist and the processes that tests start, the settings this
# one.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="gve_jax-compiled-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
# TFDS and ml_collections read absl flags, which only a command line would have parsed.
flags.FLAGS.mark_as_parsed()


# The files that take longest, which workers take first: at the end one worker would run them alone.
LONGEST = (
    "train_lora_test.py",
    "train_test.py",
    "hosts_test.py",
    "gradcache_test.py",
    "step_test.py",
    "state_test.py",
    "old_formats_test.py",
    "mine_test.py",
    "embed_test.py",
    "train_gcs_test.py",
    "docs_test.py",
    "lora_test.py",
    "embedder_test.py",
    "widths_test.py",
    "quantize_test.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.name, len(ranks)))


@pytest.fixture(scope="session")
def gcs():
    """Buckets on the loopback, for this process and those that tests start."""
    settings = {
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # its gRPC has no stand-in
        "FSSPEC_GCS_TOKEN": "anon",
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "anyone",  # tensorstore's
    }
    with FakeGcs() as server, pytest.MonkeyPatch.context() as patch:
        for name in ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL"):
            patch.setenv(name, server.url)
        for name, value in settings.items():
            patch.setenv(name, value)
        fsspec.config.conf.setdefault("gcs", {})["token"] = "anon"  # it has read its variables
        yield server


@pytest.fixture(autouse=True)
def seeds() -> None:
    random.seed(0)
    np.random.seed(0)


@pytest.fixture
def mesh() -> jax.sharding.Mesh:
    """All three axes of the library's mesh, two devices each."""
    return jax.make_mesh(
        (2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3
    )


# The command, then a look at what it imported.
_RUN = """
import sys
from data.shapes.__main__ import main
sys.argv = ["data.shapes", *sys.argv[1:]]
main()
assert "tensorflow" not in sys.modules, "TensorFlow was imported"
"""


def _run(*arguments: str, code: str | None = None) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", code] if code else [sys.executable, "-m", "data.shapes"]
    return subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    """A folder written by `python -m data.shapes --scale 0.01`, without TensorFlow."""
    output = tmp_path_factory.mktemp("shapes") / "world"
    done = _run("--output", str(output), "--scale", "0.01", code=_RUN)
    assert done.returncode == 0, done.stderr
    return output


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    small_tokenizer().save(str(path))
    return path


@pytest.fixture(scope="session")
def prompt(tokenizer_file) -> Prompt:
    return Prompt(tokenizer_file, max_length=512)


@pytest.fixture(scope="session")
def two_hosts():
    """The two hosts of a job, which run functions by their names; see tests/pair.py."""
    from tests.pair import Pair

    pair = Pair()
    yield pair
    pair.close()


@pytest.fixture(scope="session")
def run_shapes():
    """Runs `python -m data.shapes ARGUMENTS`; returns the finished process."""
    return _run
