"""A log file has one line per record, whatever comes from outside."""

import io
import logging

import pytest

from worker.log_safety import make_safe

HOSTILE = "key\x1b[2J\r\nINFO forged line \u202e\x9b"


@pytest.fixture
def logged() -> tuple[logging.Logger, io.StringIO]:
    """Return a logger with one safe handler, and what it has written."""
    written = io.StringIO()
    logger = logging.getLogger("tests.log_safety")
    logger.handlers.clear()
    logger.propagate = False
    handler = logging.StreamHandler(written)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logger.addHandler(handler)
    make_safe(logger)
    make_safe(logger)
    return logger, written


def test_a_record_is_one_harmless_line(logged) -> None:
    """Line ends, control characters and direction marks of arguments are escaped; the level stays readable."""
    logger, written = logged
    logger.error("cannot read %s", HOSTILE)
    text = written.getvalue()
    assert text.count("\n") == 1
    assert text.startswith("ERROR cannot read key")
    assert not {"\x1b", "\r", "\u202e", "\x9b"} & set(text)


def test_a_record_is_bounded(logged) -> None:
    """A message of a megabyte does not fill the disk."""
    logger, written = logged
    logger.error("%s", "x" * 1_000_000)
    assert len(written.getvalue()) < 10_000


def test_a_traceback_keeps_its_lines_and_nothing_else(logged) -> None:
    """A traceback stays readable, and control characters in the exception's message are escaped."""
    logger, written = logged
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        logger.exception("failed")
    text = written.getvalue()
    assert "Traceback" in text
    assert text.count("\n") > 3
    assert not {"\x1b", "\r", "\u202e", "\x9b"} & set(text)
