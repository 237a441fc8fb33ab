"""Builds and checks all parts of a training run from its configuration before anything compiles."""

import dataclasses
import functools
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import grain
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from gve_jax.checkpoints.digests import file_digest, not_finite, sampled_digest, weights_digest
from gve_jax.checkpoints.huggingface import COMPANIONS
from gve_jax.checkpoints.peft import write_adapter
from gve_jax.checkpoints.pretrained import open_pretrained
from gve_jax.distributed import hosts
from gve_jax.distributed.sharding import replicated
from gve_jax.errors import UserError
from gve_jax.gve import GVE
from gve_jax.hardware import flops
from gve_jax.inputs.counts import Counts
from gve_jax.inputs.preprocess import InputSpec, Preprocessor, geometry
from gve_jax.inputs.profiles import find_profile
from gve_jax.inputs.prompt import Prompt
from gve_jax.learning import state
from gve_jax.learning.curriculum import Curriculum
from gve_jax.learning.patterns import assign
from gve_jax.media.isolation import Isolated
from gve_jax.media.quarantine import Quarantine
from gve_jax.model import lora
from gve_jax.model.attention import check_kernel, target_platform
from gve_jax.model.quantize import DECODER, quantize
from gve_jax.running.prober import is_score_file, measure_cosines, read_scores
from gve_jax.running.sections import (
    EXPORTS,
    read_settings,
    resume_fields,
    shared_fields,
    source_batch_sizes,
)
from gve_jax.running.setup import StepSetup
from gve_jax.storage.files import differences, read_json, write_json
from gve_jax.storage.filesystem import (
    as_path,
    in_workdir,
    is_gcs_path,
    local_copy,
    translate_gcs_errors,
)
from gve_jax.streams.loader import LoadPairs, local_rows, read_ahead
from gve_jax.streams.mixture import UNLIMITED, Stage, batches, choose, epoch_batches
from gve_jax.streams.sources import Sources, parse

# The version since which equal configurations and data give equal runs: raise it only with a change
# that alters them, because runs of before can no longer be resumed.
RUNS_SINCE = "0.2.0"


