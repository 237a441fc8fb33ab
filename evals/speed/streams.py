"""The pair streams alone, beside the step that they feed; mixing 1,000 sources beside 1; starting
and memory by the number of records.

The step is the quickstart's, on a batch of texts and videos that is ready on the device. The stream
draws its order, looks a source up, and puts batches whose arrays are ready made on the mesh: all
but reading and decoding. Starting is in a process of its own over a directory of ArrayRecord files:
open and check them, build the order of a run, and read the first batch's records; then 200 batches.
Times of the mixture are processor seconds, which do not feel the neighbours of a shared machine.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import grain
import jax
import numpy as np
from absl import flags
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from configs import quickstart
from data.pairs.builder import run_import
from data.shapes.render import encode_mp4
from evals.parity.reference import write_tokenizer
from evals.speed.result import in_turns, write_result
from gve_jax.distributed.sharding import make_mesh
from gve_jax.errors import UserError
from gve_jax.inputs.batch import Buckets
from gve_jax.inputs.preprocess import InputSpec, Preprocessor
from gve_jax.inputs.prompt import Prompt
from gve_jax.learning.loss import LossConfig
from gve_jax.learning.optimizer import make_optimizer
from gve_jax.learning.state import init_state
from gve_jax.learning.step import make_train_step
from gve_jax.media.isolation import Isolated
from gve_jax.media.item import Item
from gve_jax.running.sections import model_config, read_settings
from gve_jax.storage.filesystem import local_path
from gve_jax.streams.loader import LoadPairs, place, placed, read_ahead
from gve_jax.streams.mixture import Stage, StageSelection, batches
from gve_jax.streams.sources import Sources, parse

BATCHES = 200  # of a measurement
STEPS = 12_000  # of the run whose order is built: that of the paper


@dataclasses.dataclass(frozen=True)
class Ready(LoadPairs):
    """Gives the same decoded batch whatever is asked for."""

    batch: dict = dataclasses.field(default_factory=dict)

    def map(self, element) -> dict:
        return self.batch | {"source": element[0]}


class Memory:
    """A source of texts and of videos of noise."""

    def read(self, source: str, indices) -> list[dict]:
        frames = np.random.default_rng(0).integers(0, 256, (8, 56, 56, 3)).astype(np.uint8)
        clip = encode_mp4(frames)
        return [
            {
                "id": str(i),
                "query": Item(text=f"a red circle moves {i}"),
                "negatives": [],
                "positive": Item(video=clip),
            }
            for i in indices
        ]


def order(count: int, records: int, batch: int) -> grain.MapDataset:
    """The order of a run over `count` sources of `records` each."""
    names = [f"T2V_{number:04}" for number in range(count)]
    stages = [Stage(0, STEPS, np.ones(count))]
    sizes = dict.fromkeys(names, records)
    return batches(sizes, dict.fromkeys(names, batch), stages, seed=0)


def ready(config, folder: Path) -> Ready:
    """One decoded batch of the quickstart's shapes."""
    write_tokenizer(folder / "tokenizer.json")
    buckets = Buckets(**config.buckets)
    spec = InputSpec(**config.inputs, max_length=buckets.max_length, window_side=2)
    prompt = Prompt(folder / "tokenizer.json", spec.max_length)
    with Isolated(Preprocessor(prompt, spec), processes=1) as isolated:
        load = LoadPairs(Memory(), isolated, buckets)
        batch = load.map(("T2V", np.arange(config.batch_size)))
    return Ready(None, None, buckets, batch=batch | {"failures": []})


