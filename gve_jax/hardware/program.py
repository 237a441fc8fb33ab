"""The real training step of a configuration, compiled for devices that are not here."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import NamedSharding
from ml_collections import ConfigDict

from gve_jax.distributed.sharding import ROWS
from gve_jax.errors import UserError
from gve_jax.hardware.topology import Topology
from gve_jax.inputs.batch import Bucket
from gve_jax.learning.step import make_train_step
from gve_jax.model.batch import Batch, batch_sizes
from gve_jax.running.sections import largest_batch_size, read_settings
from gve_jax.running.setup import StepSetup


class DeviceOutOfMemory(Exception):
    """The compiler itself found that a program needs more memory than a device has."""


@contextlib.contextmanager
def catch_compile_oom() -> Iterator[None]:
    """`DeviceOutOfMemory`, in one line, of what TPU's compiler raises instead of a program."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        line = str(error).splitlines()[0].removeprefix("RESOURCE_EXHAUSTED: ")
        raise DeviceOutOfMemory(line) from error


@dataclasses.dataclass(frozen=True)
class Shapes:
    """What each side of a pair is padded to."""

    query: Bucket
    positive: Bucket
    negatives: int = 0  # of the positive's shape

    @property
    def sides(self) -> tuple[Bucket, ...]:
        return (self.query, self.positive, *[self.positive] * self.negatives)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """One batch size, compiled."""

    batch_size: int
    chunk: int
    gradients: jax.stages.Compiled
    update: jax.stages.Compiled
    seconds: float


