"""The interface of Sentence Transformers: the same meaning, or an error with an alternative."""

import re
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer

from gve_jax import GVE, sentence_transformers
from gve_jax.errors import UnsupportedArgument, UserError
from gve_jax.inputs.instructions import INSTRUCTIONS
from gve_jax.inputs.user_inputs import read_inputs
from tests import checkpoint_files
from tests.media.files import clip, picture
from tests.situations import situation

PAGE = Path(__file__).parents[1] / "docs" / "sentence_transformers.md"
TEXTS = ["a red circle", "a blue square moves left"]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return GVE.from_pretrained(
        checkpoint_files.write(tmp_path_factory.mktemp("model")), dtype="float32"
    )


@pytest.fixture
def model(loaded):
    """A new object for each test, which may set attributes."""
    return GVE(loaded.config, loaded.params, loaded.preprocess, loaded.buckets, loaded.mesh)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The files of the page's examples."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.mp4", "b.mp4"):
        Path(name).write_bytes(clip(8))
    Path("cat.png").write_bytes(picture(Image.new("RGB", (60, 40), "red")))
    return tmp_path


@pytest.mark.filterwarnings("ignore:the input is embedded as the text 'a.mp4'")
def test_code_of_the_page_runs(model, folder, monkeypatch, capsys):
    monkeypatch.setattr(GVE, "from_pretrained", lambda name: model)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert len(blocks) == 6 and "encode has no argument device" in capsys.readouterr().out
    assert names["scores"].shape == (1, 2) and names["small"].dtype == np.int8


def test_page_lists_everything_that_is_refused():
    text = PAGE.read_text(encoding="utf-8")
    _, encode, members, load = re.split(
        r"^## .*`encode`|^## Members|^## .*loading", text, flags=re.M
    )
    for names, part in (
        (sentence_transformers._ENCODE, encode),
        (sentence_transformers._ATTRIBUTES, members),
        (sentence_transformers._LOAD, load),
    ):
        assert [name for name in names if f"`{name}`" not in part] == []


@situation(
    "Python API",
    '`encode(texts, "MSRVTT")`: a prompt or its name as a positional argument',
    "an error: prompt and prompt_name are keyword-only",
    since="0.2.0",
)
def test_prompts_are_keywords_only(model):
    for function in (model.encode, model.encode_query, model.encode_document):
        with pytest.raises(TypeError, match="positional argument"):
            function(TEXTS, "MSRVTT")


def test_single_input_gives_a_single_vector(model):
    many = model.encode(TEXTS)
    one = model.encode(TEXTS[0])
    assert one.shape == (model.embedding_dim,) and many.shape == (2, model.embedding_dim)
    np.testing.assert_allclose(one, many[0], atol=1e-6)
    raw = model.encode(TEXTS[0], normalize_embeddings=False, truncate_dim=8)
    np.testing.assert_allclose(
        raw / np.linalg.norm(raw), model.encode(TEXTS[0], truncate_dim=8), atol=1e-6
    )
    for none in (model.encode([]), model.encode_query([]), model.encode_document(())):
        assert none.shape == (0, model.embedding_dim) and none.dtype == np.float32
    assert model.encode([], truncate_dim=9, precision="binary").shape == (0, 2)
    with pytest.raises(UserError, match="^the input: missing.mp4: no such file"):
        model.encode(Path("missing.mp4"))


def test_forms_of_an_input_give_the_same_vector(model, folder):
    image = np.asarray(Image.open("cat.png"))
    data = Path("cat.png").read_bytes()
    part = {"type": "image", "image": "cat.png"}
    forms = [
        {"image": "cat.png"},
        Path("cat.png"),
        Image.open("cat.png"),
        image,
        {"image": data},
        {"image": [image]},
        part,
        [part],
        {"role": "user", "content": [part]},
        [{"role": "user", "content": [{"type": "image", "path": str(folder / "cat.png")}]}],
    ]
    vectors = model.encode(forms)
    assert np.ptp(vectors, axis=0).max() < 1e-6
    item = {"video": "a.mp4", "text": "a red circle", "instruction": "Find it.", "num_frames": 4}
    chat = [
        {"role": "system", "content": "Find it."},
        {
            "role": "user",
            "content": [
                {"type": "video", "video": "a.mp4", "nframes": 4},
                {"type": "text", "text": "a red circle"},
            ],
        },
    ]
    np.testing.assert_allclose(model.encode(chat), model.encode(item), atol=1e-6)


