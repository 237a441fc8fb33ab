"""Serves vectors over HTTP, to clients of OpenAI, vLLM, Cohere, Voyage and TEI:

    python -m gve_jax.serve --model M
    GVE_API_KEY=... python -m gve_jax.serve --model M --host 0.0.0.0 --media-root clips
    python -m gve_jax.serve --model M --index idx

    POST /v1/embeddings            OpenAI; also vLLM's `messages` with image_url and video_url
    POST /v2/embed                 Cohere
    POST /v1/multimodalembeddings  Voyage
    POST /embed                    text-embeddings-inference; also GET /info, /health, /metrics
    GET  /v1/models
    POST /search                   with --index: the moments of an index of gve_jax.search

Media arrive as data: URIs; with --media-root also as file: URIs below that folder, and with
--allow-urls from the public internet. They are decoded in sandboxed processes with the limits
below. docs/serving.md has a snippet for each client. SIGTERM ends the server once it has answered
what it accepted.
"""

import argparse
import dataclasses
import ipaddress
import os
import socket
import warnings
from collections.abc import Sequence

import jax

from gve_jax.cli import Parser, load_encoder, run_cli
from gve_jax.errors import UserError, install_command
from gve_jax.hardware.malloc import return_freed_memory
from gve_jax.hardware.programs import keep_compiled_programs
from gve_jax.index import Index
from gve_jax.media import limits
from gve_jax.media.sandbox import describe_protection
from gve_jax.storage.filesystem import local_path

KEY = "GVE_API_KEY"  # environment variable
_MIB = 1 << 20


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    args = _parse(argv)
    try:
        from gve_jax.serving.server import Server
        from gve_jax.serving.service import Service, Settings
        from gve_jax.serving.sockets import bind
    except ImportError as error:
        raise UserError(
            f"gve_jax.serve needs {error.name}, which is not installed: {install_command('serve')}"
        ) from error
    key = args.api_key or os.environ.get(KEY) or None
    if key is None and not _is_loopback(args.host):
        raise UserError(
            f"--host {args.host} can be reached from other machines and needs an API key: set "
            f"{KEY}, or give --api-key"
        )
    if args.media_root is not None and not args.media_root.is_dir():
        raise UserError(f"--media-root {args.media_root}: no such folder")
    if args.index is not None:
        Index.open(args.index)  # a mistake is reported before the model is loaded
    listener = bind(args.host, args.port)
    if jax.process_count() > 1:
        raise UserError("gve_jax.serve runs on one host: start one server on each")
    model = load_encoder(args.model, **limits.decoding_options(args))
    for role in ("query", "document"):
        if instruction := getattr(args, f"{role}_instruction"):
            model.prompts[role] = instruction
    index = None
    if args.index is not None:
        index = Index.open(args.index, model, sandbox=model.decoder)
        _ = index.model  # compares the fingerprints
    names = {field.name for field in dataclasses.fields(Settings)} & vars(args).keys()
    settings = Settings(
        **{name: getattr(args, name) for name in names - {"api_key", "max_body", "url_bytes"}},
        names=tuple(args.served_name or [args.model]),
        api_key=key,
        merge=args.batching == "merged",
        max_body=args.max_body * _MIB,
        url_bytes=args.url_bytes * _MIB,
    )
    # Parts are always embedded in the order of the profile; a client cannot see a warning of it.
    warnings.filterwarnings("ignore", message="the content of a chat message is embedded in")
    model.encode("The model is ready.")  # loads what loads late, and fails before it is announced
    protection = describe_protection(model.decoder.protection())
    service = Service(model, settings, index=index)
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    started = (
        f"serving {settings.names[0]} ({model.embedding_dim} dimensions) at {url}; fingerprint "
        f"{service.fingerprint}; sandbox: {protection}"
    )
    if index is not None:
        started += f"; index {args.index}: {len(index):,} moments"
    Server(service, lambda: print(started, flush=True)).run(sockets=[listener])
    print("stopped", flush=True)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("python -m gve_jax.serve", __doc__)
    parser.add_argument(
        "--model",
        required=True,
        help="directory of the model, or its Hub id, ORG/NAME or ORG/NAME@REVISION",
    )
    parser.add_argument(
        "--served-name",
        action="append",
        help="name by which clients ask for the model; may be repeated (default: --model)",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="0: a free one (default: 8000)")
    parser.add_argument(
        "--api-key",
        help=f"key that clients must send; better in the environment, as {KEY}: other users of "
        "this machine can read command lines (default: none, on the loopback only)",
    )
    parser.add_argument(
        "--query-instruction", help="instruction of inputs with input_type query (default: none)"
    )
    parser.add_argument(
        "--document-instruction",
        help="instruction of inputs with input_type document (default: none)",
    )
    parser.add_argument(
        "--token-ids",
        action="store_true",
        help="accept token ids in place of texts, from clients that use this model's tokenizer",
    )
    parser.add_argument(
        "--index",
        type=local_path,
        help="index of gve_jax.search, made with the same model, for /search (default: none)",
    )
    group = parser.add_argument_group("media")
    group.add_argument(
        "--media-root", type=local_path, help="folder of file: URIs (default: none are accepted)"
    )
    group.add_argument(
        "--allow-urls",
        action="store_true",
        help="download http: and https: URLs of public addresses (default: none are accepted)",
    )
    group.add_argument("--url-bytes", type=int, default=64, help="MiB of a download (default: 64)")
    group.add_argument(
        "--url-seconds", type=float, default=30.0, help="seconds of a download (default: 30)"
    )
    group = parser.add_argument_group("batches and limits of requests")
    group.add_argument(
        "--batching",
        choices=("request", "merged"),
        default="request",
        help="request: the inputs of a request are a batch, vectors equal GVE.encode to the byte; "
        "merged: requests that wait together are one batch, which is faster for many small ones "
        "(default: request)",
    )
    group.add_argument("--batch-size", type=int, default=32, help="batch size (default: 32)")
    group.add_argument(
        "--max-requests",
        type=int,
        default=64,
        help="requests that are answered or wait at once; others get 429 (default: 64)",
    )
    group.add_argument("--max-body", type=int, default=64, help="MiB of a body (default: 64)")
    group.add_argument(
        "--max-inputs", type=int, default=2048, help="inputs of a request (default: 2048)"
    )
    group.add_argument("--max-media", type=int, default=64, help="media of a request (default: 64)")
    group.add_argument(
        "--deadline",
        type=float,
        default=120.0,
        help="seconds after which a request is answered with 504 (default: 120)",
    )
    group.add_argument(
        "--body-seconds",
        type=float,
        default=60.0,
        help="seconds in which a body must arrive (default: 60)",
    )
    limits.add_arguments(parser)
    args = parser.parse_args(argv)
    for name in (
        "batch_size max_requests max_body max_inputs max_media deadline body_seconds url_bytes "
        "url_seconds"
    ).split():
        if not getattr(args, name) > 0:
            parser.error(f"--{name.replace('_', '-')} must be above 0")
    if not 0 <= args.port < 65536:
        parser.error("--port must be in 0..65535")
    return args


def _is_loopback(host: str) -> bool:
    """Whether all addresses of a host are of this machine only."""
    try:
        found = socket.getaddrinfo(host, None)
    except OSError as error:
        raise UserError(f"--host {host}: {error.strerror}") from error
    return all(ipaddress.ip_address(entry[4][0].split("%")[0]).is_loopback for entry in found)


if __name__ == "__main__":
    return_freed_memory()
    keep_compiled_programs()
    run_cli(main)
