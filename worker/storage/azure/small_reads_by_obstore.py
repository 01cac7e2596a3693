"""Read the small objects of a store in Azure Blob Storage with obstore.

Writes do not use it, because it cannot send the MD5 with which Azure detects damage on the way; see `small_writes`.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from azure.storage.blob import BlobServiceClient
from obstore.store import AzureStore

from worker.storage.azure.client import is_signed
from worker.storage.azure.errors import CODES, SDK_ERRORS, translate
from worker.storage.azure.object_stat import version_of
from worker.storage.cloud.error_mapping import Origin
from worker.storage.cloud.small_reads_by_obstore import (
    Client,
    Dialect,
    FastPath,
    KeptCredentials,
    client_options,
    retry_config,
)
from worker.storage.config import AzureConfig

DIALECT = Dialect(CODES, lambda meta: version_of(meta["e_tag"]), SDK_ERRORS, translate)
SCOPE = "https://storage.azure.com/.default"


def fast_path(config: AzureConfig, origin: Origin, service: Callable[[], BlobServiceClient]) -> FastPath | None:
    """Return the fast path of a store; None if every request must use the SDK, as with a signature in its URL."""
    if not is_reachable(config):
        return None
    return FastPath(origin, DIALECT, lambda real: _connect(real, service()))


def is_reachable(config: AzureConfig) -> bool:
    """Return whether requests without the SDK are possible, as the configuration says."""
    return not (config.data_path == "sdk" or is_signed(config) or "@" in (config.account_url or ""))


def _connect(real: str, service: BlobServiceClient) -> Client | None:
    endpoint = str(service.url).rstrip("/")
    options: dict[str, Any] = {
        "endpoint": endpoint,
        "skip_signature": False,
        "use_emulator": False,
        "use_fabric_endpoint": False,
        "client_options": client_options(endpoint),
        "retry_config": retry_config(),
    }
    found: Any = service.credential
    if key := getattr(found, "account_key", None):
        return Client(AzureStore(real, account_name=found.account_name, account_key=key, **options))
    if not hasattr(found, "get_token"):
        return None
    credentials = KeptCredentials(_fetcher(found))
    account = str(service.account_name)
    return Client(AzureStore(real, account_name=account, credential_provider=credentials, **options), credentials)


def _fetcher(found: Any) -> Callable[[], Mapping[str, Any]]:
    """Return a function that returns a token; its library caches and renews it."""

    def fetch() -> Mapping[str, Any]:
        token = found.get_token(SCOPE)
        return {"token": token.token, "expires_at": datetime.fromtimestamp(token.expires_on, UTC)}

    return fetch
