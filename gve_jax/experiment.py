"""What a configuration means: sources, inputs, model, optimizer, mesh, stages; checked up front."""

import hashlib
import json
from pathlib import Path

import grain
import jax
import numpy as np
from ml_collections import ConfigDict

from gve_jax import __version__, hosts
from gve_jax.errors import UserError
from gve_jax.files import write_json
from gve_jax.gve import GVE
from gve_jax.inputs.batch import Buckets
from gve_jax.inputs.isolation import Isolated
from gve_jax.inputs.limits import Limits
from gve_jax.inputs.preprocess import InputSpec, Preprocessor
from gve_jax.inputs.prompt import Prompt
from gve_jax.learning import pyramid
from gve_jax.learning.optimizer import make_optimizer
from gve_jax.learning.step import state_shardings
from gve_jax.model.config import ModelConfig
from gve_jax.model.embedder import init_params
from gve_jax.sharding import make_mesh
from gve_jax.streams.loader import LoadPairs, local_rows, read_ahead
from gve_jax.streams.mixture import Stage, batches
from gve_jax.streams.pairs import PairSources


class Experiment:
    """One configuration in one workdir.

    Raises UserError, naming the field, for whatever of it cannot work: before anything compiles.
    """

    def __init__(self, config: ConfigDict, workdir: Path):
        self.config, self.workdir = config, workdir
        self.mesh = make_mesh(config.mesh)
        self.sources = PairSources(config.data.pairs.format(workdir=workdir))
        try:
            self.model = ModelConfig.from_dict(config.model.to_dict())
            vision = self.model.vision
            self.buckets = Buckets(**config.buckets)
            limits = Limits(**config.limits)
            spec = InputSpec(
                **config.inputs,
                max_length=self.buckets.max_length,
                patch_size=vision.patch_size,
                merge=vision.spatial_merge_size,
                temporal=vision.temporal_patch_size,
                window_side=vision.window_side,
                tokens_per_second=vision.tokens_per_second,
            )
        except (TypeError, ValueError) as error:
            raise UserError(f"config: {error}") from error
        prompt = Prompt(config.data.tokenizer.format(workdir=workdir), spec.max_length)
        self.preprocess = Preprocessor(prompt, spec, limits)
        # Beside each of the loader's workers one process decodes, beside its threads one a thread.
        self._isolated = Isolated(self.preprocess, processes=1 if config.data.workers else 2)
        self._check(prompt)
        self.tx = make_optimizer(config.optimizer, config.steps)
        self.bounds = pyramid.stage_bounds(config.steps, config.pyramid.stages)
        # What must stay the same for a resumed run to go on as if it had never stopped.
        kept = config.to_dict()
        for free in ("checkpoint", "log_every", "mesh", "data", "limits"):
            kept.pop(free)
        tokenizer = hashlib.sha256(Path(prompt.path).read_bytes()).hexdigest()[:16]
        kept["siblings"] = config.data.siblings.to_dict()
        self.fingerprint = {
            "code": __version__,
            "config": kept,
            "data": {"sources": self.sources.sizes, "tokenizer": tokenizer},
        }

    def _check(self, prompt: Prompt) -> None:
        config = self.config
        rows = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        if config.batch_size % rows:
            raise UserError(f"batch_size {config.batch_size} is no multiple of data x fsdp, {rows}")
        if not 0 < config.pyramid.stages <= config.steps:
            raise UserError(f"pyramid.stages {config.pyramid.stages} is not in 1..{config.steps}")
        if config.pyramid.pairs < 1:
            raise UserError("pyramid.pairs must be at least 1")
        for name, size in self.sources.sizes.items():
            if size < config.batch_size:
                raise UserError(f"source {name} has {size} pairs, less than batch_size")
        for name, together in config.data.siblings.items():
            size = self.sources.sizes.get(name)
            if size is None:
                raise UserError(f"data.siblings names {name}, which is no source")
            if together < 1 or size % together or config.batch_size % together:
                raise UserError(
                    f"data.siblings.{name} {together} does not divide its {size} pairs and "
                    f"batch_size {config.batch_size}"
                )
        if prompt.vocab_size > self.model.text.vocab_size:
            raise UserError(
                f"model.text.vocab_size {self.model.text.vocab_size} is less than the tokenizer's "
                f"{prompt.vocab_size} entries"
            )

    def complete(self) -> bool:
        """Whether this experiment is finished in the workdir; UserError if another one is."""
        seal = self.workdir / "run.json"
        mine = json.loads(json.dumps(self.fingerprint))
        done = (self.workdir / "model" / "config.json").exists() and seal.exists()
        if done and json.loads(seal.read_text(encoding="utf-8")) != mine:
            raise UserError(
                f"{self.workdir} holds a finished run of another configuration; "
                "choose another --workdir"
            )
        if len(set(hosts.gather(done))) > 1:
            raise UserError(f"{self.workdir} is not the same folder on all hosts")
        if not done and jax.process_index() == 0:
            self.workdir.mkdir(parents=True, exist_ok=True)
            write_json(seal, mine)
        return done

    def abstract_state(self) -> dict:
        """Shapes, dtypes and shardings of the training state."""
        params = jax.eval_shape(lambda: init_params(self.model, 0)[1])
        shapes = {"params": params, "opt": jax.eval_shape(self.tx.init, params)}
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            shapes,
            state_shardings(params, self.tx, self.mesh),
        )

    def stream(self, curriculum: list[dict], step: int, last: int) -> grain.IterDataset:
        """Batches `step` to `last` of the run: a pure function of curriculum and seed."""
        names = list(self.sources.sizes)
        stages = [
            Stage(record["first_step"], record["last_step"], tuple(record["P"][n] for n in names))
            for record in curriculum
        ]
        sizes = dict.fromkeys(names, self.config.batch_size)
        siblings = self.config.data.siblings.to_dict()
        order = batches(self.sources.sizes, sizes, stages, self.config.seed, siblings)
        return read_ahead(order[step:last], self.loader(), self.config.data.workers)

    def probes(self) -> grain.IterDataset:
        """Batches that hold `pyramid.pairs` fixed pairs of each source, or a few more."""
        size = self.config.batch_size
        picked = [
            (name, np.random.default_rng([self.config.seed, number, at]).permutation(count)[:size])
            for number, (name, count) in enumerate(self.sources.sizes.items())
            for at in range(-(-self.config.pyramid.pairs // size))
        ]
        return read_ahead(grain.MapDataset.source(picked), self.loader(), workers=0)

    def loader(self) -> LoadPairs:
        rows = local_rows(self.mesh, self.config.batch_size)
        return LoadPairs(self.sources, self._isolated, self.buckets, rows)

    def export(self, params, directory: Path) -> None:
        GVE(self.model, params, self.preprocess, self.buckets, self.mesh).save_pretrained(directory)
