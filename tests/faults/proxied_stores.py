"""The stores whose connections are disturbed: opened directly, and once more through a proxy."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from tests.conformance.targets import Target, azure, gcs, s3_ministack
from worker.storage import Store
from worker.storage.configured_stores import open_driver

STORES: Mapping[str, tuple[str, Callable[[Any, Path], Target]]] = {
    "s3": ("ministack", s3_ministack),
    "gcs": ("strict_gcs", gcs),
    "azure": ("azurite", azure),
}
"""By kind, the fixture of its server and what opens a store in that."""


def _address(kind: str, store: Store) -> SplitResult:
    """Return where a store is."""
    return urlsplit(getattr(_config(store), _setting(kind)))


def port_of(kind: str, store: Store) -> int:
    port = _address(kind, store).port
    assert port
    return port


def opened_through(kind: str, store: Store, port: int, spool: Path, **changes: object) -> Store:
    """Open the same store at another port of this machine."""
    changes[_setting(kind)] = _address(kind, store)._replace(netloc=f"127.0.0.1:{port}").geturl()
    return Store(open_driver("faulty", _config(store).model_copy(update=changes)), spool_dir=spool)


def _config(store: Store) -> Any:
    return store._driver._config  # type: ignore[attr-defined]


def _setting(kind: str) -> str:
    return "account_url" if kind == "azure" else "endpoint"
