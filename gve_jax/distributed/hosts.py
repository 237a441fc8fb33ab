"""Jobs on several hosts: startup, exchange of JSON values, and shutdown when a host dies.

`join_job` needs no flags where JAX detects the cluster: TPU VMs, GKE, Slurm, Open MPI, and
Kubernetes jobs with the `kubernetes` package. Elsewhere, set three variables on every host:

    GVE_JAX_COORDINATOR=10.0.0.1:8476   address on which host 0 listens
    GVE_JAX_HOSTS=4                     number of processes
    GVE_JAX_HOST=0                      index of this process
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
# Libraries that compute, or that decide which pixels and tokens are computed on.
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
WAIT_S = 1800  # limit for the slowest batch of a host; a dead host is detected much sooner
LONG_S = 7 * 24 * 3600  # limit for the difference between the hosts' shares of a job
LEAVE_S = 5  # limit between the first and the last host that raise the same error
LOST = 3  # exit status of a host that lost its connection to another host
REPEAT = "repeat the command on all hosts to resume"

# JAX terminates a host that has lost another from a C++ thread, where no Python code can run. So a
# small process prints the last line. Its input ends when the host exits, whatever the signal.
_EXIT_REPORTER = """
import sys
at = ""
for line in sys.stdin:
    if line == "end\\n":
        sys.exit()
    at = line.strip()
print(f"error: host {sys.argv[1]} exited {at}: killed, or lost its connection to another host "
      "(see log above); " + sys.argv[2], file=sys.stderr, flush=True)
"""

T = TypeVar("T")

_numbers = itertools.count()
_location = "at startup"
_exit_reporter: subprocess.Popen | None = None


def join_job() -> None:
    """Joins this process to its job, if it belongs to one. Call it before any other use of JAX.

    Raises:
      UserError: a variable is missing or invalid, or the cluster does not answer.
    """
    values = {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
    heartbeat = _count("GVE_JAX_HEARTBEAT_S", os.environ.get("GVE_JAX_HEARTBEAT_S", "60"), 1)
    options = {"heartbeat_timeout_seconds": heartbeat, "shutdown_timeout_seconds": heartbeat}
    if values == {"GVE_JAX_HOSTS": "1"}:
        return
    if values:
        options |= _explicit(values)
    try:
        jax.distributed.initialize(**options)
    except ValueError as error:
        # JAX's message when it detects no cluster: this process runs alone.
        if values or "coordinator_address" not in str(error):
            raise UserError(f"cannot join the job: {error}") from error
    except RuntimeError as error:
        hint = "; GVE_JAX_HOSTS=1 runs this host alone"
        line = " ".join(str(error).split())
        raise UserError(f"cannot join the job: {line}{'' if values else hint}") from error


def run(command: Callable[[], None]) -> None:
    """Joins the job, runs `command`, and shuts down together with the other hosts.

    Raises:
      UserError: on all hosts, if they run different commands, code or libraries; see `environment`.
    """
    join_job()
    with coordinated_shutdown():
        if jax.process_count() > 1:
            check_same(environment())
        command()


def environment() -> dict:
    """Returns what must be equal on all hosts for any command: the command's name, a digest of the
    code, the versions of the libraries, and the variables that change compilation."""
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
    """The value of a variable, with its flags sorted and without the paths of XLA's dumps."""
    flags = os.environ.get(name, "").split()
    return " ".join(sorted(flag for flag in flags if not flag.startswith("--xla_dump_")))


def _explicit(values: dict[str, str]) -> dict:
    for name in VARIABLES:
        if name not in values:
            raise UserError(f"{name} is missing: set all of {', '.join(VARIABLES)}")
    address = values["GVE_JAX_COORDINATOR"]
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"GVE_JAX_COORDINATOR {address!r} is not HOST:PORT")
    hosts = _count("GVE_JAX_HOSTS", values["GVE_JAX_HOSTS"], 1)
    index = _count("GVE_JAX_HOST", values["GVE_JAX_HOST"], 0)
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
        raise UserError(f"{name} {value!r} must be an integer >= {least}")
    return int(value)


