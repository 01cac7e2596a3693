"""The commands about jobs that were sent: look at them, begin ended ones again, end those that have not ended."""

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
from worker.cli.arguments import opened
from worker.cli.errors import Failure, Status
from worker.cli.outcome import outcome_of
from worker.cli.output import AsJson, moment, note, out, print_json, table
from worker.cli.rejected import show_refused
from worker.context import Context
from worker.settings.model import NoBroker, Settings, load_settings
from zot_artifact_client import ArtifactClient, BrokerUnavailable
from zot_artifact_client.contract import BATCH, TASKS, JobState
from zot_artifact_client.outbox import Outgoing
from zot_artifact_client.publisher import Publisher
from zot_artifact_client.result_backend import CeleryResultBackend

_SPECS = {spec.kind: spec for spec in TASKS.values()}
_AT_ONCE = 500

State = Annotated[list[JobState] | None, typer.Option("--state", help="Only those in this state; may be repeated.")]
StoreOption = Annotated[
    str | None, typer.Option("--store", metavar="STORE", help="Only those that name the store, or failed at it.")
]
ErrorOption = Annotated[
    str | None, typer.Option("--error", metavar="TYPE", help="Only those with this error, such as Unavailable.")
]
Kind = Annotated[str | None, typer.Option("--kind", metavar="KIND", help="Only those of this kind, such as upload.")]
Limit = Annotated[int, typer.Option(min=1, max=10_000, help="How many at most.")]
Ids = Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="The jobs.", show_default=False)]


class _ListByDefault(TyperGroup):
    """Takes `jobs`, `jobs ID` and `jobs --dead` for `jobs list …`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or args[0] not in {*self.commands, *ctx.help_option_names}:
            args = ["list", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_ListByDefault,
    help="List the latest jobs, or show one; `retry` begins ended ones again, `cancel` ends others.",
    epilog="`jobs [ID]` is short for `jobs list [ID]`, whose options `jobs list --help` tells.",
)


@app.command("list")
def list_(
    job: Annotated[str | None, typer.Argument(metavar="[ID]", help="One job.", show_default=False)] = None,
    *,
    dead: Annotated[bool, typer.Option("--dead", help="Those whose every attempt met a passing fault.")] = False,
    failed: Annotated[bool, typer.Option("--failed", help="Those that cannot succeed.")] = False,
    state: State = None,
    store: StoreOption = None,
    error: ErrorOption = None,
    kind: Kind = None,
    parent: Annotated[
        str | None, typer.Option(metavar="ID", help="Those of one batch; --failed: those that came out badly.")
    ] = None,
    after: Annotated[str, typer.Option(metavar="ID", help="With --parent: those after this one.")] = "",
    limit: Limit = 50,
    refused: Annotated[bool, typer.Option("--refused", help="The messages that no worker could take.")] = False,
    traceback: Annotated[bool, typer.Option("--traceback", help="Of one job: where its last attempt failed.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the latest jobs, or show one: its state, its attempts, how it ended."""
    if refused:
        show_refused(load_settings(), limit=limit, as_json=as_json)
        return
    with opened() as context:
        if job is not None:
            _show(_record_of(context, job), traceback=traceback, as_json=as_json)
            return
        if parent is not None:
            _record_of(context, parent)
            children = context.catalogue.batches.child_jobs(parent, failed=failed, after=after, limit=limit)
            _print(children, as_json=as_json)
            return
        states = [*(state or []), *([JobState.DEAD] if dead else []), *([JobState.FAILED] if failed else [])]
        records = context.catalogue.job_admin.find(states, kind=kind, fits=_filter(store, error), limit=limit)
    _print(records, as_json=as_json)


@app.command()
def retry(
    ids: Ids = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="All that the options describe.")] = False,
    state: State = None,
    store: StoreOption = None,
    error: ErrorOption = None,
    kind: Kind = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say which.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask; nobody is asked where stdin is no terminal.")] = False,
    as_json: AsJson = False,
) -> None:
    """Begin jobs again that ended without success, as if they were new and under the same ids; --all: the dead ones."""
    if bool(ids) == everything:
        raise Failure("name the jobs, or say --all", Status.USAGE, type_="UsageError")
    with opened() as context:
        if ids:
            chosen = [_record_of(context, id_) for id_ in dict.fromkeys(ids)]
        else:
            fits = _filter(store, error)
            states = state or [JobState.DEAD]
            chosen = context.catalogue.job_admin.find(states, kind=kind, fits=fits, limit=None)
        refused = {record.id: reason for record in chosen if (reason := _why_not(record))}
        fit = [record for record in chosen if record.id not in refused]
        if everything and fit and not (dry_run or yes):
            _confirm(f"begin {len(fit)} jobs again?")
        retried = [record.id for record in fit] if dry_run else list(_retry(context, fit, refused))
    _tell_retried(retried, refused, dry_run=dry_run, as_json=as_json)
    raise typer.Exit(Status.BAD if refused else Status.GOOD)


@app.command()
def cancel(
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="The jobs.")], as_json: AsJson = False
) -> None:
    """Ask for the end of jobs: of those that wait within moments, of those that run at their next piece."""
    settings = load_settings()
    with ArtifactClient(settings.broker_url, settings.results_url) as client:
        for id_ in dict.fromkeys(ids):
            client.job(id_).cancel()
            if not as_json:
                out().print(f"{id_}: its end was asked for; `zot-artifacts jobs {id_}` tells", markup=False)
    if as_json:
        print_json({"asked": list(dict.fromkeys(ids))})


