"""The commands `catalogue export` and `catalogue import`, as a user runs them."""

import json
from pathlib import Path

import pytest

from tests.unit.catalogue.test_export import content, exported, fill
from worker import cli
from worker.catalogue import Catalogue
from worker.settings import load_settings


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a data directory with a catalogue."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("ZOT_HOME", str(home))
    catalogue = Catalogue(f"sqlite:///{home / 'catalogue.sqlite3'}")
    fill(catalogue)
    catalogue.close()
    return home


@pytest.mark.parametrize("name", ["catalogue.jsonl", "catalogue.jsonl.gz"])
def test_an_export_is_imported_elsewhere(home, tmp_path, monkeypatch, capsys, name):
    """`export FILE` and `import FILE` move a catalogue, compressed or not, and say how many rows it has."""
    file = str(tmp_path / name)
    assert cli.run(["catalogue", "export", file, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["rows"]["verifications"] == 3
    monkeypatch.setenv("ZOT_CATALOGUE", f"sqlite:///{tmp_path / 'moved.sqlite3'}")
    assert cli.run(["catalogue", "import", file, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sha256"] == said["sha256"]
    both = [Catalogue(f"sqlite:///{path}") for path in (home / "catalogue.sqlite3", tmp_path / "moved.sqlite3")]
    one, two = (content(exported(each)) for each in both)
    assert one == two
    for each in both:
        each.close()


def test_a_cut_file_changes_nothing(home, tmp_path, monkeypatch, capsys):
    """A cut file is an error in one line with exit status 2, and no catalogue is made."""
    file = tmp_path / "catalogue.jsonl.gz"
    assert cli.run(["catalogue", "export", str(file)]) == 0
    file.write_bytes(file.read_bytes()[:-300])
    monkeypatch.setenv("ZOT_CATALOGUE", f"sqlite:///{tmp_path / 'moved.sqlite3'}")
    assert cli.run(["catalogue", "import", str(file)]) == 2
    assert "the export is cut" in capsys.readouterr().err
    assert not list(tmp_path.glob("moved*"))
    assert home.exists()


def test_an_export_makes_no_catalogue(tmp_path, monkeypatch, capsys):
    """Without a catalogue there is nothing to export, and none is made."""
    monkeypatch.setenv("ZOT_HOME", str(tmp_path / "home"))
    assert cli.run(["catalogue", "export", str(tmp_path / "file")]) == 2
    assert "no catalogue here" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_redis_that_is_away_is_told_once(tmp_path, monkeypatch, caplog):
    """Also where a rebuild reads the lists of deletes from stores that it does not rebuild."""
    (found := tmp_path / "stores" / "primary" / "releases").mkdir(parents=True)
    (found / "app.tgz").touch()
    monkeypatch.setenv("ZOT_HOME", str(tmp_path))
    monkeypatch.setenv("ZOT_RESULTS", "redis://127.0.0.1:1/0")
    assert cli.run(["catalogue", "rebuild", "--first-read"]) == 0
    caplog.clear()
    assert cli.run(["catalogue", "rebuild", "--store", "primary"]) == 0
    assert caplog.text.count("limits and breakers cannot be shared") == 1


def test_a_backup_goes_to_every_store_that_is_named(home, capsys):
    """`--store` can be repeated; a store that is named first is not left out."""
    command = ["catalogue", "backup", "--store", "primary", "--store", "dr"]
    assert cli.run(command) == 0
    capsys.readouterr()
    assert cli.run(["catalogue", "backups", "--json"]) == 0
    assert {each["store"] for each in json.loads(capsys.readouterr().out)["backups"]} == {"primary", "dr"}
    stores = load_settings().stores
    stores["dr"].root.rename(stores["dr"].root.with_name("unplugged"))
    assert cli.run(command) == 1
    told = capsys.readouterr().err
    assert ("zot-artifacts: dr: its root " in told, "dr: dr: " in told) == (True, False)
