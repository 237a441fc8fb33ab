"""FLOPs and collectives of compiled programs with loops, against closed forms."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from gve_jax.hardware import hlo

ROWS, WIDE, LAYERS, REPEATS = 16, 64, 5, 3


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def compiled(function, mesh, *shapes_and_specs) -> hlo.Computation:
    arguments = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
        for shape, spec in shapes_and_specs
    ]
    return hlo.read(jax.jit(function).lower(*arguments).compile().as_text())


def test_nested_loops_multiply_flops_and_collectives(mesh):
    """FSDP: each iteration of the outer loop gathers the kernel of every layer."""

    def layer(x, kernel):
        gathered = jax.lax.with_sharding_constraint(kernel, NamedSharding(mesh, P()))
        return jnp.tanh(x @ gathered), None

    def repeated(x, kernels):
        def all_layers(x, _):
            return jax.lax.scan(layer, x, kernels)[0], None

        return jax.lax.scan(all_layers, x, length=REPEATS)[0]

    program = compiled(
        repeated,
        mesh,
        ((ROWS, WIDE), P(("data", "fsdp"))),
        ((LAYERS, WIDE, WIDE), P(None, "fsdp")),
    )
    (gather,) = hlo.collectives(program)
    assert (gather.kind, gather.times) == ("all-gather", REPEATS * LAYERS)
    assert len(gather.group) == 4
    assert gather.sent == WIDE * WIDE * 4 * 3 / 4  # each device holds a quarter
    executed = sum(times * part.flops for times, part in program.walk())
    assert executed == REPEATS * LAYERS * 2 * (ROWS / 8) * WIDE * WIDE
    assert not any(part.unknown for _, part in program.walk())


def test_an_all_reduce_sends_its_bytes_twice(mesh):
    def total(x, kernel):
        return jax.lax.with_sharding_constraint(x @ kernel, NamedSharding(mesh, P()))

    program = compiled(total, mesh, ((ROWS, WIDE), P(None, "fsdp")), ((WIDE, WIDE), P("fsdp")))
    (reduce,) = hlo.collectives(program)
    assert (reduce.kind, reduce.times) == ("all-reduce", 1)
    assert reduce.sent == 2 * ROWS * WIDE * 4 * 3 / 4


def test_only_the_most_expensive_branch_of_a_conditional_counts(mesh):
    def either(x, kernel, flag):
        return jax.lax.cond(flag[0] > 0, lambda: x @ kernel @ kernel, lambda: x + jnp.sum(kernel))

    program = compiled(either, mesh, ((ROWS, WIDE), P("data")), ((WIDE, WIDE), P()), ((1,), P()))
    executed = sum(times * part.flops for times, part in program.walk())
    assert executed == 2 * 2 * ROWS / 2 * WIDE * WIDE


GROUPS = {
    "replica_groups={{0,2},{1,3}}, x": (0, 2),
    "replica_groups=[2,4]<=[8], x": (0, 1, 2, 3),
    "replica_groups=[4,2]<=[2,4]T(1,0), x": (0, 4),
    "replica_groups=[2,2,2]<=[2,2,2]T(2,1,0), x": (0, 4, 2, 6),
    "replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, x": (0, 2, 4, 6),
    "replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0','axis_1'}, x": tuple(range(8)),
    "replica_groups=mesh['a'=1,'b'=4,'c'=2], device_ids=([2,4]T(1,0)) {'b'}, x": (0, 1, 2, 3),
    "source_target_pairs={{0,1},{1,0}}": (0, 1),
}


@pytest.mark.parametrize("text", GROUPS)
def test_groups_are_parsed_in_every_notation(text):
    assert hlo._group(text) == GROUPS[text]


# As XLA:TPU writes them: a fused collective that continues in a second fusion with the same
# channel, and a loop whose trip count is stated only by its condition.
TPU = """HloModule m
%step (p: bf16[8,64]) -> bf16[16,64] {
  %p = bf16[8,64]{1,0} parameter(0)
  ROOT %g = bf16[16,64]{1,0:T(8,128)(2,1)S(1)} all-gather(%p), channel_id=7, replica_groups={{0,1}}
}
%more (p: bf16[8,64]) -> bf16[16,64] {
  %p = bf16[8,64]{1,0} parameter(0)
  ROOT %g = bf16[16,64]{1,0} all-gather(%p), channel_id=7, replica_groups={{0,1}}
}
%body (t: (s32[], bf16[8,64])) -> (s32[], bf16[8,64]) {
  %t = (s32[], bf16[8,64]{1,0}) parameter(0)
  %x = bf16[8,64]{1,0} get-tuple-element(%t), index=1
  %a = bf16[16,64]{1,0} fusion(%x), kind=kOutput, calls=%step
  %b = bf16[16,64]{1,0} fusion(%x), kind=kOutput, calls=%more
  ROOT %r = (s32[], bf16[8,64]{1,0}) tuple(%t, %x)
}
%condition (t: (s32[], bf16[8,64])) -> pred[] {
  %t = (s32[], bf16[8,64]{1,0}) parameter(0)
  %n = s32[] constant(9)
  %i = s32[] get-tuple-element(%t), index=0
  ROOT %less = pred[] compare(%i, %n), direction=LT
}
ENTRY %main (t: (s32[], bf16[8,64])) -> (s32[], bf16[8,64]) {
  %t = (s32[], bf16[8,64]{1,0}) parameter(0)
  ROOT %w = (s32[], bf16[8,64]{1,0}) while(%t), condition=%condition, body=%body
}
"""


def test_a_collective_in_two_fusions_counts_once_and_trip_counts_come_from_conditions():
    (gather,) = hlo.collectives(hlo.read(TPU))
    assert (gather.kind, gather.times, gather.sent) == ("all-gather", 9, 8 * 64 * 2)


GATHER = """
ENTRY %main (a: bf16[16,64], b: bf16[16,64]) -> bf16[16,64] {
  %a = bf16[16,64]{1,0} parameter(0)
  %b = bf16[16,64]{1,0} parameter(1)
  %laid_dynamic-update-slice_fusion = bf16[16,64]{1,0} fusion(%a), kind=kLoop, calls=%lay
  %copy-start.1 = (bf16[16,64]{1,0:S(1)}, bf16[16,64]{1,0}, u32[]) copy-start(%laid_dynamic-update-slice_fusion)
  %copy-done.1 = bf16[16,64]{1,0:S(1)} copy-done(%copy-start.1)
  %whole = bf16[16,64]{1,0} all-reduce(%copy-done.1), channel_id=1, replica_groups={{0,1,2,3}}
  ROOT %sum = bf16[16,64]{1,0} all-reduce(%b), channel_id=2, replica_groups={{0,1,2,3}}
}
%lay (a: bf16[16,64]) -> bf16[16,64] {
  ROOT %a = bf16[16,64]{1,0} parameter(0)
}
"""  # noqa: E501


def test_a_gather_that_is_written_as_a_sum_is_recognized():
    gather, total = hlo.collectives(hlo.read(GATHER))
    assert (gather.source, total.source) == (hlo.GATHERED, "")
    assert gather.sent == total.sent == 2 * 16 * 64 * 2 * 3 / 4


def test_products_on_padding_do_not_count():
    padded = hlo.Instruction(
        "c",
        "f32[5,64,32]{2,1,0}",
        "convolution",
        ("x", "w"),
        ", window={size=5 pad=4_4 rhs_reversal=1}, dim_labels=0bf_0io->0bf",
        "",
    )
    shapes = {"x": "f32[5,64,16]{2,1,0}", "w": "f32[5,16,32]{2,1,0}"}
    # Of the 5 x 5 pairs of an output row and a kernel tap, those that read an input row.
    valid = sum(0 <= row + tap - 4 < 5 for row in range(5) for tap in range(5))
    assert hlo._convolution(padded, shapes) == 2 * 64 * 32 * 16 * valid
    plain = hlo.Instruction(
        "c", "f32[64,32]{1,0}", "convolution", ("x", "w"), ", dim_labels=bf_io->bf", ""
    )
    assert hlo._convolution(plain, {"x": "f32[64,16]", "w": "f32[16,32]"}) == 2 * 64 * 32 * 16


OUTER = """
ENTRY %main (a: f32[8,16], b: f32[8,32]) -> f32[8,16,32] {
  %a = f32[8,16]{1,0} parameter(0)
  %b = f32[8,32]{1,0} parameter(1)
  ROOT %d = f32[8,16,32]{2,1,0} dot(%a, %b), lhs_batch_dims={0}, rhs_batch_dims={0}
}
"""


def test_an_outer_product_has_no_contracted_dimension():
    assert hlo.read(OUTER).flops == 2 * 8 * 16 * 32
