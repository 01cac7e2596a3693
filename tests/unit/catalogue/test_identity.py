"""A catalogue that is not the one that was opened is refused, and none is made where one was expected."""

import shutil

import pytest
import sqlalchemy as sa

from tests.unit.catalogue.test_catalogue import begin, stored
from worker.catalogue import Catalogue, CatalogueError, CatalogueUnavailable, NoCatalogue


def test_no_process_writes_to_a_deleted_file(tmp_path):
    """After its file was deleted or replaced under it, a catalogue is unavailable, and makes no new file."""
    path, other = tmp_path / "catalogue.sqlite3", tmp_path / "other.sqlite3"
    catalogue = Catalogue(f"sqlite:///{path}")
    record = begin(catalogue).record
    fenced = catalogue.fenced(record.id, record.fence)
    Catalogue(f"sqlite:///{other}").close()
    aside = path.rename(tmp_path / "aside.sqlite3")
    for _ in range(2):
        with pytest.raises(CatalogueUnavailable, match=f"{path}: the file was deleted or replaced"):
            stored(fenced)
        with pytest.raises(CatalogueUnavailable, match="deleted or replaced"):
            catalogue.ledger.get("job-1")
    assert not path.exists()
    shutil.move(other, path)
    with pytest.raises(CatalogueUnavailable, match="deleted or replaced"):
        catalogue.ledger.get("job-1")
    aside.rename(path)
    assert catalogue.ledger.get("job-1") is not None
    catalogue.close()


def test_no_empty_catalogue_replaces_one_whose_file_is_gone(tmp_path):
    """A process that starts while the file is gone, or another one is in its place, makes and uses no other."""
    path = tmp_path / "catalogue.sqlite3"
    for name in ("catalogue.sqlite3", "other.sqlite3"):
        catalogue = Catalogue(f"sqlite:///{tmp_path / name}")
        begin(catalogue, name)
        catalogue.close()
    aside = path.rename(tmp_path / "aside")
    for create in (True, False):
        with pytest.raises(CatalogueUnavailable, match=r"file is gone; restore it .* or remove .*catalogue.sqlite3-id"):
            Catalogue(f"sqlite:///{path}", create=create)
    assert not path.exists()
    shutil.copy(tmp_path / "other.sqlite3", path)
    with pytest.raises(CatalogueUnavailable, match="another catalogue than the one before"):
        Catalogue(f"sqlite:///{path}")
    aside.rename(path)
    catalogue = Catalogue(f"sqlite:///{path}")
    assert catalogue.ledger.get("catalogue.sqlite3") is not None
    catalogue.close()


def test_a_new_connection_to_another_catalogue_is_refused(catalogue):
    """A database that was made anew under the same name is not taken for the one that was opened."""
    with catalogue._database.engine.begin() as connection:
        connection.execute(sa.text("UPDATE catalogue_identity SET id = 'another'"))
    catalogue.close()
    with pytest.raises(CatalogueUnavailable, match="it is another catalogue"):
        catalogue.ledger.get("job-1")


@pytest.mark.parametrize("create", [True, False])
@pytest.mark.parametrize(
    ("damage", "lacks"),
    [
        ("DELETE FROM alembic_version", "their version"),
        ("DROP TABLE alembic_version", "their version"),
        ("DELETE FROM catalogue_identity", "its id"),
        ("DROP TABLE catalogue_identity", "its id"),
    ],
)
def test_a_catalogue_without_its_version_or_id_is_damaged(catalogue, catalogue_url, damage, lacks, create):
    """It is no file of another program, no server that does not answer, and no newer or absent catalogue."""
    with catalogue._database.engine.begin() as connection:
        connection.execute(sa.text(damage))
    catalogue.close()
    with pytest.raises(
        CatalogueError, match=rf"is damaged: .*, but not {lacks}.*`zot-artifacts catalogue restore"
    ) as told:
        Catalogue(catalogue_url, create=create)
    assert type(told.value) is CatalogueError, "to wait for it does not help"


def test_no_catalogue_is_made_where_one_was_expected(tmp_path, catalogue_url):
    """A command that only reads is told that there is no catalogue, and leaves no file behind."""
    path = tmp_path / "mistyped" / "catalogue.sqlite3"
    path.parent.mkdir()
    with pytest.raises(NoCatalogue, match=r"no catalogue at sqlite:///.*mistyped.*ZOT_CATALOGUE.*catalogue restore"):
        Catalogue(f"sqlite:///{path}", create=False)
    assert list(path.parent.iterdir()) == []
    Catalogue(catalogue_url).close()
    Catalogue(catalogue_url, create=False).close()


def test_an_empty_database_of_a_server_is_no_catalogue(postgres):
    """An empty database on a server is left as it is by a command that only reads."""
    with postgres.database(migrated=False) as url:
        with pytest.raises(NoCatalogue):
            Catalogue(url, create=False)
        Catalogue(url).close()
        Catalogue(url, create=False).close()
