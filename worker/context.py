"""What a job works with: the settings, the catalogue and the stores of this process."""

import difflib
import os
from dataclasses import dataclass

from worker.catalogue import Artifact, Catalogue
from worker.limits.admission import Admission
from worker.limits.pauses import Pausing
from worker.settings import Settings
from worker.storage import Stores
from worker.storage.errors import NotFound
from worker.storage.probe import probe


@dataclass(frozen=True, slots=True)
class Context:
    """Everything a task needs, passed to it; it finds nothing by itself."""

    settings: Settings
    catalogue: Catalogue
    stores: Stores
    gates: Admission
    pausing: Pausing

    @classmethod
    def open(cls, settings: Settings) -> "Context":
        """Open the catalogue and make the stores ready to be opened.

        Raises:
            SettingsError: the data directory cannot be made.
            CatalogueError: the catalogue cannot be used.
        """
        settings.prepare()
        stores = Stores(settings.stores, spool_dir=settings.spool_dir)
        catalogue = Catalogue(settings.catalogue_url)
        pausing = Pausing(catalogue.pauses)
        gates = Admission(settings, lambda name: probe(stores[name]), paused=pausing.of_store)
        return cls(settings, catalogue, stores, gates, pausing)

    def swept(self, store: str | None) -> list[str]:
        """Return the names of the stores that a sweep works on: the one that it names or all, without the paused ones.

        Raises:
            UnknownStore: naming the stores there are.
        """
        named = list(self.stores) if store is None else [self.stores[store].name]
        return [name for name in named if self.gates.paused(name) is None]

    def artifact(self, bucket: str, key: str) -> Artifact:
        """Return the current version under this key.

        Raises:
            NotFound: there is none, with the nearest key there is.
        """
        found = self.catalogue.artifacts.current(bucket, key)
        if found is None:
            near = [a.path for a in self.catalogue.artifacts.page(bucket, key[:3])]
            close = difflib.get_close_matches(f"{bucket}/{key}", near, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise NotFound(f"{bucket}/{key} is not in the catalogue{hint}")
        return found

    def close(self) -> None:
        """Close the stores and the catalogue."""
        self.stores.close()
        self.catalogue.close()


_settings: Settings | None = None
_context: tuple[int, Context] | None = None


def configure(settings: Settings) -> None:
    """Say once, before any job runs, which settings this process and its children have."""
    global _settings  # noqa: PLW0603 - Celery gives tasks no other way to find what their process was started with
    _settings = settings


def current() -> Context:
    """Return this process's context, opened at the first use: nothing in it survives a fork."""
    global _context  # noqa: PLW0603
    if _settings is None:
        msg = "the worker's settings have not been configured"
        raise RuntimeError(msg)
    if _context is None or _context[0] != os.getpid():
        _context = (os.getpid(), Context.open(_settings))
    return _context[1]
