"""One video that has passed all filters -> its pairs, each with its history."""

import asyncio
import dataclasses
import math
import random
from collections.abc import Awaitable, Callable

from data.pairs.rows import Reject
from data.uvrd import pictures, prompts, text
from data.uvrd.pictures import Clip, Decoder
from data.uvrd.server import Answer, Server
from data.uvrd.settings import KINDS, PROFILES, TYPES, Settings
from data.uvrd.source import Entry
from gve_jax.inputs.instructions import INSTRUCTIONS
from gve_jax.media.isolation import Failure

SOURCE = "uvrd"  # of a split's name: T2V_uvrd
_SHOWN_QUALITY = 85  # of the JPEGs that the model is shown
# The prompt that a type's texts are the answer of; the others need no model.
ASKED = {
    "T2V": "video_captions",
    "T2T": "video_captions",
    "T2I": "frame_captions",
    "TI2V": "image_query",
    "TV2V": "clip_query",
}
# A query's instruction: that of the set of UVRB which asks the same way.
_BY_KIND = {
    "summary": "MSRVTT",
    "spatio_temporal": "VDC-D",
    "abstract": "LoVR-TH",
    "keywords": "PEV-K",
    "partial": "DREAM-E",
}
_BY_TYPE = {"TI2V": "MS-TI", "TV2V": "MS-TV", "I2V": "MSRVTT-I2V", "V2V": "LoVR-C2V"}
_OWN = {
    "T2T": "Find the text that describes the same scene.",
    "T2I": "Find the image according to the text description.",
}


@dataclasses.dataclass(frozen=True)
class Video:
    """An entry after the filters; `caption` is put right, `scores` are what it was judged by."""

    entry: Entry
    data: bytes
    digest: str
    caption: str
    clip: Clip
    scores: dict[str, float]


@dataclasses.dataclass
class Made:
    """Pairs as (type, record, history), and rejects as (stage, reason, detail)."""

    pairs: list[tuple[str, dict, dict]] = dataclasses.field(default_factory=list)
    rejects: list[tuple[str, str, str]] = dataclasses.field(default_factory=list)


def share(rate: float, index: int, offset: float) -> int:
    """How many of the pairs of a type the video `index` is asked for: any N videos in a row get
    `rate * N` of them, rounded one way or the other."""
    return math.floor((index + 1) * rate + offset) - math.floor(index * rate + offset)


def wanted(index: int, settings: Settings) -> dict[str, int]:
    offsets = random.Random(f"{settings.seed}:offsets")
    return {name: share(settings.pairs[name], index, offsets.random()) for name in TYPES}


async def compose(
    video: Video,
    server: Server,
    decoder: Decoder,
    settings: Settings,
    run: Callable[..., Awaitable],
) -> Made:
    """All that is asked of one video. `run` runs a function elsewhere, as `asyncio.to_thread`."""
    return await _Composer(video, server, decoder, settings, run).make()


