"""Start every service of ours in docker-compose.yml as a process, with its command, environment and health check."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml
from azure.storage.blob import BlobServiceClient

from tests.acceptance.commands import run_in_fork
from tests.servers.azure import Azurite, find_node_program
from tests.servers.forks import Fork
from tests.servers.process import REPOSITORY, free_port
from tests.servers.valkey import find_valkey
from tests.waiting import WITHIN, until
from worker.embedded.parent_death import die_with_parent
from worker.storage.config import AzureConfig
from worker.storage.configured_stores import Stores
from worker.storage.probe import probe
from zot_artifact_client import ArtifactClient
from zot_artifact_client.broker_urls import redis_client

COMPOSE = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())
OURS = [name for name, each in COMPOSE["services"].items() if each["image"] == "zot-artifact-worker"]
PUBLISHED = {"broker": 6379, "flower": 5555, "metrics": 9469, "gateway": 8484}
SECRETS = {
    "ZOT_BROKER_PASSWORD": "b" * 24, "ZOT_SERVICE_PASSWORD": "s" * 24, "FLOWER_BASIC_AUTH": "admin:" + "f" * 12,
}  # fmt: skip
OPTIONS = {  # containers have addresses of their own; these processes share one, so each port and name is another
    "flower": lambda ports: [f"--port={ports['flower']}", "--address=127.0.0.1"],
    "metrics": lambda ports: ["--port", str(ports["metrics"])],
    "gateway": lambda ports: ["--port", str(ports["gateway"])],
    "worker": lambda _: ["--hostname", "celery@worker"],
    "sweeper": lambda _: ["--hostname", "celery@sweeper"],
    "beat": lambda _: ["--pidfile="],
}
MODULES = {"celery": "celery", "zot-artifacts": "worker.cli"}
"""What the programs of the image run. Forks run it here, for each start of Python would import everything again."""
ADDRESS = re.compile(r"(?:127\.0\.0\.1|@[\w.-]+):\d+")
DIRECTORY = re.compile(r"(?<![\w.])/(data|tmp)\b")
VARIABLE = re.compile(r"\$\{(\w+)(?::[-?]([^}]*))?\}")


@dataclass(frozen=True, slots=True)
class Stack:
    """The running services: where they keep their files, and the ports that they are published at."""

    home: Path
    ports: Mapping[str, int]
    processes: dict[str, "Fork | subprocess.Popen[bytes]"] = field(default_factory=dict)

    def environment(self, name: str) -> dict[str, str]:
        """Return the environment of a service; a variable without a value is passed on, and none is set here."""
        given: Mapping[str, Any] = COMPOSE["services"][name].get("environment") or {}
        return {
            "PATH": f"{Path(sys.executable).parent}:{Path(find_valkey()).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(REPOSITORY),
            **{key: self.local(str(value)) for key, value in given.items() if value is not None},
        }

    def local(self, text: str) -> str:
        """Return a text of the file with its variables filled in, and the addresses and directories of this stack."""
        text = VARIABLE.sub(lambda found: SECRETS.get(found[1], ""), text).replace("$$", "$")
        text = ADDRESS.sub(self._local_address, text)  # at once: a port of this stack may begin like a published one
        text = text.replace("0.0.0.0", "127.0.0.1")
        text = DIRECTORY.sub(lambda found: str(self.home / found[1]), text)  # before paths of this machine are in it
        text = text.replace("/etc/zot-artifacts.yaml", str(self.home / "settings.yaml"))
        return text.replace("/etc/users.acl", str(REPOSITORY / COMPOSE["configs"]["users"]["file"]))

    def _local_address(self, found: re.Match[str]) -> str:
        for name, port in PUBLISHED.items():
            if found[0] in {f"127.0.0.1:{port}", f"@{name}:{port}"}:
                return f"{'@' * found[0].startswith('@')}127.0.0.1:{self.ports[name]}"
        return found[0]

    def run(self, name: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run a command in the environment of a service, as `docker compose exec` does."""
        return subprocess.run(
            arguments, env=self.environment(name), cwd=self.home, capture_output=True, text=True, check=False
        )

    def becomes_healthy(self, name: str) -> bool:
        """Return True as soon as the health check of a service succeeds, False if the service ends; print its log."""
        try:
            until(lambda: self._healthy(name) or self.processes[name].poll() is not None)
        finally:
            print((self.home / f"{name}.log").read_text(errors="replace"))  # pytest shows it where the test fails
        return self.processes[name].poll() is None

    def _healthy(self, name: str) -> bool:
        kind, *command = COMPOSE["services"][name]["healthcheck"]["test"]
        command = [self.local(part) for part in command]
        if kind == "CMD-SHELL":
            command = ["sh", "-c", *command]
        if name in {"worker", "sweeper"}:
            command += ["--node", f"celery@{name}"]
        if command[0] in MODULES:
            ours = [MODULES[command[0]], *command[1:]]
            return run_in_fork(ours, self.environment(name), self.home, WITHIN).status == 0
        return self.run(name, *command).returncode == 0


