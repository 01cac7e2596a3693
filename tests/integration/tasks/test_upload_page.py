"""A page of an upload reads each file once, records it, and skips none after a crash."""

import dataclasses
import io
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from tasks.page import page
from tasks.pages import upload as upload_pages
from tests.conformance.bodies import some_bytes
from tests.conformance.targets import PART, make_s3_bucket, s3_config
from tests.integration.tasks.conftest import NullReporter, pause
from tests.servers import Ministack, RcloneS3
from tests.servers.proxy import FaultyProxy
from worker import clock
from worker.artifacts import batch_lists
from worker.artifacts.batch_lists import ListedFile
from worker.artifacts.directory_listing import DirectoryListing
from worker.artifacts.sources import Source
from worker.catalogue import Leased
from worker.catalogue.artifact_locks import ArtifactLocks
from worker.context import Context
from worker.jobs.running_job import Requeue, RunningJob
from worker.limits.limited_store import LimitedStore
from worker.limits.snooze import Snooze, StoreRefuses
from worker.settings.section_models import PlacementRule
from worker.storage import Digest, ObjectStat, Store, Verdict
from worker.storage.config import S3Config
from worker.storage.configured_stores import Stores
from worker.storage.driver import HashedBytes, SmallPut
from worker.storage.errors import AccessDenied, OutOfSpace, StorageError, Unavailable
from worker.storage.s3.driver import S3Driver
from zot_artifact_client.contract import LinesSelection, PageRequest, PageResult, RangeSelection

GROUP = 25
"""Files of a group here. One of the usual size, with a death at each place, takes half a minute."""
NAMES = [f"d{number % 3}/f{number:03d}" for number in range(28)]


class Killed(BaseException):
    """The process is gone."""


