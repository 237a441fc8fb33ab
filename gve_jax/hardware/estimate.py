"""How long a compiled step takes, by arithmetic: what it computes, moves and sends, over the rates
of the chip. A bound with its assumptions named, not a measurement."""

import dataclasses
from collections import defaultdict
from collections.abc import Sequence

from gve_jax.hardware.hlo import GATHERED, Collective, Part, collectives
from gve_jax.hardware.topology import Topology

MATRIX, MEMORY, LINK = 0.8, 0.8, 0.8  # shares of the published rates that are assumed attained
HOP = 1e-6  # seconds from a chip to the next

ASSUMPTIONS = (
    f"matrix products run at {MATRIX:.0%} of the chip's bfloat16 rate, memory at {MEMORY:.0%}, "
    f"links at {LINK:.0%} of what their makers publish; {HOP * 1e6:.0f} us a hop",
    "between two loops, or within one, products, memory and links work at the same time: the "
    "slowest counts; loops follow one another",
    "a conditional (a block within windows or whole, the decoder's last layer) counts as its "
    "dearest branch",
    "a collective is a ring over the chips of its group, along every axis of the torus that the "
    "group spans at once; GPUs share NVLink",
    "what a fused attention kernel computes and moves within is added from its shapes as products",
    "input is ready when the step is",
)


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of a step: whole, and of each resource alone."""

    step: float
    products: float
    memory: float
    links: float


def times(
    programs: Sequence[Part], topology: Topology, order: Sequence, hidden_flops: float
) -> Times:
    """Seconds of the programs, one after the other.

    Args:
      order: the devices by their number in the program.
      hidden_flops: of kernels that the programs' text does not show, on one device.
    """
    chip = topology.chip

    def own(part: Part) -> tuple[float, float, float]:
        return (
            part.flops / (chip.flops * MATRIX),
            part.moved / (chip.bandwidth * MEMORY),
            sum(seconds(one, topology, order) * one.times for one in part.collectives),
        )

    def whole(part: Part) -> float:
        return max(own(part)) + sum(count * whole(loop) for count, loop in part.loops)

    alone = [
        tuple(count * value for value in own(part))
        for program in programs
        for count, part in program.walk()
    ]
    products, memory, links = map(sum, zip(*alone, strict=True))
    hidden = hidden_flops / (chip.flops * MATRIX)
    return Times(sum(map(whole, programs)) + hidden, products + hidden, memory, links)


def seconds(one: Collective, topology: Topology, order: Sequence) -> float:
    """Of one execution."""
    if len(one.group) < 2:
        return 0.0
    rate, hops = group_bandwidth(one.group, topology, order)
    both = 2 if one.kind == "all-reduce" else 1
    if one.kind == "collective-permute":
        # To a neighbour over one link, whatever else the torus has.
        return one.bytes / (topology.chip.link * LINK) + HOP
    return one.sent / (rate * LINK) + both * hops * HOP


def group_bandwidth(group: Sequence[int], topology: Topology, order: Sequence) -> tuple[float, int]:
    """(bytes/s out of one chip towards the rest of its group, hops to the farthest)."""
    chip = topology.chip
    if chip.platform == "gpu":
        return chip.link, 1
    places = [order[number].coords for number in group]
    links = hops = 0
    for axis in range(chip.axes):
        span = len({place[axis] for place in places})
        if span < 2:
            continue
        side = topology.grid[axis]
        # Closed to a ring: v5p in multiples of 4, v5e and v6e at 16 alone.
        ring = side % 4 == 0 if chip.axes == 3 else side >= chip.wraps
        links += 2 if ring and span == side else 1
        hops += span // 2 if ring and span == side else span - 1
    return chip.link * max(links, 1), max(hops, 1)


def table(programs: Sequence[Part], topology: Topology, order: Sequence) -> list[dict]:
    """Collectives by kind and size of group: count, bytes a device sends, seconds alone; the
    three places of the program that send most."""
    rows = defaultdict(lambda: {"count": 0, "bytes": 0.0, "seconds": 0.0, "from": defaultdict(int)})
    for program in programs:
        for one in collectives(program):
            row = rows[one.kind, len(one.group)]
            row["count"] += one.times
            row["bytes"] += one.sent * one.times
            row["seconds"] += seconds(one, topology, order) * one.times
            row["from"][place(one.source)] += one.sent * one.times
    found = []
    for (kind, group), row in sorted(rows.items(), key=lambda entry: -entry[1]["bytes"]):
        most = sorted(row["from"].items(), key=lambda entry: -entry[1])[:3]
        found.append({"kind": kind, "group": group} | row | {"from": dict(most)})
    return found


def place(source: str) -> str:
    """`gradients, forward, in a loop: dot_general` of an operation's name in the program."""
    if source == GATHERED:
        return f"compiler's own: {GATHERED}"
    parts = source.split("/")
    program = parts[0].removeprefix("jit(").rstrip(")") or "compiler's own"
    phase = "forward"
    if "transpose" in source:
        phase = "recomputed" if "rematted_computation" in source else "backward"
    loop = ", in a loop" if "while" in parts else ""
    return f"{program}, {phase}{loop}: {parts[-1]}"
