"""A worker dies at every point of a job's life once: another worker ends the job, and the catalogue is right.

The checks read the stores, the ledger and the log of verifications, never what a worker says.
"""

import json
import sqlite3
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, Self

import pytest
import redis

from tests.conformance.targets import make_s3_bucket, s3_client
from tests.faults.dying_worker import POINTS
from tests.faults.fleet import QUICK
from tests.servers import Ministack, Valkey
from tests.servers.worker import Worker
from tests.waiting import WITHIN, until
from worker.artifacts.parts_staged_in_store import source_of
from worker.catalogue import Catalogue, JobRecord
from worker.storage import Stores
from worker.storage.config import FilesystemConfig, S3Config
from worker.storage.keys import QUARANTINE_BUCKET, UPLOADS_BUCKET
from zot_artifact_client import ArtifactClient, Job
from zot_artifact_client.contract import SWEEP_LEFTOVERS, UPLOAD, JobState, Queue, SweepLeftoversRequest, UploadRequest
from zot_artifact_client.job_ids import choose_id
from zot_artifact_client.outgoing_messages import MESSAGES

BUCKET = "points"
SMALL, LARGE = 3_000, 11 << 20
SETTINGS = QUICK | {
    "sweep__recover__again": "20s",
    "batch__step": "200ms",
    "retry__backoff": "1s",
    "sweep__cleanup__age": "100ms",
    "sweep__cleanup__enabled": "false",
    "sweep__cleanup__foreign_uploads": "abort",  # one that was begun and not yet recorded cannot be told from others
}


@dataclass(frozen=True)
class Case:
    """A job, the point at which its worker dies, and the outcome that it must have.

    Attributes:
        name: the artifact's key.
        verb: what the job does: with "repair", it replicates to where a copy has rotted.
        at: the point.
        skip: how many times it is passed unharmed.
        attempts: that the ledger has counted in the end.
        to: the stores that have a good copy then.
        before: the stores that have one before.
        replaces: whether there is an older version.
        meets: what goes wrong with the job's first attempt before that.
        reads: verdicts in the log, where the job gives any.
        parts: whether the source is staged as parts in a store.
    """

    name: str
    verb: str
    at: str
    skip: int = 0
    attempts: int = 2
    size: int = SMALL
    to: tuple[str, ...] = ("primary", "cloud")
    before: tuple[str, ...] = ()
    replaces: bool = False
    meets: str | None = None
    reads: int = 0
    staged: bool = False
    parts: bool = False

    @property
    def content(self) -> bytes:
        return (self.name.encode() * self.size)[: self.size]

    @property
    def older(self) -> bytes:
        return b"older " + self.content


def uploading(name: str, at: str, **more: Any) -> Case:
    return Case(f"upload-{name}", "upload", at, **more)


