"""SIGTERM stops a single process after its step, and all hosts of a job after the same step."""

import os
import signal
import socket
import subprocess
import sys
import threading

import pytest

from gve_jax.distributed.preemption import Preemption
from gve_jax.errors import StoppedError
from tests.conftest import ROOT

HOST = """
import sys, time, jax
jax.config.update("jax_platforms", "cpu")
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from jax.experimental import multihost_utils
from gve_jax.distributed.preemption import Preemption
with Preemption() as preemption:
    for step in range(1, 10_000):
        multihost_utils.sync_global_devices(f"step {step}")  # as the loss does
        if preemption.reached(step):
            break
        if step == 3:
            print("training", flush=True)
        time.sleep(0.01)
print(step, flush=True)
"""


def test_a_signal_is_recorded_and_the_previous_handler_restored():
    before = signal.getsignal(signal.SIGTERM)
    with Preemption() as preemption:
        preemption.unsaved = True
        assert not preemption.reached(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.reached(2)
        with pytest.raises(StoppedError, match="saved at step 2; repeat the command to resume"):
            preemption.stop(2)
    assert signal.getsignal(signal.SIGTERM) == before


def test_ctrl_c_saves_as_well_and_a_second_one_interrupts(capfd):
    with Preemption() as preemption:
        preemption.unsaved = True
        os.kill(os.getpid(), signal.SIGINT)
        assert preemption.reached(2)
        assert "Ctrl-C again stops at once" in capfd.readouterr().err
        with pytest.raises(StoppedError, match="Ctrl-C: checkpoint saved at step 2") as error:
            preemption.stop(2)
        assert error.value.status == 130
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_before_the_first_step_stops_at_once():
    with Preemption(), pytest.raises(StoppedError, match="SIGTERM: no step to save"):
        os.kill(os.getpid(), signal.SIGTERM)


# The main thread is in C code that no signal interrupts, as in a compiler: it waits for a mutex of
# its own.
COMPILING = """
import ctypes, threading
from gve_jax.distributed.preemption import Preemption
mutex, lock = ctypes.create_string_buffer(64), ctypes.CDLL(None).pthread_mutex_lock
with Preemption():
    lock(mutex)
    threading.Timer(1, lambda: print("compiling", flush=True)).start()
    lock(mutex)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a mutex of zeros is one of Linux")
def test_a_signal_while_compiling_ends_the_process():
    process = subprocess.Popen(
        [sys.executable, "-c", COMPILING], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout.readline() == b"compiling\n"
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err.splitlines()[-1]) == (
        143,
        b"received SIGTERM: no step to save since the start; repeat the command to resume",
    )


def test_no_handler_is_installed_outside_the_main_thread():
    reached = []

    def run():
        with Preemption() as preemption:
            reached.append(preemption.reached(1))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert reached == [False]


def test_hosts_agree_on_the_step_when_one_receives_the_signal():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    hosts = [
        subprocess.Popen(
            [sys.executable, "-c", HOST, address, str(number)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    for host in hosts:
        assert "training\n" in iter(host.stdout.readline, ""), host.communicate()
    hosts[1].send_signal(signal.SIGTERM)
    ends = [host.communicate(timeout=120) for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], ends
    first, second = (int(out.split()[-1]) for out, _ in ends)
    assert first == second and 3 < first < 9_999
