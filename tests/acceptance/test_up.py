"""`zot-artifacts up` runs once per data directory, stops in order, leaves no process, continues with queued jobs."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
import urllib3

from tests.acceptance.commands import Zot
from tests.acceptance.forked_up import running, started
from tests.servers import Valkey
from tests.servers.process import REPOSITORY, freeze
from tests.waiting import WITHIN, until
from worker.embedded import supervisor, up_subprocess, valkey
from worker.embedded.processes import CannotStart, Children, Program
from worker.embedded.up_subprocess import Up, UpFailed, still_there
from worker.settings import Settings
from zot_artifact_client import ArtifactClient

LEAN = ("--no-beat", "--no-flower")


@pytest.fixture
def zot(tmp_path: Path) -> Zot:
    """Return the command line on a data directory of its own, where a killed job's lease ends soon."""
    return Zot(tmp_path / "home", {"ZOT_JOBS__LEASE": "3s", "ZOT_RETRY__BACKOFF": "1s"})


def up_of(zot: Zot, *options: str) -> AbstractContextManager[Up]:
    return running(zot.home, *options, **zot.settings)


def started_up_of(zot: Zot, *options: str) -> AbstractContextManager[Up]:
    """Run `up` as its users do: each program is a Python of its own, as the list of processes shows."""
    return up_subprocess.running(zot.home, *options, **zot.settings)


def command_lines(pids: set[int]) -> str:
    return "\n".join(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode() for pid in pids)


@pytest.mark.slow
def test_everything_runs_on_loopback_with_passwords_that_no_process_list_shows(zot: Zot) -> None:
    """Broker, worker, beat, Flower and gateway run; each asks for a secret, kept for its owner's eyes alone."""
    with started_up_of(zot, "--gateway") as up:
        secrets = [zot.home / "run" / name for name in ("broker-password", "flower-password", "broker-url")]
        assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in secrets)
        broker, flower, url = (path.read_text().strip() for path in secrets)
        lines = command_lines(up.family())
        assert not [secret for secret in (broker, flower) if secret in lines + json.dumps(up.document)]
        for name in ("valkey-server", "worker --loglevel", " beat ", " flower "):
            assert name in lines
        with pytest.raises(redis.AuthenticationError):
            redis.Redis.from_url(url.replace(broker, "wrong")).ping()
        client = redis.Redis.from_url(url)
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert client.config_get("proto-max-bulk-len") == {"proto-max-bulk-len": str(8 << 20)}
        assert client.config_get("bind") == {"bind": "127.0.0.1"}
        client.close()
        where = up.document["flower"]["url"]
        assert where.startswith("http://127.0.0.1:")
        headers = urllib3.make_headers(basic_auth=f"zot:{flower}")
        assert urllib3.request("GET", f"{where}/workers").status == 401
        assert urllib3.request("GET", f"{where}/workers", headers=headers).status == 200
        gateway = up.document["gateway"]["url"]
        assert gateway.startswith("http://127.0.0.1:")
        assert urllib3.request("GET", f"{gateway}/healthz").status == 200
        assert urllib3.request("GET", f"{gateway}/v1/artifacts?bucket=releases").status == 401
        family = up.family()
        assert up.stop() == 0
    assert still_there(family, WITHIN) == set()
    assert not (zot.home / "run" / "broker-url").exists()


def test_a_second_up_is_refused(zot: Zot) -> None:
    """A data directory and a catalogue have one `up`: a second ends with 2 and names the holder, which Ctrl-C ends."""
    elsewhere = Zot(zot.home.with_name("other"), {"ZOT_CATALOGUE": f"sqlite:///{zot.home / 'catalogue.sqlite3'}"})
    with up_of(zot, *LEAN) as up:
        for second in (zot("up"), elsewhere("up")):
            assert (second.status, second.is_one_line()) == (2, True), second
            assert f"{zot.home} " in second.stderr
            assert f"(process {up.process.pid})" in second.stderr
        assert str(zot.home / "run" / "broker-url") in second.stderr
        found = zot("doctor").stdout.splitlines()
        assert [line.split()[1] for line in found if not line.startswith("✓")] == ["beat:"]  # which LEAN leaves out
        assert up.stop(signal.SIGINT) == 0


