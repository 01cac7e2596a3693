"""The commands `deletes`, `deletes show`, `deletes approve` and `deletes reject`."""

from dataclasses import asdict
from typing import Annotated

import typer

from worker import clock
from worker.catalogue import ApprovalState, DeleteApproval
from worker.cli.errors import Failure, UsageError
from worker.cli.output import AsJson, print_json, print_table, say
from worker.cli.session import Session, opened
from worker.cli.user import origin, user_name
from worker.counted import counted
from worker.exit_status import Status
from worker.readable import moment, size

app = typer.Typer(invoke_without_command=True, add_completion=False)

Every = Annotated[bool, typer.Option("--all", help="Also those that were decided, or that expired.")]
Id = Annotated[str, typer.Argument(metavar="ID", help="The job of the delete, as `deletes` lists it.")]
By = Annotated[
    str | None,
    typer.Option("--by", metavar="NAME", help="Who decides; your user name by default. Not the requester."),
]


@app.callback()
def deletes(context: typer.Context, *, every: Every = False, as_json: AsJson = False) -> None:
    """List the deletes that wait for a second person, show one, approve or reject it.

    With `delete.approval_above: N` in the settings, a delete of more than N artifacts waits.
    All deletes of one requester within `delete.approval_window` count together.
    The exit status is 1 if one waits.

    Examples:

        zot-artifacts deletes
        zot-artifacts deletes show 1f3b0c52
        zot-artifacts deletes approve 1f3b0c52 --note "seen with the release team"
        zot-artifacts deletes reject 1f3b0c52 --reason "2019 is still needed"
    """
    if context.invoked_subcommand is None:
        _list(every=every, as_json=as_json)


@app.command("ls")
def ls(*, every: Every = False, as_json: AsJson = False) -> None:
    """List the deletes that wait; the same as `deletes` alone.

    Example:

        zot-artifacts deletes ls --all
    """
    _list(every=every, as_json=as_json)


@app.command()
def show(id_: Id, as_json: AsJson = False) -> None:
    """Show one delete: what it deletes, who requested it, and who decided.

    Example:

        zot-artifacts deletes show 1f3b0c52
    """
    with opened() as session:
        id_ = _full_id(session, id_)
        found = session.catalogue.delete_approvals.get(id_)
        job = session.catalogue.ledger.get(id_)
    if found is None:
        raise Failure(f"there is no delete {id_}: `zot-artifacts deletes --all` lists them", type_="UnknownDelete")
    if as_json:
        print_json({"delete": asdict(found), "job_state": job.state if job else None})
        return
    say(f"delete {found.job}: {counted(found.objects, 'object')}, {size(found.bytes)}: {found.what}")
    say(f"requested: {moment(found.requested_at)} by {found.requested_by}" + (f": {found.reason}" * bool(found.reason)))
    if found.state is ApprovalState.WAITING:
        say(f"state: waits for an approval until {moment(found.expires_at)}")
    else:
        say(f"state: {found.state}" + (f" at {moment(found.decided_at)}" if found.decided_at else ""))
    if found.decided_by:
        say(f"decided: by {found.decided_by} from {found.decided_from}" + (f": {found.note}" * bool(found.note)))
    say(f"job: {job.state if job else 'not in the ledger any more'}, `zot-artifacts jobs {found.job}`")


@app.command()
def approve(
    id_: Id,
    by: By = None,
    note: Annotated[str | None, typer.Option("--note", metavar="TEXT", help="Recorded with the approval.")] = None,
    as_json: AsJson = False,
) -> None:
    """Approve a delete that another person has requested; its job continues within about a minute.

    A delete is decided once: a second approval is refused.

    Example:

        zot-artifacts deletes approve 1f3b0c52 --note "seen with the release team"
    """
    _decide(id_, ApprovalState.APPROVED, by, note, as_json=as_json)


@app.command()
def reject(
    id_: Id,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; it is shown to the requester.")],
    by: By = None,
    as_json: AsJson = False,
) -> None:
    """Reject a delete that another person has requested: its job fails, and nothing is deleted.

    Example:

        zot-artifacts deletes reject 1f3b0c52 --reason "2019 is still needed"
    """
    if not reason.strip():
        raise UsageError("--reason needs a text: why is it rejected?")
    _decide(id_, ApprovalState.REJECTED, by, reason, as_json=as_json)


def _decide(id_: str, state: ApprovalState, by: str | None, note: str | None, *, as_json: bool) -> None:
    who = (by or "").strip() or user_name()
    with opened() as session:
        id_ = _full_id(session, id_)
        made = session.catalogue.delete_approvals.decide(
            id_, state, by=who, origin=origin(), note=note, now=clock.now()
        )
    if as_json:
        print_json({"delete": asdict(made)})
    else:
        say(
            f"delete {id_} of {counted(made.objects, 'object')}, "
            f"requested by {made.requested_by}, is {made.state} by {who}"
        )


def _full_id(session: Session, id_: str) -> str:
    """Return the id of the only delete whose id begins so; what names none or several as it is."""
    ids = [each.job for each in session.catalogue.delete_approvals.page(every=True) if each.job.startswith(id_)]
    return ids[0] if len(ids) == 1 else id_


def _list(*, every: bool, as_json: bool) -> None:
    with opened() as session:
        session.catalogue.delete_approvals.close_ended(now=clock.now())
        found = session.catalogue.delete_approvals.page(every=every)
    if as_json:
        print_json({"deletes": [asdict(each) for each in found]})
    else:
        print_table(
            ("id", "state", "objects", "what", "requested by", "since", "expires", "decided by"),
            [_row(each) for each in found],
            empty="no delete waits for an approval",
            flexible=("what",),
        )
    waiting = any(each.state is ApprovalState.WAITING for each in found)
    raise typer.Exit(Status.BAD if waiting else Status.GOOD)


def _row(each: DeleteApproval) -> tuple[object, ...]:
    waiting = each.state is ApprovalState.WAITING
    return (
        each.job, each.state, each.objects, each.what, each.requested_by, each.requested_at,
        each.expires_at if waiting else None, each.decided_by,
    )  # fmt: skip
