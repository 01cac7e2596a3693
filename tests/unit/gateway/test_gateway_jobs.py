"""Jobs over the gateway: enqueue, show, follow, cancel; each only with a token for its artifact."""

import asyncio
import json
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider
from pydantic import SecretStr

from tests.servers.proxy import Fault, FaultyProxy, Request, Reset, Say
from tests.unit.gateway.conftest import Gateway
from tests.waiting import WITHIN
from worker import clock
from worker.catalogue import Leased
from worker.gateway.access import TokenVerb
from worker.gateway.services import Services
from zot_artifact_client import ArtifactClient, AsyncArtifactClient
from zot_artifact_client.broker_urls import redis_client
from zot_artifact_client.contract import QUERY_SHOW, VERIFY, JobState, ShowRequest, VerifyRequest, VerifyResult
from zot_artifact_client.errors import ArtifactNotFound, GatewayUnavailable
from zot_artifact_client.gateway import Gateway as GatewayOfClient
from zot_artifact_client.job_ids import choose_id
from zot_artifact_client.outgoing_messages import Outgoing


@pytest.fixture
def gateway(gateway_with_broker: Gateway) -> Gateway:
    return gateway_with_broker


def work(gateway: Gateway, job: dict[str, Any], request: dict[str, Any], result: dict[str, Any] | None) -> None:
    """Do in the ledger what a worker does with a job: take it, and end it if there is a result."""
    ledger, now = gateway.context.catalogue.ledger, clock.now()
    begun = ledger.acquire(
        job["job"], job["kind"], request, owner="test", writes_to=None, parent=None, now=now,
        lease=gateway.settings.jobs.lease,
    )  # fmt: skip
    assert isinstance(begun, Leased)
    if result is not None:
        ledger.finish(job["job"], begun.record.fence, JobState.SUCCEEDED, result=result, error=None, now=now)


def waiting(gateway: Gateway, job_id: str) -> Outgoing | None:
    """Return a job that no worker has taken."""
    services = Services(gateway.settings)
    try:
        return services.waiting_job(job_id)
    finally:
        services.close()


def test_a_job_is_sent_shown_and_ends(gateway: Gateway) -> None:
    """POST answers 202 with the place of the job, which is queued since it was sent, and then has its result."""
    client, asked = gateway.client(), {"bucket": "releases", "key": "app.tgz"}
    sent = client.post("/v1/jobs/verify", json=asked)
    assert (sent.status_code, sent.json()["state"]) == (202, "queued")
    place = sent.headers["Location"]
    refused = {"type": "InvalidMessage", "message": "no"}
    gateway.context.catalogue.ledger.reject(sent.json()["job"], "verify", {}, refused, clock.now())  # it had that id
    queued = client.get(place).json()
    assert queued["state"] == "queued"
    times = [datetime.fromisoformat(each["created_at"]) for each in (sent.json(), queued)]
    assert abs(times[0] - times[1]) < timedelta(minutes=1)
    work(gateway, sent.json(), asked, {"copies": []})
    shown = client.get(place).json()
    assert (shown["state"], shown["result"]) == ("succeeded", {"copies": []})


def traceparent_of(gateway: Gateway, job: str) -> str | None:
    """Return the trace that the message of a job names."""
    with redis_client(gateway.settings.broker_url) as redis:
        headers = [json.loads(message)["headers"] for message in redis.lrange("interactive", 0, -1)]
    [found] = [each.get("traceparent") for each in headers if each["id"] == job]
    return found


@pytest.mark.parametrize("again", ["nonsense", f"00-{'0' * 32}-{'b' * 16}-01", None])
def test_a_job_is_part_of_the_trace_that_its_request_names(gateway: Gateway, again: str | None) -> None:
    """The message has the `traceparent` of the request; a text that is none, and a request without one, names none."""
    client, named = gateway.client(), f"00-{'a' * 32}-{'b' * 16}-01"
    for given, expected in ((named, named), (again, None)):
        headers = {} if given is None else {"traceparent": given}
        sent = client.post("/v1/jobs/verify", json={"bucket": "releases", "key": "app.tgz"}, headers=headers)
        assert (sent.status_code, traceparent_of(gateway, sent.json()["job"])) == (202, expected)


