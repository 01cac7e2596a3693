"""The cleanup sweep removes what dead writers left, and nothing that a job still needs."""

import dataclasses
import io
import os
import time
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import replace
from datetime import timedelta
from hashlib import sha256
from typing import Any

import pytest
import sqlalchemy as sa
from celery import Celery
from redis import Redis

from tasks.page import page
from tasks.sweeps.cleanup import sweep_cleanup
from tasks.upload import upload
from tests.conformance.targets import make_s3_bucket, s3_client, s3_config
from tests.integration.tasks.conftest import end_and_delete
from tests.integration.tasks.test_upload_page import request_for
from tests.servers.proxy import FaultyProxy, Lose
from tests.waiting import until
from worker import clock
from worker.artifacts.directory_listing import DirectoryListing
from worker.catalogue import Artifact, LostLease
from worker.catalogue.artifacts import Artifacts
from worker.catalogue.ledger import Ledger
from worker.catalogue.tables import jobs
from worker.context import Context
from worker.jobs.outbox import Outbox
from worker.jobs.upload_checkpoint import CopyCheckpoint
from worker.limits.limited_store import LimitedStore
from worker.settings import Settings
from worker.settings.section_models import CleanupSweepSettings, SweepSettings
from worker.storage import Digest, Stores, Verdict, Verification
from worker.storage.driver import Part, WriteInfo
from worker.storage.errors import AccessDenied, Archived, PreconditionFailed, Timeout, Unavailable
from worker.storage.keys import QUARANTINE_BUCKET, UPLOADS_BUCKET
from worker.storage.store import Store
from worker.storage.transfer.multipart import SentPart
from zot_artifact_client import ArtifactClient
from zot_artifact_client.contract import UPLOAD, SweepLeftoversRequest, UploadRequest
from zot_artifact_client.outgoing_messages import MESSAGES

EVERYTHING = SweepLeftoversRequest()


@pytest.fixture
def settings(settings: Settings) -> Settings:
    sweep = SweepSettings(cleanup=CleanupSweepSettings(age=timedelta(0)))
    return settings.model_copy(update={"sweep": sweep})


def aged(context: Context, age: timedelta) -> Context:
    sweep = SweepSettings(cleanup=CleanupSweepSettings(age=age))
    return dataclasses.replace(context, settings=context.settings.model_copy(update={"sweep": sweep}))


@pytest.fixture
def abandoned(stored):
    """A temporary file whose writer was killed."""
    path = stored("primary").parent / ".zot-tmp-00000000000000000000000000000000"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half of a release")
    return path


def test_what_a_dead_writer_left_goes(run, abandoned):
    """A temporary file without a writer is removed, and counted for its store."""
    result = run(sweep_cleanup, EVERYTHING)
    assert not abandoned.exists()
    assert result.removed == {"primary": 1, "dr": 0, "cold": 0}


def test_what_is_young_stays(run, context, abandoned, stored):
    """Below the configured age nothing is touched: a worker that was frozen may be at work for a job that has ended."""
    begin_to_write(context, b"older", "ended")
    run(sweep_cleanup, EVERYTHING, context=aged(context, timedelta(hours=1)))
    assert abandoned.exists()
    assert stored("dr").read_bytes() == b"older"


def test_a_file_that_is_being_written_stays(run, context, stored):
    """The temporary file of a writer that lives is spared, however old it is."""
    seen = []

    class Slow:
        def __init__(self):
            self.left = [b"release", b" one", b""]

        def read(self, _size):
            if len(self.left) == 1:
                run(sweep_cleanup, EVERYTHING)
                seen.extend(stored("primary").parent.glob(".zot-tmp-*"))
            return self.left.pop(0)

    context.stores["primary"].write_object("releases", "app.tgz", Slow())
    assert len(seen) == 1
    assert stored("primary").read_bytes() == b"release one"


def test_one_store_that_is_away_keeps_no_other_from_being_swept(run, settings, abandoned):
    """A store that cannot be swept is an error at the end, after the others had their turn."""
    settings.stores["cold"].root.rmdir()
    with pytest.raises(Unavailable, match="cold"):
        run(sweep_cleanup, EVERYTHING)
    assert not abandoned.exists()


