"""The sweep finds damage of every kind, with its own verdict and finding, and it is repaired; no byte is lost."""

import hashlib
import os
import uuid
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tasks.replicate import replicate
from tasks.sweeps.repair import sweep_repair
from tasks.upload import upload
from tests.conformance import targets
from tests.integration.tasks.sweeps.test_verify_sweep import Sweeper
from worker import clock
from worker.catalogue import FindingRecord, tables
from worker.context import Context
from worker.settings import Settings
from worker.storage.config import FilesystemConfig
from worker.storage.filesystem.digest_attribute import write_digest
from zot_artifact_client.contract import SweepRepairRequest, UploadRequest

CONTENT = {"app.tgz": bytes(range(256)) * 64, "other.tgz": bytes(reversed(range(256))) * 64}
"""Two objects of one size."""


def flip(path: Path) -> None:
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def zero(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:4096] + bytes(4096) + data[8192:])


def swap(path: Path) -> None:
    other = path.with_name("other.tgz")
    mine, theirs = path.read_bytes(), other.read_bytes()
    path.write_bytes(theirs)
    other.write_bytes(mine)


def change_with_metadata(path: Path) -> None:
    flip(path)
    with path.open("rb") as file:
        write_digest(file.fileno(), hashlib.sha256(path.read_bytes()).hexdigest())


def lose_metadata(path: Path) -> None:
    for name in os.listxattr(path):
        os.removexattr(path, name)
    for sidecar in path.parent.glob(f"{path.name}.*"):
        sidecar.unlink()


def make_unreadable(path: Path) -> None:
    """Put a link there, which the store does not follow: tests may run as root, whom no mode stops."""
    path.rename(path.with_name("kept"))
    path.symlink_to("kept")


ROT: dict[str, tuple[Callable[[Path], None], str]] = {
    "flipped bit": (flip, "corrupt"),
    "truncated tail": (truncate, "size_mismatch"),
    "appended byte": (append, "size_mismatch"),
    "zeroed region": (zero, "corrupt"),
    "swapped objects": (swap, "corrupt"),
    "lost object": (Path.unlink, "missing"),
    "metadata changed with the bytes": (change_with_metadata, "corrupt"),
    "lost metadata": (lose_metadata, "verified"),
    "unreadable": (make_unreadable, "unreadable"),
}


FILES_ONLY = {"lost metadata", "metadata changed with the bytes", "unreadable"}
"""What cannot be done through the files of the S3 server, which keeps metadata elsewhere and follows links."""
CASES = [("filesystem", rot) for rot in ROT] + [("s3", rot) for rot in ROT if rot not in FILES_ONLY]


class Place:
    """A store whose objects are files that a test can damage."""

    def __init__(self, config: Any, root: Path) -> None:
        self.config = config
        self.root = root

    def path(self, key: str) -> Path:
        return self.root / "releases" / key

    def contents(self) -> list[bytes]:
        return [path.read_bytes() for path in self.root.rglob("*") if path.is_file()]


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "filesystem":
        root = tmp_path / "home" / "stores" / "dr"
        return Place(FilesystemConfig(root=root), root)
    server = request.getfixturevalue("rclone")
    bucket = f"real-{uuid.uuid4().hex[:8]}"
    targets.make_s3_bucket(server, bucket)
    return Place(targets.s3_config(server, bucket=bucket, conditional_writes=False), server.files / bucket)


@pytest.fixture
def settings(settings: Settings, place: Place) -> Settings:
    return settings.model_copy(update={"stores": {**settings.stores, "dr": place.config}})


@pytest.fixture
def put(run, source) -> None:
    """Upload both objects to both stores."""
    for key, content in CONTENT.items():
        run(upload, UploadRequest(bucket="releases", key=key, source=source(content)))


@pytest.fixture
def swept(context: Context) -> Callable[[], dict[str, str]]:
    """Return what makes all copies due, runs the sweep with its pages, and returns the verdicts in `dr` by key."""
    sweeper = Sweeper(context)

    def sweep() -> dict[str, str]:
        with context.catalogue._database.write() as connection:
            change = sa.update(tables.copies).where(tables.copies.c.read_at.is_not(None))
            connection.execute(change.values(read_at=clock.now() - timedelta(days=29), next_due_at=None))
        id_ = str(uuid.uuid4())
        sweeper.plan(id_)
        for page in [each for each in sweeper.messages.sent if each.startswith(id_)]:
            sweeper.page(page)
        return {key: context.catalogue.verifications.of("releases", key)[0]["verdict"] for key in CONTENT}

    return sweep


def found(context: Context, *, resolved: bool = False) -> list[FindingRecord]:
    return [each for each in context.catalogue.findings.page(resolved=resolved) if each.bucket]


@pytest.mark.usefixtures("put")
@pytest.mark.parametrize(("place", "rot"), CASES, indirect=["place"])
def test_rot_ends_in_its_verdict_its_finding_and_its_action(
    context: Context, run, place: Place, swept, monkeypatch, rot: str
) -> None:
    """The damaged copy has its own verdict and finding; a bad one is repaired from the good one and kept."""
    damage, verdict = ROT[rot]
    damaged = set(CONTENT) if damage is swap else {"app.tgz"}
    damage(place.path("app.tgz"))
    bad = place.contents()
    swept()
    newest = {row["key"]: row["verdict"] for key in CONTENT for row in _latest_in_dr(context, key)}
    assert newest == {key: verdict if key in damaged else "verified" for key in CONTENT}
    if verdict == "verified":
        assert found(context, resolved=True) == []
        return
    assert {(each.kind, each.store, each.key) for each in found(context)} == {(verdict, "dr", key) for key in damaged}

    jobs: list[Any] = []
    monkeypatch.setattr("tasks.sweeps.repair.send_child", lambda _, request, **__: jobs.append(request))
    claimed = run(sweep_repair, SweepRepairRequest()).claimed
    if verdict == "unreadable":
        assert (claimed, [each.action for each in found(context)]) == ({}, [None])
        assert place.path("kept").read_bytes() == CONTENT["app.tgz"]
        return
    assert claimed == {"dr": len(damaged)}
    assert {each.action for each in found(context)} == {"repair"}
    for job in jobs:
        run(replicate, job)
    assert found(context) == []
    assert {each.how for each in found(context, resolved=True) if each.kind == verdict} == {"written"}
    assert {key: place.path(key).read_bytes() for key in CONTENT} == CONTENT
    kept = place.contents()
    assert all(body in kept for body in bad)
    swept()
    assert {row["verdict"] for key in CONTENT for row in _latest_in_dr(context, key)} == {"verified"}


def _latest_in_dr(context: Context, key: str) -> list[dict[str, Any]]:
    return [row for row in context.catalogue.verifications.of("releases", key) if row["store"] == "dr"][:1]
