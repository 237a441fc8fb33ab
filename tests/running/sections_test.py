"""Configurations: released sizes, errors that name the field, fields that may change on resume."""

import dataclasses
import math

import jax
import pytest

from configs import gve_3b, gve_7b, gve_mixture, quickstart, qwen3vl_2b
from evals.parity.reference import SIZES
from gve_jax.checkpoints.hf_config import from_hf, to_hf
from gve_jax.errors import UserError
from gve_jax.inputs.tokenizer import TOKENS
from gve_jax.learning.curriculum import PyramidConfig
from gve_jax.learning.pyramid import modality
from gve_jax.model.embedder import init_params
from gve_jax.running.experiment import Experiment
from gve_jax.running.sections import (
    largest_batch_size,
    model_config,
    read_settings,
    source_batch_sizes,
)
from tests.situations import situation
from tests.train_test import make_config

# Of the released models, without the output head of the larger one, which an embedder lacks.
PARAMETERS = {"3b": 3_754_622_976, "7b": 8_292_166_656 - 152_064 * 3584}
RANK = 16


@pytest.mark.parametrize("size, file", [("3b", gve_3b), ("7b", gve_7b)])
def test_the_published_configurations_have_the_released_shapes(size, file):
    config = file.get_config()
    cfg = model_config(read_settings(config), None)
    plain = dataclasses.replace(cfg, lora=None)
    shapes = jax.eval_shape(lambda: init_params(plain, 0)[1])
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == PARAMETERS[size]
    for part in ("text", "vision"):
        ours = dataclasses.asdict(getattr(cfg, part))
        assert SIZES[size][part].items() <= ours.items()
    t = cfg.text
    wide, inner, keys = t.hidden_size, t.intermediate_size, t.head_dim * t.num_key_value_heads
    ends = 2 * wide + 2 * (wide + keys) + 3 * (wide + inner)  # q; k and v; gate, up and down
    adapted = jax.eval_shape(lambda: init_params(cfg, 0)[1])
    added = sum(leaf.size for leaf in jax.tree.leaves(adapted)) - PARAMETERS[size]
    assert added == RANK * ends * t.num_hidden_layers


def test_the_recipe_on_qwen3_has_the_released_shapes():
    """Qwen3-VL-2B: its total and its shapes are facts of the release (tests/goldens/widths.py)."""
    config = qwen3vl_2b.get_config()
    cfg = model_config(read_settings(config), None)
    shapes = jax.eval_shape(lambda: init_params(dataclasses.replace(cfg, lora=None), 0)[1])
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 2_127_532_032
    assert from_hf(to_hf(cfg, dict.fromkeys(TOKENS, 1), "float32", "5"), "float32") == (
        dataclasses.replace(
            cfg,
            lora=None,
            **dict(dtype="float32", param_dtype="float32", remat_text="none", remat_vision="none"),
        )
    )
    paper = gve_3b.get_config()
    for section in ("optimizer", "loss", "pyramid", "data"):
        assert config[section] == paper[section]


def test_steps_alone_name_all_that_depends_on_them():
    config = gve_3b.get_config()
    config.steps = 2
    with pytest.raises(
        UserError, match="warmup_steps 100 .*stages 3 .*steps is 2; for example"
    ) as e:
        read_settings(config)
    config.update_from_flattened_dict(
        {
            name.removeprefix("--config."): int(value)
            for name, value in (
                flag.split("=") for flag in str(e.value).split("example ")[1].split()
            )
        }
    )
    assert read_settings(config).steps == 2


@pytest.mark.parametrize("file", [gve_3b, gve_7b, qwen3vl_2b])
def test_the_form_for_own_pairs_takes_its_shapes_from_any_base(file):
    own = read_settings(file.get_config("own"))
    assert own.model.vision is own.model.text is None
    assert own.batch_size == 1024


def test_both_sizes_have_the_same_smoke_variant():
    assert gve_7b.get_config("smoke").to_dict() == gve_3b.get_config("smoke").to_dict()
    for file in (gve_3b, gve_7b):
        with pytest.raises(ValueError, match="no form 'fast'"):
            file.get_config("fast")


