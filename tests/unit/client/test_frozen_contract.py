"""The wire contract of released versions, kept as files in tests/contract, is understood now and still sent.

A released file is never edited. What is new, a task, a field or a state, gets a new file: see tests/contract/README.md.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from worker.intake.message_rules import Rules, check_message
from zot_artifact_client import idempotency_conflicts, outgoing_messages
from zot_artifact_client.connection import celery_app
from zot_artifact_client.contract import CANCEL_KEY, QUERIES, TASKS, JobState, Message, batch_stem, is_batch_job
from zot_artifact_client.outgoing_messages import Outgoing, envelope
from zot_artifact_client.snapshot import snapshot_of

FOLDER = Path(__file__).resolve().parents[2] / "contract" / "v1"
FROZEN = {path.name: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
MODELS = {**TASKS, **QUERIES}
SAMPLES = [
    pytest.param(each["task"], role, sample, id=f"{name}-{role}-{number}")
    for name, each in FROZEN.items()
    for role in ("requests", "results")
    for number, sample in enumerate(each.get(role, ()))
]
MESSAGES = [each for frozen in FROZEN.values() for each in frozen.get("messages", ())]
RULES = Rules(frozenset(MODELS), max_time_limit=660.0, max_eta=3600.0)
ADD = "keep the released files of tests/contract/v1 as they are, and add one"
"""What to do about a difference; a change that no new file can describe needs a new version of the task."""
app = celery_app("redis://127.0.0.1:1/0")  # never connected


def model(task: str, role: str) -> type[Message]:
    spec = MODELS[task]
    found: type[Message] = spec.request if role == "requests" else spec.result
    return found


def places(value: object, above: str = "") -> Iterator[str]:
    """Yield the place of every field in a JSON object, such as `copies[].store`."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield f"{above}.{name}"
            yield from places(item, f"{above}.{name}")
    elif isinstance(value, list):
        for item in value:
            yield from places(item, f"{above}[]")


@pytest.mark.parametrize(("task", "role", "sample"), SAMPLES)
def test_a_frozen_message_is_read_and_sent_as_before(task: str, role: str, sample: dict[str, Any]) -> None:
    """Each released request and result is valid, and is sent with the same fields and values."""
    assert task in MODELS, f"{task} was released: it has to be accepted as long as old clients exist"
    read = model(task, role).read(sample)
    if role == "requests":
        assert read.payload() == sample, f"an old worker refuses unknown fields: {ADD}"
    else:
        assert read.model_dump(mode="json", exclude_unset=True) == sample, f"an old client misses a field: {ADD}"


def test_every_field_that_is_sent_is_frozen() -> None:
    """No task and no field is sent of which no file has an example."""
    assert {each["task"] for each in FROZEN.values() if "task" in each} == MODELS.keys(), ADD
    known, sent = defaultdict[tuple[str, str], set[str]](set), defaultdict[tuple[str, str], set[str]](set)
    for task, role, sample in (each.values for each in SAMPLES):
        known[task, role] |= set(places(sample))
        sent[task, role] |= set(places(model(task, role).read(sample).model_dump(mode="json")))
    new = {f"{task} {role}: {place}" for (task, role) in sent for place in sent[task, role] - known[task, role]}
    assert new == set(), f"these fields are new: {ADD} with an example of each"


def test_a_task_keeps_its_queue_and_kind() -> None:
    """A task waits in the queue, and has the kind, that old clients know."""
    for each in FROZEN.values():
        if "task" in each:
            assert (MODELS[each["task"]].kind, MODELS[each["task"]].queue) == (each["kind"], each["queue"])


@pytest.mark.parametrize("frozen", MESSAGES, ids=lambda each: each["job"])
def test_a_frozen_entry_of_the_outbox_is_accepted_and_made_as_before(frozen: dict[str, Any]) -> None:
    """A whole message of an old client is accepted; one of today has the same headers, properties and body."""
    old = frozen["message"]
    assert check_message(json.dumps(old).encode(), RULES, datetime.now(UTC)) is None
    job = Outgoing(frozen["task"], frozen["job"], frozen["queue"], frozen["payload"], parent=frozen["parent"])
    new = json.loads(envelope(app, job))
    assert set(places(new)) == set(places(old))
    assert new["body"] == old["body"]
    ours = {"id", "task", "parent_id", "root_id", "ignore_result", "argsrepr", "kwargsrepr", "retries", "lang"}
    assert {name: new["headers"][name] for name in ours} == {name: old["headers"][name] for name in ours}
    assert new["properties"]["delivery_info"] == old["properties"]["delivery_info"]


def test_the_names_in_redis_stay() -> None:
    """Clients and workers of two versions share the outbox, cancellations and the digests of requests."""
    frozen = FROZEN["messages.json"]
    assert frozen["keys"] == {
        "messages": outgoing_messages.MESSAGES,
        "order": outgoing_messages.ORDER,
        "cancel": CANCEL_KEY,
        "idempotency": idempotency_conflicts.DIGEST_KEY,
    }
    for each in frozen["digests"]:
        assert idempotency_conflicts.digest_of(each["kind"], each["payload"]) == each["digest"]


def test_states_stay() -> None:
    """The states of jobs, the records that Celery keeps of them and the ids of a batch's jobs are read as before."""
    frozen = FROZEN["states.json"]
    known = {name: ended for each in FROZEN.values() for name, ended in each.get("states", {}).items()}
    assert known == {state.value: state.terminal for state in JobState}, ADD
    for each in frozen["records"]:
        meta = app.backend.decode_result(json.dumps(each["record"]))
        assert snapshot_of("j-1", meta).state == each["state"], each
    for batch, job in frozen["batch_job_ids"].items():
        assert job.startswith(f"{batch_stem(batch)}.")
        assert is_batch_job(job, batch)
