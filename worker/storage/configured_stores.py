"""Open the configured stores of one process."""

import difflib
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from worker.storage.config import AzureConfig, FilesystemConfig, GcsConfig, S3Config, StoreConfig
from worker.storage.driver import Driver
from worker.storage.errors import PermanentError
from worker.storage.identity import Identity, KnownIds
from worker.storage.store import Store


class UnknownStore(PermanentError, KeyError):
    """No store of this name is configured."""


def open_driver(name: str, config: StoreConfig) -> Driver:
    """Return the driver for a configured store. Backends are imported only when one is used."""
    match config:
        case FilesystemConfig():
            from worker.storage.filesystem.driver import FilesystemDriver

            return FilesystemDriver(name, config)
        case S3Config():
            from worker.storage.s3.driver import S3Driver

            return S3Driver(name, config)
        case GcsConfig():
            from worker.storage.gcs.driver import GcsDriver

            return GcsDriver(name, config)
        case AzureConfig():
            from worker.storage.azure.driver import AzureDriver

            return AzureDriver(name, config)


class Stores(Mapping[str, Store]):
    """The configured stores by name, each opened at its first use and again after a fork."""

    def __init__(
        self,
        configs: Mapping[str, StoreConfig],
        *,
        spool_dir: Path | None = None,
        known_ids: KnownIds | None = None,
    ) -> None:
        self._configs = configs
        self._known_ids = known_ids
        self._spool_dir = spool_dir
        self._open: dict[str, Store] = {}
        self._drivers: dict[str, Driver] = {}
        self._process = os.getpid()
        self._opening = threading.Lock()

    def __getitem__(self, name: str) -> Store:
        """Return a store.

        Raises:
            UnknownStore: naming the store that was asked for and those that there are.
        """
        if os.getpid() != self._process:  # SDK clients and their connections do not survive a fork
            self._opening = threading.Lock()  # another thread may have had the old one
            self._open, self._drivers, self._process = {}, {}, os.getpid()
        if name not in self._configs:
            raise UnknownStore(self._unknown(name))
        if name not in self._open:
            driver = self._driver(name)
            identity = (
                Identity(driver, self._known_ids, configs=self._configs, driver_of=self._driver)
                if self._known_ids
                else None
            )
            self._open[name] = Store(driver, spool_dir=self._spool_dir, identity=identity)
        return self._open[name]

    def _driver(self, name: str) -> Driver:
        # Clouds share libraries. Of two threads that import one from two ends, Python gives one of them half of it.
        with self._opening:
            if name not in self._drivers:
                self._drivers[name] = open_driver(name, self._configs[name])
            return self._drivers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._configs)

    def __len__(self) -> int:
        return len(self._configs)

    def close(self) -> None:
        """Close the stores that were opened."""
        for driver in self._drivers.values():
            driver.close()
        self._open.clear()
        self._drivers.clear()

    def _unknown(self, name: str) -> str:
        close = difflib.get_close_matches(name, self._configs, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        return f"no store is named {name!r}{hint} Configured are: {', '.join(sorted(self._configs)) or 'none'}"
