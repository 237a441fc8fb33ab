"""Checks when a model is opened: recorded digests, damaged or edited config.json."""

import json
import shutil

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer

from gve_jax import GVE
from gve_jax.checkpoints.digests import file_digest
from gve_jax.checkpoints.pretrained import open_pretrained
from gve_jax.distributed.sharding import make_mesh
from gve_jax.errors import UserError
from tests import checkpoint_files
from tests.inputs.tokenizer_test import edit, swap
from tests.situations import situation


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A float32 model in both formats, `ours` and `hf`, and another model of its shape, `other`."""
    root = tmp_path_factory.mktemp("exported")
    model = GVE.from_pretrained(checkpoint_files.write(root / "released"), dtype="float32")
    model.save_pretrained(root / "ours")
    model.save_pretrained(root / "hf", "hf")
    params = jax.tree.map(lambda leaf: leaf, model.params)
    params["language"]["norm"]["weight"] *= 2
    other = GVE(model.config, params, model.preprocess, model.buckets, model.mesh)
    other.save_pretrained(root / "other")
    return root


@pytest.fixture
def folder(exported, tmp_path):
    for name in ("ours", "hf", "other"):
        shutil.copytree(exported / name, tmp_path / name)
    return tmp_path


def load(base):
    return base.load(base.config, make_mesh({"data": -1}))


@situation(
    "Models and checkpoints",
    "a native or exported model beside another tokenizer.json with the same special tokens",
    "an error: the recorded digest differs",
    since="0.2.0",
)
@pytest.mark.parametrize("form", ["ours", "hf"])
def test_another_tokenizer_is_refused_by_digest(folder, form):
    path = folder / form / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    base = open_pretrained(folder / form)
    base.check_tokenizer(path)
    tokenizer.enable_padding()
    tokenizer.save(str(path), pretty=False)  # the same tokenizer, saved by transformers
    base.check_tokenizer(path)
    edit(path, swap)
    with pytest.raises(
        UserError, match="not the tokenizer that .* was made with .digest .*recorde"
    ):
        base.check_tokenizer(path)
    with pytest.raises(UserError, match="not the tokenizer that"):
        GVE.from_pretrained(folder / form)


def test_records_of_gve_jax_0_1_are_compared(folder):
    """The digests of the tokenizer's file and of the weights."""
    path, tokenizer = folder / "ours" / "config.json", folder / "ours" / "tokenizer.json"
    edit(path, lambda f: f["fingerprint"].update(tokenizer=file_digest(tokenizer)))
    edit(path, lambda f: f.pop("params"))
    GVE.from_pretrained(folder / "ours")
    shutil.rmtree(folder / "ours" / "params")
    shutil.copytree(folder / "other" / "params", folder / "ours" / "params")
    with pytest.raises(UserError, match="the weights are of another model than .*config.json"):
        GVE.from_pretrained(folder / "ours")
    edit(tokenizer, swap)
    with pytest.raises(UserError, match="not the tokenizer"):
        GVE.from_pretrained(folder / "ours")


@situation(
    "Models and checkpoints",
    "the `params/` of one model beside the config.json of another",
    "an error: the recorded digest differs, in any dtype",
    since="0.2.0",
)
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_parameters_of_another_model_are_refused(folder, dtype):
    load(open_pretrained(folder / "ours", dtype))
    shutil.rmtree(folder / "ours" / "params")
    shutil.copytree(folder / "other" / "params", folder / "ours" / "params")
    with pytest.raises(UserError, match="of another model than its config.json"):
        load(open_pretrained(folder / "ours", dtype))


@pytest.mark.parametrize(
    "change, named",
    [
        (lambda f: f.pop("fingerprint"), "fingerprint lacks weights"),
        (lambda f: f.update(fingerprint=[]), "fingerprint lacks weights"),
        (lambda f: f["fingerprint"].update(tokenizer=None), "fingerprint lacks tokenizer"),
    ],
)
def test_missing_records_are_refused(folder, change, named):
    edit(folder / "ours" / "config.json", change)
    base = open_pretrained(folder / "ours")
    with pytest.raises(UserError, match=named):
        base.check_tokenizer(base.tokenizer)


