"""A store whose bucket has Object Lock holds the copies of held artifacts itself."""

import io
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.conformance.targets import gcs_config, make_gcs_bucket, s3_client, s3_config
from tests.servers import Ministack, StrictGcs
from tests.servers.proxy import Cut, FaultyProxy, Lose
from worker import clock
from worker.artifacts.store_holds import (
    HELD,
    LIFTED,
    NOT_OFFERED,
    hold_copies,
    hold_missing,
    lifted,
    tries_to_delete_held,
)
from worker.catalogue import Catalogue
from worker.storage import Digest, Stores
from worker.storage.config import FilesystemConfig
from worker.storage.errors import HoldNotOffered, PermanentError

PATH = ("releases", "app.tgz")


@pytest.fixture
def stores(ministack: Ministack, strict_gcs: StrictGcs, tmp_path: Path) -> Iterator[Stores]:
    """Return four stores: `locked` with Object Lock, `plain` without, `google`, and a directory."""
    names = {name: f"{name}-{uuid.uuid4().hex[:8]}" for name in ("locked", "plain")}
    client = s3_client(ministack)
    client.create_bucket(Bucket=names["locked"], ObjectLockEnabledForBucket=True)
    client.create_bucket(Bucket=names["plain"])
    (tmp_path / "disk").mkdir()
    clouds: dict[str, Any] = {name: s3_config(ministack, bucket=real) for name, real in names.items()}
    clouds["google"] = gcs_config(strict_gcs)
    make_gcs_bucket(strict_gcs, str(clouds["google"].bucket))
    opened = Stores({**clouds, "disk": FilesystemConfig(root=tmp_path / "disk")}, spool_dir=tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def catalogue(stores: Stores, tmp_path: Path) -> Iterator[Catalogue]:
    """Return a catalogue of one held artifact with a copy in each store."""
    url = f"sqlite:///{tmp_path / 'catalogue.sqlite3'}"
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
    """A store that offers holds refuses to delete the held bytes and allows it after the release; others offer none."""
    held = catalogue.holds.get(*PATH)
    said = hold_copies(catalogue, stores, held, held=True)
    assert {name for name, word in said.items() if word.split()[0] == HELD} == {"locked", "google"}
    assert {name for name, word in said.items() if word == NOT_OFFERED} == {"plain", "disk"}
    client, real = s3_client(ministack), {"Bucket": stores._configs["locked"].bucket, "Key": "/".join(PATH)}
    real["VersionId"] = client.head_object(**real)["VersionId"]
    with pytest.raises(ClientError, match="AccessDenied"):
        client.delete_object(**real)
    with pytest.raises(PermanentError, match="hold protects it"):
        stores["google"].delete_object(*PATH)
    catalogue.holds.note_stores(*PATH, said)
    released = hold_copies(catalogue, stores, catalogue.holds.get(*PATH), held=False)
    assert released == {"locked": "released", "google": "released"}
    client.delete_object(**real)
    assert stores["google"].delete_object(*PATH)


def test_the_sweep_places_a_hold_that_a_store_lacks(catalogue, stores, ministack):
    """One that was never placed, or is on bytes that a repair has replaced, is placed; a release ends them all."""
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
    assert hold_copies(catalogue, stores, catalogue.holds.get(*PATH), held=False)["locked"] == "released"
    versions = client.list_object_versions(Bucket=real["Bucket"], Prefix=real["Key"])["Versions"]
    assert len(versions) == 3
    for each in versions:
        client.delete_object(**real, VersionId=each["VersionId"])


def test_a_held_copy_is_replaced_only_by_a_repair(catalogue, stores):
    """A store that lets nothing replace what it holds takes the repair all the same, and holds its bytes after it."""
    held, google = catalogue.holds.get(*PATH), stores["google"]
    catalogue.holds.note_stores(*PATH, hold_copies(catalogue, stores, held, held=True))
    with pytest.raises(PermanentError, match="hold protects it"):
        google.write_object(*PATH, io.BytesIO(b"another"))
    with lifted(catalogue, google, *PATH):
        assert catalogue.holds.get(*PATH).stores["google"] == LIFTED  # a worker that dies here leaves that
        google.write_object(*PATH, io.BytesIO(b"content"))
    with pytest.raises(PermanentError, match="hold protects it"):
        google.delete_object(*PATH)
    hold_missing(catalogue, google)
    assert catalogue.holds.get(*PATH).stores["google"].startswith(HELD)


@pytest.mark.parametrize("name", ["locked", "google"])
def test_a_store_that_deletes_what_it_holds_is_found_out(stores, monkeypatch, name):
    """A held object of our own cannot be deleted for good; a store that does it all the same is told."""
    assert tries_to_delete_held(stores[name]) is None
    monkeypatch.setattr(stores[name]._driver, "set_hold", lambda *_, **__: None)
    assert tries_to_delete_held(stores[name]) == "it deleted an object that it holds"


def test_an_answer_that_breaks_off_is_asked_for_again(catalogue, stores, ministack, tmp_path):
    """An answer that ends before its body never reads as a bucket without holds, or as a key without versions."""
    real = stores._configs["locked"].bucket
    for asked, held in (("?object-lock", True), ("?versions", False)):
        cut = [Cut(0)]
        with FaultyProxy(
            ministack.port, lambda request, cut=cut, asked=asked: cut.pop() if asked in request.path and cut else None
        ) as line:
            far = Stores({"locked": s3_config(ministack, bucket=real, endpoint=line.endpoint)}, spool_dir=tmp_path)
            said = hold_copies(catalogue, far, catalogue.holds.get(*PATH), held=held)
            far.close()
        assert not cut
        assert said["locked"].split()[0] == (HELD if held else "released")
        status = s3_client(ministack).get_object_legal_hold(Bucket=real, Key="/".join(PATH))["LegalHold"]["Status"]
        assert status == ("ON" if held else "OFF")
        catalogue.holds.note_stores(*PATH, said)


def test_a_held_probe_whose_delete_was_not_answered_is_found_out(stores, strict_gcs, tmp_path, monkeypatch):
    """A store that deletes what it holds is told, also if the answer to the delete was lost."""
    lost = [Lose()]
    with FaultyProxy(
        strict_gcs.port, lambda request: lost.pop() if request.method == "DELETE" and lost else None
    ) as line:
        config = stores._configs["google"].model_copy(update={"endpoint": line.endpoint})
        far = Stores({"google": config}, spool_dir=tmp_path)
        monkeypatch.setattr(far["google"]._driver, "set_hold", lambda *_, **__: None)
        assert tries_to_delete_held(far["google"]) == "it deleted an object that it holds"
        far.close()


def test_a_server_that_ignores_holds_offers_none(fake_gcs, tmp_path):
    """What a server answers to a hold is compared with what it was asked."""
    config = gcs_config(fake_gcs)
    make_gcs_bucket(fake_gcs, str(config.bucket))
    opened = Stores({"google": config}, spool_dir=tmp_path)
    with pytest.raises(HoldNotOffered, match="ignores the hold"):
        tries_to_delete_held(opened["google"])
    opened.close()