UPLOADS = [
    uploading("received", "received, not begun", attempts=1),
    uploading("begun", "begun, still in the outbox"),
    uploading("taken", "begun, out of the outbox", meets="silence"),
    uploading("opening", "source not opened"),
    uploading("recorded", "version recorded"),
    uploading("placing", "file written, not placed"),
    uploading("swapping", "file written, not swapped in", skip=2, replaces=True),
    uploading("multipart", "parts begun, not noted", size=LARGE),
    uploading("part", "at a part", skip=2, size=LARGE),
    uploading("replacing", "at a part", skip=2, size=LARGE, replaces=True),
    uploading("sent", "part sent, not noted", skip=2, size=LARGE),
    uploading("parts", "all parts sent", size=LARGE),
    uploading("completed", "completed, still noted as open", size=LARGE, reads=1),
    uploading("first", "written, not recorded"),
    uploading("between", "copy recorded"),
    uploading("second", "written, not recorded", skip=1),
    uploading("done", "done, not finished"),
    uploading("finished", "finished", attempts=1),
    uploading("cleaning", "half cleaned up", attempts=1, staged=True),
    uploading("assembling", "staged parts not read", parts=True),
    uploading("removing", "a staged part removed", attempts=1, parts=True),
    uploading("shown", "result shown", attempts=1),
    uploading("retry", "next attempt not sent", meets="fault"),
    uploading("busy", "next attempt not sent", meets="busy", attempts=1),
    uploading("ending", "next attempt not sent", meets="ending", attempts=1),
]
BOTH, ALL = ("primary", "cloud"), ("primary", "dr", "cloud")
OTHERS = [
    Case("copy-part", "replicate", "at a part", skip=2, size=LARGE, before=("primary",)),
    Case("copy-written", "replicate", "written, not recorded", before=("primary",), reads=1),
    Case("copy-between", "replicate", "copy recorded", before=("primary",), to=ALL),
    Case("copy-done", "replicate", "done, not finished", before=("primary",)),
    Case(
        "copy-by-provider",
        "replicate",
        "copied by the provider, not read",
        before=("cloud",),
        to=("cloud", "far"),
        reads=1,
    ),
    Case("repair-aside", "repair", "bad bytes in quarantine", before=ALL, to=ALL, reads=1),
    Case("repair-swapping", "repair", "file written, not swapped in", skip=2, before=ALL, to=ALL, reads=1),
    Case("repair-written", "repair", "read, not recorded", before=ALL, to=ALL, reads=1),
    Case("delete-gone", "delete", "deleted, still in the catalogue", before=BOTH, to=()),
    Case("delete-between", "delete", "deleted in the catalogue", before=BOTH, to=()),
    Case("delete-all", "delete", "all copies deleted", before=BOTH, to=()),
    Case("delete-buried", "delete", "buried", before=BOTH, to=()),
    Case("verify-read", "verify", "read, not recorded", before=BOTH, reads=2),
    Case("verify-between", "verify", "verdict recorded", before=BOTH, reads=3),
    Case("verify-done", "verify", "done, not finished", before=BOTH, reads=4),
    Case("batch", "batch", "planned, not sent", before=BOTH, reads=2, attempts=1),
]
WHOLE = [
    uploading("received", "received, not begun", attempts=1),
    uploading("replacing", "at a part", skip=2, size=LARGE, replaces=True),
    uploading("retry", "next attempt not sent", meets="fault"),
    uploading("assembling", "staged parts not read", parts=True),
    uploading("removing", "a staged part removed", attempts=1, parts=True),
    uploading("shown", "result shown", attempts=1),
]
POWER_CUT = [uploading("power", "written, not recorded", skip=1, attempts=1)]
"""The lease and the version are recorded without a wait for the disk: after a power cut, the bytes alone are there."""
JUMPS = {
    3600: [
        uploading("ahead", "at a part", skip=1, size=LARGE),
        uploading("ahead-retry", "next attempt not sent", meets="fault"),
    ],
    0: [
        uploading("back", "at a part", skip=1, size=LARGE),
        uploading("back-retry", "next attempt not sent", meets="fault"),
    ],
}
"""What is at work when the clock jumps to so many seconds ahead."""


class DyingWorker(Worker):
    """A worker that carries out the orders in a directory; see `dying_worker`."""

    @property
    def orders(self) -> Path:
        return self.directory / "orders"

    def command(self) -> Sequence[str]:
        python, _, _, *rest = super().command()
        return (python, "-m", "tests.faults.dying_worker", str(self.orders), *rest)


