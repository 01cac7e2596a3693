"""The signature of small requests is that of the SDK, whatever the headers, the account and the name of the blob."""

import base64

import pytest
from azure.core.pipeline import PipelineContext, PipelineRequest
from azure.core.pipeline.transport import HttpRequest
from azure.storage.blob._shared.authentication import SharedKeyCredentialPolicy

from worker.storage.azure.signature import SharedKey

KEY = base64.b64encode(b"the key of the account").decode()
DATE = {"x-ms-date": "Mon, 30 Nov 2026 14:00:00 GMT", "x-ms-version": "2026-02-06"}
WRITE = {
    "x-ms-meta-sha256": "a" * 64, "x-ms-meta-zot_writer": "token", "x-ms-meta-zot": "1", "x-ms-meta-zota": "2",
    "x-ms-meta-_a": "3", "x-ms-meta-A9": "4", "x-ms-blob-type": "BlockBlob", "x-ms-blob-content-type": "text/plain",
    "x-ms-blob-cache-control": "no-cache", "x-ms-access-tier": "Cool", "x-ms-encryption-scope": "scope",
    "Content-MD5": "CY9rzUYh03PK3k6DJie09g==", "Content-Type": "application/octet-stream", "If-None-Match": "*",
}  # fmt: skip


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("GET", {}),
        ("PUT", {**WRITE, "Content-Length": "16384"}),
        ("PUT", {**WRITE, "Content-Length": "0", "If-Match": '"0x1"'}),
    ],
)
@pytest.mark.parametrize("url", ["https://account.blob.core.windows.net/app/a%20b/%C3%A4~%2B", "http://h:1/acc/$web/k"])
def test_a_request_is_signed_as_the_sdk_signs_it(method: str, headers: dict[str, str], url: str) -> None:
    """The header is equal to that of the SDK's policy for the same request."""
    request = HttpRequest(method, url, {**headers, **DATE})
    SharedKeyCredentialPolicy("account", KEY).on_request(PipelineRequest(request, PipelineContext(None)))
    found = SharedKey("account", KEY).authorise(method, url, {**headers, **DATE})
    assert found == {"Authorization": request.headers["Authorization"]}
