"""Command lines: argument parser, `--config` with overrides, one-line errors, exit statuses.

A config file is Python with `get_config(form="")`, which returns an `ml_collections.ConfigDict`. It
is selected by `--config FILE[:FORM]`; `--config.FIELD=VALUE` overrides a field.
"""

import argparse
import difflib
import importlib.machinery
import importlib.util
import itertools
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from types import FrameType
from typing import TYPE_CHECKING

from absl import flags
from ml_collections import ConfigDict, config_flags

from gve_jax.errors import StoppedError, Terminated, UserError, report_error
from gve_jax.fields import describe, shown
from gve_jax.storage.filesystem import as_local_path

if TYPE_CHECKING:
    from gve_jax.media.limits import Limits
    from gve_jax.retrieval.embedding import Encoder

_MODULE = "gve_jax_configuration"
_NAMES = {
    bool: "True or False",
    int: "an integer",
    float: "a number",
    tuple: 'a tuple, such as "(1, 2)" or "(\'a\',)"',
    ConfigDict: "a mapping, such as \"{'name': 1}\"",
}


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are `UserError`.

    Args:
      prog: the command, `python -m gve_jax.embed`.
      doc: text of `--help`, printed as it is.
    """

    def __init__(self, prog: str, doc: str | None = None, **options):
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(prog=prog, description=doc, **options)

    def error(self, message: str) -> None:
        raise UserError(f"{message} (see --help)")


def run_cli(main: Callable[[], None], resumes: bool = False) -> None:
    """Runs `main`; exits with one line and a status on errors that are not bugs.

    2: a `UserError` or an error of the operating system, such as a full disk; 143: SIGTERM; 130:
    interrupted; 141: the reader of standard output has closed it, as `head` does, without a line.

    Args:
      resumes: whether the repeated command resumes: SIGTERM then ends it as Ctrl-C does, with a
        line that says so after the last line of progress.
    """
    if resumes:
        signal.signal(signal.SIGTERM, _terminate)
    # File names may contain bytes that the terminal's encoding cannot represent.
    sys.stdout.reconfigure(errors="backslashreplace")
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes once more at exit, and would report the error again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except (UserError, StoppedError, OSError, KeyboardInterrupt) as error:
        sys.exit(report_error(error))


def _terminate(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one ends it at once
    raise Terminated


def help_requested(argv: Sequence[str], doc: str, sections: type) -> bool:
    """Prints `doc` where `argv` contains `-h` or `--help`, and every field of the config where it
    contains `--config` as well; returns whether it did.

    Args:
      sections: the dataclass of the config.
    """
    if not {"-h", "--help"} & set(argv[1:]):
        return False
    print(doc.strip())
    name, _ = _take_config(argv)
    if name is not None:
        print(f"\nFields of {name}, with --config.FIELD=VALUE:\n")
        print("\n".join(describe(sections, load_config(name).to_dict())))
    return True


def parse_arguments(argv: Sequence[str], values: flags.FlagValues, command: str) -> ConfigDict:
    """Parses `--config` with its overrides; returns the config. Other flags are set in `values`.

    Args:
      argv: the program's name, then its arguments.
      values: the other flags of the command.
      command: the command as messages name it: `python -m gve_jax.train`.

    Raises:
      UserError: any mistake, in one line: a missing or failing file, an unknown form or field.
    """
    given, rest = _take_config(argv)
    if given is None:
        raise UserError(f"--config is missing; see {command} --help")
    config = load_config(given)
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=rest)
        extra = values(rest)[1:]
    except Exception as error:  # those of absl and ml_collections have no common base
        raise UserError(_describe(error, rest, config)) from error
    if extra:
        raise UserError(f"unknown argument {extra[0]!r}; see {command} --help")
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # TFDS reads them
    return config


def load_config(given: str) -> ConfigDict:
    """Returns the locked config of a file.

    Args:
      given: FILE, or FILE:FORM; the form is the argument of `get_config`.

    Raises:
      UserError: no such file or form, an error in the file, with its line, or a `get_config` that
        does not return a ConfigDict.
    """
    path, form = _split(given)
    loader = importlib.machinery.SourceFileLoader(_MODULE, path)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(_MODULE, loader))
    sys.modules[_MODULE] = module
    # A file may import others beside it and, as `from configs import gve_3b`, from its checkout.
    folder = os.path.dirname(os.path.abspath(path))
    added = [each for each in (folder, os.path.dirname(folder)) if each not in sys.path]
    sys.path += added
    try:
        loader.exec_module(module)
        if not callable(getattr(module, "get_config", None)):
            raise UserError(f"--config {path}: the file has no function get_config()")
        config = module.get_config() if form is None else module.get_config(form)
    except UserError:
        raise
    except Exception as error:  # anything that a user's own Python may raise
        form_refused = form is not None and isinstance(error, ValueError)
        where = "" if form_refused else _where(error, path)
        raise UserError(f"--config {given}: {where}{_text(error)}") from error
    finally:
        sys.path[:] = [each for each in sys.path if each not in added]
    if not isinstance(config, ConfigDict):
        what = "nothing: it may lack a return" if config is None else type(config).__name__
        raise UserError(f"--config {path}: get_config() must return a ConfigDict, not {what}")
    return config.lock()


def load_encoder(name: str, limits: "Limits", workers: int | None = None) -> "Encoder":
    """Loads a model on all devices of this host; see `GVE.from_pretrained`."""
    from gve_jax import GVE  # imported late: most mistakes are reported before JAX is loaded
    from gve_jax.distributed.sharding import local_mesh

    return GVE.from_pretrained(
        name, mesh=local_mesh(), limits=limits, workers=workers, show_progress_bar=True
    )


def _take_config(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """The value of the last `--config`, and the other arguments."""
    given, rest, index = None, [], 0
    while index < len(argv):
        argument = argv[index]
        name, equals, value = argument.partition("=")
        if index and argument == "--":
            return given, rest + list(argv[index:])
        if index and name in ("--config", "-config"):
            if not equals:
                index += 1
                if index == len(argv):
                    raise UserError("--config has no value")
                value = argv[index]
            given = value
        else:
            rest.append(argument)
        index += 1
    return given, rest


def _split(given: str) -> tuple[str, str | None]:
    """(path, form): the path is the longest beginning, up to a colon or the end, that is a file."""
    pieces = given.split(":")
    for count in range(len(pieces), 0, -1):
        text = ":".join(pieces[:count])
        if text and os.path.isfile(path := as_local_path(text)):
            form = ":".join(pieces[count:]) if count < len(pieces) else None
            return os.fspath(path), form
    path = as_local_path(pieces[0])
    what = "is a folder, not a file" if os.path.isdir(path) else "no such file"
    raise UserError(f"--config {path}: {what}")


def _where(error: Exception, path: str) -> str:
    """`line 12: ` of the file, where the error is in the file and not in what it was asked for."""
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: " if error.filename == path else ""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == path
    ]
    return f"line {lines[-1]}: " if lines else ""


def _text(error: Exception) -> str:
    text = " ".join(str(error.msg if isinstance(error, SyntaxError) else error).split())
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"


def _describe(error: Exception, argv: Sequence[str], config: ConfigDict) -> str:
    """The reason why the arguments were rejected, in one line."""
    for argument in argv[1:]:
        name = argument.split("=")[0].lstrip("-")
        if (
            argument.startswith("-")
            and name.startswith("config.")
            and (why := _unknown(name, config))
        ):
            return f"--{name}: {why}"
    while error.args and isinstance(error.args[0], Exception):  # absl wraps ml_collections' errors
        error = error.args[0]
    text = " ".join(str(error.args[0] if error.args else error).split())
    # absl's `flag --config.steps=abc: REASON`, with a reason for programmers.
    if match := re.match(r"flag --(config\.[^=]+)=", text):
        name = match[1]
        kind = _type_of(name, config)
        for argument, following in itertools.pairwise([*argv, ""]):
            given, equals, value = argument.lstrip("-").partition("=")
            if given == name and kind in _NAMES:
                return f"--{name}={shown(value if equals else following)} must be {_NAMES[kind]}"
    indexed = [argument for argument in argv[1:] if re.match(r"--?config\.[^=]*\[", argument)]
    return f"{indexed[0]}: {text}" if indexed and "flag" not in text else text


def _type_of(name: str, config: ConfigDict) -> type | None:
    """The type of the field `config.SECTION.FIELD`; None if it is within a tuple."""
    *sections, field = name.split(".")[1:]
    for section in sections:
        config = config.get(section) if isinstance(config, ConfigDict) else None
    known = isinstance(config, ConfigDict) and field in config
    return config.get_type(field) if known else None


def _unknown(name: str, config: ConfigDict) -> str | None:
    """Why no field `config.SECTION.FIELD` exists, with the nearest name; None if it exists."""
    section, path = config, "config"
    for part in name.split(".")[1:]:
        key = part.partition("[")[0]
        if not isinstance(section, ConfigDict):
            return None if "[" in name else f"{path} has no fields"
        if key not in section:
            near = difflib.get_close_matches(key, section.keys(), n=1)
            hint = f"did you mean {path}.{near[0]}?" if near else f"known: {', '.join(section)}"
            return f"unknown field {key!r}; {hint}"
        section, path = section[key], f"{path}.{key}"
    return None
