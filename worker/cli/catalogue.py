"""The commands `catalogue export`, `import`, `backup`, `backups`, `restore` and `rebuild`."""

import contextlib
import gzip
import io
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, BinaryIO, cast
from uuid import uuid4

import typer

from worker import clock
from worker.artifacts.catalogue_backup import Backup, NoBackup, back_up, backups, restore_newest
from worker.artifacts.rebuild.kept_lists import KeptTombstones, restore_companions
from worker.artifacts.rebuild.rebuild_catalogue import Rebuild, Tally
from worker.catalogue import ExportSummary, Rules, expected_identity, load_export
from worker.catalogue.load_export import Lines
from worker.cli.arguments import STREAM, OneStore
from worker.cli.arguments import Stores as StoreNames
from worker.cli.atomic_file import complete_file
from worker.cli.errors import Failure, UsageError
from worker.cli.open_limited_stores import stores_within_limits
from worker.cli.output import AsJson, complain, flat, note, print_json, print_table, say
from worker.cli.session import opened
from worker.cli.user import user_name
from worker.counted import counted
from worker.exit_status import Status
from worker.input_files import open_input
from worker.readable import size
from worker.settings import Settings, load_settings
from worker.storage import Store as StoreOfBackups
from worker.storage import Stores
from worker.storage.errors import StorageError
from worker.storage.keys import BACKUP_BUCKET, check_bucket

app = typer.Typer(add_completion=False, no_args_is_help=True)

_NAMED = 20
_SHOW_SECONDS = 5.0
_GZIP = b"\x1f\x8b"
_EARLIER = "name the moment when the backup was really made, or an earlier one"


