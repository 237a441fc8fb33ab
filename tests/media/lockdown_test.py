"""A decoding process that has been taken over can do nothing but answer.

The attacks (attacker.py) run inside a real worker. As a control, those that need no rights of root
are run in a worker that keeps its rights, where they must succeed.
"""

import dataclasses
import os
import re
import socket
import struct
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gve_jax.inputs.preprocess import InputSpec, Preprocessor
from gve_jax.media import lockdown, sandbox
from gve_jax.media.errors import RetryableMediaError
from gve_jax.media.item import Item
from gve_jax.media.limits import Limits
from gve_jax.media.process import WorkerLost, WorkerProcess
from gve_jax.media.sandbox import Sandbox
from gve_jax.media.wire import pack_item
from tests.conftest import ROOT
from tests.media.attacker import ACTIONS, BOUNDED
from tests.media.files import clip, picture, textured
from tests.media.formats import samples
from tests.situations import situation

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
LIMITS = Limits(seconds=120.0, memory=1 << 29)
HELD = {"no_new_privs": True, "seccomp": True}


class World:
    """What can be attacked."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "precious").write_text("precious")
        os.chmod(folder / "precious", 0o600)
        (folder / "box").mkdir()
        (folder / "link").symlink_to("precious")
        (folder / "own").write_text("own file")
        self.victim = subprocess.Popen(["sleep", "600"], start_new_session=True)
        self.tcp, self.udp = socket.socket(), socket.socket(type=socket.SOCK_DGRAM)
        self.unix = socket.socket(socket.AF_UNIX)
        self.unix.bind(str(folder / "socket"))
        for listener in (self.tcp, self.udp):
            listener.bind(("127.0.0.1", 0))
        for listener in (self.tcp, self.unix):
            listener.listen()
        for listener in (self.tcp, self.udp, self.unix):
            listener.setblocking(False)
        self.before = self.look()

    def look(self) -> dict:
        found = {}
        for path in sorted(self.folder.iterdir()):
            status = path.lstat()
            text = path.read_text() if path.is_file() else ""
            found[path.name] = (status.st_mode, status.st_mtime_ns, status.st_nlink, text)
        return found

    def assert_untouched(self) -> None:
        assert self.look() == self.before
        assert self.victim.poll() is None
        assert os.getpriority(os.PRIO_PROCESS, self.victim.pid) == os.getpriority(0, 0)
        for listener in (self.tcp, self.unix):
            with pytest.raises(BlockingIOError):
                listener.accept()
        with pytest.raises(BlockingIOError):
            self.udp.recv(1)
        assert not Path("/dev/shm/gve_jax-attack").exists()

    def attack(self, process: WorkerProcess, *names: str) -> dict[str, str]:
        fields, buffers, files = pack_item(Item(video=self.folder / "own"))
        request = {
            "operation": "attack",
            "item": fields,
            "actions": names,
            "folder": str(self.folder),
            "victim": self.victim.pid,
            "tcp": self.tcp.getsockname()[1],
            "udp": self.udp.getsockname()[1],
        }
        header, _ = process.ask(request, buffers, 0, files)
        assert "outcomes" in header, header
        return header["outcomes"]

    def close(self) -> None:
        self.victim.kill()
        self.victim.wait()
        for listener in (self.tcp, self.udp, self.unix):
            listener.close()


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path)
    yield made
    made.close()


@pytest.fixture
def process():
    made = WorkerProcess("tests.media.attacker", LIMITS)
    yield made
    made.kill()


@situation(
    "Media",
    "file that takes over the process that reads it, which then attacks the machine",
    "it can neither read or write a file, use the network, start, signal nor trace a process",
    since="0.3.0",
)
def test_every_hostile_action_is_denied(world, process):
    if not process.protection.items() >= HELD.items():
        pytest.skip(f"this kernel has {process.protection} only")
    outcomes = world.attack(process, *ACTIONS)
    assert len(outcomes) == len(ACTIONS) >= 80
    assert [name for name, outcome in outcomes.items() if outcome == "done"] == []
    world.assert_untouched()
    # It still works, and has no more rights than before.
    assert world.attack(process, "read_a_file")["read_a_file"].startswith("PermissionError")


def test_the_actions_work_where_nothing_is_denied(world, monkeypatch):
    """Otherwise the test above could not fail."""
    monkeypatch.setenv("GVE_JAX_TEST_FREE", "1")
    free = WorkerProcess("tests.media.attacker", LIMITS)
    try:
        assert free.protection == {"no_new_privs": False, "landlock": 0, "seccomp": False}
        names = """
            read_a_file read_passwords read_its_own_memory read_the_environment_of_another
            reopen_its_file open_a_device append_to_a_file create_a_file list_a_folder stat_a_file
            access_a_file read_a_link link_a_file make_a_symbolic_link make_a_folder change_the_mode
            change_the_owner change_the_times make_a_pipe_file change_the_folder
            change_the_mode_of_its_file lock_its_file connect_by_tcp send_by_udp listen_by_tcp
            connect_a_unix_socket make_a_unix_socket make_a_pair_of_sockets make_a_pipe
            start_a_program fork kill_its_caller let_the_kernel_signal_another choose_the_signal
            become_another_user change_its_priority choose_its_cores
            read_the_limits_of_another make_anonymous_memory_file map_executable_memory
            make_memory_executable watch_files pidfd_of_another landlock_again
            change_the_priority_of_another remove_a_folder truncate_a_file rename_a_file
            kill_another
        """.split()
        outcomes = world.attack(free, *names)
        assert {name: outcome for name, outcome in outcomes.items() if outcome != "done"} == {}
        assert world.victim.wait(5) == -9
        assert world.tcp.accept() and world.udp.recv(1) == b"x" and world.unix.accept()
    finally:
        free.kill()
        (world.folder / "root").unlink(missing_ok=True)


ENDS = {
    "use_memory": "MemoryError",
    "open_descriptors": "OSError: .*Too many open files",
    "start_threads": "RuntimeError: can't start new thread|limits.memory",
    "print_much": "died of SIGXFSZ|File too large",
    "run_for_ever": r"not decoded in 3 seconds \(limits.seconds\)",
    "ask_for_a_file_that_is_not_its_own": "asked for the file 7",
    "ask_for_a_path": "asked for the file '/etc/passwd'",
}


@pytest.mark.parametrize("name", BOUNDED)
def test_what_cannot_be_denied_is_bounded(world, name):
    limits = dataclasses.replace(LIMITS, seconds=3.0) if name == "run_for_ever" else LIMITS
    process = WorkerProcess("tests.media.attacker", limits)
    try:
        (outcome,) = world.attack(process, name).values()
    except WorkerLost as loss:
        outcome = str(loss)
    finally:
        process.kill()
    assert re.search(ENDS[name], outcome), outcome
    assert not Path(f"/proc/{process.pid}").exists()
    world.assert_untouched()


def test_threads_work_and_are_as_restricted(world, process):
    """Decoders of AVIF start threads."""
    if not process.protection["seccomp"]:
        pytest.skip("no seccomp")
    outcome = world.attack(process, "attack_in_a_thread")["attack_in_a_thread"]
    assert outcome == "RuntimeError: PermissionError in a thread"
    world.assert_untouched()


def test_the_caller_is_warned_once_where_the_kernel_lacks_something(monkeypatch):
    monkeypatch.setenv("GVE_JAX_TEST_FREE", "1")
    monkeypatch.setattr(sandbox, "WORKER", "tests.media.attacker")
    monkeypatch.setattr(sandbox, "_warned", False)
    data = clip(8)
    with Sandbox() as first, Sandbox() as second:
        with pytest.warns(UserWarning, match="lacks no_new_privs, Landlock, seccomp") as warned:
            assert first.header(data).kind == "video"
            assert second.header(data).kind == "video"
        assert len(warned) == 1
        assert first.protection() == {"no_new_privs": False, "landlock": 0, "seccomp": False}


def test_what_held_is_reported():
    with Sandbox() as opened:
        held = opened.protection()
        assert list(held) == ["no_new_privs", "landlock", "seccomp"]
        assert opened.protection() == held and len(opened.pids) == 1


def test_every_format_gives_the_same_frames_as_without(tmp_path):
    """Also by path, and as frames of a folder and of a list, which are opened by the caller."""
    preprocess = Preprocessor(None, InputSpec(max_length=2000))
    with Sandbox(Limits(seconds=30)) as opened:
        for name, item in samples().items():
            kind = "image" if item.video is None else "video"
            data, path = getattr(item, kind), tmp_path / "medium"
            path.write_bytes(data)
            expected = preprocess.visuals(item)
            for source in (data, path):
                given = dataclasses.replace(item, **{kind: source})
                found = opened.visuals(given, preprocess.spec)
                for one, other in zip(found, expected, strict=True):
                    np.testing.assert_array_equal(one.patches, other.patches, err_msg=name)
        folder = tmp_path / "frames"
        folder.mkdir()
        for number, frame in enumerate(textured(90)):
            (folder / f"{number}.png").write_bytes(picture(Image.fromarray(frame)))
        everything = list(map(str, sorted(folder.iterdir(), key=lambda path: int(path.stem))))
        for source in (folder, everything):
            for count in (8, "all"):  # more than may be open at once
                item = Item(video=source, num_frames=count, max_pixels=4 * 784, fps=4.0)
                (expected,), (found,) = (
                    reader(item)
                    for reader in (
                        preprocess.visuals,
                        partial(opened.visuals, spec=preprocess.spec),
                    )
                )
                np.testing.assert_array_equal(found.patches, expected.patches)
        (folder / "3.png").unlink()
        with pytest.raises(RetryableMediaError, match="3.png: no such file"):
            opened.visuals(
                Item(video=everything, num_frames="all", max_pixels=3136), preprocess.spec
            )
        assert len(opened.pids) == 1  # the same process all the time


def test_lower_limits_of_a_scheduler_stay():
    code = """
