"""Download a source by HTTP, resumed after a broken connection, in a thread that its job can always leave.

A socket that has timed out cannot be read again, and a host that sends a byte a minute lets no read time out. So the
bytes are received in a thread of their own, and the job's thread only watches: it calls the heartbeat, measures the
rate, and shuts the connection down if the job has to end.
"""

import logging
import os
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import urllib3
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from worker import clock
from worker.artifacts.sources.announced_digests import ALGORITHMS, Hash, Told, digests_of, hashes
from worker.artifacts.sources.errors import SourceRefused, origin_of, shown
from worker.artifacts.sources.partial_download import Partial, partial_download
from worker.artifacts.sources.strict_http_response import StrictResponse, trailers_of
from worker.settings import Settings
from worker.storage.cloud.proxies import UNAUTHENTICATED, proxy_fault, proxy_for, through_proxy
from worker.storage.driver import BUFFER_SIZE
from worker.storage.durations_and_sizes import duration_text
from worker.storage.errors import (
    AccessDenied,
    NotFound,
    SizeMismatch,
    StorageError,
    Throttled,
    Timeout,
    Unavailable,
)
from worker.storage.filesystem.open_without_symlinks import translate
from worker.watched_connections import WatchedSockets, take_all, watch_connections
from zot_artifact_client.retry_after import read_retry_after

logger = logging.getLogger(__name__)

TRIES = 4
"""Connections in a row without `BUFFER_SIZE` bytes of progress; after them the host is Unavailable."""
_MAX_REDIRECTS = 5
_REDIRECTS = {301, 302, 303, 307, 308}
_WATCH_SECONDS = 0.5
_CONNECT_SECONDS = 10.0
_END_SECONDS = 2.0
_USER_AGENT = f"zot-artifact-worker/{version('zot-artifact-worker')}"
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19})")
_LENGTH = re.compile(r"[0-9]{1,19}")
_SHA256 = "sha-256"
_STRONG_ETAG = re.compile(r'"[^"]*"')


@contextmanager
def downloaded(
    url: str, settings: Settings, *, job: str | None, announced: bool, heartbeat: Callable[[], object]
) -> Iterator[Partial]:
    """Yield the file with the whole body; it is removed afterwards unless the job will be retried.

    Args:
        url: of a configured host.
        settings: the limits of a download.
        job: continues with what its earlier attempt has received.
        announced: the digest is known, and compared by the caller. Without it, an end that the host has not announced
            is an error.
        heartbeat: called at least once a second; what it raises ends the download.

    Raises:
        SourceRefused, AccessDenied, NotFound, SizeMismatch: the host will answer so again.
        Unavailable, Timeout, Throttled: the host is away, too slow or busy.
        OutOfSpace: the data directory has no space left.
    """
    with partial_download(url, settings, job, heartbeat) as partial:
        transfer = _Transfer(url, partial, settings, announced=announced)
        pace = _Pace(transfer, settings)
        transfer.start()
        try:
            while not transfer.ended.wait(_WATCH_SECONDS):
                heartbeat()
                pace.check()
        finally:
            transfer.stop()
        if transfer.error is not None:
            raise transfer.error
        yield partial


class _Pace:
    """Whether a host answers in time and sends at the least rate."""

    def __init__(self, transfer: "_Transfer", settings: Settings) -> None:
        self._transfer = transfer
        self._timeout = settings.sources.timeout.total_seconds()
        self._window = settings.sources.rate_window.total_seconds()
        self._least = settings.sources.min_rate * self._window
        self._name = shown(transfer.url)
        self._since = 0.0
        self._received = 0

    def check(self) -> None:
        """Raise Timeout if the host is too slow."""
        now, answered = time.monotonic(), self._transfer.answered_at
        if answered is None:
            # The socket's own timeout begins anew with each byte of an answer.
            if now - self._transfer.asked_at > self._timeout + _CONNECT_SECONDS:
                through = through_proxy(self._transfer.url)
                raise Timeout(f"source {self._name}{through}: no answer within {duration_text(self._timeout)}")
            return
        received = self._transfer.received
        if answered > self._since:
            self._since, self._received = answered, received
        if now - self._since < self._window:
            return
        got = received - self._received
        if got < self._least:
            raise Timeout(
                f"source {self._name}: the host sent {got} bytes in {duration_text(self._window)}, less than "
                "sources.min_rate"
            )
        self._since, self._received = now, received


