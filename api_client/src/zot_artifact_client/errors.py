"""Say why a job could not be sent, or did not succeed.

ClientError
├── InvalidUrl            the URL of the broker or result backend cannot be used
├── InvalidRequest        the request is not one the worker would accept; nothing was sent
├── IdempotencyMismatch   the idempotency key belongs to another request; nothing was sent
├── BrokerUnavailable     the broker or the result backend cannot be reached
├── UnknownJob            nothing is known of a job with this id
├── WaitTimeout           the job has not ended in the time given; it goes on
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
    """The idempotency key belongs to another request; nothing was sent."""


class BrokerUnavailable(ClientError):
    """The broker or the result backend cannot be reached."""


class UnknownJob(ClientError, LookupError):
    """Nothing is known of a job: the id is wrong, its result has expired, or another program sent it and it waits."""


class WaitTimeout(ClientError, TimeoutError):
    """The job has not ended in the time given; it goes on."""


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
