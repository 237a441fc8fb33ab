"""`python -m data.shapes --output DIR [--seed 0] [--scale 1.0] [--preview FILE.png]`."""

from gve_jax.cli import Parser, run_cli
from gve_jax.errors import UserError
from gve_jax.storage.filesystem import local_path


def main() -> None:
    parser = Parser(
        "python -m data.shapes",
        "Generates the video world: training pairs, a miniature UVRB and a tokenizer.",
    )
    parser.add_argument(
        "--output",
        type=local_path,
        help="folder to write",
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="1.0 gives about 15,000 pairs (default: 1.0)"
    )
    parser.add_argument(
        "--preview",
        type=local_path,
        help="PNG file for some scenes with their captions; writes nothing else",
    )
    args = parser.parse_args()
    if args.preview is not None:
        from data.shapes.preview import write_preview

        write_preview(args.preview, args.seed)
        print(f"wrote {args.preview}")
        return
    if args.output is None:
        raise UserError("--output is missing; see python -m data.shapes --help")
    if args.scale <= 0 or args.seed < 0:
        raise UserError(
            f"--scale must be above 0 and --seed at least 0, got {args.scale} and {args.seed}"
        )

    import tensorflow_datasets as tfds
    from absl import logging

    from data.shapes.generate import generate, read_world

    if read_world(args.output, args.seed, args.scale) is not None:
        print(f"{args.output} is ready (seed {args.seed}, scale {args.scale:g})")
        return
    tfds.disable_progress_bar()  # we show our own
    logging.set_verbosity(logging.ERROR)  # TFDS warns about every custom configuration
    manifest = generate(args.output, args.seed, args.scale)
    total = sum(manifest["pairs"].values())
    print(
        f"wrote {args.output} in {manifest['seconds']} s: {total} training pairs from"
        f" {len(manifest['pairs'])} sources, {len(manifest['UVRB'])} benchmark sets,"
        f" {manifest['vocabulary']} tokens"
    )


if __name__ == "__main__":
    run_cli(main)
