"""The reference of parity and speed for inputs: qwen-vl-utils and transformers' processors.

Needs torch, torchvision (without its compiled part), qwen-vl-utils and decord, which `make parity`
installs. Imports them inside functions only.
"""

import functools
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from evals.parity.reference import import_torchvision


@functools.cache
def vision_process():
    """qwen-vl-utils' only module; its reader is decord, the fastest that needs no CUDA."""
    os.environ["FORCE_QWENVL_VIDEO_READER"] = "decord"
    import_torchvision()
    from qwen_vl_utils import vision_process as module

    module.logger.setLevel("ERROR")  # it warns about every max_pixels above its default
    return module


def image_size(height: int, width: int, **limits) -> tuple[int, int]:
    """Size of an image in `fetch_image`; limits are `min_pixels` and `max_pixels`."""
    module = vision_process()

    class Blank(module.Image.Image):
        mode, size = "RGB", (width, height)

        def convert(self, mode):
            return self

        def resize(self, size):
            return size

    cols, rows = module.fetch_image({"image": Blank(), **limits})
    return rows, cols


def video_size(frames: int, height: int, width: int, **limits) -> tuple[int, int]:
    """Size of a video in `fetch_video`, without resizing; limits may have `total_pixels`."""
    module = vision_process()
    blank = module.torch.empty(1, dtype=module.torch.uint8).expand(frames, 3, height, width)
    resize, read = module.transforms.functional.resize, module.VIDEO_READER_BACKENDS["decord"]
    sizes = []
    try:
        module.VIDEO_READER_BACKENDS["decord"] = lambda ele: (blank, {}, 2.0)
        module.transforms.functional.resize = lambda video, size, **_: (
            sizes.append(size) or blank[:1, :, :1, :1]
        )
        module.fetch_video({"video": "blank", **limits})
    finally:
        module.transforms.functional.resize = resize
        module.VIDEO_READER_BACKENDS["decord"] = read
    return tuple(sizes[0])


def resize_video(frames: np.ndarray, height: int, width: int, native: bool = False) -> np.ndarray:
    """uint8 [T, H, W, 3] resized as in `fetch_video`, or with `native` as in transformers'
    processors, which compute in uint8."""
    module = vision_process()
    from torchvision.transforms.v2 import functional

    call = functional.resize if native else module.transforms.functional.resize
    video = module.torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
    resized = call(
        video, [height, width], interpolation=module.InterpolationMode.BICUBIC, antialias=True
    )
    return resized.permute(0, 2, 3, 1).numpy()


def read_video(path: Path, num_frames: int, **limits) -> tuple[np.ndarray, float]:
    """`fetch_video` of a file: uint8 [T, H, W, 3] and the frame rate."""
    video, rate = vision_process().fetch_video(
        {"video": str(path), "nframes": num_frames, **limits}, return_video_sample_fps=True
    )
    return video.byte().permute(0, 2, 3, 1).numpy(), rate


def read_image(image, **limits) -> np.ndarray:
    """`fetch_image` of a PIL image or a path: uint8 [H, W, 3]."""
    return np.array(vision_process().fetch_image({"image": image, **limits}))


def pixel_processors() -> SimpleNamespace:
    """transformers' `image_processor` and `video_processor`, without effective limits, since
    qwen-vl-utils applies its limits."""
    import_torchvision()
    import transformers

    limits = dict(min_pixels=28 * 28, max_pixels=16384 * 28 * 28)
    return SimpleNamespace(
        image_processor=transformers.Qwen2VLImageProcessor(**limits),
        video_processor=transformers.Qwen2VLVideoProcessor(**limits, cap_pixels_per_frame=False),
    )


def processor(folder: Path, template: str):
    """transformers' Qwen2_5_VLProcessor from a folder with the tokenizer's files and a chat
    template."""
    pixels = pixel_processors()
    import transformers

    return transformers.Qwen2_5_VLProcessor(
        tokenizer=transformers.Qwen2TokenizerFast.from_pretrained(folder),
        chat_template=template,
        **vars(pixels),
    )
