"""The device mesh, and the table of each parameter's sharding and weight decay."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gve_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
ROW_AXES = ("data", "fsdp")  # mesh axes over which the rows of a batch are sharded
ROWS = P(ROW_AXES)


class Rule(NamedTuple):
    """Sharding and weight decay of the parameters whose path contains a match of `pattern`."""

    pattern: str
    spec: P
    decays: bool


# First match wins and every parameter must match. Stacked layers have a leading layer axis, which
# is never sharded. A dimension that is not a multiple of its mesh axis is replicated. Matrices
# decay; embeddings, norms and biases do not. A similar table, `config.optimizer.rates`, decides
# which parameters train and at which learning rate.
_RULES = (
    (r"language/embed_tokens$", P("tensor", "fsdp"), False),
    (r"language/layers/.*/(q|k|v|gate|up)_proj/kernel$", P(None, "fsdp", "tensor"), True),
    (r"language/layers/.*/(o|down)_proj/kernel$", P(None, "tensor", "fsdp"), True),
    (r"visual/blocks/.*/(qkv|gate_proj|up_proj)/kernel$", P(None, "fsdp", "tensor"), True),
    (r"visual/blocks/.*/(proj|down_proj)/kernel$", P(None, "tensor", "fsdp"), True),
    (r"visual/patch_embed/kernel$", P(None, "fsdp"), True),
    (r"visual/merger/mlp_0/kernel$", P("fsdp", "tensor"), True),
    (r"visual/merger/mlp_2/kernel$", P("tensor", "fsdp"), True),
    (r".*/(bias|weight)$", P(), False),
    # LoRA factors are sharded as their kernel: `a` on its input dimension, `b` on its output.
    (r"/((q|k|v|gate|up)_proj|qkv)/lora/a$", P(None, "fsdp"), True),
    (r"/((q|k|v|gate|up)_proj|qkv)/lora/b$", P(None, None, "tensor"), True),
    (r"/((o|down)_proj|proj)/lora/a$", P(None, "tensor"), True),
    (r"/((o|down)_proj|proj)/lora/b$", P(None, None, "fsdp"), True),
    (r"visual/merger/.*/lora/[ab]$", P(), True),
    (r"/lora/magnitude$", P(), False),  # of DoRA, until it is merged
    (r"^loss/log_temperature$", P(), False),
)
RULES: tuple[Rule, ...] = tuple(Rule(*rule) for rule in _RULES)


def make_mesh(axes: Mapping[str, int], devices: Sequence | None = None) -> Mesh:
    """Returns a mesh `(data, fsdp, tensor)`; one axis may be -1, for all remaining devices.

    Args:
      devices: default: all devices of this run. The planner passes those of another machine.

    Raises:
      UserError: unknown axes, or sizes that do not multiply to the number of devices.
    """
    unknown = sorted(set(axes) - set(AXES))
    if unknown:
        raise UserError(f"mesh.{unknown[0]}: unknown axis; the axes are {', '.join(AXES)}")
    count = jax.device_count() if devices is None else len(devices)
    sizes = [int(axes.get(axis, 1)) for axis in AXES]
    if sizes.count(-1) == 1:
        known = -int(np.prod(sizes))
        sizes[sizes.index(-1)] = count // known if known and count % known == 0 else 0
    if min(sizes) < 1 or int(np.prod(sizes)) != count:
        requested = ", ".join(f"{axis}={axes.get(axis, 1)}" for axis in AXES)
        raise UserError(f"mesh ({requested}) must multiply to the number of devices, {count}")
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def local_mesh() -> Mesh | None:
    """The mesh on which a host embeds its share of a job; None (all devices) for a single host."""
    return make_mesh({"data": -1}, jax.local_devices()) if jax.process_count() > 1 else None


def path_name(path) -> str:
    """Joins a JAX key path: `language/layers/mlp/...`."""
    return "/".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path)


def rule_of(name: str) -> Rule:
    """Returns the rule of a parameter path.

    Raises:
      ValueError: no rule matches it.
    """
    for rule in RULES:
        if re.search(rule.pattern, name):
            return rule
    raise ValueError(f"no rule of gve_jax.distributed.sharding matches parameter {name}")


def param_shardings(params, mesh: Mesh):
    """Returns the NamedShardings of a parameter tree (arrays or their shapes), by `RULES`.

    Raises:
      ValueError: no rule matches a parameter.
    """

    def sharding(path, leaf):
        spec = rule_of(path_name(path)).spec
        return NamedSharding(mesh, _fitting(spec, leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(sharding, params)


def _fitting(spec: P, shape: tuple[int, ...], mesh: Mesh) -> P:
    return P(
        *(
            axis if axis and size % mesh.shape[axis] == 0 else None
            for axis, size in zip(spec, shape, strict=False)
        )
    )


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def place_batch(arrays, mesh: Mesh):
    """Makes global arrays, sharded over (data, fsdp), from each process's rows [rows, ...]."""
    sharding = NamedSharding(mesh, ROWS)
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), arrays)
