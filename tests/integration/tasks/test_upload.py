"""The task `upload`: versions, copies, retries and errors."""

import dataclasses
import hashlib
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tasks.delete import delete
from tasks.upload import upload
from tasks.verify import verify
from tests.conformance.targets import s3_client, s3_config
from tests.integration.tasks.conftest import NullReporter, pause
from tests.servers.proxy import FaultyProxy, Say
from worker import clock
from worker.artifacts.artifact_copies import ArtifactJob
from worker.artifacts.sources import SourceRefused
from worker.catalogue import LostLease, VerdictRow
from worker.context import Context
from worker.jobs.running_job import Cancelled, RunningJob
from worker.limits.limited_store import LimitedStore
from worker.limits.snooze import Snooze
from worker.settings.section_models import SourceSettings
from worker.storage import Digest, Stores, Verdict
from worker.storage.config import AzureConfig, GcsConfig, S3Config
from worker.storage.configured_stores import UnknownStore
from worker.storage.errors import (
    Conflict,
    DigestMismatch,
    InvalidKey,
    NotFound,
    PermanentError,
    SizeMismatch,
    TransientError,
    Unavailable,
)
from zot_artifact_client.contract import DeleteRequest, UploadRequest, VerifyRequest


@pytest.fixture
def catalogue(catalogue_url):
    """Run everything here on both kinds of catalogue."""
    return catalogue_url


def request(source, key="app.tgz", **more):
    return UploadRequest(bucket="releases", key=key, source=source, **more)


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def test_an_upload_is_in_every_placed_store_with_its_digest_beside_it(run, source, stored):
    """After an upload each placed store has the bytes and their SHA-256, and no other store has them."""
    result = run(upload, request(source(b"release one")))

    assert (result.version, result.sha256, result.unchanged) == (1, sha256(b"release one"), False)
    for store in ("primary", "dr"):
        assert stored(store).read_bytes() == b"release one"
        assert stored(store, "app.tgz.sha256").read_text().strip() == sha256(b"release one")
    assert not stored("cold").exists()


def test_the_same_bytes_again_change_nothing_and_say_so(run, source, stored):
    """The same upload again writes nothing, makes no version, and says that it was unchanged."""
    run(upload, request(source(b"release one")))
    inode = stored("primary").stat().st_ino

    again = run(upload, request(source(b"release one")))

    assert (again.version, again.unchanged) == (1, True)
    assert {copy.outcome for copy in again.copies} == {"already_there"}
    assert stored("primary").stat().st_ino == inode


def test_other_bytes_make_a_new_version_and_the_old_digest_stays(run, source, stored, context: Context):
    """Other bytes under a key are a new version; the record of the old one is what it was."""
    run(upload, request(source(b"release one")))
    second = run(upload, request(source(b"release two")))

    assert second.version == 2
    assert stored("dr").read_bytes() == b"release two"
    first = context.catalogue.artifacts.version("releases", "app.tgz", 1)
    assert first is not None
    assert first.digest.sha256 == sha256(b"release one")
    assert {copy.state for copy in context.catalogue.artifacts.copies(first).values()} == {"superseded"}


def test_a_lost_copy_is_written_again_by_the_same_upload(run, source, stored):
    """Uploading the same bytes again brings back a copy that has gone from its store."""
    run(upload, request(source(b"release one")))
    stored("dr").unlink()

    again = run(upload, request(source(b"release one")))

    assert stored("dr").read_bytes() == b"release one"
    assert not again.unchanged


def test_a_wrong_expected_digest_writes_nothing(run, source, stored, context: Context):
    """An upload that announces another digest fails, naming both, and leaves nothing anywhere."""
    with pytest.raises(DigestMismatch, match=sha256(b"release one")):
        run(upload, request(source(b"release one"), sha256="0" * 64))

    assert not stored("primary").exists()
    assert context.catalogue.artifacts.current("releases", "app.tgz") is None


