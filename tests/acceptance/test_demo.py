"""The demo checks every effect that it reports."""

from pathlib import Path

import pytest

from tests.acceptance.commands import Zot, run_in_fork
from tests.acceptance.forked_up import FORK_CHILDREN
from tests.servers import RcloneS3
from tests.waiting import WITHIN


@pytest.mark.slow
def test_the_demo_sees_every_step_work(tmp_path: Path, rclone: RcloneS3) -> None:
    """On two filesystem stores and an S3 server every step is seen to work, and nothing is left running."""
    (rclone.files / "demo-bucket").mkdir(exist_ok=True)
    keys = {"AWS_ACCESS_KEY_ID": rclone.access_key_id, "AWS_SECRET_ACCESS_KEY": rclone.secret_access_key}
    place = {"ZOT_DEMO_S3_ENDPOINT": rclone.endpoint, "ZOT_DEMO_S3_BUCKET": "demo-bucket"}
    zot = Zot(tmp_path / "unused", keys | place)
    command = [FORK_CHILDREN, "worker.cli", "demo", "--home", str(tmp_path / "home")]
    done = run_in_fork(command, zot.environment, tmp_path, WITHIN)
    assert done.status == 0, done
    assert "every step passed" in done.stdout
    for seen in ("corrupt", "quarantine", "without the password answers 401", "none of its", "9 of 9 copies verified"):
        assert seen in done.stdout
    assert rclone.secret_access_key not in done.stdout + done.stderr


def test_the_demo_leaves_a_directory_in_use_alone(tmp_path: Path) -> None:
    """The demo refuses a data directory that holds a catalogue: status 2, nothing changed."""
    (tmp_path / "catalogue.sqlite3").write_bytes(b"not of the demo")
    done = Zot(tmp_path)("demo", "--home", tmp_path)
    assert done.status == 2
    assert [path.name for path in tmp_path.iterdir()] == ["catalogue.sqlite3"]