def document(record: JobRecord) -> dict[str, Any]:
    """Return a job as JSON, without its traceback."""
    times = {"created_at": record.created_at, "started_at": record.started_at, "finished_at": record.finished_at}
    about = {"request": dict(record.request), "progress": record.progress and dict(record.progress)}
    return {**outcome_of(record).document(), **about, **times}


# Looking


def _print(records: list[JobRecord], *, as_json: bool) -> None:
    if as_json:
        print_json({"jobs": [document(record) for record in records]})
    elif records:
        rows = [
            (r.id, r.kind, _about(r), r.state, r.attempts, r.created_at, (r.error or {}).get("message"))
            for r in records
        ]
        out().print(table(("job", "kind", "artifact", "state", "attempts", "created", "error"), rows))


def _record_of(context: Context, id_: str) -> JobRecord:
    record = context.catalogue.ledger.get(id_)
    if record is None:
        raise Failure(
            f"no worker has taken a job {id_}: it waits in its queue, or there is none; see `zot-artifacts jobs`",
            Status.UNKNOWN,
            type_="UnknownJob",
        )
    return record


def _show(record: JobRecord, *, traceback: bool, as_json: bool) -> None:
    shown = document(record)
    if as_json:
        print_json(shown | {"error": record.error and dict(record.error)})
        return
    for name, value in shown.items():
        if value not in (None, {}, []):
            out().print(f"{name:12} {moment(value) if name.endswith('_at') else value}", markup=False)
    if traceback:
        for cause in _causes(record):
            out().print(str(cause.get("traceback", "no traceback was kept")), markup=False)


def _about(record: JobRecord) -> str | None:
    bucket, key = record.request.get("bucket"), record.request.get("key")
    return f"{bucket}/{key}" if bucket else None


def _filter(store: str | None, error: str | None) -> Callable[[JobRecord], bool]:
    def fits(record: JobRecord) -> bool:
        causes = list(_causes(record))
        named = store is None or store in _stores_of(record, causes)
        return named and (error is None or any(cause.get("type") == error for cause in causes))

    return fits


def _causes(record: JobRecord) -> Iterator[Mapping[str, Any]]:
    """Yield what ended the last attempt, and what ended the one before if that was the failure proper."""
    cause = record.error
    while cause:
        yield cause
        cause = cause.get("previous")


def _stores_of(record: JobRecord, causes: list[Mapping[str, Any]]) -> set[str]:
    """Return the stores that a job names and those that it failed at, whose messages begin with their names."""
    named = {*(record.request.get("stores") or ()), *(record.request.get("to") or ())}
    failed_at = {str(cause.get("store") or str(cause.get("message")).partition(":")[0]) for cause in causes}
    return {*named, *failed_at, str(record.request.get("store"))}


# Beginning again


def _why_not(record: JobRecord) -> str | None:
    """Return why a job cannot be begun again, or None."""
    if record.state not in REDRIVABLE:
        return f"it is {record.state}, only dead, failed and cancelled jobs can be begun again"
    if record.kind == BATCH.kind or record.kind not in _SPECS:
        return f"a {record.kind} cannot be begun again: send it anew, what it has done is not done twice"
    if record.request.get("staged") and not Path(record.request["source"]).exists():
        return "its staged source is gone: upload it again"
    return None


def _confirm(question: str) -> None:
    if sys.stdin.isatty():
        typer.confirm(question, abort=True, err=True)


def _retry(context: Context, records: list[JobRecord], refused: dict[str, str]) -> Iterator[str]:
    for first in range(0, len(records), _AT_ONCE):
        _forget(context.settings, records[first : first + _AT_ONCE])
        page = []
        for record in records[first : first + _AT_ONCE]:
            if _revive(context, record):
                page.append(record)
                yield record.id
            else:
                refused[record.id] = "it was begun again by somebody else just now"
        _send(context.settings, page)


def _revive(context: Context, record: JobRecord) -> bool:
    cause = {"type": "Retried", "message": "begun again by hand"} | (
        {"previous": dict(record.error)} if record.error else {}
    )
    due = clock.now() + context.settings.jobs.lease
    return context.catalogue.job_admin.redrive(record.id, cause, due=due) is not None


def _forget(settings: Settings, records: list[JobRecord]) -> None:
    """Take away how the jobs ended, and the wish that they end, before anybody acts on it."""
    with suppress(NoBroker, BrokerUnavailable):
        outcomes = CeleryResultBackend(settings.results_url, lambda _: None)
        try:
            for record in records:
                outcomes.forget(record.id)
        finally:
            outcomes.close()


def _send(settings: Settings, records: list[JobRecord]) -> None:
    """Send the messages; where that fails, `sweep.recover` sends them."""
    try:
        publisher = Publisher(settings.broker_url)
        try:
            publisher.send_all([_outgoing(record) for record in records])
        finally:
            publisher.close()
    except (NoBroker, BrokerUnavailable) as error:
        note(f"{error}; the workers begin the jobs by themselves once they reach it")


def _outgoing(record: JobRecord) -> Outgoing:
    spec = _SPECS[record.kind]
    return Outgoing(spec.name, record.id, record.queue or spec.queue.value, dict(record.request))


def _tell_retried(retried: list[str], refused: Mapping[str, str], *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        told = [{"job": id_, "message": reason} for id_, reason in refused.items()]
        print_json({"retried": retried, "refused": told, "dry_run": dry_run})
        return
    for id_, reason in refused.items():
        note(f"job {id_}: {reason}")
    for id_ in retried:
        out().print(id_, markup=False)
    note(f"{len(retried)} jobs {'would begin' if dry_run else 'begin'} again")
