"""Read the small objects of a store in Cloud Storage with obstore, which asks its XML interface.

Writes do not use it, because no emulator accepts them, so that they could not be tested.
"""

from collections.abc import Callable, Mapping
from datetime import UTC
from typing import TYPE_CHECKING, Any

from google.auth.credentials import AnonymousCredentials
from google.auth.transport.requests import Request
from obstore.store import GCSStore

from worker.storage.cloud.error_mapping import Origin
from worker.storage.cloud.small_reads_by_obstore import (
    Client,
    Dialect,
    FastPath,
    KeptCredentials,
    client_options,
    retry_config,
)
from worker.storage.config import GcsConfig
from worker.storage.gcs.errors import REASONS, SDK_ERRORS, translate

if TYPE_CHECKING:
    from worker.storage.gcs.client import Connection

# Its codes are those of the XML interface, which the table does not have, so the statuses decide.
DIALECT = Dialect(REASONS, lambda meta: str(meta["version"] or ""), SDK_ERRORS, translate)
_STORED = {"accept-encoding": "gzip"}
"""Unless gzip is an accepted encoding, the store returns decompressed bytes."""


def fast_path(config: GcsConfig, origin: Origin, connected: "Callable[[], Connection]") -> FastPath | None:
    """Return the fast path of a store; None if every request must use the SDK."""
    if config.data_path == "sdk" or "@" in (config.endpoint or ""):
        return None
    return FastPath(origin, DIALECT, lambda real: _connect(real, connected()))


def _connect(real: str, connection: "Connection") -> Client | None:
    found: Any = connection.session.credentials  # type: ignore[attr-defined]
    if getattr(found, "quota_project_id", None):  # must be sent with each request, which obstore cannot do
        return None
    options: dict[str, Any] = {
        "base_url": connection.endpoint,
        "client_options": client_options(connection.endpoint, _STORED),
        "retry_config": retry_config(),
    }
    if isinstance(found, AnonymousCredentials):
        return Client(GCSStore(real, skip_signature=True, **options))
    credentials = KeptCredentials(_fetcher(found))
    return Client(GCSStore(real, skip_signature=False, credential_provider=credentials, **options), credentials)


def _fetcher(found: Any) -> Callable[[], Mapping[str, Any]]:
    """Return a function that returns a token, and renews it before it expires."""

    def fetch() -> Mapping[str, Any]:
        if not found.valid:
            found.refresh(Request())
        expiry = {"expires_at": found.expiry.replace(tzinfo=UTC)} if found.expiry else {}
        return {"token": found.token, **expiry}

    return fetch
