"""Write the small objects of a store in Azure Blob Storage with plain requests, where its configuration allows it."""

import base64
import time
from collections.abc import Callable
from email.utils import formatdate, parsedate_to_datetime
from http import HTTPStatus
from typing import Any, cast

from azure.core.exceptions import HttpResponseError
from azure.core.pipeline import PipelineContext, PipelineRequest
from azure.core.pipeline.transport import HttpRequest
from azure.storage.blob import BlobServiceClient

from worker.storage.azure.errors import SDK_ERRORS, translate
from worker.storage.azure.small_reads_by_obstore import SCOPE, is_reachable
from worker.storage.cloud.conditional_write import Write
from worker.storage.cloud.error_mapping import Origin
from worker.storage.cloud.plain_requests import Answer, BucketEndpoint, Headers
from worker.storage.cloud.small_reads_by_obstore import CREDENTIALS_FOR
from worker.storage.cloud.small_writes import Provider, SmallWrites
from worker.storage.config import AzureConfig
from worker.storage.driver import Match

_OPTIONS = {"encryption_scope": "x-ms-encryption-scope", "standard_blob_tier": "x-ms-access-tier"}
_PROPERTIES = ("content_type", "content_encoding", "content_language", "content_disposition", "cache_control")


def small_writes(config: AzureConfig, origin: Origin, service: Callable[[], BlobServiceClient]) -> SmallWrites:
    """Return the small writes of a store."""

    def locate(real: str) -> BucketEndpoint | None:
        return _locate(config, real, service()) if is_reachable(config) else None

    return SmallWrites(origin, Provider(locate, _reply, _refusal, SDK_ERRORS, translate))


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
    return found | metadata | {"Content-MD5": base64.b64encode(md5).decode(), "x-ms-blob-type": "BlockBlob"}


def _reply(answer: Answer) -> dict[str, Any]:
    modified = answer.headers.get("last-modified")
    return {"etag": answer.headers.get("etag"), "last_modified": parsedate_to_datetime(modified) if modified else None}


def _refusal(answer: Answer) -> HttpResponseError | None:
    if answer.status == HTTPStatus.UNAUTHORIZED:
        return None  # the SDK gets another token
    error: Any = HttpResponseError(f"the store answers {answer.status}")
    error.status_code, error.error_code = answer.status, answer.headers.get("x-ms-error-code")
    return cast("HttpResponseError", error)


def _locate(config: AzureConfig, real: str, service: BlobServiceClient) -> BucketEndpoint | None:
    found: Any = service.credential
    if hasattr(found, "account_key"):
        sign = found.on_request  # the SDK's own signature with the key
    elif hasattr(found, "get_token"):
        sign = _Bearer(found).sign
    else:
        return None
    version = config.api_version

    def signed(url: str, headers: Headers) -> Headers:
        date = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": version}
        request = HttpRequest("PUT", url, {**headers, **date, "Content-Type": "application/octet-stream"})
        sign(PipelineRequest(request, PipelineContext(None)))
        return dict(request.headers)

    return BucketEndpoint(f"{str(service.url).rstrip('/')}/{real}", signed)


class _Bearer:
    """A token in place of a signature. It is kept for a while: some credentials start a program for each."""

    def __init__(self, credential: Any) -> None:
        self._credential = credential
        self._token = ""
        self._until = 0.0

    def sign(self, request: Any) -> None:
        """Add the token to a request."""
        if time.time() >= self._until:
            found = self._credential.get_token(SCOPE)
            self._token = found.token
            self._until = min(time.time() + CREDENTIALS_FOR.total_seconds(), found.expires_on - 60)
        request.http_request.headers["Authorization"] = f"Bearer {self._token}"
