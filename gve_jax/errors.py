"""Exceptions for mistakes of users, and how they are reported in one line."""

import signal
import sys
import traceback
import warnings


class UserError(Exception):
    """Invalid input, described in one line that names the file, field or value."""


class UnsupportedArgument(UserError, TypeError):
    """An argument that a function of this name accepts in another library but not in this one."""


class UnsupportedAttribute(UserError, AttributeError):
    """An attribute that similar classes of other libraries have; `hasattr` returns False."""


class StoppedError(Exception):
    """The job received a signal and saved a checkpoint, if it had anything to save.

    Attributes:
      status: the exit status; 143 for SIGTERM, so that a scheduler runs the command again.
    """

    def __init__(self, message: str, status: int = 128 + signal.SIGTERM):
        super().__init__(message)
        self.status = status


def install_command(extra: str) -> str:
    """What a message tells a user to run for the packages of an extra; see docs/install.md."""
    return f"pip install -e '.[{extra}]' in the checkout of gve_jax"


class Terminated(KeyboardInterrupt):
    """SIGTERM in a command that resumes when it is repeated; status 143, as without a handler."""


def warn_user(message: str) -> None:
    """Warns at the line of the caller outside this package."""
    level, frame = 1, sys._getframe()
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "gve_jax":
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


def report_error(error: BaseException) -> int:
    """Prints the error that ends a process, a bug with its traceback; returns the exit status.

    It lives below `gve_jax.cli` because `gve_jax.distributed.hosts` reports errors as well."""
    if isinstance(error, UserError):
        return _fail(str(error))
    if isinstance(error, StoppedError):
        print(error, file=sys.stderr, flush=True)
        return error.status
    if isinstance(error, OSError):
        # A full disk or a missing permission is not a bug: no traceback.
        where = f": {error.filename}" if error.filename else ""
        return _fail(f"{error.strerror or error}{where}")
    if isinstance(error, Terminated):
        return _fail("received SIGTERM; repeat the command to resume", status=128 + signal.SIGTERM)
    if isinstance(error, KeyboardInterrupt):
        return _fail("interrupted; repeat the command to resume", status=130)
    traceback.print_exception(error)
    return 1


def _fail(message: str, status: int = 2) -> int:
    print(f"error: {message}", file=sys.stderr, flush=True)
    return status
