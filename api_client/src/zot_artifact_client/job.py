"""A job that was sent: its state and its typed result."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, cast

from pydantic import ValidationError

from zot_artifact_client.contract import TASKS, JobState, Progress, ResultT, TaskSpec
from zot_artifact_client.errors import ClientError, JobNotDone, UnknownJob

OnProgress = Callable[[Progress], object]


def unknown_job(job_id: str) -> UnknownJob:
    """Return the error for an id of which nothing is known."""
    return UnknownJob(
        f"nothing is known of a job {job_id}: the id is wrong, its result has expired, or another program sent it and "
        "no worker has taken it yet"
    )


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of a job at one moment.

    Attributes:
        progress: how far it is, while it runs and reports it.
        value: the result as JSON, if it succeeded.
        error: why it did not, if it ended otherwise.
        task: the name of its task, where the worker stores it with the result.
    """

    state: JobState
    progress: Progress | None = None
    value: object = None
    error: JobNotDone | None = None
    task: str | None = None


class ResultBackend(Protocol):
    """Reads the states and results of jobs."""

    def snapshot(self, job_id: str) -> Snapshot:
        """Return the state of a job now. Raise BrokerUnavailable."""

    def wait_for_end(self, job_id: str, timeout: float | None, on_progress: OnProgress | None) -> Snapshot:
        """Return the snapshot of an ended job.

        Raise WaitTimeout, UnknownJob, BrokerUnavailable, and what `on_progress` raises.
        """

    def cancel(self, job_id: str) -> bool:
        """Request that a job is cancelled; return False if it has ended. Raise UnknownJob, BrokerUnavailable."""


@dataclass(frozen=True, slots=True)
class Job(Generic[ResultT]):
    """A job by its id. Any process can make one from an id: see `ArtifactClient.job`."""

    id: str
    spec: TaskSpec[Any, ResultT] | None = field(default=None, repr=False)
    results: ResultBackend = field(kw_only=True, repr=False, compare=False)

    @property
    def kind(self) -> str | None:
        """Return `upload`, `verify`, …; None if it was not given."""
        return self.spec.kind if self.spec else None

    @property
    def state(self) -> JobState:
        """Return the state of the job: `unknown` for an id that is wrong, or whose result has expired."""
        return self.results.snapshot(self.id).state

    @property
    def progress(self) -> Progress | None:
        """Return how far a running job is, or None if it does not run or has not reported it."""
        return self.results.snapshot(self.id).progress

    @property
    def result(self) -> ResultT | None:
        """Return the result of a job that succeeded, or None if it has not ended.

        Raises:
            JobFailed, JobCancelled: it ended without success.
            UnknownJob: nothing is known of a job with this id.
            BrokerUnavailable: the result backend cannot be reached.
        """
        snapshot = self.results.snapshot(self.id)
        if snapshot.state is JobState.UNKNOWN:
            raise unknown_job(self.id)
        return self._result(snapshot) if snapshot.state.terminal else None

    def wait(self, timeout: float | None = None, *, on_progress: OnProgress | None = None) -> ResultT:
        """Wait for the end of the job and return its result.

        Args:
            timeout: seconds, or None for as long as it takes.
            on_progress: called at most a few times a second; what it raises ends the wait, not the job.

        Raises:
            WaitTimeout: it has not ended in time; it goes on.
            JobFailed, JobCancelled: it ended without success.
            UnknownJob: nothing is known of a job with this id.
            BrokerUnavailable: the result backend cannot be reached; the job itself may go on.
        """
        return self._result(self.results.wait_for_end(self.id, timeout, on_progress))

    def cancel(self) -> bool:
        """Request that the job is cancelled, and return before it is; `wait` raises JobCancelled when it is.

        Return False if the job has ended already. Raise UnknownJob if nothing is known of the job; the request is kept
        for a day nevertheless, in case that another program has sent it.
        """
        return self.results.cancel(self.id)

    def _result(self, snapshot: Snapshot) -> ResultT:
        if snapshot.error is not None:
            raise snapshot.error
        spec = self.spec or TASKS.get(snapshot.task or "")
        if spec is None:  # the caller did not give the kind either, so it gets the JSON as it is
            return cast("ResultT", snapshot.value)
        try:
            return cast("ResultT", spec.result.read(snapshot.value))
        except ValidationError:
            msg = f"the result of job {self.id} is not that of {spec.name}: ask for it by the right kind"
            raise ClientError(msg) from None
