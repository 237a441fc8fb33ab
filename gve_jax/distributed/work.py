"""Division of a job's work among its hosts, which share a folder."""

import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import jax

from gve_jax.distributed import hosts
from gve_jax.errors import UserError
from gve_jax.storage.files import atomic_write

SHARED_S = 90  # limit for a file of another host to appear in a network folder

T = TypeVar("T")


def shard_for_host(
    items: Sequence[T], host: int | None = None, count: int | None = None
) -> Sequence[T]:
    """Returns the items of one of `count` hosts, by default of this one: every count-th item,
    because long videos often follow each other."""
    host = jax.process_index() if host is None else host
    return items[host :: count or jax.process_count()]


def wait_until(condition: Callable[[], bool]) -> bool:
    """Waits up to `SHARED_S`, but not with a single host; returns whether `condition` is true."""
    for _ in range(SHARED_S if jax.process_count() > 1 else 0):
        if condition():
            return True
        time.sleep(1)
    return condition()


def check_shared(folder: Path) -> None:
    """Raises UserError on all hosts unless `folder` is the same folder on all of them."""
    if jax.process_count() == 1:
        return
    path = folder / ".shared"
    token = hosts.gather(secrets.token_hex(8))[0]
    if jax.process_index() == 0:
        atomic_write(path, lambda file: file.write(token.encode()))
    hosts.barrier()
    visible = hosts.gather(wait_until(lambda: path.is_file() and path.read_text() == token))
    if jax.process_index() == 0:
        path.unlink(missing_ok=True)
    for host, is_visible in enumerate(visible):
        if not is_visible:
            raise UserError(f"{folder} is not the same folder on hosts 0 and {host}")
