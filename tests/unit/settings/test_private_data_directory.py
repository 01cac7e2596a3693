"""Files of the worker are private to its user, unless a store has other modes."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.conformance.bodies import source
from worker.catalogue import Catalogue
from worker.cli.atomic_file import complete_file
from worker.cli.doctor import _home
from worker.settings import Settings, SettingsError, load_settings, private_data_directory
from worker.storage import FilesystemConfig, Store
from worker.storage.filesystem.driver import FilesystemDriver

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def _users_umask(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give the test the umask of an ordinary shell."""
    monkeypatch.setattr(private_data_directory, "_users_umask", None)
    before = os.umask(0o022)
    yield
    os.umask(before)


def _modes(*paths: Path) -> set[int]:
    return {stat.S_IMODE(path.stat().st_mode) for path in paths}


def _below(root: Path) -> tuple[list[Path], list[Path]]:
    found = list(root.rglob("*"))
    return [path for path in found if path.is_file()], [path for path in found if path.is_dir()]


def test_nothing_in_a_new_data_directory_is_for_other_users(tmp_path: Path) -> None:
    """Folders, catalogue and artifacts are for the worker's user, whatever the shell's umask is."""
    settings = Settings(home=tmp_path / "home")
    settings.prepare()
    Catalogue(settings.catalogue_url).close()
    store = Store(FilesystemDriver("primary", settings.stores["primary"]))
    store.write_object("releases", "a/b", source(b"bytes"))
    files, directories = _below(settings.home)
    assert len(files) > 4
    assert (_modes(*files), _modes(settings.home, *directories)) == ({0o600}, {0o700})


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, kind) for name in ("run", "logs", "broker", "staging", "spool") for kind in ("file", "fifo", "link")]
    + [(name, kind) for name in ("run/up.lock", "logs/worker.log") for kind in ("directory", "fifo", "link")],
)
def test_what_is_out_of_place_is_told_with_the_way_out(name: str, kind: str, tmp_path: Path) -> None:
    """A file, a FIFO or a link to nothing where a folder belongs, and so for files: one line, and nothing is made."""
    path = tmp_path / "home" / name
    path.parent.mkdir(parents=True)
    {"file": Path.touch, "fifo": os.mkfifo, "directory": Path.mkdir}.get(kind, _link_to_nothing)(path)
    before = list(tmp_path.rglob("*"))
    with pytest.raises(SettingsError) as refused:
        Settings(home=tmp_path / "home").prepare()
    way_out = "which is not there: mount its disk" if kind == "link" else "belongs there: move it away"
    assert str(refused.value).startswith(f"{path} is ")
    assert way_out in str(refused.value)
    assert list(tmp_path.rglob("*")) == before


def _link_to_nothing(path: Path) -> None:
    path.symlink_to("/nowhere/at/all")


@pytest.mark.parametrize("name", ["broker", "logs/worker.log"])
def test_folders_and_logs_may_be_links_to_another_disk(name: str, tmp_path: Path) -> None:
    """A link to a directory is one, and a link to a file that is not there yet is followed."""
    (tmp_path / "disk" / "made").mkdir(parents=True)
    path = tmp_path / "home" / name
    path.parent.mkdir(parents=True)
    path.symlink_to(tmp_path / "disk" / ("made" if name == "broker" else "log"))
    Settings(home=tmp_path / "home").prepare()
    assert path.is_symlink()


