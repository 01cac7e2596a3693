"""The context of a process: its settings, its catalogue, its stores and their limits."""

import difflib
import os
from dataclasses import dataclass
from shlex import quote

from worker.catalogue import Artifact, Catalogue
from worker.limits.admission import Admission
from worker.limits.check_pauses import PauseCheck
from worker.limits.shared_redis import SharedRedis
from worker.settings import Settings
from worker.storage import Stores
from worker.storage.errors import NotFound
from worker.storage.probe import probe

HINT = "; did you mean "
"""Precedes the nearest key in the message of NotFound. The gateway cuts messages here: see `worker.gateway.jobs`."""


@dataclass(frozen=True, slots=True)
class Context:
    """The settings, catalogue and stores of this process; the stores have no limits, for commands and probes."""

    settings: Settings
    catalogue: Catalogue
    stores: Stores
    admission: Admission
    pauses: PauseCheck

    @classmethod
    def open(cls, settings: Settings, shared: SharedRedis | None = None) -> "Context":
        """Open the catalogue and make the stores ready to be opened.

        Raises:
            SettingsError: the data directory cannot be made.
            CatalogueError: the catalogue cannot be used.
        """
        settings.prepare()
        catalogue = Catalogue(settings.catalogue_url)
        known_ids = catalogue.store_identities(settings.stores, settings.broker_file.parent)
        stores = Stores(settings.stores, spool_dir=settings.spool_dir, known_ids=known_ids)
        pauses = PauseCheck(catalogue.pauses)
        admission = Admission(settings, lambda name: probe(stores[name]), shared, paused=pauses.of_store)
        return cls(settings, catalogue, stores, admission, pauses)

    def artifact(self, bucket: str, key: str) -> Artifact:
        """Return the current version under this key.

        Raises:
            NotFound: there is none, with the nearest key there is.
        """
        return current_version(self.catalogue, bucket, key)

    def close(self) -> None:
        """Close the stores and the catalogue."""
        self.stores.close()
        self.catalogue.close()


def current_version(catalogue: Catalogue, bucket: str, key: str) -> Artifact:
    """Return the current version under a key.

    Raises:
        NotFound: there is none; the message has the way to undo its delete, or the nearest key.
    """
    found = catalogue.artifacts.current(bucket, key)
    if found is None and (gone := catalogue.deletions.get(bucket, key)) is not None:
        way_out = f"`zot-artifacts undelete {quote(f'{bucket}/{key}')}` brings it back"
        raise NotFound(f"{bucket}/{key} was deleted at {gone.deleted_at:%Y-%m-%d %H:%M} UTC; {way_out}")
    if found is None:
        raise NotFound(f"{bucket}/{key} is not in the catalogue{nearest(catalogue, bucket, key)}")
    return found


def nearest(catalogue: Catalogue, bucket: str, key: str) -> str:
    """Return `; did you mean …?` with the artifacts below a key, or with the one of the nearest name, else nothing."""
    artifacts = catalogue.artifacts
    if artifacts.page(bucket, f"{key.rstrip('/')}/", limit=1):
        below = f"{bucket}/{key.rstrip('/')}/"
        return f"{HINT}the artifacts below {below!r}? `get` takes them with -r, other commands with --all"
    keys = {each.key for each in [*artifacts.page(bucket, key[:3]), *artifacts.page(bucket)]}
    # Keys of one bucket are compared without it, which would make any two alike.
    close = [f"{bucket}/{near}" for near in difflib.get_close_matches(key, keys, n=1)]
    if not close:
        others = {each.path for each in artifacts.page(None) if each.bucket != bucket}
        close = difflib.get_close_matches(f"{bucket}/{key}", others, n=1)
    return f"{HINT}{close[0]!r}?" if close else ""


_settings: Settings | None = None
_context: tuple[int, Context] | None = None


def configure(settings: Settings) -> None:
    """Set the settings of this process and of those that it forks, before any job runs."""
    global _settings  # noqa: PLW0603 - Celery gives tasks no other way to find the settings of their process
    _settings = settings


def configured() -> Settings:
    """Return the settings that `configure` was given."""
    if _settings is None:
        msg = "the worker's settings have not been configured"
        raise RuntimeError(msg)
    return _settings


def current() -> Context:
    """Return this process's context, opened at the first use: nothing in it survives a fork."""
    global _context  # noqa: PLW0603
    if _context is None or _context[0] != os.getpid():
        _context = (os.getpid(), Context.open(configured()))
    return _context[1]