@pytest.mark.parametrize("failure", [Unavailable("primary: EIO"), AccessDenied("primary: no")])
def test_one_file_that_cannot_be_removed_keeps_no_other(run, abandoned, monkeypatch, failure):
    """What one writer left cannot be removed: the rest goes, and the sweep fails at its end."""
    other = abandoned.with_name(f"{abandoned.name[:-1]}1")
    other.write_bytes(b"half of another")
    remove = Store.remove_stale_upload
    failures = [failure]

    def fail_once(store, stale):
        if failures:
            raise failures.pop()
        return remove(store, stale)

    monkeypatch.setattr(Store, "remove_stale_upload", fail_once)
    with pytest.raises(type(failure)):
        run(sweep_cleanup, EVERYTHING)
    assert [abandoned.exists(), other.exists()].count(True) == 1


@pytest.fixture
def broker(valkey, monkeypatch) -> Iterator[str]:
    """Return the URL of an empty broker, where the sweep looks for jobs that wait."""
    valkey.empty()
    with Celery(broker=valkey.url, set_as_current=False) as app:
        monkeypatch.setattr("worker.artifacts.cleanup.unneeded_sources.current_app", app)
        yield valkey.url


@pytest.mark.usefixtures("broker")
def test_a_staged_source_goes_unless_a_job_will_ask_for_it(run, context):
    """A staged file that no open job names is removed; one that a job names stays."""
    for name in ("forgotten", "wanted"):
        (context.settings.staging_dir / name).mkdir()
        (context.settings.staging_dir / name / "app.tgz").write_bytes(b"x")
        os.utime(context.settings.staging_dir / name, (0, 0))
    assert run(sweep_cleanup, EVERYTHING, context=aged(context, timedelta(hours=1))).staged == 0, "their files are new"
    request = {"source": str(context.settings.staging_dir / "wanted" / "app.tgz")}
    context.catalogue.ledger.acquire(
        "open", "upload", request, owner="w", writes_to=None, parent=None, now=clock.now(), lease=timedelta(seconds=30)
    )
    assert run(sweep_cleanup, EVERYTHING).staged == 1
    assert [path.name for path in context.settings.staging_dir.iterdir()] == ["wanted"]


def test_what_is_staged_for_a_job_that_no_worker_has_taken_stays(run, context, broker, monkeypatch):
    """However long a job waits, its bytes and the state of its upload stay until a worker has taken and ended it."""
    staging = context.settings.staging_dir
    for job in ("waits", "open", "ended"):
        (staging / job).mkdir()
        (staging / job / "source").write_bytes(b"x")
        (staging / f"{job}.upload").write_bytes(b"{}")
    with ArtifactClient(broker) as client:
        client.submit(
            UPLOAD, UploadRequest(bucket="b", key="k", source=str(staging / "waits" / "source")), job_id="waits"
        )
    request = {"source": str(staging / "open" / "source")}
    context.catalogue.ledger.acquire(
        "open", "upload", request, owner="w", writes_to=None, parent=None, now=clock.now(), lease=timedelta(seconds=30)
    )
    with monkeypatch.context() as patch:
        patch.setattr(Outbox, "lost", lambda *_: Redis(port=1).ping())
        assert run(sweep_cleanup, EVERYTHING).staged == 0, "without an answer of the broker, all may wait"
    assert run(sweep_cleanup, EVERYTHING).staged == 2
    assert sorted(path.name for path in staging.iterdir()) == ["open", "open.upload", "waits", "waits.upload"]

    sources = Ledger.sources_of_open_jobs

    def taken_meanwhile(ledger: Ledger) -> set[str]:
        found = sources(ledger)
        with Redis.from_url(broker) as redis:
            redis.hdel(MESSAGES, "waits")
        return found

    monkeypatch.setattr(Ledger, "sources_of_open_jobs", taken_meanwhile)
    assert run(sweep_cleanup, EVERYTHING).staged == 0, "a job leaves the outbox after it is in the ledger"


@pytest.fixture
def cloud(context: Context, ministack):
    """The same context with an S3 store, whose uploads in parts can be left open."""
    config = s3_config(ministack)
    make_s3_bucket(ministack, config.bucket)
    stores = Stores({"cloud": config})
    yield dataclasses.replace(context, stores=stores)
    for unfinished in stores["cloud"].iter_stale_uploads():
        stores["cloud"].remove_stale_upload(unfinished)
    stores.close()


