"""Translate the errors of SDKs into StorageErrors, in the same words for all clouds."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from worker import clock
from worker.storage.cloud.proxies import proxy_fault, proxy_for, through_proxy
from worker.storage.errors import NotFound, PermanentError, StorageError, TransientError, Unavailable, UnexpectedAnswer
from zot_artifact_client.retry_after import read_retry_after
from zot_artifact_client.tls_faults import no_authorities, tls_fault

REQUESTS_TRUST = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
"""The environment variables that name the certificates of authorities for an SDK that uses `requests`, in its order."""

Kind = type[StorageError]
ClassRow = tuple[Kind, str, tuple[type[BaseException], ...]]
"""The StorageError for some exception classes of an SDK, and the reason for its message."""
Meaning = tuple[Kind, str | None]
"""The StorageError for a code of a store, and the reason for its message; None quotes the store."""
CodeRow = tuple[Kind, str | None, str]
"""A meaning, and its codes or HTTP statuses, separated by spaces."""
Translate = Callable[[Exception, "Origin", str], StorageError]
"""Returns our error for what an SDK raised, where, and about which object or bucket."""

QUOTE = None
"""In place of a reason: the message quotes the store."""
DAMAGED = "the bytes were damaged on the way"
_MAX_QUOTE = 160
_REDIRECTION = "3"
_SERVER_FAILURE = "5"
_HOST = re.compile(r"[A-Za-z0-9.:\[\]-]{1,253}")
_AMAZON = "https://s3.amazonaws.com"
"""The URL for which a proxy is looked up if the SDK chooses the endpoint."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an error came from.

    Attributes:
        store: the configured name.
        endpoint: as messages may show it.
        bucket: the one real bucket of the store, or None where logical buckets are real.
        word: what the provider calls a bucket.
    """

    store: str
    endpoint: str
    bucket: str | None
    word: str = "bucket"


def code_table(rows: Iterable[CodeRow]) -> Mapping[str, Meaning]:
    """Return the meaning of each code."""
    return {code: (kind, reason) for kind, reason, codes in rows for code in codes.split()}


def by_code(
    origin: Origin,
    what: str,
    meanings: Mapping[str, Meaning],
    *,
    code: str,
    status: str,
    said: str,
    headers: Mapping[str, str],
    elsewhere: str = "",
) -> StorageError:
    """Return the StorageError for an answer of the store, by its code, else by its HTTP status.

    Args:
        origin: the store that answered.
        what: the object or bucket that the request was about.
        meanings: the codes of the provider.
        code: the provider's code, or empty.
        status: the HTTP status.
        said: the store's message; quoted in one short line where the table gives no reason.
        headers: of the answer; its Retry-After counts, and a redirection is told with the host of its Location.
        elsewhere: where the bucket is, in place of that.
    """
    sent = {name.lower(): value for name, value in headers.items()}
    unknown: Meaning = (Unavailable if status.startswith(_SERVER_FAILURE) else PermanentError, None)
    kind, reason = meanings.get(code) or meanings.get(status) or unknown
    if status.startswith(_REDIRECTION):
        elsewhere = elsewhere or host_of(sent.get("location", ""))
    named = f"; the answer names {elsewhere}" if elsewhere else ""
    message = f"{origin.store}: {what}: {reason or quoted(said)}{named} ({code or status})"
    wish = read_retry_after(sent.get("retry-after"), clock.now())
    error = kind(message, wish) if issubclass(kind, TransientError) else kind(message)
    error.code = code or status
    return error


def by_class(error: Exception, rows: Iterable[ClassRow], origin: Origin, what: str, *, trust: str) -> StorageError:
    """Return the StorageError for an exception without an answer, from the first row with a matching class.

    `trust` is the environment variable that names the certificates of authorities for this SDK.
    """
    if fault := tls_fault(error, trust=trust) or proxy_fault(error):
        return Unavailable(f"{origin.store}: {what}: {origin.endpoint}: {fault} ({type(error).__name__})")
    kind, reason = next(
        ((kind, reason) for kind, reason, classes in rows if isinstance(error, classes)),
        (Unavailable, "the connection failed")
        if isinstance(error, OSError)
        else (UnexpectedAnswer, "the SDK did not understand the answer"),
    )
    through = through_proxy(_address(origin.endpoint))
    return kind(f"{origin.store}: {what}: {origin.endpoint}{through}: {reason} ({type(error).__name__})")


def check_environment(store: str, endpoint: str, variables: Sequence[str]) -> str | None:
    """Return the file of authorities that the first of these environment variables names; None if none is set.

    At the first request, each SDK raises an error of its own for a file that does not exist, or for an invalid URL of a
    proxy: two of them a plain OSError, or an error that would fail each job for good.

    Raises:
        Unavailable: the endpoint needs the file, and it does not exist, or a proxy that cannot be used.
    """
    try:
        proxy_for(_address(endpoint))
    except ValueError as error:
        raise Unavailable(f"{store}: {endpoint}: {error}") from None
    for variable in variables:
        if path := os.environ.get(variable):
            if not endpoint.startswith("http://") and not Path(path).exists():
                raise Unavailable(f"{store}: {no_authorities(variable, path)}")
            return path
    return None


def _address(endpoint: str) -> str:
    return endpoint if "://" in endpoint else _AMAZON


def translator(
    sdk_errors: tuple[type[Exception], ...], translate: Translate
) -> Callable[[Origin, str], AbstractContextManager[None]]:
    """Return the context manager that raises StorageErrors in place of the SDK's errors.

    The SDK's error is not kept as the cause, because its text may hold a signature, a token or parts of the request.
    """

    @contextmanager
    def translated(origin: Origin, what: str) -> Iterator[None]:
        try:
            yield
        except sdk_errors as error:
            raise translate(error, origin, what) from None

    return translated


def missing_bucket(origin: Origin, bucket: str) -> StorageError:
    """Return the error for a real bucket that does not exist.

    If the one bucket that holds everything is absent, the configuration is wrong: NotFound would give every copy in it
    the verdict missing.
    """
    if origin.bucket is None:
        return NotFound(f"{origin.store}: {origin.word} {bucket!r} does not exist at {origin.endpoint}; create it")
    return Unavailable(
        f"{origin.store}: {origin.word} {origin.bucket!r} does not exist at {origin.endpoint}; "
        f"create it or correct `{origin.word}`"
    )


def shown_url(url: str) -> str:
    """Return a URL as messages may show it: without user, password, query and fragment, which may hold secrets."""
    try:
        parts = urlsplit(url)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
    except ValueError:
        return "the configured endpoint"


def host_of(url: str) -> str:
    """Return the host and port that a store names by a URL, or by themselves; all else may hold secrets."""
    try:
        host = (urlsplit(url).netloc or url).rpartition("@")[2]
    except ValueError:
        return ""
    return host if _HOST.fullmatch(host) else ""


def quoted(said: str) -> str:
    """Return a message of a store as one line of bounded length."""
    said = " ".join(said.split()) or "the store refuses"
    return said if len(said) <= _MAX_QUOTE else said[: _MAX_QUOTE - 1] + "…"
