"""Every error of Google's libraries and every code of Cloud Storage has a meaning of ours, and none tells a secret."""

import inspect
from typing import Any

import pytest
import requests
from google.api_core import exceptions as api
from google.auth import exceptions as auth
from google.cloud import exceptions as cloud
from google.cloud.storage import exceptions as storage
from google.resumable_media import common as media
from requests import exceptions as http
from urllib3.exceptions import IncompleteRead, ProtocolError, ReadTimeoutError

from tests.unit.storage.retry_after import with_retry_after
from worker.storage import errors
from worker.storage.cloud.error_mapping import Origin
from worker.storage.gcs.errors import CLASSES, REASONS, SDK_ERRORS, status_of, translate, without_address

ORIGIN = Origin("primary", "https://storage.googleapis.com", "artifacts")
ROOTS = {api.GoogleAPIError, api.GoogleAPICallError, http.RequestException}
ANSWERS = (api.GoogleAPICallError, storage.InvalidResponse, media.InvalidResponse)
SDK_CLASSES = [
    found
    for module in (api, cloud, auth, http, storage, media)
    for _, found in inspect.getmembers(module, inspect.isclass)
    if issubclass(found, Exception) and not issubclass(found, Warning) and found not in ROOTS
    if found.__module__.split(".")[0] in {"google", "requests"}
]
# As https://cloud.google.com/storage/docs/json_api/v1/status-codes lists them; no library carries the list.
DOCUMENTED = """
    mediaDownloadRedirect notModified temporaryRedirect invalid badRequest badRequestException cloudKmsBadKey
    cloudKmsCannotChangeKeyName cloudKmsDecryptionKeyNotFound cloudKmsDisabledKey cloudKmsEncryptionKeyNotFound
    cloudKmsKeyLocationNotAllowed customerEncryptionAlgorithmIsInvalid customerEncryptionKeyFormatIsInvalid
    customerEncryptionKeyIsIncorrect customerEncryptionKeySha256IsInvalid invalidAltValue invalidArgument
    invalidParameter notDownload notUpload parseError pushChannelIdInvalid pushChannelIdNotUnique
    pushWebhookUrlNoHostOrAddress pushWebhookUrlNotHttps required resourceIsEncryptedWithCustomerEncryptionKey
    resourceNotEncryptedWithCustomerEncryptionKey turnedDown userProjectInconsistent userProjectInvalid
    userProjectMissing wrongUrlForUpload authenticationRequiredRequesterPays authError lockedDomainExpired
    pushWebhookUrlUnauthorized accountDisabled countryBlocked forbidden insufficientPermissions objectUnderActiveHold
    rateLimitExceeded retentionPolicyNotMet sslRequired stopChannelCallerNotOwner usageLimits.accessNotConfigured
    userProjectAccessDenied userProjectAccountProblem userRateLimitExceeded quotaExceeded notFound methodNotAllowed
    uploadBrokenConnection conflict gone conditionNotMet orgPolicyConstraintFailed uploadTooLarge
    requestedRangeNotSatisfiable usageLimits.rateLimitExceeded backendError internalError gatewayTimeout
"""


def response(status: int, headers: dict[str, str] | None = None) -> requests.Response:
    made = requests.Response()
    made.status_code = status
    made.headers.update(headers or {})
    return made


def answer(status: int, reason: str = "", message: str = "", headers: dict[str, str] | None = None) -> Exception:
    said = [{"reason": reason, "message": message}] if reason or message else []
    text = f"PUT https://storage.googleapis.com/upload?upload_id=hidden: {message}"
    error: Exception = api.from_http_status(status, text, errors=said, response=response(status, headers))
    return error


def _has_a_meaning(found: type[Exception]) -> bool:
    if any(issubclass(found, classes) for _, _, classes in CLASSES):
        return True
    if issubclass(found, api.GoogleAPICallError):
        return found.code is None or str(int(found.code)) in REASONS
    return issubclass(found, ANSWERS)


def test_every_class_of_the_libraries_is_mapped() -> None:
    """An error class that a new library brings has to be given a meaning here before it can be released."""
    assert [found for found in SDK_CLASSES if not issubclass(found, SDK_ERRORS)] == []
    assert [found for found in SDK_CLASSES if not _has_a_meaning(found)] == []


def test_every_documented_reason_is_mapped() -> None:
    """Every reason that Google documents for the JSON API has a meaning."""
    assert set(DOCUMENTED.split()) - REASONS.keys() == set()


@pytest.mark.parametrize(
    ("status", "reason", "kind"),
    [
        (404, "notFound", errors.NotFound),
        (404, "Not Found", errors.NotFound),
        (412, "conditionNotMet", errors.PreconditionFailed),
        (412, "orgPolicyConstraintFailed", errors.AccessDenied),
        (429, "rateLimitExceeded", errors.Throttled),
        (403, "userRateLimitExceeded", errors.Throttled),
        (403, "quotaExceeded", errors.OutOfSpace),
        (403, "retentionPolicyNotMet", errors.PermanentError),
        (403, "cloudKmsDisabledKey", errors.PermanentError),
        (403, "", errors.AccessDenied),
        (401, "authError", errors.AccessDenied),
        (408, "uploadBrokenConnection", errors.Timeout),
        (504, "", errors.Timeout),
        (500, "internalError", errors.Unavailable),
        (500, "", errors.Unavailable),
        (503, "backendError", errors.Unavailable),
        (599, "somethingNew", errors.Unavailable),
        (413, "uploadTooLarge", errors.SizeMismatch),
        (400, "invalidArgument", errors.PermanentError),
        (400, "somethingNew", errors.PermanentError),
        (418, "somethingNew", errors.PermanentError),
        (308, "", errors.PermanentError),
    ],
)
def test_answers(status: int, reason: str, kind: type[errors.StorageError]) -> None:
    """A known reason decides; for an unknown one its HTTP status does."""
    error = translate(answer(status, reason), ORIGIN, "releases/app.tgz")
    assert type(error) is kind
    assert str(error).startswith("primary: releases/app.tgz: ")