@situation(
    "Python API",
    '`encode_query` without a prompt, if `prompts` has "query"',
    "uses that prompt, as in Sentence Transformers; initially it is unset",
    since="0.2.0",
)
def test_prompts(model):
    assert model.prompts == INSTRUCTIONS and model.default_prompt_name is None
    plain = model.encode(TEXTS)
    np.testing.assert_array_equal(model.encode_query(TEXTS), plain)
    model.prompts |= {"query": "Find the query.", "passage": "This is found."}
    query, found = (model.encode(TEXTS, prompt=model.prompts[n]) for n in ("query", "passage"))
    assert np.abs(query - found).max() > 1e-3 and np.abs(query - plain).max() > 1e-3
    np.testing.assert_array_equal(model.encode_query(TEXTS), query)
    np.testing.assert_array_equal(model.encode_document(TEXTS), found)
    np.testing.assert_array_equal(model.encode(TEXTS), plain)
    np.testing.assert_array_equal(model.encode_query(TEXTS, prompt=""), plain)
    np.testing.assert_array_equal(model.encode_query(TEXTS, prompt_name="passage"), found)
    model.default_prompt_name = "passage"
    np.testing.assert_array_equal(model.encode(TEXTS), found)
    np.testing.assert_array_equal(model.encode(TEXTS, prompt=""), plain)
    assert "query" not in INSTRUCTIONS
    for bad, named in (
        ({"prompt_name": "qury"}, "unknown prompt_name 'qury'; known: .*query"),
        ({"prompt_name": ["query"]}, "unknown prompt_name"),
        ({"prompt": 3}, "a prompt must be a text, not int"),
        ({"prompt": "a", "prompt_name": "query"}, "not both"),
    ):
        with pytest.raises(UserError, match=named):
            model.encode(TEXTS, **bad)


def test_with_inputs_keeps_the_attributes(model):
    model.prompts["query"], model.default_prompt_name = "Find.", "query"
    model.truncate_dim, model.similarity_fn_name = 8, "dot"
    other = model.with_inputs(max_length=64)
    assert other.prompts == model.prompts and other.prompts is not model.prompts
    assert (other.default_prompt_name, other.truncate_dim) == ("query", 8)
    assert other.similarity_fn_name == "dot" and other.max_seq_length == 64


def test_text_that_is_a_path_warns_at_the_line_of_the_caller(model, folder):
    for function in (model.encode, model.encode_query):
        with pytest.warns(UserWarning, match="input 1 is embedded as the text 'a.mp4'") as seen:
            function(["a", "a.mp4", "b.mp4"])
        assert len(seen) == 1 and seen[0].filename == __file__


@situation(
    "Python API",
    "convert_to_tensor",
    "a JAX array on the model's device, for torch.from_dlpack",
    since="0.2.0",
)
def test_tensors(model):
    expected = model.encode(TEXTS)
    found = model.encode(TEXTS, convert_to_tensor=True, convert_to_numpy=False)
    assert isinstance(found, jax.Array) and found.devices() == {model.device}
    assert model.device in model.mesh.devices.flat
    np.testing.assert_array_equal(np.from_dlpack(found), expected)
    assert model.encode(TEXTS[0], convert_to_tensor=True).shape == (model.embedding_dim,)
    bits = model.encode(TEXTS, convert_to_tensor=True, precision="ubinary")
    np.testing.assert_array_equal(bits, np.packbits(expected > 0, axis=1))


def test_precision(model):
    texts = [f"clip {n}" for n in range(3)]
    vectors = model.encode(texts)
    low, high = vectors.min(axis=0), vectors.max(axis=0)
    with pytest.warns(UserWarning, match="int8 ranges come from 3 vectors"):
        found = model.encode(texts, precision="int8")
    expected = np.floor((vectors - low) / ((high - low) / 255)).clip(0, 255) - 128
    assert found.dtype == np.int8 and np.abs(found - expected).max() <= 1
    np.testing.assert_array_equal(model.encode(texts, precision=None), vectors)
    one = model.encode(texts[0], precision="binary", truncate_dim=8)
    assert one.shape == (1,) and one.dtype == np.int8
    with pytest.raises(UserError, match="give ranges or calibration_embeddings"):
        model.encode(texts[0], precision="int8")
    with pytest.raises(UserError, match="precision must be one of float32, int8, .* not 'int4'"):
        model.encode(texts, precision="int4")