def away(*_of: Any, **_how: Any) -> Any:
    """Be a store that does not answer now."""
    raise Unavailable("it is restarted")


@pytest.mark.parametrize("setting", ["report", "abort"])
def test_an_upload_of_another_program_is_only_reported(run, cloud, ministack, caplog, setting):
    """A multipart upload that is not recorded as ours is logged and stays, unless a setting says that it goes."""
    caplog.set_level("INFO")
    real = cloud.stores["cloud"]._driver._config.bucket
    s3_client(ministack).create_multipart_upload(Bucket=real, Key="releases/theirs")
    sweep = SweepSettings(cleanup=CleanupSweepSettings(age=timedelta(0), foreign_uploads=setting))
    context = dataclasses.replace(cloud, settings=cloud.settings.model_copy(update={"sweep": sweep}))

    result = run(sweep_cleanup, EVERYTHING, context=context)

    assert result.removed == {"cloud": 1 if setting == "abort" else 0}
    assert result.foreign == ({} if setting == "abort" else {"cloud": 1})
    assert "releases/theirs" in caplog.text
    assert len(list(cloud.stores["cloud"].iter_stale_uploads())) == (0 if setting == "abort" else 1)


def begin_and_die(cloud: Context, key: str = "app.tgz"):
    """Begin a large upload whose process dies before it records the answer of the store."""

    class Dead(BaseException):
        """Passes every handler, as a kill does."""

    digest = Digest(11 << 20, "a" * 64)
    artifact = cloud.catalogue.artifacts.record("releases", key, digest, {}, clock.now()).artifact
    checkpoint = CopyCheckpoint(cloud.catalogue, artifact, "cloud")

    def die(*_args, **_kwargs):
        raise Dead

    info = {"size": digest.size, "sha256": digest.sha256}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CopyCheckpoint, "begun", die)
        with pytest.raises(Dead):
            cloud.stores["cloud"].write_object("releases", key, io.BytesIO(), **info, checkpoint=checkpoint)


@pytest.mark.parametrize("theirs", ["none", "before", "with a part", "without a part", "another key"])
def test_an_upload_that_was_begun_and_never_recorded_goes_unless_it_may_be_anothers(
    run, cloud, ministack, monkeypatch, theirs
):
    """Its process was killed before it had recorded the answer: cleanup aborts it only where nothing else fits."""
    client, real = s3_client(ministack), cloud.stores["cloud"]._driver._config.bucket
    key = "releases/other.tgz" if theirs == "another key" else "releases/app.tgz"

    def begin_theirs() -> str:
        return client.create_multipart_upload(Bucket=real, Key=key)["UploadId"]

    other = begin_theirs() if theirs == "before" else None
    if other:
        second = int(time.time())
        until(lambda: int(time.time()) > second)  # S3 tells the second in which an upload began
    begin_and_die(cloud)
    if theirs not in {"none", "before"}:
        other = begin_theirs()
    if theirs == "with a part":
        client.upload_part(Bucket=real, Key=key, UploadId=other, PartNumber=1, Body=b"x")

    early = run(sweep_cleanup, EVERYTHING, context=cloud)
    assert early.removed == {"cloud": 0}  # the answer may still be on its way
    now = clock.now() + timedelta(hours=1)
    monkeypatch.setattr(clock, "now", lambda: now)
    if theirs == "none":  # the intent counts until the store has answered
        with monkeypatch.context() as patch:
            patch.setattr(Store, "is_unused_upload", away)
            with pytest.raises(Unavailable):
                run(sweep_cleanup, EVERYTHING, context=cloud)
    result = run(sweep_cleanup, EVERYTHING, context=cloud)

    left = [stale.token[-1] for stale in cloud.stores["cloud"].iter_stale_uploads()]
    if theirs == "without a part":
        assert (result.removed, result.foreign, len(left)) == ({"cloud": 0}, {"cloud": 2}, 2)
    else:
        assert (result.removed, left) == ({"cloud": 1}, [other] if other else [])
    assert cloud.catalogue.transfers.intents("cloud") == []


