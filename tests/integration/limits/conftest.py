"""A real Valkey that the limits share, and none."""

from collections.abc import Callable, Iterator

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.servers.process import free_port
from worker.limits.admission import Admission
from worker.limits.shared_redis import SharedRedis
from worker.settings import Settings
from worker.storage.config import FilesystemConfig


@pytest.fixture
def url(valkey) -> str:
    valkey.empty()
    return valkey.url


@pytest.fixture
def shared(url) -> Iterator[SharedRedis]:
    with Redis.from_url(url) as client:
        yield SharedRedis(lambda: client)


@pytest.fixture
def alone() -> SharedRedis:
    """Return what a process has whose Redis does not answer."""
    client = Redis(port=free_port(), socket_connect_timeout=1, retry=Retry(NoBackoff(), 0))
    return SharedRedis(lambda: client)


@pytest.fixture
def admission(tmp_path) -> Callable[..., Admission]:
    def make(shared: SharedRedis, probe: Callable[[str], object] = lambda _: None, **settings: object) -> Admission:
        stores = {name: FilesystemConfig(root=tmp_path / name) for name in ("a", "b")}
        return Admission(Settings(home=tmp_path, stores=stores, **settings), probe, shared)  # type: ignore[arg-type]

    return make
