"""The training step of a configuration, compiled for devices of another machine."""

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import NamedSharding
from ml_collections import ConfigDict

from gve_jax.checkpoints.pretrained import PretrainedModel, open_pretrained
from gve_jax.distributed.sharding import ROWS
from gve_jax.errors import UserError
from gve_jax.hardware.topology import Topology
from gve_jax.inputs.batch import Bucket
from gve_jax.inputs.preprocess import time_steps
from gve_jax.inputs.profiles import find_profile
from gve_jax.learning.step import make_train_step
from gve_jax.model.batch import Batch, batch_sizes
from gve_jax.running.sections import Settings, largest_batch_size, read_settings
from gve_jax.running.setup import StepSetup


class DeviceOutOfMemory(Exception):
    """The compiler refused a program that needs more memory than a device has."""


@contextlib.contextmanager
def catch_compile_oom() -> Iterator[None]:
    """Turns the out-of-memory error of the TPU compiler into a `DeviceOutOfMemory` of one line."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        line = str(error).splitlines()[0].removeprefix("RESOURCE_EXHAUSTED: ")
        raise DeviceOutOfMemory(line) from error


@dataclasses.dataclass(frozen=True)
class Shapes:
    """The buckets to which the sides of a pair are padded."""

    query: Bucket
    positive: Bucket
    negatives: int = 0  # number of negatives, which have the positive's shape

    @property
    def sides(self) -> tuple[Bucket, ...]:
        return (self.query, self.positive, *[self.positive] * self.negatives)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """The step, compiled for one batch size."""

    batch_size: int
    chunk: int
    gradients: jax.stages.Compiled
    update: jax.stages.Compiled
    seconds: float


class Program(StepSetup):
    """Model, optimizer, loss and mesh of a configuration, as in training, without data and weights.

    Raises:
      UserError: a field, which the message names, is invalid; before anything compiles.
    """

    def __init__(self, config: ConfigDict, topology: Topology):
        config = read_settings(config)
        if config.quantize is not None:
            raise UserError("config.quantize works on one device; plan without it")
        super().__init__(config, self._shapes_of(config), devices=topology.devices)
        self.topology = topology
        self.batch_size = largest_batch_size(config)
        self.check_batch(self.batch_size, config.gradcache_chunk)

    @staticmethod
    def _shapes_of(config: Settings) -> PretrainedModel | None:
        """The base whose config.json has the shapes that the configuration does not state."""
        if config.pretrained is None or None not in (config.model.vision, config.model.text):
            return None
        if not os.path.isdir(os.path.expanduser(config.pretrained)):
            raise UserError(
                f"config.model states no shapes, and {config.pretrained} would be downloaded for "
                "them: plan a form that states them (not :own), or set config.pretrained to the "
                "folder of the model"
            )
        return open_pretrained(config.pretrained)

    def shapes(
        self, query: str | None = None, positive: str | None = None, negatives: int = 0
    ) -> Shapes:
        """Returns the declared shapes to plan, `PAIRSxTOKENS`.

        The default is the paper's largest case: the query is the shortest declared text, the
        positive a video of `inputs.num_frames` with the longest text declared for it.
        """
        inputs, temporal = self.config.inputs, self.model.vision.temporal_patch_size
        frames = time_steps(inputs.num_frames, find_profile(inputs.profile), temporal)
        declared = self.buckets.shapes
        videos = [shape for shape in declared if shape[0] == frames] or [declared[-1]]
        return Shapes(
            self._bucket("query", query, declared[0]),
            self._bucket("positive", positive, max(videos)),
            negatives,
        )

    def _bucket(self, flag: str, text: str | None, default: tuple[int, int]) -> Bucket:
        shape = default
        if text is not None:
            try:
                pairs, tokens = map(int, text.split("x"))
            except ValueError as error:
                raise UserError(f"--{flag} {text!r} is not PAIRSxTOKENS, such as 4x896") from error
            if (pairs, tokens) not in self.buckets.shapes:
                known = ", ".join(f"{a}x{b}" for a, b in self.buckets.shapes)
                raise UserError(f"--{flag} {text} is not declared in config.buckets: {known}")
            shape = (pairs, tokens)
        # The smallest frame size with all patches; only very wide or tall frames need more windows.
        frame = min(size for size in self.buckets.frame_sizes if size[0] == self.buckets.patches)
        return Bucket(shape[0], *(frame if shape[0] else (0, 0)), shape[1])

    def compile(self, shapes: Shapes, batch_size: int, chunk: int) -> Compiled:
        """Compiles both programs of the step, gradients and update.

        Raises:
          DeviceOutOfMemory: the compiler refuses a program that exceeds a device's memory.
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
        """The arguments of the step, as shapes with shardings."""
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
    """Peak memory of one device during a step, in bytes by use."""
    used = {
        "weights that train": _shard_bytes(program.abstract["params"]),
        "frozen weights": _shard_bytes(program.abstract_frozen),
        "moments": _shard_bytes(program.abstract["opt"]),
        "batch": _shard_bytes(program.arrays(shapes, compiled.batch_size)),
    }
    stats = compiled.gradients.memory_analysis(), compiled.update.memory_analysis()
    used["gradients"] = stats[0].output_size_in_bytes
    # The update runs after the other program has freed its temporaries; the code of both stays.
    used["temporaries"] = max(stats[0].temp_size_in_bytes, stats[1].temp_size_in_bytes)
    used["code"] = sum(s.generated_code_size_in_bytes for s in stats)
    return used


def _shard_bytes(tree) -> int:
    """Bytes of one device's shards."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def find_largest(
    program: Program,
    shapes: Shapes,
    planned: Compiled,
    total: Callable[[Compiled], int],
    note: Callable[[str], None],
) -> tuple[int, int]:
    """Finds the largest number of rows per device that fits; returns it and its bytes.

    The rows are those of the GradCache chunk, if any, else of the batch. The memory of two compiled
    sizes is extrapolated linearly. The result is compiled too, and reduced at most twice if it does
    not fit; then the largest compiled size that fits is returned.
    """
    limit = program.topology.memory
    chunked = planned.chunk > 0

    def measure(rows: int) -> tuple[int, int]:
        count = rows * program.rows
        batch = -(-planned.batch_size // count) * count if chunked else count
        note(f"compiling {rows} rows per device")
        try:
            return rows, total(program.compile(shapes, batch, count if chunked else 0))
        except DeviceOutOfMemory:
            return rows, math.inf

    rows = (planned.chunk or planned.batch_size) // program.rows
    sizes = dict([(rows, total(planned)), measure(1 if rows > 1 else 2)])
    (few, less), (many, more) = sorted(sizes.items())
    slope = max((more - less) / (many - few), 1.0)
    guess = int(few + (limit - less) / slope)
    for _ in range(3):
        if guess < 1 or guess in sizes:
            break
        sizes.update([measure(guess)])
        if sizes[guess] <= limit:
            break
        if sizes[guess] == math.inf:  # the compiler does not state the excess: bisect
            guess = (max((n for n, size in sizes.items() if size <= limit), default=0) + guess) // 2
        else:
            guess = min(guess - 1, int(guess - (sizes[guess] - limit) / slope))
    return max(((n, size) for n, size in sizes.items() if size <= limit), default=(0, 0))