@pytest.mark.parametrize(
    "said",
    [
        'Provided CRC32C "k8WV+A==" doesn\'t match calculated CRC32C "JNZSDg==".',
        'Provided MD5 hash "VgyllJgiiaRAbyUUIqDMmw==" doesn\'t match calculated MD5 hash "iuPXG/eB0vLil6O2Rt2Dqw==".',
    ],
)
@pytest.mark.parametrize("reason", ["invalid", ""])
def test_bytes_that_were_damaged_on_the_way_are_sent_again(reason: str, said: str) -> None:
    """Cloud Storage answers 400 `invalid`, as it does for a wrong request; only its message tells the two apart."""
    error = translate(without_address(answer(400, reason, said)), ORIGIN, "releases/app.tgz")
    assert type(error) is errors.Unavailable
    assert "the bytes were damaged on the way" in str(error)
    assert isinstance(translate(answer(400, reason, "Required parameter: name"), ORIGIN, "a/b"), errors.PermanentError)


@pytest.mark.parametrize(("code", "status"), [("rateLimitExceeded", 429), ("backendError", 503)])
@with_retry_after
def test_a_transient_error_carries_the_wish_of_the_store(
    code: str, status: int, header: str | None, seconds: float | None
) -> None:
    """The time that a store asks for, as seconds or as a date, reaches the retry, also through one that gave up."""
    refused = answer(status, code, headers={"Retry-After": header} if header else {})
    for error in (refused, api.RetryError("gave up", cause=refused)):
        translated = translate(error, ORIGIN, "a/b")
        assert isinstance(translated, errors.TransientError)
        assert translated.retry_after == seconds


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (http.ConnectionError("gone"), errors.Unavailable),
        (http.ConnectTimeout("late"), errors.Timeout),
        (http.ReadTimeout("late"), errors.Timeout),
        (http.SSLError("bad"), errors.Unavailable),
        (http.ChunkedEncodingError("cut"), errors.Unavailable),
        (api.RetryError("gave up", cause=http.ReadTimeout("late")), errors.Timeout),
        (api.RetryError("gave up", cause=ConnectionResetError()), errors.Unavailable),
        (auth.DefaultCredentialsError("none"), errors.AccessDenied),
        (auth.RefreshError("expired"), errors.AccessDenied),
        (auth.InvalidOperation("anonymous"), errors.AccessDenied),
        (auth.TransportError("no metadata server"), errors.Unavailable),
        (auth.TransportError(http.ReadTimeout("late")), errors.Timeout),
        (storage.DataCorruption(response(200), "x"), errors.Unavailable),
        (storage.InvalidResponse(response(403), "x"), errors.AccessDenied),
        (media.InvalidResponse(response(503), "x"), errors.Unavailable),
        (ProtocolError("gone"), errors.Unavailable),
        (IncompleteRead(1, 2), errors.Unavailable),
        (ReadTimeoutError(None, "/", "late"), errors.Timeout),  # type: ignore[arg-type]
        (ConnectionResetError(), errors.Unavailable),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_failures_without_an_answer(error: Exception, kind: type[errors.StorageError]) -> None:
    """What never reached the store, or broke off, is told apart from what it refused."""
    assert isinstance(error, SDK_ERRORS)
    assert type(translate(error, ORIGIN, "a/b")) is kind


def test_no_secret_is_told() -> None:
    """What is said about credentials never quotes them, and no message has the address of an upload session."""
    secret = "ya29.VERYSECRET"
    told: list[Any] = [
        answer(401, "authError", f"Invalid Credentials {secret}"),
        answer(403, "forbidden", f"{secret} does not have storage.objects.get access"),
        answer(403, message=secret),
        auth.RefreshError(f"invalid_grant {secret}"),
        auth.DefaultCredentialsError(secret),
        http.ConnectionError(f"url: /upload?upload_id={secret}"),
    ]
    for error in told:
        assert secret not in str(translate(error, ORIGIN, "a/b"))
    assert "hidden" not in str(translate(answer(400), ORIGIN, "a/b"))


@pytest.mark.parametrize(
    "error",
    [
        answer(503),
        http.ConnectionError("url: /upload?upload_id=hidden"),
        http.ReadTimeout("url: /upload?upload_id=hidden"),
        api.RetryError("last exception: /upload?upload_id=hidden", cause=http.ConnectionError("upload_id=hidden")),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_without_their_address(error: Exception) -> None:
    """An error of an upload session loses the session's address, and nothing that it means."""
    clean = without_address(error)
    assert "hidden" not in f"{clean} {clean!r}"
    assert status_of(clean) == status_of(error)
    assert type(translate(clean, ORIGIN, "a/b")) is type(translate(error, ORIGIN, "a/b"))
