"""Connections that stay open and say nothing: whoever waits on them gives up, and goes on over a new one."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.conformance.bodies import some_bytes, source
from tests.conformance.targets import PART, Target, azure, gcs, s3_ministack
from tests.servers.proxy import Fault, FaultyProxy, Request, Silence
from worker.storage import Store, Verdict
from worker.storage.errors import TransientError
from worker.storage.registry import open_driver

BUCKET = "releases"
STORES: Mapping[str, tuple[str, Callable[[Any, Path], Target]]] = {
    "s3": ("ministack", s3_ministack),
    "gcs": ("strict_gcs", gcs),
    "azure": ("azurite", azure),
}
WRITES: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "s3": {"object": ("PUT", "/app"), "part": ("PUT", "partNumber=2"), "commit": ("POST", "uploadId=")},
    "gcs": {"object": ("POST", "/upload/"), "part": ("POST", "/upload/"), "commit": ("POST", "/compose")},
    "azure": {"object": ("PUT", "/app"), "part": ("PUT", "comp=block&"), "commit": ("PUT", "comp=blocklist")},
}
"""By store, the request that writes a small object, a part of a large one, and the large one's end."""
PATIENCE = {
    "s3.READ_TIMEOUT": 0.5,
    "s3.COMMIT_TIMEOUT": 0.6,
    "azure_client.READ_TIMEOUT": 0.5,
    "azure_upload.COMMIT_TIMEOUT": 0.5,
    "gcs.TIMEOUT": (5.0, 0.5),
    "gcs_upload.TIMEOUT": (5.0, 0.5),
    "gcs_parts.TIMEOUT": (5.0, 0.5),
    "gcs_parts.COMMIT_TIMEOUT": (5.0, 0.5),
    "gcs_client.RETRY_FOR": 3.0,
}
"""Seconds that the drivers wait for the next byte here; a minute and more is too long for a test."""


class Line:
    """One store, opened directly and through a proxy in which connections fall silent."""

    def __init__(self, kind: str, server: Any, spool: Path) -> None:
        self.kind = kind
        self.direct = STORES[kind][1](server, spool).store
        config: Any = self.direct._driver._config  # type: ignore[attr-defined]
        where = "account_url" if kind == "azure" else "endpoint"
        address = urlsplit(getattr(config, where))
        assert address.port
        self._silent: tuple[str, str, Silence, int] | None = None
        self.proxy = FaultyProxy(address.port, self._fault)
        faulty = config.model_copy(update={where: f"{self.proxy.endpoint}{address.path}"})
        self.faulty = Store(open_driver("faulty", faulty), spool_dir=spool)

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
    assert list(opened.direct.iter_unfinished()) == []
    opened.direct.close()


class TestStores:
    @pytest.mark.parametrize("request_, size", [("object", 100), ("part", PART + 1), ("commit", PART + 1)])
    def test_a_write_that_gets_no_answer_is_asked_again(self, line: Line, request_: str, size: int) -> None:
        """The request is given up and asked once more; what it had done before is found to be our own."""
        wanted = WRITES[line.kind][request_]
        line.silence(*wanted, Silence(), times=1)
        line.faulty.write_object(BUCKET, "app", source(some_bytes(size)), condition="create_only")
        assert line.asked(*wanted) >= 2
        assert line.direct.verify_object(BUCKET, "app").verdict is Verdict.VERIFIED

    def test_a_read_that_falls_silent_goes_on_where_it_stood(self, line: Line) -> None:
        """The head and part of the body come, and then nothing: the rest is fetched over another connection."""
        line.direct.write_object(BUCKET, "app", source(some_bytes(100_000)))
        line.silence("GET", "app", Silence(after=70_000), times=1)
        assert line.faulty.verify_object(BUCKET, "app").verdict is Verdict.VERIFIED

    @pytest.mark.slow
    @pytest.mark.parametrize("after", [None, 1], ids=["head", "body"])
    def test_a_store_that_stays_silent_is_given_up(self, line: Line, after: int | None) -> None:
        """After a few tries it is a fault that passes; nobody waits without end."""
        line.direct.write_object(BUCKET, "app", source(some_bytes(100_000)))
        line.silence("GET", "app", Silence(after), times=1000)
        with pytest.raises(TransientError, match="releases/app"), line.faulty.read_object(BUCKET, "app") as reader:
            b"".join(reader)
        assert 2 <= line.asked("GET", "app") <= 6
