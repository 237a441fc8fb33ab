"""Trains an encoder:

    python -m gve_jax.train --config configs/quickstart.py --workdir runs/quickstart

Repeating the command resumes from the newest whole checkpoint of the workdir, and returns at once
when the run is complete. A field is overridden as `--config.optimizer.learning_rate=1e-4`.
"""

import hashlib
import json
import logging
import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import grain
import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags

from gve_jax import __version__
from gve_jax.errors import UserError, run_cli
from gve_jax.gve import GVE
from gve_jax.inputs.batch import Buckets
from gve_jax.inputs.preprocess import InputSpec, Preprocessor
from gve_jax.inputs.prompt import Prompt
from gve_jax.inputs.quarantine import Quarantine
from gve_jax.learning import pyramid
from gve_jax.learning.checkpoint import Checkpoints
from gve_jax.learning.metrics import Progress, open_writers, write_all
from gve_jax.learning.optimizer import make_optimizer, make_schedule
from gve_jax.learning.step import init_state, make_probe, make_train_step, state_shardings
from gve_jax.model.config import ModelConfig
from gve_jax.model.embedder import init_params
from gve_jax.sharding import make_mesh
from gve_jax.streams.loader import LoadPairs, PairBatch, placed, read_ahead
from gve_jax.streams.mixture import Stage, apportion, batches
from gve_jax.streams.pairs import PairSources

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment's file.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where checkpoints, metrics and the model go.")
_log = logging.getLogger(__name__)


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        rest = flags.FLAGS(sys.argv)[1:]
    except (flags.Error, AttributeError, KeyError, ValueError, TypeError, OSError) as error:
        raise UserError(" ".join(str(error).split())) from error
    if rest:
        raise UserError(f"unknown argument {rest[0]!r}")
    for flag in ("config", "workdir"):
        if getattr(flags.FLAGS, flag) is None:
            raise UserError(f"--{flag} is missing; see python -m gve_jax.train --help")
    train(_CONFIG.value, Path(_WORKDIR.value))


def train(config: ConfigDict, workdir: Path) -> None:
    """Runs the experiment `config` in `workdir` to its end, from where it stands."""
    # --- what is trained, on what, where; another experiment in this workdir is refused -----------
    run = Experiment(config, workdir)
    if run.complete():
        print(f"{workdir}: training is complete; its model is in {workdir / 'model'}")
        return
    quarantine = Quarantine(workdir / "quarantine.jsonl", config.data.max_bad_share)
    train_step = make_train_step(run.model, run.tx, config.loss.temperature)
    probe = make_probe(run.model)
    checkpoints = Checkpoints(
        workdir / "checkpoints", keep=config.checkpoint.keep, fingerprint=run.fingerprint
    )
    with checkpoints:
        # --- start or resume: (1) the newest whole checkpoint of this workdir, (2) scratch --------
        restored = checkpoints.restore(run.abstract_state())
        if restored:
            step, state, curriculum = restored.step, restored.state, restored.meta["curriculum"]
            print(f"resuming at step {step}", flush=True)
        else:
            step, curriculum = 0, []
            state = init_state(run.model, run.tx, run.mesh, config.seed)
            run.export(state["params"], workdir / "initial")

        # --- stages: probe, decide what is sampled, train -----------------------------------------
        log = Log(run, first_step=step)
        with log.progress:
            for number, (_, last) in enumerate(run.bounds):
                if step >= last:
                    continue
                if number == len(curriculum):
                    curriculum.append(probe_stage(run, probe, number, state["params"], quarantine))
                    write_json(workdir / "curriculum.json", {"stages": curriculum})
                    log.progress.note(f"stage {number}: {describe(curriculum[-1])}")
                log.warm_up()
                for batch in placed(run.stream(curriculum, step, last), run.mesh):
                    admit(batch, quarantine, run)
                    log.dispatching()
                    state, scalars = train_step(state, batch.arrays)
                    # Only now, with this step under way, are the last one's numbers waited for.
                    log.dispatched(step, number, batch, scalars)
                    step += 1
                    if step % config.checkpoint.every == 0 and step < config.steps:
                        log.flush()  # a line of metrics.jsonl is never behind its checkpoint
                        checkpoints.save(step, state, {"curriculum": curriculum})
                log.flush()

        # --- the end: a last checkpoint, then the model, whose config.json seals the run ----------
        checkpoints.save(step, state, {"curriculum": curriculum})
        checkpoints.wait()
        write_json(workdir / "train.json", log.close() | {"quarantined": quarantine.count})
        run.export(state["params"], workdir / "model")
    print(f"{log.summary()}; {quarantine.count} unreadable; the model is in {workdir / 'model'}")


