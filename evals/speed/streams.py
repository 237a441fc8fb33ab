"""Pair streams without reading and decoding, mixing 1,000 sources, and starting.

feed      a stream's rate, compared with the step that it feeds: the quickstart's, on a batch of
          texts and videos that is ready on the device. The stream draws its order, looks a
          source up, and puts batches whose arrays are ready on the mesh
mixing    processor seconds (which hardly depend on other load of a shared machine) of a batch
          from 1,000 sources, compared with 1
starting  in a child process, over ArrayRecord files: open and check them, build a run's order,
          read the first batch's records; then 200 batches. By the number of records
"""

import dataclasses
import json
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
from evals.speed import harness
from gve_jax.distributed.sharding import make_mesh
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
from gve_jax.streams.loader import LoadPairs, device_batches, read_ahead, to_device
from gve_jax.streams.mixture import Stage, StageSelection, batches
from gve_jax.streams.sources import Sources, parse

BATCHES = 200  # batches of a measurement
STEPS = 12_000  # of the run whose order is built; those of the paper


@dataclasses.dataclass(frozen=True)
class Ready(LoadPairs):
    """Returns the same decoded batch for every element."""

    batch: dict = dataclasses.field(default_factory=dict)

    def map(self, element) -> dict:
        return self.batch | {"source": element[0]}


class Memory:
    """A source of texts and of videos of noise."""

    def read(self, source: str, indices) -> list[dict]:
        frames = np.random.default_rng(0).integers(0, 256, (8, 56, 56, 3)).astype(np.uint8)
        clip = encode_mp4(frames)
        sides = {"positive": Item(video=clip), "negatives": []}
        return [
            {"id": str(i), "query": Item(text=f"a red circle moves {i}")} | sides for i in indices
        ]


def order(count: int, records: int, batch: int) -> grain.MapDataset:
    """The order of a run over `count` sources of `records` each."""
    names = [f"T2V_{number:04}" for number in range(count)]
    stages = [Stage(0, STEPS, np.ones(count))]
    sizes = dict.fromkeys(names, records)
    return batches(sizes, dict.fromkeys(names, batch), stages, seed=0)


@dataclasses.dataclass(frozen=True)
class _Spec:
    """The attribute of a preprocessor that a stream reads when its arrays are ready."""

    spec: InputSpec


def ready(config, folder: Path) -> Ready:
    """One decoded batch of the quickstart's shapes."""
    write_tokenizer(folder / "tokenizer.json")
    buckets = Buckets(**config.buckets)
    spec = InputSpec(**config.inputs, max_length=buckets.max_length, window_side=2)
    prompt = Prompt(folder / "tokenizer.json", spec.max_length)
    with Isolated(Preprocessor(prompt, spec), processes=1) as isolated:
        load = LoadPairs(Memory(), isolated, buckets)
        batch = load.map(("T2V", np.arange(config.batch_size)))
    spec = InputSpec(**config.inputs, window_side=2)
    return Ready(None, _Spec(spec), buckets, batch=batch | {"failures": []})


def feed(folder: Path, repeats: int) -> dict:
    """Pairs per second of the step and of the stream, with threads and with one worker."""
    config = quickstart.get_config()
    mesh, load = make_mesh(config.mesh), ready(config, folder)
    model = model_config(read_settings(config), None)
    tx = make_optimizer(config.optimizer, config.steps)
    state, frozen = init_state(model, tx, mesh, 0)
    step = make_train_step(model, tx, LossConfig(duplicate_cosine=None), mesh, seed=0)
    arrays = to_device(load.sync_across_hosts(load.map(("T2V", None))), mesh).arrays
    pairs = config.batch_size

    def train():
        nonlocal state
        state, scalars = step(state, frozen, arrays, 0)
        jax.block_until_ready((state, scalars))

    with jax.set_mesh(mesh):
        seconds = harness.take_turns({"step": train}, 2 + repeats)["step"][2:]
    rates = {"step": pairs / float(np.median(seconds))}
    for workers in (0, 1):
        stream = device_batches(read_ahead(order(1000, 10**6, pairs), load, workers), mesh, load)

        def draw(count: int, stream=stream):
            for _ in range(count):
                batch = next(stream)
            jax.block_until_ready(batch.arrays)

        draw(20)  # starts the workers
        seconds = harness.take_turns({"stream": lambda draw=draw: draw(BATCHES)}, repeats)["stream"]
        stream.close()
        name = "stream, a worker" if workers else "stream, threads"
        rates[name] = float(np.median(pairs * BATCHES / seconds))
    return {
        "pairs/s": {name: round(rate) for name, rate in rates.items()},
        "stream / step": {
            name: round(rate / rates["step"], 1) for name, rate in rates.items() if name != "step"
        },
    }


