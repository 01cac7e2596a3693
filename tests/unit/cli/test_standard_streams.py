"""`-` is standard input or output wherever the command line takes a path, or is refused; it is never a file's name."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli.test_evidence_commands import Lay, artifact, lay  # noqa: F401 - fixtures
from tests.unit.cli.test_status import catalogue  # noqa: F401 - a fixture
from worker import cli
from worker.catalogue import Artifact, Catalogue
from worker.cli.commands import COMMANDS
from worker.exit_status import Status

APP = "releases/app.tgz"
PATHS = {"FILE", "DIR", "DEST", "SOURCE", "MANIFEST", "PATH"}
"""What the help calls a path."""
STREAMS = {
    ("upload", "SOURCE"), ("get", "DEST"), ("quarantine get", "DEST"), ("catalogue export", "FILE"),
    ("catalogue import", "FILE"), ("replicate", "--keys-from"), ("verify", "--keys-from"), ("delete", "--keys-from"),
    ("attest", "--key"), ("attest", "--output"), ("report", "--html"),
}  # fmt: skip
REFUSED = {
    ("sweep", "--inventory"): ["sweep", "reconcile", "--store", "dr", "--inventory", "-"],
    ("export", "--bagit"): ["export", APP, "--bagit", "-"],
    ("serve", "--certificate"): ["serve", "--certificate", "-", "--key", "key.pem"],
    ("serve", "--key"): ["serve", "--certificate", "chain.pem", "--key", "-"],
    ("cache stat", "--root"): ["cache", "stat", "--root", "-"],
    ("cache warm", "--root"): ["cache", "warm", APP, "--root", "-"],
    ("cache verify", "--root"): ["cache", "verify", "--root", "-"],
    ("cache drop", "--root"): ["cache", "drop", "--root", "-"],
    ("demo", "--home"): ["demo", "--home", "-"],
    ("upload -r", "SOURCE"): ["upload", "-r", "-", "releases"],
    ("get -r", "DEST"): ["get", "-r", "releases", "-"],
}


@pytest.fixture(autouse=True)
def empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the directory in which the command runs."""
    directory = tmp_path / "empty"
    directory.mkdir()
    monkeypatch.chdir(directory)
    return directory


def test_each_path_of_the_command_line_is_named_here() -> None:
    """A new argument or option that takes a path has to say what `-` is."""
    found = set()
    for name, entry in COMMANDS.items():
        command: Any = entry.load(name)
        for sub, each in getattr(command, "commands", {"": command}).items():
            for parameter in each.params:
                if parameter.metavar in PATHS:
                    option = parameter.opts[0] if parameter.param_type_name == "option" else parameter.metavar
                    found.add((f"{name} {sub}".strip(), option))
    assert found == STREAMS | {each for each in REFUSED if not each[0].endswith(" -r")}


@pytest.mark.parametrize("arguments", REFUSED.values(), ids=" ".join)
def test_a_path_that_can_be_no_stream_is_refused(
    arguments: list[str],
    artifact: Artifact,  # noqa: F811 - so that there is a catalogue
    empty_directory: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nothing is made under the name `-`, and the error says so."""
    assert cli.run(arguments) == Status.USAGE
    assert "`-`" in capsys.readouterr().err
    assert list(empty_directory.iterdir()) == []


def test_the_report_goes_to_standard_output(
    artifact: Artifact,  # noqa: F811
    empty_directory: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The page is all that is there, and JSON does not go with it."""
    assert cli.run(["report", "--html", "-"]) == Status.UNKNOWN  # there is no broker
    page = capfd.readouterr().out.strip()
    assert page.startswith("<!doctype html>")
    assert page.endswith("</html>")
    assert cli.run(["report", "--html", "-", "--json"]) == Status.USAGE
    assert list(empty_directory.iterdir()) == []


def test_a_statement_goes_to_standard_output_and_its_key_comes_from_standard_input(
    artifact: Artifact,  # noqa: F811
    lay: Lay,  # noqa: F811
    catalogue: Catalogue,  # noqa: F811
    empty_directory: Path,
) -> None:
    """So a key that is kept elsewhere never is in a file."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    del lay
    key = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    command = [sys.executable, "-m", "worker.cli", "attest", artifact.path, "--key", "-", "-o", "-"]
    done = subprocess.run(command, input=key, capture_output=True, check=False)
    assert done.returncode == Status.GOOD, done.stderr.decode()
    assert json.loads(done.stdout)["payloadType"] == "application/vnd.in-toto+json"
    assert list(empty_directory.iterdir()) == []


def test_a_name_is_given_once(capsys: pytest.CaptureFixture[str]) -> None:
    """A second value would replace the first one in silence."""
    for option in ("--metadata", "--tag", "--property", "--storage-class"):
        twice = [option, "content_type=a/b", option, "content_type=c/d"]
        assert cli.run(["upload", "-", APP, *twice]) == Status.USAGE
        assert f"{option}: 'content_type' is given twice" in capsys.readouterr().err


def test_an_empty_path_is_not_the_current_directory(
    artifact: Artifact,  # noqa: F811
    empty_directory: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As where a variable of a shell is not set."""
    for arguments in (["export", APP, "--bagit", ""], ["cache", "stat", "--root", ""], ["report", "--html", ""]):
        assert cli.run(arguments) == Status.USAGE
        assert "it is empty" in capsys.readouterr().err
    assert list(empty_directory.iterdir()) == []


def test_a_directory_is_named_where_a_file_is_expected(
    artifact: Artifact,  # noqa: F811
    empty_directory: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A slash at the end means a directory, and never the file of that name."""
    (empty_directory / "file").write_bytes(b"kept")
    for dest in ("file/", "gone/"):
        assert cli.run(["get", APP, dest]) == Status.USAGE
        assert f"{dest} is no directory" in capsys.readouterr().err
    assert [path.read_bytes() for path in empty_directory.iterdir()] == [b"kept"]
    assert cli.run(["catalogue", "import", "."]) == Status.BAD
    assert ".: Is a directory" in capsys.readouterr().err
