"""A compiled program's text (optimised HLO) -> what it computes, moves and sends, loops multiplied.

The compiler's own `cost_analysis()` counts the body of a scan once; here the body of each loop
counts as often as it runs, and loops within loops multiply. Everything is of one device.
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
# What moves nothing itself: names of values, or what its own computations do.
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
GATHERED = "shards gathered as a sum"  # the source of such an all-reduce
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
    """One collective of one device: `sent` bytes leave it, by a ring over its group."""

    kind: str
    bytes: int  # of the larger of what goes in and what comes out
    group: tuple[int, ...]  # devices, as numbered in the program, of the first group
    times: int
    source: str  # where in the program: `jit(gradients)/.../dot_general`

    @property
    def sent(self) -> float:
        """Bytes one device sends for one execution."""
        size = len(self.group)
        if self.kind == "collective-permute":
            return self.bytes
        share = (size - 1) / size
        return self.bytes * share * (2 if self.kind == "all-reduce" else 1)


@dataclasses.dataclass
class Part:
    """What stands between loops: a computation's own work, and the loops it runs in turn."""

    name: str
    flops: float = 0.0
    moved: float = 0.0  # bytes to and from memory
    collectives: list[Collective] = dataclasses.field(default_factory=list)
    loops: list[tuple[int, "Part"]] = dataclasses.field(default_factory=list)
    unknown: list[str] = dataclasses.field(default_factory=list)  # loops without a known count
    opaque: list[str] = dataclasses.field(default_factory=list)  # custom calls: targets

    def walk(self, times: int = 1) -> Iterator[tuple[int, "Part"]]:
        """Every part with the number of its executions."""
        yield times, self
        for count, part in self.loops:
            yield from part.walk(times * count)

    @property
    def weight(self) -> float:
        """A rough order of cost, to name the dearest branch."""
        return sum(
            times * (part.flops + part.moved + 1e3 * sum(c.sent for c in part.collectives))
            for times, part in self.walk()
        )


def read(text: str) -> Part:
    """The whole program.

    A conditional counts as its dearest branch. A loop whose count the program does not state
    counts once and is named in `unknown`.
    """
    computations, entry = parse(text)
    return _part(entry, computations, {})


def collectives(program: Part) -> list[Collective]:
    """All of a program, `times` multiplied by the loops around."""
    return [
        dataclasses.replace(one, times=one.times * times)
        for times, part in program.walk()
        for one in part.collectives
    ]


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """(computations by name, the entry's name)."""
    found, entry, body = {}, "", None
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith(" ") and ("->" in line or "ENTRY" in line):
            name = _NAME.search(line).group(1)
            entry = name if line.startswith("ENTRY") else entry
            body = found.setdefault(name, [])
        elif line.startswith("}"):
            body = None
        elif body is not None and " = " in line:
            body.append(_instruction(line.strip()))
    return found, entry


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
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place
    raise ValueError(f"no closing parenthesis in {text[:80]!r}")


def arrays(shape: str) -> list[tuple[str, tuple[int, ...], str]]:
    """(dtype, dimensions, layout) of each array of a shape."""
    return [
        (dtype, tuple(int(n) for n in sizes.split(",") if n), layout)
        for dtype, sizes, layout in _ARRAY.findall(shape)
    ]


def size(shape: str, memory_only: bool = False) -> int:
    """Bytes; `memory_only` leaves out arrays that live in the chip's own scratch, `S(1)`."""
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


def _part(name: str, computations, done: dict[str, Part]) -> Part:
    if name in done:
        return done[name]
    part = Part(name)
    _add(part, name, computations, done, set(), inner=False)
    done[name] = part
    return part


