"""Benchmarks by name: `python -m evals.speed NAME [options]`."""

import sys

from evals.speed.harness import run
from gve_jax.cli import run_cli
from gve_jax.errors import UserError

NAMES = {
    "train": "a LoRA training step, compared with transformers + peft + torch; GradCache",
    "encode": "encoding a mixed set, compared with transformers + torch (both must be installed)",
    "gpu": "GVE-3B on one GPU in bfloat16: kernels, encoding, a LoRA training step, MFU",
    "inputs": "a video file to patches, compared with qwen-vl-utils and transformers' processor",
    "compile": "compiling a model of 36 layers, compared with 2",
    "loading": "memory and time of loading a checkpoint in the shapes of GVE-3B",
    "seeking": "8 frames of a 10-minute video, compared with decoding all of it",
    "rank": "exact ranks of 10k queries in 100k documents, compared with the product and faiss",
    "mine": "the 100 best of 100k documents for 100k queries, compared with the bare product",
    "streams": "pair streams, compared with the step they feed; 1,000 sources; starting",
    "isolation": "the cost of decoding in worker processes, and their memory over many clips",
    "serve": "the server of vectors with 16 clients, compared with GVE.encode on the same items",
    "synth": "synthesizing pairs: CPU per pair without the model, concurrency, memory",
}


def main() -> None:
    name, *options = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(__doc__ + "\n" + "\n".join(f"  {key:9} {text}" for key, text in NAMES.items()))
        return
    if name not in NAMES:
        raise UserError(f"unknown benchmark {name!r}; known: {', '.join(NAMES)}")
    run(name, options)


if __name__ == "__main__":
    run_cli(main)
