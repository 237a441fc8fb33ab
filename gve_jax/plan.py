"""Compiles a configuration's training step for another machine and reports memory and speed:

    python -m gve_jax.plan --config configs/gve_7b.py --topology v5p:4x4x4

`--topology` is CHIP:GRID: v5e:4x4, v5p:4x4x4, v6e:16x16 (needs `pip install -e '.[tpu]'`), or
h200:1x1x8, h100:1x1x8 (`'.[cuda]'`). No data and no weights are read. Override fields as
`--config.batch_size=256 --config.model.attention=splash`.

  --query 0x128 --positive 4x896   declared shapes (frame pairs x tokens) to plan (default: the
                                   shortest text, and the longest video of `inputs.num_frames`)
  --negatives N                    hard negatives per pair, 0 to 3 (default: 0)
  --quick                          do not search for the largest batch that fits
  --json FILE                      also write the plan to FILE

Exit status: 0 the step fits in memory; 1 it does not; 2 an error, in one line.
"""

import json
import os
import sys

import jax
from absl import flags
from rich.console import Console

from gve_jax.cli import help_requested, parse_arguments, run_cli
from gve_jax.errors import UserError
from gve_jax.hardware.plan import make_plan
from gve_jax.hardware.program import DeviceOutOfMemory, Program
from gve_jax.hardware.report import show
from gve_jax.hardware.topology import open_topology, parse
from gve_jax.running.sections import Settings
from gve_jax.storage.filesystem import as_local_path

_LIBTPU = {
    "TPU_SKIP_MDS_QUERY": "1",  # otherwise libtpu queries the cloud's metadata server
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no chip is used: two planners may run at once
    "TPU_WORKER_HOSTNAMES": "localhost",  # otherwise libtpu warns that it is missing
    "TPU_WORKER_ID": "0",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}


def main() -> None:
    if help_requested(sys.argv, __doc__, Settings):
        return
    values = flags.FlagValues()
    text = {
        name: flags.DEFINE_string(name, None, "", flag_values=values)
        for name in ("topology", "query", "positive", "json")
    }
    negatives = flags.DEFINE_integer("negatives", 0, "", 0, 3, flag_values=values)
    quick = flags.DEFINE_bool("quick", False, "", flag_values=values)
    config = parse_arguments(sys.argv, values, "python -m gve_jax.plan")
    if text["topology"].value is None:
        raise UserError("--topology is missing; see python -m gve_jax.plan --help")
    parse(text["topology"].value)
    target = text["json"].value and as_local_path(text["json"].value)
    # Do not occupy an accelerator of this machine: only compilers run.
    jax.config.update("jax_platforms", "cpu")
    os.environ.update(_LIBTPU)
    program = Program(config, open_topology(text["topology"].value))
    shapes = program.shapes(text["query"].value, text["positive"].value, negatives.value)
    errors = Console(stderr=True)
    with errors.status("planning") as status:

        def note(message: str) -> None:
            status.update(message)
            if not errors.is_terminal:
                print(message, file=sys.stderr, flush=True)

        try:
            plan = make_plan(program, shapes, quick.value, note)
        except DeviceOutOfMemory as error:
            print(
                f"the step does not fit: {error} Try a smaller batch_size, or gradcache_chunk "
                f"(batch_size is {program.batch_size}, data * fsdp = {program.rows})",
                file=sys.stderr,
            )
            sys.exit(1)
    show(plan, Console(width=None if sys.stdout.isatty() else 140))
    if target:
        target.write_text(json.dumps(plan, indent=1) + "\n", encoding="utf-8")
    if not plan["fits"]:
        sys.exit(1)


if __name__ == "__main__":
    run_cli(main)
