"""A local source is a regular file that the job may use; a staged one is removed with its job, and no other file is."""

import errno
import os
from pathlib import Path

import pytest

from tests.memory_driver import MemoryDriver
from tests.open_files import open_below
from worker.artifacts.parts_staged_in_store import assembled, source_of
from worker.artifacts.sources import SourceRefused, open_source, remove_staged
from worker.settings import Settings, load_settings
from worker.settings.section_models import SourceSettings
from worker.storage import Store
from worker.storage.errors import PermanentError, Unavailable


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "incoming").mkdir()
    made = load_settings(home=tmp_path / "home", sources=SourceSettings(roots=(tmp_path / "incoming",)))
    made.prepare()
    return made


def test_the_file_and_its_directory_go(settings: Settings) -> None:
    """What was staged for a job is removed; doing it again is idempotent."""
    directory = settings.staging_dir / "job-1"
    directory.mkdir()
    (directory / "app.tgz").write_bytes(b"x")
    for _ in range(2):
        remove_staged(str(directory / "app.tgz"), settings, "job-1")
        assert list(settings.staging_dir.iterdir()) == []


@pytest.mark.parametrize("name", ["catalogue", "staging/../catalogue", "staging/../run/broker", "staging/job/link"])
def test_nothing_outside_of_a_jobs_directory_goes(settings: Settings, name: str) -> None:
    """A message that calls any other file staged cannot have it removed, whatever way its name takes."""
    kept = [settings.home / "catalogue", settings.home / "run" / "broker"]
    for path in kept:
        path.write_bytes(b"kept")
    (settings.staging_dir / "job").mkdir()
    (settings.staging_dir / "job" / "link").symlink_to(settings.home / "catalogue")
    remove_staged(str(settings.home / name), settings, "job")
    assert all(path.exists() for path in kept)


def test_a_staged_file_is_used_and_removed_by_its_own_job_only(settings: Settings) -> None:
    """Another job can neither upload nor remove what was staged, also by a link; a batch's jobs share the batch's."""
    directory = settings.staging_dir / "job-1"
    directory.mkdir()
    staged = directory / "app.tgz"
    staged.write_bytes(b"x")
    link = settings.sources.roots[0] / "link"
    link.symlink_to(staged)
    for name in (staged, link):
        for job in ("job-2", None, "..", ""):
            with pytest.raises(SourceRefused, match="another job"), open_source(str(name), settings, job=job):
                pass
    remove_staged(str(staged), settings, "job-2")
    for job in ("job-1", "job-1.00000007"):
        with open_source(str(staged), settings, job=job) as source:
            assert source.rewind().read(9) == b"x"


def test_what_is_no_regular_file_is_refused_and_leaves_no_descriptor(settings: Settings, tmp_path: Path) -> None:
    """A directory, a FIFO, a device, an absent file and one of another job leave no descriptor open."""
    root = settings.sources.roots[0]
    (root / "directory").mkdir()
    os.mkfifo(root / "fifo")
    (root / "device").symlink_to("/dev/zero")
    (settings.staging_dir / "job").mkdir()
    (settings.staging_dir / "job" / "file").touch()
    names = [*root.iterdir(), root / "absent", settings.staging_dir / "job" / "file", tmp_path]
    for name in names:
        with pytest.raises((SourceRefused, FileNotFoundError)), open_source(str(name), settings, job="other"):
            pass
    assert open_below(tmp_path, Path("/dev/zero")) == []


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.EIO, errno.ESTALE])
def test_an_error_of_the_machine_may_pass(settings: Settings, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """What the machine or the disk lacks is a transient error, at the opening and while the file is read."""
    path = settings.sources.roots[0] / "app.tgz"
    path.write_bytes(b"x")

    def fail(*_args: object, **_more: object) -> int:
        raise OSError(number, os.strerror(number))

    with open_source(str(path), settings) as source:

        class Broken:
            seek = staticmethod(lambda _offset: 0)
            read = staticmethod(fail)

        object.__setattr__(source, "file", Broken())
        with pytest.raises(Unavailable, match=str(path)) as failed:
            source.hashed(None, lambda _size: None)
        assert failed.value.store is not None, "an error of a source counts against no store"
    monkeypatch.setattr("worker.artifacts.sources.local_file.os.open", fail)
    with pytest.raises(Unavailable, match=str(path)), open_source(str(path), settings):
        pass


def test_parts_for_which_no_file_can_be_made_name_the_directory(settings: Settings) -> None:
    """Without a directory to put them together in, the upload fails with its name, and not as a bug."""
    settings.spool_dir.rmdir()
    source, stores = source_of("dr", "job-1", 5), {"dr": Store(MemoryDriver("dr"))}
    parts = assembled(source, stores, settings, job="job-1", heartbeat=lambda: None)
    with pytest.raises(PermanentError, match=f"no file can be made in {settings.spool_dir}"), parts:
        pass
