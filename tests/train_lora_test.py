"""LoRA training end to end: loading a base, saving, resuming, refusals and exports."""

import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from configs import gve_3b, qwen3vl_2b
from gve_jax.distributed.sharding import AXES
from gve_jax.errors import StoppedError, UserError
from gve_jax.gve import GVE
from gve_jax.learning.optimizer import ADAPTERS
from gve_jax.model.quantize import Quantized
from gve_jax.running.experiment import Experiment
from gve_jax.running.runlog import RunLog
from gve_jax.train import train
from tests.situations import situation
from tests.train_test import losses, make_config

TEXTS = ["a red circle moves left", "a blue square stays still"]


@pytest.fixture(scope="module")
def base(world, tmp_path_factory):
    """A checkpoint in transformers' format, with the world's tokenizer."""
    directory = tmp_path_factory.mktemp("base")
    run = Experiment(make_config(world), directory / "w")
    run.export("hf", run.initial_state()["params"], {}, directory / "hf")
    return directory / "hf"


def recipe(world, base, **fields):
    """A config of four steps in two stages, with the tokenizer of the base."""
    config = make_config(
        world,
        steps=4,
        checkpoint__every=3,
        pretrained=str(base),
        data__tokenizer=None,
        export=("gve_jax", "peft", "hf"),
        optimizer__rates=ADAPTERS,
        optimizer__learning_rate=1e-2,
        **fields,
    )
    del config.model.vision, config.model.text  # shapes come from the base
    config.model.lora = dict(rank=4, alpha=8.0, dropout=0.25)
    return config


@pytest.fixture(scope="module")
def finished(world, base, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("lora")
    train(recipe(world, base), workdir)
    return workdir


@pytest.fixture(scope="module")
def stopped(world, base, tmp_path_factory):
    """A run that received SIGTERM in its first step, in the first stage."""
    workdir = tmp_path_factory.mktemp("stopped")
    after_step = RunLog.after_step

    def preempting(self, step, *rest):
        after_step(self, step, *rest)
        if step == 0:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunLog, "after_step", preempting)
        with pytest.raises(StoppedError, match="saved at step 1; repeat the command"):
            train(recipe(world, base), workdir)
    assert signal.getsignal(signal.SIGTERM) == before
    assert [path.name for path in (workdir / "checkpoints").iterdir()] == ["1"]
    return workdir


def test_a_run_continues_the_adapters_of_a_finished_one(world, finished, tmp_path):
    """With the recipe of the finished run; the base is the same, without them."""
    config = recipe(world, finished / "model")
    run = Experiment(config, tmp_path)
    model = flatten_dict(GVE.from_pretrained(finished / "model").params, sep="/")
    started = flatten_dict(run.initial_state()["params"], sep="/")
    assert started and all("/lora/" in name for name in started)
    for name, leaf in (started | flatten_dict(run.load_frozen(), sep="/")).items():
        np.testing.assert_array_equal(leaf, model[name], name)
    for lora, message in (
        (dict(rank=2, alpha=8.0), "rank 4, .* states 2"),
        (None, "rank 4, .* states None"),
    ):
        with config.ignore_type():
            config.model.lora = lora
        with pytest.raises(UserError, match=f"has adapters with {message}.*gve_jax.convert"):
            Experiment(config, tmp_path)


def test_a_finished_run_is_not_lengthened_but_says_how_to_go_on(world, base, finished):
    config = recipe(world, base)
    config.steps = 8
    with pytest.raises(UserError, match="steps was 4, is 8.*add --config.pretrained=.*/model"):
        Experiment(config, finished).is_complete()


