"""The end of a job reaches the receivers that its request names: signed, retried, with one id, and no other address."""

import hashlib
import hmac
import json
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from tests.unit.alarms.receivers import Posted, http_receiver
from worker import cli, clock
from worker.alarms import job_webhooks
from worker.alarms.job_webhooks import deliver_webhooks
from worker.catalogue import Catalogue, FindingKind, Leased
from worker.jobs.task import Delivery, UnknownReceiver
from worker.settings import Settings
from worker.settings.alarms import JobReceiverSettings, JobWebhookSettings
from zot_artifact_client.contract import BatchRequest, JobState, UploadRequest, VerifyRequest

SECRET = "a secret of the receiver"
LEASE = timedelta(seconds=30)
ERROR = {"type": "Unavailable", "message": "dr: away", "store": "dr", "traceback": "Traceback: secret"}


@pytest.fixture
def catalogue(tmp_path: Path) -> Iterator[Catalogue]:
    url = f"sqlite:///{tmp_path / 'catalogue.sqlite3'}"
    opened = Catalogue(url)
    yield opened
    opened.close()


def begin(catalogue: Catalogue, id_: str, *notify: str, max_crashes: int = 5) -> int:
    request = {"bucket": "releases", "key": id_, "notify": list(notify)}
    begun = catalogue.ledger.acquire(
        id_, "upload", request, owner="here", writes_to=None, parent=None, now=clock.now(), lease=LEASE,
        max_crashes=max_crashes,
    )  # fmt: skip
    return begun.record.fence if isinstance(begun, Leased) else 0


def end(catalogue: Catalogue, id_: str, *notify: str, state: JobState = JobState.SUCCEEDED) -> None:
    fence = begin(catalogue, id_, *notify)
    given: dict[str, Any] = {"result": {"size": 3}} if state == JobState.SUCCEEDED else {"error": ERROR}
    catalogue.ledger.finish(id_, fence, state, now=clock.now(), **given)


def receiver(url: str, timeout: float = 10, buckets: tuple[str, ...] | None = None) -> JobReceiverSettings:
    return JobReceiverSettings(
        url=SecretStr(url), secret=SecretStr(SECRET), timeout=timedelta(seconds=timeout), buckets=buckets
    )


def deliver(catalogue: Catalogue, **receivers: JobReceiverSettings) -> tuple[dict[str, int], dict[str, str]]:
    return deliver_webhooks(catalogue.job_webhooks, receivers, JobWebhookSettings())


def later(monkeypatch: pytest.MonkeyPatch, passed: timedelta) -> None:
    now = clock.now() + passed
    monkeypatch.setattr(clock, "now", lambda: now)


def told(received: list[Posted]) -> list[tuple[str, str]]:
    documents = [json.loads(body) for _, body in received]
    return [(document["type"], document["data"]["job"]) for document in documents]


def test_a_job_with_the_id_of_a_removed_one_is_accepted_and_told(catalogue: Catalogue) -> None:
    """An idempotency key may be used again once the ledger has forgotten its job."""
    with http_receiver() as (url, received):
        end(catalogue, "job-1", "ci")
        assert deliver(catalogue, ci=receiver(url)) == ({"ci": 1}, {})
        assert catalogue.ledger.prune(before=clock.now()) == 1
        end(catalogue, "job-1", "ci")
        assert deliver(catalogue, ci=receiver(url)) == ({"ci": 1}, {})
    assert told(received) == [("job.succeeded", "job-1")] * 2