def probe_stage(
    run: "Experiment", probe: Callable, number: int, params, quarantine: Quarantine
) -> dict:
    """The record of a stage: sigma, R by source (the model itself is the prober), P, batches."""
    cosines: dict[str, list[np.ndarray]] = {name: [] for name in run.sources.sizes}
    for batch in placed(run.probes(), run.mesh):
        admit(batch, quarantine, run)
        values = np.asarray(probe(params, batch.arrays))
        cosines[batch.source].append(values[np.asarray(batch.arrays["valid"])])
    alignment = {name: pyramid.mean_alignment(values) for name, values in cosines.items()}
    settings, (first, last) = run.config.pyramid, run.bounds[number]
    sigma = pyramid.sigma_at(number, settings.stages, settings.sigma_first, settings.sigma_last)
    chances = pyramid.probabilities(alignment, sigma)
    counts = apportion(list(chances.values()), last - first).tolist()
    return {
        "stage": number,
        "first_step": first,
        "last_step": last,
        "sigma": sigma,
        "R": alignment,
        "P": chances,
        "batches": dict(zip(chances, counts, strict=True)),
    }


def describe(stage: Mapping) -> str:
    """A stage in a line: the sources drawn most and least."""
    drawn = sorted(stage["P"].items(), key=lambda entry: -entry[1])
    (most, high), (least, low) = drawn[0], drawn[-1]
    return (
        f"sigma {stage['sigma']:.2f}, steps {stage['first_step']} to {stage['last_step']}, "
        f"most drawn {most} ({high:.1%}), least {least} ({low:.1%})"
    )


def admit(batch: PairBatch, quarantine: Quarantine, run: "Experiment") -> None:
    """Records what of a batch could not be read; stops the run past the stated share."""
    for failure in batch.failures:
        quarantine.record(**failure)
    if batch.failures:
        quarantine.check(sum(run.sources.sizes.values()))