@pytest.mark.parametrize(("lost", "open_"), [(2, 0), (4, 0), (1, 1)])
def test_uploads_whose_answers_were_lost_go_although_the_sdk_asked_again(
    run, cloud, ministack, monkeypatch, lost, open_
):
    """The SDK repeats the request by itself and knows the last upload only; cleanup aborts the earlier ones too.

    Where the last one was recorded and is open, because its process was killed, it fits no intent of an earlier one.
    """
    config = cloud.stores["cloud"]._driver._config
    faults = [Lose()] * lost
    with FaultyProxy(
        ministack.port, lambda asked: faults.pop() if "?uploads" in asked.path and faults else None
    ) as line:
        stores = Stores({"cloud": config.model_copy(update={"endpoint": line.endpoint})})
        content = bytes(11 << 20)
        digest = Digest(len(content), sha256(content).hexdigest())
        artifact = cloud.catalogue.artifacts.record("releases", "app.tgz", digest, {}, clock.now()).artifact
        checkpoint = CopyCheckpoint(cloud.catalogue, artifact, "cloud")
        sent = {"size": digest.size, "sha256": digest.sha256, "checkpoint": checkpoint}
        if open_:
            monkeypatch.setattr(stores["cloud"]._driver, "upload_part", away)
        with suppress(Unavailable):
            stores["cloud"].write_object("releases", "app.tgz", io.BytesIO(content), **sent)
        stores.close()
    assert faults == []
    assert len(list(cloud.stores["cloud"].iter_stale_uploads())) == lost + open_
    now = clock.now() + timedelta(hours=1)
    monkeypatch.setattr(clock, "now", lambda: now)
    result = run(sweep_cleanup, EVERYTHING, context=cloud)
    assert (result.removed, result.foreign) == ({"cloud": lost + open_}, {})
    assert cloud.catalogue.transfers.intents("cloud") == []


def begin_to_write(context: Context, content: bytes, job: str) -> Artifact:
    """Record a version as an upload to `dr` does, and write its copy, which is not recorded."""
    _, digest = context.stores["dr"].write_object("releases", "app.tgz", io.BytesIO(content))
    recorded = context.catalogue.artifacts.record(
        "releases", "app.tgz", digest, {}, clock.now(), stores=["primary", "dr"], job=job
    )
    return recorded.artifact


def supersede(context: Context, store: str) -> None:
    """Upload another version to one store."""
    written, digest = context.stores[store].write_object("releases", "app.tgz", io.BytesIO(b"newer"))
    newer = context.catalogue.artifacts.record("releases", "app.tgz", digest, {}, clock.now(), stores=[store])
    context.catalogue.artifacts.finish_copy(newer.artifact, store, tag=written.version, evidence={}, now=clock.now())


@pytest.mark.parametrize("superseded", [True, False])
def test_what_a_job_wrote_and_did_not_record_before_it_ended_is_quarantined(run, context, stored, superseded):
    """An upload was killed, and then cancelled or superseded by an upload to other stores: its bytes are no orphan."""
    begun = begin_to_write(context, b"older", "ended")
    if superseded:
        supersede(context, "primary")
    result = run(sweep_cleanup, EVERYTHING)
    assert result.removed == {"primary": 0, "dr": 1, "cold": 0}
    assert not stored("dr").exists()
    assert [each.size for each in context.stores["dr"].list_objects(QUARANTINE_BUCKET)] == [5]
    assert {copy.state for copy in context.catalogue.artifacts.copies(begun).values()} <= {"deleted", "superseded"}
    assert not superseded or stored("primary").read_bytes() == b"newer"
    assert run(sweep_cleanup, EVERYTHING).removed == dict.fromkeys(("primary", "dr", "cold"), 0)


