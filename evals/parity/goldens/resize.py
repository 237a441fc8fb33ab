"""Makes resize.npz: sizes and pixels that qwen-vl-utils 0.0.14 gives.

    pip install torch==2.13.0 transformers==5.23.0 qwen-vl-utils==0.0.14 decord==0.6.0 "pillow<13"
    pip install --no-deps torchvision==0.28.0
    python -m evals.parity.goldens.resize

Pillow 12, as the released models were made with: 13 resizes tall pictures in another order. It
holds `sizes`, int32 [N, 8]: frames (0 for an image), height, width, min_pixels, max_pixels,
total_pixels (0 where it is left out), and the rows and columns that came out; and for each case of
CASES `NAME/frames`, `NAME/video`, `NAME/image`, uint8 [1, H, W, 3].
"""

from pathlib import Path

import numpy as np

FILE = Path(__file__).with_suffix(".npz")
TOKEN = 28 * 28
# Name -> height, width, new height, new width.
CASES = {
    "smaller": (60, 80, 28, 56), "larger": (40, 54, 84, 112), "much smaller": (110, 90, 28, 28),
    "tall": (130, 33, 112, 28), "wide": (33, 130, 28, 112), "narrower": (56, 70, 56, 56),
    "lower": (61, 56, 56, 56), "a row": (1, 90, 28, 84),
}  # fmt: skip


def draw_sizes(count: int, seed: int) -> list[tuple[int, ...]]:
    """Inputs of `sizes`: every protocol's limits and some of nobody's, ratios up to 20."""
    rng = np.random.default_rng(seed)
    rows = []
    while len(rows) < count:
        height, width = (2 ** rng.uniform(3, 12.3, 2)).astype(int).tolist()
        low, high = ((4, 200), (128, 200), (4, 16384), (128, 768), (1, 60), (16, 1280))[
            rng.integers(6)
        ]
        frames = int(rng.choice([0, 0, 2, 4, 8, 32, 100, 300, 768]))
        total = int(rng.choice([0, 0, 24_576, 2_000])) if frames else 0
        if max(height, width) < 20 * min(height, width):
            rows.append((frames, height, width, low * TOKEN, high * TOKEN, total * TOKEN))
    return rows


def draw_frames(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """uint8 [1, H, W, 3]: shades with edges and a little noise."""
    y, x = np.mgrid[:height, :width]
    waves = sum(
        a * np.sin(fy * y + fx * x + p)
        for a, fy, fx, p in rng.uniform((20, 0, 0, 0), (60, 0.4, 0.4, 6), (6, 4))
    )
    shades = 128 + waves[..., None] * rng.uniform(0.5, 1, 3)
    shades[y * width > x * height] *= 0.4
    frames = shades + rng.normal(0, 2, (1, height, width, 3))
    return np.clip(frames, 0, 255).astype(np.uint8)


def main() -> None:
    import PIL
    from PIL import Image

    from evals.parity.reference_inputs import image_size, resize_video, video_size

    if int(PIL.__version__.split(".")[0]) > 12:
        raise SystemExit(f"Pillow {PIL.__version__}: this needs 12")
    sizes = []
    for frames, height, width, low, high, total in draw_sizes(500, seed=1):
        limits = dict(min_pixels=low, max_pixels=high) | ({"total_pixels": total} if total else {})
        if frames:
            size = video_size(frames, height, width, **limits)
        else:
            size = image_size(height, width, **limits)
        sizes.append((frames, height, width, low, high, total, *size))
    arrays = {"sizes": np.array(sizes, np.int32)}
    rng = np.random.default_rng(0)
    for name, (height, width, rows, cols) in CASES.items():
        frames = draw_frames(height, width, rng)
        arrays[f"{name}/frames"] = frames
        arrays[f"{name}/video"] = resize_video(frames, rows, cols)
        arrays[f"{name}/image"] = np.stack(
            [np.asarray(Image.fromarray(frame).resize((cols, rows))) for frame in frames]
        )
    np.savez_compressed(FILE, **arrays)
    print(f"{FILE.name}: {len(sizes)} sizes, {len(CASES)} resized frames")


if __name__ == "__main__":
    main()