def test_what_was_queued_outlives_a_kill(zot: Zot) -> None:
    """After kill -9 no process is left, commands say that the broker is gone, and the next `up` does the jobs.

    In a data directory that other users can read, each file and directory that is made is private by itself.
    """
    zot.home.mkdir(mode=0o755)
    # The broker may have given the first message to the stopped worker: beat finds the job in the outbox.
    zot = zot.with_settings(sweep__recover__every="2s", sweep__recover__after="2s")
    source = zot.home.parent / "app.tgz"
    source.write_bytes(os.urandom(100_000))
    with started_up_of(zot, *LEAN) as up:
        ports = (zot.home / "run" / "broker-port").read_text()
        assert zot("upload", source, "releases/app.tgz").status == 0
        family = up.family()
        assert len(family) > 4
        worker = next(pid for pid in family if "celery" in command_lines({pid}))
        freeze(worker)  # so that the next jobs stay queued
        jobs = [zot("verify", "releases/app.tgz", "--no-wait").stdout.strip() for _ in range(3)]
        os.kill(up.process.pid, signal.SIGKILL)
        up.process.wait()
        assert still_there(family, WITHIN) == set()
        told = zot("verify", "releases/app.tgz")
        assert told.status == 3
        assert told.is_one_line()
        assert f"none runs on {zot.home}: start `zot-artifacts up`" in told.stderr
    with up_of(zot, "--no-flower") as again:
        assert (zot.home / "run" / "broker-port").read_text() == ports
        assert await_states(zot, jobs) == {"succeeded"}
        modes = {path: path.lstat().st_mode for path in zot.home.rglob("*") if not path.is_symlink()}
        assert len(modes) > 20
        assert {path for path, mode in modes.items() if stat.S_IMODE(mode) & 0o077} == set()
        assert again.stop() == 0


def test_a_job_at_work_when_up_was_killed_is_done_by_the_next_one(zot: Zot) -> None:
    """A message that a killed worker held is given back at once, not after the broker's visibility timeout of hours."""
    source = zot.home.parent / "in" / "big.bin"
    zot = zot.with_settings(sources__roots=json.dumps([str(sparse(source, 64))]))
    with up_of(zot.with_settings(store_limits=json.dumps({"primary": {"bytes_per_second": "1MB"}})), *LEAN) as up:
        job = zot("upload", source, "big/big.bin", "--store", "primary", "--no-wait").stdout.strip()
        assert await_states(zot, [job], wanted={"running"}) == {"running"}
        family = up.family()
        os.kill(up.process.pid, signal.SIGKILL)
        up.process.wait()
        assert still_there(family, WITHIN) == set()
    os.truncate(source, 1024)  # what it is now does not take long
    with up_of(zot, *LEAN):
        assert await_states(zot, [job]) == {"succeeded"}
        assert zot("jobs", job, "--json").document["attempts"] == 2


def test_sigterm_lets_running_jobs_end(zot: Zot) -> None:
    """A job that ends within its grace when `up` is asked to end is not cut off, and `up` ends with 0."""
    source = zot.home.parent / "in" / "app.bin"
    roots, limits = [str(sparse(source, 8))], {"primary": {"bytes_per_second": "2MB"}}
    zot = zot.with_settings(sources__roots=json.dumps(roots), store_limits=json.dumps(limits), jobs__grace="60s")
    with up_of(zot, *LEAN) as up:
        with ArtifactClient((zot.home / "run" / "broker-url").read_text().strip()) as client:
            job = client.upload(source, "big", "app.bin", stores="primary").id
        assert await_states(zot, [job], wanted={"running"}) == {"running"}
        family = up.family()
        assert up.stop() == 0
        assert still_there(family, WITHIN) == set()
    assert not list(zot.home.glob("catalogue.sqlite3-wal")), "a copy of the file alone is whole"
    document = zot("jobs", job, "--json").document
    assert (document["state"], document["attempts"]) == ("succeeded", 1), document


def test_a_child_that_ends_is_started_again(tmp_path: Path) -> None:
    """A program that ends by itself is told and started again, also when the system did not start it at first."""
    said: list[str] = []
    program, aside = tmp_path / "program", tmp_path / "aside"
    program.write_text("#!/bin/sh\necho started; exit 7\n")
    program.chmod(0o700)
    with Children(tmp_path, said.append) as children:
        children.start(Program("short", (str(program),)))
        while not said:
            children.wait(0.05)
        program.rename(aside)
        with pytest.raises(CannotStart, match=f"^other cannot be started: {program}: No such file or directory$"):
            children.start(Program("other", (str(program),)))
        while len(said) < 2:
            children.wait(0.05)
        aside.rename(program)
        while (tmp_path / "short.log").read_text().count("started") < 2:
            children.wait(0.05)
    assert "short ended by itself (status 7) and is restarted in 1 s" in said[0]
    assert said[1] == f"short cannot be started: {program}: No such file or directory; tried again in 2 s"


def test_a_stubborn_child_is_killed_after_its_grace(tmp_path: Path) -> None:
    """A program that ignores SIGTERM is killed when its grace is over, and told."""
    said: list[str] = []
    with Children(tmp_path, said.append) as children:
        children.start(Program("deaf", ("sh", "-c", "trap '' TERM; echo up; sleep 60 & wait; sleep 60"), grace=0.5))
        while not (tmp_path / "deaf.log").read_text():
            children.wait(0.05)
        before = time.monotonic()
    assert time.monotonic() - before < 50  # its own end takes 120
    assert said == ["deaf did not end within its grace period and is killed"]


