"""The commands `jobs`, `jobs retry`, `jobs cancel` and `jobs prune`."""

from collections.abc import Callable, Mapping
from datetime import timedelta
from shlex import quote
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from worker import clock
from worker.catalogue import JobRecord
from worker.catalogue.job_admin import REDRIVABLE
from worker.cli.arguments import Timeout, Yes, confirm, duration, refuse
from worker.cli.errors import Failure, UsageError
from worker.cli.job_outcome import finish, outcome_of
from worker.cli.jobs_output import print_job, print_jobs
from worker.cli.jobs_retry import send_again, way_out_of_missing_copies, why_not
from worker.cli.jobs_selection import (
    ErrorOption,
    Kind,
    State,
    StoreOption,
    check_kind,
    chosen_states,
    having,
    tell_unknown_error,
)
from worker.cli.output import AsJson, complain, note, print_json, say
from worker.cli.session import Session, opened
from worker.counted import counted
from worker.exit_status import Status
from worker.readable import moment
from worker.settings.loading import load_settings
from zot_artifact_client.contract import BATCH, PAGE, JobState

_ASKED = "requested"

Limit = Annotated[int, typer.Option(metavar="N", min=1, max=10_000, help="How many jobs to list, at most.")]
Ids = Annotated[
    list[str] | None, typer.Argument(metavar="ID...", help="Job ids, or unique beginnings of them.", show_default=False)
]


class _ListByDefault(TyperGroup):
    """Reads `jobs`, `jobs ID` and `jobs --dead` as `jobs list …`, and the names of other groups, `ls` and `show`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] in {"ls", "show"}:
            args = ["list", *args[1:]]
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
        str | None,
        typer.Option(
            metavar="ID", help="Only jobs of this batch. With --failed: only those that ended without success."
        ),
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
    Without --kind, --state, --store and --error the table leaves out sweeps that succeeded and the jobs of batches.
    `zot-artifacts status` shows the last run of each sweep, --parent the jobs of a batch.

    Examples:

        zot-artifacts jobs
        zot-artifacts jobs --kind sweep.verify
        zot-artifacts jobs 5f0a1d0e --wait
        zot-artifacts jobs --dead --store dr --error Unavailable
    """
    filters = {"--dead": dead, "--failed": failed, "--state": state, "--store": store, "--error": error, "--kind": kind}
    if rejected:
        refuse("does not go with --rejected", {"ID": job, "--parent": parent, **filters})
    if job is not None:
        refuse("does not go with an ID", {"--parent": parent, "--after": after, **filters})
        refuse("goes with --wait", {"--timeout": None if wait else timeout})
    else:
        refuse("goes with an ID", {"--wait": wait, "--timeout": timeout, "--traceback": traceback})
    if parent is None:
        refuse("goes with --parent", {"--after": after})
    else:
        refuse("does not go with --parent", {**filters, "--failed": False})
    if rejected:
        from worker.cli.jobs_rejected import list_rejected

        list_rejected(load_settings(), limit=limit, as_json=as_json)
        return
    states = chosen_states(state, dead=dead, failed=failed)
    check_kind(kind)
    with opened() as session:
        if job is not None and wait:
            _wait(session, job, timeout, as_json=as_json)
        if job is not None:
            record = session.job(job)
            told = session.catalogue.job_webhooks.of_job(record.id)
            copies = way_out_of_missing_copies(session, record) if record.state in REDRIVABLE else None
            waiting = session.catalogue.coverage.waiting_jobs_of([record.id])[record.id]
            print_job(record, told, copies, waiting, traceback=traceback, as_json=as_json)
            return
        if parent is not None:
            batch = session.job(parent)
            records = session.catalogue.batches.child_jobs(batch.id, failed=failed, after=after, limit=limit)
        else:
            session.check_known_store(store)
            chosen = as_json or any((states, kind, store, error))
            records = session.catalogue.job_admin.find(
                states, kind=kind, fits=having(store, error), limit=limit, everything=bool(chosen)
            )
            if not records:
                tell_unknown_error(session.catalogue, error)
        batches = [record.id for record in records if record.kind == BATCH.kind and record.finished_at is None]
        waiting_of = session.catalogue.coverage.waiting_jobs_of(batches)
    print_jobs(records, waiting_of, as_json=as_json)