class Program(StepSetup):
    """Model, optimizer, loss and mesh of a configuration, as training makes them; no data, no
    weights.

    Raises:
      UserError: a field that does not fit, by name, before anything compiles.
    """

    def __init__(self, config: ConfigDict, topology: Topology):
        config = read_settings(config)
        if config.quantize is not None:
            raise UserError("config.quantize is for one device; plan without it")
        super().__init__(config, devices=topology.devices)
        self.topology = topology
        self.batch_size = largest_batch_size(config)
        self.check_batch(self.batch_size, config.gradcache_chunk)

    def shapes(
        self, query: str | None = None, positive: str | None = None, negatives: int = 0
    ) -> Shapes:
        """The declared shapes to plan, `PAIRSxTOKENS`; by default the paper's protocol at its
        largest: a video of `inputs.num_frames` with the longest text declared for it, sought by the
        shortest text."""
        frames = -(-self.config.inputs.num_frames // self.model.vision.temporal_patch_size)
        declared = self.buckets.shapes
        videos = [shape for shape in declared if shape[0] == frames] or [declared[-1]]
        return Shapes(
            self._bucket("query", query, declared[0]),
            self._bucket("positive", positive, max(videos)),
            negatives,
        )

    def _bucket(self, flag: str, given: str | None, default: tuple[int, int]) -> Bucket:
        shape = default
        if given is not None:
            try:
                pairs, tokens = map(int, given.split("x"))
            except ValueError as error:
                raise UserError(f"--{flag} {given!r} is not PAIRSxTOKENS, such as 4x896") from error
            if (pairs, tokens) not in self.buckets.shapes:
                known = ", ".join(f"{a}x{b}" for a, b in self.buckets.shapes)
                raise UserError(f"--{flag} {given} is not declared in config.buckets: {known}")
            shape = (pairs, tokens)
        # The smallest frame size with all patches: a strip of a picture alone needs more windows.
        frame = min(size for size in self.buckets.frame_sizes if size[0] == self.buckets.patches)
        return Bucket(shape[0], *(frame if shape[0] else (0, 0)), shape[1])

    def compile(self, shapes: Shapes, batch_size: int, chunk: int) -> Compiled:
        """Both programs of the step, gradients and update.

        Raises:
          DeviceOutOfMemory: they need more memory than a device has, and the compiler says so.
        """
        began = time.perf_counter()
        with jax.set_mesh(self.mesh), catch_compile_oom():
            step = make_train_step(
                self.model, self.tx, self.loss, self.mesh, chunk=chunk, seed=self.config.seed
            )
            arrays, number = self.arrays(shapes, batch_size), jax.ShapeDtypeStruct((), np.int32)
            lowered = step.gradients.lower(
                self.abstract["params"], self.abstract_frozen, arrays, number
            )
            gradients = lowered.compile()
            grads = jax.tree.map(
                lambda leaf, sharding: jax.ShapeDtypeStruct(
                    leaf.shape, leaf.dtype, sharding=sharding
                ),
                lowered.out_info[0],
                gradients.output_shardings[0],
            )
            update = step.update.lower(self.abstract, grads).compile()
        return Compiled(batch_size, chunk, gradients, update, time.perf_counter() - began)

    def arrays(self, shapes: Shapes, size: int) -> dict:
        """What the step takes, as shapes with shardings."""
        rows = NamedSharding(self.mesh, ROWS)
        ids = jax.ShapeDtypeStruct((size,), np.int32, sharding=rows)
        sides = [
            Batch.abstract(batch_sizes(size, bucket, self.model.vision), rows)
            for bucket in shapes.sides
        ]
        return {
            "query": sides[0],
            "positive": sides[1],
            "negatives": sides[2:],
            "valid": jax.ShapeDtypeStruct((size,), np.bool_, sharding=rows),
            "query_id": ids,
            "positive_id": ids,
            "negative_id": jax.ShapeDtypeStruct((size, len(sides) - 2), np.int32, sharding=rows),
        }


def memory(program: Program, compiled: Compiled, shapes: Shapes) -> dict[str, int]:
    """Bytes of one device at the fullest moment of a step, by what holds them."""
    held = {
        "weights that train": _held(program.abstract["params"]),
        "frozen weights": _held(program.abstract_frozen),
        "moments": _held(program.abstract["opt"]),
        "batch": _held(program.arrays(shapes, compiled.batch_size)),
    }
    stats = compiled.gradients.memory_analysis(), compiled.update.memory_analysis()
    gradients = stats[0].output_size_in_bytes
    held["gradients"] = gradients
    # The update runs after the other program's temporaries are free; the code of both stays.
    held["temporaries"] = max(stats[0].temp_size_in_bytes, stats[1].temp_size_in_bytes)
    held["code"] = sum(s.generated_code_size_in_bytes for s in stats)
    return held


def _held(tree) -> int:
    """Bytes of one device's shards."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def largest(
    program: Program,
    shapes: Shapes,
    planned: Compiled,
    total: Callable[[Compiled], int],
    note: Callable[[str], None],
) -> tuple[int, int]:
    """(rows, bytes): the most rows a device encodes at once whose step fits, and what that needs.

    With a GradCache chunk the rows are the chunk's, else the batch's. Memory is a straight line
    through two compiled sizes; the answer is compiled, too, and lowered until it does fit (twice at
    most; then the planned or the smallest size that did).
    """
    room = program.topology.memory
    chunked = planned.chunk > 0

    def at(rows: int) -> tuple[int, int]:
        count = rows * program.rows
        batch = -(-planned.batch_size // count) * count if chunked else count
        note(f"compiling {rows} rows a device")
        try:
            return rows, total(program.compile(shapes, batch, count if chunked else 0))
        except DeviceOutOfMemory:
            return rows, math.inf

    rows = (planned.chunk or planned.batch_size) // program.rows
    known = dict([(rows, total(planned)), at(1 if rows > 1 else 2)])
    (few, less), (many, more) = sorted(known.items())
    slope = max((more - less) / (many - few), 1.0)
    guess = int(few + (room - less) / slope)
    for _ in range(3):
        if guess < 1 or guess in known:
            break
        known.update([at(guess)])
        if known[guess] <= room:
            break
        if known[guess] == math.inf:  # by how much is not known
            guess = (max((n for n, size in known.items() if size <= room), default=0) + guess) // 2
        else:
            guess = min(guess - 1, int(guess - (known[guess] - room) / slope))
    return max(((n, size) for n, size in known.items() if size <= room), default=(0, 0))
