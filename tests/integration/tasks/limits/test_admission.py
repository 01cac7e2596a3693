"""A store that fails or is busy delays its own jobs, and no others."""

import dataclasses
from collections.abc import Iterator
from datetime import timedelta

import pytest
from limits import RateLimitItemPerHour
from redis import Redis

from tasks.delete import delete
from tasks.replicate import replicate
from tasks.sweeps.probe import sweep_probe
from tasks.upload import upload
from tasks.verify import verify
from tests.conformance.targets import make_s3_bucket, s3_config
from tests.servers.proxy import Fault, FaultyProxy, Request, Say
from worker import clock
from worker.catalogue import Leased
from worker.context import Context
from worker.limits import bandwidth
from worker.limits.admission import Admission
from worker.limits.concurrency import DistributedSemaphore
from worker.limits.shared_redis import SharedRedis
from worker.limits.snooze import Snooze
from worker.settings import Settings
from worker.settings.section_models import BreakerSettings, StoreLimits
from worker.storage import Digest
from worker.storage.errors import TransientError
from worker.storage.probe import probe
from zot_artifact_client.contract import (
    DeleteRequest,
    ReplicateRequest,
    SweepProbeRequest,
    UploadRequest,
    VerifyRequest,
)

STORM = [Say(503, b"<Error><Code>SlowDown</Code></Error>"), Say(429)]


class FaultInjector:
    """What the store behind the proxy answers: itself, or a storm."""

    def __init__(self) -> None:
        self.storm = False
        self.asked = 0

    def __call__(self, _request: Request) -> Fault:
        self.asked += 1
        return STORM[self.asked % 2] if self.storm else None


@pytest.fixture
def injector() -> FaultInjector:
    return FaultInjector()


@pytest.fixture
def settings(settings: Settings, ministack, injector, monkeypatch) -> Iterator[Settings]:
    """Put a store in the cloud, through the proxy, beside a directory."""
    monkeypatch.setattr("worker.storage.s3.providers.ATTEMPTS", 1)  # the SDK's own patience is not asked here
    config = s3_config(ministack)
    make_s3_bucket(ministack, config.bucket)
    with FaultyProxy(ministack.port, injector) as proxy:
        stores = {
            "primary": settings.stores["primary"],
            "cloud": config.model_copy(update={"endpoint": proxy.endpoint}),
        }
        breaker = BreakerSettings(failures=2, within=timedelta(minutes=5), open=timedelta(minutes=5))
        yield settings.model_copy(update={"stores": stores, "placement": ("primary", "cloud"), "breaker": breaker})


@pytest.fixture
def redis(valkey) -> Redis:
    valkey.empty()
    return Redis.from_url(valkey.url)


@pytest.fixture
def context(context: Context, redis: Redis) -> Context:
    return with_settings(context, context.settings, redis)


def with_settings(context: Context, settings: Settings, redis: Redis) -> Context:
    admission = Admission(settings, lambda name: probe(context.stores[name]), SharedRedis(lambda: redis))
    return dataclasses.replace(context, settings=settings, admission=admission)


def calm(redis: Redis) -> None:
    """Let the time for which the breaker is open be over."""
    assert redis.delete("zot-artifacts:breaker:cloud:open") == 1


def test_a_storm_opens_the_breaker_and_the_other_store_goes_on(run, context, redis, injector, source):
    """A store that answers 503 and 429 is not asked after two jobs; the others' copies are made, and it recovers."""
    wish = [UploadRequest(source=source(b"release", f"{n}"), bucket="releases", key=f"{n}") for n in range(4)]
    injector.storm = True
    for n in range(2):
        with pytest.raises(TransientError):
            run(upload, wish[n])
    asked = injector.asked
    for n in (2, 3):
        with pytest.raises(Snooze, match="cloud: the store keeps failing"):
            run(upload, wish[n])
    assert injector.asked == asked
    assert all(context.stores["primary"].object_exists("releases", f"{n}") for n in range(4))
    calm(redis)
    with pytest.raises(Snooze):
        run(upload, wish[3])  # its probe fails
    asked = injector.asked
    with pytest.raises(Snooze):
        run(upload, wish[2])
    assert injector.asked == asked
    calm(redis)
    injector.storm = False
    for n in range(4):
        assert [copy.outcome for copy in run(upload, wish[n]).copies] == ["already_there", "stored"]


def test_the_sweep_probe_closes_the_breaker_of_a_store_that_answers_again(run, context, redis, injector, source):
    """An operator need not wait for the end of its time, nor for a job; a store that fails the probe keeps waiting."""
    wish = UploadRequest(source=source(b"release"), bucket="releases", key="app")
    injector.storm = True
    for _ in range(2):
        with pytest.raises(TransientError):
            run(upload, wish)
    assert "cloud" in run(sweep_probe, SweepProbeRequest()).faults
    with pytest.raises(Snooze):
        run(upload, wish)
    injector.storm = False
    assert run(sweep_probe, SweepProbeRequest()).faults == {}
    assert [copy.outcome for copy in run(upload, wish).copies] == ["already_there", "stored"]


