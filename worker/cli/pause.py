"""The commands `pause`, `resume` and `pauses`."""

from dataclasses import asdict
from datetime import datetime
from typing import Annotated

import typer

from worker import clock
from worker.catalogue import Scope
from worker.cli.errors import Failure, UsageError, suggestion
from worker.cli.output import AsJson, note, print_json, print_table, say
from worker.cli.session import Session, opened
from worker.readable import moment
from worker.settings.model import NoBroker
from zot_artifact_client.contract import JobState, Queue
from zot_artifact_client.errors import BrokerUnavailable

WhatArgument = Annotated[Scope, typer.Argument(metavar="store|queue|job", help="What NAME is: one of these words.")]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The name of the store or queue, or the job's id.")]


def pause(
    what: WhatArgument,
    name: NameArgument,
    reason: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Recorded with the pause, and shown with each waiting job.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Pause the jobs of a store, a queue or a batch.

    Waiting costs no attempts.
    Jobs that already run are not interrupted.

    Examples:

        zot-artifacts pause store dr --reason "new disks"
        zot-artifacts pause queue sweep
        zot-artifacts pause job 5f0a1d0e
    """
    with opened() as session:
        name = _checked(session, what, name)
        begun = session.catalogue.pauses.begin(what, name, reason=(reason or "")[:500] or None, now=clock.now())
        if what is Scope.QUEUE:
            _tell_workers(session)
    if as_json:
        print_json(asdict(begun))
    else:
        say(f"{what} {name} is paused; `zot-artifacts resume {what} {name}` ends it")


def resume(what: WhatArgument, name: NameArgument, as_json: AsJson = False) -> None:
    """End a pause.

    Jobs that waited for it run within about a minute.

    Example:

        zot-artifacts resume store dr
    """
    with opened() as session:
        if what is Scope.JOB:
            name = _full_id(session, name)
        ended = session.catalogue.pauses.end(what, name)
        if not ended:
            _check_known(session, what, name)
        if what is Scope.QUEUE:
            _tell_workers(session)
    if as_json:
        print_json({"scope": what, "name": name, "was_paused": ended})
    else:
        say(f"{what} {name} {'is resumed' if ended else 'was not paused'}")


def pauses(as_json: AsJson = False) -> None:
    """List the pauses, with their start and reason.

    Examples:

        zot-artifacts pauses
        zot-artifacts pauses --json
    """
    with opened() as session:
        found = session.catalogue.pauses.all()
    if as_json:
        print_json({"pauses": [asdict(each) for each in found]})
        return
    rows = [(each.scope.value, each.name, each.since, each.reason) for each in found]
    print_table(("paused", "name", "since", "reason"), rows, empty="nothing is paused", flexible=("name", "reason"))


def describe_pause(since: datetime, reason: str | None) -> str:
    """Return the start and the reason of a pause, as text."""
    return f"since {moment(since)}" + (f": {reason}" if reason else "")


def _checked(session: Session, what: Scope, name: str) -> str:
    """Return the checked name of the store or queue, or the full id of the job."""
    if what is Scope.STORE:
        session.check_store(name)
    if what is Scope.QUEUE:
        _check_queue(name)
    return _open_job(session, name) if what is Scope.JOB else name


def _check_known(session: Session, what: Scope, name: str) -> None:
    """Raise Failure for a name that is none, so that a mistyped one is no success."""
    if what is Scope.STORE:
        session.check_store(name)
    elif what is Scope.QUEUE:
        _check_queue(name)
    else:
        session.job(name)


def _check_queue(name: str) -> None:
    names = [queue.value for queue in Queue if queue is not Queue.INTERACTIVE]
    if name == Queue.INTERACTIVE:
        message = "the queue interactive cannot be paused: jobs are recovered and cancelled through it; pause stores"
        raise UsageError(message)
    if name not in names:
        raise UsageError(f"there is no queue {name!r}{suggestion(name, names) or '.'} There are: {', '.join(names)}")


def _open_job(session: Session, name: str) -> str:
    try:
        record = session.job(name)
    except Failure as error:
        if error.type != "UnknownJob":
            raise
        raise Failure(f"no worker has taken a job {name}: there is nothing to pause", type_="UnknownJob") from None
    if JobState(record.state).terminal:
        raise Failure(f"job {record.id} has ended: {record.state}", type_="JobEnded")
    return record.id


def _full_id(session: Session, name: str) -> str:
    """Return the id of the paused job that begins so; its row in the ledger may be pruned, or not be there yet."""
    name = name.strip()
    paused = [each.name for each in session.catalogue.pauses.all() if each.scope is Scope.JOB]
    ids = {each for each in paused if name and each.startswith(name)}
    return ids.pop() if len(ids) == 1 else name


def _tell_workers(session: Session) -> None:
    """Tell the workers at once; where that fails, `sweep.recover` does it."""
    from worker.limits.check_pauses import mirror_queues
    from worker.limits.shared_redis import redis_of_results
    from zot_artifact_client.connection import broker_errors

    try:
        url = session.settings.results_url
        with broker_errors("result backend", url):
            client = redis_of_results(url)
            if client is None:
                note("the result backend is no Redis: queues cannot be paused, only stores and jobs")
                return
            mirror_queues(client, session.catalogue.pauses.all())
    except (NoBroker, BrokerUnavailable) as error:
        note(f"it is recorded, and `sweep.recover` tells the workers once it can: {error}")
