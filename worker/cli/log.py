"""The commands `log verify` and `log accept`."""

from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated

import typer

from worker import clock
from worker.artifacts.verification_log.kept_head import (
    CheckedLog,
    WrittenLog,
    accept_head,
    log_faults,
    signed_head,
)
from worker.artifacts.verification_log.signature import LogKeys
from worker.artifacts.verification_log.writer import is_refused, running_copy
from worker.catalogue import ALIVE, Catalogue, FindingKind
from worker.cli.errors import Failure
from worker.cli.output import AsJson, complain, print_json, say
from worker.cli.session import Session, opened
from worker.counted import counted
from worker.exit_status import Status
from worker.readable import moment
from worker.storage import Store
from worker.storage.errors import StorageError

app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.callback()
def _log() -> None:
    """Check that the verification log was not changed.

    Every verdict on a copy is a row of this log.

    Example:

        zot-artifacts log verify
    """


@app.command()
def verify(
    archives: Annotated[bool, typer.Option("--archives", help="Read the archived months, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check that no row of the log was changed or removed since it was written; all rows are read.

    Each row holds the hash of the row before it, and each store keeps the hash of the last row.
    Months that were archived must be in two stores; with --archives their rows are read from each store.
    With `verification_log.signing_key` or `verification_log.public_keys` set, what a store keeps must be signed.
    A broken chain is a finding from then on, until `log verify` finds it whole.
    The exit status is 1 if the chain is broken, or if the log does not fit what a store keeps.

    Example:

        zot-artifacts log verify
    """
    with opened() as session:
        keys = LogKeys.of(session.settings.verification_log)
        broken = _see_chain(session)
        stores = [session.stores[name] for name in session.settings.stores]
        written = _written(session).get()
        faults = log_faults(stores, session.catalogue, keys=keys, written=written, read_archives=archives)
        restored = session.catalogue.backup_times.unaccepted()
        head, (_, archived) = signed_head(session.catalogue, keys), session.catalogue.log_archives.extent()
    if as_json:
        print_json({"good": not faults, "first_broken": broken, "faults": faults, "head": head, "archived": archived})
    elif not faults:
        end = (
            f": {counted(head['count'], 'row')}, the last of {moment(head['at'])} with hash {head['hash']}"
            if head
            else ""
        )
        say(f"the chain of the verification log is whole{end}")
        if archived:
            how = "read from each store that has them" if archives else "and two stores say that they have them"
            say(f"{counted(archived, 'row')} of it are archived, {how}")
    for fault in () if as_json else faults:
        complain(fault if fault == restored else f"{fault}: compare it with a backup")
    raise typer.Exit(Status.BAD if faults else Status.GOOD)


@app.command()
def accept(
    yes: Annotated[bool, typer.Option("--yes", help="Accept that rows of the log are lost.")] = False,
    take_over: Annotated[
        bool,
        typer.Option(
            "--take-over", help="Also where another copy of the catalogue gave a sign in the last 15 minutes."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Record the present head of the log in every store, in place of the head that it keeps.

    After a restore the rows since that backup are lost, and `log verify` reports that until `log accept` is run.
    Until then the stores keep their lists of deletes and companions, which `catalogue rebuild` needs.
    `log verify` also reports heads that were written before `verification_log.signing_key` was set.
    The heads that are replaced stay in the stores beside the new ones.
    Only this copy of the catalogue writes to the stores from then on: stop the programs of every other one before.
    One that gave a sign in the last 15 minutes may still run, and is named; --take-over does not wait.
    The grace period of each delete begins anew then, because the other copy may have undone it.
    Where the chain itself is broken, restore a backup that is whole.
    Without one, --yes records the head all the same: the broken chain stays a finding, and the exit status is 1.

    Example:

        zot-artifacts log accept --yes
    """
    with opened() as session:
        keys, catalogue = LogKeys.of(session.settings.verification_log), session.catalogue
        broken = _see_chain(session)
        stores = [session.stores[name] for name in session.settings.stores]
        faults = log_faults(stores, catalogue, keys=keys, written=_written(session).get())
        if broken is not None and not yes:
            others = [each for each in faults if each != _broken_at(broken)]  # such as lost rows, which --yes accepts
            told = "; ".join([*others, _broken_at(broken)])
            raise Failure(f"{told}: restore it from a backup; if no whole one is left, add --yes")
        if faults and not yes:
            raise Failure(f"{'; '.join(faults)}: add --yes to accept that", Status.USAGE, type_="NotAccepted")
        if not take_over and (running := _running_copies(stores, catalogue)):
            raise Failure(running, Status.BAD, type_="OtherWriter")
        _postpone_purges(session, stores)
        catalogue.backup_times.accept_restored()  # first: until then nothing can be written to a store
        kept, failed = {}, {}
        for store in stores:
            try:
                kept[store.name] = accept_head(store, catalogue, keys)
            except StorageError as error:
                failed[store.name] = error.message
        CheckedLog(session.settings.run_dir, catalogue).forget()
        _written(session).forget()
    if as_json:
        print_json({"accepted": faults, "first_broken": broken, "replaced": kept, "failed": failed})
    else:
        for name, aside in kept.items():
            say(f"{name}: keeps the present head" + (f"; the one before is {aside}" if aside else ""))
        for name, message in failed.items():
            complain(f"{name}: {message}")
        if broken is not None:
            complain(f"{_broken_at(broken)}: restore it from a backup; until then this is a finding")
    raise typer.Exit(Status.UNKNOWN if failed else Status.GOOD if broken is None else Status.BAD)


def _postpone_purges(session: Session, stores: Sequence[Store]) -> None:
    """Begin the grace periods anew if another copy of the catalogue wrote to a store: it may have undone deletes."""
    for store in stores:
        with suppress(StorageError):  # it is named as failed
            if is_refused(store, session.catalogue):
                session.catalogue.deletions.postpone(clock.now() + session.settings.delete.grace)
                return


def _running_copies(stores: Sequence[Store], catalogue: Catalogue) -> str | None:
    """Return that another copy of the catalogue may still write to stores; None if none does."""
    found: dict[str, list[str]] = {}
    last = datetime.min.replace(tzinfo=UTC)
    for store in stores:
        with suppress(StorageError):  # it is named as failed
            if other := running_copy(store, catalogue):
                found.setdefault(other.place, []).append(store.name)
                last = max(last, other.at)
    if not found:
        return None
    named = "; ".join(f"{place} uses {', '.join(names)}" for place, names in found.items())
    return (
        f"another copy of this catalogue may still run: {named}, the last sign of it is of {moment(last)}: stop its "
        f"programs, and run this command again after {moment(last + ALIVE)}, or now with --take-over; for a drill use "
        "copies of the stores"
    )


def _see_chain(session: Session) -> int | None:
    """Return the first row that breaks the chain, or None; open or resolve the finding about that."""
    broken = session.catalogue.verifications.first_broken()
    evidence = None if broken is None else {"detail": _broken_at(broken)}
    session.catalogue.findings.see_store(FindingKind.LOG_CHANGED, "", evidence, now=clock.now())
    return broken


def _broken_at(row: int) -> str:
    return f"the verification log was changed at row {row}"


def _written(session: Session) -> WrittenLog:
    return WrittenLog(session.settings.run_dir, session.catalogue)