import resource
from gve_jax.media.sandbox import Sandbox
resource.setrlimit(resource.RLIMIT_CPU, (1000, 1000))
with Sandbox() as opened:
    opened.protection()
    (pid,) = opened.pids
    kinds = resource.RLIMIT_CPU, resource.RLIMIT_NOFILE
    print(*(resource.prlimit(pid, kind)[1] for kind in kinds))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["1000", "64"], done.stderr


@pytest.mark.parametrize("version", range(9))
def test_landlock_gets_only_what_its_version_knows(version, monkeypatch):
    """Kernels refuse unknown bits and sizes. linux/landlock.h of each version."""
    sizes = {0: None, 1: 8, 2: 8, 3: 8, 4: 16, 5: 16}
    rights = {1: 13, 2: 14, 3: 15, 4: 15}
    calls = []

    def call(libc, number, *arguments):
        calls.append((number, *arguments))
        if number == lockdown._CREATE_RULESET:
            return version if arguments[0] is None else 99
        return 0

    monkeypatch.setattr(lockdown, "_call", call)
    monkeypatch.setattr(lockdown.os, "close", lambda descriptor: None)
    assert lockdown._apply_landlock(None) == version
    if not version:
        assert len(calls) == 1
        return
    (_, _, _, ask), (_, attributes, size, _), (_, ruleset, _, _) = calls
    assert ask == 1 and ruleset == 99 and size == sizes.get(version, 24)
    files, net, scope = struct.unpack("=QQQ", attributes)
    assert files == (1 << rights.get(version, 16)) - 1
    assert (net, scope) == (3 if version >= 4 else 0, 3 if version >= 6 else 0)


