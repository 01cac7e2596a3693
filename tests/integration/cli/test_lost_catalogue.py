"""The disaster, rehearsed: the catalogue's file is lost under a stopped worker, and comes back in two ways."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import Valkey
from tests.servers.worker import Worker
from tests.waiting import WITHIN
from worker import cli
from worker.catalogue import Catalogue, CatalogueUnavailable
from zot_artifact_client import ArtifactClient

BUCKET = "releases"


@pytest.fixture
def incoming(tmp_path: Path) -> Path:
    made = tmp_path / "incoming"
    made.mkdir()
    return made


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the data directory of a worker that stopped after uploads, a backup, and more uploads."""
    home = tmp_path / "worker" / "home"
    monkeypatch.setenv("ZOT_HOME", str(home))
    monkeypatch.setenv("ZOT_SWEEP__BACKUP__STORES", '["primary", "dr"]')
    return home


def working(home: Path, valkey: Valkey, incoming: Path) -> Worker:
    return Worker(home.parent, valkey.url, beat=False, sources__roots=f'["{incoming}"]')


def upload(client: ArtifactClient, incoming: Path, key: str, content: bytes) -> None:
    path = incoming / key
    path.write_bytes(content)
    client.upload(str(path), bucket=BUCKET, key=key).wait(WITHIN)


def lose(home: Path) -> None:
    """Delete the database, as a failed disk does; what is kept beside it stays."""
    for name in ("catalogue.sqlite3", "catalogue.sqlite3-wal", "catalogue.sqlite3-shm"):
        (home / name).unlink(missing_ok=True)


def digests(home: Path) -> dict[str, str]:
    catalogue = Catalogue(f"sqlite:///{home / 'catalogue.sqlite3'}")
    found = {each.key: each.digest.sha256 for each in catalogue.artifacts.page(BUCKET)}
    catalogue.close()
    return found


def test_a_lost_catalogue_comes_back_by_backup_and_by_rebuild(home, valkey, incoming, capsys):
    """Both ways end with the same artifacts and digests, and the worker continues with either catalogue."""
    with working(home, valkey, incoming), ArtifactClient(valkey.url) as client:
        for key in ("a", "b"):
            upload(client, incoming, key, key.encode())
        assert cli.run(["catalogue", "backup"]) == 0
        upload(client, incoming, "late", b"written after the backup")
        upload(client, incoming, "a", b"another version")
    before = digests(home)
    since = backup_time(capsys)
    lose(home)
    with pytest.raises(CatalogueUnavailable, match="file is gone"):
        Catalogue(f"sqlite:///{home / 'catalogue.sqlite3'}")

    assert cli.run(["catalogue", "restore", "dr"]) == 0
    assert set(digests(home)) == {"a", "b"}
    assert cli.run(["catalogue", "rebuild", "--newer-since", since]) == 0
    assert digests(home) == before
    assert cli.run(["log", "accept", "--yes"]) == 0, "without a question: the lost catalogue was at this place"
    goes_on(home, valkey, incoming, "after-restore")

    before = digests(home)
    lose(home)
    (home / "catalogue.sqlite3-id").unlink()
    assert cli.run(["catalogue", "rebuild"]) == 0
    assert digests(home) == before
    goes_on(home, valkey, incoming, "after-rebuild")


def backup_time(capsys: pytest.CaptureFixture[str]) -> str:
    import json

    capsys.readouterr()
    assert cli.run(["catalogue", "backups", "--json"]) == 0
    return str(json.loads(capsys.readouterr().out)["backups"][0]["at"])


def goes_on(home: Path, valkey: Valkey, incoming: Path, key: str) -> None:
    """Run a worker on the catalogue: what was recorded verifies in each store, and a new upload is recorded."""
    with working(home, valkey, incoming), ArtifactClient(valkey.url) as client:
        for known in digests(home):
            result = client.verify(BUCKET, known).wait(WITHIN)
            assert {copy.store: copy.verdict for copy in result.copies} == {"primary": "verified", "dr": "verified"}
        upload(client, incoming, key, key.encode())
    assert key in digests(home)