def feed(folder: Path, repeats: int) -> dict:
    """Pairs a second of the step and of the stream, with threads and with one worker."""
    config = quickstart.get_config()
    mesh, load = make_mesh(config.mesh), ready(config, folder)
    load = dataclasses.replace(load, preprocess=_Spec(InputSpec(**config.inputs, window_side=2)))
    model = model_config(read_settings(config), None)
    tx = make_optimizer(config.optimizer, config.steps)
    state, frozen = init_state(model, tx, mesh, 0)
    step = make_train_step(model, tx, LossConfig(duplicate_cosine=None), mesh, seed=0)
    arrays = place(load.agree(load.map(("T2V", None))), mesh).arrays
    pairs, seconds = config.batch_size, []
    with jax.set_mesh(mesh):
        for number in range(2 + repeats):
            began = time.perf_counter()
            state, scalars = step(state, frozen, arrays, number)
            jax.block_until_ready((state, scalars))
            seconds.append(time.perf_counter() - began)
    rates = {"step": pairs / float(np.median(seconds[2:]))}
    for workers in (0, 1):
        stream = placed(read_ahead(order(1000, 10**6, pairs), load, workers), mesh, load)
        for _ in range(20):  # workers have started
            next(stream)
        found = []
        for _ in range(repeats):
            began = time.perf_counter()
            for _ in range(BATCHES):
                batch = next(stream)
            jax.block_until_ready(batch.arrays)
            found.append(pairs * BATCHES / (time.perf_counter() - began))
        stream.close()
        rates["stream, a worker" if workers else "stream, threads"] = float(np.median(found))
    return {
        "pairs/s": {name: round(rate) for name, rate in rates.items()},
        "stream / step": {
            name: round(rate / rates["step"], 1) for name, rate in rates.items() if name != "step"
        },
    }


@dataclasses.dataclass(frozen=True)
class _Spec:
    """What of the preprocessor a stream asks for when its arrays are ready."""

    spec: InputSpec


def mixing(folder: Path, repeats: int) -> dict:
    """Processor seconds of a batch out of 1,000 sources and out of 1: the whole stream without
    decoding, and its order alone."""
    config = quickstart.get_config()
    mesh, load = make_mesh(config.mesh), ready(config, folder)
    load = dataclasses.replace(load, preprocess=_Spec(InputSpec(**config.inputs, window_side=2)))
    known = {count: order(count, 10**6, config.batch_size) for count in (1, 1000)}
    places, used = {count: 0 for count in known}, {}
    opened = {}
    for count in known:  # grain sets a source up when it is first drawn: once a run, not mixing
        first = StageSelection([Stage(0, STEPS, np.ones(count))], seed=0)
        seen = {first[step][0]: step for step in range(STEPS)}
        at = time.process_time()
        for step in seen.values():
            known[count][step]
        opened[f"{count}"] = round(time.process_time() - at, 2)

    def whole(count: int):
        first, places[count] = places[count], places[count] + BATCHES
        at = time.process_time()
        for element in map(known[count].__getitem__, range(first, first + BATCHES)):
            jax.block_until_ready(place(load.agree(load.map(element)), mesh).arrays)
        used.setdefault(f"whole, {count}", []).append(time.process_time() - at)

    def alone(count: int):
        first, places[count] = places[count], places[count] + BATCHES
        at = time.process_time()
        for step in range(first, first + BATCHES):
            known[count][step]
        used.setdefault(f"order, {count}", []).append(time.process_time() - at)

    for way in (whole, alone):
        in_turns({count: lambda c=count, w=way: w(c) for count in known}, repeats + 1)
    median = {name: float(np.median(values[1:])) / BATCHES for name, values in used.items()}
    ratios = {
        part: sorted(
            round(many / one, 4)
            for one, many in zip(used[f"{part}, 1"][1:], used[f"{part}, 1000"][1:], strict=True)
        )
        for part in ("whole", "order")
    }
    return {
        "seconds to draw each source once": opened,
        "microseconds of a batch": {name: round(1e6 * value) for name, value in median.items()},
        "what 1,000 sources add to a batch, of the whole": round(
            (median["order, 1000"] - median["order, 1"]) / median["whole, 1"], 4
        ),
        "1000 / 1": {part: round(float(np.median(turns)), 4) for part, turns in ratios.items()},
        "1000 / 1, of each turn": ratios,
    }


