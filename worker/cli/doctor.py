"""The command `doctor`."""

import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from urllib.parse import quote

import typer
from pydantic import SecretStr

from worker.artifacts.store_holds import tries_to_delete_held
from worker.artifacts.verification_log.kept_head import CheckedLog, WrittenLog, log_faults
from worker.artifacts.verification_log.signature import BadKeyFile, LogKeys
from worker.catalogue import CatalogueError, CatalogueUnavailable, NewerCatalogue, NoCatalogue
from worker.cli.output import AsJson, out, print_json, printable
from worker.cli.pause import describe_pause
from worker.cli.session import Session, has_catalogue, open_session
from worker.cli.stores import bad_copies
from worker.counted import counted
from worker.embedded.processes import too_few_files
from worker.exit_status import Status
from worker.limits.circuit_breaker import OpenBreaker
from worker.readable import size
from worker.report.check import Check
from worker.report.service_checks import (
    broker_checks,
    catalogue_of_workers,
    catalogue_writes,
    open_breakers,
    owner_of_broker,
    told_since_when,
    way_out_of_breaker,
)
from worker.report.unconfigured_stores import unconfigured, way_out_of_unconfigured
from worker.settings.loading import load_settings
from worker.settings.model import Settings
from worker.settings.private_data_directory import (
    is_volume_of_another_user,
    private_paths,
    readable_by_others,
    way_out_of_home,
)
from worker.storage.config import FilesystemConfig, StoreConfig
from worker.storage.errors import HoldNotOffered, OtherStore, OtherWriter, SameStore, StorageError
from worker.storage.keys import PROBE_BUCKET
from worker.storage.probe import LEAST_FREE, PROBE, probe
from worker.storage.same_place import indistinguishable
from zot_artifact_client import ArtifactClient, ClientError, JobFailed
from zot_artifact_client.contract import SWEEP_LEFTOVERS, JobState

_ANSWER_WITHIN = 5.0
"""Seconds that a worker has to answer a query."""


def doctor(as_json: AsJson = False) -> None:
    """Check settings, stores, broker, workers and beat.

    Each line is one check: its name, its state, and what to do if it is not good.
    Every store is probed: a small object is written, read, verified, listed and deleted.
    The exit status is 1 if a check is bad, and 3 if one could not be made.

    Example:

        zot-artifacts doctor
    """
    settings = load_settings()
    checks = []
    for check in _checks(settings):
        checks.append(check)
        if not as_json:
            _print(check)
    if as_json:
        print_json({"good": all(c.outcome == "good" for c in checks), "checks": [asdict(c) for c in checks]})
    raise typer.Exit(_status(checks))


def _checks(settings: Settings) -> Iterator[Check]:
    config = os.environ.get("ZOT_CONFIG")
    yield Check("settings", "good", f"read from {config or 'the environment'}; stores: {', '.join(settings.stores)}")
    if is_home := _is_data_directory(settings):  # nothing is made in another one: it may be a wrong ZOT_HOME
        settings.prepare()
        yield _home(settings)
    if few := too_few_files():
        yield Check("open files", "bad", few)
    yield from _source_roots(settings)
    yield from _webhooks(settings)
    is_served = False
    for check in broker_checks(settings):
        yield check
        is_served |= (check.name, check.outcome) == ("workers", "good")
    workers = settings
    with ExitStack() as opened:
        is_there = True
        try:
            try:
                session = open_session(settings)
            except NoCatalogue as error:  # the stores are checked all the same, with one that goes away
                is_there = False
                yield Check("catalogue", "unknown", told_since_when(settings, error))
                aside = Path(opened.enter_context(tempfile.TemporaryDirectory()))
                url = f"sqlite:///{quote(str(aside / 'catalogue.sqlite3'))}"
                there = {} if is_home else {"home": aside, "stores": _outside(settings)}
                settings = settings.model_copy(update={"catalogue": SecretStr(url), **there})
                session = open_session(settings, create=True)
        except CatalogueError as error:
            yield Check("catalogue", "unknown", told_since_when(settings, error))  # the error names the way out
            return
        opened.callback(session.close)
        try:
            # Only here: where this process cannot open the catalogue, the workers wait for the same cause.
            refused = list(_catalogue_of_one_worker(workers)) if is_served else []
            yield from refused
            if is_there:
                writes = list(catalogue_writes(settings, session.catalogue))
                yield from writes
                if not writes and not refused:  # another worker may have answered
                    yield from catalogue_of_workers(settings)
                yield _log(session)
                yield from owner_of_broker(settings, session.catalogue)
            yield from _catalogue(session)
        except CatalogueError as error:
            yield _gone_or_damaged(settings, error)


