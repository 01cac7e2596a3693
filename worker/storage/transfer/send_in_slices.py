"""Send large bodies in small slices, so that a slow connection is not taken for a dead one.

A socket's timeout applies to one whole call. A part of 16 MiB in one call would have to be sent within the timeout for
connecting, five seconds, which always fails below some 40 Mbit/s. If a slice of 128 KiB takes that long, the peer does
not read any more.
"""

from collections.abc import Iterator
from typing import Any, cast

import requests
from requests.adapters import HTTPAdapter
from urllib3 import Retry

from worker.storage.driver import PartData
from worker.storage.transfer.split_into_parts import pieces_of

SLICE = 128 * 1024
"""Bytes."""
CONNECTIONS = 32
"""Pooled connections: more than two transfers, with two parts in flight each, and their read-ahead use at once."""


class SlicedBody:
    """A body of known length that HTTP libraries iterate over each time they send it."""

    def __init__(self, *sources: PartData | memoryview) -> None:
        self._sources = sources

    def __len__(self) -> int:
        return sum(map(len, self._sources))

    def __iter__(self) -> Iterator[bytes]:
        for source in self._sources:
            yield from cast("Iterator[bytes]", pieces_of(source, SLICE))  # requests' stubs do not know of memoryviews

    def seek(self, _offset: int, /) -> None:
        """Do nothing: each iteration starts at the beginning. The SDK for S3 calls this before a retry."""


class _Adapter(HTTPAdapter):
    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        request.body = as_sliced_body(request.body)
        return super().send(request, *args, **kwargs)

    def close(self) -> None:
        """End the connections: a pool of urllib3 that is only forgotten keeps them while an answer refers to it.

        Such an answer is freed late if it is in a cycle, as the answer of an error is.
        """
        for manager in (self.poolmanager, *self.proxy_manager.values()):
            for key in manager.pools.keys():  # noqa: SIM118 - its container has no iterator
                if (pool := manager.pools.get(key)) is not None:
                    pool.close()
        super().close()


def mount_sliced_body(session: requests.Session, retries: Retry | int = 0) -> None:
    """Make a session send bodies in slices."""
    adapter = _Adapter(pool_connections=4, pool_maxsize=CONNECTIONS, max_retries=retries)
    for scheme in ("https://", "http://"):
        session.mount(scheme, adapter)


def as_sliced_body(body: Any) -> Any:
    """Return a body as a SlicedBody if it is bytes and longer than one slice."""
    return SlicedBody(body) if isinstance(body, bytes | bytearray | memoryview) and len(body) > SLICE else body
