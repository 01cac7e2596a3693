"""A log file has one line per record, whatever comes from outside."""

import io
import json
import logging

import pytest
from azure.core.pipeline.policies import HttpLoggingPolicy

from worker.log_lines import during, make_safe, quieten_libraries

HOSTILE = "key\x1b[2J\r\nINFO forged line \u202e\x9b"


@pytest.fixture
def logged() -> tuple[logging.Logger, io.StringIO]:
    """Return a logger with one safe handler, and what it has written."""
    written = io.StringIO()
    logger = logging.getLogger("tests.log_lines")
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


def test_a_line_of_json_has_the_running_job(logged) -> None:
    """Each line is one JSON object, with the job that the process works on and what the record itself names."""
    logger, written = logged
    make_safe(logger, as_json=True)
    with during(job="5f0a", kind="upload", artifact="releases/a", attempt=2):
        logger.error("cannot read %s", HOSTILE, extra={"store": "dr", "seconds": 0.5})
    logger.error("later")
    line, later = map(json.loads, written.getvalue().splitlines())
    assert (line["job"], line["kind"], line["artifact"], line["attempt"]) == ("5f0a", "upload", "releases/a", 2)
    assert (line["level"], line["store"], line["seconds"]) == ("error", "dr", 0.5)
    assert line["message"].startswith("cannot read key")
    assert "job" not in later


def test_a_traceback_in_json_is_bounded_and_stays_one_line(logged) -> None:
    """The traceback is a field; a huge one is cut at its beginning."""
    logger, written = logged
    make_safe(logger, as_json=True)
    try:
        raise ValueError("x" * 1_000_000)
    except ValueError:
        logger.exception("failed")
    text = written.getvalue()
    assert text.count("\n") == 1
    assert len(text) < 40_000
    assert json.loads(text)["traceback"].endswith("x")


def test_no_library_logs_each_job_or_request_unless_everything_is_logged() -> None:
    """Celery's lines about each job, and Azure's about each request, are only written at DEBUG; errors always are."""
    loggers = (*map(logging.getLogger, ("celery.app.trace", "celery.worker.strategy")), HttpLoggingPolicy().logger)
    try:
        quieten_libraries(logging.INFO)
        for each in loggers:
            assert (each.isEnabledFor(logging.INFO), each.isEnabledFor(logging.ERROR)) == (False, True)
        quieten_libraries(logging.DEBUG)
        assert {each.level for each in loggers} == {logging.NOTSET}
    finally:
        for each in loggers:
            each.setLevel(logging.NOTSET)
