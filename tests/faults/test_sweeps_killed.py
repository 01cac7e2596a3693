"""Repair, purge and reconcile are killed at each of their steps: what is delivered again, and the next run, end right.

A step is a change: of the catalogue, of a store, or a message that is sent.
"""

import hashlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tasks.adopt import adopt
from tasks.page import page
from tasks.replicate import replicate
from tasks.sweeps.purge import sweep_purge
from tasks.sweeps.reconcile import sweep_reconcile
from tasks.sweeps.repair import sweep_repair
from tasks.upload import upload
from tasks.verify import verify
from tests.faults.killed_at_steps import steps
from tests.integration.tasks.conftest import NullReporter
from worker import clock
from worker.catalogue import Catalogue, Leased
from worker.catalogue.database import Database
from worker.catalogue.deletions import UndeleteRefused
from worker.context import Context
from worker.jobs.running_job import RunningJob
from worker.settings import Settings
from worker.settings.section_models import ReconcileSweepSettings, RepairSweepSettings, SourceSettings
from worker.storage import Store
from worker.storage.config import FilesystemConfig
from worker.storage.errors import StorageError
from worker.storage.filesystem.digest_attribute import write_digest
from worker.storage.keys import QUARANTINE_BUCKET
from zot_artifact_client.contract import (
    ADOPT,
    PAGE,
    REPLICATE,
    SWEEP_PURGE,
    SWEEP_RECONCILE,
    SWEEP_REPAIR,
    TASKS,
    UPLOAD,
    VERIFY,
    AdoptRequest,
    JobState,
    PageRequest,
    ReplicateRequest,
    SweepPurgeRequest,
    SweepReconcileRequest,
    SweepRepairRequest,
    UploadRequest,
    VerifyRequest,
)
from zot_artifact_client.outgoing_messages import Outgoing

NAMES = ("primary", "dr")
HOUR = timedelta(hours=1)
WORK: Mapping[str, tuple[type[Any], Callable[..., Any]]] = {
    ADOPT.kind: (AdoptRequest, adopt),
    PAGE.kind: (PageRequest, page),
    REPLICATE.kind: (ReplicateRequest, replicate),
    SWEEP_PURGE.kind: (SweepPurgeRequest, sweep_purge),
    SWEEP_RECONCILE.kind: (SweepReconcileRequest, sweep_reconcile),
    SWEEP_REPAIR.kind: (SweepRepairRequest, sweep_repair),
    UPLOAD.kind: (UploadRequest, upload),
    VERIFY.kind: (VerifyRequest, verify),
}
WRITES = {ADOPT.kind, REPLICATE.kind, UPLOAD.kind}


class Broker:
    """Messages in a file, which are delivered again after a death, also those of jobs that have ended."""

    path: Path

    @staticmethod
    def send(spec: Any, request: Any, *, id_: str, **_: Any) -> None:
        with Broker.path.open("a") as file:
            file.write(json.dumps([id_, spec.kind, request.payload()]) + "\n")

    @staticmethod
    def sent() -> list[tuple[str, str, dict[str, Any]]]:
        lines = Broker.path.read_text().splitlines() if Broker.path.exists() else []
        return [tuple(json.loads(line)) for line in lines]  # type: ignore[misc]


class Messages:
    """The same messages, as the outbox of a sweep has them."""

    @staticmethod
    def send(jobs: list[Outgoing]) -> None:
        for job in jobs:
            spec = TASKS[job.name]
            Broker.send(spec, spec.request.read(job.payload), id_=job.job_id)

    @staticmethod
    def lost(ids: list[str]) -> set[str]:
        return set(ids) - {id_ for id_, *_ in Broker.sent()}


STEPS = (
    (Database, ("write",)),
    (Store, ("write_object", "quarantine_object", "delete_object", "create_bucket")),
    (Broker, ("send",)),
)


