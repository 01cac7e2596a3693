"""The command line finds jobs that no worker has taken yet: the outbox of the broker has them."""

import errno
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis

from worker import cli, clock
from worker.catalogue import Catalogue, Leased
from worker.cli.errors import Failure
from worker.cli.send_and_wait import WaitOptions, sender
from worker.cli.session import opened
from worker.exit_status import Status
from worker.jobs.cancel_jobs import cause
from worker.jobs.result_backend import fenced_request, use_atomic_result_backend
from worker.settings import load_settings
from worker.storage.filesystem.open_without_symlinks import translate
from zot_artifact_client import ArtifactClient
from zot_artifact_client.contract import VERIFY, JobState, VerifyRequest
from zot_artifact_client.outgoing_messages import MESSAGES
from zot_artifact_client.result_backend import result_backend_app

Zot = Callable[..., tuple[int, str]]


@pytest.fixture
def client(valkey: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ArtifactClient]:
    valkey.empty()
    monkeypatch.setenv("ZOT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ZOT_BROKER", valkey.url)
    load_settings().prepare()
    with ArtifactClient(valkey.url) as opened:
        yield opened


@pytest.fixture
def zot(client: ArtifactClient, capsys: pytest.CaptureFixture[str]) -> Zot:
    def run(*arguments: str) -> tuple[int, str]:
        status = cli.run(list(arguments))
        told = capsys.readouterr()
        return status, told.out + told.err

    assert run("jobs", "list", "--limit", "1")[0] == Status.USAGE  # there is no catalogue yet
    assert run("pauses")[0] == Status.USAGE
    Catalogue(load_settings().catalogue_url).close()
    return run


def test_a_waiting_job_is_shown_cancelled_and_paused_by_the_beginning_of_its_id(
    client: ArtifactClient, zot: Zot, valkey: Any
) -> None:
    """A unique beginning names a job in the outbox as it names one in the ledger; an ambiguous one is refused."""
    job = client.verify("releases", "app.tgz")
    short = job.id[:8]
    for id_ in (short, job.id, f" {job.id}\n", job.id.upper()):
        status, shown = zot("jobs", id_)
        assert (status, job.id in shown, "queued" in shown, "releases/app.tgz" in shown) == (0, True, True, True), id_
    assert zot("pause", "job", short)[0] == Status.GOOD
    assert zot("resume", "job", short) == (Status.GOOD, f"job {job.id} is resumed\n")
    assert "it is queued" in zot("jobs", "retry", short)[1]
    with redis.Redis.from_url(valkey.url) as broker:
        broker.hset(MESSAGES, short.encode() + b"\xff", "of another program")
    assert job.id in zot("jobs", short)[1]
    other = VerifyRequest(bucket="releases", key="other.tgz")
    same = [client.submit(VERIFY, other, job_id=f"{short}-{n}") for n in range(2)]
    assert "more than one job begins" in zot("jobs", "cancel", short)[1]
    for each in (job, *same):
        status, said = zot("jobs", "cancel", each.id)
        assert (status, each.id in said) == (Status.GOOD, True)


def test_the_corrected_request_of_a_refused_job_is_shown_waited_for_and_cancelled(
    client: ArtifactClient, zot: Zot
) -> None:
    """Until a worker takes it, the ledger has the refused message under its id, which tells nothing of it."""
    with closing(Catalogue(load_settings().catalogue_url)) as catalogue:
        catalogue.ledger.reject("mine", "unheard", {}, {"type": "UnknownTask", "message": "?"}, clock.now())
    assert "refused" in zot("jobs", "mine")[1]
    assert zot("jobs", "cancel", "mine")[0] == Status.BAD
    client.submit(VERIFY, VerifyRequest(bucket="releases", key="app.tgz"), job_id="mine")
    status, shown = zot("jobs", "mine")
    assert (status, "queued" in shown, "refused" in shown) == (0, True, False)
    for arguments in (["mine", "--wait", "--timeout", "0.2"], ["min", "--wait", "--timeout", "0.2", "--json"]):
        status, waited = zot("jobs", *arguments)
        assert (status, "queued" in waited, "refused" in waited) == (Status.UNKNOWN, True, False)
    assert zot("pause", "job", "mine")[0] == Status.GOOD
    assert zot("jobs", "cancel", "mine")[0] == Status.GOOD


