"""Say why a job could not be sent, or did not succeed.

ClientError
├── InvalidUrl            the URL of the broker or result backend cannot be used
├── InvalidRequest        the request is not one the worker would accept; nothing was sent
├── IdempotencyMismatch   the id or idempotency key belongs to another request; nothing was done
├── BrokerUnavailable     the broker or the result backend cannot be reached
├── UnknownJob            nothing is known of a job with this id
├── ArtifactNotFound      the catalogue has no such artifact
├── ArtifactChanged       the artifact has other bytes now than when it was opened
├── NoGoodCopy            no store has the right bytes of the artifact
├── DamagedBytes          the bytes that arrive do not have the recorded digest
├── GatewayUnavailable    the gateway cannot be reached, cannot serve now, or something else answers in its place
├── NotAllowed            the token is not valid, or does not allow this
├── WaitTimeout           the job has not ended, or the query was not answered, in the time given; the job continues
└── JobNotDone            the job has ended without success
    ├── JobFailed         it failed, was refused, or ran out of attempts
    └── JobCancelled      it was cancelled
"""


class ClientError(Exception):
    """The base of all errors of this package."""


class InvalidUrl(ClientError, ValueError):
    """The URL of the broker or result backend cannot be used."""


class InvalidRequest(ClientError):
    """The request is not one the worker would accept; nothing was sent."""


class IdempotencyMismatch(ClientError):
    """The id or idempotency key belongs to another request, whose job it names; nothing was done.

    It is raised before anything is sent, or by the job where only a worker knows the first request any more.
    """


class BrokerUnavailable(ClientError):
    """The broker or the result backend cannot be reached."""


class UnknownJob(ClientError, LookupError):
    """Nothing is known of a job: the id is wrong, its result has expired, or another program sent it and it waits.

    Attributes:
        certain: whether the ledger has no such job; False if no worker has said what the ledger has.
    """

    certain = True


class ArtifactNotFound(ClientError, LookupError):
    """The catalogue has no artifact under this key."""


class ArtifactChanged(ClientError):
    """The artifact has other bytes now than when it was opened: open it again."""


class NoGoodCopy(ClientError):
    """No store has the right bytes of the artifact."""


class DamagedBytes(ClientError):
    """The bytes that arrive do not have the recorded digest; none of them was returned."""


class GatewayUnavailable(ClientError):
    """The gateway cannot be reached, cannot serve now, or something else answers in its place."""


class NotAllowed(ClientError):
    """The token is not valid, or does not allow this."""


class WaitTimeout(ClientError, TimeoutError):
    """The job has not ended in the time given, and continues; or no worker has answered the query."""


class JobNotDone(ClientError):
    """The job has ended without success."""


class JobFailed(JobNotDone):
    """The job failed, was refused, or ran out of attempts.

    Travels as Celery's own failure, so its arguments are plain and positional.
    """

    def __init__(self, message: str, type: str = "JobFailed", state: str = "failed", attempts: int = 1) -> None:  # noqa: A002
        super().__init__(message, type, state, attempts)
        self.message = message
        self.type = type
        self.state = state
        self.attempts = attempts

    def __str__(self) -> str:
        return f"{self.type}: {self.message}"


class JobCancelled(JobNotDone):
    """The job was cancelled."""
