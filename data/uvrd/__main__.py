"""Synthesizes training pairs from raw videos; see docs/uvrd.md:

    python -m data.uvrd --config configs/uvrd.py --input PATH --output DIR --server URL --model NAME

Repeating the command resumes after an interruption, and does nothing once the output is complete.
Arguments after `--beam` are passed to Apache Beam: `--beam --runner=FlinkRunner ...`. Exit status:
0 on success, 2 on a user's mistake.
"""

import shlex
import sys

from absl import flags

from gve_jax.cli import parse_arguments, run_cli
from gve_jax.errors import UserError
from gve_jax.progress import progress_bar
from gve_jax.storage.filesystem import as_local_path

_COMMAND = "python -m data.uvrd"
_OPTIONS = {
    "input": (None, "a .jsonl or .parquet file, or a folder (required)"),
    "output": (None, "directory of pairs to write (required)"),
    "server": ("http://127.0.0.1:8000/v1", "base URL of an OpenAI-compatible server"),
    "model": (None, "the model's name on the server (required)"),
    "embedder": (
        "",
        "directory or Hub id of an embedder for captions and videos; GME in the paper",
    ),
    "media_root": (None, "folder that relative paths start from (default: that of the input)"),
    "cache": (None, "folder of answers and vectors (default: OUTPUT.work/cache)"),
    "license": ("", "identifier for the dataset card, such as cc-by-4.0"),
}


def main() -> None:
    arguments, beam = sys.argv, None
    if "--beam" in arguments:
        split = arguments.index("--beam")
        arguments, beam = arguments[:split], arguments[split + 1 :]
    values = flags.FlagValues()
    for name, (default, text) in _OPTIONS.items():
        flags.DEFINE_string(name, default, text, flag_values=values)
    if {"-h", "--help"} & set(arguments[1:]):
        print(__doc__.strip() + "\n")
        print("  --config FILE[:FORM]: the configuration; --config.FIELD=VALUE overrides a field")
        for name, (default, text) in _OPTIONS.items():
            print(f"  --{name}: {text}" + (f" (default: {default})" if default else ""))
        return
    config = parse_arguments(arguments, values, _COMMAND)
    for name in ("input", "output", "model"):
        if not values[name].value:
            raise UserError(f"--{name} is missing; see {_COMMAND} --help")

    from data.uvrd import card, page
    from data.uvrd.run import Job, synthesize
    from data.uvrd.settings import Settings

    output = as_local_path(values.output).resolve()
    job = Job(
        source=as_local_path(values.input).resolve(),
        output=output,
        server=values.server,
        model=values.model,
        settings=Settings.of(config),
        embedder=values.embedder,
        root=as_local_path(values.media_root).resolve() if values.media_root else None,
        cache=as_local_path(values.cache).resolve() if values.cache else None,
        license=values.license,
        command=shlex.join(["python", "-m", "data.uvrd", *sys.argv[1:]]),
    )
    with progress_bar(redirect_stdout=False) as progress:
        bar = progress.add_task("videos", total=None)
        manifest = synthesize(job, lambda count: progress.advance(bar, count), beam=beam)
    print("\n".join(card.lines(manifest)))
    print(f"{output}: {sum(manifest['tally']['pairs'].values())} pairs; {output / page.FILE}")


if __name__ == "__main__":
    run_cli(main)
