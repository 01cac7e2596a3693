"""Output on a terminal is escaped, bounded, and within its width."""

import io
import json
import os
import sys
import threading

import pytest
from rich.cells import cell_len

from worker.cli import output
from worker.cli.errors import failure_of
from worker.exit_status import Status
from zot_artifact_client import InvalidRequest
from zot_artifact_client.contract import UPLOAD
from zot_artifact_client.job_ids import choose_id

HOSTILE = "a\x1b[31m\r\nb\u202ec\u2028d\x9bq\udc80"


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let rich take stdout for a terminal of 80 columns."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")


def test_text_from_outside_cannot_move_the_cursor() -> None:
    """Control characters, line ends, direction marks and stray bytes are shown as escapes; letters stay."""
    assert output.printable(HOSTILE) == r"a\x1b[31m\r\nb\u202ec\u2028d\x9bq\udc80"
    assert output.printable("Grüße/日本語.tgz") == "Grüße/日本語.tgz"


def test_text_from_outside_is_bounded() -> None:
    """A long text is cut, and says how much is missing."""
    shown = output.printable("x" * 1_000_000)
    assert len(shown) < output.MOST + 50
    assert "1000000 characters" in shown


@pytest.mark.parametrize("print_it", [output.say, output.note, output.complain])
def test_every_way_out_escapes(print_it, capsys: pytest.CaptureFixture[str]) -> None:
    """Results, notes and errors are one line each, whatever they contain."""
    print_it(f"[red]key[/] {HOSTILE}")
    told = "".join(capsys.readouterr())
    assert told.count("\n") == 1
    assert not {"\x1b", "\r", "\u202e", "\u2028", "\x9b"} & set(told)
    assert "[red]key[/]" in told


def test_an_error_keeps_the_white_space_of_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    """A name with several spaces can be copied from the error, and a line end in it is no space."""
    output.complain("dr: releases/a  b\nc is missing\n")
    assert capsys.readouterr().err == "zot-artifacts: dr: releases/a  b\\nc is missing\n"


def test_json_is_escaped_and_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    """JSON has no raw control or direction character either, and is read back as it was."""
    output.print_json({"key": HOSTILE, "name": "ü"})
    line = capsys.readouterr().out
    assert not {"\x1b", "\u202e", "\u2028", "\x9b"} & set(line)
    assert json.loads(line) == {"key": HOSTILE, "name": "ü"}


def test_json_is_ascii_where_the_terminal_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where stdout takes no UTF-8, JSON is pure ASCII."""
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    output.print_json({"key": "日本語 \U0001f600"})
    assert json.loads(written.getvalue()) == {"key": "日本語 \U0001f600"}


def test_a_table_fits_the_terminal(terminal: None, capsys: pytest.CaptureFixture[str]) -> None:
    """A long key is cut in its middle, so that its end can still be told from others, and no line is too long."""
    key = f"releases/{'deep/' * 30}app-1.2.3.tgz"
    rows = [("5f0a1d0e", key, "succeeded", "an error that goes on for quite a while, longer than a line")]
    output.print_table(("job", "artifact", "state", "error"), rows, empty="", flexible=("artifact", "error"))
    told = capsys.readouterr().out
    assert max(map(len, told.splitlines())) <= 80
    assert "1.2.3.tgz" in told


def test_wide_characters_count_twice(terminal: None, capsys: pytest.CaptureFixture[str]) -> None:
    """A table with Chinese keys fits the terminal too: each of their characters has two cells."""
    rows = [("5f0a1d0e", f"releases/{'発行' * 60}.tgz", "succeeded")]
    output.print_table(("job", "artifact", "state"), rows, empty="", flexible=("artifact",))
    told = capsys.readouterr().out
    lines = told.splitlines()
    assert max(map(cell_len, lines)) <= 80
    assert len(lines) == 3
    assert "発行.tgz" in told


def test_a_table_fits_a_terminal_that_has_no_unicode(terminal: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """With LC_ALL=C a Chinese character is an escape of six cells, and a key is cut with `...`."""
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii", errors="backslashreplace"))
    rows = [("5f0a1d0e", f"releases/{'発行' * 60}.tgz", "succeeded"), ("6", "\U0001f600" * 4, "succeeded")]
    output.print_table(("job", "artifact", "state"), rows, empty="", flexible=("artifact",))
    sys.stdout.flush()
    lines = written.getvalue().decode().splitlines()
    assert max(map(len, lines)) <= 80
    assert "..." in lines[2]
    assert r"\u884c.tgz |succeeded" in lines[2]


def test_a_text_that_is_not_utf8_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A reason or an idempotency key with other bytes is a usage error that shows it, and no traceback."""
    given = "nightly \udcff"
    with pytest.raises(InvalidRequest, match="lone surrogate"):
        choose_id(UPLOAD, idempotency_key=given)
    with pytest.raises(UnicodeEncodeError) as raised:
        given.encode()
    failure = failure_of(raised.value)
    assert failure is not None
    assert failure.status is Status.USAGE
    output.complain(failure.message)
    assert capsys.readouterr().err == "zot-artifacts: nightly \\udcff is not UTF-8\n"


def test_an_empty_list_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing to list is told on stderr, so that a script's stdout stays empty."""
    output.print_table(("job",), [], empty="no jobs")
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", "no jobs\n")


def test_values_within_values_are_in_brackets() -> None:
    """The counts of several stores in one line do not run into each other."""
    stores = [{"store": "a", "outcomes": {"agrees": 3}}, {"store": "b", "sent": 0, "faults": []}]
    assert output.flat(stores) == "(store=a, outcomes=(agrees=3)), (store=b, sent=0)"
    assert output.flat({"primary": 3, "dr": 0}) == "primary=3, dr=0"


def test_output_waits_for_a_slow_reader_where_writes_do_not() -> None:
    """Another program that has the same pipe may have made it non-blocking: the artifact would be cut."""
    end, start = os.pipe()
    os.set_blocking(start, False)
    data, got = os.urandom(500_000), bytearray()

    def read() -> None:
        with os.fdopen(end, "rb") as file:
            got.extend(file.read())

    reader = threading.Timer(0.2, read)
    reader.start()
    with (
        os.fdopen(start, "wb", closefd=True),
        io.BufferedWriter(output.StandardOutput(start, "wb", closefd=False)) as file,
    ):
        file.write(data)
    reader.join()
    assert bytes(got) == data
