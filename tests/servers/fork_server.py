"""Run Python modules in forks of one process that has imported their libraries.

The tests start 130 workers and 200 commands, and a start of Python spends most of its processor time on imports. A fork
has its own session, environment, working directory and streams, and ends as any process does. What it has in common
with its siblings is the seed of Python's hashes.

Run as `python -m tests.servers.fork_server DESCRIPTOR…`, each the descriptor of a connected Unix socket: one for each
process that runs tests. When the first of them asks for a fork, this process imports the libraries and forks itself, so
that each has a fork server of its own, which ends with it.
"""

import atexit
import gc
import importlib
import json
import os
import random
import runpy
import select
import signal
import socket
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import NoReturn

from worker import shutdown_flag
from worker.embedded.parent_death import die_with_parent

IN_SHARED_MEMORY = (shutdown_flag,)
"""The modules whose memory a process shares with those that it forks; each fork here needs one of its own."""
REQUEST_SIZE = 1 << 16
_FIRST_OTHER, _MOST = 3, 1 << 20


def serve(connection: socket.socket) -> None:
    """Start a fork for each request, and report its process id and how it ended; return in the forks alone.

    A request has four descriptors: the streams, and a pipe for the process id and, at the end, the wait status.
    """
    started = dict[int, tuple[int, int]]()  # the process id and the pipe for the report, by the process's descriptor
    while True:
        ready, _, _ = select.select([connection, *started], [], [])
        for ended in started.keys() & set(ready):
            process, report = started.pop(ended)
            _, status = os.waitpid(process, 0)
            with suppress(BrokenPipeError):  # the test that asked for it has ended
                os.write(report, status.to_bytes(4))
            os.close(report)
            os.close(ended)
        if connection not in ready:
            continue
        request, descriptors, _, _ = socket.recv_fds(connection, REQUEST_SIZE, 4)
        if not request:
            os._exit(0)  # the tests have ended
        process = os.fork()
        if not process:
            die_with_parent()
            connection.detach()
            _become(json.loads(request), *descriptors)
            return
        *streams, report = descriptors
        for stream in streams:
            os.close(stream)
        started[os.pidfd_open(process)] = (process, report)


def _become(request: dict, stdin: int, stdout: int, stderr: int, report: int) -> None:
    os.setsid()
    os.write(report, os.getpid().to_bytes(4))
    for number, stream in enumerate((stdin, stdout, stderr)):
        os.dup2(stream, number)
    enter(request["arguments"], request["environment"], request["directory"])


def enter(arguments: Sequence[str], environment: Mapping[str, str], directory: str, kept: Sequence[int] = ()) -> None:
    """Give this fork what Python reads when it starts, and close all files but the streams and the kept ones."""
    first = _FIRST_OTHER
    for descriptor in (*sorted(kept), _MOST):
        os.closerange(first, descriptor)
        first = descriptor + 1
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None
    sys.path[0] = directory
    sys.argv[:] = arguments
    coded = environment.get("PYTHONIOENCODING")
    # Python made its streams for the files of the fork server, perhaps with another encoding or buffering.
    sys.stdin = sys.__stdin__ = os.fdopen(0, encoding=coded, closefd=False)
    sys.stdout = sys.__stdout__ = os.fdopen(1, "w", encoding=coded, closefd=False)
    sys.stderr = sys.__stderr__ = os.fdopen(2, "w", 1, encoding=coded, errors="backslashreplace", closefd=False)
    separate_from_siblings()


def separate_from_siblings() -> None:
    """Give this fork random numbers and shared memory of its own, not those of the other forks of its parent."""
    random.seed()
    for module in IN_SHARED_MEMORY:
        importlib.reload(module)


def run(module: str) -> NoReturn:
    """Run a module, and end with its status as Python does."""
    run_to_end(lambda: runpy.run_module(module, run_name="__main__", alter_sys=True))


def run_to_end(program: Callable[[], object]) -> NoReturn:
    """Run a program in a fork, and end with its status as Python does, but free no memory.

    That would touch every imported object, and the kernel would copy all of them for the fork.
    """
    status = 1
    try:
        program()
        status = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:  # noqa: BLE001 - of whatever kind, it ends the program
        traceback.print_exc()
    finally:
        threading._shutdown()
        atexit._run_exitfuncs()
        with suppress(OSError):  # nothing reads it any more
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def await_first_request(connections: Sequence[socket.socket]) -> None:
    """Return when one of the processes asks for a fork; end when all of them have ended."""
    waiting = {*connections}
    while waiting:
        ready, _, _ = select.select(waiting, [], [])
        if any(connection.recv(1, socket.MSG_PEEK) for connection in ready):
            return
        waiting.difference_update(ready)
    os._exit(0)


def connection_of_one(connections: Sequence[socket.socket]) -> socket.socket:
    """Fork this process, so that there is one for each connection, and return the connection of each."""
    first, *others = connections
    for connection in others:
        if not os.fork():
            mine = connection
            break
    else:
        mine = first
    for connection in connections:
        if connection is not mine:
            connection.close()
    return mine


if __name__ == "__main__":
    _connections = [socket.socket(fileno=int(descriptor)) for descriptor in sys.argv[1:]]
    await_first_request(_connections)
    from tests.servers.fork_imports import prepare_forks  # a run whose tests start no process needs none of it

    prepare_forks()
    gc.freeze()  # a fork would copy what a collection touches
    serve(connection_of_one(_connections))
    run(sys.argv[0])
