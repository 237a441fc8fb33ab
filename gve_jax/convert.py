"""Converts models between the format of gve_jax and Hugging Face checkpoints:

    python -m gve_jax.convert --input runs/quickstart/model --output exported --to hf
    python -m gve_jax.convert --input Alibaba-NLP/GVE-3B --output gve-3b --to gve_jax
    python -m gve_jax.convert --input gve-3b --adapter mine --output merged --to hf

`--adapter` adds PEFT's LoRA or DoRA files. `--to hf` merges adapters and writes no head
(transformers ties it to the embeddings).
"""

import argparse
from collections.abc import Sequence

import jax

from gve_jax.checkpoints.huggingface import stored_dtype
from gve_jax.checkpoints.pretrained import open_pretrained
from gve_jax.checkpoints.weight_names import LAYOUTS
from gve_jax.cli import Parser, run_cli
from gve_jax.errors import UserError
from gve_jax.gve import FORMATS, GVE
from gve_jax.storage.filesystem import any_path


def main(argv: Sequence[str] | None = None) -> None:
    args = _parse(argv)
    jax.config.update("jax_platforms", "cpu")  # nothing is computed
    if args.output.exists() and (not args.output.is_dir() or any(args.output.iterdir())):
        raise UserError(f"{args.output} exists and is not an empty directory")
    dtype = args.dtype
    if dtype is None:
        pretrained = open_pretrained(args.input, adapter=args.adapter)
        dtype = None if pretrained.is_native else stored_dtype(pretrained.directory)
    model = GVE.from_pretrained(
        args.input, dtype=dtype, adapter=args.adapter, show_progress_bar=True
    )
    model.save_pretrained(args.output, args.to, layout=args.layout, show_progress_bar=True)
    print(f"{args.output}: {args.to}, {model.config.param_dtype}")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("python -m gve_jax.convert", __doc__)
    parser.add_argument(
        "--input",
        required=True,
        help="directory or Hub id (ORG/NAME or ORG/NAME@REVISION) of the model",
    )
    parser.add_argument("--adapter", help="directory or Hub id of PEFT's LoRA or DoRA files to add")
    parser.add_argument("--output", required=True, type=any_path, help="new directory to write")
    parser.add_argument("--to", required=True, choices=FORMATS, help="format to write")
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float32", "float16"),
        help="dtype of the parameters (default: unchanged)",
    )
    parser.add_argument(
        "--layout",
        choices=tuple(LAYOUTS),
        default="4.49",
        help="names of tensors for hf, by release of transformers; 5 reads both (default: 4.49)",
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_cli(main)
