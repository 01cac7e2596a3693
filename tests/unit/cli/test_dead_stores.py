"""Commands that read copies ask a store that answers, and nearby, before a cloud that does not."""

import hashlib
import io
import json
from contextlib import closing
from pathlib import Path

import pytest

from tests.servers.process import free_port
from tests.unit.cli.test_status import judge
from worker import cli, clock
from worker.artifacts.catalogue_backup import back_up
from worker.cli.session import open_session
from worker.settings import load_settings
from worker.storage import Digest

CONTENT = b"the bytes"


@pytest.fixture(autouse=True)
def _stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Configure a cloud to which no connection can be made, and a directory after it."""
    monkeypatch.setenv("ZOT_HOME", str(tmp_path / "home"))
    (tmp_path / "local").mkdir()
    cloud = {
        "type": "s3", "endpoint": f"http://127.0.0.1:{free_port()}", "bucket": "artifacts",
        "access_key_id": "key", "secret_access_key": "secret",
    }  # fmt: skip
    stores = {"cloud": cloud, "local": {"type": "filesystem", "root": str(tmp_path / "local")}}
    monkeypatch.setenv("ZOT_STORES", json.dumps(stores))


@pytest.mark.parametrize("good", [True, False])
@pytest.mark.parametrize("command", ["get", "export"])
def test_a_dead_cloud_is_read_after_the_others(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], *, good: bool
) -> None:
    """The directory comes first where its copy is good; elsewhere a cloud without a connection is tried after it."""
    digest = Digest(len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
    with closing(open_session(load_settings(), create=True)) as session:
        session.stores["local"].write_object("releases", "app.tgz", io.BytesIO(CONTENT))
        artifacts = session.catalogue.artifacts
        made = artifacts.record("releases", "app.tgz", digest, {}, clock.now(), stores=["cloud", "local"]).artifact
        for store in ("cloud", "local"):
            artifacts.finish_copy(made, store, tag="1", evidence={}, now=clock.now())
        if not good:
            judge(session.catalogue, made, "local", "corrupt")
    target = tmp_path / "target"
    arguments = ["get", "releases/app.tgz", str(target)]
    if command == "export":
        arguments = ["export", "--bagit", str(target), "releases/app.tgz"]
    assert cli.run(arguments) == 0
    assert "trying the next copy" not in capsys.readouterr().err
    file = target if command == "get" else target / "data" / "releases" / "app.tgz"
    assert file.read_bytes() == CONTENT


def test_a_dead_store_hides_no_backup(capsys: pytest.CaptureFixture[str]) -> None:
    """`catalogue backups` lists those of the stores that answer, names the others, and ends with 3."""
    with closing(open_session(load_settings(), create=True)) as session:
        settings = session.settings
        done = back_up(
            session.catalogue, [session.stores["local"]], settings.sweep.backup, settings.spool_dir, job="job"
        )
    capsys.readouterr()
    assert cli.run(["catalogue", "backups", "--json"]) == 3
    listed = json.loads(capsys.readouterr().out)
    assert [f"{each['store']}: {each['key']}" for each in listed["backups"]] == [f"local: {done.written['local']}"]
    assert list(listed["failed"]) == ["cloud"]
    assert cli.run(["catalogue", "backups", "--store", "local"]) == 0