INVALID = [
    (dict(optimizer__rates=(("lora", 1.0), (".*", 1.0))), "rates: pattern 'lora' matches no"),
    (dict(optimizer__rates=((".*", 0),)), "optimizer.rates freezes every parameter"),
    (dict(optimizer__learning_rate=0.0), "optimizer.learning_rate 0.0 must be above 0"),
    (
        dict(optimizer__warmup_steps=6),
        r"optimizer.warmup_steps 6 must be at most 5, since config.steps is 6",
    ),
    (dict(optimizer__b2=1.0), r"optimizer.b2 1.0 must be in \[0, 1\)"),
    (dict(loss__temperature=0.0), "loss.temperature 0.0 must be above 0"),
    (dict(steps=0), r"steps 0 must be in \[1, 2147483647\]"),
    (dict(batch_size=12), "batch_size 12 must be a multiple of data . fsdp = 8"),
    (dict(gradcache_chunk=3), "gradcache_chunk 3 must divide batch_size 8"),
    (dict(checkpoint__every=0), "checkpoint.every 0 must be at least 1"),
    (dict(log_every=0), "log_every 0 must be at least 1"),
    (dict(export=("onnx",)), r"export\[0\] 'onnx' must be one of gve_jax, peft, hf"),
    (dict(export=()), "export must name a format"),
    (dict(export=("peft",)), "export 'peft' needs adapters"),
    (dict(pretrained="nowhere"), "nowhere: no such directory"),
    (dict(quantize="nf4"), "quantize needs config.pretrained"),
    (dict(mesh__data=3), r"mesh \(data=3, .*must multiply to the number of devices, 8"),
    (dict(data__tokenizer=None), "data.tokenizer is missing"),
    (dict(inputs__num_frames=3), "num_frames must be an even number"),
    (dict(data__batch_sizes=(("T2V", 12),)), "batch_size 12 must be a multiple of data . fsdp = 8"),
    (dict(data__batch_sizes=(("X2X", 8),)), "data.batch_sizes: pattern 'X2X' matches no source"),
    (dict(data__batch_sizes=((".*", 0),)), r"data.batch_sizes\[0\]\[1\] 0.0 must be above 0"),
    (dict(data__batch_sizes=(("I2I", 0.3),)), "0.3 must give a whole number of pairs"),
    (dict(data__batch_sizes=(("I2I", 1024),)), "'I2I' has 8 pairs, fewer than batch_size 1024"),
    (dict(data__batch_sizes=(("I2I", 8), "x")), r"data.batch_sizes\[1\] 'x' must be a tuple"),
    (dict(data__repeat=((".*", -1),)), r"data.repeat\[0\]\[1\] -1 must be in \[0, 1000000\]"),
    (dict(data__repeat=((".*", 1),), steps=999), r"data.repeat: .* have \d+ batches for 999 steps"),
    (dict(data__sources=("T2V_none",)), "data.sources: no source 'T2V_none'"),
    (dict(pyramid__schedule="random"), "config.pyramid.schedule 'random' must be one of pyramid"),
    (dict(pyramid__pairs=0), "config.pyramid.pairs 0 must be at least 1"),
    (dict(pyramid__prober="none.json"), "pyramid.prober none.json: .*No such file"),
]


@pytest.mark.parametrize("fields, message", INVALID, ids=[message for _, message in INVALID])
def test_an_invalid_field_is_named(world, tmp_path, fields, message):
    with pytest.raises(UserError, match=message) as error:
        Experiment(make_config(world, **fields), tmp_path / "w")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "w").exists()


@situation(
    "Training",
    "a misspelt field in a configuration",
    "refused with its name and the known fields",
    since="0.1.0",
)
@pytest.mark.parametrize(
    "section, field",
    [
        ("loss", "temprature"),
        ("optimizer", "lr"),
        ("inputs", "frames"),
        ("buckets", "shape"),
        ("limits", "second"),
        ("checkpoint", "step"),
        ("model", "dropout"),
        ("model.text", "layers"),
        ("pyramid", "sigmas"),
        ("data", "weights"),
    ],
)
def test_an_unknown_field_of_a_file_is_named(world, tmp_path, section, field):
    config = make_config(world)
    part = config
    for name in section.split("."):
        part = part[name]
    part[field] = 1
    with pytest.raises(UserError, match=rf"config\.{section}.*{field}"):
        Experiment(config, tmp_path)


