"""What a store lists is compared with the catalogue, both ways; a difference counts when two runs have seen it."""

import os
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from tasks.adopt import adopt
from tasks.page import page
from tasks.pages import leaving_objects
from tasks.sweeps import reconcile as sweep_module
from tasks.sweeps.reconcile import sweep_reconcile
from tasks.upload import upload
from tasks.verify import verify
from worker import cli, clock
from worker.artifacts.reconcile import DisorderedListing
from worker.context import Context
from worker.settings import Settings
from worker.settings.section_models import ReconcileSweepSettings
from worker.storage.driver import ListedObject
from worker.storage.errors import AccessDenied, Unavailable
from worker.storage.store import Store
from zot_artifact_client.contract import ReconciledStore, SweepReconcileRequest, UploadRequest, VerifyRequest

KEYS = ("a", "b/1", "b/2", "c")
Sweep = Callable[..., ReconciledStore]


def with_reconcile(settings: Settings, **values: Any) -> Settings:
    sweep = settings.sweep.model_copy(update={"reconcile": ReconcileSweepSettings(**values)})
    return settings.model_copy(update={"sweep": sweep})


@pytest.fixture
def put(run, source) -> Callable[[str], None]:
    def put(key: str) -> None:
        run(upload, UploadRequest(bucket="releases", key=key, source=source(key.encode())))

    return put


@pytest.fixture
def uploaded(put, monkeypatch) -> None:
    """Upload some artifacts to both stores, an hour before the first run."""
    now = clock.now
    monkeypatch.setattr(clock, "now", lambda: now() - timedelta(hours=1))
    for key in KEYS:
        put(key)
    monkeypatch.setattr(clock, "now", now)


@pytest.fixture
def sent(monkeypatch) -> list[tuple[str, Any]]:
    jobs: list[tuple[str, Any]] = []
    for module in (sweep_module, leaving_objects):
        monkeypatch.setattr(module, "send_child", lambda spec, request, **_: jobs.append((spec.kind, request)))
    return jobs


@pytest.fixture
def sweep(run, sent) -> Sweep:
    """Return what compares `dr` with the catalogue."""

    def sweep(**more: Any) -> ReconciledStore:
        (found,) = run(sweep_reconcile, SweepReconcileRequest(store="dr", **more)).stores
        return found

    return sweep


@pytest.fixture
def foreign(stored) -> Callable[[str], None]:
    """Lay a file of another program into `dr`, an hour old."""

    def lay(key: str) -> None:
        stored("dr", key).parent.mkdir(parents=True, exist_ok=True)
        stored("dr", key).write_bytes(b"theirs")
        os.utime(stored("dr", key), (time.time() - 3600,) * 2)

    return lay


def age(stored, *keys: str) -> None:
    """Let objects be an hour old."""
    for key in keys:
        os.utime(stored("dr", key), (time.time() - 3600,) * 2)


def kinds(context: Context) -> set[tuple[str, str]]:
    return {(each.kind, each.key or "") for each in context.catalogue.findings.page()}