def test_a_client_over_http_continues_the_trace_of_its_service(gateway: Gateway) -> None:
    """A service that traces sees its job below its own span, whichever way the job was sent."""
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("a service")
    with (
        ArtifactClient(gateway=gateway.url, token=gateway.token()) as client,
        tracer.start_as_current_span("x") as span,
    ):
        job = client.verify("releases", "app.tgz")
    context = span.get_span_context()
    assert str(traceparent_of(gateway, job.id)).startswith(f"00-{context.trace_id:032x}-{context.span_id:016x}-")


def test_an_asynchronous_client_over_http_continues_the_trace_of_its_service(gateway: Gateway) -> None:
    """Its requests are sent by a thread, which has the span of the caller."""
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("a service")

    async def scene() -> tuple[str, int]:
        async with AsyncArtifactClient(gateway=gateway.url, token=gateway.token()) as client:
            with tracer.start_as_current_span("x") as span:
                job = await client.verify("releases", "app.tgz")
            return job.id, span.get_span_context().trace_id

    job_id, trace = asyncio.run(scene())
    assert str(traceparent_of(gateway, job_id)).startswith(f"00-{trace:032x}-")


AWAY = {
    "killed": Reset(),
    "restarted behind a proxy": Say(502, b"<html></html>", {"Content-Type": "text/html"}),
    "without its broker": Say(503, b'{"type": "urn:zot-artifacts:BrokerUnavailable", "detail": "no broker"}'),
}


@pytest.mark.parametrize("fault", AWAY.values(), ids=AWAY.keys())
@pytest.mark.parametrize("many", [False, True])
def test_a_wait_outlives_a_gateway_that_is_away(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, fault: Fault, *, many: bool
) -> None:
    """A gateway that was killed takes seconds to be back: a wait of a client that it has answered goes on meanwhile."""
    monkeypatch.setattr("zot_artifact_client.gateway._FIRST_PAUSE", 0.01)
    refused: list[str] = []

    def away(request: Request) -> Fault:
        if request.method == "GET" and len(refused) < 12:
            refused.append(request.path)
            return fault
        return None

    asked = VerifyRequest(bucket="releases", key="app.tgz")

    def end(id_: str) -> None:
        refused.clear()
        result = VerifyResult(bucket="releases", key="app.tgz", version=1, size=3, sha256="0" * 64, copies=())
        work(gateway, {"job": id_, "kind": "verify"}, asked.model_dump(mode="json"), result.model_dump(mode="json"))

    with FaultyProxy(httpx.URL(gateway.url).port or 0, away) as proxy:
        way: dict[str, Any] = {"gateway": f"http://127.0.0.1:{proxy.port}", "token": gateway.token()}
        with ArtifactClient(**way) as client:
            jobs = client.submit_many([asked])
            end(jobs[0].id)
            found = jobs.wait(WITHIN)[0] if many else jobs[0].wait(WITHIN)
            assert (found.copies, len(refused)) == ((), 12)

        async def scene() -> None:
            async with AsyncArtifactClient(**way) as client:
                jobs = await client.submit_many([asked])
                end(jobs[0].id)
                found = (await jobs.wait(WITHIN))[0] if many else await jobs[0].wait(WITHIN)
                assert (found.copies, len(refused)) == ((), 12)

        asyncio.run(scene())


