"""A gateway that dies at a given point and is started again: `python -m tests.faults.dying_gateway PORT DIRECTORY`.

The file `order` in that directory says at which point the gateway kills itself by SIGKILL, and is renamed at that
moment, so that the next one lives. The listening socket outlives it, as behind a load balancer.
"""

import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

from tests.faults.dying_worker import When, wrap

POINTS: Mapping[str, tuple[str, When]] = {
    "announced, not recorded": ("worker.gateway.staging:Staging._write", "before"),
    "recorded, not answered": ("worker.gateway.staging:Staging.create", "after"),
    "bytes received, not written": ("worker.gateway.uploads:_Body.flush", "before"),
    "bytes written, not answered": ("worker.gateway.uploads:_Body.flush", "after"),
    "part signed, not answered": ("worker.gateway.uploads:_signed", "after"),
    "all bytes there, job not sent": ("worker.gateway.uploads:_finish", "before"),
    "job sent, not recorded": ("worker.gateway.staging:Staging.mark_sent", "before"),
    "job recorded, not answered": ("worker.gateway.staging:Staging.mark_sent", "after"),
}
"""Every point at which the gateway can be told to die in an upload: a call, and on which side of it."""


def _here(order: Path, point: str, when: When, call: Callable[..., Any]) -> Callable[..., Any]:
    def die() -> None:
        if order.exists() and order.read_text() == point:
            order.rename(order.with_suffix(".died"))
            os.kill(os.getpid(), signal.SIGKILL)

    @wraps(call)
    def called(*args: Any, **options: Any) -> Any:
        if when == "before":
            die()
        result = call(*args, **options)
        if when == "after":
            die()
        return result

    return called


def serve(listener: socket.socket) -> None:
    """Serve until killed."""
    from worker.embedded.parent_death import die_with_parent
    from worker.gateway.server import Address, make_server
    from worker.gateway.services import Services
    from worker.settings import load_settings

    die_with_parent()
    make_server(Services(load_settings()), Address()).run(sockets=[listener])


if __name__ == "__main__":
    from worker.artifacts import parts_staged_in_store

    parts_staged_in_store.PART = 1 << 20
    for name, (target, side) in POINTS.items():
        wrap(target, lambda call, name=name, side=side: _here(Path(sys.argv[2]) / "order", name, side, call))
    with socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=64) as shared:
        while True:
            child = os.fork()
            if child == 0:
                serve(shared)
                os._exit(0)
            os.waitpid(child, 0)
