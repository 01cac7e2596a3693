"""The original's buckets, on every server that speaks as one of its clouds; the catalogue of a module's worker."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.storage.originals import TOKEN, OriginalCloud, original_azure, original_gcs, original_s3
from tests.servers import Azurite, FakeGcs
from tests.servers.proxy import FaultyProxy
from tests.servers.s3 import S3Server
from tests.servers.worker import Worker
from worker.catalogue import Catalogue


@pytest.fixture(scope="session")
def tokens() -> Iterator[str]:
    """Return the URL of what gives a token to every service account."""
    with FaultyProxy(0, lambda _: TOKEN) as server:
        yield f"{server.endpoint}/token"


@pytest.fixture(params=["ministack", "rclone", "fake_gcs", "azurite"])
def cloud(request: pytest.FixtureRequest, tokens: str, tmp_path: Path) -> OriginalCloud:
    """Return a real bucket or container of the original's, a new one on each server."""
    server: S3Server | FakeGcs | Azurite = request.getfixturevalue(request.param)
    match server:
        case FakeGcs():
            return original_gcs(server, tmp_path, tokens)
        case Azurite():
            return original_azure(server)
        case S3Server():
            return original_s3(server)


@pytest.fixture
def catalogue(worker: Worker) -> Iterator[Catalogue]:
    """Return the catalogue of the worker that the module runs."""
    opened = Catalogue(f"sqlite:///{worker.home / 'catalogue.sqlite3'}")
    yield opened
    opened.close()
