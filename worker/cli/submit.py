"""Send a job to the worker, and stay with it until it has ended."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from worker.cli.errors import Failure, Status
from worker.cli.outcome import Outcome, outcome_of, outcome_told
from worker.cli.output import note
from worker.cli.progress import Bar, await_end, bar
from worker.context import Context
from worker.settings import Settings
from zot_artifact_client import ArtifactClient, BrokerUnavailable, Job
from zot_artifact_client.contract import Message, TaskSpec


@dataclass(frozen=True, slots=True)
class Sender:
    """The way to the worker, and the progress bar that shows what comes of it."""

    context: Context
    client: ArtifactClient
    shown: Bar

    def known(self, spec: TaskSpec[Any, Any], job_id: str, request: Message) -> bool:
        """Return whether a worker has taken this very job before, which an idempotency key can bring about.

        Raises:
            Failure: the job of this id is another request.
        """
        record = self.context.catalogue.ledger.get(job_id)
        if record is None:
            return False
        ours, theirs = request.payload(), dict(record.request)
        for staging in ("source", "sha256", "keys_from", "staged") if theirs.get("staged") else ():
            ours.pop(staging, None)
            theirs.pop(staging, None)
        if (record.kind, theirs) != (spec.kind, ours):
            raise Failure(
                f"the idempotency key was used for another request, job {job_id}: give this one a key of its own",
                Status.USAGE,
                type_="OtherRequest",
            )
        return True

    def send(self, spec: TaskSpec[Any, Any], job_id: str, request: Message) -> Job[Any]:
        """Send a job.

        Raises:
            BrokerUnavailable: nothing was sent; says the way out.
        """
        try:
            return self.client.submit(spec, request, job_id=job_id)
        except BrokerUnavailable as error:
            raise BrokerUnavailable(f"{error}; {_way_out(self.context.settings)}") from error

    def stay(self, job: Job[Any], timeout: float | None) -> Outcome:
        """Wait until the job has ended or the time is up, and return what is known of it then.

        Raises:
            Failure: the broker has gone away and nobody can tell how the job ends.
        """
        kind = job.kind or "job"
        try:
            told = await_end(job, self.context.catalogue, self.context.settings, self.shown, timeout)
        except KeyboardInterrupt:
            note(f"job {job.id} goes on: `zot-artifacts jobs {job.id}` tells how it ends")
            raise
        record = self.context.catalogue.ledger.get(job.id)
        if record is None:
            return outcome_told(job.id, kind, told) if told else Outcome(job.id, kind)
        return outcome_of(record)


@contextmanager
def sender(context: Context, step: str) -> Iterator[Sender]:
    """Open the way to the worker.

    Raises:
        NoBroker: none is configured, and none runs here.
    """
    settings = context.settings
    with ArtifactClient(settings.broker_url, settings.results_url) as client, bar(step) as shown:
        yield Sender(context, client, shown)


def request_of(spec: TaskSpec[Any, Any], **fields: object) -> Any:
    """Return the request with the fields that are given.

    Raises:
        Failure: it is not one that the worker would accept; nothing was sent.
    """
    try:
        return spec.request.read({name: value for name, value in fields.items() if value is not None})
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors(include_input=False)]
        raise Failure(f"{spec.kind}: {'; '.join(faults)}", Status.USAGE, type_="InvalidRequest") from None


def _way_out(settings: Settings) -> str:
    if settings.broker is None:
        return f"`zot-artifacts up` on {settings.home} was killed, start it again"
    return "start it, or correct ZOT_BROKER"
