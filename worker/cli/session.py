"""The session of one command: its settings, catalogue and stores."""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from worker.artifacts.reading_order import AvoidedStores
from worker.catalogue import Catalogue, CatalogueLost, CatalogueUnreadable, JobRecord, NoCatalogue, expected_identity
from worker.catalogue.sqlite import absent_directory
from worker.cli.errors import Failure, UsageError
from worker.cli.output import complain, note
from worker.exit_status import Status
from worker.report.sources import Sources
from worker.settings import Settings, load_settings
from worker.storage.configured_stores import Stores
from zot_artifact_client.contract import JobState
from zot_artifact_client.errors import BrokerUnavailable

_SQLITE = "sqlite:///"


class _LogLines(logging.Handler):
    """Prints warnings of the code that workers share, such as of a store that does not answer, as a command does."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            complain(record.getMessage())
        except (OSError, ValueError):  # standard error is full or closed: a warning must not end the command
            self.handleError(record)


@dataclass(frozen=True, slots=True)
class Session(Sources):
    """The settings, the catalogue and the stores of one command."""

    avoided: AvoidedStores = field(default_factory=AvoidedStores)
    """The stores that did not answer this command: it reads other copies first."""

    def store_names(self, given: Sequence[str] | None) -> tuple[str, ...] | None:
        """Return the names of the stores that the options give, one each or separated by commas, or None.

        Raises:
            UnknownStore: naming those that are configured. Nothing has been sent.
            Failure: a name is empty, as with `--store "$UNSET"`: without a name, all stores would be meant.
        """
        if not all(each.strip(", ") for each in given or ()):
            raise UsageError("the name of a store is empty: name one, or leave the option out")
        names = tuple(dict.fromkeys(name.strip() for each in given or () for name in each.split(",") if name.strip()))
        for name in names:
            self.check_store(name)
        return names or None

    def check_store(self, name: str | None) -> None:
        """Raise UnknownStore for the name of one store that is not configured; None is no name."""
        if name is not None and name not in self.settings.stores:
            self.stores[name]  # its error knows the nearest name

    def check_known_store(self, name: str | None) -> None:
        """Check that a store is configured, or that the catalogue has copies in it.

        Raises:
            UnknownStore: naming those that are configured.
        """
        if name is not None and name not in self.catalogue.artifacts.count_by_state():
            self.check_store(name)

    def job(self, id_: str) -> JobRecord:
        """Return the job with this id, or the only one whose id begins with it; white space around it does not count.

        A job that no worker has taken yet is found in the outbox of the broker.

        Raises:
            Failure: no job or more than one has such an id.
        """
        from worker.cli.jobs_in_outbox import jobs_in_outbox

        id_ = id_.strip()
        if not id_:
            raise UsageError("the id of a job is empty")
        ids = self.catalogue.job_admin.ids_like(id_, limit=4)
        if not ids and id_ != id_.lower():  # some programs print a UUID in capitals
            ids = self.catalogue.job_admin.ids_like(id_.lower(), limit=4)
        if id_ in ids or len(ids) == 1:
            record = self.recorded_job(id_ if id_ in ids else ids[0])
            if record is not None:
                return record
        unknown = None
        try:
            found = jobs_in_outbox(self.settings, id_, limit=4) or jobs_in_outbox(self.settings, id_.lower(), limit=4)
        except BrokerUnavailable as error:
            found, unknown = [], error
        waiting = {record.id: record for record in found}
        ids = sorted({*ids, *waiting})
        if len(ids) == 1 and ids[0] in waiting:
            return waiting[ids[0]]
        if ids:
            named = ", ".join(ids[:3]) + (", …" if len(ids) > 3 else "")  # noqa: PLR2004 - three are enough to show
            raise Failure(f"more than one job begins with {id_}: {named}", Status.USAGE, type_="AmbiguousJob")
        if unknown is not None:
            raise Failure(
                f"no worker has taken a job {id_}, and whether it waits in its queue is unknown: {unknown}",
                Status.UNKNOWN,
                type_="BrokerUnavailable",
            )
        raise Failure(
            f"no worker has taken a job {id_}: it waits in its queue or does not exist; see `zot-artifacts jobs`",
            Status.UNKNOWN,
            type_="UnknownJob",
        )

    def recorded_job(self, id_: str) -> JobRecord | None:
        """Return the job that the ledger has under this id, or the valid request that waits after a refused one."""
        from worker.cli.jobs_in_outbox import jobs_in_outbox

        record = self.catalogue.ledger.get(id_)
        if record is None or record.state != JobState.REFUSED:
            return record
        with suppress(BrokerUnavailable):
            return next((job for job in jobs_in_outbox(self.settings, id_, limit=1) if job.id == id_), record)
        return record

    def close(self) -> None:
        """Close the stores and the catalogue."""
        self.stores.close()
        self.catalogue.close()


@contextmanager
def opened(*, create: bool = False, sends: bool = False) -> Iterator[Session]:
    """Open the catalogue and the stores of the settings.

    Args:
        create: make a catalogue where there is none.
        sends: raise NoBroker first if there is no broker to send to.

    Raises:
        SettingsError: the settings or the data directory cannot be used.
        NoCatalogue: there is no catalogue, or not any more.
        CatalogueError: the catalogue cannot be used.
    """
    settings = load_settings()
    if sends:
        settings.broker_url  # noqa: B018 - raises NoBroker
    session = open_session(settings, create=create)
    try:
        yield session
    finally:
        session.close()


def open_session(settings: Settings, *, create: bool = False) -> Session:
    """Open the catalogue and the stores of these settings, with the errors of `opened`; the caller closes the session.

    Without `create`, it makes no data directory and no database: a name that is wrong must be told.
    """
    if not create and (missing := no_catalogue(settings)):
        raise missing
    logging.lastResort = _LogLines(logging.WARNING)  # for a command that does not log
    settings.prepare()
    catalogue = Catalogue(settings.catalogue_url, create=create, on_wait=_tell_wait)
    known_ids = catalogue.store_identities(settings.stores)
    stores = Stores(settings.stores, spool_dir=settings.spool_dir, known_ids=known_ids)
    return Session(settings, catalogue, stores)


def _tell_wait() -> None:
    note("another program keeps the catalogue locked, such as a backup or an open transaction in a shell: waiting")


def has_catalogue(settings: Settings) -> bool:
    """Return whether the catalogue exists; a catalogue on a server is assumed to exist."""
    file = _file(settings)
    return file is None or os.path.exists(file)  # noqa: PTH110 - False for a name that is too long


def _file(settings: Settings) -> str | None:
    """Return the path of the catalogue's file; None for one on a server."""
    if settings.catalogue is None:
        return str(settings.catalogue_file)
    url = settings.catalogue_url.partition("?")[0]
    return unquote(url.removeprefix(_SQLITE)) if url.startswith(_SQLITE) else None


def no_catalogue(settings: Settings) -> NoCatalogue | None:
    """Return why there is no catalogue, and the way out; None if there is one."""
    if has_catalogue(settings):
        return None
    try:
        os.stat(_file(settings) or "")  # noqa: PTH116 - as above
    except PermissionError as error:
        return CatalogueUnreadable(f"{error.filename}: {error.strerror}: run this command as the user of the worker")
    except (OSError, ValueError):
        pass
    if lost := expected_identity(settings.catalogue_url):
        return CatalogueLost(
            f"the file of the catalogue {lost} is gone ({settings.home}): put it back, or get it by "
            "`zot-artifacts catalogue restore STORE` or `zot-artifacts catalogue rebuild`"
        )
    start = "start `zot-artifacts up`"
    if settings.catalogue is None:
        way_out = f"set ZOT_HOME to the data directory of the worker, or {start}"
        told = f"no catalogue here (ZOT_HOME={settings.home}): {way_out}"
    else:
        file = Path(_file(settings) or "").absolute()
        # `up` does not make the directory of such a file.
        way_out = absent_directory(file) or f"name its file with ZOT_CATALOGUE, or {start}"
        told = f"no catalogue here ({file}): {way_out}"
    return NoCatalogue(told)
