"""The rules of the message filter; Celery can handle every message that passes."""

import base64
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.app.trace import trace_task_ret
from celery.worker import state, strategy
from celery.worker.request import Request
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kombu.asynchronous.timer import Timer
from kombu.transport.virtual import Message

from tests.hostile_messages import HOSTILE, JOB, SECRET, encoded, envelope
from worker.intake.message_rules import Rules, check_message
from zot_artifact_client.build_requests import payload_of
from zot_artifact_client.contract import MAX_MESSAGE, QUERY_SHOW, UPLOAD, VERIFY, batch_stem
from zot_artifact_client.outgoing_messages import Outgoing
from zot_artifact_client.outgoing_messages import envelope as sent

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
RULES = Rules(frozenset({VERIFY.name}), max_time_limit=660.0, max_eta=3600.0)
FIELDS = {"bucket": "releases", "key": "app.tgz"}


def said(message: dict[str, Any]) -> str | None:
    refusal = check_message(json.dumps(message).encode(), RULES, NOW)
    return None if refusal is None else refusal.message


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_message_is_refused_with_its_reason_and_none_of_its_content(name):
    """Each is refused in one line that says why and repeats nothing of what was sent."""
    raw, reason = HOSTILE[name]
    refusal = check_message(raw, RULES, NOW)
    assert refusal is not None
    assert refusal.reason == reason
    assert SECRET not in repr(refusal)
    assert "\n" not in refusal.message


@pytest.mark.parametrize(
    "name",
    [
        "no content type",
        "two elements",
        "compressed",
        "version 1 with a callback",
        "a field of the request that is there twice",
    ],
)
def test_its_sender_can_be_told(name):
    """The id of a refused message is known wherever it can be read."""
    refusal = check_message(HOSTILE[name][0], RULES, NOW)
    assert refusal is not None
    assert refusal.id == JOB


def test_a_query_and_a_job_never_share_an_id():
    """A query passes under an id of its own form only, and a job under none of that form: no answer ends a job."""
    query = f"query-{'0' * 32}"
    rules = replace(RULES, tasks=frozenset({VERIFY.name, QUERY_SHOW.name}))

    def refused(id_: str, task: str) -> str | None:
        found = check_message(json.dumps(envelope(id_, FIELDS, task=task)).encode(), rules, NOW)
        return None if found is None else found.message

    assert refused(query, QUERY_SHOW.name) is None
    assert refused(JOB, VERIFY.name) is None
    assert "that of a query is" in str(refused(JOB, QUERY_SHOW.name))
    assert "only a query has" in str(refused(query, VERIFY.name))


def test_the_least_that_a_client_may_write_is_enough():
    """Headers `lang`, `task` and `id` are all that is needed, and the embedded options may be missing."""
    message = envelope(JOB, FIELDS)
    assert said(message) is None
    assert said(message | {"body": encoded([[], FIELDS, None])}) is None
    assert said(message | {"content-encoding": None}) is None


def test_what_the_transport_writes_may_be_missing():
    """Tags and routing of a message are the worker's to write; a client that gets them wrong is not refused."""
    message = envelope(JOB, FIELDS)
    message["properties"] = {"body_encoding": "base64"}
    assert said(message) is None


def test_the_first_version_of_the_protocol_is_understood():
    """A message that has everything in its body is read like the others."""
    body = {"task": VERIFY.name, "id": JOB, "args": [], "kwargs": FIELDS, "retries": 0, "eta": None, "utc": True}
    assert said(envelope(JOB, {}) | {"headers": {}, "body": encoded(body)}) is None


@pytest.mark.parametrize("protocol", [1, 2])
def test_what_celery_itself_sends_passes(protocol):
    """Every option of `send_task` that makes the worker send nothing more comes through."""
    app = Celery(set_as_current=False, broker="memory://")
    make = app.amqp.as_task_v1 if protocol == 1 else app.amqp.as_task_v2
    made = make(
        JOB, VERIFY.name, kwargs=FIELDS, countdown=30, expires=600, retries=3, time_limit=60, soft_time_limit=30,
        root_id="a-root", parent_id="a parent", group_id="a-group", shadow="seen.as",
    )  # fmt: skip
    message = envelope(JOB, {}) | {"headers": made.headers, "body": encoded(made.body)}
    message["properties"] |= made.properties
    refusal = check_message(json.dumps(message).encode(), RULES, datetime.now(UTC))
    assert refusal is None


def test_headers_of_strangers_pass():
    """Tracing and the like put headers of their own into messages."""
    message = envelope(JOB, FIELDS)
    message["headers"] |= {"traceparent": "00-ab-cd-01", "sentry-trace-headers": {"baggage": "a=b"}, "x-death": [{}]}
    assert said(message) is None