@situation(
    "Models and checkpoints",
    "a checkpoint in float32, bfloat16 or float16 loaded without `dtype=`",
    "the dtype recorded in config.json (`dtype` or `torch_dtype`), unless `dtype=` is set",
    since="0.2.0",
)
@pytest.mark.parametrize(
    "fields, asked, dtype",
    [
        ({"torch_dtype": "float32"}, None, "float32"),
        ({"torch_dtype": "bfloat16"}, None, "bfloat16"),
        ({"torch_dtype": "torch.float16"}, None, "float16"),
        ({"torch_dtype": None, "dtype": "float32"}, None, "float32"),
        ({"torch_dtype": "float32"}, "bfloat16", "bfloat16"),
        ({"torch_dtype": "float8_e4m3fn"}, "bfloat16", "bfloat16"),
        (
            {"torch_dtype": None},
            None,
            "float16",
        ),  # as "auto" in transformers
    ],
)
def test_recorded_dtype_is_the_default(tmp_path, fields, asked, dtype):
    directory = checkpoint_files.write(tmp_path / "hf", dtype="float16")
    edit(directory / "config.json", lambda f: f.update(fields))
    config = open_pretrained(directory, asked).config
    assert (config.dtype, config.param_dtype) == (dtype, dtype)


@pytest.mark.parametrize("value", ["float8_e4m3fn", "auto", "int8", 32, ["float32"]])
def test_unsupported_dtype_is_named(tmp_path, value):
    directory = checkpoint_files.write(tmp_path / "hf")
    edit(directory / "config.json", lambda f: f.update(torch_dtype=value))
    with pytest.raises(UserError, match="config.json: torch_dtype is .*choose one by dtype="):
        open_pretrained(directory)


@situation(
    "Models and checkpoints",
    "an `hf` export of a float32 model",
    "loads as float32 with the same vectors",
    since="0.2.0",
)
@pytest.mark.parametrize("layout", ["4.49", "5"])
def test_float32_export_is_loaded_as_float32(exported, tmp_path, layout):
    model = GVE.from_pretrained(exported / "hf")
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(model.params)} == {"float32"}
    model.save_pretrained(tmp_path / "hf", "hf", layout=layout)
    again = GVE.from_pretrained(tmp_path / "hf")
    assert again.fingerprint == model.fingerprint
    np.testing.assert_array_equal(again.encode(["a red ring"]), model.encode(["a red ring"]))


@situation(
    "Models and checkpoints", "config.json with a byte order mark", "accepted", since="0.2.0"
)
def test_byte_order_mark_is_skipped(exported, tmp_path):
    for name in ("ours", "hf"):
        shutil.copytree(exported / name, tmp_path / name)
        path = tmp_path / name / "config.json"
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        assert open_pretrained(tmp_path / name).config == open_pretrained(exported / name).config


@situation(
    "Models and checkpoints",
    "config.json, an index or a tokenizer file that is empty, truncated, a Git LFS pointer,"
    " not UTF-8, not an object, or has duplicate keys",
    "one line with the file and the reason",
    since="0.2.0",
)
@pytest.mark.parametrize(
    "data, named",
    [
        (b"", "damaged .empty"),
        (b"{", "damaged"),
        (b"[]", "not an object"),
        (b"null", "not an object"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "duplicate key 'c'"),
        (b"\xff\xfe{", "damaged"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"[" * 100_000, "damaged"),
    ],
)
@pytest.mark.parametrize(
    "file",
    [
        "config.json",
        "preprocessor_config.json",
        "tokenizer_config.json",
        "model.safetensors.index.json",
    ],
)
def test_damaged_json_is_named(tmp_path, file, data, named):
    directory = checkpoint_files.write(tmp_path / "hf", files=3)
    (directory / file).write_bytes(data)
    with pytest.raises(UserError, match=f"{file}: .*{named}") as caught:
        base = open_pretrained(directory)
        base.check_tokenizer(base.tokenizer)
        load(base)
    assert "\n" not in str(caught.value)


