"""Locks on output folders."""

import subprocess
import sys

import pytest

from gve_jax.errors import UserError
from gve_jax.storage.locks import lock_folder

HOLD = """
import sys, time
from pathlib import Path
from gve_jax.storage.locks import lock_folder
with lock_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_the_holder_is_named_and_a_killed_holder_releases_the_lock(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"in use by process {holder.pid} on ") as refused:
            with lock_folder(tmp_path):
                pass
        assert "\n" not in str(refused.value)
    finally:
        holder.kill()
        holder.wait()
    with lock_folder(tmp_path):
        pass


def test_the_folder_is_created_and_can_be_locked_again(tmp_path):
    for _ in range(2):
        with lock_folder(tmp_path / "a" / "b"):
            with pytest.raises(UserError, match="in use by process"):
                with lock_folder(tmp_path / "a" / "b"):
                    pass
