"""`python -m data.uvrd --config configs/uvrd.py --input FILE|DIR --output DIR --server URL --model
NAME`: see docs/uvrd.md.

Killed at any time, the same command goes on; repeated, it does nothing. What follows `--beam` is
for Apache Beam: `--beam --runner=FlinkRunner ...`. Exit status: 0 done; 2 a mistake, named in a
line.
"""

import shlex
import sys

from absl import flags
from ml_collections import config_flags
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from gve_jax.errors import UserError, run_cli
from gve_jax.storage.filesystem import as_local_path

_CONFIG = config_flags.DEFINE_config_file("config", None, "The settings: configs/uvrd.py.")
_INPUT = flags.DEFINE_string("input", None, "A .jsonl or .parquet file, or a folder.")
_OUTPUT = flags.DEFINE_string("output", None, "The directory of pairs to make.")
_SERVER = flags.DEFINE_string("server", "http://127.0.0.1:8000/v1", "An OpenAI-compatible server.")
_MODEL = flags.DEFINE_string("model", None, "The model's name there.")
_EMBEDDER = flags.DEFINE_string(
    "embedder", "", "A GVE's directory or Hub id; none compares no captions."
)
_ROOT = flags.DEFINE_string("media_root", None, "The folder that paths start from and stay in.")
_CACHE = flags.DEFINE_string("cache", None, "The folder of answers and vectors: OUTPUT.work/cache.")
_LICENSE = flags.DEFINE_string("license", "", "For the card, as an identifier: cc-by-4.0.")


def main() -> None:
    arguments, beam = sys.argv, None
    if "--beam" in arguments:
        place = arguments.index("--beam")
        arguments, beam = arguments[:place], arguments[place + 1 :]
    if {"-h", "--help"} & set(arguments[1:]):
        print(__doc__.strip() + "\n")
        print(flags.FLAGS.module_help(sys.modules[__name__]))
        return
    try:
        rest = flags.FLAGS(arguments)[1:]
    except (flags.Error, AttributeError, KeyError, ValueError, TypeError, OSError) as error:
        raise UserError(_told(error, arguments)) from error
    if rest:
        raise UserError(f"unknown argument {rest[0]!r}")
    for flag in ("config", "input", "output", "model"):
        if not getattr(flags.FLAGS, flag):
            raise UserError(f"--{flag} is missing; see python -m data.uvrd --help")

    from data.uvrd import card, page
    from data.uvrd.run import Job, synthesize
    from data.uvrd.settings import Settings

    output = as_local_path(_OUTPUT.value).resolve()
    job = Job(
        source=as_local_path(_INPUT.value).resolve(),
        output=output,
        server=_SERVER.value,
        model=_MODEL.value,
        settings=Settings.of(_CONFIG.value),
        embedder=_EMBEDDER.value,
        root=as_local_path(_ROOT.value).resolve() if _ROOT.value else None,
        cache=as_local_path(_CACHE.value).resolve() if _CACHE.value else None,
        license=_LICENSE.value,
        command=shlex.join(["python", "-m", "data.uvrd", *sys.argv[1:]]),
    )
    with _progress() as progress:
        bar = progress.add_task("videos", total=None)
        manifest = synthesize(job, lambda count: progress.advance(bar, count), beam=beam)
    print("\n".join(card.lines(manifest)))
    print(f"{output}: {sum(manifest['tally']['pairs'].values())} pairs; {output / page.FILE}")


def _told(error: Exception, arguments: list[str]) -> str:
    """A refused argument in one line: of an unknown field ml_collections says the bare name, of an
    unknown form it gives a traceback."""
    while error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    text = " ".join(str(error.args[0] if error.args else error).split())
    for argument in arguments:
        field = argument.partition("=")[0]
        if text.strip("'\"") == field.split(".")[-1]:
            return f"{field}: unknown field"
    return text.rpartition("Error: ")[2] if "Traceback" in text else text


def _progress() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(file=sys.stderr), redirect_stdout=False)


if __name__ == "__main__":
    run_cli(main)
