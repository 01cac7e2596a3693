"""Speak HTTP with the gateway: few connections that are kept, bounded retries, errors of this package."""

import http.client
import json
import re
import select
import ssl
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

from zot_artifact_client.connection import PerProcess
from zot_artifact_client.contract import QUERY_LIST, QUERY_SHOW, ListRequest, Message, ResultT, ShowRequest, TaskSpec
from zot_artifact_client.errors import (
    ArtifactChanged,
    ArtifactNotFound,
    BrokerUnavailable,
    ClientError,
    GatewayUnavailable,
    IdempotencyMismatch,
    InvalidRequest,
    InvalidUrl,
    NoGoodCopy,
    NotAllowed,
    UnknownJob,
)
from zot_artifact_client.http_final_response import PlainConnection, SecureConnection
from zot_artifact_client.http_urls import InvalidEndpoint, parse_endpoint
from zot_artifact_client.retry_after import read_retry_after
from zot_artifact_client.text_escaping import bounded
from zot_artifact_client.tls_faults import TRUST, tls_fault
from zot_artifact_client.tracing import trace_headers

AnswerT = TypeVar("AnswerT")

TIMEOUT = 60.0
"""Seconds without a byte from the gateway after which a request has failed: it tries several stores meanwhile."""
_TRIES = 5
_TRIES_OF_BYTES = 9
"""Of a part of a transfer, which goes on after a restart of the gateway: with their pauses they take half a minute."""
_AWAY = 60.0
"""Seconds for which waits go on while a gateway that has answered before does not answer."""
_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 10.0
_MOST_IDLE = 8
"""Connections that are kept for later requests."""
_MOST_PROBLEM = 64 * 1024
_MOST_ANSWER = 16 * 1024 * 1024
_COUNT = re.compile("[0-9]{1,19}")
_OK = {
    HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT, HTTPStatus.ACCEPTED, HTTPStatus.CREATED, HTTPStatus.NO_CONTENT,
}  # fmt: skip
_ERRORS: dict[str, type[ClientError]] = {
    "NotFound": ArtifactNotFound,
    "UnknownJob": UnknownJob,
    "IdempotencyMismatch": IdempotencyMismatch,
    "InvalidRequest": InvalidRequest,
    "InvalidKey": InvalidRequest,
    "PreconditionFailed": ArtifactChanged,
    "NoGoodCopy": NoGoodCopy,
    "BrokerUnavailable": BrokerUnavailable,
    "WrongOffset": GatewayUnavailable,  # an earlier request has arrived after all: the upload goes on from there
    "TooSlow": GatewayUnavailable,
    "Locked": GatewayUnavailable,  # the gateway has not noticed yet that the line of an earlier request is broken
}
_BY_STATUS: dict[int, type[ClientError]] = {
    HTTPStatus.UNAUTHORIZED: NotAllowed,
    HTTPStatus.FORBIDDEN: NotAllowed,
    HTTPStatus.NOT_FOUND: ArtifactNotFound,
    HTTPStatus.PRECONDITION_FAILED: ArtifactChanged,
}
_AGAIN = {
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
}


class _TryAgain(Exception):
    """The request may be tried again, after `seconds` if the gateway says when. `refused`: it has not acted on it."""

    def __init__(self, error: ClientError, seconds: float | None, *, refused: bool) -> None:
        super().__init__(str(error))
        self.error = error
        self.seconds = seconds
        self.refused = refused


