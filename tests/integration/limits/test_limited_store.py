"""A store as a job sees it: which errors count against it, when it refuses, and what a lost lease forbids."""

import hashlib
import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from typing import Any

import pytest

from tests.integration.limits.limited_stores import (
    FailingDriver,
    Job,
    UncheckedDriver,
    fail_with,
    limited,
    read,
    stat,
    write,
)
from tests.known_id_files import KnownIdFiles
from tests.memory_driver import MemoryDriver
from worker.catalogue import LostLease
from worker.jobs.running_job import Cancelled
from worker.limits.limited_store import LimitedStore, LimitedStores
from worker.limits.refusals import REFUSED
from worker.limits.snooze import Snooze, StoreRefuses
from worker.settings.section_models import StoreLimits
from worker.storage import Digest, Store, Stores
from worker.storage.config import FilesystemConfig
from worker.storage.driver import HashedBytes, ObjectProperties, SmallPut
from worker.storage.errors import (
    AccessDenied,
    Archived,
    Conflict,
    DigestMismatch,
    NotDeleted,
    NotFound,
    PermanentError,
    SameStore,
    Unavailable,
)
from worker.storage.filesystem.driver import FilesystemDriver
from worker.storage.identity import MARKER_KEY, Identity
from worker.storage.integrity.manifest import Manifest


def test_an_error_of_a_source_counts_against_the_source_and_not_the_target(shared, admission):
    """A copy whose source fails while it is written opens the breaker of the source; the error names the source."""
    ours = admission(shared, breaker={"failures": 1})
    source, target = limited(ours, "a", content=bytes(5000)), limited(ours, "b")
    with source.read_object("releases", "app") as reader:
        reader._reader._reader.read = lambda _size: (_ for _ in ()).throw(Unavailable("a: away"))
        with pytest.raises(Unavailable) as error:
            write(target, reader)
    assert error.value.store == "a"
    write(target)
    with pytest.raises(Snooze, match="a: the store keeps failing") as snooze:
        read(source)
    assert snooze.value.store == "a"


def test_no_driver_takes_an_error_of_a_source_for_its_own(shared, admission, monkeypatch):
    """A source that is gone leaves the write as that, also where the target would call an upload that is gone so."""
    source, target = limited(admission(shared), "a"), limited(admission(shared), "b")
    put = target.driver.put

    def put_in_parts(*args: Any, **options: Any) -> Any:
        try:
            return put(*args, **options)
        except NotFound as error:
            raise Unavailable("b: another writer ended the upload") from error

    monkeypatch.setattr(target.driver, "put", put_in_parts)
    with source.read_object("releases", "app") as reader:
        monkeypatch.setattr(reader._reader, "read", lambda _size: (_ for _ in ()).throw(NotFound("a: not there")))
        with pytest.raises(NotFound) as error:
            write(target, reader)
    assert error.value.store == "a"


def test_an_error_of_a_target_counts_against_the_target_and_not_the_source(shared, admission):
    """A copy whose target fails opens the breaker of the target alone."""
    ours = admission(shared, breaker={"failures": 1})
    source, target = limited(ours, "a"), limited(ours, "b")
    with source.read_object("releases", "app") as reader:
        target.driver.error = Unavailable("b: away")
        with pytest.raises(Unavailable) as error:
            write(target, reader)
    assert error.value.store == "b"
    assert read(source) == b"release"
    with pytest.raises(Snooze, match="b: the store keeps failing"):
        write(target)


OBJECT_ERRORS = [
    AccessDenied("a: not allowed"),
    PermanentError("a: the object is archived"),
    PermanentError("a: the KMS key is disabled"),
    DigestMismatch("a: other bytes"),
    NotFound("a: not there"),
    Conflict("a: another writer wrote it"),
    NotDeleted("a: it is still there"),
]


@pytest.mark.parametrize("error", OBJECT_ERRORS, ids=lambda error: type(error).__name__)
def test_what_is_wrong_with_one_object_never_counts_against_its_store(shared, admission, error):
    """Whichever verb meets it: the breaker stays closed, and the error names the store."""
    store = limited(admission(shared, breaker={"failures": 1}))
    for call in (read, write, lambda store: store.stat_object("releases", "app")):
        fail_with(store, error, call)
        assert error.store == "a"
    store.driver.error = error
    assert store.verify_object("releases", "app", Digest(7, "a" * 64)).verdict in {"unreadable", "missing"}
    store.driver.error = None
    assert read(limited(admission(shared, breaker={"failures": 1}))) == b"release"