@contextmanager
def started(stack: Stack, name: str) -> Iterator[None]:
    service = COMPOSE["services"][name]
    command = [*map(stack.local, service["command"]), *OPTIONS.get(name, lambda _: [])(stack.ports)]
    if name == "broker":
        command[-1] = command[-1].rstrip() + f" --port {stack.ports['broker']} --dir {stack.home}/tmp"
    with (stack.home / f"{name}.log").open("wb") as log, Path(os.devnull).open("rb") as nothing:
        if command[0] in MODULES:
            command[0] = MODULES[command[0]]
            streams = (nothing.fileno(), log.fileno(), log.fileno())
            stack.processes[name] = Fork(command, cwd=stack.home, env=stack.environment(name), streams=streams)
        else:
            stack.processes[name] = subprocess.Popen(
                command, env=stack.environment(name), cwd=stack.home, stdout=log, stderr=log,
                preexec_fn=die_with_parent,  # noqa: PLW1509 - no lock is held here
            )  # fmt: skip
    try:
        yield
    finally:
        stack.processes[name].send_signal(signal.SIGTERM)
        stack.processes[name].wait()


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Run the services without a profile: what `docker compose up` starts."""
    home = tmp_path_factory.mktemp("stack")
    for folder in ("data", "tmp"):
        (home / folder).mkdir(mode=0o700)
    stack = Stack(home, {name: free_port() for name in PUBLISHED})
    (home / "settings.yaml").write_text(stack.local(COMPOSE["configs"]["settings"]["content"]))
    with ExitStack() as running:
        for name in ["broker", *OURS]:
            running.enter_context(started(stack, name))
            if name == "broker":
                until(lambda: _listens(stack))
        yield stack


def _listens(stack: Stack) -> bool:
    with redis_client(stack.local("redis://:${ZOT_BROKER_PASSWORD}@broker:6379/0")) as client:
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False


@pytest.mark.slow
@pytest.mark.parametrize("name", OURS)
def test_every_service_becomes_healthy(stack: Stack, name: str) -> None:
    """Each service starts with its command and environment, and its health check then succeeds."""
    assert stack.becomes_healthy(name)


@pytest.mark.slow
def test_an_outside_service_gets_its_answer(stack: Stack, tmp_path: Path) -> None:
    """A file that is uploaded in the worker's container is verified for a service that has only the broker."""
    assert stack.becomes_healthy("worker")
    (tmp_path / "app.tgz").write_bytes(b"bytes")
    sent = stack.run("worker", "zot-artifacts", "upload", str(tmp_path / "app.tgz"), "releases/app.tgz", "--json")
    assert sent.returncode == 0, sent.stdout + sent.stderr
    with ArtifactClient(stack.local("redis://service:${ZOT_SERVICE_PASSWORD}@broker:6379/0")) as client:
        result = client.verify("releases", "app.tgz").wait(timeout=120)
    assert {copy.store: copy.verdict for copy in result.copies} == {"primary": "verified", "dr": "verified"}


class EmulatorOfCompose(Azurite):
    """Azurite as the profile `dev` starts it, with the account that it has by default."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.account = "devstoreaccount1"

    def command(self) -> Sequence[str]:
        _, *options = COMPOSE["services"]["azure"]["command"]
        local = {"0.0.0.0": "127.0.0.1", "/data": "data"}
        options = [local.get(option, option) for option in options]
        return (*find_node_program("azurite/dist/src/blob/main.js"), *options, "--blobPort", str(self.port))

    def environment(self) -> Mapping[str, str]:
        return {}


@pytest.mark.installed_server
def test_the_emulator_of_azure_takes_a_store(tmp_path: Path) -> None:
    """A store in the emulator of the profile `dev` works with the settings that docs/howto/deploy.md has for it."""
    page = (REPOSITORY / "docs/howto/deploy.md").read_text()
    [block] = re.findall(r"```yaml\n( *stores:.*?)```", page, re.DOTALL)
    documented = yaml.safe_load(block)["stores"]
    with EmulatorOfCompose(tmp_path / "azurite") as server:
        text = documented["azure"]["connection_string"].replace("http://azure:10000", f"http://127.0.0.1:{server.port}")
        service = BlobServiceClient.from_connection_string(text, api_version="2025-11-05")
        service.create_container(documented["azure"]["container"])
        service.close()
        stores = Stores({"azure": AzureConfig(**{**documented["azure"], "connection_string": text})})
        assert probe(stores["azure"]) is None
        stores.close()
