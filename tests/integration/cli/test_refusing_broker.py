"""What commands say of a broker that answers and refuses: a right, the password, a write, or everything for now."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from tests.servers import Valkey
from tests.servers.process import free_port
from worker import cli
from worker.cli import health
from worker.cli.session import open_session
from worker.settings import load_settings

PASSWORD = "the-password"


def forbid(client: "redis.Redis") -> str:
    client.execute_command("ACL", "SETUSER", "poor", "reset", "on", f">{PASSWORD}", "~*", "&*", "+ping", "+info")
    return f"poor:{PASSWORD}@"


def require_password(client: "redis.Redis") -> str:
    client.config_set("requirepass", PASSWORD)
    return ""


def refuse_password(client: "redis.Redis") -> str:
    client.config_set("requirepass", PASSWORD)
    return ":another@"


def lose_primary(client: "redis.Redis") -> str:
    client.config_set("replica-serve-stale-data", "no")
    return become_replica(client)


def become_replica(client: "redis.Redis") -> str:
    client.replicaof("127.0.0.1", free_port())
    return ""


def fill(client: "redis.Redis") -> str:
    client.set("full", "x" * 100_000)
    client.config_set("maxmemory", "1")
    return ""


def crowd(client: "redis.Redis") -> str:
    client.config_set("maxclients", "1")  # that is this connection
    return ""


REFUSALS = {
    forbid: "its ACL does not allow this to the user of its URL",
    require_password: "it requires a password, and its URL has none",
    refuse_password: "it refuses the user or password of its URL",
    lose_primary: "it is a replica that has lost its primary",
    become_replica: "it is a replica, which takes no writes",
    crowd: "it has as many connections as it takes",
    fill: "command not allowed when used memory > 'maxmemory'",
}


@pytest.mark.parametrize(("refuse", "told"), REFUSALS.items(), ids=[each.__name__ for each in REFUSALS])
def test_a_broker_that_refuses_is_not_said_to_be_away(
    refuse: Callable[["redis.Redis"], str],
    told: str,
    broker: Valkey,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Health, doctor and a command that sends a job say what it refuses, and none says that it is away."""
    monkeypatch.setattr(health, "_ANSWERS_WITHIN", 2.0)
    monkeypatch.setenv("ZOT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ZOT_BROKER", broker.url)
    open_session(load_settings(), create=True).close()
    with redis.Redis(port=broker.port) as client:
        login = refuse(client)
        monkeypatch.setenv("ZOT_BROKER", f"redis://{login}127.0.0.1:{broker.port}/0")

        said = {}
        for command in (
            ["health", "worker"],
            ["health", "beat"],
            ["doctor", "--json"],
            ["verify", "releases/a", "--no-wait"],
            ["pause", "queue", "sweep"],
            ["jobs", "5f0a1d0e"],
            ["jobs", "--rejected"],
        ):
            cli.run(command)
            printed = capsys.readouterr()
            said[command[0], command[1]] = printed.out if "--json" in command else printed.out + printed.err
    checks = {each["name"]: each for each in json.loads(said.pop(("doctor", "--json")))["checks"]}
    of_broker = [f"{each['detail']}; {each['way_out']}" for each in checks.values() if each["outcome"] != "good"]
    assert told in said["health", "worker"]
    assert told in said["verify", "releases/a"]
    of_write = REFUSALS[become_replica if refuse is lose_primary else refuse]  # it refuses a write as any replica does
    assert of_write in said["pause", "queue"]
    assert said["pause", "queue"].startswith("queue sweep is paused; `zot-artifacts resume queue sweep` ends it\n")
    if refuse is not become_replica and refuse is not fill:  # these two answer what is only read
        assert (
            f"whether it waits in its queue is unknown: broker redis://127.0.0.1:{broker.port}"
            in said["jobs", "5f0a1d0e"]
        )
        assert told in said["jobs", "5f0a1d0e"]
    assert any(told in each for each in of_broker)
    for each in (*said.values(), *of_broker):
        assert not any(wrong in each for wrong in ("does not answer", "cannot be reached", "no answer", "start it"))
        assert PASSWORD not in each