@app.command()
def retry(
    ids: Ids = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="Retry all jobs that the options select.")] = False,
    state: State = None,
    store: StoreOption = None,
    error: ErrorOption = None,
    kind: Kind = None,
    parent: Annotated[
        str | None, typer.Option(metavar="ID", help="With --all: only the jobs of this batch, dead and failed ones.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the jobs and change nothing.")] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Send jobs again that ended without success.

    They keep their ids, and all attempts are available again.
    --all without --state retries the dead letters.
    A page that failed is not sent again; the jobs of the artifacts that failed in it are.
    What is wrong with an object itself, such as a verdict, is named by its batch and is not tried again.
    The exit status is 1 if a job is not sent again, or no job has the error of --error.

    Examples:

        zot-artifacts jobs retry 5f0a1d0e
        zot-artifacts jobs retry --all --parent 7c2e9f41
        zot-artifacts jobs retry --all --store dr --dry-run
    """
    if bool(ids) == everything:
        raise UsageError("name the jobs, or give --all")
    refuse("goes with --all", {"--parent": None if everything else parent})
    states = chosen_states(state) or [JobState.DEAD, *([JobState.FAILED] if parent else [])]
    check_kind(kind)
    with opened() as session:
        session.check_known_store(store)
        if ids:
            chosen = [session.job(id_) for id_ in dict.fromkeys(ids)]
        else:
            fits = _to_retry(session.job(parent).id if parent else None, having(store, error))
            chosen = session.catalogue.job_admin.find(states, kind=kind, fits=fits, limit=None)
            if not chosen:
                is_known = tell_unknown_error(session.catalogue, error)
                if error is not None and is_known:
                    complain(f"no job that the options select has the error {error!r}")
                if parent is not None:
                    complain(f"no such job of the batch failed; `zot-artifacts jobs {quote(parent)}` names what is bad")
                if not state and session.catalogue.job_admin.find([JobState.FAILED], kind=kind, fits=fits, limit=1):
                    complain("these are failed jobs and no dead letters: add --state failed")
        rejected = {record.id: reason for record in chosen if (reason := why_not(session, record))}
        fit = [record for record in chosen if record.id not in rejected]
        if everything and fit and not dry_run:
            confirm(f"send {counted(len(fit), 'job')} again?", yes=yes)
        retried = [record.id for record in fit] if dry_run else list(send_again(session, fit, rejected))
    _print_retried(retried, rejected, dry_run=dry_run, as_json=as_json)
    raise typer.Exit(Status.BAD if rejected or (error is not None and not chosen) else Status.GOOD)


def _to_retry(batch: str | None, fits: Callable[[JobRecord], bool]) -> Callable[[JobRecord], bool]:
    """Return the filter for jobs of a batch, or of all, without the pages whose artifacts are jobs of their own."""

    def is_to_retry(record: JobRecord) -> bool:
        is_split = record.kind == PAGE.kind and (batch is not None or record.state == JobState.FAILED)
        return fits(record) and not is_split and (batch is None or record.parent == batch)

    return is_to_retry


@app.command()
def cancel(
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Job ids, or unique beginnings of them.")],
    as_json: AsJson = False,
) -> None:
    """Cancel jobs: waiting ones within seconds, running ones at their next chunk, dead letters at once.

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


@app.command()
def prune(
    older_than: Annotated[
        timedelta,
        typer.Option(parser=duration, metavar="TIME", help="Remove what ended at least this long ago, such as 90d."),
    ],
    as_json: AsJson = False,
) -> None:
    """Remove ended jobs from the ledger.

    Dead letters stay until they are retried or cancelled.
    Artifacts, copies and the log of verifications stay.

    Example:

        zot-artifacts jobs prune --older-than 90d
    """
    removed = 0
    with opened() as session:
        before = clock.earliest() - older_than
        while found := session.catalogue.ledger.prune(before=before):
            removed += found
    if as_json:
        print_json({"removed": removed, "before": before})
    else:
        say(f"{counted(removed, 'job')} removed that ended before {moment(before)}")


def _cancel(session: Session, client: Any, id_: str) -> str:
    """Request that a job is cancelled; return `requested`, or why it cannot be cancelled."""
    from zot_artifact_client.errors import UnknownJob

    if record := _ended(session, id_):
        if session.catalogue.job_admin.cancel_dead(id_):
            return _ASKED
        return f"it has ended already: {record.state}"
    try:
        return _ASKED if client.job(id_).cancel() else "it has ended already"
    except UnknownJob:  # its state has expired, or it was never sent
        return _ASKED if session.catalogue.ledger.get(id_) else "nothing is known of a job with this id"


def _wait(session: Session, id_: str, timeout: float | None, *, as_json: bool) -> None:
    """Wait for the end of a job, print its outcome and end the command with its exit status."""
    from worker.cli.send_and_wait import WaitOptions, sender

    id_ = _full_id(session, id_)
    if record := _ended(session, id_):
        finish(outcome_of(record), waited=True, as_json=as_json)
    record = session.recorded_job(id_)
    with sender(session, f"{record.kind if record else 'job'}: waiting", WaitOptions(timeout=timeout)) as way:
        outcome = way.wait(way.client.job(id_, record.kind if record else None))
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
    record = session.recorded_job(id_)
    return record if record and JobState(record.state).terminal else None


def _print_retried(retried: list[str], rejected: Mapping[str, str], *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        reasons = [{"job": id_, "message": reason} for id_, reason in rejected.items()]
        print_json({"retried": retried, "refused": reasons, "dry_run": dry_run})
        return
    for id_, reason in rejected.items():
        note(f"job {id_}: {reason}")
    for id_ in retried:
        say(id_)
    note(f"{counted(len(retried), 'job')} {'would be ' * dry_run}retried")
