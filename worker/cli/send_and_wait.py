"""Send a job to the worker, and wait until it has ended."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from worker.catalogue import CatalogueError
from worker.cli.errors import Failure
from worker.cli.job_outcome import Outcome, outcome_from_client, outcome_of
from worker.cli.output import note
from worker.cli.progress import Bar, await_end, bar
from worker.cli.session import Session
from worker.cli.stage_file import Staged
from worker.exit_status import Status
from worker.report.check import FULL_BROKER
from worker.settings import Settings
from zot_artifact_client.contract import JobState, Message, TaskSpec
from zot_artifact_client.errors import BrokerUnavailable, ClientError, IdempotencyMismatch
from zot_artifact_client.request_faults import faults_of

if TYPE_CHECKING:
    from zot_artifact_client import ArtifactClient, Job


@dataclass(frozen=True, slots=True)
class WaitOptions:
    """Whether a command waits for the end of its job, and how long; its idempotency key, and who else gets its end."""

    wait: bool = True
    timeout: float | None = None
    key: str | None = None
    notify: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Sender:
    """The connection to the broker, with the progress bar of the command."""

    session: Session
    client: "ArtifactClient"
    shown: Bar
    waiting: WaitOptions

    def known(self, spec: TaskSpec[Any, Any], job_id: str, request: Message) -> bool:
        """Return whether the ledger has this job already, because its idempotency key is used again.

        For a file that was staged, `request` has the SHA-256 of its bytes: they decide whether it is the same request.

        Raises:
            Failure: the job with this id has another request.
        """
        from worker.jobs.first_request import first_request  # it imports Celery

        try:
            return first_request(self.session.catalogue.ledger, job_id, spec.kind, request.payload()) is not None
        except IdempotencyMismatch:
            raise Failure(
                f"the idempotency key was used for another request, job {job_id}: use another key for this one",
                Status.USAGE,
                type_="OtherRequest",
            ) from None

    def send(self, spec: TaskSpec[Any, Any], job_id: str, request: Message) -> "Job[Any]":
        """Send a job, unless another user has sent the same request with the same idempotency key.

        Raises:
            BrokerUnavailable: nothing was sent; says the way out.
            IdempotencyMismatch: the key was used for another request, which may wait; nothing was sent.
        """
        try:
            if self.waiting.key is not None:  # `job_id` was made from it
                return self.client.submit(spec, request, idempotency_key=self.waiting.key)
            return self.client.submit(spec, request, job_id=job_id)
        except IdempotencyMismatch:
            if self._is_of_another_user(spec, job_id, request):
                return self.client.job(job_id, spec)
            raise
        except BrokerUnavailable as error:
            from zot_artifact_client.connection import broker_fault, passing_fault  # it imports Celery

            if passing_fault(error) or broker_fault(error, self.session.settings.broker_url):  # it names its way out
                raise
            raise BrokerUnavailable(f"{error}; {way_out_of_broker(self.session.settings, error)}") from error
        except KeyboardInterrupt:
            note(f"job {job_id} may have been sent: `zot-artifacts jobs {job_id}` shows it")
            raise

    def _is_of_another_user(self, spec: TaskSpec[Any, Any], job_id: str, request: Message) -> bool:
        """Return whether the job under an id has the same request but for who asks, which its digest contains."""
        from worker.cli.jobs_in_outbox import jobs_in_outbox
        from worker.jobs.first_request import is_same  # it imports Celery

        for waiting in jobs_in_outbox(self.session.settings, job_id, limit=1):
            if waiting.id == job_id:
                return waiting.kind == spec.kind and is_same(waiting.request, request.payload())
        return self.known(spec, job_id, request)  # a worker may have taken it meanwhile

    def send_once(self, spec: TaskSpec[Any, Any], job_id: str, request: Message) -> "Job[Any]":
        """Return the job, which is sent unless the ledger has it.

        Raises: as `known` and `send`.
        """
        if self.known(spec, job_id, request):
            return self.client.job(job_id, spec)
        return self.send(spec, job_id, request)

    def send_staged(self, spec: TaskSpec[Any, Any], job_id: str, request: Message, staged: Staged) -> "Job[Any]":
        """Return the job that needs a staged file; the file is removed if nothing was sent.

        Raises: as `known` and `send`.
        """
        try:
            if self.known(spec, job_id, request):
                staged.drop()
                return self.client.job(job_id, spec)
            return self.send(spec, job_id, request)
        except (ClientError, Failure, CatalogueError):
            staged.drop()
            raise

    def wait(self, job: "Job[Any]") -> Outcome:
        """Wait until the job has ended or the time is up, and return its state then; with --no-wait at once.

        Raises:
            Failure: the broker or the catalogue has gone away, and the ledger does not show the end of the job.
        """
        kind = job.kind or "job"
        if not self.waiting.wait:
            return Outcome(job.id, kind)
        with continuing(f"job {job.id}", f"`zot-artifacts jobs {job.id} --wait` waits for its end"):
            told = await_end(job, self.session.catalogue, self.session.settings, self.shown, self.waiting.timeout)
            record = self.session.catalogue.ledger.get(job.id)
        if record is None or record.state == JobState.REFUSED:  # the result backend tells it from a corrected request
            return outcome_from_client(job.id, kind, told) if told else Outcome(job.id, kind)
        return outcome_of(record)


@contextmanager
def continuing(what: str, way_to_see: str) -> Iterator[None]:
    """Say that what the block waits for continues, and how to see it, where the wait ends before it.

    Raises:
        Failure: the broker or the catalogue has gone away; the end is unknown.
    """
    try:
        yield
    except KeyboardInterrupt:
        note(f"{what} continues: {way_to_see}")
        raise
    except (BrokerUnavailable, CatalogueError) as error:
        raise Failure(
            f"{error}; {what} may continue: {way_to_see}", Status.UNKNOWN, type_=type(error).__name__
        ) from error


@contextmanager
def sender(session: Session, step: str, waiting: WaitOptions) -> Iterator[Sender]:
    """Open the connection to the broker, to send a job and wait for its end.

    Raises:
        NoBroker: none is configured, and none runs on the data directory.
    """
    from zot_artifact_client import ArtifactClient  # it imports Celery, which takes half a second

    settings = session.settings
    with ArtifactClient(settings.broker_url, settings.results_url) as client, bar(step) as shown:
        yield Sender(session, client, shown, waiting)


def request_of(spec: TaskSpec[Any, Any], **fields: object) -> Any:
    """Return the request with these fields.

    Raises:
        Failure: the request is not valid; nothing was sent.
    """
    try:
        return spec.request.read({name: value for name, value in fields.items() if value is not None})
    except ValidationError as error:
        faults = faults_of(error.errors(include_input=False))
        raise Failure(f"{spec.kind}: {faults}", Status.USAGE, type_="InvalidRequest") from None


def way_out_of_broker(settings: Settings, error: Exception) -> str:
    """Return what to do about a broker that a command could not send to."""
    from zot_artifact_client.connection import takes_no_writes  # it imports Celery

    if takes_no_writes(error):
        return FULL_BROKER
    if settings.broker is None:
        return (
            f"`zot-artifacts up` runs on {settings.home}, and its broker does not answer: stop it, and start it again"
        )
    return "start it, or correct ZOT_BROKER"
