"""Translate the errors of Google's libraries and of Cloud Storage into ours; only this module knows their codes.

A reason never quotes an error of the credentials: those may carry tokens, account names and the output of credential
programs. What else the store says is quoted in one line, cut short.
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from http.client import HTTPException
from typing import Any

import requests.exceptions as http
from google.api_core import exceptions as api
from google.auth import exceptions as auth
from google.cloud.storage import exceptions as storage
from google.resumable_media import common as media
from urllib3.exceptions import HTTPError, ReadTimeoutError

from worker.storage.cloud.error_mapping import (
    DAMAGED,
    QUOTE,
    ClassRow,
    CodeRow,
    Origin,
    by_class,
    by_code,
    code_table,
    translator,
)
from worker.storage.errors import (
    AccessDenied,
    NotFound,
    OutOfSpace,
    PermanentError,
    PreconditionFailed,
    SizeMismatch,
    StorageError,
    Throttled,
    Timeout,
    Unavailable,
)

SDK_ERRORS = (
    api.GoogleAPIError,
    api.AsyncRestUnsupportedParameterError,
    auth.GoogleAuthError,
    http.RequestException,
    HTTPError,
    HTTPException,
    ConnectionError,
    storage.InvalidPathError,
    storage.InvalidResponse,
    storage.DataCorruption,
    media.InvalidResponse,
    media.DataCorruption,
)
"""Everything that a call of the libraries, or reading a body, can raise on account of the store."""

_ADDRESS = re.compile(r"^[A-Z]+ \S+://\S+: |\S+://\S+")
_DAMAGED = re.compile(r"\AProvided (?:CRC32C|MD5 hash)\b.*\bdoesn't match calculated\b")
"""What the store says of bytes that do not have the checksum sent with them: a 400 `invalid`, as many other faults."""

TRUST = "REQUESTS_CA_BUNDLE"
"""The environment variable that names the certificates of authorities for the library."""
_KEYS = "correct `credentials_file`, or the application default credentials"
_CMEK = "the encryption key cannot be used; check `kms_key` and the key's permissions"

# By the reason in an answer, or by its HTTP status if it has none.
_REASONS: tuple[CodeRow, ...] = (
    (NotFound, QUOTE, "notFound 404"),
    (PreconditionFailed, QUOTE, "conditionNotMet conflict 409 412"),
    (
        Throttled,
        "the store asks for fewer requests",
        "rateLimitExceeded userRateLimitExceeded usageLimits.rateLimitExceeded 429",
    ),
    (Timeout, QUOTE, "gatewayTimeout uploadBrokenConnection 408 504"),
    (Unavailable, QUOTE, "backendError internalError 499 503"),
    (Unavailable, "the store fails, or is not Cloud Storage; check `endpoint`", "500 502"),
    (Unavailable, "the upload session has ended; it has to start again", "gone 410"),
    (OutOfSpace, "a quota is used up", "quotaExceeded 507"),
    (SizeMismatch, "the object is larger than the store allows", "uploadTooLarge 413"),
    (AccessDenied, f"the credentials are wrong or have expired; {_KEYS}", "authError required lockedDomainExpired 401"),
    (
        AccessDenied,
        f"the credentials do not allow it, or are wrong; grant the role, or {_KEYS}",
        """forbidden insufficientPermissions accountDisabled countryBlocked sslRequired stopChannelCallerNotOwner
        userProjectAccessDenied userProjectAccountProblem authenticationRequiredRequesterPays 403""",
    ),
    (
        AccessDenied,
        "the Cloud Storage API is not enabled for the project; enable it",
        "usageLimits.accessNotConfigured",
    ),
    (AccessDenied, "the bucket's requester pays; set `project`", "userProjectMissing"),
    (AccessDenied, "the project is wrong; correct `project`", "userProjectInvalid userProjectInconsistent"),
    (
        AccessDenied,
        "an organisation policy forbids it; change that policy",
        "orgPolicyConstraintFailed",
    ),
    (
        PermanentError,
        "the object may not be changed yet: a retention policy or a hold protects it",
        "retentionPolicyNotMet objectUnderActiveHold",
    ),
    (
        PermanentError,
        _CMEK,
        """cloudKmsBadKey cloudKmsCannotChangeKeyName cloudKmsDecryptionKeyNotFound cloudKmsDisabledKey
        cloudKmsEncryptionKeyNotFound cloudKmsKeyLocationNotAllowed""",
    ),
    (
        PermanentError,
        "the object is encrypted with a key that its owner keeps",
        """customerEncryptionAlgorithmIsInvalid customerEncryptionKeyFormatIsInvalid customerEncryptionKeyIsIncorrect
        customerEncryptionKeySha256IsInvalid resourceIsEncryptedWithCustomerEncryptionKey
        resourceNotEncryptedWithCustomerEncryptionKey""",
    ),
    (PermanentError, "the store cannot do this; check `endpoint`", "methodNotAllowed notImplemented 405 501"),
    (
        PermanentError,
        "the answer is a redirection, which a store does not give; check `endpoint`",
        "mediaDownloadRedirect temporaryRedirect notModified 301 302 303 304 307 308",
    ),
    (
        PermanentError,
        QUOTE,
        """invalid badRequest badRequestException invalidAltValue invalidArgument invalidParameter notDownload notUpload
        parseError pushChannelIdInvalid pushChannelIdNotUnique pushWebhookUrlNoHostOrAddress pushWebhookUrlNotHttps
        pushWebhookUrlUnauthorized turnedDown wrongUrlForUpload requestedRangeNotSatisfiable lengthRequired 400 411
        416""",
    ),
)
REASONS = code_table(_REASONS)
_OF_DAMAGE = code_table([(Unavailable, DAMAGED, "400")])

# fmt: off
# The first row with a class that the error is an instance of decides, so narrower classes come before wider ones.
CLASSES: tuple[ClassRow, ...] = (
    (Timeout, "did not take the connection in time; check `endpoint` and the network", (http.ConnectTimeout,)),
    (Timeout, "did not answer in time",
     (http.Timeout, ReadTimeoutError, auth.TimeoutError, api.TransferStalledError, api.RetryError)),
    (Unavailable, "TLS failed; check `endpoint` and its certificate", (http.SSLError,)),
    (
        Unavailable,
        "broke off in the middle",
        (http.ChunkedEncodingError, http.ContentDecodingError, http.StreamConsumedError, http.UnrewindableBodyError,
         api.ResumableTransferError, HTTPError, HTTPException),
    ),
    (Unavailable, "cannot be reached; check `endpoint` and the network", (http.ConnectionError, ConnectionError)),
    (
        Unavailable,
        "does not answer like Cloud Storage; check `endpoint`",
        (http.InvalidJSONError, http.TooManyRedirects, http.HTTPError, http.RetryError),
    ),
    (Unavailable, DAMAGED, (storage.DataCorruption, media.DataCorruption)),
    (Unavailable, "the service that hands out credentials cannot be reached",
     (auth.TransportError, auth.ResponseError)),
    (AccessDenied, "the client certificate cannot be used; renew it, or unset GOOGLE_API_USE_CLIENT_CERTIFICATE",
     (auth.MutualTLSChannelError, auth.ClientCertError)),
    (
        AccessDenied,
        f"there are no usable credentials; {_KEYS}",
        (auth.GoogleAuthError, api.DuplicateCredentialArgs),
    ),
    (
        PermanentError,
        "the SDK refuses the request",
        (http.URLRequired, http.MissingSchema, http.InvalidSchema, http.InvalidURL, http.InvalidHeader,
         api.AsyncRestUnsupportedParameterError, storage.InvalidPathError),
    ),
)
# fmt: on
_KEPT: tuple[type[http.RequestException], ...] = (
    http.ConnectTimeout,
    http.Timeout,
    http.SSLError,
    http.ProxyError,
    http.ChunkedEncodingError,
    http.ConnectionError,
    http.RequestException,
)


def translate(error: Exception, origin: Origin, what: str) -> StorageError:
    """Return our error for what the libraries raised; what is none of SDK_ERRORS is an UnexpectedAnswer."""
    found = _innermost(error)
    if status_of(found):
        return _translate_answer(found, origin, what)
    return by_class(found, CLASSES, origin, what, trust=TRUST)


translated = translator(SDK_ERRORS, translate)
"""Raise our errors in place of the SDK's."""