def write_pairs(directory: Path, records: int, shards: int) -> None:
    """A directory of pairs with one source: the same text pair again and again."""
    row = json.dumps({"query": "a red circle moves left", "positive": "it goes to the left"})
    source = directory.with_name(directory.name + ".jsonl")
    source.write_text(row + "\n")
    run_import(directory, [f"T2T_text={source}"], "pair")
    info = directory / "dataset_info.json"
    (file,) = directory.glob("*array_record*")
    (record,) = ArrayRecordReader(str(file)).read_all()
    file.unlink()
    counts = [records // shards] * shards
    for number, count in enumerate(counts):
        name = f"imported-T2T_text.array_record-{number:05}-of-{shards:05}"
        writer = ArrayRecordWriter(str(directory / name), "group_size:1")
        for _ in range(count):
            writer.write(record)
        writer.close()
    told = json.loads(info.read_text())
    told["splits"][0] |= {
        "shardLengths": [str(count) for count in counts],
        "numBytes": str(len(record) * records),
    }
    info.write_text(json.dumps(told))


def start(directory: Path) -> dict[str, float]:
    """In this process, once: seconds and memory until the first batch's records are there, and the
    memory after `BATCHES` batches."""
    resident, began = _resident(), time.perf_counter()
    sources = Sources(parse(str(directory)))
    batch = 256
    sources.check({"T2T_text": batch})
    run = batches(sources.sizes, {"T2T_text": batch}, [Stage(0, STEPS, (1.0,))], seed=0)
    sources.read(*run[0])
    first, seconds = _resident(), time.perf_counter() - began
    for element in run[1:BATCHES]:
        sources.read(*element)
    return {"seconds": seconds, "start": first - resident, "later": _resident() - resident}


def starting(folder: Path, cases: list[tuple[int, int]]) -> dict:
    found = {}
    for records, shards in cases:
        directory = folder / f"{records}-{shards}"
        write_pairs(directory, records, shards)
        command = [sys.executable, "-m", "evals.speed.streams", "--start", str(directory)]
        runs = []
        for _ in range(3):
            done = subprocess.run(
                command, capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"}
            )
            if done.returncode:
                raise UserError(f"streams failed: {done.stderr.strip().splitlines()[-1]}")
            runs.append(json.loads(done.stdout))
        found[f"{records:,} records, {shards:,} files"] = {
            "seconds to the first batch": round(min(run["seconds"] for run in runs), 2),
            "MiB at the first batch": round(min(run["start"] for run in runs) / 2**20, 1),
            f"MiB after {BATCHES} batches": round(min(run["later"] for run in runs) / 2**20, 1),
        }
    return found


def _resident() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


PARTS = ("feed", "mixing", "starting")


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(prog="python -m evals.speed streams", description=__doc__)
    parser.add_argument("--parts", default=",".join(PARTS), help="of what is measured")
    parser.add_argument("--records", type=int, nargs="+", default=[10**4, 10**6])
    parser.add_argument("--files", type=int, default=10, help="they lie in, and 1,000 times that")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=local_path, help="a JSON file to write")
    parser.add_argument("--start", type=local_path, help=argparse.SUPPRESS)  # for child processes
    args = parser.parse_args(argv)
    if not Path("/proc/self/status").exists():
        raise UserError("streams: memory is told by Linux's /proc")
    flags.FLAGS.mark_as_parsed()  # grain reads absl's
    if args.start:
        print(json.dumps(start(args.start)))
        return
    result, parts = {}, args.parts.split(",")
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        if "feed" in parts:
            result["feed"] = feed(folder, args.repeats)
        if "mixing" in parts:
            result["mixing"] = mixing(folder, args.repeats)
        if "starting" in parts:
            cases = [(records, args.files) for records in args.records]
            cases.append((max(args.records), 1000 * args.files))
            result["starting"] = starting(folder, cases)
    settings = {k: v for k, v in vars(args).items() if k != "start"}
    write_result("streams", settings, result, args.output)


if __name__ == "__main__":
    main()