@situation(
    "Training",
    "clip_norm=inf, seed=-1 or 2**32, pyramid.bounds=(2.5,), tables of wrong "
    "shape, None or a missing section",
    "one line that names the field, before anything is read or compiled",
    since="0.2.0",
)
@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("optimizer.clip_norm", math.inf, "config.optimizer.clip_norm inf must be finite"),
        ("optimizer.clip_norm", True, "config.optimizer.clip_norm True must be a number"),
        (
            "optimizer.learning_rate",
            "1e-4",
            "config.optimizer.learning_rate '1e-4' must be a number",
        ),
        ("optimizer.learning_rate", None, "config.optimizer.learning_rate None must be a number"),
        ("optimizer", None, "config.optimizer None must be a section of fields"),
        ("optimizer.rates", ((".*",),), r"config.optimizer.rates\[0\] .* must be a tuple of 2"),
        ("optimizer.rates", 3, "config.optimizer.rates 3 must be a tuple"),
        ("seed", -1, r"config.seed -1 must be in \[0, 4294967295\]"),
        ("seed", 2**32, r"config.seed 4294967296 must be in \[0, 4294967295\]"),
        ("seed", 1.5, "config.seed 1.5 must be an integer"),
        ("steps", 2**31, r"config.steps 2147483648 must be in \[1, 2147483647\]"),
        ("pyramid.bounds", (2.5,), r"config.pyramid.bounds\[0\] 2.5 must be an integer"),
        (
            "pyramid.weights",
            ((".*", "x"),),
            r"config.pyramid.weights\[0\]\[1\] 'x' must be a tuple",
        ),
        ("profile", (1, 2, 3), r"config.profile \(1, 2, 3\) must be \(\) or \(first step, steps\)"),
        ("profile", (1, 0), r"config.profile \(1, 0\) must be"),
        ("export", "hf", "config.export 'hf' must be a tuple"),
        ("loss.temperature", math.nan, "config.loss.temperature nan must be finite"),
        (
            "data.siblings",
            {"T2V_camera": 0},
            "config.data.siblings.T2V_camera 0 must be at least 1",
        ),
        ("data.pairs", 3, "config.data.pairs 3 must be a text"),
        ("buckets.shapes", (), "config.buckets: shapes must hold at least one"),
        ("inputs.patch_size", 7, "config.inputs.patch_size: unknown field"),
        ("inputs.min_pixels", 0, "config.inputs.min_pixels 0 must be at least 1"),
        ("limits.seconds", math.inf, "config.limits.seconds inf must be finite"),
        (
            "model.text.mrope_section",
            (1, 2),
            "config.model.text.mrope_section .* must be a tuple of 3",
        ),
        ("wandb", "", "config.wandb is empty; set None to leave it out"),
    ],
)
def test_an_invalid_value_is_named(field, value, message):
    config = config_with(field, value)
    with pytest.raises(UserError, match=f"^{message}"):
        read_settings(config)


def config_with(field, value) -> dict:
    """The quickstart's configuration with one field replaced."""
    config = quickstart.get_config("smoke").to_dict()
    *sections, name = field.split(".")
    part = config
    for section in sections:
        part = part[section]
    part[name] = value
    return config


def test_every_error_is_one_line_that_names_the_field():
    """Each field is set to values of many types, which are accepted or refused."""
    fields = []
    for name, value in quickstart.get_config("smoke").to_dict().items():
        fields.append(name)
        fields += [f"{name}.{key}" for key in value] if isinstance(value, dict) else []
    fields += ["model.text.vocab_size", "model.text.mrope_section", "model.vision.depth"]
    odd = (
        None,
        True,
        -1,
        0,
        2.5,
        math.nan,
        math.inf,
        10**400,
        "",
        "x",
        (),
        (1,),
        ("x", 1),
        {},
        {"x": 1},
        [[1, 2], [3]],
        object(),
        b"x",
    )
    for field in fields:
        refused = 0
        for value in odd:
            try:
                settings = read_settings(config_with(field, value))
                model_config(settings, None)
            except UserError as error:
                assert "\n" not in str(error)
                assert field.split(".")[0] in str(error)
                refused += 1
        assert refused >= 8, field


def test_a_missing_field_of_a_file_is_named(world, tmp_path):
    config = make_config(world)
    del config.optimizer.rates
    with pytest.raises(UserError, match="config.optimizer.rates is missing"):
        Experiment(config, tmp_path)
    config = make_config(world)
    del config.model.text
    with pytest.raises(UserError, match="config.model.text is missing: set it or config.pretr"):
        Experiment(config, tmp_path)


