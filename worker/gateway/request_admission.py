"""Admit requests: every one shows a token, within the rate and the size that are allowed, or ends here."""

import asyncio
import logging
import time
from collections import Counter
from http import HTTPStatus

from limits import RateLimitItemPerSecond
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from worker import clock
from worker.catalogue import CatalogueUnavailable
from worker.counted import counted
from worker.gateway.access import Caller, caller_of, id_of
from worker.gateway.problems import Problem, problem_of, response_of, unexpected
from worker.gateway.services import Services
from zot_artifact_client.contract import MAX_MESSAGE
from zot_artifact_client.tracing import continued_trace

logger = logging.getLogger(__name__)

HEALTH = "/healthz"
"""The only path that needs no token. It says that the process answers, and nothing else."""
_STREAMED = ("/v1/uploads/", "/v1/objects/")
"""Paths below which a body may be large; what takes it bounds it."""
MOST_HEAD = 16 * 1024
"""Bytes of the head of a request. The server bounds what it reads of an incomplete one; one read may have more."""
_BODY_WITHIN = 30.0
"""Seconds for which a body may send nothing."""
_AT_ONCE = 64
"""Requests of one token at a time."""
_CHECK_EVERY = 5.0
"""Seconds after which the token of a request that still runs is checked again."""
_FAILURES = RateLimitItemPerSecond(10)
"""Requests without a valid token that one address may send in a second."""


class Guard:
    """ASGI middleware before everything else. Its state is that of this process: counts of a second."""

    def __init__(self, app: ASGIApp, services: Services) -> None:
        self._app = app
        self._services = services
        self._rates = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._rate = RateLimitItemPerSecond(services.settings.gateway.rate)
        self._running: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["path"] == HEALTH and scope["method"] in {"GET", "HEAD"} and not _has_two_lengths(scope):
            await JSONResponse({"status": "ok"})(scope, receive, send)
            return
        answer = _Answer(send)
        begun, name = time.monotonic(), "-"
        try:
            caller = await self._admit(scope)
            name = caller.name
            self._running[caller.id] += 1
            try:
                scope.setdefault("state", {})["caller"] = caller
                still = _StillValid(self._services, scope)
                body = _BoundedBody(scope, receive)
                with continued_trace(Headers(scope=scope).get("traceparent")):
                    await self._app(scope, still.checked(body.receive), answer.checked(still))
            finally:
                self._running[caller.id] -= 1
        except Exception as error:  # noqa: BLE001 - every error is an answer
            if answer.status is None:
                await response_of(problem_of(error) or unexpected(error))(scope, receive, answer.send)
            elif not answer.complete:  # the server closes the connection when this returns
                reason = (problem_of(error) or unexpected(error)).detail
                logger.warning("%s %s: the answer was broken off: %s", scope["method"], _path(scope), reason)
        finally:
            took = (time.monotonic() - begun) * 1000
            logger.info(
                "%s %s %s %d bytes %.0f ms token %s",
                scope["method"], _path(scope), answer.status, answer.sent, took, name,
            )  # fmt: skip

    async def _admit(self, scope: Scope) -> Caller:
        """Return the caller. Raise a Problem if there is no valid token, or too many requests with it."""
        if _has_two_lengths(scope):
            detail = "a request has Content-Length or Transfer-Encoding, not both"
            raise Problem(HTTPStatus.BAD_REQUEST, "InvalidRequest", detail, headers={"Connection": "close"})
        head = [scope["raw_path"], scope["query_string"], *(part for header in scope["headers"] for part in header)]
        if sum(map(len, head)) > MOST_HEAD:
            detail = f"the head of a request has at most {MOST_HEAD} bytes"
            raise Problem(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "TooLarge", detail)
        address = (scope["client"] or ("-",))[0]
        scheme, _, text = Headers(scope=scope).get("authorization", "").partition(" ")
        id_ = id_of(text.strip()) if scheme.lower() == "bearer" else None
        caller = None
        if id_ is not None:
            record = await self._services.read(self._services.context.catalogue.access_tokens.get, id_)
            caller = caller_of(text.strip(), record, clock.now())
        if caller is None:
            self._count(_FAILURES, address)
            raise Problem(
                HTTPStatus.UNAUTHORIZED,
                "NoToken",
                "no valid token: send `Authorization: Bearer TOKEN`; `zot-artifacts tokens add` makes one",
                headers={"WWW-Authenticate": 'Bearer realm="zot-artifacts"'},
            )
        self._count(self._rate, caller.id)
        if self._running[caller.id] >= _AT_ONCE:
            raise _too_many(f"token {caller.name} has {_AT_ONCE} requests under way: wait until one ends", 1)
        return caller

    def _count(self, limit: RateLimitItemPerSecond, who: str) -> None:
        if not self._rates.hit(limit, who):
            reset = self._rates.get_window_stats(limit, who).reset_time - time.time()
            raise _too_many(f"more than {counted(limit.amount, 'request')} in a second: send fewer", reset)


