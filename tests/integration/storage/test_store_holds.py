"""A store whose bucket has Object Lock holds the copies of held artifacts itself."""

import io
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from tests.conformance.targets import s3_client, s3_config
from tests.servers import Ministack
from worker import clock
from worker.artifacts.store_holds import HELD, NOT_OFFERED, hold_copies, hold_missing, tries_to_delete_held
from worker.catalogue import Catalogue
from worker.storage import Digest, Stores
from worker.storage.config import FilesystemConfig

PATH = ("releases", "app.tgz")


@pytest.fixture
def stores(ministack: Ministack, tmp_path: Path) -> Iterator[Stores]:
    """Return three stores: `locked` with Object Lock, `plain` without, and a directory."""
    names = {name: f"{name}-{uuid.uuid4().hex[:8]}" for name in ("locked", "plain")}
    client = s3_client(ministack)
    client.create_bucket(Bucket=names["locked"], ObjectLockEnabledForBucket=True)
    client.create_bucket(Bucket=names["plain"])
    (tmp_path / "disk").mkdir()
    clouds = {name: s3_config(ministack, bucket=real) for name, real in names.items()}
    opened = Stores({**clouds, "disk": FilesystemConfig(root=tmp_path / "disk")}, spool_dir=tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def catalogue(stores: Stores, tmp_path: Path, make_tables) -> Iterator[Catalogue]:
    """Return a catalogue of one held artifact with a copy in each store."""
    url = f"sqlite:///{tmp_path / 'catalogue.sqlite3'}"
    make_tables(url)
    opened = Catalogue(url)
    digest = Digest(7, "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73")
    artifact = opened.artifacts.record(*PATH, digest, {}, now=clock.now()).artifact
    for store in stores.values():
        stat, _ = store.write_object(*PATH, io.BytesIO(b"content"))
        opened.artifacts.ensure_copy(artifact, store.name)
        opened.artifacts.finish_copy(artifact, store.name, tag=stat.version, evidence={}, now=clock.now())
    opened.holds.place(*PATH, by="ana", reason="case 4711", now=clock.now())
    yield opened
    opened.close()


def test_each_bucket_is_asked_whether_it_holds(catalogue, stores, ministack):
    """The locked bucket refuses to delete the held version and allows it after the release; others offer no hold."""
    held = catalogue.holds.get(*PATH)
    said = hold_copies(catalogue, stores, held, held=True)
    assert {name: word.split()[0] for name, word in said.items() if name == "locked"} == {"locked": HELD}
    assert said == {"locked": said["locked"], "plain": NOT_OFFERED, "disk": NOT_OFFERED}
    client, real = s3_client(ministack), {"Bucket": stores._configs["locked"].bucket, "Key": "/".join(PATH)}
    real["VersionId"] = client.head_object(**real)["VersionId"]
    with pytest.raises(ClientError, match="AccessDenied"):
        client.delete_object(**real)
    catalogue.holds.note_stores(*PATH, said)
    assert hold_copies(catalogue, stores, catalogue.holds.get(*PATH), held=False) == {"locked": "released"}
    client.delete_object(**real)


def test_the_sweep_places_a_hold_that_a_store_lacks(catalogue, stores, ministack):
    """A hold that was never placed, and one on bytes that a repair has written since, is placed and recorded."""
    client, real = s3_client(ministack), {"Bucket": stores._configs["locked"].bucket, "Key": "/".join(PATH)}
    artifact = catalogue.artifacts.current(*PATH)
    for number in range(2):
        stores["locked"].write_object(*PATH, io.BytesIO(b"content"), metadata={"n": uuid.uuid4().hex})
        catalogue.artifacts.finish_copy(artifact, "locked", tag=f"new-{number}", evidence={}, now=clock.now())
        for store in stores.values():
            hold_missing(catalogue, store)
        said = catalogue.holds.get(*PATH).stores
        assert (said["locked"].split()[0], said["plain"]) == (HELD, NOT_OFFERED)
        assert client.get_object_legal_hold(**real)["LegalHold"]["Status"] == "ON"


def test_a_store_that_deletes_what_it_holds_is_found_out(stores, monkeypatch):
    """A held object of our own cannot be deleted for good; a store that does it all the same is told."""
    assert tries_to_delete_held(stores["locked"]) is None
    monkeypatch.setattr(stores["locked"]._driver, "set_hold", lambda *_, **__: None)
    assert tries_to_delete_held(stores["locked"]) == "it deleted an object that it holds"
