"""A file is staged completely, in a private directory, through no link, and never over the file of another job."""

import hashlib
import os
import resource
import signal
import threading
from pathlib import Path

import pytest

from tests.durable import synced
from worker.artifacts.sources.partial_download import partial_download
from worker.cli import stage_file
from worker.cli.errors import Failure
from worker.cli.get import file_at
from worker.cli.stage_file import check_file, stage
from worker.settings import Settings
from worker.storage.errors import PermanentError

DATA = os.urandom(200_000)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    made = Settings(home=tmp_path / "home")
    made.prepare()
    return made


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "app.tgz"
    path.write_bytes(DATA)
    return path


def test_a_file_is_staged_and_dropped(settings: Settings, source: Path) -> None:
    """The staged file has the bytes, for our user alone, and survives a power cut; dropped, it leaves nothing."""
    with synced() as disk:
        staged = stage(source, settings, "job-1")
    assert disk.keeps(staged.path)
    assert disk.has_name(staged.path.parent)
    assert (staged.path, staged.path.read_bytes()) == (settings.staging_dir / "job-1" / "app.tgz", DATA)
    assert (staged.sha256, staged.path.stat().st_mode & 0o777) == (hashlib.sha256(DATA).hexdigest(), 0o600)
    staged.drop()
    assert list(settings.staging_dir.iterdir()) == []


def test_a_name_that_begins_with_a_tilde_may_be_that_of_a_file(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Office programs write `~$report.docx` beside a document; no user has such a name."""
    named = source.rename(source.with_name("~$report.docx"))
    monkeypatch.chdir(named.parent)
    assert check_file(named.name) == named
    assert file_at(named.name, "rel/report.docx") == Path(named.name)


def test_no_link_is_followed(settings: Settings, source: Path, tmp_path: Path) -> None:
    """A link in the place of a job's directory or of its file is refused, and what it names stays as it was."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (settings.staging_dir / "job-1").symlink_to(victim, target_is_directory=True)
    with pytest.raises(Failure, match="cannot be staged"):
        stage(source, settings, "job-1")
    assert list(victim.iterdir()) == []
    (victim / "kept").write_bytes(b"kept")
    (settings.staging_dir / "job-2").mkdir()
    (settings.staging_dir / "job-2" / "app.tgz").symlink_to(victim / "kept")
    with pytest.raises(Failure):
        stage(source, settings, "job-2")
    (settings.staging_dir / "job-3").mkdir()
    (settings.staging_dir / "job-3" / ".zot-download").symlink_to(victim / "kept")
    download = partial_download("https://builds.example/app.tgz", settings, "job-3", lambda: None)
    with pytest.raises(PermanentError, match="the file of the download: Too many"), download:
        pytest.fail("the link was followed")
    assert (victim / "kept").read_bytes() == b"kept"


def test_a_full_disk_is_one_line(settings: Settings, source: Path) -> None:
    """Where the bytes do not fit, one line names the directory and the way out, and nothing is left behind."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, before[1]))
        with pytest.raises(Failure, match=r"staged in .*/staging: File too large; raise the limit .*, or add"):
            stage(source, settings, "job-1")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(settings.staging_dir.iterdir()) == []


def test_a_source_that_cannot_be_read_is_no_fault_of_the_staging_directory(settings: Settings) -> None:
    """The error of a read names the source alone, and nothing is left behind."""
    with pytest.raises(Failure, match=r"source /proc/self/mem: it cannot be read: Input/output error$"):
        stage(Path("/proc/self/mem"), settings, "job-1")
    assert list(settings.staging_dir.iterdir()) == []


def test_the_file_of_an_earlier_request_stays(settings: Settings, source: Path) -> None:
    """A second request of one idempotency key neither replaces nor removes the file that the first one waits with."""
    first = stage(source, settings, "job-1")
    again = stage(source, settings, "job-1")
    assert (again.path, again.sha256) == (first.path, first.sha256)
    again.drop()
    source.write_bytes(b"other bytes")
    with pytest.raises(Failure, match="the idempotency key was used for another file"):
        stage(source, settings, "job-1")
    assert first.path.read_bytes() == DATA
    assert os.listdir(first.path.parent) == ["app.tgz"]  # noqa: PTH208 - names


def test_a_file_that_changes_while_it_is_copied_is_not_sent(settings: Settings, source: Path) -> None:
    """A copy may be of both contents, and its digest would be recorded as that of the file."""

    def written_to(_: int) -> None:
        if source.stat().st_size == len(DATA):
            source.write_bytes(DATA + b"more")

    with pytest.raises(Failure, match="it has changed while it was copied"):
        stage(source, settings, "job-1", on_bytes=written_to)
    assert list(settings.staging_dir.iterdir()) == []


@pytest.mark.parametrize("way", ["file", "standard input"])
def test_a_file_that_grows_as_fast_as_it_is_copied_is_refused(settings: Settings, source: Path, way: str) -> None:
    """Such as a log: to copy it would end when the disk is full."""
    copied: list[int] = []

    def grow(count: int) -> None:
        copied.append(count)
        assert sum(copied) < 100 * len(DATA), "it does not end"
        with source.open("ab") as log:
            log.write(DATA)

    with source.open("rb") as stream, pytest.raises(Failure, match="it has changed while it was copied"):
        stage(source, settings, "job-1", on_bytes=grow) if way == "file" else stage_file.stage_stream(
            stream, settings, "job-1", on_bytes=grow
        )
    assert list(settings.staging_dir.iterdir()) == []


def test_a_producer_that_pauses_keeps_no_signal_from_the_command() -> None:
    """What has arrived is taken at once: `read` would wait in calls between which Python notices no SIGTERM."""
    end, start = os.pipe()
    with os.fdopen(end, "rb") as source, os.fdopen(start, "wb", buffering=0) as producer:
        producer.write(b"abc")
        assert stage_file._read(source, "standard input") == b"abc"


def test_a_pause_of_the_producer_is_not_the_end_where_reads_do_not_wait(settings: Settings) -> None:
    """Another program that has the same standard input may have made it non-blocking: a part would count as all."""
    end, start = os.pipe()
    os.set_blocking(end, False)
    with os.fdopen(end, "rb") as source, os.fdopen(start, "wb", buffering=0) as producer:

        def write_the_rest() -> None:
            with producer:
                producer.write(b"def")

        rest = [threading.Timer(0.2, write_the_rest)]

        def taken(_: int) -> None:
            while rest:
                rest.pop().start()

        producer.write(b"abc")
        staged = stage_file.stage_stream(source, settings, "job-1", on_bytes=taken)
    assert staged.path.read_bytes() == b"abcdef"
