"""The head of the verification log, kept outside the database, shows what the chain inside it cannot."""

import io
import json
import os
import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from tests.memory_driver import MemoryDriver, MemoryReader
from tests.unit.catalogue.test_catalogue import stored
from worker import cli, clock
from worker.artifacts.verification_log.kept_head import (
    CheckedLog,
    WrittenLog,
    accept_head,
    check_kept_head,
    keep_head,
    log_faults,
    see_head,
    signed_head,
)
from worker.artifacts.verification_log.signature import BadKeyFile, LogKeys
from worker.catalogue import Catalogue, FindingKind, LogHead, VerdictRow
from worker.context import Context
from worker.settings import load_settings
from worker.storage import Store


def append(catalogue: Catalogue, *verdicts: str) -> None:
    artifact = catalogue.artifacts.current("releases", "app.tgz") or stored(catalogue)
    copy = catalogue.artifacts.copies(artifact)["dr"]
    for verdict in verdicts:
        catalogue.verifications.record(VerdictRow.of("job-1", artifact, copy, verdict), now=clock.now())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the file of a new catalogue."""
    Catalogue(f"sqlite:///{tmp_path / 'catalogue.sqlite3'}").close()
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


def test_a_log_that_grows_fits_the_head_that_was_kept(catalogue, monkeypatch):
    """Rows that were appended since change nothing of what was kept; an empty log keeps no head.

    A store may return the object in pieces.
    """
    store, read = open_store(), MemoryReader.read
    monkeypatch.setattr(MemoryReader, "read", lambda reader, size: read(reader, min(size, 10)))
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


def make_key(path: Path) -> LogKeys:
    """Write a private key and its public key, and return the configuration that signs."""
    key = Ed25519PrivateKey.generate()
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    path.with_suffix(".pub").write_bytes(public)
    return LogKeys(path)


def kept_in(store: Store, catalogue: Catalogue) -> dict[str, object]:
    with store.read_object("zot-probe", f"verification-log/{catalogue.identity}.json") as reader:
        kept: dict[str, object] = json.loads(reader.read(4096))
    return kept


def put_head(store: Store, catalogue: Catalogue, **changes: object) -> None:
    body = json.dumps({**kept_in(store, catalogue), **changes}).encode()
    store.write_object("zot-probe", f"verification-log/{catalogue.identity}.json", io.BytesIO(body))


def test_a_signed_head_counts_and_a_forged_one_shows(path, tmp_path):
    """A log that was computed anew, with its head in the store forged to fit, lacks the right signature."""
    keys, other = make_key(tmp_path / "key.pem"), make_key(tmp_path / "other.pem")
    catalogue, store = Catalogue(f"sqlite:///{path}"), open_store()
    append(catalogue, "verified", "corrupt", "verified")
    assert keep_head(store, catalogue, keys) is None
    assert kept_in(store, catalogue)["count"] == 3
    assert check_kept_head(store, catalogue, LogKeys(None, [tmp_path / "key.pub"])) is None, "with the public key alone"
    assert "forged" in str(check_kept_head(store, catalogue, other))
    rotated = LogKeys(tmp_path / "other.pem", [tmp_path / "key.pub"])
    assert check_kept_head(store, catalogue, rotated) is None, "the signature of a former key counts"
    catalogue.close()
    catalogue = tampered(path, "DELETE FROM verifications WHERE id > 1")
    head = catalogue.verifications.head()
    forged = {"id": head.id, "hash": head.hash, "at": head.at.isoformat(), "count": 1}
    put_head(store, catalogue, **forged)
    assert check_kept_head(store, catalogue) is None, "without keys a forged head fits"
    assert "forged" in str(check_kept_head(store, catalogue, keys))
    assert "forged" in str(log_faults([store], catalogue, keys=keys))
    unnamed = keys.sign(json.dumps(forged, sort_keys=True).encode())
    put_head(store, catalogue, **forged, signature=unnamed)
    assert "forged" in str(check_kept_head(store, catalogue, keys)), "a signature is of one catalogue"
    put_head(store, catalogue, **forged, signature=None)
    assert "is not signed" in str(keep_head(store, catalogue, keys))
    put_head(store, catalogue, **forged, signature="!")
    assert "forged" in str(keep_head(store, catalogue, keys)), "and it stays: it is the evidence"
    catalogue.close()


def test_an_accepted_head_replaces_the_one_before_which_stays(path, tmp_path):
    """After a restore the log is shorter than the stores know, until an operator accepts that."""
    keys = make_key(tmp_path / "key.pem")
    catalogue, store = Catalogue(f"sqlite:///{path}"), open_store()
    append(catalogue, "verified", "corrupt", "verified")
    keep_head(store, catalogue, keys)
    catalogue.close()
    catalogue = tampered(path, "DELETE FROM verifications WHERE id > 1")
    assert "lost rows" in str(see_head(store, catalogue, keys))
    assert catalogue.findings.page()
    aside = accept_head(store, catalogue, keys)
    assert not catalogue.findings.page()
    assert accept_head(store, catalogue, keys) is None, "the head is there already, and no other one is replaced"
    assert keep_head(store, catalogue, keys) is None
    with store.read_object("zot-probe", str(aside)) as reader:
        assert json.loads(reader.read(4096))["id"] == 3
    append(catalogue, "verified")
    assert keep_head(store, catalogue, keys) is None
    assert (kept_in(store, catalogue)["count"], signed_head(catalogue, keys)["count"]) == (2, 2)
    catalogue.close()
    catalogue = tampered(path, "INSERT INTO sweep_cursors (name, after) VALUES ('backup.restored', 1790000000)")
    assert "was restored" in str(keep_head(store, catalogue, keys)), "although the log fits"
    catalogue.close()


def test_a_restore_is_accepted_although_the_chain_is_broken(path, tmp_path, monkeypatch, capsys):
    """The backup may be the best one there is: the stores keep its head, and so its deletes, but it stays broken."""
    monkeypatch.setenv("ZOT_HOME", str(tmp_path))
    append(catalogue := Catalogue(f"sqlite:///{path}"), "verified", "corrupt", "verified")
    store = Context.open(load_settings()).stores["primary"]
    assert keep_head(store, catalogue) is None
    catalogue.close()
    catalogue = tampered(
        path,
        "DELETE FROM verifications WHERE id = 3",
        "UPDATE verifications SET verdict = 'verified' WHERE id = 2",
        "INSERT INTO sweep_cursors (name, after) VALUES ('backup.restored', 1790000000)",
    )
    for options, accepted in ([], False), (["--yes"], True), (["--yes"], True):
        assert cli.run(["log", "accept", *options]) == 1
        told = capsys.readouterr().err
        assert "changed at row 2: restore it from a backup" in told
        assert ("was restored from its backup" in told) is not accepted, "nothing else is accepted unseen"
        assert (catalogue.backup_times.restored() is None) == accepted
        assert (keep_head(store, catalogue) is None) == accepted
    assert cli.run(["log", "verify"]) == 1
    assert [each.store for each in catalogue.findings.page(kind=FindingKind.LOG_CHANGED)] == [None]
    catalogue.close()


def test_a_head_of_before_is_written_once(catalogue):
    """A store whose head is the present one is not written to again."""
    store = open_store()
    append(catalogue, "verified")
    keep_head(store, catalogue)
    before = store.stat_object("zot-probe", f"verification-log/{catalogue.identity}.json").version
    keep_head(store, catalogue)
    assert store.stat_object("zot-probe", f"verification-log/{catalogue.identity}.json").version == before


@pytest.mark.parametrize("content", [b"no key", None])
def test_a_key_file_that_cannot_be_used_is_named(path, tmp_path, content):
    """Neither a missing nor a wrong file is silently no key."""
    append(catalogue := Catalogue(f"sqlite:///{path}"), "verified")
    file = tmp_path / "key.pem"
    if content:
        file.write_bytes(content)
    with pytest.raises(BadKeyFile, match=r"signing_key.*key\.pem"):
        keep_head(open_store(), catalogue, LogKeys(file))
    catalogue.close()


def test_the_commands_check_signatures_and_status_sees_a_cut_log(tmp_path, monkeypatch, capsys):
    """`log verify`, `log accept` and `status` go by the settings; a cut log is bad at once in `status`."""
    monkeypatch.setenv("ZOT_HOME", str(tmp_path))
    path = tmp_path / "catalogue.sqlite3"
    append(catalogue := Catalogue(f"sqlite:///{path}"), "verified", "corrupt")
    catalogue.close()
    assert cli.run(["log", "accept", "--json"]) == 0
    make_key(tmp_path / "key.pem")
    monkeypatch.setenv("ZOT_VERIFICATION_LOG__SIGNING_KEY", str(tmp_path / "key.pem"))
    capsys.readouterr()
    assert cli.run(["log", "verify"]) == 1
    assert "is not signed" in capsys.readouterr().err
    assert cli.run(["log", "accept"]) == 2
    assert cli.run(["log", "accept", "--yes"]) == 0
    capsys.readouterr()
    assert cli.run(["log", "verify", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["head"]["signature"]
    catalogue = tampered(path, "DELETE FROM verifications WHERE id = 2")
    catalogue.close()
    cli.run(["status", "--json"])
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert "lost rows" in next(each["detail"] for each in checks if each["name"] == "verification log")
    (tmp_path / "run").mkdir(exist_ok=True)
    notes = [kind(tmp_path / "run", catalogue) for kind in (CheckedLog, WrittenLog)]
    for note in notes:
        note.put(LogHead(2, "0" * 64, clock.now()))
    assert cli.run(["log", "accept", "--yes"]) == 0
    assert cli.run(["log", "verify"]) == 0
    assert [note.get() for note in notes] == [None, None]
    shutil.rmtree(tmp_path / "stores" / "primary")
    (tmp_path / "stores" / "primary").write_bytes(b"no directory")
    capsys.readouterr()
    assert cli.run(["log", "accept", "--yes", "--json"]) == 3
    told = json.loads(capsys.readouterr().out)
    assert (list(told["replaced"]), list(told["failed"])) == (["dr"], ["primary"])


def test_rows_that_were_cut_off_before_a_store_kept_the_head_show(path: Path, tmp_path: Path) -> None:
    """Each job that writes verdicts notes the last row beside the catalogue: a cut tail shows at once."""
    catalogue = Catalogue(f"sqlite:///{path}")
    append(catalogue, "verified", "verified")
    note = WrittenLog(tmp_path, catalogue).note_later()
    append(catalogue, "verified")  # by another job, and perhaps not durable yet
    note()
    kept = WrittenLog(tmp_path, catalogue).get()
    assert kept is not None
    assert kept.id == 2
    assert log_faults([], catalogue, written=kept) == []
    catalogue.close()
    for statement in ("DELETE FROM verifications WHERE id >= 2", "DELETE FROM verifications"):
        cut = tampered(path, statement)
        fault = log_faults([], cut, written=WrittenLog(tmp_path, cut).get())[0]
        assert "lost rows: row 2" in fault
        assert "accepted on another machine, run `zot-artifacts log accept --yes` here, too" in fault
        cut.close()


def test_a_note_of_the_head_that_is_written_just_then_is_no_lost_row(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader gets the start of one write and the end of another: that is no row which the log has lost."""
    catalogue = Catalogue(f"sqlite:///{path}")
    append(catalogue, *["verified"] * 9)
    note, bodies, heads = WrittenLog(tmp_path, catalogue), list[bytes](), list[LogHead | None]()
    first = catalogue.verifications.head()
    assert first is not None
    (older := note._file).write_text(json.dumps({"id": first.id, "hash": first.hash, "at": str(first.at)}))
    assert note.get() == first, "as an earlier version wrote it, without a checksum"
    older.unlink()
    (other := tmp_path / "other").write_bytes(b"of another program")
    note._file.symlink_to(other)
    torn, read = list[bytes](), Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda file: torn.pop() if torn else read(file))
    for _ in range(2):  # row 9, and 10, which makes all that follows one byte longer
        head = catalogue.verifications.head()
        assert head is not None
        note.put(head)
        assert note.get() == head
        bodies.append(note._file.read_bytes())
        torn.append(b'{"id": 9')
        assert note.get() == head
        note._file.write_bytes(bodies[-1] * 2)
        heads.append(head)
        append(catalogue, "verified")
    for first, last in (bodies, reversed(bodies)):
        for cut in range(200):  # spaces follow
            note._file.write_bytes(first[:cut] + last[cut:])
            assert note.get() in {*heads, None}
    assert other.read_bytes() == b"of another program"
    catalogue.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root writes a file of another user")