def test_an_object_that_others_overwrite_never_counts(shared, admission):
    """An object that is replaced while it is verified is a conflict, which may pass and says nothing of its store."""
    store = limited(admission(shared, breaker={"failures": 1}), content=b"once")
    opened = store.driver.open

    def replace_and_open(*args: Any, **options: Any) -> Any:
        Store(store.driver).write_object("releases", "app", io.BytesIO(b"more"))
        return opened(*args, **options)

    store.driver.open = replace_and_open
    chunks = Manifest(4, 1, bytes(4 * 32))
    seen = store.verify_object("releases", "app", Digest(4, "a" * 64), manifest=chunks)
    assert (seen.verdict, type(seen.error)) == ("unreadable", Conflict)
    assert read(store) == b"more"


def test_a_copy_that_cannot_be_read_counts_if_that_may_pass(shared, admission):
    """A verification never raises for what it finds; a store that does not answer it fails nevertheless."""
    store = limited(admission(shared, breaker={"failures": 1}))
    store.driver.error = Unavailable("a: away")
    assert store.verify_object("releases", "app", Digest(7, "a" * 64)).verdict == "unreadable"
    with pytest.raises(Snooze, match="a: the store keeps failing"):
        read(store)


@pytest.mark.parametrize(
    "call",
    [
        read,
        write,
        lambda store: store.verify_object("releases", "app", Digest(7, "a" * 64)),
        lambda store: store.stat_object("releases", "app"),
        lambda store: store.delete_object("releases", "app"),
        lambda store: list(store.list_objects("releases")),
        lambda store: list(store.iter_stale_uploads()),
        lambda store: store.quarantine_object("releases", "app", "job"),
        lambda store: store.copy_object(store, "releases", "app", Digest(7, "a" * 64)),
    ],
    ids=["read", "write", "verify", "stat", "delete", "list", "stale", "quarantine", "copy"],
)
def test_no_method_asks_a_store_whose_breaker_is_open(shared, admission, call):
    """Whatever a job calls, it is told to wait, and nothing is sent to the store."""
    ours = admission(shared, breaker={"failures": 1})
    ours.record_failure("a")
    store = limited(ours)
    with pytest.raises(Snooze, match="a: the store keeps failing"):
        call(store)
    assert store.driver.asked == 0


def test_no_method_changes_an_object_once_the_lease_of_its_job_is_lost(shared, admission, monkeypatch):
    """Whatever a worker that was frozen calls next, its store stays as other jobs have left it.

    So it does where the worker was frozen between two requests of one copy.
    """
    job, digest = Job(), Digest(7, hashlib.sha256(b"release").hexdigest())
    store = limited(admission(shared), job=job)
    found, chunks = store.stat_object("releases", "app"), Manifest(7, 1, bytes.fromhex(digest.sha256))
    job.lost, store.driver.asked = True, 0
    for call in (
        write,
        lambda store: store.write_objects([SmallPut("releases", "new", HashedBytes.of(b"new"))]),
        lambda store: store.delete_object("releases", "app"),
        lambda store: store.quarantine_object("releases", "app", "job"),
        *(copies := (
            lambda store: store.copy_object(store, "releases", "app", digest),
            lambda store: store.patch_object(found, chunks, digest, [], lambda _: b""),
        )),
    ):  # fmt: skip
        with pytest.raises(LostLease):
            call(store)
    assert store.driver.asked == 0

    def freezes(*_: object, between: Callable[[], None], **__: object) -> None:
        job.lost = True
        between()

    for name, call in zip(("copy_object", "patch_object"), copies, strict=True):
        job.lost = False
        monkeypatch.setattr(Store, name, freezes)
        with pytest.raises(LostLease):
            call(store)


def test_no_object_is_made_once_the_lease_is_lost_while_its_source_is_read(shared, admission, tmp_path):
    """The worker was frozen in the middle of a write, of a stream, of whole objects, or of a group of them."""
    directory = Store(FilesystemDriver("primary", FilesystemConfig(root=tmp_path)))
    ours = admission(shared)
    for store, job in ((directory, Job()), (Store(MemoryDriver("primary")), Job())):

        class Freezing(io.BytesIO):
            def read(self, size: int | None = -1, /, job: Job = job) -> bytes:
                job.lost = True
                return super().read(size)

        with pytest.raises(LostLease):
            LimitedStore(store, ours, job).write_object("releases", "new", Freezing(b"release"))
        assert not store.object_exists("releases", "new")

    def freezing(job: Job) -> Iterator[SmallPut]:
        for key in ("new", "newer"):
            yield SmallPut("releases", key, HashedBytes.of(b"release"))
            job.lost = True

    with pytest.raises(LostLease):
        LimitedStore(directory, ours, job := Job()).write_objects(freezing(job))
    assert not directory.object_exists("releases", "newer")