@situation(
    "Python API",
    "arguments of Sentence Transformers that gve_jax does not have: device, pool, output_value",
    "a TypeError that names the alternative; None is accepted",
    since="0.2.0",
)
@pytest.mark.parametrize(
    "options, named",
    [
        (
            {"output_value": "token_embeddings"},
            "has no argument output_value: only vectors of whole inputs",
        ),
        ({"device": "cuda:0"}, r"has no argument device: .*GVE.from_pretrained\(..., mesh="),
        ({"device": ["cpu", "cpu"]}, "has no argument device"),
        ({"pool": {}}, "has no argument pool: encode uses"),
        ({"chunk_size": 3}, "has no argument chunk_size"),
        ({"task": "retrieval"}, "has no argument task: .*prompt="),
        ({"prompts": {"query": "x"}}, "has no argument prompts: .*model.prompts"),
        ({"fps": 2.0}, "has no argument fps: set it in an input"),
        ({"max_length": 3}, "has no argument max_length: .*GVE.with_inputs"),
        ({"bach_size": 3}, "has no argument bach_size; it has: inputs, prompt, .*batch_size"),
        ({"convert_to_numpy": False}, "list of tensors; convert_to_tensor=True"),
    ],
)
def test_other_arguments_are_refused_by_name(model, options, named):
    for function in (model.encode, model.encode_query, model.encode_document):
        with pytest.raises(UnsupportedArgument, match=f"^encode .*{named}"):
            function(TEXTS, **options)
    with pytest.raises(TypeError):
        model.encode(TEXTS, **options)


def test_arguments_without_effect_are_accepted(model):
    options = dict.fromkeys(sentence_transformers._ENCODE) | {"output_value": "sentence_embedding"}
    np.testing.assert_array_equal(model.encode(TEXTS, **options), model.encode(TEXTS))


@situation(
    "Python API",
    'arguments of other loaders (trust_remote_code, device, torch_dtype), or GVE("directory")',
    "an error that names the alternative",
    since="0.2.0",
)
@pytest.mark.parametrize(
    "options, named",
    [
        (
            {"trust_remote_code": True},
            "trust_remote_code: code of repositories",
        ),
        ({"torch_dtype": "auto"}, "has no argument torch_dtype: use dtype"),
        ({"device": "cuda"}, "mesh="),
        ({"truncate_dim": 8}, "model.truncate_dim = "),
        ({"dtpye": "x"}, "dtpye; it has: directory"),
        ({"num_frames": 8}, "GVE.with_inputs"),
    ],
)
def test_other_arguments_of_loading_are_refused(options, named):
    with pytest.raises(UnsupportedArgument, match=named):
        GVE.from_pretrained("nowhere", **options)
    with pytest.raises(UserError, match="nowhere"):  # the arguments are accepted
        GVE.from_pretrained("nowhere", trust_remote_code=False, device=None)
    with pytest.raises(TypeError, match=r"GVE.from_pretrained\('nowhere'\)"):
        GVE("nowhere")


def test_missing_members_name_an_alternative(model):
    for name in sentence_transformers._ATTRIBUTES:
        assert not hasattr(model, name)
        with pytest.raises(UserError, match=f"GVE has no {name}: "):
            getattr(model, name)
    with pytest.raises(AttributeError, match="no attribute 'encod'"):
        model.encod  # noqa: B018


def test_error_inside_a_property_is_raised(model):
    del model.mesh
    with pytest.raises(AttributeError, match="no attribute 'mesh'"):
        model.device  # noqa: B018