def test_no_verb_asks_a_store_whose_breaker_is_open(run, context, redis, injector, source):
    """While its circuit breaker is open no verb asks a store or reads a source for it; the other is served."""
    run(upload, UploadRequest(source=source(b"release"), bucket="releases", key="app"))
    redis.set("zot-artifacts:breaker:cloud:open", 1, px=300_000)
    asked = injector.asked
    for verb, wish in (
        (verify, VerifyRequest(bucket="releases", key="app", stores=("cloud",))),
        (replicate, ReplicateRequest(bucket="releases", key="app", to=("cloud",))),
        (upload, UploadRequest(source=source(b"") + ".absent", bucket="releases", key="new", stores=("cloud",))),
        (delete, DeleteRequest(bucket="releases", key="app", stores=("cloud",))),
    ):
        with pytest.raises(Snooze, match="cloud"):
            run(verb, wish)
    assert run(verify, VerifyRequest(bucket="releases", key="app", stores=("primary",))).good
    assert injector.asked == asked


def test_a_copy_is_not_read_again_while_the_job_waits_for_another_store(run, context, redis, injector, source, stored):
    """A verification that has to wait for one store keeps the verdicts on the others."""
    run(upload, UploadRequest(source=source(b"release"), bucket="releases", key="app"))
    redis.set("zot-artifacts:breaker:cloud:open", 1, px=300_000)
    wish = VerifyRequest(bucket="releases", key="app")
    jobs = []

    def twice(request, job):
        job.snoozed_since = clock.now() if jobs else None
        job.id = jobs[0] if jobs else job.id
        jobs.append(job.id)
        return verify(request, job)

    with pytest.raises(Snooze):
        run(twice, wish)
    stored("primary", "app").unlink()  # the next read finds it missing
    calm(redis)
    assert run(twice, wish).good
    log = context.catalogue.verifications.of("releases", "app")
    assert sorted(entry["store"] for entry in log) == ["cloud", "primary"]


def test_a_store_that_is_busy_keeps_its_jobs_waiting_and_no_other(run, context, redis, source):
    """A store with as many jobs as may be turns the next one away before anything is read; the other gets its copy."""
    limits = {"cloud": StoreLimits(concurrency=1)}
    limited = with_settings(context, context.settings.model_copy(update={"store_limits": limits}), redis)
    wish = UploadRequest(source=source(b"release"), bucket="releases", key="app", stores=("cloud", "primary"))
    with DistributedSemaphore(SharedRedis(lambda: redis), seconds=60).acquire("cloud", "other", limit=1, local_limit=1):
        with pytest.raises(Snooze, match="cloud: 1 job in progress"):
            run(upload, wish, context=limited)
        assert limited.stores["primary"].object_exists("releases", "app")
    placed = run(upload, wish, context=limited)
    assert {copy.store: copy.outcome for copy in placed.copies} == {"cloud": "stored", "primary": "already_there"}
    assert redis.zcard("zot-artifacts:places:cloud") == 0


@pytest.fixture
def counted_by_the_hour(monkeypatch) -> None:
    """Keep the counts of bytes for an hour: those of a second are gone before a busy machine reads them."""
    monkeypatch.setattr(bandwidth, "RateLimitItemPerSecond", RateLimitItemPerHour)


@pytest.mark.usefixtures("counted_by_the_hour")
def test_reads_and_writes_count_for_their_stores(run, context, redis, source):
    """What is read from one store and written to another is paid for at both."""
    run(upload, UploadRequest(source=source(bytes(60_000)), bucket="releases", key="app", stores=("primary",)))
    limits = dict.fromkeys(("primary", "cloud"), StoreLimits(bytes_per_second="1MiB"))
    limited = with_settings(context, context.settings.model_copy(update={"store_limits": limits}), redis)
    wish = ReplicateRequest(bucket="releases", key="app", to=("cloud",))
    run(replicate, wish, context=limited)
    paid = {key: int(redis.get(key)) for key in redis.scan_iter("zot-artifacts:bytes:*")}
    assert {name: sum(n for key, n in paid.items() if name in key) for name in (b"primary", b"cloud")} == {
        b"primary": 60_000,
        b"cloud": 60_000,
    }


@pytest.mark.usefixtures("counted_by_the_hour")
def test_every_read_of_a_verification_is_paid_for(run, context, redis, source, stored):
    """A copy that is not what it should be is read again, and again as the version that is being written: all count."""
    run(upload, UploadRequest(source=source(bytes(40_000)), bucket="releases", key="app", stores=("primary",)))
    stored("primary", "app").write_bytes(b"x" * 40_000)
    newer = Digest(40_000, "a" * 64)
    writer = context.catalogue.ledger.acquire(
        "writer",
        "upload",
        {},
        owner="w",
        writes_to=None,
        parent=None,
        now=clock.now(),
        lease=context.settings.jobs.lease,
    )
    assert isinstance(writer, Leased)
    context.catalogue.artifacts.record("releases", "app", newer, {}, clock.now(), stores=["primary"], job="writer")
    limits = {"primary": StoreLimits(bytes_per_second="1MiB")}
    limited = with_settings(context, context.settings.model_copy(update={"store_limits": limits}), redis)
    wish = VerifyRequest(bucket="releases", key="app", stores=("primary",), version=1)
    run(verify, wish, context=limited)
    paid = [int(redis.get(key)) for key in redis.scan_iter("zot-artifacts:bytes:*")]
    assert sum(paid) == 3 * 40_000
