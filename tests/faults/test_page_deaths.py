"""The worker of a page dies at every point of the page once: another one ends it, and every effect happened once.

The checks read the stores, the ledger and the log of verifications, never what a worker says.
"""

import hashlib
import json
import os
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
import sqlalchemy as sa
from celery import Celery

from tests.faults.dying_worker import PAGE_POINTS
from tests.faults.fleet import QUICK
from tests.faults.test_death_points import DyingWorker
from tests.servers import Valkey
from tests.waiting import WITHIN, until
from worker.catalogue import Catalogue, tables
from zot_artifact_client import ArtifactClient, Job
from zot_artifact_client.contract import BATCH, JobState, Queue
from zot_artifact_client.contract.queues import queues
from zot_artifact_client.job_ids import choose_id
from zot_artifact_client.outgoing_messages import MESSAGES

COUNT = 24
BUCKET = "pages"
STORES = ("primary", "dr", "cold")
SETTINGS = QUICK | {
    "batch__step": "3s",  # many batches at once: their steps come before pages
    "page__objects": str(COUNT),
    "page__threads": "2",
    "sweep__recover__again": "20s",
    "sweep__verify__enabled": "false",
    "sweep__replicate__enabled": "false",
    "retry__backoff": "1s",
    "placement": json.dumps(["primary", "dr"]),
}
ONE_BATCH = {"batch__step": "200ms"}
"""Settings for one batch at a time."""
VERBS = ("verify", "adopt", "upload", "replicate", "delete")
"""Each point is passed by pages of these verbs, where the point is part of the verb."""
NOT_RECORDED = {"verify": "verdicts not recorded", "adopt": "objects not adopted"} | dict.fromkeys(
    VERBS[2:], "group not recorded"
)
_LISTED = ("upload", "adopt")
"""Verbs whose pages name their batch in place of a prefix."""