def test_a_group_ends_where_its_store_takes_no_job_any_more(shared, admission, tmp_path, monkeypatch):
    """What was sent has its result, and nothing more is sent: other jobs have found that the store keeps failing."""
    monkeypatch.setattr("worker.limits.limited_store._ADMITTED_FOR", 0)
    ours = admission(shared, breaker={"failures": 1})
    directory = Store(FilesystemDriver("a", FilesystemConfig(root=tmp_path)))
    other = limited(ours, "a")
    other.driver.error = Unavailable("a: away")

    def failing_meanwhile() -> Iterator[SmallPut]:
        yield SmallPut("releases", "new", HashedBytes.of(b"release"))
        with suppress(Unavailable):
            stat(other)
        yield SmallPut("releases", "newer", HashedBytes.of(b"release"))

    written = LimitedStore(directory, ours, Job()).write_objects(failing_meanwhile())
    assert [each.key for each in written] == ["new"]
    assert not directory.object_exists("releases", "newer")


def test_a_store_that_refuses_tags_does_not_refuse_all(shared, admission, monkeypatch):
    """The right to read tags is optional: a job on many objects goes on without it."""
    store = LimitedStore(Store(FailingDriver("a")), admission(shared), Job(), refused_for=1.0)

    def refuse(*_: object) -> None:
        raise AccessDenied("a: no right to read tags")

    monkeypatch.setattr(Store, "tags", refuse)
    for _ in range(REFUSED):
        with pytest.raises(AccessDenied):
            store.tags("releases", "app")
    write(store)


