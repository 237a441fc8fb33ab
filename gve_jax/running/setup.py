"""Mesh, model, loss, optimizer and abstract state of a configuration."""

import dataclasses
from collections.abc import Sequence

import jax

from gve_jax.checkpoints.pretrained import PretrainedModel
from gve_jax.distributed.sharding import make_mesh
from gve_jax.learning import state
from gve_jax.learning.gradcache import check_batch_size, check_chunk
from gve_jax.learning.optimizer import make_optimizer
from gve_jax.running.sections import Settings, model_config


class StepSetup:
    """The parts of a training step, for the trainer and the planner. Reads no files.

    Args:
      base: the opened `config.pretrained`, if any.
      devices: devices of the mesh (default: all devices of this job).

    Raises:
      UserError: a field, which the message names, is invalid.
    """

    def __init__(
        self,
        config: Settings,
        base: PretrainedModel | None = None,
        devices: Sequence[jax.Device] | None = None,
    ):
        self.config, self.loss, self.buckets = config, config.loss, config.buckets
        self.mesh = make_mesh(dataclasses.asdict(config.mesh), devices)
        self.rows = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        self.model = model_config(config, base)
        self.tx = make_optimizer(config.optimizer, config.steps)
        self.abstract, self.abstract_frozen = state.abstract_state(
            self.model, self.tx, self.mesh, config.optimizer.rates, self.loss
        )

    def check_batch(self, batch_size: int, chunk: int) -> None:
        """Raises UserError if a batch or its GradCache chunk cannot be sharded over the mesh."""
        check_batch_size(batch_size, self.rows)
        check_chunk(chunk, batch_size, self.mesh)
