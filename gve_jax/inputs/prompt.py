"""Qwen's chat template around an item, as token ids."""

import os
from collections.abc import Sequence

from gve_jax.errors import UserError
from gve_jax.inputs.tokenizer import open_tokenizer

DEFAULT_SYSTEM = "You are a helpful assistant."
SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


class Prompt:
    """Converts (instruction, visuals, text) to the token ids of the reference's processor.

    Args:
      path: a `tokenizer.json` with Qwen2.5-VL's special tokens.
      max_length: maximum tokens; longer sequences are truncated before the final
        `<|endoftext|>`.

    Raises:
      UserError: no such file, not a tokenizer, a special token missing.
    """

    def __init__(self, path: str | os.PathLike, max_length: int):
        self.path, self.max_length = os.fspath(path), max_length
        self._tokenizer = open_tokenizer(self.path)
        # A file may enable both; they would truncate visuals or move the end token.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        ids = {token: self._tokenizer.token_to_id(token) for token in SPECIALS}
        missing = [token for token, index in ids.items() if index is None]
        if missing:
            raise UserError(f"{self.path}: the tokenizer has no {missing[0]}")
        self._systems: dict[str, list[int]] = {}
        self.end, self.image_pad, self.video_pad = (
            ids[token] for token in ("<|endoftext|>", "<|image_pad|>", "<|video_pad|>")
        )

    def __reduce__(self):  # reading a Tokenizer again is cheaper than pickling it
        return Prompt, (self.path, self.max_length)

    @property
    def vocab_size(self) -> int:
        """Number of token embeddings that the tokenizer requires: its largest id plus one."""
        return 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())

    def ids(
        self, text: str, instruction: str, video_tokens: int, image_tokens: int
    ) -> tuple[list[int], list[int]]:
        """Token ids of system turn, user turn (video, image, text), assistant header and end token.

        Returns the ids and the index of the first token of each visual (video first).

        Raises:
          ValueError: the visual tokens exceed `max_length`; a visual is not truncated, since its
            vector would be that of a part.
        """
        return self.ids_batch([(text, instruction, video_tokens, image_tokens)])[0]

    def ids_batch(
        self, entries: Sequence[tuple[str, str, int, int]]
    ) -> list[tuple[list[int], list[int]]]:
        """`ids` of many entries, on all cores (on one core with TOKENIZERS_PARALLELISM=false, and
        after a fork). Raises ValueError if one of them does."""
        # In two parts, which no token spans (the second starts with a special token): our pads come
        # first in the user turn; pads in a text or an instruction are ordinary tokens.
        users = self._encode([_user(text, video, image) for text, _, video, image in entries])
        return [
            self._join(self._system(instruction), user, video, image)
            for (_, instruction, video, image), user in zip(entries, users, strict=True)
        ]

    def _join(
        self, system: list[int], user: list[int], video: int, image: int
    ) -> tuple[list[int], list[int]]:
        ids, starts = list(system), []
        done = last_visual = 0
        for pad, count in ((self.video_pad, video), (self.image_pad, image)):
            if count:
                at = user.index(pad, done)
                ids += user[done:at]
                starts.append(len(ids))
                ids += [pad] * count
                done, last_visual = at + 1, len(ids)
        if last_visual > self.max_length - 1:
            raise ValueError(f"{last_visual} tokens up to the last visual exceed {self.max_length}")
        ids += user[done:]
        return ids[: self.max_length - 1] + [self.end], starts

    def _system(self, instruction: str) -> list[int]:
        if instruction not in self._systems:
            if len(self._systems) == 256:  # a queue of texts may have an instruction each
                self._systems.clear()
            turn = f"<|im_start|>system\n{instruction or DEFAULT_SYSTEM}<|im_end|>\n"
            (self._systems[instruction],) = self._encode([turn])
        return self._systems[instruction]

    def _encode(self, texts: list[str]) -> list[list[int]]:
        if len(texts) == 1:  # starts no thread, so that the process can still be forked
            return [self._tokenizer.encode(texts[0], add_special_tokens=False).ids]
        # "fast" omits the offsets of tokens.
        encoded = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [each.ids for each in encoded]


def _user(text: str, video_tokens: int, image_tokens: int) -> str:
    video = "<|vision_start|><|video_pad|><|vision_end|>" if video_tokens else ""
    image = "<|vision_start|><|image_pad|><|vision_end|>" if image_tokens else ""
    return f"<|im_start|>user\n{video}{image}{text}<|im_end|>\n<|im_start|>assistant\n"
