"""Two copies of one catalogue with the same stores find each other, and no more than one of them writes."""

import io
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from pathlib import Path

import pytest

from tests.memory_driver import MemoryDriver
from tests.unit.catalogue.test_catalogue import stored
from worker import cli, clock
from worker.artifacts.verification_log.writer import accept_as_writer, running_copy, see_writer, told_of_copies
from worker.catalogue import Catalogue, load_export
from worker.context import Context
from worker.settings import load_settings
from worker.storage import Store
from worker.storage.errors import AccessDenied, OutOfSpace
from worker.storage.writer_record import Sign, WriterRecord


@pytest.fixture
def store() -> Store:
    return Store(MemoryDriver("dr"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the file of a catalogue that has written to the store for a while."""
    return tmp_path / "first" / "catalogue.sqlite3"


@contextmanager
def opened(path: Path) -> Iterator[Catalogue]:
    catalogue = Catalogue(f"sqlite:///{path}")
    yield catalogue
    catalogue.close()


@pytest.fixture
def first(path: Path, store: Store) -> Iterator[Catalogue]:
    path.parent.mkdir()
    with opened(path) as catalogue:
        assert see_writer(store, catalogue) is None
        yield catalogue


@pytest.fixture
def copy(first: Catalogue, path: Path) -> Iterator[Catalogue]:
    """Return a copy of the first catalogue, as a copied data directory has it."""
    first.verifications.durable_head()
    shutil.copytree(path.parent, path.parents[1] / "copy")
    with opened(path.parents[1] / "copy" / path.name) as catalogue:
        yield catalogue


@pytest.fixture(autouse=True)
def passing_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each look be later than the one before by the time after which a token is renewed."""
    began, looks = clock.now(), count(1)
    monkeypatch.setattr(clock, "now", lambda: began + timedelta(minutes=next(looks)))


def test_the_programs_of_one_catalogue_are_one_writer(store, first, path):
    """Whichever of them has looked last: each knows the tokens of the others; so does one that was moved."""
    with opened(path) as second:
        for catalogue in (second, first, second, first):
            assert see_writer(store, catalogue) is None
    first.close()
    path.parent.rename(path.parents[1] / "moved")
    with opened(path.parents[1] / "moved" / path.name) as moved:
        assert see_writer(store, moved) is None
        assert str(path.parents[1] / "moved") in store.writer(moved.identity).writer.place


def test_a_copy_that_is_behind_may_not_write_and_both_are_told(store, first, copy):
    """The first one goes on, and knows of the copy for as long as that gives signs."""
    assert see_writer(store, first) is None
    record = store.writer(first.identity)
    before = copy.writers._tokens("dr").here
    told = str(see_writer(store, copy))
    assert "another copy of this catalogue, " in told
    for _ in range(2):  # its objections are no later moment
        assert f"--newer-since {before:%Y-%m-%dT%H:%M:%SZ}`" in str(see_writer(store, copy))
    assert copy.writers.was_refused("dr")
    assert not first.writers.was_refused("dr")
    assert f"{first.writers.place()}, uses this store" in told
    assert told_of_copies(store, copy) == told
    assert store.writer(first.identity).writer == record.writer
    for _ in range(5):
        assert see_writer(store, first) is None
        told = str(told_of_copies(store, first))
        assert f"{copy.writers.place()}, uses this store too" in told
    for _ in range(15):
        assert see_writer(store, first) is None
    assert told_of_copies(store, first) is None
    assert see_writer(store, copy) is not None


def test_a_copy_waits_for_the_catalogue_that_it_was_made_of(store, first, copy, path):
    """It has the newest token, too, but in another file; after a quarter of an hour that one does not run any more.

    Which of them is right cannot be known then: one goes on, and both are told.
    """
    told = str(see_writer(store, copy))
    assert f"was copied or moved from {first.writers.place()}, which gave a sign" in told
    assert running_copy(store, copy) is not None
    assert see_writer(store, first) is None
    assert "another copy of this catalogue, " in str(see_writer(store, copy)), "the first one has gone on meanwhile"
    shutil.copytree(path.parent, path.parents[1] / "third")
    with opened(path.parents[1] / "third" / path.name) as third:
        for _ in range(30):
            told = see_writer(store, third)
        assert told is None
        assert f"{third.writers.place()}, uses this store" in str(see_writer(store, first))
        assert f"{first.writers.place()}, uses this store too" in str(told_of_copies(store, third))


def test_a_catalogue_that_was_imported_goes_on_at_once(store, first, path, tmp_path):
    """Its tokens are of the database that the export is of, and an operator has moved it."""
    export = io.BytesIO()
    first.export(export)
    export.seek(0)
    load_export(f"sqlite:///{tmp_path / 'imported.sqlite3'}", export)
    with opened(tmp_path / "imported.sqlite3") as imported:
        assert see_writer(store, imported) is None
    assert "another copy of this catalogue, " in str(see_writer(store, first))


@pytest.mark.parametrize("winner", ["first", "copy"])
def test_an_operator_decides_between_two_copies(store, first, copy, winner):
    """`log accept` with one of them ends both refusals; the other one is told, and does not object again."""
    see_writer(store, first)
    see_writer(store, copy)
    wins, loses = (first, copy) if winner == "first" else (copy, first)
    assert running_copy(store, wins).place == loses.writers.place()
    accept_as_writer(store, wins)
    for _ in range(2):
        assert see_writer(store, wins) is None
        told = str(see_writer(store, loses))
        assert f"{wins.writers.place()}, was accepted" in told
        assert told.endswith("stop the programs of this one")
    assert running_copy(store, wins) is None


def test_a_copy_that_is_gone_needs_no_question(store, first, copy):
    """It gave no sign for a quarter of an hour, or it was at the place of the catalogue that has replaced it."""
    see_writer(store, first)
    assert running_copy(store, copy) is not None
    for _ in range(15):
        gone = running_copy(store, copy)  # a minute passes
    assert gone is None
    see_writer(store, first)
    record = store.writer(copy.identity)
    sign = Sign(record.writer.token, copy.writers.place(), record.writer.at)
    store.set_writer(copy.identity, WriterRecord(sign))
    told = str(told_of_copies(store, copy))
    assert told.startswith(f"{sign.place} used this store at ")
    assert " in a later state: it was set back, or a copy of it runs" in told
    assert running_copy(store, copy) is None


def test_a_store_that_was_restored_has_the_same_writer(store, first, monkeypatch):
    """Its record is older than the tokens that are remembered; one that cannot be understood counts for none."""
    old = store.writer(first.identity)
    ahead = clock.now() + timedelta(days=30)
    for late in range(3):
        monkeypatch.setattr(clock, "now", lambda late=late: ahead + timedelta(days=late))
        assert see_writer(store, first) is None
    assert len(first.writers._tokens("dr").own) <= 2, "old tokens are forgotten"
    store.set_writer(first.identity, old)
    assert told_of_copies(store, first) is None
    assert see_writer(store, first) is None
    store.write_object("zot-store", f"writer-{first.identity}", io.BytesIO(b'{"writer": 7}'))
    assert store.writer(first.identity) is None
    assert see_writer(store, first) is None
    monkeypatch.setattr(clock, "now", lambda: ahead + timedelta(days=3))
    monkeypatch.setattr(MemoryDriver, "put", raising(OutOfSpace("dr: the disk is full")))
    assert see_writer(store, first) is None, "a full store keeps the record that it has, and the log is compared"
    with pytest.raises(OutOfSpace):
        accept_as_writer(store, first)


def raising(error: Exception) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize("other", ["dr 2", "renamed", "copied"])
def test_stores_of_one_catalogue_do_not_disturb_each_other(store, first, monkeypatch, other):
    """Names that are alike keep their own tokens while one store is away; a new name or a copy brings a token along."""
    second = Store(MemoryDriver(other))
    if other == "dr 2":
        assert see_writer(second, first) is None
    else:
        second.set_writer(first.identity, store.writer(first.identity))
    now = clock.now()
    for days in range(1, 4):
        monkeypatch.setattr(clock, "now", lambda days=days: now + timedelta(days=days))
        assert see_writer(store, first) is None
        assert told_of_copies(second, first) is None
    assert see_writer(second, first) is None
    assert told_of_copies(store, first) is None


def test_log_accept_asks_while_the_other_copy_runs_and_purges_nothing_of_it(tmp_path, monkeypatch, capsys):
    """The other copy may have undone a delete since: its grace period begins anew."""
    monkeypatch.setenv("ZOT_STORES", json.dumps({"dr": {"type": "filesystem", "root": str(tmp_path / "dr")}}))
    (tmp_path / "dr").mkdir()
    monkeypatch.setenv("ZOT_DELETE__GRACE", "7d")
    monkeypatch.setenv("ZOT_HOME", str(tmp_path / "first"))
    first = Context.open(load_settings())
    of, now = stored(first.catalogue), clock.now()
    first.catalogue.deletions.begin(of, now=now, until=now, by="ana", reason=None, job="delete")
    assert see_writer(first.stores["dr"], first.catalogue) is None
    first.catalogue.verifications.durable_head()
    shutil.copytree(tmp_path / "first", tmp_path / "copy")
    assert see_writer(first.stores["dr"], first.catalogue) is None
    monkeypatch.setenv("ZOT_HOME", str(tmp_path / "copy"))
    assert cli.run(["log", "accept", "--yes"]) == 1
    told = capsys.readouterr().err
    assert f"may still run: {first.catalogue.writers.place()} uses dr" in told.replace("\n", " ")
    assert cli.run(["log", "accept", "--yes", "--take-over"]) == 0
    with opened(tmp_path / "copy" / "catalogue.sqlite3") as copy:
        assert see_writer(first.stores["dr"], copy) is None
        assert copy.deletions.due(now=clock.now(), limit=10) == []
    assert first.catalogue.deletions.due(now=clock.now(), limit=10) != []
    assert "was accepted" in str(see_writer(first.stores["dr"], first.catalogue))
    first.close()


def test_a_store_that_refuses_the_record_for_a_moment_has_the_same_writer(store, first, copy, monkeypatch):
    """A copy that could not read the record does not replace it, and one that may only read is refused all the same."""
    assert see_writer(store, first) is None
    record = store.writer(first.identity)
    with monkeypatch.context() as denied:
        denied.setattr(MemoryDriver, "open", raising(AccessDenied("dr: expired")))
        assert see_writer(store, copy) is None
        assert told_of_copies(store, copy) is None
    assert store.writer(first.identity) == record
    with monkeypatch.context() as denied:
        denied.setattr(MemoryDriver, "put", raising(AccessDenied("dr: read only")))
        assert "uses this store" in str(see_writer(store, copy))
    with monkeypatch.context() as denied:
        denied.setattr(MemoryDriver, "open", raising(AccessDenied("dr: expired")))
        with pytest.raises(AccessDenied):
            see_writer(store, copy)
    assert copy.writers.was_refused("dr")
    assert store.writer(first.identity) == record
    store.delete_object("zot-store", f"writer-{first.identity}")
    assert see_writer(store, copy) is None
    assert not copy.writers.was_refused("dr")
