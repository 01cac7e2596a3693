"""The exporter: figures of the catalogue, the broker and the workers for Prometheus, outside of the tasks."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from socket import AddressFamily
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, Metric, exposition
from prometheus_client.core import InfoMetricFamily
from prometheus_client.registry import Collector

from worker.catalogue import Catalogue
from worker.metrics.background_groups import Group, Groups
from worker.metrics.broker_figures import BrokerFigures, SharedFigures
from worker.metrics.catalogue_figures import CoverageFigures, LedgerFigures
from worker.metrics.family_builders import PREFIX
from worker.settings import Settings

logger = logging.getLogger(__name__)

_OFTEN = 10.0
_SELDOM = 60.0
_FIRST = 10.0
"""Seconds for which the first request waits at most, so that it finds figures."""
_PATIENCE = 30
"""Seconds that a client may take for its request."""


class Exporter:
    """All figures, computed in the background while it is running."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._catalogue: Catalogue | None = None
        self._lock = threading.Lock()
        ledger, coverage = LedgerFigures(settings, self._opened), CoverageFigures(settings, self._opened)
        self.groups = Groups(
            [
                Group("broker", BrokerFigures(settings).collect, _OFTEN),
                Group("workers", SharedFigures(settings).collect, _OFTEN),
                Group("ledger", ledger.collect, _OFTEN),
                Group("coverage", coverage.collect, _SELDOM),
            ]
        )
        self.registry = CollectorRegistry()
        self.registry.register(_Collected(self.groups))

    @contextmanager
    def serving(self, host: str, port: int) -> Iterator[ThreadingHTTPServer]:
        """Serve the figures until the end of the block; port 0 takes a free one.

        Raises:
            OSError: the address cannot be used.
        """
        server = _Server((host, port), _handler(self.registry, self.groups))
        thread = threading.Thread(target=server.serve_forever, name="metrics-http", daemon=True)
        self.groups.start()
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            server.server_close()
            self.groups.stop()
            if self._catalogue is not None:
                self._catalogue.close()

    def _opened(self) -> Catalogue:
        """Return the catalogue, opened when it is first there: the exporter makes none."""
        with self._lock:
            if self._catalogue is None:
                self._catalogue = Catalogue(self._settings.catalogue_url, create=False)
            return self._catalogue


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self.address_family = AddressFamily.AF_INET6 if ":" in address[0] else AddressFamily.AF_INET
        super().__init__(address, handler)

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002 - the library's arguments
        """Log what a client does wrong, such as leaving before its answer, as little as what it asks for."""
        logger.debug("%s was not answered", client_address, exc_info=True)  # noqa: LOG014 - the server is in a handler


class _Collected(Collector):
    def __init__(self, groups: Groups) -> None:
        self._groups = groups

    def describe(self) -> Iterator[Metric]:
        """Name nothing: the registry would compute all figures to learn their names."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Yield the version and the last figures."""
        about = InfoMetricFamily(f"{PREFIX}exporter", "The version of the exporter.")
        about.add_metric((), {"version": version("zot-artifact-worker")})
        yield about
        yield from self._groups.collect()


def _handler(registry: CollectorRegistry, groups: Groups) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = _PATIENCE

        def do_GET(self) -> None:
            try:
                path = urlsplit(self.path).path
                encode, kind = exposition.choose_encoder(self.headers.get("Accept", ""))
            except (ValueError, TypeError) as error:  # the libraries take both for granted to be well-formed
                self.send_error(HTTPStatus.BAD_REQUEST, explain=f"{type(error).__name__} in the request")
                return
            if path == "/metrics":
                groups.wait(_FIRST)
                self._answer(HTTPStatus.OK, kind, encode(registry))
            elif path == "/healthz":
                self._answer(HTTPStatus.OK, "text/plain; charset=utf-8", b"ok\n")
            else:
                self._answer(HTTPStatus.NOT_FOUND, "text/plain; charset=utf-8", b"there are /metrics and /healthz\n")

        def _answer(self, status: HTTPStatus, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in the standard library
            logger.debug(format, *args)

    return Handler
