"""Every message of a StorageError is one bounded line that a terminal can show."""

import pickle

import pytest

from worker.artifacts.per_store import most_retryable
from worker.storage.errors import MAX_MESSAGE, NotFound, Throttled, Unavailable


@pytest.mark.parametrize("text", ["a\nb", "a\r\x1b[31mb", "a\u202eb", "a\u2028b", "a\ud800b", "a\x00b", "a\u200fb"])
def test_what_is_hidden_is_escaped(text: str) -> None:
    """Control characters, line ends, bidirectional marks and lone surrogates become visible escapes."""
    message = NotFound(f"store: {text}: gone").message
    assert message.isprintable()
    assert message.startswith("store: a\\")
    message.encode()


def test_long_text_is_cut_in_the_middle() -> None:
    """What a store echoes is bounded, and what to do about it, which comes last, stays."""
    message = NotFound(f"store: {'x' * 10_000_000}; create it").message
    assert len(message) == MAX_MESSAGE
    assert message.startswith("store: xxx")
    assert message.endswith("; create it")


def test_escaping_again_changes_nothing() -> None:
    """An error that crosses to another process says the same there."""
    error = Throttled("a\nb" + "é" * 600, 3.0)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.retry_after) == (str(error), 3.0)
    assert NotFound(NotFound("a\tb").message).message == NotFound("a\tb").message


def test_the_longest_wish_decides_when_a_job_is_retried() -> None:
    """Of the stores that a job failed at, none is asked before its time."""
    failures = [NotFound("a"), Unavailable("b"), Throttled("c", 300.0), Unavailable("d", 5.0)]
    assert most_retryable(failures) is failures[2]
