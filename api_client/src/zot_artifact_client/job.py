"""A job that was sent: where it stands, and its typed result."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, cast

from pydantic import ValidationError

from zot_artifact_client.contract import TASKS, JobState, Progress, ResultT, TaskSpec
from zot_artifact_client.errors import ClientError, JobNotDone

OnProgress = Callable[[Progress], object]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is known of a job at one moment.

    Attributes:
        progress: how far it is, while it runs and has said so.
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
    """Where the states and results of jobs are kept."""

    def snapshot(self, job_id: str) -> Snapshot:
        """Return what is known of a job now. Raise BrokerUnavailable."""

    def wait_for_end(self, job_id: str, timeout: float | None, on_progress: OnProgress | None) -> Snapshot:
        """Return the snapshot that ends a job. Raise WaitTimeout, BrokerUnavailable, and what `on_progress` raises."""

    def cancel(self, job_id: str) -> None:
        """Ask for the end of a job. Raise BrokerUnavailable."""


@dataclass(frozen=True, slots=True)
class Job(Generic[ResultT]):
    """A job by its id. Any process may make one for an id that it was told: see `ArtifactClient.job`."""

    id: str
    spec: TaskSpec[Any, ResultT] | None = field(default=None, repr=False)
    results: ResultBackend = field(kw_only=True, repr=False, compare=False)

    @property
    def kind(self) -> str | None:
        """Return `upload`, `verify`, …; None for an id whose kind nobody has told."""
        return self.spec.kind if self.spec else None

    @property
    def state(self) -> JobState:
        """Return where the job stands. An id that is unknown, or whose result has expired, looks queued."""
        return self.results.snapshot(self.id).state

    @property
    def progress(self) -> Progress | None:
        """Return how far a running job is, or None if it does not run or has not said."""
        return self.results.snapshot(self.id).progress

    @property
    def result(self) -> ResultT | None:
        """Return the result of a job that succeeded, or None if it has not ended.

        Raises:
            JobFailed, JobCancelled: it ended without success.
            BrokerUnavailable: nobody can tell.
        """
        snapshot = self.results.snapshot(self.id)
        return self._result(snapshot) if snapshot.state.terminal else None

    def wait(self, timeout: float | None = None, *, on_progress: OnProgress | None = None) -> ResultT:
        """Wait for the end of the job and return its result.

        Args:
            timeout: seconds, or None for as long as it takes.
            on_progress: called at most a few times a second; what it raises ends the wait, not the job.

        Raises:
            WaitTimeout: it has not ended in time; it goes on.
            JobFailed, JobCancelled: it ended without success.
            BrokerUnavailable: the result backend cannot be reached; the job itself may go on.
        """
        return self._result(self.results.wait_for_end(self.id, timeout, on_progress))

    def cancel(self) -> None:
        """Ask for the end of the job: at once if it is queued, at its next piece if it runs, never if it has ended.

        Returns before that has happened; `wait` raises JobCancelled when it has.
        """
        self.results.cancel(self.id)

    def _result(self, snapshot: Snapshot) -> ResultT:
        if snapshot.error is not None:
            raise snapshot.error
        spec = self.spec or TASKS.get(snapshot.task or "")
        if spec is None:  # the caller did not say the kind either, so it gets the JSON as it is
            return cast("ResultT", snapshot.value)
        try:
            return cast("ResultT", spec.result.read(snapshot.value))
        except ValidationError:
            msg = f"the result of job {self.id} is not that of {spec.name}: ask for it by the right kind"
            raise ClientError(msg) from None
