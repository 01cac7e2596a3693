"""`show --proof` tells the whole history of an artifact, and which row of the log says so."""

import json
import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from tests.unit.catalogue.test_catalogue import stored
from worker import cli, clock
from worker.artifacts.verification_log.archive import archive_log
from worker.catalogue import Catalogue, Leased, VerdictRow
from worker.settings import Settings
from worker.settings.section_models import JobSettings
from worker.storage import Stores
from zot_artifact_client.contract import JobState


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a catalogue whose artifact was uploaded, found corrupt, repaired, verified, held and checked."""
    monkeypatch.setenv("ZOT_HOME", str(tmp_path))
    path = tmp_path / "catalogue.sqlite3"
    catalogue = Catalogue(f"sqlite:///{path}")
    artifact = stored(catalogue)
    copy = catalogue.artifacts.copies(artifact)["dr"]
    right = artifact.digest.sha256
    for job, verdict, found in (
        ("sweep-1", "verified", right),
        ("sweep-2", "corrupt", "f" * 64),
        ("sweep-3", "missing", None),
    ):
        finding = VerdictRow.of(job, artifact, copy, verdict, found, 11, "a detail")
        catalogue.verifications.record(finding, now=clock.now())
    repair(catalogue)
    catalogue.artifacts.finish_copy(artifact, "dr", tag="2", evidence={"etag": "x"}, now=clock.now())
    catalogue.holds.place("releases", "app.tgz", by="ops", reason="audit", now=clock.now())
    catalogue.close()
    return path


def repair(catalogue: Catalogue) -> None:
    ledger, now = catalogue.ledger, clock.now()
    begun = ledger.acquire(
        "repair-1",
        "replicate",
        {},
        owner="w",
        writes_to="releases/app.tgz",
        parent=None,
        now=now,
        lease=JobSettings().lease,
    )
    assert isinstance(begun, Leased)
    copies = [{"store": "dr", "outcome": "repaired", "source": "primary", "quarantined": "zot-quarantine/x"}]
    ledger.finish("repair-1", begun.record.fence, JobState.SUCCEEDED, result={"version": 1, "copies": copies}, now=now)


def history(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    assert cli.run(["show", "releases/app.tgz", "--proof", "--json"]) == 0
    events: list[dict[str, object]] = json.loads(capsys.readouterr().out)["history"]
    return events


def test_the_history_has_every_read_and_what_followed_from_it(path, capsys):
    """Each read has its time, job, digests, verdict, row and hash; repair and findings are between them, by time.

    A verdict for which not all bytes were read is no read.
    """
    events = history(capsys)
    assert {"recorded", "read", "finding", "repaired", "resolved", "held"} <= {event["what"] for event in events}
    reads = [event for event in events if event["what"] == "read"]
    assert [(each["job"], each["details"]["verdict"]) for each in reads] == [  # type: ignore[index]
        ("sweep-1", "verified"), ("sweep-2", "corrupt"),
    ]  # fmt: skip
    last = reads[-1]["details"]
    assert (last["evidence"], last["found_sha256"], last["row"]) == ("all bytes read", "f" * 64, 2)  # type: ignore[index]
    attempt = next(event for event in events if event["what"] == "attempt")
    assert (attempt["details"]["verdict"], attempt["details"]["evidence"]) == ("missing", "not all bytes read")
    repaired = next(event for event in events if event["what"] == "repaired")
    assert (repaired["job"], repaired["store"]) == ("repair-1", "dr")
    assert repaired["details"]["quarantined"] == "zot-quarantine/x"  # type: ignore[index]
    assert [event["at"] for event in events] == sorted(str(event["at"]) for event in events)


def test_the_history_reads_as_a_table(path, capsys):
    """People get one line for each event, and the end of the log."""
    assert cli.run(["show", "releases/app.tgz", "--proof"]) == 0
    said = capsys.readouterr().out
    assert "corrupt" in said
    assert "repair-1" in said
    assert "the verification log has 3 rows" in said


def test_the_archives_with_older_reads_are_named(path, capsys):
    """A month of the log that was archived is named with its object; `log verify --archives` reads it."""
    catalogue = Catalogue(f"sqlite:///{path}")
    artifact = catalogue.artifacts.current("releases", "app.tgz")
    assert artifact is not None
    copy, now = catalogue.artifacts.copies(artifact)["dr"], clock.now() + timedelta(days=62)
    catalogue.verifications.record(VerdictRow.of("sweep-4", artifact, copy, "verified"), now=now)
    settings = Settings()
    stores = Stores(settings.stores, spool_dir=path.parent)
    for name in ("primary", "dr"):
        (path.parent / "stores" / name).mkdir(parents=True)
    archive_log(catalogue, [stores["primary"], stores["dr"]], path.parent, before=now)
    assert cli.run(["show", "releases/app.tgz", "--proof"]) == 0
    said = capsys.readouterr().out
    assert "rows 1 to 3 of the log, are archived in zot-catalogue/" in said
    assert "the verification log has 4 rows" in said
    assert cli.run(["log", "verify", "--archives"]) == 0
    assert "3 rows of it are archived, read from each store" in capsys.readouterr().out
    catalogue.close()


def test_a_row_that_was_changed_shows(path, capsys):
    """A verdict that was rewritten does not fit its hash."""
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            database.execute(f"DROP TRIGGER {name}")
        database.execute("UPDATE verifications SET verdict = 'verified' WHERE id = 2")
    assert [
        event["details"]["row_fits_its_hash"] for event in history(capsys) if event["what"] == "read"  # type: ignore[index]
    ] == [True, False]  # fmt: skip
    cli.run(["show", "releases/app.tgz", "--proof"])
    assert "CHANGED SINCE IT WAS WRITTEN" in capsys.readouterr().out


def test_a_deleted_artifact_keeps_its_history(path, capsys):
    """The proof stays when the artifact is gone; one that never was is an error that names the nearest."""
    catalogue = Catalogue(f"sqlite:///{path}")
    catalogue.artifacts.tombstone(catalogue.artifacts.current("releases", "app.tgz"), clock.now())
    catalogue.close()
    assert history(capsys)[-1]["what"] == "deleted"
    assert cli.run(["show", "releases/app.tar", "--proof"]) == 1
    assert "was never recorded" in capsys.readouterr().err
