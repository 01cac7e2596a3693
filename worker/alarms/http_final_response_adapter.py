"""Let requests read the final answer of a receiver, whatever interim answers come before it."""

from typing import Any

from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from zot_artifact_client.http_final_response import FinalResponse


class _Plain(HTTPConnection):
    response_class = FinalResponse


class _Secure(HTTPSConnection):
    response_class = FinalResponse


class FinalResponseAdapter(HTTPAdapter):
    """An adapter that takes no interim answer, such as 103 (Early Hints), for the answer."""

    def get_connection_with_tls_context(self, *args: Any, **options: Any) -> HTTPConnectionPool:
        """Return the pool of a host, whose connections read final answers."""
        pool = super().get_connection_with_tls_context(*args, **options)
        pool.ConnectionCls = _Secure if isinstance(pool, HTTPSConnectionPool) else _Plain
        return pool
