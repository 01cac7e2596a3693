"""Small objects take one request, mean the same as through the SDKs, and never hang, leak or follow the environment."""

import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conformance import targets
from tests.conformance.bodies import digest_of, some_bytes, source
from tests.conformance.targets import PART, Target
from tests.faults.proxied_stores import opened_through, port_of
from tests.servers import Ministack, RcloneS3
from tests.servers.proxy import Delay, Fault, FaultyProxy, Lose, Request, Say, Then
from tests.waiting import WITHIN
from worker.jobs.interrupt_signal import at_most
from worker.jobs.running_job import Cancelled
from worker.storage import Store, Verdict
from worker.storage.cloud import small_reads, small_writes
from worker.storage.cloud.plain_requests import SMALL
from worker.storage.cloud.small_writes import AHEAD
from worker.storage.config import StoreConfig
from worker.storage.configured_stores import open_driver
from worker.storage.driver import HashedBytes, Match, ObjectProperties, ObjectStat, SmallPut
from worker.storage.errors import AccessDenied, AlreadyExists, PreconditionFailed, Throttled, Timeout, Unavailable

BUCKET = "releases"
BODY = some_bytes(16 * 1024)
GROUPED = HashedBytes.of(BODY)
CLOUDS: dict[str, tuple[str, Callable[[Any, Path], Target]]] = {
    "s3": ("ministack", targets.s3_ministack),
    "gcs": ("strict_gcs", targets.gcs),
    "azure": ("azurite", targets.azure),
}


