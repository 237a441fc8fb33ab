"""Adapter directories written by PEFT (goldens/lora.py), and errors for damaged ones."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from gve_jax.checkpoints.peft import WEIGHTS, read_adapter, write_adapter
from gve_jax.checkpoints.peft_config import CONFIG
from gve_jax.checkpoints.safetensors import Part, read_header, write_file
from gve_jax.errors import UserError
from gve_jax.model import lora
from gve_jax.model.config import LoraConfig
from gve_jax.model.embedder import init_params, make_embed
from tests.goldens import lora as golden
from tests.model import embedder_test
from tests.model.embedder_test import BUCKET, CFG, ROWS, cosine, make_batch
from tests.situations import situation

NUMBERS = np.load(Path(golden.__file__).with_suffix(".npz"))
BATCH = make_batch(ROWS, BUCKET)
embed_plain = jax.jit(make_embed(CFG))  # compiled once, for plain and merged weights
base_params = embedder_test.params  # the reference's weights as our parameters


@pytest.fixture
def pefts(tmp_path):
    """Writes the adapter that PEFT wrote in a case; returns the directory."""

    def write(case):
        directory = tmp_path / case
        directory.mkdir()
        for name in (CONFIG, WEIGHTS):
            (directory / name).write_bytes(NUMBERS[f"{case}/{name}"].tobytes())
        return directory

    return write


def tensors_of(directory):
    tensors = {}
    for name, tensor in read_header(directory / WEIGHTS).items():
        tensors[name] = np.empty(tensor.shape, np.float32)
        rows, columns = (*tensor.shape, 1)[:2]
        tensor.read([Part((0, rows), (0, columns), tensors[name].reshape(rows, columns))])
    return tensors


def rewrite(directory, tensors):
    tensors = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    shapes = {name: (array.shape, array.dtype) for name, array in tensors.items()}
    write_file(directory / WEIGHTS, shapes, iter(tensors.values()))


def edit(directory, **fields):
    path = directory / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize("case", golden.CASES)
@situation(
    "Models and checkpoints",
    "a LoRA adapter saved by PEFT",
    "the vectors of PEFT, merged or not",
    since="0.1.0",
)
def test_adapter_gives_vectors_of_peft(pefts, base_params, case):
    cfg, adapters = read_adapter(pefts(case), CFG)
    vectors = np.asarray(jax.jit(make_embed(cfg))(lora.join(base_params, adapters), BATCH))
    expected = NUMBERS[f"{case}/pooled"]
    assert cosine(vectors, expected).min() > 0.999999
    np.testing.assert_allclose(vectors, expected, atol=2e-5)
    plain = np.asarray(embed_plain(base_params, BATCH))
    assert cosine(plain, expected).max() < 0.99  # the adapter has an effect
    merged = lora.merge(lora.join(base_params, adapters), cfg)
    assert cosine(np.asarray(embed_plain(merged, BATCH)), expected).min() > 0.999999


def test_config_of_peft_is_converted(pefts):
    cfg, adapters = read_adapter(pefts("paper"), CFG)
    assert (cfg.lora.rank, cfg.lora.alpha, cfg.lora.dropout) == (4, 8.0, 0.1)
    paths = {name.rpartition("/lora/")[0] for name in flatten_dict(adapters, sep="/")}
    default = dataclasses.replace(CFG, lora=LoraConfig())
    _, whole = jax.eval_shape(lambda: init_params(default, 0))
    assert paths == {
        name.rpartition("/lora/")[0] for name in flatten_dict(lora.split(whole)[1], sep="/")
    }
    kernel = adapters["language"]["layers"]["mlp"]["up_proj"]["lora"]["a"]
    name = "base_model.model.model.language_model.layers.1.mlp.up_proj.lora_A.weight"
    np.testing.assert_array_equal(kernel[1].T, golden.draw_adapter(name, (4, 48)))


def test_rank_stabilized_scale(pefts):
    cfg, _ = read_adapter(pefts("names"), CFG)
    assert cfg.lora.scale == pytest.approx(6 / 3**0.5)


@pytest.mark.parametrize("case", golden.CASES)
def test_written_adapter_equals_that_of_peft(pefts, tmp_path, case):
    cfg, adapters = read_adapter(pefts(case), CFG)
    write_adapter(tmp_path / "ours", adapters, cfg, base_model="somewhere")
    ours, theirs = tensors_of(tmp_path / "ours"), tensors_of(tmp_path / case)
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])
    wrote = json.loads((tmp_path / "ours" / CONFIG).read_text())
    known = json.loads((tmp_path / case / CONFIG).read_text())
    assert wrote.keys() <= known.keys()
    assert wrote["base_model_name_or_path"] == "somewhere"
    if case == "paper":
        same = ("peft_type", "r", "lora_alpha", "lora_dropout", "bias", "use_rslora")
        assert {k: wrote[k] for k in same} == {k: known[k] for k in same}


@pytest.mark.parametrize("layout", ["4.49", "5"])
@pytest.mark.parametrize("case", golden.CASES)
@situation(
    "Models and checkpoints",
    "an adapter trained with transformers 4.49, or with 4.52 and later",
    "loads; can be written with the names of either",
    since="0.1.0",
)
def test_every_layout_is_read_back(pefts, tmp_path, layout, case):
    cfg, adapters = read_adapter(pefts(case), CFG)
    write_adapter(tmp_path / "ours", lora.join({"extra": 0}, adapters), cfg, layout=layout)
    names = read_header(tmp_path / "ours" / WEIGHTS)
    start = {
        "4.49": "base_model.model.model.layers.0.",
        "5": "base_model.model.model.language_model.layers.0.",
    }[layout]
    assert any(name.startswith(start) for name in names)
    again, tree = read_adapter(tmp_path / "ours", CFG)
    assert again == cfg
    jax.tree.map(np.testing.assert_array_equal, tree, adapters)


@situation(
    "Models and checkpoints",
    "an adapter trained on AutoModel, which has no head",
    "loads",
    since="0.1.0",
)
def test_adapter_of_automodel_is_read(pefts):
    """Without a head, and without the prefix `model.` in names."""
    directory = pefts("names")
    _, expected = read_adapter(directory, CFG)
    tensors = tensors_of(directory)
    renamed = {name.replace(".model.model.", ".model."): value for name, value in tensors.items()}
    rewrite(directory, renamed)
    edit(directory, exclude_modules=["visual.merger.mlp.2"])
    jax.tree.map(np.testing.assert_array_equal, read_adapter(directory, CFG)[1], expected)


def test_model_without_adapters_is_not_written(tmp_path, base_params):
    with pytest.raises(UserError, match="no adapters"):
        write_adapter(tmp_path / "new", base_params, CFG)
    assert not (tmp_path / "new").exists()


def test_unknown_layout_is_refused(tmp_path):
    with pytest.raises(UserError, match="'6' is unknown; known: 4.49, 5"):
        write_adapter(tmp_path, {}, dataclasses.replace(CFG, lora=LoraConfig()), layout="6")


@pytest.mark.parametrize(
    "fields",
    [
        dict(rank_pattern={"q_proj": 8}, alpha_pattern={"q_proj": 8}),
        dict(init_lora_weights="pissa", layers_to_transform=[0]),
    ],
)
def test_variants_are_refused_with_all_their_fields(pefts, fields):
    directory = pefts("paper")
    edit(directory, **fields)
    with pytest.raises(UserError) as error:
        read_adapter(directory, CFG)
    for name, value in fields.items():
        assert f"{name} = {json.dumps(value)}" in str(error.value)


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(peft_type="IA3"), "peft_type 'IA3'"),
        (dict(r=None, target_modules=None), "invalid r, target_modules"),
        (dict(r=-1), "invalid r"),
        (
            dict(target_modules=r".*language_model\.layers\.1\..*_proj"),
            "some layers only: .*language/layers/self_attn/q_proj .1 of 2.",
        ),
    ],
)
def test_unusable_config_is_refused(pefts, fields, message):
    directory = pefts("paper")
    edit(directory, **fields)
    with pytest.raises(UserError, match=message):
        read_adapter(directory, CFG)


@situation(
    "Models and checkpoints",
    "an adapter of another rank, or with missing or additional tensors",
    "an error that lists the tensors",
    since="0.1.0",
)
def test_all_tensors_that_do_not_fit_are_listed(pefts):
    directory = pefts("paper")
    tensors = tensors_of(directory)
    missing, misshapen, *_ = tensors
    del tensors[missing]
    tensors[misshapen] = tensors[misshapen][:, :-1]
    tensors["base_model.model.lm_head.lora_A.weight"] = np.ones((4, 48), np.float32)
    rewrite(directory, tensors)
    with pytest.raises(UserError) as error:
        read_adapter(directory, CFG)
    text = str(error.value)
    assert f"missing: {missing}" in text
    assert "unexpected: base_model.model.lm_head.lora_A.weight" in text
    assert f"misshapen: {misshapen} is {list(tensors[misshapen].shape)}, not" in text


def test_non_finite_numbers_are_refused(pefts):
    directory = pefts("paper")
    tensors = tensors_of(directory)
    next(iter(tensors.values()))[0, 0] = np.nan
    rewrite(directory, tensors)
    with pytest.raises(UserError, match="NaN or infinite numbers in language/layers/"):
        read_adapter(directory, CFG)


def test_missing_or_damaged_files_are_refused(pefts, tmp_path):
    with pytest.raises(UserError, match="not an adapter directory"):
        read_adapter(tmp_path, CFG)
    directory = pefts("paper")
    weights = directory / WEIGHTS
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-8])
    with pytest.raises(UserError, match="truncated"):
        read_adapter(directory, CFG)
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(UserError, match="pickle"):
        read_adapter(directory, CFG)
    (directory / CONFIG).write_text("{")
    with pytest.raises(UserError, match="damaged"):
        read_adapter(directory, CFG)


@situation(
    "Models and checkpoints",
    "an adapter saved in bfloat16",
    "loads as float32",
    since="0.1.0",
)
def test_bfloat16_adapter_is_read_as_float32(pefts):
    import ml_dtypes

    directory = pefts("paper")
    _, exact = read_adapter(directory, CFG)
    tensors = {name: a.astype(ml_dtypes.bfloat16) for name, a in tensors_of(directory).items()}
    rewrite(directory, tensors)
    _, rounded = read_adapter(directory, CFG)
    for a, b in zip(jax.tree.leaves(rounded), jax.tree.leaves(exact), strict=True):
        assert a.dtype == np.float32
        np.testing.assert_array_equal(a, b.astype(ml_dtypes.bfloat16).astype(np.float32))
