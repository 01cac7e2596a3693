"""The four verbs as plain functions, on a real catalogue and real directories, without Celery between."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import pytest
import sqlalchemy as sa
from pydantic import SecretStr

from worker import clock
from worker.catalogue import Leased
from worker.catalogue.tables import jobs
from worker.context import Context
from worker.jobs.running_job import RunningJob
from worker.settings import Settings
from worker.settings.section_models import SourceSettings
from worker.storage.config import FilesystemConfig
from zot_artifact_client.contract import Progress

STORES = ("primary", "dr", "cold")


class NullReporter:
    """Takes the progress of a job; `stop` cancels it."""

    def __init__(self) -> None:
        self.reports: list[Progress] = []
        self.stop = False

    def report(self, progress: Progress) -> None:
        self.reports.append(progress)

    def cancelled(self) -> bool:
        return self.stop


class Run(Protocol):
    def __call__(
        self,
        work: Callable[[Any, RunningJob], Any],
        request: Any,
        *,
        outside: NullReporter = ...,
        id_: str = ...,
        context: Context = ...,
    ) -> Any: ...


def end_and_delete(context: Context, store: str, bucket: str, key: str) -> None:
    """Have another worker end all jobs and record the copy of an artifact in `store`, and then delete the artifact."""
    artifacts = context.catalogue.artifacts
    artifact = artifacts.version(bucket, key, 1)
    assert artifact is not None
    with context.catalogue._database.write() as connection:
        connection.execute(sa.update(jobs).values(fence=jobs.c.fence + 1, state="succeeded"))
    artifacts.finish_copy(artifact, store, tag="1", evidence={}, now=clock.now())
    artifacts.delete_copies(list(artifacts.copies(artifact).values()))
    artifacts.tombstone(artifact, clock.now())


@pytest.fixture
def source_root(tmp_path: Path) -> Path:
    root = tmp_path / "incoming"
    root.mkdir()
    return root


@pytest.fixture
def catalogue() -> str | None:
    """Return the URL of the catalogue, None for the embedded one; modules that run on both kinds have their own."""
    return None


@pytest.fixture
def settings(tmp_path: Path, source_root: Path, catalogue: str | None) -> Settings:
    stores = {name: FilesystemConfig(root=tmp_path / "home" / "stores" / name) for name in STORES}
    embedded = f"sqlite:///{tmp_path / 'home' / 'catalogue.sqlite3'}?timeout=300"  # the disk of a busy machine is slow
    return Settings(
        catalogue=SecretStr(catalogue or embedded),
        home=tmp_path / "home",
        stores=stores,
        placement=("primary", "dr"),
        sources=SourceSettings(roots=(source_root,)),
    )


@pytest.fixture
def context(settings: Settings) -> Iterator[Context]:
    settings.home.mkdir()
    opened = Context.open(settings)
    yield opened
    opened.close()


@pytest.fixture
def run(context: Context) -> Run:
    """Run a verb as the ledger would hand it out; `context`: with other settings or stores than usual."""
    usual = context

    def run(
        work: Callable[[Any, RunningJob], Any],
        request: Any,
        *,
        outside: NullReporter | None = None,
        id_: str | None = None,
        context: Context = usual,
    ) -> Any:
        jobs, lease = context.catalogue.ledger, context.settings.jobs.lease
        begun = jobs.acquire(
            id_ or str(uuid4()),
            getattr(work, "__name__", "job"),
            {},
            owner="test",
            writes_to=None,
            parent=None,
            now=clock.now(),
            lease=lease,
        )
        assert isinstance(begun, Leased)
        with RunningJob(begun.record, context, outside or NullReporter()) as job:
            try:
                return work(request, job)
            finally:  # the ledger records them with the end of the job
                context.catalogue.artifacts.finish_copies(job.finished, now=clock.now())
                for call in job.after_end:
                    call()

    return run


@pytest.fixture
def source(source_root: Path) -> Callable[..., str]:
    """Lay a file into the source root and return its path."""

    def lay(content: bytes, name: str = "app.tgz") -> str:
        (source_root / name).write_bytes(content)
        return str(source_root / name)

    return lay


@pytest.fixture
def stored(settings: Settings) -> Callable[..., Path]:
    """Return where a store keeps an object on disk."""

    def path(store: str, key: str = "app.tgz", bucket: str = "releases") -> Path:
        config = settings.stores[store]
        assert isinstance(config, FilesystemConfig)
        return config.root / bucket / key

    return path


def pause(context: Context, *stores: str) -> None:
    """Pause these stores and no other, for jobs that run already, too."""
    for each in context.catalogue.pauses.all():
        context.catalogue.pauses.end("store", each.name)
    for store in stores:
        context.catalogue.pauses.begin("store", store, reason=None, now=clock.now())
    context.pauses.__init__(context.catalogue.pauses)  # type: ignore[misc] # they are read once in a while
