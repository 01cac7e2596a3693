"""The commands `quarantine`, `quarantine ls`, `get`, `restore` and `purge`."""

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Annotated, Any, BinaryIO

import typer

from worker import clock
from worker.artifacts.per_store import SingleFailures, most_retryable
from worker.artifacts.quarantined_bytes import Quarantined, digest_of, purge, quarantined
from worker.cli.arguments import STREAM, ArtifactPath, OneStore, Yes, confirm, duration, output_file
from worker.cli.atomic_file import complete_file
from worker.cli.errors import Failure, UsageError, failure_of
from worker.cli.get import check_output, file_at
from worker.cli.job_outcome import finish
from worker.cli.output import AsJson, note, print_json, print_table, say
from worker.cli.send_and_wait import WaitOptions, request_of, sender
from worker.cli.session import Session, opened
from worker.cli.upload import upload_one
from worker.counted import counted
from worker.readable import size
from worker.storage.errors import StorageError
from worker.storage.keys import QUARANTINE_BUCKET
from worker.storage.spooling import spooling_in
from zot_artifact_client.contract import UPLOAD
from zot_artifact_client.job_ids import choose_id

app = typer.Typer(invoke_without_command=True, add_completion=False)

StoreName = Annotated[str, typer.Argument(metavar="STORE", help="The store whose quarantine it is in.")]
Id = Annotated[str, typer.Argument(metavar="ID", help="BUCKET/JOB/KEY, as `quarantine ls` lists it.")]


Older = Annotated[
    timedelta | None,
    typer.Option("--older-than", parser=duration, metavar="TIME", help="Only what is older, such as 90d."),
]


@app.callback()
def _quarantine(context: typer.Context, store: OneStore = None, as_json: AsJson = False) -> None:
    """List, fetch, restore or purge the bad bytes that repairs have kept.

    Examples:

        zot-artifacts quarantine
        zot-artifacts quarantine ls --store dr
        zot-artifacts quarantine get dr releases/5f0a1d0e/app.tgz bad.tgz
    """
    if context.invoked_subcommand is None:
        list_(store=store, as_json=as_json)


@app.command("ls")
def list_(
    prefix: Annotated[
        str, typer.Argument(metavar="BUCKET/", help="Only ids that begin with this, such as releases/.")
    ] = "",
    *,
    store: OneStore = None,
    as_json: AsJson = False,
) -> None:
    """List the quarantined bytes: their artifact, since when, and the digest that the last verdict found.

    `quarantine` alone does the same.
    The column `purged after` says `never` if no retention is configured, or if the job is no longer in the ledger.
    Such bytes are removed only by `quarantine purge STORE ID`.
    The column `sha256` says `not read` if the verdict needed no read, as for a copy of another size.
    `quarantine get` prints the digest then.

    Example:

        zot-artifacts quarantine ls --store dr
    """
    with opened() as session:
        rows = [_row(session, found) for found in _all(session, store, prefix)]
        retention = session.settings.quarantine.retention
    if as_json:
        print_json({"quarantined": rows, "retention_seconds": retention.total_seconds() if retention else None})
    else:
        columns = ("store", "id", "size", "kept since", "purged after", "sha256")
        cells = [
            (
                row["store"], row["id"], size(row["size"] or 0), row["at"] or "not known",
                row["purged_after"] or "never", row["sha256"] or "not read",
            )
            for row in rows
        ]  # fmt: skip
        print_table(columns, cells, empty="nothing is in quarantine", flexible=("id", "sha256"))


@app.command()
def get(
    store: StoreName,
    id_: Id,
    dest: Annotated[
        str, typer.Argument(metavar="DEST", help="A file, a directory to put it into, or `-` for standard output.")
    ],
    as_json: AsJson = False,
) -> None:
    """Write quarantined bytes to a file or to standard output, without verifying them.

    Example:

        zot-artifacts quarantine get dr releases/5f0a1d0e/app.tgz bad.tgz
    """
    check_output(dest, as_json=as_json)
    with opened() as session:
        found = _find(session, store, id_)
        path = output_file(dest) if dest == STREAM else file_at(dest, found.key)
        with complete_file(path, session.settings.spool_dir) as file:
            sha256 = _copy(session, found, file)
    about = f"{size(found.size or 0)} sha256 {sha256}, as it was in the quarantine of {store}"
    if as_json:
        print_json({"store": store, "id": id_, "path": str(path), "size": found.size, "sha256": sha256})
    elif dest == STREAM:
        note(f"{id_}: {about}")
    else:
        say(f"{path}: {about}")