def test_all_exports_of_the_trained_model_agree(base, finished):
    assert not (finished / "initial").exists()  # the base is the initial model
    models = {
        "ours": GVE.from_pretrained(finished / "model"),
        "peft": GVE.from_pretrained(base, dtype="float32", adapter=finished / "adapter"),
        "hf": GVE.from_pretrained(finished / "hf", dtype="float32"),
        "base": GVE.from_pretrained(base, dtype="float32"),
    }
    ours = models["ours"]
    frozen = flatten_dict(models["base"].params, sep="/")
    for name, leaf in flatten_dict(ours.params, sep="/").items():
        if "/lora/" not in name:
            np.testing.assert_array_equal(leaf, frozen[name], name)
    vectors = {name: model.encode(TEXTS) for name, model in models.items()}
    np.testing.assert_array_equal(vectors["peft"], vectors["ours"])
    np.testing.assert_allclose(vectors["hf"], vectors["ours"], atol=1e-5)
    assert np.abs(vectors["base"] - vectors["ours"]).max() > 1e-3
    settings = json.loads((finished / "adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(base)


def test_a_missing_export_is_written_by_repeating_the_command(world, base, finished):
    before = losses(finished)
    shutil.rmtree(finished / "hf")
    train(recipe(world, base), finished)
    assert (finished / "hf" / "config.json").is_file()
    assert losses(finished) == before
    assert json.loads((finished / "train.json").read_text())["steps"] == 4


@situation(
    "Training",
    "pretrained weights or tokenizer changed between a run and its resumption",
    "refused by name",
    since="0.1.0",
)
@pytest.mark.parametrize("part", ["weights", "tokenizer"])
def test_a_changed_base_is_refused_by_name(world, base, stopped, tmp_path, part):
    changed = shutil.copytree(base, tmp_path / "changed")
    if part == "weights":
        weights = load_file(changed / "model.safetensors")
        weights["model.norm.weight"][0] += 1
        save_file(weights, changed / "model.safetensors", metadata={"format": "pt"})
    else:
        tokenizer = Tokenizer.from_file(str(changed / "tokenizer.json"))
        tokenizer.add_tokens(["xyzzy"])
        tokenizer.save(str(changed / "tokenizer.json"))
        with pytest.raises(UserError, match="not the tokenizer that .* was made with"):
            train(recipe(world, changed), stopped)
        fields = json.loads((changed / "config.json").read_text())
        del fields["gve_jax"]["tokenizer"]  # as exported by gve_jax 0.1
        (changed / "config.json").write_text(json.dumps(fields))
    named = {"weights": r"frozen_weights was \S+, is", "tokenizer": "data.tokenizer was"}[part]
    with pytest.raises(UserError, match=named):
        train(recipe(world, changed), stopped)


def test_shapes_that_differ_from_the_base_are_refused(world, base, tmp_path):
    config = recipe(world, base)
    config.model.text = make_config(world).model.text.copy_and_resolve_references()
    config.model.text.num_hidden_layers = 3
    with pytest.raises(UserError, match="model.text.num_hidden_layers is 3; .* has 2"):
        Experiment(config, tmp_path)


@pytest.mark.slow
def test_a_stopped_and_resumed_run_has_bitwise_identical_losses(
    world, base, finished, stopped, tmp_path
):
    """Across the boundary of stages, with dropout. The base was moved, and a process decodes
    instead of threads: both may change on resume."""
    moved = shutil.copytree(base, tmp_path / "moved")
    train(recipe(world, moved, data__workers=1), stopped)
    assert losses(stopped) == losses(finished)
    for name in ("model", "adapter"):
        assert (stopped / name).is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [gve_3b, qwen3vl_2b], ids=["gve_3b", "qwen3vl_2b"])
def test_the_published_config_runs_at_tiny_widths(world, tmp_path, recipe):
    config = recipe.get_config("smoke")
    config.data.pairs, config.data.tokenizer = f"{world}/pairs", f"{world}/tokenizer.json"
    train(config, tmp_path)
    assert sorted(losses(tmp_path)) == [0, 1]
    before = GVE.from_pretrained(tmp_path / "initial")
    after = GVE.from_pretrained(tmp_path / "model")
    assert after.config.lora == before.config.lora
    moved = {
        name
        for (name, a), b in zip(
            flatten_dict(before.params, sep="/").items(), jax.tree.leaves(after.params), strict=True
        )
        if (np.asarray(a) != np.asarray(b)).any()
    }
    assert moved and all(name.endswith("/lora/b") or name.endswith("/lora/a") for name in moved)
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()


@pytest.mark.slow
def test_a_quantized_base_is_exported_with_its_original_weights(world, monkeypatch, tmp_path):
    pytest.importorskip("qwix")
    one = jax.make_mesh(
        (1, 1, 1), AXES, devices=jax.devices()[:1], axis_types=(jax.sharding.AxisType.Auto,) * 3
    )
    monkeypatch.setattr("gve_jax.running.setup.make_mesh", lambda axes, devices: one)
    wide = make_config(world)  # widths are multiples of 64
    wide.model.vision.out_hidden_size = wide.model.text.hidden_size = 64
    wide.model.text.update(num_attention_heads=4)
    run = Experiment(wide, tmp_path / "w")
    run.export("hf", run.initial_state()["params"], {}, tmp_path / "hf")

    config = recipe(world, tmp_path / "hf", quantize="nf4", pyramid__stages=1)
    config.update(steps=1, export=("gve_jax",))
    config.optimizer.warmup_steps = 0
    run = Experiment(config, tmp_path / "run")
    frozen = run.load_frozen()
    kinds = {type(leaf) for leaf in flatten_dict(frozen["language"]).values()}
    assert Quantized in kinds
    dense = Experiment(recipe(world, tmp_path / "hf"), tmp_path / "dense")
    dense.load_frozen()  # the fingerprint has the digest of the original weights
    assert run.fingerprint["frozen_weights"] == dense.fingerprint["frozen_weights"] is not None
    train(config, tmp_path / "run")
    assert np.isfinite(losses(tmp_path / "run")[0][1])
    base = flatten_dict(GVE.from_pretrained(tmp_path / "hf", dtype="float32").params, sep="/")
    ours = flatten_dict(GVE.from_pretrained(tmp_path / "run" / "model").params, sep="/")
    for name, leaf in base.items():
        np.testing.assert_array_equal(ours[name], leaf, name)
    with pytest.raises(UserError, match=r"quantize: language/layers/\S+/kernel trains"):
        config.optimizer.rates = ((".*", 1.0),)
        Experiment(config, tmp_path / "full")