@pytest.fixture
def directory(source_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a directory of files that are more than one group."""
    monkeypatch.setattr(upload_pages, "GROUP", GROUP)
    for number, name in enumerate(NAMES):
        path = source_root / "dir" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"the bytes of {name}".encode() * number)
    return source_root / "dir"


def request_for(context: Context, files: list[ListedFile], root: Path) -> PageRequest:
    """Write an upload list and return the page of all its lines."""
    (root / "list").write_bytes(b"".join(file.line() for file in files))
    listed = batch_lists.check(str(root / "list"), ListedFile, context.settings, lambda: None, job="page")
    lines = LinesSelection(file=str(root / "list"), offset=0, end=(root / "list").stat().st_size, tag=listed.tag)
    return PageRequest(verb="upload", lines=lines)


@pytest.fixture
def request_(context: Context, directory: Path, source_root: Path) -> PageRequest:
    files = list(DirectoryListing(directory, "releases", "v1/").files())
    return request_for(context, files, source_root)


@pytest.fixture
def deliver(context: Context) -> Callable[[PageRequest], PageResult]:
    """Run the page as one more delivery of the same job, after the lease of the one before has run out."""
    deliveries = iter(range(10))

    def deliver(request: PageRequest, context: Context = context, job: str = "page") -> PageResult:
        ledger, lease = context.catalogue.ledger, context.settings.jobs.lease
        leased = ledger.acquire(
            job,
            "page",
            {},
            owner="test",
            writes_to=None,
            parent=None,
            now=clock.now() + 2 * next(deliveries) * lease,
            lease=lease,
        )
        assert isinstance(leased, Leased)
        with RunningJob(leased.record, context, NullReporter()) as running:
            return page(request, running)

    return deliver


def test_a_named_companion_goes_where_its_artifact_belongs(context: Context, source_root: Path, deliver):
    """As it does when it is uploaded alone; a rule for its own key does not count."""
    rules = (PlacementRule(bucket="releases", prefix="big/", stores=("cold",)),)
    context = dataclasses.replace(context, settings=context.settings.model_copy(update={"placement_rules": rules}))
    artifacts, keys = context.catalogue.artifacts, ("big/a", "sboms/a.json")
    for key in keys:
        made = artifacts.record("releases", key, Digest(1, "a" * 64), {}, clock.now(), stores=["cold"]).artifact
        artifacts.finish_copy(made, "cold", tag="1", evidence={}, now=clock.now())
    context.catalogue.companions.add("releases", "sboms/a.json", "big/a", by="ana", now=clock.now())
    for name in ("a.json", "a.json.sig", "b.json"):
        (source_root / "dir").mkdir(exist_ok=True)
        (source_root / "dir" / name).write_text(f"another {name}")
    files = list(DirectoryListing(source_root / "dir", "releases", "sboms/").files())
    deliver(request_for(context, files, source_root), context)
    found = {file.key: artifacts.copies(context.catalogue.artifact("releases", file.key)) for file in files}
    assert {key: sorted(copies) for key, copies in found.items()} == {
        "sboms/a.json": ["cold"], "sboms/a.json.sig": ["cold"], "sboms/b.json": ["dr", "primary"],
    }  # fmt: skip


def assert_all_there(context: Context) -> None:
    for name in NAMES:
        artifact = context.catalogue.artifact("releases", f"v1/{name}")
        assert artifact.version == 1
        copies = context.catalogue.artifacts.copies(artifact)
        assert {store: copy.state.good for store, copy in copies.items()} == {"primary": True, "dr": True}
        for store, copy in copies.items():
            stat = context.stores[store].stat_object("releases", f"v1/{name}")
            assert (stat.version, stat.sha256) == (copy.tag, artifact.digest.sha256)


def test_a_page_uploads_all_its_files(context: Context, request_: PageRequest, run: Callable[..., Any]) -> None:
    """Every file is a version with a copy in each store of its placement, and its locks are released."""
    result = run(page, request_)
    assert (result.objects, result.outcomes, result.failed, result.left) == (len(NAMES), {"stored": len(NAMES)}, 0, ())
    assert_all_there(context)
    again = run(page, request_)
    assert again.outcomes == {"already_there": len(NAMES)}
    assert_all_there(context)


def test_a_file_replaces_no_artifact_that_is_held(
    context: Context, request_: PageRequest, directory: Path, run: Callable[..., Any]
) -> None:
    """It leaves the page for a job of its own, which tells why; the same bytes again are no replacement."""
    run(page, request_)
    for name in NAMES[1:3]:
        context.catalogue.holds.place("releases", f"v1/{name}", by="ana", reason="case 4711", now=clock.now())
    (directory / NAMES[1]).write_bytes(b"other bytes")
    files = list(DirectoryListing(directory, "releases", "v1/").files())
    result = run(page, request_for(context, files, directory.parent))
    assert (result.left, result.outcomes) == ((f"releases/v1/{NAMES[1]}",), {"already_there": len(NAMES) - 1})
    assert_all_there(context)


def test_two_files_of_one_key_become_two_versions_in_the_order_of_the_list(
    context: Context, source_root: Path, run: Callable[..., Any]
) -> None:
    """A list may name a key twice; the later line is the later version, in the catalogue and in every store."""
    files = []
    for name in ("first", "second"):
        (source_root / name).write_text(name)
        found = (source_root / name).stat()
        files.append(ListedFile("releases", "k", str(source_root / name), found.st_size, found.st_mtime_ns))
    assert run(page, request_for(context, files, source_root)).outcomes == {"stored": 2}
    artifact = context.catalogue.artifact("releases", "k")
    assert (artifact.version, artifact.digest) == (2, HashedBytes.of(b"second").digest)
    for store in ("primary", "dr"):
        assert context.stores[store].stat_object("releases", "k").sha256 == artifact.digest.sha256


def test_a_page_whose_time_is_up_goes_on_behind_the_jobs_that_wait(
    context: Context, request_: PageRequest, deliver: Callable[..., PageResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends after a group, which is recorded, and its next delivery does the others."""
    monkeypatch.setitem(context.settings.page.__dict__, "time", timedelta())
    with pytest.raises(Requeue, match="others wait"):
        deliver(request_)
    done = context.catalogue.pages.get("page")
    assert done is not None
    assert (done.outcomes, len(done.open)) == ({"stored": GROUP}, len(NAMES) - GROUP)
    assert deliver(request_).outcomes == {"stored": len(NAMES)}
    assert_all_there(context)


@pytest.mark.parametrize("error", [OutOfSpace("full"), Unavailable("not now")], ids=["permanent", "transient"])
@pytest.mark.parametrize("beside", [None, {"build": "7"}], ids=["group", "one by one"])
def test_a_store_that_fails_keeps_no_other_from_its_copy(
    context: Context, request_: PageRequest, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch,
    error: StorageError, beside: dict[str, str] | None,
) -> None:  # fmt: skip
    """The first store does not take one file: the second has it, and the file fails by name or leaves the page."""
    write, write_one, bad = LimitedStore.write_objects, LimitedStore.write_object, f"v1/{NAMES[7]}"

    def writes(store: LimitedStore, puts: list[SmallPut]) -> list[ObjectStat | StorageError]:
        written = write(store, [put for put in puts if (store.name, put.key) != ("primary", bad)])
        return [error if (store.name, put.key) == ("primary", bad) else written.pop(0) for put in puts]

    def write_object(store: LimitedStore, bucket: str, key: str, *args: Any, **options: Any) -> Any:
        if (store.name, key) == ("primary", bad):
            raise error
        return write_one(store, bucket, key, *args, **options)

    monkeypatch.setattr(LimitedStore, "write_objects", writes)
    monkeypatch.setattr(LimitedStore, "write_object", write_object)
    result = run(page, request_.model_copy(update={"metadata": beside or {}}))
    assert result.outcomes["stored"] == len(NAMES) - 1
    assert [*result.left, *(f"releases/{each.key}" for each in result.failures)] == [f"releases/{bad}"]
    copies = context.catalogue.artifacts.copies(context.catalogue.artifact("releases", bad))
    assert {store: copy.state.value for store, copy in copies.items()} == {"primary": "writing", "dr": "stored"}


def test_a_store_that_refuses_the_first_files_takes_the_others(
    context: Context, request_: PageRequest, deliver: Callable[..., PageResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may refuse all, so that none becomes a job at once; the next attempt begins with others, and tells."""
    write, write_one, bad = Store.write_objects, Store.write_object, {f"v1/{name}" for name in sorted(NAMES)[:12]}

    def write_objects(store: Store, wanted: Iterable[SmallPut]) -> list[ObjectStat | StorageError]:
        puts = list(wanted)
        written = write(store, [put for put in puts if put.key not in bad])
        return [AccessDenied("denied") if put.key in bad else written.pop(0) for put in puts]

    def write_object(store: Store, bucket: str, key: str, *args: Any, **options: Any) -> Any:
        if key in bad:
            raise AccessDenied("denied")
        return write_one(store, bucket, key, *args, **options)

    monkeypatch.setattr(upload_pages, "GROUP", 12)
    monkeypatch.setattr(Store, "write_objects", write_objects)
    monkeypatch.setattr(Store, "write_object", write_object)
    with pytest.raises(StoreRefuses, match="denied"):
        deliver(request_)
    waiting = context.catalogue.pages.get("page")
    assert waiting is not None
    assert (len(waiting.open), waiting.left) == (len(NAMES), [])
    context.catalogue.ledger.snooze("page", 1, {}, since=clock.now(), due=clock.now())
    done = deliver(request_)
    assert (done.outcomes, {each.partition("/")[2] for each in done.left}) == ({"stored": len(NAMES) - 12}, bad)


@pytest.mark.parametrize("error", [OutOfSpace("full"), AccessDenied("expired")], ids=["full", "denied"])
def test_a_store_that_begins_to_refuse_keeps_the_rest_of_the_page_waiting(
    context: Context, request_: PageRequest, deliver: Callable[..., PageResult], monkeypatch: pytest.MonkeyPatch,
    error: StorageError,
) -> None:  # fmt: skip
    """A full disk, or a credential that expires while a page runs: no file becomes a job of its own."""
    write, served = Store.write_objects, iter(["a group", "another"])

    def begin_to_refuse(store: Store, puts: list[SmallPut]) -> list[ObjectStat | StorageError]:
        return write(store, puts) if next(served, None) else [type(error)(error.message) for _ in puts]

    def refuse(store: Store, *args: Any, **options: Any) -> Any:
        raise type(error)(error.message)

    monkeypatch.setattr(upload_pages, "GROUP", 4)
    with monkeypatch.context() as patch:
        patch.setattr(Store, "write_objects", begin_to_refuse)
        patch.setattr(Store, "write_object", refuse)
        with pytest.raises(StoreRefuses, match=error.message):
            deliver(request_.model_copy(update={"stores": ("primary",)}))
    waiting = context.catalogue.pages.get("page")
    assert waiting is not None
    assert (waiting.outcomes, waiting.left) == ({"stored": len(NAMES) - len(waiting.open)}, [])
    assert deliver(request_.model_copy(update={"stores": ("primary",)})).outcomes == {"stored": len(NAMES)}


def test_a_paused_store_keeps_only_its_own_copies_waiting(
    context: Context, request_: PageRequest, deliver: Callable[..., PageResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All files get their copies in the open store at once, are read no more while they wait, and end as stored."""
    pause(context, "dr")
    with pytest.raises(Snooze):
        deliver(request_)
    for name in NAMES:
        copies = context.catalogue.artifacts.copies(context.catalogue.artifact("releases", f"v1/{name}"))
        assert {store: copy.state.value for store, copy in copies.items()} == {"primary": "stored", "dr": "writing"}
    context.catalogue.ledger.snooze("page", 1, {}, since=clock.now(), due=clock.now())
    with monkeypatch.context() as patch:
        patch.setattr(upload_pages, "_content", None)
        with pytest.raises(Snooze):
            deliver(request_)
    pause(context)
    assert deliver(request_).outcomes == {"stored": len(NAMES)}
    assert_all_there(context)


def test_a_page_that_one_store_refuses_reads_few_of_its_files_again(
    context: Context, request_: PageRequest, deliver: Callable[..., PageResult], monkeypatch: pytest.MonkeyPatch,
    reads: list[str],
) -> None:  # fmt: skip
    """The other stores get all copies at once; a later attempt asks the store that refuses again, and no more."""
    write = Store.write_objects

    def refuse(store: Store, puts: list[SmallPut]) -> list[ObjectStat | StorageError]:
        return [OutOfSpace("full") for _ in puts] if store.name == "dr" else write(store, puts)

    def refuse_one(store: Store, *args: Any, **options: Any) -> Any:
        raise OutOfSpace("full")

    monkeypatch.setattr(upload_pages, "GROUP", 5)
    monkeypatch.setattr(upload_pages, "REFUSED", 2)
    with monkeypatch.context() as full:
        full.setattr(Store, "write_objects", refuse)
        for fence in (1, 2):
            reads.clear()
            with pytest.raises(StoreRefuses, match="dr: it refuses all that a page asks: full"):
                deliver(request_)
            context.catalogue.ledger.snooze("page", fence, {}, since=clock.now(), due=clock.now())
            full.setattr(Store, "write_object", refuse_one)  # copies that have begun are written one by one
            for name in NAMES:
                copies = context.catalogue.artifacts.copies(context.catalogue.artifact("releases", f"v1/{name}"))
                assert {store: copy.state.value for store, copy in copies.items()} == {
                    "primary": "stored", "dr": "writing",
                }  # fmt: skip
        assert len(reads) < len(NAMES)
    assert deliver(request_).outcomes == {"stored": len(NAMES)}
    assert_all_there(context)


@pytest.fixture
def five(context: Context, source_root: Path, monkeypatch: pytest.MonkeyPatch) -> PageRequest:
    """Return a page of five files in two groups."""
    monkeypatch.setattr(upload_pages, "GROUP", 3)
    (source_root / "five").mkdir()
    for number in range(5):
        (source_root / "five" / str(number)).write_text(f"the bytes of {number}")
    return request_for(context, list(DirectoryListing(source_root / "five", "releases", "").files()), source_root)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the keys of the files that pages read, as they read them."""
    keys: list[str] = []
    content = upload_pages._content

    def read(file: ListedFile, *rest: Any) -> HashedBytes:
        keys.append(file.key)
        return content(file, *rest)

    monkeypatch.setattr(upload_pages, "_content", read)
    return keys


def test_a_page_whose_time_is_up_goes_on_in_the_open_stores(context: Context, five, deliver, monkeypatch, reads):
    """Files that it did not come to get their copies while another store is paused; none is read again for it."""
    monkeypatch.setitem(context.settings.page.__dict__, "time", timedelta())
    pause(context, "dr")
    for _ in range(2):
        with pytest.raises(Snooze):
            deliver(five)
    copies = [
        context.catalogue.artifacts.copies(context.catalogue.artifact("releases", str(number))) for number in range(5)
    ]
    assert [each["primary"].state.good for each in copies] == [True] * 5
    read = len(reads)
    with pytest.raises(Snooze):
        deliver(five)
    assert len(reads) == read
    pause(context)
    monkeypatch.setitem(context.settings.page.__dict__, "time", timedelta(minutes=5))
    assert deliver(five).outcomes == {"stored": 5}


def test_a_page_of_few_threads_sends_no_more_objects_at_once(five, context, deliver, monkeypatch):
    """A store across a network gets at most as many requests as the page may have threads; sent ahead are more."""
    asked: list[str] = []
    write = LimitedStore.write_objects

    def ask(store: LimitedStore, puts: list[SmallPut]) -> list[ObjectStat | StorageError]:
        asked.append(store.name)
        return write(store, puts)

    driver = context.stores["dr"]._driver
    monkeypatch.setattr(driver, "capabilities", replace(driver.capabilities, writes_ahead=9))
    monkeypatch.setattr(LimitedStore, "write_objects", ask)
    monkeypatch.setitem(context.settings.page.__dict__, "threads", 8)
    assert deliver(five).outcomes == {"stored": 5}
    assert set(asked) == {"primary"}


def test_a_page_reads_no_more_when_all_its_stores_are_closed(five, deliver, monkeypatch, reads):
    """Its files would be read for nothing at each probe of a store that is away."""

    def write(store: LimitedStore, _: list[SmallPut]) -> list[ObjectStat | StorageError]:
        closed = Snooze("its breaker is open", 1.0)
        closed.store = store.name
        raise closed

    monkeypatch.setattr(upload_pages, "GROUP", 1)
    monkeypatch.setattr(LimitedStore, "write_objects", write)
    with pytest.raises(Snooze):
        deliver(five)
    assert len(reads) <= 2  # the second one was read ahead


def test_a_store_that_closes_while_another_one_waits_ends_no_file(context: Context, five, deliver, monkeypatch):
    """A file stays in its page until each store has its copy, whichever of them takes no job first."""
    written: list[str] = []
    write, admit = LimitedStore.write_objects, LimitedStore.admit

    def writes(store: LimitedStore, puts: list[SmallPut]) -> list[ObjectStat | StorageError]:
        result = write(store, puts)
        written.append(store.name)
        return result

    def closes_after(store: LimitedStore) -> None:
        if store.name == "dr" and written == ["dr", "dr"]:
            closed = Snooze("its breaker is open", 1.0)
            closed.store = store.name
            raise closed
        admit(store)

    pause(context, "primary")
    with monkeypatch.context() as patch:
        patch.setattr(LimitedStore, "write_objects", writes)
        patch.setattr(LimitedStore, "admit", closes_after)
        with pytest.raises(Snooze):
            deliver(five)
    pause(context)
    assert deliver(five).outcomes == {"stored": 5}
    copies = context.catalogue.artifacts.count_by_state()
    assert copies == {"primary": {"stored": 5}, "dr": {"stored": 5}}


def test_a_page_waits_for_no_store_that_has_all_its_copies(context: Context, five, deliver):
    """With placement rules, each file has stores of its own."""
    rules = tuple(PlacementRule(bucket="releases", prefix=each, stores=("cold",)) for each in "01")
    rules = (*rules, PlacementRule(bucket="releases", stores=("primary",)))
    context = dataclasses.replace(context, settings=context.settings.model_copy(update={"placement_rules": rules}))
    pause(context, "primary")
    with pytest.raises(Snooze):
        deliver(five, context)
    context.catalogue.ledger.snooze("page", 1, {}, since=clock.now(), due=clock.now())
    pause(context, "cold")
    assert deliver(five, context).outcomes == {"stored": 5}


def test_a_changed_file_is_a_failure_by_name(
    context: Context, request_: PageRequest, directory: Path, run: Callable[..., Any]
) -> None:
    """A file that changed is named, and one that vanished leaves the page; the others are uploaded."""
    (directory / NAMES[3]).write_bytes(b"other bytes")
    (directory / NAMES[4]).unlink()
    result = run(page, request_)
    assert (result.outcomes, result.left) == ({"stored": len(NAMES) - 2, "failed": 1}, (f"releases/v1/{NAMES[4]}",))
    [named] = result.failures
    assert named.key == f"v1/{NAMES[3]}"
    assert "it has changed since the directory was listed" in named.message
    assert context.catalogue.artifacts.current("releases", f"v1/{NAMES[3]}") is None


def test_a_file_that_one_store_cannot_take_is_written_to_none(context: Context, request_, settings, deliver) -> None:
    """What a store cannot keep beside the bytes is known before the first store is written to."""
    wide = dataclasses.replace(context, stores=Stores({**settings.stores, "amazon": S3Config(bucket="real")}))
    asked = {"metadata": {"note": "é" * 400}, "stores": ("primary", "amazon")}
    result = deliver(request_.model_copy(update=asked), wide)
    assert (result.outcomes, len(result.left)) == ({}, len(NAMES))
    assert context.catalogue.artifacts.version("releases", f"v1/{NAMES[0]}", 1) is None
    wide.stores.close()


def test_a_file_that_changes_while_it_is_read_is_not_recorded(
    context: Context, source_root: Path, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read of a file that is written to meanwhile becomes no version, nor what ends before its size."""
    path = source_root / "f"
    path.write_bytes(b"first")
    found = path.stat()
    file = ListedFile("releases", "f", str(path), found.st_size, found.st_mtime_ns)
    real = upload_pages._check_unchanged
    seen: list[str] = []

    def check(listed: ListedFile, stat: Any, when: str) -> None:
        real(listed, stat, when)
        if not seen:
            seen.append(when)
            path.write_bytes(b"other")

    monkeypatch.setattr(upload_pages, "_check_unchanged", check)
    result = run(page, request_for(context, [file], source_root))
    assert "it has changed while it was read" in result.failures[0].message
    found = path.stat()
    file = ListedFile("releases", "f", str(path), found.st_size, found.st_mtime_ns)
    monkeypatch.setattr(Source, "rewind", lambda _: io.BytesIO(b"cut"))
    assert run(page, request_for(context, [file], source_root)).left == ("releases/f",)
    assert context.catalogue.artifacts.current("releases", "f") is None


def test_a_group_of_files_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page has two groups in memory; a file that is larger than one is alone in it."""
    monkeypatch.setattr(upload_pages, "_GROUP_SIZE", 100)
    files = [ListedFile("releases", str(n), "/f", size, 0) for n, size in enumerate((50, 50, 1, 120, 99, 1))]
    items = [upload_pages._Item(n, file, ("dr",)) for n, file in enumerate(files)]
    assert [len(group) for group in upload_pages._groups(items, first=GROUP)] == [2, 1, 1, 2]


@pytest.mark.parametrize("place", ["record_many", "write_objects before", "write_objects after", "record"])
@pytest.mark.parametrize("group", [0, 1])
def test_a_page_that_is_delivered_again_goes_on(
    context: Context, request_: PageRequest, deliver: Callable[[PageRequest], PageResult],
    monkeypatch: pytest.MonkeyPatch, place: str, group: int,
) -> None:  # fmt: skip
    """A death before, between and after the steps of a group leaves no file out and makes no second version.

    Another delivery tells the same, also of what the stores do not keep.
    """
    request_ = request_.model_copy(update={"metadata": {"build": "7"}})
    name, _, when = place.partition(" ")
    kinds = {"record_many": "worker.catalogue.artifacts.Artifacts", "record": "worker.catalogue.pages.Pages"}
    owner = kinds.get(name, "worker.limits.limited_store.LimitedStore")
    module, _, cls = owner.rpartition(".")
    target = getattr(__import__(module, fromlist=[cls]), cls)
    real, calls = getattr(target, name), iter(range(1000))

    def dying(*args: Any, **options: Any) -> Any:
        dies = next(calls) == group
        if dies and when != "after":
            raise Killed
        result = real(*args, **options)
        if dies:
            raise Killed
        return result

    with monkeypatch.context() as patch:
        patch.setattr(target, name, dying)
        with pytest.raises(Killed):
            deliver(request_)
    result = deliver(request_)
    assert (result.objects, result.failed, result.left) == (len(NAMES), 0, ())
    assert set(result.outcomes) <= {"stored", "already_there"}
    assert set(result.not_kept.values()) == {("metadata",)}
    assert deliver(request_) == result
    assert_all_there(context)


def test_a_killed_page_resumes_its_multipart_uploads(
    context: Context, source_root: Path, deliver: Callable[..., PageResult], ministack: Ministack,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A page records the multipart upload of each file: the next delivery sends the missing parts and ends it."""
    config = s3_config(ministack)
    make_s3_bucket(ministack, str(config.bucket))
    body = some_bytes(2 * PART + 7)
    (source_root / "dir").mkdir()
    (source_root / "dir" / "large").write_bytes(body)
    files = list(DirectoryListing(source_root / "dir", "releases", "v1/").files())
    request = request_for(context, files, source_root).model_copy(update={"stores": ("cloud",)})
    real, again, one_sent = S3Driver.upload_part, list[int](), threading.Event()

    def dies_at_the_third(self: S3Driver, bucket: str, key: str, token: str, number: int, data: Any, **how: Any) -> Any:
        if number == 3:  # which is the smallest, and may be sent first
            assert one_sent.wait(60)
            raise Killed
        part = real(self, bucket, key, token, number, data, **how)
        one_sent.set()
        return part

    cloud = dataclasses.replace(context, stores=Stores({"cloud": config}))
    with monkeypatch.context() as patch:
        patch.setattr(S3Driver, "upload_part", dies_at_the_third)
        with pytest.raises(Killed):
            deliver(request, cloud)
    artifact = context.catalogue.artifacts.version("releases", "v1/large", 1)
    assert artifact is not None
    kept = context.catalogue.transfers.find(artifact, "cloud")
    assert kept is not None
    assert 1 <= len(kept.sent) <= 2
    monkeypatch.setattr(S3Driver, "upload_part", lambda *given, **how: (again.append(given[4]), real(*given, **how))[1])
    assert deliver(request, cloud).outcomes == {"stored": 1}
    assert sorted([*kept.sent, *again]) == [1, 2, 3]
    assert context.catalogue.transfers.find(artifact, "cloud") is None
    assert list(cloud.stores["cloud"].iter_stale_uploads()) == []
    assert cloud.stores["cloud"].verify_object("releases", "v1/large", artifact.digest).verdict is Verdict.VERIFIED
    cloud.stores.close()


def test_a_page_asks_a_store_without_conditions_once(
    context: Context, source_root: Path, deliver: Callable[..., PageResult], rclone: RcloneS3
) -> None:
    """Which keys are free takes one listing, for new files and for replicas; an object that is there is found too."""
    names = [f"f{number:02d}" for number in range(12)]
    (source_root / "dir").mkdir()
    for number, name in enumerate(names):
        (source_root / "dir" / name).write_bytes(some_bytes(100 + number))
    with FaultyProxy(rclone.port, lambda _: None) as proxy:
        configs = [s3_config(rclone, conditional_writes=False, data_path="auto") for _ in range(2)]
        for config in configs:
            make_s3_bucket(rclone, str(config.bucket))
        through = [config.model_copy(update={"endpoint": proxy.endpoint}) for config in configs]
        cloud = dataclasses.replace(context, stores=Stores({"cloud": through[0], "other": through[1]}))
        for store in ("cloud", "other"):
            cloud.stores[store].write_object("releases", "v1/f07", io.BytesIO(some_bytes(107)))
        files = list(DirectoryListing(source_root / "dir", "releases", "v1/").files())
        upload = request_for(context, files, source_root).model_copy(update={"stores": ("cloud",)})

        def replicate() -> PageRequest:
            now = RangeSelection(bucket="releases", prefix="v1/", after="", until="v1/~")
            return PageRequest(verb="replicate", to=("other",), range=now)

        for make, job, name in ((lambda: upload, "upload", "cloud"), (replicate, "replicate", "other")):
            begun = len(proxy.requests)
            done = deliver(make(), cloud, job)
            assert done.outcomes == {"stored": 11, "already_there": 1}
            asked = [unquote(each.path) for each in proxy.requests[begun:] if each.method == "HEAD"]
            assert {path.rpartition("/")[2] for path in asked if "/v1/" in path} == {"f07"}
            assert all(cloud.stores[name].object_exists("releases", f"v1/{each}") for each in names)
        cloud.stores.close()


@pytest.mark.parametrize("error", [Unavailable, AccessDenied, OutOfSpace])
def test_what_fails_or_is_locked_leaves_the_page(
    request_: PageRequest, run: Callable[..., Any], stored, monkeypatch: pytest.MonkeyPatch, error: type[StorageError]
) -> None:
    """One object that a store does not take, and one that another job is writing, become jobs of their own.

    What another program has written under a key goes to quarantine before it is replaced.
    """
    theirs = stored("dr", f"v1/{NAMES[11]}")
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"of another program")
    real_write, real_acquire = LimitedStore.write_objects, ArtifactLocks.acquire

    def write(store: LimitedStore, puts: list[SmallPut]) -> list[ObjectStat | StorageError]:
        written = real_write(store, puts)
        bad = [number for number, put in enumerate(puts) if put.key == f"v1/{NAMES[7]}"]
        for number in bad:
            written[number] = error("not now")
        return written

    def acquire(self: Any, job: str, fence: int, paths: Any, **options: Any) -> set[tuple[str, str]]:
        return real_acquire(self, job, fence, paths, **options) - {("releases", f"v1/{NAMES[9]}")}

    monkeypatch.setattr(LimitedStore, "write_objects", write)
    monkeypatch.setattr(ArtifactLocks, "acquire", acquire)
    result = run(page, request_)
    assert result.outcomes == {"stored": len(NAMES) - 2}
    assert set(result.left) == {f"releases/v1/{NAMES[7]}", f"releases/v1/{NAMES[9]}"}
    quarantined = [path for path in stored("dr", bucket="zot-quarantine", key="releases").rglob("*") if path.is_file()]
    assert b"of another program" in [path.read_bytes() for path in quarantined]