@pytest.mark.parametrize(
    "name,says",
    [("/etc/passwd", "sources.roots"), ("app.tgz", "absolute"), ("ftp://host/app.tgz", "http")],
)
def test_a_source_outside_the_roots_is_refused(run, name, says):
    """A source that the settings do not allow is refused with the setting that would allow it."""
    with pytest.raises(SourceRefused, match=says):
        run(upload, request(name))


def test_a_link_out_of_the_roots_is_refused(run, source_root):
    """A symbolic link in a root does not let anything outside it in."""
    (source_root / "link").symlink_to("/etc/passwd")
    with pytest.raises(SourceRefused):
        run(upload, request(str(source_root / "link")))


def test_a_fifo_is_refused_and_blocks_no_job(run, source_root):
    """Something that is no regular file is refused at once."""
    os.mkfifo(source_root / "pipe")
    with pytest.raises(SourceRefused, match="regular"):
        run(upload, request(str(source_root / "pipe")))


def test_what_cannot_be_stored_is_refused_before_anything_is_read(run, source_root):
    """A bad key, a reserved bucket and an unknown store are refused even if the source does not exist."""
    absent = str(source_root / "absent")
    with pytest.raises(InvalidKey, match=r"'\.\.'"):
        run(upload, request(absent, key="../etc"))
    with pytest.raises(InvalidKey, match="reserved"):
        run(upload, UploadRequest(bucket="zot-quarantine", key="a", source=absent))
    with pytest.raises(UnknownStore, match="did you mean 'primary'.* older settings has to be restarted$"):
        run(upload, request(absent, stores=("primray",)))
    with pytest.raises(NotFound, match="absent"):
        run(upload, request(absent))