@pytest.mark.parametrize(
    "options, named",
    [
        ({"batch_size": None}, "not None"),
        ({"batch_size": 0}, "not 0"),
        ({"batch_size": 2.0}, "2.0"),
        ({"batch_size": True}, "True"),
        ({"truncate_dim": 8.0}, "8.0"),
        ({"truncate_dim": "8"}, "'8'"),
        ({"truncate_dim": 0}, "1..48, not 0"),
        ({"truncate_dim": 49}, "1..48, not 49"),
    ],
)
def test_numbers_are_checked(model, options, named):
    with pytest.raises(UserError, match=f"{next(iter(options))} must be an integer .*{named}"):
        model.encode(TEXTS, **options)


def test_dimensions(model):
    assert model.get_embedding_dimension() == model.get_sentence_embedding_dimension() == 48
    model.truncate_dim = np.int64(8)
    assert model.encode(TEXTS).shape == (2, 8) and model.get_embedding_dimension() == 8
    assert model.encode(TEXTS, truncate_dim=4).shape == (2, 4)
    with pytest.raises(UserError, match=r"model.with_inputs\(max_length=512\)"):
        model.max_seq_length = 512
    assert model.max_seq_length == model.preprocess.spec.max_length
    assert model.supports("video") and model.supports(("image", "text"))
    assert not model.supports("audio") and set(model.modalities) > {"text", "image", "video"}


def template(text, instruction="You are a helpful assistant."):
    """The text of the reference's processor, with GVE's end token."""
    return (
        f"<|im_start|>system\n{instruction}<|im_end|>\n<|im_start|>user\n{text}<|im_end|>\n"
        "<|im_start|>assistant\n<|endoftext|>"
    )


def test_tokens_equal_those_of_the_template(model):
    tokenizer = Tokenizer.from_file(model.preprocess.prompt.path)
    texts = [TEXTS[0], {"text": TEXTS[1], "instruction": "Find it."}]
    found = model.tokenize(texts, prompt_name="MSRVTT")
    expected = [
        tokenizer.encode(template(TEXTS[0], INSTRUCTIONS["MSRVTT"])).ids,
        tokenizer.encode(template(TEXTS[1], "Find it.")).ids,
    ]
    assert found.keys() == {"input_ids", "attention_mask"}
    for ids, mask, wanted in zip(*found.values(), expected, strict=True):
        assert ids[mask == 1].tolist() == wanted and mask.tolist() == sorted(mask, reverse=True)
    single = model.tokenize(TEXTS[0])["input_ids"]
    assert single.tolist() == [tokenizer.encode(template(TEXTS[0])).ids]
    assert model.tokenize([])["input_ids"].shape == (0, 0)
    with pytest.raises(UserError, match="input 1: tokenize supports texts only"):
        model.tokenize(["a", {"image": "cat.png"}])


def test_empty_text_is_an_empty_template(model):
    with pytest.raises(UserError, match="input 1: nothing to embed"):
        model.encode(["a", "", "b"])
    found = model.encode(["a", "", "b"], allow_empty_text=True)
    np.testing.assert_allclose(found[[0, 2]], model.encode(["a", "b"]), atol=1e-6)
    assert np.isfinite(found).all()
    (item,) = read_inputs([""], allow_empty=True)
    tokenizer = Tokenizer.from_file(model.preprocess.prompt.path)
    assert model.preprocess(item).tokens.tolist() == tokenizer.encode(template("")).ids


def test_similarities(model):
    vectors = model.encode(TEXTS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, wanted in (
            ("cosine", vectors @ vectors.T),
            ("dot", vectors @ vectors.T),
            ("euclidean", -np.linalg.norm(vectors[:, None] - vectors, axis=-1)),
            ("manhattan", -np.abs(vectors[:, None] - vectors).sum(axis=-1)),
        ):
            model.similarity_fn_name = name
            assert model.similarity_fn_name == name
            np.testing.assert_allclose(model.similarity(vectors, vectors), wanted, atol=1e-6)
            pairs = model.similarity_pairwise(vectors, vectors[::-1])
            np.testing.assert_allclose(pairs, wanted[[0, 1], [1, 0]], atol=1e-6)
            np.testing.assert_allclose(model.similarity(vectors[0], vectors), wanted[:1], atol=1e-6)
    with pytest.raises(UserError, match="similarity_fn_name must be one of"):
        model.similarity_fn_name = "maxsim"
