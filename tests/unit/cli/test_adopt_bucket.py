"""`adopt` of a whole bucket: how many jobs at a time, and the outcome of each."""

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from worker.cli import adopt as cli
from worker.cli.errors import Failure, Status
from worker.cli.job_outcome import Outcome
from worker.cli.session import Session, open_session
from worker.settings import Settings
from worker.storage.config import FilesystemConfig
from zot_artifact_client import JobState
from zot_artifact_client.contract import AdoptRequest

OBJECTS = 100


class Way:
    """A way to a worker that does a job when it is waited for, and knows how many wait."""

    def __init__(self, left: str = "succeeded") -> None:
        self.waiting: set[str] = set()
        self.most = 0
        self.sent: list[AdoptRequest] = []
        self._ends = left

    def send(self, _spec: object, _job_id: str, request: AdoptRequest) -> str:
        self.sent.append(request)
        self.waiting.add(request.key)
        self.most = max(self.most, len(self.waiting))
        return request.key

    def wait(self, job: str, _timeout: float | None) -> Outcome:
        self.waiting.remove(job)
        result = {"unchanged": job.endswith("7")} if self._ends == "succeeded" else None
        return Outcome(job, "adopt", JobState(self._ends), 1, None, result)


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Session]:
    root = tmp_path / "home" / "stores" / "only"
    opened = open_session(Settings(home=tmp_path / "home", stores={"only": FilesystemConfig(root=root)}))
    for number in range(OBJECTS):
        opened.stores["only"].write_object("releases", f"{number:03}", io.BytesIO(b"x"))
    yield opened
    opened.close()


def go_through(monkeypatch: pytest.MonkeyPatch, context: Session, way: Way, limit: float | None = None) -> Any:
    @contextmanager
    def sender(_context: Session, _step: str) -> Iterator[Way]:
        yield way

    monkeypatch.setattr(cli, "sender", sender)
    return cli._adopt_all(context, cli.Tally("releases", "", "only"), {"store": "only"}, limit)


def test_only_some_jobs_wait_at_a_time(monkeypatch: pytest.MonkeyPatch, context: Session) -> None:
    """However long the listing, no more than `IN_FLIGHT` jobs wait for a worker, and each object gets one."""
    way = Way()
    tally = go_through(monkeypatch, context, way)
    assert way.most == cli.IN_FLIGHT < OBJECTS
    assert [request.key for request in way.sent] == [f"{number:03}" for number in range(OBJECTS)]
    assert (tally.adopted, tally.unchanged, tally.failed, tally.status) == (90, 10, 0, Status.GOOD)


def test_when_the_time_is_up_no_more_is_sent(monkeypatch: pytest.MonkeyPatch, context: Session) -> None:
    """A time limit is for the whole: the first job that has not ended by then ends the command."""
    way = Way(left="running")
    with pytest.raises(Failure, match="the time is up.*again to continue"):
        go_through(monkeypatch, context, way, limit=0.0)
    assert len(way.sent) == cli.IN_FLIGHT


def test_a_key_that_is_none_of_ours_is_adopted_too(
    monkeypatch: pytest.MonkeyPatch, context: Session, tmp_path: Path
) -> None:
    """An object whose name only another program would choose is adopted under that name, like the others."""
    (tmp_path / "home" / "stores" / "only" / "releases" / "ends in a dot.").write_bytes(b"x")
    way = Way()
    tally = go_through(monkeypatch, context, way)
    assert (tally.adopted + tally.unchanged, tally.failed, tally.status) == (OBJECTS + 1, 0, Status.GOOD)


def test_digests_come_from_the_lists_of_sha256sum(monkeypatch: pytest.MonkeyPatch, context: Session) -> None:
    """Of the directory above and beside the object; a list itself, what is gone and what is contradicted is no job."""
    store, x, other = context.stores["only"], hashlib.sha256(b"x").hexdigest(), "1" * 64
    lists = {"SHA256SUMS": f"{x}  d/a\n{other}  ../up\n{x}  d/gone\n", "d/b.sha256": f"{x} *b\n{x} *a\n{other}  c\n"}
    for name, content in {
        **dict.fromkeys(["d/a", "d/b", "d/c", "d/e"], "x"),
        **lists,
        "d/SHA256SUMS": f"{x}  c",
    }.items():
        store.write_object("lists", name, io.BytesIO(content.encode()), existing_key=True)
    way = Way()

    @contextmanager
    def sender(_context: Session, _step: str) -> Iterator[Way]:
        yield way

    monkeypatch.setattr(cli, "sender", sender)
    tally = cli._adopt_all(context, cli.Tally("lists", "d/", "only"), {"store": "only"}, None, sums=True)
    assert {each.key: each.sha256 for each in way.sent} == {"d/a": x, "d/b": x, "d/e": None}
    assert {(each["key"], each["type"]) for each in tally.failures} == {
        ("SHA256SUMS", "BadList"), ("d/c", "BadList"), ("d/gone", "NotFound"),
    }  # fmt: skip
    assert cli._listed_digest(store, "lists", "d/a") == x
    store.write_object("lists", "d/c.sha256", io.BytesIO(f"{other}  c\n".encode()), existing_key=True)
    with pytest.raises(Failure, match="different"):
        cli._listed_digest(store, "lists", "d/c")
    with pytest.raises(Failure, match="no SHA256SUMS"):
        cli._listed_digest(store, "lists", "d/e")
