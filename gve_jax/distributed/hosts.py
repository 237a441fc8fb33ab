"""One job on several hosts: its start, what hosts tell each other, and its end when one dies.

`join_job` needs no flags where JAX knows the cluster: TPU VMs, GKE, Slurm, Open MPI, and Kubernetes
jobs with the `kubernetes` package. Elsewhere three variables say it, the same way on every host:

    GVE_JAX_COORDINATOR=10.0.0.1:8476   where host 0 listens
    GVE_JAX_HOSTS=4                     how many processes there are
    GVE_JAX_HOST=0                      which of them this is
"""

import contextlib
import hashlib
import importlib.metadata
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import jax
from jax._src import distributed  # the key-value store has no public name; Orbax does the same

from gve_jax import __version__
from gve_jax.errors import UserError, report_error
from gve_jax.storage.files import differences

VARIABLES = ("GVE_JAX_COORDINATOR", "GVE_JAX_HOSTS", "GVE_JAX_HOST")
# What computes, and what decides which pixels and tokens it gets.
LIBRARIES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "numpy",
    "tokenizers",
    "av",
    "pillow",
)
SAME_VARIABLES = (
    "XLA_FLAGS",
    "LIBTPU_INIT_ARGS",
    "JAX_ENABLE_X64",
    "JAX_DEFAULT_PRNG_IMPL",
    "JAX_DEFAULT_MATMUL_PRECISION",
    "JAX_THREEFRY_PARTITIONABLE",
    "JAX_NUMPY_DTYPE_PROMOTION",
    "NVIDIA_TF32_OVERRIDE",
)
WAIT_S = 1800  # the slowest batch that a host may take; a dead host is noticed much sooner
LONG_S = 7 * 24 * 3600  # as long as the hosts' shares of a job may differ
LEAVE_S = 5  # between the first and the last host that find the same mistake
LOST = 3  # exit status of a host that lost another
REPEAT = "repeat the command on all hosts to resume"

# JAX ends a host that has lost another from a thread of its own, where no Python can speak. So the
# last word is a small process's, which learns of the end, by whatever signal, as that of its input.
_EXIT_REPORTER = """
import sys
at = ""
for line in sys.stdin:
    if line == "end\\n":
        sys.exit()
    at = line.strip()
print(f"error: host {sys.argv[1]} ended {at}: it was killed, or lost another host (see above); "
      + sys.argv[2], file=sys.stderr, flush=True)
"""

T = TypeVar("T")

_numbers = itertools.count()
_location = "at its start"
_exit_reporter: subprocess.Popen | None = None


def join_job() -> None:
    """Joins this process to its job; alone where there is none. Before any other use of JAX.

    Raises:
      UserError: half a setting, one that is none, or a cluster that does not answer.
    """
    given = {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
    heartbeat = _count("GVE_JAX_HEARTBEAT_S", os.environ.get("GVE_JAX_HEARTBEAT_S", "60"), 1)
    options = {"heartbeat_timeout_seconds": heartbeat, "shutdown_timeout_seconds": heartbeat}
    if given == {"GVE_JAX_HOSTS": "1"}:
        return
    if given:
        options |= _explicit(given)
    try:
        jax.distributed.initialize(**options)
    except ValueError as error:
        # What JAX says where it knows no cluster: this machine is alone.
        if given or "coordinator_address" not in str(error):
            raise UserError(f"start of the hosts: {error}") from error
    except RuntimeError as error:
        hint = "; GVE_JAX_HOSTS=1 runs this host alone"
        line = " ".join(str(error).split())
        raise UserError(f"start of the hosts: {line}{'' if given else hint}") from error


def run(command: Callable[[], None]) -> None:
    """The whole of a process: joins its job, runs the command, and ends with the other hosts.

    Raises:
      UserError: on all hosts, they run different commands, code or libraries; see `environment`.
    """
    join_job()
    with coordinated_shutdown():
        if jax.process_count() > 1:
            check_same(environment())
        command()


def environment() -> dict:
    """What must be the same on all hosts whatever they run: the command, the code by its contents,
    the libraries by version, and the variables that change what is compiled."""
    folder, digest = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder).as_posix()}\n".encode() + path.read_bytes())
    return {
        "command": "/".join(Path(sys.argv[0]).parts[-2:]),
        "code": {"version": __version__, "digest": digest.hexdigest()[:16]},
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "libraries": {name: _version(name) for name in LIBRARIES},
        "variables": {name: _variable(name) for name in SAME_VARIABLES},
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _variable(name: str) -> str:
    """A variable's value; of flags in any order, and without those that say where to write."""
    flags = os.environ.get(name, "").split()
    return " ".join(sorted(flag for flag in flags if not flag.startswith("--xla_dump_")))


def _explicit(given: dict[str, str]) -> dict:
    for name in VARIABLES:
        if name not in given:
            raise UserError(f"{name} is missing beside {', '.join(given)}")
    address = given["GVE_JAX_COORDINATOR"]
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"GVE_JAX_COORDINATOR {address!r} is not HOST:PORT")
    hosts = _count("GVE_JAX_HOSTS", given["GVE_JAX_HOSTS"], 1)
    index = _count("GVE_JAX_HOST", given["GVE_JAX_HOST"], 0)
    if index >= hosts:
        raise UserError(f"GVE_JAX_HOST {index} is not in 0..{hosts - 1}")
    return {
        "coordinator_address": address,
        "num_processes": hosts,
        "process_id": index,
        "cluster_detection_method": "deactivate",
    }


