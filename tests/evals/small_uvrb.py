"""A tiny benchmark of real mp4 files, and an encoder that reads colours from them."""

import json
import types
from pathlib import Path

import av
import numpy as np
from PIL import Image

from data.uvrb.tasks import NAMES
from gve_jax.inputs.preprocess import InputSpec
from gve_jax.media.errors import MediaError
from gve_jax.media.video import load_video

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 40, 230)}
CLIPS = ("red blue", "blue red", "green red", "red green", "blue green")  # first and last colour


def make_clip(path: Path, name: str, frames: int = 8) -> None:
    """An H.264 clip of one colour, then another."""
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
    """Sets with the five clips as corpus and a query for each: text, frame or clip by the set."""
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
            lines = "".join(json.dumps(record) + "\n" for record in records)
            (root / "jsonl" / f"{file}.jsonl").write_text(lines)
    return data


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
    """Reads colours from four frames or more; below that it is blind. Counts tokens."""

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