def test_a_message_may_wait_but_not_longer_than_redis_does():
    """A delay beyond the visibility timeout would be delivered again and again: it is rejected."""
    message = envelope(JOB, FIELDS)
    message["headers"]["eta"] = (NOW + timedelta(seconds=3599)).isoformat()
    assert said(message) is None
    message["headers"]["eta"] = (NOW + timedelta(seconds=3601)).isoformat()
    assert "3600 s ahead" in said(message)


def test_what_is_too_large_is_not_parsed():
    """The limit holds for the whole message and is checked first."""
    message = json.dumps(envelope(JOB, FIELDS)).encode()
    assert check_message(message.ljust(MAX_MESSAGE), RULES, NOW) is None
    refusal = check_message(b"x" * (MAX_MESSAGE + 1), RULES, NOW)
    assert refusal is not None
    assert (refusal.reason, str(MAX_MESSAGE) in refusal.message) == ("oversize", True)


@pytest.mark.parametrize("letter", ["x", "\N{GOTHIC LETTER HWAIR}"])
def test_the_largest_request_of_the_contract_fits(letter):
    """A request with the most and the longest of everything passes both ends, also with twelve bytes a letter."""
    names = [f"{number:02}".ljust(128, letter) for number in range(64)]
    fields = {
        "bucket": letter * 63, "key": letter * 1024, "source": letter * 4096, "sha256": "a" * 64, "stores": names,
        "metadata": {f"m{number}".ljust(64, "x"): letter * 512 for number in range(16)},
        "storage_classes": dict.fromkeys(names, letter * 64), "staged": True,
    }  # fmt: skip
    request = UPLOAD.request.read(fields)
    with Celery(set_as_current=False) as app:
        message = sent(app, Outgoing(UPLOAD.name, "j" * 128, "transfer", payload_of(UPLOAD, request)))
    assert check_message(message.encode(), Rules(frozenset({UPLOAD.name}), 660.0, 3600.0), NOW) is None


# Celery can handle whatever passes the filter


