"""Let requests read the final answer of a receiver, whatever interim answers come before it, within its time."""

from typing import Any

from requests.adapters import HTTPAdapter
from urllib3.connectionpool import HTTPConnectionPool

from worker.watched_connections import Watch, watch_connections


class FinalResponseAdapter(HTTPAdapter):
    """An adapter that takes no interim answer, such as 103 (Early Hints), for the answer."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._watch = watch

    def get_connection_with_tls_context(self, *args: Any, **options: Any) -> HTTPConnectionPool:
        """Return the pool of a host, whose connections read final answers."""
        return watch_connections(super().get_connection_with_tls_context(*args, **options), self._watch)
