"""The one exception a user's mistake raises; command lines print it as one line."""

import argparse
import signal
import sys
import traceback
import warnings
from collections.abc import Callable


class UserError(Exception):
    """Bad input, named in one line: a file, a field, a value. Never a bug of ours."""


class UnsupportedArgument(UserError, TypeError):
    """An argument that a function does not take; other libraries' functions of its name may."""


class UnsupportedAttribute(UserError, AttributeError):
    """An attribute that other libraries' classes of this kind have. `hasattr` says no."""


class StoppedError(Exception):
    """The job was told to end, and has saved. Status 143, as of a process that SIGTERM ended: no
    success, so that a scheduler runs the command again."""


class Parser(argparse.ArgumentParser):
    """Options whose mistakes are a `UserError` as all others are."""

    def error(self, message: str) -> None:
        raise UserError(f"{message} (see --help)")


def warn_user(message: str) -> None:
    """Warns at the line outside of this package that called into it."""
    level, frame = 1, sys._getframe()
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "gve_jax":
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


def run_cli(main: Callable[[], None]) -> None:
    """Runs `main`; a `UserError` or a full disk ends the process with one line and status 2.

    A job that was told to end exits with 143, an interrupted one with 130."""
    # A file's name may be bytes that no encoding has, or that the terminal's has not.
    sys.stdout.reconfigure(errors="backslashreplace")
    try:
        main()
    except (UserError, StoppedError, OSError, KeyboardInterrupt) as error:
        sys.exit(tell(error))


def tell(error: BaseException) -> int:
    """Prints what ends a process, a bug with its traceback; the process's status."""
    if isinstance(error, UserError):
        return _fail(str(error))
    if isinstance(error, StoppedError):
        print(error, file=sys.stderr, flush=True)
        return 128 + signal.SIGTERM
    if isinstance(error, OSError):
        # A full disk or a missing permission is the machine's state, not a bug: name it.
        where = f": {error.filename}" if error.filename else ""
        return _fail(f"{error.strerror or error}{where}")
    if isinstance(error, KeyboardInterrupt):
        return _fail("interrupted; repeat the command to resume", status=130)
    traceback.print_exception(error)
    return 1


def _fail(message: str, status: int = 2) -> int:
    print(f"error: {message}", file=sys.stderr, flush=True)
    return status
