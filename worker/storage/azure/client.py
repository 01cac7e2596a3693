"""The SDK's client for one store: its address, credentials and time limits."""

import json
import logging
import re
from collections.abc import Hashable
from http import HTTPStatus
from typing import Any

import requests
from azure.core.credentials import AzureSasCredential, TokenCredential
from azure.core.pipeline.transport import RequestsTransport
from azure.identity import DefaultAzureCredential
from azure.storage.blob import BlobServiceClient, ExponentialRetry, StandardBlobTier
from urllib3 import Retry

from worker.storage.azure.errors import translated
from worker.storage.cloud.error_mapping import REQUESTS_TRUST, Origin, check_environment, shown_url
from worker.storage.cloud.proxies import proxies_for
from worker.storage.cloud.response_body import limit_answer
from worker.storage.config import AzureConfig, connection_fields
from worker.storage.errors import PermanentError
from worker.storage.transfer.send_in_slices import mount_sliced_body

MIB = 1024 * 1024
MAX_GET = 1 << 50
"""Bytes of one request of a download: more than a blob can have, because the body is received in parts."""
CONNECT_TIMEOUT = 5
READ_TIMEOUT = 60
COMMIT_TIMEOUT = 600
"""Seconds. Committing tens of thousands of blocks takes longer than sending one."""
TIERS = re.compile("hot|cool|cold", re.IGNORECASE)
"""The tiers whose blobs can be read at once, hence verified."""
RETRIES = 3
"""Of one request, by the SDK; the job's own retries are Celery's."""
_MESSAGE = re.compile(r"<Message>[^<]+</Message>", re.IGNORECASE)


def endpoint_of(config: AzureConfig) -> str:
    """Return the endpoint as messages may show it."""
    if config.account_url:
        return shown_url(config.account_url)
    found = _settings(config)
    suffix = found.get("ENDPOINTSUFFIX", "core.windows.net")
    known = found.get("BLOBENDPOINT") or f"https://{found.get('ACCOUNTNAME', '?')}.blob.{suffix}"
    return shown_url(known)


def is_signed(config: AzureConfig) -> bool:
    """Return whether requests are authorised by a shared access signature, which is part of their URLs."""
    return config.sas_token is not None or "SHAREDACCESSSIGNATURE" in _settings(config)


def is_azure(config: AzureConfig) -> bool:
    """Return whether the store is Azure itself, and no emulator or gateway."""
    host = endpoint_of(config).partition("//")[2].partition("/")[0]
    return host.partition(".blob.")[2] in {"core.windows.net", "core.chinacloudapi.cn", "core.usgovcloudapi.net"}


def realm_of(config: AzureConfig) -> Hashable:
    """Return the text that is equal for stores that can copy from each other: account and kind of credentials."""
    return ("azure", endpoint_of(config).rstrip("/"), config.connection_string, config.account_key)


def tier_of(config: AzureConfig, asked: str | None = None) -> dict[str, Any]:
    """Return the arguments for the tier of a write: the given one, or the configured one.

    Raises:
        PermanentError: there is no such tier, or it is one whose objects cannot be read.
    """
    tier = asked or config.access_tier or ""
    if tier and not TIERS.fullmatch(tier):
        raise PermanentError(f"access tier {tier!r} is not allowed: Azure has hot, cool and cold for what is read")
    return {"standard_blob_tier": StandardBlobTier(tier.capitalize())} if tier else {}


def scope_of(config: AzureConfig) -> dict[str, Any]:
    """Return the arguments that encrypt a write under the configured scope."""
    return {"encryption_scope": config.encryption_scope} if config.encryption_scope else {}


def make_service(config: AzureConfig, origin: Origin) -> BlobServiceClient:
    """Make the client for a store's account. It belongs to this process, and its threads may share it.

    Raises:
        PermanentError: the address, the connection string or the version cannot be used.
        Unavailable: the certificates, or the proxy, that the environment names cannot be used.
    """
    authorities = check_environment(origin.store, origin.endpoint, REQUESTS_TRUST)
    if is_signed(config):
        logging.getLogger("urllib3.connectionpool").addFilter(_hide_signatures)
    options: dict[str, Any] = {
        "api_version": config.api_version,
        "retry_policy": _Retry(initial_backoff=1, increment_base=2, retry_total=RETRIES, random_jitter_range=1),
        "transport": _transport(origin.endpoint, authorities),
        "max_single_put_size": max(int(config.part_size), 16 * MIB),
        "max_single_get_size": MAX_GET,
        "logging_enable": False,
        "permit_redirects": False,  # an object's bytes would go to, and come from, whatever host an answer names
    }
    try:
        with translated(origin, "the SDK"):
            return _connected(config, options)
    except ValueError as error:
        raise PermanentError(f"{origin.store}: {origin.endpoint}: the SDK refuses the configuration: {error}") from None


class _Retry(ExponentialRetry):
    """The retries of the SDK, with the hook of a request at each of them.

    The SDK forgets the hook where there is no answer at all: it would take the body of the next one into memory.
    """

    def send(self, request: Any) -> Any:
        request.context["response_callback"] = request.context.options.pop("raw_response_hook", None)
        return super().send(request)  # type: ignore[no-untyped-call]


def _transport(endpoint: str, authorities: str | None) -> RequestsTransport:
    session = requests.Session()
    session.trust_env = False  # a netrc file could replace the signature
    session.proxies = proxies_for(endpoint)
    mount_sliced_body(
        session, Retry(total=False, redirect=False, raise_on_status=False)
    )  # as the SDK does with its own
    session.hooks["response"] += [limit_answer, _empty_unreadable_error]
    return RequestsTransport(
        session=session,
        connection_timeout=CONNECT_TIMEOUT,
        read_timeout=READ_TIMEOUT,
        connection_verify=authorities or True,
    )


def _empty_unreadable_error(reply: requests.Response, **_options: object) -> None:
    """Empty the body of an error that the SDK cannot read: the status then says whether another try may help.

    A gateway may answer 503 with a document that has no message, for which the SDK raises a TypeError.
    """
    if reply.status_code >= HTTPStatus.MULTIPLE_CHOICES and not _is_readable(reply.content):
        reply._content = b""  # noqa: SLF001  the SDK offers no other place


def _is_readable(body: bytes) -> bool:
    """Return whether the body of an error is a document with a message, or a text."""
    try:
        text = body.decode("utf-8-sig").lstrip()
        if text.startswith(("{", "[")):
            return bool(json.loads(text)["error"]["message"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return False
    return not text.startswith("<") or _MESSAGE.search(text) is not None


def _connected(config: AzureConfig, options: dict[str, Any]) -> BlobServiceClient:
    if config.connection_string:
        return BlobServiceClient.from_connection_string(config.connection_string.get_secret_value(), **options)
    return BlobServiceClient(str(config.account_url), credential=_credential(config), **options)


def _credential(config: AzureConfig) -> str | AzureSasCredential | TokenCredential:
    if config.account_key:
        return config.account_key.get_secret_value()
    if config.sas_token:
        return AzureSasCredential(config.sas_token.get_secret_value())
    return DefaultAzureCredential()


def _settings(config: AzureConfig) -> dict[str, str]:
    """Return the fields of the connection string, under upper-case names."""
    return connection_fields(config.connection_string) if config.connection_string else {}


def _hide_signatures(record: logging.LogRecord) -> bool:
    """Drop the HTTP library's own lines about requests with a signature in their URL: it cannot redact."""
    return "sig=" not in record.getMessage()