@pytest.mark.usefixtures("uploaded")
def test_a_difference_is_a_finding_when_two_runs_have_seen_it(
    context: Context, run, sweep: Sweep, stored, foreign, sent, monkeypatch
) -> None:
    """Missing, of another size and unknown: nothing after one run, a finding and a job to verify after two.

    A run sends no more jobs than the settings allow, and the next one sends others, which its findings name.
    """
    stored("dr", "b/1").unlink()
    stored("dr", "c").write_bytes(b"another size")
    age(stored, "c")
    foreign("zz")
    first = sweep()
    assert (first.listed, first.recorded) == (4, 4)
    assert (first.seen, first.findings) == ({"missing": 1, "size_mismatch": 1, "orphan": 1}, {})
    assert (kinds(context), sent) == (set(), [])
    with monkeypatch.context() as few:
        few.setitem(context.settings.sweep.reconcile.__dict__, "batch", 1)
        assert sweep().findings == {"missing": 1, "size_mismatch": 1, "orphan": 1}
    assert kinds(context) == {("missing", "b/1"), ("size_mismatch", "c"), ("orphan", "zz")}
    [before] = _jobs_to_verify(context)
    assert [request.key for _, request in sent] == ["b/1"]
    sent.clear()
    sweep()
    jobs = _jobs_to_verify(context)
    assert (len(jobs), before in jobs) == (2, False)
    assert sorted((kind, request.key, request.stores) for kind, request in sent) == [
        ("verify", "b/1", ("dr",)), ("verify", "c", ("dr",)),
    ]  # fmt: skip
    assert stored("dr", "zz").read_bytes() == b"theirs"
    for _, request in sent:
        run(verify, request)
    states = {key: _state(context, key) for key in KEYS}
    assert states == {"a": "stored", "b/1": "missing", "b/2": "stored", "c": "size_mismatch"}
    assert kinds(context) == {("missing", "b/1"), ("size_mismatch", "c"), ("orphan", "zz")}
    last = sweep()
    assert (last.seen, last.known) == ({"orphan": 1}, {"missing": 1, "size_mismatch": 1})


@pytest.mark.usefixtures("uploaded")
def test_a_bucket_that_the_catalogue_never_had_is_compared(
    context: Context, settings: Settings, sweep: Sweep, stored, monkeypatch, capsys
) -> None:
    """Its objects are orphans, in the sweep as in its dry run, and no difference is told only where there is none."""
    stray = stored("dr", "theirs", "stray")
    stray.parent.mkdir()
    stray.write_bytes(b"theirs")
    os.utime(stray, (time.time() - 3600,) * 2)
    monkeypatch.setattr("worker.cli.session.load_settings", lambda: settings)
    cli.run(["sweep", "reconcile", "--store", "dr", "--dry-run", "--json"])
    assert "1 orphan" in capsys.readouterr().out
    assert (sweep().seen, sweep().findings) == ({"orphan": 1}, {"orphan": 1})
    assert [(each.bucket, each.key) for each in context.catalogue.findings.page()] == [("stray", "theirs")]


def _jobs_to_verify(context: Context) -> set[str | None]:
    return {each.job for each in context.catalogue.findings.page() if each.action == "verify"}


def _state(context: Context, key: str) -> str:
    artifact = context.catalogue.artifacts.current("releases", key)
    assert artifact is not None
    return context.catalogue.artifacts.copies(artifact)["dr"].state.value


@pytest.mark.usefixtures("uploaded")
@pytest.mark.parametrize("failure", [Unavailable("dr: EIO"), AccessDenied("dr: no")])
def test_one_object_that_the_store_does_not_tell_about_stops_no_other(
    context: Context, sweep: Sweep, stored, foreign, monkeypatch, failure
) -> None:
    """It is not confirmed, nor is what was written since the listing, or is being written; the others are findings."""
    stored("dr", "b/1").unlink()
    repaired = stored("dr", "b/2").read_bytes()
    stored("dr", "b/2").unlink()
    stored("dr", "a").unlink()
    stored("dr", "c").write_bytes(b"another size")
    age(stored, "c")
    for orphan in ("0", "written", "writing"):
        foreign(orphan)
    stat, artifacts = Store.stat_object, context.catalogue.artifacts

    def failing(store: Store, bucket: str, key: str, **options: bool) -> Any:
        if key == "0":
            for late in ("written", "writing"):
                made = artifacts.record(bucket, late, _digest(context), {}, clock.now(), stores=["dr"]).artifact
                if late == "written":
                    artifacts.finish_copy(made, "dr", tag="1", evidence={}, now=clock.now())
            stored("dr", "b/2").write_bytes(repaired)
            again = artifacts.current(bucket, "b/2")
            assert again is not None
            replaced = artifacts.record(bucket, "a", again.digest, {}, clock.now(), stores=["dr"]).artifact
            for artifact in (again, replaced):
                artifacts.finish_copy(artifact, "dr", tag="2", evidence={}, now=clock.now())
            raise failure
        if key == "c":
            stored("dr", "c").write_bytes(b"c")
        return stat(store, bucket, key, **options)

    monkeypatch.setattr(Store, "stat_object", failing)
    sweep()
    assert sweep().findings == {"missing": 1}
    assert kinds(context) == {("missing", "b/1")}


