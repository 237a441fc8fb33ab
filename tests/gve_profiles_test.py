"""Every profile from a checkpoint in its released layout to vectors, commands and back."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer

from gve_jax import GVE
from gve_jax.checkpoints.hf_config import from_hf
from gve_jax.checkpoints.huggingface import save_hf
from gve_jax.checkpoints.peft import write_adapter
from gve_jax.embed import main as embed
from gve_jax.errors import UserError
from gve_jax.inputs.profiles import PROFILES
from gve_jax.media.quarantine import Quarantine
from gve_jax.model import lora
from gve_jax.model.config import LoraConfig
from gve_jax.model.embedder import init_params
from gve_jax.running.experiment import Experiment
from tests.media.files import clip, picture, small_tokenizer
from tests.situations import situation
from tests.train_test import make_config

GOLDENS = Path(__file__).parent / "goldens"
SMALL = dict(max_pixels=64**2, min_pixels=32**2, total_pixels=None, max_length=512)
SMALL |= dict(image_min_pixels=None, image_max_pixels=None, fps=None, num_frames=4)
INPUTS = [
    "a red ring",
    {"image": picture(Image.new("RGB", (70, 50), "red"))},
    {"text": "what follows", "image": np.full((60, 90, 3), 7, np.uint8)},
    {"video": clip(8)},
    {"text": "it moves", "video": np.full((9, 56, 70, 3), 9, np.uint8), "fps": 4.0},
]
CASES = [(p.name, a) for p in PROFILES.values() for a in p.architectures if a != "qwen2_5_vl"]


def write(directory: Path, architecture: str, tokenizer=None, seed: int = 0) -> Path:
    """A checkpoint with random weights, named and laid out as the released ones."""
    numbers = np.load(GOLDENS / f"{architecture.replace('_', '')}.npz")
    cfg = from_hf(json.loads(str(numbers["config.json"])), "float32")
    cfg = dataclasses.replace(cfg, text=dataclasses.replace(cfg.text, vocab_size=1280))
    if tokenizer is None:
        tokenizer = Tokenizer.from_str(small_tokenizer().to_str())
        tokenizer.add_special_tokens(["<emb>"])
    directory.mkdir(parents=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    save_hf(directory, cfg, init_params(cfg, seed)[1], directory / "tokenizer.json")
    return directory


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("released")
    return {name: write(folder / name / "mine", name) for name in ("qwen2_vl", "qwen3_vl")}


@pytest.fixture(scope="module")
def load(checkpoints):
    loaded: dict[tuple[str, str], GVE] = {}

    def load(profile: str, architecture: str) -> GVE:
        if (profile, architecture) not in loaded:
            model = GVE.from_pretrained(checkpoints[architecture], profile=profile)
            loaded[profile, architecture] = model.with_inputs(**SMALL)
        return loaded[profile, architecture]

    return load


@pytest.mark.parametrize("profile, architecture", CASES)
def test_vectors_do_not_depend_on_their_batch(load, profile, architecture):
    model = load(profile, architecture)
    together = model.encode(INPUTS)
    np.testing.assert_allclose(np.linalg.norm(together, axis=-1), 1, rtol=1e-5)
    alone = np.stack([model.encode(one) for one in INPUTS])
    assert np.sum(together * alone, axis=-1).min() > 0.999999
    others = together @ together.T - np.eye(len(INPUTS))
    assert others.max() < 0.9999  # each input has a vector of its own
    assert model.fingerprint["inputs.profile"] == profile


@situation(
    "Models and checkpoints",
    "a checkpoint whose name does not say which embedder it is (GME, plain Qwen2-VL)",
    "an error with the candidates; `profile=`, or PROFILE=LOCATION, decides",
    since="0.2.0",
)
def test_the_name_or_the_user_decides_the_profile(checkpoints, tmp_path):
    with pytest.raises(UserError, match="which embedder of qwen2_vl it is; give profile=, one of"):
        GVE.from_pretrained(checkpoints["qwen2_vl"])
    named = tmp_path / "gme-Qwen2-VL-2B-Instruct"
    shutil.copytree(checkpoints["qwen2_vl"], named)
    gme = GVE.from_pretrained(named)
    stated = GVE.from_pretrained(f"gme={checkpoints['qwen2_vl']}")
    assert gme.fingerprint == stated.fingerprint
    assert gme.preprocess.spec.mrope == "sequential"
    with pytest.raises(UserError, match="profile gme is for qwen2_vl; the checkpoint is qwen3_vl"):
        GVE.from_pretrained(checkpoints["qwen3_vl"], profile="gme")
    with pytest.raises(UserError, match="unknown profile 'gem'; known: gve, gme"):
        GVE.from_pretrained(named, profile="gem")


@situation(
    "Embedding",
    "vectors of one profile, resumed with another of the same weights",
    "refused: the message names `inputs.profile`",
    since="0.2.0",
)
def test_vectors_of_two_profiles_are_not_mixed(checkpoints, tmp_path):
    (tmp_path / "items.jsonl").write_text('{"id": "a", "text": "red"}\n')
    flags = ["--input", str(tmp_path / "items.jsonl"), "--output", str(tmp_path / "vectors")]
    embed(["--model", f"qwen2-vl={checkpoints['qwen2_vl']}", *flags])
    with pytest.raises(UserError, match=r"fingerprint.inputs.profile = qwen2-vl, now gve"):
        embed(["--model", f"gve={checkpoints['qwen2_vl']}", *flags])


@pytest.mark.parametrize("architecture, profile", [("qwen2_vl", "gme"), ("qwen3_vl", "qwen3-vl")])
@pytest.mark.parametrize("format", ["gve_jax", "hf"])
def test_a_saved_model_keeps_its_profile(load, tmp_path, architecture, profile, format):
    model = load(profile, architecture)
    model.save_pretrained(tmp_path / "saved", format=format)
    again = GVE.from_pretrained(tmp_path / "saved")
    assert again.fingerprint == model.fingerprint
    np.testing.assert_array_equal(again.encode(INPUTS), model.encode(INPUTS))
    with pytest.raises(UserError, match=f"saved with profile {profile}, not gve"):
        GVE.from_pretrained(tmp_path / "saved", profile="gve")


@pytest.mark.parametrize("architecture, profile", [("qwen2_vl", "vlm2vec-v2"), ("qwen3_vl", "gve")])
@pytest.mark.parametrize("layout", ["4.49", "5"])
def test_adapters_go_both_ways(checkpoints, load, tmp_path, architecture, profile, layout):
    model = load(profile, architecture)
    targets = r"(q|down)_proj$|visual/blocks/mlp/fc1$|visual/(merger|deepstack)/mlp_0$"
    cfg = dataclasses.replace(model.config, lora=LoraConfig(rank=2, targets=targets))
    adapters = jax.tree.map(
        lambda leaf: np.random.default_rng(leaf.size).normal(0, 0.3, leaf.shape).astype(np.float32),
        lora.split(init_params(cfg, 1)[1])[1],
    )
    write_adapter(tmp_path, adapters, cfg, layout=layout)
    adapted = GVE.from_pretrained(checkpoints[architecture], adapter=tmp_path, profile=profile)
    adapted = adapted.with_inputs(**SMALL)
    merged = lora.merge(lora.join(model.params, adapters), cfg)
    wanted = GVE(model.config, merged, model.preprocess, model.buckets, model.mesh).encode(INPUTS)
    found = adapted.encode(INPUTS)
    assert np.sum(found * wanted, axis=-1).min() > 0.999999
    assert np.sum(found * model.encode(INPUTS), axis=-1).max() < 0.999


@pytest.mark.parametrize("profile, architecture", [("gme", "qwen2_vl"), ("qwen3-vl", "qwen3_vl")])
def test_any_embedder_probes_the_first_stage(world, tmp_path, profile, architecture):
    """At random weights it must run, not help."""
    tokenizer = Tokenizer.from_file(str(world / "tokenizer.json"))
    prober = f"{profile}={write(tmp_path / 'prober', architecture, tokenizer)}"
    run = Experiment(make_config(world, pyramid__prober=prober), tmp_path / "run")
    cosines = run.external_cosines(Quarantine(tmp_path / "quarantine.jsonl", 0.0))
    assert set(cosines) == set(run.curriculum.sizes)
    values = np.concatenate([np.concatenate(each) for each in cosines.values()])
    assert np.isfinite(values).all() and np.abs(values).max() <= 1 + 1e-5 and values.std() > 0


def test_a_prober_that_cannot_be_had_says_what_to_do(world, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    name = "Alibaba-NLP/gme-Qwen2-VL-7B-Instruct"
    run = Experiment(make_config(world, pyramid__prober=name), tmp_path)
    with pytest.raises(UserError, match="a JSON file {task: R}, or to None to probe") as error:
        run.external_cosines(Quarantine(tmp_path / "quarantine.jsonl", 0.0))
    assert name in str(error.value) and "\n" not in str(error.value)


def test_instructions_of_a_profile_without_any_are_left_out_with_a_warning(load):
    model = load("unite", "qwen2_vl")
    with pytest.warns(UserWarning, match="unite takes no instructions: 'Find it.' is left out"):
        found = model.encode("red", prompt="Find it.")
    np.testing.assert_array_equal(found, model.encode("red"))


def test_shorter_vectors_warn_where_they_were_not_trained(load, recwarn):
    load("qwen3-vl-embedding", "qwen3_vl").encode("red", truncate_dim=8)
    assert not [w for w in recwarn if "dimensions" in str(w.message)]
    with pytest.warns(UserWarning, match="gme was not trained for vectors of 8 dimensions"):
        load("gme", "qwen2_vl").encode("red", truncate_dim=8)