@pytest.fixture(params=list(CLOUDS))
def cloud(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def direct(cloud: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """Return a store with one small object in it."""
    server, opened = CLOUDS[cloud]
    store = opened(request.getfixturevalue(server), tmp_path).store
    store.write_object(BUCKET, "app", source(BODY))
    yield store
    store.close()


@pytest.fixture
def through(direct: Store, cloud: str, tmp_path: Path) -> Iterator[Callable[..., tuple[Store, FaultyProxy]]]:
    """Return what opens the store once more, through a proxy whose `fault` decides what goes wrong."""
    with ExitStack() as stack:

        def open_faulty(
            fault: Callable[[Request], Fault] = lambda _: None, **changes: Any
        ) -> tuple[Store, FaultyProxy]:
            changes = {"data_path": "auto", **changes}
            proxy = stack.enter_context(FaultyProxy(port_of(cloud, direct), fault))
            store = opened_through(cloud, direct, proxy.port, tmp_path, **changes)
            stack.callback(store.close)
            return store, proxy

        yield open_faulty


def verdict(store: Store, key: str = "app", body: bytes = BODY) -> Verdict:
    return store.verify_object(BUCKET, key, digest_of(body)).verdict


def test_verifying_is_one_request(through: Callable[..., tuple[Store, FaultyProxy]]) -> None:
    """A small object is verified with one GET; through the SDKs the same takes more, or the bytes as a range."""
    store, proxy = through()
    assert verdict(store) is Verdict.VERIFIED
    [seen] = store.verify_objects([(BUCKET, "app", digest_of(BODY))])
    assert seen.verdict is Verdict.VERIFIED
    assert [request.method for request in proxy.requests] == ["GET", "GET"]
    for request in proxy.requests:
        assert {"Range", "User-Agent"}.isdisjoint(request.headers)


@pytest.mark.parametrize("cloud", ["s3", "azure"], indirect=True)  # Cloud Storage is written to by the SDK alone
def test_writing_is_one_request_without_the_sdk(
    through: Callable[..., tuple[Store, FaultyProxy]], direct: Store
) -> None:
    """A small object is written to S3 and Azure with one plain request, and a new version only with its condition."""
    store, proxy = through()
    store.write_object(BUCKET, "new", source(BODY), condition="create_only")
    [put] = proxy.requests
    assert (put.method, put.headers.get("User-Agent")) == ("PUT", None)
    with pytest.raises(AlreadyExists):
        store.write_object(BUCKET, "new", source(b"other"), condition="create_only")
    version = store.stat_object(BUCKET, "new").version
    store.write_object(BUCKET, "new", source(b"next"), condition=Match(version))
    with pytest.raises(PreconditionFailed):
        store.write_object(BUCKET, "new", source(b"late"), condition=Match(version))
    assert all(request.headers.get("User-Agent") is None for request in proxy.requests if request.method == "PUT")
    assert verdict(direct, "new", b"next") is Verdict.VERIFIED


@pytest.mark.parametrize("cloud", ["s3", "azure"], indirect=True)  # Cloud Storage is written to by the SDK alone
def test_a_write_without_an_answer_is_sent_again_by_the_sdk(
    through: Callable[..., tuple[Store, FaultyProxy]], direct: Store, cloud: str
) -> None:
    """A create-only write whose answer is lost, or that is throttled, succeeds once, and by the SDK."""
    expired = Say(401, b"")  # a token, which the SDK gets anew
    late = Say(400, b"<Error><Code>RequestTimeout</Code></Error>")
    faults = (Lose(), Say(503, b"", {"Retry-After": "0"}), expired if cloud == "azure" else late)
    for number, fault in enumerate(faults):
        left = [fault]
        store, proxy = through(lambda request, left=left: left.pop() if left and request.method == "PUT" else None)
        store.write_object(BUCKET, f"new-{number}", source(BODY), condition="create_only")
        agents = [request.headers.get("User-Agent") for request in proxy.requests if request.method == "PUT"]
        assert agents[0] is None
        assert None not in agents[1:]
        assert verdict(direct, f"new-{number}") is Verdict.VERIFIED


@pytest.mark.parametrize("cloud", ["s3", "azure"], indirect=True)  # Cloud Storage is written to by the SDK alone
def test_a_group_is_sent_ahead(
    through: Callable[..., tuple[Store, FaultyProxy]], direct: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New objects are sent before earlier ones are answered; each is one request, and none replaces what is there."""
    monkeypatch.setattr(small_writes, "_SLOW", WITHIN)
    sent, waited = threading.Semaphore(0), list[bool]()

    def wait() -> None:
        waited.append(all(sent.acquire(timeout=small_writes._PATIENCE) for _ in range(3)))

    def answer(request: Request) -> Fault:
        sent.release()
        return Then(wait) if "/ahead-0" in request.path else None

    store, proxy = through(answer)
    keys = [f"ahead-{number}" for number in range(AHEAD + 2)]
    written = store.write_objects([SmallPut(BUCKET, key, GROUPED, "create_only") for key in ["app", *keys]])
    assert waited == [True]
    assert isinstance(written.pop(0), AlreadyExists), "it ends no group"
    assert [each.key for each in written if isinstance(each, ObjectStat)] == keys
    assert [verdict(direct, key) for key in keys] == [Verdict.VERIFIED] * len(keys)
    puts = [request for request in proxy.requests if request.method == "PUT"]
    assert (len(puts), {request.headers.get("User-Agent") for request in puts}) == (len(keys) + 1, {None})
    assert written[0] == replace(direct.stat_object(BUCKET, keys[0]), modified=written[0].modified)


@pytest.mark.parametrize("cloud", ["s3", "azure"], indirect=True)
def test_a_group_loses_no_object_that_was_sent(
    through: Callable[..., tuple[Store, FaultyProxy]], direct: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever ends a group, each object that was sent is answered for; the rest is left to the caller.

    So are those that the SDK has to write: it waits for each answer, and several threads wait at once.
    """
    monkeypatch.setattr(small_writes, "_SLOW", WITHIN)  # a slow connection ends a group, too
    lost = [Lose()]
    store, _ = through(lambda request: lost.pop() if lost and "/lost" in request.path else None)
    [written] = store.write_objects([SmallPut(BUCKET, "lost", GROUPED, "create_only")])
    assert written.version == direct.stat_object(BUCKET, "lost").version  # type: ignore[union-attr]

    def stopping() -> Iterator[SmallPut]:
        yield from (SmallPut(BUCKET, key, GROUPED, "create_only") for key in ("before-0", "before-1"))
        raise Cancelled

    with pytest.raises(Cancelled):
        store.write_objects(stopping())
    assert verdict(direct, "before-0") is verdict(direct, "before-1") is Verdict.VERIFIED

    store, proxy = through(lambda request: Say(403, b"") if request.method == "PUT" else None)
    puts = [SmallPut(BUCKET, f"refused-{number}", GROUPED, "create_only") for number in range(3 * AHEAD)]
    refused = store.write_objects(puts)
    assert 0 < len(refused) <= AHEAD
    assert {type(each) for each in refused} == {AccessDenied}
    assert len([request for request in proxy.requests if request.method == "PUT"]) == len(refused)

    def throttle_plain(request: Request) -> Fault:
        return Say(503, b"") if request.method == "PUT" and "User-Agent" not in request.headers else None

    store, proxy = through(throttle_plain)
    by_sdk = store.write_objects([replace(put, key=f"by-sdk-{number}") for number, put in enumerate(puts)])
    assert {type(each) for each in by_sdk} == {ObjectStat}
    assert len(by_sdk) == AHEAD, "the SDK wrote the others in one thread"

    odd = Say(201, b"", {"ETag": '"odd"', "Last-Modified": "no time"})
    store, _ = through(lambda request: odd if "/refused-0" in request.path and request.method == "PUT" else None)
    assert isinstance(store.write_objects(puts[:2])[1], ObjectStat), "what cannot be understood is about one object"

    monkeypatch.setenv("no_proxy", "*")  # the SDKs alone read it
    store, _ = through()
    [written] = store.write_objects(puts[3:])
    assert isinstance(written, ObjectStat)


@pytest.mark.parametrize("cloud", ["s3"], indirect=True)
@pytest.mark.parametrize("provider", ["other", "aws"])
def test_a_part_is_one_request_without_the_sdk(
    through: Callable[..., tuple[Store, FaultyProxy]], direct: Store, provider: str
) -> None:
    """The parts of a large object are sent to S3 by plain requests, and by the SDK where the answer may pass."""
    body = some_bytes(2 * PART + 7)
    left: list[Fault] = []
    store, proxy = through(
        lambda request: left.pop() if left and "partNumber" in request.path else None,
        provider=provider,
        part_size=PART,
    )
    for faults in ([], [Lose()], [Say(503, b"")], [Say(429, b"")]):
        left[:] = faults
        proxy.requests.clear()
        store.write_object(BUCKET, "large", source(body), size=len(body), sha256=digest_of(body).sha256)
        parts = [request for request in proxy.requests if "partNumber" in request.path]
        by_sdk = [request for request in parts if request.headers.get("User-Agent")]
        assert (len(parts), len(by_sdk)) == (3 + len(faults), len(faults))
        assert verdict(direct, "large", body) is Verdict.VERIFIED


def test_a_large_object_is_the_sdks(through: Callable[..., tuple[Store, FaultyProxy]], direct: Store) -> None:
    """What is larger than SMALL is streamed by the SDK: its memory stays bounded."""
    body = some_bytes(SMALL + 1)
    store, proxy = through()
    store.write_object(BUCKET, "large", source(body))
    assert verdict(direct, "large", body) is Verdict.VERIFIED
    assert verdict(store, "large", body) is Verdict.VERIFIED
    assert all(request.headers.get("User-Agent") for request in proxy.requests)


def test_switched_off(through: Callable[..., tuple[Store, FaultyProxy]]) -> None:
    """With `data_path: sdk` each request is made by the SDK."""
    store, proxy = through(data_path="sdk")
    store.write_object(BUCKET, "new", source(BODY))
    assert verdict(store) is Verdict.VERIFIED
    store.stat_object(BUCKET, "app")
    assert all(request.headers.get("User-Agent") for request in proxy.requests)


def test_version_and_verdicts_are_those_of_the_sdk(through: Callable[..., tuple[Store, FaultyProxy]]) -> None:
    """All paths give the same verdict, and the same version tag, for a good, a wrong and a missing object."""
    fast, sdk = through()[0], through(data_path="sdk")[0]
    asked = [("app", BODY), ("app", some_bytes(len(BODY), seed=1)), ("app", b"short"), ("none", BODY), ("app", BODY)]
    wanted = [(BUCKET, key, digest_of(body)) for key, body in asked]
    by_sdk = [sdk.verify_object(*each) for each in wanted]
    assert [fast.verify_object(*each) for each in wanted] == by_sdk
    assert list(fast.verify_objects(wanted)) == by_sdk
    assert list(sdk.verify_objects(wanted)) == by_sdk


def test_stat_is_that_of_the_sdk(through: Callable[..., tuple[Store, FaultyProxy]]) -> None:
    """What is told of an object, and of a write of it, does not depend on the path."""
    fast, sdk = through()[0], through(data_path="sdk")[0]
    given = {"owner": "Zoë ", "content_type": "mine", "note": "a b"}
    properties = ObjectProperties(content_type="text/plain", cache_control="no-cache")
    written = [
        store.write_object(BUCKET, key, source(BODY), metadata=given, properties=properties)[0]
        for key, store in (("fast", fast), ("sdk", sdk))
    ]
    seen = [replace(stat, key="", version="", storage_tags={}, modified=written[0].modified) for stat in written]
    assert seen[0] == seen[1]
    for key in ("fast", "sdk"):
        assert fast.stat_object(BUCKET, key) == sdk.stat_object(BUCKET, key)


def test_where_nothing_is_a_plain_request_says_so_before_a_write(rclone: RcloneS3, tmp_path: Path) -> None:
    """A store without conditions is asked whether a key is free, and by the SDK only where it is not."""
    store = targets.s3_rclone(rclone, tmp_path).store
    with FaultyProxy(port_of("s3", store), lambda _: None) as proxy:
        through = opened_through("s3", store, proxy.port, tmp_path, data_path="auto")
        through.write_object(BUCKET, "fresh", source(BODY), condition="create_only")
        heads = [request for request in proxy.requests if request.method == "HEAD"]
        assert ["User-Agent" in request.headers for request in heads] == [False]
        with pytest.raises(AlreadyExists):
            through.write_object(BUCKET, "fresh", source(b"other"), condition="create_only")
        assert verdict(through, "fresh") is Verdict.VERIFIED
        through.close()
    store.close()


def test_one_request_confirms_a_delete(through: Callable[..., tuple[Store, FaultyProxy]]) -> None:
    """After a delete the store is asked once for the object, and not for the bucket, which it has just used."""
    store, proxy = through()
    assert store.delete_object(BUCKET, "app")
    methods = [request.method for request in proxy.requests]
    assert len(methods[methods.index("DELETE") :]) == 2


def test_many_new_keys_are_asked_for_with_one_listing(rclone: RcloneS3, tmp_path: Path) -> None:
    """A store without conditions is not asked for each of many keys; an object that is there stays all the same."""
    store = targets.s3_rclone(rclone, tmp_path).store
    with FaultyProxy(port_of("s3", store), lambda _: None) as proxy:
        through = opened_through("s3", store, proxy.port, tmp_path, data_path="auto")
        store.write_object(BUCKET, "many/3", source(BODY))
        through.write_object(BUCKET, "first", source(BODY))  # after what is asked once
        asked = len(proxy.requests)
        through.expect_writes([(BUCKET, f"many/{number}") for number in range(8)])
        for number in (0, 1, 2, 4, 5, 6, 7):
            through.write_object(BUCKET, f"many/{number}", source(BODY), condition="create_only")
        assert [request.method for request in proxy.requests[asked:]] == ["GET", *["PUT"] * 7]
        with pytest.raises(AlreadyExists):
            through.write_object(BUCKET, "many/3", source(b"other"), condition="create_only")
        with pytest.raises(AlreadyExists):
            through.write_object(BUCKET, "many/4", source(b"other"), condition="create_only")
        group = [SmallPut(BUCKET, key, GROUPED, "create_only") for key in ("many/3", "many/8")]
        assert [type(each) for each in through.write_objects(group)] == [AlreadyExists, ObjectStat]
        assert verdict(store, "many/3") is verdict(store, "many/4") is Verdict.VERIFIED
        through.close()
    store.close()


def test_a_slow_answer_is_waited_for(
    through: Callable[..., tuple[Store, FaultyProxy]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that takes longer than a plain request waits is no dead store: the SDK waits for it."""
    monkeypatch.setattr(small_reads, "PATIENCE", 1)
    store, _ = through(lambda request: Delay(1.5) if "/app" in request.path or "%2Fapp" in request.path else None)
    assert verdict(store) is Verdict.VERIFIED
    store.write_object(BUCKET, "app", source(b"new"))
    assert verdict(store, body=b"new") is Verdict.VERIFIED


def test_a_store_that_asks_for_fewer_requests(through: Callable[..., tuple[Store, FaultyProxy]], cloud: str) -> None:
    """A refusal has the class that it has through the SDK, so that the limits treat it alike."""
    store, _ = through(lambda request: Say(429 if cloud != "azure" else 503, b"") if request.method == "GET" else None)
    error = store.verify_object(BUCKET, "app", digest_of(BODY)).error
    assert isinstance(error, Throttled | Unavailable | Timeout)


def test_a_signal_ends_the_wait_for_a_silent_store(
    through: Callable[..., tuple[Store, FaultyProxy]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that is to stop does not wait for the answer of a store."""
    monkeypatch.setattr(small_reads, "PATIENCE", 60)
    store, _ = through(lambda request: Delay(20) if request.method == "GET" else None)
    begun = time.monotonic()
    with pytest.raises(TimeoutError), at_most(1):
        verdict(store)
    assert time.monotonic() - begun < 15


def _read(configs: list[StoreConfig], found: "multiprocessing.SimpleQueue[list[str]]") -> None:
    found.put([str(verdict(Store(open_driver("child", config)))) for config in configs])


def _read_and_fork(configs: list[StoreConfig], found: "multiprocessing.SimpleQueue[list[str]]") -> None:
    for config in configs:
        assert verdict(Store(open_driver("parent", config))) is Verdict.VERIFIED
    child = multiprocessing.get_context("fork").Process(target=_read, args=(configs, found))
    child.start()
    child.join(WITHIN)
    if child.is_alive():
        child.kill()
        found.put(["the child hangs"])


def test_a_forked_child_reads_all_the_same(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """A child that is forked after the first reads has connections of its own."""
    configs: list[StoreConfig] = []
    with ExitStack() as stack:
        for server, opened in CLOUDS.values():
            store = opened(request.getfixturevalue(server), tmp_path).store
            stack.callback(store.close)
            store.write_object(BUCKET, "app", source(BODY))
            configs.append(store._driver._config)  # type: ignore[attr-defined]
    spawn = multiprocessing.get_context("spawn")  # this process has the threads of other tests
    found = spawn.SimpleQueue()
    process = spawn.Process(target=_read_and_fork, args=(configs, found))
    process.start()
    process.join(2 * WITHIN)
    assert process.exitcode == 0
    assert found.get() == ["verified"] * len(CLOUDS)


class TestS3:
    @pytest.fixture
    def line(self, ministack: Ministack) -> Iterator[tuple[Store, FaultyProxy]]:
        """Return a store, and the proxy that sees its requests."""
        config = targets.s3_config(ministack)
        targets.make_s3_bucket(ministack, str(config.bucket))
        with FaultyProxy(ministack.port, lambda _: None) as proxy:
            store = Store(open_driver("s3", config.model_copy(update={"endpoint": proxy.endpoint})))
            yield store, proxy
            store.close()

    def test_writing_is_one_request(self, line: tuple[Store, FaultyProxy]) -> None:
        """A small object is written with one PUT that has its condition in it, and covers its bytes."""
        store, proxy = line
        store.write_object(BUCKET, "new", source(BODY), condition="create_only")
        assert [request.method for request in proxy.requests] == ["PUT"]
        headers = {name.lower(): value for name, value in proxy.requests[0].headers.items()}
        assert headers["if-none-match"] == "*"
        assert headers["x-amz-content-sha256"] == digest_of(BODY).sha256
        with pytest.raises(AlreadyExists):
            store.write_object(BUCKET, "new", source(b"other"), condition="create_only")

    def test_the_environment_changes_nothing(
        self, line: tuple[Store, FaultyProxy], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Variables that other libraries take for settings of theirs reach no request."""
        for name, value in {
            "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1",
            "AWS_SKIP_SIGNATURE": "true",
            "AWS_SERVER_SIDE_ENCRYPTION": "aws:kms",
            "AWS_SSE_KMS_KEY_ID": "key",
            "AWS_UNSIGNED_PAYLOAD": "true",
        }.items():
            monkeypatch.setenv(name, value)
        store, proxy = line
        store.write_object(BUCKET, "new", source(BODY))
        assert verdict(store, "new") is Verdict.VERIFIED
        for request in proxy.requests:
            assert "encryption" not in str(request.headers).lower()
            assert "AWS4-HMAC-SHA256" in str(request.headers)

    def test_metadata_with_the_name_of_a_header(self, line: tuple[Store, FaultyProxy]) -> None:
        """Metadata with the name of a header of the object stays metadata."""
        store, _ = line
        given = {"content-type": "mine", "storage-class": "mine", "cache-control": "mine"}
        store.write_object(BUCKET, "new", source(BODY), metadata=given)
        assert store.stat_object(BUCKET, "new").metadata == given

    def test_wrong_credentials_are_not_told(self, rclone: RcloneS3, tmp_path: Path) -> None:
        """A refused signature is AccessDenied, without the keys, the address or the signature."""
        store = targets.s3_rclone(rclone, tmp_path, access_key_id="AKIA5ecre7", secret_access_key="5ecre7").store
        seen = store.verify_object(BUCKET, "app", digest_of(BODY))
        assert seen.verdict is Verdict.UNREADABLE
        assert "5ecre7" not in str(seen.detail)
        assert "Signature=" not in str(seen.detail)
