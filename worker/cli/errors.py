"""Map errors to one line and an exit status."""

import difflib
import errno
from collections.abc import Iterable
from pathlib import Path

import typer

from worker.exit_status import Status

WAYS_OUT_OF_WRITE = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there",
    errno.EFBIG: "raise the limit of the size of files (`ulimit -f`)",
}
"""What to do about a file that cannot be written, by the number of the error."""


class Failure(Exception):
    """A command failed; the message is the line that the user sees."""

    def __init__(self, message: str, status: Status = Status.BAD, *, type_: str = "Failure") -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.type = type_


class UsageError(Failure):
    """The command line, or what it names, is wrong: nothing was done."""

    def __init__(self, message: str) -> None:
        super().__init__(message, Status.USAGE, type_="UsageError")


def failure_of(error: Exception) -> Failure | None:
    """Return the Failure for an expected error, or None for a bug."""
    failure = _failure_of(error)
    if failure is not None and _is_of_deleted_directory(error):
        from worker.settings.model import NO_DIRECTORY

        if NO_DIRECTORY not in failure.message:
            return Failure(f"{failure.message}; {NO_DIRECTORY}", failure.status, type_=failure.type)
    return failure


def _is_of_deleted_directory(error: BaseException | None) -> bool:
    """Return whether a relative path was not found because the current directory was deleted: the system names none."""
    while error is not None and not isinstance(error, FileNotFoundError):
        error = error.__cause__ or error.__context__
    if error is None or str(error.filename or "").startswith("/"):
        return False
    try:
        Path.cwd()
    except FileNotFoundError:
        return True
    return False


def _failure_of(error: Exception) -> Failure | None:
    if isinstance(error, Failure):
        return error
    if isinstance(error, typer.TyperException):
        told = error.format_message().replace("Value error, ", "")  # Typer quotes pydantic
        told = told.replace("\n\t", " ")  # it lists the choices of a missing argument below each other
        return UsageError(told)
    if isinstance(error, UnicodeEncodeError):  # Python keeps such bytes of the command line as lone surrogates
        return UsageError(f"{error.object} is not UTF-8")
    for kind, status in _statuses():
        if isinstance(error, kind):
            return Failure("; ".join(filter(None, str(error).splitlines())), status, type_=type(error).__name__)
    if isinstance(error, OSError) and error.strerror:  # of a file
        return Failure(of_file(error), Status.BAD, type_=type(error).__name__)
    return None


def of_file(error: OSError, way_out: str = "") -> str:
    """Return the line about a file that cannot be used: it names the file, and what to do."""
    about = f"{error.filename}: " if error.filename is not None else ""
    way_out = WAYS_OUT_OF_WRITE.get(error.errno or 0, way_out)
    return f"{about}{error.strerror or error}" + (f"; {way_out}" if way_out else "")


def suggestion(name: str, names: Iterable[str]) -> str:
    """Return `; did you mean …?` where one of the names is like this one, else nothing."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {str(close[0])!r}?" if close else ""


def _statuses() -> tuple[tuple[type[Exception], Status], ...]:
    """Return the exit status of each error; the first match counts. Only a failed command needs these imports."""
    from worker.artifacts.verification_log.signature import BadKeyFile
    from worker.catalogue import CatalogueError, CatalogueLost, CatalogueUnavailable
    from worker.settings.model import NoBroker, SettingsError
    from worker.storage.configured_stores import UnknownStore
    from worker.storage.errors import InvalidKey, StorageError, TransientError
    from zot_artifact_client.errors import (
        BrokerUnavailable,
        ClientError,
        InvalidRequest,
        JobNotDone,
        UnknownJob,
        WaitTimeout,
    )

    return (
        (NoBroker, Status.UNKNOWN),
        (SettingsError, Status.USAGE),
        (BadKeyFile, Status.USAGE),
        (CatalogueUnavailable, Status.UNKNOWN),
        (CatalogueLost, Status.UNKNOWN),
        (CatalogueError, Status.USAGE),
        (InvalidRequest, Status.USAGE),
        (BrokerUnavailable, Status.UNKNOWN),
        (WaitTimeout, Status.UNKNOWN),
        (UnknownJob, Status.UNKNOWN),
        (JobNotDone, Status.BAD),
        (ClientError, Status.USAGE),
        (UnknownStore, Status.USAGE),
        (InvalidKey, Status.USAGE),
        (TransientError, Status.UNKNOWN),
        (StorageError, Status.BAD),
    )