def _gone_or_damaged(settings: Settings, error: CatalogueError) -> Check:
    """Return what an error of the open catalogue says: it has gone away since, or a part of it is damaged."""
    try:
        open_session(settings).close()
    except CatalogueError as gone:
        return Check("catalogue reads", "unknown", told_since_when(settings, gone))
    return Check("catalogue reads", "bad", str(error))


def _catalogue_of_one_worker(settings: Settings) -> Iterator[Check]:
    """Ask a worker: it refuses its catalogue where the file was replaced, also by one that opens well here.

    A worker that is too busy to answer tells nothing.
    """
    try:
        with ArtifactClient(settings.broker_url, settings.results_url) as client:
            client.list("any", limit=1, timeout=_ANSWER_WITHIN)
    except JobFailed as error:
        if error.type in {each.__name__ for each in (CatalogueUnavailable, CatalogueError, NewerCatalogue)}:
            yield Check("catalogue of the workers", "bad", str(error), "restart the workers once it is the right one")
    except ClientError:
        pass


def _is_data_directory(settings: Settings) -> bool:
    """Return whether a program has used the data directory, or has a catalogue elsewhere."""
    used = (settings.run_dir, settings.spool_dir, settings.staging_dir)
    return has_catalogue(settings) or all(map(os.path.isdir, used))


def _outside(settings: Settings) -> dict[str, StoreConfig]:
    """Return the stores that are not in the data directory."""
    return {
        name: store
        for name, store in settings.stores.items()
        if not (isinstance(store, FilesystemConfig) and settings.home in store.root.parents)
    }


def _home(settings: Settings) -> Check:
    name = "data directory"
    try:
        with tempfile.TemporaryFile(dir=settings.home) as file:
            file.write(PROBE)
    except OSError as error:
        detail = f"{settings.home} cannot be used: {error.strerror}"
        return Check(name, "bad", detail, way_out_of_home(settings.home, error))
    own_stores = [
        store.root
        for store in settings.stores.values()
        if isinstance(store, FilesystemConfig) and store.dir_mode is None and settings.home in store.root.parents
    ]
    exposed = readable_by_others([*private_paths(settings.home), *own_stores])
    volumes = [each for each in exposed if is_volume_of_another_user(each[0])]
    if open_paths := [each for each in exposed if each not in volumes]:
        return Check(name, "bad", f"other users can read {_with_modes(open_paths)}", _way_to_close(open_paths))
    free = shutil.disk_usage(settings.home).free
    detail = f"{settings.home}: writable, {size(free)} free"
    if free < LEAST_FREE:
        return Check(name, "bad", detail, "make room: downloads and staged files wait there")
    if volumes:
        advice = f"other users of this machine can use {_with_modes(volumes)}: right in a container without other users"
        return Check(name, "good", detail, advice)
    return Check(name, "good", detail)


def _with_modes(found: list[tuple[Path, int]]) -> str:
    return ", ".join(f"{path} (mode {mode:04o})" for path, mode in found)


def _way_to_close(found: list[tuple[Path, int]]) -> str:
    """Return the command that closes these paths to others; only their owner or root may run it."""
    paths = " ".join(shlex.quote(str(path)) for path, _ in found)
    closed = f"chmod go= {paths}"
    if all(os.geteuid() in {0, path.stat().st_uid} for path, _ in found):
        return closed
    return f"as root: chown {os.geteuid()} {paths} && {closed}"


def _source_roots(settings: Settings) -> Iterator[Check]:
    for root in settings.sources.roots:
        if root.is_dir() and os.access(root, os.R_OK | os.X_OK):
            yield Check("source root", "good", str(root))
        else:
            yield Check("source root", "bad", f"{root}: no directory that can be read", "correct sources.roots")


def _webhooks(settings: Settings) -> Iterator[Check]:
    for name, receiver in settings.webhooks.items():
        if receiver.buckets is None:
            detail = "it has no `buckets`: a token of the gateway that is for some buckets cannot name it"
            way_out = f'set webhooks.{name}.buckets, to ["*"] if every token may name it'
            yield Check(f"webhook {name}", "good", detail, way_out)


# Catalogue and stores


