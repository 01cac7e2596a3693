"""Let requests read the final answer of a receiver, whatever interim answers come before it, within its time."""

import socket
from collections.abc import Callable
from functools import partial
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from zot_artifact_client.http_final_response import FinalResponse

_Watch = Callable[[socket.socket], socket.socket]


class _Plain(HTTPConnection):
    response_class = FinalResponse

    def __init__(self, *args: Any, watch: _Watch, **options: Any) -> None:
        super().__init__(*args, **options)
        self._watch = watch

    def _new_conn(self) -> socket.socket:
        return self._watch(super()._new_conn())


class _Secure(_Plain, HTTPSConnection):
    """The same with TLS."""


class FinalResponseAdapter(HTTPAdapter):
    """An adapter that takes no interim answer, such as 103 (Early Hints), for the answer.

    `watch` is given each connection that is made, and returns it.
    """

    def __init__(self, watch: _Watch) -> None:
        super().__init__()
        self._watch = watch

    def get_connection_with_tls_context(self, *args: Any, **options: Any) -> HTTPConnectionPool:
        """Return the pool of a host, whose connections read final answers."""
        pool = super().get_connection_with_tls_context(*args, **options)
        made = _Secure if isinstance(pool, HTTPSConnectionPool) else _Plain
        pool.ConnectionCls = partial(made, watch=self._watch)  # type: ignore[assignment]
        return pool