@pytest.mark.parametrize(
    ("state", "batch", "item"),
    [("running", None, None), ("dead", None, None), ("succeeded", "running", None), ("succeeded", "failed", "dead")],
)
def test_what_a_job_may_go_on_with_stays(run, context, stored, state, batch, item):
    """So it is of a job that is open or dead, of an open batch, and of an item that left the page of an ended one."""
    long = "b" * 120  # the jobs of such a batch have the stem of another id
    states = {"writer": (state, long, None), long: (batch, None, None), "item": (item, long, "releases/app.tgz")}
    for id_, (end, parent, holds) in states.items():
        if end is not None:
            context.catalogue.ledger.acquire(
                id_, "upload", {}, owner="w", writes_to=holds, parent=parent, now=clock.now(), lease=timedelta(0)
            )
            with context.catalogue._database.write() as connection:
                connection.execute(sa.update(jobs).where(jobs.c.id == id_).values(state=end))
    begin_to_write(context, b"older", "writer")
    assert run(sweep_cleanup, EVERYTHING).removed == dict.fromkeys(("primary", "dr", "cold"), 0)
    assert stored("dr").read_bytes() == b"older"


def test_what_replaces_the_bytes_of_an_ended_job_stays(run, context, stored, monkeypatch):
    """The cleanup deletes exactly the object whose bytes it has read."""
    begin_to_write(context, b"older", "ended")
    quarantine = LimitedStore.quarantine_object

    def late(store: LimitedStore, *of: Any) -> str:
        kept = quarantine(store, *of)
        stored("dr").write_bytes(b"of another program")
        return kept

    monkeypatch.setattr(LimitedStore, "quarantine_object", late)
    with suppress(PreconditionFailed):
        run(sweep_cleanup, EVERYTHING)
    assert stored("dr").read_bytes() == b"of another program"


def test_what_was_recorded_since_the_catalogue_was_asked_stays(run, context, stored, monkeypatch):
    """A copy that another worker has recorded since is a copy of the record, and no remains of a job."""
    begun, artifacts = begin_to_write(context, b"older", "ended"), context.catalogue.artifacts
    abandoned = Artifacts.abandoned

    def recorded_meanwhile(of: Artifacts, store: str, **when: Any) -> list[tuple[Artifact, str | None]]:
        found = list(abandoned(of, store, **when))
        for artifact, _ in found if store == "dr" else []:
            artifacts.finish_copy(artifact, "dr", tag="1", evidence={}, now=clock.now())
        return found

    monkeypatch.setattr(Artifacts, "abandoned", recorded_meanwhile)
    assert run(sweep_cleanup, EVERYTHING).removed == dict.fromkeys(("primary", "dr", "cold"), 0)
    assert (stored("dr").read_bytes(), artifacts.copies(begun)["dr"].state) == (b"older", "stored")


@pytest.mark.parametrize("failure", [Unavailable("dr: EIO"), Archived("dr: it is in the archive")])
def test_what_an_ended_job_wrote_stays_while_it_cannot_be_read(run, context, stored, monkeypatch, failure):
    """It may have the bytes of the version: the sweep fails at its end, unless only a restore could tell."""
    begun = begin_to_write(context, b"older", "ended")
    unread = Verification(Verdict.UNREADABLE, error=failure)
    monkeypatch.setattr(Store, "verify_object", lambda *_of, **_how: unread)
    with pytest.raises(Unavailable) if isinstance(failure, Unavailable) else nullcontext():
        run(sweep_cleanup, EVERYTHING)
    assert (stored("dr").read_bytes(), context.catalogue.artifacts.copies(begun)["dr"].state) == (b"older", "writing")


def test_what_an_ended_job_wrote_of_the_current_version_stays(run, context, stored):
    """It is a copy that the replicate sweep completes: a read shows that its bytes are right."""
    begun = begin_to_write(context, b"older", "ended")
    context.catalogue.artifacts.finish_copy(begun, "primary", tag="1", evidence={}, now=clock.now())
    assert run(sweep_cleanup, EVERYTHING).removed == dict.fromkeys(("primary", "dr", "cold"), 0)
    assert (stored("dr").read_bytes(), context.catalogue.artifacts.copies(begun)["dr"].state) == (b"older", "writing")


