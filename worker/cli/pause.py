"""The commands that keep work from a store, a queue or a batch of jobs for a while: pause, resume, pauses."""

from datetime import datetime
from typing import Annotated, Any

import redis
import typer
from celery import Celery

from worker import clock
from worker.catalogue import Pause, Scope
from worker.cli.arguments import opened, store_names
from worker.cli.errors import Failure, Status
from worker.cli.output import AsJson, moment, note, out, print_json, table
from worker.context import Context
from worker.limits.pauses import mirror_queues
from worker.limits.shared_redis import result_backend
from worker.settings.model import NoBroker
from zot_artifact_client.contract import JobState, Queue

WhatArgument = Annotated[Scope, typer.Argument(metavar="store|queue|job", help="What it is.")]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The store's or queue's name, or the job's id.")]


def pause(
    what: WhatArgument,
    name: NameArgument,
    reason: Annotated[str | None, typer.Option(metavar="TEXT", help="Why; whoever waits is told.")] = None,
    as_json: AsJson = False,
) -> None:
    """Let jobs wait that need a store, wait in a queue, or belong to a batch. Those at work go on to their end."""
    with opened() as context:
        _check(context, what, name)
        begun = context.catalogue.pauses.begin(what, name, reason=(reason or "")[:500] or None, now=clock.now())
        if what is Scope.QUEUE:
            _tell_workers(context)
    if as_json:
        print_json(_document(begun))
    else:
        out().print(f"{what} {name} is paused; `zot-artifacts resume {what} {name}` ends it", markup=False)


def resume(what: WhatArgument, name: NameArgument, as_json: AsJson = False) -> None:
    """End a pause; what has waited for it goes on within a minute or so."""
    with opened() as context:
        ended = context.catalogue.pauses.end(what, name)
        if what is Scope.QUEUE:
            _tell_workers(context)
    if as_json:
        print_json({"scope": what, "name": name, "was_paused": ended})
    else:
        out().print(f"{what} {name} {'goes on' if ended else 'was not paused'}", markup=False)


def pauses(as_json: AsJson = False) -> None:
    """List what is paused, since when and why."""
    with opened() as context:
        found = context.catalogue.pauses.all()
    if as_json:
        print_json({"pauses": [_document(each) for each in found]})
    elif found:
        out().print(table(("paused", "name", "since", "reason"), [(p.scope, p.name, p.since, p.reason) for p in found]))


def told(since: datetime, reason: str | None) -> str:
    """Return in a few words since when something is paused, and why."""
    return f"since {moment(since)}" + (f": {reason}" if reason else "")


def _document(found: Pause) -> dict[str, Any]:
    return {"scope": found.scope, "name": found.name, "since": found.since, "reason": found.reason}


def _check(context: Context, what: Scope, name: str) -> None:
    if what is Scope.STORE:
        store_names(context, [name])
    if what is Scope.QUEUE:
        _check_queue(name)
    if what is Scope.JOB:
        _check_job(context, name)


def _check_queue(name: str) -> None:
    names = [queue.value for queue in Queue if queue is not Queue.INTERACTIVE]
    if name == Queue.INTERACTIVE:
        message = "the queue interactive cannot be paused: all jobs are looked after through it; pause stores instead"
        raise Failure(message, Status.USAGE, type_="UsageError")
    if name not in names:
        raise Failure(f"there is no queue {name!r}; there are {', '.join(names)}", Status.USAGE, type_="UsageError")


def _check_job(context: Context, name: str) -> None:
    record = context.catalogue.ledger.get(name)
    if record is None:
        raise Failure(f"no worker has taken a job {name}: there is nothing to pause", type_="UnknownJob")
    if JobState(record.state).terminal:
        raise Failure(f"job {name} has ended: {record.state}", type_="JobEnded")


def _tell_workers(context: Context) -> None:
    """Let the workers know now; where that fails, `sweep.recover` does it."""
    try:
        app = Celery("zot-artifacts-pausing", backend=context.settings.results_url, set_as_current=False)
        client = result_backend(app)
        if client is None:
            note("the result backend is no Redis: the workers cannot be kept from queues, only from stores and jobs")
            return
        mirror_queues(client, context.catalogue.pauses.all())
    except (NoBroker, redis.RedisError) as error:
        note(f"the workers are told when the broker answers again: {error}")
