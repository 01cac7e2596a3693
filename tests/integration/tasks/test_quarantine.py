"""The bad bytes that a repair has kept can be listed, fetched, restored and purged by an operator."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tasks.replicate import replicate
from tasks.sweeps.cleanup import sweep_cleanup
from tasks.upload import upload
from tasks.verify import verify
from worker import cli, clock
from worker.artifacts.quarantined_bytes import purge, quarantined
from worker.catalogue.deletions import Deletions
from worker.catalogue.ledger import Ledger
from worker.context import Context
from worker.settings import Settings
from worker.settings.section_models import QuarantineSettings
from worker.storage.errors import Unavailable
from zot_artifact_client.contract import ReplicateRequest, SweepLeftoversRequest, UploadRequest, VerifyRequest

RETENTION = timedelta(days=90)
Command = Callable[..., tuple[int, Any]]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"quarantine": QuarantineSettings(retention=RETENTION)})


@pytest.fixture
def command(settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Return what runs a command of `quarantine`, and returns its exit status and its document."""
    monkeypatch.setattr("worker.cli.session.load_settings", lambda: settings)

    def run(*arguments: str) -> tuple[int, Any]:
        status = cli.run(["quarantine", *arguments, "--json"])
        text = capsys.readouterr().out
        return status, json.loads(text) if text else None

    return run


@pytest.fixture
def repaired(run, source, stored) -> bytes:
    """Let a copy in `dr` rot and repair it; return the rotten bytes."""
    run(upload, UploadRequest(bucket="releases", key="app.tgz", source=source(b"right bytes")))
    stored("dr").write_bytes(b"wrong bytes")
    run(verify, VerifyRequest(bucket="releases", key="app.tgz"))
    run(replicate, ReplicateRequest(bucket="releases", key="app.tgz", to=("dr",)))
    return b"wrong bytes"


def test_what_was_replaced_is_listed_with_its_origin_and_digest(command: Command, repaired: bytes, run, stored) -> None:
    """The list names store, artifact, time and the digest that the verdict found, and nothing for the good store.

    It is the digest of the bytes that were replaced, also if the copy has rotted again.
    """
    stored("dr").write_bytes(b"later bytes")
    run(verify, VerifyRequest(bucket="releases", key="app.tgz"))
    status, document = command("ls")
    [row] = document["quarantined"]
    assert (status, row["store"], row["bucket"], row["key"]) == (0, "dr", "releases", "app.tgz")
    assert row["sha256"] == hashlib.sha256(repaired).hexdigest()
    assert row["at"] is not None
    assert row["purged_after"] is not None
    assert command("ls", "--store", "primary")[1]["quarantined"] == []


def test_what_is_never_purged_or_was_not_read_is_told_so(
    settings: Settings, run, source, stored, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a retention bytes are kept for good, and a copy of another size was replaced without a read."""
    run(upload, UploadRequest(bucket="releases", key="app.tgz", source=source(b"right bytes")))
    stored("dr").write_bytes(b"of another size")
    run(verify, VerifyRequest(bucket="releases", key="app.tgz"))
    run(replicate, ReplicateRequest(bucket="releases", key="app.tgz", to=("dr",)))
    kept = settings.model_copy(update={"quarantine": QuarantineSettings()})
    monkeypatch.setattr("worker.cli.session.load_settings", lambda: kept)
    assert cli.run(["quarantine", "ls"]) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("dr")]
    assert " never " in row
    assert row.rstrip().endswith("not read")


def test_the_bytes_are_fetched_as_they_are(command: Command, repaired: bytes, tmp_path: Path) -> None:
    """`get` writes the bad bytes, whatever digest the store keeps beside them."""
    [row] = command("ls")[1]["quarantined"]
    status, document = command("get", "dr", row["id"], str(tmp_path / "bad"))
    assert (status, (tmp_path / "bad").read_bytes()) == (0, repaired)
    assert document["sha256"] == hashlib.sha256(repaired).hexdigest()
    assert command("get", "dr", "releases/none/app.tgz", str(tmp_path / "none"))[0] == 1


def test_the_bytes_go_where_those_of_an_artifact_would(command: Command, repaired: bytes, tmp_path: Path) -> None:
    """`-` is standard output, a directory gets a file of the key's name, and a link and a FIFO stay what they are."""
    [row] = command("ls")[1]["quarantined"]
    stdout = os.dup(1)
    try:
        with (tmp_path / "stdout").open("wb") as file:
            os.dup2(file.fileno(), 1)
            assert cli.run(["quarantine", "get", "dr", row["id"], "-"]) == 0
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)
    assert (tmp_path / "stdout").read_bytes() == repaired
    assert command("get", "dr", row["id"], "-")[0] == 2
    (tmp_path / "into").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "file")
    os.mkfifo(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    try:
        for dest in ("into", "link", "fifo"):
            assert command("get", "dr", row["id"], str(tmp_path / dest))[0] == 0, dest
        assert os.read(reader, 100) == repaired
    finally:
        os.close(reader)
    assert (tmp_path / "into" / "app.tgz").read_bytes() == (tmp_path / "file").read_bytes() == repaired
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "fifo").is_fifo()


