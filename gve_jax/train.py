"""Trains an encoder:

    python -m gve_jax.train --config configs/quickstart.py --workdir runs/quickstart

The config is a Python file with `get_config()`; `--config FILE:smoke` selects a variant that runs
in seconds. `--workdir`, a directory or gs://bucket/run, receives checkpoints, metrics.jsonl,
tensorboard/, curriculum.json, quarantine.jsonl, and the model before and after training (initial/,
model/).

  --pairs LOCATION   training pairs instead of config.data.pairs; may be repeated

Repeating the command resumes from the newest undamaged checkpoint in the workdir, and returns at
once when the run is complete. Override a field as `--config.optimizer.learning_rate=1e-4`;
`--config FILE --help` lists all fields.

Exit status: 0 success; 2 an error, such as an invalid field or a full disk, in one line; 143
received SIGTERM, 130 Ctrl-C, and saved a checkpoint: repeat the command to resume.
"""

import logging
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils
from jax.profiler import StepTraceAnnotation
from ml_collections import ConfigDict

from gve_jax.cli import help_requested, parse_arguments, run_cli
from gve_jax.distributed import hosts, work
from gve_jax.distributed.preemption import Preemption
from gve_jax.errors import UserError
from gve_jax.hardware.malloc import retain_freed_memory
from gve_jax.hardware.programs import keep_compiled_programs, share_compiled_programs
from gve_jax.learning import pyramid
from gve_jax.learning.optimizer import make_schedule
from gve_jax.learning.state import join
from gve_jax.learning.step import make_probe, make_train_step
from gve_jax.media.quarantine import Quarantine
from gve_jax.running.checkpoint import Checkpoints
from gve_jax.running.experiment import EXPORTS, Experiment
from gve_jax.running.records import Records
from gve_jax.running.runlog import RunLog
from gve_jax.running.sections import Settings
from gve_jax.storage.files import write_json
from gve_jax.storage.filesystem import as_path
from gve_jax.storage.locks import lock_folder
from gve_jax.streams.loader import PairBatch, device_batches


def main() -> None:
    if help_requested(sys.argv, __doc__, Settings):
        return
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    values = flags.FlagValues()
    workdir = flags.DEFINE_string("workdir", None, "", flag_values=values)
    pairs = flags.DEFINE_multi_string("pairs", None, "", flag_values=values)
    command = "python -m gve_jax.train"
    config = parse_arguments(sys.argv, values, command)
    if workdir.value is None:
        raise UserError(f"--workdir is missing; see {command} --help")
    if pairs.value:
        with config.unlocked(), config.ignore_type():
            config.data.pairs = tuple(pairs.value)
    hosts.run(lambda: train(config, as_path(workdir.value)))


def train(config: ConfigDict, workdir: Path) -> None:
    """Runs the experiment `config` in `workdir` to its end, resuming if it was started before."""
    # --- check the configuration; refuse a workdir that holds another experiment ------------------
    run = hosts.run_on_all_hosts(lambda: Experiment(config, workdir))
    hosts.check_same(run.shared_record())
    config = run.config
    if run.is_complete():
        where = ", ".join(str(workdir / EXPORTS[name][0]) for name in config.export)
        print(f"{workdir}: training is complete; its model is in {where}")
        return
    with lock_folder(workdir):
        work.check_shared(workdir)
        hosts.run_on_host0(run.check_started)
        _train(run)


