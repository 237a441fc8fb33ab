"""Descriptions of GPUs for XLA's compiler (`GpuTargetConfigProto` text), to compile without one.

Sources: NVIDIA's Hopper white paper and the CUDA C++ Programming Guide, compute capability 9.0;
memory sizes as the GPUs report them.
"""

import os
from collections.abc import Mapping

from gve_jax.errors import UserError
from gve_jax.hardware.chips import Chip

# JAX allocates this part of a GPU's memory for its arrays unless a variable overrides it
# (docs.jax.dev, "GPU memory allocation").
MEMORY_FRACTION = 0.75
_FRACTIONS = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")  # new and old name

_HOPPER = {
    "threads_per_block_limit": 1024,
    "threads_per_warp": 32,
    "threads_per_core_limit": 2048,
    "shared_memory_per_block": 48 << 10,
    "shared_memory_per_block_optin": 227 << 10,
    "shared_memory_per_core": 228 << 10,
    "registers_per_core_limit": 1 << 16,
    "registers_per_block_limit": 1 << 16,
    "core_count": 132,
    "fpus_per_core": 128,
    "block_dim_limit_x": 2**31 - 1,
    "block_dim_limit_y": 2**16 - 1,
    "block_dim_limit_z": 2**16 - 1,
    "l2_cache_size": 50 << 20,
    "clock_rate_ghz": 1.98,
}
_CARDS = {
    "h100": {"device_memory_size": 84_942_979_072, "memory_bandwidth": 3_352_320_000_000},
    "h200": {"device_memory_size": 151_397_597_184, "memory_bandwidth": 4_800_000_000_000},
}


def usable_fraction(environment: Mapping[str, str] = os.environ) -> float:
    """Returns the part of a GPU's memory that JAX gives to a program with these variables.

    Raises:
      UserError: a variable is not a number above 0 and at most 1.
    """
    if environment.get("XLA_PYTHON_CLIENT_ALLOCATOR", "").lower() == "platform":
        return 1.0
    for name in _FRACTIONS:
        if text := environment.get(name):
            try:
                fraction = float(text)
            except ValueError:
                fraction = 0.0
            if not 0 < fraction <= 1:
                raise UserError(f"{name}={text} must be a number above 0 and at most 1")
            return fraction
    return MEMORY_FRACTION


def target_config(chip: Chip) -> str | None:
    """Returns the description of `chip`, or None if there is none."""
    if chip.name not in _CARDS:
        return None
    figures = "\n".join(f"  {key}: {value}" for key, value in (_HOPPER | _CARDS[chip.name]).items())
    return (
        f"gpu_device_info {{\n{figures}\n"
        "  cuda_compute_capability { major: 9 }\n"
        "}\n"
        'platform_name: "CUDA"\n'
        "dnn_version_info { major: 9 minor: 10 }\n"
        f'device_description_str: "NVIDIA {chip.name.upper()}"\n'
    )
