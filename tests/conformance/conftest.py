"""Each store in turn, a bucket for every case, and a look for leftovers after it."""

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conformance import targets
from tests.conformance.bodies import source
from tests.conformance.targets import Target
from worker.storage import Capabilities, Condition, Digest, ObjectStat, Store

SERVED: dict[str, tuple[Callable[[Any, Path], Target], str]] = {
    "s3-ministack": (targets.s3_ministack, "ministack"),
    "s3-aws": (targets.s3_aws, "ministack"),
    "s3-native": (targets.s3_native, "ministack"),
    "s3-rclone": (targets.s3_rclone, "rclone"),
    "gcs": (targets.gcs, "strict_gcs"),
    "gcs-native": (targets.gcs_native, "strict_gcs"),
    "gcs-resumable": (targets.gcs_resumable, "strict_gcs"),
    "azure": (targets.azure, "azurite"),
    "azure-native": (targets.azure_native, "azurite"),
}
"""What makes each store that a server is asked for, and the fixture that is its server."""
TARGETS = ("memory", "filesystem", *SERVED)


@pytest.fixture(scope="session", params=TARGETS)
def target(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """Return one store after the other; its server is started when its first case runs."""
    target = make_target(request, tmp_path_factory)
    yield target
    target.store.close()


def make_target(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Target:
    directory = tmp_path_factory.mktemp("store")
    if request.param == "memory":
        return targets.memory()
    if request.param == "filesystem":
        (directory / "root").mkdir()
        return targets.filesystem(directory / "root")
    make, server = SERVED[request.param]
    return make(request.getfixturevalue(server), directory)


@pytest.fixture
def store(target: Target) -> Store:
    return target.store


@dataclass(frozen=True)
class Room:
    """A bucket of one case, so that cases say only what they are about."""

    store: Store
    bucket: str

    @property
    def capabilities(self) -> Capabilities:
        return self.store.capabilities

    def write(self, key: str, data: bytes, condition: Condition = None) -> ObjectStat:
        stat, _ = self.store.write_object(self.bucket, key, source(data), condition=condition)
        return stat

    def write_as(self, key: str, data: bytes, digest: Digest) -> ObjectStat:
        stat, _ = self.store.write_object(self.bucket, key, source(data), size=digest.size, sha256=digest.sha256)
        return stat

    def read(self, key: str) -> bytes:
        with self.store.read_object(self.bucket, key) as reader:
            return b"".join(reader)

    def stat(self, key: str) -> ObjectStat:
        return self.store.stat_object(self.bucket, key)

    def exists(self, key: str) -> bool:
        return self.store.object_exists(self.bucket, key)

    def keys(self, prefix: str = "", after: str = "") -> list[str]:
        return [row.key for row in self.store.list_objects(self.bucket, prefix, after=after)]

    def delete(self, key: str) -> bool:
        return self.store.delete_object(self.bucket, key)


@pytest.fixture
def room(target: Target) -> Iterator[Room]:
    """Return an empty bucket; afterwards empty it, delete it, and fail if anything at all is left of it."""
    bucket = f"b-{uuid.uuid4().hex[:12]}"
    target.store.create_bucket(bucket)
    yield Room(target.store, bucket)
    for row in list(target.store.list_objects(bucket)):
        target.store.delete_object(bucket, row.key)
    target.store.delete_bucket(bucket)
    left = [unfinished.description for unfinished in target.store.iter_stale_uploads()]
    assert [*left, *target.debris(bucket)] == []
    assert not target.store.bucket_exists(bucket)


@pytest.fixture(autouse=True)
def _asked(request: pytest.FixtureRequest, target: Target) -> None:
    """Skip a case marked `unless(quirk)` where the emulator is known to be wrong about it, and say how."""
    for mark in request.node.iter_markers("unless"):
        if reason := target.quirks.get(mark.args[0]):
            pytest.skip(reason)
