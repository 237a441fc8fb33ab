"""Qwen's chat template around an item, as token ids."""

import os

from tokenizers import Tokenizer

from gve_jax.errors import UserError

DEFAULT_SYSTEM = "You are a helpful assistant."
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
            "<|image_pad|>", "<|video_pad|>")  # fmt: skip


class Prompt:
    """Turns (instruction, visuals, text) into the ids that the reference's processor gives.

    Args:
      path: a `tokenizer.json` that has Qwen2.5-VL's special tokens.
      max_length: tokens of a sequence; a longer one is cut and keeps its final `<|endoftext|>`.

    Raises:
      UserError: no such file, not a tokenizer, a special token missing.
    """

    def __init__(self, path: str | os.PathLike, max_length: int):
        self.path, self.max_length = os.fspath(path), max_length
        if not os.path.isfile(self.path):
            raise UserError(f"{self.path}: no such tokenizer file")
        try:
            self._tokenizer = Tokenizer.from_file(self.path)
            # A file may bring both along; they would cut a visual, or move the end token.
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
        except Exception as error:  # tokenizers raises bare Exception
            raise UserError(f"{self.path}: not a tokenizer file ({error})") from error
        ids = {token: self._tokenizer.token_to_id(token) for token in SPECIALS}
        missing = [token for token, index in ids.items() if index is None]
        if missing:
            raise UserError(f"{self.path}: the tokenizer has no {missing[0]}")
        self.end, self.image_pad, self.video_pad = (
            ids[token] for token in ("<|endoftext|>", "<|image_pad|>", "<|video_pad|>")
        )

    def __reduce__(self):  # a Tokenizer is cheaper to read again than to pickle
        return Prompt, (self.path, self.max_length)

    @property
    def vocab_size(self) -> int:
        return self._tokenizer.get_vocab_size()

    def ids(
        self, text: str, instruction: str, video_tokens: int, image_tokens: int
    ) -> tuple[list[int], list[int]]:
        """Token ids: system turn, user turn (video, image, text), assistant header, end token.

        Returns the ids and where each visual's tokens start (video first).

        Raises:
          ValueError: the visual tokens alone exceed `max_length`; cutting inside a visual would
            leave a vector of half a picture.
        """
        video = "<|vision_start|><|video_pad|><|vision_end|>" if video_tokens else ""
        image = "<|vision_start|><|image_pad|><|vision_end|>" if image_tokens else ""
        # In two parts, which no token spans (a special one starts the second): our pads come first
        # in the user turn; one that a text or an instruction spells out stands for itself.
        system = f"<|im_start|>system\n{instruction or DEFAULT_SYSTEM}<|im_end|>\n"
        user = f"<|im_start|>user\n{video}{image}{text}<|im_end|>\n<|im_start|>assistant\n"
        expand = [(self.video_pad, video_tokens), (self.image_pad, image_tokens)]
        expand = [(pad, count) for pad, count in expand if count]
        ids, starts, last_visual = self._encode(system), [], 0
        for index in self._encode(user):
            if expand and index == expand[0][0]:
                starts.append(len(ids))
                ids.extend([index] * expand.pop(0)[1])
                last_visual = len(ids)
            else:
                ids.append(index)
        if last_visual > self.max_length - 1:
            raise ValueError(f"{last_visual} tokens up to the last visual exceed {self.max_length}")
        return ids[: self.max_length - 1] + [self.end], starts

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids
