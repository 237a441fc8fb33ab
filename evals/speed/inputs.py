"""From a file to patches, compared with qwen-vl-utils and transformers: 8 frames of H.264 clips.

Ours is a Preprocessor on a path: token ids, positions, uint8 patches in window order. Theirs is
process_vision_info (reader: decord, the fastest that needs no CUDA) and Qwen2_5_VLProcessor: token
ids and float32 pixel values. Outputs are compared first. Then both run in turns, on one core and on
all of them, each in a child process; times per clip are medians, in wall and in processor seconds
(which depend less on other load of the machine). Last, ours on one clip after the other in as many
processes as there are cores.
"""

import multiprocessing
import os
import sys
import time
from pathlib import Path

import av
import numpy as np
from rich.console import Console
from rich.table import Table

from evals.parity.assets import Assets
from evals.parity.pixels import HIGH, LOW, levels
from evals.speed import harness
from gve_jax.errors import UserError
from gve_jax.inputs.preprocess import InputSpec, Preprocessor
from gve_jax.inputs.prompt import Prompt
from gve_jax.media.item import Item
from gve_jax.storage.filesystem import local_path

# width, height, frames
CLIPS = [(320, 240, 24), (320, 240, 250), (640, 360, 72), (640, 360, 250)]
CLIPS += [(1280, 720, 24), (1280, 720, 250)]
TEXT = "a dog surfing on a wave"
# A pair of a LoRA step of GVE-3B: 4 x 180 visual tokens with 30 of chat, and a query of 60. Forward
# and input gradients through 2.8e9 weights of the decoder, forward through 0.63e9 of the tower.
PAIR_FLOP = 4 * 2.8e9 * (720 + 30 + 60) + 2 * 0.63e9 * 4 * 720
DEVICES = {"one H200": 989e12, "a pod of 64 v5p": 64 * 459e12}  # bfloat16 peak
MFU = 0.5
ROUNDS = 3


def write_clip(path: Path, width: int, height: int, frames: int, seed: int = 0) -> None:
    """A camera panning over a cloudy texture, a moving disc, and grain; x264's defaults."""
    rng = np.random.default_rng(seed)
    field = np.zeros((height + 64, width + 512, 3), np.float32)
    for octave in range(7):
        step = 2**octave
        coarse = rng.normal(
            0, step**0.9, (field.shape[0] // step + 2, field.shape[1] // step + 2, 3)
        )
        field += np.kron(coarse, np.ones((step, step, 1)))[: field.shape[0], : field.shape[1]]
    field = np.clip(128 + field * (45 / field.std()), 0, 255).astype(np.uint8)
    y, x = np.mgrid[:height, :width]
    with av.open(str(path), "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for k in range(frames):
            at = int(32 + 31 * np.sin(k / 17)), 2 * k % 512
            image = field[at[0] :, at[1] :][:height, :width].astype(np.int16)
            centre = height * (0.5 + 0.3 * np.sin(k / 9)), width * (k % 90) / 90
            image[np.hypot(y - centre[0], x - centre[1]) < height / 6] = (220, 60, 40)
            image += rng.integers(-3, 4, image.shape, np.int16)
            image = np.clip(image, 0, 255).astype(np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")):
                out.mux(packet)
        for packet in stream.encode():
            out.mux(packet)


class Ours:
    def __init__(self, tokenizer: Path):
        spec = InputSpec(min_pixels=LOW, max_pixels=HIGH)
        self.preprocess = Preprocessor(Prompt(tokenizer / "tokenizer.json", spec.max_length), spec)

    def __call__(self, path: Path):
        return self.preprocess(Item(video=path, text=TEXT))


class Theirs:
    def __init__(self, tokenizer: Path, template: str):
        from evals.parity.reference_inputs import processor, vision_process

        self.module, self.processor = vision_process(), processor(tokenizer, template)

    def __call__(self, path: Path):
        video = {"type": "video", "video": str(path), "nframes": 8}
        video |= {"min_pixels": LOW, "max_pixels": HIGH}
        messages = [{"role": "user", "content": [video, {"type": "text", "text": TEXT}]}]
        chat = self.processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        _, ((frames, metadata),), options = self.module.process_vision_info(
            messages, return_video_kwargs=True, return_video_metadata=True
        )
        return self.processor(
            text=[chat + "<|endoftext|>"],
            videos=[frames],
            video_metadata=[metadata],
            return_tensors="np",
            **options,
        )


def compare(ours: Ours, theirs: Theirs, path: Path) -> dict:
    """Compares token ids and patches.

    Raises:
      SystemExit: ids differ, a pixel differs by more than a level, or more than 2 % differ.
    """
    from evals.parity.reference_inputs import read_video

    row, other = ours(path), theirs(path)
    frames, _ = read_video(path, 8, min_pixels=LOW, max_pixels=HIGH)
    expected = levels(theirs.processor, frames)
    patches = np.stack(row.patches)
    rows, columns = row.layouts[0].coords.T
    width = int(columns.max()) + 1
    # Theirs come in groups of 2 x 2 patches, group by group.
    index = (rows // 2 * (width // 2) + columns // 2) * 4 + rows % 2 * 2 + columns % 2
    apart = np.abs(patches.astype(int) - expected[:, index])
    same = row.tokens.tolist() == list(other["input_ids"][0])
    if not same or apart.max() > 1 or (apart > 0).mean() > 0.02:
        raise SystemExit(f"{path.name}: outputs differ (ids equal: {same}, pixels {apart.max()})")
    values = other["pixel_values_videos"]
    return {
        "largest difference": int(apart.max()),
        "share of values that differ": float((apart > 0).mean()),
        "bytes of our patches": patches.nbytes,
        "bytes of their pixel values": values.nbytes,
    }


def time_clips(tokenizer: str, template: str, paths: list[str], repeats: int) -> dict:
    """Compares, then times both in turns: medians by clip. Runs in a child process."""
    ours, theirs = Ours(Path(tokenizer)), Theirs(Path(tokenizer), template)
    result = {}
    for path in map(Path, paths):
        compared = compare(ours, theirs, path)
        variants = {"ours": lambda path=path: ours(path), "theirs": lambda path=path: theirs(path)}
        taken = harness.take_turns(variants, repeats, harness.WALL_AND_PROCESSOR)
        medians = {name: np.median(seconds, axis=0).tolist() for name, seconds in taken.items()}
        ratios = (np.array(medians["theirs"]) / medians["ours"]).tolist()
        result[path.stem] = compared | {
            "seconds": {name: median[0] for name, median in medians.items()},
            "processor seconds": {name: median[1] for name, median in medians.items()},
            "ratio": ratios[0],
            "ratio of processor seconds": ratios[1],
        }
    return result


def time_clips_on(cores: set[int], *arguments) -> dict:
    """`time_clips` in a process with these cores and one thread for each."""
    libraries = ("OPENBLAS", "OMP", "MKL")
    threads = {f"{name}_NUM_THREADS": str(len(cores)) for name in libraries}
    return harness.run_in_child(f"{__name__}:time_clips", *arguments, env=threads, cores=cores)


def _count_clips(
    core: int, tokenizer: Path, paths: list[Path], seconds: float, start, results
) -> None:
    os.sched_setaffinity(0, {core})
    ours = Ours(tokenizer)
    for path in paths:
        ours(path)
    start.wait()
    done, wall, processor = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - wall < seconds or done % len(paths):  # all clips equally often
        ours(paths[done % len(paths)])
        done += 1
    results.put((done / (time.perf_counter() - wall), done / (time.process_time() - processor)))


def throughput(cores: list[int], tokenizer: Path, paths: list[Path], seconds: float):
    """Clips per second of one process on each core, and clips per processor second."""
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(len(cores)), context.Queue()
    workers = [
        context.Process(target=_count_clips, args=(core, tokenizer, paths, seconds, start, results))
        for core in cores
    ]
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # for the processes that start now
    for process in workers:
        process.start()
    rates = np.array([results.get() for _ in workers])
    for process in workers:
        process.join()
    return float(rates[:, 0].sum()), float(rates[:, 1].mean())


OPTIONS = dict(
    repeats=(9, "runs of each variant"),
    seconds=(8.0, "duration of each round of throughput"),
    real=(local_path, "folder of additional clips, .mp4"),
    assets=(local_path, "folder of tokenizer and template, instead of that of `make parity`"),
)


def measure(folder: Path, args) -> dict:
    args.assets = args.assets or Path(sys.prefix, "share", "parity")
    assets = Assets(args.assets)
    tokenizer, template = assets.tokenizer(folder), assets.template()
    if not tokenizer or not template:
        raise UserError(f"{args.assets}: tokenizer or template missing; run `make parity`")
    paths = []
    for width, height, frames in CLIPS:
        paths.append(Path(folder, f"{width}x{height}, {frames} frames.mp4"))
        write_clip(paths[-1], width, height, frames)
    paths += sorted(args.real.glob("*.mp4")) if args.real else []
    cores = sorted(os.sched_getaffinity(0))
    arguments = str(tokenizer), template, [str(path) for path in paths], args.repeats
    result: dict = {
        "one core": time_clips_on({cores[0]}, *arguments),
        "all cores": time_clips_on(set(cores), *arguments),
    }
    counts = sorted({1, len(cores) // 2 or 1, len(cores)})
    rounds = [
        {n: throughput(cores[:n], tokenizer, paths, args.seconds) for n in counts}
        for _ in range(ROUNDS)  # in turns: the machine's speed drifts
    ]
    rates = {n: np.median([rate[n] for rate in rounds], axis=0) for n in counts}
    result["clips/s by processes"] = {n: round(rates[n][0], 1) for n in counts}
    result["clips/s of a processor"] = {n: round(rates[n][1], 1) for n in counts}
    result["rounds of clips/s"] = [{n: round(rate[n][0], 1) for n in counts} for rate in rounds]
    per_core = rates[len(cores)][0] / len(cores)
    runs = result["one core"], result["all cores"]
    best = [  # theirs may be slower with more threads: its faster run counts
        min(run[name]["seconds"]["theirs"] for run in runs) / clip["seconds"]["ours"]
        for name, clip in result["one core"].items()
    ]
    result["ours on one core, ratio to the best of theirs"] = {
        "smallest": round(min(best), 2),
        "geometric mean": round(float(np.exp(np.mean(np.log(best)))), 2),
    }
    result["feeding a LoRA step of GVE-3B at 50 % MFU"] = {
        name: {
            "pairs/s": round(MFU * peak / PAIR_FLOP, 1),
            "cores like these": round(MFU * peak / PAIR_FLOP / per_core, 1),
        }
        for name, peak in DEVICES.items()
    }
    for name in ("one core", "all cores"):
        _print(name, result[name])
    return result


def _print(title: str, clips: dict) -> None:
    table = Table(
        "clip", "ours, ms", "theirs, ms", "ratio", "by processor", "values that differ", title=title
    )
    ratios = np.array([[c["ratio"], c["ratio of processor seconds"]] for c in clips.values()])
    for (name, clip), ratio in zip(clips.items(), ratios, strict=True):
        share = f"{clip['share of values that differ']:.4%} by {clip['largest difference']}"
        times = [f"{clip['seconds'][side] * 1e3:.1f}" for side in ("ours", "theirs")]
        table.add_row(name, *times, *(f"{r:.2f}" for r in ratio), share)
    mean = np.exp(np.log(ratios).mean(axis=0))
    table.add_row("geometric mean", "", "", *(f"{r:.2f}" for r in mean), "")
    Console(width=100).print(table)