def test_a_cleanup_that_was_frozen_deletes_nothing_that_another_job_has_found(run, context, stored, monkeypatch):
    """Another upload of the same bytes finds them while the cleanup is frozen, and they are its copy then."""
    begin_to_write(context, b"older", "ended")
    quarantine, uptime, lease = LimitedStore.quarantine_object, clock.uptime, context.settings.jobs.lease

    def thaw(store: LimitedStore, *of: Any) -> str:
        kept = quarantine(store, *of)
        with context.catalogue._database.write() as connection:
            connection.execute(sa.update(jobs).values(lease_until=clock.now() - lease))
        context.catalogue.ledger.acquire(
            "newer", "upload", {}, owner="w", writes_to="releases/app.tgz", parent=None, now=clock.now(), lease=lease
        )
        monkeypatch.setattr(clock, "uptime", lambda: uptime() + 2 * lease.total_seconds())
        return kept

    monkeypatch.setattr(LimitedStore, "quarantine_object", thaw)
    with pytest.raises(LostLease):
        run(sweep_cleanup, EVERYTHING)
    assert stored("dr").read_bytes() == b"older"


@pytest.mark.parametrize("answered", [True, False])
@pytest.mark.parametrize(
    ("of_page", "name"), [(False, "write_object"), (True, "write_objects"), (True, "write_object")]
)
def test_what_a_frozen_worker_wrote_after_its_artifact_was_deleted_goes(
    run, context, stored, source, source_root, monkeypatch, of_page, name, answered
):
    """It was frozen in the request: another worker ended its job, and the artifact was deleted, before it wrote.

    It goes also where the answer of the store is lost, so that the write ends in an error.
    """
    uptime, lease = clock.uptime, context.settings.jobs.lease
    if of_page and name == "write_object":
        driver = context.stores["dr"]._driver
        monkeypatch.setattr(driver, "capabilities", replace(driver.capabilities, groups=0))
    write, path = getattr(Store, name), source(b"release")

    def frozen(store: Store, *of: Any, **options: Any) -> Any:
        monkeypatch.setattr(Store, name, write)
        end_and_delete(context, "dr", "releases", "app.tgz")
        made = write(store, *of, **options)
        monkeypatch.setattr(clock, "uptime", lambda: uptime() + 2 * lease.total_seconds())
        if answered:
            return made
        if name == "write_objects":
            return [Timeout("dr: no answer")]
        raise Timeout("dr: no answer")

    monkeypatch.setattr(Store, name, frozen)
    request: Any = UploadRequest(source=path, bucket="releases", key="app.tgz", stores=("dr",))
    if of_page:
        files = list(DirectoryListing(source_root, "releases", "").files())
        request = request_for(context, files, source_root).model_copy(update={"stores": ("dr",)})
    with pytest.raises(LostLease):
        run(page if of_page else upload, request)
    assert stored("dr").read_bytes() == b"release"
    assert run(sweep_cleanup, EVERYTHING).removed == {"primary": 0, "dr": 1, "cold": 0}
    assert not stored("dr").exists()
    assert list(context.stores["dr"].list_objects(QUARANTINE_BUCKET)) == []
    assert run(sweep_cleanup, EVERYTHING).removed == dict.fromkeys(("primary", "dr", "cold"), 0)


def test_what_an_ended_job_wrote_stays_while_the_delete_can_be_undone(run, context, stored):
    """The purge removes it, after the grace period."""
    begun, now = begin_to_write(context, b"older", "ended"), clock.now()
    context.catalogue.deletions.begin(begun, now=now, until=now + timedelta(days=7), by=None, reason=None, job="delete")
    assert run(sweep_cleanup, EVERYTHING).removed == dict.fromkeys(("primary", "dr", "cold"), 0)
    assert stored("dr").read_bytes() == b"older"


def test_an_object_with_other_bytes_than_those_of_the_ended_job_stays(run, context, stored):
    """Another program has written to the key since: nothing of it is touched, and the listing shows it as an orphan."""
    begun = begin_to_write(context, b"older", "ended")
    stored("dr").write_bytes(b"another program's")
    assert run(sweep_cleanup, EVERYTHING).removed == dict.fromkeys(("primary", "dr", "cold"), 0)
    assert stored("dr").read_bytes() == b"another program's"
    assert context.catalogue.artifacts.copies(begun)["dr"].state == "deleted"


