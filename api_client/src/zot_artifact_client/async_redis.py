"""Reach Redis from an event loop within a few seconds, over few connections, or raise BrokerUnavailable."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from zot_artifact_client.broker_urls import async_redis_client, parse_url
from zot_artifact_client.connection import (
    CONNECT_TIMEOUT,
    RETRY_POLICY,
    SOCKET_TIMEOUT,
    UNREACHABLE,
    unavailable,
    without_credentials,
)
from zot_artifact_client.errors import InvalidUrl

if TYPE_CHECKING:
    from redis.asyncio import Redis

MAX_CONNECTIONS = 4
"""Commands that run at the same moment over one event loop; the next one waits."""


class AsyncRedis:
    """A Redis by its URL. Each process and each event loop has connections of its own.

    Args:
        what: the server's name in errors.
        setting: the name of the URL's setting, for the error.

    Raises:
        InvalidUrl: the URL is none, or is not that of a Redis.
    """

    def __init__(self, what: str, url: str, setting: str) -> None:
        self._what = what
        self._url = url
        self._setting = setting
        self._made: dict[asyncio.AbstractEventLoop, tuple[int, Redis, asyncio.Semaphore]] = {}
        parsed = parse_url(url, setting)
        if not parsed.is_redis:
            msg = f"{setting}: {without_credentials(url)} is no Redis: the asynchronous client needs Redis or Valkey"
            raise InvalidUrl(msg)
        self._keepalive = not parsed.is_socket

    async def run(self, command: Callable[["Redis"], Awaitable[Any]]) -> Any:
        """Return what a command answers. Raise BrokerUnavailable."""
        client, limit = self._here()
        async with limit:
            try:
                return await command(client)
            except UNREACHABLE as error:
                raise await asyncio.to_thread(unavailable, error, self._what, self._url) from error

    async def transaction(self, fill: Callable[[Any], None]) -> list[Any]:
        """Run the commands that `fill` adds to a pipeline, all or none, in one round trip. Raise BrokerUnavailable."""

        async def execute(client: "Redis") -> list[Any]:
            async with client.pipeline(transaction=True) as pipeline:
                fill(pipeline)
                return await pipeline.execute()

        answers: list[Any] = await self.run(execute)
        return answers

    async def close(self) -> None:
        """Close the connections of this event loop."""
        made = self._made.pop(asyncio.get_running_loop(), None)
        if made is not None and made[0] == os.getpid():
            with suppress(Exception):  # the server is unavailable: then its connections are closed already
                await made[1].aclose(close_connection_pool=True)

    def _here(self) -> tuple["Redis", asyncio.Semaphore]:
        loop = asyncio.get_running_loop()
        made = self._made.get(loop)
        if made is None or made[0] != os.getpid():  # connections survive neither a fork nor their loop
            for each in list(self._made):  # other threads may add theirs
                if each.is_closed():
                    self._made.pop(each, None)
            made = self._made[loop] = (os.getpid(), self._make(), asyncio.Semaphore(MAX_CONNECTIONS))
        return made[1:]

    def _make(self) -> "Redis":
        from redis.asyncio.retry import Retry
        from redis.backoff import ConstantBackoff

        return async_redis_client(
            self._url,
            self._setting,
            socket_timeout=SOCKET_TIMEOUT,
            socket_connect_timeout=CONNECT_TIMEOUT,
            retry=Retry(ConstantBackoff(RETRY_POLICY["interval_start"]), int(RETRY_POLICY["max_retries"])),
            **({"socket_keepalive": True} if self._keepalive else {}),
        )