def test_a_command_whose_catalogue_goes_away_tells_that_its_job_continues(client: ArtifactClient, zot: Zot) -> None:
    """A wait ends with the catalogue or the broker, and the job does not: the error says how to wait for it again."""
    settings = load_settings()
    job = client.verify("releases", "app.tgz")
    with opened() as session, sender(session, "waiting", WaitOptions()) as way:
        settings.catalogue_file.rename(settings.home / "away")
        with pytest.raises(Failure, match="the file was deleted") as told:
            way.wait(job)
        (settings.home / "away").rename(settings.catalogue_file)
    assert told.value.status == Status.UNKNOWN
    assert f"job {job.id} may continue: `zot-artifacts jobs {job.id} --wait`" in told.value.message
    assert zot("jobs", job.id, "--wait", "--timeout", "0")[0] == Status.UNKNOWN


def test_the_command_that_an_error_names_sends_the_failed_job_again(client: ArtifactClient, zot: Zot) -> None:
    """The way out of a disk that became read-only: its jobs have failed, and are no dead letters."""
    error = translate(OSError(errno.EROFS, "Read-only file system"), "nas: releases/app.tgz", Path("/mnt/nas"))
    failed, request = {"type": type(error).__name__, "message": str(error)}, {"bucket": "releases", "key": "app.tgz"}
    with closing(Catalogue(load_settings().catalogue_url)) as catalogue:
        taken = catalogue.ledger.acquire(
            "mine", VERIFY.kind, request, owner="here", writes_to=None, parent=None, now=clock.now(),
            lease=timedelta(seconds=30),
        )  # fmt: skip
        assert isinstance(taken, Leased)
        catalogue.ledger.finish("mine", taken.record.fence, JobState.FAILED, now=clock.now(), error=failed)
    command = str(error).split("`")[1].removeprefix("zot-artifacts ")
    assert zot(*command.split())[0] == Status.GOOD
    assert client.job("mine").state is JobState.QUEUED


def test_an_id_that_is_nowhere_is_no_success(zot: Zot) -> None:
    """A mistyped id, a pattern and an empty one find nothing, also where jobs wait."""
    for id_ in ("0000", "*", "%", "[0-9]", "a" * 100):
        assert zot("jobs", id_)[0] == Status.UNKNOWN, id_
        assert zot("jobs", "cancel", id_)[0] in {Status.BAD, Status.UNKNOWN}, id_
        assert zot("resume", "job", id_)[0] == Status.UNKNOWN, id_
    assert zot("jobs", " ")[0] == Status.USAGE


@pytest.mark.filterwarnings("ignore:Call to deprecated setex")  # by Celery, when it keeps a result
def test_the_end_of_a_job_that_is_published_after_its_redrive_counts_no_more(
    client: ArtifactClient, zot: Zot, valkey: Any
) -> None:
    """A worker records an end before it publishes it; a client never takes that end for the one of the redrive."""
    job = client.verify("releases", "app.tgz")
    with closing(Catalogue(load_settings().catalogue_url)) as catalogue:
        request = VerifyRequest(bucket="releases", key="app.tgz").payload()
        cancelled = catalogue.job_admin.cancel_new(job.id, VERIFY.kind, request, cause(job.id), clock.now())
    assert cancelled is not None
    assert zot("jobs", "retry", job.id)[0] == Status.GOOD
    with result_backend_app(valkey.url) as app:
        use_atomic_result_backend(app)
        app.backend.mark_as_revoked(job.id, "late", request=fenced_request(cancelled))
    assert job.state is JobState.QUEUED