def _count(name: str, value: str, least: int) -> int:
    if not value.isdecimal() or int(value) < least:
        raise UserError(f"{name} {value!r} is not a number from {least} on")
    return int(value)


def gather(value, limit_s: int = WAIT_S) -> list:
    """`value`, plain JSON, of every host, in their order. All hosts call it in the same order.

    Through the coordinator's key-value store and no collective of the devices: that would stand in
    their queue behind the step under way, and a host that died would leave it without a limit.
    """
    count, index = jax.process_count(), jax.process_index()
    if count == 1:
        return [value]
    client, number = distributed.global_state.client, next(_numbers)
    folder, limit = f"gve_jax/{number}", limit_s * 1000
    if index:
        client.key_value_set(f"{folder}/{index}", json.dumps(value))
        return json.loads(client.blocking_key_value_get(f"{folder}/all", limit))
    # Host 0 collects and hands out, so that N hosts cost 2 N messages and not N times N.
    told = [json.dumps(value)]
    told += [client.blocking_key_value_get(f"{folder}/{n}", limit) for n in range(1, count)]
    text = f"[{', '.join(told)}]"
    client.key_value_set(f"{folder}/all", text)
    if number:  # whoever told this number has read the last one
        client.key_value_delete(f"gve_jax/{number - 1}/")
    return json.loads(text)


def barrier() -> None:
    """Returns when all hosts are here, however long their work takes them."""
    gather(None, LONG_S)


def run_on_host0(find: Callable[[], T]) -> T:
    """What `find` gives on host 0, plain JSON, on all of them; its UserError, too."""
    value = error = None
    if jax.process_index() == 0:
        try:
            value = find()
        except UserError as found:
            error = found
    if jax.process_count() > 1:
        value, told = gather([value, error and str(error)], LONG_S)[0]
        error = error or (told and UserError(told))
    if error:
        raise error
    return value


def run_on_all_hosts(find: Callable[[], T]) -> T:
    """What `find` gives here. A UserError of one host is raised on all, and names the host."""
    value = error = None
    try:
        value = find()
    except UserError as found:
        error = found
    if jax.process_count() == 1 and error:
        raise error
    for host, told in enumerate(gather(error and str(error), LONG_S)):
        if told:
            raise UserError(f"host {host}: {told}")
    return value


def check_same(record: dict) -> None:
    """UserError on all hosts, naming the field, unless `record`, plain JSON, is the same on all."""
    told = gather(record)
    for host, other in enumerate(told):
        for field, (here, there) in differences(told[0], other).items():
            raise UserError(f"host {host} was started with {field} = {there}, host 0 with {here}")


def set_location(description: str) -> None:
    """Where this host is, `in step 120`: told when it, or another, is lost."""
    global _location
    _location = description
    if _exit_reporter is not None:
        _say(description)


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # the reporter may have been killed
        _exit_reporter.stdin.write(f"{line}\n")
        _exit_reporter.stdin.flush()


@contextlib.contextmanager
def coordinated_shutdown() -> Iterator[None]:
    """Ends this process with one line when another host is lost, without waiting for it; and when
    this one alone fails."""
    if jax.process_count() == 1:
        yield
        return
    with _exit_reporter_running():
        try:
            yield
            barrier()  # no host leaves, and takes the coordinator with it, before all are done
        except jax.errors.JaxRuntimeError as error:
            told = str(error).splitlines()[0][:200]
            _end(
                UserError(
                    f"host {jax.process_index()} lost another {_location}, or the devices failed: "
                    f"{told}; {REPEAT}"
                ),
                LOST,
            )
        except SystemExit:  # the command is done, and says how
            barrier()
            raise
        except BaseException as error:
            if not _all_leave():
                _end(error)
            raise


def _all_leave() -> bool:
    """Whether all hosts are about to end, as all find the same mistake, or are told to stop."""
    try:
        distributed.global_state.client.wait_at_barrier("gve_jax/leaving", LEAVE_S * 1000)
    except jax.errors.JaxRuntimeError:
        return False
    return True


def _end(error: BaseException, status: int | None = None) -> None:
    code = report_error(error)
    _say("end")
    # JAX would wait at exit for the other hosts, and then end this one with lines of its own.
    os._exit(code if status is None else status)


@contextlib.contextmanager
def _exit_reporter_running() -> Iterator[None]:
    global _exit_reporter
    # Its own session: what is sent to a job's processes to end them is not for it.
    _exit_reporter = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _EXIT_REPORTER, str(jax.process_index()), REPEAT],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    set_location(_location)
    try:
        yield
    finally:
        _say("end")
        with contextlib.suppress(OSError):
            _exit_reporter.stdin.close()
        _exit_reporter.wait()
        _exit_reporter = None
