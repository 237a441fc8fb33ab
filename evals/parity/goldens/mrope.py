"""Writes mrope.npz: position ids of transformers' Qwen2.5-VL, by release.

    pip install torch==2.13.0 transformers==VERSION
    python evals/parity/goldens/mrope.py

The installed release decides which regime is written (RELEASES). Another release of a regime is
compared with the file and recorded in it; a difference is an error that names the cases. Only
`get_rope_index` runs, without weights. Every case runs alone and in batches padded on either side,
which must agree, so that the file has it once: `REGIME/CASE`, int16 [3, L], and `REGIME/versions`.
"""

import pathlib
import sys
from types import SimpleNamespace

import numpy as np

FILE = pathlib.Path(__file__).with_suffix(".npz")
# First release of each regime, newest first. 5.3.0 - 5.5.4 have none: all steps of a video had the
# same time, rows were counted across steps, and before 5.5.4 an image was at a multiple of its time
# and used the seconds of the next video.
RELEASES = {(5, 18): "hf518", (5, 6): "hf53", (4, 52): "hf452", (4, 49): "qwen_train"}
UNNAMED = ((5, 3), (5, 4), (5, 5))

TEXT, IMAGE_PAD, VIDEO_PAD, VISION_START, VISION_END, PAD = 7, 300, 301, 302, 303, 304

# Seconds of clips that the protocol samples at eight frames each, and their grids.
CLIPS = {
    5.7: (4, 20, 34), 14.4: (4, 10, 14), 15.0: (4, 20, 34),
    30.1: (3, 10, 14), 53.9: (3, 10, 14), 1560.3: (4, 20, 34),
}  # fmt: skip


def video(t: int, h: int, w: int, fps: float) -> tuple:
    return ("video", (t, h, w), 2 / fps)


def image(h: int, w: int) -> tuple:
    return ("image", (1, h, w), 0.0)


def text(tokens: int) -> tuple:
    return ("text", tokens)


# Grids in patches, as `video_grid_thw`. Name -> (tokens_per_second, parts).
CASES = {
    "text": (2, [text(9)]),
    **{f"fps {fps}": (2, [text(3), video(4, 4, 6, fps), text(3)]) for fps in (0.3, 1, 2, 2.1, 4)},
    **{f"clip {s}": (2, [text(3), video(*grid, 8 / s), text(3)]) for s, grid in CLIPS.items()},
    "clip without text": (2, [video(3, 10, 14, 8 / 14.4)]),
    "long, 0.5 fps": (2, [text(2), video(390, 2, 2, 0.5), text(2)]),
    "long, 0.7 fps": (2, [text(2), video(390, 2, 2, 0.7), text(2)]),
    "long, 30 fps": (2, [text(2), video(300, 2, 2, 30000 / 1001), text(2)]),
    # 2 frames per second by the next larger float64: a second in float32, less in float64.
    "a second, nearly": (2, [text(1), video(4, 4, 4, np.nextafter(2, 3)), text(1)]),
    # Other time resolutions, where the order of the products matters.
    **{f"tps {tps}": (tps, [text(3), video(60, 2, 2, 2.7), text(2)]) for tps in (3, 4, 25)},
    "image": (2, [text(4), image(8, 12), text(4)]),
    "image, tall, first": (2, [image(18, 4), text(4)]),
    "images": (2, [text(2), image(4, 4), text(1), image(2, 10), image(6, 2), text(3)]),
    "image video": (2, [text(2), image(10, 4), text(3), video(4, 6, 4, 0.7), text(5)]),
    "video image": (2, [video(4, 6, 4, 0.7), image(10, 4), text(5)]),
    "video text image": (2, [video(3, 4, 6, 1.3), text(6), image(4, 8), text(2)]),
    "two videos": (2, [text(2), video(4, 4, 6, 0.3), text(2), video(2, 8, 4, 3.1), text(4)]),
    "two clips": (2, [video(4, 4, 6, 8 / 1560.3), video(4, 6, 4, 8 / 14.4), text(4)]),
    "image video image video": (
        2,
        [image(4, 6), video(3, 4, 4, 0.9), text(2), image(8, 2), video(2, 2, 6, 5), text(3)],
    ),
}