class Experiment:
    """What a configuration means: sources, inputs, model, optimizer, mesh, stages."""

    def __init__(self, config: ConfigDict, workdir: Path):
        self.config, self.workdir = config, workdir
        self.mesh = make_mesh(config.mesh)
        self.sources = PairSources(config.data.pairs.format(workdir=workdir))
        try:
            self.model = ModelConfig.from_dict(config.model.to_dict())
            vision = self.model.vision
            self.buckets = Buckets(**config.buckets)
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
        self.preprocess = Preprocessor(prompt, spec)
        self._check(prompt)
        self.tx = make_optimizer(config.optimizer, config.steps)
        self.bounds = pyramid.stage_bounds(config.steps, config.pyramid.stages)
        # What must stay the same for a resumed run to go on as if it had never stopped.
        kept = config.to_dict()
        for free in ("checkpoint", "log_every", "mesh", "data"):
            kept.pop(free)
        tokenizer = hashlib.sha256(Path(prompt.path).read_bytes()).hexdigest()[:16]
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
        if prompt.vocab_size > self.model.text.vocab_size:
            raise UserError(
                f"model.text.vocab_size {self.model.text.vocab_size} is less than the tokenizer's "
                f"{prompt.vocab_size} entries"
            )

    def complete(self) -> bool:
        """Whether this experiment is finished in the workdir; UserError if another one is."""
        seal = self.workdir / "run.json"
        mine = json.loads(json.dumps(self.fingerprint))
        if (self.workdir / "model" / "config.json").exists() and seal.exists():
            if json.loads(seal.read_text(encoding="utf-8")) != mine:
                raise UserError(
                    f"{self.workdir} holds a finished run of another configuration; "
                    "choose another --workdir"
                )
            return True
        self.workdir.mkdir(parents=True, exist_ok=True)
        write_json(seal, mine)
        return False

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
        order = batches(self.sources.sizes, sizes, stages, self.config.seed)
        return read_ahead(order[step:last], self._load(), self.config.data.workers)

    def probes(self) -> grain.IterDataset:
        """Batches that hold `pyramid.pairs` fixed pairs of each source, or a few more."""
        size = self.config.batch_size
        picked = [
            (name, np.random.default_rng([self.config.seed, number, at]).permutation(count)[:size])
            for number, (name, count) in enumerate(self.sources.sizes.items())
            for at in range(-(-self.config.pyramid.pairs // size))
        ]
        return read_ahead(grain.MapDataset.source(picked), self._load(), workers=0)

    def _load(self) -> LoadPairs:
        process = (jax.process_index(), jax.process_count())
        return LoadPairs(self.sources, self.preprocess, self.buckets, process)

    def export(self, params, directory: Path) -> None:
        GVE(self.model, params, self.preprocess, self.buckets, self.mesh).save_pretrained(directory)


class Log:
    """The run's numbers, one step behind the device, and where its time goes.

    `wait_share` is the part of the time in which the loop stood still for want of a batch, counted
    once warm: not the first batches of a stage, while workers start, nor steps that compile.
    """

    WARM = 3  # batches of a stage that count as its start

    def __init__(self, run: Experiment, first_step: int):
        self._run, self._pending, self._seen = run, None, set()
        self._writers = open_writers(run.workdir, first_step=first_step)
        self._schedule = make_schedule(run.config.optimizer, run.config.steps)
        self.progress = Progress(run.config.steps, first_step=first_step)
        self._began, self._steps = time.perf_counter(), 0
        self._warm_time = self._warm_wait = 0.0
        self._warm_steps = 0
        self.warm_up()

    def warm_up(self) -> None:
        self._cold, self._asked = self.WARM, time.perf_counter()

    def dispatching(self) -> None:
        """A batch has come: the time since the last step was dispatched was spent waiting."""
        self._got = time.perf_counter()

    def dispatched(self, step: int, stage: int, batch: PairBatch, scalars: Mapping) -> None:
        previous, self._pending = self._pending, (step, stage, batch, scalars)
        self._report(previous)
        now = time.perf_counter()
        shapes = tuple(leaf.shape for leaf in jax.tree.leaves(batch.arrays))
        if self._cold > 0 or shapes not in self._seen:
            self._cold -= 1
        else:
            self._warm_time += now - self._asked
            self._warm_wait += self._got - self._asked
            self._warm_steps += 1
        self._seen.add(shapes)
        self._steps += 1
        self._asked = now

    def flush(self) -> None:
        """Waits for the step under way and writes its numbers."""
        pending, self._pending = self._pending, None
        self._report(pending)
        self._asked = time.perf_counter()

    def _report(self, pending) -> None:
        if pending is None:
            return
        step, stage, batch, scalars = pending
        scalars = {name: float(value) for name, value in scalars.items()}
        if not math.isfinite(scalars["loss"]):
            raise UserError(
                f"the loss of step {step} is {scalars['loss']}: source {batch.source}, pairs "
                f"{', '.join(batch.ids)}"
            )
        speed, wait = self._speed(), self._wait_share()
        self.progress.update(
            step + 1, stage=stage, loss=scalars["loss"], pairs_per_s=speed, wait_share=wait
        )
        if step % self._run.config.log_every == 0:
            write_all(
                self._writers,
                step,
                scalars
                | {
                    f"loss/{batch.source}": scalars["loss"],
                    "learning_rate": float(self._schedule(step)),
                    "pairs_per_s": speed,
                    "wait_share": wait,
                    "stage": stage,
                    "task": batch.source,
                },
            )

    def _speed(self) -> float:
        if not self._warm_time:
            return 0.0
        return self._warm_steps * self._run.config.batch_size / self._warm_time

    def _wait_share(self) -> float:
        return self._warm_wait / self._warm_time if self._warm_time else 0.0

    def close(self) -> dict:
        """Closes the writers; the numbers of the whole (resumed) run as a dict."""
        for writer in self._writers:
            writer.close()
        return {
            "steps": self._steps,
            "seconds": time.perf_counter() - self._began,
            "pairs_per_s": self._speed(),
            "wait_share": self._wait_share(),
            "compiled_steps": len(self._seen),
        }

    def summary(self) -> str:
        return (
            f"trained {self._steps} steps in {time.perf_counter() - self._began:.0f} s: "
            f"{self._speed():.0f} pairs/s, waiting for data {self._wait_share():.1%} of the time "
            f"once warm, {len(self._seen)} compiled steps"
        )


def write_json(path: Path, value) -> None:
    """Writes JSON whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    part.replace(path)


if __name__ == "__main__":
    run_cli(main)
