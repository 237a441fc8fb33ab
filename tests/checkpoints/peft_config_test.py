"""The allow-list of adapter_config.json, and values of wrong types."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest

from gve_jax.checkpoints.peft import WEIGHTS, _projections, read_adapter, write_adapter
from gve_jax.checkpoints.peft_config import CONFIG, read_config
from gve_jax.errors import UserError
from tests.checkpoints import peft_test
from tests.checkpoints.peft_test import CFG, NUMBERS, edit, rewrite, tensors_of
from tests.situations import situation

pefts = peft_test.pefts

# All fields of `peft.LoraConfig` in peft 0.21.2 with their defaults.
DEFAULTS = json.loads(
    """{
    "alora_invocation_tokens": null, "alpha_pattern": {}, "arrow_config": null,
    "auto_mapping": null, "base_model_name_or_path": null, "bias": "none", "corda_config": null,
    "ensure_weight_tying": false, "eva_config": null, "exclude_modules": null,
    "fan_in_fan_out": false, "inference_mode": false, "init_lora_weights": true,
    "kasa_config": null, "layer_replication": null, "layers_pattern": null,
    "layers_to_transform": null, "loftq_config": {}, "lora_alpha": 8, "lora_bias": false,
    "lora_dropout": 0.0, "lora_ga_config": null, "megatron_config": null,
    "megatron_core": "megatron.core", "modules_to_save": null, "monteclora_config": null,
    "peft_type": null, "peft_version": null, "qalora_group_size": 16, "r": 8, "rank_pattern": {},
    "revision": null, "target_modules": null, "target_parameters": null, "task_type": null,
    "trainable_token_indices": null, "use_bdlora": null, "use_dora": false, "use_qalora": false,
    "use_rslora": false, "velora_config": null
    }"""
)
# Values that enable a variant.
ON = json.loads(
    """{
    "alora_invocation_tokens": [1, 2], "alpha_pattern": {"q_proj": 8},
    "arrow_config": {"top_k": 1}, "kasa_config": {"a": 1}, "layer_replication": [[0, 1]],
    "layers_to_transform": 0, "lora_bias": true, "megatron_config": {"a": 1},
    "modules_to_save": ["lm_head"], "monteclora_config": {"a": 1}, "rank_pattern": {"q_proj": 2},
    "target_parameters": ["w"], "trainable_token_indices": [0], "use_bdlora": {"a": 1},
    "use_qalora": true, "velora_config": {"num_groups": 4}
    }"""
)
# Fields without effect on a trained adapter.
NOTES = json.loads(
    """{
    "auto_mapping": {"unsloth_fixed": true}, "base_model_name_or_path": "org/base",
    "corda_config": {"verbose": true}, "ensure_weight_tying": true, "eva_config": {"rho": 2.0},
    "fan_in_fan_out": true, "inference_mode": false, "init_lora_weights": "eva",
    "layers_pattern": "layers", "loftq_config": {"loftq_bits": 4}, "lora_ga_config": {"a": 1},
    "megatron_core": "other", "peft_version": "9", "qalora_group_size": 8, "revision": "main",
    "runtime_config": {"ephemeral_gpu_offload": true}, "task_type": "FEATURE_EXTRACTION"
    }"""
)
# Values of a wrong type or out of range.
ODD = json.loads(
    """{
    "r": ["4", 4.0, true, 0, null, [4]],
    "lora_alpha": ["8", null, true, NaN, Infinity, {}],
    "lora_dropout": [null, "0.1", 1, -0.1, NaN, false],
    "target_modules": [[], [1], {"q_proj": 1}, 3, ""],
    "exclude_modules": [3, [null]],
    "use_rslora": ["true", 1],
    "use_dora": ["false", 0],
    "bias": ["all", "lora_only", [], true],
    "init_lora_weights": ["pissa", "pissa_niter_16", "olora", "loftq", "corda", "lora_ga", "mica",
    1, []],
    "fan_in_fan_out": ["no"]
    }"""
)


def assert_adapter(directory, expected):
    cfg, adapters = read_adapter(directory, CFG)
    assert cfg == expected[0]
    jax.tree.map(np.testing.assert_array_equal, adapters, expected[1])


def test_every_field_of_peft_is_covered():
    saved = json.loads(NUMBERS[f"paper/{CONFIG}"].tobytes())
    assert saved.keys() == DEFAULTS.keys()
    read = set(
        """
        peft_type r lora_alpha lora_dropout target_modules exclude_modules bias use_rslora use_dora
        """.split()
    )
    assert DEFAULTS.keys() | {"runtime_config"} == ON.keys() | NOTES.keys() | read


@situation(
    "Models and checkpoints",
    "a PEFT adapter with aLoRA, rank or alpha patterns, some layers only, trained "
    "biases, tokens or full modules",
    "an error that names every unsupported field",
    since="0.1.0",
)
@situation(
    "Models and checkpoints",
    "a PEFT adapter with an option unknown to this version",
    "accepted if unset, otherwise an error that names it",
    since="0.2.0",
)
@pytest.mark.parametrize(
    "fields",
    [{name: value} for name, value in ON.items()]
    + [
        {"use_new_variant": True},
        {"new_config": {"a": 1}},
        {"new_scale": 0},
        {"layers_to_transform": [0]},
        {"use_qalora": True, "use_new_variant": "on"},
    ],
)
def test_variants_are_refused_by_name(pefts, fields):
    directory = pefts("paper")
    edit(directory, **{name: DEFAULTS.get(name) for name in fields})
    read_config(directory / CONFIG)  # accepted while unset
    edit(directory, **fields)
    with pytest.raises(UserError, match="not supported") as error:
        read_adapter(directory, CFG)
    for name, value in fields.items():
        assert f"{name} = {json.dumps(value)}" in str(error.value)


@pytest.mark.parametrize(
    "fields",
    [
        *({name: value} for name, value in NOTES.items()),
        NOTES,
        {"use_new_variant": False, "new_config": {}, "new_list": [], "new_name": "", "other": None},
        {
            name: value
            for name, value in DEFAULTS.items()
            if name not in ("peft_type", "r", "lora_alpha", "lora_dropout", "target_modules")
        },
        {"init_lora_weights": "gaussian", "use_rslora": None, "bias": None, "exclude_modules": []},
    ],
)
def test_fields_without_effect_are_accepted(pefts, fields):
    directory = pefts("paper")
    expected = read_adapter(directory, CFG)
    edit(directory, **fields)
    assert_adapter(directory, expected)


@situation(
    "Models and checkpoints",
    "adapter_config.json with values of wrong types (a number in quotes, null, NaN, a list)",
    "a one-line error with file, field and expected type",
    since="0.2.0",
)
@pytest.mark.parametrize(
    "name, value", [(name, value) for name, values in ODD.items() for value in values]
)
def test_wrong_types_are_named_in_one_line(pefts, name, value):
    directory = pefts("paper")
    edit(directory, **{name: value})
    with pytest.raises(UserError) as error:
        read_adapter(directory, CFG)
    text = str(error.value)
    assert CONFIG in text and f"{name} = {json.dumps(value)} must be" in text and "\n" not in text


@pytest.mark.parametrize(
    "text, named",
    [
        ("[]", "not an object"),
        ("", "empty"),
        ('{"r": 1, "r": 2}', "duplicate key 'r'"),
        ('{"peft_type": ["LORA"]}', r"peft_type \['LORA'\] is not 'LORA'"),
        ("{}", "peft_type None"),
        ("version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    ],
)
def test_damaged_config_is_named(pefts, text, named):
    directory = pefts("paper")
    (directory / CONFIG).write_text(text)
    with pytest.raises(UserError, match=f"{CONFIG}.*{named}"):
        read_adapter(directory, CFG)


def test_byte_order_mark_is_skipped(pefts):
    directory = pefts("paper")
    expected = read_config(directory / CONFIG)
    (directory / CONFIG).write_bytes(b"\xef\xbb\xbf" + (directory / CONFIG).read_bytes())
    assert read_config(directory / CONFIG) == expected


@pytest.mark.parametrize(
    "fields, named",
    [
        ({"target_modules": "("}, r"target_modules '\(' is not a regular expression"),
        ({"exclude_modules": "*x"}, r"exclude_modules '\*x' is not a regular expression"),
        (
            {"target_modules": ["nothing"]},
            "target_modules match no projection of the model, such as",
        ),
        ({"exclude_modules": ".*"}, "match no projection"),
    ],
)
def test_unmatched_modules_name_their_field(pefts, fields, named):
    directory = pefts("paper")
    edit(directory, **fields)
    with pytest.raises(UserError, match=named):
        read_adapter(directory, CFG)


@situation(
    "Models and checkpoints",
    '`target_modules: "all-linear"` in adapter_config.json',
    "adapts the same modules as PEFT, with the same vectors",
    since="0.2.0",
)
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"target_modules": "all-linear"},
        {"target_modules": "All-Linear", "fan_in_fan_out": True},
        {"target_modules": ".*_proj"},
    ],
)
def test_all_linear_adapts_the_modules_of_peft(pefts, fields):
    directory = pefts("linear")  # whose vectors peft_test compares with PEFT's
    expected = read_adapter(directory, CFG)
    edit(directory, **fields)
    assert_adapter(directory, expected)


@pytest.mark.parametrize("case", ["paper", "names", "linear"])
def test_adapted_modules_are_those_of_peft(pefts, case):
    names = _projections(CFG, "5")
    config = read_config(pefts(case) / CONFIG)
    chosen = sorted(name for name in names if config.adapts(name))
    assert chosen == NUMBERS[f"{case}/modules"].tolist()


WRAPPED = {
    "DDP": lambda name: f"module.{name}",
    "torch.compile": lambda name: name.replace("base_model.model.", "base_model.model._orig_mod."),
    "compiled outside, DDP": lambda name: f"_orig_mod.module.{name}",
    "FSDP": lambda name: re.sub(
        r"(layers\.\d+)\.", r"_fsdp_wrapped_module.\1._checkpoint_wrapped_module.", name
    ),
    "the state dict, with the adapter's name": lambda name: name.replace(
        ".weight", ".default.weight"
    ),
    "no prefix": lambda name: name.removeprefix("base_model.model."),
    "PEFT in PEFT": lambda name: f"base_model.model.{name}",
}


@situation(
    "Models and checkpoints",
    "an adapter with the prefixes of DDP, FSDP, torch.compile, Fabric or a raw state dict "
    "(`module.`, `_orig_mod.`, `.default.`)",
    "loads",
    since="0.2.0",
)
@pytest.mark.parametrize("rename", WRAPPED.values(), ids=WRAPPED.keys())
def test_prefixes_of_wrappers_are_removed(pefts, rename):
    directory = pefts("names")
    expected = read_adapter(directory, CFG)
    renamed = {rename(name): value for name, value in tensors_of(directory).items()}
    assert len(renamed) == len(tensors_of(directory)) and renamed.keys() != tensors_of(directory)
    rewrite(directory, renamed)
    assert_adapter(directory, expected)


@situation(
    "Models and checkpoints",
    "an adapter whose tensors have an unknown prefix, or belong to another model",
    "an error that shows the prefix and the name in PEFT",
    since="0.2.0",
)
@pytest.mark.parametrize(
    "rename, named",
    [
        (
            lambda name: name.replace("base_model.model.", "base_model.model.encoder."),
            r"has the unknown prefix 'encoder.'; rename the tensors as PEFT does: "
            r"base_model.model\..*lora_A",
        ),
        (
            lambda name: name.replace("layers", "blocks").replace("visual", "vit"),
            "no tensor belongs to "
            "a projection of this model; the first is base_model.model.*"
            "an adapter of another model",
        ),
    ],
)
def test_unknown_prefixes_are_named(pefts, rename, named):
    directory = pefts("paper")
    rewrite(directory, {rename(name): array for name, array in tensors_of(directory).items()})
    with pytest.raises(UserError, match=named) as error:
        read_adapter(directory, CFG)
    assert len(str(error.value)) < 800


@situation(
    "Models and checkpoints",
    "an adapter of another architecture or size than the model's",
    "an error that names the adapter's base model",
    since="0.3.0",
)
def test_adapter_of_another_base_names_that_base(pefts):
    directory = pefts("paper")
    edit(directory, base_model_name_or_path="org/base")
    wider = dataclasses.replace(CFG.text, intermediate_size=2 * CFG.text.intermediate_size)
    with pytest.raises(UserError, match="an adapter of org/base.: misshapen: .*gate_proj"):
        read_adapter(directory, dataclasses.replace(CFG, text=wider))
    deeper = dataclasses.replace(CFG.text, num_hidden_layers=3)
    with pytest.raises(UserError, match="an adapter of org/base.: missing: .*layers.2"):
        read_adapter(directory, dataclasses.replace(CFG, text=deeper))
    edit(directory, base_model_name_or_path=None)
    recorded = json.loads((directory / CONFIG).read_text())["auto_mapping"]
    assert read_config(directory / CONFIG).architecture == "qwen2_5_vl"
    # The decoders of Qwen2-VL-7B and Qwen2.5-VL-7B have the same names and shapes.
    for library, refused in (
        (recorded["parent_library"].replace("2_5", "2"), True),
        ("custom.modeling", False),
        (None, False),
    ):
        edit(directory, auto_mapping=recorded | {"parent_library": library})
        if not refused:
            read_adapter(directory, CFG)
            continue
        with pytest.raises(UserError, match="architecture qwen2_vl, not qwen2_5_vl$"):
            read_adapter(directory, CFG)


def test_duplicate_tensors_and_several_adapters_are_refused(pefts):
    directory = pefts("paper")
    tensors = tensors_of(directory)
    first = next(iter(tensors))
    rewrite(directory, tensors | {f"module.{first}": tensors[first]})
    with pytest.raises(UserError, match="are the same tensor"):
        read_adapter(directory, CFG)
    first = {name.replace(".weight", ".first.weight"): a for name, a in tensors.items()}
    rewrite(directory, first)
    read_adapter(directory, CFG)
    name = "base_model.model.lm_head.lora_A.second.weight"
    rewrite(directory, first | {name: np.ones((4, 48), np.float32)})
    with pytest.raises(UserError, match="several adapters in one file: first, second"):
        read_adapter(directory, CFG)


@situation(
    "Models and checkpoints",
    "an adapter with full tensors (resized embeddings, a trained head)",
    "an error that names them",
    since="0.1.0",
)
def test_full_tensors_in_an_adapter_are_named(pefts):
    directory = pefts("paper")
    tensors = tensors_of(directory)
    name = "base_model.model.lm_head.weight"
    rewrite(directory, tensors | {name: np.ones((4, 48), np.float32)})
    with pytest.raises(UserError, match=f"unexpected: {name}"):
        read_adapter(directory, CFG)
    rewrite(directory, {f"{key}.x": value for key, value in tensors.items()} | tensors)
    with pytest.raises(UserError, match="and [0-9]+ more") as error:
        read_adapter(directory, CFG)
    assert str(error.value).count("unexpected") == 20


def test_written_config_is_readable_by_peft(pefts, tmp_path):
    cfg, adapters = read_adapter(pefts("paper"), CFG)
    write_adapter(tmp_path / "ours", adapters, cfg)
    assert json.loads((tmp_path / "ours" / CONFIG).read_text()).keys() <= DEFAULTS.keys()
    assert (tmp_path / "ours" / WEIGHTS).is_file()
    for given, named in (
        ("org/base@v1", ("org/base", "v1")),
        ("org/base", ("org/base", None)),
        ("/a/b@c", ("/a/b@c", None)),
        (None, (None, None)),
    ):
        write_adapter(tmp_path / "ours", adapters, cfg, base_model=given)
        wrote = json.loads((tmp_path / "ours" / CONFIG).read_text())
        assert (wrote["base_model_name_or_path"], wrote["revision"]) == named


def test_an_integer_beyond_the_largest_float_is_named(pefts):
    directory = pefts("paper")
    edit(directory, lora_alpha=10**400)
    with pytest.raises(UserError, match="lora_alpha = 1000.* must be a number$"):
        read_config(directory / CONFIG)