class _Composer:
    def __init__(self, video, server, decoder, settings, run):
        self.video, self.server, self.decoder = video, server, decoder
        self.settings, self._run, self.made = settings, run, Made()
        self._frames: asyncio.Future | None = None  # as the model is shown them
        entry = video.entry
        # Each kind of draw has its own generator: one more pair of a type moves no other's draws.
        self._rng = {
            name: random.Random(f"{settings.seed}:{entry.id}:{name}")
            for name in (*TYPES, "profile")
        }
        draw = self._rng["profile"]
        self.profile = draw.choices(PROFILES, [settings.profiles[p] for p in PROFILES])[0]
        self.readability = draw.choice(tuple(settings.readability))
        self.education = draw.choice(tuple(settings.education))
        self.count = wanted(entry.index, settings)

    async def make(self) -> Made:
        jobs = []
        if self.count["T2V"] or self.count["T2T"]:
            jobs.append(self._texts())
        for name, job in (
            ("T2I", self._image),
            ("TI2V", self._image_query),
            ("TV2V", self._clip_query),
            ("I2V", self._frame),
            ("V2V", self._part),
        ):
            jobs += [self._one(name, number, job) for number in range(self.count[name])]
        for error in await asyncio.gather(*jobs, return_exceptions=True):
            if isinstance(error, BaseException):
                raise error
        self.made.pairs.sort(key=lambda pair: (TYPES.index(pair[0]), pair[1]["id"]))
        return self.made

    async def _one(self, name: str, number: int, job) -> None:
        try:
            await job(name, number, random.Random(f"{self._rng[name].random()}:{number}"))
        except Reject as reject:
            self.made.rejects.append((name, reject.reason, reject.detail))

    # --- texts of the whole video -----------------------------------------------------------------

    async def _texts(self) -> None:
        slots = self._slots() | {
            "seconds": f"{self.video.clip.seconds:.1f}",
            "emphasis": prompts.EMPHASIS[self.profile],
        }
        images = await self._shown()
        try:
            answer = await self._ask("video_captions", slots | {"images": len(images)}, images)
        except Reject as reject:
            asked = [name for name in ("T2V", "T2T") if self.count[name]]
            self.made.rejects += [(name, reject.reason, reject.detail) for name in asked]
            return
        texts = captions(answer.value)
        order = list(KINDS)
        self._rng["T2V"].shuffle(order)
        for kind in order[: self.count["T2V"]]:
            query = item(texts[kind], instruction=INSTRUCTIONS[_BY_KIND[kind]])
            self._add("T2V", kind, query, item(video=self.video.data), answer, {"caption": kind})
        unused = order[self.count["T2V"] :]
        unused = unused if len(unused) > 1 else order
        for number in range(self.count["T2T"]):
            first, second = self._rng["T2T"].sample(unused, 2)
            query = item(texts[first], instruction=_OWN["T2T"])
            self._add(
                "T2T",
                number,
                query,
                item(texts[second]),
                answer,
                {"caption": first, "positive": second},
            )

    # --- a frame, a part --------------------------------------------------------------------------

    async def _image(self, name: str, number: int, rng: random.Random) -> None:
        place, image = await self._still(rng, 1.0)
        answer = await self._ask("frame_captions", self._slots(), [image])
        kind = rng.choice(KINDS)
        query = item(captions(answer.value)[kind], instruction=_OWN["T2I"])
        self._add(name, number, query, item(image=image), answer, {"caption": kind, "frame": place})

    async def _image_query(self, name: str, number: int, rng: random.Random) -> None:
        place, image = await self._still(rng, self.settings.frame.latest)
        shown, strategy = await self._shown(), rng.choice(prompts.STRATEGIES)
        slots = self._slots() | {"images": len(shown), "strategy": strategy}
        answer = await self._ask("image_query", slots, [image, *shown])
        query = item(answer.value["query"], image=image, instruction=self._told(name))
        self._add(
            name,
            number,
            query,
            item(video=self.video.data),
            answer,
            {"frame": place, "strategy": strategy},
        )

    async def _clip_query(self, name: str, number: int, rng: random.Random) -> None:
        span, clip, data = await self._span(rng, 0.5)
        shown, relation = await self._shown(), prompts.RELATIONS[0]
        if rng.random() >= 0.5:
            relation = rng.choice(prompts.RELATIONS[1:])
        few = max(2, self.settings.server.images // 2)
        parts = await self._jpegs(_spread(clip.frames, few))
        slots = self._slots() | {
            "clip_images": len(parts),
            "images": len(shown),
            "relation": relation,
        }
        answer = await self._ask("clip_query", slots, [*parts, *shown])
        query = item(answer.value["query"], video=data, instruction=self._told(name))
        self._add(
            name,
            number,
            query,
            item(video=self.video.data),
            answer,
            {"span": span, "relation": relation},
        )

    async def _frame(self, name: str, number: int, rng: random.Random) -> None:
        place, image = await self._still(rng, 1.0)
        query = item(image=image, instruction=self._told(name))
        self._add(name, number, query, item(video=self.video.data), None, {"frame": place})

    async def _part(self, name: str, number: int, rng: random.Random) -> None:
        span, _, data = await self._span(rng, 1.0)
        query = item(video=data, instruction=self._told(name))
        self._add(name, number, query, item(video=self.video.data), None, {"span": span})

    # --- what they share --------------------------------------------------------------------------

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
        return await self.server.ask(
            prompts.load(name), slots, images, lambda value: fault(name, value, self.settings)
        )

    async def _jpegs(self, frames: list) -> list[bytes]:
        """Frames as the model is shown them."""
        return await self._run(
            lambda: [pictures.encode_image(frame, "jpeg", _SHOWN_QUALITY) for frame in frames]
        )

    async def _shown(self) -> list[bytes]:
        """Frames of the whole video for the model, encoded once for all questions."""
        if self._frames is None:
            chosen = _spread(self.video.clip.frames, self.settings.server.images)
            self._frames = asyncio.ensure_future(self._jpegs(chosen))
        return await self._frames

    async def _still(self, rng: random.Random, latest: float) -> tuple[float, bytes]:
        clip, rules = self.video.clip, self.settings.frame
        place = rng.randrange(max(1, math.ceil(latest * len(clip.frames))))
        image = await self._run(
            pictures.encode_image, clip.frames[place], rules.format, rules.quality
        )
        return round(clip.time(place), 3), image

    async def _span(self, rng: random.Random, latest: float) -> tuple[list[float], Clip, bytes]:
        """A span that ends within the first `latest` of the video, its frames, and its file."""
        rules, whole = self.settings.clip, self.video.clip.seconds
        most = min(rules.most_seconds, rules.share * whole, latest * whole)
        if most < rules.least_seconds * 0.999:
            raise Reject("too short for a clip", f"{whole:.2f} s")
        length = rng.uniform(min(rules.least_seconds, most), most)
        start = rng.uniform(0, max(0.0, latest * whole - length))
        span = [round(start, 3), round(start + length, 3)]
        clip = await self._run(self.decoder.span, self.video.entry.video, *span)
        if isinstance(clip, Failure):
            raise Reject("span that cannot be decoded", clip.reason)
        return span, clip, await self._run(pictures.encode_clip, clip, rules.crf)

    def _told(self, name: str) -> str:
        return INSTRUCTIONS[_BY_TYPE[name]]

    def _add(
        self, name: str, mark, query: dict, positive: dict, answer: Answer | None, more: dict
    ) -> None:
        entry = self.video.entry
        id, task = f"{name}-{entry.id}-{mark}", f"{name}_{SOURCE}"
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
            prompt = ASKED[name]
            asked = self.settings.server
            history |= {
                "prompt": prompts.load(prompt).record,
                "model": self.server.model,
                "sampling": {
                    "temperature": asked.temperature,
                    "top_p": asked.top_p,
                    "seed": self.settings.seed + answer.tries - 1,
                },
                "request": answer.key,
                "tries": answer.tries,
                "profile": self.profile,
                "readability": self.readability,
                "education": self.education,
                "original": self.video.caption,
            }
        self.made.pairs.append((name, record, history | more))


def item(text: str = "", image: bytes = b"", video: bytes = b"", instruction: str = "") -> dict:
    return {"text": text, "instruction": instruction, "image": image, "video": video}


def captions(value: dict) -> dict[str, str]:
    """Texts by kind; keywords as one text."""
    return {
        kind: ", ".join(text.rectify(word) for word in value[kind])
        if kind == "keywords"
        else text.rectify(value[kind])
        for kind in KINDS
    }


def fault(prompt: str, value: dict, settings: Settings) -> str:
    """Why an answer of the right schema is no description, "kind: what exactly"; "" if it is."""
    if "query" in value:
        texts, names = {"query": value["query"]}, {"query": prompt}
    else:
        texts = captions(value)
        rich = "frame" if prompt == "frame_captions" else "spatio_temporal"
        names = dict(zip(KINDS, KINDS, strict=True)) | {"spatio_temporal": rich}
    for kind, said in texts.items():
        least, most = settings.lengths[names[kind]]
        count = len(value[kind]) if kind == "keywords" else len(text.words(said))
        if not least * (1 - settings.slack) <= count <= most * (1 + settings.slack):
            return f"length of {kind}: {count}, not {least} to {most}"
        if text.is_refusal(said):
            return f"refusal: {said[:80]}"
        if text.is_order(said):
            return f"instructs the model: {said[:80]}"
        if settings.text.language == "en" and not text.is_english(said):
            return f"another language: {said[:80]}"
        if kind != "keywords" and (why := text.spam(said, settings.text)):
            return f"spam: {why}"
    return ""


def _spread(frames, count: int) -> list:
    """`count` of the frames, evenly, with the first and the last; all where there are fewer."""
    if len(frames) <= count:
        return list(frames)
    return [frames[round(number * (len(frames) - 1) / (count - 1))] for number in range(count)]
