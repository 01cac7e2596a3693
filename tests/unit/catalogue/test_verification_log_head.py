"""The head of the verification log, kept outside the database, shows what the chain inside it cannot."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.unit.catalogue.test_catalogue import stored
from worker import cli, clock
from worker.artifacts.verification_log_head import CheckedLog, check_kept_head, keep_head, log_faults
from worker.catalogue import Catalogue, Finding
from worker.storage import Store
from worker.storage.memory import MemoryDriver


def append(catalogue: Catalogue, *verdicts: str) -> None:
    artifact = catalogue.artifacts.current("releases", "app.tgz") or stored(catalogue)
    copy = catalogue.artifacts.copies(artifact)["dr"]
    for verdict in verdicts:
        catalogue.verifications.record(Finding("job-1", "dr", artifact, verdict), copy, tag=None, now=clock.now())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "catalogue.sqlite3"


def open_store() -> Store:
    return Store(MemoryDriver("dr"))


def tampered(path: Path, *statements: str) -> Catalogue:
    """Change the database behind the triggers' back, and open it again."""
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'")]
        for name in names:
            database.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            database.execute(statement)
    return Catalogue(f"sqlite:///{path}")


@pytest.mark.parametrize(
    ("statements", "says"),
    [
        (["DELETE FROM verifications WHERE id = 3"], "lost rows: row 3"),
        (["DELETE FROM verifications"], "lost rows: row 3"),
        (["UPDATE verifications SET hash = 'f' WHERE id = 3"], "rewritten: row 3"),
    ],
)
def test_what_the_chain_cannot_show_does_not_fit_the_kept_head(path, statements, says):
    """A cut tail, an emptied table and a chain computed anew are told, by each store that kept the head."""
    catalogue, store = Catalogue(f"sqlite:///{path}"), open_store()
    append(catalogue, "verified", "corrupt", "verified")
    assert keep_head(store, catalogue) is None
    catalogue.close()
    catalogue = tampered(path, *statements)
    found = check_kept_head(store, catalogue)
    assert found is not None
    assert says in found
    assert "kept in dr at zot-probe/verification-log/" in found
    append(catalogue, *["verified"] * 2 if "hash" not in statements[0] else [])
    assert keep_head(store, catalogue) is not None, "the kept head is the evidence: it stays"
    catalogue.close()


def test_a_log_that_grows_fits_the_head_that_was_kept(catalogue):
    """Rows that were appended since change nothing of what was kept; an empty log keeps no head."""
    store = open_store()
    assert keep_head(store, catalogue) is None
    assert catalogue.verifications.head() is None
    append(catalogue, "verified")
    assert keep_head(store, catalogue) is None
    append(catalogue, "corrupt", "verified")
    assert check_kept_head(store, catalogue) is None
    assert keep_head(store, catalogue) is None
    assert catalogue.verifications.head().id == 3


def test_all_faults_of_the_log_are_told_at_once(path):
    """`log verify` and `doctor` tell a broken chain and each kept head that does not fit."""
    catalogue, stores = Catalogue(f"sqlite:///{path}"), [open_store(), open_store()]
    append(catalogue, "verified", "corrupt")
    assert [keep_head(store, catalogue) for store in stores] == [None, None]
    assert log_faults(stores, catalogue) == []
    catalogue.close()
    catalogue = tampered(path, "UPDATE verifications SET verdict = 'verified', hash = 'f' WHERE id = 2")
    faults = log_faults(stores, catalogue)
    catalogue.close()
    assert len(faults) == 3
    assert "changed at row 2" in faults[0]


def test_a_log_that_was_checked_before_is_read_from_there(path, tmp_path):
    """Only rows behind the last checked one are read; a cut or rewritten log does not fit the row that was checked."""
    catalogue, store = Catalogue(f"sqlite:///{path}"), open_store()
    append(catalogue, "verified", "corrupt", "verified")
    record = CheckedLog(tmp_path, catalogue)
    assert record.get() is None
    record.put(catalogue.verifications.head())
    checked = CheckedLog(tmp_path, catalogue).get()
    assert checked == catalogue.verifications.head()
    append(catalogue, "corrupt", "verified")
    assert log_faults([store], catalogue, checked) == []
    catalogue.close()
    for statement, seen in (
        ("UPDATE verifications SET verdict = 'verified' WHERE id = 2", []),
        ("UPDATE verifications SET verdict = 'verified' WHERE id = 4", ["changed at row 4"]),
        ("UPDATE verifications SET hash = 'f' WHERE id = 3", ["rewritten: row 3"]),
        ("DELETE FROM verifications WHERE id > 2", ["lost rows: row 3"]),
    ):
        catalogue = tampered(path, statement)
        faults = log_faults([store], catalogue, checked)
        assert log_faults([store], catalogue) != [], "the whole walk finds each of them"
        catalogue.close()
        assert len(faults) == len(seen)
        assert all(said in fault for said, fault in zip(seen, faults, strict=True))


def test_doctor_reads_the_log_once(path, tmp_path, monkeypatch, capsys):
    """The second `doctor` begins behind the row up to which the first one found the log whole, and says so."""
    monkeypatch.setenv("ZOT_HOME", str(tmp_path))
    append(catalogue := Catalogue(f"sqlite:///{path}"), "verified", "corrupt")
    catalogue.close()
    said = []
    for _ in range(2):
        cli.run(["doctor", "--json"])
        said += [each for each in json.loads(capsys.readouterr().out)["checks"] if each["name"] == "catalogue"]
    assert [each["outcome"] for each in said] == ["good", "good"]
    assert "since row" not in said[0]["detail"]
    assert "since row 2; `zot-artifacts log verify` reads all" in said[1]["detail"]


def test_the_head_of_another_catalogue_is_not_mixed_up(catalogue, tmp_path):
    """Two catalogues that use one store keep a head each."""
    store, other = open_store(), Catalogue(f"sqlite:///{tmp_path / 'other.sqlite3'}")
    append(catalogue, "verified", "verified")
    append(other, "corrupt")
    assert keep_head(store, catalogue) is None
    assert check_kept_head(store, other) is None
    assert catalogue.identity != other.identity
    other.close()