def test_the_end_of_a_job_is_sent_once_and_signed(catalogue: Catalogue) -> None:
    """The receiver gets the end that the ledger has, signed as Standard Webhooks, and no second time."""
    with http_receiver() as (url, received):
        begin(catalogue, "open", "ci")
        end(catalogue, "job-1", "ci")
        end(catalogue, "silent")
        assert deliver(catalogue, ci=receiver(url)) == ({"ci": 1}, {})
        assert deliver(catalogue, ci=receiver(url)) == ({}, {})
    [(headers, body)] = received
    document = json.loads(body)
    assert document["type"] == "job.succeeded"
    assert document["data"] == {
        "job": "job-1", "kind": "upload", "state": "succeeded", "bucket": "releases", "key": "job-1", "attempts": 1,
        "result": {"size": 3}, "error": None,
    }  # fmt: skip
    content = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    signature = b64encode(hmac.new(SECRET.encode(), content, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{signature}"
    assert headers["webhook-id"] == document["id"]


def test_every_way_in_which_a_job_ends_is_told(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    """Failed, dead, cancelled while it waits, cancelled before that, and killing its workers: each is told."""
    end(catalogue, "failed", "ci", state=JobState.FAILED)
    end(catalogue, "dead", "ci", state=JobState.DEAD)
    fence = begin(catalogue, "waits", "ci")
    catalogue.ledger.retry("waits", fence, ERROR, due=clock.now())
    catalogue.job_admin.cancel("waits", ERROR, clock.now())
    catalogue.job_admin.cancel_new("new", "upload", {"bucket": "b", "key": "k", "notify": ["ci"]}, ERROR, clock.now())
    begin(catalogue, "kills", "ci")
    later(monkeypatch, timedelta(hours=1))
    begin(catalogue, "kills", "ci", max_crashes=1)
    with http_receiver() as (url, received):
        deliver(catalogue, ci=receiver(url))
    assert sorted(told(received)) == [
        ("job.cancelled", "new"), ("job.cancelled", "waits"), ("job.dead", "dead"), ("job.dead", "kills"),
        ("job.failed", "failed"),
    ]  # fmt: skip
    error = next(json.loads(body)["data"]["error"] for _, body in received if b'"job":"failed"' in body)
    assert error == {"type": "Unavailable", "message": "dr: away", "store": "dr"}


def test_what_is_not_accepted_is_sent_again_with_the_same_id(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refusal is retried later, under one id with another time; after `give_up` it is not tried again, and shown."""
    end(catalogue, "job-1", "ci")
    with http_receiver([500, 302, 503]) as (url, received):
        ci = receiver(url)
        assert deliver(catalogue, ci=ci) == ({}, {"ci": "webhook 127.0.0.1: it answered with status 500"})
        assert deliver(catalogue, ci=ci) == ({}, {})  # not due yet
        later(monkeypatch, timedelta(seconds=11))
        deliver(catalogue, ci=ci)
        assert len({headers["webhook-id"] for headers, _ in received}) == 1
        assert len({body for _, body in received}) == 1
        assert len({headers["webhook-timestamp"] for headers, _ in received}) == 2
        later(monkeypatch, timedelta(days=4))
        deliver(catalogue, ci=ci)
        later(monkeypatch, timedelta(days=1))
        assert deliver(catalogue, ci=ci) == ({}, {})
    state = catalogue.job_webhooks.receivers()["ci"]
    assert (state.pending, state.given_up, state.error) == (0, 1, "webhook 127.0.0.1: it answered with status 503")


def test_a_worker_that_is_killed_in_mid_delivery_loses_no_end(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a worker has claimed when it dies is delivered by another one, under the same id."""
    end(catalogue, "job-1", "ci")
    [claimed] = catalogue.job_webhooks.claim(["ci"], now=clock.now(), until=clock.now() + timedelta(minutes=5))
    with http_receiver() as (url, received):
        assert deliver(catalogue, ci=receiver(url)) == ({}, {})
        later(monkeypatch, timedelta(minutes=6))
        assert deliver(catalogue, ci=receiver(url)) == ({"ci": 1}, {})
    assert received[0][0]["webhook-id"] == claimed.payload["id"]


def test_an_end_that_a_clock_a_day_ahead_delayed_is_delivered_now(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that was ahead wrote the end, so its delivery would be due in a day; it is delivered now."""
    with monkeypatch.context() as wrong:
        later(wrong, timedelta(days=1))
        end(catalogue, "job-1", "ci")
    with http_receiver() as (url, received):
        assert deliver(catalogue, ci=receiver(url)) == ({"ci": 1}, {})
    assert told(received) == [("job.succeeded", "job-1")]


def test_a_job_that_is_redriven_ends_once_more(catalogue: Catalogue) -> None:
    """The second end is another message, with an id of its own; a late record of the first one does not hide it."""
    end(catalogue, "job-1", "ci", state=JobState.DEAD)
    with http_receiver() as (url, received):
        deliver(catalogue, ci=receiver(url))
        catalogue.job_admin.redrive("job-1", {"type": "Redriven", "message": "again"}, due=clock.now() + LEASE)
        assert deliver(catalogue, ci=receiver(url)) == ({}, {})
        assert catalogue.job_webhooks.receivers()["ci"].pending == 0
        end(catalogue, "job-1", "ci")
        deliver(catalogue, ci=receiver(url))
    assert told(received) == [("job.dead", "job-1"), ("job.succeeded", "job-1")]
    assert len({headers["webhook-id"] for headers, _ in received}) == 2


def test_a_receiver_that_is_away_delays_no_other(catalogue: Catalogue) -> None:
    """The ends for other receivers are delivered; of those for the one that is away one is tried, the rest wait."""
    for number in range(5):
        end(catalogue, f"job-{number}", "away", "ci")
    with http_receiver() as (url, received):
        delivered, errors = deliver(catalogue, ci=receiver(url), away=receiver("http://127.0.0.1:9"))
    assert (delivered, list(errors), len(received)) == ({"ci": 5}, ["away"], 5)
    assert catalogue.job_webhooks.receivers()["away"].pending == 5


def test_what_does_not_arrive_is_a_finding_until_the_receiver_accepts_again(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hiccup is none; five refused attempts, or the last one, are one finding, which has no address in it."""

    def open_findings() -> list[str]:
        return [each.key for each in catalogue.findings.page(kind=FindingKind.WEBHOOK_UNDELIVERED)]

    end(catalogue, "job-1", "ci")
    with http_receiver([500] * 5) as (url, _):
        for attempt in range(1, 6):
            assert open_findings() == []
            deliver(catalogue, ci=receiver(f"{url}/token"))
            later(monkeypatch, timedelta(hours=attempt * 2))
        [found] = catalogue.findings.page(kind=FindingKind.WEBHOOK_UNDELIVERED)
        assert (found.key, found.evidence["job"], found.evidence["attempts"]) == ("ci", "job-1", 5)
        assert "/token" not in found.evidence["detail"]
        deliver(catalogue, ci=receiver(f"{url}/token"))
    assert open_findings() == []
    end(catalogue, "job-2", "ci")
    later(monkeypatch, timedelta(days=30))
    deliver(catalogue, ci=receiver("http://127.0.0.1:9"))
    assert open_findings() == ["ci"]


def test_a_receiver_that_is_away_is_asked_once_in_a_round(catalogue: Catalogue) -> None:
    """Many ends wait for it: the others of the round are not delayed by one attempt for each hundred of them."""
    for number in range(250):
        end(catalogue, f"job-{number:03}", "away")
    end(catalogue, "job-last", "ci")
    with http_receiver([500] * 10) as (url, received), http_receiver() as (other, told_other):
        deliver(catalogue, ci=receiver(other), away=receiver(url))
    assert (len(received), len(told_other)) == (1, 1)


def test_a_slow_receiver_gives_the_process_back(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once its turn is over, its other ends wait for the next round, and none is lost."""
    for number in range(3):
        end(catalogue, f"job-{number}", "ci")
    monkeypatch.setattr(job_webhooks, "_TURN", timedelta())
    with http_receiver() as (url, received):
        for _ in range(3):
            assert deliver(catalogue, ci=receiver(url)) == ({"ci": 1}, {})
            later(monkeypatch, timedelta(seconds=11))
        assert deliver(catalogue, ci=receiver(url)) == ({}, {})
    assert len({job for _, job in told(received)}) == 3


def test_a_job_that_has_begun_goes_on_without_its_receiver(catalogue: Catalogue) -> None:
    """A receiver that leaves the settings fails new jobs that name it, and no batch in mid-delete."""
    begin(catalogue, "job-1", "gone")
    record = catalogue.ledger.get("job-1")
    assert record is not None
    delivery = object.__new__(Delivery)
    delivery._context = SimpleNamespace(settings=Settings())
    delivery._request = BatchRequest(verb="verify", bucket="releases", notify=("gone",))
    with pytest.raises(UnknownReceiver, match="no webhook 'gone'"):
        delivery._check_receivers(record)
    delivery._check_receivers(replace(record, fence=2))


def test_a_receiver_gets_the_ends_of_its_buckets_alone(catalogue: Catalogue) -> None:
    """A job on another bucket or prefix, or on a list of keys, that names it fails before anything is done."""
    begin(catalogue, "job-1", "ci")
    record = catalogue.ledger.get("job-1")
    assert record is not None
    ci = {"url": "http://127.0.0.1:9", "secret": SECRET, "buckets": ["releases/app/", "builds"]}
    delivery = object.__new__(Delivery)
    delivery._context = SimpleNamespace(settings=Settings(webhooks={"ci": ci}))
    notify = {"notify": ("ci",)}
    for good in (
        VerifyRequest(bucket="builds", key="any", **notify),
        VerifyRequest(bucket="releases", key="app/a.tgz", **notify),
        BatchRequest(verb="verify", bucket="releases", prefix="app/2026", **notify),
    ):
        delivery._request = good
        delivery._check_receivers(record)
    for bad in (
        VerifyRequest(bucket="releases", key="other/app/a.tgz", **notify),
        VerifyRequest(bucket="builds2", key="any", **notify),
        BatchRequest(verb="verify", bucket="releases", prefix="ap", **notify),
        BatchRequest(verb="verify", keys_from="/in/list", **notify),
    ):
        delivery._request = bad
        with pytest.raises(UnknownReceiver, match="is not for"):
            delivery._check_receivers(record)


def test_a_receiver_is_not_told_of_the_jobs_that_it_refuses(catalogue: Catalogue) -> None:
    """A job on another key that names the receiver fails, and the receiver gets neither its end nor its key."""
    end(catalogue, "secret.tgz", "ci", state=JobState.FAILED)
    end(catalogue, "app/a.tgz", "ci")
    with http_receiver() as (url, received):
        ci = receiver(url, buckets=("releases/app/",))
        assert deliver(catalogue, ci=ci) == ({"ci": 1}, {})
    assert told(received) == [("job.succeeded", "app/a.tgz")]
    assert catalogue.ledger.prune(before=clock.now() + timedelta(seconds=1)) == 2


def test_a_job_is_kept_until_its_end_is_delivered(catalogue: Catalogue) -> None:
    """`jobs.keep` removes no job whose receiver is away; once it is told, the job goes."""
    end(catalogue, "job-1", "ci")
    soon = clock.now() + timedelta(seconds=1)
    assert catalogue.ledger.prune(before=soon) == 0
    with http_receiver() as (url, received):
        deliver(catalogue, ci=receiver(url))
    assert told(received) == [("job.succeeded", "job-1")]
    assert catalogue.ledger.prune(before=soon) == 1


def test_only_receivers_of_the_settings_are_ever_asked(catalogue: Catalogue) -> None:
    """A request cannot name an address, and a name that the settings do not have is never posted to."""
    for request in ({"source": "/s/a", "bucket": "b", "key": "k"}, {"verb": "verify", "bucket": "b"}):
        model = UploadRequest if "key" in request else BatchRequest
        with pytest.raises(ValidationError):
            model.model_validate({**request, "notify": ["http://169.254.169.254/latest"]})
    with pytest.raises(ValidationError):
        Settings(webhooks={"http://x": receiver("http://127.0.0.1:9")})
    end(catalogue, "job-1", "gone")
    with http_receiver() as (url, received):
        assert deliver(catalogue, ci=receiver(url)) == ({}, {})
    assert received == []


def test_ends_that_wait_for_a_removed_receiver_show_until_it_is_back(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finding and the job say that the settings have no such webhook; once it is there again it gets its ends."""

    def see_removed(*configured: str) -> dict[str, int]:
        return catalogue.job_webhooks.see_removed(configured, now=clock.now(), give_up=timedelta(days=3))

    end(catalogue, "job-1", "ci", "other")
    end(catalogue, "job-2", "ci")
    begin(catalogue, "open", "ci")
    fence = begin(catalogue, "misspelt", "cj")
    catalogue.ledger.finish(
        "misspelt", fence, JobState.FAILED, now=clock.now(), error={"type": UnknownReceiver.__name__}
    )
    assert see_removed("ci", "other", "cj") == {}
    assert (see_removed("other"), see_removed("other")) == ({"ci": 2}, {})  # it is new only once
    [found] = catalogue.findings.page(kind=FindingKind.WEBHOOK_UNDELIVERED)
    assert (found.key, "that wait for it: 2," in found.evidence["detail"]) == ("ci", True)
    assert catalogue.job_webhooks.of_job("job-1") == {
        "ci": "not delivered yet: the settings have no such webhook", "other": "not delivered yet",
    }  # fmt: skip
    assert list(catalogue.job_webhooks.receivers()) == ["ci", "other"]
    assert catalogue.job_webhooks.receivers()["ci"].pending == 2
    with http_receiver() as (url, received):
        deliver(catalogue, ci=receiver(url))
    assert len(received) == 2
    assert catalogue.findings.page(kind=FindingKind.WEBHOOK_UNDELIVERED) == []
    end(catalogue, "job-3", "ci")
    later(monkeypatch, timedelta(days=4))
    see_removed()
    assert {name: state.given_up for name, state in catalogue.job_webhooks.receivers().items()} == {"ci": 1, "other": 1}
    assert {each.key for each in catalogue.findings.page(kind=FindingKind.WEBHOOK_UNDELIVERED)} == {"ci", "other"}
    assert catalogue.job_webhooks.forget("other", now=clock.now()) == 1
    later(monkeypatch, timedelta(days=31))
    catalogue.job_webhooks.prune(before=clock.now() - timedelta(days=30))
    see_removed()
    assert catalogue.findings.page(kind=FindingKind.WEBHOOK_UNDELIVERED) == []
    catalogue.ledger.finish("open", 1, JobState.SUCCEEDED, now=clock.now(), result={})
    assert see_removed() == {"ci": 1}


def test_old_ends_are_forgotten_and_open_jobs_are_not(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its time a delivered end leaves the catalogue; that of a job which is still open stays."""
    end(catalogue, "job-1", "ci")
    begin(catalogue, "open", "ci")
    later(monkeypatch, timedelta(days=40))
    catalogue.job_webhooks.prune(before=clock.now() - timedelta(days=30))
    catalogue.ledger.finish("open", 1, JobState.SUCCEEDED, now=clock.now(), result={})
    with http_receiver() as (url, received):
        deliver(catalogue, ci=receiver(url))
    assert told(received) == [("job.succeeded", "open")]


def test_the_command_shows_what_does_not_arrive(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`webhooks` ends with 1 while an end does not arrive, and shows no address; `webhooks test` sends a message."""
    monkeypatch.setenv("ZOT_HOME", str(tmp_path / "home"))
    with http_receiver([401]) as (url, received):
        settings = {"ci": {"url": f"{url}/token", "secret": SECRET}}
        monkeypatch.setenv("ZOT_WEBHOOKS", json.dumps(settings))
        loaded = Settings()
        loaded.prepare()
        catalogue = Catalogue(loaded.catalogue_url)
        end(catalogue, "job-1", "ci")
        assert cli.run(["webhooks"]) == 0
        deliver(catalogue, **loaded.webhooks)
        catalogue.close()
        assert cli.run(["webhooks"]) == 1
        assert cli.run(["webhooks", "test", "ci"]) == 0
        assert cli.run(["webhooks", "test", "cj"]) == 2
        assert cli.run(["jobs", "job-1"]) == 0
        monkeypatch.setenv("ZOT_WEBHOOKS", "{}")
        assert cli.run(["webhooks"]) == 1
        assert cli.run(["webhooks", "forget", "ci"]) == 0
        assert cli.run(["webhooks"]) == 0
        assert cli.run(["webhooks", "forget", "ci"]) == 2
    printed = "".join(capsys.readouterr())
    assert "no webhook cj" in printed
    assert "status 401" in printed
    assert "webhook      ci: not delivered yet: webhook 127.0.0.1: it answered with status 401" in printed
    assert "ci (not configured)" in printed
    assert "ci: the ends of 1 job were forgotten" in printed
    assert "/token" not in printed
    assert len(received) == 2
