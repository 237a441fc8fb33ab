"""Composes the training pairs of one video that passed all filters, each with its history."""

import asyncio
import dataclasses
import math
import random
from collections.abc import Awaitable, Callable

from data.uvrd import pictures, prompts, text
from data.uvrd.client import Answer, ModelClient
from data.uvrd.pictures import Clip, Decoder
from data.uvrd.settings import KINDS, PROFILES, TYPES, Settings
from data.uvrd.source import Entry
from gve_jax.inputs.instructions import INSTRUCTIONS
from gve_jax.media.sandbox import Failure
from gve_jax.streams.pairs import item_fields
from gve_jax.streams.rows import Reject

SOURCE = "uvrd"  # suffix of split names: T2V_uvrd
_JPEG_QUALITY = 85  # of the frames sent to the model
# The prompt that gives a type's texts; the other types need no model.
PROMPTS = {
    "T2V": "video_captions",
    "T2T": "video_captions",
    "T2I": "frame_captions",
    "TI2V": "image_query",
    "TV2V": "clip_query",
}
# Instructions of queries: those of the UVRB set with the same kind of query.
_SET_BY_KIND = {
    "summary": "MSRVTT",
    "spatio_temporal": "VDC-D",
    "abstract": "LoVR-TH",
    "keywords": "PEV-K",
    "partial": "DREAM-E",
}
_SET_BY_TYPE = {"TI2V": "MS-TI", "TV2V": "MS-TV", "I2V": "MSRVTT-I2V", "V2V": "LoVR-C2V"}
_NOT_IN_UVRB = {
    "T2T": "Find the text that describes the same scene.",
    "T2I": "Find the image according to the text description.",
}


@dataclasses.dataclass(frozen=True)
class Video:
    """An entry that passed the filters, with its rectified caption and the filters' scores."""

    entry: Entry
    data: bytes
    digest: str
    caption: str
    clip: Clip
    scores: dict[str, float]


@dataclasses.dataclass
class Composed:
    """Pairs as (type, record, history), and rejects as (type, reason, detail)."""

    pairs: list[tuple[str, dict, dict]] = dataclasses.field(default_factory=list)
    rejects: list[tuple[str, str, str]] = dataclasses.field(default_factory=list)


def count_at(rate: float, index: int, offset: float) -> int:
    """The number of pairs of a type for the video `index`: any N consecutive videos get
    `rate * N` of them, rounded up or down."""
    return math.floor((index + 1) * rate + offset) - math.floor(index * rate + offset)


def pair_counts(index: int, settings: Settings) -> dict[str, int]:
    """How many pairs of each type to compose from the video `index`."""
    offsets = random.Random(f"{settings.seed}:offsets")
    return {name: count_at(settings.pairs[name], index, offsets.random()) for name in TYPES}


async def compose(
    video: Video,
    client: ModelClient,
    decoder: Decoder,
    settings: Settings,
    run: Callable[..., Awaitable],
) -> Composed:
    """All pairs of one video; `run` runs a blocking function, as `asyncio.to_thread` does."""
    return await _Composer(video, client, decoder, settings, run).compose()


