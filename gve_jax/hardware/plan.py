"""Compiles a training step and estimates its memory and time, as a dict for JSON and tables."""

from collections.abc import Callable

import jax

from gve_jax.distributed.sharding import path_name
from gve_jax.hardware import estimate, hlo
from gve_jax.hardware.flops import Counts, Flops, train, trains
from gve_jax.hardware.program import Program, Shapes, find_largest, memory


def make_plan(program: Program, shapes: Shapes, quick: bool, note: Callable[[str], None]) -> dict:
    """Compiles the step and makes a plan. docs/planning.md describes the fields.

    Args:
      quick: do not search for the largest batch.
      note: receives progress messages.
    """
    config, topology = program.config, program.topology
    batch, chunk = program.batch_size, config.gradcache_chunk
    note(f"compiling {batch} pairs for {len(topology.devices)} devices")
    compiled = program.compile(shapes, batch, chunk)
    note("reading the programs")
    programs = [hlo.read(part.as_text()) for part in (compiled.gradients, compiled.update)]
    order = list(program.mesh.devices.flat)
    work = model_flops(program, shapes, batch)
    devices = len(topology.devices)
    hidden = fused_flops(program, shapes, batch) / devices
    times = estimate.step_times(programs, topology, order, hidden)
    used = memory(program, compiled, shapes)
    parts = [entry for compiled_program in programs for entry in compiled_program.walk()]
    executed = sum(count * part.flops for count, part in parts)
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
        "memory": used,
        "memory_total": sum(used.values()),
        "memory_chip": topology.chip.memory,
        "memory_usable": topology.memory,
        "fits": sum(used.values()) <= topology.memory,
        "model_flops": {"tower": work.tower, "decoder": work.decoder},
        "executed_flops": executed * devices,
        "seconds": vars(times),
        "mfu": work.total / devices / topology.chip.flops / times.step,
        "pairs_per_second": batch / times.step,
        "collectives": estimate.collective_table(programs, topology, order),
        "unknown_loops": [name for _, part in parts for name in part.unknown],
        "assumptions": list(estimate.ASSUMPTIONS),
        "largest": None,
    }
    if not quick:
        rows, size = find_largest(
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
    """Model FLOPs of a step whose items fill their shapes: without items, padding is unknown."""
    return train(program.model, side_counts(program, shapes, batch), trains(trained_names(program)))


def side_counts(program: Program, shapes: Shapes, batch: int) -> list[Counts]:
    window = program.model.vision.window_side
    return [Counts.of_shape(window, batch, s.pairs, s.patches, s.length) for s in shapes.sides]


def fused_flops(program: Program, shapes: Shapes, batch: int) -> float:
    """FLOPs inside fused attention kernels, which a program's text does not show: the forward pass,
    again if a layer is recomputed, and 2.5 times as much backward (it recomputes the scores)."""
    cfg = program.model
    if cfg.attention == "xla":
        return 0.0
    trained = trains(trained_names(program))
    total = 0.0
    for counts in side_counts(program, shapes, batch):
        heads = cfg.text.num_attention_heads * cfg.text.head_dim
        decoder = 4.0 * counts.causal_pairs * heads * cfg.text.num_hidden_layers
        blocks = len(cfg.vision.fullatt_block_indexes)
        tower = 4.0 * counts.full_pairs * cfg.vision.hidden_size * blocks
        total += decoder * (3.5 + (cfg.remat_text != "none"))
        below = trained("^visual/")
        total += tower * (3.5 + (cfg.remat_vision != "none") if below else 1)
    return total