class Machine:
    """Runs a filter as the kernel does (classic BPF)."""

    def __init__(self, program: bytes, architecture: int):
        self.program = [
            struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)
        ]
        self.architecture = architecture

    def run(self, number: int, *arguments: int, architecture: int | None = None) -> int:
        values = [value & (1 << 64) - 1 for value in arguments] + [0] * (6 - len(arguments))
        data = struct.pack("=IIQ6Q", number, architecture or self.architecture, 0, *values)
        at = accumulator = 0
        while True:
            code, yes, no, operand = self.program[at]
            at += 1
            if code == 0x20:
                (accumulator,) = struct.unpack_from("=I", data, operand)
            elif code == 0x06:
                return operand
            else:
                test = {0x15: "__eq__", 0x35: "__ge__", 0x45: "__and__"}[code]
                at += yes if getattr(accumulator, test)(operand) else no


ALLOW, DENY, ABSENT, KILL = 0x7FFF0000, 0x50001, 0x50026, 0x80000000


@pytest.mark.parametrize("name", lockdown._ARCHITECTURES)
def test_the_filter_of_each_architecture(name):
    """Also of those that this machine is not."""
    architecture, _, numbers = lockdown._ARCHITECTURES[name]
    machine = Machine(lockdown._program(architecture, numbers, pid=4242), architecture)
    cases = {
        "read": [((), ALLOW)],
        "clone": [((0x3D0F00,), ALLOW), ((17,), DENY), ((0x10000000 | 0x3D0F00,), DENY)],
        "clone3": [((0, 88), ABSENT)],
        "kill": [((4242, 9), ALLOW), ((1, 9), DENY), ((0, 9), DENY), ((-1, 9), DENY)],
        "tgkill": [((4242, 4250, 6), ALLOW), ((4243, 4243, 6), DENY)],
        "mmap": [((0, 4096, 3, 34), ALLOW), ((0, 4096, 7, 34), DENY), ((0, 1, 4, 34), DENY)],
        "mprotect": [((0, 4096, 1), ALLOW), ((0, 4096, 5), DENY)],
        "fcntl": [((3, 1), ALLOW), ((3, 1030), ALLOW), ((3, 8, 1), DENY), ((3, 10, 9), DENY)],
        "prlimit64": [
            ((0, 9, 0, 4096), ALLOW),
            ((0, 9, 4096, 0), DENY),
            ((0, 9, 1 << 40, 0), DENY),
            ((4242, 9, 0, 4096), DENY),
        ],
    }
    for call, outcomes in cases.items():
        for arguments, expected in outcomes:
            assert machine.run(numbers[call], *arguments) == expected, (call, arguments)
    known = set(numbers.values())
    assert len(known) == len(numbers)
    for number in range(600):
        if number not in known:
            assert machine.run(number) == DENY
    assert machine.run(numbers["read"], architecture=0x40000003) == KILL  # 32-bit x86
    if name == "x86_64":
        assert machine.run(numbers["read"] | 0x40000000) == KILL


@pytest.mark.parametrize("name", ["x86_64", "aarch64"])
def test_numbers_of_system_calls(name):
    """As libseccomp or the kernel's headers of this machine have them, where there are any."""
    _, seccomp, numbers = lockdown._ARCHITECTURES[name]
    headers = {
        "x86_64": "/usr/include/x86_64-linux-gnu/asm/unistd_64.h",
        "aarch64": "/usr/include/asm-generic/unistd.h",
    }
    if not Path(headers[name]).exists():
        pytest.skip("no headers of the kernel")
    text = Path(headers[name]).read_text()
    found = dict(re.findall(r"#define __NR(?:3264)?_(\w+) (\d+)", text))
    for call, number in {**numbers, "seccomp": seccomp}.items():
        assert int(found[call]) == number, call
