"""`deletes` lists what waits for a second person, and decides."""

import os
from datetime import timedelta

import pytest

from tests.unit.cli.test_status import Zot, catalogue, zot  # noqa: F401 - fixtures
from worker import clock
from worker.catalogue import ApprovalState, Catalogue, DeleteApproval
from worker.cli.user import origin, user_name

NO_USER = 3_999_999_999


def test_a_waiting_delete_is_listed_until_another_person_decides(
    catalogue: Catalogue,  # noqa: F811
    zot: Zot,  # noqa: F811
) -> None:
    """`deletes` and `status` end with 1 while one waits; who decided, from where and why is kept."""
    now = clock.now()
    wanted = DeleteApproval(
        "job-1", ApprovalState.ALLOWED, "releases/2019/ in all stores", 7, 70, "ana", "old", now,
        now + timedelta(days=1),
    )  # fmt: skip
    catalogue.delete_approvals.request(wanted, above=3, window=timedelta(hours=1))
    status, listed = zot("deletes")
    assert (status, listed["deletes"][0]["job"], listed["deletes"][0]["state"]) == (1, "job-1", "waiting")
    assert [each["kind"] for each in zot("findings")[1]["findings"]] == ["delete_waiting"]
    assert zot("deletes", "approve", "job-1", "--by", "ana")[0] == 2
    assert zot("deletes", "reject", "job-1", "--by", "eva", "--reason", "still needed")[0] == 0
    assert zot("deletes", "approve", "job-1", "--by", "ida")[0] == 2
    shown = zot("deletes", "show", "job")[1]["delete"]
    assert (shown["state"], shown["decided_by"], shown["note"]) == ("rejected", "eva", "still needed")
    assert shown["decided_from"] == origin()
    assert zot("deletes") == (0, {"deletes": []})
    assert zot("findings")[0] == 0


def test_who_decides_is_not_a_variable_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """`LOGNAME` changes the name that is given, and not where the decision came from; a uid without a name is named."""
    real = origin()
    monkeypatch.setenv("LOGNAME", "someone-else")
    assert (user_name(), origin()) == ("someone-else", real)
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: NO_USER)
    assert user_name() == f"uid {NO_USER}"
    assert origin().startswith(f"uid {NO_USER}@")
