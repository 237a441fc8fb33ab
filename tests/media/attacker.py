"""A decoding worker that has been taken over: does what it is told to do to the machine.

`main` is the real worker with one more operation. Each action of `ACTIONS` either raises OSError,
because it is denied, or returns.
"""

import array
import ctypes
import ctypes.util
import fcntl
import mmap
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from gve_jax.media import worker

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.syscall.restype = ctypes.c_long
X86 = os.uname().machine == "x86_64"


def call(number: int, *arguments) -> int:
    """A system call by its number; raises OSError."""
    values = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    result = LIBC.syscall(ctypes.c_long(number), *values)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


ACTIONS: dict[str, Callable] = {}


def action(function: Callable) -> Callable:
    ACTIONS[function.__name__] = function
    return function


def actions(**functions: Callable) -> None:
    ACTIONS.update(functions)


# `folder` has the files precious (read-only for nobody), box/ and link; `victim` is the id of a
# process; `port` those of listeners: TCP, UDP; `file` is the descriptor of the item's own file.
actions(
    read_a_file=lambda a: open(a.folder / "precious").read(),
    read_passwords=lambda a: open("/etc/passwd").read(),
    read_its_own_memory=lambda a: open("/proc/self/mem", "rb"),
    read_the_environment_of_another=lambda a: open(f"/proc/{a.victim}/environ").read(),
    reopen_its_file=lambda a: open(f"/proc/self/fd/{a.file}", "rb"),
    open_a_device=lambda a: open("/dev/zero", "rb"),
    write_a_file=lambda a: open(a.folder / "precious", "w"),
    append_to_a_file=lambda a: open(a.folder / "precious", "a"),
    create_a_file=lambda a: open(a.folder / "new", "x"),
    list_a_folder=lambda a: os.listdir(a.folder),
    open_relative_to_a_folder=lambda a: os.open("precious", os.O_RDONLY, dir_fd=-100),
    stat_a_file=lambda a: os.stat(a.folder / "precious"),
    access_a_file=lambda a: os.access(a.folder / "precious", os.R_OK) or _no(),
    read_a_link=lambda a: os.readlink(a.folder / "link"),
    truncate_a_file=lambda a: os.truncate(a.folder / "precious", 0),
    remove_a_file=lambda a: os.unlink(a.folder / "precious"),
    rename_a_file=lambda a: os.rename(a.folder / "precious", a.folder / "stolen"),
    link_a_file=lambda a: os.link(a.folder / "precious", a.folder / "second"),
    make_a_symbolic_link=lambda a: os.symlink("/", a.folder / "root"),
    make_a_folder=lambda a: os.mkdir(a.folder / "made"),
    remove_a_folder=lambda a: os.rmdir(a.folder / "box"),
    change_the_mode=lambda a: os.chmod(a.folder / "precious", 0o777),
    change_the_owner=lambda a: os.chown(a.folder / "precious", os.getuid(), os.getgid()),
    change_the_times=lambda a: os.utime(a.folder / "precious", (0, 0)),
    set_an_attribute=lambda a: os.setxattr(a.folder / "precious", "user.x", b"x"),
    make_a_pipe_file=lambda a: os.mkfifo(a.folder / "pipe"),
    make_a_device=lambda a: os.mknod(a.folder / "device", 0o600 | 0o020000, os.makedev(1, 3)),
    change_the_folder=lambda a: os.chdir(a.folder),
    change_the_root=lambda a: os.chroot(a.folder),
    truncate_its_file=lambda a: os.ftruncate(a.file, 0),
    write_into_its_file=lambda a: os.pwrite(a.file, b"x", 0),
    change_the_mode_of_its_file=lambda a: os.fchmod(a.file, 0o777),
    map_its_file_for_writing=lambda a: mmap.mmap(a.file, 1, mmap.MAP_SHARED),
    lock_its_file=lambda a: fcntl.flock(a.file, fcntl.LOCK_EX),
    lease_its_file=lambda a: fcntl.fcntl(a.file, fcntl.F_SETLEASE, fcntl.F_RDLCK),
    connect_by_tcp=lambda a: _socket(socket.SOCK_STREAM).connect(("127.0.0.1", a.tcp)),
    send_by_udp=lambda a: _socket(socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", a.udp)),
    listen_by_tcp=lambda a: _socket(socket.SOCK_STREAM).bind(("127.0.0.1", 0)),
    connect_a_unix_socket=lambda a: _unix().connect(str(a.folder / "socket")),
    connect_an_abstract_socket=lambda a: _unix().connect("\0gve_jax-nobody"),
    make_a_unix_socket=lambda a: _unix().bind(str(a.folder / "made.socket")),
    open_a_raw_socket=lambda a: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1),
    open_a_netlink_socket=lambda a: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0),
    make_a_pair_of_sockets=lambda a: socket.socketpair(),
    make_a_pipe=lambda a: os.pipe(),
    send_a_descriptor_to_its_caller=lambda a: _send_descriptor(a.file),
    execute_a_program=lambda a: os.execv("/bin/true", ["true"]),
    start_a_program=lambda a: subprocess.run(["/bin/true"]),
    fork=lambda a: os.fork() or os._exit(0),
    kill_another=lambda a: os.kill(a.victim, signal.SIGKILL),
    kill_its_caller=lambda a: os.kill(os.getppid(), signal.SIGCONT),
    kill_its_group=lambda a: os.kill(0, signal.SIGCONT),
    kill_all=lambda a: os.kill(-a.victim, signal.SIGCONT),
    let_the_kernel_signal_another=lambda a: fcntl.fcntl(a.file, fcntl.F_SETOWN, a.victim),
    choose_the_signal=lambda a: fcntl.fcntl(a.file, 10, signal.SIGKILL),  # F_SETSIG
    become_another_user=lambda a: os.setuid(os.getuid()),
    become_another_group=lambda a: os.setgid(os.getgid()),
    leave_its_session=lambda a: os.setsid(),
    leave_its_group=lambda a: os.setpgid(0, 0),
    change_its_priority=lambda a: os.setpriority(os.PRIO_PROCESS, 0, 1),
    change_the_priority_of_another=lambda a: os.setpriority(os.PRIO_PROCESS, a.victim, 1),
    choose_its_cores=lambda a: os.sched_setaffinity(0, {0}),
    schedule_in_real_time=lambda a: os.sched_setscheduler(0, 0, os.sched_param(0)),
    raise_its_limit_of_memory=lambda a: _check(LIBC.setrlimit(9, (ctypes.c_uint64 * 2)(-1, -1))),
    limit_another=lambda a: resource.prlimit(a.victim, resource.RLIMIT_CPU, (1, 1)),
    read_the_limits_of_another=lambda a: resource.prlimit(a.victim, resource.RLIMIT_CPU),
    make_memory_with_a_name=lambda a: os.open("/dev/shm/gve_jax-attack", os.O_CREAT | os.O_RDWR),
    make_anonymous_memory_file=lambda a: os.memfd_create("x"),
    map_executable_memory=lambda a: mmap.mmap(-1, 4096, prot=7),
    make_memory_executable=lambda a: _check(LIBC.mprotect(_page(), 4096, 7)),
    watch_files=lambda a: _check(LIBC.inotify_init1(0)),
    terminal_input=lambda a: fcntl.ioctl(0, 0x5412, b"x"),  # TIOCSTI
    name_the_machine=lambda a: socket.sethostname(socket.gethostname()),
    mount=lambda a: _check(LIBC.mount(b"none", os.fsencode(a.folder / "box"), b"tmpfs", 0, None)),
    unmount=lambda a: _check(LIBC.umount2(os.fsencode(a.folder / "box"), 0)),
    swap=lambda a: _check(LIBC.swapon(os.fsencode(a.folder / "precious"), 0)),
    leave_its_namespaces=lambda a: _check(LIBC.unshare(0x10000000)),
    enter_a_namespace=lambda a: _check(LIBC.setns(a.file, 0)),
    set_the_clock=lambda a: _check(LIBC.adjtimex(ctypes.create_string_buffer(256))),
    survive_its_core_dumps=lambda a: _check(LIBC.prctl(4, 1, 0, 0, 0)),  # PR_SET_DUMPABLE
    allow_anyone_to_trace_it=lambda a: _check(LIBC.prctl(0x59616D61, -1, 0, 0, 0)),
    replace_its_filter=lambda a: _check(LIBC.prctl(22, 2, 0, 0, 0)),  # PR_SET_SECCOMP
    open_tree=lambda a: call(428, -100, os.fsencode(a.folder), 1),
    pidfd_of_another=lambda a: call(434, a.victim, 0),
    take_a_descriptor_of_another=lambda a: call(438, a.file, 0, 0),
    io_uring=lambda a: call(425, 8, ctypes.create_string_buffer(120)),
    clone3=lambda a: call(435, (ctypes.c_uint64 * 11)(0, 0, 0, 0, 17), 88) or os._exit(0),
    openat2=lambda a: call(437, -100, b"/etc/passwd", (ctypes.c_uint64 * 3)(), 24),
    landlock_again=lambda a: call(444, None, 0, 1),
    secret_memory=lambda a: call(447, 0),
)
if X86:  # calls that libc does not wrap, or wraps otherwise
    actions(
        trace_another=lambda a: call(101, 0x4206, a.victim, 0, 0),  # PTRACE_SEIZE
        read_the_memory_of_another=lambda a: call(310, a.victim, 0, 0, 0, 0, 0),
        write_the_memory_of_another=lambda a: call(311, a.victim, 0, 0, 0, 0, 0),
        queue_a_signal_for_another=lambda a: call(129, a.victim, 18, (ctypes.c_char * 128)()),
        signal_a_thread_of_another=lambda a: call(234, a.victim, a.victim, signal.SIGCONT),
        signal_a_thread=lambda a: call(200, a.victim, signal.SIGCONT),
        start_a_process_by_vfork=lambda a: call(57) or os._exit(0),
        start_a_process_by_clone=lambda a: call(56, 17, 0, 0, 0, 0) or os._exit(0),
        clone_into_a_namespace=lambda a: call(56, 17 | 0x10000000, 0, 0, 0, 0) or os._exit(0),
        shared_memory_of_system_v=lambda a: call(29, 0, 4096, 0o1600),
        semaphores_of_system_v=lambda a: call(64, 0, 1, 0o1600),
        messages_of_system_v=lambda a: call(68, 0, 0o1600),
        message_queue=lambda a: call(240, b"gve_jax-attack", 0o102, 0o600, None),
        keys=lambda a: call(250, 0, -3, 0),  # KEYCTL_GET_KEYRING_ID
        add_a_key=lambda a: call(248, b"user", b"gve_jax", b"x", 1, -2),
        bpf=lambda a: call(321, 0, (ctypes.c_char * 128)(), 128),
        performance_counters=lambda a: call(298, (ctypes.c_char * 128)(), 0, -1, -1, 0),
        user_page_faults=lambda a: call(323, 1),
        another_filter=lambda a: call(317, 2, 0, (ctypes.c_uint32 * 1)(0x7FFF0000)),
        handle_of_a_file=lambda a: call(303, -100, b"/", (ctypes.c_int * 36)(128), _page(), 0),
        open_by_handle=lambda a: call(304, -100, (ctypes.c_int * 36)(8), 0),
        old_open=lambda a: call(2, b"/etc/passwd", 0, 0),
        old_creat=lambda a: call(85, os.fsencode(a.folder / "created"), 0o600),
        descriptor_of_its_thread=lambda a: call(16, a.file, 0x5401, 0),
        load_a_module=lambda a: call(313, a.file, b"", 0),
        reboot=lambda a: call(169, 0, 0, 0, 0),
        local_descriptor_table=lambda a: call(154, 0, (ctypes.c_char * 16)(), 16),
        personality=lambda a: call(135, 0x0400000),  # READ_IMPLIES_EXEC
        move_pages_of_another=lambda a: call(279, a.victim, 0, 0, 0, 0, 0),
        splice=lambda a: call(275, a.file, 0, a.file, 0, 1, 0),
        send_a_file=lambda a: call(40, 1, a.file, None, 1),
        copy_a_range=lambda a: call(326, a.file, None, 1, None, 1, 0),
    )  # fmt: skip


