"""`python -m gve_jax.serve` with a record of what its sockets do:

python -m tests.serving.watched FILE [options of gve_jax.serve]
"""

import runpy
import sys

EVENTS = ("socket.bind", "socket.connect", "socket.sendto", "socket.sendmsg")


def watch(path: str) -> None:
    """Appends a line to a file for each event: its name and the address."""
    file = open(path, "a", buffering=1)

    def record(event: str, arguments: tuple) -> None:
        if event in EVENTS:
            print(event, arguments[-1], file=file)

    sys.addaudithook(record)


if __name__ == "__main__":
    watch(sys.argv.pop(1))
    runpy.run_module("gve_jax.serve", run_name="__main__", alter_sys=True)
