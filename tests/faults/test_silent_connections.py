"""Connections that stay open and silent: a process that waits on one gives up, and continues over a new one."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.bodies import some_bytes, source
from tests.conformance.targets import PART
from tests.faults.fleet import MIB, PARTS, fleet_of
from tests.faults.proxied_stores import STORES, opened_through, port_of
from tests.servers import Ministack, Valkey
from tests.servers.freezing_proxy import FreezingProxy
from tests.servers.proxy import Fault, FaultyProxy, Request, Silence
from tests.waiting import WITHIN
from worker.storage import Verdict
from worker.storage.errors import TransientError
from zot_artifact_client import ArtifactClient, BrokerUnavailable

BUCKET = "releases"
WRITES: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "s3": {"object": ("PUT", "/app"), "part": ("PUT", "partNumber=2"), "commit": ("POST", "uploadId=")},
    "gcs": {"object": ("POST", "/upload/"), "part": ("POST", "/upload/"), "commit": ("POST", "/compose")},
    "azure": {"object": ("PUT", "/app"), "part": ("PUT", "comp=block&"), "commit": ("PUT", "comp=blocklist")},
}
"""By store, the request that writes a small object, a part of a large one, and the large one's end."""
PATIENCE = {
    "cloud.small_reads.PATIENCE": 2,
    "cloud.small_writes._PATIENCE": 2,
    "cloud.small_writes._PATIENCE_OF_PART": 2,
    "s3.driver.READ_TIMEOUT": 1.5,
    "s3.driver.COMMIT_TIMEOUT": 1.6,
    "azure.client.READ_TIMEOUT": 1.5,
    "azure.upload.COMMIT_TIMEOUT": 1.5,
    "gcs.driver.TIMEOUT": (5.0, 1.5),
    "gcs.upload.TIMEOUT": (5.0, 1.5),
    "gcs.client.TIMEOUT": (5.0, 1.5),
    "gcs.parts.COMMIT_TIMEOUT": (5.0, 1.5),
    "gcs.client.RETRY_FOR": 6.0,
}
"""Seconds that the drivers wait for the next byte here; a minute and more is too long for a test."""


class Line:
    """One store, opened directly and through a proxy in which connections fall silent."""

    def __init__(self, kind: str, server: Any, spool: Path) -> None:
        self.kind = kind
        self.direct = STORES[kind][1](server, spool).store
        self._silent: tuple[str, str, Silence, int] | None = None
        self.proxy = FaultyProxy(port_of(kind, self.direct), self._fault)
        self.faulty = opened_through(kind, self.direct, self.proxy.port, spool)

    def silence(self, method: str, part_of_path: str, fault: Silence, *, times: int) -> None:
        """Let so many requests of this kind fall silent."""
        self._silent = (method, part_of_path, fault, times)

    def _fault(self, request: Request) -> Fault:
        if self._silent is None:
            return None
        method, part_of_path, fault, left = self._silent
        if not left or request.method != method or part_of_path not in request.path:
            return None
        self._silent = (method, part_of_path, fault, left - 1)
        return fault

    def asked(self, method: str, part_of_path: str) -> int:
        return sum(one.method == method and part_of_path in one.path for one in self.proxy.requests)


@pytest.fixture(params=list(STORES))
def line(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Line]:
    for name, seconds in PATIENCE.items():
        monkeypatch.setattr(f"worker.storage.{name}", seconds)
    opened = Line(request.param, request.getfixturevalue(STORES[request.param][0]), tmp_path)
    with opened.proxy:
        yield opened
        opened.faulty.close()
    assert list(opened.direct.iter_stale_uploads()) == []
    opened.direct.close()


@pytest.mark.usefixtures("sdks_retry_at_once")
class TestStores:
    @pytest.mark.parametrize("request_, size", [("object", 100), ("part", PART + 1), ("commit", PART + 1)])
    def test_a_write_that_gets_no_answer_is_asked_again(self, line: Line, request_: str, size: int) -> None:
        """The request is given up and asked once more; what it had done before is found to be our own."""
        wanted = WRITES[line.kind][request_]
        line.silence(*wanted, Silence(), times=1)
        line.faulty.write_object(BUCKET, "app", source(some_bytes(size)), condition="create_only")
        assert line.asked(*wanted) >= 2
        assert line.direct.verify_object(BUCKET, "app").verdict is Verdict.VERIFIED

    @pytest.mark.usefixtures("both_paths")
    def test_a_read_that_falls_silent_continues_at_its_offset(self, line: Line) -> None:
        """The head and part of the body come, and then nothing: the rest is fetched over another connection."""
        line.direct.write_object(BUCKET, "app", source(some_bytes(100_000)))
        line.silence("GET", "app", Silence(after=70_000), times=1)
        assert line.faulty.verify_object(BUCKET, "app").verdict is Verdict.VERIFIED

    @pytest.mark.slow
    @pytest.mark.parametrize("after", [None, 1], ids=["head", "body"])
    def test_a_store_that_stays_silent_is_given_up(self, line: Line, after: int | None) -> None:
        """After a few tries it is a transient error; no process waits without end."""
        line.direct.write_object(BUCKET, "app", source(some_bytes(100_000)))
        line.silence("GET", "app", Silence(after), times=1000)
        with pytest.raises(TransientError, match="releases/app"), line.faulty.read_object(BUCKET, "app") as reader:
            b"".join(reader)
        assert 2 <= line.asked("GET", "app") <= 6


class TestBroker:
    @pytest.mark.slow
    @pytest.mark.timeout(1200)
    def test_a_worker_whose_connections_froze_goes_on(
        self, valkey: Valkey, ministack: Ministack, tmp_path: Path
    ) -> None:
        """Broker and results fall silent under a job at work: it ends, and so does one that is sent meanwhile."""
        with (
            FreezingProxy(valkey.port) as proxy,
            fleet_of(valkey, ministack, tmp_path, at=4) as fleet,
            fleet.worker("only", beat=True, broker=f"redis://127.0.0.1:{proxy.port}/0") as only,
        ):
            pid = only.pid
            at_work = fleet.client.upload(fleet.source(), "releases", "large.bin")
            assert fleet.gate.reached.wait(WITHIN)
            proxy.freeze()
            waiting = fleet.client.upload(fleet.source(100), "releases", "small.bin")
            fleet.gate.open.set()
            proxy.thaw()
            assert at_work.wait(WITHIN).size == PARTS * 5 * MIB
            assert waiting.wait(WITHIN).version == 1
            assert [fleet.record(job).attempts for job in (at_work, waiting)] == [1, 1]
            assert (only.running, only.pid) == (True, pid)

    def test_a_client_is_told_and_sends_again_once_it_can(self, valkey: Valkey) -> None:
        """A connection that froze in the client's hands is an error of its own, and is not used again."""
        with FreezingProxy(valkey.port) as proxy, ArtifactClient(f"redis://127.0.0.1:{proxy.port}/0") as client:
            client.upload("https://example.org/a", "releases", "a")
            proxy.freeze()
            with pytest.raises(BrokerUnavailable, match=str(proxy.port)):
                client.upload("https://example.org/b", "releases", "b")
            proxy.thaw()
            client.upload("https://example.org/b", "releases", "b")
