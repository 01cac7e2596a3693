"""Each service in `examples/` runs with a real broker and a real worker, and under load where it is asynchronous."""

import asyncio
import hashlib
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import httpx
import pytest
from celery import Celery

from tests.servers import Valkey
from tests.servers.forks import PythonServer
from tests.servers.process import REPOSITORY, free_port
from tests.servers.worker import Worker
from tests.waiting import WITHIN
from zot_artifact_client import ArtifactClient

BYTES = b"release"
SHA256 = hashlib.sha256(BYTES).hexdigest()
WAITS = 200


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("incoming") / "app.tgz"
    path.write_bytes(BYTES)
    return str(path)


@pytest.fixture(scope="module")
def broker(valkey: Valkey, source: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the broker of a running worker."""
    settings = {"sources__roots": json.dumps([str(Path(source).parent)])}
    with Worker(tmp_path_factory.mktemp("worker"), valkey.url, **settings):
        yield valkey.url


class Service(PythonServer):
    """A service of `examples/`, as its own process."""

    name = "service"

    def __init__(self, directory: Path, *command: str, port: int = 0, **variables: str) -> None:
        super().__init__(directory)
        self._command = (sys.executable, "-m", *command)
        self._variables = variables
        self.at = f"http://127.0.0.1:{port}"

    def command(self) -> tuple[str, ...]:
        return self._command

    def environment(self) -> Mapping[str, str]:
        path = os.pathsep.join((str(REPOSITORY), str(REPOSITORY / "api_client/src")))
        return {"PYTHONPATH": path, **self._variables}

    def probe(self) -> None:
        text = self._log_path.read_text()
        if "Uvicorn running on" not in text and " ready." not in text:
            raise ConnectionError("it is not ready yet")


def test_a_fastapi_service_serves_two_hundred_waits_at_a_time(broker: str, source: str, tmp_path: Path) -> None:
    """200 requests that each wait for a job are served by one process, and its errors are HTTP answers."""
    port = free_port()
    command = ("uvicorn", "examples.fastapi_service:app", "--port", str(port))

    async def ask(client: httpx.AsyncClient) -> None:
        published = await client.post("/releases/app.tgz", params={"source": source, "build": "17"})
        again = await client.post("/releases/app.tgz", params={"source": source, "build": "17"})
        assert published.status_code == 202
        assert again.json() == published.json()
        job = published.json()["job"]
        with ArtifactClient(broker) as other:
            await asyncio.to_thread(other.job(job).wait, WITHIN)
        told = {"kind": "upload", "state": "succeeded", "progress": None, "error": None}
        assert (await client.get(f"/jobs/{job}")).json() == told
        answers = await asyncio.gather(*(client.post("/releases/app.tgz/check") for _ in range(WAITS)))
        assert {answer.status_code for answer in answers} == {200}
        assert all(answer.json() == {"dr": "verified", "primary": "verified"} for answer in answers)
        shown = await client.get("/releases/app.tgz")
        assert shown.json() == {
            "sha256": SHA256,
            "size": len(BYTES),
            "copies": {"dr": "verified", "primary": "verified"},
        }
        wrong = {"/releases/absent": 404, "/jobs/no-such-job": 404, "/jobs/no%20id": 422}
        assert {path: (await client.get(path)).status_code for path in wrong} == wrong
        assert (await client.post("/releases/absent/check")).status_code == 409
        other = await client.post("/releases/app.tgz", params={"source": f"{source}-2", "build": "17"})
        assert other.status_code == 409

    async def scene(at: str) -> None:
        async with httpx.AsyncClient(base_url=at, timeout=WITHIN, limits=httpx.Limits(max_connections=WAITS)) as client:
            await ask(client)

    with Service(tmp_path / "service", *command, port=port, ZOT_BROKER=broker) as service:
        asyncio.run(scene(service.at))


def test_a_service_with_forked_workers_shares_one_module(broker: str, source: str, monkeypatch) -> None:
    """Processes that a server forks after it has loaded, and used, the client's module serve requests side by side."""
    monkeypatch.setenv("ZOT_BROKER", broker)
    from examples import wsgi_service

    wsgi_service.artifacts.upload(source, "releases", "before").wait(WITHIN)  # the parent has connections at the fork
    with socket.create_server(("127.0.0.1", 0)) as listening:
        children = [fork_server(listening, wsgi_service.app) for _ in range(2)]
        try:
            seen: dict[int, list[int]] = {}

            def ask(number: int) -> None:
                at = f"http://127.0.0.1:{listening.getsockname()[1]}/{number}"
                answer = json.load(urlopen(Request(f"{at}?source={source}&build={number}", method="POST")))
                assert answer["sha256"] == SHA256
                assert json.load(urlopen(at))["copies"] == {"dr": "stored", "primary": "stored"}
                seen.setdefault(answer["process"], []).append(number)

            threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(WITHIN)
            at = f"http://127.0.0.1:{listening.getsockname()[1]}"
            assert statuses_of_errors(f"{at}/0", source, "0") == {"absent": 409, "other": 409, "without": 422}
            assert sorted(number for numbers in seen.values() for number in numbers) == list(range(8))
            assert set(seen) <= set(children)
        finally:
            for child in children:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
    wsgi_service.artifacts.close()


def test_a_django_service_serves_from_forked_processes(
    broker: str, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Django's views upload and show in a forked process, and errors of the client are HTTP answers."""
    monkeypatch.setenv("ZOT_BROKER", broker)
    monkeypatch.setenv("DJANGO_SECRET_KEY", "of a test")
    from examples import django_service

    with socket.create_server(("127.0.0.1", 0)) as listening:
        child = fork_server(listening, django_service.app)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{listening.getsockname()[1]}", timeout=WITHIN) as client:
                asked = {"source": source, "build": "django-1"}
                published = [client.post("/publish/django.tgz", params=asked).json() for _ in range(2)]
                assert published == [{"version": 1, "sha256": SHA256}] * 2
                shown = client.get("/releases/django.tgz").json()
                assert shown == {"version": 1, "copies": {"dr": "stored", "primary": "stored"}}
                assert client.get("/releases/none.tgz").status_code == 404
                wrong = client.post("/publish/django.tgz", params={"source": "https://u:p@host/f", "build": "2"})
                assert (wrong.status_code, "u:p" in wrong.text) == (422, False)
                errors = statuses_of_errors(f"{client.base_url}/publish/django.tgz", source, "django-1")
                assert errors == {"absent": 409, "other": 409, "without": 422}
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    django_service.artifacts.close()


def statuses_of_errors(url: str, source: str, build: str) -> dict[str, int]:
    """Return what a service answers to an absent source, another source of a build that it has, and no source."""
    asked = {
        "absent": {"source": f"{source}-absent", "build": "absent"},
        "other": {"source": f"{source}-2", "build": build},
        "without": {},
    }
    return {name: httpx.post(url, params=params, timeout=WITHIN).status_code for name, params in asked.items()}


def fork_server(listening: socket.socket, app: Any) -> int:
    """Fork a process that serves requests from a socket that it shares, and return its process id."""

    class Quiet(WSGIRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    child = os.fork()
    if child:
        return child
    try:
        server = WSGIServer(listening.getsockname(), Quiet, bind_and_activate=False)
        server.socket = listening
        server.server_name, server.server_port = "127.0.0.1", listening.getsockname()[1]
        server.setup_environ()
        server.set_app(app)
        server.serve_forever()
    finally:
        os._exit(1)


def test_a_celery_service_waits_in_its_prefork_pool(broker: str, valkey: Valkey, source: str, tmp_path: Path) -> None:
    """Tasks in the children of another application's pool use the client of their module, and retries are one job."""
    own = valkey.database(1)
    command = ("celery", "-A", "examples.celery_service", "worker", "--concurrency=2", "--without-mingle", "-l", "INFO")
    with (
        Service(tmp_path / "service", *command, ZOT_BROKER=broker, SERVICE_BROKER=own),
        Celery(broker=own, backend=own, set_as_current=False) as app,
    ):
        name = "examples.celery_service.publish"
        sent = [app.send_task(name, args=(source, f"c-{n % 4}", str(n % 4)), queue="service") for n in range(8)]
        results = [each.get(timeout=WITHIN) for each in sent]
    assert all(result == {"version": 1, "sha256": SHA256, "good": True} for result in results)


def in_child(url: str, source: str, name: str) -> str:
    """Upload and wait in a process of a multiprocessing pool."""
    with ArtifactClient(url) as client:
        return client.upload(source, "releases", name).wait(WITHIN).sha256


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_multiprocessing_pool_uses_clients(broker: str, source: str, method: str) -> None:
    """Each process of a pool, forked or new, sends and waits, while the parent has a client in use."""
    with ArtifactClient(broker) as client:
        client.upload(source, "releases", "parent").wait(WITHIN)
        with multiprocessing.get_context(method).Pool(2) as pool:
            done = pool.starmap(in_child, [(broker, source, f"{method}-{number}") for number in range(4)])
        assert done == [SHA256] * 4
        assert client.show("releases", "parent").sha256 == SHA256


def test_the_types_of_the_public_surface() -> None:
    """A type checker in strict mode knows what each verb, handle and query of both clients returns."""
    checked = Path(__file__).parent / "public_types.py"
    run = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file", "pyproject.toml", str(checked)],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout
