"""The signature of small writes is that of the SDK, whatever the host, the key, the headers and the credentials."""

import hashlib
import re
import time
from datetime import UTC, datetime

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials

from worker.storage.s3.signature import PAYLOAD, Signer

KEYS = {"access_key_id": "AKIDEXAMPLE", "secret_access_key": "s3cr3t/+", "token": None}
HEADERS = {
    "Content-Length": "4", "Content-MD5": "CY9rzUYh03PK3k6DJie09g==", "If-None-Match": "*",
    "x-amz-meta-note": "two  spaces%20here", "Content-Type": "text/plain; charset=utf-8",
    PAYLOAD: hashlib.sha256(b"data").hexdigest(),
}  # fmt: skip


class _OfTheSdk(S3SigV4Auth):
    def payload(self, request: AWSRequest) -> str:
        return str(request.context[PAYLOAD])


@pytest.mark.parametrize(
    "bucket",
    [
        "http://127.0.0.1:9000/bucket", "http://[::1]:9000/bucket", "http://store.example:80/bucket",
        "https://store.example:443/bucket", "https://bucket.s3.eu-west-1.amazonaws.com", "https://Store.Example/b",
    ],
)  # fmt: skip
@pytest.mark.parametrize("token", [None, "a+token/=="])
@pytest.mark.parametrize("name", ["a/b.bin", "a%20b/%C3%A4~%2B%3D", "a//b/../c", "a/b?partNumber=3&uploadId=a%2Fb~c"])
def test_a_write_is_signed_as_the_sdk_signs_it(
    bucket: str, token: str | None, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each part of the signature is equal to that of botocore's signer for the same request at the same time."""
    now = datetime(2026, 11, 26, 9, 5, 1, tzinfo=UTC)
    monkeypatch.setattr(time, "gmtime", now.utctimetuple)
    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda: now)
    url = f"{bucket}/{name}"
    request = AWSRequest(method="PUT", url=url, headers=HEADERS)
    request.context[PAYLOAD] = HEADERS[PAYLOAD]
    _OfTheSdk(ReadOnlyCredentials("AKIDEXAMPLE", "s3cr3t/+", token), "s3", "eu-west-1").add_auth(request)
    path = re.sub(r"^\w+://[^/]*", "", url)
    ours = Signer(bucket, "eu-west-1").sign("PUT", path, HEADERS, {**KEYS, "token": token})
    assert ours["Authorization"] == request.headers["Authorization"]
    assert ours["X-Amz-Date"] == request.headers["X-Amz-Date"]


def test_the_key_follows_the_secret_and_the_day(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signer that is kept signs with renewed credentials, and with the key of the next day."""
    signer = Signer("http://127.0.0.1/bucket", "eu-west-1")
    gmtime = time.gmtime
    monkeypatch.setattr(time, "gmtime", lambda: gmtime(0))
    first = signer.sign("PUT", "/bucket/key", HEADERS, KEYS)["Authorization"]
    renewed = signer.sign("PUT", "/bucket/key", HEADERS, {**KEYS, "secret_access_key": "another"})["Authorization"]
    monkeypatch.setattr(time, "gmtime", lambda: gmtime(86_400))
    tomorrow = signer.sign("PUT", "/bucket/key", HEADERS, KEYS)["Authorization"]
    fresh = Signer("http://127.0.0.1/bucket", "eu-west-1").sign("PUT", "/bucket/key", HEADERS, KEYS)["Authorization"]
    assert first != renewed
    assert tomorrow == fresh
