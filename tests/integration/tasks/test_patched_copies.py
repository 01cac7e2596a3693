"""A chunk of a large copy has rotted in a store that replaces it by itself: only that chunk is sent."""

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from azure.storage.blob import BlobServiceClient

from tasks.replicate import replicate
from tasks.upload import upload
from tasks.verify import verify
from tests.conformance import targets
from tests.conformance.bodies import some_bytes
from tests.conformance.bodies import source as as_source
from tests.conformance.targets import AZURITE_API
from tests.integration.tasks.conftest import Run
from tests.servers.proxy import Fault, FaultyProxy, Request, Say
from worker.context import Context
from worker.settings import Settings
from worker.settings.section_models import ReplicationSettings, SourceSettings
from worker.storage.config import FilesystemConfig, StoreConfig
from worker.storage.keys import QUARANTINE_BUCKET, STAGING_BUCKET
from zot_artifact_client.contract import ReplicateRequest, UploadRequest, VerifyRequest

CHUNK = targets.PART
RIGHT = some_bytes(4 * CHUNK + 1000)
BAD = RIGHT[: CHUNK + 5] + bytes([RIGHT[CHUNK + 5] ^ 1]) + RIGHT[CHUNK + 6 :]
PLACE = {"bucket": "releases", "key": "large"}


class Line:
    """A proxy before a store of one kind, which makes the requests fail that it is told to."""

    def __init__(self, kind: str, request: pytest.FixtureRequest) -> None:
        self.fault: Callable[[Request], Fault] = lambda _: None
        self._kind = kind
        self._server = request.getfixturevalue({"s3": "ministack", "azure": "azurite"}[kind])
        self.proxy = FaultyProxy(self._server.port, self.decide)

    def decide(self, request: Request) -> Fault:
        return self.fault(request)

    def config(self) -> StoreConfig:
        """Return a store behind this line, with a real bucket of its own."""
        real, server = f"real-{uuid.uuid4().hex[:8]}", self._server
        if self._kind == "s3":
            targets.make_s3_bucket(server, real)
            return targets.s3_config(server, bucket=real, endpoint=self.proxy.endpoint)
        with BlobServiceClient.from_connection_string(server.connection_string, api_version=AZURITE_API) as made:
            made.create_container(real)
        url = f"{self.proxy.endpoint}/{server.account}"
        return targets.azure_config(server, container=real, account_url=url, api_version=AZURITE_API)

    @property
    def sent(self) -> int:
        """Return how many bytes went to the store."""
        return sum(int(request.headers.get("Content-Length") or 0) for request in self.proxy.requests)


@pytest.fixture
def line(request: pytest.FixtureRequest) -> Iterator[Line]:
    line = Line(request.param, request)
    with line.proxy:
        yield line


@pytest.fixture
def settings(tmp_path: Path, source_root: Path, line: Line) -> Settings:
    (tmp_path / "disk").mkdir()
    return Settings(
        home=tmp_path / "home",
        stores={"disk": FilesystemConfig(root=tmp_path / "disk"), "cloud": line.config()},
        sources=SourceSettings(roots=(source_root,)),
    )


@pytest.fixture
def rotten(
    context: Context, run: Run, source: Callable[..., str], line: Line, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], None]:
    """Have the artifact in both stores, and return what rots the second of its five chunks in the cloud."""
    monkeypatch.setattr("worker.artifacts.chunk_repair.FEWEST_CHUNKS", 2)
    for module in ("storage.integrity.manifest", "catalogue.artifacts"):
        monkeypatch.setattr(f"worker.{module}.CHUNK_SIZE", CHUNK)
    run(upload, UploadRequest(**PLACE, source=source(RIGHT), stores=("disk", "cloud"), metadata={"origin": "here"}))

    def rot() -> None:
        context.stores["cloud"].write_object("releases", "large", as_source(BAD))
        run(verify, VerifyRequest(**PLACE, stores=("cloud",)))
        line.proxy.requests.clear()

    return rot


def content(context: Context, bucket: str, key: str) -> bytes:
    with context.stores["cloud"].read_object(bucket, key) as reader:
        return b"".join(reader)


def quarantined(context: Context) -> list[bytes]:
    """Return what is in the quarantine, whatever digest is beside it."""
    store, found = context.stores["cloud"], list[bytes]()
    for row in store.list_objects(QUARANTINE_BUCKET):
        with store.read_object_range(QUARANTINE_BUCKET, row.key, 0, len(BAD)) as reader:
            found.append(b"".join(reader))
    return found


@pytest.mark.parametrize("line", ["s3", "azure"], indirect=True)
def test_a_repair_sends_only_the_bad_chunk(context: Context, run: Run, rotten: Callable[[], None], line: Line) -> None:
    """The copy is right with its metadata, and the bad bytes are kept; without server-side copies all is sent."""
    rotten()
    [placed] = run(replicate, ReplicateRequest(**PLACE, to=("cloud",))).copies
    assert (placed.outcome, placed.source) == ("repaired", "disk")
    assert CHUNK <= line.sent < CHUNK + 20_000
    assert content(context, "releases", "large") == RIGHT
    assert context.stores["cloud"].stat_object("releases", "large").metadata["origin"] == "here"
    assert quarantined(context) == [BAD]
    assert list(context.stores["cloud"].list_objects(STAGING_BUCKET)) == []
    assert context.catalogue.findings.page() == []
    copy = context.catalogue.artifacts.copies(context.catalogue.artifact("releases", "large"))["cloud"]
    assert (copy.state, copy.tag) == ("verified", context.stores["cloud"].stat_object("releases", "large").version)

    rotten()
    object.__setattr__(context.settings, "replication", ReplicationSettings(server_side=False))
    run(replicate, ReplicateRequest(**PLACE, to=("cloud",)))
    assert line.sent > len(RIGHT)
    assert content(context, "releases", "large") == RIGHT


@pytest.mark.parametrize("line", ["s3"], indirect=True)
@pytest.mark.parametrize("answer", [
    Say(501, b"<Error><Code>NotImplemented</Code><Message>no copies of ranges</Message></Error>"),
    Say(200, b"<CopyPartResult><ETag>&quot;0&quot;</ETag></CopyPartResult>"),
], ids=["refuses", "does-nothing"])  # fmt: skip
def test_a_store_that_copies_no_ranges_gets_the_whole_object(
    context: Context, run: Run, rotten: Callable[[], None], line: Line, answer: Say
) -> None:
    """Whether it says so, or answers as if it had copied and has not."""
    rotten()
    line.fault = lambda request: answer if "x-amz-copy-source-range" in request.headers else None
    [placed] = run(replicate, ReplicateRequest(**PLACE, to=("cloud",))).copies
    assert placed.outcome == "repaired"
    assert line.sent > len(RIGHT)
    assert content(context, "releases", "large") == RIGHT
    assert quarantined(context) == [BAD]
    assert list(context.stores["cloud"].iter_stale_uploads()) == []
