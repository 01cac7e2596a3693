"""Damage of every kind on every store ends in its own verdict, finding and action; no byte is lost."""

import hashlib
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tasks.adopt import adopt
from tasks.replicate import replicate
from tasks.sweeps.repair import sweep_repair
from tasks.upload import upload
from tasks.verify import verify
from tests.conformance.targets import PART
from tests.integration.tasks.rotting_stores import BUCKET, CLOUDS, KINDS, RottingStore, rotting
from tests.integration.tasks.sweeps.test_verify_sweep import Sweeper
from worker import cli, clock
from worker.artifacts.overdue_and_unconfigured_findings import see_stores
from worker.catalogue import tables
from worker.context import Context
from worker.settings import Settings
from worker.storage import Store
from worker.storage.errors import DigestMismatch, IntegrityError
from worker.storage.integrity.manifest import Chunk
from worker.storage.keys import QUARANTINE_BUCKET
from zot_artifact_client.contract import (
    AdoptRequest,
    ReplicateRequest,
    SweepRepairRequest,
    UploadRequest,
    VerifyRequest,
)


def content_of(key: str) -> bytes:
    """Return the bytes of a key, of one size and other than those of each other key."""
    return hashlib.sha256(key.encode()).digest() * 512


def flipped(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


def zeroed(data: bytes) -> bytes:
    return data[:4096] + bytes(4096) + data[8192:]


@dataclass(frozen=True)
class Rot:
    """One kind of damage to a copy, the verdict on it, what repairs it, and the stores that can have it.

    `kind`: that of its finding, by default the verdict.
    """

    damage: Callable[[Any, str], None]
    verdict: str
    action: str | None
    stores: tuple[str, ...] = KINDS
    kind: str | None = None

    @property
    def finding(self) -> str | None:
        """Return the kind of the finding, None where there is none."""
        return self.kind or (None if self.verdict in {"verified", "archived"} else self.verdict)


ROT = {
    "flipped-bit": Rot(lambda store, key: store.rot(key, flipped(content_of(key))), "corrupt", "repair"),
    "zeroed-region": Rot(lambda store, key: store.rot(key, zeroed(content_of(key))), "corrupt", "repair"),
    "swapped-one": Rot(lambda store, key: store.rot(key, content_of("swapped-two")), "corrupt", "repair"),
    "swapped-two": Rot(lambda store, key: store.rot(key, content_of("swapped-one")), "corrupt", "repair"),
    "changed-with-metadata": Rot(lambda store, key: store.replace(key, flipped(content_of(key))), "corrupt", "repair"),
    "truncated-tail": Rot(lambda store, key: store.rot(key, content_of(key)[:-7]), "size_mismatch", "repair"),
    "appended-byte": Rot(lambda store, key: store.rot(key, content_of(key) + b"\0"), "size_mismatch", "repair"),
    "lost-object": Rot(lambda store, key: store.lose(key), "missing", "repair"),
    "lost-metadata": Rot(lambda store, key: store.lose_metadata(key), "verified", "rewrite metadata", kind="metadata"),
    "changed-metadata": Rot(
        lambda store, key: store.replace(key, content_of(key), "0" * 64),
        "verified",
        "rewrite metadata",
        kind="metadata",
    ),
    "no-permission": Rot(lambda store, key: store.deny(key), "unreadable", None),
    "time-out": Rot(lambda store, key: store.time_out(key), "unreadable", None, CLOUDS),
    "slow": Rot(lambda store, key: store.slow_down(key), "verified", None, CLOUDS),
    "archived": Rot(lambda store, key: store.archive(key), "archived", None, ("s3", "azure")),
}
"""By the key that has it.

Cloud Storage reads its archive class at once. A connection that stays silent is in
tests/faults/test_silent_connections.py, a directory that hangs in tests/faults/test_hung_disk.py.
"""

BESIDE = "the bytes are right, the SHA-256 beside them is wrong or lost: `zot-artifacts sweep repair` rewrites it"


@pytest.fixture
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RottingStore]:
    with rotting(request.param, request, tmp_path / "home" / "stores" / "dr") as opened:
        yield opened


@pytest.fixture
def settings(settings: Settings, store: RottingStore) -> Settings:
    return settings.model_copy(update={"stores": {"primary": settings.stores["primary"], "dr": store.config}})