@pytest.mark.usefixtures("uploaded")
def test_a_difference_that_is_gone_is_resolved(
    context: Context, sweep: Sweep, stored, foreign, run, monkeypatch
) -> None:
    """What is right at the next run is a finding no more; what was seen once and is gone was never one.

    An orphan stays a finding until the store says that it is gone, and a copy that a read did not find until a read
    finds it.
    """
    body = stored("dr", "a").read_bytes()
    stored("dr", "a").unlink()
    foreign("zz")
    sweep()
    sweep()
    assert kinds(context) == {("missing", "a"), ("orphan", "zz")}
    stored("dr", "a").write_bytes(body)
    stored("dr", "zz").unlink()

    def silent(*_: Any, **__: Any) -> Any:
        raise Unavailable("dr: EIO")

    with monkeypatch.context() as fault:
        fault.setattr(Store, "stat_object", silent)
        sweep()
    assert kinds(context) == {("orphan", "zz")}
    foreign("new")
    sweep()
    assert kinds(context) == set()
    stored("dr", "new").unlink()
    sweep()
    foreign("new")
    sweep()
    assert kinds(context) == set()
    for key in ("new", "a"):
        stored("dr", key).unlink()
    for found in ({("missing", "a")}, set()):
        run(verify, VerifyRequest(bucket="releases", key="a", stores=("dr",)))
        assert kinds(context) == found
        stored("dr", "a").write_bytes(body)
        sweep()
        assert kinds(context) == found


@pytest.mark.usefixtures("uploaded")
def test_an_orphan_that_is_written_again_just_now_stays_a_finding(
    context: Context, sweep: Sweep, stored, foreign
) -> None:
    """What is young is no difference yet, and no agreement either: the finding ends when the object is gone."""
    foreign("zz")
    sweep()
    sweep()
    assert kinds(context) == {("orphan", "zz")}
    stored("dr", "zz").write_bytes(b"theirs, again")
    assert (sweep().seen, kinds(context)) == ({}, {("orphan", "zz")})
    stored("dr", "zz").unlink()
    sweep()
    assert kinds(context) == set()


@pytest.mark.usefixtures("uploaded")
def test_what_is_written_during_a_run_is_no_difference(context: Context, sweep: Sweep, put, stored) -> None:
    """A copy that is being written, an object younger than the run and a copy that was read since are not flagged."""
    stored("dr", "c").write_bytes(b"being replaced")
    artifact = context.catalogue.artifacts.record("releases", "inflight", _digest(context), {}, clock.now()).artifact
    context.catalogue.artifacts.ensure_copy(artifact, "dr")
    stored("dr", "inflight").write_bytes(b"half")
    age(stored, "inflight")
    stored("dr", "young").write_bytes(b"just written")
    put("now")
    stored("dr", "now").unlink()
    with_future = context.catalogue.artifacts.current("releases", "now")
    assert with_future is not None
    for _ in range(2):
        found = sweep()
        assert {kind for kind in found.seen if kind != "missing"} == set()
    assert kinds(context) <= {("missing", "now")}


@pytest.mark.usefixtures("uploaded")
def test_a_time_in_the_future_does_not_hide_a_difference(context: Context, sweep: Sweep, foreign, stored) -> None:
    """A file that a wrong clock or an archive gave such a time would count as just written for years.

    Nor does an unfinished run that a clock a day ahead has begun, which would never be an earlier one.
    """
    later, two_days = clock.now() + timedelta(days=1), timedelta(days=2)
    context.catalogue.reconciliations.begin("dr", "", now=later, within=two_days, since=later)
    foreign("zz")
    stored("dr", "c").write_bytes(b"another size")
    for key in ("zz", "c"):
        os.utime(stored("dr", key), (time.time() + 86400,) * 2)
    for _ in range(2):
        sweep()
    assert kinds(context) == {("orphan", "zz"), ("size_mismatch", "c")}


