"""What holds for the errors of every cloud: no row is out of reach, and an error is one line that can be pickled."""

import pickle
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import pytest

from tests.unit.storage.azure import test_azure_errors
from tests.unit.storage.gcs import test_gcs_errors
from tests.unit.storage.s3 import test_s3_errors
from worker.storage import errors
from worker.storage.azure import errors as azure
from worker.storage.cloud.error_mapping import ClassRow, Origin
from worker.storage.gcs import errors as gcs
from worker.storage.s3 import errors as s3

ORIGIN = Origin("primary", "https://store.example.com", "artifacts")


@dataclass(frozen=True)
class Table:
    """The errors of one cloud. `answer` makes an error of its SDK from a code, a status and a message."""

    classes: Sequence[ClassRow]
    codes: Collection[str]
    answer: Callable[[str, int, str], Exception]
    of_sdk: Callable[[Exception, Origin, str], errors.StorageError]

    def translate(self, code: str, status: int = 400, message: str = "") -> errors.StorageError:
        return self.of_sdk(self.answer(code, status, message), ORIGIN, "a/b")


TABLES = {
    "s3": Table(s3.CLASSES, s3.CODES, test_s3_errors.answer, s3.translate),
    "azure": Table(azure.CLASSES, azure.CODES, test_azure_errors.answer, azure.translate),
    "gcs": Table(
        gcs.CLASSES,
        gcs.REASONS,
        lambda code, status, message: test_gcs_errors.answer(int(code) if code.isdecimal() else status, code, message),
        gcs.translate,
    ),
}


@pytest.fixture(params=TABLES)
def table(request: pytest.FixtureRequest) -> Table:
    return TABLES[request.param]


def test_narrow_classes_come_first(table: Table) -> None:
    """No row of the table is unreachable because a wider class is before it."""
    seen: list[type[Exception]] = []
    for _, _, classes in table.classes:
        for found in classes:
            assert not any(issubclass(found, wider) for wider in seen), found
            seen.append(found)


def test_unknown_refusals_are_not_tried_again(table: Table) -> None:
    """What a store refuses for a reason that we do not know is permanent: asking again would be refused again."""
    refusals = (400, 401, 403, 404, 405, 409, 411, 412, 416)
    found = {status: table.translate("SomethingNew", status) for status in refusals}
    assert {status: error for status, error in found.items() if not isinstance(error, errors.PermanentError)} == {}


def test_messages_are_one_short_line(table: Table) -> None:
    """What a store says is quoted in one line, however much it says."""
    messages = [str(table.translate(code, message="no " * 500 + "\nno" * 500)) for code in table.codes]
    assert [message for message in messages if "\n" in message or len(message) >= 300] == []
    assert any("no no" in message for message in messages)


def test_what_an_operator_must_change_is_named(table: Table) -> None:
    """Jobs wait, or fail at once, until an operator has acted: each such message ends with what to do."""
    found = [table.translate(code) for code in table.codes]
    waiting = [each.message for each in found if isinstance(each, errors.AccessDenied)]
    classes = [reason for kind, reason, _ in table.classes if issubclass(kind, errors.AccessDenied)]
    assert [each for each in waiting + classes if "; " not in each] == []


def test_errors_survive_pickling(table: Table) -> None:
    """Every translated error crosses from a worker process as it is."""
    for code in table.codes:
        error = table.translate(code)
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again)) == (type(error), str(error))