def _has_two_lengths(scope: Scope) -> bool:
    """Return whether a proxy and this server may disagree where the request ends (RFC 9112, section 6.3).

    What one takes for the body, the other takes for the next request: the answers after it go to the wrong clients.
    """
    names = {name for name, _ in scope["headers"]}
    return b"content-length" in names and b"transfer-encoding" in names


def _too_many(detail: str, seconds: float) -> Problem:
    retry = {"Retry-After": str(max(1, round(seconds)))}
    return Problem(HTTPStatus.TOO_MANY_REQUESTS, "TooManyRequests", detail, headers=retry)


def _path(scope: Scope) -> str:
    """Return the path as the client sent it, which is ASCII without control characters."""
    return bytes(scope.get("raw_path") or b"").decode("ascii", "replace")


class _StillValid:
    """Ends a long answer or body of a token that was revoked, or has expired, since its request was admitted."""

    def __init__(self, services: Services, scope: Scope) -> None:
        self._services = services
        self._text = Headers(scope=scope).get("authorization", "").partition(" ")[2].strip()
        self._next = time.monotonic() + _CHECK_EVERY

    async def check(self) -> None:
        """Raise a Problem if the token is not valid any more; asked once in some seconds."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _CHECK_EVERY
        tokens = self._services.context.catalogue.access_tokens
        try:
            record = await self._services.read(tokens.get, id_of(self._text))
        except CatalogueUnavailable:
            return  # it restarts; the next check decides
        if caller_of(self._text, record, clock.now()) is None:
            raise Problem(HTTPStatus.UNAUTHORIZED, "NoToken", "the token was revoked, or has expired, meanwhile")

    def checked(self, receive: Receive) -> Receive:
        """Return `receive` with the check after each message."""

        async def checked() -> Message:
            message = await receive()
            await self.check()
            return message

        return checked


class _Answer:
    """Passes an answer on, and keeps its status and size for the log."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status: int | None = None
        self.sent = 0
        self.complete = False

    def checked(self, still: _StillValid) -> Send:
        """Return `send` with the check before each message."""

        async def checked(message: Message) -> None:
            await still.check()
            await self.send(message)

        return checked

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message["headers"], (b"x-content-type-options", b"nosniff")]
        else:
            self.sent += len(message.get("body", b""))
            self.complete = not message.get("more_body", False)
        await self._send(message)


class _BoundedBody:
    """The body of a request: no larger than a message may be, unless its path takes large ones, and never silent."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._receive = receive
        self._most = None if scope["path"].startswith(_STREAMED) else MAX_MESSAGE
        self._seen = 0
        self._over = False
        announced = Headers(scope=scope).get("content-length", "0")
        if self._most is not None and announced.isdigit() and int(announced[:20]) > self._most:
            raise self._too_large()

    async def receive(self) -> Message:
        if self._over:  # what comes now is that the client went away, and may take long
            return await self._receive()
        try:
            async with asyncio.timeout(_BODY_WITHIN):
                message = await self._receive()
        except TimeoutError:
            raise Problem(
                HTTPStatus.REQUEST_TIMEOUT,
                "RequestTimeout",
                f"the body sent nothing for {_BODY_WITHIN:.0f} s: send it again",
                headers={"Connection": "close"},
            ) from None
        self._over = not message.get("more_body", False)
        self._seen += len(message.get("body", b""))
        if self._most is not None and self._seen > self._most:
            raise self._too_large()
        return message

    def _too_large(self) -> Problem:
        return Problem(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            "TooLarge",
            f"a request has at most {self._most} bytes; bytes of artifacts are sent to /v1/uploads",
            headers={"Connection": "close"},
        )