def test_an_error_is_an_answer_of_a_gateway_that_is_back(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """The minute for which waits go on begins anew with each absence, also where the answer before it was a 404."""
    monkeypatch.setattr("zot_artifact_client.gateway._FIRST_PAUSE", 0.01)
    faults: list[Fault] = []
    with FaultyProxy(httpx.URL(gateway.url).port or 0, lambda _: faults.pop() if faults else None) as proxy:
        asked = GatewayOfClient(f"http://127.0.0.1:{proxy.port}", gateway.token())
        away: list[bool] = []
        for resets in (0, 5, 1):
            faults += [Reset()] * resets
            with pytest.raises(GatewayUnavailable if resets == 5 else ArtifactNotFound):
                asked.query(QUERY_SHOW, ShowRequest(bucket="releases", key="gone"))
            away.append(asked.is_away_briefly())
        assert away == [False, True, False]
        asked.close()


def test_a_wait_ends_when_the_gateway_stays_away(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a minute, or at the end of its own time, it raises what is wrong with the gateway."""
    monkeypatch.setattr("zot_artifact_client.gateway._FIRST_PAUSE", 0.01)
    with FaultyProxy(httpx.URL(gateway.url).port or 0, lambda each: Reset() if each.method == "GET" else None) as proxy:
        way: dict[str, Any] = {"gateway": f"http://127.0.0.1:{proxy.port}", "token": gateway.token()}
        with ArtifactClient(**way) as client:
            job = client.verify("releases", "app.tgz")
            with pytest.raises(GatewayUnavailable):
                job.wait(0.1)
            monkeypatch.setattr("zot_artifact_client.gateway._AWAY", 0.0)
            with pytest.raises(GatewayUnavailable):
                job.wait()


def test_a_job_tells_no_key_that_the_token_is_not_for(gateway: Gateway) -> None:
    """Companions under other prefixes are left out, also by `show`, and an error names no key that is like the other.

    A token for the whole bucket gets all of it.
    """
    for key in ("app/a.tgz", "app/a.json", "audit/a.json"):
        gateway.store(key, key.encode())
    for key in ("app/a.json", "audit/a.json"):
        gateway.context.catalogue.companions.add("releases", key, "app/a.tgz", by="ana", now=clock.now())
    some, all_ = gateway.client("releases/app/", name="some"), gateway.client("releases", name="all")
    asked = {"bucket": "releases", "key": "app/a.tgz"}
    done = some.post("/v1/jobs/verify", json=asked).json()
    named = [{"key": "app/a.json"}, {"key": "audit/a.json"}]
    work(gateway, done, asked, {"copies": [], "companions": named})
    place = f"/v1/jobs/{done['job']}"
    assert (some.get(place).json()["result"]["companions"], all_.get(place).json()["result"]["companions"]) == (
        named[:1], named,
    )  # fmt: skip
    assert "audit" not in some.get(f"{place}/events").text
    shown = [client.get("/v1/artifacts/releases/app/a.tgz").json()["companions"] for client in (some, all_)]
    assert shown == [["app/a.json"], ["app/a.json", "audit/a.json"]]
    gateway.context.catalogue.companions.add("releases", "app/b.json", "audit/a.tgz", by="ana", now=clock.now())
    gateway.store("app/b.json", b"b")
    gateway.store("audit/a.tgz", b"a")
    assert some.get("/v1/artifacts/releases/app/b.json").json()["companion_of"] is None
    for type_, message, expected in (
        ("NotFound", "releases/app/a is not in the catalogue; did you mean releases/apple?",
         "releases/app/a is not in the catalogue"),
        ("WrongCompanion", "app/a.json is a companion of audit/a", "it cannot be a companion of that artifact"),
    ):  # fmt: skip
        failed = some.post("/v1/jobs/verify", json=asked).json()
        begun = gateway.context.catalogue.ledger.acquire(
            failed["job"], "verify", asked, owner="test", writes_to=None, parent=None, now=clock.now(),
            lease=gateway.settings.jobs.lease,
        )  # fmt: skip
        assert isinstance(begun, Leased)
        gateway.context.catalogue.ledger.finish(
            failed["job"], begun.record.fence, JobState.FAILED, error={"type": type_, "message": message},
            now=clock.now(),
        )  # fmt: skip
        assert some.get(f"/v1/jobs/{failed['job']}").json()["error"]["message"] == expected


def test_the_same_idempotency_key_is_the_same_job(gateway: Gateway) -> None:
    """Once per token: another request with the key is 422, another token has keys of its own."""
    one, two = gateway.client(name="one"), gateway.client(name="two")
    asked, headers = {"bucket": "releases", "key": uuid4().hex}, {"Idempotency-Key": uuid4().hex}
    ids = [client.post("/v1/jobs/verify", json=asked, headers=headers).json()["job"] for client in (one, one, two)]
    assert ids[0] == ids[1] != ids[2]
    other = one.post("/v1/jobs/verify", json={**asked, "key": "b"}, headers=headers)
    assert (other.status_code, other.json()["type"]) == (422, "urn:zot-artifacts:IdempotencyMismatch")
    with redis_client(gateway.settings.broker_url) as redis:
        redis.flushdb()  # as a broker that was replaced
    work(gateway, {"job": ids[0], "kind": "verify"}, asked, {"copies": []})
    other = one.post("/v1/jobs/verify", json={**asked, "key": "b"}, headers=headers)
    assert (other.status_code, other.json()["type"]) == (422, "urn:zot-artifacts:IdempotencyMismatch")
    again = one.post("/v1/jobs/verify", json=asked, headers=headers).json()
    assert (again["job"], again["state"]) == (ids[0], "succeeded")


def test_events_tell_progress_and_end(gateway: Gateway) -> None:
    """The stream begins with the state now and ends with the end of the job."""
    client, asked = gateway.client(), {"bucket": "releases", "key": "app.tgz"}
    job = client.post("/v1/jobs/verify", json=asked).json()
    events = []
    with client.stream("GET", f"/v1/jobs/{job['job']}/events") as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line.startswith("event: progress"):
                work(gateway, job, asked, {"copies": []})
            if line.startswith("data: "):
                events.append(json.loads(line.removeprefix("data: "))["state"])
    assert (events[0], events[-1]) == ("queued", "succeeded")


def test_a_job_is_cancelled(gateway: Gateway) -> None:
    """A waiting job gets the request to cancel; one that has ended is 409."""
    client, asked = gateway.client(), {"bucket": "releases", "key": "app.tgz"}
    job = client.post("/v1/jobs/verify", json=asked).json()
    assert client.delete(f"/v1/jobs/{job['job']}").status_code == 202
    work(gateway, job, asked, {"copies": []})
    assert client.delete(f"/v1/jobs/{job['job']}").status_code == 409


@pytest.mark.parametrize("taken", [False, True])
def test_a_job_on_a_foreign_artifact_does_not_exist(gateway: Gateway, taken: bool) -> None:
    """Waiting or taken: it is shown, followed and cancelled as little as an unknown one."""
    asked = {"bucket": "other", "key": "app.tgz"}
    job = gateway.client("*", name="all").post("/v1/jobs/verify", json=asked).json()
    if taken:
        work(gateway, job, asked, None)
    client = gateway.client("releases")
    for id_ in (job["job"], str(uuid4())):
        answers = [
            client.get(f"/v1/jobs/{id_}"),
            client.get(f"/v1/jobs/{id_}/events"),
            client.delete(f"/v1/jobs/{id_}"),
        ]
        assert [answer.status_code for answer in answers] == [404] * 3
        assert len({answer.json()["detail"] for answer in answers}) == 1


def test_a_reader_sees_a_job_and_does_not_cancel_it(gateway: Gateway) -> None:
    """To cancel needs the verb of the job."""
    job = gateway.client(name="all").post("/v1/jobs/verify", json={"bucket": "releases", "key": "a"}).json()
    reader = gateway.client(verbs=(TokenVerb.READ,), name="reader")
    assert reader.get(f"/v1/jobs/{job['job']}").status_code == 200
    assert reader.delete(f"/v1/jobs/{job['job']}").status_code == 403
    other = gateway.client(verbs=(TokenVerb.DELETE,), name="other")
    assert other.get(f"/v1/jobs/{job['job']}").status_code == 404


def test_a_delete_is_recorded_under_the_name_of_the_token(gateway: Gateway) -> None:
    """Who deletes is not what the request says."""
    client = gateway.client(name="ci")
    asked = {"bucket": "releases", "key": "a", "by": "the chief"}
    job = client.post("/v1/jobs/delete", json=asked).json()
    sent = waiting(gateway, job["job"])
    assert sent is not None
    assert sent.payload["by"] == "ci"


def test_a_batch_that_deletes_is_requested_by_the_name_of_the_token(gateway: Gateway) -> None:
    """The person who approves it has to be another one, so the name is not what the request says."""
    client = gateway.client(name="ci")
    job = client.post(
        "/v1/jobs/batch", json={"verb": "delete", "bucket": "releases", "prefix": "x", "by": "eva"}
    ).json()
    sent = waiting(gateway, job["job"])
    assert sent is not None
    assert sent.payload["by"] == "ci"


@pytest.mark.parametrize(
    ("kind", "asked", "way_out"),
    [
        ("upload", {"bucket": "releases", "key": "a", "source": "/etc/passwd", "staged": True}, "/v1/uploads"),
        ("upload", {"bucket": "releases", "key": "../a", "source": "/x"}, "path segments"),
        ("batch", {"verb": "verify", "keys_from": "/etc/passwd"}, "bucket"),
        ("batch", {"verb": "upload", "bucket": "releases", "directory": "/etc"}, "bucket"),
        ("verify", {"bucket": "zot-quarantine", "key": "a"}, "reserved"),
    ],
)
def test_what_reaches_beyond_the_token_is_refused(
    gateway: Gateway, kind: str, asked: dict[str, Any], way_out: str
) -> None:
    """Staged files of others, files of the worker's machine, reserved buckets and path escapes are 400."""
    answer = gateway.client("*").post(f"/v1/jobs/{kind}", json=asked)
    assert (answer.status_code, way_out in answer.json()["detail"]) == (400, True), answer.text


@pytest.mark.parametrize("path", ["/v1/jobs/verify", "/v1/jobs/batch", "/v1/uploads"])
def test_a_body_that_names_a_field_twice_is_refused(gateway: Gateway, path: str) -> None:
    """The last value would count here, and the first one for a proxy that checks the body."""
    body = '{"bucket": "releases", "key": "a", "verb": "verify", "prefix": "a/", "key": "b", "prefix": "b/"}'
    answer = gateway.client("*").post(path, content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["detail"]) == (400, "body: key is there twice"), answer.text


def test_a_rotten_copy_that_a_download_met_is_verified(gateway: Gateway) -> None:
    """The finding is not silent: a job verifies that copy, once."""
    artifact = gateway.store("app.tgz", b"right")
    gateway.path("primary", "app.tgz").write_bytes(b"wrong")
    client = gateway.client()
    assert client.get("/v1/objects/releases/app.tgz").content == b"right"
    assert client.get("/v1/objects/releases/app.tgz").content == b"right"
    key = f"bad:{artifact.id}:primary:{clock.now():%Y-%m-%dT%H}"
    sent = waiting(gateway, choose_id(VERIFY, idempotency_key=key, service="gateway"))
    assert sent is not None
    assert sent.payload == {"bucket": "releases", "key": "app.tgz", "stores": ["primary"], "version": 1}


def test_without_a_broker_jobs_are_503_and_reads_go_on(settings: Any, open_gateway: Any) -> None:
    """The answer says what is missing, and when to try again."""
    with open_gateway(settings) as gateway:
        gateway.store("a", b"x")
        client: httpx.Client = gateway.client()
        answer = client.post("/v1/jobs/verify", json={"bucket": "releases", "key": "a"})
        assert (answer.status_code, "Retry-After" in answer.headers) == (503, True)
        assert client.get("/v1/objects/releases/a").content == b"x"


def test_a_broker_that_does_not_answer_is_503_within_seconds(settings: Any, open_gateway: Any) -> None:
    """To send, to show and to cancel a job say that the broker is away; the address is named without its password."""
    away = settings.model_copy(update={"broker": SecretStr("redis://:hidden@127.0.0.1:1/0")})
    with open_gateway(away) as gateway:
        client, job = gateway.client(), str(uuid4())
        answers = [
            client.post("/v1/jobs/verify", json={"bucket": "releases", "key": "a"}),
            client.get(f"/v1/jobs/{job}"),
            client.delete(f"/v1/jobs/{job}"),
        ]
        for answer in answers:
            assert (answer.status_code, answer.json()["type"]) == (503, "urn:zot-artifacts:BrokerUnavailable")
            assert "hidden" not in answer.text