def test_a_note_of_the_head_that_root_has_made_is_replaced(path: Path, tmp_path: Path) -> None:
    """`doctor` was run as root once: the user of the worker, who has the directory, notes the head all the same."""
    catalogue = Catalogue(f"sqlite:///{path}")
    append(catalogue, "verified")
    head, directory = catalogue.verifications.head(), Path(tempfile.mkdtemp(dir="/tmp"))
    assert head is not None
    note = CheckedLog(directory, catalogue)
    try:
        note.put(head)
        note._file.chmod(0o644)
        os.chown(directory, 65534, 65534)
        append(catalogue, "verified")
        later = catalogue.verifications.head()
        assert later is not None
        os.seteuid(65534)
        try:
            note.put(later)
        finally:
            os.seteuid(0)
        assert note.get() == later
    finally:
        shutil.rmtree(directory)
    catalogue.close()


@pytest.mark.parametrize("body", [b"[]", b"null", b"5", b"[" * 4000, b'{"id": 1e999}', b'{"id": %d}' % 10**30, b"\xff"])
def test_garbage_in_the_place_of_a_head_is_told(path: Path, tmp_path: Path, body: bytes) -> None:
    """Whatever is in the place of a kept head, it is a finding about that store until an operator accepts a new one."""
    catalogue, store = Catalogue(f"sqlite:///{path}"), open_store()
    append(catalogue, "verified")
    assert keep_head(store, catalogue) is None
    key = f"verification-log/{catalogue.identity}.json"
    store.write_object("zot-probe", key, io.BytesIO(body))
    for fault in (see_head(store, catalogue, LogKeys()), *log_faults([store], catalogue)):
        assert "is not a head of a verification log: if it was damaged there, `zot-artifacts log accept --yes`" in fault
    assert [each.kind for each in catalogue.findings.page()] == [FindingKind.LOG_CHANGED]
    assert accept_head(store, catalogue)
    assert see_head(store, catalogue, LogKeys()) is None
    checked, head = CheckedLog(tmp_path, catalogue), catalogue.verifications.head()
    checked._file.write_bytes(body)
    assert checked.get() is None
    assert head is not None
    checked.put(head)
    assert checked.get() == head, "the next record replaces all of it"
    catalogue.close()