class Scene:
    """One dying worker on four stores, two of them of one provider. A context manager."""

    def __init__(self, valkey: Valkey, ministack: Ministack, directory: Path, *, concurrency: int) -> None:
        self._directory = directory
        self._ministack = ministack
        valkey.empty()
        broker = valkey.url
        self.redis = redis.Redis.from_url(broker)
        self._buckets = {store: f"{store}-{uuid.uuid4().hex[:8]}" for store in ("cloud", "far")}
        self._sources = directory / "sources"
        self._sources.mkdir()
        catalogue_url = f"sqlite:///{directory / 'catalogue.sqlite3'}"
        settings = SETTINGS | {
            "stores": json.dumps(self._stores()),
            "placement": json.dumps(BOTH),
            "sources__roots": json.dumps([str(self._sources)]),
            "catalogue": catalogue_url,
        }
        self.worker = DyingWorker(directory / "worker", broker, concurrency=concurrency, beat=True, **settings)
        self.worker.orders.mkdir(parents=True)
        self.catalogue = Catalogue(catalogue_url)
        self.client = ArtifactClient(broker)

    def _stores(self) -> dict[str, dict[str, Any]]:
        stores: dict[str, dict[str, Any]] = {
            store: {
                "type": "s3", "bucket": bucket, "endpoint": self._ministack.endpoint, "part_size": "5MiB",
                "access_key_id": self._ministack.access_key_id,
                "secret_access_key": self._ministack.secret_access_key,
            }
            for store, bucket in self._buckets.items()
        }  # fmt: skip
        for store in ("primary", "dr"):
            (self._directory / store).mkdir(exist_ok=True)
            stores[store] = {"type": "filesystem", "root": str(self._directory / store)}
        return stores

    def __enter__(self) -> Self:
        for bucket in self._buckets.values():
            make_s3_bucket(self._ministack, bucket)
        models = {"filesystem": FilesystemConfig, "s3": S3Config}
        configs = {name: models[each["type"]].model_validate(each) for name, each in self._stores().items()}
        self.stores = Stores(configs, spool_dir=self._directory)
        self.worker.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.worker.kill()
        self.stores.close()
        self.client.close()
        self.catalogue.close()
        self.redis.close()

    # What is done

    def prepare(self, cases: Sequence[Case]) -> None:
        """Put in place what the jobs find there."""
        first = [self._upload(case, case.content, case.before) for case in cases if case.before]
        first += [self._upload(case, case.older, case.to) for case in cases if case.replaces]
        for job in first:
            job.wait(WITHIN)
        for case in cases:
            if case.verb == "repair":
                (self._directory / "dr" / BUCKET / case.name).write_bytes(b"x" * case.size)

    def start(self, case: Case, *, whole: bool = False, clock: float | None = None) -> Job[Any]:
        """Order a death, or a jump of the clock to so many seconds ahead, and send the job that leads to it."""
        order = {"at": case.at, "skip": case.skip, "whole": whole, "meets": case.meets, "clock": clock}
        self._order(case).write_text(json.dumps(order))
        if case.verb == "upload":
            return self._upload(case, case.content, case.to)
        if case.verb in {"replicate", "repair"}:
            to = [store for store in case.to if store not in case.before] or ["dr"]
            return self.client.replicate(BUCKET, case.name, to=to)
        if case.verb == "batch":
            return self.client.batch("verify", BUCKET, case.name)
        return (self.client.delete if case.verb == "delete" else self.client.verify)(BUCKET, case.name)

    def _order(self, case: Case) -> Path:
        return self.worker.orders / f"{case.name}.order"

    def _upload(self, case: Case, content: bytes, stores: Sequence[str]) -> Job[Any]:
        if case.parts:
            return self._upload_parts(case, content, stores)
        once = case.name if case.staged else None
        directory = self.worker.home / "staging" / choose_id(UPLOAD, idempotency_key=once) if once else self._sources
        directory.mkdir(parents=True, exist_ok=True)
        source = directory / f"{case.name}-{len(content)}"
        source.write_bytes(content)
        request = UploadRequest(
            source=str(source), bucket=BUCKET, key=case.name, stores=tuple(stores), staged=case.staged
        )
        return self.client.submit(UPLOAD, request, idempotency_key=once)

    def _upload_parts(self, case: Case, content: bytes, stores: Sequence[str]) -> Job[Any]:
        id_ = choose_id(UPLOAD, idempotency_key=case.name)
        for number, part in ((1, content[:1000]), (2, content[1000:])):
            self.stores["cloud"].write_object(UPLOADS_BUCKET, f"{id_}/{number:05}", BytesIO(part))
        request = UploadRequest(
            source=source_of("cloud", id_, len(content)),
            bucket=BUCKET,
            key=case.name,
            stores=tuple(stores),
            staged=True,
        )
        return self.client.submit(UPLOAD, request, idempotency_key=case.name)

    def come_to_rest(self, jobs: Sequence[Job[Any]]) -> None:
        """Wait until all jobs have ended and no message is left, not even one that comes twice; sweep the stores."""
        for job in jobs:
            until(lambda job=job: JobState(self.record(job).state).terminal)
        until(lambda: not self._messages())
        self._staged = [str(path) for path in (self.worker.home / "staging").iterdir()]  # a sweep would find it too
        self.client.submit(SWEEP_LEFTOVERS, SweepLeftoversRequest()).wait(WITHIN)

    def _messages(self) -> int:
        waiting = [self.redis.llen(queue.value) for queue in Queue]
        return sum(waiting) + self.redis.hlen("unacked") + self.redis.hlen(MESSAGES)

    def hand_out_again(self) -> None:
        """Let Redis hand out now what a dead worker took: the visibility timeout is over, a day later."""
        for tag in self.redis.zrange("unacked_index", 0, -1):
            self.redis.zadd("unacked_index", {tag: 0})

    def record(self, job: Job[Any]) -> JobRecord:
        return until(lambda: self.catalogue.ledger.get(job.id))

    @contextmanager
    def power_cut(self) -> Iterator[None]:
        """At the end, undo what the catalogue has recorded since the beginning, as if the disk had none of it."""
        file = self._directory / "catalogue.sqlite3"
        kept = self._directory / "kept.sqlite3"
        with closing(sqlite3.connect(file)) as here, closing(sqlite3.connect(kept)) as there:
            here.backup(there)
        yield
        self.catalogue.close()
        for suffix in ("-wal", "-shm"):
            file.with_name(file.name + suffix).unlink(missing_ok=True)
        kept.replace(file)
        self.catalogue = Catalogue(f"sqlite:///{file}")

    # What is true afterwards

    def wrong(self, case: Case, job: Job[Any]) -> list[str]:
        """Return everything that is not as promised."""
        record = self.record(job)
        gives_up = f"job {job.id} has lost its lease to another worker, or to another job on its artifact; this"
        lost = self.worker.log.count(gives_up)  # it did not move
        ended = (record.state, record.attempts - max(0, min(lost, record.attempts - case.attempts)))
        found = [
            (self._order(case).with_suffix(".died").exists(), True, "whether it died there"),
            (ended, ("succeeded", case.attempts), f"how the job ended: {record.error}"),
            (self._good(case), sorted(case.to), "the stores with a good copy"),
            (self._holding(case), sorted(case.to), "the stores with bytes"),
            (self._versions(case), 1 + case.replaces, "the versions"),
            (len(self.catalogue.verifications.of(BUCKET, case.name)), case.reads, "the verdicts"),
            (self._unread(case), Counter(), "the verdicts without a read"),
            (self._kept(case), case.verb == "repair", "whether the bad bytes were kept"),
        ]
        return [f"{what}: {is_!r}, not {should!r}" for is_, should, what in found if is_ != should]

    def _good(self, case: Case) -> list[str]:
        """Return the stores in which the catalogue relies on a copy, and rightly."""
        artifact = self.catalogue.artifacts.current(BUCKET, case.name)
        if artifact is None:
            return []
        copies = self.catalogue.artifacts.copies(artifact)
        good = [store for store, copy in copies.items() if copy.state.good]
        seen = {store: self.stores[store].verify_object(BUCKET, case.name, artifact.digest) for store in good}
        assert {store for store in good if seen[store].version == copies[store].tag} == set(good)
        return sorted(store for store in good if seen[store].verdict == "verified")

    def _holding(self, case: Case) -> list[str]:
        return sorted(name for name in self.stores if self._has(name, case.name))

    def _has(self, store: str, key: str) -> bool:
        return any(found.key == key for found in self.stores[store].list_objects(BUCKET, key))

    def _versions(self, case: Case) -> int:
        numbers = range(1, 9)
        return sum(self.catalogue.artifacts.version(BUCKET, case.name, number) is not None for number in numbers)

    def _unread(self, case: Case) -> Counter[str]:
        given = Counter(row["store"] for row in self.catalogue.verifications.of(BUCKET, case.name))
        log = self.worker.orders / "reads"
        reads = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
        return given - Counter(store for store, key in reads if key == case.name)

    def _kept(self, case: Case) -> bool:
        kept = (self._directory / "dr" / QUARANTINE_BUCKET).rglob(case.name)
        return {path.read_bytes() for path in kept} == {b"x" * case.size}

    def left_behind(self) -> list[str]:
        """Return everything in the stores and in the catalogue that should not have stayed there."""
        left = [
            f"{name}: {each.description}" for name in self.stores for each in self.stores[name].iter_stale_uploads()
        ]
        left += [str(each) for name in self.stores for each in self.catalogue.transfers.open_in(name)]
        left += self._staged
        left += [row.key for row in self.stores["cloud"].list_objects(UPLOADS_BUCKET)]
        client = s3_client(self._ministack)
        for bucket in self._buckets.values():
            left += [str(each) for each in client.list_multipart_uploads(Bucket=bucket).get("Uploads", [])]
        return left

    def whole(self, case: Case) -> list[str]:
        """Return the stores in which an upload shows anything but the old bytes or the new, of those it goes to."""
        return [
            store for store in case.to
            if self._has(store, case.name) and self._bytes(store, case.name) not in {case.older, case.content}
        ] + [store for store in case.to if case.replaces and not self._has(store, case.name)]  # fmt: skip

    def _bytes(self, store: str, key: str) -> bytes:
        with self.stores[store].read_object(BUCKET, key) as reader:
            return b"".join(reader)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_point_of_a_jobs_life_is_the_last_of_a_process_once(valkey, ministack, tmp_path):
    """The process of a job dies at each point there is; the job ends as if nothing had been, and nothing is left over.

    All jobs are under way together; each has its own death.
    """
    cases = [*UPLOADS, *OTHERS]
    assert {case.at for case in cases} == set(POINTS)
    with Scene(valkey, ministack, tmp_path, concurrency=4) as scene:
        scene.prepare(cases)
        jobs = {case: scene.start(case) for case in cases}
        scene.come_to_rest(list(jobs.values()))
        wrong = {case.name: scene.wrong(case, job) for case, job in jobs.items()}
        assert {name: what for name, what in wrong.items() if what} == {}
        assert scene.left_behind() == []
        assert scene.catalogue.verifications.first_broken() is None


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_whole_worker_dies_at_points_of_a_jobs_life(valkey, ministack, tmp_path):
    """A worker is killed with all its processes; until it is back, nothing is half-written under any key.

    What it had in its hands Redis hands out once more, when the job has long ended: nothing happens twice. A power cut
    that undoes the lease of a job as well loses no job either.
    """
    with Scene(valkey, ministack, tmp_path, concurrency=2) as scene:
        scene.prepare(WHOLE)
        jobs = {}
        for case in [*WHOLE, *POWER_CUT]:
            with scene.power_cut() if case in POWER_CUT else nullcontext():
                jobs[case] = scene.start(case, whole=True)
                until(lambda: not scene.worker.running)
            assert scene.whole(case) == [], case.name
            scene.worker.start()
            until(lambda job=jobs[case]: JobState(scene.record(job).state).terminal)
        scene.hand_out_again()
        scene.come_to_rest(list(jobs.values()))
        wrong = {case.name: scene.wrong(case, job) for case, job in jobs.items()}
        assert {name: what for name, what in wrong.items() if what} == {}
        assert scene.left_behind() == []


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_clock_that_jumps_neither_loses_nor_doubles_a_job(valkey, ministack, tmp_path):
    """The clock jumps an hour ahead and later back, at work and between two attempts: each job is done once."""
    with Scene(valkey, ministack, tmp_path, concurrency=2) as scene:
        wrong = {}
        for ahead, cases in JUMPS.items():
            jobs = {case: scene.start(case, clock=ahead) for case in cases}
            scene.come_to_rest(list(jobs.values()))
            for case, job in jobs.items():
                # While the job runs, the sweep may come before the next heartbeat, or after it.
                attempts = case.attempts if case.meets else min(scene.record(job).attempts, case.attempts)
                wrong[case.name] = scene.wrong(replace(case, attempts=attempts), job)
        assert {name: what for name, what in wrong.items() if what} == {}