def status_of(error: BaseException | None) -> int:
    """Return the HTTP status that the store answered with, or 0 if there was no answer."""
    error = _innermost(error) if isinstance(error, Exception) else error
    if isinstance(error, api.GoogleAPICallError):
        return int(error.code or 0)
    if isinstance(error, storage.InvalidResponse | media.InvalidResponse):
        return int(error.response.status_code)
    return 0


def without_address(error: Exception) -> Exception:
    """Return an equal error without the address of the request.

    The address of an upload session is a secret for a week, and the libraries put it into their messages.
    """
    found = _innermost(error)
    if status := status_of(found):
        options = {"errors": [dict(_first_error(found))], "response": getattr(found, "response", None)}
        return api.from_http_status(status, _said(found), **options)  # type: ignore[no-any-return]
    kind = next((kind for kind in _KEPT if isinstance(found, kind)), None)
    return kind("while sending an object") if kind else found


def _innermost(error: Exception) -> Exception:
    """Return the innermost cause of an error that only says that retries, or fetching a token, failed."""
    inner: object = None
    if isinstance(error, api.RetryError):
        inner = error.cause
    elif isinstance(error, auth.TransportError) and error.args:
        inner = error.args[0]
    return _innermost(inner) if isinstance(inner, SDK_ERRORS) else error


def _translate_answer(error: Exception, origin: Origin, what: str) -> StorageError:
    headers: Mapping[str, str] = getattr(getattr(error, "response", None), "headers", {})
    said = _said(error)
    return by_code(
        origin,
        what,
        _OF_DAMAGE if _DAMAGED.match(said) else REASONS,
        code=_reason(error),
        status=str(status_of(error)),
        said=said,
        headers=headers,
    )


def _first_error(error: Exception) -> Mapping[str, Any]:
    """Return the first of the errors that an answer lists, if it is one of the store's."""
    listed: Any = getattr(error, "errors", None) or _answer(error).get("errors")
    return listed[0] if isinstance(listed, list) and listed and isinstance(listed[0], dict) else {}


def _answer(error: Exception) -> Mapping[str, Any]:
    """Return the error in an answer as JSON; the library keeps the answer to an upload unparsed."""
    answer: Any = None
    with suppress(AttributeError, KeyError, TypeError, ValueError):  # there is none, or it is not the store's JSON
        answer = error.response.json()["error"]  # type: ignore[attr-defined]
    return answer if isinstance(answer, dict) else {}


def _reason(error: Exception) -> str:
    """Return the store's word for the reason, if it gives one."""
    word = str(_first_error(error).get("reason", ""))
    return word if word.replace(".", "").isalnum() else ""  # some servers put a phrase there


def _said(error: Exception) -> str:
    """Return what the store said, in one line, without the method and the address that the library puts before it."""
    said = str(_first_error(error).get("message") or _answer(error).get("message") or getattr(error, "message", ""))
    return _ADDRESS.sub("", " ".join(said.split()))