def test_a_store_that_is_newer_than_the_worker_is_waited_for(run, context, source, tmp_path, monkeypatch):
    """The job goes on once the worker is restarted, or another one takes it; a misspelt name fails at once."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"stores": {"new": {"type": "filesystem", "root": str(tmp_path / "new")}}}))
    monkeypatch.setenv("ZOT_CONFIG", str(config))
    content = source(b"release one")
    run(upload, request(content))
    context.catalogue.artifacts.ensure_copy(context.catalogue.artifacts.current("releases", "app.tgz"), "new")
    of_copy = DeleteRequest(bucket="releases", key="app.tgz", stores=("new",))
    only = context.catalogue.artifacts.record("releases", "only", Digest(1, "a" * 64), {}, clock.now(), stores=["new"])
    context.catalogue.artifacts.finish_copy(only.artifact, "new", tag="1", evidence={}, now=clock.now())
    everywhere = DeleteRequest(bucket="releases", key="only", now=True)
    misspelt_first = of_copy.model_copy(update={"stores": ("newer", "new")})
    for task, asked in (
        (upload, request(content, stores=("new",))),
        *((delete, each) for each in (of_copy, misspelt_first, everywhere)),
    ):
        with pytest.raises(Snooze, match="has older settings, without the store 'new': restart it") as waits:
            run(task, asked)
        assert waits.value.store == "new", "status tells for which store jobs wait"
    with pytest.raises(UnknownStore, match="no store is named 'newer'"):
        run(upload, request(content, stores=("newer",)))
    settings = {"stores": {"new": {"type": "s3"}}, "of_a_newer_version": 1}  # its other parts are in the environment
    config.write_text(json.dumps(settings))
    with pytest.raises(Snooze, match="has older settings, without the store 'new': restart it"):
        run(upload, request(content, stores=("new",)))
    config.write_text(json.dumps(settings)[:-5])  # it is being edited
    with pytest.raises(Snooze, match=r"no store is named 'newer'.*/config.json line 1: not valid YAML") as waits:
        run(upload, request(content, stores=("newer",)))
    assert waits.value.store == "newer"


def test_a_store_that_is_down_does_not_keep_the_others_from_their_copies(run, source, stored, settings):
    """With one store gone the other has its copy, and the failure is one that may pass."""
    settings.stores["dr"].root.rmdir()

    with pytest.raises(Unavailable, match="dr"):
        run(upload, request(source(b"release one")))
    assert stored("primary").read_bytes() == b"release one"

    settings.stores["dr"].root.mkdir()
    result = run(upload, request(source(b"release one")))
    assert [(copy.store, copy.outcome) for copy in result.copies] == [("primary", "already_there"), ("dr", "stored")]
    assert result.version == 1


def test_unrecorded_bytes_are_kept_before_they_are_replaced(run, source, stored):
    """Foreign bytes under the key go into quarantine; the upload then takes their place."""
    stored("primary").parent.mkdir(parents=True)
    stored("primary").write_bytes(b"another program's only copy")

    result = run(upload, request(source(b"release one")))

    primary = next(copy for copy in result.copies if copy.store == "primary")
    bucket, _, key = primary.quarantined.partition("/")
    assert stored("primary", key, bucket).read_bytes() == b"another program's only copy"
    assert stored("primary").read_bytes() == b"release one"


@pytest.mark.parametrize("rotten", [False, True])
def test_bytes_that_are_not_those_of_the_version_before_are_kept(run, source, stored, rotten):
    """A new version replaces only what is known of the one before: what else is there may be the only copy."""
    run(upload, request(source(b"release one")))
    before = stored("primary").stat()
    stored("primary").write_bytes(b"release 0ne")
    if rotten:  # the disk tells no change, and a read has found it
        os.utime(stored("primary"), ns=(before.st_atime_ns, before.st_mtime_ns))
        run(verify, VerifyRequest(bucket="releases", key="app.tgz"))

    kept = {copy.store: copy.quarantined for copy in run(upload, request(source(b"release two"))).copies}

    bucket, _, key = kept["primary"].partition("/")
    assert (stored("primary", key, bucket).read_bytes(), kept["dr"]) == (b"release 0ne", None)


def test_a_copy_that_a_killed_job_had_finished_is_found_and_kept(run, source, stored, context: Context):
    """Bytes that are there already, though not recorded, are read and adopted, not written again."""
    run(upload, request(source(b"release one")))
    artifact = context.catalogue.artifacts.current("releases", "app.tgz")
    for copy in context.catalogue.artifacts.copies(artifact).values():
        context.catalogue.artifacts.delete_copies([copy])
    inode = stored("primary").stat().st_ino

    again = run(upload, request(source(b"release one")))

    assert again.unchanged
    assert stored("primary").stat().st_ino == inode


def test_what_is_replaced_between_its_stat_and_its_read_is_not_recorded(run, source, stored, monkeypatch):
    """The version tag and the evidence that are recorded are those of the object whose bytes were read."""
    stored("primary").parent.mkdir(parents=True)
    stored("primary").write_bytes(b"release one")
    verify_object = LimitedStore.verify_object

    def replaced(store, *of, **how):
        stored("primary").write_bytes(b"release one")
        return verify_object(store, *of, **how)

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(LimitedStore, "verify_object", replaced)
        with pytest.raises(Conflict):
            run(upload, request(source(b"release one"), stores=("primary",)))
    assert run(upload, request(source(b"release one"), stores=("primary",))).unchanged


def test_what_is_written_between_the_stat_and_the_write_stays(run, source, stored, monkeypatch):
    """A new version replaces exactly the object that was found under its key, or none."""
    run(upload, request(source(b"release one"), stores=("primary",)))
    write_object = LimitedStore.write_object

    def late(store, *of, **how):
        stored("primary").write_bytes(b"of another program")
        return write_object(store, *of, **how)

    monkeypatch.setattr(LimitedStore, "write_object", late)
    for _ in range(2):
        with pytest.raises(Conflict):
            run(upload, request(source(b"release two"), stores=("primary",)))
        assert stored("primary").read_bytes() == b"of another program"
        stored("primary").unlink()  # nothing is there at the second stat


def test_a_cancelled_upload_leaves_nothing_visible(run, source, stored, monkeypatch):
    """A job that is cancelled in the middle leaves no object and no temporary file."""
    monkeypatch.setattr("worker.jobs.running_job.REPORT_SECONDS", 0.0)
    outside = NullReporter()
    path = source(os.urandom(8 << 20))
    outside.report = lambda progress: setattr(outside, "stop", progress.bytes_done > 12 << 20)

    with pytest.raises(Cancelled):
        run(upload, request(path), outside=outside)

    assert not [path for path in stored("primary").parent.rglob("*") if path.is_file()]


class Host(BaseHTTPRequestHandler):
    """A host that serves one object, and all the ways in which one does not."""

    body = b"from a host" * 100_000

    def do_GET(self) -> None:
        if self.path == "/away":
            self.send_response(302)
            self.send_header("Location", "http://127.0.0.2:1/app.tgz")
            self.end_headers()
        elif self.path == "/busy":
            self.send_response(503)
            self.send_header("Retry-After", "17")
            self.end_headers()
        elif self.path == "/cut":
            self.send_response(200)
            self.send_header("Content-Length", str(len(self.body)))
            self.end_headers()
            self.wfile.write(self.body[:1000])
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(self.body)))
            self.end_headers()
            self.wfile.write(self.body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def host():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Host)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def with_host(context: Context, host: str) -> Context:
    sources = SourceSettings(roots=context.settings.sources.roots, hosts=(host,))
    return dataclasses.replace(context, settings=context.settings.model_copy(update={"sources": sources}))


def test_a_configured_host_can_be_uploaded_from(run, with_host, host, stored):
    """The body of a URL of a configured host becomes the artifact, and no spool file stays."""
    result = run(upload, request(f"{host}/app.tgz"), context=with_host)
    assert result.sha256 == sha256(Host.body)
    assert stored("dr").read_bytes() == Host.body
    assert not list(with_host.settings.spool_dir.iterdir())


def test_a_host_leads_only_to_configured_hosts(run, with_host, host):
    """A redirect to a host that is not configured is refused, and so is a host that is not configured itself."""
    with pytest.raises(SourceRefused, match=r"127\.0\.0\.2"):
        run(upload, request(f"{host}/away"), context=with_host)
    with pytest.raises(SourceRefused, match=r"sources\.hosts"):
        run(upload, request(f"{host}/app.tgz"))


def test_a_host_that_is_busy_or_breaks_off_may_be_asked_again(run, with_host, host, stored):
    """A throttled answer carries its delay, a body that is cut off is a transient error; nothing is stored."""
    with pytest.raises(TransientError) as busy:
        run(upload, request(f"{host}/busy"), context=with_host)
    assert busy.value.retry_after == 17
    with pytest.raises(Unavailable):
        run(upload, request(f"{host}/cut"), context=with_host)
    assert not stored("primary").exists()


def test_a_storage_class_for_a_store_that_has_none_is_refused_before_anything_is_read(run, source_root):
    """A class is refused by name where the store has none, and where the upload does not go at all."""
    absent = str(source_root / "absent")
    with pytest.raises(PermanentError, match="primary: the store has no storage classes"):
        run(upload, request(absent, storage_classes={"primary": "STANDARD_IA"}))
    with pytest.raises(UnknownStore, match="'cold', which the upload does not go to"):
        run(upload, request(absent, storage_classes={"cold": "STANDARD_IA"}))


def test_what_one_store_cannot_take_is_refused_before_another_has_written(run, context, settings, source):
    """An option of one store alone is checked before the first effect."""
    asked = {
        "azure: the store has no storage class 'Archive'": {"storage_classes": {"azure": "Archive"}},
        "amazon: the store has no storage class 'COLD'": {"storage_classes": {"amazon": "COLD"}},
        "google: the store has no storage class 'nearline'": {"storage_classes": {"google": "nearline"}},
        "amazon: the metadata takes [0-9]+ bytes, the store keeps at most 2048": {"metadata": {"note": "é" * 400}},
        "azure: metadata 'zot_writer' is not allowed": {"metadata": {"zot_writer": "7"}},
    }
    clouds = {
        "azure": AzureConfig(container="real", account_url="http://127.0.0.1:1/devstore", account_key="YQ=="),
        "amazon": S3Config(bucket="real"), "google": GcsConfig(bucket="real"),
    }  # fmt: skip
    wide = dataclasses.replace(context, stores=Stores({"primary": settings.stores["primary"], **clouds}))
    wish = {"bucket": "releases", "key": "app.tgz", "source": source(b"x"), "stores": ["primary", *clouds]}
    for error, options in asked.items():
        with pytest.raises(PermanentError, match=error):
            run(upload, UploadRequest.read(wish | options), context=wide)
    os.truncate(wish["source"], 5 * 1024**4 + 1)
    with pytest.raises(SizeMismatch, match="google: releases/app.tgz has 5497558138881 bytes, the store takes at most"):
        run(upload, UploadRequest.read(wish), context=wide)
    assert context.catalogue.artifacts.version("releases", "app.tgz", 1) is None
    wide.stores.close()


def test_a_storage_class_reaches_its_store(run, context, source, ministack):
    """An object is in the class that its upload asked for, in one request and in parts."""
    config = s3_config(ministack)
    client = s3_client(ministack)
    client.create_bucket(Bucket=config.bucket)
    cloud = dataclasses.replace(context, stores=Stores({"cloud": config}))
    for key, content in (("small", b"x"), ("large", bytes(config.part_size + 1))):
        wish = request(source(content), key, stores=("cloud",), storage_classes={"cloud": "STANDARD_IA"})
        run(upload, wish, context=cloud)
        assert client.head_object(Bucket=config.bucket, Key=f"releases/{key}")["StorageClass"] == "STANDARD_IA"
    cloud.stores.close()


@pytest.mark.parametrize("size", [1, 6 << 20])
def test_a_storage_class_that_the_store_refuses_is_told_by_name(run, context, settings, source, ministack, size):
    """Only the store knows its classes: its own copy fails with a way out, the others are there and stay."""
    config = s3_config(ministack)
    s3_client(ministack).create_bucket(Bucket=config.bucket)
    refused = Say(400, b"<Error><Code>InvalidStorageClass</Code><Message>said the store</Message></Error>")

    def fault(asked):
        classed = asked.headers.get("x-amz-storage-class") == "NOPE"
        return refused if classed else None

    with FaultyProxy(ministack.port, fault) as proxy:
        stores = {**settings.stores, "cloud": config.model_copy(update={"endpoint": proxy.endpoint})}
        wide = dataclasses.replace(context, stores=Stores(stores))
        wish = request(source(bytes(size)), stores=("primary", "cloud", "dr"), storage_classes={"cloud": "NOPE"})
        with pytest.raises(PermanentError, match="cloud: .*does not have the storage class that was asked for"):
            run(upload, wish, context=wide)
        states = {
            name: copy.state
            for name, copy in wide.catalogue.artifacts.copies(wide.catalogue.artifact("releases", "app.tgz")).items()
        }
        assert states == {"primary": "stored", "dr": "stored", "cloud": "writing"}
        assert list(wide.stores["cloud"].iter_stale_uploads()) == []
        again = wish.model_copy(update={"storage_classes": {}})
        done = run(upload, again, context=wide)
        assert {copy.store: copy.outcome for copy in done.copies} == {
            "primary": "already_there", "dr": "already_there", "cloud": "stored",
        }  # fmt: skip
        wide.stores.close()


def test_a_first_version_is_written_without_a_stat_of_its_key(run, context, source, stored, monkeypatch):
    """The store refuses to replace anything, so one request is enough; only what it refuses is inspected."""
    asked = []
    driver = context.stores["primary"]._driver
    really = driver.stat
    monkeypatch.setattr(driver, "stat", lambda *args: asked.append(args) or really(*args))
    run(upload, request(source(b"release one"), stores=("primary",)))
    assert (asked, stored("primary").read_bytes()) == ([], b"release one")
    run(upload, request(source(b"release two"), stores=("primary",)))
    assert (len(asked), stored("primary").read_bytes()) == (1, b"release two")


def test_a_copy_that_is_found_bad_during_an_upload_is_not_taken_for_good(run, context, source, monkeypatch):
    """What is known of a copy of a known version is read when its store has its turn, which may be hours later."""
    run(upload, request(source(b"release one")))
    catalogue, driver = context.catalogue, context.stores["primary"]._driver
    artifact, really = catalogue.artifacts.current("releases", "app.tgz"), driver.stat

    def stat(*args):
        copy = catalogue.artifacts.copies(artifact)["dr"]
        found = VerdictRow.of("sweep-1", artifact, copy, Verdict.CORRUPT, tag=copy.tag)
        catalogue.verifications.record(found, now=clock.now())
        return really(*args)

    monkeypatch.setattr(driver, "stat", stat)
    run(upload, request(source(b"release one")))
    assert catalogue.artifacts.copies(artifact)["dr"].state.good


def test_what_cannot_be_read_is_not_replaced(run, context, source, stored, monkeypatch):
    """Foreign bytes that cannot be read now may be anything: the upload fails with a transient error and keeps them."""
    stored("primary").parent.mkdir(parents=True)
    stored("primary").write_bytes(b"a foreign only copy!")  # as many bytes as are uploaded
    driver = context.stores["primary"]._driver
    really = driver.open

    def read_badly(bucket, *args, **kwargs):
        reader = really(bucket, *args, **kwargs)
        if bucket != "releases":  # the marker of the store
            return reader
        monkeypatch.setattr(reader, "read", lambda _size: (_ for _ in ()).throw(Unavailable("primary: the disk fails")))
        return reader

    monkeypatch.setattr(driver, "open", read_badly)
    with pytest.raises(Unavailable, match="cannot be read and is kept"):
        run(upload, request(source(b"another release now!"), stores=("primary",)))
    assert stored("primary").read_bytes() == b"a foreign only copy!"


def test_a_source_is_not_read_again_while_a_store_is_paused(run, source, context):
    """The open store has its copy, and the upload waits for the other one alone."""
    jobs: list[str] = []

    def again(wish, job):
        job.snoozed_since = clock.now() if jobs else None
        job.id = jobs[0] if jobs else job.id
        jobs.append(job.id)
        return upload(wish, job)

    pause(context, "dr")
    wish = request(source(b"release one"))
    with pytest.raises(Snooze):
        run(again, wish)
    away = Path(wish.source).rename(f"{wish.source}.away")  # the next read finds it missing
    with pytest.raises(Snooze):
        run(again, wish)
    away.rename(wish.source)
    pause(context)
    assert {copy.store: copy.outcome for copy in run(again, wish).copies} == {
        "primary": "already_there",
        "dr": "stored",
    }


@pytest.mark.parametrize("verb", ["upload", "delete"])
def test_a_job_that_was_frozen_touches_nothing_that_another_job_writes(context: Context, source, stored, verb):
    """A job whose lease was over comes to a store after another job has written there, and stops before its effect."""
    jobs, lease = context.catalogue.ledger, context.settings.jobs.lease

    def leased(id_, now):
        begun = jobs.acquire(
            id_, verb, {}, owner="test", writes_to="releases/app.tgz", parent=None, now=now, lease=lease
        )  # fmt: skip
        return RunningJob(begun.record, context, NullReporter())

    frozen = leased("frozen", clock.now() - 2 * lease)
    older = Digest(5, sha256(b"older"))
    made = context.catalogue.artifacts.record("releases", "app.tgz", older, {}, clock.now(), stores=["primary"])
    newer = leased("newer", clock.now())
    upload(request(source(b"newer"), stores=("primary",)), newer)
    context.catalogue.artifacts.finish_copies(newer.finished, now=clock.now())

    work = {
        "upload": lambda: ArtifactJob(frozen, made.artifact, None, made.copies).inspect(frozen.stores["primary"]),
        "delete": lambda: delete(DeleteRequest(bucket="releases", key="app.tgz", now=True), frozen),
    }[verb]
    with pytest.raises(LostLease):
        work()
    assert stored("primary").read_bytes() == b"newer"
