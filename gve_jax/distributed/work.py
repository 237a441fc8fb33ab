"""Work that the hosts of a job divide, in a folder that all of them see."""

import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import jax

from gve_jax.distributed import hosts
from gve_jax.errors import UserError
from gve_jax.storage.files import atomic_write

SHARED_S = 90  # how long files of another host may take to appear in a network's folder

T = TypeVar("T")


def shard_for_host(
    items: Sequence[T], host: int | None = None, count: int | None = None
) -> Sequence[T]:
    """What one of `count` hosts, by default this one, takes: every count-th, as long videos often
    follow each other."""
    host = jax.process_index() if host is None else host
    return items[host :: count or jax.process_count()]


def wait_until(condition: Callable[[], bool]) -> bool:
    """Whether `condition` is true, or comes to be: a network's folder may be late."""
    for _ in range(SHARED_S if jax.process_count() > 1 else 0):
        if condition():
            return True
        time.sleep(1)
    return condition()


def check_shared(folder: Path) -> None:
    """UserError on all hosts unless `folder` is the same one on all."""
    if jax.process_count() == 1:
        return
    mark = folder / ".shared"
    token = hosts.gather(secrets.token_hex(8))[0]
    if jax.process_index() == 0:
        atomic_write(mark, lambda file: file.write(token.encode()))
    hosts.barrier()
    seen = hosts.gather(wait_until(lambda: mark.is_file() and mark.read_text() == token))
    if jax.process_index() == 0:
        mark.unlink(missing_ok=True)
    for host, its in enumerate(seen):
        if not its:
            raise UserError(f"{folder} is not the same folder on hosts 0 and {host}")
