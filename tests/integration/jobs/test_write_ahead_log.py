"""A worker that ends in order leaves the catalogue in one file."""

from pathlib import Path

import pytest

from tests.servers.valkey import Valkey
from tests.servers.worker import Worker
from tests.waiting import WITHIN
from zot_artifact_client import ArtifactClient
from zot_artifact_client.errors import JobFailed


def test_the_last_worker_leaves_no_write_ahead_log(tmp_path: Path) -> None:
    """Its children do not close their connections, so that the last jobs would be in the log alone."""
    (tmp_path / "valkey").mkdir()
    with (
        Valkey(tmp_path / "valkey") as broker,
        Worker(tmp_path / "worker", broker.url, concurrency=1) as worker,
        ArtifactClient(broker.url) as client,
    ):
        with pytest.raises(JobFailed):
            client.verify("releases", "absent").wait(WITHIN)
        log = worker.home / "catalogue.sqlite3-wal"
        assert log.exists()
        worker.stop()
        assert not log.exists()