def mixing(folder: Path, repeats: int) -> dict:
    """Processor seconds of a batch from 1,000 sources and from 1: the complete stream without
    decoding, and its order alone."""
    config = quickstart.get_config()
    mesh, load = make_mesh(config.mesh), ready(config, folder)
    orders = {count: order(count, 10**6, config.batch_size) for count in (1, 1000)}
    steps = dict.fromkeys(orders, 0)
    opened = {}
    for count, stream in orders.items():  # grain sets a source up at its first draw: once a run
        sources = StageSelection([Stage(0, STEPS, np.ones(count))], seed=0)
        first_steps = {sources[step][0]: step for step in range(STEPS)}.values()
        start = time.process_time()
        for step in first_steps:
            stream[step]
        opened[str(count)] = round(time.process_time() - start, 2)

    def draw(count: int, deliver: bool):
        first, steps[count] = steps[count], steps[count] + BATCHES
        for step in range(first, first + BATCHES):
            element = orders[count][step]
            if deliver:
                jax.block_until_ready(
                    to_device(load.sync_across_hosts(load.map(element)), mesh).arrays
                )

    seconds = {}
    for part, deliver in (("whole", True), ("order", False)):
        variants = {
            f"{part}, {count}": lambda count=count, deliver=deliver: draw(count, deliver)
            for count in orders
        }
        taken = harness.take_turns(variants, repeats + 1, (time.process_time,))
        seconds |= {name: values[1:, 0] for name, values in taken.items()}
    median = {name: float(np.median(values)) / BATCHES for name, values in seconds.items()}
    added = (median["order, 1000"] - median["order, 1"]) / median["whole, 1"]
    ratios = {
        part: np.sort(seconds[f"{part}, 1000"] / seconds[f"{part}, 1"]).round(4)
        for part in ("whole", "order")
    }
    return {
        "seconds to draw each source once": opened,
        "microseconds of a batch": {name: round(1e6 * value) for name, value in median.items()},
        "what 1,000 sources add to a batch, of the whole": round(added, 4),
        "1000 / 1": {part: round(float(np.median(turns)), 4) for part, turns in ratios.items()},
        "1000 / 1, of each turn": {part: turns.tolist() for part, turns in ratios.items()},
    }


def write_pairs(directory: Path, records: int, shards: int) -> None:
    """A directory of pairs with one source that repeats one text pair."""
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
    description = json.loads(info.read_text())
    lengths = [str(count) for count in counts]
    description["splits"][0] |= {"shardLengths": lengths, "numBytes": str(len(record) * records)}
    info.write_text(json.dumps(description))


def start(directory: str) -> dict[str, float]:
    """Seconds and memory until the first batch's records are read, and memory after `BATCHES`
    batches; runs once in a child process."""
    flags.FLAGS.mark_as_parsed()  # grain reads absl's
    resident, began = harness.memory_bytes(), time.perf_counter()
    sources = Sources(parse(directory))
    batch = 256
    sources.check({"T2T_text": batch})
    run = batches(sources.sizes, {"T2T_text": batch}, [Stage(0, STEPS, (1.0,))], seed=0)
    sources.read(*run[0])
    first, seconds = harness.memory_bytes(), time.perf_counter() - began
    for element in run[1:BATCHES]:
        sources.read(*element)
    later = harness.memory_bytes() - resident
    return {"seconds": seconds, "start": first - resident, "later": later}


def starting(folder: Path, cases: list[tuple[int, int]]) -> dict:
    result = {}
    for records, shards in cases:
        directory = folder / f"{records}-{shards}"
        write_pairs(directory, records, shards)
        child = f"{__name__}:start", str(directory)
        runs = [harness.run_in_child(*child, env={"JAX_PLATFORMS": "cpu"}) for _ in range(3)]
        best = {key: min(run[key] for run in runs) for key in runs[0]}
        result[f"{records:,} records, {shards:,} files"] = {
            "seconds to the first batch": round(best["seconds"], 2),
            "MiB at the first batch": round(best["start"] / 2**20, 1),
            f"MiB after {BATCHES} batches": round(best["later"] / 2**20, 1),
        }
    return result


OPTIONS = dict(
    parts=("feed,mixing,starting", "what to measure"),
    records=([10**4, 10**6], "records of each start"),
    files=(10, "files of the records; the last start has 1,000 times as many"),
    repeats=(7, "runs of each variant"),
)


def measure(folder: Path, args) -> dict:
    harness.require_proc("streams")
    flags.FLAGS.mark_as_parsed()  # grain reads absl's
    result, parts = {}, args.parts.split(",")
    if "feed" in parts:
        result["feed"] = feed(folder, args.repeats)
    if "mixing" in parts:
        result["mixing"] = mixing(folder, args.repeats)
    if "starting" in parts:
        cases = [(records, args.files) for records in args.records]
        cases.append((max(args.records), 1000 * args.files))
        result["starting"] = starting(folder, cases)
    return result