def _digest(context: Context) -> Any:
    artifact = context.catalogue.artifacts.current("releases", "a")
    assert artifact is not None
    return artifact.digest


@pytest.mark.parametrize("lost", ["half a page", "everything"])
def test_a_listing_that_lacks_too_much_stops_the_run_and_changes_nothing(
    context: Context, put, sweep: Sweep, stored, monkeypatch, sent, lost: str
) -> None:
    """An empty or incomplete listing is a finding on the store, and counts for no copy that it lacks, ever so often."""
    for number in range(50):
        put(f"k{number:02d}")
    later = clock.now() + timedelta(hours=1)
    monkeypatch.setattr(clock, "now", lambda: later)
    listing = Store.list_objects

    def incomplete(self: Store, *args: Any, **options: Any) -> Iterator[ListedObject]:
        whole = list(listing(self, *args, **options))
        return iter(whole[:25] if lost == "half a page" else [])

    with monkeypatch.context() as wrong:
        wrong.setattr(Store, "list_objects", incomplete)
        for _ in range(3):
            found = sweep()
            assert (found.findings, found.stopped is not None) == ({}, True)
    assert kinds(context) == {("listing_suspect", "")}
    assert sent == []
    monkeypatch.setattr(clock, "now", lambda: later + timedelta(hours=1))
    stored("dr", "k49").unlink()
    assert sweep().seen == {"missing": 1}
    assert kinds(context) == set()


@pytest.mark.usefixtures("uploaded")
def test_a_listing_that_ends_with_an_error_counts_for_nothing(
    context: Context, sweep: Sweep, stored, monkeypatch
) -> None:
    """The next attempt continues behind the last key that was compared, and only a whole run counts."""
    monkeypatch.setattr(sweep_module, "_PART", 1)
    stored("dr", "a").unlink()
    listing, calls = Store.list_objects, list[str]()

    def breaking(self: Store, bucket: str, prefix: str = "", *, after: str = "") -> Iterator[ListedObject]:
        calls.append(after)
        for each in listing(self, bucket, prefix, after=after):
            if each.key == "b/2" and len(calls) == 1:
                raise Unavailable("the listing broke")
            yield each

    monkeypatch.setattr(Store, "list_objects", breaking)
    with pytest.raises(Unavailable):
        sweep()
    first = sweep()
    assert calls == ["", "b/1"]
    assert (first.recorded, first.listed, first.seen, first.findings) == (4, 3, {"missing": 1}, {})
    assert sweep().findings == {"missing": 1}
    assert kinds(context) == {("missing", "a")}


@pytest.mark.usefixtures("uploaded")
def test_a_store_that_is_away_makes_no_second_sighting_in_another(context: Context, run, foreign, monkeypatch) -> None:
    """Each attempt listed all stores, so that a difference of one run was a finding, and an orphan was adopted."""
    foreign("zz")
    listing, listed = Store.list_objects, list[str]()

    def away(self: Store, bucket: str, prefix: str = "", *, after: str = "") -> Iterator[ListedObject]:
        listed.append(self.name)
        if self.name == "primary" and listed.count("primary") == 1:
            raise Unavailable("the store is away")
        return listing(self, bucket, prefix, after=after)

    monkeypatch.setattr(Store, "list_objects", away)
    with pytest.raises(Unavailable):
        run(sweep_reconcile, SweepReconcileRequest(), id_="sweep")
    context.catalogue.ledger.retry("sweep", 1, {}, due=clock.now())
    found = {each.store: each for each in run(sweep_reconcile, SweepReconcileRequest(), id_="sweep").stores}
    assert (found["dr"].seen, found["dr"].findings) == ({"orphan": 1}, {})
    assert (found["dr"].listed, found["primary"].listed) == (5, 4)
    found = {each.store: each for each in run(sweep_reconcile, SweepReconcileRequest(), id_="next").stores}
    assert found["dr"].findings == {"orphan": 1}