class Fleet:
    """What is left when no worker runs: two directories, a catalogue and the messages."""

    def __init__(self, settings: Settings, sources: Path, patch: pytest.MonkeyPatch) -> None:
        self.settings = settings
        self._sources = sources
        self._now, self._patch = clock.now, patch

    def later(self, by: timedelta) -> None:
        """Let time pass: leases and claims end."""
        before = clock.now
        self._patch.setattr(clock, "now", lambda: before() + by)

    @contextmanager
    def context(self) -> Iterator[Context]:
        opened = Context.open(self.settings)
        try:
            yield opened
        finally:
            opened.close()

    def deliver(self, context: Context, id_: str, kind: str, payload: Mapping[str, Any]) -> None:
        """Do a job as a worker does that takes its message; one that has ended is not done again."""
        model, work = WORK[kind]
        request = model.read(payload)
        ledger, holds = context.catalogue.ledger, f"{request.bucket}/{request.key}" if kind in WRITES else None
        begun = ledger.acquire(
            id_, kind, request.payload(), owner=str(os.getpid()), writes_to=holds, parent=None, now=clock.now(),
            lease=timedelta(0),
        )  # fmt: skip
        if not isinstance(begun, Leased):
            return
        with RunningJob(begun.record, context, NullReporter()) as job:
            try:
                work(request, job)
            except StorageError:
                context.catalogue.artifacts.finish_copies(job.finished, now=clock.now())
                ledger.finish(id_, job.fence, JobState.FAILED, now=clock.now())
            else:
                ledger.finish(id_, job.fence, JobState.SUCCEEDED, now=clock.now(), copies=job.finished)

    def drain(self, context: Context) -> None:
        """Deliver every message that was ever sent."""
        for message in Broker.sent():
            self.deliver(context, *message)

    def put(self, context: Context, bucket: str, key: str, content: bytes) -> None:
        (self._sources / "body").write_bytes(content)
        request = UploadRequest(bucket=bucket, key=key, source=str(self._sources / "body"))
        self.deliver(context, str(uuid.uuid4()), UPLOAD.kind, request.payload())

    def path(self, store: str, bucket: str, key: str) -> Path:
        config = self.settings.stores[store]
        assert isinstance(config, FilesystemConfig)
        return config.root / bucket / key

    def objects(self, store: str, bucket: str) -> dict[str, bytes]:
        """Return the objects of a bucket, read from its directory, without sidecars and stale temp files."""
        root = self.path(store, bucket, "")
        found = (
            path
            for path in root.rglob("*")
            if path.is_file() and path.suffix != ".sha256" and not path.name.startswith(".zot-tmp-")
        )
        return {str(path.relative_to(root)): path.read_bytes() for path in found}

    def lose_metadata(self, store: str, bucket: str, key: str) -> None:
        """Lose what a store keeps beside the bytes of an object."""
        path = self.path(store, bucket, key)
        for name in os.listxattr(path):
            os.removexattr(path, name)
        path.with_name(f"{key}.sha256").unlink()

    def verify(self, context: Context, bucket: str, key: str, *stores: str) -> None:
        """Deliver a verification of the copies of an artifact, by default of all."""
        request = VerifyRequest(bucket=bucket, key=key, stores=stores or None).payload()
        self.deliver(context, str(uuid.uuid4()), VERIFY.kind, request)

    def repair(self, job: str) -> None:
        """Deliver a repair sweep and the jobs that it sends."""
        with self.context() as context:
            self.deliver(context, job, SWEEP_REPAIR.kind, {})
            self.drain(context)

    def repair_again(self, number: int) -> None:
        """Deliver a repair sweep that was killed again, and the next one."""
        self.later(HOUR)
        self.repair(f"sweep-{number}")
        self.repair(f"next-{number}")

    def is_at_rest(self, context: Context, bucket: str, *keys: str) -> bool:
        """Return whether no job is open and no writer has to wait for one of these artifacts."""
        paths, locks = {(bucket, key) for key in keys}, context.catalogue.artifact_locks
        free = locks.acquire("another", 1, list(paths), now=clock.now(), lease=HOUR) == paths
        locks.release("another", 1)
        open_ = context.catalogue.job_admin.find([state for state in JobState if not state.terminal])
        return free and not open_


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    home, sources = tmp_path / "home", tmp_path / "sources"
    home.mkdir()
    sources.mkdir()
    settings = Settings(
        home=home,
        stores={name: FilesystemConfig(root=home / "stores" / name) for name in NAMES},
        placement=NAMES,
        sources=SourceSettings(roots=(sources,)),
    )
    sweep = settings.sweep.model_copy(
        update={
            "repair": RepairSweepSettings(suspect_percent=100),
            "reconcile": ReconcileSweepSettings(orphans="adopt_first_read"),
        }
    )
    settings = settings.model_copy(update={"sweep": sweep})
    Catalogue(settings.catalogue_url).close()
    Broker.path = tmp_path / "messages"
    for module in ("tasks.sweeps.reconcile", "tasks.pages.verify", "tasks.pages.leaving_objects"):
        monkeypatch.setattr(f"{module}.send_child", lambda *args, **named: Broker.send(*args, **named))  # noqa: PLW0108 - it is a step
    monkeypatch.setattr("tasks.sweeps.repair.Outbox", lambda _: Messages())
    return Fleet(settings, sources, monkeypatch)


