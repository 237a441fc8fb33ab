"""Compares token ids with transformers' processor with Qwen's tokenizer and template."""

import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from evals.parity.reference_inputs import processor
from gve_jax.inputs.instructions import INSTRUCTIONS
from gve_jax.inputs.profiles import find_profile
from gve_jax.inputs.prompt import Entry, Prompt, Slot

SHORT = (
    "",
    "a",
    " ",
    "\n",
    "\n\n",
    "\t",
    " a dog",
    "a dog ",
    "a dog\n",
    "\na dog",
    "\r\n\r\na\r\n",
    "a  b   c    d",
    "a\n\n\nb \n c\n \n",
    "\u00a0a\u2003b\u200bc\ufeff",
    "a dog surfing on a wave",
    "It's 1,234.5 km; they'd've gone! #1 @you 50% (a+b)*c == d_e",
    "camelCase snake_case __init__",
    "ÄÖÜß naïve café",
    "cafe\u0301 a\u030a e\u0301",
    "\u212b \ufb01 \u2460 ｆｕｌｌ",
    "İstanbul ıI",
    "一只狗在冲浪。",
    "犬がサーフィンをしている！",
    "개가 서핑을 하고 있다",
    "สุนัขกำลังเล่นเซิร์ฟ",
    "كلب يركب الأمواج",
    "कुत्ता सर्फिंग कर रहा है",
    "Собака катается на волнах",
    "𠮷野家 𝒳𝓎",
    "🐶🏄‍♂️🌊 👨‍👩‍👧‍👦 🇩🇪 👍🏽 ❤️",
    "e\u0301\u0301\u0301\u0301",
    "\x00\x01\x7f",
    "\ud7ff\ue000\uffff\U0010ffff",
    "<|endoftext|>",
    "a<|im_end|>\n<|im_start|>user\nb",
    "<|vision_start|>x<|vision_end|>",
    "<tool_call>\n{}\n</tool_call>",
    "<|fim_prefix|> <|repo_name|>",
    "<|im_start",
    "<| im_end |>",
    "<|IM_END|>",
    "{{ text }} {% if x %}",
    "a" * 300,
    "ab " * 400,
    "好" * 500,
    "7" * 200,
)
PADS = ("<|video_pad|>", "<|image_pad|>", "a <|vision_pad|> b <|image_pad|><|video_pad|>")
SPELLED = "texts with a visual's token (tokenizer only: the processor refuses them)"
SYSTEMS = (
    "",
    *INSTRUCTIONS.values(),
    "Find\n\nthe video.  ",
    " ",
    "日本語の指示 🎬",
    "<|im_end|>\n<|im_start|>user\nno",
)
VISUALS = ((0, 0), (4, 0), (0, 6), (8, 6))  # merged tokens of video and image
WORDS = "the a dog surf wave über 7.5 日本 🎬 \n then, (runs) it's <b> -- Film's\t".split(" ")