class Gateway:
    """A gateway by its URL; safe for threads, and each forked process has connections of its own.

    Args:
        url: such as https://gateway.example:8484.
        token: as `zot-artifacts tokens add` prints it.
        timeout: seconds without a byte from the gateway after which a request has failed.

    Raises:
        InvalidUrl: the URL is none.
        ClientError: the token cannot be one.
    """

    def __init__(self, url: str, token: str, *, timeout: float = TIMEOUT) -> None:
        try:
            endpoint = parse_endpoint(url, example="https://HOST:8484", credentials="give the token as `token`")
        except InvalidEndpoint as error:
            raise InvalidUrl(f"gateway: {error}") from None
        if not token or not token.isascii() or not token.isprintable() or " " in token:
            raise ClientError("token: expected is the text that `zot-artifacts tokens add` prints")
        self.url = endpoint.text
        self._host, self._port, self._base = endpoint.host, endpoint.port, endpoint.path
        self._tls = ssl.create_default_context() if endpoint.scheme == "https" else None
        self._token = token
        self._timeout = timeout
        self._closed = False
        self._answered = False
        self._away_since: float | None = None
        self._idle: PerProcess[list[http.client.HTTPConnection]] = PerProcess(list)

    def query(self, spec: TaskSpec[Any, ResultT], request: Message) -> ResultT:
        """Return the answer to a show or list query. Raise ArtifactNotFound, GatewayUnavailable, …."""
        if isinstance(request, ShowRequest):
            path, fields = artifact_path("artifacts", request.bucket, request.key), {"chunks_from": request.chunks_from}
        elif isinstance(request, ListRequest):
            path, fields = "/v1/artifacts", request.model_dump()
        else:
            names = f"{QUERY_SHOW.kind} and {QUERY_LIST.kind}"
            raise ClientError(f"the gateway answers {names} queries, not {spec.kind}")
        given = urlencode({name: value for name, value in fields.items() if value is not None})
        return self.ask("GET", f"{path}?{given}" if given else path, read=spec.result.read)

    def ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, object] | None = None,
        *,
        read: Callable[[Any], AnswerT],
        headers: Mapping[str, str] | None = None,
        again: bool = True,
        of_bytes: bool = False,
    ) -> AnswerT:
        """Return what `read` makes of the JSON that the gateway answers.

        A request that the gateway refuses as one too many (429) is repeated; with `again` also one that may have
        arrived, and with `of_bytes` for as long as the parts of a transfer.

        Raises:
            GatewayUnavailable: it cannot be reached, cannot serve now, or answers what no gateway does.
            ClientError: of the kind that its answer names.
        """
        sent = None if body is None else json.dumps(body).encode()
        given = {**({"Content-Type": "application/json"} if sent is not None else {}), **(headers or {})}

        def take(response: http.client.HTTPResponse) -> AnswerT:
            answer = response.read(_MOST_ANSWER)
            return self._understood(lambda: read(json.loads(answer)))

        def exchange() -> AnswerT:
            return self._exchange(method, path, given, sent, take)

        most = _TRIES_OF_BYTES if of_bytes else _TRIES
        return self._repeatedly(exchange, tries=most if again else 1, tries_if_refused=most)

    def fetch(self, path: str, into: memoryview, offset: int, tag: str) -> None:
        """Fill a buffer with the bytes from `offset` of the content that has this SHA-256. They are not verified here.

        Raises:
            ArtifactChanged: there is other content now.
            ArtifactNotFound, NoGoodCopy, NotAllowed, GatewayUnavailable: it cannot be read.
        """
        headers = {"Range": f"bytes={offset}-{offset + len(into) - 1}", "If-Match": f'"{tag}"'}

        def take(response: http.client.HTTPResponse) -> None:
            if response.length != len(into):
                raise ClientError(f"{self.url} does not answer ranges: {response.length} bytes for {len(into)}")
            done = 0
            while done < len(into):
                count = response.readinto(into[done:])
                if not count:
                    raise http.client.IncompleteRead(b"", len(into) - done)
                done += count

        self._repeatedly(lambda: self._exchange("GET", path, headers, None, take), tries=_TRIES_OF_BYTES)

    def stream(self, path: str, tag: str, give: Callable[[memoryview], object]) -> None:
        """Give all bytes of the content that has this SHA-256 to a function, once, in pieces. Raise as `fetch`."""

        def take(response: http.client.HTTPResponse) -> None:
            left, piece = int(response.length or 0), memoryview(bytearray(1 << 20))
            while left:
                count = response.readinto(piece)
                if not count:
                    raise http.client.IncompleteRead(b"", left)
                give(piece[:count])
                left -= count

        self._repeatedly(lambda: self._exchange("GET", path, {"If-Match": f'"{tag}"'}, None, take), tries=1)

    def send(self, path: str, offset: int, length: int, pieces: Iterable[bytes]) -> None:
        """Append bytes to an upload at an offset, once. What arrived stays, however this ends.

        Raises:
            GatewayUnavailable: the bytes may not have arrived, or begin at another offset than the one that is there.
            ClientError: the gateway refuses them.
        """
        headers = {
            "Content-Type": "application/offset+octet-stream",
            "Content-Length": str(length),
            "Upload-Offset": str(offset),
        }
        self._repeatedly(lambda: self._exchange("PATCH", path, headers, pieces, lambda answer: answer.read()), tries=1)

    def offset(self, path: str) -> int:
        """Return how many bytes of an upload have arrived. Raise as `fetch`."""

        def take(response: http.client.HTTPResponse) -> int:
            response.read()
            return self._understood(lambda: _count(response.headers["Upload-Offset"]))

        return self._repeatedly(lambda: self._exchange("HEAD", path, {}, None, take), tries=_TRIES)

    def is_away_briefly(self) -> bool:
        """Return whether the gateway, which has answered before, has not answered since less than a minute ago."""
        return self._answered and self._away_since is not None and time.monotonic() - self._away_since < _AWAY

    def close(self) -> None:
        """Close the connections of this process; one that is in use is closed after its answer."""
        self._closed = True
        while idle := self._idle.get():
            idle.pop().close()

    def _understood(self, read: Callable[[], AnswerT]) -> AnswerT:
        """Return what `read` makes of an answer. Raise _TryAgain for one that was damaged, or is of another program."""
        try:
            return read()
        except (ValueError, TypeError, LookupError, RecursionError):
            told = f"gateway {self.url} answers what no gateway does: see what answers there, and what is in between"
            raise _TryAgain(GatewayUnavailable(told), None, refused=False) from None

    def _repeatedly(
        self, exchange: Callable[[], AnswerT], *, tries: int, tries_if_refused: int | None = None
    ) -> AnswerT:
        """Return what the first exchange that succeeds returns; a closed client does not try again.

        `tries`: the most exchanges. `tries_if_refused`: the most while the gateway refuses the request without acting
        on it.
        """
        pause, number = _FIRST_PAUSE, 0
        while True:
            number += 1
            try:
                found = exchange()
            except _TryAgain as asked:
                self._failed()
                most = (tries_if_refused or tries) if asked.refused else tries
                if self._closed or number >= most:
                    raise asked.error from None
                time.sleep(min(_LONGEST_PAUSE, asked.seconds if asked.seconds is not None else pause))
            except (OSError, http.client.HTTPException) as error:
                self._failed()
                if self._closed or number >= tries:
                    line = tls_fault(error, trust=TRUST) or next(iter(str(error).splitlines()), type(error).__name__)
                    raise GatewayUnavailable(f"gateway {self.url} cannot be reached: {bounded(line)}") from error
                time.sleep(pause)
            except ClientError as error:
                if not isinstance(error, GatewayUnavailable):
                    self._has_answered()
                raise
            else:
                self._has_answered()
                return found
            pause = min(_LONGEST_PAUSE, 2 * pause)

    def _has_answered(self) -> None:
        self._answered, self._away_since = True, None

    def _failed(self) -> None:
        if self._away_since is None:
            self._away_since = time.monotonic()

    def _exchange(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes | Iterable[bytes] | None,
        take: Callable[[http.client.HTTPResponse], AnswerT],
    ) -> AnswerT:
        """Send one request and return what `take` makes of the answer; keep the connection if all of it was read."""
        connection: http.client.HTTPConnection | None
        connection, idle = self._connection()
        response: http.client.HTTPResponse | None = None
        try:
            given = {"Authorization": f"Bearer {self._token}", **trace_headers(), **headers}
            connection.request(method, self._base + path, body, given)
            response = connection.getresponse()
            if response.status not in _OK:
                error = _error_of(response, self.url)
                behind_proxy = response.status == HTTPStatus.BAD_GATEWAY and isinstance(error, GatewayUnavailable)
                if response.status in _AGAIN or behind_proxy:
                    refused = response.status == HTTPStatus.TOO_MANY_REQUESTS
                    wish = read_retry_after(response.getheader("Retry-After"), datetime.now(UTC))
                    raise _TryAgain(error, wish, refused=refused)
                raise error
            answer = take(response)
            if response.isclosed() and not self._closed and len(idle) < _MOST_IDLE:
                idle.append(connection)
                connection = None
            return answer
        finally:
            if connection is not None:
                if response is not None:  # it may have taken over the socket
                    response.close()
                connection.close()

    def _connection(self) -> tuple[http.client.HTTPConnection, list[http.client.HTTPConnection]]:
        idle = self._idle.get()
        while idle:
            kept = idle.pop()
            if kept.sock is not None and not _was_closed(kept):
                return kept, idle
            kept.close()
        if self._tls is not None:
            return SecureConnection(
                self._host, self._port, timeout=self._timeout, context=self._tls
            ), idle  # fmt: skip
        return PlainConnection(self._host, self._port, timeout=self._timeout), idle