def _add(part: Part, name: str, computations, done, seen: set, inner: bool) -> None:
    """Adds a computation's instructions; `inner`: of a fusion, whose values are not in memory."""
    body = computations[name]
    shapes, by_name = {one.name: one.shape for one in body}, {one.name: one for one in body}
    for one in body:
        opcode = one.opcode
        if opcode == "while":
            count = _trips(one, computations)
            if count is None:
                part.unknown.append(one.name)
            loop = _part(_called(one.attributes, "body")[0], computations, done)
            part.loops.append((1 if count is None else count, loop))
        elif opcode == "conditional":
            names = _called(one.attributes, "branch_computations") or [
                *_called(one.attributes, "true_computation"),
                *_called(one.attributes, "false_computation"),
            ]
            branches = [_part(branch, computations, done) for branch in names]
            part.loops.append((1, max(branches, key=lambda branch: branch.weight)))
        elif opcode in ("fusion", "call", "async-start"):
            for called in _called(one.attributes, "calls") + _called(one.attributes, "to_apply"):
                _add(part, called, computations, done, seen, inner or opcode != "call")
        elif kind := _kind(opcode):
            # Steps of one asynchronous collective stand in several fusions, under one channel.
            channel = re.search(r"channel_id=(\d+)", one.attributes)
            if channel is None or channel.group(1) not in seen:
                seen.add(channel.group(1) if channel else one.name)
                part.collectives.append(_collective(one, kind, name, by_name))
        elif opcode == "dot":
            part.flops += 2 * _elements(one.shape) * _contracted(one, shapes, one.attributes)
        elif opcode == "convolution":
            part.flops += _convolution(one, shapes)
        elif opcode == "custom-call":
            part.flops += _custom(one, shapes, part)
        if not inner and opcode not in _FREE:
            part.moved += _moved(one, shapes, computations)


def _kind(opcode: str) -> str | None:
    bare = opcode.removesuffix("-start")
    return bare if bare in KINDS else None


