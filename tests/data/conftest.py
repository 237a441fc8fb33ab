"""One small generated world for all tests of data.shapes, made by the command line itself."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

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
def run_shapes():
    """Runs `python -m data.shapes ARGUMENTS`; returns the finished process."""
    return _run
