"""The catalogue goes away while jobs run, and comes back: the jobs go on, and their effect happens once."""

import json
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from sqlalchemy import make_url

from tests.servers.worker import Worker
from tests.waiting import WITHIN, until
from worker.catalogue import Catalogue
from zot_artifact_client import ArtifactClient


class GatedSource:
    """Serves one file, whose end it holds back until it is opened."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.open = threading.Event()
        self.origin = ""

    @contextmanager
    def serving(self) -> Iterator[str]:
        gate = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", "7")
                self.end_headers()
                self.wfile.write(b"release"[:3])
                gate.reached.set()
                gate.open.wait(WITHIN)
                self.wfile.write(b"release"[3:])

            def log_message(self, *_: object) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            try:
                yield f"http://127.0.0.1:{server.server_port}"
            finally:
                self.open.set()
                server.shutdown()


@dataclass(frozen=True)
class Place:
    """A catalogue, what takes it away, and what gives it back."""

    url: str
    take: Callable[[], object]
    give: Callable[[], object]


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request, tmp_path):
    """Return a catalogue that somebody else can lock for longer than is waited for, or whose server can be killed."""
    if request.param == "sqlite":
        path = tmp_path / "catalogue.sqlite3"
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            yield Place(f"sqlite:///{path}?timeout=1", lambda: other.execute("BEGIN EXCLUSIVE"), other.rollback)
        return
    server = request.getfixturevalue("postgres")
    with server.database() as url:
        yield Place(url, server.kill, server.restart)


def test_jobs_outlive_a_catalogue_that_is_away(place, valkey, tmp_path):
    """A job at work and one that waits find no catalogue, wait for it, and end well: one version, one whole copy."""
    gate, broker = GatedSource(), valkey.url.removesuffix("/0") + "/7"
    (tmp_path / "b.tgz").write_bytes(b"release")
    with gate.serving() as origin:
        settings = {
            "catalogue": place.url,
            "sources__hosts": json.dumps([origin]),
            "sources__roots": json.dumps([str(tmp_path)]),
            "retry__backoff": "1s",
            "retry__backoff_max": "1s",
            "jobs__lease": "2s",
        }
        worker = Worker(tmp_path / "worker", broker, concurrency=1, **settings)
        with worker, ArtifactClient(broker) as client:
            at_work = client.upload(f"{origin}/a.tgz", "releases", "a.tgz")
            waiting = client.upload(str(tmp_path / "b.tgz"), "releases", "b.tgz")
            assert gate.reached.wait(WITHIN)
            place.take()
            gate.open.set()
            until(lambda: all(f"job {job.id} waits: catalogue" in worker.log for job in (at_work, waiting)))
            place.give()
            assert [job.wait(WITHIN).version for job in (at_work, waiting)] == [1, 1]

        catalogue = Catalogue(place.url)
        attempts = [catalogue.ledger.get(job.id).attempts for job in (at_work, waiting)]
        artifacts = [catalogue.artifacts.current("releases", key) for key in ("a.tgz", "b.tgz")]
        states = [copy.state for artifact in artifacts for copy in catalogue.artifacts.copies(artifact).values()]
        catalogue.close()
    assert attempts == [2, 1]
    assert states == ["stored"] * 4
    password = make_url(place.url).password
    assert password is None or password not in worker.log
