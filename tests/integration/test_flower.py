"""Flower as operators start it: with the worker's application, a real broker, and forged events."""

import re
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from celery import Celery
from flower.urls import handlers
from redis import Redis
from tornado.web import URLSpec

from tests.conformance.targets import NO_AUTHORITIES
from tests.servers import Valkey
from tests.servers.process import REPOSITORY
from tests.servers.worker import Worker
from tests.waiting import WITHIN, until
from zot_artifact_client import ArtifactClient

MARKUP = "<script>alert(1)</script>"
PAGES = (
    "/", "/workers", "/tasks", "/broker", "/api/workers", "/api/tasks", "/api/queues/length", "/api/task/types",
    "/metrics", "/healthcheck", "/static/css/flower.css", "/login", "/nowhere", "/task/x", "/tasks/datatable",
)  # fmt: skip


@pytest.fixture
def url(valkey: Valkey) -> str:
    valkey.empty()
    return valkey.url


def started(url: str, directory: Path, *options: str, **more: object) -> "subprocess.Popen[str]":
    command = (sys.executable, "-m", "celery", "-A", "worker.app", "flower", "--address=127.0.0.1", *options)
    environment = {"ZOT_HOME": str(directory / "home"), "ZOT_BROKER": url, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(command, env=environment, cwd=directory, text=True, **more)


class Flower(Worker):
    """Flower of the worker's application, by default with a password."""

    name = "flower"
    authentication: Sequence[str] = ("--basic-auth=a:b",)
    more: Mapping[str, str] = {}

    def command(self) -> Sequence[str]:
        options = ("--address=127.0.0.1", f"--port={self.port}", *self.authentication)
        return (sys.executable, "-m", "celery", "-A", "worker.app", "flower", *options)

    def environment(self) -> Mapping[str, str]:
        return super().environment() | self.more

    def probe(self) -> None:
        try:
            httpx.get(f"http://127.0.0.1:{self.port}/healthcheck", verify=NO_AUTHORITIES)
        except httpx.TransportError as error:
            raise ConnectionError(str(error)) from error


@contextmanager
def flower(url: str, directory: Path) -> Iterator[httpx.Client]:
    with (
        Flower(directory, url) as server,
        httpx.Client(base_url=f"http://127.0.0.1:{server.port}", trust_env=False, timeout=WITHIN) as web,
    ):
        yield web
        server.stop()  # it keeps its tasks at an orderly end


def test_flower_without_authentication_does_not_start(url, tmp_path):
    """The command ends at once, with one line that names the way out."""
    process = started(url, tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    said, complained = process.communicate(timeout=WITHIN)
    assert process.returncode != 0
    assert "FLOWER_BASIC_AUTH" in complained
    assert (said + complained).strip().count("\n") == 0


def test_no_page_without_the_password_and_no_forged_event_breaks_one(url, tmp_path):
    """Every route answers 401 without the password; huge, mistyped and HTML events are escaped and stop no page."""
    with flower(url, tmp_path) as web:
        assert {page: web.get(page).status_code for page in PAGES} == dict.fromkeys(PAGES, 401)
        assert web.post("/api/task/revoke/x").status_code == 401
        web.auth = httpx.BasicAuth("a", "b")
        with ArtifactClient(url) as client:
            client.verify("releases", "waits.tgz")
        assert ready(web) == {"interactive": "1", "sweep": "0", "transfer": "0"}
        forge(url)
        until(lambda: b"seen-last" in web.get("/api/tasks", params={"limit": 100}).content)
        with Worker(tmp_path / "worker", url, concurrency=1), ArtifactClient(url) as client:
            with Celery(broker=url, set_as_current=False) as app:  # as Flower does every five seconds
                until(lambda: app.control.broadcast("enable_events", reply=True))
            job = client.verify("releases", "absent.tgz")
            until(lambda: web.get(f"/api/task/info/{job.id}").is_success)
            until(lambda: web.get(f"/api/task/info/{job.id}").json()["state"] == "FAILURE")
        for page in ("/workers", "/tasks", "/task/seen-last", "/api/tasks"):
            answer = web.get(page)
            assert answer.status_code == 200, page
            assert len(answer.content) < 2 << 20, page
            if not page.startswith("/api"):
                assert MARKUP not in answer.text, page


class FlowerWithoutUsers(Flower):
    """Flower with a kind of authentication that names no user, and an API that asks for none."""

    authentication = ("--auth_provider=flower.views.auth.GithubLoginHandler",)
    more: Mapping[str, str] = {"FLOWER_UNAUTHENTICATED_API": "true"}


def paths() -> list[str]:
    """Return a path of each of Flower's routes."""
    patterns = [each.regex.pattern if isinstance(each, URLSpec) else each[0] for each in handlers]
    return [
        re.sub(r"\(\..\)", "x", pattern).rstrip("$").replace("/?", "").replace(".*", "/nowhere") for pattern in patterns
    ]


@pytest.mark.parametrize("kind", [Flower, FlowerWithoutUsers])
def test_every_route_asks_for_the_password(kind, url, tmp_path):
    """Each route answers 401 to each method without the right password, whatever is in its place."""
    wrong = [None, "Basic !!!", "Bearer a", *map(basic, ("a", ":", "a:", "a:bc", "a:b\0", "é:b", "a:" + "b" * 30_000))]
    with (
        kind(tmp_path, url) as server,
        httpx.Client(base_url=f"http://127.0.0.1:{server.port}", trust_env=False) as web,
    ):
        answers = {
            (method, path, given and given[:20]): web.request(
                method, path, headers={"Authorization": given} if given else {}
            )
            for method in ("GET", "POST", "OPTIONS")
            for path in paths()
            for given in wrong
        }
        assert {asked: answer.status_code for asked, answer in answers.items() if answer.status_code != 401} == {}
        assert not [asked for asked, answer in answers.items() if "Traceback" in answer.text]
    with Redis.from_url(url) as client:
        assert not client.llen("interactive")  # no route sent a task


def basic(user: str) -> str:
    return f"Basic {b64encode(user.encode()).decode()}"


def ready(web: httpx.Client) -> dict[str, str]:
    """Return the messages that wait in each queue, as the page of the broker shows them, also a narrow one."""
    rows = re.findall(r'<tr id="(\w+)">(.*?)</tr>', web.get("/broker").text, re.DOTALL)
    return {queue: re.findall(r"<td>(.*?)</td>", cells)[1] for queue, cells in rows if queue != "celery"}


def forge(url: str) -> None:
    """Send events as a program with access to the broker can."""
    with Celery(broker=url, set_as_current=False) as app, app.connection_for_write() as connection:
        for hostname in (MARKUP, "x" * 100_000, "plain"):
            with app.events.Dispatcher(connection, hostname=hostname) as events:
                events.send("worker-heartbeat", freq=2, active="many", processed=MARKUP, loadavg=[MARKUP, None])
                events.send("worker-online", sw_ident=MARKUP, sw_sys={"a": 1})
                events.send("task-received", uuid="huge", name="n" * 100_000, args="a" * 500_000, kwargs="{}")
                events.send("task-received", uuid="typed", name=17, args=[1], kwargs={"a": 1}, eta=[], retries="x")
                events.send("task-succeeded", uuid="typed", result={"a": MARKUP}, runtime="long")
                events.send("task-received", uuid="seen-last", name="task", args=MARKUP, kwargs=MARKUP, retries=0)


def rows(web: httpx.Client, search: str = "") -> dict[str, dict[str, object]]:
    """Return the rows of the page of tasks by uuid, as the browser asks for them, also with a filter."""
    order = {"order[0][column]": 0, "order[0][dir]": "desc", "columns[0][data]": "name"}
    asked = {"draw": 1, "start": 0, "length": 100, "search[value]": search, **order}
    return {row["uuid"]: row for row in web.get("/tasks/datatable", params=asked).json()["data"]}


def test_the_page_of_tasks_tells_artifact_and_verdict_and_keeps_them(url, tmp_path):
    """A corrupt verdict is no SUCCESS and is found as Failed, each row names its artifact, also after a restart."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "a").write_bytes(b"12345")
    with (
        ArtifactClient(url) as client,
        Worker(tmp_path / "worker", url, concurrency=1, sources__roots=f'["{source}"]') as worker,
    ):
        with flower(url, tmp_path) as web:
            web.auth = httpx.BasicAuth("a", "b")
            with Celery(broker=url, set_as_current=False) as app:
                until(lambda: app.control.broadcast("enable_events", reply=True))
            client.upload(str(source / "a"), "releases", "a.tgz").wait(timeout=WITHIN)
            [copy] = worker.home.glob("stores/dr/releases/a.tgz")
            copy.write_bytes(b"54321")
            job = client.verify("releases", "a.tgz")
            job.wait(timeout=WITHIN)
            until(lambda: rows(web).get(job.id, {}).get("state") == "CORRUPT")
            shown = rows(web)[job.id]
            assert (shown["name"], shown["kwargs"]) == ("verify", "releases/a.tgz")
            assert set(str(shown["result"]).split(", ")) == {"dr corrupt", "primary verified"}
            assert "dr corrupt" in web.get(f"/task/{job.id}").text
            assert list(rows(web, "state:FAILURE")) == list(rows(web, "state:CORRUPT")) == [job.id]
            assert job.id not in rows(web, "state:SUCCESS")
            assert list(web.get("/api/tasks", params={"state": "FAILURE"}).json()) == [job.id]
        with flower(url, tmp_path) as web:
            web.auth = httpx.BasicAuth("a", "b")
            assert rows(web, "state:FAILURE")[job.id]["state"] == "CORRUPT"
