"""What is wrong with a request, in one wording for the client, the command and the gateway."""

import pytest
from pydantic import ValidationError

from worker.cli.errors import Failure
from worker.cli.send_and_wait import request_of as command_request
from worker.intake.message_rules import problems_of
from zot_artifact_client import InvalidRequest
from zot_artifact_client.build_requests import request_of as client_request
from zot_artifact_client.contract import REPLICATE, UPLOAD, UploadRequest
from zot_artifact_client.request_faults import faults_of

FIELDS = {"bucket": "b", "key": "k", "source": "/in", "metadata": {"Hunter2": "v"}, "stores": ["dr", "dr"]}


def test_client_and_command_word_a_wrong_request_alike_and_without_its_values() -> None:
    """The client and the command say the same of wrong fields: the field and its rule, and no value of the caller."""
    with pytest.raises(InvalidRequest) as of_client:
        client_request(UPLOAD, **FIELDS)
    with pytest.raises(Failure) as of_command:
        command_request(UPLOAD, **FIELDS)
    said = str(of_client.value)
    assert said == str(of_command.value)
    assert said.startswith("upload: metadata: a name must be 1 to 64 of a-z")
    assert said.endswith("; stores: a store is named twice")
    assert "unter2" not in said


def test_positions_in_a_list_are_named_and_rules_are_in_words_of_json() -> None:
    """A wrong member of a list is named by its position; lists and objects are called what JSON calls them."""
    with pytest.raises(InvalidRequest, match=r"^replicate: to\[1\]: "):
        client_request(REPLICATE, bucket="b", key="k", to=["dr", ""])
    with pytest.raises(InvalidRequest, match=r"^replicate: to: Input should be a valid list$"):
        client_request(REPLICATE, bucket="b", key="k", to="dr")
    with pytest.raises(InvalidRequest, match=r"^upload: tags: Input should be a valid object$"):
        client_request(UPLOAD, bucket="b", key="k", source="/in", tags=["a"])


def test_a_digest_that_is_none_is_told_in_words() -> None:
    """The client and the worker say what a digest is, and show no regular expression."""
    with pytest.raises(InvalidRequest, match=r"^upload: sha256: must be 64 hexadecimal digits$"):
        client_request(UPLOAD, bucket="b", key="k", source="/in", sha256="abc")
    with pytest.raises(ValidationError) as caught:
        UploadRequest.read({"bucket": "b", "key": "k", "source": "/in", "sha256": "abc"})
    assert problems_of(caught.value) == "sha256: must be 64 hexadecimal digits"


def test_faults_of_all_fields_together_have_a_name() -> None:
    """A fault of no single field is one of the whole request or body, also where the error only has an offset."""
    at_offset = {"loc": (17,), "type": "json_invalid", "msg": "JSON decode error"}
    assert faults_of([at_offset], whole="body") == "body: JSON decode error"
    with pytest.raises(InvalidRequest, match=r"^upload: bucket: Field required; source: Field required$"):
        client_request(UPLOAD, key="k")


def test_the_worker_words_a_rule_as_the_client_does() -> None:
    """The reason that the worker records for a rejected message has the rule in the words of the client."""
    with pytest.raises(ValidationError) as caught:
        UploadRequest.read({**FIELDS, "metadata": {}})
    assert problems_of(caught.value) == "stores: a store is named twice"
