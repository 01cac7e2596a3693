"""The commands `health worker` and `health beat`: exit statuses for the supervisors of containers and services."""

import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import redis
import typer
from celery import Celery

from worker.catalogue import Catalogue, CatalogueError
from worker.cli.output import AsJson, print_json, say
from worker.exit_status import Status
from worker.limits.check_pauses import paused_queues
from worker.limits.shared_redis import redis_of_results
from worker.report.broker_checks import beat_check
from worker.settings import Settings, load_settings
from worker.settings.model import NoBroker
from zot_artifact_client.broker_urls import ServerUrl, parse_url, redis_client
from zot_artifact_client.connection import BROKER_ERRORS, unavailable

_ANSWERS_WITHIN = 5.0
_TRIES = 2
_STUCK_AFTER = 10.0
"""Seconds for which a worker with a free process may leave the next message of its queues untouched."""
_POLL = 1.0

Ready = Annotated[bool, typer.Option("--ready", help="Fail also while the broker or the catalogue does not answer.")]
app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Report by the exit status whether a worker or beat works.\n\n"
    "It is meant for health checks of containers and services.\n"
    "Without --ready a broker that does not answer is no fault: a restart of the worker would not help.\n\n"
    "Examples:\n\n"
    "    zot-artifacts health worker --node worker@$HOSTNAME\n"
    "    zot-artifacts health beat",
)


@dataclass(frozen=True, slots=True)
class Health:
    """Whether a program works. `known`: it could be asked at all."""

    good: bool
    detail: str
    known: bool = True


@app.command()
def worker(
    node: Annotated[
        str | None, typer.Option(metavar="NAME", help="The worker's node name; celery@HOST of this host by default.")
    ] = None,
    ready: Ready = False,
    as_json: AsJson = False,
) -> None:
    """Report whether a worker takes jobs: it answers, and no message waits while a process is free.

    An idle worker is good, and so is one whose processes are all busy.
    In the containers a worker is `celery@HOST`; with `up` and systemd there are `worker@HOST` and `sweeper@HOST`.

    Examples:

        zot-artifacts health worker
        zot-artifacts health worker --node sweeper@$HOSTNAME --ready
    """
    settings = load_settings()
    found = _worker(settings, node or f"celery@{socket.gethostname()}")
    if ready and found.good:
        found = _with_catalogue(settings, found)
    _end("worker", found, ready=ready, as_json=as_json)


@app.command()
def beat(ready: Ready = False, as_json: AsJson = False) -> None:
    """Report whether beat ticks: without it no sweep is started.

    Examples:

        zot-artifacts health beat
    """
    check = beat_check(load_settings())
    _end(
        "beat", Health(check.outcome == "good", check.detail, check.outcome != "unknown"), ready=ready, as_json=as_json
    )


def _end(name: str, found: Health, *, ready: bool, as_json: bool) -> None:
    if as_json:
        print_json({"program": name, "good": found.good, "known": found.known, "detail": found.detail})
    else:
        say(f"{name}: {found.detail}")
    if not found.known:
        raise typer.Exit(Status.UNKNOWN if ready else Status.GOOD)
    raise typer.Exit(Status.GOOD if found.good else Status.BAD)


def _worker(settings: Settings, node: str) -> Health:
    try:
        server = parse_url(settings.broker_url, "broker")
        app = Celery("zot-artifacts-health", set_as_current=False)
        app.conf.update(server.broker_settings)
        try:
            return _asked(app, server, settings, node)
        finally:
            app.close()
    except NoBroker as error:
        return Health(good=False, detail=str(error), known=False)
    except BROKER_ERRORS as error:
        return Health(good=False, detail=str(unavailable(error, "broker", settings.broker_url)), known=False)


def _asked(app: Celery, server: ServerUrl, settings: Settings, node: str) -> Health:
    app.connection_for_write().ensure_connection(max_retries=1, timeout=_ANSWERS_WITHIN).release()
    state = next(filter(None, (_state(app, node) for _ in range(_TRIES))), None)
    if state is None:
        return Health(good=False, detail=f"{node} does not answer; --node names another worker, such as worker@HOST")
    client = redis_of_results(settings.results_url)
    paused = client is not None and paused_queues(client)
    if not state.queues and not paused:
        return Health(good=False, detail=f"{node} answers, and consumes from no queue")
    if not server.is_redis or state.free < 1:
        return Health(good=True, detail=f"{node} answers, free processes: {state.free} of {state.processes}")
    return _takes(app, server, node, state)


def _takes(app: Celery, server: ServerUrl, node: str, state: "State") -> Health:
    """Watch the next message of each queue of a worker with a free process, until one is taken or time is up."""
    with redis_client(server.text, socket_timeout=_ANSWERS_WITHIN) as client:
        began, first = time.monotonic(), _heads(client, state)
        while waiting := {name: head for name, head in first.items() if _heads(client, state).get(name) == head}:
            if len(waiting) < len(first):
                break
            if time.monotonic() - began > _STUCK_AFTER:
                now = _state(app, node)
                if now is None or now.free > 0:
                    named = ", ".join(sorted(waiting))
                    return Health(
                        good=False, detail=f"{node} answers and has a free process, but takes nothing from {named}"
                    )
                break
            time.sleep(_POLL)
    return Health(good=True, detail=f"{node} answers, free processes: {state.free} of {state.processes}")


@dataclass(frozen=True, slots=True)
class State:
    """What a worker answers: the queues that it consumes from, its processes, and how many of them are free."""

    queues: tuple[str, ...]
    processes: int
    free: int


def _state(app: Celery, node: str) -> State | None:
    inspect = app.control.inspect(destination=[node], timeout=_ANSWERS_WITHIN, limit=1)
    found: list[Any] = []
    for ask in (inspect.active_queues, inspect.stats, inspect.active):
        answer: Mapping[str, Any] = ask() or {}
        if node not in answer:
            return None
        found.append(answer[node])
    queues, stats, active = found
    processes = int(stats["pool"]["max-concurrency"])
    return State(tuple(queue["name"] for queue in queues or ()), processes, processes - len(active))


def _heads(client: "redis.Redis", state: State) -> dict[str, bytes]:
    found: dict[str, Any] = {name: client.lindex(name, -1) for name in state.queues}
    return {name: head for name, head in found.items() if head is not None}


def _with_catalogue(settings: Settings, found: Health) -> Health:
    try:
        Catalogue(settings.catalogue_url, create=False).close()
    except CatalogueError as error:
        return Health(good=False, detail=f"{found.detail}; {error}")
    return found
