"""The one exception a user's mistake raises; command lines print it as one line."""

import argparse
import signal
import sys
from collections.abc import Callable


class UserError(Exception):
    """Bad input, named in one line: a file, a field, a value. Never a bug of ours."""


class StoppedError(Exception):
    """The job was told to end, and has saved. Status 143, as of a process that SIGTERM ended: no
    success, so that a scheduler runs the command again."""


class Parser(argparse.ArgumentParser):
    """Options whose mistakes are a `UserError` as all others are."""

    def error(self, message: str) -> None:
        raise UserError(f"{message} (see --help)")


def run_cli(main: Callable[[], None]) -> None:
    """Runs `main`; a `UserError` or a full disk ends the process with one line and status 2.

    A job that was told to end exits with 143, an interrupted one with 130."""
    try:
        main()
    except UserError as error:
        sys.exit(_fail(str(error)))
    except StoppedError as stopped:
        print(stopped, file=sys.stderr, flush=True)
        sys.exit(128 + signal.SIGTERM)
    except OSError as error:
        # A full disk or a missing permission is the machine's state, not a bug: name it.
        where = f": {error.filename}" if error.filename else ""
        sys.exit(_fail(f"{error.strerror or error}{where}"))
    except KeyboardInterrupt:
        sys.exit(_fail("interrupted; repeat the command to resume", status=130))


def _fail(message: str, status: int = 2) -> int:
    print(f"error: {message}", file=sys.stderr, flush=True)
    return status
