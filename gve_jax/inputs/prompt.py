"""The prompt of an item as token ids, by profile."""

import os
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from gve_jax.errors import UserError
from gve_jax.inputs.profiles import FROM_TOKENIZER, PROFILES, Profile
from gve_jax.inputs.tokenizer import open_tokenizer

SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


class Slot(NamedTuple):
    """The place of a visual in a prompt.

    Attributes:
      medium: the part of the item that it belongs to, "video" or "image".
      pad: kind of its tokens, "video" or "image".
      tokens: their number.
      stamp: text before it.
    """

    medium: str
    pad: str
    tokens: int
    stamp: str = ""


class Entry(NamedTuple):
    """What a prompt is made of; `slots` are in the order of the prompt."""

    text: str
    instruction: str = ""
    slots: Sequence[Slot] = ()


class Prompt:
    """Converts entries to the token ids of the reference's processor.

    Args:
      path: a `tokenizer.json` with Qwen's special tokens.
      max_length: maximum tokens; longer sequences are truncated before the end token.
      profile: of the embedder.

    Raises:
      UserError: no such file, not a tokenizer, a special token missing.
    """

    def __init__(
        self, path: str | os.PathLike, max_length: int, profile: Profile = PROFILES["gve"]
    ):
        self.path, self.max_length, self.profile = os.fspath(path), max_length, profile
        self._tokenizer = open_tokenizer(self.path)
        # A file may enable both; they would truncate visuals or move the end token.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        own = {profile.end} - {"", FROM_TOKENIZER, *SPECIALS}
        ids = {token: self._tokenizer.token_to_id(token) for token in (*SPECIALS, *own)}
        missing = [token for token, index in ids.items() if index is None]
        if missing:
            raise UserError(f"{self.path}: the tokenizer has no {missing[0]}")
        self._ids = ids
        self._systems: dict[str, list[int]] = {}
        self.pad, self.image_pad, self.video_pad = (
            ids[token] for token in ("<|endoftext|>", "<|image_pad|>", "<|video_pad|>")
        )
        self._begin, self._end = self._frame()

    def __reduce__(self):  # reading a Tokenizer again is cheaper than pickling it
        return Prompt, (self.path, self.max_length, self.profile)

    @property
    def vocab_size(self) -> int:
        """Number of token embeddings that the tokenizer requires: its largest id plus one."""
        return 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())

    def ids(self, entry: Entry) -> tuple[list[int], list[int]]:
        """Token ids of an entry, and the index of the first token of each visual.

        Raises:
          ValueError: the visual tokens exceed `max_length`; a visual is not truncated, since its
            vector would be that of a part.
          UserError: an empty text, in a profile whose prompt has no other tokens.
        """
        return self.ids_batch([entry])[0]

    def text_of(self, ids: Sequence[int]) -> str:
        """The text of token ids; raises ValueError for one that the tokenizer does not have."""
        for index in ids:
            if not 0 <= index < 2**32 or self._tokenizer.id_to_token(index) is None:
                raise ValueError(f"the tokenizer has no token {index}")
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def ids_batch(self, entries: Sequence[Entry]) -> list[tuple[list[int], list[int]]]:
        """`ids` of many entries, on all cores (on one core with TOKENIZERS_PARALLELISM=false, and
        after a fork). Raises ValueError if one of them does."""
        # No token spans the parts: all but the first follow or precede a special token. Pads in a
        # text or an instruction are ordinary tokens.
        parts = [list(self._parts(entry)) for entry in entries]
        texts = [part for each in parts for part in each if isinstance(part, str)]
        encoded = iter(self._encode(texts))
        return [
            self._join(
                self._system(entry.instruction),
                [next(encoded) if isinstance(part, str) else part for part in each],
            )
            for entry, each in zip(entries, parts, strict=True)
        ]

    def _parts(self, entry: Entry) -> Iterator[str | Slot]:
        """The user turn and what follows: texts, and the visuals between them."""
        profile, text = self.profile, "<|im_start|>user\n" if self.profile.chat else ""
        parts: dict[str, str | list[Slot]] = {
            "text": entry.text,
            "instruction": entry.instruction,
            "video": [slot for slot in entry.slots if slot.medium == "video"],
            "image": [slot for slot in entry.slots if slot.medium == "image"],
        }
        if parts["video"] and not (entry.text or entry.instruction):
            parts["instruction"] = profile.bare_video
        present = [n for n, part in enumerate(profile.user) if parts.get(part)]
        for n, part in enumerate(profile.user):
            if part not in parts and n - 1 in present and n < present[-1]:
                text += part
            elif part in profile.media:
                for slot in parts[part]:
                    if text + slot.stamp:
                        yield text + slot.stamp
                    yield slot
                    text = ""
            elif part in parts:
                text += parts[part]
        text += profile.suffix.format(kinds=_kinds(entry)) if profile.suffix else ""
        if profile.chat:
            text += "<|im_end|>\n<|im_start|>assistant\n"
        if text:
            yield text

    def _join(
        self, system: list[int], parts: list[list[int] | Slot]
    ) -> tuple[list[int], list[int]]:
        ids, starts, last_visual = self._begin + system, [], 0
        for part in parts:
            if isinstance(part, Slot):
                framed = self.profile.vision_tokens
                ids += [self._ids["<|vision_start|>"]] if framed else []
                starts.append(len(ids))
                ids += [self._ids[f"<|{part.pad}_pad|>"]] * part.tokens
                last_visual = len(ids)
                ids += [self._ids["<|vision_end|>"]] if framed else []
            else:
                ids += part
        if not ids + self._end:
            raise UserError(f"profile {self.profile.name}: an empty text has no tokens to pool")
        room = self.max_length - len(self._end)
        if last_visual > room:
            raise ValueError(f"{last_visual} tokens up to the last visual exceed {self.max_length}")
        return ids[:room] + self._end, starts

    def _system(self, instruction: str) -> list[int]:
        if self.profile.system is None or not self.profile.chat:
            return []
        ids = self._systems.get(instruction)
        if ids is None:
            content = self.profile.system.format(
                instruction=_instruction(self.profile, instruction)
                or self.profile.default_instruction
            )
            turn = f"<|im_start|>system\n{content}<|im_end|>\n" if content else ""
            (ids,) = self._encode([turn])
            if len(self._systems) >= 256:  # a queue of texts may have an instruction each
                self._systems.clear()  # other threads hold their own references
            self._systems[instruction] = ids
        return ids

    def _frame(self) -> tuple[list[int], list[int]]:
        """The tokens before and after each prompt."""
        if self.profile.end != FROM_TOKENIZER:
            return [], [self._ids[self.profile.end]] if self.profile.end else []
        plain = self._tokenizer.encode("a", add_special_tokens=False).ids
        framed = self._tokenizer.encode("a", add_special_tokens=True).ids
        at = next(i for i in range(len(framed)) if framed[i : i + len(plain)] == plain)
        return framed[:at], framed[at + len(plain) :]

    def _encode(self, texts: list[str]) -> list[list[int]]:
        if len(texts) == 1:  # starts no thread, so that the process can still be forked
            return [self._tokenizer.encode(texts[0], add_special_tokens=False).ids]
        # "fast" omits the offsets of tokens.
        encoded = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [each.ids for each in encoded]


def _instruction(profile: Profile, instruction: str) -> str:
    if not profile.full_stop:
        return instruction
    instruction = instruction.strip()
    ends = not instruction or unicodedata.category(instruction[-1]).startswith("P")
    return instruction if ends else f"{instruction}."


def _kinds(entry: Entry) -> str:
    """The parts of an item in words, as in Unite's prompts: "sentence and video"."""
    media = {slot.medium for slot in entry.slots}
    kinds = ["sentence"] * bool(entry.text or not media) + sorted(media)
    return " and ".join(kinds)
