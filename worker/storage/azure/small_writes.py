"""Write the small objects of a store in Azure Blob Storage with plain requests, where its configuration allows it."""

import base64
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, cast

from azure.core.exceptions import HttpResponseError
from azure.storage.blob import BlobServiceClient

from worker.storage.azure.errors import SDK_ERRORS, translate
from worker.storage.azure.requests_without_sdk import locator
from worker.storage.cloud.conditional_write import Write
from worker.storage.cloud.error_mapping import Origin
from worker.storage.cloud.plain_requests import Answer, Headers
from worker.storage.cloud.small_writes import Provider, SmallWrites
from worker.storage.config import AzureConfig
from worker.storage.driver import Match

_OPTIONS = {"encryption_scope": "x-ms-encryption-scope", "standard_blob_tier": "x-ms-access-tier"}
_PROPERTIES = ("content_type", "content_encoding", "content_language", "content_disposition", "cache_control")


def small_writes(config: AzureConfig, origin: Origin, service: Callable[[], BlobServiceClient]) -> SmallWrites:
    """Return the small writes of a store."""
    return SmallWrites(origin, Provider(locator(config, service), _reply, _refusal, SDK_ERRORS, translate))


def headers_of(write: Write, md5: bytes) -> Headers | None:
    """Return the headers of a write; None if it has tags, which need the SDK."""
    options = dict(write.options)
    settings = options.pop("content_settings", None)
    if options.keys() - _OPTIONS.keys():
        return None
    found = {_OPTIONS[name]: str(getattr(value, "value", value)) for name, value in options.items()}
    for name in _PROPERTIES:
        if value := getattr(settings, name, None):
            found[f"x-ms-blob-{name.replace('_', '-')}"] = value
    if isinstance(write.condition, Match):
        found["If-Match"] = f'"{write.condition.version}"'
    elif write.condition == "create_only":
        found["If-None-Match"] = "*"
    metadata = {f"x-ms-meta-{name}": value for name, value in write.metadata.items()}
    return {
        **found,
        **metadata,
        "Content-MD5": base64.b64encode(md5).decode(),
        "Content-Type": "application/octet-stream",
        "x-ms-blob-type": "BlockBlob",
    }


def _reply(answer: Answer) -> dict[str, Any]:
    modified = answer.headers.get("last-modified")
    return {"etag": answer.headers.get("etag"), "last_modified": parsedate_to_datetime(modified) if modified else None}


def _refusal(answer: Answer) -> HttpResponseError | None:
    if answer.status == HTTPStatus.UNAUTHORIZED:
        return None  # the SDK gets another token
    error: Any = HttpResponseError(f"the store answers {answer.status}")
    error.status_code, error.error_code = answer.status, answer.headers.get("x-ms-error-code")
    return cast("HttpResponseError", error)
