"""Two commands with one output: the second is refused and names the first."""

import subprocess
import sys

import pytest

from evals.curriculum.__main__ import main as curriculum
from evals.synthesis.__main__ import main as synthesis
from evals.uvrb.__main__ import main as uvrb
from gve_jax.errors import UserError
from gve_jax.storage.locks import lock_for_process
from tests.conftest import ROOT
from tests.situations import situation

_HOLD = """
import sys
from pathlib import Path
from gve_jax.storage.locks import lock_for_process
with lock_for_process(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""
COMMANDS = {
    "uvrb": lambda out: uvrb(["--model", "m", "--data", str(out), "--output", str(out)]),
    "uvrb of vectors": lambda out: uvrb(
        ["--embeddings", str(out), "--data", str(out), "--output", str(out)]
    ),
    "curriculum": lambda out: curriculum(["--output", str(out)]),
    "synthesis": lambda out: synthesis(["--workdir", str(out)]),
}


@pytest.fixture(scope="module")
def held(tmp_path_factory):
    """A folder locked by another process, and that process."""
    folder = tmp_path_factory.mktemp("held")
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLD, folder],
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout.readline() == "held\n"
    yield folder, holder
    holder.communicate()


@situation(
    "Evaluation",
    "two evaluations into one output at once",
    "the second is refused and names the process that holds the lock",
    since="0.2.0",
)
@pytest.mark.parametrize("command", COMMANDS)
def test_the_second_command_names_the_first(held, command):
    folder, holder = held
    before = sorted(folder.iterdir())
    with pytest.raises(UserError, match=f"in use by process {holder.pid} on .*; wait for it"):
        COMMANDS[command](folder)
    assert sorted(folder.iterdir()) == before == [folder / ".lock"]


def test_process_lock_does_not_initialize_devices(tmp_path):
    """Ablations start training processes, which need the devices."""
    program = (
        "import sys\nfrom pathlib import Path\nfrom gve_jax.storage.locks import lock_for_process\n"
        "with lock_for_process(Path(sys.argv[1])):\n"
        "    from jax._src import xla_bridge\n"
        "    assert not xla_bridge.backends_are_initialized()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path], cwd=ROOT, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    with lock_for_process(tmp_path):
        with pytest.raises(UserError, match="in use by process"):
            with lock_for_process(tmp_path):
                pass
