"""A small byte-level BPE tokenizer of Qwen2's kind, trained on the captions of this world."""

from collections.abc import Iterator
from pathlib import Path

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from data.shapes import captions, edits, instructions
from data.shapes.sampling import sample_camera_scene, sample_crossings, sample_long, sample_scene
from data.shapes.scene import ALL_PAIRS, make_rng

VOCABULARY = 1024  # at most, special tokens included

# Qwen2.5-VL's, in its order.
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

# The pre-tokenizer of Qwen2 (its tokenizer.json).
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CHAT = ("system\nYou are a helpful assistant.", "user\n", "assistant\n", "\n")
_SCENES = 1000


def corpus(seed: int) -> Iterator[str]:
    """All kinds of texts of this world and of the chat template.

    Scenes have all pairs of colour and shape; a vocabulary does not leak the held-out pairs,
    because no pair is a single word.
    """
    for text in (
        *_CHAT,
        *instructions.EVALUATION.values(),
        *sum(instructions.TRAINING.values(), ()),
    ):
        yield from [text] * 50
    for index in range(_SCENES):
        rng = make_rng(seed, "tokenizer", index)
        scene = sample_scene(rng, ALL_PAIRS)
        yield captions.whole(scene, rng)
        yield captions.spatial(scene, rng)
        yield captions.temporal(scene, rng)
        yield captions.keywords(scene, rng)
        yield captions.events(scene, rng)
        yield captions.theme(scene, rng)
        yield captions.main_object(scene, rng)
        yield captions.detailed(scene, rng)
        yield captions.what_follows(scene, rng)
        yield captions.temporal(sample_crossings(rng, ALL_PAIRS), rng)
        yield captions.camera(sample_camera_scene(rng, ALL_PAIRS), rng)
        yield captions.long(sample_long(rng, ALL_PAIRS), rng)
        yield edits.sample_edit(rng, edits.sample_still(rng, ALL_PAIRS), ALL_PAIRS)[0]


def train(texts: Iterator[str]) -> Tokenizer:
    """A tokenizer of at most `VOCABULARY` entries, special tokens last."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS]
    )
    return tokenizer


def write(path: Path, seed: int) -> int:
    """Trains and saves tokenizer.json; returns the size of the vocabulary."""
    tokenizer = train(corpus(seed))
    tokenizer.save(str(path))
    return tokenizer.get_vocab_size()
