"""The progress bar of a command."""

import io
from datetime import timedelta

import pytest
from rich.console import Console

from tests.unit.cli.test_status import catalogue  # noqa: F401 - a fixture
from worker import clock
from worker.catalogue import Catalogue, JobRecord, Scope
from worker.cli import progress
from worker.settings import Settings
from zot_artifact_client.contract import JobState, Progress


@pytest.mark.parametrize(
    ("seen", "amount"),
    [
        (Progress(step="verifying", objects_done=17, objects_total=400), "17/400 objects"),
        (Progress(step="verifying", bytes_done=1024**2, bytes_total=8 * 1024**2, objects_done=1), "1.0/8.0 MiB"),
    ],
)
def test_a_bar_counts_objects_where_no_bytes_are_known(
    seen: Progress, amount: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch whose bytes are unknown shows its objects, every other job its bytes."""
    screen = Console(file=io.StringIO(), force_terminal=True, width=100)
    monkeypatch.setattr(progress, "err", lambda: screen)
    with progress.bar("waiting") as shown:
        shown.update(seen)
    assert amount in screen.file.getvalue()
    assert "verifying" in screen.file.getvalue()


def test_a_bar_shows_no_amount_before_it_knows_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that has not begun shows no `0/? bytes`; input of unknown size shows the bytes that were read."""
    screen = Console(file=io.StringIO(), force_terminal=True, width=100)
    monkeypatch.setattr(progress, "err", lambda: screen)
    with progress.bar("upload app.tgz"):
        pass
    assert "upload app.tgz" in screen.file.getvalue()
    assert "? bytes" not in screen.file.getvalue()
    with progress.bar("upload -") as shown:
        shown.advance(300)
    assert "300/? bytes" in screen.file.getvalue()


def test_a_command_tells_once_what_its_job_waits_for(
    catalogue: Catalogue,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A delete that needs an approval, or a job whose store is paused, is told while the command waits for it."""
    waits = {
        "type": "WaitsForApproval",
        "message": "the delete of a/b/ (3 objects) needs the approval of another person",
    }
    job = JobRecord(
        id="job-1", kind="delete", request={}, state=JobState.QUEUED, attempts=0, fence=1, created_at=clock.now(),
        queue="interactive", error=waits,
    )  # fmt: skip
    watch = progress.Watch("job-1", Settings(), catalogue)
    watch.see(job)
    watch.see(job)
    assert capsys.readouterr().err.count(waits["message"]) == 1


def test_a_command_tells_for_which_store_jobs_of_its_batch_wait(
    catalogue: Catalogue,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each store is told with its reason and time, and again when it has taken jobs meanwhile; no job of others is."""
    monkeypatch.setattr(progress, "_PATIENCE", -1.0)
    now = clock.now()
    batch = JobRecord(
        id="batch-1", kind="batch", request={}, state=JobState.QUEUED, attempts=1, fence=1, created_at=now,
        started_at=now,
    )  # fmt: skip
    watch = progress.Watch("batch-1", Settings(), catalogue)

    def page(name: str, store: str, parent: str = "batch-1") -> None:
        lease = {"owner": "me", "writes_to": None, "lease": timedelta(minutes=1), "queue": "sweep"}
        found = catalogue.ledger.acquire(name, "page", {"verb": "upload"}, parent=parent, **lease, now=now)
        error = {"type": "Snooze", "message": f"{store}: its circuit breaker is open", "store": store}
        catalogue.ledger.snooze(name, found.record.fence, error, since=now, due=now + timedelta(seconds=30))

    def told() -> str:
        watch.see(batch)
        return capsys.readouterr().err

    page("other", "cold", parent="batch-2")
    assert told() == ""
    page("page-1", "dr")
    page("page-2", "dr")
    by = (now + timedelta(seconds=30)).strftime("%Y-%m-%d %H:%M:%SZ")
    said = f"2 jobs of batch-1 waiting for dr, to be tried again by {by}: dr: its circuit breaker is open"
    assert told().replace("\n", " ").count(said) == 1
    assert told() == ""
    page("page-3", "primary")
    page("page-1", "primary")
    page("page-2", "primary")
    assert "3 jobs of batch-1 waiting for primary" in told()
    page("page-1", "dr")
    assert "1 job of batch-1 waiting for dr" in told()


def test_a_command_tells_busy_workers_from_none(
    catalogue: Catalogue,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A job behind others is not told as one that no worker is there for; nor is one whose queue is paused."""
    monkeypatch.setattr(progress, "_PATIENCE", -1.0)

    def told() -> str:
        progress.Watch("job-1", Settings(), catalogue, "transfer").see(None)
        return capsys.readouterr().err

    assert "no worker has taken job job-1 yet; no worker has any other job" in told()
    now = clock.now()
    lease = {"owner": "me", "writes_to": None, "parent": None, "lease": timedelta(minutes=1), "queue": "transfer"}
    catalogue.ledger.acquire("dead", "verify", {"key": "a"}, **lease, now=now - timedelta(hours=1))
    assert "no worker has any other job" in told()
    catalogue.ledger.acquire("other", "verify", {"key": "b"}, **lease, now=now)
    assert "workers have 1 other job of transfer, see `zot-artifacts jobs --state running`" in told()
    catalogue.pauses.begin(Scope.QUEUE, "sweep", reason=None, now=now)
    assert "paused" not in told(), "it is another queue than that of the job"
    catalogue.pauses.begin(Scope.QUEUE, "transfer", reason=None, now=now)
    assert "no worker has taken job job-1 yet; paused: queue transfer; workers have" in told()