class Scene:
    """A dying worker on three directories, and a bucket of small artifacts. A context manager."""

    def __init__(self, valkey: Valkey, directory: Path, **settings: str) -> None:
        self.directory = directory
        valkey.empty()
        self.broker = broker = valkey.url
        self.redis = redis.Redis.from_url(broker)
        self.client = ArtifactClient(broker)
        self.catalogue = Catalogue(f"sqlite:///{directory / 'catalogue.sqlite3'}")
        stores = {name: {"type": "filesystem", "root": str(self.root(name))} for name in STORES}
        (directory / "sources").mkdir()
        settings = SETTINGS | settings | {
            "stores": json.dumps(stores), "sources__roots": json.dumps([str(directory / "sources")]),
            "catalogue": f"sqlite:///{directory / 'catalogue.sqlite3'}",
        }  # fmt: skip
        self.worker = DyingWorker(directory / "worker", broker, concurrency=2, beat=True, **settings)
        self.worker.orders.mkdir(parents=True)

    def root(self, store: str) -> Path:
        path = self.directory / store
        path.mkdir(exist_ok=True)
        return path

    def close(self) -> None:
        self.worker.kill()
        self.client.close()
        self.catalogue.close()
        self.redis.close()

    def fill(self, *prefixes: str) -> None:
        """Lay the files of some cases, and upload them where that is not the case itself."""
        for prefix in prefixes:
            adopted = prefix.startswith("adopt")
            place = (self.root("primary") / BUCKET if adopted else self.directory / "sources") / prefix
            place.mkdir(parents=True)
            for n in range(COUNT):
                content = f"the bytes of {prefix} {n}"
                (place / f"{n:03d}").write_text(content)
                if adopted:
                    (place / f"{n:03d}.sha256").write_text(hashlib.sha256(content.encode()).hexdigest())
        if all(prefix.startswith(_LISTED) for prefix in prefixes):
            return
        job = self.client.upload_dir(self.directory / "sources", BUCKET, exclude=["upload*"])
        assert job.wait(WITHIN).good
        until(lambda: not list(self.catalogue.batch_lists.rows(job.id, 0)))

    def order(self, name: str, at: str, **how: Any) -> None:
        """Let the process that works on the page of this prefix die at a point."""
        order = {"at": at, "skip": 0, "whole": False, "meets": None, "clock": None} | how
        self.order_of(name, "order").write_text(json.dumps(order))

    def order_of(self, prefix: str, state: str) -> Path:
        """Return the file of an order. A page of a list names its batch in place of a prefix."""
        batch = choose_id(BATCH, idempotency_key=prefix)
        return self.worker.orders / f"{batch if prefix.startswith(_LISTED) else prefix}.{state}"

    def start(self, verb: str, prefix: str) -> Job[Any]:
        if verb == "upload":
            return self.client.upload_dir(self.directory / "sources" / prefix, BUCKET, prefix, idempotency_key=prefix)
        more = {"replicate": {"to": ["cold"]}, "adopt": {"stores": ["primary"], "idempotency_key": prefix}}
        return self.client.batch(verb, BUCKET, f"{prefix}/", **more.get(verb, {}))

    def come_to_rest(self, jobs: list[Job[Any]]) -> None:
        for job in jobs:
            until(lambda job=job: self._ended(job))
        until(lambda: not self._messages())

    def _ended(self, job: Job[Any]) -> bool:
        found = self.catalogue.ledger.get(job.id)
        return found is not None and JobState(found.state).terminal

    def _messages(self) -> int:
        waiting = [self.redis.llen(queue.value) for queue in Queue]
        return sum(waiting) + self.redis.hlen("unacked") + self.redis.hlen(MESSAGES)

    # What is true afterwards

    def wrong(self, verb: str, prefix: str, job: Job[Any]) -> list[str]:
        """Return everything that is not as promised."""
        record = self.catalogue.ledger.get(job.id)
        assert record is not None
        result = record.result or {}
        keys = [f"{prefix}/{n:03d}" for n in range(COUNT)]
        read = {"verify": ("primary", "dr"), "adopt": ("primary",)}.get(verb, ())
        there = {"replicate": STORES, "delete": (), "adopt": ("primary",)}.get(verb, ("primary", "dr"))
        written = {"upload": ("primary", "dr"), "replicate": ("cold",)}.get(verb, ())
        # a copy that a dead attempt wrote and did not record is read once
        verdicts = self._verdicts(keys) - Counter({(key, store): 1 for key in keys for store in written})
        artifacts = filter(None, (self.catalogue.artifacts.current(BUCKET, key) for key in keys))
        current = {artifact.key: artifact.version for artifact in artifacts}
        found = [
            (record.state, "succeeded", f"how the batch ended: {record.error}"),
            ((result.get("objects"), result.get("failed")), (COUNT, 0), "what it counted"),
            (sum(result.get("outcomes", {}).values()), COUNT, f"the outcomes: {result.get('outcomes')}"),
            (verdicts, Counter({(key, store): 1 for key in keys for store in read}), "the verdicts"),
            (self._copies(keys), {key: sorted(there) for key in keys}, "the copies that the catalogue relies on"),
            (self._files(keys), {key: sorted(there) for key in keys}, "the files"),
            (current, {} if verb == "delete" else dict.fromkeys(keys, 1), "the artifacts"),
        ]
        return [f"{what}: {is_!r}, not {should!r}" for is_, should, what in found if is_ != should]

    def _verdicts(self, keys: list[str]) -> Counter[tuple[str, str]]:
        rows = [row for key in keys for row in self.catalogue.verifications.of(BUCKET, key)]
        return Counter((row["key"], row["store"]) for row in rows)

    def _copies(self, keys: list[str]) -> dict[str, list[str]]:
        found = {}
        for key in keys:
            version = self.catalogue.artifacts.version(BUCKET, key, 1)
            assert version is not None
            copies = self.catalogue.artifacts.copies(version)
            found[key] = sorted(store for store, copy in copies.items() if copy.state.good)
        return found

    def _files(self, keys: list[str]) -> dict[str, list[str]]:
        return {key: sorted(name for name in STORES if (self.root(name) / BUCKET / key).is_file()) for key in keys}

    def pages_left(self) -> int:
        with self.catalogue._database.read() as connection:
            locks = connection.execute(sa.select(sa.func.count()).select_from(tables.artifact_locks)).scalar_one()
            pages = connection.execute(sa.select(sa.func.count()).select_from(tables.pages)).scalar_one()
        return locks + pages


