"""Eight virtual CPU devices, so that shardings are real; set before any test uses JAX."""

import random

import jax
import numpy as np
import pytest
from absl import flags

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
# TFDS and ml_collections read absl flags, which only a command line would have parsed.
flags.FLAGS.mark_as_parsed()


@pytest.fixture(autouse=True)
def seeds() -> None:
    random.seed(0)
    np.random.seed(0)


@pytest.fixture
def mesh() -> jax.sharding.Mesh:
    """All three axes of the library's mesh, two devices each."""
    return jax.make_mesh(
        (2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3
    )
