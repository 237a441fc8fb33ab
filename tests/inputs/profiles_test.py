"""Prompts of each profile, written out from the releases' scripts (docs/models.md), and the choice
of a profile."""

import dataclasses

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from gve_jax.errors import UserError
from gve_jax.inputs.positions import SEQUENTIAL
from gve_jax.inputs.preprocess import InputSpec, Preprocessor
from gve_jax.inputs.profiles import PROFILES, choose_profile, find_profile
from gve_jax.inputs.prompt import Entry, Prompt, Slot
from gve_jax.media.item import Item
from tests.media.files import clip, numbered, small_tokenizer

IMAGE, VIDEO = "<|image_pad|>", "<|video_pad|>"
EMB = "<emb>"


def system(content: str) -> str:
    return f"<|im_start|>system\n{content}<|im_end|>\n"


def user(content: str, end: str = "<|endoftext|>") -> str:
    return f"<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n{end}"


def visual(pad: str, count: int = 2) -> str:
    return f"<|vision_start|>{pad * count}<|vision_end|>"


HELPFUL = system("You are a helpful assistant.")
UNITE = "\nSummary above {} in one word:"
ONE_WORD = "Summarize the above content in one word:"
STAMPED = f"<0.5 seconds>{visual(VIDEO)}<2.5 seconds>{visual(VIDEO)}"
FRAMES = visual(IMAGE) * 3

# (profile, parts of the item, prompt); "t", "i", "v" and "I" stand for text, image, video and
# instruction, "S" for one with white space around it.
WANTED = [
    ("gve", "t", HELPFUL + user("red")),
    ("gve", "tI", system("Find it") + user("red")),
    ("gve", "tiv", HELPFUL + user(f"{visual(VIDEO)}{visual(IMAGE)}red")),
    ("gme", "t", HELPFUL + user("red")),
    ("gme", "ti", HELPFUL + user(f"{visual(IMAGE)}red")),
    ("gme", "tI", system("Find it") + user("red")),
    ("gme", "v", HELPFUL + user(FRAMES)),
    ("unite", "t", HELPFUL + user("red" + UNITE.format("sentence"))),
    ("unite", "i", HELPFUL + user(visual(IMAGE) + UNITE.format("image"))),
    ("unite", "v", HELPFUL + user(visual(VIDEO) + UNITE.format("video"))),
    ("unite", "ti", HELPFUL + user(f"{visual(IMAGE)}red{UNITE.format('sentence and image')}")),
    ("unite", "tvI", HELPFUL + user(f"{visual(VIDEO)}red{UNITE.format('sentence and video')}")),
    ("vlm2vec-v2", "t", "red"),
    ("vlm2vec-v2", "tI", "Find it red"),
    ("vlm2vec-v2", "iI", f"{IMAGE * 2} Find it"),
    ("vlm2vec-v2", "tiI", f"{IMAGE * 2} Find it red"),
    ("vlm2vec-v2", "vI", f"{VIDEO * 2} Find it"),
    ("vlm2vec-v2", "v", f"{VIDEO * 2} Understand the content of the provided video."),
    ("vlm2vec-v2", "tivI", f"{IMAGE * 2} {VIDEO * 2} Find it red"),
    ("b3", "v", VIDEO * 2),
    ("b3", "tiI", f"{IMAGE * 2} Find it red"),
    ("rzenembed", "tI", HELPFUL + user("Find itred")),
    ("rzenembed", "tvI", HELPFUL + user(f"{FRAMES}Find itred")),
    ("rzenembed", "tivI", HELPFUL + user(f"{visual(IMAGE)}{FRAMES}Find itred")),
    ("ops-mm", "tI", system("Find it") + user("red")),
    ("ops-mm", "tv", HELPFUL + user(f"{FRAMES}red")),
    ("ops-mm", "tiv", HELPFUL + user(f"{visual(IMAGE)}{FRAMES}red")),
    ("qwen2-vl", "tv", HELPFUL + user(f"{visual(VIDEO)}red")),
    ("qwen3-vl-embedding", "t", system("Represent the user's input.") + user("red", "")),
    ("qwen3-vl-embedding", "tI", system("Find it.") + user("red", "")),
    ("qwen3-vl-embedding", "tS", system("Find it!") + user("red", "")),
    ("qwen3-vl-embedding", "tiv", system("Represent the user's input.")
     + user(f"{STAMPED}{visual(IMAGE)}red", "")),
    ("embed-rl", "t", user(f"red{ONE_WORD}", EMB)),
    ("embed-rl", "tiI", user(f"{visual(IMAGE)}Find it red{ONE_WORD}", EMB)),
    ("embed-rl", "tv", user(f"red{STAMPED}{ONE_WORD}", EMB)),
    ("qwen3-vl", "t", user("red")),
    ("qwen3-vl", "tvI", system("Find it") + user(f"{STAMPED}red")),
]  # fmt: skip


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    tokenizer = Tokenizer.from_str(small_tokenizer().to_str())
    tokenizer.add_special_tokens([EMB])
    path = tmp_path_factory.mktemp("profiles") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def slots(profile, parts: str) -> list[Slot]:
    """What a row has for an image of 2 tokens, and for a video of 3 frames or 2 frame pairs."""
    found = {"image": [Slot("image", "image", 2)], "video": [Slot("video", "video", 2)]}
    if profile.frames_as_images:
        found["video"] = [Slot("video", "image", 2)] * 3
    if profile.architectures == ("qwen3_vl",):
        found["video"] = [Slot("video", "video", 2, f"<{t} seconds>") for t in (0.5, 2.5)]
    return [slot for medium in profile.media if medium[0] in parts for slot in found[medium]]


