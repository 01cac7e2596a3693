"""What the options of a command become in the request that it sends: webhooks, metadata, headers and tags."""

import io
import json
import shutil
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from tests.servers import Valkey
from worker import cli, clock
from worker.catalogue import Catalogue, Leased
from worker.cli.user import user_name
from worker.gateway.services import Services
from worker.settings import Settings, load_settings
from zot_artifact_client.contract import VERIFY, JobState
from zot_artifact_client.job_ids import choose_id

_OPTIONS = ["--metadata", "build=7", "--tag", "team=core", "--property", "content_type=text/plain"]
_BESIDE = {"metadata": {"build": "7"}, "tags": {"team": "core"}, "content_type": "text/plain"}


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, valkey: Valkey) -> Settings:
    """Return the settings of the commands: an empty data directory, and a broker without workers."""
    monkeypatch.setenv("ZOT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ZOT_BROKER", valkey.url)
    monkeypatch.setenv("ZOT_DELETE__GRACE", "7d")
    made = load_settings()
    made.prepare()
    Catalogue(made.catalogue_url).close()
    return made


@pytest.mark.parametrize(
    "command",
    [
        ("upload", "FILE", "releases/app.tgz"),
        ("upload", "-r", "DIRECTORY", "releases"),
        ("replicate", "releases/", "--all", "--to", "dr"),
        ("verify", "releases/app.tgz"),
        ("delete", "releases/old/", "--all"),
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_the_sent_request_has_what_the_options_say(
    command: tuple[str, ...], settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The request of one job, of an uploaded directory and of a batch has each webhook once, in order.

    An upload of one file and of a directory take the same metadata, headers and tags. A delete says who deletes.
    """
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "app.tgz").write_bytes(b"bytes")
    places = {"FILE": str(tmp_path / "in" / "app.tgz"), "DIRECTORY": str(tmp_path / "in")}
    words = [places.get(word, word) for word in command]
    words += _OPTIONS if command[0] == "upload" else []
    assert cli.run([*words, "--notify", "ci", "--notify", "audit", "--no-wait", "--json"]) == 0
    job = json.loads(capsys.readouterr().out)["job"]
    services = Services(settings)
    sent = services.waiting_job(job)
    services.close()
    assert sent is not None
    assert sent.payload["notify"] == ["ci", "audit"]
    if command[0] == "upload":
        assert sent.payload | _BESIDE == sent.payload
    assert sent.payload.get("by") == (user_name() if command[0] == "delete" else None)
    assert cli.run([*words, "--notify", "no name", "--no-wait"]) == 2
    assert "notify" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        ("upload", "FILE", "releases/app.tgz"),
        ("upload", "-", "releases/app.tgz"),
        ("upload", "-r", "DIRECTORY", "releases"),
        ("delete", "--keys-from", "LIST"),
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_an_idempotency_key_with_other_bytes_is_another_request(
    command: tuple[str, ...],
    settings: Settings,
    valkey: Valkey,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What was staged is compared while its job waits, and when it has ended; the waiting job keeps its files.

    The name of who deletes is no part of what is asked for: another user may repeat it.
    """

    def run(content: str) -> tuple[int, str]:
        (tmp_path / content).mkdir(exist_ok=True)
        file = tmp_path / content / "app.tgz"
        file.write_text(f"releases/{content}\n")
        places = {"FILE": str(file), "LIST": str(file), "DIRECTORY": str(file.parent)}
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content.encode())))
        words = [places.get(word, word) for word in command]
        status = cli.run([*words, "--idempotency-key", "key", "--no-wait"])
        return status, capsys.readouterr().out.strip()

    def staged() -> set[Path]:
        return {path for path in settings.staging_dir.rglob("*") if path.is_file()}

    status, job = run("one")
    there = staged()
    assert (status, bool(there)) == (0, True)
    monkeypatch.setenv("LOGNAME", "bob")
    assert (run("one"), run("two")[0], staged()) == ((0, job), 2, there)

    services, catalogue = Services(settings), Catalogue(settings.catalogue_url)
    sent = services.waiting_job(job)
    assert sent is not None
    kind, now = sent.name.split(".")[1], clock.now()
    lease = catalogue.ledger.acquire(
        job, kind, sent.payload, owner="test", writes_to=None, parent=None, now=now, lease=timedelta(1)
    )
    assert isinstance(lease, Leased)
    catalogue.ledger.finish(job, lease.record.fence, JobState.SUCCEEDED, now=now)
    services.close()
    catalogue.close()
    valkey.empty()
    shutil.rmtree(settings.staging_dir / job)
    monkeypatch.setenv("LOGNAME", "ada")
    assert (run("one"), run("two")[0], staged()) == ((0, job), 2, set())


def test_a_rejected_message_leaves_its_id_to_a_valid_request(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    """A row of the ledger without a request, of a message that was not accepted, is no other request."""
    words = ["verify", "releases/app.tgz", "--idempotency-key", "key", "--no-wait"]
    job = choose_id(VERIFY, idempotency_key="key")
    catalogue = Catalogue(settings.catalogue_url)
    catalogue.ledger.reject(job, "verify", {"buckets": "…"}, {"type": "InvalidMessage", "message": "no"}, clock.now())
    catalogue.close()
    assert cli.run(words) == 0
    assert capsys.readouterr().out.strip() == job
