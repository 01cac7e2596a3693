"""The commands `jobs`, `jobs retry`, `jobs cancel` and `jobs prune`."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from worker import clock
from worker.catalogue import JobRecord
from worker.catalogue.job_admin import REDRIVABLE
from worker.cli.arguments import Timeout
from worker.cli.errors import Failure, Status, suggestion
from worker.cli.outcome import finish, outcome_of
from worker.cli.output import AsJson, age, flat, moment, note, out, print_json, print_table, say, size
from worker.cli.session import Session, opened
from worker.settings.model import NoBroker, Settings, load_settings
from worker.storage.durations_and_sizes import parse_duration
from zot_artifact_client.contract import BATCH, PAGE, TASKS, JobState
from zot_artifact_client.errors import BrokerUnavailable
from zot_artifact_client.text_escaping import without_secrets

_SPECS = {spec.kind: spec for spec in TASKS.values()}
_AT_ONCE = 500
_SHORT_ID = 8
_ASKED = "requested"

State = Annotated[
    list[str] | None,
    typer.Option("--state", metavar="STATE", help="Only jobs in this state, such as running. Can be repeated."),
]
StoreOption = Annotated[
    str | None, typer.Option("--store", metavar="STORE", help="Only jobs that name this store or failed at it.")
]
ErrorOption = Annotated[
    str | None, typer.Option("--error", metavar="TYPE", help="Only jobs with this error, such as Unavailable.")
]
Kind = Annotated[str | None, typer.Option("--kind", metavar="KIND", help="Only jobs of this kind, such as upload.")]
Limit = Annotated[int, typer.Option(metavar="N", min=1, max=10_000, help="How many jobs to list, at most.")]
Ids = Annotated[
    list[str] | None, typer.Argument(metavar="ID...", help="Job ids, or unique beginnings of them.", show_default=False)
]


class _ListByDefault(TyperGroup):
    """Reads `jobs`, `jobs ID` and `jobs --dead` as `jobs list …`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or args[0] not in {*self.commands, *ctx.help_option_names}:
            args = ["list", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_ListByDefault,
    add_completion=False,
    help="List jobs, show, retry, cancel or prune them.\n\n"
    "`zot-artifacts jobs` is short for `zot-artifacts jobs list`, and `zot-artifacts jobs ID` shows one job.\n\n"
    "Examples:\n\n"
    "    zot-artifacts jobs --dead\n"
    "    zot-artifacts jobs 5f0a1d0e --wait\n"
    "    zot-artifacts jobs retry --all --store dr",
)