@app.command()
def restore(
    store: StoreName,
    id_: Id,
    as_: Annotated[
        str | None, typer.Option("--as", metavar="BUCKET/KEY", help="Upload them as this artifact instead.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Upload quarantined bytes again. They stay in quarantine.

    Without --as they must have the digest of the artifact's current version, or the artifact must be gone.

    Example:

        zot-artifacts quarantine restore dr releases/5f0a1d0e/app.tgz --as rescued/app.tgz
    """
    with opened() as session:
        found = _find(session, store, id_)
        at = ArtifactPath.parse(as_ or f"{found.bucket}/{found.key}")
        path = session.settings.spool_dir / f"zot-restore-{choose_id(UPLOAD)}"
        try:
            with spooling_in(session.settings.spool_dir), path.open("xb") as file:
                sha256 = _copy(session, found, file)
            if as_ is None:
                _check_wanted(session, found, sha256)
            request = request_of(UPLOAD, bucket=at.bucket, key=at.key, source=str(path), sha256=sha256)
            with sender(session, "restoring", WaitOptions()) as way:
                outcome = upload_one(way, choose_id(UPLOAD), request, path)
        finally:
            path.unlink(missing_ok=True)
    finish(outcome, waited=True, as_json=as_json)


@app.command("purge")
def purge_(
    store: Annotated[str | None, typer.Argument(metavar="STORE", help="With ID: the store that it is in.")] = None,
    id_: Annotated[
        str | None, typer.Argument(metavar="ID", help="BUCKET/JOB/KEY, as `quarantine ls` lists it.")
    ] = None,
    *,
    older_than: Older = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be deleted, and delete nothing.")
    ] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Delete bytes from the quarantine for good: those of one ID, or all that are older than a time.

    --older-than keeps bytes whose job is no longer in the ledger: purge them by their ID.

    Examples:

        zot-artifacts quarantine purge --older-than 90d --dry-run

        zot-artifacts quarantine purge dr releases/5f0a1d0e/app.tgz
    """
    if (id_ is None) == (older_than is None):
        raise UsageError("name a STORE and an ID, or give --older-than")
    with opened() as session:
        if id_ is not None and store is not None:
            chosen = [_find(session, store, id_)]
        else:
            before = clock.earliest() - (older_than or timedelta())
            chosen = [each for each in _all(session, store, "") if each.at is not None and each.at <= before]
            if chosen and not dry_run:
                confirm(f"delete {counted(len(chosen), 'object')} from quarantine for good?", yes=yes)
        gone, failures = (chosen, {}) if dry_run else _purged(session, chosen)
    total = sum(each.size or 0 for each in gone)
    if as_json:
        failed = {name: error.message for name, error in failures.items()}
        print_json({"purged": [asdict(each) for each in gone], "bytes": total, "dry_run": dry_run, "failed": failed})
    else:
        for each in gone:
            say(f"{each.store}: {each.id}")
        say(f"{counted(len(gone), 'object')}, {size(total)} {'would be ' * dry_run}deleted from quarantine")
        for error in failures.values():
            note(f"{error}; what is left stays in quarantine: run this again")
    if failures and (failure := failure_of(most_retryable(list(failures.values())))):
        raise typer.Exit(failure.status)


def _purged(session: Session, chosen: list[Quarantined]) -> tuple[list[Quarantined], dict[str, StorageError]]:
    """Purge these, and return those that are gone, with the error of each store that kept one.

    A store that is away stops no other one, and one object that cannot be deleted stops no other one of its store.
    """
    gone: list[Quarantined] = []
    failures: dict[str, SingleFailures] = defaultdict(SingleFailures)
    away: dict[str, StorageError] = {}
    for each in chosen:
        if each.store in away:
            continue
        try:
            gone += [each] if purge(session.stores[each.store], each) else []
        except StorageError as error:
            try:
                failures[each.store].add(error)
            except StorageError:
                away[each.store] = error
        else:
            failures[each.store].ended()
    return gone, {name: found.all[-1] for name, found in failures.items() if found.all}


def _all(session: Session, store: str | None, prefix: str) -> Iterator[Quarantined]:
    session.check_store(store)
    for name in [store] if store else session.settings.stores:
        if session.stores[name].capabilities.reserved_buckets:
            yield from quarantined(session.stores[name], session.catalogue, prefix)
        else:
            note(f"{name}: has no quarantine: no `reserved_bucket` is configured")


def _find(session: Session, store: str, id_: str) -> Quarantined:
    found = next((each for each in _all(session, store, id_) if each.id == id_), None)
    if found is None:
        message = f"{store}: nothing is in quarantine as {id_}: `zot-artifacts quarantine ls` lists what it keeps"
        raise Failure(message, type_="NotFound")
    return found


def _row(session: Session, found: Quarantined) -> dict[str, Any]:
    retention = session.settings.quarantine.retention
    purged: datetime | None = found.at + retention if retention and found.at else None
    return asdict(found) | {"sha256": digest_of(found, session.catalogue), "purged_after": purged}


def _copy(session: Session, found: Quarantined, file: BinaryIO) -> str:
    """Write quarantined bytes to a file, and return their SHA-256; the digest that the store keeps is another one."""
    digest = hashlib.sha256()
    store = session.stores[found.store]
    whole = store.stat_object(QUARANTINE_BUCKET, found.id).size
    with store.read_object_range(QUARANTINE_BUCKET, found.id, 0, whole) as reader:
        for piece in reader:
            digest.update(piece)
            file.write(piece)
    return digest.hexdigest()


def _check_wanted(session: Session, found: Quarantined, sha256: str) -> None:
    current = session.catalogue.artifacts.current(found.bucket, found.key)
    if current is not None and current.digest.sha256 != sha256:
        raise Failure(
            f"{current.path} version {current.version} has SHA-256 {current.digest.sha256}, these bytes have {sha256}: "
            "restore them under another key with --as BUCKET/KEY",
            type_="OtherContent",
        )