def test_a_workdir_that_cannot_be_written_is_named(world, tmp_path):
    (tmp_path / "file").write_text("")
    run = Experiment(make_config(world), tmp_path / "file" / "w")
    with pytest.raises(UserError, match=f"--workdir {tmp_path}/file/w cannot be written"):
        run.is_complete()


def test_fields_that_do_not_affect_the_result_may_change_on_resume(world, tmp_path):
    first = Experiment(make_config(world), tmp_path).fingerprint
    changed = Experiment(
        make_config(
            world,
            mesh__data=2,
            mesh__fsdp=4,
            checkpoint__every=5,
            log_every=2,
            data__workers=1,
            limits__seconds=99.0,
            gradcache_chunk=8,
            model__remat_text="none",
            export=("hf",),
            data__max_bad_share=0.5,
        ),
        tmp_path,
    )
    assert changed.fingerprint == first
    for name, value in {
        "seed": 43,
        "steps": 7,
        "loss__temperature": 0.05,
        "data__siblings__T2V_camera": 4,
        "pyramid__sigma_per": "step",
        "data__repeat": ((".*", 9),),
        "optimizer__b2": 0.99,
        "inputs__num_frames": 6,
        "model__dtype": "bfloat16",
        "model__text__num_hidden_layers": 3,
    }.items():
        other = Experiment(make_config(world, **{name: value}), tmp_path)
        assert other.fingerprint != first, name


def test_the_quickstart_states_every_field():
    for form in ("", "smoke", "small"):
        config = quickstart.get_config(form)
        read_settings(config)
        assert set(config.pyramid) == {field.name for field in dataclasses.fields(PyramidConfig)}


def batches_of(config) -> dict[str, int]:
    return source_batch_sizes(read_settings(config), config.data.sources)


def test_batch_size_decides_the_batches_of_every_source():
    """Also of the largest batch, which the planner plans."""
    config = gve_3b.get_config()
    before = batches_of(config)
    assert set(before.values()) == {1024, 2048}
    config.batch_size = 512
    assert batches_of(config) == {name: size // 4 for name, size in before.items()}
    assert largest_batch_size(read_settings(config)) == 512
    config.data.batch_sizes = (("^T2T_", 0.5), ("^T2V_", 1024))
    sizes = batches_of(config)
    assert (sizes["T2T_webqa"], sizes["T2V_vast"], sizes["I2T_cc3m"]) == (256, 1024, 512)
    assert largest_batch_size(read_settings(config)) == 1024
    config.data.sources = ("T2T_.*",)  # a pattern: the planner does not know which sources match
    assert largest_batch_size(read_settings(config)) == 1024
    config.data.sources = ("T2T_webqa", "I2T_cc3m")
    config.data.batch_sizes = ((".*", 0.25),)
    assert largest_batch_size(read_settings(config)) == 128


def test_the_configs_name_the_papers_mixture():
    """Sums of tables 6 to 8, and sources that the ablations leave out."""
    full, plain, collected = (gve_3b.get_config(form) for form in ("", "s", "i"))
    assert full.data.sources == plain.data.sources
    assert set(full.data.sources) - set(collected.data.sources) == {
        f"{pair}_uvrd" for pair in ("T2T", "T2I", "T2V", "TI2V", "TV2V", "I2V", "V2V")
    }
    schedules = [config.pyramid.schedule for config in (full, plain, collected)]
    assert schedules == ["pyramid", "proportional", "proportional"]
    sizes = {
        group: sum(s.size_3b for s in gve_mixture.ALL if modality(s.name) in pairs)
        for group, pairs in {
            "text": ("T2T",),
            "to video": ("T2V", "TI2V", "TV2V", "I2V", "V2V"),
        }.items()
    }
    assert sizes == {"text": 380 + 100, "to video": 8804 + 879 + 89 + 35 + 200 + 36}
    assert sum(s.size_3b for s in gve_mixture.SYNTHESIZED) == 1549
    batches = batches_of(full)
    assert batches["T2V_webvid"] == 1024 and batches["T2V_pevideo"] == batches["TV2V_uvrd"] == 2048
    own = gve_7b.get_config("own")
    assert own.data.sources == own.data.batch_sizes == ()
    assert "gme" in full.pyramid.prober and own.pyramid.prober is plain.pyramid.prober is None
    own.pyramid.prober = full.pyramid.prober
    assert own.pyramid == full.pyramid
