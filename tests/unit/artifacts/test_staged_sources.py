"""A staged source goes away with its job, and nothing else ever does."""

from pathlib import Path

import pytest

from worker.artifacts.sources import remove_staged
from worker.settings import Settings, load_settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    made = load_settings(home=tmp_path / "home")
    made.prepare()
    return made


def test_the_file_and_its_directory_go(settings: Settings) -> None:
    """What was staged for a job is removed; doing it again is idempotent."""
    directory = settings.staging_dir / "job-1"
    directory.mkdir()
    (directory / "app.tgz").write_bytes(b"x")
    for _ in range(2):
        remove_staged(str(directory / "app.tgz"), settings)
        assert list(settings.staging_dir.iterdir()) == []


@pytest.mark.parametrize("name", ["catalogue", "staging/../catalogue", "staging/../run/broker", "staging/job/link"])
def test_nothing_outside_of_a_jobs_directory_goes(settings: Settings, name: str) -> None:
    """A message that calls any other file staged cannot have it removed, whatever way its name takes."""
    kept = [settings.home / "catalogue", settings.home / "run" / "broker"]
    for path in kept:
        path.write_bytes(b"kept")
    (settings.staging_dir / "job").mkdir()
    (settings.staging_dir / "job" / "link").symlink_to(settings.home / "catalogue")
    remove_staged(str(settings.home / name), settings)
    assert all(path.exists() for path in kept)
