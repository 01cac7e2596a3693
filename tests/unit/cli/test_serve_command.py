"""`serve` says in one line why it cannot, and `tokens` what it has made."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.servers.tls import Authority
from tests.unit.cli.test_status import Zot, catalogue, zot  # noqa: F401 - fixtures
from tests.waiting import WITHIN
from worker import cli
from worker.catalogue import Catalogue


@pytest.mark.usefixtures("catalogue")
def test_what_cannot_be_served_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A port that is taken, a foreign address and files that are no certificate end with 2 and name the option.

    A certificate that has expired is named too.
    """
    junk = tmp_path / "junk.pem"
    junk.write_text("junk of a secret")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    Authority(tmp_path, "ours").context(expired=True)
    expired = str(tmp_path / "server.pem")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for arguments, way_out in (
            (["--port", port], "--port"),
            (["--port", port, "--certificate", expired, "--key", expired], "it expired on"),
            (["--host", "203.0.113.1"], "--host"),
            (["--certificate", str(junk), "--key", str(junk)], "--certificate"),
            (["--certificate", str(junk)], "--key"),
            (["--certificate", "none.pem", "--key", str(junk)], "no such file"),
            (["--certificate", str(junk), "--key", str(fifo)], "it is a FIFO and no file"),
            (["--certificate", str(tmp_path), "--key", str(junk)], "it is a directory and no file"),
        ):
            assert cli.run(["serve", *arguments]) == 2
            said = capsys.readouterr()
            assert way_out in said.err
            assert "secret" not in said.err + said.out


def test_a_closed_terminal_ends_a_gateway_without_a_traceback(tmp_path: Path) -> None:
    """It ends as with SIGTERM: after the requests that are under way."""
    command = (sys.executable, "-m", "worker.cli", "serve", "--port", "0")
    environment = {**os.environ, "ZOT_HOME": str(tmp_path)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as gateway:
        try:
            assert gateway.stderr is not None
            url = gateway.stderr.readline().split()[-1]
            httpx.get(url, timeout=WITHIN)
            gateway.send_signal(signal.SIGHUP)
            said = gateway.stderr.read()
        finally:
            gateway.kill()
    assert (gateway.returncode, "Traceback" in said) == (-signal.SIGTERM, False), said


def test_a_token_is_printed_once(zot: Zot, catalogue: Catalogue) -> None:  # noqa: F811
    """`add` and `rotate` print the secret, `ls` never; a second `add` of a name and an unknown name end with 1."""
    made = zot("tokens", "add", "ci", "--bucket", "releases", "--verb", "read", "--expires", "90d")[1]
    assert made["token"].startswith(f"zot_{made['id']}_")
    assert zot("tokens", "add", "ci", "--bucket", "releases", "--verb", "read")[0] == 1
    rotated = zot("tokens", "rotate", "ci", "--grace", "1h")[1]
    assert (rotated["buckets"], rotated["verbs"]) == (["releases"], ["read"])
    assert rotated["expires_at"] == made["expires_at"]
    status, listed = zot("tokens", "ls")
    assert (status, [each["state"] for each in listed["tokens"]]) == (0, ["valid", "valid"])
    assert "token" not in listed["tokens"][0]
    assert zot("tokens", "revoke", "ci")[1]["revoked"] == 2
    assert {each["state"] for each in zot("tokens", "ls")[1]["tokens"]} == {"revoked"}
    for command in ("rotate", "revoke"):
        assert zot("tokens", command, "ci")[0] == 1
    assert zot("tokens", "add", "no name", "--bucket", "releases", "--verb", "read")[0] == 2
    assert zot("tokens", "add", "x", "--bucket", "zot-probe", "--verb", "read")[0] == 2