def states(context: Context, bucket: str, key: str, version: int | None = None) -> dict[str, str]:
    artifacts = context.catalogue.artifacts
    found = artifacts.version(bucket, key, version) if version else artifacts.current(bucket, key)
    assert found is not None
    return {name: copy.state.value for name, copy in artifacts.copies(found).items()}


def test_a_repair_that_is_killed_ends_right(fleet: Fleet) -> None:
    """The good bytes are back and recorded, the bad ones are kept, the findings are resolved, and nothing is locked."""
    right = {"corrupt": b"right bytes", "lost": b"other bytes"}
    bad = b"Right bytes"

    def attempt(number: int) -> Callable[[], Any]:
        bucket = f"b-{number}"
        with fleet.context() as context:
            for key, content in right.items():
                fleet.put(context, bucket, key, content)
            fleet.path("dr", bucket, "corrupt").write_bytes(bad)
            fleet.path("dr", bucket, "lost").unlink()
            for key in right:
                fleet.verify(context, bucket, key)
            assert states(context, bucket, "corrupt")["dr"] == "corrupt"
        Broker.path.unlink(missing_ok=True)
        return partial(fleet.repair, f"sweep-{number}")

    done = 0
    for number in steps(attempt, STEPS):
        bucket = f"b-{number}"
        fleet.repair_again(number)
        with fleet.context() as context:
            for name in NAMES:
                assert fleet.objects(name, bucket) == right
            for key in right:
                assert states(context, bucket, key)["dr"] == "verified"  # it was read after its repair
            assert context.catalogue.findings.page() == []
            kept = fleet.objects("dr", f"{QUARANTINE_BUCKET}/{bucket}").values()
            assert set(kept) == {bad}
            assert fleet.is_at_rest(context, bucket, *right)
            assert context.catalogue.verifications.first_broken() is None
        done += 1
    assert done > 10


