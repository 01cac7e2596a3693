"""The errors of stores, a closed set.

StorageError
├── TransientError            trying again later may help
│   ├── Unavailable           the store cannot be reached, or says it is broken
│   │   └── OtherStore        it is not the store that was used under this name before
│   ├── Throttled             the store asks for fewer requests
│   ├── Timeout               the store did not answer in time
│   ├── Conflict              another program changes the object at this moment
│   ├── NotDeleted            the store accepted a delete and still has the object
│   └── OtherWriter           another copy of the catalogue writes to the store
└── PermanentError            trying again changes nothing
    ├── NotFound              the object or bucket is not there (also a FileNotFoundError)
    │   └── UploadEnded       the multipart upload is not open, or has lost parts: a new one must begin
    ├── AlreadyExists         a create-only write found an object
    ├── PreconditionFailed    the object is not the version the caller named
    ├── AccessDenied          the credentials do not allow it, or are wrong
    ├── InvalidKey            no store may hold this bucket name or key
    ├── InvalidMetadata       the store cannot keep this metadata
    ├── Archived              the object has to be restored before it can be read
    ├── UnexpectedAnswer      the store answered about the object in a way that is not understood
    ├── InvalidRange          a range is negative or absurdly large
    ├── HoldNotOffered        the store ignores a hold on an object
    ├── SameStore             another configured store is the same physical place
    ├── OutOfSpace            the store, or the disk under it, is full
    └── IntegrityError        the bytes are not the bytes that were announced
        ├── DigestMismatch
        └── SizeMismatch

Arguments are positional, so that every error survives pickling between worker processes. The message names the store
and the object and is meant for a person; nothing in it is secret.
"""

from typing import ClassVar

from zot_artifact_client.text_escaping import bounded

MAX_MESSAGE = 500
"""Characters of the message of one error."""


class StorageError(Exception):
    """Something went wrong at a store. The message is printable and has at most MAX_MESSAGE characters."""

    code: str = ""
    """The store's own code of its answer, or the HTTP status; empty where there was no answer."""

    store: str | None = None
    """The store that the error is about; `LimitedStore` sets it. Empty if it is about none, but a source or a disk."""

    of_store: ClassVar[bool] = False
    """Whether it is about the store, and counts against its circuit breaker, or about one object."""

    def __init__(self, message: str) -> None:
        super().__init__(bounded(message, MAX_MESSAGE, keep_end=True))

    @property
    def message(self) -> str:
        """Return the one line that says what happened, where, and what to do."""
        return str(self.args[0])

    def __str__(self) -> str:
        return self.message


class TransientError(StorageError):
    """Trying again later may help; `retry_after` is the seconds after which the store wants it, or None."""

    of_store = True

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.args = (self.message, retry_after)
        self.retry_after = retry_after


class Unavailable(TransientError):
    """The store cannot be reached, or answers that it is broken."""


class OtherStore(Unavailable):
    """The store is not the one that was used under this name before, such as a disk that is not mounted."""


class Throttled(TransientError):
    """The store asks for fewer requests."""


class Timeout(TransientError):
    """The store did not answer in time."""


class Conflict(TransientError):
    """Another program changes the object, or its multipart upload, at this moment. It says nothing about the store."""

    of_store = False


class NotDeleted(TransientError):
    """The store accepted a delete and still has the object. It may only be slow to notice its own delete."""

    of_store = False


class OtherWriter(TransientError):
    """Another copy of the catalogue writes to the store, so that this one must not, until an operator decides.

    Reads go on: it does not count against the circuit breaker.
    """

    of_store = False


class PermanentError(StorageError):
    """Trying again changes nothing."""


class NotFound(PermanentError, FileNotFoundError):
    """The object or the bucket is not there."""


class AlreadyExists(PermanentError):
    """A create-only write found an object under its key."""


class PreconditionFailed(PermanentError):
    """The object is no longer the version that the caller named."""


class AccessDenied(PermanentError):
    """The credentials are wrong, or do not allow this."""


class InvalidKey(PermanentError):
    """The bucket name or key is one that the stores cannot all hold."""


class InvalidMetadata(PermanentError):
    """The metadata has a name or a value that the store cannot keep, or is too large."""


class Archived(PermanentError):
    """The object is in an archive class and has to be restored before it can be read. It is no failure of the store."""


class UnexpectedAnswer(PermanentError):
    """The store's answer about one object cannot be understood; it may answer well about other objects."""


class UploadEnded(NotFound):
    """The multipart upload is not open any more, lacks confirmed parts, or takes no more: a new one must begin."""


class InvalidRange(PermanentError):
    """A range has an offset or a length that no object can have."""


class HoldNotOffered(PermanentError):
    """The store has no holds: it answers as if it had placed one, and has not."""


class OutOfSpace(PermanentError):
    """The store, or its disk, is full."""


class SameStore(PermanentError):
    """Two configured stores are one physical place: a copy in each would be one copy.

    `other`: the other store, if both have each object under the same key. None if the root of one is inside the root
    of the other, where the same key names two files.
    """

    other: str | None = None


REFUSALS = (AccessDenied, OutOfSpace, SameStore)
"""Errors that a store returns until an operator acts, about one object or about all."""


class IntegrityError(PermanentError):
    """The bytes are not the bytes that were announced."""


class DigestMismatch(IntegrityError):
    """The bytes have another SHA-256 than announced."""


class SizeMismatch(IntegrityError):
    """There are more or fewer bytes than announced."""
