"""The commands `stores`, `stores forget`, `stores accept` and `stores trust`."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import typer

from worker import clock
from worker.catalogue import BAD, FindingKind, Scope
from worker.cli.arguments import Yes, confirm
from worker.cli.errors import Failure, UsageError, suggestion
from worker.cli.output import AsJson, note, print_json, print_table, say
from worker.cli.pause import describe_pause
from worker.cli.session import Session, opened
from worker.counted import counted
from worker.exit_status import Status
from worker.report.service_checks import open_breakers
from worker.report.unconfigured_stores import unconfigured, way_out_of_renamed, way_out_of_unconfigured
from worker.storage.errors import StorageError
from worker.storage.identity import place_of

_NAMED = 10

app = typer.Typer(invoke_without_command=True, add_completion=False)


@app.callback()
def stores(context: typer.Context, as_json: AsJson = False) -> None:
    """List the stores; forget, accept or trust one.

    For each store: whether it can be reached, whether its circuit breaker is open, and the copies in it.
    A store that has copies in the catalogue and is not in the settings is listed as `not configured`.
    The exit status is 1 if a copy is corrupt, missing or of another size.
    Otherwise it is 3 if a store cannot be reached or is not configured.

    Examples:

        zot-artifacts stores
        zot-artifacts stores forget old-nas --dry-run
    """
    if context.invoked_subcommand is not None:
        return
    with opened() as session:
        rows = _rows(session)
    if as_json:
        print_json({"stores": rows})
    else:
        columns = ("store", "type", "usable", "copies", "oldest verified", "never verified", "paused", "error")
        print_table(columns, [_cells(row) for row in rows], empty="no stores", flexible=("copies", "paused", "error"))
    if any(bad_copies(row["copies"]) for row in rows):
        raise typer.Exit(Status.BAD)
    raise typer.Exit(Status.GOOD if all(row["reachable"] for row in rows) else Status.UNKNOWN)


@app.command()
def forget(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A store that is no longer configured.")],
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the counts and change nothing.")] = False,
    allow_last: Annotated[
        bool, typer.Option("--allow-last", help="Forget also the only good copies of artifacts.")
    ] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Record the copies in a store that is gone as deleted.

    No byte in any store is touched.
    An artifact whose only good copy is there keeps that copy in the catalogue, and the exit status is then 1.

    Examples:

        zot-artifacts stores forget old-nas --dry-run
        zot-artifacts stores forget old-nas
    """
    with opened() as session:
        _check_forgettable(session, name)
        records = session.catalogue.store_records
        found = records.forget(name, dry_run=True, force=allow_last)
        if told := way_out_of_renamed(session, name):
            note(f"{name}: {told}")
        if not dry_run:
            last = f", {found.last:,} of them the only good one of its artifact" if found.last and allow_last else ""
            confirm(f"forget {counted(found.forgotten, 'copy')} in {name}{last}?", yes=yes)
            found = records.forget(name, dry_run=False, force=allow_last)
            session.catalogue.store_identities(()).forget(name)
            if name not in unconfigured(session):
                session.catalogue.findings.see_store(FindingKind.STORE_NOT_CONFIGURED, name, None, now=clock.now())
    kept = 0 if allow_last else found.last
    examples = [artifact.path for artifact in found.last_examples]
    if as_json:
        document = {"store": name, "forgotten": found.forgotten, "last": found.last, "last_examples": examples}
        print_json({**document, "kept": kept, "dry_run": dry_run})
    else:
        say(f"{name}: {counted(found.forgotten, 'copy')} {'would be ' * dry_run}forgotten")
        if found.last:
            fate = "kept in the catalogue; --allow-last forgets them" if kept else "forgotten with them"
            note(
                f"{counted(found.last, 'artifact')} with the only good copy there, {fate}: "
                + ", ".join(examples[:_NAMED])
            )
    raise typer.Exit(Status.BAD if kept else Status.GOOD)


