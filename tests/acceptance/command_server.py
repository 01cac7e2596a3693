"""Run commands of the command line in forks of one process that has imported their libraries.

A start of Python with these imports takes a second of processor time, and the acceptance tests run 200 commands.
A fork has its own environment, working directory and streams, and ends as any process does.

Run as `python -m tests.acceptance.command_server DESCRIPTOR`, the descriptor of a connected Unix socket.
"""

import gc
import importlib
import json
import os
import random
import socket
import sys

from worker.cli import main

LIBRARIES = (
    *("alembic.runtime.migration", "celery.app.task", "celery.backends.redis", "kombu.transport.redis", "psycopg"),
    *("pydantic_settings", "redis", "rich.progress", "rich.table", "sqlalchemy.dialects.sqlite", "yaml"),
    *("worker.artifacts.sources", "worker.catalogue", "worker.settings", "zot_artifact_client"),
)
"""What commands import; nothing among it reads a setting when it is imported."""
REQUEST_SIZE = 1 << 16


def serve(connection: socket.socket) -> None:
    """Start a fork for each request and send its process id and wait status back; return in the forks alone."""
    while True:
        request, streams, _, _ = socket.recv_fds(connection, REQUEST_SIZE, 3)
        if not request:
            os._exit(0)  # the tests have ended
        process = os.fork()
        if not process:
            connection.close()
            _become(json.loads(request), streams)
            return
        for stream in streams:
            os.close(stream)
        connection.send(process.to_bytes(4))
        connection.send(os.waitpid(process, 0)[1].to_bytes(4))


def _become(request: dict, streams: list[int]) -> None:
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv[1:] = request["arguments"]
    random.seed()


if __name__ == "__main__":
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.freeze()  # a fork would copy what a collection touches
    serve(socket.socket(fileno=int(sys.argv[1])))
    main()