@app.command("list")
def list_(
    job: Annotated[
        str | None,
        typer.Argument(metavar="ID", help="Show this job. A unique beginning of its id is enough.", show_default=False),
    ] = None,
    *,
    wait: Annotated[bool, typer.Option("--wait", help="With ID: wait until the job has ended.")] = False,
    timeout: Timeout = None,
    dead: Annotated[bool, typer.Option("--dead", help="Only jobs whose attempts are used up (dead letters).")] = False,
    failed: Annotated[bool, typer.Option("--failed", help="Only jobs that ended with a permanent error.")] = False,
    state: State = None,
    store: StoreOption = None,
    error: ErrorOption = None,
    kind: Kind = None,
    parent: Annotated[
        str | None, typer.Option(metavar="ID", help="Only jobs of this batch. With --failed: those without success.")
    ] = None,
    after: Annotated[str, typer.Option(metavar="ID", help="With --parent: list the jobs after this one.")] = "",
    limit: Limit = 50,
    rejected: Annotated[
        bool, typer.Option("--rejected", "--refused", help="List the messages that are no valid request.")
    ] = False,
    traceback: Annotated[bool, typer.Option("--traceback", help="With ID: show the tracebacks of its errors.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the latest jobs, or show one: its state, its attempts and its end.

    A unique beginning of an id is enough.
    Without --kind, --state, --store and --error the table leaves out sweeps that succeeded.
    `zot-artifacts status` shows the last run of each.

    Examples:

        zot-artifacts jobs
        zot-artifacts jobs --kind sweep.verify
        zot-artifacts jobs 5f0a1d0e --wait
        zot-artifacts jobs --dead --store dr --error Unavailable
    """
    if rejected:
        from worker.cli.rejected_messages import list_rejected

        list_rejected(load_settings(), limit=limit, as_json=as_json)
        return
    states = _states(state, dead=dead, failed=failed)
    _check_kind(kind)
    with opened(existing=not wait) as session:
        if job is not None and wait:
            _wait(session, job, timeout, as_json=as_json)
        if job is not None:
            record = session.job(job)
            told = session.catalogue.job_webhooks.of_job(record.id)
            _show(record, told, traceback=traceback, as_json=as_json)
            return
        if parent is not None:
            batch = session.job(parent)
            records = session.catalogue.batches.child_jobs(batch.id, failed=failed, after=after, limit=limit)
        else:
            _check_store(session, store)
            chosen = as_json or any((states, kind, store, error))
            records = session.catalogue.job_admin.find(
                states, kind=kind, fits=_filter(store, error), limit=limit, succeeded_sweeps=bool(chosen)
            )
    _print(records, as_json=as_json)


@app.command()
def retry(
    ids: Ids = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="Retry all jobs that the options select.")] = False,
    state: State = None,
    store: StoreOption = None,
    error: ErrorOption = None,
    kind: Kind = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the jobs and change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    as_json: AsJson = False,
) -> None:
    """Send jobs again that ended without success.

    They keep their ids, and all attempts are available again.
    --all without --state retries the dead letters.

    Examples:

        zot-artifacts jobs retry 5f0a1d0e
        zot-artifacts jobs retry --all --store dr --dry-run
    """
    if bool(ids) == everything:
        raise Failure("name the jobs, or say --all", Status.USAGE, type_="UsageError")
    states = _states(state) or [JobState.DEAD]
    _check_kind(kind)
    with opened(existing=True) as session:
        _check_store(session, store)
        if ids:
            chosen = [session.job(id_) for id_ in dict.fromkeys(ids)]
        else:
            chosen = session.catalogue.job_admin.find(states, kind=kind, fits=_filter(store, error), limit=None)
        rejected = {record.id: reason for record in chosen if (reason := _why_not(record))}
        fit = [record for record in chosen if record.id not in rejected]
        if everything and fit and not (dry_run or yes):
            _confirm(f"send {len(fit)} jobs again?")
        retried = [record.id for record in fit] if dry_run else list(_retry(session, fit, rejected))
    _print_retried(retried, rejected, dry_run=dry_run, as_json=as_json)
    raise typer.Exit(Status.BAD if rejected else Status.GOOD)


@app.command()
def cancel(
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Job ids, or unique beginnings of them.")],
    as_json: AsJson = False,
) -> None:
    """Cancel jobs: waiting ones within seconds, running ones at their next chunk.

    The exit status is 1 if one of the jobs has ended already or is unknown.

    Example:

        zot-artifacts jobs cancel 5f0a1d0e
    """
    from zot_artifact_client import ArtifactClient

    settings = load_settings()
    settings.broker_url  # noqa: B018 - raises NoBroker now: nothing can be cancelled without one
    with opened() as session, ArtifactClient(settings.broker_url, settings.results_url) as client:
        outcomes = {id_: _cancel(session, client, id_) for id_ in dict.fromkeys(_full_id(session, id_) for id_ in ids)}
    asked = [id_ for id_, outcome in outcomes.items() if outcome == _ASKED]
    others = {id_: outcome for id_, outcome in outcomes.items() if outcome != _ASKED}
    if as_json:
        print_json({"asked": asked, "not_cancelled": others})
    else:
        for id_ in asked:
            say(f"{id_}: cancellation requested; `zot-artifacts jobs {id_}` shows its state")
        for id_, outcome in others.items():
            note(f"{id_}: not cancelled: {outcome}")
    raise typer.Exit(Status.BAD if others else Status.GOOD)


def _cancel(session: Session, client: Any, id_: str) -> str:
    """Request that a job is cancelled; return `requested`, or why it cannot be cancelled."""
    from zot_artifact_client.errors import UnknownJob

    if record := _ended(session, id_):
        return f"it has ended already: {record.state}"
    try:
        return _ASKED if client.job(id_).cancel() else "it has ended already"
    except UnknownJob:  # its state has expired, or it was never sent
        return _ASKED if session.catalogue.ledger.get(id_) else "nothing is known of a job with this id"


def _shown_request(record: JobRecord) -> dict[str, Any]:
    """Return a request without the secrets that the URL of its source may have."""
    return {
        name: without_secrets(value) if name == "source" and isinstance(value, str) else value
        for name, value in record.request.items()
    }


def document(record: JobRecord) -> dict[str, Any]:
    """Return a job as JSON, without its traceback."""
    times = {"created_at": record.created_at, "started_at": record.started_at, "finished_at": record.finished_at}
    about = {"request": _shown_request(record), "progress": record.progress and dict(record.progress)}
    return {**outcome_of(record).document(), "state": _state(record), **about, **times}


def short_id(id_: str) -> str:
    """Return the beginning of a job's id, which is enough to name it; the number of a batch's job is kept."""
    root, dot, number = id_.partition(".")
    return f"{root[:_SHORT_ID]}{dot}{number}"


# Listing and showing


def _print(records: list[JobRecord], *, as_json: bool) -> None:
    if as_json:
        print_json({"jobs": [document(record) for record in records]})
        return
    narrow, now = out().is_terminal, clock.now()
    rows = [
        (
            short_id(r.id) if narrow else r.id,
            r.kind,
            _artifact(r),
            _state(r),
            r.attempts,
            age(r.created_at, now) if narrow else r.created_at,
            (r.error or {}).get("message"),
        )
        for r in records
    ]
    columns = ("job", "kind", "artifact", "state", "tries", "age" if narrow else "created", "error")
    print_table(columns, rows, empty="no jobs", flexible=("artifact", "error"))


def _state(record: JobRecord) -> str:
    """Return the state for people: a batch that waits for its jobs is `queued` in the ledger, and is running."""
    if record.kind == BATCH.kind and record.state == JobState.QUEUED and record.started_at is not None:
        return JobState.RUNNING.value
    return str(record.state)


def _artifact(record: JobRecord) -> str | None:
    """Return the target of a job: an artifact, or for a batch its prefix or its list."""
    request = record.request
    bucket, key = request.get("bucket"), request.get("key")
    if record.kind == BATCH.kind:
        return (
            f"{request.get('verb')} {bucket}/{request.get('prefix') or ''}*"
            if bucket
            else f"{request.get('verb')} list"
        )
    if record.kind == PAGE.kind:
        return _page(request)
    if not bucket:
        return None
    return f"{bucket}/{key}" if key else str(bucket)


def _page(request: Mapping[str, Any]) -> str:
    """Return the target of a page: its range of keys, the due copies of a store, or a part of a list."""
    verb, keys, claim = request.get("verb"), request.get("range"), request.get("claim")
    if keys:
        return f"{verb} {keys['bucket']}/{keys.get('after') or keys.get('prefix') or ''}..{keys['until']}"
    return f"{verb} what is due in {claim['store']}" if claim else f"{verb} list"


def _show(record: JobRecord, webhooks: Mapping[str, str], *, traceback: bool, as_json: bool) -> None:
    """Print a job and, by receiver, the state of its end."""
    if as_json:
        print_json(document(record) | {"error": record.error and dict(record.error), "webhooks": webhooks})
        return
    for name, value in _fields(record):
        if value not in (None, ""):
            say(f"{name:12} {value}")
    for name, state in webhooks.items():
        say(f"{'webhook':12} {name}: {state}")
    for cause in _causes(record) if traceback else ():
        for line in str(cause.get("traceback", "no traceback was kept")).splitlines():
            say(line)


def _fields(record: JobRecord) -> Iterator[tuple[str, object]]:
    yield "job", record.id
    yield "kind", record.kind
    yield "artifact", _artifact(record)
    yield "state", _state(record)
    yield "attempts", record.attempts
    yield "progress", _progress(record)
    for name, value in (("created", record.created_at), ("started", record.started_at), ("ended", record.finished_at)):
        yield name, value and moment(value)
    for number, cause in enumerate(_causes(record)):
        yield "before that" if number else "error", f"{cause.get('type')}: {cause.get('message')}"
    label = "request"
    for name, value in _shown_request(record).items():
        if name not in {"bucket", "key"}:
            yield label, f"{name}={flat(value)}"
            label = ""
    for name, value in (record.result or {}).items():
        if name not in {"bucket", "key", "job"}:
            yield from _result_lines(name, value)


def _result_lines(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yield a list of copies or failures as one line each, every other value as one line."""
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        for each in value:
            yield name, flat(each)
    elif value not in (None, [], {}):
        yield name, size(value) if name in {"size", "bytes"} and isinstance(value, int) else flat(value)


def _progress(record: JobRecord) -> str | None:
    """Return how far the job is; nothing for one that succeeded, whose last report may be older than its end."""
    progress = record.progress
    if not progress or record.state == JobState.SUCCEEDED:
        return None
    done, total = progress.get("bytes_done") or 0, progress.get("bytes_total")
    parts = [str(progress.get("step") or "")]
    if total or done:
        parts.append(f"{size(done)} of {size(total)} ({100 * done // total} %)" if total else size(done))
    if progress.get("objects_total") or progress.get("objects_done"):
        parts.append(f"{progress.get('objects_done', 0)} of {progress.get('objects_total', '?')} objects")
    return ", ".join(part for part in parts if part)


def _wait(session: Session, id_: str, timeout: float | None, *, as_json: bool) -> None:
    """Wait for the end of a job, print its outcome and end the command with its exit status."""
    from worker.cli.submit import sender

    id_ = _full_id(session, id_)
    if record := _ended(session, id_):
        finish(outcome_of(record), waited=True, as_json=as_json)
    record = session.catalogue.ledger.get(id_)
    with sender(session, f"{record.kind if record else 'job'}: waiting") as way:
        outcome = way.wait(way.client.job(id_, record.kind if record else None), timeout)
    finish(outcome, waited=True, as_json=as_json)


def _full_id(session: Session, id_: str) -> str:
    """Return the full id of a job; the id of one that no worker has taken yet must be given in full."""
    try:
        return session.job(id_).id
    except Failure as error:
        if error.type != "UnknownJob":
            raise
        if len(id_) < len("00000000-0000-0000-0000-000000000000"):
            raise
        return id_


def _ended(session: Session, id_: str) -> JobRecord | None:
    record = session.catalogue.ledger.get(id_)
    return record if record and JobState(record.state).terminal else None


# Selecting


def _states(given: list[str] | None, *, dead: bool = False, failed: bool = False) -> list[JobState]:
    names = [state.value for state in JobState]
    for name in given or ():
        if name not in names:
            message = f"--state {name!r} is no state{suggestion(name, names)}; there are {', '.join(names)}"
            raise Failure(message, Status.USAGE, type_="UsageError")
    flags = [*([JobState.DEAD] if dead else []), *([JobState.FAILED] if failed else [])]
    return [*(JobState(name) for name in given or ()), *flags]


def _check_kind(kind: str | None) -> None:
    if kind is not None and kind not in _SPECS:
        message = f"--kind {kind!r} is no kind of job{suggestion(kind, _SPECS)}; there are {', '.join(_SPECS)}"
        raise Failure(message, Status.USAGE, type_="UsageError")


def _check_store(session: Session, store: str | None) -> None:
    """Reject a store that is neither configured nor in the catalogue."""
    if store is None or store in session.settings.stores or store in session.catalogue.artifacts.count_by_state():
        return
    session.store_names([store])


def _causes(record: JobRecord) -> Iterator[Mapping[str, Any]]:
    """Yield the error of the last attempt, and the earlier one if that was the cause."""
    cause = record.error
    while cause:
        yield cause
        cause = cause.get("previous")


def _filter(store: str | None, error: str | None) -> Callable[[JobRecord], bool]:
    def fits(record: JobRecord) -> bool:
        causes = list(_causes(record))
        named = store is None or store in _stores_of(record, causes)
        return named and (error is None or any(cause.get("type") == error for cause in causes))

    return fits


def _stores_of(record: JobRecord, causes: list[Mapping[str, Any]]) -> set[str]:
    """Return the stores that a job names and those that it failed at, whose messages begin with their names."""
    named = {*(record.request.get("stores") or ()), *(record.request.get("to") or ())}
    failed_at = {str(cause.get("store") or str(cause.get("message")).partition(":")[0]) for cause in causes}
    return {*named, *failed_at, str(record.request.get("store"))}


# Retrying


def _why_not(record: JobRecord) -> str | None:
    """Return why a job cannot be sent again, or None."""
    if record.state not in REDRIVABLE:
        return f"it is {record.state}, only dead, failed and cancelled jobs can be retried"
    if record.kind == BATCH.kind or record.kind not in _SPECS:
        return f"a {record.kind} cannot be retried: send a new one, which skips what is done already"
    if record.request.get("staged") and not Path(record.request["source"]).exists():
        return "its staged source is gone: upload it again"
    return None


def _confirm(question: str) -> None:
    if sys.stdin.isatty():
        typer.confirm(question, abort=True, err=True)


def _retry(session: Session, records: list[JobRecord], rejected: dict[str, str]) -> Iterator[str]:
    for first in range(0, len(records), _AT_ONCE):
        _forget_results(session.settings, records[first : first + _AT_ONCE])
        page = []
        for record in records[first : first + _AT_ONCE]:
            if _revive(session, record):
                page.append(record)
                yield record.id
            else:
                rejected[record.id] = "another command has retried it just now"
        _send(session.settings, page)


def _revive(session: Session, record: JobRecord) -> bool:
    cause = {"type": "Retried", "message": "retried by hand"} | (
        {"previous": dict(record.error)} if record.error else {}
    )
    due = clock.now() + session.settings.jobs.lease
    return session.catalogue.job_admin.redrive(record.id, cause, due=due) is not None


def _forget_results(settings: Settings, records: list[JobRecord]) -> None:
    """Remove the results and cancellations of the jobs before a worker can act on them."""
    from zot_artifact_client.result_backend import CeleryResultBackend

    with suppress(NoBroker, BrokerUnavailable):
        outcomes = CeleryResultBackend(settings.results_url, lambda _: None)
        try:
            for record in records:
                outcomes.forget(record.id)
        finally:
            outcomes.close()


def _send(settings: Settings, records: list[JobRecord]) -> None:
    """Send the messages; where that fails, `sweep.recover` sends them."""
    from zot_artifact_client.outgoing_messages import Outgoing
    from zot_artifact_client.publisher import Publisher

    def outgoing(record: JobRecord) -> Outgoing:
        spec = _SPECS[record.kind]
        from zot_artifact_client.contract import is_batch_job

        parent = record.parent if is_batch_job(record.id, record.parent) else None
        return Outgoing(spec.name, record.id, record.queue or spec.queue.value, dict(record.request), parent)

    try:
        publisher = Publisher(settings.broker_url)
        try:
            publisher.send_all([outgoing(record) for record in records])
        finally:
            publisher.close()
    except (NoBroker, BrokerUnavailable) as error:
        note(f"{error}; the workers send the jobs as soon as they reach it")


def _print_retried(retried: list[str], rejected: Mapping[str, str], *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        reasons = [{"job": id_, "message": reason} for id_, reason in rejected.items()]
        print_json({"retried": retried, "refused": reasons, "dry_run": dry_run})
        return
    for id_, reason in rejected.items():
        note(f"job {id_}: {reason}")
    for id_ in retried:
        say(id_)
    note(f"{len(retried)} jobs {'would be' if dry_run else 'are'} retried")


# Pruning


@app.command()
def prune(
    older_than: Annotated[
        str,
        typer.Option(
            "--older-than", metavar="TIME", help="Remove jobs that ended at least this long ago, such as 90d."
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Remove ended jobs from the ledger.

    Dead letters stay until they are retried or cancelled.
    Artifacts, copies and the log of verifications stay.

    Example:

        zot-artifacts jobs prune --older-than 90d
    """
    try:
        age_ = parse_duration(older_than)
    except ValueError as error:
        raise Failure(f"--older-than: {error}", Status.USAGE, type_="UsageError") from None
    removed = 0
    with opened(existing=True) as session:
        before = clock.now() - age_
        while found := session.catalogue.ledger.prune(before=before):
            removed += found
    if as_json:
        print_json({"removed": removed, "before": before})
    else:
        say(f"{removed} jobs removed that ended before {moment(before)}")