def test_a_store_that_becomes_the_place_of_another_one_refuses_all_at_once(shared, admission, tmp_path):
    """Nothing of one object is the cause: also after it has served others, the first refusal counts."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "a").mkdir()
    configs = {name: FilesystemConfig(root=tmp_path / name) for name in ("disk", "a")}
    stores = Stores(configs, known_ids=KnownIdFiles(tmp_path, configs))
    for store in stores.values():
        store.write_object("releases", "app", io.BytesIO(b"release"))
    store = LimitedStore(stores["a"], admission(shared), Job(), refused_for=1.0)
    store.stat_object("releases", "app", as_copy=True)
    (tmp_path / "a").rename(tmp_path / "away")
    (tmp_path / "a").symlink_to(tmp_path / "disk")
    KnownIdFiles(tmp_path, configs).forget("a")  # as `stores accept` does it
    with pytest.raises(SameStore):
        store.stat_object("releases", "app", as_copy=True)
    with pytest.raises(StoreRefuses, match="a: it refuses all that a page asks: stores a and disk are one physical"):
        store.admit()


def test_a_store_that_answers_about_one_object_does_not_refuse_all(shared, admission):
    """What it says before its refusals counts, and what it says after them to a request that was sent before.

    S3 tells only those who may read that there is no object. What is said of one verb says nothing of another.
    """

    def made() -> Any:
        store = limited(admission(shared))
        store._refusals.refused_for = 1.0

        def deny(key: str) -> None:
            if key == "denied":
                raise AccessDenied("a: no")

        stat, open_ = store.driver.stat, store.driver.open
        store.driver.stat = lambda bucket, key: deny(key) or stat(bucket, key)
        store.driver.open = lambda bucket, key, *args, **options: deny(key) or open_(bucket, key, *args, **options)
        return store

    def refuse(call: Callable[[str, str], object]) -> None:
        for _ in range(REFUSED):
            with pytest.raises(AccessDenied):
                call("releases", "denied")

    for error, call, answered in (
        (NotFound, lambda store: store.stat_object("releases", "absent"), True),
        (NotFound, lambda store: store.read_object("releases", "absent"), False),
        (Archived, lambda store: fail_with(store, Archived("a: cold"), stat), True),
    ):
        store = made()
        with suppress(error):
            call(store)
        refuse(store.stat_object)
        with nullcontext() if answered else pytest.raises(StoreRefuses):
            store.admit()
    for expected in (None, Digest(7, "a" * 64)):
        store = made()
        reader = store.read_object("releases", "app", expected=expected)
        refuse(store.read_object)
        with pytest.raises(StoreRefuses, match="a: it refuses all that a page asks: no"):
            store.admit()
        with suppress(DigestMismatch):
            while reader.read(1000):
                pass
        store.admit()
    store = made()
    read(store)
    store.driver.put = lambda *_, **__: store.driver.open("releases", "denied")  # as on a disk mounted read-only
    refuse(store.read_object)
    read(store)


def test_a_store_that_refuses_its_marker_refuses_all_reads(shared, admission, tmp_path):
    """It has served some reads, and may refuse only some objects; the marker is what it has returned before."""
    store = limited(admission(shared))
    store._refusals.refused_for = 1.0
    store._store._identity = Identity(store.driver, KnownIdFiles(tmp_path, ["a"]))
    write(store)  # makes the marker
    open_, denied = store.driver.open, {"denied"}

    def open_or_deny(bucket: str, key: str, *args: Any, **options: Any) -> Any:
        if key in denied:
            raise AccessDenied("a: expired")
        return open_(bucket, key, *args, **options)

    store.driver.open = open_or_deny
    for key in ("denied", "app"):
        assert read(store) == b"release"
        denied |= {key} | ({MARKER_KEY} if key == "app" else set())
        for _ in range(REFUSED):
            with pytest.raises(AccessDenied):
                store.read_object("releases", key)
    with pytest.raises(StoreRefuses, match="a: it refuses all that a page asks: expired"):
        read(store)


def test_a_success_ends_a_row_of_failures_and_a_stat_does_not(shared, admission):
    """A store that answers stats and takes no bytes opens its breaker; one whose writes succeed again does not."""
    ours = admission(shared, breaker={"failures": 2})
    store = limited(ours)
    for _ in range(3):
        fail_with(store, Unavailable("a: away"), write)
        write(store)
    fail_with(store, Unavailable("a: away"), write)
    limited(ours).stat_object("releases", "app")
    fail_with(limited(ours), Unavailable("a: away"), write)
    with pytest.raises(Snooze):
        write(store)


def test_a_job_is_checked_once_a_second_and_again_after_a_failure(shared, admission, monkeypatch):
    """Many small objects of one job cost one round trip a second; a failure of the store ends that at once."""
    ours = admission(shared, breaker={"failures": 2})
    store, checks, check = limited(ours), [], ours.check
    monkeypatch.setattr(ours, "check", lambda name: checks.append(name) or check(name))
    monkeypatch.setattr("worker.limits.limited_store._ADMITTED_FOR", 3600.0)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: read(store), range(100)))
    assert checks == ["a"]
    fail_with(store, Unavailable("a: away"))
    read(store)
    assert checks == ["a", "a"]


def test_work_for_several_stores_begins_if_one_of_them_takes_a_job(shared, admission):
    """Only when every store turns the job away is it told so beforehand, with the soonest time."""
    ours = admission(shared, breaker={"failures": 1, "open": "60s"}, store_limits={"b": StoreLimits(concurrency=1)})
    stores = {name: limited(ours, name) for name in ("a", "b")}
    bound = LimitedStores({name: store._store for name, store in stores.items()}, ours, Job())
    ours.record_failure("a")
    assert [store.name for store in bound.admitting(["a", "b"])] == ["a", "b"]
    with limited(ours, "b", Job("other")).slot(), pytest.raises(Snooze, match="b: 1 job in") as error:
        bound.admitting(["a", "b"])
    assert error.value.seconds < 10
    assert bound.admitting([]) == []


def test_what_is_read_back_counts_against_the_bandwidth_and_is_no_progress(admission, shared, monkeypatch, tmp_path):
    """Bytes that are read back are taken from the bandwidth limit of the store; progress counts what was written.

    So are the bytes of each object of a group.
    """
    ours = admission(shared, store_limits={"a": StoreLimits(bytes_per_second=1 << 40)})
    taken: list[int] = []
    told: list[int] = []
    monkeypatch.setattr(ours, "take_bandwidth", lambda _name, count, *_rest: taken.append(count))
    store = LimitedStore(Store(UncheckedDriver("a")), ours, Job())
    properties = ObjectProperties(content_type="text/plain")
    store.write_object("releases", "app", io.BytesIO(b"release"), on_bytes=told.append, properties=properties)
    assert (sum(taken), sum(told)) == (14, 7)
    assert store.stat_object("releases", "app").properties == properties
    taken.clear()
    directory = Store(FilesystemDriver("a", FilesystemConfig(root=tmp_path)))
    LimitedStore(directory, ours, Job()).write_objects(
        [SmallPut("releases", key, HashedBytes.of(b"release")) for key in "ab"]
    )
    assert sum(taken) == 14


def test_a_job_is_stopped_while_its_write_is_read_back(admission, shared):
    """Cancelling a job ends the reading back too."""
    job = Job()

    def stop_at_the_end(_count: int) -> None:
        job.stop = True

    store = LimitedStore(Store(UncheckedDriver("a")), admission(shared), job)
    with pytest.raises(Cancelled):
        store.write_object("releases", "app", io.BytesIO(b"release"), on_bytes=stop_at_the_end)