def artifact_path(what: str, bucket: str, key: str) -> str:
    """Return the path of an artifact below `/v1/artifacts` or `/v1/objects`."""
    return f"/v1/{what}/{quote(bucket, safe='')}/{quote(key, safe='/')}"


def _count(said: str | None) -> int:
    """Return a number of bytes in a header. Raise ValueError: it is none."""
    if said is None or not _COUNT.fullmatch(said):
        msg = "it is no number of bytes"
        raise ValueError(msg)
    return int(said)


def _was_closed(connection: http.client.HTTPConnection) -> bool:
    """Return whether the gateway has closed a kept connection: it has something to read although nothing was asked."""
    poll = select.poll()
    poll.register(connection.sock, select.POLLIN)
    return bool(poll.poll(0))


def _error_of(response: http.client.HTTPResponse, url: str) -> ClientError:
    """Return the error that an answer means."""
    raw = response.read(_MOST_PROBLEM)
    try:
        problem = json.loads(raw)
        name, detail = str(problem["type"]).rpartition(":")[2], str(problem["detail"])
    except (ValueError, LookupError, TypeError, RecursionError):
        name, detail = "", f"{url} answers {response.status} {response.reason}"
    later = response.status in _AGAIN or response.status >= HTTPStatus.INTERNAL_SERVER_ERROR
    fallback = GatewayUnavailable if later else ClientError
    kind = _ERRORS.get(name) or _BY_STATUS.get(response.status, fallback)
    return kind(bounded(detail, 1000))
