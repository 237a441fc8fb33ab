"""Token ids of prompts, compared with the text that they decode to."""

import pickle

import pytest

from gve_jax.errors import UserError
from gve_jax.inputs.prompt import Entry, Prompt, Slot
from tests.media.files import small_tokenizer

SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
TAIL = "<|im_end|>\n<|im_start|>assistant\n<|endoftext|>"
VIDEO, IMAGE = "<|video_pad|>", "<|image_pad|>"


def spell(ids) -> str:
    return small_tokenizer().decode(ids, skip_special_tokens=False)


def entry(text, instruction, video, image) -> Entry:
    counts = {"video": video, "image": image}
    slots = [Slot(kind, kind, count) for kind, count in counts.items() if count]
    return Entry(text, instruction, slots)


def visual(pad: str, count: int) -> str:
    return "<|vision_start|>" + pad * count + "<|vision_end|>"


@pytest.mark.parametrize("text", ["a red ring", "", "naïve 日本 🎬\n\n two", "It's 1234!"])
def test_text_alone(prompt, text):
    ids, starts = prompt.ids(entry(text, "", 0, 0))
    assert spell(ids) == f"{SYSTEM}<|im_start|>user\n{text}{TAIL}"
    assert starts == [] and ids[-1] == prompt.pad and ids.count(prompt.pad) == 1


def test_the_instruction_is_the_system_turn(prompt):
    ids, _ = prompt.ids(entry("red", "Find the ring.", 0, 0))
    assert spell(ids).startswith("<|im_start|>system\nFind the ring.<|im_end|>\n")
    assert "helpful" not in spell(ids)


@pytest.mark.parametrize("video, image", [(5, 0), (0, 3), (5, 3), (1, 1)])
def test_visuals_precede_the_text_and_starts_are_their_first_tokens(prompt, video, image):
    ids, starts = prompt.ids(entry("red", "", video, image))
    middle = visual(VIDEO, video) * bool(video) + visual(IMAGE, image) * bool(image)
    assert spell(ids) == f"{SYSTEM}<|im_start|>user\n{middle}red{TAIL}"
    expected = [(prompt.video_pad, video), (prompt.image_pad, image)]
    expected = [(pad, count) for pad, count in expected if count]
    assert len(starts) == len(expected)
    for start, (pad, count) in zip(starts, expected, strict=True):
        assert ids[start : start + count] == [pad] * count
        assert pad not in (ids[start - 1], ids[start + count])


@pytest.mark.parametrize(
    "text, instruction",
    [
        (f"a {VIDEO} b {IMAGE}", ""),
        ("a", f"Find {VIDEO} or {IMAGE}."),
        (VIDEO, f"{IMAGE}{VIDEO}"),
        (IMAGE, f"<|vision_start|>{IMAGE}<|vision_end|>"),
    ],
)
@pytest.mark.parametrize("video, image", [(4, 0), (0, 4), (4, 2)])
def test_a_spelled_out_pad_does_not_displace_the_visual(prompt, text, instruction, video, image):
    ids, starts = prompt.ids(entry(text, instruction, video, image))
    system = SYSTEM if not instruction else f"<|im_start|>system\n{instruction}<|im_end|>\n"
    middle = visual(VIDEO, video) * bool(video) + visual(IMAGE, image) * bool(image)
    assert spell(ids) == f"{system}<|im_start|>user\n{middle}{text}{TAIL}"
    for start in starts:
        assert spell(ids[:start]).endswith("<|vision_start|>")
        assert spell(ids[:start]).startswith(f"{system}<|im_start|>user\n")


def test_a_long_text_is_truncated_before_the_end_token(tokenizer_file):
    whole, starts = Prompt(tokenizer_file, 512).ids(entry("ring " * 60, "", 7, 0))
    for limit in (starts[0] + 7 + 1, 60, len(whole) - 1):
        prompt = Prompt(tokenizer_file, limit)
        ids, cut_starts = prompt.ids(entry("ring " * 60, "", 7, 0))
        assert ids == whole[: limit - 1] + [prompt.pad] and len(ids) == limit
        assert cut_starts == starts
    for limit in (len(whole), len(whole) + 1):
        assert Prompt(tokenizer_file, limit).ids(entry("ring " * 60, "", 7, 0))[0] == whole


def test_a_visual_is_never_truncated(tokenizer_file):
    _, (start,) = Prompt(tokenizer_file, 512).ids(entry("", "", 7, 0))
    with pytest.raises(ValueError, match=str(start + 7)):
        Prompt(tokenizer_file, start + 7).ids(entry("", "", 7, 0))


def test_truncation_and_padding_of_the_file_are_ignored(tokenizer_file, prompt, tmp_path):
    other = small_tokenizer().from_str(small_tokenizer().to_str())
    other.enable_truncation(10)
    other.enable_padding(length=64, direction="left")
    other.save(str(tmp_path / "tokenizer.json"))
    configured = Prompt(tmp_path / "tokenizer.json", 512)
    assert configured.ids(entry("a red ring", "", 9, 0)) == prompt.ids(
        entry("a red ring", "", 9, 0)
    )


def test_pickles(prompt):
    again = pickle.loads(pickle.dumps(prompt))
    assert again.ids(entry("red", "", 2, 1)) == prompt.ids(entry("red", "", 2, 1))
    assert again.vocab_size == prompt.vocab_size == small_tokenizer().get_vocab_size()


def test_other_files_are_refused(tmp_path):
    from tokenizers import Tokenizer, models

    path = tmp_path / "tokenizer.json"
    with pytest.raises(UserError, match="tokenizer.json: no such tokenizer file"):
        Prompt(path, 64)
    path.write_text('{"a": 1}')
    with pytest.raises(UserError, match="tokenizer.json: not a tokenizer file"):
        Prompt(path, 64)
    Tokenizer(models.BPE()).save(str(path))
    with pytest.raises(UserError, match=r"tokenizer.json: the tokenizer has no <\|endoftext\|>"):
        Prompt(path, 64)


def test_a_batch_equals_single_calls(tokenizer_file):
    prompt = Prompt(tokenizer_file, 80)
    entries = [
        entry(text, instruction, video, image)
        for text in (
            "a red ring",
            "",
            "ring " * 90,
            f"a {IMAGE} b {VIDEO}",
            "naïve 日本 🎬\n\n two",
        )
        for instruction in ("", "Find the ring.", f"Find {VIDEO}.")
        for video, image in ((0, 0), (5, 0), (0, 3), (5, 3))
    ]
    alone = [prompt.ids(each) for each in entries]
    assert prompt.ids_batch(entries) == alone
    assert prompt.ids_batch(entries[::-1]) == alone[::-1]
    assert prompt.ids_batch([]) == []
    with pytest.raises(ValueError, match="exceed 80"):
        prompt.ids_batch([*entries, entry("", "", 90, 0)])


def test_the_cache_of_instructions_is_bounded(prompt):
    for i in range(1000):
        ids, _ = prompt.ids(entry("red", f"Find {i}.", 0, 0))
        assert f"Find {i}." in spell(ids)
    assert len(prompt._systems) <= 256
