"""Measures search on long generated films:

    python -m evals.search films --output films --films 6 --minutes 5
    python -m evals.search shots --films films
    python -m evals.search recall --films films --model M --output scores
    python -m evals.search stores --store lancedb=vectors --output scratch --moments 100000

`films` writes films of scenes, joined by cuts and fades, and queries for some of the scenes.
`shots` scores shot cuts, beside PySceneDetect's AdaptiveDetector where `scenedetect` is installed.
`recall` scores how well moments are found, by policy of windows, beside one frame a second.
`stores` times an index of random vectors in a vector database (docs/stores.md).
"""

import json
from collections.abc import Sequence

from data.shapes.films import write_films
from evals.search import recall, shots, stores
from gve_jax.cli import Parser, load_encoder, run_cli
from gve_jax.errors import UserError
from gve_jax.hardware.malloc import retain_freed_memory
from gve_jax.hardware.programs import keep_compiled_programs
from gve_jax.media.limits import Limits
from gve_jax.storage.filesystem import local_path


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser("python -m evals.search", __doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    films = commands.add_parser("films", help="write films, queries and cuts")
    films.add_argument("--output", required=True, type=local_path, help="folder to write")
    films.add_argument("--films", type=int, default=6, help="number of films (default: 6)")
    films.add_argument("--minutes", type=float, default=5.0, help="of a film (default: 5)")
    films.add_argument(
        "--scene-seconds", type=int, default=4, help="of a complete scene (default: 4)"
    )
    films.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    scored = {
        "shots": commands.add_parser("shots", help="score shot cuts"),
        "recall": commands.add_parser("recall", help="score moments by policy of windows"),
    }
    for command in scored.values():
        command.add_argument("--films", required=True, type=local_path, help="output of `films`")
    scored["recall"].add_argument("--model", required=True, help="directory or Hub id of the model")
    scored["recall"].add_argument(
        "--output", required=True, type=local_path, help="folder of the indexes and scores.jsonl"
    )
    timed = commands.add_parser("stores", help="time a vector database")
    timed.add_argument("--store", required=True, help="as for gve_jax.search; an empty table")
    timed.add_argument("--output", required=True, type=local_path, help="folder of the index")
    timed.add_argument("--moments", type=int, default=10_000, help="number (default: 10,000)")
    timed.add_argument("--dim", type=int, default=512, help="dimensions (default: 512)")
    args = parser.parse_args(argv)
    if args.command == "stores":
        if args.moments < stores.PER_FILE or args.dim < 1:
            raise UserError(f"--moments must be at least {stores.PER_FILE}, --dim at least 1")
        print(json.dumps(stores.time_store(args.output, args.moments, args.dim, args.store)))
        return
    if args.command == "films":
        if min(args.films, args.minutes, args.scene_seconds) <= 0:
            raise UserError("--films, --minutes and --scene-seconds must be above 0")
        write_films(args.output, args.seed, args.films, args.minutes, args.scene_seconds)
        print(f"{args.output}: {args.films} films of {args.minutes:g} minutes")
        return
    if args.command == "shots":
        rows = shots.score_cuts(args.films)
    else:
        args.output.mkdir(parents=True, exist_ok=True)
        rows = recall.score_policies(args.films, args.output, load_encoder(args.model, Limits()))
        shots.write(args.output / "scores.jsonl", rows)
    print(shots.table(rows))


if __name__ == "__main__":
    retain_freed_memory()
    keep_compiled_programs()
    run_cli(main)
