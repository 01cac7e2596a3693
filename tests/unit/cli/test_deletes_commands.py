"""`deletes` lists what waits for a second person, and decides."""

from datetime import timedelta

from tests.unit.cli.test_status import Zot, catalogue, zot  # noqa: F401 - fixtures
from worker import clock
from worker.catalogue import ApprovalState, Catalogue, DeleteApproval


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
    shown = zot("deletes", "show", "job-1")[1]["delete"]
    assert (shown["state"], shown["decided_by"], shown["note"]) == ("rejected", "eva", "still needed")
    assert "@" in shown["decided_from"]
    assert zot("deletes") == (0, {"deletes": []})
    assert zot("findings")[0] == 0