@pytest.mark.usefixtures("uploaded")
def test_a_listing_that_skips_an_object_is_a_finding_about_the_store(
    context: Context, sweep: Sweep, monkeypatch, sent
) -> None:
    """The object is there, so its copy is not missing; the finding names it until a listing has it again."""
    listing = Store.list_objects
    with monkeypatch.context() as wrong:
        wrong.setattr(
            Store, "list_objects", lambda *args, **more: (row for row in listing(*args, **more) if row.key != "b/1")
        )
        assert (sweep().findings, kinds(context)) == ({}, set())
        assert (sweep().findings, kinds(context), sent) == ({}, {("listing_suspect", "")}, [])
    [finding] = context.catalogue.findings.page()
    assert finding.evidence["detail"] == "two listings lack objects that the store has: releases/b/1"
    sweep()
    assert kinds(context) == set()


@pytest.mark.usefixtures("uploaded")
def test_a_listing_in_reverse_order_is_a_finding_about_the_store(context: Context, sweep: Sweep, monkeypatch) -> None:
    """The run ends with an error, and no copy is missing because of it, ever so often."""
    listing = Store.list_objects
    with monkeypatch.context() as wrong:
        wrong.setattr(Store, "list_objects", lambda *args, **more: reversed(list(listing(*args, **more))))
        for _ in range(3):
            with pytest.raises(DisorderedListing):
                sweep()
    assert kinds(context) == {("listing_suspect", "")}
    sweep()
    assert kinds(context) == set()


@pytest.mark.usefixtures("uploaded")
def test_a_run_can_be_limited_to_a_prefix(context: Context, sweep: Sweep, stored, foreign) -> None:
    """Only what is below the prefix is compared and resolved; the rest keeps its findings."""
    stored("dr", "a").unlink()
    foreign("b/zz")
    sweep()
    sweep()
    assert kinds(context) == {("missing", "a"), ("orphan", "b/zz")}
    stored("dr", "b/zz").unlink()
    below = sweep(bucket="releases", prefix="b/")
    assert (below.listed, below.recorded, below.seen) == (2, 2, {})
    assert kinds(context) == {("missing", "a")}


class TestAdopt:
    """Orphans can be adopted."""

    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return with_reconcile(settings, orphans="adopt_first_read")

    @pytest.mark.usefixtures("uploaded")
    def test_orphans_are_adopted_in_one_page_where_the_settings_say_so(
        self, context: Context, run, sweep: Sweep, foreign, stored, sent, monkeypatch
    ) -> None:
        """The page records the objects as they are, which resolves their findings; one that is too large is a job."""
        for key in ("x", "y", "zz"):
            foreign(key)
        stored("dr", "y").write_bytes(b"larger than the others")
        age(stored, "y")
        monkeypatch.setitem(context.settings.page.__dict__, "large", 10)
        assert [sweep().sent for _ in range(2)] == [0, 1]  # `sweep reconcile` by hand waits for so many jobs
        found = {(each.key, each.kind, each.action, each.job) for each in context.catalogue.findings.page()}
        [(kind, request)] = sent
        assert (kind, request.verb, request.first_read) == ("page", "adopt", True)
        [job] = {job for *_, job in found}
        assert found == {(key, "orphan", "adopt", job) for key in ("x", "y", "zz")}
        done = run(page, request, id_=job)
        assert (done.outcomes, done.left) == ({"adopted": 2}, ("releases/y",))
        (_, (kind, request)) = sent
        assert {each.job for each in context.catalogue.findings.page()} != {job}
        assert (kind, request.key, request.first_read, request.store) == ("adopt", "y", True, "dr")
        run(adopt, request)
        assert kinds(context) == set()
        assert sweep().seen == {}


class TestIgnore:
    """A store may hold what is not ours."""

    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return with_reconcile(settings, orphans="ignore")

    @pytest.mark.usefixtures("uploaded")
    def test_orphans_are_only_counted_where_the_settings_say_so(self, context: Context, sweep: Sweep, foreign) -> None:
        """Objects of other programs are no findings with `orphans: ignore`."""
        foreign("zz")
        assert [sweep().seen for _ in range(3)] == [{"orphan": 1}] * 3
        assert kinds(context) == set()
