"""The verify sweep reads no more of a store than its budget allows, and tells that it is not enough."""

import uuid
from contextlib import suppress
from datetime import timedelta
from itertools import count

import pytest
import sqlalchemy as sa
from pydantic import ByteSize

from tasks.pages.verify import claim_copies
from tests.integration.tasks.sweeps.test_verify_sweep import Sweeper, due  # noqa: F401 - a fixture
from worker import clock
from worker.catalogue import FindingKind, tables
from worker.cli.session import Session
from worker.cli.sweep_plans import PLANS, whole_pass
from worker.context import Context
from worker.settings import Settings
from worker.settings.budgets import Budget, Prices
from worker.storage import Digest
from zot_artifact_client.contract import PAGE, ClaimSelection, PageRequest
from zot_artifact_client.outgoing_messages import Outgoing

HOUR = timedelta(hours=1)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    budget, prices = Budget(requests_per_day=3, cost_per_month=100), Prices(requests_1000=1000)
    verify = settings.sweep.verify.model_copy(update={"periods": {"dr": timedelta(days=5)}})
    sweep = settings.sweep.model_copy(update={"verify": verify})
    return settings.model_copy(update={"sweep": sweep, "budgets": {"dr": budget}, "prices": {"dr": prices}})


def test_the_sweep_reads_no_more_than_its_budget(context: Context, due, monkeypatch) -> None:  # noqa: F811
    """A store without a budget is read at once; the other one three times a day, and that is a finding beforehand."""
    sweeper, begin = Sweeper(context), clock.now().replace(day=1, hour=0, minute=0)  # all in one month
    monkeypatch.setattr(clock, "now", lambda: begin)
    due(20)
    read: list[dict[str, int]] = []
    for hour in range(50):
        monkeypatch.setattr(clock, "now", lambda hour=hour: begin + hour * HOUR)
        id_ = str(uuid.uuid4())
        sweeper.plan(id_)
        for page in [each for each in sweeper.messages.sent if each.startswith(id_)]:
            sweeper.page(page)
        of = [store for store, _, _ in sweeper.verdicts()]
        read.append({store: of.count(store) for store in ("primary", "dr")})
    assert read[0] == {"primary": 20, "dr": 0}
    assert [read[hour]["dr"] for hour in (23, 47)] == [3, 6]
    [found] = [each for each in context.catalogue.findings.page() if each.kind == "too_slow"]
    assert found.store == "dr"
    assert found.opened_at == begin
    assert "20 copies costs 20.00 of your 100.00 a month" in found.evidence["detail"]
    assert context.catalogue.budgets.get("dr", now=clock.now()).month_cost == read[-1]["dr"]


def test_a_page_that_dies_at_its_claim_reads_nothing_uncounted(context: Context, due, monkeypatch) -> None:  # noqa: F811
    """Whichever write of the claim is the last of its worker, all that the page reads at last is counted."""
    monkeypatch.setitem(context.settings.budgets["dr"].__dict__, "requests_per_day", 100)
    due(5)
    begin, sweeper = clock.now(), Sweeper(context)
    request = PageRequest(verb="verify", claim=ClaimSelection(store="dr")).payload()
    for number in range(4):
        now = begin + number * timedelta(days=1)
        monkeypatch.setattr(clock, "now", lambda now=now: now)
        with context.catalogue._database.write() as connection:
            connection.execute(sa.update(tables.copies).values(read_at=now - timedelta(days=60), claimed_until=None))
        id_ = f"page-{number}"
        sweeper.messages.send([Outgoing(PAGE.name, id_, "sweep", request)])
        before, commits, commit = len(sweeper.verdicts()), count(), sa.engine.RootTransaction.commit

        def dying(transaction: sa.engine.RootTransaction, commits=commits, last=number, commit=commit) -> None:
            if next(commits) == last:  # of all its transactions, also those that read
                raise KeyboardInterrupt
            commit(transaction)

        job = sweeper.take(id_, "page", request)
        with monkeypatch.context() as dead:
            dead.setattr(sa.engine.RootTransaction, "commit", dying)
            with suppress(KeyboardInterrupt):
                claim_copies(ClaimSelection(store="dr"), job)
        sweeper.page(id_)
        read = len(sweeper.verdicts()) - before
        assert (read > 0) == (number > 0)  # the budget begins empty
        assert context.catalogue.budgets.get("dr", now=now).day_requests == read


def test_an_object_above_the_budget_of_a_day_is_a_finding_beforehand(context: Context, due, monkeypatch) -> None:  # noqa: F811
    """It is named before the first sweep would read it, and the finding is resolved when the budget allows it."""
    due(2)
    largest, size = context.catalogue.budgets.largest("dr")
    limits = {"requests_per_day": None, "cost_per_month": None, "bytes_per_day": size - 1}
    for name, value in limits.items():
        monkeypatch.setitem(context.settings.budgets["dr"].__dict__, name, value)
    Sweeper(context).plan(str(uuid.uuid4()))
    [found] = context.catalogue.findings.page(kind=FindingKind.TOO_SLOW)
    assert f"{largest} has {size} bytes, more than budgets.dr allows" in found.evidence["detail"]
    monkeypatch.setitem(context.settings.budgets["dr"].__dict__, "bytes_per_day", 1 << 40)
    Sweeper(context).plan(str(uuid.uuid4()))
    assert context.catalogue.findings.page(kind=FindingKind.TOO_SLOW) == []


def test_a_dry_run_tells_requests_time_and_cost(context: Context, due) -> None:  # noqa: F811
    """Nothing is read, and the whole pass is told too."""
    due(30)
    session = Session(context.settings, context.catalogue, context.stores)
    row = PLANS["verify"](session, "dr", None)
    assert (row["due"], row["requests"], row["takes"], row["costs"]) == (30, 30, "10d", "30.00")
    found = whole_pass(session, "dr")
    assert found is not None
    assert (found["copies"], found["days"], found["cap_per_month"]) == (30, 10, 100)
    assert "raise requests_per_day, cost_per_month 2.0 times, or set a period of 10d" in found["warning"]
    assert whole_pass(session, "primary") is None


def test_an_object_above_the_budget_of_a_day_keeps_no_other_from_being_read(
    context: Context,
    due,  # noqa: F811
    monkeypatch,
    caplog,
) -> None:
    """It is the longest overdue one, is told by name, and the others are read as if it was not there."""
    due(4)
    budget = Budget(bytes_per_day=ByteSize(100))
    monkeypatch.setitem(context.settings.__dict__, "budgets", {"dr": budget})
    catalogue = context.catalogue
    large = catalogue.artifacts.record(
        "releases", "large", Digest(101, "a" * 64), {}, clock.now(), stores=["dr"]
    ).artifact
    long_ago = clock.now() - timedelta(days=90)
    catalogue.artifacts.finish_copy(large, "dr", tag="1", evidence={}, now=long_ago)
    sweeper, begin = Sweeper(context), clock.now().replace(hour=0, minute=0)
    for hour in range(25):
        monkeypatch.setattr(clock, "now", lambda hour=hour: begin + hour * HOUR)
        id_ = str(uuid.uuid4())
        sweeper.plan(id_)
        for page in [each for each in sweeper.messages.sent if each.startswith(id_)]:
            sweeper.page(page)
    assert {key for store, key, _ in sweeper.verdicts() if store == "dr"} == {f"a/{n:03d}" for n in range(4)}
    assert "releases/large is not verified: its 101 bytes" in caplog.text
    late = catalogue.sweep_claims.overdue("dr", period=timedelta(days=5), now=clock.now())
    assert late == 1
