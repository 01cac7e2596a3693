"""Failures of a PostgreSQL server: each is an error that says whether a retry helps."""

import logging
import shutil
import signal
import socket
import threading
import time
from contextlib import closing, nullcontext
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
import sqlalchemy as sa
from celery.exceptions import SoftTimeLimitExceeded

from tests.servers.pgbouncer import PgBouncer
from tests.servers.postgres import connect
from tests.servers.process import free_port
from tests.servers.tls import Authority, TlsProxy
from tests.waiting import until
from worker import clock, shutdown_flag
from worker.catalogue import Busy, Catalogue, CatalogueError, CatalogueUnavailable, VerdictRow, postgresql
from worker.catalogue.database import Database
from worker.jobs.interrupt_signal import Interrupted
from worker.storage import Digest

SECRET = "open-sesame"
_WAIT_AT_COMMIT = """
    CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NEW; END $$;
    CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON artifacts DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION wait()
"""


@pytest.fixture
def url(postgres):
    with postgres.database() as made:
        yield made


@pytest.fixture
def catalogue(url):
    opened = Catalogue(url)
    yield opened
    opened.close()


def record(catalogue, key="app.tgz"):
    return catalogue.artifacts.record("releases", key, Digest(1, "a" * 64), {}, clock.now()).artifact


@pytest.mark.parametrize("wrong", [timedelta(hours=1), timedelta(hours=-1)], ids=["ahead", "behind"])
def test_a_machine_with_a_wrong_clock_takes_no_job_of_another(url, catalogue, monkeypatch, wrong):
    """The clock of the server counts: a job of a living worker stays leased, and one of a dead worker is overdue."""
    lease = timedelta(seconds=30)
    about = {"owner": "me", "writes_to": None, "parent": None, "lease": lease}
    catalogue.ledger.acquire("lives", "upload", {}, now=clock.now(), **about)
    catalogue.ledger.acquire("lost", "upload", {}, now=clock.now() - 2 * lease, **about)
    monkeypatch.setattr(clock, "_checked_at", float("-inf"))
    monkeypatch.setattr(clock, "host_time", lambda: datetime.now(UTC) + wrong)
    there = Catalogue(url)
    try:
        found = there.ledger.overdue(now=clock.now(), again=lease, lease=lease, limit=9)
        assert [job.id for job in found] == ["lost"]
        assert isinstance(there.ledger.acquire("lives", "upload", {}, now=clock.now(), **about), Busy)
    finally:
        there.close()


def test_the_log_of_a_machine_with_a_wrong_clock_is_whole(url, monkeypatch):
    """The clock of the server tells the time in its own zone, and the hash of a row is over the moment in UTC."""
    monkeypatch.setattr(clock, "host_time", lambda: datetime.now(UTC) + timedelta(hours=1))
    there = Catalogue(url)
    try:
        artifact = record(there)
        there.artifacts.ensure_copies([(artifact, "dr")])
        copy = there.artifacts.copies(artifact)["dr"]
        there.verifications.record(VerdictRow.of("job-1", artifact, copy, "verified"), now=clock.now())
        assert there.verifications.first_broken() is None
    finally:
        there.close()


def test_all_text_is_compared_by_its_bytes(url):
    """No column of the catalogue depends on the language that the database was made with, or has a limit."""
    query = (
        "SELECT c.relname || '.' || a.attname FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid "
        "WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND a.atttypid = 'varchar'::regtype "
        "AND c.relname <> 'alembic_version' AND (a.attcollation <> '\"C\"'::regcollation OR a.atttypmod <> -1)"
    )
    with connect(url) as shell:
        assert shell.execute(query).fetchall() == []


def test_a_server_behind_tls_is_verified_and_a_fault_names_the_way_out(url, tmp_path):
    """With the right authority the catalogue opens; what is wrong with a certificate is told with the parameter."""
    ours, other = Authority(tmp_path, "ours"), Authority(tmp_path, "other")
    context = ours.context()
    context.set_alpn_protocols(["postgresql"])  # the server of the wheel has no TLS, so libpq begins with it at once
    plain = sa.make_url(url)
    with TlsProxy(plain.port, context) as tls:

        def opened(authority, host="127.0.0.1"):
            query = {"sslmode": "verify-full", "sslnegotiation": "direct", "sslrootcert": str(authority)}
            behind = plain.set(host=host, port=tls.port, query=query)
            return Catalogue(behind.render_as_string(hide_password=False))

        opened(ours.path).close()
        with pytest.raises(CatalogueUnavailable, match="is not trusted, or .* in sslrootcert of ZOT_CATALOGUE"):
            opened(other.path)
        with pytest.raises(CatalogueUnavailable, match="does not exist; name the authority's certificate in sslroot"):
            opened(tmp_path / "absent.pem")
        with pytest.raises(CatalogueUnavailable, match="its certificate is for another host name"):
            opened(ours.path, host="localhost")
    with pytest.raises(CatalogueUnavailable, match="it speaks no TLS on this port"):
        Catalogue(f"{url}?sslmode=verify-full&sslrootcert={ours.path}")


