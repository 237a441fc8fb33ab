"""The tokenizer: kind and special tokens of Qwen, lossless, one token per word of the world."""

import pytest
from tokenizers import Tokenizer

from data.shapes import captions, instructions, tokenizer
from data.shapes.sampling import sample_scene
from data.shapes.scene import ALL_PAIRS, make_rng


@pytest.fixture(scope="module")
def stored(world) -> Tokenizer:
    return Tokenizer.from_file(str(world / "tokenizer.json"))


def test_special_tokens_are_one_token_each_and_last(stored):
    ids = [stored.encode(token).ids for token in tokenizer.SPECIAL_TOKENS]
    first = stored.get_vocab_size() - len(tokenizer.SPECIAL_TOKENS)
    assert ids == [[first + i] for i in range(len(tokenizer.SPECIAL_TOKENS))]
    assert stored.get_vocab_size() <= tokenizer.VOCABULARY
    text = "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>a red ring.<|im_end|>"
    assert stored.decode(stored.encode(text).ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("text", ["naïve 日本 🎬\n\n  two  spaces", "It's 1234!", "", "\t tab\r\n"])
def test_any_text_is_decoded_unchanged(stored, text):
    assert stored.decode(stored.encode(text).ids) == text


def test_text_is_normalized_and_split_as_by_qwen2(stored):
    assert stored.encode("e\u0301").ids == stored.encode("\u00e9").ids  # NFC
    pieces = [p for p, _ in stored.pre_tokenizer.pre_tokenize_str("It's 1234 red, ok!\n a")]
    assert pieces == ["It", "'s", "Ġ", "1", "2", "3", "4", "Ġred", ",", "Ġok", "!Ċ", "Ġa"]


def test_captions_have_one_token_per_word(stored):
    for i in range(30):
        rng = make_rng(9, "test", i)
        text = captions.whole(sample_scene(rng, ALL_PAIRS), rng)
        words = stored.pre_tokenizer.pre_tokenize_str(text)
        assert len(stored.encode(text).ids) <= len(words) + 1
    for text in instructions.EVALUATION.values():
        assert len(stored.encode(text).ids) <= len(text.split()) + 3


def test_same_seed_gives_the_same_tokenizer(stored):
    assert tokenizer.train(tokenizer.corpus(0)).to_str() == stored.to_str()
