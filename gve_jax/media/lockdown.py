"""Gives up the rights of a process for good: no files, no network, no other processes.

Three mechanisms of Linux, none of which needs privileges:

* `no_new_privs`: no program that is executed gains rights (and the condition for the others);
* Landlock without any rule: no path can be opened, made or removed, no TCP port used, no process
  outside signalled and no abstract Unix socket connected (as far as the version of the kernel has
  it);
* a seccomp filter: a list of allowed system calls; any other fails with EPERM. It covers what
  Landlock does not, such as `stat`, sockets, `ptrace` and new processes.

What is needed later must be open or imported before.
"""

import ctypes
import errno
import os
import struct
import sys

_PR_SET_NO_NEW_PRIVS = 38
_CREATE_RULESET, _RESTRICT_SELF = 444, 446  # of Landlock, on all architectures
# Rights that each version of Landlock added: (version, field, bits). Handled without a rule, they
# are denied everywhere. linux/landlock.h
_LANDLOCK = (
    (1, "fs", (1 << 13) - 1),  # execute, read, write, list, remove, make
    (2, "fs", 1 << 13),  # link and rename to another folder
    (3, "fs", 1 << 14),  # truncate
    (4, "net", 0b11),  # bind and connect TCP
    (5, "fs", 1 << 15),  # ioctl of devices
    (6, "scope", 0b11),  # abstract Unix sockets, signals
)

_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_LOAD, _EQUAL, _ANY_BIT, _AT_LEAST, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06  # linux/bpf_common.h
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
_X32 = 0x40000000  # from here on, numbers of another calling convention of x86

_CLONE_THREAD, _CLONE_NAMESPACES = 0x00010000, 0x7E020080
_PROT_EXEC = 4
_FCNTL = (0, 1, 2, 3, 1030)  # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC

# Architecture: (number in linux/audit.h, number of seccomp, numbers of system calls).
_ARCHITECTURES = {
    "x86_64": (
        0xC000003E,
        317,
        dict(
            read=0, write=1, close=3, poll=7, lseek=8, mmap=9, mprotect=10, munmap=11, brk=12,
            rt_sigaction=13, rt_sigprocmask=14, rt_sigreturn=15, pread64=17, readv=19, writev=20,
            sched_yield=24, mremap=25, madvise=28, dup=32, nanosleep=35, setitimer=38, getpid=39,
            recvmsg=47, clone=56, exit=60, kill=62, uname=63, fcntl=72, gettimeofday=96,
            getrusage=98, sysinfo=99, getuid=102, getgid=104, geteuid=107, getegid=108,
            sigaltstack=131, gettid=186, futex=202, sched_getaffinity=204, restart_syscall=219,
            clock_gettime=228, clock_getres=229, clock_nanosleep=230, exit_group=231, tgkill=234,
            ppoll=271, set_robust_list=273, preadv=295, prlimit64=302, getcpu=309, getrandom=318,
            membarrier=324, preadv2=327, rseq=334, clone3=435,
        ),
    ),
    "aarch64": (
        0xC00000B7,
        277,
        dict(
            dup=23, fcntl=25, close=57, lseek=62, read=63, write=64, readv=65, writev=66,
            pread64=67, preadv=69, ppoll=73, exit=93, exit_group=94, futex=98, set_robust_list=99,
            nanosleep=101, setitimer=103, clock_gettime=113, clock_getres=114,
            clock_nanosleep=115, sched_getaffinity=123, sched_yield=124, restart_syscall=128,
            kill=129, tgkill=131, sigaltstack=132, rt_sigaction=134, rt_sigprocmask=135,
            rt_sigreturn=139, uname=160, getrusage=165, getcpu=168, gettimeofday=169, getpid=172,
            getuid=174, geteuid=175, getgid=176, getegid=177, gettid=178, sysinfo=179,
            recvmsg=212, brk=214, munmap=215, mremap=216, clone=220, mmap=222, mprotect=226,
            madvise=233, prlimit64=261, getrandom=278, membarrier=283, preadv2=286, rseq=293,
            clone3=435,
        ),
    ),
}  # fmt: skip


