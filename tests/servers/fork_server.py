"""Run Python modules in forks of one process that has imported their libraries.

A start of a worker takes two seconds of processor time, and most of them are imports; the tests start 130 workers and
200 commands. A fork has its own session, environment, working directory and streams, and ends as any process does.
What it has in common with its siblings is the seed of Python's hashes.

Run as `python -m tests.servers.fork_server DESCRIPTOR`, the descriptor of a connected Unix socket.
"""

# ruff: noqa: F401 - the forks use what is imported here; nothing among it reads a setting when it is imported

import atexit
import gc
import importlib
import json
import os
import pkgutil
import random
import runpy
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NoReturn

import alembic.runtime.migration
import boto3.session
import botocore.handlers
import botocore.httpsession
import botocore.signers
import celery.__main__
import celery.app.task
import celery.apps.beat
import celery.apps.worker
import celery.backends.redis
import celery.bin.celery
import celery.concurrency.prefork
import fastapi
import kombu.transport.redis
import psycopg
import pydantic_settings
import redis
import rich.progress
import rich.table
import sqlalchemy.dialects.sqlite
import uvicorn
import yaml

import tasks
import worker.artifacts.sources
import worker.beat_scheduler
import worker.catalogue
import worker.cli
import worker.context
import worker.gateway.server
import worker.intake.message_filter
import worker.jobs.queue_pauses_and_revoke
import worker.metrics.totals_sender
import worker.schedule
import worker.settings
import worker.shutdown_flag
import worker.storage.azure.driver
import worker.storage.filesystem.driver
import worker.storage.gcs.driver
import worker.storage.s3.driver
import zot_artifact_client
from tests.servers.new_tables import make_new_tables_at_once
from worker.embedded.parent_death import die_with_parent
from worker.storage.config import S3Config
from worker.storage.s3.providers import make_client

IN_SHARED_MEMORY = (worker.shutdown_flag,)
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
    sys.path[0] = directory
    sys.argv[:] = arguments
    coded = environment.get("PYTHONIOENCODING")
    # Python made its streams for the files of the fork server, perhaps with another encoding or buffering.
    sys.stdin = sys.__stdin__ = os.fdopen(0, encoding=coded, closefd=False)
    sys.stdout = sys.__stdout__ = os.fdopen(1, "w", encoding=coded, closefd=False)
    sys.stderr = sys.__stderr__ = os.fdopen(2, "w", 1, encoding=coded, errors="backslashreplace", closefd=False)
    random.seed()
    for module in IN_SHARED_MEMORY:
        importlib.reload(module)


def run(module: str) -> NoReturn:
    """Run a module, and end with its status as Python does, but free no memory.

    That would touch every imported object, and the kernel would copy all of them for the fork.
    """
    status = 1
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
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


def load_description_of_s3() -> None:
    """Let boto3 load its description of the S3 API, which all forks then share."""
    keys = {"access_key_id": "none", "secret_access_key": "none"}
    config = S3Config.model_validate({"bucket": "none", "endpoint": "http://127.0.0.1", **keys})
    make_client("none", config).close()


if __name__ == "__main__":
    for found in pkgutil.walk_packages(tasks.__path__, "tasks."):
        importlib.import_module(found.name)
    load_description_of_s3()
    make_new_tables_at_once()
    gc.freeze()  # a fork would copy what a collection touches
    serve(socket.socket(fileno=int(sys.argv[1])))
    run(sys.argv[0])
