"""FLOPs, memory traffic and collectives of a compiled program, from its optimized HLO text.

The compiler's `cost_analysis()` counts the body of a scan once. This module multiplies the body of
each loop by its trip count, also in nested loops. All numbers are of one device.
"""

import dataclasses
import re
from collections.abc import Iterator
from math import prod

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "ragged-all-to-all",
)
_BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128, "token": 0}
# Opcodes without memory traffic, or whose called computations are counted instead.
_FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "conditional",
    "call",
    "after-all",
    "partition-id",
    "replica-id",
    "opt-barrier",
    "copy-done",
    "async-done",
    "async-update",
    "slice-done",
}
GATHERED = "shards gathered as a sum"  # source of an all-reduce that gathers shards
_ARRAY = re.compile(r"([a-z]+[0-9]*[a-z0-9]*)\[([0-9,]*)\](\{[^}]*\})?")
_NAME = re.compile(r"%([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Instruction:
    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    inside: str  # text between the parentheses of the call


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective, as a ring over its group."""

    kind: str
    bytes: int  # of its input or its output, whichever is larger
    group: tuple[int, ...]  # device numbers of the first group
    times: int  # number of executions
    source: str  # location in the program: `jit(gradients)/.../dot_general`

    @property
    def sent(self) -> float:
        """Bytes that one device sends per execution."""
        size = len(self.group)
        if self.kind == "collective-permute":
            return self.bytes
        share = (size - 1) / size
        return self.bytes * share * (2 if self.kind == "all-reduce" else 1)


@dataclasses.dataclass
class Computation:
    """An HLO computation: its work outside of loops, and the loops it runs."""

    name: str
    flops: float = 0.0
    moved: float = 0.0  # bytes read from and written to memory
    collectives: list[Collective] = dataclasses.field(default_factory=list)
    loops: list[tuple[int, "Computation"]] = dataclasses.field(default_factory=list)
    unknown: list[str] = dataclasses.field(default_factory=list)  # loops without a trip count
    opaque: list[str] = dataclasses.field(default_factory=list)  # targets of fused kernels

    def walk(self, times: int = 1) -> Iterator[tuple[int, "Computation"]]:
        """Yields this computation and those of its loops with their numbers of executions."""
        yield times, self
        for count, part in self.loops:
            yield from part.walk(times * count)

    @property
    def weight(self) -> float:
        """Approximate cost, to choose the most expensive branch."""
        return sum(
            times * (part.flops + part.moved + 1e3 * sum(c.sent for c in part.collectives))
            for times, part in self.walk()
        )


def read(text: str) -> Computation:
    """Reads a program's text.

    A conditional counts as its most expensive branch. A loop whose trip count the program does not
    state counts once and is named in `unknown`.
    """
    computations, entry = parse(text)
    return _computation(entry, computations, {})


def collectives(program: Computation) -> list[Collective]:
    """All collectives of a program, with `times` multiplied by the enclosing loops."""
    return [
        dataclasses.replace(collective, times=collective.times * times)
        for times, part in program.walk()
        for collective in part.collectives
    ]


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """(instructions by the name of their computation, name of the entry computation)."""
    computations, entry, body = {}, "", None
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith(" ") and ("->" in line or "ENTRY" in line):
            name = _NAME.search(line).group(1)
            entry = name if line.startswith("ENTRY") else entry
            body = computations.setdefault(name, [])
        elif line.startswith("}"):
            body = None
        elif body is not None and " = " in line:
            body.append(_instruction(line.strip()))
    return computations, entry


def _instruction(line: str) -> Instruction:
    name, rest = line.removeprefix("ROOT ").split(" = ", 1)
    if rest.startswith("("):
        end = _closing(rest, 0) + 1
    else:
        end = rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    start = rest.index("(")
    end = _closing(rest, start)
    inside = rest[start + 1 : end]
    return Instruction(
        name.lstrip("%"), shape, rest[:start], tuple(_NAME.findall(inside)), rest[end + 1 :], inside
    )


def _closing(text: str, start: int) -> int:
    depth = 0
    for index in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[index], 0)
        if depth == 0:
            return index
    raise ValueError(f"no closing parenthesis in {text[:80]!r}")


def arrays(shape: str) -> list[tuple[str, tuple[int, ...], str]]:
    """(dtype, dimensions, layout) of each array of a shape."""
    return [
        (dtype, tuple(int(n) for n in sizes.split(",") if n), layout)
        for dtype, sizes, layout in _ARRAY.findall(shape)
    ]


def size(shape: str, memory_only: bool = False) -> int:
    """Bytes of a shape; `memory_only` leaves out arrays in the chip's scratch memory, `S(1)`."""
    total = 0
    for dtype, sizes, layout in arrays(shape):
        if not (memory_only and "S(1)" in layout):
            total += prod(sizes) * _bits(dtype) // 8
    return total


def _bits(dtype: str) -> int:
    if dtype in _BITS:
        return _BITS[dtype]
    return int(re.search(r"\d+", dtype).group())


def _called(text: str, key: str) -> list[str]:
    if match := re.search(rf"\b{key}=\{{([^}}]*)\}}", text):
        return _NAME.findall(match.group(1))
    match = re.search(rf"\b{key}=%([\w.\-]+)", text)
    return [match.group(1)] if match else []


def _computation(name: str, computations, done: dict[str, Computation]) -> Computation:
    if name in done:
        return done[name]
    part = Computation(name)
    _add(part, name, computations, done, set(), inner=False)
    done[name] = part
    return part


def _add(part: Computation, name: str, computations, done, seen: set, inner: bool) -> None:
    """Adds a computation's instructions to `part`; `inner`: inside a fusion, whose values are not
    in memory."""
    body = computations[name]
    shapes, by_name = {op.name: op.shape for op in body}, {op.name: op for op in body}
    for op in body:
        opcode = op.opcode
        if opcode == "while":
            count = _trips(op, computations)
            if count is None:
                part.unknown.append(op.name)
            loop = _computation(_called(op.attributes, "body")[0], computations, done)
            part.loops.append((1 if count is None else count, loop))
        elif opcode == "conditional":
            names = _called(op.attributes, "branch_computations") or [
                *_called(op.attributes, "true_computation"),
                *_called(op.attributes, "false_computation"),
            ]
            branches = [_computation(branch, computations, done) for branch in names]
            part.loops.append((1, max(branches, key=lambda branch: branch.weight)))
        elif opcode in ("fusion", "call", "async-start"):
            for called in _called(op.attributes, "calls") + _called(op.attributes, "to_apply"):
                _add(part, called, computations, done, seen, inner or opcode != "call")
        elif kind := _kind(opcode):
            # Steps of an asynchronous collective appear in several fusions with the same channel.
            channel = re.search(r"channel_id=(\d+)", op.attributes)
            if channel is None or channel.group(1) not in seen:
                seen.add(channel.group(1) if channel else op.name)
                part.collectives.append(_collective(op, kind, name, by_name))
        elif opcode == "dot":
            part.flops += 2 * _elements(op.shape) * _contracted(op, shapes, op.attributes)
        elif opcode == "convolution":
            part.flops += _convolution(op, shapes)
        elif opcode == "custom-call":
            part.flops += _custom(op, shapes, part)
        if not inner and opcode not in _FREE:
            part.moved += _moved(op, shapes, computations)


def _kind(opcode: str) -> str | None:
    bare = opcode.removesuffix("-start")
    return bare if bare in KINDS else None


def _trips(loop: Instruction, computations) -> int | None:
    if match := re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', loop.attributes):
        return int(match.group(1))
    # Otherwise the condition compares a counter, which starts at zero, with a constant.
    condition = computations[_called(loop.attributes, "condition")[0]]
    constants = [
        int(op.inside)
        for op in condition
        if op.opcode == "constant"
        and re.fullmatch(r"-?\d+", op.inside)
        and op.shape.startswith(("s32[]", "s64[]", "u32[]"))
    ]
    if len(constants) != 1:
        return None
    counter = [op for op in condition if op.opcode == "get-tuple-element"]
    number = re.search(r"index=(\d+)", counter[0].attributes) if len(counter) == 1 else None
    step = (
        _step(computations, _called(loop.attributes, "body")[0], int(number.group(1)))
        if number
        else 1
    )
    return -(-constants[0] // step)


def _step(computations, body: str, number: int) -> int:
    """The increment of a loop's counter: 2 in an unrolled loop."""
    by_name = {op.name: op for op in computations[body]}
    root = computations[body][-1]
    if root.opcode != "tuple":
        return 1
    counter = by_name[root.operands[number]]
    inputs = [by_name[name] for name in counter.operands]
    for called in _called(counter.attributes, "calls"):
        inputs += computations[called]
    steps = [int(op.inside) for op in inputs if op.opcode == "constant" and op.inside.isdigit()]
    return max(steps[0], 1) if len(steps) == 1 else 1


def _collective(
    op: Instruction, kind: str, computation: str, body: dict[str, Instruction]
) -> Collective:
    inputs = sum(size(body[name].shape) for name in op.operands)
    outputs = size(op.shape)
    if "-start" in op.opcode:  # its shape includes the inputs
        outputs = outputs - inputs if kind != "collective-permute" else inputs
    moved = max(inputs, outputs)
    if kind == "all-reduce":
        moved = inputs
        if computation.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"
    op_name = re.search(r'op_name="([^"]*)"', op.attributes)
    source = op_name.group(1) if op_name else ""
    if not op_name and kind == "all-reduce" and all(_is_shard(o, body) for o in op.operands):
        source = GATHERED
    return Collective(kind, moved, _group(op.attributes), 1, source)


def _is_shard(name: str, body: dict[str, Instruction]) -> bool:
    """Whether a value is a shard placed into zeros of the full shape, so that a sum over devices
    gathers it: XLA:TPU gathers FSDP's weights so on a torus of three axes."""
    while name in body and body[name].opcode.startswith("copy"):
        name = body[name].operands[0]
    return "dynamic-update-slice" in name


def _group(attributes: str) -> tuple[int, ...]:
    """The first group of devices, in any of the notations."""
    if match := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", attributes):
        return tuple(int(n) for n in match.groups())
    if match := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        return tuple(int(n) for n in match.group(1).split(","))
    if match := re.search(
        r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes
    ):
        groups, dims, order = (
            [int(n) for n in (part or "").split(",") if n] for part in match.groups()
        )
        return tuple(_strided(dims, order or list(range(len(dims))))[: prod(groups[1:])])
    if match := re.search(
        r"replica_groups=mesh\[([^\]]*)\]"
        r"(?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}",
        attributes,
    ):
        sizes, dims, order, names = match.groups()
        axes = {name: int(n) for name, n in re.findall(r"'([^']+)'=(\d+)", sizes)}
        chosen = re.findall(r"'([^']+)'", names)
        order_axes = [list(axes).index(name) for name in axes if name not in chosen]
        order_axes += [list(axes).index(name) for name in axes if name in chosen]
        members = _strided(list(axes.values()), order_axes)[: prod(axes[name] for name in chosen)]
        if dims is None:
            return tuple(members)
        dims = [int(n) for n in dims.split(",")]
        order = [int(n) for n in order.split(",")] if order else list(range(len(dims)))
        ids = _strided(dims, order)
        return tuple(ids[member] for member in members)
    raise ValueError(f"unknown notation of a collective's group: {attributes[:200]}")


def _strided(dims: list[int], order: list[int]) -> list[int]:
    """`np.arange(prod(dims)).reshape(dims).transpose(order).ravel()`."""
    strides = [prod(dims[axis + 1 :]) for axis in range(len(dims))]
    indices = [0]
    for axis in order:
        indices = [index + step * strides[axis] for index in indices for step in range(dims[axis])]
    return indices


def _elements(shape: str) -> int:
    return prod(arrays(shape)[0][1])


def _contracted(op: Instruction, shapes, attributes: str) -> int:
    left = arrays(shapes[op.operands[0]])[0][1]
    match = re.search(r'lhs_contracting_dim(?:s=\{|ensions":\[)([^}\]]*)', attributes)
    if match is None:  # an outer product contracts no dimension
        return 1
    return prod(left[int(n)] for n in re.findall(r"\d+", match.group(1)))


def _custom(op: Instruction, shapes, part: Computation) -> float:
    if "lhs_contracting_dimensions" in op.attributes:  # cuBLAS
        return 2 * _elements(op.shape) * _contracted(op, shapes, op.attributes)
    target = re.search(r'custom_call_target="([^"]*)"', op.attributes)
    target = target.group(1) if target else ""
    if "fmha" in target or target == "tpu_custom_call":
        part.opaque.append(target)
    return 0.0


def _convolution(op: Instruction, shapes) -> float:
    """FLOPs without products on padding or between dilated rows: XLA writes a batched product as a
    convolution whose window is mostly padding."""
    left, right = (arrays(shapes[name])[0][1] for name in op.operands[:2])
    out = arrays(op.shape)[0][1]
    labels = re.search(r"dim_labels=([^_]+)_([^-]+)->([^,\s]+)", op.attributes).groups()
    spatial = [letter for letter in labels[2] if letter.isdigit()]

    def size_of(sizes, label, letter):
        return sizes[label.index(letter)]

    window = re.search(r"window=\{([^}]*)\}", op.attributes)
    fields = dict(re.findall(r"(\w+)=(\S+)", window.group(1))) if window else {}

    def field(name, number, default):
        return fields[name].split("x")[number] if name in fields else default

    total = 2 * size_of(out, labels[2], "b") * size_of(out, labels[2], "f")
    total *= size_of(right, labels[1], "i")
    for letter in spatial:
        number = int(letter)
        low = int(field("pad", number, "0_0").split("_")[0])
        stride, dilation, kernel_dilation = (
            int(field(name, number, 1)) for name in ("stride", "lhs_dilate", "rhs_dilate")
        )
        end = (size_of(left, labels[0], letter) - 1) * dilation
        rows = size_of(out, labels[2], letter)
        valid = 0  # pairs of an output row and a kernel tap that read an input row
        for tap in range(size_of(right, labels[1], letter)):
            first = tap * kernel_dilation - low
            if stride % dilation == 0:  # a tap reads input rows for all output rows or for none
                if first % dilation == 0:
                    start = max(0, -(first // stride))
                    valid += max(0, min(rows - 1, (end - first) // stride) - start + 1)
            else:
                valid += sum(
                    0 <= row * stride + first <= end and (row * stride + first) % dilation == 0
                    for row in range(rows)
                )
        total *= valid
    return total


def _moved(op: Instruction, shapes, computations) -> int:
    """Bytes of memory read and written; only the slice of an operand that is sliced counts."""
    if op.opcode == "dynamic-slice":
        return 2 * size(op.shape, True)
    if op.opcode == "dynamic-update-slice":
        return 2 * size(shapes[op.operands[1]], True)
    if op.opcode in ("copy-start", "slice-start"):
        return size(arrays_text(op.shape, 1 if op.opcode == "slice-start" else 0))
    total = size(op.shape, True)
    if op.opcode != "fusion":
        return total + sum(size(shapes[name], True) for name in op.operands)
    body = computations[_called(op.attributes, "calls")[0]]
    inner = {item.name: item for item in body}
    numbers = {int(item.inside): item.name for item in body if item.opcode == "parameter"}
    for number, name in enumerate(op.operands):
        read, value = size(shapes[name], True), numbers.get(number)
        users = [item for item in body if value in item.operands]
        while len(users) == 1 and users[0].opcode == "bitcast":
            value = users[0].name
            users = [item for item in body if value in item.operands]
        # "" stands for a user that does not slice the operand.
        opcodes = {item.opcode if item.operands[0] == value else "" for item in users}
        if read and opcodes and opcodes <= {"dynamic-slice", "gather"}:
            read = min(read, sum(size(item.shape) for item in users))
        elif read and opcodes == {"dynamic-update-slice"}:
            # In place: only the slice is read and written.
            update = sum(size(inner[item.operands[1]].shape) for item in users)
            total, read = total - read + update, 0
        total += read
    return max(total, 0)


def arrays_text(shape: str, number: int) -> str:
    """The text of the array at index `number` of a tuple shape."""
    return [match.group(0) for match in _ARRAY.finditer(shape)][number]
