"""Every error of the SDK and every code of S3 has a meaning of ours, and none tells a secret."""

import inspect
import re
from pathlib import Path
from typing import Any

import botocore.exceptions as sdk
import botocore.session
import pytest
from botocore.exceptions import ClientError
from botocore.parsers import ResponseParserError
from urllib3.exceptions import IncompleteRead, ProtocolError, ReadTimeoutError

from tests.servers.proxy import FaultyProxy, Say
from tests.unit.storage.retry_after import with_retry_after
from worker.storage import S3Config, Store, errors
from worker.storage.cloud.error_mapping import Origin
from worker.storage.configured_stores import open_driver
from worker.storage.s3.errors import CLASSES, CODES, SDK_ERRORS, translate

ORIGIN = Origin("primary", "https://s3.example.com", "artifacts")
ROOTS = {sdk.BotoCoreError, sdk.ClientError}
SDK_CLASSES = [
    found
    for _, found in inspect.getmembers(sdk, inspect.isclass)
    if issubclass(found, Exception) and not issubclass(found, Warning) and found not in ROOTS
    if found.__module__ == sdk.__name__
]


def answer(code: str, status: int = 400, message: str = "", headers: dict[str, str] | None = None) -> ClientError:
    response: Any = {
        "Error": {"Code": code, "Message": message},
        "ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": headers or {}},
    }
    return ClientError(response, "PutObject")


def documented_codes() -> set[str]:
    """Return the error codes that the SDK's own model of S3 documents, and those that it models as exceptions."""
    model: Any = botocore.session.get_session().get_service_model("s3")
    listed = model.shape_for("Error").members["Code"].documentation
    return set(re.findall(r"<i>Code:</i>\s*([A-Za-z]{2,})", listed)) | {
        shape.error_code for shape in model.error_shapes if not shape.error_code.isdecimal()
    }


def test_every_class_of_the_sdk_is_mapped() -> None:
    """An error class that a new SDK brings has to be given a meaning here before it can be released."""
    assert [found for found in SDK_CLASSES if not any(issubclass(found, classes) for _, _, classes in CLASSES)] == []


def test_every_documented_code_is_mapped() -> None:
    """Every error code that the SDK documents for S3 has a meaning."""
    assert documented_codes() - CODES.keys() == set()


def test_the_reason_is_asked_for_where_the_answer_to_head_has_none(tmp_path: Path) -> None:
    """Amazon answers 400 for an expired token, and to HEAD without a body, which a request with a body tells."""
    body = b"<?xml version='1.0'?><Error><Code>ExpiredToken</Code><Message>no</Message></Error>"
    with FaultyProxy(1, lambda request: Say(400, b"" if request.method == "HEAD" else body)) as proxy:
        keys = {"endpoint": proxy.endpoint, "access_key_id": "a", "secret_access_key": "b"}
        config = S3Config.model_validate({**keys, "layout": "native", "buckets": ["*"], "reserved_bucket": "r"})
        store = Store(open_driver("dr", config), spool_dir=tmp_path)
        for ask in (
            lambda: store.stat_object("releases", "app"),
            lambda: store.bucket_exists("releases"),
            lambda: store.create_bucket("releases"),
            lambda: store.delete_held("releases", "app"),
        ):
            with pytest.raises(errors.AccessDenied, match="the credentials have expired"):
                ask()
        store.close()


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("SlowDown", 503, errors.Throttled),
        ("503", 503, errors.Throttled),
        ("TooManyRequests", 429, errors.Throttled),
        ("RequestLimitExceeded", 503, errors.Throttled),
        ("InternalError", 500, errors.Unavailable),
        ("BadGateway", 502, errors.Unavailable),
        ("SomethingNew", 599, errors.Unavailable),
        ("RequestTimeout", 400, errors.Timeout),
        ("BadDigest", 400, errors.Unavailable),
        ("InvalidDigest", 400, errors.Unavailable),
        ("IncompleteBody", 400, errors.Unavailable),
        ("504", 504, errors.Timeout),
        ("InvalidAccessKeyId", 403, errors.AccessDenied),
        ("SignatureDoesNotMatch", 403, errors.AccessDenied),
        ("ExpiredToken", 400, errors.AccessDenied),
        ("RequestTimeTooSkewed", 403, errors.AccessDenied),
        ("SomethingNew", 401, errors.AccessDenied),
        ("SomethingNew", 403, errors.AccessDenied),
        ("403", 403, errors.AccessDenied),
        ("SomethingNew", 400, errors.PermanentError),
        ("SomethingNew", 409, errors.PermanentError),
        ("NotImplemented", 501, errors.PermanentError),
        ("QuotaExceeded", 403, errors.OutOfSpace),
        ("SomethingNew", 507, errors.OutOfSpace),
        ("XMinioStorageFull", 507, errors.OutOfSpace),
        ("NoSuchKey", 404, errors.NotFound),
        ("404", 404, errors.NotFound),
        ("EntityTooLarge", 400, errors.SizeMismatch),
        ("KeyTooLongError", 400, errors.InvalidKey),
    ],
)
def test_answers(code: str, status: int, kind: type[errors.StorageError]) -> None:
    """A known code decides; for an unknown one its HTTP status does."""
    error = translate(answer(code, status), ORIGIN, "releases/app.tgz")
    assert type(error) is kind
    assert str(error).startswith("primary: releases/app.tgz: ")


