"""A slow line is not a dead one, and a store that accepts no more bytes is dead."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conformance.bodies import some_bytes, source
from tests.faults.proxied_stores import STORES, opened_through, port_of
from tests.servers.freezing_proxy import FreezingProxy
from worker.storage import Store, Verdict

BUCKET = "releases"
MIB = 1024 * 1024
PART = 16 * MIB
"""Bytes: of less, the kernel takes so much at once that no send waits."""
PATIENCE = {
    "s3.providers.CONNECT_TIMEOUT": 2.0,
    "azure.client.CONNECT_TIMEOUT": 2.0,
    "gcs.upload.TIMEOUT": (2.0, 60.0),
}
"""Seconds to connect, which HTTP libraries also hold one call of a socket's `send` to; otherwise 5."""


@dataclass(frozen=True)
class Narrow:
    """One store, opened directly and through a line of four megabytes a second."""

    direct: Store
    faulty: Store
    line: FreezingProxy


@pytest.fixture(params=list(STORES))
def narrow(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Narrow]:
    for name, seconds in PATIENCE.items():
        monkeypatch.setattr(f"worker.storage.{name}", seconds)
    server, target = STORES[request.param]
    direct = target(request.getfixturevalue(server), tmp_path).store
    with FreezingProxy(port_of(request.param, direct), rate=4 * MIB) as line:
        faulty = opened_through(request.param, direct, line.port, tmp_path, part_size=PART)
        yield Narrow(direct, faulty, line)
        faulty.close()
    assert list(direct.iter_stale_uploads()) == []
    direct.close()


@pytest.mark.slow
@pytest.mark.parametrize("size", [PART - 1, 2 * PART], ids=["whole", "parts"])
def test_an_upload_over_a_slow_line_is_only_slow(narrow: Narrow, size: int) -> None:
    """Each part takes longer than the timeout for one byte, and all arrive: bytes move all the time."""
    narrow.faulty.write_object(BUCKET, "app", source(some_bytes(size)), condition="create_only")
    assert narrow.direct.verify_object(BUCKET, "app").verdict is Verdict.VERIFIED


@pytest.mark.slow
def test_a_store_that_stops_reading_is_asked_again(narrow: Narrow) -> None:
    """In the middle of a part no byte is taken any more: the part is given up, and goes over another connection."""
    narrow.line.stop_reading(after=PART // 2)
    narrow.faulty.write_object(BUCKET, "app", source(some_bytes(2 * PART)), condition="create_only")
    assert narrow.direct.verify_object(BUCKET, "app").verdict is Verdict.VERIFIED
