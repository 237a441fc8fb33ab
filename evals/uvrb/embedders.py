"""Which embedder a command scores: a model of this library, one behind a server, one of MTEB, or
stored vectors."""

import argparse
import functools
from collections.abc import Callable

import jax

from evals.servers.options import API_NAMES, INSTRUCTIONS, MEDIA, Options
from gve_jax.distributed.cores import usable_cores
from gve_jax.distributed.sharding import local_mesh
from gve_jax.errors import UserError
from gve_jax.media import limits
from gve_jax.media.sandbox import Sandbox
from gve_jax.retrieval.embedding import Encoder
from gve_jax.storage.filesystem import local_path

_ONLY_SERVER = (
    "api",
    "send",
    "send_frames",
    "instruction_as",
    "batch",
    "concurrency",
    "per_minute",
    "dimensions",
    "price",
    "seconds",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    text = "directory of the model; with --server, its name there; with --embeddings, any name"
    add("--model", help=text)
    add("--embeddings", type=local_path, help="directory of vectors to score instead of a model")
    add("--normalize", action="store_true", help="scale the vectors of --embeddings to unit length")
    text = "score an MTEB encoder, such as Alibaba-NLP/gme-Qwen2-VL-2B-Instruct (extra mteb)"
    add("--mteb", metavar="NAME", help=text)
    group = parser.add_argument_group(
        "server", "scores an embedder behind a server; API keys are in the environment"
    )
    add = group.add_argument
    add("--server", metavar="URL", help="address of the server, such as http://127.0.0.1:8000")
    text = "form of the requests; openai is vLLM's, with messages (default: openai)"
    add("--api", choices=API_NAMES, help=text)
    text = "how videos are sent: the file, or frames as images (default: video; cohere: frames)"
    add("--send", choices=MEDIA, help=text)
    text = f"frames of a video with --send frames (default: {Options.frames})"
    add("--send-frames", type=int, metavar="N", help=text)
    text = "how instructions are sent (default: system; cohere and voyage: none, they get a type)"
    add("--instruction-as", choices=INSTRUCTIONS, help=text)
    text = f"texts in a request; media are sent one by one (default: {Options.batch})"
    add("--batch", type=int, metavar="N", help=text)
    add("--concurrency", type=int, metavar="N", help="requests at once (default: 8)")
    add("--per-minute", type=float, metavar="N", help="requests a minute at most (default: any)")
    add("--seconds", type=float, metavar="N", help="seconds to wait for an answer (default: 300)")
    add("--dimensions", type=int, metavar="N", help="ask for shorter vectors (default: all)")
    add("--price", type=float, metavar="USD", help="of a million tokens, to print the cost")


def check_arguments(args: argparse.Namespace, error: Callable[[str], None]) -> None:
    """Checks the options above; `error` raises. Sets `args.model` where another option names it."""
    given = [f"--{n}" for n in ("server", "mteb", "embeddings") if getattr(args, n)]
    if len(given) > 1:
        error(f"{given[0]} and {given[1]} exclude each other")
    if args.server:
        _check_server(args, error)
    elif wrong := [name for name in _ONLY_SERVER if getattr(args, name) is not None]:
        error(f"--{wrong[0].replace('_', '-')} needs --server")
    if given and args.baseline:
        error(f"--baseline needs a model, not {given[0]}")
    if args.embeddings:
        for name in ("control", "frames", "tokens", "reencode", "check"):
            if getattr(args, name):
                error(f"--{name} needs a model, not --embeddings")
        args.model = args.model or args.embeddings.resolve().name
    elif args.normalize:
        error("--normalize is for --embeddings")
    if args.mteb:
        if args.model:
            error("--mteb names the model: leave out --model")
        args.model = args.mteb
    if not args.model:
        error("--model, --server, --mteb or --embeddings is required")


def opener(args: argparse.Namespace) -> Callable[[str], Encoder]:
    """Opens an encoder by its name."""
    if args.server or args.mteb:
        if jax.process_count() > 1:
            raise UserError("--server and --mteb run on one host")
        return functools.partial(_open_server if args.server else _open_mteb, args=args)
    return functools.partial(_load_gve, **limits.decoding_options(args))


def _check_server(args: argparse.Namespace, error: Callable[[str], None]) -> None:
    from evals.servers.apis import APIS  # imported late: most commands need no server

    if not args.model:
        error("--server needs --model, the model's name on the server")
    args.api = args.api or "openai"
    api = APIS[args.api]
    args.send = args.send or ("video" if api.takes_video else "frames")
    args.instruction_as = args.instruction_as or ("system" if api.takes_system else "none")
    if args.send == "video" and not api.takes_video:
        error(f"--api {args.api} takes no videos: --send frames")
    if args.instruction_as == "system" and not api.takes_system:
        error(f"--api {args.api} has no system message: --instruction-as text or none")
    if args.control and args.send == "video":
        error("--control needs --send frames: only frames can be sent in another order")
    if args.send_frames is not None and args.send == "video":
        error("--send-frames needs --send frames")
    for name in ("send_frames", "batch", "concurrency", "per_minute", "seconds", "dimensions"):
        if (value := getattr(args, name)) is not None and not value > 0:
            error(f"--{name.replace('_', '-')} {value} must be above 0")
    if args.price is not None and not args.price >= 0:
        error(f"--price {args.price} must be at least 0")


def _open_server(name: str, args: argparse.Namespace) -> Encoder:
    from evals.servers.apis import APIS
    from evals.servers.client import Client
    from evals.servers.encoder import ServerEncoder

    options = Options(
        api=args.api,
        media=args.send,
        frames=args.send_frames or Options.frames,
        instruction_as=args.instruction_as,
        batch=args.batch or Options.batch,
        concurrency=args.concurrency or Options.concurrency,
        dimensions=args.dimensions,
    )
    client = Client(
        args.server,
        APIS[args.api],
        seconds=args.seconds or 300.0,
        connections=options.concurrency,
        per_minute=args.per_minute,
        record=args.output / "server.json",
    )
    return ServerEncoder(name, client, options, _sandbox(args))


def _open_mteb(name: str, args: argparse.Namespace) -> Encoder:
    try:
        from evals.mteb.wrapped import open_mteb
    except ImportError as error:
        raise UserError(f"--mteb needs MTEB ({error}): pip install -e '.[mteb]'") from error
    return open_mteb(name, _sandbox(args))


def _sandbox(args: argparse.Namespace) -> Sandbox:
    return Sandbox(limits.from_arguments(args), args.workers or usable_cores())


def _load_gve(name: str, **options) -> Encoder:
    from gve_jax import GVE

    return GVE.from_pretrained(name, mesh=local_mesh(), **options)