def _moment(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter("it is no time, such as 2026-07-11T03:15:00Z") from None
    found = found if found.tzinfo else found.replace(tzinfo=UTC)
    if found > clock.now() + clock.SKEW:  # it would record nothing, and what is newer would count as corrupt
        raise typer.BadParameter(f"{text} is in the future: {_EARLIER}")
    return found


@app.callback()
def _catalogue() -> None:
    """Export, import, back up, restore or rebuild the catalogue.

    Examples:

        zot-artifacts catalogue export catalogue.jsonl.gz
        zot-artifacts catalogue backup
        zot-artifacts catalogue restore dr
    """


@app.command("export")
def export_(
    file: Annotated[
        str,
        typer.Argument(metavar="FILE", help="The file to write, compressed if it ends in .gz; `-` is standard output."),
    ],
    as_json: AsJson = False,
) -> None:
    """Write the whole catalogue as JSON lines: one state of it, also while workers run.

    The last line has the SHA-256 of all lines before it.

    Examples:

        zot-artifacts catalogue export catalogue.jsonl.gz

        zot-artifacts catalogue export - | zstd > catalogue.jsonl.zst
    """
    with opened() as session:
        if file == STREAM:
            summary = session.catalogue.export(sys.stdout.buffer)
            sys.stdout.buffer.flush()
        else:
            with complete_file(Path(file), session.settings.spool_dir) as raw, compressed(raw, file) as sink:
                summary = session.catalogue.export(sink)
    if file == STREAM:
        note(_told(summary))
    elif as_json:
        print_json(document_of(summary) | {"path": file})
    else:
        say(f"{file}: {_told(summary)}")


@app.command("import")
def import_(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The export, compressed or not; `-` is standard input.")],
    as_json: AsJson = False,
) -> None:
    """Load an export into a new or empty catalogue: all of it, or nothing if the file is cut or damaged.

    Stop the workers first.
    ZOT_CATALOGUE names the database; with `export` before it, this moves a catalogue from SQLite to PostgreSQL or back.

    Example:

        ZOT_CATALOGUE=postgresql+psycopg://zot@db/zot zot-artifacts catalogue import catalogue.jsonl.gz
    """
    settings = load_settings()
    settings.prepare()
    with _opened(file) as raw:
        summary = load_export(settings.catalogue_url, uncompressed(raw))
    if as_json:
        print_json(document_of(summary))
    else:
        say(f"loaded {_told(summary)}")


@app.command()
def backup(store: StoreNames = None, as_json: AsJson = False) -> None:
    """Write the catalogue to the stores of `sweep.backup.stores` now, and read it back; no worker is needed.

    The newest backup of each store is restored into a temporary database where that is due.
    `zot-artifacts sweep backup` does the same as a job.

    Examples:

        zot-artifacts catalogue backup

        zot-artifacts catalogue backup --store dr
    """
    with opened() as session:
        settings = session.settings.sweep.backup
        names = list(session.store_names(store) or settings.stores)
        if not names:
            way_out = "set sweep.backup.stores to two stores, or name one with --store"
            raise UsageError(f"no store is configured for backups of the catalogue: {way_out}")
        stores = [session.stores[name] for name in names]
        done = back_up(session.catalogue, stores, settings, session.settings.spool_dir, job=str(uuid4()))
    if as_json:
        print_json(
            {"written": done.written, "faults": done.faults, "rehearsed": done.rehearsed, "removed": done.removed}
        )
    else:
        for name, key in done.written.items():
            tried = ", restored as a rehearsal" if name in done.rehearsed and name not in done.faults else ""
            say(f"{name}: {BACKUP_BUCKET}/{key}, written and read back{tried}")
        for name, fault in done.faults.items():
            complain(f"{name}: " + fault.removeprefix(f"{name}: "))
    raise typer.Exit(Status.BAD if done.faults else Status.GOOD)


@app.command("backups")
def list_backups(store: OneStore = None, as_json: AsJson = False) -> None:
    """List the backups of catalogues in the stores, the newest first; no catalogue is needed.

    Example:

        zot-artifacts catalogue backups
    """
    with _stores() as (_, stores):
        names, failed = [store] if store else list(stores), dict[str, str]()

        def list_one(name: str) -> list[Backup]:
            try:
                return list(backups(stores[name]))
            except StorageError as error:
                if store:
                    raise
                failed[name] = error.message
                return []

        with ThreadPoolExecutor(max_workers=8) as pool:  # a store that does not answer must not delay the others
            found = [each for listed in pool.map(list_one, names) for each in listed]
    found.sort(key=lambda each: each.at, reverse=True)
    if as_json:
        print_json({"backups": [asdict(each) for each in found], "failed": failed})
    else:
        columns = ("made", "store", "size", "catalogue", "backup")
        rows = [(each.at, each.store, size(each.size or 0), each.identity, each.key) for each in found]
        print_table(columns, rows, empty="no store has a backup of a catalogue", flexible=("backup",))
        for fault in failed.values():
            complain(fault)
    raise typer.Exit(Status.UNKNOWN if failed else Status.GOOD)


@app.command()
def restore(
    store: Annotated[str, typer.Argument(metavar="STORE", help="The store that has the backup.")],
    *,
    backup: Annotated[
        str | None,
        typer.Option(
            "--backup", metavar="BACKUP", help="One that `catalogue backups` lists; by default the newest complete one."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Load a backup into a new or empty catalogue: all of it, or nothing if it is damaged.

    Without --backup the newest complete one is loaded; damaged ones are named.

    Stop the workers first.
    Jobs that were open when the backup was made end as dead letters, because what happened since is unknown.
    Before the workers start, `catalogue rebuild --newer-since` records the objects that were written after the backup.
    Otherwise these objects are taken for corrupt copies of what was there before.

    Examples:

        zot-artifacts catalogue restore dr

        zot-artifacts catalogue restore dr --backup 5f0a…/20260711T031500.000000Z.5f0a1d0e.jsonl.gz
    """
    with _stores() as (settings, stores):
        found = _choose(stores[store], backup, expected_identity(settings.catalogue_url))
        chosen, summary, skipped = restore_newest(found, stores[store], settings.catalogue_url)
    for damaged, why in skipped.items():
        complain(f"{store}: {BACKUP_BUCKET}/{damaged} is damaged and was passed over: {why}")
    since = f"{summary.exported_at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
    if as_json:
        print_json(document_of(summary) | {"store": store, "backup": chosen.key, "skipped": skipped})
        return
    say(f"restored {_told(summary)}, as it was at {since}, from {BACKUP_BUCKET}/{chosen.key}")
    ahead = summary.exported_at > clock.now() + clock.SKEW
    hint = f"; a clock that was ahead made the backup: {_EARLIER}" if ahead else ""
    say(f"before the workers start, record what was written since{hint}:")
    say(f"  zot-artifacts catalogue rebuild --newer-since {'MOMENT' if ahead else since}")
    say("the verification log has no verdict since then, and the stores may keep a later head of it; accept that:")
    say("  zot-artifacts log accept --yes")


@app.command()
def rebuild(
    *,
    store: StoreNames = None,
    bucket: Annotated[
        list[str] | None, typer.Option("--bucket", metavar="BUCKET", help="Only this bucket. Can be repeated.")
    ] = None,
    believe_digests: Annotated[
        bool, typer.Option("--believe-digests", help="Take the digest that a store keeps, and read no bytes.")
    ] = False,
    first_read: Annotated[
        bool, typer.Option("--first-read", help="Record the digest of the bytes read now where no store keeps one.")
    ] = False,
    newer_since: Annotated[
        datetime | None,
        typer.Option(
            "--newer-since",
            parser=_moment,
            metavar="MOMENT",
            help="Record objects that were written after this moment, with the digest of their store, as new versions. "
            "Such as 2026-07-11T03:15:00Z.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List and count, and record nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Record what the stores have and the catalogue does not know; without a catalogue, a new one is made.

    Every object is read in full and compared with the digest that its store keeps.
    The same digest in several stores is one version with several copies.
    An object whose bytes differ from its digest is recorded as a corrupt copy with that digest, never with another.
    An artifact that was deleted stays deleted, and its grace period begins anew: each store keeps the list of deletes.
    Companions that were added by name are recorded again: each store keeps their list too.
    What the catalogue has under a key already is not changed; other content in a store is then a finding.
    The command may be interrupted: run it again, and it continues with what is not recorded.
    A paused store is not read, and the limits of stores apply.
    The lists of deletes and companions are also read from stores that `--store` does not name.
    The exit status is 1 if something is not right, such as a named bucket without objects, or is for you to decide.
    It is 3 if a store or an object could not be read.

    Examples:

        zot-artifacts catalogue rebuild --dry-run

        zot-artifacts catalogue rebuild --newer-since 2026-07-11T03:15:00Z
    """  # fmt: skip
    buckets = tuple(map(check_bucket, bucket or ()))
    job = f"rebuild-{uuid4()}"
    with opened(create=True) as session:
        names, spool_dir = session.store_names(store) or tuple(session.stores), session.settings.spool_dir
        others = [name for name in session.stores if name not in names]  # only for the lists that they keep
        limited = stores_within_limits(
            session.settings, session.stores, names, catalogue=session.catalogue, optional=others
        )
        with limited as stores, KeptTombstones(stores, spool_dir) as tombstones:
            run = Rebuild(
                session.catalogue, stores[: len(names)], Rules(first_read, newer_since, session.settings.delete.grace),
                session.settings.page, job=job, by=user_name(), tombstones=tombstones, believe_digests=believe_digests,
                dry_run=dry_run, on_page=_Shown().show,
            )  # fmt: skip
            tally = run.run(buckets)
            companions = 0 if dry_run else restore_companions(session.catalogue, stores, spool_dir)
    if as_json:
        print_json(_document(tally, job=job, dry_run=dry_run, companions=companions))
    else:
        _print(tally, companions)
    empty = sorted({*buckets} - run.found_in)
    for each in empty:
        complain(f"no store has listed an object in the bucket {each}")
    raise typer.Exit(_status(tally) or (Status.BAD if empty else Status.GOOD))


def _document(tally: Tally, *, job: str, dry_run: bool, companions: int) -> dict[str, object]:
    return {
        "job": job,
        "dry_run": dry_run,
        "stores": {name: {**asdict(each), "outcomes": dict(each.outcomes)} for name, each in tally.stores.items()},
        "deletes_redone": tally.deletes_redone,
        "deletes_undone": tally.deletes_undone,
        "companions": companions,
        "named": [asdict(each) for each in tally.named],
    }


def _status(tally: Tally) -> Status:
    outcomes = {outcome for each in tally.stores.values() for outcome in each.outcomes}
    if outcomes & {"corrupt", "conflict", "no_digest", "undecided"}:
        return Status.BAD
    unread = "unreadable" in outcomes or any(each.error for each in tally.stores.values())
    return Status.UNKNOWN if unread else Status.GOOD


def _print(tally: Tally, companions: int) -> None:
    columns = ("store", "objects", "bytes", "outcomes")
    rows = [
        (name, each.listed, size(each.bytes), flat(dict(sorted(each.outcomes.items()))))
        for name, each in tally.stores.items()
    ]
    print_table(columns, rows, empty="no stores")
    if tally.deletes_redone:
        say(f"{counted(tally.deletes_redone, 'artifact')} deleted again, as after the backup")
    if tally.deletes_undone:
        say(f"{counted(tally.deletes_undone, 'delete')} undone again, as after the backup")
    for each in tally.named[:_NAMED]:
        complain(f"{each.store}: {each.bucket}/{each.key}: {each.outcome}: {each.detail}")
    if len(tally.named) > _NAMED:
        complain("and more: `zot-artifacts findings`, or --json for the first thousand")
    for name, of in tally.stores.items():
        if of.error:
            complain(f"{name}: it was not read to its end: {of.error}; run the command again when it is back")
    if companions:
        say(f"{counted(companions, 'named companion')} recorded again")


class _Shown:
    """Shows now and then how far a rebuild is."""

    def __init__(self) -> None:
        self._shown = time.monotonic()

    def show(self, tally: Tally) -> None:
        """Print one line, if the last one is old."""
        if time.monotonic() - self._shown >= _SHOW_SECONDS:
            self._shown = time.monotonic()
            done = {name: sum(each.outcomes.values()) for name, each in tally.stores.items()}
            note(f"rebuild: objects done: {flat(done)}")


def _choose(store: StoreOfBackups, key: str | None, expected: str | None) -> list[Backup]:
    """Return the backup of this key, or all of the only catalogue that a store has backups of, the newest first."""
    found = backups(store)
    if key is not None:
        named = next((each for each in found if each.key == key.removeprefix(f"{BACKUP_BUCKET}/")), None)
        if named is None:
            raise NoBackup(f"{store.name} has no backup {key}: see `zot-artifacts catalogue backups`")
        return [named]
    own = [each for each in found if expected in {None, each.identity}]
    if not own:
        of = f" of the catalogue {expected}" if expected else ""
        raise NoBackup(f"{store.name} has no backup{of}: see `zot-artifacts catalogue backups`")
    if len({each.identity for each in own}) > 1:
        raise Failure(
            f"{store.name} has backups of more than one catalogue: choose one of `zot-artifacts catalogue backups` "
            "with --backup",
            Status.USAGE,
            type_="AmbiguousBackup",
        )
    return own


@contextlib.contextmanager
def _stores() -> Iterator[tuple[Settings, Stores]]:
    """Yield the settings and the stores without the catalogue, which may be lost."""
    settings = load_settings()
    settings.prepare()
    stores = Stores(settings.stores, spool_dir=settings.spool_dir)
    try:
        yield settings, stores
    finally:
        stores.close()


@contextlib.contextmanager
def compressed(file: BinaryIO, name: str) -> Iterator[BinaryIO]:
    """Yield the file, or what compresses into it if the name ends in .gz."""
    if not name.endswith(".gz"):
        yield file
        return
    with gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=6, mtime=0) as sink:
        yield cast("BinaryIO", sink)


def uncompressed(file: io.BufferedReader) -> Lines:
    """Return the lines of a file that may be compressed."""
    return gzip.GzipFile(fileobj=file) if file.peek(2)[:2] == _GZIP else file


def document_of(summary: ExportSummary) -> dict[str, object]:
    """Return a summary as a JSON document."""
    head = summary.log_head
    return {
        "catalogue": summary.identity,
        "exported_at": summary.exported_at,
        "sha256": summary.sha256,
        "rows": dict(summary.rows),
        "log_head": {"id": head.id, "hash": head.hash, "at": head.at} if head else None,
    }


def _told(summary: ExportSummary) -> str:
    rows = summary.rows
    counts = ", ".join(f"{rows.get(name, 0)} {name}" for name in ("artifacts", "copies", "verifications", "jobs"))
    return f"{counted(summary.total, 'row')} ({counts}) of the catalogue {summary.identity}, sha256 {summary.sha256}"


@contextlib.contextmanager
def _opened(file: str) -> Iterator[io.BufferedReader]:
    if file == STREAM:
        yield cast("io.BufferedReader", sys.stdin.buffer)
        return
    with open_input(file) as raw:
        yield raw
