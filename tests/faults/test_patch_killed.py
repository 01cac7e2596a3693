"""A process is killed at each request of a repair in which the store itself replaces a bad chunk."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from azure.storage.blob import BlobServiceClient

from tests.conformance import targets
from tests.conformance.bodies import digest_of, some_bytes, source
from tests.faults.killed_at_steps import steps
from worker.storage import Store, StoreConfig
from worker.storage.azure.copy import Copy
from worker.storage.azure.driver import AzureDriver
from worker.storage.azure.parts import Parts
from worker.storage.azure.upload import Upload as AzureUpload
from worker.storage.configured_stores import open_driver
from worker.storage.integrity.manifest import Manifest
from worker.storage.keys import STAGING_BUCKET
from worker.storage.s3.driver import S3Driver
from worker.storage.s3.upload import Upload

CHUNK = 1 << 20
RIGHT = some_bytes(4 * CHUNK + 1000)
BAD = RIGHT[: CHUNK + 5] + bytes([RIGHT[CHUNK + 5] ^ 1]) + RIGHT[CHUNK + 6 :]
MANIFEST = Manifest(
    len(RIGHT), CHUNK, b"".join(hashlib.sha256(RIGHT[at : at + CHUNK]).digest() for at in range(0, len(RIGHT), CHUNK))
)
STEPS: dict[str, Any] = {
    "s3": (
        (Upload, ("begin", "send_part", "_copy_part", "list_parts", "complete", "copy_whole")),
        (S3Driver, ("delete",)),
    ),
    "azure": ((Copy, ("make",)), (Parts, ("_stage",)), (AzureUpload, ("from_blocks",)), (AzureDriver, ("delete",))),
}


@pytest.fixture
def config(kind: str, request: pytest.FixtureRequest) -> StoreConfig:
    """Return a store whose parts are as large as a chunk, where it lets the worker choose."""
    if kind == "s3":
        config = targets.s3_config(request.getfixturevalue("ministack"))
        targets.make_s3_bucket(request.getfixturevalue("ministack"), str(config.bucket))
        return config
    server = request.getfixturevalue("azurite")
    blobs = targets.azure_config(server, api_version=targets.AZURITE_API, part_size=CHUNK)
    with BlobServiceClient.from_connection_string(server.connection_string, api_version=targets.AZURITE_API) as made:
        made.create_container(str(blobs.container))
    return blobs


@pytest.mark.parametrize("kind", STEPS)
def test_a_patch_that_is_killed_leaves_the_bad_or_the_right_object(
    kind: str, config: StoreConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No mixture of both; the next attempt ends right, and cleanup finds all that is left as ours."""
    monkeypatch.setattr("worker.storage.s3.driver.MIN_PART", CHUNK)  # the server takes parts of any size

    def opened() -> Store:
        return Store(open_driver(kind, config), spool_dir=tmp_path)

    def patch(store: Store, key: str) -> None:
        found = store.stat_object("b", key)
        made = store.patch_object(
            found, MANIFEST, digest_of(RIGHT), [], lambda chunk: RIGHT[chunk.offset : chunk.offset + chunk.size]
        )
        assert made is not None or found.sha256 == digest_of(RIGHT).sha256

    def attempt(number: int) -> Callable[[], Any]:
        store = opened()
        store.write_object("b", f"{number}", source(BAD))
        store.close()
        return lambda: patch(opened(), f"{number}")

    def read(store: Store, key: str) -> bytes:
        with store.read_object("b", key) as reader:
            return b"".join(reader)

    seen, store = list[bytes](), opened()
    for number in steps(attempt, STEPS[kind]):
        seen.append(read(store, f"{number}"))
        patch(store, f"{number}")
        assert read(store, f"{number}") == RIGHT
    assert len(seen) >= {"s3": 8, "azure": 5}[kind]
    assert set(seen) == {BAD, RIGHT}
    left = list(store.iter_stale_uploads())
    assert left
    assert all(each.ours for each in left)
    assert all(store.remove_stale_upload(each) for each in left)
    assert list(store.list_objects(STAGING_BUCKET)) == []
    assert list(store.iter_stale_uploads()) == []
    store.close()