def cases() -> Iterator[tuple[str, tuple[str, str, int, int]]]:
    """(name, (text, instruction, video tokens, image tokens)) of each case."""
    for text in SHORT:
        yield "texts", (text, "", 0, 0)
    for text in PADS:
        yield SPELLED, (text, "", 0, 0)
    for system, text in itertools.product(SYSTEMS, SHORT[::7]):
        yield "instructions", (text, system, 0, 0)
    for visuals, text in itertools.product(VISUALS[1:], SHORT):
        system = SYSTEMS[len(text) % len(SYSTEMS)]
        yield "videos, images, both", (text, system, *visuals)
    rng = random.Random(0)
    for _ in range(200):
        text = "".join(
            rng.choice(WORDS) + " " * rng.randint(0, 2) for _ in range(rng.randint(1, 80))
        )
        yield "random texts", (text, rng.choice(SYSTEMS), *rng.choice(VISUALS))
    for length in (200, 2500, 9000, 20000):
        for visuals in VISUALS:
            yield "truncated at max_length", ("a dog, 狗 " * (length // 5), SYSTEMS[3], *visuals)


class Reference:
    """The ids of Qwen2_5_VLProcessor, truncated and terminated as GVE's processor does."""

    def __init__(self, folder: Path, template: str):
        self.processor = processor(folder, template)
        self.end = self.processor.tokenizer.convert_tokens_to_ids("<|endoftext|>")

    def ids(self, entry: tuple[str, str, int, int], max_length: int) -> list[int]:
        text, instruction, video, image = entry
        content: list[dict] = [{"type": "text", "text": text}]
        media: dict = {}
        if image:
            content.insert(0, {"type": "image"})
            media["images"] = [np.zeros((56, 28 * image // 2, 3), np.uint8)]
        if video:
            content.insert(0, {"type": "video"})
            media["videos"] = [np.zeros((4, 56, 28 * video // 4, 3), np.uint8)]
            media["videos_kwargs"] = {"do_sample_frames": False}
        messages = [{"role": "user", "content": content}]
        if instruction:
            messages.insert(0, {"role": "system", "content": instruction})
        chat = self.processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        if media or not any(pad in text for pad in PADS[:2]):
            ids = self.processor(text=[chat], **media)["input_ids"][0]
        else:
            ids = self.processor.tokenizer(chat)["input_ids"]
        return list(ids)[: max_length - 1] + [self.end]


def compare_timestamps(folder: Path) -> tuple[str, int, int]:
    """The ids of videos of Qwen3-VL, frame pairs of 2 x 2 tokens with their times, and a text, as
    recorded from transformers 4.57.6 with Qwen3's tokenizer."""
    prompt = Prompt(folder / "tokenizer.json", 8192, find_profile("qwen3-vl"))
    pads, closing = [151652, *[151656] * 4, 151653], [6486, 29]  # " seconds", ">"
    stamps = {0.5: [27, 15, 13, 20], 2.5: [27, 17, 13, 20], 12.3: [27, 16, 17, 13, 18]}
    equal = 0
    for times in ((0.5, 2.5), (12.3,)):
        slots = [Slot("video", "video", 4, f"<{seconds} seconds>") for seconds in times]
        ids, starts = prompt.ids(Entry("hi", "", slots))
        wanted, at = [151644, 872, 198], []
        for seconds in times:
            wanted += stamps[seconds] + closing
            at.append(len(wanted) + 1)
            wanted += pads
        wanted += [6023, 151645, 198, 151644, 77091, 198, 151643]
        equal += ids == wanted and starts == at
    return "times and frame pairs of Qwen3-VL", 2, equal


def _entry(text: str, instruction: str, video: int, image: int) -> Entry:
    counts = {"video": video, "image": image}
    return Entry(text, instruction, [Slot(k, k, count) for k, count in counts.items() if count])


def compare_prompts(folder: Path, template: str) -> list[tuple[str, int, int]]:
    """(what, cases, equal cases), one by one and as a batch, up to 8,192 and up to 256 tokens."""
    reference = Reference(folder, template)
    wanted = list(cases())
    found: dict[str, list[bool]] = {}
    for max_length in (8192, 256):
        prompt = Prompt(folder / "tokenizer.json", max_length)
        batch = prompt.ids_batch([_entry(*entry) for _, entry in wanted])
        for (what, entry), (together, _) in zip(wanted, batch, strict=True):
            expected = reference.ids(entry, max_length)
            alone, starts = prompt.ids(_entry(*entry))
            pads = [(prompt.video_pad, entry[2]), (prompt.image_pad, entry[3])]
            pads = [(pad, count) for pad, count in pads if count]
            placed = all(
                alone[at : at + count] == [pad] * count
                for at, (pad, count) in zip(starts, pads, strict=True)
            )
            found.setdefault(what, []).append(expected == alone == together and placed)
    return [(what, len(equal), sum(equal)) for what, equal in found.items()]
