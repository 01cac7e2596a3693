"""The context of a process: its settings, its catalogue, its stores and their limits."""

import os
from dataclasses import dataclass

from worker.catalogue import Catalogue
from worker.limits.admission import Admission
from worker.limits.check_pauses import PauseCheck
from worker.limits.shared_redis import SharedRedis
from worker.settings import Settings
from worker.storage import Stores
from worker.storage.probe import probe


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
        known_ids = catalogue.store_identities(settings.stores)
        stores = Stores(settings.stores, spool_dir=settings.spool_dir, known_ids=known_ids)
        pauses = PauseCheck(catalogue.pauses)
        admission = Admission(settings, lambda name: probe(stores[name]), shared, paused=pauses.of_store)
        return cls(settings, catalogue, stores, admission, pauses)

    def close(self) -> None:
        """Close the stores and the catalogue."""
        self.stores.close()
        self.catalogue.close()


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