@pytest.mark.parametrize("name", ["TERM", "HUP"])
def test_waiting_is_ended_by_a_signal(tmp_path: Path, name: str) -> None:
    """SIGTERM and the end of the terminal end the wait at once, as StopRequested; a second one kills what runs."""
    # In a process of its own, because this one has threads, one of which would get the signal and die of it.
    wait = (
        "import os, sys; from pathlib import Path\n"
        "from worker.embedded.processes import Children, Program, StopRequested\n"
        f"kill = f'kill -{name} {{os.getpid()}}'\n"
        "script = f'trap \"{kill}\" TERM; {kill}; while :; do sleep 0.1; done'\n"
        "with Children(Path(sys.argv[1]), print) as children:\n"
        f"    children.start(Program('killer', ('sh', '-c', script), grace={WITHIN}))\n"
        f"    try: children.wait({WITHIN})\n"
        "    except StopRequested: print('stop')\n"
    )
    command = [sys.executable, "-c", wait, str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=WITHIN, check=False)
    said = ["stop", "second signal: killing what still runs"]
    assert (done.returncode, done.stdout.splitlines()) == (0, said), done.stderr


def test_the_first_process_of_a_container_reaps_orphans(tmp_path: Path) -> None:
    """A process whose parent has died stays no zombie where nothing else is there to reap it."""
    apart = ("unshare", "--user", "--map-root-user", "--pid", "--fork")
    if subprocess.run([*apart, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no namespace of processes can be made here")
    script = (
        "import os, sys; from pathlib import Path\n"
        "from worker.embedded.processes import Children, Program\n"
        "with Children(Path(sys.argv[1]), str) as children:\n"
        "    children.start(Program('parent', ('sh', '-c', 'sleep 0.1 & echo $!')))\n"
        "    while not (told := Path(sys.argv[1], 'parent.log').read_text()): children.wait(0.05)\n"
        "    try:\n"
        "        for _ in range(400): os.kill(int(told.split()[0]), 0); children.wait(0.05)\n"
        "    except ProcessLookupError: print('reaped')\n"
    )
    command = [*apart, sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=WITHIN, check=False)
    assert (done.stdout, done.stderr) == ("reaped\n", "")


def test_a_port_that_is_taken_is_not_insisted_on(tmp_path: Path) -> None:
    """The port of last time is taken again if it is free, else another one."""
    import socket

    path = tmp_path / "port"
    port = valkey.remembered_port(path)
    assert valkey.remembered_port(path) == port
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        assert valkey.remembered_port(path) != port


@pytest.mark.parametrize("is_copy", [True, False])
def test_a_port_that_is_taken_meanwhile_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_copy: bool
) -> None:
    """The broker of a copy of the data directory, or of another program, is never taken for the own one."""
    settings = Settings(home=tmp_path / "home")
    for directory in (settings.run_dir, tmp_path / "logs", tmp_path / "valkey"):
        directory.mkdir(parents=True)
    with Valkey(tmp_path / "valkey") as other, redis.Redis(port=other.port) as client:
        password = valkey.remembered_secret(settings.run_dir / "broker-password") if is_copy else "of its own"
        client.config_set("requirepass", password)
        ports = iter([other.port])
        remembered = valkey.remembered_port
        monkeypatch.setattr(valkey, "remembered_port", lambda path: next(ports, None) or remembered(path))
        with settings.up_lock.open("w") as lock, Children(tmp_path / "logs", print) as children:
            supervisor.start_broker(settings, children, lock.fileno(), print)
            url = settings.broker_file.read_text().strip()
            assert valkey.answering_process(url) == children.pid("valkey")


def test_a_broker_that_loads_its_file_is_awaited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers some requests meanwhile, but none for its queues: `up` ended with an error."""
    settings = Settings(home=tmp_path / "home")
    files, program, loading = settings.home / "broker" / "appendonlydir", valkey.program, list[int]()
    for directory in (settings.run_dir, tmp_path / "logs", files):
        directory.mkdir(parents=True)
    (files / "appendonly.aof.manifest").write_text("file appendonly.aof.1.incr.aof seq 1 type i\n")
    saved = ["*2\r\n$6\r\nSELECT\r\n$1\r\n0\r\n", *["*3\r\n$3\r\nSET\r\n$1\r\nx\r\n$1\r\nx\r\n"] * 20_000]
    (files / "appendonly.aof.1.incr.aof").write_bytes("".join(saved).encode())

    def slow(*arguments: Any) -> Program:
        made = program(*arguments)
        return replace(made, command=(*made.command, "--key-load-delay", "50"))

    def requeue(url: str) -> int:
        with redis.Redis.from_url(url) as client:
            loading.append(client.info("persistence")["loading"])
        return 0

    monkeypatch.setattr(valkey, "program", slow)
    monkeypatch.setattr(valkey, "requeue_unacknowledged", requeue)
    with settings.up_lock.open("w") as lock, Children(tmp_path / "logs", print) as children:
        supervisor.start_broker(settings, children, lock.fileno(), print)
    assert loading == [0]


def test_up_that_cannot_start_says_why(tmp_path: Path) -> None:
    """A setting that is wrong is told by `up` in one line, with 2."""
    done = Zot(tmp_path / "home", {"ZOT_PLACEMENT": '["nowhere"]'})("up")
    assert done.status == 2
    assert done.is_one_line()
    assert "nowhere" in done.stderr
    with pytest.raises(UpFailed), running(tmp_path / "home", ZOT_PLACEMENT='["nowhere"]'):
        pass


@pytest.mark.slow
def test_a_broker_of_another_catalogue_is_refused_until_it_is_accepted(zot: Zot, tmp_path: Path) -> None:
    """`up` with another catalogue ends with 2, and names both and its own option, which makes it start."""
    with up_of(zot, *LEAN):
        pass
    other = zot.with_settings(catalogue=f"sqlite:///{tmp_path / 'other.sqlite3'}")
    done = other("up", *LEAN)
    assert (done.status, done.is_one_line()) == (2, True), done
    for told in ("belongs to the catalogue", str(tmp_path / "other.sqlite3"), "`zot-artifacts up --accept-broker`"):
        assert told in done.stderr
    with up_of(other, *LEAN, "--accept-broker"):
        pass
    with up_of(other, *LEAN):
        pass
    assert zot("up", *LEAN).status == 2


def test_up_says_at_once_that_its_broker_does_not_answer(zot: Zot) -> None:
    """It names the broker without its password, what it waits for and the way out, and starts nothing."""
    broker = "redis://user:secret@127.0.0.1:1/0"
    with started(zot.home, *LEAN, **zot.with_settings(broker=broker).settings):
        told = until((zot.home / "up.log").read_text)
    assert "broker redis://127.0.0.1:1/0 cannot be reached" in told
    assert "waiting for it for 60 s: start it, or press Ctrl-C and correct ZOT_BROKER" in told
    assert "secret" not in told
    assert list((zot.home / "logs").iterdir()) == []


@pytest.mark.slow
def test_up_names_the_right_that_its_user_of_the_broker_lacks(zot: Zot, tmp_path: Path) -> None:
    """It ends in one line with the command that the ACL forbids, and where all rights are listed."""
    with Valkey(tmp_path / "valkey") as broker, redis.Redis(port=broker.port) as client:
        client.execute_command("ACL", "SETUSER", "poor", "on", ">secret", "~*", "&*", "+@all", "-publish")
        done = zot.with_settings(broker=f"redis://poor:secret@127.0.0.1:{broker.port}/0")("up", *LEAN)
    assert done.is_one_line(), done
    assert "refuses this: its ACL does not allow this to the user of its URL" in done.stderr
    assert "'publish'" in done.stderr
    assert "deploy/valkey/users.acl" in done.stderr
    assert "secret" not in done.stderr


def sparse(path: Path, mebibytes: int) -> Path:
    """Make a file of zeros and return its directory."""
    path.parent.mkdir()
    with path.open("wb") as file:
        file.truncate(mebibytes * 1024**2)
    return path.parent


def await_states(zot: Zot, jobs: list[str], wanted: set[str] | None = None) -> set[str]:
    """Return the states of jobs once all are among the wanted ones, by default those of an end."""
    from worker.catalogue import Catalogue

    wanted = wanted or {"succeeded", "failed", "dead", "cancelled", "refused"}
    catalogue = Catalogue(f"sqlite:///{zot.home}/catalogue.sqlite3")

    def states() -> set[str]:
        return {record.state if (record := catalogue.ledger.get(job)) else "queued" for job in jobs}

    try:
        return set(until(lambda: (found := states()) <= wanted and found))
    finally:
        catalogue.close()


def test_what_is_printed_names_the_file_of_each_password(zot: Zot) -> None:
    """What `up` prints may end in a log: the first start, which makes the passwords, prints none of them."""
    with started(zot.home, "--no-beat", **zot.settings) as (_, stdout):
        printed = ""
        while "\nready" not in printed:
            line = stdout.readline().decode()
            assert line, printed
            printed += line
    kept = zot.home / "run" / "flower-password"
    assert str(kept) in printed
    assert kept.read_text().strip() not in printed
