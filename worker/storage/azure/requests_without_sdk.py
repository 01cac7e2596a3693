"""Tell how a container of Azure Blob Storage is reached without the SDK, and sign the requests."""

import time
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

from azure.core.pipeline import PipelineContext, PipelineRequest
from azure.core.pipeline.transport import HttpRequest
from azure.storage.blob import BlobServiceClient

from worker.storage.cloud.plain_requests import BucketEndpoint, Headers
from worker.storage.config import AzureConfig

_SCOPE = "https://storage.azure.com/.default"
_KEPT_FOR = 300
"""Seconds for which a token is used before the credential is asked again."""


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
        always = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": config.api_version}
        request = HttpRequest(method, url, {**headers, **always})
        authorise(PipelineRequest(request, PipelineContext(None)))
        return dict(request.headers)

    return BucketEndpoint(url, sign, query)


def _authorisation(credential: Any) -> Callable[[Any], None]:
    """Return what adds the authorisation header to a request; with a signature in the URL it adds nothing."""
    if hasattr(credential, "account_key"):
        return credential.on_request  # type: ignore[no-any-return]  # the SDK's own signature with the key
    return _Bearer(credential).sign if hasattr(credential, "get_token") else lambda _: None


class _Bearer:
    """A token in place of a signature. It is kept for a while: some credentials start a program for each."""

    def __init__(self, credential: Any) -> None:
        self._credential = credential
        self._token = ""
        self._until = 0.0

    def sign(self, request: Any) -> None:
        """Add the token to a request."""
        if time.time() >= self._until:
            found = self._credential.get_token(_SCOPE)
            self._token = found.token
            self._until = min(time.time() + _KEPT_FOR, found.expires_on - 60)
        request.http_request.headers["Authorization"] = f"Bearer {self._token}"
