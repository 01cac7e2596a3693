"""Every exception of a store or SDK becomes a StorageError; an exception of the caller passes unchanged."""

import errno
import io
from collections.abc import Iterable, Iterator

import pytest
from celery.exceptions import SoftTimeLimitExceeded

from worker.storage.driver import WriteInfo
from worker.storage.errors import InvalidKey, NotFound, OutOfSpace, StorageError, UnexpectedAnswer
from worker.storage.exception_boundary import exception_boundary
from worker.storage.integrity.verifying_reader import VerifyingReader


class Stop(Exception):
    """Raised by a body, as a cancellation is."""


@exception_boundary
class Odd:
    """A driver whose methods fail as SDKs do."""

    name = "odd"

    def __init__(self, error: Exception) -> None:
        self._error = error

    def stat(self, bucket: str, key: str) -> None:
        raise self._error

    def put(self, bucket: str, key: str, body: VerifyingReader, info: WriteInfo) -> None:
        body.read(1)

    def put_many(self, puts: Iterable[str]) -> None:
        list(puts)
        raise self._error

    def iter_objects(self, bucket: str) -> Iterator[str]:
        yield f"{bucket}/a"
        raise self._error


@pytest.mark.parametrize("error", [KeyError("token=hush"), ValueError("hush"), TypeError(), OverflowError()])
def test_other_exceptions_are_about_one_object(error: Exception) -> None:
    """An exception of any other class names store, key and class, and none of its text."""
    with pytest.raises(UnexpectedAnswer, match=f"^odd: releases/app: .*{type(error).__name__}") as caught:
        Odd(error).stat("releases", "app")
    assert "hush" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_listings_too() -> None:
    """An iterator that fails in the middle raises a StorageError there."""
    rows = Odd(KeyError("x")).iter_objects("releases")
    assert next(rows) == "releases/a"
    with pytest.raises(UnexpectedAnswer, match="odd: releases"):
        next(rows)


def test_names_that_are_no_unicode() -> None:
    """A name that cannot be encoded is an InvalidKey."""
    with pytest.raises(InvalidKey, match="lone surrogate"):
        Odd(UnicodeEncodeError("utf-8", "\ud800", 0, 1, "no")).stat("releases", "app")


@pytest.mark.parametrize("error", [NotFound("odd: gone"), SoftTimeLimitExceeded()])
def test_our_own_exceptions_pass(error: Exception) -> None:
    """StorageErrors, and what ends a job such as a time limit, pass unchanged."""
    with pytest.raises(type(error)) as caught:
        Odd(error).stat("releases", "app")
    assert caught.value is error


def test_what_the_caller_raises_passes() -> None:
    """What ends a write from outside, such as a cancellation that the body raises, is no answer of the store."""

    class Ending(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise Stop

    def ending() -> Iterator[str]:
        yield "app"
        raise Stop

    with pytest.raises(Stop):
        Odd(KeyError()).put("releases", "app", VerifyingReader(Ending()), WriteInfo())
    with pytest.raises(Stop):
        Odd(KeyError()).put_many(ending())
    with pytest.raises(UnexpectedAnswer):
        Odd(KeyError()).put_many(each for each in ["app"])


class OfFiles(Odd):
    """A driver whose errors are those of the operating system."""

    @staticmethod
    def _translate_os_error(error: OSError, what: str) -> StorageError:
        return OutOfSpace(f"{what}: {error.strerror}")


def test_a_driver_may_translate_the_errors_of_the_system_itself() -> None:
    """Its OSErrors are translated with their cause, in iterators too, and the caller's own ones pass unchanged."""
    full = OSError(errno.ENOSPC, "no space")
    with pytest.raises(OutOfSpace, match="^odd: releases/app: no space$") as caught:
        OfFiles(full).stat("releases", "app")
    assert caught.value.__cause__ is full
    with pytest.raises(OutOfSpace, match="^odd: releases: no space$"):
        list(OfFiles(full).iter_objects("releases"))

    class Source(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise full

    with pytest.raises(OSError, match="no space") as passed:
        OfFiles(KeyError()).put("releases", "app", VerifyingReader(Source()), WriteInfo())
    assert passed.value is full