@pytest.mark.parametrize("name, parts, wanted", WANTED, ids=lambda value: str(value)[:18])
def test_prompts_are_those_of_the_release(file, name, parts, wanted):
    profile = find_profile(name)
    prompt = Prompt(file, 512, profile)
    instruction = "Find it" if "I" in parts else " Find it!\n" if "S" in parts else ""
    entry = Entry("red" if "t" in parts else "", instruction, slots(profile, parts))
    ids, starts = prompt.ids(entry)
    tokenizer = prompt._tokenizer
    assert ids == tokenizer.encode(wanted, add_special_tokens=False).ids
    pads = {"image": prompt.image_pad, "video": prompt.video_pad}
    assert [ids[at : at + 2] for at in starts] == [[pads[slot.pad]] * 2 for slot in entry.slots]


def test_every_profile_has_a_written_out_prompt():
    assert {name for name, *_ in WANTED} == set(PROFILES)


def test_end_tokens_of_the_tokenizer_file_are_honoured(file, tmp_path):
    tokenizer = Tokenizer.from_file(str(file))
    end = tokenizer.token_to_id("<|endoftext|>")
    tokenizer.post_processor = TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", end)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    profile = find_profile("qwen3-vl-embedding")
    plain, framed = Prompt(file, 64, profile), Prompt(tmp_path / "tokenizer.json", 64, profile)
    for text in ("red", "ring " * 80):
        (without, _), (ids, _) = plain.ids(Entry(text)), framed.ids(Entry(text))
        assert ids == without[:63] + [end]
        assert ids == tokenizer.encode(
            system("Represent the user's input.") + user(text, ""), add_special_tokens=True
        ).ids[: len(ids) - 1] + [end]
    gve = Prompt(tmp_path / "tokenizer.json", 64)  # writes its own
    assert gve.ids(Entry("red")) == Prompt(file, 64).ids(Entry("red"))


def test_a_prompt_without_tokens_is_refused(file):
    with pytest.raises(UserError, match="profile b3: an empty text has no tokens to pool"):
        Prompt(file, 64, find_profile("b3")).ids(Entry(""))


def test_a_missing_end_token_is_named(tokenizer_file):
    with pytest.raises(UserError, match="the tokenizer has no <emb>"):
        Prompt(tokenizer_file, 64, find_profile("embed-rl"))


def test_frames_as_images_are_images_with_positions_in_sequence(file):
    profile = find_profile("gme")
    spec = InputSpec(profile="gme", mrope=SEQUENTIAL, max_length=512, max_pixels=8 * 28**2)
    preprocess = Preprocessor(Prompt(file, 512, profile), spec)
    row = preprocess(Item("red", video=numbered(4), num_frames="all"))
    assert len(row.patches) == 4 and not (row.tokens == preprocess.prompt.video_pad).any()
    assert (row.tokens == preprocess.prompt.image_pad).sum() == len(row.visual_tokens)
    assert (row.positions == np.arange(len(row.tokens))).all()
    for number, patches in enumerate(row.patches):  # both frames of a pair are the frame
        first, second = patches.reshape(-1, 3, 2, 14, 14).swapaxes(0, 2).swapaxes(1, 2)[:2]
        assert (first == second).all()
        single = preprocess(Item(image=numbered(4)[number]))
        np.testing.assert_array_equal(patches, single.patches[0])