def _trips(loop: Instruction, computations) -> int | None:
    if match := re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', loop.attributes):
        return int(match.group(1))
    # Else the condition: a counter from zero, compared with a constant.
    condition = computations[_called(loop.attributes, "condition")[0]]
    constants = [
        int(one.inside)
        for one in condition
        if one.opcode == "constant"
        and re.fullmatch(r"-?\d+", one.inside)
        and one.shape.startswith(("s32[]", "s64[]", "u32[]"))
    ]
    if len(constants) != 1:
        return None
    counter = [one for one in condition if one.opcode == "get-tuple-element"]
    number = re.search(r"index=(\d+)", counter[0].attributes) if len(counter) == 1 else None
    step = (
        _step(computations, _called(loop.attributes, "body")[0], int(number.group(1)))
        if number
        else 1
    )
    return -(-constants[0] // step)


def _step(computations, body: str, number: int) -> int:
    """What a loop adds to its counter: unrolled loops count in twos."""
    inside = {one.name: one for one in computations[body]}
    root = computations[body][-1]
    if root.opcode != "tuple":
        return 1
    added = inside[root.operands[number]]
    around = [inside[name] for name in added.operands]
    for called in _called(added.attributes, "calls"):
        around += computations[called]
    steps = [int(one.inside) for one in around if one.opcode == "constant" and one.inside.isdigit()]
    return max(steps[0], 1) if len(steps) == 1 else 1


def _collective(
    one: Instruction, kind: str, computation: str, body: dict[str, Instruction]
) -> Collective:
    given = sum(size(body[name].shape) for name in one.operands)
    moved = (
        max(given, size(one.shape))
        if "-start" not in one.opcode
        else max(given, size(one.shape) - given if kind != "collective-permute" else given)
    )
    if kind == "all-reduce":
        moved = given
        if computation.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"
    named = re.search(r'op_name="([^"]*)"', one.attributes)
    source = named.group(1) if named else ""
    if not named and kind == "all-reduce" and all(_shard(o, body) for o in one.operands):
        source = GATHERED
    return Collective(kind, moved, _group(one.attributes), 1, source)


def _shard(name: str, body: dict[str, Instruction]) -> bool:
    """Whether a value is a shard laid into zeros of the whole: their sum over devices gathers it,
    which is how XLA:TPU gathers FSDP's weights on a torus of three axes."""
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
        places = [list(axes).index(name) for name in axes if name not in chosen]
        places += [list(axes).index(name) for name in axes if name in chosen]
        members = _strided(list(axes.values()), places)[: prod(axes[name] for name in chosen)]
        if dims is None:
            return tuple(members)
        dims = [int(n) for n in dims.split(",")]
        order = [int(n) for n in order.split(",")] if order else list(range(len(dims)))
        ids = _strided(dims, order)
        return tuple(ids[place] for place in members)
    raise ValueError(f"a collective's group is written in an unknown way: {attributes[:200]}")


def _strided(dims: list[int], order: list[int]) -> list[int]:
    """0..n of a grid `dims`, its axes transposed to `order`, in a row."""
    strides = [prod(dims[axis + 1 :]) for axis in range(len(dims))]
    places = [0]
    for axis in order:
        places = [place + step * strides[axis] for place in places for step in range(dims[axis])]
    return places


def _elements(shape: str) -> int:
    return prod(arrays(shape)[0][1])


def _contracted(one: Instruction, shapes, attributes: str) -> int:
    left = arrays(shapes[one.operands[0]])[0][1]
    match = re.search(r'lhs_contracting_dim(?:s=\{|ensions":\[)([^}\]]*)', attributes)
    if match is None:  # an outer product contracts nothing, and is written without
        return 1
    return prod(left[int(n)] for n in re.findall(r"\d+", match.group(1)))


def _custom(one: Instruction, shapes, part: Part) -> float:
    if "lhs_contracting_dimensions" in one.attributes:  # cuBLAS
        return 2 * _elements(one.shape) * _contracted(one, shapes, one.attributes)
    target = re.search(r'custom_call_target="([^"]*)"', one.attributes)
    target = target.group(1) if target else ""
    if "fmha" in target or target == "tpu_custom_call":
        part.opaque.append(target)
    return 0.0


def _convolution(one: Instruction, shapes) -> float:
    """Products that fall on padding or between dilated rows are none: a batched product is written
    as a convolution most of whose window is padding."""
    left, right = (arrays(shapes[name])[0][1] for name in one.operands[:2])
    out = arrays(one.shape)[0][1]
    labels = re.search(r"dim_labels=([^_]+)_([^-]+)->([^,\s]+)", one.attributes).groups()
    spatial = [mark for mark in labels[2] if mark.isdigit()]

    def at(numbers, label, mark):
        return numbers[label.index(mark)]

    window = re.search(r"window=\{([^}]*)\}", one.attributes)
    fields = dict(re.findall(r"(\w+)=(\S+)", window.group(1))) if window else {}

    def field(name, number, default):
        return fields[name].split("x")[number] if name in fields else default

    total = 2 * at(out, labels[2], "b") * at(out, labels[2], "f") * at(right, labels[1], "i")
    for mark in spatial:
        number = int(mark)
        low = int(field("pad", number, "0_0").split("_")[0])
        stride, spread, gap = (
            int(field(name, number, 1)) for name in ("stride", "lhs_dilate", "rhs_dilate")
        )
        reach = (at(left, labels[0], mark) - 1) * spread
        valid = 0
        for tap in range(at(right, labels[1], mark)):
            first = tap * gap - low
            if stride % spread == 0:  # all rows fall alike
                if first % spread == 0:
                    last = at(out, labels[2], mark) - 1
                    start = max(0, -(first // stride))
                    valid += max(0, min(last, (reach - first) // stride) - start + 1)
            else:
                valid += sum(
                    0 <= row * stride + first <= reach and (row * stride + first) % spread == 0
                    for row in range(at(out, labels[2], mark))
                )
        total *= valid
    return total


def _moved(one: Instruction, shapes, computations) -> int:
    """Bytes of memory it reads and writes. Of what is only sliced, the slice counts."""
    if one.opcode == "dynamic-slice":
        return 2 * size(one.shape, True)
    if one.opcode == "dynamic-update-slice":
        return 2 * size(shapes[one.operands[1]], True)
    if one.opcode in ("copy-start", "slice-start"):
        return size(arrays_text(one.shape, 1 if one.opcode == "slice-start" else 0)) * 1
    total = size(one.shape, True)
    if one.opcode != "fusion":
        return total + sum(size(shapes[name], True) for name in one.operands)
    body = computations[_called(one.attributes, "calls")[0]]
    inner = {item.name: item for item in body}
    numbers = {int(item.inside): item.name for item in body if item.opcode == "parameter"}
    for number, name in enumerate(one.operands):
        whole, own = size(shapes[name], True), numbers.get(number)
        users = [item for item in body if own in item.operands]
        while len(users) == 1 and users[0].opcode == "bitcast":
            own = users[0].name
            users = [item for item in body if own in item.operands]
        if (
            whole
            and users
            and all(
                item.opcode in ("dynamic-slice", "gather") and item.operands[0] == own
                for item in users
            )
        ):
            whole = min(whole, sum(size(item.shape) for item in users))
        elif (
            whole
            and users
            and all(
                item.opcode == "dynamic-update-slice" and item.operands[0] == own for item in users
            )
        ):
            # In place: the slice is read and written, the rest stays.
            update = sum(size(inner[item.operands[1]].shape) for item in users)
            total, whole = total - whole + update, 0
        total += whole
    return max(total, 0)


def arrays_text(shape: str, number: int) -> str:
    """The text of one array of a tuple."""
    return [match.group(0) for match in _ARRAY.finditer(shape)][number]