class _Transfer:
    """A thread that receives a body into a file. It ends soon after `stop`, whatever the host does."""

    def __init__(self, url: str, partial: Partial, settings: Settings, *, announced: bool) -> None:
        self.url = url
        self.ended = threading.Event()
        self.error: BaseException | None = None
        self.asked_at = time.monotonic()
        self.answered_at: float | None = None
        self.received = 0
        """Bytes over all connections, for the rate."""
        self._name = shown(url)
        self._partial = partial
        self._sources, self._home = settings.sources, settings.home
        self._announced = announced
        self._told: Told = frozenset()
        """The digests that the host announces."""
        self._hashes: dict[str, Hash] = {}
        """Hashes of all bytes by the announced algorithms; the SHA-256 is that of the partial file."""
        self._connections = _Connections(settings.sources.timeout.total_seconds())
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="download", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        try:
            self._fetch()
        except BaseException as error:  # noqa: BLE001 - raised in the job's thread
            self.error = error
        finally:
            self.ended.set()

    def stop(self) -> None:
        """Shut the connections down and wait for the thread, though not for a name server that does not answer."""
        self._stopping.set()
        self._connections.shut_down()
        self._thread.join(_END_SECONDS)

    def _fetch(self) -> None:
        failures = 0
        while True:
            before = self.received
            try:
                self._receive()
            except (Unavailable, Timeout) as error:
                failures = 0 if self.received - before >= BUFFER_SIZE else failures + 1
                if self._partial.etag is None or failures >= TRIES or self._stopping.wait(0.1 * 2**failures):
                    raise
                logger.warning("%s; resuming at byte %d", error, self._partial.size)
            else:
                return

    def _receive(self) -> None:
        """Receive the body, or what is missing of it."""
        response = self._ask()
        try:
            self._accept(response)
            self._write(response)
        except urllib3.exceptions.TimeoutError as error:
            raise Timeout(f"source {self._name}: the host stopped sending after {self._partial.size} bytes") from error
        except urllib3.exceptions.HTTPError as error:
            raise Unavailable(f"source {self._name}: the connection broke after {self._partial.size} bytes") from error
        finally:
            response.close()
        if self._partial.total is not None and self._partial.size > self._partial.total:
            announced = self._partial.total
            self._partial.begin(None, None)
            raise Unavailable(f"source {self._name}: the host sends more than the {announced} bytes that it announced")
        if self._partial.total is not None and self._partial.size < self._partial.total:
            raise Unavailable(
                f"source {self._name}: the connection broke after {self._partial.size} of {self._partial.total} bytes"
            )
        self._compare(response)

    def _ask(self) -> urllib3.BaseHTTPResponse:
        """Return the answer of the host, or of the one that it redirects to."""
        headers = {"Accept-Encoding": "identity", "User-Agent": _USER_AGENT}
        if self._partial.etag is not None and self._partial.size == self._partial.total:
            headers |= {"If-None-Match": self._partial.etag}
        elif self._partial.etag is not None and self._partial.size:
            headers |= {"Range": f"bytes={self._partial.size}-", "If-Range": self._partial.etag}
        url = self.url
        for _ in range(_MAX_REDIRECTS + 1):
            self._check_host(url)
            self.asked_at, self.answered_at = time.monotonic(), None
            try:
                response = self._connections.get(url, headers)
            except urllib3.exceptions.HTTPError as error:
                raise _connection_error(
                    shown(url) + through_proxy(url), error, self._sources.timeout.total_seconds()
                ) from error
            self.answered_at = time.monotonic()
            if response.status not in _REDIRECTS:
                return response
            response.close()
            if not response.headers.get("Location"):
                raise SourceRefused(f"source {self._name}: the host answers {response.status} without a Location")
            try:
                url = urljoin(url, response.headers["Location"])
            except ValueError:
                raise SourceRefused(f"source {self._name}: the host redirects to what is no URL") from None
        raise SourceRefused(f"source {self._name}: more than {_MAX_REDIRECTS} redirects")

    def _check_host(self, url: str) -> None:
        origin = origin_of(url)
        if origin in {origin_of(host if "://" in host else f"https://{host}") for host in self._sources.hosts}:
            return
        raise SourceRefused(f"source {shown(url)}: {origin} is not a configured host; add it to sources.hosts")

    def _accept(self, response: urllib3.BaseHTTPResponse) -> None:
        """Check what the answer announces, and seek to the position of its first byte in the file."""
        if _is_malformed(response):
            raise Unavailable(f"source {self._name}: the headers of the answer are malformed")
        if self._partial.size and response.status == 206:  # noqa: PLR2004 - RFC 9110
            self._check_range(response)
            self._told |= digests_of(response.headers, whole=False)
            return
        if response.status == 304 and self._partial.size == self._partial.total:  # noqa: PLR2004 - all of it is there already
            return
        if response.status == 416:  # noqa: PLR2004 - what was resumed has become shorter
            self._partial.begin(None, None)
        _check_status(response, self._name)
        if not self._announced and "Content-Range" in response.headers:  # a gateway has made 200 of a 206
            raise Unavailable(f"source {self._name}: the host sends a range, and was asked for the whole")
        etag = response.headers.get("ETag", "")
        self._partial.begin(self._announced_size(response), etag if _STRONG_ETAG.fullmatch(etag) else None)
        self._told = digests_of(response.headers, whole=True)
        names = ALGORITHMS if "Trailer" in response.headers else {name for name, _ in self._told}
        self._hashes = {} if self._announced else hashes(names - {_SHA256})

    def _check_range(self, response: urllib3.BaseHTTPResponse) -> None:
        """Raise Unavailable unless the answer is a range from here to its end, of the version that was begun.

        A host that ignores If-Range may send a part of another version, and leave out the ETag that would tell.
        """
        self._check_coding(response)
        found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        first, last, total = map(int, found.groups()) if found else (0, -1, 0)
        length = response.headers.get("Content-Length", "")
        expected = first == self._partial.size and first <= last < total and self._partial.total in {None, total}
        fits = not _LENGTH.fullmatch(length) or int(length) == last - first + 1
        if not expected or not fits or response.headers.get("ETag") != self._partial.etag:
            self._partial.begin(None, None)
            raise Unavailable(f"source {self._name}: the host answered with another range than it was asked for")
        self._partial.total = total

    def _announced_size(self, response: urllib3.BaseHTTPResponse) -> int | None:
        """Return the size that the answer announces, None if the body tells its end in another way.

        An end of the connection is no end of the body: without a digest to compare with, cut bytes would be taken for
        the whole. A coded body would be stored as it was coded.
        """
        lengths = {each.strip() for each in response.headers.get("Content-Length", "").split(",")} - {""}
        length = lengths.pop() if len(lengths) == 1 else ""
        transfer = response.headers.get("Transfer-Encoding", "").strip().lower()
        size = int(length) if _LENGTH.fullmatch(length) and not transfer else None
        if size is not None and size > self._sources.max_size:
            raise self._too_large()
        self._check_coding(response)
        if not self._announced and size is None and (transfer != "chunked" or lengths or length):
            raise SourceRefused(
                f"source {self._name}: the host does not announce where the bytes end; announce their SHA-256"
            )
        return size

    def _check_coding(self, response: urllib3.BaseHTTPResponse) -> None:
        coding = response.headers.get("Content-Encoding", "identity").strip().lower()
        if not self._announced and coding not in {"", "identity"}:
            raise SourceRefused(
                f"source {self._name}: the host sends it in the content coding {coding!r}; "
                "announce the SHA-256 of the bytes as they are sent"
            )

    def _write(self, response: urllib3.BaseHTTPResponse) -> None:
        while piece := response.read1(BUFFER_SIZE, decode_content=False):
            if self._stopping.is_set():
                raise Unavailable(f"source {self._name}: the download was ended")
            if self._partial.size + len(piece) > self._sources.max_size:
                raise self._too_large()
            try:
                self._partial.append(piece)
            except OSError as error:
                raise translate(error, f"source {self._name}: the download", self._home) from error
            self.received += len(piece)
            for each in self._hashes.values():
                each.update(piece)

    def _compare(self, response: urllib3.BaseHTTPResponse) -> None:
        """Compare the bytes with each digest that the host announces in headers and trailers, where it was computed.

        What an earlier attempt of the job has received has only its SHA-256.
        """
        if self._announced:
            return
        received = {_SHA256: self._partial.sha256} | {name: each.digest() for name, each in self._hashes.items()}
        for name, told in self._told | digests_of(trailers_of(response), whole=response.status == 200):  # noqa: PLR2004
            if received.get(name, told) != told:
                self._partial.begin(None, None)
                raise Unavailable(
                    f"source {self._name}: the bytes do not have the {name.upper()} that the host announces; "
                    "if the host is wrong, announce their SHA-256"
                )

    def _too_large(self) -> SizeMismatch:
        return SizeMismatch(f"source {self._name}: larger than sources.max_size, {self._sources.max_size} bytes")


