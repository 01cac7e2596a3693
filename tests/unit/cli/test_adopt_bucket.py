"""`adopt` of a bucket or prefix: the one batch that is sent, its list of digests, and how its end is told."""

import hashlib
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import typer

from worker.artifacts.batch_lists import ListedAdoption
from worker.cli import adopt as cli
from worker.cli.errors import Failure
from worker.cli.job_outcome import Outcome
from worker.cli.send_and_wait import WaitOptions
from worker.cli.session import Session, open_session
from worker.cli.stage_file import Staged
from worker.settings import Settings
from worker.storage.config import FilesystemConfig
from zot_artifact_client import JobState
from zot_artifact_client.contract import BatchRequest

WAITING = WaitOptions()
X, OTHER = hashlib.sha256(b"x").hexdigest(), "1" * 64


class Way:
    """A way to a worker that ends a batch when it is waited for; it keeps what was sent, and the list of that."""

    def __init__(self) -> None:
        self.sent: list[BatchRequest] = []
        self.listed: list[ListedAdoption] = []

    def send_once(self, _spec: object, job_id: str, request: BatchRequest) -> str:
        self.sent.append(request)
        return job_id

    def send_staged(self, spec: object, job_id: str, request: BatchRequest, staged: Staged) -> str:
        assert (str(staged.path), staged.path.parent.name) == (request.keys_from, job_id)
        self.listed = [ListedAdoption.parse(line) for line in staged.path.read_bytes().splitlines()]
        return self.send_once(spec, job_id, request)

    def wait(self, job: str) -> Outcome:
        return Outcome(job, "batch", JobState.SUCCEEDED)


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    root = tmp_path / "home" / "stores" / "only"
    opened = open_session(Settings(home=tmp_path / "home", stores={"only": FilesystemConfig(root=root)}), create=True)
    yield opened
    opened.close()


@pytest.fixture
def way(monkeypatch: pytest.MonkeyPatch) -> Way:
    way = Way()

    @contextmanager
    def sender(*_: object) -> Iterator[Way]:
        yield way

    monkeypatch.setattr(cli, "sender", sender)
    return way


def test_a_prefix_is_one_batch_that_the_worker_lists(session: Session, way: Way) -> None:
    """However many objects there are, the command sends one message and lists nothing."""
    place = cli.Place("releases", "v1/", "only")
    outcome = cli._adopt_all(session, place, WAITING, first_read=True, sums=False)
    [request] = way.sent
    assert request.payload() == {
        "verb": "adopt", "bucket": "releases", "prefix": "v1/", "stores": ["only"], "first_read": True,
    }  # fmt: skip
    assert (outcome.state, place.failed) == (JobState.SUCCEEDED, 0)


def test_digests_come_from_the_lists_of_sha256sum(session: Session, way: Way) -> None:
    """Of the directory above and beside the object; a list itself, what is gone and what is contradicted is no line."""
    store = session.stores["only"]
    lists = {"SHA256SUMS": f"{X}  d/a\n{OTHER}  ../up\n{X}  d/gone\n", "d/b.sha256": f"{X} *b\n{X} *a\n{OTHER}  c\n"}
    for name, content in {
        **dict.fromkeys(["d/a", "d/b", "d/c", "d/e"], "x"),
        **lists,
        "d/SHA256SUMS": f"{X}  c",
    }.items():
        store.write_object("lists", name, io.BytesIO(content.encode()), existing_key=True)
    place = cli.Place("lists", "d/", "only")
    cli._adopt_all(session, place, WAITING, first_read=False, sums=True)
    assert {each.key: (each.size, each.sha256) for each in way.listed} == {
        "d/a": (1, X),
        "d/b": (1, X),
        "d/e": (1, None),
    }
    assert {(each["key"], each["type"]) for each in place.failures} == {
        ("SHA256SUMS", "BadList"), ("d/c", "BadList"), ("d/gone", "NotFound"),
    }  # fmt: skip
    assert cli._listed_digest(store, "lists", "d/a") == X
    store.write_object("lists", "d/c.sha256", io.BytesIO(f"{OTHER}  c\n".encode()), existing_key=True)
    with pytest.raises(Failure, match="different"):
        cli._listed_digest(store, "lists", "d/c")
    with pytest.raises(Failure, match="no SHA256SUMS"):
        cli._listed_digest(store, "lists", "d/e")