class Scene:
    """Some artifacts in the stores `primary` and `dr`, and the sweeps."""

    def __init__(self, context: Context, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
        self._context = context
        self._run = run
        self._sweeper = Sweeper(context)
        monkeypatch.setattr("tasks.sweeps.repair.Outbox", lambda _: self._sweeper.messages)
        monkeypatch.setattr("worker.cli.session.load_settings", lambda: context.settings)
        monkeypatch.setattr("worker.report.status.broker_checks", lambda _: iter(()))
        monkeypatch.setattr("worker.report.status.open_breakers", lambda _: {})

    def verify(self, keys: Iterable[str]) -> dict[str, str]:
        """Make all copies due, run the verify sweep with its pages, and return the verdicts in `dr` by key."""
        with self._context.catalogue._database.write() as connection:
            change = sa.update(tables.copies).where(tables.copies.c.read_at.is_not(None))
            connection.execute(change.values(read_at=clock.now() - timedelta(days=30), next_due_at=None))
        id_ = str(uuid.uuid4())
        self._sweeper.plan(id_)
        for page in [each for each in self._sweeper.messages.sent if each.startswith(id_)]:
            self._sweeper.page(page)
        see_stores(self._context.settings, self._context.catalogue, clock.now())  # they were overdue
        rows = {key: self._context.catalogue.verifications.of(BUCKET, key) for key in keys}
        return {key: next(row["verdict"] for row in of if row["store"] == "dr") for key, of in rows.items()}

    def repair(self) -> dict[str, int]:
        """Run the repair sweep and the pages that it sends; return how many copies it claimed by store."""
        self._sweeper.messages.sent.clear()  # pages of verify sweeps, which have ended
        claimed: dict[str, int] = self._run(sweep_repair, SweepRepairRequest()).claimed
        self.claims = {(each.key, each.action) for each in self._context.catalogue.findings.page() if each.bucket}
        self._sweeper.pages()
        return claimed

    def status(self) -> int:
        return cli.run(["status"])

    def findings(self, *, resolved: bool = False) -> dict[str | None, tuple[str, str | None, str | None]]:
        """Return by key the kind, store and end of its finding."""
        found = self._context.catalogue.findings.page(resolved=resolved)
        return {each.key: (each.kind.value, each.store, each.how) for each in found if each.bucket}

    def verified_at(self, keys: Iterable[str]) -> dict[str, datetime | None]:
        artifacts = self._context.catalogue.artifacts
        return {
            key: artifacts.copies(self._context.catalogue.artifact(BUCKET, key))["dr"].last_verified_at for key in keys
        }

    def quarantined(self) -> list[bytes]:
        held, found = self._context.stores["dr"], []
        for each in held.list_objects(QUARANTINE_BUCKET):
            assert each.size is not None
            with held.read_object_range(QUARANTINE_BUCKET, each.key, 0, each.size) as reader:
                found.append(b"".join(reader))
        return found


@pytest.mark.usefixtures("sdks_retry_at_once")
@pytest.mark.parametrize("store", KINDS, indirect=True)
def test_rot_of_every_kind_ends_in_its_verdict_its_finding_and_its_action(
    context: Context, run: Callable[..., Any], source: Callable[..., str], store: RottingStore,
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A bad copy is never verified, opens `status` until it is repaired from the good one, and its bytes are kept.

    Right bytes whose digest beside them is gone or another one are verified, with a finding until that is rewritten.
    One that cannot be read now is replaced by nothing. One in an archive class waits under a verdict of its own.
    """
    kind = request.node.callspec.params["store"]
    rot = {key: each for key, each in ROT.items() if kind in each.stores}
    right = {key: content_of(key) for key in rot}
    scene = Scene(context, run, monkeypatch)
    for key, content in right.items():
        run(upload, UploadRequest(bucket=BUCKET, key=key, source=source(content)))
    assert scene.verify(rot) == dict.fromkeys(rot, "verified")
    before = scene.verified_at(rot)
    for key, each in rot.items():
        each.damage(store, key)
    bad = [store.bytes_of(key) for key, each in rot.items() if each.verdict in {"corrupt", "size_mismatch"}]

    assert scene.verify(rot) == {key: each.verdict for key, each in rot.items()}
    after = scene.verified_at(rot)
    assert {key for key in rot if after[key] != before[key]} == {
        key for key, each in rot.items() if each.verdict == "verified"
    }
    told = {key: each for key, each in rot.items() if each.finding}
    assert scene.findings() == {key: (each.finding, "dr", None) for key, each in told.items()}
    assert scene.status() == 1

    repaired = {key: each for key, each in told.items() if each.action}
    assert scene.repair() == {"dr": len(repaired)}
    assert scene.claims == {(key, each.action) for key, each in told.items()}
    waiting = {key: each for key, each in told.items() if not each.action}
    assert scene.findings() == {key: (each.finding, "dr", None) for key, each in waiting.items()}
    ended = scene.findings(resolved=True)
    assert {key: ended[key] for key in repaired} == {
        key: (each.finding, "dr", "written") for key, each in repaired.items()
    }
    assert sorted(scene.quarantined()) == sorted(bad)
    digests = {key: hashlib.sha256(right[key]).hexdigest() for key in repaired}
    assert {key: context.stores["dr"].stat_object(BUCKET, key).sha256 for key in repaired} == digests
    assert scene.status() == 1  # what could not be read is open

    for key in waiting:
        store.heal(key)
    archived = {key for key, each in rot.items() if each.verdict == "archived"}
    assert scene.verify(rot) == dict.fromkeys(rot, "verified") | dict.fromkeys(archived, "archived")
    assert (scene.findings(), scene.status()) == ({}, 0)
    for key in archived:
        store.heal(key)
    assert {key: store.bytes_of(key) for key in rot} == right
    assert scene.verify(rot) == dict.fromkeys(rot, "verified")


@pytest.mark.parametrize("store", ["filesystem"], indirect=True)
def test_an_object_that_never_had_a_digest_beside_it_has_no_finding(
    context: Context, run: Callable[..., Any], store: RottingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another program wrote without a digest is verified with no finding, whatever reads it."""
    scene = Scene(context, run, monkeypatch)
    store.replace("foreign", content_of("foreign"))
    store.lose_metadata("foreign")
    run(adopt, AdoptRequest(bucket=BUCKET, key="foreign", store="dr", first_read=True))

    assert scene.verify(["foreign"]) == {"foreign": "verified"}
    [read] = run(verify, VerifyRequest(bucket=BUCKET, key="foreign")).copies
    assert (read.verdict, read.detail) == ("verified", None)
    assert scene.findings() == {}


@pytest.mark.parametrize("store", ["filesystem"], indirect=True)
def test_wrong_metadata_of_a_copy_without_another_is_rewritten_from_its_own_bytes(
    context: Context, run: Callable[..., Any], source: Callable[..., str], store: RottingStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The only copy is enough, because it is read in full before and after; one whose bytes are bad by then stays."""
    scene = Scene(context, run, monkeypatch)
    for key in ("only", "rotten"):
        run(upload, UploadRequest(bucket=BUCKET, key=key, source=source(content_of(key)), stores=("dr",)))
        store.lose_metadata(key)
        [read] = run(verify, VerifyRequest(bucket=BUCKET, key=key)).copies
        assert (read.verdict, read.detail) == ("verified", BESIDE)
    assert scene.findings() == dict.fromkeys(("only", "rotten"), ("metadata", "dr", None))
    store.rot("rotten", flipped(content_of("rotten")))
    run(sweep_repair, SweepRepairRequest())
    with pytest.raises(DigestMismatch):
        run(replicate, ReplicateRequest(bucket=BUCKET, key="rotten", to=("dr",)))
    run(replicate, ReplicateRequest(bucket=BUCKET, key="only", to=("dr",)))

    assert store.bytes_of("rotten") == flipped(content_of("rotten"))
    right = hashlib.sha256(content_of("only")).hexdigest()
    assert context.stores["dr"].stat_object(BUCKET, "only").sha256 == right
    assert context.catalogue.artifacts.copies(context.catalogue.artifact(BUCKET, "only"))["dr"].state == "verified"
    kinds = {(each.key, each.kind.value) for each in context.catalogue.findings.page()}
    assert kinds == {("rotten", "corrupt"), ("rotten", "lost")}


@pytest.mark.parametrize("store", KINDS, indirect=True)
def test_a_repair_of_a_large_copy_reads_only_its_bad_chunk_from_the_other(
    context: Context, run: Callable[..., Any], source: Callable[..., str], store: RottingStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The copy is right after it, the bad bytes are kept, and a chunk that is bad in both copies replaces nothing."""
    scene = Scene(context, run, monkeypatch)
    monkeypatch.setattr("worker.artifacts.chunk_repair.FEWEST_CHUNKS", 2)
    for module in ("storage.integrity.manifest", "catalogue.artifacts", "artifacts.artifact_copies"):
        monkeypatch.setattr(f"worker.{module}.CHUNK_SIZE", PART)
    content = hashlib.sha256(b"large").digest() * (PART // 32) + b"the second chunk"
    bad = content[:-1] + b"!"
    run(upload, UploadRequest(bucket=BUCKET, key="large", source=source(content)))
    store.replace("large", bad, hashlib.sha256(content).hexdigest())
    run(verify, VerifyRequest(bucket=BUCKET, key="large"))
    read, asked = Store.read_chunk, list[tuple[str, int]]()

    def reading(self: Store, bucket: str, key: str, chunk: Chunk) -> Any:
        asked.append((self.name, chunk.number))
        return read(self, bucket, key, chunk)

    monkeypatch.setattr(Store, "read_chunk", reading)
    [placed] = run(replicate, ReplicateRequest(bucket=BUCKET, key="large", to=("dr",))).copies
    assert (placed.outcome, placed.source) == ("repaired", "primary")
    assert asked == [("dr", 0), ("dr", 1), ("primary", 1)]
    assert store.bytes_of("large") == content
    assert scene.quarantined() == [bad]
    assert scene.findings() == {}

    store.replace("large", bad, hashlib.sha256(content).hexdigest())
    run(verify, VerifyRequest(bucket=BUCKET, key="large", stores=("dr",)))
    path = context.settings.stores["primary"].root / BUCKET / "large"  # type: ignore[union-attr]
    path.write_bytes(content[:-1] + b"?")
    with pytest.raises(IntegrityError):
        run(replicate, ReplicateRequest(bucket=BUCKET, key="large", to=("dr",)))
    assert store.bytes_of("large") == bad