def _no() -> None:
    raise PermissionError("refused without an error")


def _check(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _socket(kind: int) -> socket.socket:
    return socket.socket(socket.AF_INET, kind)


def _unix() -> socket.socket:
    return socket.socket(socket.AF_UNIX)


def _page() -> ctypes.c_void_p:
    LIBC.mmap.restype = ctypes.c_void_p
    return ctypes.c_void_p(LIBC.mmap(None, ctypes.c_size_t(4096), 3, 34, -1, ctypes.c_long(0)))


def _send_descriptor(descriptor: int) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))]
    socket.socket(fileno=os.dup(3)).sendmsg([b"x"], rights)


# What no filter can deny, but a limit bounds.
def use_memory(a) -> None:
    kept = []
    while True:
        kept.append(np.ones(1 << 27, np.uint8))


def open_descriptors(a) -> None:
    while True:
        os.dup(a.file)


def start_threads(a) -> None:
    forever = threading.Event()
    for _ in range(100_000):
        threading.Thread(target=forever.wait, daemon=True).start()


def print_much(a) -> None:
    while True:
        os.write(2, bytes(1 << 16))


def run_for_ever(a) -> None:
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)
    while True:
        pass


def ask_for_a_file_that_is_not_its_own(a) -> None:
    a.caller({"open": 7})