def test_a_copy_that_an_ended_job_may_have_written_over_stays_and_is_read_again(run, context, stored):
    """An upload was cancelled, before or after it had replaced the copy of the current version: a read tells which."""
    supersede(context, "dr")
    artifacts = context.catalogue.artifacts
    begun = artifacts.record(
        "releases", "app.tgz", Digest(5, sha256(b"older").hexdigest()), {}, clock.now(), stores=["dr"]
    ).artifact
    before = clock.now()
    assert run(sweep_cleanup, EVERYTHING).removed == dict.fromkeys(("primary", "dr", "cold"), 0)
    assert stored("dr").read_bytes() == b"newer"
    assert artifacts.copies(begun)["dr"].state == "deleted"
    held = artifacts.version_in_store("dr", "releases", "app.tgz")
    assert held is not None
    assert held[1].next_due_at is not None
    assert held[1].next_due_at >= before


@pytest.mark.parametrize("live", [True, False])
def test_an_open_upload_stays_only_for_a_job_that_goes_on_with_it(run, cloud, monkeypatch, live):
    """An upload in parts is aborted and then forgotten, unless it is young or an open job will continue with it."""
    digest = Digest(11, "a" * 64)
    artifact = cloud.catalogue.artifacts.record("releases", "app.tgz", digest, {}, clock.now()).artifact
    driver = cloud.stores["cloud"]._driver
    token = driver.begin_upload("releases", "app.tgz", WriteInfo(digest.size, digest.sha256))
    cloud.catalogue.transfers.begin(artifact, "cloud", token=token, part_size=5, now=clock.now())
    cloud.catalogue.transfers.add(artifact, "cloud", SentPart(Part(1, 5, "tag"), "b" * 64))
    if live:
        cloud.catalogue.ledger.acquire(
            "open", "upload", {}, owner="w", writes_to=artifact.path, parent=None, now=clock.now(), lease=timedelta(0)
        )

    assert run(sweep_cleanup, EVERYTHING, context=aged(cloud, timedelta(hours=1))).removed == {"cloud": 0}
    if not live:  # without its record it would be another program's
        with monkeypatch.context() as patch:
            patch.setattr(Store, "remove_stale_upload", away)
            with pytest.raises(Unavailable):
                run(sweep_cleanup, EVERYTHING, context=cloud)
    result = run(sweep_cleanup, EVERYTHING, context=cloud)

    assert (result.removed, result.foreign) == ({"cloud": 0 if live else 1}, {})
    assert len(list(cloud.stores["cloud"].iter_stale_uploads())) == int(live)
    assert (cloud.catalogue.transfers.find(artifact, "cloud") is not None) == live


def test_what_a_killed_command_left_in_the_spool_directory_goes(run, context):
    """Files and directories of commands that were killed expire; what is young, and what a link names, stays."""
    settings = context.settings
    (settings.spool_dir / "get-1").mkdir()
    (settings.spool_dir / "get-1" / "object").write_bytes(b"half of a release")
    (settings.spool_dir / "zot-spool-1").write_bytes(b"half of a part")
    (settings.spool_dir / "link").symlink_to(settings.run_dir)
    young = aged(context, timedelta(hours=1))
    run(sweep_cleanup, EVERYTHING, context=young)
    assert len(list(settings.spool_dir.iterdir())) == 3
    assert run(sweep_cleanup, EVERYTHING).staged == 3
    assert list(settings.spool_dir.iterdir()) == []
    assert settings.run_dir.is_dir()


@pytest.mark.usefixtures("broker")
def test_a_part_that_is_sent_again_while_its_upload_is_removed_stays(run, cloud, monkeypatch):
    """A sweep that was frozen after it had listed the parts deletes none that a client has sent since."""
    store, part = cloud.stores["cloud"], "4f7f0d6c-0a9f-4a52-9d43-2a1f7a9b6f01/00001"
    store.write_object(UPLOADS_BUCKET, part, io.BytesIO(b"older"))
    sources, sent = Ledger.sources_of_open_jobs, [b"newer!"]

    def thaw(ledger):
        if sent:
            store.write_object(UPLOADS_BUCKET, part, io.BytesIO(sent.pop()))
        return sources(ledger)

    monkeypatch.setattr(Ledger, "sources_of_open_jobs", thaw)
    monkeypatch.setattr(clock, "earliest", lambda: clock.now() + timedelta(hours=1))  # the server's seconds are whole
    result = run(sweep_cleanup, EVERYTHING, context=cloud)
    assert result.removed == {"cloud": 1}
    assert store.stat_object(UPLOADS_BUCKET, part).size == 6
