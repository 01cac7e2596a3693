"""Every error of the SDK and every code of Azure has a meaning of ours, and none tells a secret."""

import inspect
import traceback
from types import SimpleNamespace
from typing import Any

import azure.core.exceptions as sdk
import azure.identity
import pytest
from azure.storage.blob import StorageErrorCode
from requests.exceptions import ConnectionError as BrokenConnection
from urllib3.exceptions import ProtocolError

from tests.unit.storage.retry_after import with_retry_after
from worker.storage import errors
from worker.storage.azure.errors import CLASSES, CODES, SDK_ERRORS, translate, translated
from worker.storage.cloud.error_mapping import Origin

ORIGIN = Origin("primary", "https://acme.blob.core.windows.net", "artifacts")
SDK_CLASSES = [
    found
    for module in (sdk, azure.identity)
    for _, found in inspect.getmembers(module, inspect.isclass)
    if issubclass(found, Exception) and found is not sdk.AzureError
]
SIGNATURE = "sig=c2VjcmV0c2VjcmV0"


def answer(code: str, status: int = 400, message: str = "", headers: dict[str, str] | None = None) -> Any:
    """Return an error as the SDK makes it of an answer."""
    error: Any = sdk.HttpResponseError(message or "The store said so.")
    error.response = SimpleNamespace(status_code=status, headers=headers or {}, reason="")
    error.status_code = status
    error.error_code = code
    return error


def test_every_class_of_the_sdk_is_mapped() -> None:
    """An error class that a new SDK brings has to be given a meaning here before it can be released."""
    assert [found for found in SDK_CLASSES if not issubclass(found, SDK_ERRORS)] == []
    assert [found for found in SDK_CLASSES if not any(found in classes for _, _, classes in CLASSES)] == []


def test_every_code_of_the_sdk_is_mapped() -> None:
    """Every error code that the SDK knows has a meaning."""
    assert {code.value for code in StorageErrorCode} - CODES.keys() == set()


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("ServerBusy", 503, errors.Throttled),
        ("SomethingNew", 503, errors.Throttled),
        ("SomethingNew", 429, errors.Throttled),
        ("InternalError", 500, errors.Unavailable),
        ("SomethingNew", 599, errors.Unavailable),
        ("OperationTimedOut", 500, errors.Timeout),
        ("SomethingNew", 504, errors.Timeout),
        ("ContainerBeingDeleted", 409, errors.Unavailable),
        ("AuthenticationFailed", 403, errors.AccessDenied),
        ("AuthorizationFailure", 403, errors.AccessDenied),
        ("KeyBasedAuthenticationNotPermitted", 403, errors.AccessDenied),
        ("SomethingNew", 401, errors.AccessDenied),
        ("SomethingNew", 403, errors.AccessDenied),
        ("SomethingNew", 400, errors.PermanentError),
        ("SomethingNew", 409, errors.PermanentError),
        ("SomethingNew", 507, errors.OutOfSpace),
        ("BlobNotFound", 404, errors.NotFound),
        ("InvalidBlockList", 400, errors.UploadEnded),
        ("BlobAlreadyExists", 409, errors.AlreadyExists),
        ("ConditionNotMet", 412, errors.PreconditionFailed),
        ("LeaseIdMissing", 412, errors.PermanentError),
        ("RequestBodyTooLarge", 413, errors.SizeMismatch),
        ("InvalidResourceName", 400, errors.InvalidKey),
        ("BlobArchived", 409, errors.Archived),
    ],
)
def test_answers(code: str, status: int, kind: type[errors.StorageError]) -> None:
    """A known code decides; for an unknown one its HTTP status does."""
    error = translate(answer(code, status), ORIGIN, "releases/app.tgz")
    assert type(error) is kind
    assert str(error).startswith("primary: releases/app.tgz: ")


@pytest.mark.parametrize(("code", "status"), [("ServerBusy", 503), ("InternalError", 500)])
@with_retry_after
def test_a_transient_error_carries_the_wish_of_the_store(
    code: str, status: int, header: str | None, seconds: float | None
) -> None:
    """The time that a store asks for, as seconds or as a date, reaches the job's retry."""
    error = translate(answer(code, status, headers={"Retry-After": header} if header else {}), ORIGIN, "a/b")
    assert isinstance(error, errors.TransientError)
    assert error.retry_after == seconds


def test_missing_container_is_no_missing_copy() -> None:
    """A configured container that is not there says nothing about the copies in it, and tells the way out."""
    error = translate(answer("ContainerNotFound", 404), ORIGIN, "releases/app")
    assert isinstance(error, errors.Unavailable)
    assert "'artifacts' does not exist at https://acme.blob.core.windows.net; create it or" in str(error)
    native = translate(answer("ContainerNotFound", 404), Origin("primary", "https://acme", None), "releases/app")
    assert isinstance(native, errors.NotFound)
    assert str(native).endswith("'releases' does not exist at https://acme; create it")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (sdk.ServiceRequestError("no route"), errors.Unavailable),
        (sdk.ServiceRequestTimeoutError("late"), errors.Timeout),
        (sdk.ServiceResponseError("gone"), errors.Unavailable),
        (sdk.ServiceResponseTimeoutError("late"), errors.Timeout),
        (sdk.IncompleteReadError("gone"), errors.Unavailable),
        (sdk.HttpResponseError("broke off"), errors.Unavailable),
        (sdk.DecodeError("<html>"), errors.Unavailable),
        (sdk.ClientAuthenticationError("no"), errors.AccessDenied),
        (azure.identity.CredentialUnavailableError("none"), errors.AccessDenied),
        (BrokenConnection("gone"), errors.Unavailable),
        (ProtocolError("gone"), errors.Unavailable),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_failures_without_an_answer(error: Exception, kind: type[errors.StorageError]) -> None:
    """What never reached the store, or broke off, is told apart from what it refused."""
    assert isinstance(error, SDK_ERRORS)
    assert type(translate(error, ORIGIN, "a/b")) is kind


@pytest.mark.parametrize(
    "error",
    [
        answer("AuthenticationFailed", 403, f"String to sign was {SIGNATURE}"),
        answer("SomethingNew", 400, f"The address https://acme/c/b?{SIGNATURE} is wrong"),
        answer("InvalidQueryParameterValue", 400, f"Value is invalid.\nQueryParameterValue:{SIGNATURE}"),
        sdk.ServiceRequestError(f"Max retries exceeded with url: /c/b?{SIGNATURE}"),
        azure.identity.CredentialUnavailableError(SIGNATURE),
    ],
    ids=["forbidden", "quoted", "second line", "unreachable", "identity"],
)
def test_no_secret_is_told(error: Exception) -> None:
    """Neither a message nor a traceback shows a signature, which is part of every address it authorises."""
    with pytest.raises(errors.StorageError) as raised, translated(ORIGIN, "a/b"):
        raise error
    assert "c2VjcmV0" not in "".join(traceback.format_exception(raised.value))
