"""A pipe or device that is named as a file keeps no command waiting for ever."""

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from worker import cli, input_files
from worker.input_files import open_input, read_input
from worker.settings import SettingsError, load_settings


@pytest.fixture
def fifo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a FIFO that no program writes to, which is waited for only shortly."""
    monkeypatch.setattr(input_files, "PATIENCE", 0.2)
    monkeypatch.setenv("ZOT_HOME", str(tmp_path / "home"))
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


@pytest.fixture
def silent(fifo: Path) -> Iterator[Path]:
    """Return a FIFO whose writer has begun, and sends no more."""
    with os.fdopen(os.open(fifo, os.O_RDWR), "r+b", buffering=0) as writer:
        writer.write(b"home: ")
        yield fifo


def whole(path: Path) -> bytes:
    with open_input(path) as file:
        return file.read()


def test_what_a_pipe_sends_is_read_to_its_end(fifo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings can come from another program, which is given time to begin; a file and a device are read as well."""
    monkeypatch.setattr(input_files, "PATIENCE", 60.0)
    sent = b"x" * (1 << 18)
    for read in (lambda: read_input(fifo, 1 << 20), lambda: whole(fifo)):
        writer = threading.Thread(target=fifo.write_bytes, args=(sent,))
        writer.start()
        assert read() == sent
        writer.join()
    path = fifo.with_name("file")
    path.write_bytes(sent)
    assert (read_input(path, 10), whole(path)) == (sent[:10], sent)
    assert (read_input("/dev/zero", 10), read_input("/dev/null", 10)) == (bytes(10), b"")


@pytest.mark.parametrize("arguments", [["attest", "releases/x", "--key"], ["catalogue", "import"]])
def test_a_pipe_that_sends_nothing_ends_a_command(
    fifo: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that an argument names is waited for as long as a pipe may take to begin."""
    assert cli.run([*arguments, str(fifo)]) in {1, 2}
    assert "nothing more comes from it" in capsys.readouterr().err


def test_settings_that_do_not_end_are_an_error(silent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe that begins to send settings and does not end is one line, not a wait."""
    monkeypatch.setenv("ZOT_CONFIG", str(silent))
    with pytest.raises(SettingsError, match=r"ZOT_CONFIG names .*fifo, which cannot be read: it is no file, and"):
        load_settings()


@pytest.mark.parametrize("kind", ["FIFO", "socket", "device"])
def test_what_a_library_would_open_must_be_a_file(
    kind: str, fifo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Libraries open files without a limit: the settings refuse what is none, and name the setting or variable."""
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "socket"))
        path = {"FIFO": str(fifo), "socket": str(tmp_path / "socket"), "device": "/dev/zero"}[kind]
        for variable, value, name in (
            ("AWS_CA_BUNDLE", path, "AWS_CA_BUNDLE"),
            ("GOOGLE_APPLICATION_CREDENTIALS", path, "GOOGLE_APPLICATION_CREDENTIALS"),
            ("ZOT_BROKER", f"rediss://127.0.0.1:1/0?ssl_ca_certs={path}", "ssl_ca_certs of the URL of broker"),
            ("ZOT_VERIFICATION_LOG", f'{{"public_keys": ["{path}"]}}', "verification_log.public_keys"),
            (
                "ZOT_STORES", f'{{"g": {{"type": "gcs", "bucket": "b", "credentials_file": "{path}"}}}}',
                "stores.g.credentials_file",
            ),
        ):  # fmt: skip
            with monkeypatch.context() as patched:
                patched.setenv(variable, value)
                with pytest.raises(SettingsError, match=f"{name} names {path}, which is a {kind} and no file"):
                    load_settings()
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)  # the usual way to have none
    load_settings()