def ask_for_a_path(a) -> None:
    a.caller({"open": "/etc/passwd"})


def attack_in_a_thread(a) -> None:
    raised = []

    def attack():
        try:
            open(a.folder / "precious")
        except OSError as error:
            raised.append(type(error).__name__)

    thread = threading.Thread(target=attack)
    thread.start()
    thread.join()
    raise RuntimeError(f"{raised[0]} in a thread")


BOUNDED = {
    function.__name__: function
    for function in (
        *(use_memory, open_descriptors, start_threads, print_much, run_for_ever),
        *(ask_for_a_file_that_is_not_its_own, ask_for_a_path),
    )
}


class Setting:
    def __init__(self, request: dict, file: int):
        self.folder, self.victim = Path(request["folder"]), request["victim"]
        self.tcp, self.udp, self.file = request["tcp"], request["udp"], file

    def caller(self, header: dict) -> None:
        os.write(4, worker.pack(header))
        os.read(3, 100)


def _attack(request: dict, item, limits) -> tuple[dict, list]:
    with item.video.open() as file:
        descriptor = file.raw._descriptor
    setting, outcomes = Setting(request, descriptor), {}
    for name in request["actions"]:
        try:
            (ACTIONS | BOUNDED | {"attack_in_a_thread": attack_in_a_thread})[name](setting)
            outcomes[name] = "done"
        except (OSError, MemoryError, RuntimeError) as error:
            outcomes[name] = f"{type(error).__name__}: {error}"
    return {"outcomes": outcomes}, []


def main() -> None:
    worker.OPERATIONS["attack"] = _attack
    if "--free" in sys.argv or os.environ.get("GVE_JAX_TEST_FREE"):
        worker.lock_down = lambda: {"no_new_privs": False, "landlock": 0, "seccomp": False}
    worker.main()