@contextmanager
def scene_of(valkey: Valkey, directory: Path, **settings: str) -> Iterator[Scene]:
    scene = Scene(valkey, directory, **settings)
    try:
        scene.worker.start()
        yield scene
    finally:
        scene.close()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_point_of_a_page_is_the_last_of_a_process_once(valkey, tmp_path):
    """The process of a page dies before, between and after its groups; nothing is lost, and nothing happens twice."""
    cases = {
        f"{verb}-{number}": (verb, at)
        for number, (at, (_, _, verbs)) in enumerate(PAGE_POINTS.items())
        for verb in verbs
    }
    with scene_of(valkey, tmp_path) as scene:
        scene.fill(*cases)
        jobs = {}
        for prefix, (verb, at) in cases.items():
            scene.order(prefix, at, skip=1 if at in {"group recorded", "objects adopted", "verdicts recorded"} else 0)
            jobs[prefix] = scene.start(verb, prefix)
        scene.come_to_rest(list(jobs.values()))
        wrong = {prefix: scene.wrong(verb, prefix, jobs[prefix]) for prefix, (verb, _) in cases.items()}
        undead = [f"{cases[p]}" for p in cases if not scene.order_of(p, "died").exists()]
        assert {f"{prefix} {cases[prefix][1]}": what for prefix, what in wrong.items() if what} == {}
        assert undead == []
        assert scene.catalogue.verifications.first_broken() is None
        until(lambda: scene.pages_left() == 0)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_frozen_worker_writes_nothing_after_its_lease(valkey, tmp_path):
    """A worker is frozen in a page until another one has ended that; when it wakes up, it records nothing."""
    with scene_of(valkey, tmp_path, **ONE_BATCH) as scene:
        scene.fill(*VERBS)
        for number, verb in enumerate(VERBS, 1):
            scene.order(verb, NOT_RECORDED[verb], freeze=str(tmp_path / "catalogue.sqlite3"))
            job = scene.start(verb, verb)
            pid = until(lambda verb=verb: _frozen(scene, verb))
            try:
                until(lambda job=job: scene._ended(job))
            finally:
                os.kill(pid, signal.SIGCONT)
            scene.come_to_rest([job])
            until(lambda number=number: scene.worker.log.count("this worker stops working on it") == number)
            assert scene.wrong(verb, verb, job) == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_frozen_worker_brings_nothing_back_that_was_deleted_since(valkey, tmp_path):
    """A worker is frozen before it writes. Another one ends its page, then all is deleted: nothing is there again.

    It wakes up while the catalogue is locked, so that its heartbeat cannot tell it in time.
    """
    with scene_of(valkey, tmp_path, **ONE_BATCH) as scene:
        scene.fill("upload")
        scene.order("upload", "versions recorded", freeze=str(tmp_path / "catalogue.sqlite3"))
        job = scene.start("upload", "upload")
        pid = until(lambda: _frozen(scene, "upload"))
        try:
            until(lambda: scene._ended(job))
            assert scene.client.batch("delete", BUCKET, "upload/").wait(WITHIN).outcomes == {"deleted": COUNT}
            with closing(sqlite3.connect(tmp_path / "catalogue.sqlite3", isolation_level=None, timeout=30)) as other:
                other.execute("BEGIN IMMEDIATE")
                os.kill(pid, signal.SIGCONT)
                time.sleep(2)  # the fault: the catalogue is locked for so long
        finally:
            os.kill(pid, signal.SIGCONT)
        until(lambda: "this worker stops working on it" in scene.worker.log)
        assert not [where for where in scene._files([f"upload/{n:03d}" for n in range(COUNT)]).values() if where]


def _frozen(scene: Scene, prefix: str) -> int | None:
    path = scene.order_of(prefix, "frozen")
    return int(path.read_text()) if path.exists() and path.read_text() else None


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_deliveries_of_a_page_at_once_do_it_once(valkey, tmp_path):
    """The message of a page is delivered to two processes at once: every effect happens once."""
    with scene_of(valkey, tmp_path, **ONE_BATCH) as scene, Celery(broker=scene.broker, set_as_current=False) as app:
        app.conf.task_queues = queues()
        scene.fill(*VERBS)
        for verb in VERBS:
            job = scene.start(verb, verb)
            page = until(lambda job=job: scene.catalogue.batches.child_jobs(job.id))[0]
            for _ in range(3):
                sent = {"task_id": page.id, "parent_id": job.id, "queue": "sweep", "ignore_result": True}
                app.send_task("artifact.page.v1", kwargs=dict(page.request), **sent)
            scene.come_to_rest([job])
            assert scene.wrong(verb, verb, job) == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_page_outlives_a_catalogue_that_is_locked(valkey, tmp_path):
    """Another program keeps the catalogue locked while pages run: they wait, and every effect happens once."""
    with scene_of(valkey, tmp_path) as scene:
        scene.fill(*VERBS)
        jobs = {}
        for verb in VERBS:
            scene.order(verb, NOT_RECORDED[verb], lock=str(tmp_path / "catalogue.sqlite3"))
            jobs[verb] = scene.start(verb, verb)
        scene.come_to_rest(list(jobs.values()))
        wrong = {verb: scene.wrong(verb, verb, job) for verb, job in jobs.items()}
        assert {verb: what for verb, what in wrong.items() if what} == {}