def segments(name: str) -> list[tuple]:
    """Returns the arguments of `mrope_positions`: every visual between start and end token."""
    out = []
    for kind, size, *seconds in CASES[name][1]:
        if kind == "text":
            out.append(("text", size))
        else:
            merged = (size[0], size[1] // 2, size[2] // 2)
            out += [("text", 1), ("visual", merged, *seconds), ("text", 1)]
    return out


def token_ids(parts: list[tuple]) -> list[int]:
    ids = []
    for kind, size, *_ in parts:
        if kind == "text":
            ids += [TEXT] * size
        else:
            pad = VIDEO_PAD if kind == "video" else IMAGE_PAD
            ids += [VISION_START, *[pad] * (size[0] * size[1] * size[2] // 4), VISION_END]
    return ids


def reference(batch: list[list[tuple]], tokens_per_second: int, side: str) -> list[np.ndarray]:
    """Returns the positions [3, L] of transformers for each row of a batch padded on `side`."""
    import torch
    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as modeling

    owner = modeling.Qwen2_5_VLModel
    if not hasattr(owner, "get_rope_index"):  # before 4.52
        owner = modeling.Qwen2_5_VLForConditionalGeneration
    model = object.__new__(owner)  # no weights: the method reads the configuration only
    model.__dict__["config"] = SimpleNamespace(
        image_token_id=IMAGE_PAD,
        video_token_id=VIDEO_PAD,
        vision_start_token_id=VISION_START,
        vision_config=SimpleNamespace(spatial_merge_size=2, tokens_per_second=tokens_per_second),
    )

    rows = [token_ids(parts) for parts in batch]
    longest = max(map(len, rows))
    ids = np.full((len(rows), longest), PAD)
    mask = np.zeros_like(ids)
    for i, row in enumerate(rows):
        columns = slice(longest - len(row), None) if side == "left" else slice(len(row))
        ids[i, columns], mask[i, columns] = row, 1
    arguments = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
    if "mm_token_type_ids" in owner.get_rope_index.__code__.co_varnames:  # since 5.3
        kinds = np.where(ids == VIDEO_PAD, 2, np.where(ids == IMAGE_PAD, 1, 0))
        arguments["mm_token_type_ids"] = torch.tensor(kinds)
    visuals = [part for parts in batch for part in parts if part[0] != "text"]
    for kind in ("image", "video"):
        grids = [grid for name, grid, _ in visuals if name == kind]
        arguments[f"{kind}_grid_thw"] = torch.tensor(grids) if grids else None
    seconds = [float(seconds) for name, _, seconds in visuals if name == "video"]
    # float32, as from the processor.
    arguments["second_per_grid_ts"] = torch.tensor(seconds) if seconds else None
    positions, _ = model.get_rope_index(**arguments)
    return [positions[:, i].numpy()[:, mask[i] == 1] for i in range(len(rows))]


def main():
    import torch
    import transformers

    release = tuple(int(n) for n in transformers.__version__.split(".")[:2])
    regime = next((name for first, name in RELEASES.items() if release >= first), None)
    if regime is None or release in UNNAMED:
        sys.exit(f"error: transformers {transformers.__version__} has no regime")

    made = {}
    for tokens_per_second in sorted({tps for tps, _ in CASES.values()}):
        names = [name for name, (tps, _) in CASES.items() if tps == tokens_per_second]
        alone = [reference([CASES[n][1]], tokens_per_second, "right")[0] for n in names]
        for side in ("left", "right"):
            together = reference([CASES[n][1] for n in names], tokens_per_second, side)
            for name, one, padded in zip(names, alone, together, strict=True):
                np.testing.assert_array_equal(one, padded, f"{name} padded on the {side}")
        made |= {f"{regime}/{n}": p.astype(np.int16) for n, p in zip(names, alone, strict=True)}
        assert max(p.max() for p in alone) < 2**15

    kept = dict(np.load(FILE)) if FILE.exists() else {}
    before = kept.get(f"{regime}/versions", np.array([], str)).tolist()
    if before:
        differ = [n for n, p in made.items() if n in kept and not np.array_equal(p, kept[n])]
        if differ:
            sys.exit(
                f"error: transformers {transformers.__version__} differs from {before}: {differ}"
            )
    python = ".".join(map(str, sys.version_info[:3]))
    here = f"transformers {transformers.__version__}, torch {torch.__version__}, python {python}"
    made[f"{regime}/versions"] = np.array(sorted({*before, here}))
    cases = {f"{name}/{case}" for name in RELEASES.values() for case in (*CASES, "versions")}
    np.savez_compressed(FILE, **{n: p for n, p in (kept | made).items() if n in cases})


if __name__ == "__main__":
    main()
