"""Runs MTEB on UVRB's sets with a GVE model:

    python -m evals.mteb --model M --data DIR --output DIR [--datasets MSRVTT,...]

prints the paper's metric of each set and writes MTEB's result files to OUTPUT, and `manifest.json`
with the fingerprint and what the sandbox of the last decoding held. `python -m evals.uvrb` measures
the same exactly, faster and resumably; this command confirms it with MTEB.
"""

import argparse

from rich.console import Console
from rich.table import Table

from data.uvrb.sets import Sets
from data.uvrb.tasks import POOLS, choose
from evals.mteb.files import model_name
from gve_jax.cli import Parser, run_cli
from gve_jax.errors import UserError, install_command
from gve_jax.media import limits
from gve_jax.storage.files import write_json
from gve_jax.storage.filesystem import local_path
from gve_jax.storage.locks import lock_folder


def main(argv: list[str] | None = None) -> None:
    args = _parse(argv)
    try:
        import mteb  # noqa: F401
    except ImportError as error:
        raise UserError(f"MTEB is not installed ({error}): {install_command('mteb')}") from error
    with lock_folder(args.output):
        _score(args)


def _score(args: argparse.Namespace) -> None:
    import mteb

    from evals.mteb.encoder import GVEEncoder
    from evals.mteb.tasks import tasks
    from gve_jax import GVE

    chosen = choose(args.datasets)
    source = Sets(args.data, args.output / "sets", moment_pool=args.moment_pool)
    source.check(chosen)
    model = GVE.from_pretrained(args.model, **limits.decoding_options(args))
    encoder = GVEEncoder(model, args.name or model_name(args.model))
    found = mteb.evaluate(
        encoder,
        tasks(source, chosen),
        encode_kwargs={"batch_size": args.batch_size},
        cache=mteb.ResultCache(args.output),
    )
    if model.sandbox is not None:  # else MTEB had all results already
        record = {"model": args.model, "fingerprint": model.fingerprint, "sandbox": model.sandbox}
        write_json(args.output / "manifest.json", record)
    table = Table(
        title=f"UVRB by MTEB {mteb.__version__} · {encoder.mteb_model_meta.name}",
        title_justify="left",
    )
    for column in ("set", "metric", "score"):
        table.add_column(column, justify="right" if column == "score" else "left")
    for task, result in zip(chosen, found.task_results, strict=True):
        table.add_row(task.name, task.label, f"{result.get_score():.3f}")
    Console().print(table)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser("python -m evals.mteb", __doc__)
    add = parser.add_argument
    text = "directory of the model, or its Hub id, ORG/NAME or ORG/NAME@REVISION"
    add("--model", required=True, help=text)
    add("--name", help="MTEB's name of the model, organisation/model (default: from --model)")
    text = "directory that contains UVRB/, or the archives"
    add("--data", required=True, type=local_path, help=text)
    add("--output", required=True, type=local_path, help="directory of MTEB's results")
    add("--datasets", help="comma-separated sets (default: all sixteen)")
    text = "documents that MS-TI and MS-TV are ranked against (default: whole)"
    add("--moment-pool", choices=POOLS, default="whole", help=text)
    add("--batch-size", type=int, default=32, help="batch size (default: 32)")
    limits.add_arguments(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_cli(main)