def test_a_rewrite_of_metadata_that_is_killed_ends_right(fleet: Fleet) -> None:
    """Bytes and digest beside them are right again, nothing was in quarantine, the findings are resolved."""
    right = {"lost": b"right bytes", "changed": b"other bytes"}

    def attempt(number: int) -> Callable[[], Any]:
        bucket = f"b-{number}"
        with fleet.context() as context:
            for key, content in right.items():
                fleet.put(context, bucket, key, content)
            fleet.lose_metadata("dr", bucket, "lost")
            with fleet.path("dr", bucket, "changed").open("rb") as file:
                write_digest(file.fileno(), "0" * 64)
            for key in right:
                fleet.verify(context, bucket, key)
            found = {each.key: each.kind.value for each in context.catalogue.findings.page()}
            assert found == dict.fromkeys(right, "metadata")
        Broker.path.unlink(missing_ok=True)
        return partial(fleet.repair, f"sweep-{number}")

    done = 0
    for number in steps(attempt, (*STEPS, (os, ("rename", "link", "unlink", "replace")))):
        bucket = f"b-{number}"
        fleet.repair_again(number)
        with fleet.context() as context:
            for name in NAMES:
                assert fleet.objects(name, bucket) == right
                for key, content in right.items():
                    stat = context.stores[name].stat_object(bucket, key)
                    assert stat.sha256 == hashlib.sha256(content).hexdigest()
            assert context.catalogue.findings.page() == []
            assert fleet.objects("dr", f"{QUARANTINE_BUCKET}/{bucket}") == {}
            assert fleet.is_at_rest(context, bucket, *right)
            assert context.catalogue.verifications.first_broken() is None
        done += 1
    assert done > 10


