"""The servers that tests talk to: one of each per test process, started when the first test asks for it."""

import faulthandler
import gc
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import hypothesis
import pytest
from azure.storage.blob import ExponentialRetry
from botocore.retries.standard import ExponentialBackoff
from kombu.transport import memory

from tests.missing import skip_or_fail
from tests.process_start import hold_temporary_files, import_tests, start_as_forks
from tests.scheduling import PROCESSES, FromBothEnds, files_of, in_order
from tests.servers import (
    Azurite,
    FakeGcs,
    GcpEmulator,
    Ministack,
    Postgres,
    RcloneS3,
    Server,
    ServerMissing,
    StrictGcs,
    Valkey,
)
from tests.servers.directory_in_memory import directory_in_memory
from tests.servers.new_tables import make_new_tables_at_once
from tests.servers.shared_statements import share_compiled_statements
from worker import clock
from worker.embedded.parent_death import die_with_parent

# A busy machine is no fault of a test: only what a test asserts can fail it, and pytest-timeout ends what hangs.
hypothesis.settings.register_profile("busy", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("busy")

INSTALLED = {"postgres", "ministack", "rclone", "fake_gcs", "strict_gcs", "fake_gcs_disk", "gcp_emulator", "azurite"}
"""The fixtures of servers that have to be installed; Valkey comes with the worker."""
_ENDS_WITHIN = 60.0
"""Seconds between the last test and the end of the process."""
_GC_THRESHOLD = 20_000
"""New objects between two collections of garbage: the modules and the tests of a whole run make few that die."""
_AMBIENT = ("AWS_", "AZURE_", "ZOT_", "BOTO_", "CELERY_", "GOOGLE_", "GCLOUD_", "STORAGE_EMULATOR_")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="leave out every test of a server other than Valkey")


def pytest_configure(config: pytest.Config) -> None:
    """Prepare a process of pytest-xdist: when the one that started it is killed, it would run its test to the end."""
    if hasattr(config, "workerinput"):
        die_with_parent()
        if os.getppid() != config.workerinput["starter"]:  # it was killed before
            os._exit(1)
        if not config.option.ignore and not config.option.ignore_glob:  # pytest ignores no file that is named
            number = int(config.workerinput["workerid"].removeprefix("gw"))
            config.args = files_of(config.args, number, config.workerinput["workercount"])
    else:
        hold_temporary_files()


def pytest_configure_node(node: Any) -> None:
    """Tell a process of pytest-xdist which one starts it."""
    node.workerinput["starter"] = os.getpid()


