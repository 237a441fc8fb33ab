"""A tiny benchmark of real mp4 files, encoders that read colours from them, and the evaluator's
command in this process."""

import json
import types
from pathlib import Path

import av
import numpy as np
from PIL import Image

from data.uvrb.tasks import NAMES
from evals.uvrb.__main__ import main
from gve_jax.inputs.preprocess import InputSpec
from gve_jax.media.errors import MediaError
from gve_jax.media.video import load_video

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 40, 230)}
CLIPS = ("red blue", "blue red", "green red", "red green", "blue green")  # first and last colour


def make_clip(path: Path, name: str, frames: int = 8) -> None:
    """An H.264 clip of one colour followed by another."""
    first, last = (COLOURS[colour] for colour in name.split())
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(frames):
            colour = first if number < frames // 2 else last
            image = np.broadcast_to(np.uint8(colour), (48, 64, 3)).copy()
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def make_benchmark(data: Path, names=NAMES) -> Path:
    """Sets with five clips as corpus and a query for each: a text, frame or clip."""
    originals = data / "clips"
    for name in CLIPS:
        make_clip(originals / f"{name.replace(' ', '_')}.mp4", name)
    for task in names:
        root = data / "UVRB" / task
        (root / "jsonl").mkdir(parents=True)
        (root / "videos").mkdir()
        (root / "images").mkdir()
        queries, instances, corpus = [], [], []
        for number, name in enumerate(CLIPS):
            file = f"videos/{name.replace(' ', '_')}.mp4"
            (root / file).write_bytes((data / "clips" / Path(file).name).read_bytes())
            query = {"id": f"q{number}", "text": name, "image": "", "video": ""}
            if task in ("MSRVTT-I2V", "MS-TI"):
                query["image"] = f"images/{number}.png"
                colour = np.uint8(COLOURS[name.split()[0]])
                image = np.broadcast_to(colour, (48, 64, 3)).copy()
                Image.fromarray(image).save(root / query["image"])
            if task in ("LoVR-C2V", "MS-TV"):
                query["video"] = file
            if task in ("MSRVTT-I2V", "LoVR-C2V"):
                query["text"] = ""
            queries.append(query)
            instances.append({"qid": f"q{number}", "pos": [f"v{number}"]})
            corpus.append({"id": f"v{number}", "video": file})
        for file, records in (("queries", queries), ("instances", instances), ("corpus", corpus)):
            write_jsonl(root / f"jsonl/{file}.jsonl", records)
    return data


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_jsonl(path: Path, records) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def write_set(folder: Path, task: str, queries, positives, corpus, candidates=None) -> None:
    """A set without media in `folder`/data, for `score_vectors`."""
    root = folder / "data/UVRB" / task / "jsonl"
    root.mkdir(parents=True)
    instances = [{"qid": q, "pos": p} for q, p in zip(queries, positives, strict=True)]
    for line, pool in zip(instances, candidates or (), strict=False):
        line["candidates"] = pool
    write_jsonl(root / "instances.jsonl", instances)
    lines = ({"id": q, "text": "t", "image": "", "video": ""} for q in queries)
    write_jsonl(root / "queries.jsonl", lines)
    lines = ({"id": d, "video": f"{n}.mp4"} for n, d in enumerate(corpus))
    write_jsonl(root / "corpus.jsonl", lines)


def score_vectors(folder: Path, task: str, queries, q, corpus, c, *options) -> tuple[dict, Path]:
    """Scores vectors of a set of `write_set`; the results and OUTPUT."""
    vectors = folder / "vectors" / task
    vectors.mkdir(parents=True, exist_ok=True)
    for side, ids, rows in (("queries", queries, q), ("corpus", corpus, c)):
        np.save(vectors / f"{side}.npy", rows)
        (vectors / f"{side}.ids.json").write_text(json.dumps(ids))
    output = folder / "out"
    options = "--embeddings", folder / "vectors", "--datasets", task, *options
    return evaluate(folder / "data", output, *options), output


def evaluate(data: Path | None, output: Path, *options, load=lambda _: ColourEncoder()) -> dict:
    """Runs `python -m evals.uvrb` in this process; returns its results."""
    model = () if {"--embeddings", "--model", "--mteb"} & set(options) else ("--model", "m")
    folder = () if data is None else ("--data", data)
    arguments = [*model, *folder, "--output", output, *options]
    main([str(argument) for argument in arguments], load=load)
    return json.loads((output / "results.json").read_text())


class ColourEncoder:
    """Embeds the first and the last colour of a clip, or the two colours that a text names."""

    embedding_dim = 6

    def __init__(self, trained: bool = True, dtype: str = "float32"):
        self.trained = trained
        self.fingerprint = {"weights": "colour" if trained else "none", "inputs": {"dtype": dtype}}
        self.asked = []

    def encode_valid(self, inputs, ids, quarantine):
        self.asked += list(ids)
        rows, valid = [], []
        for item, id in zip(inputs, ids, strict=True):
            try:
                vector = self._vector(item)
            except MediaError as error:
                quarantine.record(id, str(item["video"]), str(error), 0.0)
                valid.append(False)
                continue
            rows.append(vector / np.linalg.norm(vector))
            valid.append(True)
        return np.array(rows, np.float32).reshape(-1, 6), np.array(valid)

    def _vector(self, item):
        if not self.trained:
            return np.ones(6)
        if video := item.get("video"):
            frames = load_video(video, 4).frames
            if item.get("frame_order") == "shuffled":
                frames = frames[::-1]
            return frames[[0, -1]].mean(axis=(1, 2)).ravel() - 60
        if item.get("image"):
            with Image.open(item["image"]) as image:
                first = np.asarray(image).mean(axis=(0, 1))
            return np.concatenate([first, first]) - 60
        return np.concatenate([COLOURS[colour] for colour in item["text"].split()]) - 60.0


class Settings(ColourEncoder):
    """Reads colours if it has four frames or more; counts tokens."""

    def __init__(self, **inputs):
        super().__init__()
        spec = InputSpec(**inputs)
        self.preprocess = types.SimpleNamespace(spec=spec)
        self.fingerprint = {
            "weights": "w",
            "num_frames": spec.num_frames,
            "max_pixels": spec.max_pixels,
        }
        self.trained = spec.num_frames >= 4
        self.tokens_encoded = 0

    def with_inputs(self, **changes):
        old = self.preprocess.spec
        changes = {"num_frames": old.num_frames, "max_pixels": old.max_pixels} | changes
        return Settings(**changes)

    def encode_valid(self, inputs, ids, quarantine):
        self.tokens_encoded += 7 * len(inputs)
        return super().encode_valid(inputs, ids, quarantine)