@situation(
    "Models and checkpoints",
    "edited settings of an export with wrong types (numbers in quotes, null, lists)",
    "one line with the file and the field",
    since="0.2.0",
)
@pytest.mark.parametrize(
    "part, value, named",
    [
        ("inputs", {"num_frames": "8"}, "inputs.num_frames '8' must be an integer"),
        ("inputs", {"num_frames": 7}, "num_frames must be an even number"),
        ("inputs", {"frames": 8}, "inputs.frames: unknown field"),
        ("inputs", None, "inputs None must be a section of fields"),
        ("buckets", [], r"buckets \[\] must be a section of fields"),
        ("buckets", {"patches": 1, "windows": 1}, "buckets.shapes is missing"),
    ],
)
def test_settings_of_wrong_types_are_named(folder, part, value, named):
    edit(folder / "ours" / "config.json", lambda f: f.update({part: value}))
    edit(folder / "hf" / "config.json", lambda f: f["gve_jax"].update({part: value}))
    for form in ("ours", "hf"):
        with pytest.raises(UserError, match=f"config.json: damaged .*{named}"):
            open_pretrained(folder / form).inputs()


def test_model_fields_of_wrong_types_are_named(folder):
    edit(folder / "ours" / "config.json", lambda f: f["model"]["text"].update(vocab_size="9"))
    with pytest.raises(UserError, match="model.text.vocab_size '9' must be an integer"):
        open_pretrained(folder / "ours")
    edit(folder / "ours" / "config.json", lambda f: f.update(format="gve_jax 9"))
    with pytest.raises(UserError, match="format 'gve_jax 9' is not 'gve_jax 1'"):
        open_pretrained(folder / "ours")


# preprocessor_config.json of Qwen2.5-VL (transformers 4.49), at the sizes of the small model.
PREPROCESSOR = json.loads(
    """{
    "do_convert_rgb": true, "do_normalize": true, "do_rescale": true, "do_resize": true,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "Qwen2VLImageProcessor", "image_std": [0.26862954, 0.26130258,
    0.27577711], "max_pixels": 12845056, "merge_size": 2, "min_pixels": 3136, "patch_size": 14,
    "processor_class": "Qwen2_5_VLProcessor", "resample": 3,
    "rescale_factor": 0.00392156862745098, "size": {"max_pixels": 12845056, "min_pixels": 3136},
    "temporal_patch_size": 2
    }"""
)


@situation(
    "Models and checkpoints",
    "a preprocessor_config.json with other means, patch sizes or resampling than Qwen2.5-VL's",
    "an error that names the field; pixel budgets are gve_jax's own",
    since="0.2.0",
)
@pytest.mark.parametrize(
    "change, named",
    [
        ({}, None),
        ({"max_pixels": 7, "size": None, "fps": 1.0}, None),
        ({"image_mean": [0.5, 0.5, 0.5]}, "image_mean"),
        ({"image_std": "x"}, "image_std 'x'"),
        ({"patch_size": 16}, "patch_size 16"),
        ({"merge_size": "2"}, "merge_size '2'"),
        ({"temporal_patch_size": 1}, "temporal_patch_size 1"),
        ({"resample": 2}, "resample 2"),
        ({"do_normalize": False}, "do_normalize False"),
        ({"do_center_crop": True}, "do_center_crop"),
        ({"rescale_factor": 1}, "rescale_factor 1"),
        ({"rescale_factor": "x"}, "rescale_factor 'x'"),
    ],
)
@pytest.mark.parametrize("file", ["preprocessor_config.json", "video_preprocessor_config.json"])
def test_preprocessor_of_another_model_is_refused(tmp_path, file, change, named):
    directory = checkpoint_files.write(tmp_path / "hf")
    (directory / file).write_text(json.dumps(PREPROCESSOR | change))
    if named is None:
        open_pretrained(directory)
        return
    with pytest.raises(UserError, match=f"{file}: {named}.* is not supported"):
        open_pretrained(directory)