def pytest_xdist_setupnodes(config: pytest.Config, specs: list[Any]) -> None:
    """Let the processes of pytest-xdist be forks of this one."""
    import_tests(config.args)
    _take_ambient_settings_away()  # what the processes share is made without them
    start_as_forks(specs)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Collect garbage seldom, and never look again at what the collection of all tests made.

    It stays to the end, a million objects, and to go through them took a sixth of the processor time of the tests.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.set_threshold(_GC_THRESHOLD)
        gc.enable()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Let a process that does not end, because a thread does not, show all its threads and then end.

    A process of pytest-xdist waits for the others, and pytest-xdist ends it.
    """
    if not hasattr(config, "workerinput"):
        faulthandler.dump_traceback_later(_ENDS_WITHIN, exit=True, file=sys.__stderr__)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Generate each test of the catalogue once for each kind of database."""
    if "catalogue_url" in metafunc.fixturenames:
        kinds = ["sqlite", pytest.param("postgresql", marks=pytest.mark.installed_server)]
        metafunc.parametrize("catalogue_url", kinds, indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what `--quick` leaves out, and run first what takes long."""
    items[:] = in_order(items)
    if not config.getoption("quick"):
        return
    kept, left_out = list[pytest.Item](), list[pytest.Item]()
    for item in items:
        asks = item.get_closest_marker("installed_server") or INSTALLED.intersection(getattr(item, "fixturenames", ()))
        (left_out if asks else kept).append(item)
    config.hook.pytest_deselected(items=left_out)
    items[:] = kept


@pytest.fixture(autouse=True)
def _clock_of_this_machine() -> None:
    """Forget the clock of the PostgreSQL of an earlier test, also where a test undoes its changes before it ends."""
    clock._shared_start = None
    clock._checked_at = float("-inf")


@pytest.fixture(autouse=True)
def _empty_memory_broker() -> None:
    """Forget the messages that an earlier test has left at `memory://`: one process has one such broker."""
    memory.Channel.queues.clear()


@pytest.fixture(autouse=True)
def _same_umask() -> Iterator[None]:
    """Undo what a test's `Settings.prepare` did to the umask of this process."""
    before = os.umask(0o022)
    os.umask(before)
    yield
    os.umask(before)


@pytest.fixture(scope="session", autouse=True)
def _no_ambient_settings() -> None:
    _take_ambient_settings_away()


def _take_ambient_settings_away() -> None:
    """Take what the developer's shell says about stores and the worker out of the tests' way."""
    for name in [name for name in os.environ if name.startswith(_AMBIENT) and name != "ZOT_SERVERS_VENV"]:
        del os.environ[name]
    os.environ["ZOT_DELETE__GRACE"] = "0s"  # a test that deletes means the bytes; those of the grace period set it
    os.environ["AWS_EC2_METADATA_DISABLED"] = "true"  # asking it for credentials takes seconds where there is none
    os.environ["NO_GCE_CHECK"] = "true"  # the same of Google's
    os.environ["AWS_CONFIG_FILE"] = os.environ["AWS_SHARED_CREDENTIALS_FILE"] = os.devnull


ServerT = TypeVar("ServerT", bound=Server)


@contextmanager
def running(server: ServerT) -> Iterator[ServerT]:
    """Run a server for a fixture. One that is not installed fails the test in CI and skips it elsewhere."""
    try:
        server.start()
    except ServerMissing as error:
        skip_or_fail(str(error))
    try:
        yield server
    finally:
        server.stop()


class SkippingClock:
    """Replaces the module `time` where an SDK waits: to sleep takes no time, and counts all the same."""

    def __init__(self) -> None:
        self._skipped = 0.0

    def sleep(self, seconds: float) -> None:
        self._skipped += seconds

    def monotonic(self) -> float:
        return time.monotonic() + self._skipped


@pytest.fixture
def sdks_retry_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut short what the SDKs wait between two tries, for tests that count tries and assert no time."""
    monkeypatch.setattr(ExponentialRetry, "get_backoff_time", lambda retry, settings: 0.0)
    monkeypatch.setattr(ExponentialBackoff, "delay_amount", lambda backoff, context: 0.0)
    clock = SkippingClock()
    for module in ("retry_unary", "retry_base"):
        monkeypatch.setattr(f"google.api_core.retry.{module}.time", clock)


@pytest.fixture(params=["auto", "sdk"])
def both_paths(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a test twice: small objects moved with plain requests where they can, and by the SDKs alone."""
    monkeypatch.setattr("tests.conformance.targets.DATA_PATH", request.param)


@pytest.fixture(scope="session")
def database_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return where the databases that tests share keep their data: in memory where there is room.

    Tests kill the processes of a database, never the machine. On a disk, to make and to drop a database takes ten
    times as long as soon as other processes write to it. What an artifact store keeps stays on the disk.
    """
    with directory_in_memory() as directory:
        yield directory or tmp_path_factory.mktemp("databases")


@pytest.fixture(scope="session")
def valkey_server(database_directory: Path) -> Iterator[Valkey]:
    """Return the Valkey that the modules of this process use one after another."""
    with running(Valkey(database_directory / "valkey")) as server:
        yield server


@pytest.fixture(scope="module")
def valkey(valkey_server: Valkey) -> Valkey:
    """Return a running Valkey that is empty when the module begins; who kills it restarts it."""
    valkey_server.empty()
    return valkey_server


@pytest.fixture(scope="session")
def postgres(database_directory: Path) -> Iterator[Postgres]:
    """Return a running PostgreSQL; who kills it restarts it."""
    with running(Postgres(database_directory / "postgres")) as server:
        yield server


@pytest.fixture(scope="session", autouse=True)
def _shared_statements() -> None:
    """Compile a statement of the catalogue once for all tests of this process."""
    share_compiled_statements()


@pytest.fixture(scope="session", autouse=True)
def _new_tables_at_once() -> None:
    """Make a new SQLite catalogue without its migrations, which tests/unit/catalogue is about."""
    make_new_tables_at_once()


@pytest.fixture
def catalogue_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Return the URL of a new catalogue, once in each kind of database."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'catalogue.sqlite3'}"
        return
    with request.getfixturevalue("postgres").database() as url:
        yield url


@pytest.fixture(scope="session")
def ministack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ministack]:
    """Return a running ministack: S3 as Amazon documents it."""
    with running(Ministack(tmp_path_factory.mktemp("ministack"))) as server:
        yield server


@pytest.fixture(scope="session")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RcloneS3]:
    """Return a running `rclone serve s3`: S3 with real signatures over real files."""
    with running(RcloneS3(tmp_path_factory.mktemp("rclone"))) as server:
        yield server


@pytest.fixture(scope="session")
def fake_gcs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeGcs]:
    """Return a running fake-gcs-server: Cloud Storage as far as generations and composing go."""
    with running(FakeGcs(tmp_path_factory.mktemp("fake-gcs"))) as server:
        yield server


@pytest.fixture(scope="session")
def strict_gcs(fake_gcs: FakeGcs) -> Iterator[StrictGcs]:
    """Return the same one with what makes it hold to all generation conditions."""
    with StrictGcs(fake_gcs.port) as strict:
        yield strict


@pytest.fixture(scope="session")
def fake_gcs_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeGcs]:
    """Return a running fake-gcs-server whose objects are files, to damage them."""
    with running(FakeGcs(tmp_path_factory.mktemp("fake-gcs-disk"), on_disk=True)) as server:
        yield server


@pytest.fixture(scope="session")
def gcp_emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GcpEmulator]:
    """Return a running gcp-storage-emulator: Cloud Storage as far as resuming goes."""
    with running(GcpEmulator(tmp_path_factory.mktemp("gcp-emulator"))) as server:
        yield server


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azurite]:
    """Return a running azurite: Azure Blob Storage as Microsoft emulates it."""
    with running(Azurite(tmp_path_factory.mktemp("azurite"))) as server:
        yield server


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FromBothEnds:
    """Share the tests out as tests/scheduling.py says."""
    return FromBothEnds(config, log)


def pytest_xdist_auto_num_workers() -> int:
    """Return what `-n auto` means here."""
    return PROCESSES
