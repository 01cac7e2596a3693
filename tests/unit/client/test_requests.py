"""The requests that a client refuses before it sends anything, and the messages that it sends."""

import ast
import copy
import pickle
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import zot_artifact_client
from zot_artifact_client import (
    ArtifactClient,
    Artifacts,
    AsyncArtifactClient,
    AsyncJob,
    AsyncJobs,
    ClientError,
    InvalidRequest,
    Jobs,
)
from zot_artifact_client.connection import without_credentials
from zot_artifact_client.contract import MAX_MESSAGE, TASKS, VERIFY, Queue, VerifyRequest
from zot_artifact_client.contract.queues import UNROUTED, queues
from zot_artifact_client.testing import InMemoryArtifactClient

Send = Callable[[Artifacts], object]


@pytest.fixture
def client() -> InMemoryArtifactClient:
    client = InMemoryArtifactClient()
    client.paused = True
    return client


@pytest.mark.parametrize(
    ("send", "said"),
    [
        (lambda c: c.upload("", "b", "k"), "upload: source: "),
        (lambda c: c.upload(5, "b", "k"), "upload: source: "),
        (lambda c: c.upload("/in", "b", "k", metadata=5), "upload: metadata: "),
        (lambda c: c.upload("/in", "b", "k", properties=5), "properties: a mapping of names to values is expected"),
        (lambda c: c.upload_dir("/in", "b", include=5), "batch: include: "),
        (lambda c: c.verify("b", "k", stores=5), "verify: stores: "),
        (lambda c: c.verify("b", "k", idempotency_key=5), "verify: idempotency_key is int, str is expected"),
        (lambda c: c.verify("b", "k", idempotency_key=b"k"), "verify: idempotency_key is bytes, str is expected"),
        (
            lambda c: c.submit_many([VerifyRequest(bucket="b", key="k")], idempotency_key=5),
            "verify: idempotency_key is int",
        ),
        (lambda c: c.submit("verify", VerifyRequest(bucket="b", key="k")), "spec: a task such as contract.UPLOAD"),
        (lambda c: c.submit(VERIFY, {"bucket": "b", "key": "k"}), "verify: request: VerifyRequest is expected"),
        (lambda c: c.upload("/in", "", "k"), "upload: bucket: "),
        (lambda c: c.upload("/in", "b", "k" * 1025), "upload: key: "),
        (lambda c: c.upload("/in", "b", "k", sha256="zz-hunter2"), "upload: sha256: "),
        (lambda c: c.upload("/in", "b", "k", metadata={"Hunter2": "v"}), "upload: metadata: "),
        (lambda c: c.upload("https://u:hunter2@host/f", "b", "k"), "upload: source: a URL with a user or password"),
        (lambda c: c.upload("https://host/f?X-Amz-Signature=hunter2", "b", "k"), "upload: source: a URL with"),
        (lambda c: c.replicate("b", "k", to=[]), "replicate: to: "),
        (lambda c: c.verify("b", "k", stores=[" "]), "verify: stores[0]: no store can have this name"),
        (lambda c: c.verify("b", "k", stores=[""]), "verify: stores[0]: String should have at least 1 character"),
        (lambda c: c.delete("b", "k", stores=["primary,dr"]), "delete: stores[0]: no store can have this name"),
        (lambda c: c.upload("/a", "b", "k", stores=["dr\n"]), "upload: stores[0]: no store can have this name"),
        (lambda c: c.replicate("b", "k", to=["dr "]), "replicate: to[0]: no store can have this name"),
        (lambda c: c.replicate("b", "k", to=["dr", "dr"]), "replicate: to: a store is named twice"),
        (lambda c: c.verify("b", "k", notify=["ci", "ci"]), "verify: notify: a webhook is named twice"),
        (lambda c: c.replicate("b", "k", to=["dr", ""]), "replicate: to[1]: "),
        (lambda c: c.verify("b", "k", version=0), "verify: version: "),
        (lambda c: c.verify("b", "k", idempotency_key=""), "verify: idempotency_key is empty"),
        (lambda c: c.adopt("b", "k", store=""), "adopt: store: "),
        (lambda c: c.sweep_verify(""), "sweep.verify: store: "),
        (lambda c: c.batch("purge", "b"), "batch: verb: "),
        (lambda c: c.batch("verify"), "batch: request: give either bucket or keys_from"),
        (lambda c: c.batch("verify", "b", keys_from="/in/list"), "batch: request: give either bucket or keys_from"),
        (lambda c: c.batch("verify", prefix="p", keys_from="/in/list"), "batch: request: prefix goes with bucket"),
        (lambda c: c.batch("verify", keys_from="https://hunter2/list"), "batch: keys_from: a file is expected"),
        (lambda c: c.batch("replicate", "b"), "batch: request: to goes with replicate"),
        (lambda c: c.batch("verify", "b", to="dr"), "batch: request: to goes with replicate"),
        (lambda c: c.batch("replicate", "b", to="dr", stores="dr"), "batch: request: stores goes with verify"),
        (lambda c: c.batch("delete", "b", "p", allow_last=True), "batch: request: allow_last goes with delete"),
        (lambda c: c.batch("delete", "b"), "batch: request: to delete from a whole bucket, say everything"),
        (lambda c: c.batch("delete", "b", stores="dr"), "batch: request: to delete from a whole bucket"),
        (lambda c: c.batch("delete", "b", "p", everything=True), "batch: request: everything goes with delete"),
        (lambda c: c.batch("verify", "b", in_flight=0), "batch: in_flight: "),
        (lambda c: c.batch("adopt", "b"), "batch: request: adopt takes stores"),
        (lambda c: c.batch("adopt", "b", stores=["dr", "cold"]), "batch: request: adopt takes stores"),
        (lambda c: c.batch("verify", "b", first_read=True), "batch: request: first_read goes with adopt"),
        (lambda c: c.upload_dir("/in", "b", tags={"aws:x": ""}), "batch: tags: the names of tags that begin with aws:"),
        (lambda c: c.upload_dir("/in", "b", properties={"source": "x"}), "properties: 'source' is none: there are"),
        (lambda c: c.upload_dir("/in", "b", storage_classes={"s": "X"}), "batch: request: storage_classes goes with"),
        (lambda c: c.upload("/in", "b", "k", properties={"bucket": "x"}), "properties: 'bucket' is none: there are"),
        (lambda c: c.submit_many(["hunter2"]), "requests[0]: a str is no request"),
        (lambda c: c.submit_many([VerifyRequest(bucket="b", key="k")], idempotency_key=""), "verify: idempotency_key"),
        (lambda c: c.job("../hunter2"), "job_id: "),
        (lambda c: c.job("id", "upl0ad-hunter2"), "kind: there are upload, "),
    ],
)
def test_a_bad_request_is_refused_in_one_line(client: InMemoryArtifactClient, send: Send, said: str) -> None:
    """What the worker would not accept is InvalidRequest, which names the field and the rule and never the value."""
    with pytest.raises(InvalidRequest) as caught:
        send(client)
    message = str(caught.value)
    assert message.startswith(said)
    assert "\n" not in message
    assert "hunter2" not in message.lower()
    assert not client.submitted


