"""Arguments that are empty, or beyond any measure, never mean something else than what they say."""

import shutil
from pathlib import Path

import pytest

from tests.unit.cli.test_status import artifact, catalogue  # noqa: F401 - fixtures
from worker import cli
from worker.cli.errors import Failure
from worker.cli.session import open_session
from worker.exit_status import Status
from worker.settings import load_settings


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["verify", "--keys-from", "/"], "it is a directory; name a file with one BUCKET/KEY on each line"),
        (["pause", "store", ""], "no store is named ''"),
        (["pause", "store", "primary,dr"], "no store is named 'primary,dr'"),
        (["stores", "accept", ""], "no store is named ''"),
        (["quarantine", "ls", "--store", ""], "no store is named ''"),
        (["catalogue", "backup", "--store", ""], "the name of a store is empty"),
        (["catalogue", "rebuild", "--store", ""], "the name of a store is empty"),
        (["tokens", "add", "ci", "--bucket", "a", "--verb", "read", "--expires", "0"], "invalid at once"),
        (["report", "--json", "--since", "9" * 12 + "d"], "too long"),
        (["report", "--json", "--since", "30"], "'30' is not a duration: write a number with a unit"),
        (["report", "--json", "--since", "\N{SUPERSCRIPT TWO}"], "is not a duration"),
        (["pause"], "Missing argument 'store|queue|job'. Choose from: store, queue, job"),
        (["jobs", "--wait"], "--wait goes with an ID"),
        (["jobs", "--traceback"], "--traceback goes with an ID"),
        (["jobs", "5f0a1d0e", "--timeout", "5s"], "--timeout goes with --wait"),
        (["jobs", "--after", "5f0a1d0e"], "--after goes with --parent"),
        (["jobs", "5f0a1d0e", "--dead"], "--dead does not go with an ID"),
        (["jobs", "5f0a1d0e", "--parent", "7c2e9f41"], "--parent does not go with an ID"),
        (["jobs", "--parent", "7c2e9f41", "--store", "dr"], "--store does not go with --parent"),
        (["jobs", "--rejected", "--failed"], "--failed does not go with --rejected"),
        (["demo", "--home", "used"], "is not empty: name a new directory"),
        (["export", "releases/app.tgz", "--bagit", "used"], "is not empty: name a new directory"),
    ],
)
@pytest.mark.usefixtures("artifact")
def test_an_argument_that_means_nothing_is_refused(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An empty name, as of a variable that is not set, meant all stores, and no time meant no end."""
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "zot.yaml").touch()
    monkeypatch.chdir(tmp_path)
    assert cli.run(arguments) == Status.USAGE
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["get", "releases/app.tgz", "."],
        ["get", "-r", "releases", "out"],
        ["upload", "-r", ".", "releases/"],
        ["upload", "file", "releases/file"],
        ["attest", "releases/app.tgz", "--output", "o", "--key", "k"],
        ["report", "--html", "r.html"],
        ["catalogue", "export", "dump"],
        ["catalogue", "import", "dump"],
        ["demo", "--home", "h"],
    ],
)
@pytest.mark.usefixtures("artifact")
def test_a_relative_path_in_a_deleted_directory_names_the_way_out(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The system says "No such file or directory" alone, of the current directory that nothing has named."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    monkeypatch.setenv("ZOT_BROKER", "redis://127.0.0.1:1")
    shutil.rmtree(gone)
    assert cli.run(arguments) != Status.GOOD
    assert "the current directory is gone: change to another one, or give absolute paths" in capsys.readouterr().err


@pytest.mark.usefixtures("catalogue")
def test_an_empty_store_is_not_all_of_them() -> None:
    """`delete --store "$UNSET"` deleted the whole artifact."""
    session = open_session(load_settings(), create=True)
    try:
        for given in ([""], [" "], ["primary", ""], [","]):
            with pytest.raises(Failure, match="the name of a store is empty"):
                session.store_names(given)
        assert session.store_names(["primary, dr,"]) == ("primary", "dr")
        assert session.store_names(None) is session.store_names([]) is None
    finally:
        session.close()