@pytest.mark.parametrize("table", ["artifacts", "verifications", "manifests", "undeletes"])
def test_what_was_recorded_cannot_be_truncated(catalogue, url, table):
    """Taking all rows away at once is refused like taking away one."""
    with connect(url) as shell, pytest.raises(psycopg.IntegrityError, match=r"never|append-only"):
        shell.execute(f"TRUNCATE {table} CASCADE")


def test_a_database_that_cannot_hold_every_key_is_refused(postgres):
    """A database in another encoding than UTF-8 is refused before anything is made in it."""
    with connect(postgres.url()) as shell:
        shell.execute("CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'")
        with pytest.raises(CatalogueError, match="its encoding is LATIN1: make a database with the encoding UTF8"):
            Catalogue(postgres.url("latin"))
        shell.execute("DROP DATABASE latin")


def test_a_copy_of_a_database_is_told_from_it(postgres, url, catalogue):
    """By `CREATE DATABASE ... TEMPLATE`, with the id of the catalogue; each has the same number for all workers."""
    with postgres.database() as copied, closing(Catalogue(copied)) as copy, closing(Catalogue(url)) as again:
        numbers = [each._database.physical_id() for each in (catalogue, again, copy)]
    assert (copy.identity, numbers[0], bool(numbers[0])) == (catalogue.identity, numbers[1], True)
    assert numbers[2] != numbers[0]


@pytest.mark.parametrize("state", ["40001", "40P01", "53300", "57014", "57P01", "25006", "25P04", "55P03"])
def test_what_passes_may_be_tried_again(catalogue, state):
    """A deadlock, a lack of memory, a shutdown or a standby are told apart from what stays."""
    with pytest.raises(CatalogueUnavailable, match="as told"), catalogue._database.write() as connection:
        connection.execute(raising(state))


@pytest.mark.parametrize(
    ("state", "way_out"),
    [("42501", "the owner of"), ("42P01", "its dump"), ("42703", "its dump"), ("3F000", "its dump"), ("XX001", "dump")],
)
def test_a_catalogue_that_is_changed_while_it_is_in_use_is_waited_for(catalogue, state, way_out):
    """It lacks tables while its dump is restored, and its rows cannot be read after a restore as another role.

    That says nothing about the jobs, which would fail.
    """
    told = pytest.raises(CatalogueUnavailable, match=f"as told; .*{way_out}")
    with told, catalogue._database.write() as connection:
        connection.execute(raising(state))


def test_the_settings_of_a_database_change_nothing(url):
    """Moments are read, every key is kept, and a long transaction ends: our connections have settings of their own."""
    others = {
        "datestyle": "German", "intervalstyle": "iso_8601", "client_encoding": "LATIN1", "bytea_output": "escape",
        "default_transaction_isolation": "serializable", "default_transaction_deferrable": "on",
        "statement_timeout": "100ms", "lock_timeout": "100ms", "idle_in_transaction_session_timeout": "100ms",
        "transaction_timeout": "100ms",
    }  # fmt: skip
    with connect(url) as shell:
        for name, value in others.items():
            shell.execute(f"ALTER DATABASE {sa.make_url(url).database} SET {name} = '{value}'")
    opened = Catalogue(url)
    made = record(opened, "клюき.tgz")
    with opened._database.write() as connection:
        connection.execute(sa.text("SELECT pg_sleep(0.3)"))
    assert opened.artifacts.version("releases", made.key, 1) == made
    opened.close()


def test_a_server_that_can_only_be_read_is_told(url, catalogue):
    """A standby, for example: what asks whether the catalogue is locked is told that nothing can be written."""
    assert catalogue.ledger.is_locked(within=0) is False
    read_only = sa.make_url(url).update_query_dict({"options": "-c default_transaction_read_only=on"})
    opened = Catalogue(read_only.render_as_string(hide_password=False))
    with pytest.raises(CatalogueUnavailable, match="read-only transaction; name a server in ZOT_CATALOGUE"):
        opened.ledger.is_locked(within=0)
    opened.close()


def test_a_standby_is_read_and_waited_for(url, catalogue, postgres):
    """Also where the database has the isolation that a standby refuses; what waits goes on when it has taken over."""
    made = record(catalogue)
    with connect(url) as shell:
        database = sa.make_url(url).database
        shell.execute(f"ALTER DATABASE {database} SET default_transaction_isolation = 'serializable'")
    with postgres.standby():
        assert catalogue.artifacts.version("releases", made.key, 1) == made
        with pytest.raises(CatalogueUnavailable, match="this one is a standby"):
            record(catalogue, "later")
    assert record(catalogue, "later").version == 1