def test_a_repair_of_chunks_that_is_killed_ends_right(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole is right again, also after a death between two of its chunks, and the bad bytes are kept."""
    monkeypatch.setattr("worker.artifacts.chunk_repair.FEWEST_CHUNKS", 2)
    for module in ("storage.integrity.manifest", "catalogue.artifacts"):
        monkeypatch.setattr(f"worker.{module}.CHUNK_SIZE", 1 << 20)
    right = hashlib.sha256(b"large").digest() * (1 << 15) + b"the second chunk"
    bad = right[:-1] + b"K"

    def attempt(number: int) -> Callable[[], Any]:
        bucket = f"b-{number}"
        with fleet.context() as context:
            fleet.put(context, bucket, "large", right)
            artifact = context.catalogue.artifact(bucket, "large")
            manifest = context.catalogue.artifacts.manifest(artifact)  # None of a source up to 1 MiB
            assert manifest is not None
            assert len(manifest) == 2
            fleet.path("dr", bucket, "large").write_bytes(bad)
            fleet.verify(context, bucket, "large", "dr")
            assert states(context, bucket, "large")["dr"] == "corrupt"
        Broker.path.unlink(missing_ok=True)
        return partial(fleet.repair, f"sweep-{number}")

    done = 0
    for number in steps(attempt, (*STEPS, (Store, ("read_chunk",)))):
        bucket = f"b-{number}"
        fleet.repair_again(number)
        with fleet.context() as context:
            assert [fleet.objects(name, bucket) == {"large": right} for name in NAMES] == [True, True]
            assert states(context, bucket, "large")["dr"] == "verified"
            assert context.catalogue.findings.page() == []
            kept = fleet.objects("dr", f"{QUARANTINE_BUCKET}/{bucket}").values()
            assert [each == bad for each in set(kept)] == [True]
            assert fleet.is_at_rest(context, bucket, "large")
        done += 1
    assert done >= 12


def test_a_purge_that_is_killed_ends_right(fleet: Fleet) -> None:
    """The bytes of the deleted artifact go, and no others; its delete cannot be undone once a byte may have gone."""

    def attempt(number: int) -> Callable[[], Any]:
        bucket = f"b-{number}"
        with fleet.context() as context:
            for key in ("gone", "again", "stays"):
                fleet.put(context, bucket, key, key.encode())
            for key in ("gone", "again"):
                now, of = clock.now(), context.catalogue.artifacts.current(bucket, key)
                assert of is not None
                context.catalogue.deletions.begin(of, now=now, until=now, by="ana", reason=None, job="delete")
            fleet.put(context, bucket, "again", b"another version")

        def work() -> None:
            with fleet.context() as context:
                fleet.deliver(context, f"sweep-{number}", SWEEP_PURGE.kind, {})

        return work

    stays = {"again": b"another version", "stays": b"stays"}
    done, undone = 0, 0
    for number in steps(attempt, STEPS):
        bucket = f"b-{number}"
        fleet.later(HOUR)
        with fleet.context() as context:
            if number % 2:  # an operator is faster than the next run
                try:
                    context.catalogue.deletions.undo(bucket, "gone", now=clock.now())
                except UndeleteRefused:
                    pass
                else:
                    undone += 1
                    assert [fleet.objects(name, bucket).get("gone") for name in NAMES] == [b"gone", b"gone"]
                    now, of = clock.now(), context.catalogue.artifacts.current(bucket, "gone")
                    assert of is not None
                    context.catalogue.deletions.begin(of, now=now, until=now, by="ana", reason=None, job="delete")
            fleet.deliver(context, f"sweep-{number}", SWEEP_PURGE.kind, {})
            fleet.deliver(context, f"next-{number}", SWEEP_PURGE.kind, {})
            for name in NAMES:
                assert fleet.objects(name, bucket) == stays
            assert [context.catalogue.deletions.get(bucket, key) for key in ("gone", "again")] == [None, None]
            assert context.catalogue.artifacts.current(bucket, "gone") is None
            assert states(context, bucket, "gone", 1) == dict.fromkeys(NAMES, "deleted")
            assert states(context, bucket, "again") == dict.fromkeys(NAMES, "stored")
            assert fleet.is_at_rest(context, bucket, "gone", *stays)
        done += 1
    assert done >= 8
    assert 0 < undone < done // 2


def test_a_reconciliation_that_is_killed_ends_right(fleet: Fleet) -> None:
    """Each difference is one finding with one job, the orphan is adopted once, and no object changes."""
    recorded = {"right": b"right", "cut": b"the whole", "lost": b"lost"}

    def attempt(number: int) -> Callable[[], Any]:
        bucket = f"b-{number}"
        fleet.later(-2 * HOUR)
        with fleet.context() as context:
            for key, content in recorded.items():
                fleet.put(context, bucket, key, content)
            fleet.later(2 * HOUR)
            fleet.path("dr", bucket, "lost").unlink()
            for key, content in (("cut", b"the"), ("theirs", b"another program's")):
                fleet.path("dr", bucket, key).write_bytes(content)
                os.utime(fleet.path("dr", bucket, key), (time.time() - 3600,) * 2)
            wanted = SweepReconcileRequest(store="dr", bucket=bucket).payload()
            fleet.deliver(context, f"first-{number}", SWEEP_RECONCILE.kind, wanted)
            assert [each for each in context.catalogue.findings.page() if each.bucket == bucket] == []
        Broker.path.unlink(missing_ok=True)

        def work() -> None:
            with fleet.context() as context:
                fleet.deliver(context, f"sweep-{number}", SWEEP_RECONCILE.kind, wanted)
                fleet.drain(context)

        return work

    done = 0
    for number in steps(attempt, STEPS):
        bucket = f"b-{number}"
        before = {name: fleet.objects(name, bucket) for name in NAMES}
        wanted = SweepReconcileRequest(store="dr", bucket=bucket).payload()
        fleet.later(HOUR)
        with fleet.context() as context:
            for run in ("sweep", "next"):
                fleet.deliver(context, f"{run}-{number}", SWEEP_RECONCILE.kind, wanted)
                fleet.drain(context)
            assert {name: fleet.objects(name, bucket) for name in NAMES} == before
            found = [each for each in context.catalogue.findings.page() if each.bucket == bucket]
            assert sorted((each.key, each.kind.value) for each in found) == [
                ("cut", "size_mismatch"), ("lost", "missing"),
            ]  # fmt: skip
            assert {key: states(context, bucket, key)["dr"] for key in recorded} == {
                "right": "stored", "cut": "size_mismatch", "lost": "missing",
            }  # fmt: skip
            theirs = context.catalogue.artifacts.current(bucket, "theirs")
            assert theirs is not None
            assert (theirs.version, theirs.digest.sha256) == (1, hashlib.sha256(b"another program's").hexdigest())
            assert fleet.is_at_rest(context, bucket, "theirs", *recorded)
        done += 1
    assert done > 10