def _catalogue(session: Session) -> Iterator[Check]:
    breakers = open_breakers(session.settings)
    yield from _twins(session.settings)
    for name in session.settings.stores:
        check = _store(session, name, breakers.get(name))
        yield check
        if check.outcome == "good":
            yield from _checksums(session, name)
            yield from _holds(session, name)
    yield from _foreign_uploads(session)
    for name, states in unconfigured(session).items():
        copies = ", ".join(f"{count} {state}" for state, count in states.items())
        detail = f"not configured, and the catalogue has copies in it: {copies}"
        yield Check(f"store {name}", "bad", detail, way_out_of_unconfigured(session, name))
    yield from _copies(session)
    for name, reason in session.catalogue.repairs.untrusted().items():
        way_out = f"find out what is wrong with it, then `zot-artifacts stores trust {name}`"
        yield Check(f"repairs {name}", "bad", f"stopped: {reason}", way_out)
    for pause in session.catalogue.pauses.all():
        way_out = f"`zot-artifacts resume {pause.scope} {pause.name}` ends it"
        detail = f"paused {describe_pause(pause.since, pause.reason)}"
        yield Check(f"{pause.scope} {pause.name}", "good", detail, way_out)


def _holds(session: Session, name: str) -> Iterator[Check]:
    """Check a store that offers holds of its own: it has to refuse to delete what it holds."""
    store, title = session.stores[name], f"holds {name}"
    try:
        if not store.capabilities.reserved_buckets or not store.offers_hold(PROBE_BUCKET):
            return
        fault = tries_to_delete_held(store)
    except HoldNotOffered:
        return
    except StorageError as error:
        yield Check(
            title, "unknown", error.message, "allow the worker to place and end legal holds, or switch them off"
        )
        return
    if fault:
        yield Check(title, "bad", fault, "do not rely on holds of this store; those of the catalogue still count")
    else:
        yield Check(title, "good", "the store refuses to delete what it holds")


def _copies(session: Session) -> Iterator[Check]:
    for name, states in session.catalogue.artifacts.count_by_state().items():
        if bad := bad_copies(states):
            detail = ", ".join(f"{count} {state}" for state, count in bad.items())
            yield Check(f"copies {name}", "bad", detail, "`zot-artifacts status` names them")


def _log(session: Session) -> Check:
    """Check the rows that were added since the last check: the whole log may take minutes to read."""
    record = CheckedLog(session.settings.run_dir, session.catalogue)
    checked, head = record.get(), session.catalogue.verifications.durable_head()
    stores = [session.stores[name] for name in session.settings.stores]
    try:
        faults = log_faults(
            stores,
            session.catalogue,
            checked,
            LogKeys.of(session.settings.verification_log),
            written=WrittenLog(session.settings.run_dir, session.catalogue).get(),
        )
    except BadKeyFile as error:
        return Check("catalogue", "bad", str(error), "correct the setting, or bring the file back")
    if not faults:
        if head is not None:
            record.put(head)
        since = f" since row {checked.id}; `zot-artifacts log verify` reads all" if checked else ""
        detail = f"its tables are up to date, the chain of the verification log is whole{since}"
        return Check("catalogue", "good", detail)
    if faults == [session.catalogue.backup_times.unaccepted()]:
        return Check("catalogue", "bad", faults[0])
    return Check("catalogue", "bad", "; ".join(faults), "compare it with a backup; later verdicts are no evidence")


def _store(session: Session, name: str, breaker: OpenBreaker | None) -> Check:
    title = f"store {name}"
    try:
        store = session.stores[name]
        store.health_check()
        store.check_identity("write")
        fault = probe(store)
        advice = [*store.advice(), *_open_root(session.settings, name)]
    except (SameStore, OtherStore, OtherWriter, CatalogueError) as error:
        return _wrong_store(session, name, error)
    except StorageError as error:
        detail = error.message.removeprefix(f"{name}: ")
        if breaker:
            told = str(breaker)
            return Check(title, "unknown", told if detail in told else f"{detail}; {told}", way_out_of_breaker(name))
        has_way_out = isinstance(session.settings.stores[name], FilesystemConfig)  # in the message
        return Check(title, "unknown", detail, None if has_way_out else f"see `stores.{name}` in the settings")
    if fault:
        return Check(title, "bad", fault.removeprefix(f"{name}: "), "do not rely on it before that is repaired")
    if breaker:
        return Check(title, "bad", str(breaker), "it answers here now: `zot-artifacts sweep probe` closes the breaker")
    detail = f"{session.settings.stores[name].type}: writes, reads, verifies, lists and deletes"
    return Check(title, "good", detail, "; ".join(advice) or None)