def lock_down() -> dict[str, bool | int]:
    """Gives up the rights of this process and its threads.

    Call it while the process has one thread: Landlock holds for the calling thread and its
    descendants only.

    Returns:
      What holds: `no_new_privs`, the version of `landlock` (0: none), `seccomp`.
    """
    if sys.platform != "linux":
        return {"no_new_privs": False, "landlock": 0, "seccomp": False}
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    privileges = libc.prctl(_PR_SET_NO_NEW_PRIVS, *map(ctypes.c_ulong, (1, 0, 0, 0))) == 0
    return {
        "no_new_privs": privileges,
        "landlock": privileges and _apply_landlock(libc) or 0,
        "seccomp": privileges and _apply_filter(libc),
    }


def _apply_landlock(libc: ctypes.CDLL) -> int:
    """The version of Landlock that holds now; 0 if the kernel has none."""
    version = _call(libc, _CREATE_RULESET, None, 0, 1)
    if version < 1:
        return 0
    fields = {"fs": 0, "net": 0, "scope": 0}
    for since, field, bits in _LANDLOCK:
        fields[field] |= bits if since <= version else 0
    # Fields that a version does not know must be left out or 0.
    attributes = struct.pack("=QQQ", *fields.values())
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = _call(libc, _CREATE_RULESET, attributes, size, 0)
    if ruleset < 0:
        return 0
    try:
        return version if _call(libc, _RESTRICT_SELF, ruleset, 0, 0) == 0 else 0
    finally:
        os.close(ruleset)


def _apply_filter(libc: ctypes.CDLL) -> bool:
    machine = os.uname().machine
    if machine not in _ARCHITECTURES or struct.calcsize("P") != 8:
        return False
    architecture, seccomp, numbers = _ARCHITECTURES[machine]
    program = _program(architecture, numbers, os.getpid())
    buffer = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: the number of instructions, and their address
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer))
    return _call(libc, seccomp, 1, 1, header) == 0  # SET_MODE_FILTER, for all threads


def _call(libc: ctypes.CDLL, number: int, *arguments) -> int:
    values = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    return libc.syscall(ctypes.c_long(number), *values)


def _program(architecture: int, numbers: dict[str, int], pid: int) -> bytes:
    """The filter as instructions of classic BPF (struct sock_filter)."""
    denied, absent = _ERRNO | errno.EPERM, _ERRNO | errno.ENOSYS
    only_itself = [*_if(_EQUAL, 0, pid, _ALLOW), (_RETURN, 0, 0, denied)]
    conditions = {
        # Threads, not processes.
        "clone": [
            *_if(_ANY_BIT, 0, _CLONE_NAMESPACES, denied),
            *_if(_ANY_BIT, 0, _CLONE_THREAD, _ALLOW),
            (_RETURN, 0, 0, denied),
        ],
        # Its flags are in memory, where no filter can look; glibc then uses `clone`.
        "clone3": [(_RETURN, 0, 0, absent)],
        "kill": only_itself,
        "tgkill": only_itself,
        "mmap": [*_if(_ANY_BIT, 2, _PROT_EXEC, denied), (_RETURN, 0, 0, _ALLOW)],
        "mprotect": [*_if(_ANY_BIT, 2, _PROT_EXEC, denied), (_RETURN, 0, 0, _ALLOW)],
        # F_SETOWN and F_SETSIG would let the kernel send any signal to any process of the user.
        "fcntl": [
            *(part for command in _FCNTL for part in _if(_EQUAL, 1, command, _ALLOW)),
            (_RETURN, 0, 0, denied),
        ],
        # Reading its own limits; the address of new ones must be null.
        "prlimit64": [
            (_LOAD, 0, 0, _ARGUMENTS),
            (_EQUAL, 0, 5, 0),
            (_LOAD, 0, 0, _ARGUMENTS + 16),
            (_EQUAL, 0, 3, 0),
            (_LOAD, 0, 0, _ARGUMENTS + 20),
            (_EQUAL, 0, 1, 0),
            (_RETURN, 0, 0, _ALLOW),
            (_RETURN, 0, 0, denied),
        ],
    }
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, _KILL),
    ]
    for name, number in numbers.items():
        block = conditions.get(name, [(_RETURN, 0, 0, _ALLOW)])
        program += [(_EQUAL, 0, len(block), number), *block]
    program.append((_RETURN, 0, 0, denied))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def _if(test: int, argument: int, value: int, action: int) -> list[tuple[int, int, int, int]]:
    """Instructions that end with `action` if the test of an argument's lower 32 bits holds.

    The kernel ignores the upper ones of these arguments.
    """
    return [
        (_LOAD, 0, 0, _ARGUMENTS + 8 * argument),
        (test, 0, 1, value),
        (_RETURN, 0, 0, action),
    ]