def gather(value, limit_s: int = WAIT_S) -> list:
    """Returns the `value`, plain JSON, of each host. All hosts must make calls in the same order.

    The values pass through the coordinator's key-value store: a device collective would queue
    behind the current step and, if a host died, would never time out.
    """
    count, index = jax.process_count(), jax.process_index()
    if count == 1:
        return [value]
    client, number = distributed.global_state.client, next(_numbers)
    folder, limit = f"gve_jax/{number}", limit_s * 1000
    if index:
        client.key_value_set(f"{folder}/{index}", json.dumps(value))
        return json.loads(client.blocking_key_value_get(f"{folder}/all", limit))
    # Host 0 collects and redistributes: 2 N messages instead of N squared.
    values = [json.dumps(value)]
    values += [client.blocking_key_value_get(f"{folder}/{n}", limit) for n in range(1, count)]
    text = f"[{', '.join(values)}]"
    client.key_value_set(f"{folder}/all", text)
    if number:  # every host that has sent this value has read the result of the previous call
        client.key_value_delete(f"gve_jax/{number - 1}/")
    return json.loads(text)


def barrier() -> None:
    """Waits until all hosts have called it, up to `LONG_S`."""
    gather(None, LONG_S)


def run_on_host0(function: Callable[[], T]) -> T:
    """Runs `function` on host 0 and returns its result, plain JSON, or raises its UserError, on all
    hosts."""
    value = error = None
    if jax.process_index() == 0:
        try:
            value = function()
        except UserError as raised:
            error = raised
    if jax.process_count() > 1:
        value, message = gather([value, error and str(error)], LONG_S)[0]
        error = error or (message and UserError(message))
    if error:
        raise error
    return value


def run_on_all_hosts(function: Callable[[], T]) -> T:
    """Runs `function` on every host and returns this host's result. A UserError of one host is
    raised on all hosts, with the index of that host."""
    value = error = None
    try:
        value = function()
    except UserError as raised:
        error = raised
    if jax.process_count() == 1 and error:
        raise error
    for host, message in enumerate(gather(error and str(error), LONG_S)):
        if message:
            raise UserError(f"host {host}: {message}")
    return value


def check_same(record: dict) -> None:
    """Raises UserError on all hosts, naming the field, if `record`, plain JSON, differs on one."""
    records = gather(record)
    for host, other in enumerate(records):
        for field, (first, value) in differences(records[0], other).items():
            raise UserError(f"host {host} was started with {field} = {value}, host 0 with {first}")


def set_location(description: str) -> None:
    """Sets the progress of this host, `in step 120`, for messages about a lost host."""
    global _location
    _location = description
    if _exit_reporter is not None:
        _send_to_reporter(description)


def _send_to_reporter(line: str) -> None:
    with contextlib.suppress(OSError):  # the reporter may have been killed
        _exit_reporter.stdin.write(f"{line}\n")
        _exit_reporter.stdin.flush()


@contextlib.contextmanager
def coordinated_shutdown() -> Iterator[None]:
    """Waits for all hosts at the end of a job; exits at once, with one line, when another host is
    lost or this host alone fails."""
    if jax.process_count() == 1:
        yield
        return
    with _exit_reporter_running():
        try:
            yield
            barrier()  # host 0, which runs the coordinator, must not exit before the others
        except jax.errors.JaxRuntimeError as error:
            message = (
                f"host {jax.process_index()} lost its connection to another host {_location}, or "
                f"its devices failed: {str(error).splitlines()[0][:200]}; {REPEAT}"
            )
            _exit(UserError(message), LOST)
        except SystemExit:  # the command has ended, with an exit status
            barrier()
            raise
        except BaseException as error:
            if not _all_exit():
                _exit(error)
            raise


def _all_exit() -> bool:
    """Whether all hosts are about to exit: they raised the same error, or received a signal."""
    try:
        distributed.global_state.client.wait_at_barrier("gve_jax/leaving", LEAVE_S * 1000)
    except jax.errors.JaxRuntimeError:
        return False
    return True


def _exit(error: BaseException, status: int | None = None) -> None:
    code = report_error(error)
    _send_to_reporter("end")
    # At a normal exit JAX would wait for the other hosts and then abort with a log of its own.
    os._exit(code if status is None else status)


@contextlib.contextmanager
def _exit_reporter_running() -> Iterator[None]:
    global _exit_reporter
    # In a new session, so that signals sent to the processes of the job do not reach it.
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
        _send_to_reporter("end")
        with contextlib.suppress(OSError):
            _exit_reporter.stdin.close()
        _exit_reporter.wait()
        _exit_reporter = None