class Experiment(StepSetup):
    """A configuration in a workdir.

    Raises:
      UserError: a field, which the message names, is invalid; before anything compiles.
    """

    def __init__(self, config: ConfigDict, workdir: Path):
        self.workdir = workdir
        config = read_settings(config)
        self.base = None if config.pretrained is None else open_pretrained(config.pretrained)
        super().__init__(config, self.base)
        self.sources = Sources(
            parse(config.data.pairs, config.data.cache, workdir), config.data.sources
        )
        self.batch_sizes = source_batch_sizes(config, self.sources.sizes)
        try:
            spec = InputSpec(
                **vars(config.inputs),
                max_length=self.buckets.max_length,
                **geometry(self.model),
            )
        except UserError as error:
            raise UserError(f"config.inputs: {error}") from error
        if self.base is not None and self.base.stated not in (None, spec.profile):
            raise UserError(
                f"config.pretrained states profile {self.base.stated}, config.inputs.profile "
                f"{spec.profile}"
            )
        prompt = Prompt(self._tokenizer(), spec.max_length, find_profile(spec.profile))
        self.preprocess = Preprocessor(prompt, spec, config.limits)
        # One decoding process for each of the loader's workers, or for each of its threads.
        self._isolated = Isolated(self.preprocess, processes=1 if config.data.workers else 2)
        self._check(prompt)
        epochs = self._epochs()
        self.batch_budget = self._batch_budget(epochs)
        policy = config.pyramid
        self.curriculum = Curriculum(
            policy, self.sources.sizes, self.batch_sizes, config.steps, sum(epochs.values())
        )
        self.scores = None  # R of the first stage, if a file states it
        if policy.prober is not None and is_score_file(policy.prober):
            self.scores = read_scores(policy.prober, self.curriculum.tasks)
        self._check_quantize()
        self.fingerprint = {
            "code": RUNS_SINCE,
            "config": self._with_scores(resume_fields(config, self.model)),
            "data": {
                "sources": self.sources.sizes,
                "bytes": self.sources.bytes,
                "tokenizer": file_digest(prompt.path),
            },
            # Digest of the weights that no checkpoint holds; known once they are read.
            "frozen_weights": None,
        }
        if self.sources.digests:
            self.fingerprint["data"]["digests"] = self.sources.digests

    def _tokenizer(self) -> str | Path:
        if self.config.data.tokenizer is not None:
            path = as_path(in_workdir(self.config.data.tokenizer, self.workdir))
            if not is_gcs_path(path):
                return path
            return local_copy(path.parent, (path.name, *COMPANIONS)) / path.name
        if self.base is None:
            raise UserError("config.data.tokenizer is missing: set it or config.pretrained")
        return self.base.tokenizer

    def _check(self, prompt: Prompt) -> None:
        config = self.config
        for size in sorted({config.batch_size, *self.batch_sizes.values()}):
            self.check_batch(size, config.gradcache_chunk)
        try:
            self.loss.check(self.model.text.hidden_size)
        except ValueError as error:
            raise UserError(f"config.loss: {error}") from error
        self.sources.check(self.batch_sizes)
        for name, together in config.data.siblings.items():
            if name not in self.sources.known:
                raise UserError(f"data.siblings: unknown source {name}")
            if name not in self.sources.sizes:  # not selected by data.sources
                continue
            size, batch = self.sources.sizes[name], self.batch_sizes[name]
            if together < 1 or size % together or batch % together:
                raise UserError(
                    f"data.siblings.{name} {together} must divide the source's {size} pairs and "
                    f"its batch_size {batch}"
                )
        vision, text = self.model.vision, self.model.text
        for patches, _ in self.buckets.frame_sizes:
            if patches % vision.merge_unit:
                raise UserError(
                    f"config.buckets: {patches} patches per frame must be a multiple of the "
                    f"{vision.merge_unit} patches per token"
                )
        sizes = vision.hidden_size // vision.num_heads, text.head_dim
        check_kernel(self.model.attention, self.model.dtype, sizes, target_platform())
        odd = [length for _, length in self.buckets.shapes if length % 2]
        if self.model.attention == "cudnn" and odd:
            raise UserError(
                f"config.buckets.shapes: length {odd[0]} must be even to train with cuDNN attention"
            )
        if prompt.vocab_size > self.model.text.vocab_size:
            raise UserError(
                f"model.text.vocab_size {self.model.text.vocab_size} is less than the tokenizer's "
                f"{prompt.vocab_size} entries"
            )
        if self.base is not None:
            self.base.check_tokenizer(Path(prompt.path))
        if "peft" in config.export and self.model.lora is None:
            raise UserError("export 'peft' needs adapters: set config.model.lora")

    def _epochs(self) -> dict[str, int]:
        """Number of batches in one pass over each source."""
        return {
            name: epoch_batches(
                size, self.batch_sizes[name], self.config.data.siblings.get(name, 1)
            )
            for name, size in self.sources.sizes.items()
        }

    def _batch_budget(self, epochs: dict[str, int]) -> np.ndarray | None:
        """The maximum number of batches of each source by `data.repeat`, int64 [sources]; None if
        all are unlimited."""
        table = self.config.data.repeat
        passes = assign("data.repeat", table, self.sources.sizes, 0)
        if not any(passes.values()):
            return None
        budget = [count * epochs[name] if count else UNLIMITED for name, count in passes.items()]
        if (total := sum(budget)) < self.config.steps:
            raise UserError(
                f"data.repeat: all sources together have {total} batches for {self.config.steps} "
                "steps"
            )
        return np.array(budget, np.int64)

    def _check_quantize(self) -> None:
        kind = self.config.quantize
        if kind is None:
            return
        if self.base is None:
            raise UserError("quantize needs config.pretrained")
        trained = flatten_dict(self.abstract["params"], sep="/")
        if chosen := [name for name in trained if re.search(DECODER, name)]:
            raise UserError(
                f"quantize: {chosen[0]} trains, but quantized weights must be frozen "
                "(optimizer.rates)"
            )
        if self.mesh.size > 1:
            raise UserError(f"quantize works on one device; the mesh has {self.mesh.size}")

    def shared_record(self) -> dict:
        """What must be equal on all hosts of a job, even if their paths differ: configuration,
        pairs, tokenizer, files of the base model, kind of device."""
        return {
            "config": self._with_scores(shared_fields(self.config)),
            "data": self.fingerprint["data"],
            "pretrained": None if self.base is None else sampled_digest(self.base.directory),
            "device": jax.local_devices()[0].device_kind,
        }

    def _with_scores(self, fields: dict) -> dict:
        """Replaces the path of a file of scores by its scores, which must not change."""
        if self.scores is not None:
            fields["pyramid"]["prober"] = self.scores
        return fields

    def is_complete(self) -> bool:
        """Whether this run is finished in the workdir; raises UserError if another one is."""
        record = self.workdir / "run.json"
        try:
            with translate_gcs_errors(self.workdir):
                done = record.exists() and all(map(self._is_exported, self.config.export))
        except OSError as error:
            raise UserError(f"--workdir {self.workdir}: {error.strerror or error}") from error
        if len(set(hosts.gather(done))) > 1:
            raise UserError(f"--workdir {self.workdir} is not the same folder on all hosts")
        if done:
            saved = read_json(record)
            expected = json.loads(json.dumps(self.fingerprint))
            expected["frozen_weights"] = saved.get("frozen_weights")  # reading them takes too long
            if changed := differences(saved, expected):
                field, (was, now) = next(iter(changed.items()))
                remedy = "choose another --workdir"
                if field == "config.steps":
                    folder = self.workdir / EXPORTS["gve_jax"][0]
                    remedy = (
                        "its learning rate and stages span all steps. To train its model on, add "
                        f"--config.pretrained={folder} and choose another --workdir"
                    )
                raise UserError(
                    f"{self.workdir} holds a finished run of another configuration ({field} was "
                    f"{json.dumps(was)}, is {json.dumps(now)}); {remedy}"
                )
            return True
        try:
            if not is_gcs_path(self.workdir):
                self.workdir.mkdir(parents=True, exist_ok=True)
            if jax.process_index() == 0:
                write_json(self.workdir / ".writable", None)
                (self.workdir / ".writable").unlink()
        except OSError as error:
            raise UserError(f"--workdir {self.workdir} cannot be written ({error.strerror})") from (
                error
            )
        return False

    def check_started(self) -> None:
        """Raises UserError if the workdir holds a run whose checkpoints were deleted: starting from
        step 0 would replace that run's files. Call it on host 0."""
        with translate_gcs_errors(self.workdir):
            # In GCS an empty checkpoints/ does not exist: run.json alone does not prove a deletion.
            record = "train.json" if is_gcs_path(self.workdir) else "run.json"
            if not (self.workdir / record).exists() or (self.workdir / "checkpoints").is_dir():
                return
            model = self._is_exported("gve_jax")
        remedy = "restore it, or choose another --workdir"
        if model and "hf" in self.config.export:
            folder = self.workdir / EXPORTS["gve_jax"][0]
            remedy += (
                f"; the trained model is in {folder}: python -m gve_jax.convert --input {folder} "
                "--to hf converts it for transformers"
            )
        raise UserError(f"{self.workdir} holds a run, but not its checkpoints/: {remedy}")

    def load_frozen(self) -> dict:
        """Loads the frozen weights, which no checkpoint holds, from the base or as random numbers.
        The digest of a base's weights becomes part of the fingerprint."""
        if self.base is None:
            return state.random_params(
                self.model, self.config.seed, self.abstract_frozen, self.loss
            )
        frozen = self._load_base(self.abstract_frozen)
        if frozen:
            self.fingerprint["frozen_weights"] = weights_digest(frozen)
        return quantize(frozen, self.config.quantize) if self.config.quantize else frozen

    def initial_state(self) -> dict:
        """The state before the first step; parameters that the base lacks, such as adapters, are
        random."""
        abstract = self.abstract["params"]
        if self.base is None:
            return state.init_train_state(self._random_params(abstract), self.tx, self.abstract)
        params = self._load_base(abstract)
        missing = flatten_dict(abstract).keys() - flatten_dict(params).keys()
        new = {name: leaf for name, leaf in flatten_dict(abstract).items() if name in missing}
        params = lora.join(params, self._random_params(unflatten_dict(new)))
        return state.init_train_state(params, self.tx, self.abstract)

    def _random_params(self, abstract: dict) -> dict:
        return state.random_params(self.model, self.config.seed, abstract, self.loss)

    def _load_base(self, abstract: dict) -> dict:
        """Loads the parameters of `abstract` that the base has."""
        names = flatten_dict(abstract, sep="/").keys()
        plain = dataclasses.replace(self.model, lora=self.base.config.lora)
        params = self.base.load(plain, self.mesh, names.__contains__, show=sys.stderr.isatty())
        if bad := not_finite(params):
            raise UserError(f"{self.base.directory}: NaN or infinite numbers in {', '.join(bad)}")
        return params

    def write_run_record(self) -> None:
        """Writes the fingerprint to `run.json`."""
        if jax.process_index() == 0:
            write_json(self.workdir / "run.json", json.loads(json.dumps(self.fingerprint)))

    def step_flops(self) -> Callable[[Sequence[Counts]], flops.Flops]:
        """Returns a function of the counts of each side that gives the model FLOPs of a step."""
        # Cached: it searches hundreds of parameter names for each pattern.
        trained = functools.cache(flops.trains(flatten_dict(self.abstract["params"], sep="/")))
        return lambda sides: flops.train(self.model, sides, trained)

    def stage_record(
        self, number: int, alignment: Mapping[str, float], previous: list[dict]
    ) -> dict:
        """Returns the record of a stage: its sampling, by R of each source (`alignment`) and the
        records of previous stages."""
        record = self.curriculum.record(number, alignment)
        chosen = choose(self._stages([*previous, record]), self.config.seed, self.batch_budget)[-1]
        counts = np.bincount(chosen, minlength=len(self.sources.sizes)).tolist()
        return record | {"batches": dict(zip(self.sources.sizes, counts, strict=True))}

    def _stages(self, curriculum: list[dict]) -> list[Stage]:
        return [
            Stage(record["first_step"], record["last_step"], self.curriculum.weights(record))
            for record in curriculum
        ]

    def stream(self, curriculum: list[dict], step: int, last: int) -> grain.IterDataset:
        """Batches `step` to `last - 1` of the run: a pure function of curriculum and seed."""
        order = batches(
            self.sources.sizes,
            self.batch_sizes,
            self._stages(curriculum),
            self.config.seed,
            self.config.data.siblings,
            self.batch_budget,
        )
        return read_ahead(order[step:last], self.loader(), self.config.data.workers)

    def probe_batches(self) -> list[tuple[str, np.ndarray]]:
        """Source and indices of the batches whose alignment is measured: at least `pyramid.pairs`
        pairs of each source, or all of a smaller source, without an incomplete last batch."""
        batches = []
        for number, (name, count) in enumerate(self.sources.sizes.items()):
            size = self.batch_sizes[name]
            order = np.random.default_rng([self.config.seed, number, 0]).permutation(count)
            wanted = min(-(-self.curriculum.config.pairs // size), count // size)
            batches += [(name, order[n * size : (n + 1) * size]) for n in range(wanted)]
        return batches

    def probe_stream(self) -> grain.IterDataset:
        """The probe batches, for the model in training."""
        return read_ahead(grain.MapDataset.source(self.probe_batches()), self.loader(), workers=0)

    def external_cosines(self, quarantine: Quarantine) -> dict[str, list[np.ndarray]]:
        """Cosines of the probe batches' pairs, by the model that `pyramid.prober` names."""
        self.sources.fetch()
        prober, batches = self.curriculum.config.prober, self.probe_batches()
        limits = self.preprocess.limits
        return measure_cosines(prober, self.sources, batches, self.mesh, limits, quarantine)

    def sandbox(self) -> dict[str, bool | int]:
        """What the system denies to the decoding processes of this host."""
        return self._isolated.sandbox.protection()

    def loader(self) -> LoadPairs:
        self.sources.fetch()  # copies gs:// files before workers read them
        rows = {size: local_rows(self.mesh, size) for size in set(self.batch_sizes.values())}
        return LoadPairs(self.sources, self._isolated, self.buckets, rows)

    def _is_exported(self, name: str) -> bool:
        """Whether the workdir holds the complete model in this format."""
        folder, last, others = EXPORTS[name]
        folder = self.workdir / folder
        return (folder / last).exists() and any(True for _ in folder.glob(others))

    def export(self, name: str, params: dict, frozen: dict, directory: Path | None = None) -> Path:
        """Writes the model in a format of `EXPORTS`; returns the directory.

        Raises:
          UserError: `params` holds NaN or infinite numbers; a file cannot be written.
        """
        if bad := not_finite(params):
            raise UserError(f"not exported: NaN or infinite numbers in {', '.join(bad[:3])}")
        directory = directory or self.workdir / EXPORTS[name][0]
        if name == "peft":
            adapters = lora.split(params)[1]
            # Replicated: host 0 cannot write shards of other hosts.
            adapters = jax.jit(lambda tree: tree, out_shardings=replicated(self.mesh))(adapters)
            if jax.process_index() == 0:
                # PEFT applies an adapter to a base without adapters.
                bare = self.base is not None and self.base.config.lora is None
                base = str(self.config.pretrained) if bare else None
                write_adapter(directory, adapters, self.model, base_model=base)
            return directory
        if self.config.quantize:  # exports contain the base's weights before quantization
            frozen = self._load_base(self.abstract_frozen)
        params = state.join(params, frozen)
        model = GVE(self.model, params, self.preprocess, self.buckets, self.mesh)
        model.save_pretrained(directory, format=name)
        return directory
