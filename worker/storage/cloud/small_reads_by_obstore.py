"""Read small objects with obstore: one request, at about a tenth of the processor time of the SDKs.

The configuration decides which requests use it; docs/decisions/0029-small-objects-by-obstore.md has the reasons.
"""

import os
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import obstore
from obstore.exceptions import BaseError

from worker.storage.cloud.error_mapping import Meaning, Origin
from worker.storage.cloud.metadata import SHA256, sha256_of
from worker.storage.cloud.obstore_errors import NotUnderstood, translate
from worker.storage.driver import WholeObject
from worker.storage.errors import StorageError, TransientError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

AnswerT = TypeVar("AnswerT")

SMALL = 1024 * 1024
"""Bytes of the largest object on this path, which is in memory as a whole, once per thread."""
PATIENCE = 4
"""Seconds for one request, which a job that has to stop waits for.

A slower line is left to the SDK, whose time limit is for each piece.
"""
CREDENTIALS_FOR = timedelta(minutes=5)
"""How long credentials are used before their own library is asked again; it renews them long before they expire."""
FAILURES = (BaseError, OSError, ValueError, NotImplementedError)
"""The errors of obstore. Not all exceptions, because those that end a job can be raised in its calls as well."""
ONLY_THE_SDK = (NotUnderstood, TransientError)
"""Errors after which the SDK asks: it may understand the answer, has a time limit per piece, and retries."""
_PLAIN = re.compile(r"(?!.*(?:^|/)\.{0,2}(?:/|$))[^\x00-\x1f\x7f]+")
"""Names that obstore can send: it drops a slash at the beginning, and refuses the other excluded names."""
PROPERTIES = {
    "ContentType": "Content-Type",
    "ContentEncoding": "Content-Encoding",
    "ContentLanguage": "Content-Language",
    "ContentDisposition": "Content-Disposition",
    "CacheControl": "Cache-Control",
    "StorageClass": "Storage-Class",
}
"""Attributes of an object that are not metadata, by the names that the SDK of S3 has for them."""
KEPT_BUCKETS = 64
"""Real buckets whose clients are kept; each has its own connections."""
CA_BUNDLES = ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


class _Process:
    """The process that has used obstore: in a forked child, which lacks its threads, every call would hang."""

    used_by: int | None = None


class KeptCredentials:
    """Credentials from an SDK, or its error: obstore turns an error into text, which may hold a secret."""

    def __init__(self, fetch: Callable[[], Mapping[str, Any]]) -> None:
        """Call `fetch` for the credentials of a request; they have no `expires_at` if the SDK does not give it."""
        self._fetch = fetch
        self.error: Exception | None = None

    def __call__(self) -> Any:
        """Return the credentials in the form that obstore wants."""
        try:
            found = self._fetch()
        except Exception as error:
            self.error = error
            raise
        self.error = None
        return {"expires_at": datetime.now(UTC) + CREDENTIALS_FOR, **found}


