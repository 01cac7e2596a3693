"""The options of `jobs` and `jobs retry` that select jobs, and their checks."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from worker.catalogue import Catalogue, JobRecord
from worker.cli.errors import UsageError, suggestion
from worker.cli.jobs_output import causes_of
from worker.cli.output import complain
from zot_artifact_client.contract import KINDS, JobState

State = Annotated[
    list[str] | None,
    typer.Option("--state", metavar="STATE", help="Only jobs in this state, such as failed. Can be repeated."),
]
StoreOption = Annotated[
    str | None, typer.Option("--store", metavar="STORE", help="Only jobs that name this store or failed at it.")
]
ErrorOption = Annotated[
    str | None, typer.Option("--error", metavar="TYPE", help="Only jobs with this error, such as Unavailable.")
]
Kind = Annotated[str | None, typer.Option("--kind", metavar="KIND", help="Only jobs of this kind, such as upload.")]


def chosen_states(given: list[str] | None, *, dead: bool = False, failed: bool = False) -> list[JobState]:
    """Return the states that the options name.

    Raises:
        Failure: there is no state of a name.
    """
    names = [state.value for state in JobState]
    for name in given or ():
        if name not in names:
            message = f"--state {name!r} is no state{suggestion(name, names) or '.'} There are: {', '.join(names)}"
            raise UsageError(message)
    flags = [*([JobState.DEAD] if dead else []), *([JobState.FAILED] if failed else [])]
    return [*(JobState(name) for name in given or ()), *flags]


def check_kind(kind: str | None) -> None:
    """Reject what is no kind of job."""
    if kind is not None and kind not in KINDS:
        message = f"--kind {kind!r} is no kind of job{suggestion(kind, KINDS) or '.'} There are: {', '.join(KINDS)}"
        raise UsageError(message)


def having(store: str | None, error: str | None) -> Callable[[JobRecord], bool]:
    """Return what decides whether a job names or failed at this store, and has this error; None selects all."""

    def fits(record: JobRecord) -> bool:
        causes = list(causes_of(record))
        named = store is None or store in _stores_of(record, causes)
        return named and (error is None or any(cause.get("type") == error for cause in causes))

    return fits


def tell_unknown_error(catalogue: Catalogue, error: str | None) -> bool:
    """Return whether a job has this error. Otherwise say so, and which errors jobs have: too many exist for a list."""
    if error is None:
        return False
    known = set[str]()

    def collect(record: JobRecord) -> bool:
        known.update(str(cause["type"]) for cause in causes_of(record) if cause.get("type"))
        return error in known

    found = bool(catalogue.job_admin.find([], fits=collect, limit=1))
    if not found:
        there = f"{suggestion(error, known) or '.'} There are: {', '.join(sorted(known))}" if known else ""
        complain(f"no job has the error {error!r}{there}")
    return found


def _stores_of(record: JobRecord, causes: list[Mapping[str, Any]]) -> set[str]:
    """Return the stores that a job names and those that it failed at, whose messages begin with their names."""
    named = {*(record.request.get("stores") or ()), *(record.request.get("to") or ())}
    failed_at = {str(cause.get("store") or str(cause.get("message")).partition(":")[0]) for cause in causes}
    return {*named, *failed_at, str(record.request.get("store"))}