def _wrong_store(session: Session, name: str, error: SameStore | OtherStore | OtherWriter | CatalogueError) -> Check:
    """Tell what is there, and how many copies count twice: earlier versions recorded them in both names of a place.

    Or tell that the catalogue cannot record the id of the store, because its disk is full or it is read only.
    """
    if isinstance(error, CatalogueError):
        return Check(f"store {name}", "unknown", str(error))
    detail = error.message.removeprefix(f"{name}: ")
    other = error.other if isinstance(error, SameStore) else None
    twice = session.catalogue.store_records.count_in_both(name, other) if other else 0
    if not twice:
        return Check(f"store {name}", "bad", detail)
    told = f"copies of {counted(twice, 'artifact version')} are recorded in both, and each pair is one copy"
    way_out = (
        f"if {name} is the one that you remove, end its records: `zot-artifacts stores forget {shlex.quote(name)}`"
    )
    return Check(f"store {name}", "bad", f"{detail}; {told}", way_out)


def _twins(settings: Settings) -> Iterator[Check]:
    for one, two in indistinguishable(settings.stores):
        detail = (
            f"whether they are one place at two addresses cannot be told: no marker can be written to {one} or {two}"
        )
        way_out = f"name a bucket of yours with stores.{one}.reserved_bucket, or stores.{two}.reserved_bucket"
        yield Check(f"stores {one} and {two}", "unknown", detail, way_out)


def _open_root(settings: Settings, name: str) -> Iterator[str]:
    """Tell that other users can use the root of a store outside the data directory, unless the settings say so."""
    store = settings.stores[name]
    if isinstance(store, FilesystemConfig) and store.dir_mode is None and settings.home not in store.root.parents:
        for path, mode in readable_by_others([store.root]):
            closed = f"chmod go= {shlex.quote(str(path))}"
            yield f"other users can use {path} (mode {mode:04o}): `{closed}`, or set stores.{name}.dir_mode"


def _checksums(session: Session, name: str) -> Iterator[Check]:
    """Check whether bytes that are damaged on their way are detected, by the store or by the worker."""
    title, store = f"checksums {name}", session.stores[name]
    try:
        refuses = store.refuses_damage()
    except StorageError as error:
        yield Check(title, "unknown", error.message)
        return
    if refuses is None:
        if store.capabilities.checks_uploads is None:
            yield Check(title, "good", "not tried without a reserved_bucket; every write is read back")
        return
    reads_back = not store.checks_uploads()
    told = "the store refuses wrong checksums" if refuses else "the store does not refuse wrong checksums"
    detail = f"{told}; writes are {'read back' if reads_back else 'not read back'}"
    if refuses or reads_back:
        yield Check(title, "good", detail)
    else:
        yield Check(
            title,
            "bad",
            f"{detail}: an upload that is damaged on the way is not noticed",
            f"remove stores.{name}.read_back",
        )


def _foreign_uploads(session: Session) -> Iterator[Check]:
    """Tell what the last cleanup left: to list it anew can take as long as a listing of the whole store."""
    for record in session.catalogue.job_admin.find([JobState.SUCCEEDED], kind=SWEEP_LEFTOVERS.kind, limit=1):
        for name, count in ((record.result or {}).get("foreign") or {}).items():
            detail = f"{counted(count, 'unfinished upload')} of other programs, as the last cleanup found"
            way_out = "end them there, or set `sweep.cleanup.foreign_uploads: abort`"
            yield Check(f"uploads {name}", "good", detail, way_out)


def _status(checks: list[Check]) -> Status:
    outcomes = {check.outcome for check in checks}
    if "bad" in outcomes:
        return Status.BAD
    return Status.UNKNOWN if "unknown" in outcomes else Status.GOOD


def _print(check: Check) -> None:
    console = out()
    marks = {"good": ("✓", "ok", "green"), "bad": ("✗", "bad", "bold red"), "unknown": ("?", "?", "yellow")}
    symbol, text, style = marks[check.outcome]
    console.print(symbol if console.encoding.lower().startswith("utf") else text, style=style, end=" ")
    line = f"{check.name}: {check.detail}"
    console.print(printable(f"{line}; {check.way_out}" if check.way_out else line), markup=False)
