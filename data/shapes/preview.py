"""A contact sheet of scenes with their captions."""

import textwrap
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from data.shapes import benchmark, captions
from data.shapes.render import decode_mp4, encode_mp4, render
from data.shapes.sampling import sample_camera_scene, sample_crossings, sample_scene
from data.shapes.scene import FRAME, TRAIN_PAIRS, Scene, make_rng

_SHOWN = (0, 2, 4, 6, 9, 11, 13, 15)  # 8 uniform frames of a scene's 16
_TEXT = 120  # pixels under a row


def _scenes(seed: int) -> list[tuple[str, Scene]]:
    scenes = [
        (f"scene {i}", sample_scene(make_rng(seed, "preview", i), TRAIN_PAIRS)) for i in range(6)
    ]
    scenes.append(("crossings", sample_crossings(make_rng(seed, "preview", 6), TRAIN_PAIRS)))
    scenes.append(("camera", sample_camera_scene(make_rng(seed, "preview", 7), TRAIN_PAIRS)))
    plans = benchmark.plan(seed)
    for name in ("MSRVTT", "CRB-S", "CRB-T", "CMRB", "DREAM-E", "MS-TI"):
        query = plans[name].queries[0]
        scenes.append((f"{name}: {query.text}", plans[name].documents[query.answer][0]))
    return scenes


def write_preview(path: Path, seed: int) -> None:
    """Writes the sheet as a PNG, with frames decoded from the mp4."""
    rows = _scenes(seed)
    sheet = Image.new("RGB", (len(_SHOWN) * FRAME, len(rows) * (FRAME + _TEXT)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (title, scene) in enumerate(rows):
        rng = make_rng(seed, "preview/words", i)
        frames = decode_mp4(encode_mp4(render(scene)))[list(_SHOWN)]
        top = i * (FRAME + _TEXT)
        sheet.paste(Image.fromarray(np.concatenate(frames, axis=1)), (0, top))
        texts = [
            title,
            "whole: " + captions.whole(scene, rng, long=True),
            "spatial: " + captions.spatial(scene, rng),
            "temporal: " + captions.temporal(scene, rng),
            "keywords: " + captions.keywords(scene, rng),
            "theme: " + captions.theme(scene, rng),
        ]
        lines = [line for text in texts for line in textwrap.wrap(text, 145)]
        draw.text((4, top + FRAME + 2), "\n".join(lines), fill="black", spacing=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
