"""What the options of a command become in the request that it sends: webhooks, metadata, headers and tags."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.servers import Valkey
from worker import cli
from worker.gateway.services import Services
from worker.settings import load_settings

_OPTIONS = ["--metadata", "build=7", "--tag", "team=core", "--property", "content_type=text/plain"]
_BESIDE = {"metadata": {"build": "7"}, "tags": {"team": "core"}, "content_type": "text/plain"}


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
    command: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    valkey: Valkey,
    make_tables: Callable[[str], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The request of one job, of an uploaded directory and of a batch has each webhook once, in order.

    An upload of one file and of a directory take the same metadata, headers and tags.
    """
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "app.tgz").write_bytes(b"bytes")
    monkeypatch.setenv("ZOT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ZOT_BROKER", valkey.url)
    settings = load_settings()
    settings.prepare()
    make_tables(settings.catalogue_url)
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
    assert cli.run([*words, "--notify", "no name", "--no-wait"]) == 2
    assert "notify" in capsys.readouterr().err
