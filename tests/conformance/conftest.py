"""Each store in turn, an empty bucket for every case, and a check that nothing is left of it."""

import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.conformance import targets
from tests.conformance.bodies import source
from tests.conformance.kinds import KINDS, Kind
from tests.conformance.targets import Target
from worker.storage import Capabilities, Condition, Digest, ObjectStat, Store
from worker.storage.cloud.driver import MARKER


def _excluded_of(kind: Kind) -> set[str]:
    return {*kind.excludes, "server"} if kind.server else {*kind.excludes}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Generate a case for every store that it applies to, and for no other."""
    if "target" not in metafunc.fixturenames:
        return
    marks = list(metafunc.definition.iter_markers())
    needed = {mark.args[0] for mark in marks if mark.name == "needs"}
    excluded = {mark.args[0] for mark in marks if mark.name == "unless"}
    reads = any(mark.name == "reads" for mark in marks)
    if "pair" in metafunc.fixturenames:
        needed.add("server_copy")
        excluded.add("copies")
    applies = [
        pytest.param(name, marks=[pytest.mark.installed_server] if kind.server else [])
        for name, kind in KINDS.items()
        if needed <= kind.offers and not excluded & _excluded_of(kind) and (reads or kind.data_path == "sdk")
    ]
    metafunc.parametrize("target", applies, indirect=True, scope="session")


@pytest.fixture(scope="session")
def target(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """Return one store after the other; its server is started when its first case runs."""
    kind = KINDS[request.param]
    server = request.getfixturevalue(kind.server) if kind.server else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(targets, "DATA_PATH", kind.data_path)
        target = kind.open(server, tmp_path_factory.mktemp("store"))
    assert offered_by(target) == kind.offers, "KINDS must say what the store offers, or cases would be missing"
    yield target
    target.store.close()


def offered_by(target: Target) -> set[str]:
    capabilities = target.store.capabilities
    offers = {
        "parts": capabilities.parts is not None,
        "server_copy": capabilities.realm is not None,
        "patches": capabilities.patches > 0,
        "files": target.path_of is not None,
    }
    return {ability for ability, there in offers.items() if there}


@pytest.fixture
def store(target: Target) -> Store:
    return target.store


@pytest.fixture
def size(request: pytest.FixtureRequest, target: Target) -> int:
    """Return a size of `sizes` in bytes."""
    parts, more = request.param
    return int(parts * target.part + more)


@dataclass(frozen=True)
class BucketUnderTest:
    """A bucket of one case, so that cases say only what they are about.

    Attributes:
        part: bytes of a part of the store.
    """

    store: Store
    name: str
    part: int

    @property
    def capabilities(self) -> Capabilities:
        return self.store.capabilities

    def write(self, key: str, data: bytes, condition: Condition = None) -> ObjectStat:
        stat, _ = self.store.write_object(self.name, key, source(data), condition=condition)
        return stat

    def write_as(self, key: str, data: bytes, digest: Digest) -> ObjectStat:
        stat, _ = self.store.write_object(self.name, key, source(data), size=digest.size, sha256=digest.sha256)
        return stat

    def read(self, key: str) -> bytes:
        with self.store.read_object(self.name, key) as reader:
            return b"".join(reader)

    def stat(self, key: str) -> ObjectStat:
        return self.store.stat_object(self.name, key)

    def exists(self, key: str) -> bool:
        return self.store.object_exists(self.name, key)

    def keys(self, prefix: str = "", after: str = "") -> list[str]:
        return [row.key for row in self.store.list_objects(self.name, prefix, after=after)]

    def delete(self, key: str) -> bool:
        return self.store.delete_object(self.name, key)


@pytest.fixture(scope="session")
def empty_buckets(target: Target) -> list[str]:
    """Return the bucket that a case left empty, for the next one: to make one takes several requests."""
    return []


@pytest.fixture(scope="module")
def _no_upload_is_left(target: Target) -> Iterator[None]:
    """Fail if an upload is left open of the cases of a module: to look for them takes several listings."""
    yield
    assert [unfinished.description for unfinished in target.store.iter_stale_uploads()] == []


@pytest.fixture
def bucket(target: Target, empty_buckets: list[str], _no_upload_is_left: None) -> Iterator[BucketUnderTest]:
    """Return an empty bucket; afterwards empty it, and fail if anything at all is left of the case."""
    if not empty_buckets:
        empty_buckets.append(f"b-{uuid.uuid4().hex[:12]}")
        target.store.create_bucket(empty_buckets[0])
    bucket = BucketUnderTest(target.store, empty_buckets.pop(), target.part)
    yield bucket
    for row in list(target.store.list_objects(bucket.name)):
        bucket.delete(row.key)
    assert [path for path in target.stale_files(bucket.name) if not path.endswith(MARKER)] == []
    if target.drop is None:
        empty_buckets.append(bucket.name)
    else:
        target.drop(bucket.name)
