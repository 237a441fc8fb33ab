"""What qwen-vl-utils 0.0.14 samples, recorded: `python tests/goldens/sampling.py`.

Needs torch (2.13.0+cpu was used, on a CPU with fused multiply-add) and the package's folder on the
path. Its imports of torchvision and requests are not used here and replaced by empty modules.
"""

import hashlib
import importlib.metadata
import json
import sys
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np

RATES = (1.0, 7.5, 10.0, 12.5, 15.0, 23.976, 24000 / 1001, 24.0, 25.0, 29.97, 30000 / 1001, 30.0,
         50.0, 60000 / 1001, 60.0, 119.88)  # fmt: skip


def reference(ele: dict, total: int, rate: float) -> list[int]:
    """The lines of `_read_video_decord` between the reader and its frames."""
    import torch
    from qwen_vl_utils import vision_process

    first, last, count = vision_process.calculate_video_frame_range(ele, total, rate)
    frames = vision_process.smart_nframes(ele, total_frames=count, video_fps=rate)
    indices = torch.linspace(first, last, frames).round().long().tolist()
    return [*indices, frames / max(count, 1e-6) * rate]


def draw(rng) -> tuple[dict, int, float]:
    total = int(rng.choice([rng.integers(1, 40), rng.integers(2, 3000), rng.integers(2, 200_000)]))
    rate = float(rng.choice(RATES))
    ele = {}
    if rng.random() < 0.3:
        ele["nframes"] = 2 * int(rng.integers(1, 17))
    else:
        ele["fps"] = float(rng.choice([0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 30.0]))
        if rng.random() < 0.5:
            ele["min_frames"] = int(rng.integers(1, 40))
        ele["max_frames"] = int(rng.integers(2, 40))
    length = total / rate
    if rng.random() < 0.4:
        ele["video_start"] = float(np.round(rng.uniform(-1, length * 1.1), rng.integers(0, 6)))
    if rng.random() < 0.4:
        ele["video_end"] = float(np.round(rng.uniform(-1, length * 1.3), rng.integers(0, 6)))
    return ele, total, rate


def main() -> None:
    for absent in ("requests", "torchvision", "torchvision.transforms"):
        sys.modules.setdefault(absent, MagicMock())
    import torch

    rng = np.random.default_rng(0)
    cases = []
    for _ in range(900):
        ele, total, rate = draw(rng)
        try:
            answer = reference(ele, total, rate)
        except ValueError:
            answer = None
        cases.append([ele, total, rate, answer])
    digest = hashlib.sha256()
    for total, count in grid():
        line = torch.linspace(0, total - 1, count).round().long()
        digest.update(line.numpy().astype("<i4").tobytes())
    result = {
        "versions": {
            "torch": torch.__version__,
            "qwen-vl-utils": importlib.metadata.version("qwen-vl-utils"),
        },
        "cases": cases,
        "grid": digest.hexdigest(),
    }
    path = Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(result, separators=(",", ":")) + "\n")


def grid():
    """(total, count) pairs: every small total, and steps through the large ones."""
    for total in [*range(2, 1200), *range(1200, 200_000, 331)]:
        for count in [*range(2, 34, 2), 64, 128, 256, 768]:
            if count <= total:
                yield total, count


if __name__ == "__main__":
    main()
