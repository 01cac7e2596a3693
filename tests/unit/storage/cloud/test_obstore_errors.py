"""Every error of obstore has a meaning of ours, the same as the SDK's for the same answer, and none tells a secret."""

import inspect
import pickle
import re

import obstore.exceptions
import pytest

from worker.storage import errors
from worker.storage.cloud.error_mapping import Origin
from worker.storage.cloud.obstore_errors import NotUnderstood, translate
from worker.storage.gcs import errors as gcs
from worker.storage.s3 import errors as s3

ORIGIN = Origin("primary", "https://s3.example.com", "artifacts")
NATIVE = Origin("primary", "https://s3.example.com", None)
CLASSES = [
    found
    for _, found in inspect.getmembers(obstore.exceptions, inspect.isclass)
    if issubclass(found, Exception) and found.__module__ == obstore.exceptions.BaseError.__module__
]
KINDS = {
    "UnauthenticatedError": errors.AccessDenied,
    "PermissionDeniedError": errors.AccessDenied,
    "InvalidPathError": errors.InvalidKey,
}
SIGNED = "https://s3.example.com/artifacts/b/k?X-Amz-Signature=5ecre7&sig=5ecre7"


def answer(status: int, code: str = "", message: str = "") -> Exception:
    """Return what obstore raises for an answer, in its own words."""
    body = (
        f"<?xml version='1.0'?>\n<Error><Code>{code}</Code><Message>{message}\nTime:1</Message></Error>" if code else ""
    )
    text = (
        f"Generic S3 error: Error performing GET {SIGNED} in 802.3µs, after 3 retries, max_retries: 3, retry_timeout: "
        f"20s  - Server returned non-2xx status code: {status} Some Reason: {body}\n\nDebug source:\nGeneric {{\n"
        f'    store: "S3",\n    source: RetryError(\n uri: Some({SIGNED})\n inner: Status {{ status: {status} }}'
    )
    return obstore.exceptions.GenericError(text)


def broken(kind: str, detail: str = "TimedOut") -> Exception:
    text = (
        f"Generic S3 error: Error performing GET {SIGNED} in 6.1s, after 1 retries, max_retries: 1, retry_timeout: 20s"
        "  - HTTP error: error sending request\n\nDebug source:\nGeneric {\n    source: RetryError(\n        inner: "
        f"Http(\n HttpError {{\n kind: {kind},\n source: reqwest::Error {{\n kind: Request,\n source: {detail}"
    )
    return obstore.exceptions.GenericError(text)


@pytest.mark.parametrize("found", CLASSES, ids=lambda found: str(found.__name__))
def test_every_class_of_obstore_is_mapped(found: type[Exception]) -> None:
    """An error without an answer of the store in its text is told by its class, or is for the SDK to understand."""
    error = translate(found("Some: text"), ORIGIN, "b/k", s3.CODES)
    assert type(error) is KINDS.get(found.__name__, NotUnderstood)


@pytest.mark.parametrize("code", sorted(s3.CODES))
def test_codes_of_s3_mean_what_they_mean_to_the_sdk(code: str) -> None:
    """Each code and status of S3 has the class that it has where the SDK is asked, and keeps its code."""
    status = int(code) if code.isdecimal() else 400
    error = translate(answer(status, "" if code.isdecimal() else code), NATIVE, "b/k", s3.CODES)
    assert type(error) is s3.CODES[code][0]
    assert error.code == ("" if code == "NoSuchBucket" else code)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, errors.AccessDenied),
        (403, errors.AccessDenied),
        (404, errors.NotFound),
        (429, errors.Throttled),
        (500, errors.Unavailable),
        (503, errors.Unavailable),
        (504, errors.Timeout),
        (599, errors.Unavailable),
    ],
)
def test_statuses_of_gcs(status: int, kind: type[errors.StorageError]) -> None:
    """The XML interface of Cloud Storage has codes of its own, so its statuses decide."""
    assert type(translate(answer(status, "CodeOfXml"), ORIGIN, "b/k", gcs.REASONS)) is kind


def test_missing_real_bucket_is_no_missing_copy() -> None:
    """The one real bucket of a store that is gone makes the store Unavailable, and no copy in it missing."""
    assert type(translate(answer(404, "NoSuchBucket"), ORIGIN, "b/k", s3.CODES)) is errors.Unavailable
    assert type(translate(answer(404, "NoSuchBucket"), NATIVE, "b/k", s3.CODES)) is errors.NotFound


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (broken("Timeout"), errors.Timeout, "did not answer in time"),
        (broken("Connect", 'ConnectError("tcp connect error")'), errors.Unavailable, "cannot be reached"),
        (broken("Connect", "InvalidCertificate(UnknownIssuer)"), errors.Unavailable, "TLS failed"),
        (broken("Interrupted"), errors.Unavailable, "broke off"),
        (broken("Decode"), errors.Unavailable, "broke off"),
        (broken("Request"), errors.Unavailable, "broke off"),
        (broken("Unknown"), errors.Unavailable, "broke off"),
    ],
)
def test_failures_without_an_answer(error: Exception, kind: type[errors.StorageError], said: str) -> None:
    """A connection that fails is told by how it failed."""
    found = translate(error, ORIGIN, "b/k", s3.CODES)
    assert type(found) is kind
    assert said in found.message


@pytest.mark.parametrize(
    "error",
    [
        answer(403, "SignatureDoesNotMatch", "StringToSign AKIA5ecre7"),
        answer(500, "InternalError", "see https://s3.example.com/?sig=5ecre7"),
        answer(404, "NoSuchKey", "The key does not exist"),
        broken("Timeout"),
        obstore.exceptions.UnauthenticatedError("KeyError: '5ecre7' traceback 5ecre7"),
        obstore.exceptions.GenericError("Metadata value 5ecre7"),
    ],
)
def test_no_secret_is_told(error: Exception) -> None:
    """No address, signature or text of a credentials' library reaches a message."""
    found = translate(error, ORIGIN, "b/k", s3.CODES)
    assert "5ecre7" not in str(found)
    assert not re.search(r"\n|Debug source|retry_timeout", found.message)
    assert pickle.loads(pickle.dumps(found)).message == found.message
