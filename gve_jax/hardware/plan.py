"""One configuration on one machine, compiled and reckoned: a dict, for JSON and for tables."""

from collections.abc import Callable

import jax

from gve_jax.distributed.sharding import path_name
from gve_jax.hardware import estimate, hlo
from gve_jax.hardware.flops import Counts, Flops, train, trains
from gve_jax.hardware.program import Program, Shapes, largest, memory


def make_plan(program: Program, shapes: Shapes, quick: bool, note: Callable[[str], None]) -> dict:
    """Compiles the step and reckons with it. See docs/planning.md for the fields.

    Args:
      quick: do not look for the largest batch.
      note: told what is being done.
    """
    config, topology = program.config, program.topology
    batch, chunk = program.batch_size, config.gradcache_chunk
    note(f"compiling {batch} pairs for {len(topology.devices)} devices")
    compiled = program.compile(shapes, batch, chunk)
    note("reading the programs")
    parts = [hlo.read(one.as_text()) for one in (compiled.gradients, compiled.update)]
    order = list(program.mesh.devices.flat)
    work = model_flops(program, shapes, batch)
    devices = len(topology.devices)
    times = estimate.times(parts, topology, order, fused_flops(program, shapes, batch) / devices)
    held = memory(program, compiled, shapes)
    executed = sum(count * part.flops for one in parts for count, part in one.walk())
    plan = {
        "topology": topology.name,
        "devices": devices,
        "chip": topology.chip._asdict(),
        "mesh": dict(program.mesh.shape),
        "attention": program.model.attention,
        "batch_size": batch,
        "gradcache_chunk": chunk,
        "shapes": {
            "query": list(vars(shapes.query).values()),
            "positive": list(vars(shapes.positive).values()),
            "negatives": shapes.negatives,
        },
        "compile_seconds": compiled.seconds,
        "memory": held,
        "memory_total": sum(held.values()),
        "memory_chip": topology.chip.memory,
        "memory_usable": topology.memory,
        "fits": sum(held.values()) <= topology.memory,
        "model_flops": {"tower": work.tower, "decoder": work.decoder},
        "executed_flops": executed * devices,
        "seconds": vars(times),
        "mfu": work.total / devices / topology.chip.flops / times.step,
        "pairs_per_second": batch / times.step,
        "collectives": estimate.table(parts, topology, order),
        "unknown_loops": [name for one in parts for _, p in one.walk() for name in p.unknown],
        "assumptions": list(estimate.ASSUMPTIONS),
        "largest": None,
    }
    if not quick:
        rows, size = largest(
            program, shapes, compiled, lambda c: sum(memory(program, c, shapes).values()), note
        )
        plan["largest"] = {
            "of": "gradcache_chunk" if chunk else "batch_size",
            "rows_per_device": rows,
            "pairs": rows * program.rows,
            "memory": size,
        }
    return plan


def trained_names(program: Program) -> list[str]:
    flat = jax.tree_util.tree_flatten_with_path(program.abstract["params"])[0]
    return [path_name(path) for path, _ in flat]


def model_flops(program: Program, shapes: Shapes, batch: int) -> Flops:
    """Of a step whose items fill their shapes: without real items, padding cannot be told."""
    sides = [
        Counts.of_shape(
            program.model.vision.window_side, batch, side.pairs, side.patches, side.length
        )
        for side in shapes.sides
    ]
    return train(program.model, sides, trains(trained_names(program)))


def fused_flops(program: Program, shapes: Shapes, batch: int) -> float:
    """Products inside fused attention kernels, which a program's text does not show: forward,
    again where a layer is recomputed, and 2.5 times that backward (scores are computed again)."""
    cfg = program.model
    if cfg.attention == "xla":
        return 0.0
    trained = trains(trained_names(program))
    total = 0.0
    for side in shapes.sides:
        counts = Counts.of_shape(
            cfg.vision.window_side, batch, side.pairs, side.patches, side.length
        )
        decoder = 4.0 * counts.seen * cfg.text.hidden_size * cfg.text.num_hidden_layers
        tower = 4.0 * counts.full * cfg.vision.hidden_size * len(cfg.vision.fullatt_block_indexes)
        total += decoder * (3.5 + (cfg.remat_text != "none"))
        below = trained("^visual/")
        total += tower * (3.5 + (cfg.remat_vision != "none") if below else 1)
    return total