@app.command()
def accept(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A configured store that was replaced on purpose.")],
    as_json: AsJson = False,
) -> None:
    """Accept a new disk or bucket under the name of a store.

    The next use of the store records the new disk or bucket.
    Without it, a store whose marker is missing or belongs to another store accepts no writes.
    Verify its copies afterwards: the catalogue still has those of the replaced store.

    Example:

        zot-artifacts stores accept dr
    """
    with opened() as session:
        session.check_store(name)
        settings = session.settings
        identities = session.catalogue.store_identities(settings.stores)
        before = identities.forget(name, place_of(settings.stores[name]))
    if as_json:
        print_json({"store": name, "before": before})
    else:
        say(f"{name}: {'no store was recorded' if before is None else 'its next use records the store that is there'}")


@app.command()
def trust(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A store whose repairs stopped.")],
    as_json: AsJson = False,
) -> None:
    """Continue the repairs of a store that stopped because too many of its copies were found bad.

    Copies that were found bad before this command no longer count.
    `zot-artifacts status` shows what is wrong with the store.

    Example:

        zot-artifacts stores trust dr
    """
    with opened() as session:
        session.check_store(name)
        stopped = session.catalogue.repairs.trust(name, now=clock.now())
    if as_json:
        print_json({"store": name, "stopped": stopped})
    else:
        say(f"{name}: {'its repairs continue at the next sweep' if stopped else 'its repairs had not stopped'}")


def _check_forgettable(session: Session, name: str) -> None:
    if name in session.settings.stores:
        raise UsageError(f"store {name} is configured: remove it from `stores` in the settings first")
    known = session.catalogue.store_records.names()
    if name not in known:
        message = f"the catalogue has no copies in a store {name!r}{suggestion(name, known)}"
        raise Failure(message, Status.USAGE, type_="UnknownStore")


def bad_copies(states: Mapping[str, int]) -> dict[str, int]:
    """Return the copies by state that are corrupt, missing or of another size."""
    return {state: states[state] for state in BAD if states.get(state)}


def _rows(session: Session) -> list[dict[str, Any]]:
    counts = session.catalogue.artifacts.count_by_state()
    breakers = open_breakers(session.settings)
    with ThreadPoolExecutor(max_workers=8) as pool:  # a store that does not answer must not delay the others
        errors = dict(zip(session.stores, pool.map(lambda name: _reach(session, name), session.stores), strict=True))
    paused = {pause.name: pause for pause in session.catalogue.pauses.all() if pause.scope is Scope.STORE}
    rows = []
    for name in [*session.stores, *unconfigured(session)]:
        configured, pause = name in session.settings.stores, paused.get(name)
        error = errors[name] if configured else f"not configured: {way_out_of_unconfigured(session, name)}"
        rows.append(
            {
                "store": name,
                "type": session.settings.stores[name].type if configured else None,
                "configured": configured,
                "reachable": error is None,
                "error": error,
                "breaker": str(breakers[name]) if name in breakers else None,
                "copies": counts.get(name, {}),
                "oldest_verified_at": session.catalogue.artifacts.oldest_verified(name),
                "never_verified": session.catalogue.artifacts.never_verified(name),
                "paused": {"since": pause.since, "reason": pause.reason} if pause else None,
            }
        )
    return rows


def _cells(row: dict[str, Any]) -> tuple[object, ...]:
    usable = "usable" if row["reachable"] else "not usable"
    return (
        row["store"],
        row["type"],
        usable if row["configured"] else "not configured",
        ", ".join(f"{count} {state}" for state, count in row["copies"].items()) or "none",
        row["oldest_verified_at"],
        row["never_verified"],
        row["paused"] and describe_pause(row["paused"]["since"], row["paused"]["reason"]),
        _error(row["error"], row["breaker"]),
    )


def _error(error: str | None, breaker: str | None) -> str | None:
    """Return what is wrong with a store; the cause of its open circuit breaker is mostly the error and told once."""
    if error and breaker:
        breaker = breaker.removesuffix(f"; the store failed with: {error}")
    return "; ".join(filter(None, (error, breaker))) or None


def _reach(session: Session, name: str) -> str | None:
    try:
        session.stores[name].health_check()
        session.stores[name].check_identity("read")
    except StorageError as error:
        return error.message.removeprefix(f"{name}: ")
    return None
