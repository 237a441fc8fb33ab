"""Command lines with a configuration: `--config FILE[:FORM]` and overrides `--config.FIELD=VALUE`.

The file is Python with `get_config(form="")`, which returns an `ml_collections.ConfigDict`.
"""

import importlib.machinery
import importlib.util
import os
import sys
import traceback
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from gve_jax.distributed.sharding import local_mesh
from gve_jax.errors import UserError
from gve_jax.media.limits import Limits
from gve_jax.retrieval.embedding import Encoder
from gve_jax.storage.filesystem import as_local_path

_MODULE = "gve_jax_configuration"


def parse_arguments(argv: Sequence[str], values: flags.FlagValues, command: str) -> ConfigDict:
    """Parses a command line: the configuration with its overrides; other flags go into `values`.

    Args:
      argv: the program's name, then its arguments.
      values: the command's own flags.
      command: what messages refer to: `python -m gve_jax.train`.

    Raises:
      UserError: any mistake, in one line: no file, a file that fails, an unknown field.
    """
    given, rest = _take_config(argv)
    if given is None:
        raise UserError(f"--config is missing; see {command} --help")
    config = load_config(given)
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=rest)
        extra = values(rest)[1:]
    except Exception as error:  # absl's and ml_collections' have no base in common
        raise UserError(_describe(error, rest)) from error
    if extra:
        raise UserError(f"unknown argument {extra[0]!r}; see {command} --help")
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # TFDS asks them
    return config


def load_config(given: str) -> ConfigDict:
    """What `get_config` of the file returns.

    Args:
      given: FILE, or FILE:FORM; the form is the argument of `get_config`.

    Raises:
      UserError: no such file, no such form, an error in the file with its line, or a `get_config`
        that returns something else than a ConfigDict.
    """
    path, form = _split(given)
    loader = importlib.machinery.SourceFileLoader(_MODULE, path)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(_MODULE, loader))
    sys.modules[_MODULE] = module
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
    if not isinstance(config, ConfigDict):
        what = "nothing: it may lack a return" if config is None else type(config).__name__
        raise UserError(f"--config {path}: get_config() must return a ConfigDict, not {what}")
    return config.lock()


def load_encoder(name: str, limits: Limits) -> Encoder:
    """The model of a command, on all devices of this host; see `GVE.from_pretrained`."""
    from gve_jax import GVE  # not above: most mistakes are found before JAX is loaded

    return GVE.from_pretrained(name, mesh=local_mesh(), limits=limits, show_progress_bar=True)


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


def _describe(error: Exception, argv: Sequence[str]) -> str:
    """A refused argument in one line. A field that is unknown comes as a bare name: its argument is
    put before it."""
    while error.args and isinstance(error.args[0], Exception):  # ml_collections' in absl's
        error = error.args[0]
    text = " ".join(str(error.args[0] if error.args else error).split())
    for argument in argv[1:]:
        field = argument.split("=")[0]
        if text.startswith(f"'{field.split('.')[-1]}'"):
            return f"{field}: unknown field {text}"
    return text
