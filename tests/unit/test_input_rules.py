"""No number is true, in messages and settings, and no list of settings or of stores names anything twice."""

from collections.abc import Iterator
from typing import Any, get_args, get_origin

import pytest
from pydantic import BaseModel, ValidationError

from worker.settings import Settings
from worker.settings.section_models import Section
from worker.storage.config import FilesystemConfig, GcsConfig
from zot_artifact_client.contract import BatchRequest
from zot_artifact_client.contract.requests import Message

ENTRIES = ("one", "/one", "one@example.org", "suspect", {"bucket": "one", "stores": ["one"]})
"""What the lists of settings and requests may have."""

PATTERNS = {"include", "exclude"}
"""The lists of requests that mean the same if they name something twice: released clients may send it."""


def models(*bases: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for base in bases:
        yield base
        yield from models(*base.__subclasses__())


def parts_of(annotation: Any) -> list[Any]:
    inner = [] if get_origin(annotation) is dict else get_args(annotation)
    return [annotation, *(part for each in inner for part in parts_of(each))]


def faults(model: type[BaseModel], field: str, value: object) -> list[str]:
    with pytest.raises(ValidationError) as refused:
        model.model_validate({field: value, "unknown": 1})
    return [each["msg"] for each in refused.value.errors() if field in each["loc"]]


def test_true_is_no_number():
    """Python takes it for 1: `max_attempts: true` gave each job one attempt."""
    numbers = [
        (model, name)
        for model in models(Message, Section, Settings, FilesystemConfig, GcsConfig)
        for name, field in model.model_fields.items()
        for kinds in [[part for part in parts_of(field.annotation) if isinstance(part, type)]]
        if bool not in kinds and any(issubclass(kind, int | float) for kind in kinds)
    ]
    assert {name for _, name in numbers} >= {"max_attempts", "suspect_percent", "in_flight", "chunks_from", "part_size"}
    assert [(model.__name__, name) for model, name in numbers if not faults(model, name, True)] == []


def test_no_list_names_anything_twice():
    """`placement: [primary, primary]` promised two copies and made one."""
    lists = [
        (model, name)
        for model in models(Section, Settings, GcsConfig, BatchRequest)
        for name, field in model.model_fields.items()
        if any(get_origin(part) is tuple for part in parts_of(field.annotation)) and name not in PATTERNS
    ]
    assert {name for _, name in lists} >= {"placement", "placement_rules", "roots", "off", "buckets", "to"}
    said = {
        (model.__name__, name): " ".join(fault for entry in ENTRIES for fault in faults(model, name, [entry, entry]))
        for model, name in lists
    }
    assert [field for field, faults in said.items() if "same as entry 1" not in faults and "twice" not in faults] == []


def test_a_request_may_name_a_pattern_twice():
    """Such requests were accepted, and some are in ledgers."""
    sent = {"verb": "upload", "bucket": "releases", "directory": "/in", "exclude": ["*.log", "*.log"]}
    assert BatchRequest.read(sent).exclude == ("*.log", "*.log")
