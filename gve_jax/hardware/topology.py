"""Compile-only devices of another machine, from its name: `v5p:4x4x4`."""

import re
from importlib.util import find_spec
from typing import NamedTuple

from gve_jax.errors import UserError, install_command
from gve_jax.hardware.chips import CHIPS, Chip
from gve_jax.hardware.gpus import target_config, usable_fraction

GPU_NAMES = "1x1xN: hosts are not modelled, N GPUs share NVLink"


class Topology(NamedTuple):
    """A machine: its kind of chip, the grid of chips, and their compile-only JAX devices."""

    name: str
    chip: Chip
    grid: tuple[int, ...]
    devices: list

    @property
    def memory(self) -> float:
        """Bytes per device that a program may use: on a GPU, the part that JAX allocates."""
        total = self.chip.memory
        return total * usable_fraction() if self.chip.platform == "gpu" else total


def parse(name: str) -> tuple[Chip, tuple[int, ...]]:
    """Parses `v5p:4x4x4` into the chip and the grid.

    Raises:
      UserError: the name has another form, an unknown chip, or a grid of wrong dimensions.
    """
    match = re.fullmatch(r"([a-z0-9]+):(\d+(?:x\d+)*)", name)
    if match is None:
        raise UserError(f"--topology {name!r} is not of the form CHIP:AxBxC, such as v5p:4x4x4")
    chip = CHIPS.get(match.group(1))
    if chip is None:
        raise UserError(
            f"--topology {name}: unknown chip {match.group(1)!r}; known: {', '.join(CHIPS)}"
        )
    grid = tuple(int(n) for n in match.group(2).split("x"))
    axes = chip.axes or 3
    if len(grid) != axes or min(grid) < 1:
        raise UserError(
            f"--topology {name}: a grid of {chip.name} has {axes} axes, each of size >= 1"
        )
    if chip.platform == "gpu" and grid[:2] != (1, 1):
        raise UserError(f"--topology {name}: the grid of GPUs must be {GPU_NAMES}")
    return chip, grid


def open_topology(name: str) -> Topology:
    """Opens the description of a machine; its hardware is not needed.

    Raises:
      UserError: as `parse`; no such machine exists; its compiler is not installed.
    """
    chip, grid = parse(name)
    if chip.platform == "tpu":
        return Topology(name, chip, grid, _tpu(name, chip))
    return Topology(name, chip, grid, _gpu(name, chip, grid))


def _tpu(name: str, chip: Chip) -> list:
    if find_spec("libtpu") is None:
        raise UserError(f"--topology {name}: libtpu is not installed: {install_command('tpu')}")
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name).devices)
    except Exception as error:  # jaxlib raises several types
        raise UserError(f"--topology {name}: {_first_line(error)}") from error


def _gpu(name: str, chip: Chip, grid: tuple[int, ...]) -> list:
    if find_spec("jax_cuda13_plugin") is None and find_spec("jax_cuda12_plugin") is None:
        raise UserError(
            f"--topology {name}: JAX's CUDA plugin is not installed: {install_command('cuda')}"
        )
    from jax.experimental import topologies

    target = target_config(chip)
    if target is None:
        raise UserError(
            f"--topology {name}: {chip.name} is not described in gve_jax/hardware/gpus.py"
        )
    shape = "x".join(map(str, grid))
    try:
        return list(
            topologies.get_topology_desc(
                shape, "cuda", topology=shape, target_config=target
            ).devices
        )
    except Exception as error:
        raise UserError(f"--topology {name}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