@pytest.mark.parametrize("name, sides", [("gve", (560, 1008)), ("vlm2vec-v2", (756, 1316))])
def test_frames_of_processors_have_no_limits_but_their_own(file, name, sides):
    """1,269 tokens a frame, where qwen-vl-utils' `fetch_video` has at most 768."""
    profile = find_profile(name)
    spec = InputSpec(profile=name, max_pixels=1280 * 28**2)
    preprocess = Preprocessor(Prompt(file, 8192, profile), spec)
    (medium,) = preprocess.frames(Item(video=np.zeros((2, 800, 1400, 3), np.uint8)))
    assert medium.frames.shape[1:3] == sides
    (medium,) = preprocess.frames(
        Item(video=np.zeros((2, 800, 1400, 3), np.uint8), total_pixels=256 * 28**2)
    )
    assert medium.frames.shape[1] * medium.frames.shape[2] <= 256 * 28**2


def test_each_frame_pair_of_qwen3_has_its_time_and_its_positions(file):
    """8 of 240 frames at 24 a second: the times of the facts of transformers 4.57.6."""
    spec = InputSpec(
        profile="qwen3-vl",
        max_length=512,
        patch_size=16,
        window_side=0,
        tokens_per_second=0,
        timestamps=True,
        min_pixels=64**2,
        max_pixels=64**2,
    )
    preprocess = Preprocessor(Prompt(file, 512, find_profile("qwen3-vl")), spec)
    video = np.zeros((240, 64, 64, 3), np.uint8)
    row = preprocess(Item(video=video, fps=24.0))
    text = preprocess.prompt._tokenizer.decode(row.tokens.tolist(), skip_special_tokens=False)
    pair = visual(VIDEO, 4)
    stamps = [f"<{seconds} seconds>{pair}" for seconds in ("0.7", "3.5", "6.4", "9.2")]
    assert text == user("".join(stamps))
    # All tokens of a frame pair have one time; the text continues after its largest position.
    for first in row.visual_tokens[::4]:
        start = row.positions[0, first]
        assert row.positions[:, first : first + 4].tolist() == [
            [start] * 4,
            [start, start, start + 1, start + 1],
            [start, start + 1, start, start + 1],
        ]
        assert (row.positions[:, first - 1] == start - 1).all()
        assert (row.positions[:, first + 4] == start + 2).all()


def test_images_may_have_limits_of_their_own(file):
    spec = InputSpec(
        profile="gme",
        mrope=SEQUENTIAL,
        max_pixels=8 * 28**2,
        image_min_pixels=20 * 28**2,
        image_max_pixels=40 * 28**2,
    )
    preprocess = Preprocessor(Prompt(file, 8192, find_profile("gme")), spec)
    image, video = Item(image=numbered(1)[0]), Item(video=numbered(2), num_frames="all")
    assert 20 <= len(preprocess(image).visual_tokens) <= 40
    assert len(preprocess(video).visual_tokens) <= 2 * 8
    own = dataclasses.replace(image, min_pixels=30 * 28**2)
    assert 30 <= len(preprocess(own).visual_tokens) <= 40
    with pytest.raises(UserError, match="min_pixels 23520 is above the model's max_pixels 6272"):
        preprocess(dataclasses.replace(video, min_pixels=30 * 28**2))
    with pytest.raises(UserError, match="image_max_pixels 784 is below image_min_pixels 3136"):
        InputSpec(image_max_pixels=784)


