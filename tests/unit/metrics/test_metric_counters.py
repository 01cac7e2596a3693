"""What a process counts is kept once, whatever Redis and forks do meanwhile."""

import os
from collections.abc import Iterator

import pytest
from celery import Celery

from tests.servers import Valkey
from worker import metric_counters
from worker.metric_counters import RETRIES, STORE_SECONDS, Meter
from worker.metrics import totals_sender as sender
from worker.metrics.totals import totals
from worker.metrics.totals_sender import TOTALS, Sender
from zot_artifact_client.broker_urls import redis_client


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Begin without counts of other tests."""
    metric_counters.drain()
    yield
    metric_counters.drain()


@pytest.fixture
def url(valkey: Valkey) -> str:
    valkey.empty()
    return valkey.url


def app_on(url: str) -> Celery:
    return Celery("counting", backend=url, set_as_current=False)


def shown(url: str, *stores: str) -> dict[tuple[str, ...], float]:
    """Return what the exporter would show, by the name of each sample and its labels."""
    with redis_client(url) as client:
        families = list(totals(client, stores))
    return {
        (sample.name.removeprefix("zot_artifacts_"), *sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
    }


def test_counts_of_several_processes_add_up(url):
    """Two processes that count the same are shown as one sum, histograms bucket by bucket."""
    app = app_on(url)
    for _ in range(2):
        RETRIES.add("upload", "Unavailable")
        STORE_SECONDS.observe("dr", "write", value=0.2)
        STORE_SECONDS.observe("dr", "write", value=1e6)
        Sender(app).send()
    app.close()
    found = shown(url, "dr")
    assert found["job_retries_total", "upload", "Unavailable"] == 2
    assert found["store_operation_seconds_count", "dr", "write"] == 4
    assert found["store_operation_seconds_bucket", "dr", "write", "0.05"] == 0
    assert found["store_operation_seconds_bucket", "dr", "write", "0.25"] == 2
    assert found["store_operation_seconds_bucket", "dr", "write", "+Inf"] == 4
    assert found["store_operation_seconds_sum", "dr", "write"] == pytest.approx(2e6 + 0.4)


def test_what_an_alarm_watches_begins_at_zero(url):
    """Lost workers and errors of each store are 0 before the first: Prometheus sees no increase to a first value."""
    found = shown(url, "dr")
    assert found["lease_recoveries_total", "page"] == found["lease_recoveries_total", "upload"] == 0
    assert found["store_errors_total", "dr", "OutOfSpace"] == found["store_errors_total", "dr", "AccessDenied"] == 0


def test_a_store_that_left_and_a_strange_field_are_not_shown(url):
    """A store that is not configured, a meter of another version and a value that is no number are left out."""
    STORE_SECONDS.observe("old", "write", value=1)
    app = app_on(url)
    Sender(app).send()
    app.close()
    with redis_client(url) as client:
        client.hset(TOTALS, mapping={"unheard|of": 1, "job_retries|upload|Timeout": "many", "job_retries|upload": 7})
    assert [name for name in shown(url, "dr") if "old" in name or "job_retries_total" in name] == []


def test_counts_wait_while_redis_is_away(url):
    """What Redis did not take is sent once it answers."""
    app, back = app_on("redis://127.0.0.1:1/0"), app_on(url)
    RETRIES.add("verify", "Timeout")
    Sender(app).send()
    RETRIES.add("verify", "Timeout")
    Sender(back).send()
    app.close()
    back.close()
    assert shown(url)["job_retries_total", "verify", "Timeout"] == 2


def test_a_forked_process_does_not_send_what_its_parent_counted():
    """A child begins at zero: its parent sends its own counts."""
    RETRIES.add("upload", "Timeout")
    readable, writable = os.pipe()
    if os.fork() == 0:
        os.write(writable, f"{len(metric_counters.drain())}".encode())
        os._exit(0)
    os.close(writable)
    with os.fdopen(readable) as told:
        assert told.read() == "0"
    os.wait()
    assert list(metric_counters.drain().values()) == [1]


def test_a_process_that_ends_sends_its_last_counts(url, monkeypatch):
    """The end of a process is no loss, although the next turn would be later."""
    monkeypatch.setattr(sender, "_EVERY", 60.0)
    app = app_on(url)
    sending = Sender(app)
    sending.start()
    RETRIES.add("delete", "Timeout")
    sending.stop()
    app.close()
    assert shown(url)["job_retries_total", "delete", "Timeout"] == 1


def test_a_wrong_number_of_labels_is_an_error():
    """A meter is never counted under labels that no family has."""
    with pytest.raises(ValueError, match="job_retries has the labels"):
        RETRIES.add("upload")


def test_no_meter_has_a_label_without_bounds():
    """Labels are kinds, stores, verbs, classes, verdicts and modes; none is a key, a URL or an id."""
    allowed = {"kind", "error", "store", "verb", "mode", "verdict", "reason"}
    assert {label for meter in metric_counters.METERS.values() for label in meter.labels} <= allowed
    assert all(isinstance(meter, Meter) for meter in metric_counters.METERS.values())