def test_a_list_of_requests_sent_again_under_its_key_is_the_same_jobs(client: InMemoryArtifactClient) -> None:
    """Each request has an id of its own, and the same one when the same list is sent again; without a key, another."""
    requests = [VerifyRequest(bucket="b", key=f"k{n}") for n in range(3)]
    first = client.submit_many(iter(requests), idempotency_key="nightly")
    assert [job.id for job in client.submit_many(requests, idempotency_key="nightly")] == [job.id for job in first]
    assert len({job.id for job in first}) == len(client.submitted) == 3
    assert {job.kind for job in first} == {"verify"}
    assert not {job.id for job in client.submit_many(requests)} & {job.id for job in first}


def test_every_fault_is_named_at_once(client: InMemoryArtifactClient) -> None:
    """Two wrong fields are one error that names both."""
    with pytest.raises(InvalidRequest, match=r"bucket: .*; key: "):
        client.verify("", "")


def test_one_store_may_be_a_bare_name(client: InMemoryArtifactClient) -> None:
    """A single store is one name, not its letters."""
    client.replicate("b", "k", to="dr")
    client.verify("b", "k", stores=iter(["primary"]))
    assert [request.payload() for request in client.submitted] == [
        {"bucket": "b", "key": "k", "to": ["dr"]},
        {"bucket": "b", "key": "k", "stores": ["primary"]},
    ]