@pytest.mark.parametrize(("code", "status"), [("SlowDown", 503), ("InternalError", 500)])
@with_retry_after
def test_a_transient_error_carries_the_wish_of_the_store(
    code: str, status: int, header: str | None, seconds: float | None
) -> None:
    """The time that a store asks for, as seconds or as a date, reaches the job's retry."""
    error = translate(answer(code, status, headers={"retry-after": header} if header else {}), ORIGIN, "a/b")
    assert isinstance(error, errors.TransientError)
    assert error.retry_after == seconds


@pytest.mark.parametrize(
    ("code", "status", "headers", "details", "named"),
    [
        ("PermanentRedirect", 301, {"x-amz-bucket-region": "eu-central-1"}, {}, "the region eu-central-1"),
        ("AuthorizationHeaderMalformed", 400, {}, {"Region": "us-west-2"}, "the region us-west-2"),
        ("PermanentRedirect", 301, {}, {"Endpoint": "b.s3-eu-west-1.amazonaws.com"}, "b.s3-eu-west-1.amazonaws.com"),
        ("307", 307, {"location": "https://me:hush@login.example:8443/hush?hush=1#hush"}, {}, "login.example:8443"),
        ("302", 302, {"location": "/hush"}, {}, None),
        ("302", 302, {"location": "http://[hush"}, {}, None),
        ("301", 301, {"x-amz-bucket-region": "hush; rm"}, {"Endpoint": "hush\n"}, None),
        ("AccessDenied", 403, {"x-amz-bucket-region": "eu-central-1"}, {}, None),
    ],
)
def test_a_redirection_is_told_with_its_place(
    code: str, status: int, headers: dict[str, str], details: dict[str, str], named: str | None
) -> None:
    """The region or the host that an answer names is what `region` or `endpoint` should be; nothing else of it is."""
    failure = answer(code, status, headers=headers)
    failure.response["Error"].update(details)  # type: ignore[typeddict-item]
    told = str(translate(failure, ORIGIN, "a/b"))
    assert told.endswith(f"; the answer names {named} ({code})" if named else f" ({code})")
    assert ("names" in told, "hush" in told) == (named is not None, False)


def test_clock() -> None:
    """A wrong clock is named, because nothing in the credentials is to be looked for then."""
    assert "clock" in str(translate(answer("RequestTimeTooSkewed", 403), ORIGIN, "a/b"))


def test_missing_real_bucket_is_no_missing_copy() -> None:
    """A configured bucket that is not there says nothing about the copies in it, and tells the way out."""
    error = translate(answer("NoSuchBucket", 404), ORIGIN, "releases/app")
    assert isinstance(error, errors.Unavailable)
    assert "'artifacts' does not exist at https://s3.example.com; create it or correct `bucket`" in str(error)
    native = translate(answer("NoSuchBucket", 404), Origin("primary", "https://s3.example.com", None), "releases/app")
    assert isinstance(native, errors.NotFound)
    assert str(native).endswith("'releases' does not exist at https://s3.example.com; create it")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (sdk.EndpointConnectionError(endpoint_url="https://s3.example.com"), errors.Unavailable),
        (sdk.ConnectTimeoutError(endpoint_url="https://s3.example.com"), errors.Timeout),
        (sdk.ReadTimeoutError(endpoint_url="https://s3.example.com"), errors.Timeout),
        (sdk.SSLError(endpoint_url="https://s3.example.com", error=OSError("bad")), errors.Unavailable),
        (sdk.ResponseStreamingError(error="gone"), errors.Unavailable),
        (sdk.IncompleteReadError(actual_bytes=1, expected_bytes=2), errors.Unavailable),
        (sdk.NoCredentialsError(), errors.AccessDenied),
        (sdk.PartialCredentialsError(provider="env", cred_var="x"), errors.AccessDenied),
        (sdk.ProfileNotFound(profile="x"), errors.AccessDenied),
        (ResponseParserError("<html>"), errors.Unavailable),
        (ProtocolError("gone"), errors.Unavailable),
        (IncompleteRead(1, 2), errors.Unavailable),
        (ReadTimeoutError(None, "/", "late"), errors.Timeout),  # type: ignore[arg-type]
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_failures_without_an_answer(error: Exception, kind: type[errors.StorageError]) -> None:
    """What never reached the store, or broke off, is told apart from what it refused."""
    assert isinstance(error, SDK_ERRORS)
    assert type(translate(error, ORIGIN, "a/b")) is kind


def test_no_secret_is_told() -> None:
    """What is said about credentials and signatures never quotes the store or a credential program."""
    secret = "AKIAVERYSECRET"
    told = [
        answer("SignatureDoesNotMatch", 403, f"string to sign {secret}"),
        answer("InvalidAccessKeyId", 403, f"{secret} does not exist"),
        answer("AuthorizationHeaderMalformed", 400, f"Credential={secret}"),
        answer("AccessDenied", 403, f"User {secret} is not authorized"),
        sdk.CredentialRetrievalError(provider="custom-process", error_msg=secret),
        sdk.HTTPClientError(error=secret),
    ]
    for error in told:
        assert secret not in str(translate(error, ORIGIN, "a/b"))
