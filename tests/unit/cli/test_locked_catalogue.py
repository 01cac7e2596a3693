"""A command that has to wait for the catalogue says so."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from worker import cli
from worker.catalogue import database
from worker.cli import session
from worker.cli.session import open_session
from worker.settings import load_settings


@pytest.mark.parametrize("command", ["pause store dr", "resume store dr", "stores accept dr", "stores trust dr"])
def test_a_command_that_waits_for_the_catalogue_says_so(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits while another program keeps the lock, tells what it waits for, and goes on when the lock is free."""
    monkeypatch.setenv("ZOT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(database, "TOLD_AFTER", 0.05)
    settings = load_settings()
    open_session(settings, create=True).close()
    told: list[object] = []
    with closing(sqlite3.connect(settings.catalogue_file, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")

        def tell(line: object) -> None:
            told.append(line)
            other.rollback()

        monkeypatch.setattr(session, "note", tell)
        assert cli.run(command.split()) == 0
    assert "another program keeps the catalogue locked" in str(told[0])