@pytest.fixture(scope="module")
def celery():
    app = Celery("filter", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.update(accept_content=["json"], task_acks_late=True, task_track_started=True, result_extended=True)
    app.finalize()  # which brings the worker's own tasks, if another test has imported them
    app.tasks.pop(VERIFY.name, None)

    @app.task(shared=False, lazy=False, name=VERIFY.name, bind=True, max_retries=None, throws=(KeyError,))
    def verify(task, *args, **kwargs):
        task.request.as_execution_options()
        task.signature_from_request(task.request, countdown=5, retries=task.request.retries + 1)
        raise KeyError("as jobs fail")

    yield app
    app.close()


def take(app: Celery, raw: bytes, ran: list[Request]) -> None:
    """Do with a message what Celery's consumer does, as far as its code in the main process and a child goes."""
    state.revoked.clear()  # an expired one would let all others with its id count as revoked
    with app.connection_for_read() as connection:
        message = Message(json.loads(raw), channel=connection.default_channel)
        message.delivery_info = {"exchange": "", "routing_key": "interactive"}
        message.accept = {"application/json"}
        taken: list[Request] = []
        task = app.tasks[VERIFY.name]
        handle = strategy.default(task, app, consumer_of(app, taken))
        payload = None if "task" in message.headers else message.decode()
        handle(message, payload, lambda *_: None, lambda *_: None, [])
        for request in taken:
            request.execute_using_pool(pool_of(app, ran))
        ran += taken


def consumer_of(app: Celery, taken: list[Request]) -> SimpleNamespace:
    return SimpleNamespace(
        hostname="filter", connection_errors=(OSError,), event_dispatcher=None, timer=Timer(),
        apply_eta_task=taken.append, disable_rate_limits=True, task_buckets={}, on_task_request=taken.append,
        _limit_task=None, _limit_post_eta=None, pool=pool_of(app, taken), qos=SimpleNamespace(increment_eventually=int),
        controller=SimpleNamespace(state=SimpleNamespace(revoked=set())),
    )  # fmt: skip


def pool_of(app: Celery, taken: list[Request]) -> SimpleNamespace:
    def apply_async(trace, args, **options):
        assert not options["timeout"] or options["timeout"] > 0
        failed, value, _ = trace_task_ret(*args, app=app)
        assert failed
        assert type(value.exception).__name__ == "KeyError", value
        pickleable = json.dumps(args[2], default=str)
        assert pickleable

    return SimpleNamespace(apply_async=apply_async)


WORDS = st.sampled_from(
    [JOB, VERIFY.name, "", "a\nb", "\ud800", "2026-11-22T12:00:00", "0001-01-01T00:00:00+23:59", "9999-12-31"]
)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
NAMES = st.sampled_from([
    "id", "task", "lang", "root_id", "parent_id", "group", "meth", "shadow", "eta", "expires", "retries", "timelimit",
    "argsrepr", "kwargsrepr", "origin", "ignore_result", "replaced_task_nesting", "stamped_headers", "stamps",
    "group_index", "compression", "utc", "callbacks", "errbacks", "chain", "chord", "taskset", "redelivered", "get",
    "update", "headers", "hostname", "delivery_info", "properties", "reply_to", "correlation_id", "called_directly",
    "is_eager", "args", "kwargs", "children", "loglevel", "groups", "time_limit", "traceparent", "__class__",
])  # fmt: skip
LIMITS = st.lists(st.none() | st.integers(-1, 700) | st.floats(), min_size=1, max_size=3)
TIMES = st.datetimes().map(datetime.isoformat) | st.datetimes().map(lambda at: at.isoformat() + "+23:59")
LIKELY = {
    "timelimit": LIMITS, "eta": TIMES, "expires": TIMES, "retries": st.integers(0, 10**7), "utc": st.booleans(),
    "group_index": st.integers(0), "ignore_result": st.booleans(), "stamps": st.just({}), "chain": st.just([]),
    "replaced_task_nesting": st.integers(0, 3), "redelivered": st.booleans(), "id": WORDS, "task": WORDS,
}  # fmt: skip
"""Values that are nearly right, or right, by header; for others, text."""


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """Draw good messages with some of their parts replaced by anything at all."""
    message = envelope(JOB, FIELDS)
    body: list[Any] | dict[str, Any] = [[], dict(FIELDS), {"callbacks": None, "chord": None}]
    changes = {
        name: draw(LIKELY.get(name, st.text(max_size=5)) if draw(st.integers(0, 4)) else PLAIN)
        for name in draw(st.lists(NAMES, max_size=3))
    }
    if draw(st.booleans()):
        message["headers"] |= changes
    else:
        body = {"task": VERIFY.name, "id": JOB, "kwargs": FIELDS} | changes
        message["headers"] = {}
    if draw(st.integers(0, 7)) == 0:
        body = draw(
            PLAIN | st.lists(PLAIN, min_size=3, max_size=3) | st.tuples(st.just([]), st.just(FIELDS), PLAIN).map(list)
        )
    message["body"] = encoded(body)
    if draw(st.integers(0, 7)) == 0:
        part = draw(st.sampled_from(["headers", "properties", "body", "content-type", "content-encoding"]))
        message[part] = draw(PLAIN)
    if draw(st.integers(0, 7)) == 0 and isinstance(message["properties"], dict):
        message["properties"][draw(st.sampled_from(["priority", "reply_to", "correlation_id", "body_encoding"]))] = (
            draw(PLAIN)
        )
    return json.dumps(message).encode()


def test_celery_handles_whatever_passes(celery):
    """No message that passes the filter makes Celery raise where it would stop the worker, or lose the task."""
    passed: list[Request] = []

    @settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(messages())
    def check(raw: bytes) -> None:
        if check_message(raw, Rules(RULES.tasks, 660.0, 1e12), NOW) is None:
            take(celery, raw, passed)

    check()
    assert len(passed) > 40, "too few of them pass for this to show anything"


@given(st.binary(max_size=300) | st.text(max_size=300).map(lambda text: text.encode(errors="surrogatepass")))
def test_no_bytes_make_the_filter_itself_fail(raw):
    """Whatever bytes are in the queue, the filter has an answer."""
    assert check_message(raw, RULES, NOW) is not None
    assert check_message(base64.b64encode(raw), RULES, NOW) is not None


def test_a_request_with_thousands_of_unknown_fields_is_rejected_in_a_short_line():
    """The line names the first fields and the number of the others; neither it nor Celery gets what they held."""
    fields = FIELDS | {f"f{n}": 0 for n in range(40_000)} | {"\x1b[31mred\nline": SECRET}
    message = said(envelope(JOB, fields))
    assert message is not None
    assert "f0: Extra inputs are not permitted" in message
    assert "and 39996 more" in message
    assert len(message) < 1001
    assert SECRET not in message
    assert message.isprintable()


def test_only_a_batch_sends_under_the_ids_of_its_jobs():
    """A stranger's `BATCH.00000003` is rejected; the batch's own message is accepted, also of a long id."""
    for batch in ("batch-1", "b" * 120):
        job = f"{batch_stem(batch)}.00000003"
        assert said(envelope(job, FIELDS)) is not None
        message = envelope(job, FIELDS)
        message["headers"]["parent_id"] = batch
        assert said(message) is None


def test_an_expired_message_is_rejected_before_celery_revokes_the_job_of_its_id():
    """Celery would store REVOKED under the id, which may be that of another job."""
    message = envelope(JOB, FIELDS)
    message["headers"]["expires"] = (NOW - timedelta(seconds=1)).isoformat()
    assert said(message) == "headers.expires: it has expired"