@dataclass(frozen=True, slots=True)
class Client:
    """A client for one real bucket, with its credentials if they come from an SDK."""

    store: "ObjectStore"
    credentials: KeptCredentials | None = None


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one provider answers.

    Attributes:
        codes: the meaning of its codes and statuses.
        version: returns the version tag of an object from obstore's metadata, or an empty text.
        sdk_errors: what the provider's SDK raises while it connects or fetches credentials.
        translate: the meaning of that.
    """

    codes: Mapping[str, Meaning]
    version: Callable[[Mapping[str, Any]], str]
    sdk_errors: tuple[type[Exception], ...]
    translate: Callable[[Exception, Origin, str], StorageError]

    @property
    def failures(self) -> tuple[type[Exception], ...]:
        """Return the errors that connecting may raise."""
        return (*FAILURES, *self.sdk_errors)


class RealObject(NamedTuple):
    """A real object: its real bucket, its name in that, and the logical bucket and key, for messages."""

    real: str
    name: str
    what: str


class FastPath:
    """The small objects of one store.

    It sends one request and does not retry. A method returns None if the SDK has to do the request: after a transient
    error, an answer that obstore does not understand, or a request of more than PATIENCE; for a bucket or key that
    obstore cannot address, and in a process that must not use it.
    """

    def __init__(self, origin: Origin, dialect: Dialect, connect: Callable[[str], Client | None]) -> None:
        """Use the clients that `connect` returns for real buckets; None for buckets that need the SDK."""
        self._origin = origin
        self._dialect = dialect
        self._connect = connect
        self._clients: dict[str, Client | None] = {}
        self._lock = threading.Lock()

    def read(self, target: RealObject, size: int) -> WholeObject | None:
        """Return an object that has exactly `size` bytes; one of another size is not read."""
        client = self._client(target)
        if client is None:
            return None
        try:
            found = _interruptible(lambda: _get(client.store, target.name, size))
        except FAILURES as error:
            self._failed(error, client, target)
            return None
        if found is None:
            return None
        meta, attributes, data = found
        version = self._dialect.version(meta)
        if not version or len(data) != size:
            return None
        stored = next((value for name, value in attributes.items() if name.lower() == SHA256), None)
        return WholeObject(version, data, sha256_of(stored) or "")

    def head(self, target: RealObject) -> tuple[Mapping[str, Any], Mapping[str, str]] | None:
        """Return obstore's metadata of an object, and its attributes: the user's metadata, and PROPERTIES."""
        client = self._client(target)
        if client is None:
            return None
        try:
            found = _interruptible(lambda: _head(client.store, target.name))
        except FAILURES as error:
            self._failed(error, client, target)
            return None
        return found

    def close(self) -> None:
        """Forget the clients; their connections end with them."""
        with self._lock:
            self._clients.clear()

    def _client(self, target: RealObject) -> Client | None:
        real = target.real
        if _Process.used_by not in {None, os.getpid()} or not is_plain_name(target.name):
            return None
        try:
            return self._clients[real]
        except KeyError:
            pass
        with self._lock:
            if real not in self._clients:
                _Process.used_by = os.getpid()
                while len(self._clients) >= KEPT_BUCKETS:
                    self._clients.pop(next(iter(self._clients)))
                try:
                    self._clients[real] = self._connect(real)
                except self._dialect.failures:
                    return None  # the SDK says what is wrong
            return self._clients[real]

    def _failed(self, error: Exception, client: Client, target: RealObject) -> None:
        """Return if the SDK has to repeat the request; otherwise raise the translated error."""
        failure = self._translated(error, client, target)
        if not isinstance(failure, ONLY_THE_SDK):
            raise failure from None

    def _translated(self, error: Exception, client: Client, target: RealObject) -> StorageError:
        if client.credentials and client.credentials.error:
            return self._dialect.translate(client.credentials.error, self._origin, target.what)
        return translate(error, self._origin, target.what, self._dialect.codes)


def _get(store: "ObjectStore", name: str, size: int) -> tuple[Mapping[str, Any], Any, Any] | None:
    """Return what is said of an object, its attributes, and its bytes; None, with no byte received, at another size."""
    reply = obstore.get(store, name)
    return (reply.meta, reply.attributes, reply.bytes()) if reply.meta["size"] == size else None


def _head(store: "ObjectStore", name: str) -> tuple[Mapping[str, Any], Any]:
    reply = obstore.get(store, name, options={"head": True})
    return reply.meta, reply.attributes


def _interruptible(request: Callable[[], AnswerT]) -> AnswerT:
    """Make a request so that a signal ends the wait for it.

    A call of obstore returns to Python only at its end, and signals are handled in the main thread alone. So there
    another thread makes the request, and is abandoned with it; other threads are not waited for by a job that stops.
    """
    if threading.current_thread() is not threading.main_thread():
        return request()
    answers: SimpleQueue[tuple[AnswerT | None, BaseException | None]] = SimpleQueue()

    def make() -> None:
        try:
            answers.put((request(), None))
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            answers.put((None, error))

    threading.Thread(target=make, name="obstore", daemon=True).start()
    answer, error = answers.get()
    if error is not None:
        raise error
    return cast("AnswerT", answer)


def is_plain_name(name: str) -> bool:
    """Return whether a name reaches a store unchanged in the URL of a library that normalises URLs."""
    return _PLAIN.fullmatch(name) is not None


def client_options(endpoint: str, headers: Mapping[str, str] | None = None) -> "ClientConfig":
    """Return the options of a client's connections, all explicit, because obstore reads others from the environment."""
    options: ClientConfig = {
        "allow_http": endpoint.startswith("http://"),
        "allow_invalid_certificates": False,
        "connect_timeout": "5s",
        "timeout": f"{PATIENCE}s",
        "http1_only": True,
    }
    if headers:
        options["default_headers"] = dict(headers)
    bundle = Path(next(filter(None, map(os.environ.get, CA_BUNDLES)), ""))
    if bundle.is_file():  # a directory of certificates is for the SDKs alone
        options["root_certificate"] = bundle.read_bytes()
    return options


def retry_config() -> "RetryConfig":
    """Return the options that switch off retries, because the SDK repeats the request."""
    return {"max_retries": 0, "retry_timeout": timedelta(seconds=PATIENCE)}
