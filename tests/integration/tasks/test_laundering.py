"""Rot at a source is never recorded as the truth: not by an upload, a replication, a repair, an adoption, a rebuild."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.adopt import adopt
from tasks.replicate import NoGoodSource, replicate
from tasks.sweeps.repair import sweep_repair
from tasks.upload import upload
from tasks.verify import verify
from tests.integration.tasks.rotting_stores import BUCKET, KINDS, RottingStore, rotting
from tests.integration.tasks.sweeps.test_verify_sweep import Sweeper
from worker.artifacts.rebuild.rebuild_catalogue import Rebuild
from worker.artifacts.sources.open_source import Source
from worker.catalogue import Catalogue, Rules
from worker.context import Context
from worker.settings import Settings
from worker.storage.driver import Digest
from worker.storage.errors import DigestMismatch, IntegrityError
from zot_artifact_client.contract import (
    AdoptRequest,
    ReplicateRequest,
    SweepRepairRequest,
    UploadRequest,
    VerifyRequest,
)

KEY = "app.tgz"
RIGHT = bytes(range(256)) * 64
BAD = bytes([RIGHT[0] ^ 1]) + RIGHT[1:]
DIGEST = Digest(len(RIGHT), hashlib.sha256(RIGHT).hexdigest())
BOTH = ("primary", "dr")

pytestmark = pytest.mark.parametrize("store", KINDS, indirect=True)


@pytest.fixture
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RottingStore]:
    with rotting(request.param, request, tmp_path / "home" / "stores" / "dr") as opened:
        yield opened


@pytest.fixture
def settings(settings: Settings, store: RottingStore) -> Settings:
    return settings.model_copy(update={"stores": {"primary": settings.stores["primary"], "dr": store.config}})


@pytest.fixture
def put(run: Callable[..., Any], source: Callable[..., str]) -> Callable[..., None]:
    """Return what uploads the right bytes to some stores."""

    def put(*stores: str) -> None:
        run(upload, UploadRequest(bucket=BUCKET, key=KEY, source=source(RIGHT), stores=stores))

    return put


def states(context: Context) -> dict[str, str]:
    """Return the states of the copies; the recorded digest is the one of the right bytes, whatever happened."""
    artifact = context.catalogue.artifact(BUCKET, KEY)
    assert (artifact.version, artifact.digest) == (1, DIGEST)
    return {name: copy.state.value for name, copy in context.catalogue.artifacts.copies(artifact).items()}


def is_empty(context: Context) -> bool:
    """Return whether the store `dr` shows nothing under the key."""
    return not context.stores["dr"].object_exists(BUCKET, KEY)


def test_an_upload_records_no_rot_of_its_source(context, run, source, monkeypatch):
    """A source that differs from its announced digest, or rots once it was hashed, leaves nothing in the store."""
    announced = UploadRequest(bucket=BUCKET, key=KEY, source=source(BAD), sha256=DIGEST.sha256, stores=("dr",))
    with pytest.raises(DigestMismatch, match=DIGEST.sha256):
        run(upload, announced)
    assert (is_empty(context), context.catalogue.artifacts.current(BUCKET, KEY)) == (True, None)

    large, hashed = Path(source(RIGHT * 80, "large")), Source.hashed

    def then_rot(of: Source, *args: Any) -> Any:
        found = hashed(of, *args)
        large.write_bytes(BAD + RIGHT * 79)
        return found

    monkeypatch.setattr(Source, "hashed", then_rot)
    with pytest.raises(IntegrityError):
        run(upload, UploadRequest(bucket=BUCKET, key=KEY, source=str(large), stores=("dr",)))
    assert is_empty(context)
    version = context.catalogue.artifacts.version(BUCKET, KEY, 1)
    assert version is None or not any(
        copy.state.present for copy in context.catalogue.artifacts.copies(version).values()
    )


def test_a_replication_copies_no_rot(context, run, put, store, stored):
    """The only copy has rotted: nothing is written, and the rot is on record."""
    put("dr")
    store.rot(KEY, BAD)
    with pytest.raises(NoGoodSource):
        run(replicate, ReplicateRequest(bucket=BUCKET, key=KEY, to=("primary",)))
    assert not stored("primary").exists()
    assert states(context)["dr"] == "corrupt"
    assert not context.catalogue.artifacts.copies(context.catalogue.artifact(BUCKET, KEY))["primary"].state.present


def test_a_repair_replaces_nothing_by_rot(context, run, put, store, stored, monkeypatch):
    """The copy that was good has rotted since: the bad one stays as it is, and the artifact is lost, loudly."""
    put(*BOTH)
    stored("primary").write_bytes(BAD)
    run(verify, VerifyRequest(bucket=BUCKET, key=KEY, stores=("primary",)))
    store.rot(KEY, BAD)
    sweeper, sent = Sweeper(context), list[Any]()
    monkeypatch.setattr("tasks.sweeps.repair.Outbox", lambda _: sweeper.messages)
    monkeypatch.setattr("tasks.pages.leaving_objects.send_child", lambda _, request, **__: sent.append(request))
    assert run(sweep_repair, SweepRepairRequest()).claimed == {"primary": 1}
    [done] = sweeper.pages()
    assert (done.outcomes, done.left) == ({}, (f"{BUCKET}/{KEY}",))
    with pytest.raises(NoGoodSource):
        run(replicate, sent.pop())
    assert states(context) == dict.fromkeys(BOTH, "corrupt")
    assert (stored("primary").read_bytes(), store.bytes_of(KEY)) == (BAD, BAD)
    assert run(sweep_repair, SweepRepairRequest()).lost == 1
    assert sweeper.messages.sent == {}


def test_a_rotten_object_is_not_adopted(context, run, put, store):
    """An object that is not what its own digest says is refused, also where the first read would do."""
    put("dr")  # makes the bucket; another program writes under the same prefix
    store.replace("theirs", BAD, DIGEST.sha256)
    for first_read in (False, True):
        with pytest.raises(DigestMismatch, match=DIGEST.sha256):
            run(adopt, AdoptRequest(bucket=BUCKET, key="theirs", store="dr", first_read=first_read))
    assert context.catalogue.artifacts.version(BUCKET, "theirs", 1) is None


@pytest.mark.parametrize("stores", [BOTH, ("dr",)], ids=["with a good copy", "alone"])
def test_a_rebuild_believes_no_rot(context, put, store, tmp_path, stores):
    """A rotten object has the digest that was kept beside it, and is corrupt; its artifact is lost if it is alone."""
    put(*stores)
    store.rot(KEY, BAD)
    url = f"sqlite:///{tmp_path / 'rebuilt.sqlite3'}"
    rebuilt = Catalogue(url)
    try:
        every = [context.stores[name] for name in BOTH]
        Rebuild(rebuilt, every, Rules(first_read=False, newer_since=None), context.settings.page, job="job-1").run(
            [BUCKET]
        )
        artifact = rebuilt.artifacts.current(BUCKET, KEY) or rebuilt.artifacts.version(BUCKET, KEY, 1)
        assert artifact is not None
        assert artifact.digest == DIGEST
        copies = {name: copy.state.value for name, copy in rebuilt.artifacts.copies(artifact).items()}
        assert copies == dict.fromkeys(stores, "verified") | {"dr": "corrupt"}
        kinds = {each.kind.value for each in rebuilt.findings.page()}
        assert kinds == ({"corrupt"} if "primary" in stores else {"corrupt", "lost"})
    finally:
        rebuilt.close()