def test_what_is_not_said_is_not_sent(client: InMemoryArtifactClient) -> None:
    """A request leaves its defaults out, so that an older worker understands it."""
    client.upload(Path("/in"), "b", "k")
    client.delete("b", "k")
    client.adopt("b", "k", store="dr")
    client.sweep_verify()
    assert [request.payload() for request in client.submitted] == [
        {"bucket": "b", "key": "k", "source": "/in"},
        {"bucket": "b", "key": "k"},
        {"bucket": "b", "key": "k", "store": "dr"},
        {},
    ]


def test_what_is_too_large_is_refused_at_both_clients(client: InMemoryArtifactClient) -> None:
    """A message larger than a worker takes in is refused before it is sent, with its size and the limit."""
    request = VERIFY.request.model_construct(bucket="b", key="k" * MAX_MESSAGE)
    with ArtifactClient("redis://127.0.0.1:1/0") as real:
        for each in (client, real):
            with pytest.raises(InvalidRequest, match=rf"have \d{{7}} bytes, at most {MAX_MESSAGE} are"):
                each.submit(VERIFY, request)
    assert not client.submitted


def test_an_upper_case_digest_is_accepted(client: InMemoryArtifactClient) -> None:
    """A SHA-256 in upper case is the same digest, and is sent in lower case."""
    client.upload("/in", "b", "k", sha256="A" * 64)
    assert client.submitted[0].sha256 == "a" * 64


def test_ids_come_from_the_caller_or_from_the_key(client: InMemoryArtifactClient) -> None:
    """A job's id is a new UUID, or the same for the same kind and key, or the caller's."""
    spec, request = TASKS["artifact.verify.v1"], TASKS["artifact.verify.v1"].request(bucket="b", key="k")
    assert client.verify("b", "k") != client.verify("b", "k")
    assert client.verify("b", "k", idempotency_key="x") == client.verify("b", "k", idempotency_key="x")
    assert uuid.UUID(client.delete("b", "k", idempotency_key="x").id).version == 5
    assert client.submit(spec, request, job_id="mine-1").id == "mine-1"
    with pytest.raises(InvalidRequest, match="not both"):
        client.submit(spec, request, job_id="mine-2", idempotency_key="x")


def test_an_id_of_a_key_never_changes() -> None:
    """A key sent by an older release of the client is still the same job."""
    job = InMemoryArtifactClient(sources={"/in": b""}).upload("/in", "b", "k", idempotency_key="build-17")
    assert job.id == "58e6706a-df41-547e-87f5-826151c30496"


def test_a_closed_client_says_so() -> None:
    """A client that was closed refuses to send, naming its broker without credentials."""
    client = ArtifactClient("redis://:hunter2@127.0.0.1:1/0")
    client.close()
    with pytest.raises(ClientError, match=r"redis://127\.0\.0\.1:1/0 is closed"):
        client.verify("b", "k")


@pytest.mark.parametrize("arguments", [("amqp://u:hunter2@h//",), ("redis://h", "nonsense://u:hunter2@h/")])
def test_a_place_that_keeps_no_results_is_told_at_once(arguments: tuple[str, ...]) -> None:
    """A broker or backend that cannot keep results is refused where the client is made, with the way out."""
    with pytest.raises(ClientError, match="result_url") as caught:
        ArtifactClient(*arguments)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "bare"),
    [
        ("redis://h:1/0", "redis://h:1/0"),
        ("rediss://u:p@h:1/0?ssl_cert_reqs=required", "rediss://h:1/0"),
        ("redis://:a/b#c@d?e@h:1/0", "redis://h:1/0"),
        ("redis+socket:///run/valkey.sock?virtual_host=0&password=p", "redis+socket:///run/valkey.sock"),
        ("sentinel://:p@a:1;sentinel://:p@b:2", "sentinel://a:1;sentinel://b:2"),
    ],
)
def test_an_address_is_shown_without_credentials(url: str, bare: str) -> None:
    """An address in an error is scheme, host, port and path, however the password is written."""
    assert without_credentials(url) == bare


