"""Prints a plan as tables."""

from rich.console import Console
from rich.table import Table

GIB = 2.0**30


def show(plan: dict, console: Console) -> None:
    """Prints the plan."""
    mesh = ", ".join(f"{axis} {size}" for axis, size in plan["mesh"].items())
    console.print(
        f"{plan['topology']}: {plan['devices']} devices ({mesh}), {plan['batch_size']} pairs, "
        f"chunk {plan['gradcache_chunk'] or 'off'}, attention {plan['attention']}; query "
        f"{_shape(plan['shapes']['query'])}, positive {_shape(plan['shapes']['positive'])}, "
        f"{plan['shapes']['negatives']} negatives; compiled in {plan['compile_seconds']:.0f} s",
        highlight=False,
    )
    console.print(_memory(plan), _work(plan), _collectives(plan))
    for line in plan["assumptions"]:
        console.print(f"assumption: {line}", highlight=False)
    for name in plan["unknown_loops"]:
        console.print(f"loop counted once, its trip count is unknown: {name}", highlight=False)
    if plan["largest"]:
        best = plan["largest"]
        console.print(
            f"largest {best['of']} that fits: {best['pairs']} ({best['rows_per_device']} per "
            f"device, {best['memory'] / GIB:.2f} GiB)",
            highlight=False,
        )
    verdict = "fits" if plan["fits"] else "DOES NOT FIT"
    console.print(
        f"{verdict}: {plan['memory_total'] / GIB:.2f} of {plan['memory_usable'] / GIB:.2f} GiB per "
        "device",
        highlight=False,
    )
    if plan["memory_usable"] < plan["memory_chip"]:
        console.print(
            f"JAX gives a program {plan['memory_usable'] / plan['memory_chip']:.0%} of the chip's "
            f"{plan['memory_chip'] / GIB:.2f} GiB (XLA_CLIENT_MEM_FRACTION)",
            highlight=False,
        )


def _shape(bucket: list[int]) -> str:
    pairs, patches, _, tokens = bucket
    return f"{pairs} x {patches} patches, {tokens} tokens" if pairs else f"{tokens} tokens"


def _memory(plan: dict) -> Table:
    table = Table("memory per device", "GiB", "of the chip", title_justify="left")
    for name, size in plan["memory"].items():
        table.add_row(name, f"{size / GIB:.3f}", f"{size / plan['memory_chip']:.1%}")
    return table


def _work(plan: dict) -> Table:
    table = Table("step", "")
    work, seconds = plan["model_flops"], plan["seconds"]
    total = sum(work.values())
    table.add_row("model TFLOPs: tower", f"{work['tower'] / 1e12:,.1f}")
    table.add_row("model TFLOPs: decoder", f"{work['decoder'] / 1e12:,.1f}")
    table.add_row("products executed / model", f"{plan['executed_flops'] / total:.2f}")
    table.add_row("seconds without overlap: products", f"{seconds['products']:.3f}")
    table.add_row("seconds without overlap: memory", f"{seconds['memory']:.3f}")
    table.add_row("seconds without overlap: links", f"{seconds['links']:.3f}")
    table.add_row("seconds per step, estimated", f"{seconds['step']:.3f}")
    table.add_row("MFU, estimated", f"{plan['mfu']:.1%}")
    table.add_row("pairs per second, estimated", f"{plan['pairs_per_second']:,.1f}")
    return table


def _collectives(plan: dict) -> Table:
    table = Table("collective", "devices", "count", "GB sent per device", "seconds", "mostly from")
    for row in plan["collectives"]:
        source, size = next(iter(row["from"].items()))
        table.add_row(
            row["kind"],
            str(row["group"]),
            f"{row['count']:,}",
            f"{row['bytes'] / 1e9:,.3f}",
            f"{row['seconds']:.4f}",
            f"{source} ({size / max(row['bytes'], 1):.0%})",
        )
    return table