@pytest.mark.parametrize(
    ("artifact", "listed"),
    [
        ("releases/v1/", "v1/SHA256SUMS"),
        ("releases/v1/a", "v1/SHA256SUMS"),
        ("releases/v1/b", "v1/b.sha256sum"),
        ("releases/", "sha256sums.txt"),
        ("releases/v2/", None),
    ],
)
@pytest.mark.usefixtures("way")
def test_a_first_read_beside_a_list_of_digests_is_told(
    session: Session,
    artifact: str,
    listed: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The bytes would become the record, also where the list shows that they are wrong."""
    for key in ("v1/a", "v1/b", "v1/b.sha256sum", "v1/SHA256SUMS", "v2/a", "sha256sums.txt"):
        path = session.settings.home / "stores" / "only" / "releases" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")

    @contextmanager
    def opened(**_: object) -> Iterator[Session]:
        yield session

    monkeypatch.setattr(cli, "opened", opened)
    for arguments in ({"first_read": True}, {"first_read": True, "sums": True}, {}):
        with suppress(typer.Exit, Failure):
            cli.adopt(artifact, store="only", no_wait=True, **arguments)
        told = capsys.readouterr().err
        assert ("with --sums it is compared" in told) == (listed is not None and arguments == {"first_read": True})
        assert listed is None or arguments != {"first_read": True} or f"releases/{listed} may" in told


@pytest.mark.parametrize(
    "name", ["SHA256SUMS", "SHA256SUMS.txt", "sha256sums.txt", "sha256sum.txt", "app.sha256", "app.sha256sum"]
)
def test_a_list_that_is_told_is_one_that_sums_finds(session: Session, name: str) -> None:
    """The note about a first read promises that `--sums` compares the object with that list."""
    store = session.stores["only"]
    store.write_object("lists", f"d/{name}", io.BytesIO(f"{X}  app\n".encode()), existing_key=True)
    assert cli._list_beside(store, "lists", "d/app") == f"d/{name}"
    assert cli._listed_digest(store, "lists", "d/app") == X


def test_lists_without_an_object_are_told(session: Session, way: Way) -> None:
    """Nothing is sent for a prefix that has nothing but lists."""
    session.stores["only"].write_object("lists", "d/SHA256SUMS", io.BytesIO(b""), existing_key=True)
    with pytest.raises(Failure, match="there is no object below lists/d/"):
        cli._adopt_all(session, cli.Place("lists", "d/", "only"), WAITING, first_read=False, sums=True)
    assert way.sent == []


def test_the_document_has_what_the_lists_and_the_batch_say(capsys: pytest.CaptureFixture[str]) -> None:
    """Counts, and failures with the types of their errors."""
    place = cli.Place("releases", "", "only")
    place.fail("gone", "NotFound", "only: releases/gone is not there")
    failure = {"job": "p", "bucket": "releases", "key": "bare", "outcome": "Unverifiable", "message": "no digest"}
    result: dict[str, Any] = {
        "objects": 4, "failed": 1, "failures": [failure],
        "outcomes": {"adopted": 1, "adopted_after_delete": 1, "already_there": 1, "Unverifiable": 1},
    }  # fmt: skip
    cli._print_adopted(place, Outcome("b", "batch", JobState.SUCCEEDED, result=result), result, as_json=True)
    told = capsys.readouterr()
    assert json.loads(told.out) == {
        "job": "b", "bucket": "releases", "prefix": "", "store": "only",
        "adopted": 2, "after_delete": 1, "unchanged": 1, "failed": 2,
        "failures": [
            {"key": "gone", "type": "NotFound", "message": "only: releases/gone is not there"},
            {"key": "bare", "type": "Unverifiable", "message": "no digest"},
        ],
    }  # fmt: skip
    assert [line.partition(": ")[2] for line in told.err.splitlines()] == [
        "only: releases/gone is not there", "no digest",
    ]  # fmt: skip
    cli._print_adopted(place, Outcome("b", "batch", JobState.SUCCEEDED, result=result), result, as_json=False)
    said = "only: releases/: 2 adopted (1 of them after a delete, as new versions), 1 known already, 2 not\n"
    assert capsys.readouterr().out == said
