"""What the drivers of all clouds say of an error, in the same words."""

from collections.abc import Iterable
from dataclasses import dataclass

from worker.storage.errors import NotFound, PermanentError, StorageError, Unavailable

Kind = type[StorageError]
Reading = tuple[Kind, str, tuple[type[BaseException], ...]]
"""Which of our errors some classes of an SDK mean, and what is said of them."""

_MAX_QUOTE = 160


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an error came from: the store, its endpoint, and its one real bucket or container if it has one."""

    store: str
    endpoint: str
    bucket: str | None


def by_class(error: Exception, readings: Iterable[Reading], origin: Origin, what: str) -> StorageError:
    """Return what an error that is no answer of the store means, by its class; the first that fits counts."""
    kind, reason = next(
        ((kind, reason) for kind, reason, classes in readings if isinstance(error, classes)),
        (PermanentError, "the SDK failed"),
    )
    return kind(f"{origin.store}: {what}: {origin.endpoint}: {reason} ({type(error).__name__})")


def missing_bucket(origin: Origin, bucket: str, word: str = "bucket") -> StorageError:
    """Return the error for a real bucket, or what the store calls one, that is not there.

    Where it is the one that holds everything, its absence says that the store is set up wrongly, and nothing about
    the objects: NotFound would have every copy in it judged missing.
    """
    if origin.bucket is None:
        return NotFound(f"{origin.store}: {word} {bucket!r} does not exist at {origin.endpoint}")
    return Unavailable(
        f"{origin.store}: {word} {origin.bucket!r} does not exist at {origin.endpoint}; create it or correct `{word}`"
    )


def quoted(said: str) -> str:
    """Return what a store said, in one line that is not too long."""
    said = " ".join(said.split()) or "the store refuses"
    return said if len(said) <= _MAX_QUOTE else said[: _MAX_QUOTE - 1] + "…"


def seconds(said: object) -> float | None:
    """Return the wish of a Retry-After header, or None if it is none in seconds."""
    return float(str(said)) if str(said).isdecimal() else None
