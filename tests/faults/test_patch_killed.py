"""A process is killed at each request of a repair in which the store itself replaces a bad chunk."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conformance import targets
from tests.conformance.bodies import digest_of, some_bytes, source
from tests.faults.killed_at_steps import steps
from tests.servers import Ministack
from worker.storage import Store
from worker.storage.configured_stores import open_driver
from worker.storage.integrity.manifest import Manifest
from worker.storage.keys import STAGING_BUCKET
from worker.storage.s3.driver import S3Driver
from worker.storage.s3.upload import Upload

CHUNK = 1 << 16
RIGHT = some_bytes(4 * CHUNK + 1000)
BAD = RIGHT[: CHUNK + 5] + bytes([RIGHT[CHUNK + 5] ^ 1]) + RIGHT[CHUNK + 6 :]
MANIFEST = Manifest(
    len(RIGHT), CHUNK, b"".join(hashlib.sha256(RIGHT[at : at + CHUNK]).digest() for at in range(0, len(RIGHT), CHUNK))
)
STEPS = (
    (Upload, ("begin", "send_part", "_copy_part", "list_parts", "complete", "copy_whole")),
    (S3Driver, ("delete",)),
)


def test_a_patch_that_is_killed_leaves_the_bad_or_the_right_object(
    ministack: Ministack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No mixture of both; the next attempt ends right, and cleanup finds all that is left as ours."""
    monkeypatch.setattr("worker.storage.s3.driver.MIN_PART", CHUNK)  # the server takes parts of any size
    config = targets.s3_config(ministack)
    targets.make_s3_bucket(ministack, str(config.bucket))

    def opened() -> Store:
        return Store(open_driver("s3", config), spool_dir=tmp_path)

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
    for number in steps(attempt, STEPS):
        seen.append(read(store, f"{number}"))
        patch(store, f"{number}")
        assert read(store, f"{number}") == RIGHT
    assert len(seen) >= 8
    assert set(seen) == {BAD, RIGHT}
    left = list(store.iter_stale_uploads())
    assert left
    assert all(each.ours for each in left)
    assert all(store.remove_stale_upload(each) for each in left)
    assert list(store.list_objects(STAGING_BUCKET)) == []
    assert list(store.iter_stale_uploads()) == []
    store.close()