class _Composer:
    def __init__(self, video, client, decoder, settings, run):
        self.video, self.client, self.decoder = video, client, decoder
        self.settings, self._run, self.composed = settings, run, Composed()
        self._overview: asyncio.Future | None = None  # JPEGs of the whole video
        entry = video.entry
        # One generator per type: another number of pairs of one type changes no draws of others.
        self._rng = {
            name: random.Random(f"{settings.seed}:{entry.id}:{name}")
            for name in (*TYPES, "profile")
        }
        draw = self._rng["profile"]
        self.profile = draw.choices(PROFILES, [settings.profiles[p] for p in PROFILES])[0]
        self.readability = draw.choice(tuple(settings.readability))
        self.education = draw.choice(tuple(settings.education))
        self.count = pair_counts(entry.index, settings)

    async def compose(self) -> Composed:
        jobs = []
        if self.count["T2V"] or self.count["T2T"]:
            jobs.append(self._caption_pairs())
        for name, job in (
            ("T2I", self._text_to_image),
            ("TI2V", self._image_query),
            ("TV2V", self._clip_query),
            ("I2V", self._frame_to_video),
            ("V2V", self._clip_to_video),
        ):
            jobs += [self._one(name, number, job) for number in range(self.count[name])]
        for error in await asyncio.gather(*jobs, return_exceptions=True):
            if isinstance(error, BaseException):
                raise error
        self.composed.pairs.sort(key=lambda pair: (TYPES.index(pair[0]), pair[1]["id"]))
        return self.composed

    async def _one(self, name: str, number: int, job) -> None:
        try:
            await job(name, number, random.Random(f"{self._rng[name].random()}:{number}"))
        except Reject as reject:
            self.composed.rejects.append((name, reject.reason, reject.detail))

    async def _caption_pairs(self) -> None:
        slots = self._slots() | {
            "seconds": f"{self.video.clip.seconds:.1f}",
            "emphasis": prompts.EMPHASIS[self.profile],
        }
        images = await self._frames()
        try:
            answer = await self._ask("video_captions", slots | {"images": len(images)}, images)
        except Reject as reject:
            names = [name for name in ("T2V", "T2T") if self.count[name]]
            self.composed.rejects += [(name, reject.reason, reject.detail) for name in names]
            return
        texts = captions(answer.value)
        order = list(KINDS)
        self._rng["T2V"].shuffle(order)
        for kind in order[: self.count["T2V"]]:
            query = item_fields(texts[kind], instruction=INSTRUCTIONS[_SET_BY_KIND[kind]])
            self._add(
                "T2V", kind, query, item_fields(video=self.video.data), answer, {"caption": kind}
            )
        unused = order[self.count["T2V"] :]
        unused = unused if len(unused) > 1 else order
        for number in range(self.count["T2T"]):
            first, second = self._rng["T2T"].sample(unused, 2)
            query = item_fields(texts[first], instruction=_NOT_IN_UVRB["T2T"])
            details = {"caption": first, "positive": second}
            self._add("T2T", number, query, item_fields(texts[second]), answer, details)

    async def _text_to_image(self, name: str, number: int, rng: random.Random) -> None:
        time, image = await self._still(rng, 1.0)
        answer = await self._ask("frame_captions", self._slots(), [image])
        kind = rng.choice(KINDS)
        query = item_fields(captions(answer.value)[kind], instruction=_NOT_IN_UVRB["T2I"])
        details = {"caption": kind, "frame": time}
        self._add(name, number, query, item_fields(image=image), answer, details)

    async def _image_query(self, name: str, number: int, rng: random.Random) -> None:
        time, image = await self._still(rng, self.settings.frame.latest)
        frames, strategy = await self._frames(), rng.choice(prompts.STRATEGIES)
        slots = self._slots() | {"images": len(frames), "strategy": strategy}
        answer = await self._ask("image_query", slots, [image, *frames])
        query = item_fields(answer.value["query"], image=image, instruction=_instruction(name))
        details = {"frame": time, "strategy": strategy}
        self._add(name, number, query, item_fields(video=self.video.data), answer, details)

    async def _clip_query(self, name: str, number: int, rng: random.Random) -> None:
        span, clip, data = await self._span(rng, 0.5)
        frames, relation = await self._frames(), prompts.RELATIONS[0]
        if rng.random() >= 0.5:
            relation = rng.choice(prompts.RELATIONS[1:])
        count = max(2, self.settings.server.images // 2)
        clip_frames = await self._jpegs(_sample_evenly(clip.frames, count))
        slots = self._slots() | {
            "clip_images": len(clip_frames),
            "images": len(frames),
            "relation": relation,
        }
        answer = await self._ask("clip_query", slots, [*clip_frames, *frames])
        query = item_fields(answer.value["query"], video=data, instruction=_instruction(name))
        details = {"span": span, "relation": relation}
        self._add(name, number, query, item_fields(video=self.video.data), answer, details)

    async def _frame_to_video(self, name: str, number: int, rng: random.Random) -> None:
        time, image = await self._still(rng, 1.0)
        query = item_fields(image=image, instruction=_instruction(name))
        self._add(name, number, query, item_fields(video=self.video.data), None, {"frame": time})

    async def _clip_to_video(self, name: str, number: int, rng: random.Random) -> None:
        span, _, data = await self._span(rng, 1.0)
        query = item_fields(video=data, instruction=_instruction(name))
        self._add(name, number, query, item_fields(video=self.video.data), None, {"span": span})

    def _slots(self) -> dict:
        lengths = {
            name: f"{least} to {most}" for name, (least, most) in self.settings.lengths.items()
        }
        return lengths | {
            "caption": text.quote(self.video.caption),
            "readability": self.readability,
            "education": self.education,
        }

    async def _ask(self, name: str, slots: dict, images: list[bytes]) -> Answer:
        return await self.client.ask(
            prompts.load(name), slots, images, lambda value: fault(name, value, self.settings)
        )

    async def _jpegs(self, frames: list) -> list[bytes]:
        """Frames, encoded for the model."""
        return await self._run(
            lambda: [pictures.encode_image(frame, "jpeg", _JPEG_QUALITY) for frame in frames]
        )

    async def _frames(self) -> list[bytes]:
        """Frames of the whole video for the model, encoded once for all requests."""
        if self._overview is None:
            chosen = _sample_evenly(self.video.clip.frames, self.settings.server.images)
            self._overview = asyncio.ensure_future(self._jpegs(chosen))
        return await self._overview

    async def _still(self, rng: random.Random, latest: float) -> tuple[float, bytes]:
        """(seconds, image) of a random frame of the first `latest` of the video."""
        clip, rules = self.video.clip, self.settings.frame
        index = rng.randrange(max(1, math.ceil(latest * len(clip.frames))))
        image = await self._run(
            pictures.encode_image, clip.frames[index], rules.format, rules.quality
        )
        return round(clip.time(index), 3), image

    async def _span(self, rng: random.Random, latest: float) -> tuple[list[float], Clip, bytes]:
        """(seconds, clip, encoded clip) of a random span within the first `latest` of the video."""
        rules, seconds = self.settings.clip, self.video.clip.seconds
        most = min(rules.most_seconds, rules.share * seconds, latest * seconds)
        if most < rules.least_seconds * 0.999:
            raise Reject("too short for a clip", f"{seconds:.2f} s")
        length = rng.uniform(min(rules.least_seconds, most), most)
        start = rng.uniform(0, max(0.0, latest * seconds - length))
        span = [round(start, 3), round(start + length, 3)]
        clip = await self._run(self.decoder.decode, self.video.entry.video, *span)
        if isinstance(clip, Failure):
            raise Reject("span that cannot be decoded", clip.reason)
        return span, clip, await self._run(pictures.encode_clip, clip, rules.crf)

    def _add(
        self, name: str, suffix, query: dict, positive: dict, answer: Answer | None, details: dict
    ) -> None:
        entry = self.video.entry
        id, task = f"{name}-{entry.id}-{suffix}", f"{name}_{SOURCE}"
        record = {"id": id, "task": task, "query": query, "positive": positive, "negatives": []}
        history = {
            "id": id,
            "type": name,
            "video": entry.id,
            "source": entry.source,
            "sha256": self.video.digest,
            "seconds": round(self.video.clip.seconds, 3),
            "scores": {key: round(value, 4) for key, value in self.video.scores.items()},
        }
        if query["text"]:
            history["words"] = len(text.words(query["text"]))
        if answer is not None:
            sampling = self.settings.server
            history |= {
                "prompt": prompts.load(PROMPTS[name]).record,
                "model": self.client.model,
                "sampling": {
                    "temperature": sampling.temperature,
                    "top_p": sampling.top_p,
                    "seed": self.settings.seed + answer.tries - 1,
                },
                "request": answer.key,
                "tries": answer.tries,
                "profile": self.profile,
                "readability": self.readability,
                "education": self.education,
                "original": self.video.caption,
            }
        self.composed.pairs.append((name, record, history | details))


def _instruction(type: str) -> str:
    return INSTRUCTIONS[_SET_BY_TYPE[type]]


def captions(value: dict) -> dict[str, str]:
    """Texts by kind; keywords joined to one text."""
    return {
        kind: ", ".join(text.rectify(word) for word in value[kind])
        if kind == "keywords"
        else text.rectify(value[kind])
        for kind in KINDS
    }


def fault(prompt: str, value: dict, settings: Settings) -> str:
    """Why an answer that fits the schema is invalid, as "category: detail"; "" if it is valid."""
    if "query" in value:
        texts, names = {"query": value["query"]}, {"query": prompt}
    else:
        texts = captions(value)
        rich = "frame" if prompt == "frame_captions" else "spatio_temporal"
        names = dict(zip(KINDS, KINDS, strict=True)) | {"spatio_temporal": rich}
    for kind, answer in texts.items():
        least, most = settings.lengths[names[kind]]
        count = len(value[kind]) if kind == "keywords" else len(text.words(answer))
        if not least * (1 - settings.slack) <= count <= most * (1 + settings.slack):
            return f"length of {kind}: {count}, not {least} to {most}"
        if text.is_refusal(answer):
            return f"refusal: {answer[:80]}"
        if text.is_instruction(answer):
            return f"instructs the model: {answer[:80]}"
        if settings.text.language == "en" and not text.is_english(answer):
            return f"another language: {answer[:80]}"
        if kind != "keywords" and (why := text.spam(answer, settings.text)):
            return f"spam: {why}"
    return ""


def _sample_evenly(frames, count: int) -> list:
    """`count` evenly spaced frames, including the first and the last; all if there are fewer."""
    if len(frames) <= count:
        return list(frames)
    return [frames[round(number * (len(frames) - 1) / (count - 1))] for number in range(count)]