def test_every_task_has_its_queue() -> None:
    """Each task waits in a declared queue whose exchange and routing key have its name, as Celery makes them up."""
    declared = {queue.name: queue for queue in queues()}
    assert set(declared) == set(Queue) == {spec.queue for spec in TASKS.values()}
    for name, queue in declared.items():
        assert (queue.exchange.name, queue.exchange.type, queue.routing_key) == (name, "direct", name)
    assert [queue.name for queue in queues(unrouted=True)].count(UNROUTED) == 1


def test_the_client_imports_nothing_of_the_worker() -> None:
    """Importing all of the client loads none of the worker's packages, which other services do not have."""
    source = Path(zot_artifact_client.__file__).parents[1]
    program = (
        "import sys, zot_artifact_client.testing, zot_artifact_client.contract.queues as r;"
        "print([m for m in sys.modules if m.partition('.')[0] in {'worker', 'tasks'}])"
    )
    run = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    )
    assert run.stdout.strip() == "[]"
    read_by_checkers = {
        (node.module, alias.name)
        for node in ast.walk(ast.parse(Path(zot_artifact_client.__file__).read_text()))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("zot_artifact_client.")
        for alias in node.names
    }
    imported = {(f"zot_artifact_client.{module}", name) for name, module in zot_artifact_client._MODULES.items()}
    assert read_by_checkers == imported
    assert all(hasattr(zot_artifact_client, name) for name in zot_artifact_client.__all__)


def test_the_id_of_a_job_may_come_from_a_uuid_column(client):
    """A UUID is its text; what is no id at all is an error of the client and not one of Python."""
    job = client.verify("releases", "app.tgz")
    assert client.job(uuid.UUID(job.id), "verify").id == job.id
    for wrong in (None, 5, b"5f0a", "a b", ""):
        with pytest.raises(InvalidRequest, match="job_id: "):
            client.job(wrong, "verify")


def test_a_set_of_stores_is_the_same_request_in_every_process():
    """The order of a set is another one in each process, and with an idempotency key another request."""
    program = (
        "from zot_artifact_client.testing import InMemoryArtifactClient as C\n"
        "from zot_artifact_client.build_requests import _names\n"
        "print(_names({'primary', 'dr', 'cloud', 'archive'}))"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, check=True, capture_output=True, text=True
        ).stdout
        for seed in "012"
    }
    assert said == {"('archive', 'cloud', 'dr', 'primary')\n"}


@pytest.mark.parametrize(
    "made",
    [
        lambda: ArtifactClient("redis://:hunter2@127.0.0.1:1/0"),
        lambda: ArtifactClient(gateway="http://127.0.0.1:1", token="hunter2"),
        lambda: AsyncArtifactClient("redis://:hunter2@127.0.0.1:1/0"),
        InMemoryArtifactClient,
    ],
)
def test_a_job_is_copied_and_not_pickled(made: Callable[[], Any]) -> None:
    """A copy is the same handle. A pickle would need the connections and the password: the error names the way out."""
    job = made().job("job-1", "upload")
    jobs = (AsyncJobs if isinstance(job, AsyncJob) else Jobs)([job], results=job.results)
    assert copy.copy(job) is copy.deepcopy(job) is job
    assert copy.copy(jobs) == copy.deepcopy(jobs) == jobs
    for each in (job, jobs, {"job": job}):
        with pytest.raises(TypeError, match=r"client\.job\(id, kind\)"):
            pickle.dumps(each)