@pytest.mark.parametrize("state", ["22001", "23505", "42601", "54000", "P0001"])
def test_what_stays_is_not_tried_again(catalogue, state):
    """What the database will say again tomorrow is an error, not a reason to wait."""
    with pytest.raises(CatalogueError, match="as told") as raised, catalogue._database.write() as connection:
        connection.execute(raising(state))
    assert type(raised.value) is CatalogueError


def raising(state):
    return sa.text(f"DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{state}', MESSAGE = 'as told'; END $$")


def test_a_server_that_is_down_is_told_in_one_line():
    """The line names the server and the way out, and never the password, wherever in the URL it is."""
    for url in (
        f"postgresql+psycopg://zot:{SECRET}@127.0.0.1:{free_port()}/zot",
        f"postgresql://127.0.0.1:{free_port()}/zot?user=zot&password={SECRET}",
    ):
        with pytest.raises(CatalogueUnavailable, match="127.0.0.1.*check that ZOT_CATALOGUE names") as raised:
            Catalogue(url)
        assert SECRET not in str(raised.value)
        assert "\n" not in str(raised.value)


def test_a_wrong_password_is_told_without_it(postgres):
    """A password that the server does not take is never shown."""
    with pytest.raises(CatalogueUnavailable, match="password authentication failed.*correct the user") as raised:
        Catalogue(postgres.url().replace(postgres.password, SECRET))
    assert SECRET not in str(raised.value)
    plain = "no pg_hba.conf entry for host, user, database, no encryption"  # libpq tries that after TLS, and tells both
    both = sa.exc.OperationalError("", {}, psycopg.OperationalError(f"password authentication failed\n{plain}"))
    assert postgresql.way_out(both, sa.make_url(postgres.url())).startswith("correct the user or the password")


def test_a_server_that_takes_no_more_connections_is_told_with_the_way_out(url, postgres):
    """It answers, so that another name in ZOT_CATALOGUE is none."""
    with connect(url) as shell:
        shell.execute(f"CREATE ROLE few LOGIN PASSWORD '{postgres.password}' CONNECTION LIMIT 0")
        try:
            with pytest.raises(CatalogueUnavailable, match="too many connections for role.*; let the server take more"):
                Catalogue(sa.make_url(url).set(username="few").render_as_string(hide_password=False))
        finally:
            shell.execute("DROP ROLE few")


def test_a_server_that_says_nothing_is_not_waited_for(monkeypatch):
    """A peer that takes the connection and never answers costs the time that connecting may take; a URL may set it."""
    monkeypatch.setitem(postgresql._CONNECTING, "connect_timeout", 2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        with pytest.raises(CatalogueUnavailable, match="timeout"):
            Catalogue(f"postgresql://127.0.0.1:{silent.getsockname()[1]}/zot")
        assert time.monotonic() - began < 30
    assert (
        "connect_timeout" not in postgresql.options(sa.make_url("postgresql:///zot?connect_timeout=9"))["connect_args"]
    )


@pytest.mark.parametrize(
    "url", ["mysql://u:p@host/db", "postgresql+psycopg2://u:p@host/db", "postgres://u:p@host/db", "zot"]
)
def test_another_kind_of_database_is_refused_with_the_way_out(url):
    """Only SQLite and PostgreSQL with our driver are taken, and the line says how they are written."""
    with pytest.raises(CatalogueError, match="cannot be used.*postgresql\\+psycopg://USER:PASSWORD@HOST/DATABASE"):
        Catalogue(url)


def test_a_restart_of_the_server_costs_what_was_under_way_and_nothing_else(postgres, catalogue, caplog):
    """A transaction that the server's death cuts off is one error and leaves nothing; the next finds the new server."""

    def write_and_lose_the_server():
        with catalogue._database.write() as connection:
            connection.execute(sa.text("DELETE FROM transfers"))
            postgres.kill()
            connection.execute(sa.text("DELETE FROM transfers WHERE id = :id"), [{"id": 1}, {"id": 2}])

    try:
        with pytest.raises(CatalogueUnavailable):
            write_and_lose_the_server()
        assert not caplog.records, "the driver tells it again"
        with pytest.raises(CatalogueUnavailable, match="connection failed"):  # another program may have its port
            record(catalogue)
    finally:
        postgres.restart()  # other tests use it
    assert record(catalogue).version == 1
    postgres.restart()  # while the connection is idle
    assert record(catalogue, "lib.tgz").version == 1


def test_a_writer_that_was_stopped_loses_its_turn(url, monkeypatch):
    """Who stops in the middle of writing keeps the others waiting for a while only, and has then written nothing."""
    monkeypatch.setattr(postgresql, "IDLE_SECONDS", 1)
    stopped = Database(url)
    going_on = Catalogue(url)

    def write_too_slowly():
        with stopped.write() as connection:
            connection.execute(sa.text("UPDATE alembic_version SET version_num = 'lost'"))
            record(going_on)
            connection.execute(sa.text("SELECT 1"))

    with pytest.raises(CatalogueUnavailable):
        write_too_slowly()
    assert going_on.artifacts.version("releases", "app.tgz", 1)
    stopped.engine.dispose()
    going_on.close()
    Catalogue(url).close()


@pytest.mark.timeout(60)
def test_a_worker_that_shuts_down_waits_for_no_turn(url, catalogue, monkeypatch):
    """A writer that does not go on keeps a worker no longer than its grace period; the job is delivered again."""
    monkeypatch.setattr(postgresql, "LOCK_SECONDS", 3600)
    monkeypatch.setattr(postgresql, "STATEMENT_SECONDS", 3600)
    late = Catalogue(url)
    with catalogue.artifacts._database.write():
        monkeypatch.setattr(shutdown_flag, "grace_is_over", lambda _since: True)
        with pytest.raises(CatalogueUnavailable, match="user request"):
            record(late)
    assert record(late).version == 1
    late.close()


@pytest.mark.parametrize("stop", [Interrupted, SoftTimeLimitExceeded])
@pytest.mark.parametrize("during", ["statement", "commit"])
def test_a_job_that_is_stopped_while_the_catalogue_has_no_answer_ends_as_stopped(url, catalogue, during, stop, caplog):
    """It is no failure of the catalogue, which would be tried again; and what the job does at its end is recorded."""
    if during == "commit":
        with connect(url) as shell:
            shell.execute(_WAIT_AT_COMMIT)

    def stopped(*_):
        raise stop

    def interrupt() -> None:
        with connect(url) as ours:
            until(lambda: ours.execute("SELECT 1 FROM pg_locks WHERE NOT granted").fetchone())
        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR2)

    other, watcher, before = Catalogue(url), threading.Thread(target=interrupt), signal.signal(signal.SIGUSR2, stopped)
    try:
        with connect(url) as shell, other._database.write() if during == "statement" else nullcontext():
            shell.execute("SELECT pg_advisory_lock(1)")
            watcher.start()
            with pytest.raises(stop):
                record(catalogue)
        assert record(catalogue, "next").version == 1
        assert not [each for each in caplog.records if each.levelno >= logging.ERROR]
    finally:
        watcher.join()
        signal.signal(signal.SIGUSR2, before)
        other.close()


def test_all_connections_in_use_is_something_that_passes(url, monkeypatch):
    """More threads than connections wait for one, and are told when none comes free."""
    options = postgresql.options
    few = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 0.1}
    monkeypatch.setattr(postgresql, "options", lambda parsed: options(parsed) | few)
    database = Database(url)
    with database.read(), pytest.raises(CatalogueUnavailable, match="limit"), database.read():
        pass
    database.engine.dispose()


def _settings_of_transactions(url):
    """Return the time limit and the number of prepared statements that each of many transactions sees."""
    database, found = Database(url), set()
    for _ in range(12):
        with database.write() as connection:
            limit = connection.exec_driver_sql("SHOW lock_timeout").scalar()
            query = "SELECT count(*) FROM pg_prepared_statements WHERE name <> %s"
            found.add((limit, connection.exec_driver_sql(query, ("",)).scalar()))
    database.close()
    return found


def test_nothing_outlives_a_transaction_behind_a_pooler(url, monkeypatch):
    """No statement stays prepared, and each transaction has the time limits; without a pooler they are prepared."""
    assert {prepared for _, prepared in _settings_of_transactions(url)} > {0}
    monkeypatch.setattr(postgresql, "_is_pooled", lambda _: True)
    assert _settings_of_transactions(url) == {("30s", 0)}


def test_pgbouncer_may_share_connections_by_transaction(url, postgres, tmp_path):
    """The catalogue works behind PgBouncer with `pool_mode=transaction`, which is found without a setting."""
    if shutil.which("pgbouncer") is None:
        pytest.skip("pgbouncer is not installed: on Debian it is the package pgbouncer")
    with PgBouncer(tmp_path, postgres, sa.make_url(url).database) as pooler:
        assert _settings_of_transactions(pooler.url) == {("30s", 0)}
        catalogue = Catalogue(pooler.url)
        made = [record(catalogue, f"k{number}") for number in range(12)]
        assert len({artifact.id for artifact in made}) == len(made)
        catalogue.close()
