"""Parsers of what comes from outside end with a result or with their own error, whatever the input; see `make fuzz`."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from worker import clock
from worker.flower.tasks import arguments
from worker.intake.message_rules import Rejection, Rules, check_message
from worker.settings.loading import load_settings
from worker.settings.model import Settings, SettingsError
from worker.storage.errors import InvalidKey
from worker.storage.keys import check_key
from zot_artifact_client.contract import TASKS

ROUNDS = settings(
    max_examples=int(os.environ.get("ZOT_TEST_FUZZ_EXAMPLES", "50")), deadline=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
RULES = Rules(frozenset(TASKS), 3600.0, 7200.0)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=20,
)
NAMES = st.sampled_from(["bucket", "key", "source", "stores", "sha256", "metadata", "schema_version"])


@ROUNDS
@given(st.binary(max_size=500) | JSON.map(lambda value: json.dumps(value).encode()))
def test_a_message_is_taken_or_rejected(raw: bytes) -> None:
    """No message makes the filter raise: it is accepted, or rejected with its reason."""
    found = check_message(raw, RULES, clock.now())
    assert found is None or isinstance(found, Rejection)


@ROUNDS
@given(st.sampled_from(sorted(TASKS)), st.dictionaries(NAMES | st.text(max_size=12), JSON, max_size=6))
def test_a_request_is_read_or_invalid(name: str, payload: dict[str, object]) -> None:
    """Arguments of any form make a request or a ValidationError, and a request writes what it reads."""
    try:
        request = TASKS[name].request.model_validate(payload)
    except ValidationError:
        return
    assert TASKS[name].request.read(request.payload()) == request


@ROUNDS
@given(st.text(max_size=1100))
def test_a_key_is_safe_or_refused(key: str) -> None:
    """A key that is accepted stays inside its bucket."""
    try:
        check_key("releases", key)
    except InvalidKey:
        return
    assert not key.startswith("/")
    assert ".." not in key.split("/")
    assert key.encode()


@ROUNDS
@given(value=st.text(max_size=300) | JSON.map(json.dumps))
def test_a_configuration_file_is_read_or_refused(value: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A file of any content makes settings or a SettingsError."""
    path: Path = tmp_path_factory.mktemp("fuzz", numbered=True) / "settings.yaml"
    path.write_text(value, encoding="utf-8", errors="replace")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOT_CONFIG", str(path))
        try:
            found: object = load_settings()
        except SettingsError as error:
            found = str(error)
    assert found
    assert isinstance(found, Settings | str)


@ROUNDS
@given(st.text(max_size=400))
def test_arguments_of_an_event_are_shown_in_bounds(shown: str) -> None:
    """Whatever an event says of a task, Flower shows a short text."""
    assert len(arguments(shown)) < 1000
