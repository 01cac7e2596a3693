"""A list of jobs, one of whose ids belongs to another request."""

from collections.abc import Mapping, Sequence

from zot_artifact_client.contract import VERIFY, JobState
from zot_artifact_client.job import Job, Jobs, OnProgress
from zot_artifact_client.snapshot import Snapshot


class Recorded:
    """Results that know one job, of another request than the one that was sent."""

    def __init__(self) -> None:
        self.cancelled: list[str] = []

    def snapshot(self, job_id: str) -> Snapshot:
        return Snapshot(JobState.RUNNING, request_sha256="theirs" if job_id == "other" else "ours")

    def wait_for_end(self, job_id: str, timeout: float | None, on_progress: OnProgress | None) -> Snapshot:
        return self.snapshot(job_id)

    def ended(self, job_ids: Sequence[str]) -> Mapping[str, Snapshot]:
        return {}

    def cancel(self, job_id: str) -> bool:
        self.cancelled.append(job_id)
        return True


def test_the_other_jobs_of_a_list_are_cancelled() -> None:
    """The job of another request goes on, and keeps no other job of the list from being cancelled."""
    results = Recorded()
    jobs = Jobs((Job(id_, VERIFY, "ours", results=results) for id_ in ("first", "other", "last")), results=results)
    assert jobs.cancel() == 2
    assert results.cancelled == ["first", "last"]
