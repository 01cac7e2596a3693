"""What an error means on the command line: one line, and an exit status."""

from collections.abc import Iterable
from enum import IntEnum

import typer

from worker.catalogue import CatalogueError, CatalogueUnavailable
from worker.settings.model import NoBroker, SettingsError
from worker.storage.errors import InvalidKey, StorageError, TransientError
from worker.storage.registry import UnknownStore
from zot_artifact_client import BrokerUnavailable, ClientError, InvalidRequest, JobNotDone, WaitTimeout


class Status(IntEnum):
    """How a command ends. Scripts rely on the numbers."""

    GOOD = 0
    BAD = 1
    """Done, and the answer is bad: failed, corrupt, missing, refused."""
    USAGE = 2
    """The command line or the configuration is wrong; nothing was done."""
    UNKNOWN = 3
    """It could not be told: unreadable, unverifiable, no broker, timed out waiting."""
    INTERRUPTED = 130


class Failure(Exception):
    """A command cannot do what was asked; the message is the one line that a person sees."""

    def __init__(self, message: str, status: Status = Status.BAD, *, type_: str = "Failure") -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.type = type_


# The first that fits counts.
_STATUSES: tuple[tuple[type[Exception], Status], ...] = (
    (NoBroker, Status.UNKNOWN),
    (SettingsError, Status.USAGE),
    (CatalogueUnavailable, Status.UNKNOWN),
    (CatalogueError, Status.USAGE),
    (InvalidRequest, Status.USAGE),
    (BrokerUnavailable, Status.UNKNOWN),
    (WaitTimeout, Status.UNKNOWN),
    (JobNotDone, Status.BAD),
    (ClientError, Status.USAGE),
    (UnknownStore, Status.USAGE),
    (InvalidKey, Status.USAGE),
    (TransientError, Status.UNKNOWN),
    (StorageError, Status.BAD),
)


def failure_of(error: Exception) -> Failure | None:
    """Return what a foreseen error means, or None for a fault of ours."""
    if isinstance(error, Failure):
        return error
    if isinstance(error, typer.TyperException):
        return Failure(error.format_message(), Status.USAGE, type_="UsageError")
    for kind, status in _STATUSES:
        if isinstance(error, kind):
            return Failure(_one_line(str(error).splitlines()), status, type_=type(error).__name__)
    return None


def _one_line(lines: Iterable[str]) -> str:
    return "; ".join(line for line in lines if line)
