"""Devices of a machine that is not here, from its name: `v5p:4x4x4`."""

import re
from importlib.util import find_spec
from typing import NamedTuple

from gve_jax.errors import UserError
from gve_jax.hardware.chips import CHIPS, Chip
from gve_jax.hardware.gpus import target_config, usable_fraction

GPU_NAMES = "1x1xN: hosts are not modelled, N GPUs share NVLink"


class Topology(NamedTuple):
    """A machine: its chip, the grid of its chips, and JAX's compile-only devices of them."""

    name: str
    chip: Chip
    grid: tuple[int, ...]
    devices: list

    @property
    def memory(self) -> float:
        """Bytes of a device that a program may use: on a GPU the part that JAX takes."""
        whole = self.chip.memory
        return whole * usable_fraction() if self.chip.platform == "gpu" else whole


def parse(name: str) -> tuple[Chip, tuple[int, ...]]:
    """`v5p:4x4x4` -> the chip and its grid.

    Raises:
      UserError: another form, an unknown chip, a grid with too many or too few axes.
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
            f"--topology {name}: a grid of {chip.name} has {axes} axes, each at least 1"
        )
    if chip.platform == "gpu" and grid[:2] != (1, 1):
        raise UserError(f"--topology {name}: GPUs are {GPU_NAMES}")
    return chip, grid


def open_topology(name: str) -> Topology:
    """The machine, without its hardware.

    Raises:
      UserError: as `parse`; no such machine exists; the compiler for it is not installed.
    """
    chip, grid = parse(name)
    if chip.platform == "tpu":
        return Topology(name, chip, grid, _tpu(name, chip))
    return Topology(name, chip, grid, _gpu(name, chip, grid))


def _tpu(name: str, chip: Chip) -> list:
    if find_spec("libtpu") is None:
        raise UserError(f"--topology {name}: libtpu is not installed: pip install 'gve_jax[tpu]'")
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name).devices)
    except Exception as error:  # jaxlib's own, of several types
        raise UserError(f"--topology {name}: {_first_line(error)}") from error


def _gpu(name: str, chip: Chip, grid: tuple[int, ...]) -> list:
    if find_spec("jax_cuda13_plugin") is None and find_spec("jax_cuda12_plugin") is None:
        raise UserError(
            f"--topology {name}: JAX's CUDA plugin is not installed: pip install 'gve_jax[cuda]'"
        )
    from jax.experimental import topologies

    target = target_config(chip)
    if target is None:
        raise UserError(
            f"--topology {name}: there is no description of a {chip.name} to compile for"
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