def _train(run: Experiment) -> None:
    """Trains from the last checkpoint or from step 0, while the workdir is locked."""
    config, workdir = run.config, run.workdir
    if jax.process_count() > 1:
        share_compiled_programs(workdir)
    for warning in run.sources.warnings() if jax.process_index() == 0 else ():
        print(f"warning: {warning}", flush=True)
    train_step = make_train_step(
        run.model, run.tx, run.loss, run.mesh, chunk=config.gradcache_chunk, seed=config.seed
    )
    probe = make_probe(run.model)
    frozen = run.load_frozen()  # checkpoints hold trained weights only
    checkpoints = Checkpoints(
        workdir / "checkpoints", keep=config.checkpoint.keep, fingerprint=run.fingerprint
    )
    with Records(workdir) as records, checkpoints, Preemption() as preemption:
        quarantine = Quarantine(
            records.folder / "quarantine.jsonl",
            config.data.max_bad_share,
            writes=jax.process_index() == 0,
            shown=workdir / "quarantine.jsonl",
        )
        # Failures such as an absent mount or a busy machine count only if they occur again.
        quarantine.forget_retryable()
        # --- start or resume: (1) the newest undamaged checkpoint in the workdir, (2) the
        # pretrained weights with new adapters from the seed, (3) random weights from the seed ----
        sandbox = run.sandbox()  # here, so that a warning comes once and not from each worker
        restored = checkpoints.restore(run.abstract)
        run.write_run_record()
        if restored:
            step, state, curriculum = restored.step, restored.state, restored.meta["curriculum"]
            print(f"resuming at step {step}", flush=True)
        else:
            step, state, curriculum = 0, run.initial_state(), []
            if config.pretrained is None:  # otherwise `pretrained` is the initial model
                run.export("gve_jax", state["params"], frozen, workdir / "initial")

        # --- stages: probe, choose the sampling, train --------------------------------------------
        log = RunLog(
            records.folder,
            first_step=step,
            steps=config.steps,
            every=config.log_every,
            learning_rate=make_schedule(config.optimizer, config.steps),
            flops=run.step_flops(),
            wandb=config.wandb,
            profile=config.profile,
        )
        with log.progress:
            for number, (_, last) in enumerate(run.curriculum.bounds):
                if step >= last:
                    continue
                if number == len(curriculum):
                    params = join(state["params"], frozen)
                    alignment = probe_stage(run, probe, number, params, quarantine)
                    curriculum.append(run.stage_record(number, alignment, curriculum))
                    log.start_stage(curriculum[-1])
                    if jax.process_index() == 0:
                        write_json(workdir / "curriculum.json", {"stages": curriculum})
                    log.progress.note(f"stage {number}: {describe(curriculum[-1])}")
                log.restart_warmup()
                for batch in device_batches(
                    run.stream(curriculum, step, last), run.mesh, run.loader()
                ):
                    record_failures(batch, quarantine, run)
                    log.before_step(step)
                    with jax.set_mesh(run.mesh), StepTraceAnnotation("train", step_num=step):
                        state, scalars = train_step(state, frozen, batch.arrays, step)
                    preemption.unsaved = True
                    # Waits for the previous step's results only now that this step is dispatched.
                    log.after_step(step, number, batch, scalars)
                    hosts.set_location(f"in step {step}")
                    step += 1
                    stop = preemption.reached(step)
                    if step < config.steps and (stop or step % config.checkpoint.every == 0):
                        log.flush()  # metrics.jsonl must include every step of a checkpoint
                        records.flush()
                        checkpoints.save(step, state, {"curriculum": curriculum})
                    if step < config.steps and stop:
                        checkpoints.wait()
                        log.close()
                        preemption.stop(step)
                log.flush()
                records.flush()

        # --- last checkpoint, then the model; each export is complete with its last file ----------
        checkpoints.save(step, state, {"curriculum": curriculum})
        checkpoints.wait()
        record = log.close() | {"quarantined": quarantine.count, "sandbox": sandbox}
        if record["steps"] and jax.process_index() == 0:  # no steps: only an export was missing
            write_json(workdir / "train.json", record)
        for name in config.export:
            run.export(name, state["params"], frozen)
    if jax.process_index():
        return
    where = ", ".join(str(workdir / EXPORTS[name][0]) for name in config.export)
    trained = log.summary() if record["steps"] else "no step was left to train"
    print(f"{trained}; the model is in {where}")
    print(quarantine.summary(sum(run.sources.sizes.values())))


def probe_stage(
    run: Experiment, probe: Callable, number: int, params, quarantine: Quarantine
) -> dict[str, float]:
    """Returns R by source: of the first stage by `pyramid.prober`, if set, else by this model."""
    if number or run.curriculum.config.prober is None:
        cosines = probe_cosines(run, probe, params, quarantine)
    elif run.scores is not None:
        return run.scores
    else:
        cosines = run.external_cosines(quarantine)
        quarantine.check(sum(run.sources.sizes.values()))
    for name, values in cosines.items():
        if not sum(map(len, values)):
            raise UserError(f"source {name}: none of its probed pairs can be read")
    alignment = {name: pyramid.mean_alignment(values) for name, values in cosines.items()}
    for name, value in alignment.items():
        if not math.isfinite(value):
            raise UserError(f"source {name}: the mean cosine of its probed pairs is {value}")
    return alignment


def probe_cosines(
    run: Experiment, probe: Callable, params, quarantine: Quarantine
) -> dict[str, list[np.ndarray]]:
    """Cosines of the probed pairs by source, by the model in training."""
    cosines: dict[str, list[np.ndarray]] = {name: [] for name in run.sources.sizes}
    for batch in device_batches(run.probe_stream(), run.mesh, run.loader()):
        record_failures(batch, quarantine, run)
        with jax.set_mesh(run.mesh):
            values = probe(params, batch.arrays)
        # Gathered on every host, so that all compute the same curriculum.
        values, valid = multihost_utils.process_allgather(
            (values, batch.arrays["valid"]), tiled=True
        )
        cosines[batch.source].append(values[valid])
    return cosines


def describe(stage: Mapping) -> str:
    """One line about a stage, with the sources sampled most and least."""
    sampled = sorted(stage["P"].items(), key=lambda entry: -entry[1])
    (most, high), (least, low) = sampled[0], sampled[-1]
    return (
        f"sigma {stage['sigma']:.2f}, steps {stage['first_step']} to {stage['last_step']}, "
        f"most sampled {most} ({high:.1%}), least {least} ({low:.1%})"
    )


def record_failures(batch: PairBatch, quarantine: Quarantine, run: Experiment) -> None:
    """Records the unreadable pairs of a batch; raises UserError above `data.max_bad_share`."""
    for failure in batch.failures:
        quarantine.record(**failure)
    if batch.failures:
        quarantine.check(sum(run.sources.sizes.values()))


if __name__ == "__main__":
    retain_freed_memory()
    keep_compiled_programs()
    run_cli(main)
