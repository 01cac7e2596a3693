"""The pages of a sweep whose messages are lost are sent again by the recovery, with a real Redis."""

import json
from collections.abc import Iterator
from datetime import timedelta

import pytest
import redis
from celery import Celery

from tasks.sweeps.recover import recover
from worker import clock
from worker.context import Context
from worker.jobs.outbox import Outbox
from worker.jobs.send_sweep_pages import PlanOfClaims, plan
from worker.settings import Settings
from worker.settings.section_models import RecoverSweepSettings, SweepSettings
from worker.storage import Digest
from worker.storage.config import FilesystemConfig
from zot_artifact_client.contract import ClaimSelection, PageRequest, RangeSelection

OF_SWEEP = PageRequest(verb="verify", claim=ClaimSelection(store="primary", most=5))
OF_BATCH = PageRequest(verb="verify", range=RangeSelection(bucket="releases", until="z"))


@pytest.fixture
def broker(valkey) -> Iterator[redis.Redis]:
    valkey.empty()
    with redis.Redis.from_url(valkey.url) as client:
        yield client


@pytest.fixture
def app(valkey) -> Iterator[Celery]:
    with Celery(broker=valkey.url, backend=valkey.url, set_as_current=False) as app:
        yield app


@pytest.fixture
def context(tmp_path) -> Iterator[Context]:
    settings = Settings(
        home=tmp_path / "home",
        stores={"primary": FilesystemConfig(root=tmp_path / "home" / "primary")},
        sweep=SweepSettings(recover=RecoverSweepSettings(after=timedelta(milliseconds=1))),
    )
    settings.home.mkdir()
    opened = Context.open(settings)
    yield opened
    opened.close()


def test_pages_of_a_sweep_are_sent_again(context, app, broker):
    """A page that no worker can receive would be counted as open for ever, and the sweep would send fewer pages."""
    plan(context.catalogue, "sweep-1", [OF_SWEEP, OF_SWEEP], Outbox(app))
    planned = {page.job for page in context.catalogue.pages.planned_by("sweep-1")}
    assert recover(context, app).messages == 0  # they wait in their queue
    broker.flushdb()
    assert recover(context, app).messages == len(planned) == 2
    assert recover(context, app).messages == 0
    assert {json.loads(raw)["headers"]["id"] for raw in broker.lrange("sweep", 0, -1)} == planned


def test_pages_that_were_never_sent_are_sent(context, app, broker, monkeypatch, caplog):
    """The broker restarts after a sweep has planned its pages: a later run does not plan them again.

    A recovery that meets such a broker says so in a line, and the next one sends the pages.
    """
    with monkeypatch.context() as away:
        away.setattr(Outbox, "send", lambda *_: (_ for _ in ()).throw(redis.ConnectionError))
        with pytest.raises(redis.ConnectionError):
            plan(context.catalogue, "sweep-1", [OF_SWEEP], Outbox(app))
        away.setattr(Outbox, "lost", lambda *_: (_ for _ in ()).throw(redis.ConnectionError))
        with pytest.raises(redis.ConnectionError):
            plan(context.catalogue, "sweep-2", [OF_SWEEP], Outbox(app))
        assert recover(context, app).messages == 0
        assert "the step pages of sweeps waits for the broker: ConnectionError" in caplog.text
        assert "Traceback" not in caplog.text
    [page] = context.catalogue.pages.planned_by("sweep-2")
    assert context.catalogue.ledger.get(page.job).due_at is not None
    assert ([each.waits for each in context.catalogue.pages.planned_by("sweep-1")], broker.llen("sweep")) == ([True], 0)
    assert recover(context, app).messages == 1
    assert broker.llen("sweep") == 1


def test_pages_of_a_batch_are_left_to_their_batch(context, app, broker):
    """A batch asks for the messages of its pages itself."""
    plan(context.catalogue, "batch-1", [OF_BATCH], Outbox(app))
    broker.flushdb()
    assert recover(context, app).messages == 0


def test_pages_have_a_due_time_where_the_broker_cannot_tell(context, app, broker):
    """After a move to such a broker they are sent once more in an hour, and not at each run."""
    plan(context.catalogue, "sweep-1", [OF_SWEEP], Outbox(app))
    [page] = context.catalogue.pages.planned_by("sweep-1")
    with Celery(broker="memory://", set_as_current=False) as other:
        assert [recover(context, other).messages for _ in range(3)] == [0, 0, 0]
        assert context.catalogue.ledger.get(page.job).due_at is not None
        plan(context.catalogue, "sweep-2", [OF_SWEEP], Outbox(other))
        claims = PlanOfClaims(context.catalogue, "sweep-3", Outbox(other))
    artifact = context.catalogue.artifacts.record("releases", "a", Digest(1, "a" * 64), {}, now := clock.now()).artifact
    with context.catalogue._database.write() as connection:
        claims.pages_of("primary", objects=1, now=now, until=now + timedelta(hours=6))(connection, [artifact])
    for sweep in ("sweep-2", "sweep-3"):
        [page] = context.catalogue.pages.planned_by(sweep)
        assert context.catalogue.ledger.get(page.job).due_at >= now
    assert context.catalogue.pages.get(page.job).claimed_until == now + timedelta(hours=6)