class _Connections:
    """The connections of one transfer, through the proxy and with the certificates that the environment names."""

    def __init__(self, seconds: float) -> None:
        self._timeout = urllib3.Timeout(connect=min(seconds, _CONNECT_SECONDS), read=seconds)
        self._pools: list[urllib3.PoolManager] = []
        self._sockets = WatchedSockets()

    def get(self, url: str, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
        return self._pool(url).request(
            "GET", url, headers=headers, timeout=self._timeout, retries=False, redirect=False, preload_content=False
        )

    def shut_down(self) -> None:
        """End every read and write that waits, also those of later connections."""
        self._sockets.shut_down()
        for pool in take_all(self._pools):
            pool.clear()

    def _pool(self, url: str) -> urllib3.PoolManager:
        bundle = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")  # SSL_CERT_FILE: by OpenSSL
        trust: dict[str, Any] = {"ca_cert_dir" if bundle and Path(bundle).is_dir() else "ca_certs": bundle}
        try:
            proxy = proxy_for(url)
        except ValueError as error:
            raise SourceRefused(f"source {shown(url)}: {error}") from None
        if proxy is None:
            pool = urllib3.PoolManager(**trust)
        else:
            headers = urllib3.make_headers(proxy_basic_auth=proxy.user, user_agent=_USER_AGENT)
            pool = urllib3.ProxyManager(proxy.url, proxy_headers=headers, **trust)
        self._pools.append(pool)
        # No classes made here: each would be a cycle, which only the garbage collector frees.
        pools: dict[str, Any] = {
            "http": partial(self._made, HTTPConnectionPool),
            "https": partial(self._made, HTTPSConnectionPool),
        }
        pool.pool_classes_by_scheme = pools
        return pool

    def _made(self, pool: type[HTTPConnectionPool], host: str, port: int, **options: Any) -> HTTPConnectionPool:
        return watch_connections(pool(host, port, **options), self._sockets.watch, StrictResponse)


def _connection_error(name: str, error: urllib3.exceptions.HTTPError, seconds: float) -> StorageError:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return SourceRefused(
                f"source {name}: the certificate of the host is not trusted: {cause.verify_message}; "
                "SSL_CERT_FILE or REQUESTS_CA_BUNDLE names the certificates to trust"
            )
        cause = cause.__cause__ or cause.__context__ or next((a for a in cause.args if isinstance(a, Exception)), None)
    if fault := proxy_fault(error):
        return (AccessDenied if UNAUTHENTICATED in fault else Unavailable)(f"source {name}: {fault}")
    if isinstance(error, urllib3.exceptions.NewConnectionError):  # urllib3 calls it a timeout, too
        return Unavailable(
            f"source {name}: no connection: {getattr(error.__cause__, 'strerror', None) or error.__cause__}"
        )
    if isinstance(error, urllib3.exceptions.TimeoutError):
        return Timeout(f"source {name}: no answer within {duration_text(seconds)}")
    if isinstance(error, urllib3.exceptions.SSLError):
        return Unavailable(
            f"source {name}: TLS failed ({_tls_reason(error)}); the host must speak TLS on this port, and the files "
            "that SSL_CERT_FILE and REQUESTS_CA_BUNDLE name must hold certificates"
        )
    return Unavailable(f"source {name}: {type(error).__name__}")


def _tls_reason(error: urllib3.exceptions.SSLError) -> str:
    own = next((each for each in error.args if isinstance(each, OSError)), None)
    return getattr(own, "reason", None) or getattr(own, "strerror", None) or type(own or error).__name__


def _is_malformed(response: urllib3.BaseHTTPResponse) -> bool:
    """Return whether a line of the headers could not be parsed: those after it are lost without an error."""
    original = getattr(response, "_original_response", None)
    return bool(original and original.msg.defects)


def _check_status(response: urllib3.BaseHTTPResponse, name: str) -> None:
    status = response.status
    if status == 200:  # noqa: PLR2004 - the only answer that is the whole object
        return
    if status in {404, 410}:
        raise NotFound(f"source {name}: the host answers {status}, it does not exist")
    if status == 401:  # noqa: PLR2004
        raise AccessDenied(
            f"source {name}: the host answers 401, it asks for credentials, and a source cannot have any"
        )
    if status == 403:  # noqa: PLR2004
        raise AccessDenied(
            f"source {name}: the host answers 403, it forbids this download: the link may have expired, or this "
            "worker's address may not be allowed"
        )
    if status == 407:  # noqa: PLR2004
        raise AccessDenied(f"source {name}: the proxy answers 407, it asks for credentials; put them into its URL")
    if status in {408, 416, 429} or status >= 500:  # noqa: PLR2004 - RFC 9110
        kind = Throttled if status in {429, 503} else Unavailable
        wish = read_retry_after(response.headers.get("Retry-After"), clock.now())
        raise kind(f"source {name}: the host answers {status}", wish)
    raise SourceRefused(f"source {name}: the host answers {status}")
