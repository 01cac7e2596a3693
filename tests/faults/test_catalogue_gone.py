"""The catalogue is unavailable while jobs run, and recovers: the jobs continue, and their effect happens once."""

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


class SlowSource:
    """Serves one file, whose end it sends only when it is released."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.released = threading.Event()
        self.origin = ""

    @contextmanager
    def serving(self) -> Iterator[str]:
        source = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", "7")
                self.end_headers()
                self.wfile.write(b"release"[:3])
                source.reached.set()
                source.released.wait(WITHIN)
                self.wfile.write(b"release"[3:])

            def log_message(self, *_: object) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            try:
                yield f"http://127.0.0.1:{server.server_port}"
            finally:
                self.released.set()
                server.shutdown()


@dataclass(frozen=True)
class Outage:
    """A catalogue, what makes it unavailable, and what ends that."""

    url: str
    start: Callable[[], object]
    end: Callable[[], object]


@pytest.fixture(params=["locked", "deleted", "postgresql"])
def outage(request, tmp_path):
    """Return a catalogue whose file is locked by another process or deleted, or whose server is killed."""
    path = tmp_path / "catalogue.sqlite3"
    if request.param == "deleted":
        aside = tmp_path / "aside.sqlite3"
        yield Outage(f"sqlite:///{path}?timeout=1", lambda: path.rename(aside), lambda: aside.rename(path))
        return
    if request.param == "locked":
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            yield Outage(f"sqlite:///{path}?timeout=1", lambda: other.execute("BEGIN EXCLUSIVE"), other.rollback)
        return
    server = request.getfixturevalue("postgres")
    with server.database() as url:
        yield Outage(url, server.kill, server.restart)


def test_jobs_outlive_a_catalogue_that_is_away(outage, valkey, tmp_path):
    """A running job and a waiting one find no catalogue, wait for it, and succeed: one version, one complete copy."""
    valkey.empty()
    source = SlowSource()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "b.tgz").write_bytes(b"release")
    with source.serving() as origin:
        settings = {
            "catalogue": outage.url,
            "sources__hosts": json.dumps([origin]),
            "sources__roots": json.dumps([str(tmp_path / "in")]),
            "retry__backoff": "1s",
            "retry__backoff_max": "1s",
            "jobs__lease": "2s",
        }
        worker = Worker(tmp_path / "worker", valkey.url, concurrency=1, **settings)
        with worker, ArtifactClient(valkey.url) as client:
            at_work = client.upload(f"{origin}/a.tgz", "releases", "a.tgz")
            waiting = client.upload(str(tmp_path / "in" / "b.tgz"), "releases", "b.tgz")
            assert source.reached.wait(WITHIN)
            outage.start()
            source.released.set()
            until(lambda: all(f"job {job.id} waits: catalogue" in worker.log for job in (at_work, waiting)))
            outage.end()
            assert [job.wait(WITHIN).version for job in (at_work, waiting)] == [1, 1]

        catalogue = Catalogue(outage.url)
        jobs = [catalogue.ledger.get(job.id) for job in (at_work, waiting)]
        artifacts = [catalogue.artifacts.current("releases", key) for key in ("a.tgz", "b.tgz")]
        states = [copy.state for artifact in artifacts for copy in catalogue.artifacts.copies(artifact).values()]
        catalogue.close()
    assert [(job.attempts, job.parent) for job in jobs] == [(2, None), (1, None)]
    assert states == ["stored"] * 4
    password = make_url(outage.url).password
    assert password is None or password not in worker.log