def test_bad_bytes_are_not_restored_over_a_good_artifact(command: Command, repaired: bytes) -> None:
    """Without another key the restore is refused, because the current version has another digest."""
    [row] = command("ls")[1]["quarantined"]
    status, document = command("restore", "dr", row["id"])
    assert (status, document["error"]["type"]) == (1, "OtherContent")
    assert command("ls")[1]["quarantined"] == [row], repaired


@pytest.mark.usefixtures("repaired")
def test_purge_deletes_what_is_named_or_old(command: Command, stored) -> None:
    """A dry run and a time that has not passed delete nothing; an id deletes only the quarantined bytes."""
    [row] = command("ls")[1]["quarantined"]
    assert command("purge")[0] == 2
    assert command("purge", "--older-than", "1d")[1]["purged"] == []
    assert len(command("purge", "--older-than", "0s", "--dry-run")[1]["purged"]) == 1
    assert command("ls")[1]["quarantined"] == [row]
    assert [each["id"] for each in command("purge", "dr", row["id"])[1]["purged"]] == [row["id"]]
    assert command("ls")[1]["quarantined"] == []
    assert stored("dr").read_bytes() == b"right bytes"


def test_bytes_that_cannot_be_deleted_keep_no_others(
    command: Command, run, source, stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was purged is told, with the error of the store that kept the rest, and the exit status is that of it."""
    for key in ("a", "b", "c"):
        run(upload, UploadRequest(bucket="releases", key=key, source=source(b"right bytes")))
        stored("dr", key).write_bytes(b"wrong bytes")
        run(verify, VerifyRequest(bucket="releases", key=key))
        run(replicate, ReplicateRequest(bucket="releases", key=key, to=("dr",)))

    def fails_once(store: Any, found: Any) -> bool:
        if found.key == "a":
            raise Unavailable("dr: releases/a: the disk does not answer")
        return purge(store, found)

    monkeypatch.setattr("worker.cli.quarantine.purge", fails_once)
    status, document = command("purge", "--older-than", "0s")
    assert (status, sorted(each["key"] for each in document["purged"])) == (3, ["b", "c"])
    assert document["failed"] == {"dr": "dr: releases/a: the disk does not answer"}
    assert [each["key"] for each in command("ls")[1]["quarantined"]] == ["a"]


@pytest.mark.usefixtures("repaired")
def test_the_cleanup_sweep_purges_after_the_retention(
    context: Context, command: Command, run, monkeypatch, stored
) -> None:
    """Until `quarantine.retention` has passed since the repair, the bytes stay; so on a machine with a new clock.

    So do those of a job that the ledger has forgotten, and those that have taken the place of others.
    """
    with monkeypatch.context() as wrong:
        wrong.setattr(clock, "now", lambda now=clock.now: now() + 2 * RETENTION)
        assert run(sweep_cleanup, SweepLeftoversRequest(store="dr")).removed == {"dr": 0}
    run(sweep_cleanup, SweepLeftoversRequest(store="dr"))
    assert len(command("ls")[1]["quarantined"]) == 1
    by = RETENTION + timedelta(minutes=1)
    monkeypatch.setattr(Deletions, "database_time", lambda _: None)
    later, running = clock.now() + by, clock.uptime() + by.total_seconds()
    monkeypatch.setattr(clock, "now", lambda: later)
    assert run(sweep_cleanup, SweepLeftoversRequest(store="dr")).removed == {"dr": 0}, "the clock may be ahead"
    monkeypatch.setattr(clock, "uptime", lambda: running)
    with monkeypatch.context() as forgotten:
        forgotten.setattr(Ledger, "get", lambda *_: None)
        assert run(sweep_cleanup, SweepLeftoversRequest(store="dr")).removed == {"dr": 0}
    [kept] = quarantined(context.stores["dr"], context.catalogue)
    assert not purge(context.stores["dr"], replace(kept, version="0"))
    assert run(sweep_cleanup, SweepLeftoversRequest(store="dr")).removed == {"dr": 1}
    assert command("ls")[1]["quarantined"] == []
    assert stored("dr").read_bytes() == b"right bytes"
