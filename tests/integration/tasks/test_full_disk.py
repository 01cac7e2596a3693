"""An upload to a store whose disk is full."""

import subprocess

import pytest

from tasks.upload import upload
from tests.faults.test_filesystem_crash import small_disk
from worker.storage.config import FilesystemConfig
from worker.storage.errors import OutOfSpace
from zot_artifact_client.contract import UploadRequest

__all__ = ["small_disk"]

OLD, NEW = b"what was there", bytes(16 << 20)


@pytest.fixture
def settings(settings, small_disk):
    """Return the settings with one store on a disk of 8 MiB."""
    return settings.model_copy(update={"stores": settings.stores | {"dr": FilesystemConfig(root=small_disk)}})


def request(source: str) -> UploadRequest:
    return UploadRequest(source=source, bucket="releases", key="app.tgz")


def test_a_full_disk_keeps_the_previous_content_and_gets_the_new_one_when_there_is_room(
    run, source, stored, context, small_disk
):
    """The job fails for good, says which store is full, and leaves nothing half-written; the others have their copies.

    When there is room again, sending it again writes what is missing, and makes no other version.
    """
    run(upload, request(source(OLD)))
    with pytest.raises(
        OutOfSpace, match=f"^dr: releases/app.tgz: No space left on device; make room in {small_disk}, "
    ):
        run(upload, request(source(NEW)))

    assert stored("primary").read_bytes() == NEW
    assert stored("dr").read_bytes() == OLD
    assert list(context.stores["dr"].iter_stale_uploads()) == []
    artifact = context.catalogue.artifacts.current("releases", "app.tgz")
    good = {store for store, copy in context.catalogue.artifacts.copies(artifact).items() if copy.state.good}
    assert (artifact.version, good) == (2, {"primary"})

    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    result = run(upload, request(source(NEW)))
    assert [(copy.store, copy.outcome) for copy in result.copies] == [("primary", "already_there"), ("dr", "stored")]
    assert result.version == 2
    assert context.stores["dr"].verify_object("releases", "app.tgz", artifact.digest).verdict == "verified"