@pytest.mark.parametrize(
    "frames, options, wanted",
    [  # as transformers 4.57.6 writes them: 0.25 is 0.2; without a rate, ours is 2, not its 24
        (4, {"fps": 2.0, "num_frames": "all"}, ["0.2", "1.2"]),
        (4, {"num_frames": "all"}, ["0.2", "1.2"]),
        (17, {"fps": 25.0, "num_frames": 4}, ["0.1", "0.5"]),
        (5, {"fps": 1.0, "num_frames": "all"}, ["0.5", "2.5", "4.0"]),
    ],
)
def test_times_are_written_as_recorded(file, frames, options, wanted):
    spec = InputSpec(
        profile="qwen3-vl", timestamps=True, patch_size=16, window_side=0, tokens_per_second=0
    )
    preprocess = Preprocessor(Prompt(file, 8192, find_profile("qwen3-vl")), spec)
    row = preprocess(Item("red", video=np.zeros((frames, 64, 64, 3), np.uint8), **options))
    text = preprocess.prompt._tokenizer.decode(row.tokens.tolist(), skip_special_tokens=False)
    stamps = "".join(f"<{seconds} seconds>{visual(VIDEO, 4)}" for seconds in wanted)
    assert text == user(f"{stamps}red")


def test_times_are_those_of_the_sampled_frames(file):
    spec = InputSpec(
        profile="qwen3-vl", timestamps=True, patch_size=16, window_side=0, tokens_per_second=0
    )
    preprocess = Preprocessor(Prompt(file, 8192, find_profile("qwen3-vl")), spec)
    (visual,) = preprocess.visuals(Item(video=clip(24)))  # at 10 frames a second
    assert visual.times == pytest.approx([0.15, 0.85, 1.45, 2.15])
    (late,) = preprocess.visuals(Item(video=clip(24), video_start=1.0, num_frames=2))
    assert late.times == pytest.approx([(1.0 + 2.3) / 2])
    (odd,) = preprocess.visuals(Item(video=numbered(5), fps=1.0, num_frames="all"))
    assert odd.times == pytest.approx([0.5, 2.5, 4.0])


@pytest.mark.parametrize(
    "architecture, called, wanted",
    [
        ("qwen2_5_vl", ["qwen2_5_vl", "anything"], "gve"),
        ("qwen2_vl", ["gme-Qwen2-VL-2B-Instruct"], "gme"),
        ("qwen2_vl", ["Qwen2-VL-2B-Instruct"], "qwen2-vl"),
        ("qwen2_vl", ["VLM2Vec-V2.0", "Qwen2-VL-2B-Instruct"], "vlm2vec-v2"),
        ("qwen2_vl", ["B3_Qwen2_2B", "Qwen2-VL-2B-Instruct"], "b3"),
        ("qwen2_vl", ["unite_qwen2_vl", "mine"], "unite"),
        ("qwen2_vl", ["Unite-Base-Qwen2-VL-7B"], "unite"),
        ("qwen2_vl", ["RzenEmbed-v2-7B"], "rzenembed"),
        ("qwen2_vl", ["Ops-MM-embedding-v1-2B"], "ops-mm"),
        ("qwen3_vl", ["Qwen3-VL-Embedding-2B"], "qwen3-vl-embedding"),
        ("qwen3_vl", ["qwen3_vl", "emb_token_ids", "mine"], "embed-rl"),
        ("qwen3_vl", ["Embed-RL-4B"], "embed-rl"),
        ("qwen3_vl", ["Qwen3-VL-8B-Instruct"], "qwen3-vl"),
    ],
)
def test_a_profile_is_chosen_by_name(architecture, called, wanted):
    assert choose_profile(None, architecture, called).name == wanted


def test_an_undecided_or_unfit_profile_is_one_line():
    with pytest.raises(UserError, match="which embedder of qwen2_vl it is; give .*gme, unite"):
        choose_profile(None, "qwen2_vl", ["qwen2_vl", "my-model"])
    with pytest.raises(UserError, match="profile gme is for qwen2_vl; the checkpoint is qwen3_vl"):
        choose_profile("gme", "qwen3_vl", [])
    with pytest.raises(UserError, match="unknown profile 'gm'; known: gve, gme"):
        choose_profile("gm", "qwen2_vl", [])
    with pytest.raises(UserError, match="unknown profile 'x'"):
        InputSpec(profile="x")


def test_another_embedder_is_a_line_of_data():
    """RzenEmbed differs from GME in fields of the profile only."""
    gme, rzen = PROFILES["gme"], PROFILES["rzenembed"]
    differing = {
        field.name
        for field in dataclasses.fields(gme)
        if getattr(gme, field.name) != getattr(rzen, field.name)
    }
    assert differing == {"name", "repositories", "system", "user", "inputs"}
