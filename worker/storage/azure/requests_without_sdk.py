"""Read and write small objects in Azure Blob Storage without the SDK, where the settings allow it."""

import base64
import time
from collections.abc import Callable
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, cast

from azure.core.exceptions import HttpResponseError
from azure.storage.blob import BlobServiceClient

from worker.storage.azure.errors import SDK_ERRORS, translate
from worker.storage.azure.object_stat import version_of
from worker.storage.azure.signature import SharedKey
from worker.storage.cloud.conditional_write import Write
from worker.storage.cloud.error_mapping import Origin
from worker.storage.cloud.metadata import SHA256, moment_of
from worker.storage.cloud.plain_requests import Answer, BucketEndpoint, Headers, PlainAnswer
from worker.storage.cloud.small_reads import PlainReads, whole_object
from worker.storage.cloud.small_writes import PlainWrites, Provider
from worker.storage.config import AzureConfig
from worker.storage.driver import Match, WholeObject

_SCOPE = "https://storage.azure.com/.default"
_KEPT_FOR = 300
"""Seconds for which a token is used before the credential is asked again."""
_DIGEST = f"x-ms-meta-{SHA256}"
_OPTIONS = {"encryption_scope": "x-ms-encryption-scope", "standard_blob_tier": "x-ms-access-tier"}
_PROPERTIES = ("content_type", "content_encoding", "content_language", "content_disposition", "cache_control")


def plain_reads(config: AzureConfig, service: Callable[[], BlobServiceClient]) -> PlainReads:
    """Return the plain reads of a store."""
    return PlainReads(locator(config, service), _read_answer, SDK_ERRORS)


def _read_answer(answer: PlainAnswer) -> WholeObject | None:
    # Folders, unfinished copies and blobs that drop blocks are empty blobs, and no objects.
    return whole_object(answer, _DIGEST, version_of(answer.headers.get("etag"))) if answer.body else None


def plain_writes(config: AzureConfig, origin: Origin, service: Callable[[], BlobServiceClient]) -> PlainWrites:
    """Return the small writes of a store."""
    return PlainWrites(origin, Provider(locator(config, service), _reply, _refusal, SDK_ERRORS, translate))


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
    return {"etag": answer.headers.get("etag"), "last_modified": moment_of(modified) if modified else None}


def _refusal(answer: Answer) -> HttpResponseError | None:
    if answer.status == HTTPStatus.UNAUTHORIZED:
        return None  # the SDK gets another token
    error: Any = HttpResponseError(f"the store answers {answer.status}")
    error.status_code, error.error_code = answer.status, answer.headers.get("x-ms-error-code")
    return cast("HttpResponseError", error)


def locator(config: AzureConfig, service: Callable[[], BlobServiceClient]) -> Callable[[str], BucketEndpoint | None]:
    """Return a function that tells how a container is reached; None if the SDK makes every request."""
    return lambda real: None if config.data_path == "sdk" else _locate(config, real, service())


def _locate(config: AzureConfig, real: str, service: BlobServiceClient) -> BucketEndpoint:
    found: Any = service.credential
    url, _, query = str(service.get_container_client(real).url).partition("?")  # with the connection string's signature
    if hasattr(found, "signature"):
        query = found.signature.lstrip("?")
    authorise = _authorisation(found)

    def sign(method: str, url: str, headers: Headers) -> Headers:
        sent = {**headers, "x-ms-date": formatdate(usegmt=True), "x-ms-version": config.api_version}
        return {**sent, **authorise(method, url, sent)}

    return BucketEndpoint(url, sign, query)


def _authorisation(credential: Any) -> Callable[[str, str, Headers], Headers]:
    """Return what gives a request its authorisation header; with a signature in the URL there is none."""
    if hasattr(credential, "account_key"):
        return SharedKey(credential.account_name, credential.account_key).authorise
    return _Bearer(credential).authorise if hasattr(credential, "get_token") else lambda *_: {}


class _Bearer:
    """A token in place of a signature. It is kept for a while: some credentials start a program for each."""

    def __init__(self, credential: Any) -> None:
        self._credential = credential
        self._token = ""
        self._until = 0.0

    def authorise(self, _method: str, _url: str, _headers: Headers) -> Headers:
        """Return the header with the token."""
        if time.time() >= self._until:
            found = self._credential.get_token(_SCOPE)
            self._token = found.token
            self._until = min(time.time() + _KEPT_FOR, found.expires_on - 60)
        return {"Authorization": f"Bearer {self._token}"}
