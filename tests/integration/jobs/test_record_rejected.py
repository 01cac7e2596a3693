"""A rejected message is recorded while clients go on to send, with a real Redis and a real catalogue."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

import tasks.record_rejected
from worker.catalogue import Ledger
from worker.context import Context
from worker.intake.message_filter import RECORD_TASK
from worker.jobs.outbox import Outbox
from worker.jobs.result_backend import use_atomic_result_backend
from worker.settings import Settings
from zot_artifact_client import ArtifactClient, IdempotencyMismatch
from zot_artifact_client.contract import VERIFY, JobState, VerifyRequest

pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex")  # by Celery, when it keeps a result


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Context]:
    settings = Settings(home=tmp_path / "home")
    settings.home.mkdir()
    with closing(Context.open(settings)) as opened:
        yield opened


@pytest.fixture
def app(valkey: Any) -> Iterator[Celery]:
    valkey.empty()
    with Celery(broker=valkey.url, backend=valkey.url, set_as_current=False) as made:
        use_atomic_result_backend(made)
        yield made


def test_a_request_that_is_sent_while_a_message_with_its_id_is_rejected_stays(
    valkey: Any, app: Celery, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It keeps its entry in the outbox, without which no lost message is sent again, and its id."""
    monkeypatch.setattr(tasks.record_rejected, "current", lambda: context)
    wanted, other = (VerifyRequest(bucket="releases", key=key) for key in ("app.tgz", "other.tgz"))
    reject = Ledger.reject
    with ArtifactClient(valkey.url) as client:

        def reject_late(*arguments: Any) -> None:
            client.submit(VERIFY, wanted, job_id="mine")
            reject(*arguments)

        monkeypatch.setattr(Ledger, "reject", reject_late)
        app.tasks[RECORD_TASK]("mine", "unheard", "UnknownTask", "no task is named so")
        assert client.job("mine").state is JobState.QUEUED
        assert Outbox(app).find("mine") is not None
        with pytest.raises(IdempotencyMismatch):
            client.submit(VERIFY, other, job_id="mine")
