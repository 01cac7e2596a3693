"""Each store in turn, an empty bucket for every case, and a check that nothing is left of it."""

import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.conformance import targets
from tests.conformance.bodies import source
from tests.conformance.targets import Target
from worker.storage import Capabilities, Condition, Digest, ObjectStat, Store


@dataclass(frozen=True)
class Kind:
    """One store under test, as far as it is known before it is opened: which cases are generated for it.

    Attributes:
        open: opens it, given the value of the fixture `server` (None without one) and a directory.
        offers: the optional abilities that it has; a case marked `needs(ability)` is generated for those alone.
        excludes: what is not tested on it, each with the reason; a case marked `unless(name)` is not generated.
    """

    open: Callable[[Any, Path], Target]
    server: str = ""
    offers: frozenset[str] = frozenset({"parts", "server_copy"})
    excludes: Mapping[str, str] = field(default_factory=dict)


def _filesystem(_server: None, directory: Path) -> Target:
    (directory / "root").mkdir()
    return targets.filesystem(directory / "root")


RCLONE = {
    "prefix_keys": "rclone keeps objects as files: `a` beside `a/b` is a 500",
    "claims": "rclone forgets the metadata of a file whose size has changed",
    "pages": "rclone takes a minute for 1,000 objects while it may remember no folder",
    "byte_order": "rclone lists folder by folder, not by the bytes of whole keys",
    "part_again": "rclone streams parts as they come and cannot replace one",
    "part_left_out": "rclone streams parts as they come and cannot leave one out",
    "stale_part": "rclone streams parts as they come and cannot replace one",
    "odd_keys": "rclone keeps objects as files, and lists other characters in place of those",
    "race": "rclone can keep the bytes of one writer beside the metadata of another, or answer 500",
}
SAME = dict.fromkeys(("pages", "copies"), "another store of the provider is sent the same requests")
PARTS, COPIES, FILES = (frozenset({ability}) for ability in ("parts", "server_copy", "files"))

KINDS = {
    "memory": Kind(lambda _server, _directory: targets.memory(), offers=frozenset()),
    "filesystem": Kind(_filesystem, offers=FILES),
    "s3-ministack": Kind(targets.s3_ministack, "ministack"),
    "s3-aws": Kind(targets.s3_aws, "ministack", excludes={"pages": SAME["pages"]}),
    "s3-sdk": Kind(targets.s3_sdk, "ministack", excludes=SAME),
    "s3-aws-sdk": Kind(targets.s3_aws_sdk, "ministack", excludes=SAME),
    "s3-native": Kind(targets.s3_native, "ministack", excludes=SAME),
    "s3-rclone": Kind(targets.s3_rclone, "rclone", PARTS | FILES, RCLONE),
    "s3-rclone-sdk": Kind(targets.s3_rclone_sdk, "rclone", PARTS | FILES, RCLONE),
    "gcs": Kind(targets.gcs, "strict_gcs"),
    "gcs-sdk": Kind(targets.gcs_sdk, "strict_gcs", excludes=SAME),
    "gcs-native": Kind(targets.gcs_native, "strict_gcs", excludes=SAME),
    "gcs-resumable": Kind(targets.gcs_resumable, "strict_gcs", COPIES, SAME),
    "azure": Kind(targets.azure, "azurite"),
    "azure-sdk": Kind(targets.azure_sdk, "azurite", excludes=SAME),
    "azure-native": Kind(targets.azure_native, "azurite", excludes=SAME),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Generate a case for every store that it applies to, and for no other."""
    if "target" not in metafunc.fixturenames:
        return
    marks = list(metafunc.definition.iter_markers())
    needed = {mark.args[0] for mark in marks if mark.name == "needs"}
    excluded = {mark.args[0] for mark in marks if mark.name == "unless"}
    if "pair" in metafunc.fixturenames:
        needed.add("server_copy")
        excluded.add("copies")
    applies = [
        pytest.param(name, marks=[pytest.mark.installed_server] if kind.server else [])
        for name, kind in KINDS.items()
        if needed <= kind.offers and not excluded & kind.excludes.keys()
    ]
    metafunc.parametrize("target", applies, indirect=True, scope="session")


@pytest.fixture(scope="session")
def target(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """Return one store after the other; its server is started when its first case runs."""
    kind = KINDS[request.param]
    server = request.getfixturevalue(kind.server) if kind.server else None
    target = kind.open(server, tmp_path_factory.mktemp("store"))
    assert offered_by(target) == kind.offers, "KINDS must say what the store offers, or cases would be missing"
    yield target
    target.store.close()


def offered_by(target: Target) -> set[str]:
    capabilities = target.store.capabilities
    offers = {
        "parts": capabilities.parts is not None,
        "server_copy": capabilities.realm is not None,
        "files": target.path_of is not None,
    }
    return {ability for ability, there in offers.items() if there}


@pytest.fixture
def store(target: Target) -> Store:
    return target.store


@dataclass(frozen=True)
class BucketUnderTest:
    """A bucket of one case, so that cases say only what they are about."""

    store: Store
    name: str

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


@pytest.fixture
def bucket(target: Target) -> Iterator[BucketUnderTest]:
    """Return an empty bucket; afterwards empty it, delete it, and fail if anything at all is left of it."""
    bucket = f"b-{uuid.uuid4().hex[:12]}"
    target.store.create_bucket(bucket)
    yield BucketUnderTest(target.store, bucket)
    for row in list(target.store.list_objects(bucket)):
        target.store.delete_object(bucket, row.key)
    target.store.delete_bucket(bucket)
    left = [unfinished.description for unfinished in target.store.iter_stale_uploads()]
    assert [*left, *target.stale_files(bucket)] == []
    assert not target.store.bucket_exists(bucket)