def test_an_open_data_directory_is_tightened_and_reported(tmp_path: Path) -> None:
    """Our folders and the catalogue in an existing directory are tightened; doctor names what is still open."""
    home = tmp_path / "home"
    home.mkdir(mode=0o755)
    (home / "logs").mkdir(mode=0o755)
    (home / "catalogue.sqlite3").touch(0o644)
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o755)
    (home / "broker").symlink_to(outside)
    (home / "stores" / "primary").mkdir(parents=True)
    settings = Settings(home=home)
    settings.prepare()
    assert _modes(home / "logs", home / "run", home / "staging", home / "spool") == {0o700}
    assert _modes(home / "catalogue.sqlite3") == {0o600}
    assert _modes(outside) == {0o755}
    found = _home(settings)
    assert (found.outcome, f"{home} (mode 0755)" in found.detail) == ("bad", True)
    assert f"{home}/stores/primary (mode 0755)" in found.detail
    assert found.way_out is not None
    subprocess.run(found.way_out, shell=True, check=True)
    assert _home(settings).outcome == "good"


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    """Return a disk like the volume of a pod: of another user, and open to all."""
    volume = tmp_path / "volume"
    volume.mkdir()
    options = "size=8m,mode=2777,uid=10001,gid=10001"
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", volume], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("a disk can only be mounted by root")
    try:
        yield volume
    finally:
        subprocess.run(["umount", volume], check=True)


def test_the_volume_of_a_pod_is_good(volume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Kubernetes mounts cannot be closed by the worker: doctor says what it has to be, and is not bad for it."""
    monkeypatch.setattr("worker.cli.doctor.LEAST_FREE", 0)
    settings = Settings(home=volume)
    settings.prepare()
    found = _home(settings)
    assert (found.outcome, f"{volume} (mode 2777)" in str(found.way_out)) == ("good", True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes directories of another user")
def test_the_owner_of_an_open_directory_has_to_be_changed_by_root() -> None:
    """A directory of another user, on no disk of its own, is bad; the worker cannot close it, and root can."""
    with TemporaryDirectory(prefix="zot-test-") as made:
        home = Path(made) / "home"
        home.mkdir()
        for path, mode in ((Path(made), 0o711), (home, 0o2777)):
            path.chmod(mode)
        with _effective_user(10001):
            settings = Settings(home=home)
            settings.prepare()
            found = _home(settings)
        assert (found.outcome, found.way_out) == ("bad", f"as root: chown 10001 {home} && chmod go= {home}")
        subprocess.run(str(found.way_out).removeprefix("as root: "), shell=True, check=True)
        with _effective_user(10001):
            assert _home(settings).outcome == "good"


@contextmanager
def _effective_user(uid: int) -> Iterator[None]:
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_shared_store_has_the_modes_of_its_settings(tmp_path: Path) -> None:
    """Objects, sidecars, locks and directories of a store with modes have them, also when an object is replaced."""
    private_data_directory.make_files_private()
    config = FilesystemConfig(root=tmp_path, file_mode="0640", dir_mode="2750")  # type: ignore[arg-type]
    store = Store(FilesystemDriver("shared", config))
    for body in (b"one", b"two"):
        store.write_object("releases", "a/b", source(body))
    files, directories = _below(tmp_path)
    assert {path.name for path in files} >= {"b", "b.sha256"}
    assert (_modes(*files), _modes(*directories)) == ({0o640}, {0o2750})


@pytest.mark.parametrize("mode", ['"0940"', "0640", "640", '"0440"', '"4700"', "rw"])
def test_a_mode_that_is_none_is_refused(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mode without quotes, with other digits or without the rights of the worker is an error that names it."""
    config = tmp_path / "zot.yaml"
    config.write_text(f"stores: {{a: {{type: filesystem, root: {tmp_path}, file_mode: {mode}}}}}")
    monkeypatch.setenv("ZOT_CONFIG", str(config))
    with pytest.raises(SettingsError, match=r"stores\.a.*file_mode"):
        load_settings()


def test_a_file_that_a_user_gets_has_the_users_mode(tmp_path: Path) -> None:
    """A new file that `get` writes is as readable as the user's shell makes files."""
    private_data_directory.make_files_private()
    with complete_file(tmp_path / "got", tmp_path) as file:
        file.write(b"bytes")
    assert _modes(tmp_path / "got") == {0o644}


def test_every_program_of_the_application_makes_private_files(tmp_path: Path) -> None:
    """`celery -A worker.app …` sets the umask when the application is imported, before anything is made."""
    script = "import os, worker.app; print(os.umask(0))"
    environment = {"ZOT_HOME": str(tmp_path / "home"), "ZOT_BROKER": "redis://127.0.0.1:1/0", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) == 0o077
