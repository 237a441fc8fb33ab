"""The public encoder: order of vectors, independence of batches, errors."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from gve_jax import GVE
from gve_jax.distributed.cores import usable_cores
from gve_jax.errors import UserError
from gve_jax.inputs.instructions import INSTRUCTIONS
from gve_jax.inputs.preprocess import Preprocessor
from gve_jax.inputs.prompt import Entry
from gve_jax.media import sandbox
from gve_jax.media.item import as_item
from gve_jax.media.limits import Limits
from gve_jax.media.quarantine import Quarantine
from gve_jax.model.embedder import init_params
from gve_jax.running.experiment import Experiment
from tests.media.files import clip, picture
from tests.situations import situation
from tests.train_test import make_config


@pytest.fixture(scope="module")
def model(world, tmp_path_factory):
    run = Experiment(make_config(world), tmp_path_factory.mktemp("gve"))
    _, params = init_params(run.model, 3)
    return GVE(run.model, params, run.preprocess, run.buckets, run.mesh)


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (40, 60, 3)).astype(np.uint8)
    video = rng.integers(0, 256, (9, 56, 56, 3)).astype(np.uint8)
    return [
        "a red circle",
        {"video": video, "fps": 4.0},
        {"text": "and then it leaves", "image": image},
        "a much longer text about a red circle and a blue square that leave to the left",
        {"image": image},
        {"text": "what follows", "video": video, "fps": 4.0, "instruction": "Find the video."},
    ]


def cosine(a, b):
    return np.sum(a * b, axis=-1)


@situation(
    "Python API",
    "texts, images, videos and mixtures in one list",
    "float32 vectors of unit length in input order",
    since="0.1.0",
)
def test_vectors_are_unit_float32_in_input_order(model, inputs):
    vectors = model.encode(inputs, batch_size=8)
    assert vectors.dtype == np.float32 and vectors.shape == (6, model.embedding_dim)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, atol=1e-6)
    backwards = model.encode(inputs[::-1], batch_size=8)[::-1]
    assert cosine(vectors, backwards).min() > 0.999999
    # Different inputs have different vectors, so that the order is really compared.
    apart = vectors @ vectors.T - np.eye(6)
    assert apart.max() < 0.9999


@situation(
    "Python API",
    "another batch_size, or other items in the batch",
    "the same vectors (cosine above 0.999999)",
    since="0.1.0",
)
@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_vectors_do_not_depend_on_batch_size(model, inputs, batch_size):
    expected = model.encode(inputs, batch_size=8)
    assert cosine(model.encode(inputs, batch_size=batch_size), expected).min() > 0.999999


@situation(
    "Python API",
    "a prompt for a list in which some inputs have an instruction",
    "applies to the inputs without one",
    since="0.1.0",
)
def test_prompt_applies_to_inputs_without_instruction(model, inputs):
    prompted = model.encode(inputs, prompt="Find the video.")
    same = model.encode([{"text": "a red circle", "instruction": "Find the video."}])
    assert cosine(prompted[:1], same).min() > 0.999999
    plain = model.encode(inputs)
    assert cosine(prompted[0], plain[0]) < 0.9999
    assert cosine(prompted[5], plain[5]) > 0.999999  # it has its own instruction


def test_prompt_by_name(model, inputs):
    named = model.encode_query(inputs[:1], prompt_name="CRB-T")
    given = model.encode(inputs[:1], prompt=INSTRUCTIONS["CRB-T"])
    np.testing.assert_array_equal(named, given)
    np.testing.assert_array_equal(model.encode_document(inputs[:1]), model.encode(inputs[:1]))
    with pytest.raises(UserError, match="unknown prompt_name 'CRB-Q'; known: MSRVTT"):
        model.encode(inputs, prompt_name="CRB-Q")
    with pytest.raises(UserError, match="not both"):
        model.encode(inputs, prompt="Find it.", prompt_name="CRB-T")


@situation(
    "Python API",
    "truncate_dim, also 0 or above the model's dimensions",
    "truncated, then normalized; values out of range are errors",
    since="0.1.0",
)
def test_vectors_are_truncated_then_normalized(model, inputs):
    raw = model.encode(inputs[:2], normalize_embeddings=False)
    assert raw.dtype == np.float32 and abs(np.linalg.norm(raw, axis=-1) - 1).min() > 0.01
    whole = raw / np.linalg.norm(raw, axis=-1, keepdims=True)
    np.testing.assert_allclose(model.encode(inputs[:2]), whole, atol=1e-7)
    cut = model.encode(inputs[:2], truncate_dim=8)
    assert cut.shape == (2, 8)
    np.testing.assert_allclose(np.linalg.norm(cut, axis=-1), 1, atol=1e-6)
    assert cosine(cut, raw[:, :8]).min() / np.linalg.norm(raw[:, :8], axis=-1).max() > 0
    np.testing.assert_array_equal(
        model.encode(inputs[:2], truncate_dim=8, normalize_embeddings=False), raw[:, :8]
    )
    for bad in (0, model.embedding_dim + 1):
        with pytest.raises(UserError, match="truncate_dim"):
            model.encode(inputs[:2], truncate_dim=bad)


def test_similarity_is_the_cosine_of_all_pairs(model):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(3, 5)), 7 * rng.normal(size=(4, 5))
    expected = [[x @ y / np.linalg.norm(x) / np.linalg.norm(y) for y in b] for x in a]
    found = model.similarity(a, b)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)
    with pytest.raises(UserError, match=r"\(3, 5\) and \(4, 4\)"):
        model.similarity(a, b[:, :4])
    with pytest.raises(UserError, match="no direction"):
        model.similarity(a, np.zeros((1, 5)))


@situation(
    "Python API",
    "show_progress_bar, in a pipe or a notebook",
    "shown on standard error only, by default only on a terminal",
    since="0.1.0",
)
def test_progress_bar_is_on_standard_error(model, inputs, capsys):
    model.encode(inputs, show_progress_bar=True)
    out, err = capsys.readouterr()
    assert "embedding" in err and not out
    model.encode(inputs)  # not a terminal
    assert capsys.readouterr() == ("", "")


@situation(
    "Models and checkpoints",
    "two models that differ in a single weight",
    "different fingerprints, so that their vectors are not mixed",
    since="0.1.0",
)
def test_fingerprint_distinguishes_weights(model):
    def digest(change):
        params = jax.tree.map(lambda x: x, model.params)
        params["language"]["embed_tokens"] = change(params["language"]["embed_tokens"])
        changed = GVE(model.config, params, model.preprocess, model.buckets, model.mesh)
        return changed.fingerprint["weights"]

    digests = [
        digest(lambda x: x),
        digest(lambda x: x[::-1]),
        digest(lambda x: x.at[3, 4].multiply(1 + 1e-6)),
        digest(lambda x: -x),
    ]
    assert digests[0] == model.fingerprint["weights"] and len(set(digests)) == 4


@situation(
    "Python API",
    "the frames of a video in reversed order",
    "another vector; frame_order=reversed gives that of the reversed video",
    since="0.1.0",
)
def test_order_of_frames_changes_the_vector(model, inputs):
    forward = model.encode([inputs[1]])
    reversed_ = model.encode([inputs[1] | {"frame_order": "reversed"}])
    mirrored = model.encode([inputs[1] | {"video": inputs[1]["video"][::-1]}])
    assert cosine(forward, reversed_).max() < 0.9999
    assert cosine(mirrored, reversed_).min() > 0.999999


def test_with_inputs_shares_the_weights(model, inputs):
    other = model.with_inputs(num_frames=4)
    assert other.params is model.params and model.preprocess.spec.num_frames != 4
    changed = {key for key in model.fingerprint if model.fingerprint[key] != other.fingerprint[key]}
    assert changed == {"inputs.num_frames"} and other.fingerprint["inputs.num_frames"] == 4
    # The same vector as with the setting in the item, in batches of other shapes.
    video = inputs[1]
    found = other.encode([video, "a red circle"])
    assert np.abs(found - model.encode([video | {"num_frames": 4}, "a red circle"])).max() < 1e-5
    assert np.abs(found[0] - model.encode([video])[0]).max() > 1e-3
    before = other.tokens_encoded
    other.encode([video])  # alone, because rows of a batch share their prefix
    assert other.tokens_encoded - before == len(other.preprocess(as_item(video)).tokens)
    for changes, named in (
        ({"num_frames": 3}, "num_frames must be an even number"),
        ({"num_frames": None}, "num_frames None must be an integer"),
        ({"max_pixels": float("nan")}, "max_pixels nan must be an integer"),
        ({"frames": 4}, "with_inputs.frames: unknown field; known: profile, num_frames"),
    ):
        with pytest.raises(UserError, match=named):
            model.with_inputs(**changes)


def test_saved_model_gives_the_same_vectors(model, inputs, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    again = GVE.from_pretrained(tmp_path / "saved")
    np.testing.assert_array_equal(again.encode(inputs), model.encode(inputs))
    assert again.fingerprint == model.fingerprint
    model.save_pretrained(tmp_path / "saved")  # overwrites


@situation(
    "Python API",
    "an item with more frames than the shapes that a model was trained with",
    "embedded, as by with_inputs(num_frames=...); above max_length the reason names the remedy",
    since="0.3.0",
)
def test_frames_beyond_the_declared_shapes(model):
    video = np.random.default_rng(1).integers(0, 256, (32, 56, 56, 3), np.uint8)
    most = 2 * max(pairs for pairs, _ in model.buckets.shapes)
    assert most < 32
    mixed = ["a red circle", {"video": video, "num_frames": 32}]
    expected = model.with_inputs(num_frames=32).encode([{"video": video}])
    assert cosine(model.encode(mixed)[1:], expected).min() > 0.999999
    short = model.with_inputs(max_length=32)
    with pytest.raises(UserError, match="input 1: too many visual tokens.*lower num_frames, "):
        short.encode(mixed)


def test_encode_valid_without_a_quarantine_warns(model, inputs):
    mixed = [inputs[0], {"video": "missing.mp4"}, inputs[4], {"image": "lost.png"}]
    with pytest.warns(UserWarning, match="2 of 4 inputs .* skipped; the first: input 1: missing"):
        vectors, valid = model.encode_valid(mixed)
    assert valid.tolist() == [True, False, True, False]
    assert cosine(vectors, model.encode([inputs[0], inputs[4]])).min() > 0.999999


def test_encode_valid_needs_a_list(model, tmp_path):
    quarantine = Quarantine(tmp_path / "quarantine.jsonl", max_share=1.0)
    with pytest.raises(UserError, match="must be a list, as ids is"):
        model.encode_valid("a text", ["a"], quarantine)
    with pytest.raises(UserError, match="input 1: nothing to embed"):
        model.encode_valid(["a", ""], ["a", "b"], quarantine)


@situation(
    "Python API",
    "a damaged or missing video among readable inputs",
    "encode raises an error with its index; embed records it in the quarantine",
    since="0.1.0",
)
def test_unreadable_input_is_an_error_or_quarantined(model, inputs, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"not a video")
    mixed = [inputs[0], {"video": str(broken)}, inputs[4], {"video": "missing.mp4"}]
    with pytest.raises(UserError, match=r"input 1: .*broken.mp4"):
        model.encode(mixed)
    quarantine = Quarantine(tmp_path / "quarantine.jsonl", max_share=1.0)
    vectors, valid = model.encode_valid(mixed, ["a", "b", "c", "d"], quarantine)
    assert valid.tolist() == [True, False, True, False]
    expected = model.encode([inputs[0], inputs[4]])
    assert cosine(vectors, expected).min() > 0.999999
    lines = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert [(line["id"], line["path"]) for line in lines] == [
        ("b", str(broken)),
        ("d", "missing.mp4"),
    ]


@situation(
    "Python API",
    "a file that hangs, crashes or exhausts its decoder",
    "only its own item fails, with the reason",
    since="0.1.0",
)
def test_hostile_files_affect_only_their_own_items(model, inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox, "WORKER", "tests.media.hostile")
    limited = Preprocessor(model.preprocess.prompt, model.preprocess.spec, Limits(seconds=4.0))
    hostile = GVE(model.config, model.params, limited, model.buckets, model.mesh)
    files = [{"video": clip(8)}, {"video": clip(24), "text": "and then?"}]
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(clip(24)[:1500])
    attacks = {
        b"HANG": "limits.seconds",
        b"CRASH": "SIGSEGV",
        b"BOMB": "limits.memory",
        cut: "no video stream",
    }
    good = [*inputs, *files]
    mixed = [{"video": medium} for medium in attacks]
    mixed = [mixed[0], *good[:3], mixed[1], mixed[2], *good[3:], mixed[3]]
    lost = [0, 4, 5, len(mixed) - 1]
    quarantine = Quarantine(tmp_path / "quarantine.jsonl", 1.0)
    ids = [f"item {number}" for number in range(len(mixed))]
    vectors, valid = hostile.encode_valid(mixed, ids, quarantine)
    assert np.flatnonzero(~valid).tolist() == lost
    np.testing.assert_array_equal(vectors, model.encode(good))  # decoded by the same steps
    lines = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [ids[index] for index in lost]
    for line, reason in zip(lines, attacks.values(), strict=True):
        assert reason in line["reason"]
    assert lines[-1]["path"].endswith("cut.mp4")
    with pytest.raises(UserError, match=r"input 3: <5 bytes>: its process died of SIGSEGV"):
        hostile.encode(mixed[1:])


def test_the_number_of_decoding_processes(model, tmp_path):
    model.save_pretrained(tmp_path)
    for workers, expected in ((None, usable_cores()), (3, 3)):
        opened = GVE.from_pretrained(tmp_path, workers=workers)
        for one in (opened, opened.with_inputs(num_frames=4)):
            assert one._isolated.processes == expected
    with pytest.raises(UserError, match="workers must be at least 1, not 0"):
        GVE.from_pretrained(tmp_path, workers=0)
    assert opened.sandbox is None  # nothing was decoded
    opened.encode([{"image": picture(Image.new("RGB", (56, 56)))}])
    assert opened.sandbox.keys() == {"no_new_privs", "landlock", "seccomp"}
    assert "sandbox" not in opened.fingerprint


def test_limits_are_set_by_the_caller(model, tmp_path):
    model.save_pretrained(tmp_path)
    bomb = {"image": picture(Image.new("1", (6000, 6000)))}
    small = GVE.from_pretrained(tmp_path, limits=Limits(memory=50_000_000))
    with pytest.raises(UserError, match=r"input 0: .*50000000 bytes \(limits.memory\)"):
        small.encode([bomb])
    roomy = GVE.from_pretrained(tmp_path)
    assert small.fingerprint == roomy.fingerprint
    assert roomy.encode([bomb]).shape == (1, model.embedding_dim)


@pytest.mark.parametrize(
    "bad, named",
    [
        ({"a", "set"}, "inputs must be ordered"),
        ([""], "nothing to embed"),
        ([{"text": "", "image": b"", "video": []}], "nothing to embed"),
        ([{"instruction": "Find it."}], "nothing to embed"),
        ([{}], "nothing to embed"),
        ([{"txt": "a"}], "txt"),
        ([7], "int"),
        (
            [{"video": np.zeros((4000, 28, 28, 3), np.uint8), "num_frames": 4000, "fps": 1.0}],
            "too many visual tokens: 8000 exceed 192; lower num_frames",
        ),
    ],
)
def test_bad_input_is_named(model, bad, named):
    with pytest.raises(UserError, match=named):
        model.encode(bad)


@situation(
    "Python API",
    "a text longer than max_length",
    "truncated; the end token, which is pooled, is kept",
    since="0.1.0",
)
def test_long_text_is_truncated(model):
    text = "a red circle moves left. " * 100
    short, long = model.encode([text, text + "and something else altogether"])
    assert cosine(short, long) > 0.999999


@pytest.mark.parametrize(
    "damage, named",
    [
        (lambda d: (d / "config.json").unlink(), "no config.json"),
        (lambda d: (d / "config.json").write_text("{"), "config.json"),
        (lambda d: (d / "config.json").write_text('{"model_type": "qwen2_5_vl"}'), "required"),
        (
            lambda d: (d / "config.json").write_text('{"format": "gve_jax 1"}'),
            "damaged .model None must be a section",
        ),
        (lambda d: (d / "tokenizer.json").unlink(), "tokenizer.json"),
        (lambda d: (d / "params").rename(d / "elsewhere"), "params"),
    ],
)
def test_damaged_directory_is_named(model, tmp_path, damage, named):
    model.save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=named):
        GVE.from_pretrained(tmp_path)


def test_truncated_text_keeps_its_end_token(model):
    ids, _ = model.preprocess.prompt.ids(Entry("a red circle " * 500))
    assert len(ids) == model.preprocess.spec.max_length
    assert ids[-1] == model.preprocess.prompt.pad and ids[-2] != ids[-1]


def test_dtype_and_mrope_can_be_overridden(model, inputs, tmp_path):
    model.save_pretrained(tmp_path)
    other = GVE.from_pretrained(tmp_path, dtype="bfloat16", mrope="hf53")
    assert {leaf.dtype for leaf in jax.tree.leaves(other.params)} == {jax.numpy.dtype("bfloat16")}
    assert other.fingerprint["inputs.mrope"] == "hf53"
    assert cosine(other.encode(inputs[:1]), model.encode(inputs[:1])).min() > 0.999
    for wrong in ({"dtype": "int8"}, {"mrope": "hf1"}):
        with pytest.raises(UserError, match=next(iter(wrong.values()))):
            GVE.from_pretrained(tmp_path, **wrong)


@situation(
    "Models and checkpoints",
    "a native model with NaN in its weights",
    "an error that names the parameter",
    since="0.1.0",
)
def test_non_finite_weights_are_refused(model, tmp_path):
    params = jax.tree.map(lambda x: x, model.params)
    params["language"]["norm"]["weight"] = params["language"]["norm"]["weight"] * np.nan
    GVE(model.config, params, model.preprocess, model.buckets, model.mesh).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="NaN"):
        GVE.from_pretrained(tmp_path)
