"""The commands `findings`, `findings show` and `findings acknowledge`."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any

import typer

from worker import clock
from worker.catalogue import FindingKind, FindingRecord
from worker.cli.errors import Failure, UsageError, suggestion
from worker.cli.output import AsJson, note, print_json, print_table, say
from worker.cli.session import Session, opened
from worker.cli.user import user_name
from worker.exit_status import Status
from worker.readable import age, moment

_VERDICTS = 20
app = typer.Typer(invoke_without_command=True, add_completion=False)

Kind = Annotated[str | None, typer.Option("--kind", metavar="KIND", help=f"Only one kind: {', '.join(FindingKind)}.")]
Store = Annotated[
    str | None, typer.Option("--store", metavar="STORE", help="Only findings about one store and its copies.")
]
All = Annotated[bool, typer.Option("--all", help="Also findings that are resolved.")]
Limit = Annotated[int, typer.Option("--limit", metavar="N", min=1, help="How many findings to list, at most.")]
Id = Annotated[int, typer.Argument(metavar="ID", help="The number of the finding, as `findings` lists it.")]


@app.callback()
def findings(
    context: typer.Context,
    *,
    kind: Kind = None,
    store: Store = None,
    every: All = False,
    limit: Limit = 1000,
    as_json: AsJson = False,
) -> None:
    """List the findings, show one, or acknowledge it.

    A finding stays open until a verdict, a write or an operator's command resolves it.
    The exit status is 1 if a finding is listed that is open and not acknowledged.

    Examples:

        zot-artifacts findings
        zot-artifacts findings --kind corrupt --store dr
        zot-artifacts findings show 12
        zot-artifacts findings acknowledge 12 --note "disk is replaced on Monday"
    """
    if context.invoked_subcommand is None:
        _list(kind, store, every=every, limit=limit, as_json=as_json)


@app.command("ls")
def ls(
    *, kind: Kind = None, store: Store = None, every: All = False, limit: Limit = 1000, as_json: AsJson = False
) -> None:
    """List findings, the oldest first; the same as `findings` alone.

    Example:

        zot-artifacts findings ls --kind corrupt --store dr
    """
    _list(kind, store, every=every, limit=limit, as_json=as_json)


@app.command()
def show(id_: Id, as_json: AsJson = False) -> None:
    """Show one finding: what was seen, what was done about it, and the verdicts on the same copy.

    `zot-artifacts findings` lists the ids.

    Example:

        zot-artifacts findings show 12
    """
    with opened() as session:
        found = _get(session, id_)
        job = session.catalogue.ledger.get(found.job) if found.job else None
        verdicts = []
        if found.bucket is not None and found.key is not None:
            of = session.catalogue.verifications.of(found.bucket, found.key, limit=_VERDICTS)
            verdicts = [row for row in of if found.store in {None, row["store"]}]
    state = job.state if job else None
    if as_json:
        print_json({"finding": asdict(found), "job_state": state, "verdicts": verdicts})
    else:
        _print(found, state, verdicts)


@app.command()
def acknowledge(
    id_: Id,
    note_text: Annotated[
        str, typer.Option("--note", metavar="TEXT", help="Why it may stay open; kept with the finding.")
    ],
    by: Annotated[
        str | None, typer.Option("--by", metavar="NAME", help="Who acknowledges it; your user name by default.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Record that you know of a finding.

    It stays open, and `status` no longer ends with 1 because of it.

    Example:

        zot-artifacts findings acknowledge 12 --note "disk is replaced on Monday"
    """
    if not note_text.strip():
        raise UsageError("--note needs a text: why may the finding stay open?")
    with opened() as session:
        if _get(session, id_).resolved_at is not None:
            raise Failure(f"finding {id_} is resolved: there is nothing to acknowledge")
        who = by or user_name()
        found = session.catalogue.findings.acknowledge(id_, by=who, note=note_text, now=clock.now())
    if as_json:
        print_json({"finding": asdict(found) if found else None})
    else:
        say(f"finding {id_}: acknowledged by {who}")


def kind_of(name: str | None) -> FindingKind | None:
    """Return the kind that an option names, with `-` or `_` between its words.

    Raises:
        Failure: there is no such kind.
    """
    if name is None:
        return None
    try:
        return FindingKind(name.replace("-", "_"))
    except ValueError:
        known = ", ".join(FindingKind)
        message = f"there is no kind of finding {name!r}{suggestion(name, FindingKind) or '.'} There are: {known}"
        raise UsageError(message) from None


def _list(kind: str | None, store: str | None, *, every: bool, limit: int, as_json: bool) -> None:
    wanted = kind_of(kind)
    with opened() as session:
        rows = session.catalogue.findings.page(kind=wanted, store=store, resolved=every, limit=limit + 1)
        if not rows:  # a store that left the configuration, and whose copies were forgotten, may have findings
            session.check_known_store(store)
    shown, now = rows[:limit], clock.now()
    if as_json:
        print_json({"findings": [asdict(each) for each in shown], "more": len(rows) > limit})
    else:
        columns = ("id", "finding", "store", "since", "artifact", "state")
        cells = [
            (each.id, each.kind, each.store, age(each.opened_at, now), each.subject, _state(each)) for each in shown
        ]
        print_table(columns, cells, empty="no findings", flexible=("artifact", "state"))
        if len(rows) > limit:
            note(f"there are more than {limit}: narrow them with --kind or --store, or raise --limit")
    bad = any(
        each.resolved_at is None and each.acknowledged_at is None and each.kind is not FindingKind.CANARY
        for each in shown
    )
    raise typer.Exit(Status.BAD if bad else Status.GOOD)


def _state(found: FindingRecord) -> str:
    if found.resolved_at is not None:
        acted = f" ({found.action} by job {found.job})" if found.action else ""
        return f"resolved: {_how(found)}{acted}"
    if found.acknowledged_at is not None:
        return f"acknowledged by {found.acknowledged_by}: {found.note}"
    return f"open, {found.action} by job {found.job}" if found.action else "open"


def _how(found: FindingRecord) -> str | None:
    return "the copy was written" if found.how == "written" else found.how


def _get(session: Session, id_: int) -> FindingRecord:
    found = session.catalogue.findings.get(id_)
    if found is None:
        raise Failure(f"there is no finding {id_}: `zot-artifacts findings --all` lists them", type_="UnknownFinding")
    return found


def _print(found: FindingRecord, job_state: str | None, verdicts: Sequence[Mapping[str, Any]]) -> None:
    say(f"finding {found.id}: {found.kind} {found.subject}" + (f" version {found.version}" if found.version else ""))
    if found.store:
        say(f"store: {found.store}")
    say(f"opened: {_moment(found.opened_at)}, last seen: {_moment(found.last_seen_at)}")
    if found.action:
        say(f"action: {found.action} by job {found.job} ({job_state or 'not started'}), {_moment(found.acted_at)}")
    if found.acknowledged_at:
        say(f"acknowledged: {_moment(found.acknowledged_at)} by {found.acknowledged_by}: {found.note}")
    say(f"resolved: {_moment(found.resolved_at)}, {_how(found)}" if found.resolved_at else "resolved: no")
    for name, value in found.evidence.items():
        say(f"{name}: {value}")
    if verdicts:
        say("")
        rows = [
            (row["at"], row["store"], row["version"], row["verdict"], row["job"], row["detail"]) for row in verdicts
        ]
        print_table(("at", "store", "version", "verdict", "job", "detail"), rows, empty="", flexible=("detail", "job"))


def _moment(value: datetime | None) -> str:
    return moment(value) if value else "-"
