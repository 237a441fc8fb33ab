"""Estimated time of a compiled step: its FLOPs, memory traffic and communication, divided by the
rates of the chip. An estimate under stated assumptions, not a measurement."""

import dataclasses
from collections import defaultdict
from collections.abc import Sequence

from gve_jax.hardware.hlo import GATHERED, Collective, Computation, collectives
from gve_jax.hardware.topology import Topology

MATRIX, MEMORY, LINK = 0.8, 0.8, 0.8  # assumed shares of the published rates
HOP = 1e-6  # seconds from one chip to the next

ASSUMPTIONS = (
    f"matrix products run at {MATRIX:.0%} of the chip's published bfloat16 rate, memory at "
    f"{MEMORY:.0%}, links at {LINK:.0%}; {HOP * 1e6:.0f} us per hop",
    "within a loop, or between two loops, products, memory and links overlap: the slowest counts; "
    "loops run one after another",
    "a conditional (a block with window or full attention, the decoder's last layer) counts as its "
    "most expensive branch",
    "a collective is a ring over the chips of its group, along all axes of the torus that the "
    "group spans at once; GPUs share NVLink",
    "products inside fused attention kernels are added from their shapes, without their memory "
    "traffic",
    "the input pipeline never delays a step",
)


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of a step, and of each resource alone."""

    step: float
    products: float
    memory: float
    links: float


def step_times(
    programs: Sequence[Computation], topology: Topology, order: Sequence, hidden_flops: float
) -> Times:
    """Returns the times of programs that run one after another.

    Args:
      order: the devices by their number in the program.
      hidden_flops: FLOPs per device of kernels that the programs' text does not show.
    """
    chip = topology.chip

    def by_resource(part: Computation) -> tuple[float, float, float]:
        return (
            part.flops / (chip.flops * MATRIX),
            part.moved / (chip.bandwidth * MEMORY),
            sum(collective_seconds(c, topology, order) * c.times for c in part.collectives),
        )

    def total(part: Computation) -> float:
        return max(by_resource(part)) + sum(count * total(loop) for count, loop in part.loops)

    parts = [
        tuple(count * value for value in by_resource(part))
        for program in programs
        for count, part in program.walk()
    ]
    products, memory, links = map(sum, zip(*parts, strict=True))
    hidden = hidden_flops / (chip.flops * MATRIX)
    return Times(sum(map(total, programs)) + hidden, products + hidden, memory, links)


def collective_seconds(collective: Collective, topology: Topology, order: Sequence) -> float:
    """Seconds of one execution."""
    if len(collective.group) < 2:
        return 0.0
    rate, hops = group_bandwidth(collective.group, topology, order)
    passes = 2 if collective.kind == "all-reduce" else 1
    if collective.kind == "collective-permute":
        # To a neighbour, which one link reaches.
        return collective.bytes / (topology.chip.link * LINK) + HOP
    return collective.sent / (rate * LINK) + passes * hops * HOP


def group_bandwidth(group: Sequence[int], topology: Topology, order: Sequence) -> tuple[float, int]:
    """(bytes/s from one chip to the rest of its group, hops to the farthest chip)."""
    chip = topology.chip
    if chip.platform == "gpu":
        return chip.link, 1
    coords = [order[number].coords for number in group]
    links = hops = 0
    for axis in range(chip.axes):
        span = len({coord[axis] for coord in coords})
        if span < 2:
            continue
        side = topology.grid[axis]
        # An axis closes to a ring: v5p in multiples of 4, v5e and v6e only at 16.
        ring = side % 4 == 0 if chip.axes == 3 else side >= chip.wraps
        links += 2 if ring and span == side else 1
        hops += span // 2 if ring and span == side else span - 1
    return chip.link * max(links, 1), max(hops, 1)


def collective_table(
    programs: Sequence[Computation], topology: Topology, order: Sequence
) -> list[dict]:
    """Collectives by kind and group size: count, bytes that a device sends, seconds without
    overlap, and the three locations in the program that send most."""
    rows = defaultdict(lambda: {"count": 0, "bytes": 0.0, "seconds": 0.0, "from": defaultdict(int)})
    for collective in (c for program in programs for c in collectives(program)):
        row, times = rows[collective.kind, len(collective.group)], collective.times
        row["count"] += times
        row["bytes"] += collective.sent * times
        row["seconds"] += collective_seconds(collective, topology, order) * times
        row["from"][describe_source(collective.source)] += collective.sent * times
    table = []
    for (kind, group), row in sorted(rows.items(), key=lambda entry: -entry[1]["bytes"]):
        most = sorted(row["from"].items(), key=lambda entry: -entry[1])[:3]
        table.append({"kind": kind, "group": group} | row | {"from": dict(most)})
    return table


def describe_source(source: str) -> str:
    """Shortens an operation's name: `gradients, forward, in a loop: dot_general`."""
    if source == GATHERED:
        return f"added by the compiler: {GATHERED}"
    parts = source.split("/")
    program = parts[0].removeprefix("jit(").rstrip(")") or "added by the compiler"
    phase = "forward"
    if "transpose" in source:
        phase = "recomputed" if "rematted_computation" in source else "backward"
    loop = ", in a loop" if "while" in parts else ""
    return f"{program}, {phase}{loop}: {parts[-1]}"
