"""Answers about single objects, however many: each object of a page has its verdict, and the store stays in use."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tasks.upload import upload
from tests.integration.tasks.rotting_stores import CLOUDS, RottingCloud, RottingStore, rotting
from tests.integration.tasks.sweeps.test_verify_sweep import Sweeper
from tests.servers.proxy import Say
from worker import clock
from worker.catalogue import tables
from worker.context import Context
from worker.settings import Settings
from worker.settings.section_models import BreakerSettings
from worker.storage.config import FilesystemConfig
from zot_artifact_client.contract import UploadRequest

_S3 = b"<Error><Code>%s</Code><Message>no</Message></Error>"
_GCS = b'{"error": {"code": %d, "message": "no", "errors": [{"reason": "%s"}]}}'
_JSON = {"Content-Type": "application/json"}


def _azure(status: int, code: str) -> Say:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>"
    return Say(status, body.encode(), {"Content-Type": "application/xml", "x-ms-error-code": code})


ANSWERS: Mapping[str, tuple[Say, ...]] = {
    "s3": (Say(400, _S3 % b"KMS.DisabledException"), Say(409, _S3 % b"OperationAborted"), Say(418)),
    "gcs": (Say(400, _GCS % (400, b"invalid"), _JSON), Say(409, _GCS % (409, b"conflict"), _JSON), Say(418)),
    "azure": (_azure(403, "KeyVaultEncryptionKeyNotFound"), _azure(409, "LeaseIdMissing"), Say(418)),
    "filesystem": (),
}
"""What a store says of an object whose KMS key is disabled, of one that is being changed, and what is not known."""
OF_EACH = 2


@pytest.fixture(params=[*CLOUDS, "filesystem"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, RottingStore]]:
    (tmp_path / "dr").mkdir()
    with rotting(request.param, request, tmp_path / "dr") as opened:
        yield request.param, opened


@pytest.fixture
def settings(settings: Settings, store: tuple[str, RottingStore], tmp_path: Path) -> Settings:
    opened = store[1]
    dr = opened.config if isinstance(opened, RottingCloud) else FilesystemConfig(root=tmp_path / "dr")
    update = {"stores": {"dr": dr}, "placement": ("dr",), "breaker": BreakerSettings(failures=1)}
    return settings.model_copy(update=update)


@pytest.mark.usefixtures("sdks_retry_at_once")
def test_answers_about_objects_keep_the_breaker_closed(
    context: Context, run: Callable[..., Any], source: Callable[..., str], store: tuple[str, RottingStore]
) -> None:
    """Denied, archived, locked and encrypted objects are unreadable or archived, and the others are verified."""
    kind, opened = store
    keys = iter([f"a{n:03d}" for n in range(OF_EACH * (len(ANSWERS[kind]) + 3))])
    expected: Counter[str] = Counter()

    def lay(verdict: str, spoil: Callable[[str], object]) -> None:
        for _ in range(OF_EACH):
            key = next(keys)
            run(upload, UploadRequest(bucket="releases", key=key, source=source(key.encode())))
            spoil(key)
            expected[verdict] += 1

    lay("unreadable", opened.deny)
    for answer in ANSWERS[kind]:
        lay("unreadable", lambda key, answer=answer: opened._disturb(key, answer))  # type: ignore[attr-defined, misc]
    if kind in {"s3", "azure"}:
        lay("archived", opened.archive)  # type: ignore[attr-defined]
    lay("verified", lambda _key: None)
    with context.catalogue._database.write() as connection:
        connection.execute(sa.update(tables.copies).values(read_at=clock.now() - timedelta(days=60)))

    sweeper = Sweeper(context)
    sweeper.plan()
    outcomes: Counter[str] = Counter()
    for id_ in list(sweeper.messages.sent):
        outcomes.update(sweeper.page(id_).outcomes)
    assert outcomes == expected
    assert context.admission.check("dr") is False  # no failure of the store is counted
