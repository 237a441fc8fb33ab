"""Benchmarks by name: `python -m evals.speed NAME [options]`."""

import importlib
import sys

from gve_jax.errors import UserError, run_cli

NAMES = {
    "train": "a LoRA training step, beside transformers + peft + torch; GradCache",
    "encode": "encoding a mixed set, beside transformers + torch (both must be installed)",
    "gpu": "GVE-3B on one GPU in bfloat16: kernels compared, encoding, a LoRA training step, MFU",
    "inputs": "from a video file to patches, beside qwen-vl-utils and transformers' processor",
    "compile": "compiling a model of 36 layers and of 2",
    "loading": "memory and time of loading a checkpoint in the shapes of GVE-3B",
    "seeking": "8 frames of a 10-minute video, beside decoding all of it",
    "rank": "exact ranks of 10k queries in 100k documents, beside the bare product and faiss",
    "mine": "the 100 best of 100k documents for 100k queries, beside the bare product",
    "streams": "the pair streams alone beside the step they feed; 1,000 sources beside 1; starting",
    "isolation": "what decoding in processes of its own costs, and their memory over many clips",
    "synth": "synthesizing pairs: CPU a pair without the model, calls at once, memory",
}


def main() -> None:
    name, *options = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(__doc__ + "\n" + "\n".join(f"  {key:9} {text}" for key, text in NAMES.items()))
        return
    if name not in NAMES:
        raise UserError(f"no benchmark {name!r}; known: {', '.join(NAMES)}")
    importlib.import_module(f"evals.speed.{name}").main(options)


if __name__ == "__main__":
    run_cli(main)
