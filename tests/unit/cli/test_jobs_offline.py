"""The command line without a broker: it shows jobs, redrives ended ones, and pauses; all in the ledger."""

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from worker import cli, clock
from worker.artifacts.queries import status_of
from worker.catalogue import Catalogue, Leased, NoCatalogue
from worker.cli.session import open_session
from worker.exit_status import Status
from worker.settings import load_settings
from worker.storage import Digest
from zot_artifact_client.contract import JobState

AWAY = {"type": "Unavailable", "message": "dr: away", "traceback": "Traceback\nof the first", "store": "dr"}
SNOOZED = {
    "type": "Snooze",
    "message": "dr: its circuit breaker is open",
    "traceback": "Traceback\nof the last",
    "previous": AWAY,
}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("ZOT_HOME", str(tmp_path / "home"))
    load_settings().prepare()
    return tmp_path / "home"


@pytest.fixture
def catalogue(home) -> Iterator[Catalogue]:
    url = f"sqlite:///{home / 'catalogue.sqlite3'}"
    opened = Catalogue(url)
    yield opened
    opened.close()


@pytest.fixture
def end(catalogue) -> Callable[..., str]:
    """Put a job into the ledger that has ended."""

    def end(
        id_: str, state: JobState = JobState.DEAD, error: Any = AWAY, kind: str = "upload",
        parent: str | None = None, **request: Any,
    ) -> str:  # fmt: skip
        begun = catalogue.ledger.acquire(
            id_, kind, {"bucket": "releases", "key": id_, **request}, owner="here", writes_to=None, parent=parent,
            now=clock.now(), lease=timedelta(seconds=30), queue="sweep",
        )  # fmt: skip
        assert isinstance(begun, Leased)
        catalogue.ledger.finish(id_, begun.record.fence, state, now=clock.now(), error=error)
        return id_

    return end


@pytest.fixture
def zot(capsys) -> Callable[..., Any]:
    def run(*arguments: str) -> tuple[int, Any, str]:
        status = cli.run(list(arguments))
        told = capsys.readouterr()
        return status, json.loads(told.out) if "--json" in arguments else told.out, told.err

    return run


def ids(document: Any) -> list[str]:
    return sorted(each["job"] for each in document["jobs"])


def test_jobs_are_listed_by_how_and_where_they_ended(zot, end):
    """State, store, error and kind each leave out what does not fit, also by a cause that was met before the last."""
    end("at-dr")
    end("snoozed", error=SNOOZED)
    end("names-dr", error=AWAY | {"message": "primary: away", "store": "primary"}, stores=["primary", "dr"])
    end("elsewhere", error={"type": "Throttled", "message": "primary: too many"})
    end("failed", state=JobState.FAILED, error={"type": "NotFound", "message": "no such"}, kind="verify")
    assert ids(zot("jobs", "--dead", "--json")[1]) == ["at-dr", "elsewhere", "names-dr", "snoozed"]
    assert ids(zot("jobs", "--failed", "--json")[1]) == ["failed"]
    assert ids(zot("jobs", "--state", "dead", "--state", "failed", "--json")[1]) == ids(zot("jobs", "--json")[1])
    assert ids(zot("jobs", "--store", "dr", "--json")[1]) == ["at-dr", "names-dr", "snoozed"]
    assert ids(zot("jobs", "--error", "Unavailable", "--json")[1]) == ["at-dr", "names-dr", "snoozed"]
    assert ids(zot("jobs", "--kind", "verify", "--json")[1]) == ["failed"]
    assert len(zot("jobs", "--dead", "--limit", "1", "--json")[1]["jobs"]) == 1


def test_a_job_whose_lease_has_expired_waits(zot, catalogue):
    """It is shown as queued, with since when and why: its worker died, or could not record the end of the attempt."""
    for id_, lease in (("works", timedelta(minutes=1)), ("waits", timedelta())):
        catalogue.ledger.acquire(
            id_, "upload", {"bucket": "b", "key": id_}, owner="here", writes_to=None, parent=None, now=clock.now(),
            lease=lease, queue="transfer",
        )  # fmt: skip
    assert ids(zot("jobs", "--state", "running", "--json")[1]) == ["works"]
    assert ids(zot("jobs", "--state", "queued", "--json")[1]) == ["waits"]
    for told in (zot("jobs", "waits")[1], zot("jobs")[1]):
        assert "its worker died or cannot use the catalogue since" in told
        assert "queued" in told


def test_a_job_tells_every_cause_with_its_traceback(zot, end):
    """One job shows its tracebacks when asked to, and as JSON always."""
    end("snoozed", error=SNOOZED)
    assert "Traceback" not in zot("jobs", "snoozed")[1]
    assert zot("jobs", "show", "snoozed") == zot("jobs", "list", "snoozed") == zot("jobs", "snoozed")
    assert zot("jobs", "ls", "--dead") == zot("jobs", "--dead")
    shown = zot("jobs", "snoozed", "--traceback")[1]
    assert shown.index("of the last") < shown.index("of the first")
    assert zot("jobs", "snoozed", "--json")[1]["error"] == SNOOZED


def test_a_job_is_redriven_although_no_broker_answers(zot, end, catalogue):
    """The ledger has it, keeps the cause, and the workers send it by themselves; the line says so."""
    end("dead")
    status, document, told = zot("jobs", "retry", "dead", "--json")
    assert (status, document["retried"]) == (0, ["dead"])
    assert "the workers send the jobs" in told
    record = catalogue.ledger.get("dead")
    assert (record.state, record.attempts, record.queue, record.error["previous"]) == ("queued", 0, "sweep", AWAY)
    assert [
        job.id
        for job in catalogue.ledger.overdue(
            now=clock.now() + timedelta(hours=1), again=timedelta(), lease=timedelta(seconds=30), limit=9
        )
    ]


def test_what_cannot_be_redriven_is_named_and_the_rest_is(zot, end, tmp_path, home):
    """A job that succeeded, one whose staged source is gone, and a refused one stay; the good one begins."""
    source = home / "staging" / "kept" / "app.tgz"
    source.parent.mkdir(parents=True)
    source.write_bytes(b"release one")
    end("kept", source=str(source), staged=True)
    end("gone", source=str(tmp_path / "gone.tgz"), staged=True)
    end("done", state=JobState.SUCCEEDED, error=None)
    end("refused", state=JobState.REFUSED)
    end("batch", kind="batch")
    status, document, _ = zot("jobs", "retry", "kept", "gone", "done", "refused", "batch", "--json")
    assert (status, document["retried"]) == (1, ["kept"])
    reasons = {each["job"]: each["message"] for each in document["refused"]}
    assert "staged source is gone" in reasons["gone"]
    assert "succeeded" in reasons["done"]
    assert "refused" in reasons["refused"]
    assert "send a new one" in reasons["batch"]


def test_all_means_the_dead_ones_unless_told_otherwise(zot, end, catalogue):
    """A failed or cancelled job is redriven only by name or by its state, which is told; a dry run changes nothing."""
    for state in (JobState.DEAD, JobState.FAILED, JobState.CANCELLED):
        end(state.value, state=state)
    assert zot("jobs", "retry", "--all", "--dry-run", "--json")[1]["retried"] == ["dead"]
    assert catalogue.ledger.get("dead").state == "dead"
    assert zot("jobs", "retry", "--all", "--json")[1]["retried"] == ["dead"]
    assert "add --state failed" in zot("jobs", "retry", "--all", "--yes")[2]
    assert zot("jobs", "retry", "--all", "--state", "failed", "--json")[1]["retried"] == ["failed"]
    assert "add --state failed" not in zot("jobs", "retry", "--all", "--yes")[2]
    assert zot("jobs", "retry", "cancelled", "--json")[1]["retried"] == ["cancelled"]
    assert zot("jobs", "retry", "--all", "--yes")[0] == Status.GOOD  # nothing is to be retried
    status, _, told = zot("jobs", "retry", "--all", "--yes", "--error", "Unavailable")
    assert (status, "no job that the options select has the error 'Unavailable'" in told) == (Status.BAD, True)


def test_a_failed_upload_tells_which_stores_have_the_bytes_and_what_adds_the_rest(zot, end, catalogue, tmp_path):
    """Its staged source is gone with its failure; the copy that was written is as good a source."""
    digest, now = Digest(11, "a" * 64), clock.now()
    for id_, written in (("in-primary", ["primary"]), ("nowhere", []), ("followed", ["primary"])):
        key = id_.replace("-", " ")
        made = catalogue.artifacts.record("releases", key, digest, {}, now, stores=["primary", "dr"], job=id_)
        for store in written:
            catalogue.artifacts.finish_copy(made.artifact, store, tag="1", evidence={}, now=now)
        end(id_, JobState.FAILED, error=AWAY, key=key, source=str(tmp_path / "gone.tgz"), staged=True)
    now, other = clock.now(), Digest(3, "b" * 64)
    newer = catalogue.artifacts.record("releases", "followed", other, {}, now, stores=["dr"], job="newer")
    catalogue.artifacts.finish_copy(newer.artifact, "dr", tag="1", evidence={}, now=now)
    told = "the bytes are in primary; `zot-artifacts replicate 'releases/in primary' --to dr` adds the copy in dr"
    _, document, _ = zot("jobs", "retry", "in-primary", "nowhere", "followed", "--json")
    reasons = {each["job"]: each["message"] for each in document["refused"]}
    gone = "its staged source is gone"
    followed = f"{gone}, and version 2 of releases/followed was recorded after it: nothing is left to do"
    again = f"{gone}: upload it again"
    assert reasons == {"in-primary": f"{gone}: {told}", "nowhere": again, "followed": followed}
    assert told in zot("jobs", "in-primary")[1]
    assert zot("jobs", "in-primary", "--json")[1]["copies"] == told
    made = catalogue.artifacts.current("releases", "in primary")
    catalogue.artifacts.finish_copy(made, "dr", tag="1", evidence={}, now=now)
    refused = zot("jobs", "retry", "in-primary", "--json")[1]["refused"]
    assert refused[0]["message"] == "its staged source is gone: the bytes are in dr, primary"
    catalogue.deletions.begin(made, now=now, until=now + timedelta(days=7), by="ana", reason="old", job="job-1")
    assert zot("jobs", "in-primary", "--json")[1]["copies"] is None
    assert "the bytes are in" not in zot("jobs", "nowhere")[1]


def test_a_dead_letter_that_is_not_needed_is_cancelled(catalogue, end, zot, monkeypatch):
    """It is then no dead letter any more, `prune` removes it, and its last error stays until then."""
    monkeypatch.setenv("ZOT_BROKER", "redis://127.0.0.1:1/0")  # nothing is asked of it
    end("dead")
    end("failed", JobState.FAILED)
    status, document, _ = zot("jobs", "cancel", "dead", "failed", "--json")
    assert (status, document["asked"], document["not_cancelled"].keys()) == (Status.BAD, ["dead"], {"failed"})
    record = catalogue.ledger.get("dead")
    assert (record.state, record.error["message"]) == ("cancelled", "dr: away")
    assert catalogue.coverage.jobs() == (0, 0)
    assert zot("jobs", "retry", "dead", "--dry-run", "--json")[1]["retried"] == ["dead"]


def test_a_delete_is_not_sent_again_once_a_later_version_is_there(catalogue, end, zot):
    """It would delete what was uploaded after it, such as one that was open in a backup that was restored."""

    def upload(key: str, sha256: str) -> None:
        made = catalogue.artifacts.record("releases", key, Digest(3, sha256 * 64), {}, clock.now(), stores=["dr"])
        catalogue.artifacts.finish_copy(made.artifact, "dr", tag="1", evidence={}, now=clock.now())

    for key in ("once", "again"):
        upload(key, "a")
        end(key, kind="delete")
    upload("again", "b")
    status, document, _ = zot("jobs", "retry", "--all", "--dry-run", "--json")
    reasons = {each["job"]: each["message"] for each in document["refused"]}
    assert (status, document["retried"], reasons.keys()) == (Status.BAD, ["once"], {"again"})
    assert reasons["again"].startswith("it would delete version 2 of releases/again, which was recorded after it: ")


def test_the_failed_jobs_of_a_batch_are_retried_together(catalogue, end, zot):
    """Its dead and failed jobs and no job of another batch; without a batch, too, no page that was split into jobs."""
    end("b", JobState.SUCCEEDED, error=None, kind="batch")
    states = {1: JobState.DEAD, 2: JobState.FAILED, 3: JobState.SUCCEEDED, 4: JobState.DEAD, 5: JobState.FAILED}
    for number, state in states.items():
        end(f"b.0000000{number}", state, kind="page" if number >= 4 else "verify", parent="b")
    end("other.00000001", parent="other")
    assert zot("jobs", "retry", "--all", "--parent", "b", "--json")[1]["retried"] == ["b.00000002", "b.00000001"]
    assert zot("jobs", "retry", "b.00000001", "--parent", "b")[0] == 2
    assert zot("jobs", "retry", "--all", "--state", "failed", "--json")[1]["retried"] == []


@pytest.mark.parametrize(
    ("kind", "verb", "told"),
    [
        ("batch", "upload", ["jobs --parent it --failed", "jobs retry --all --parent it"]),
        ("batch", "verify", ["jobs --parent it --failed", "zot-artifacts findings"]),
        ("page", "upload", ["jobs it"]),
    ],
)
def test_objects_that_failed_are_told_beside_a_job_that_succeeded(zot, catalogue, kind, verb, told):
    """A batch and a page succeed whatever their objects do; the list says how many failed, and the way out."""
    now, lease = clock.now(), timedelta(seconds=30)
    for id_, failed in (("it", 3), ("good", 0)):
        catalogue.ledger.acquire(
            id_, kind, {"verb": verb}, owner="here", writes_to=None, parent=None, now=now, lease=lease, queue="sweep"
        )
        result = {"objects": 200, "failed": failed, "failures": []}
        catalogue.ledger.finish(id_, 1, JobState.SUCCEEDED, now=now, result=result)
    for shown in (zot("jobs")[1], zot("jobs", "it")[1]):
        assert all(f"`zot-artifacts {each.removeprefix('zot-artifacts ')}`" in shown for each in told)
    assert "it: 3 of 200 objects failed; `zot-artifacts" in zot("jobs")[1]
    assert "good: " not in zot("jobs")[1]
    refused = zot("jobs", "retry", "it", "--json")[1]["refused"][0]["message"]
    assert ("jobs retry --all --parent it" in refused) == (kind == "batch")
    assert (
        "no such job of the batch failed; `zot-artifacts jobs it`" in zot("jobs", "retry", "--all", "--parent", "it")[2]
    )


def test_the_list_shows_a_batch_without_its_jobs(zot, end, catalogue):
    """They are later than the batch, and many that failed would hide it; the options that select jobs list them."""
    end("whole", JobState.SUCCEEDED, None, kind="batch")
    catalogue.batches.begin("whole", {}, total=1, total_bytes=1, now=clock.now())
    end("whole.00000001", JobState.FAILED, parent="whole")
    shown = zot("jobs")[1]
    assert "batch" in shown
    assert "whole.00000001" not in shown
    for options in (("--failed",), ("--parent", "whole"), ("--kind", "upload")):
        assert "whole.00000001" in zot("jobs", *options)[1]


def test_a_file_that_a_batch_staged_is_not_sent_again_once_it_is_gone(zot, end, catalogue, home):
    """Its batch has removed it at its end; the request of its job does not say that it was staged."""
    source = home / "staging" / "b" / "1"
    end("b.00000001", JobState.FAILED, parent="b", source=str(source))
    refused = zot("jobs", "retry", "b.00000001", "--json")[1]["refused"]
    assert refused[0]["message"] == "its staged source is gone: upload it again"


@pytest.mark.parametrize(
    ("arguments", "status", "line"),
    [
        (("jobs", "retry"), 2, "--all"),
        (("jobs", "retry", "x", "--all"), 2, "--all"),
        (("jobs", "retry", "x"), 3, "no worker has taken a job x"),
        (("jobs", "cancel", "x"), 3, "no broker"),
        (("jobs", "--state", "lost"), 2, "lost"),
        (("pause", "store", "dx"), 2, "Configured are: dr, primary"),
        (("pause", "queue", "swep"), 2, "sweep"),
        (("pause", "queue", "interactive"), 2, "cannot be paused"),
        (("pause", "job", "x"), 1, "nothing to pause"),
        (("pause", "planet", "earth"), 2, "planet"),
        (("jobs", "--kind", "uplod"), 2, "did you mean 'upload'?"),
        (("jobs", "--state", "runing"), 2, "did you mean 'running'?"),
        (("jobs", "--store", "prmary"), 2, "did you mean 'primary'?"),
        (("jobs", "retry", "--all", "--kind", "uplod"), 2, "did you mean 'upload'?"),
        (("findings", "--kind", "corupt"), 2, "did you mean 'corrupt'?"),
        (("catalogue", "rebuild", "--bucket", "nope"), 1, "in the bucket nope"),
    ],
)
def test_what_makes_no_sense_is_one_line(zot, catalogue, arguments, status, line):
    """A wrong command says what is wrong with it, and changes nothing."""
    found, _, told = zot(*arguments)
    assert (found, len(told.strip().splitlines())) == (status, 1)
    assert line in told


@pytest.mark.parametrize(("command", "ends"), [(("jobs",), 0), (("jobs", "retry", "--all", "--yes"), 1)])
def test_an_error_that_no_job_has_is_told(zot, end, command, ends):
    """The errors that jobs have are named, since those of libraries are too many for a list."""
    end("away")
    status, _, told = zot(*command, "--error", "Unavailble")
    assert (status, "did you mean 'Unavailable'? There are: Unavailable" in told) == (ends, True)


def test_a_pause_is_shown_by_every_command(zot, catalogue):
    """`pauses`, `stores` and `doctor` tell what is paused, since when and why, until it is resumed."""
    assert zot("pause", "store", "dr", "--reason", "moving")[0] == 0
    assert zot("pauses", "--json")[1]["pauses"][0]["reason"] == "moving"
    assert "moving" in zot("pauses")[1]
    assert "moving" in zot("stores")[1]
    assert "paused since" in zot("doctor")[1]
    assert zot("resume", "store", "dr", "--json")[1]["was_paused"]
    assert not zot("resume", "store", "dr", "--json")[1]["was_paused"]
    assert zot("pauses", "--json")[1] == {"pauses": []}


def test_a_job_is_found_by_the_beginning_of_its_id(zot, end):
    """A unique beginning is enough; one that fits more jobs is an error that names them."""
    end("5f0a1d0e-1111")
    end("5f0b2222-2222")
    end("5f0a1d0e-1111.00000003")
    assert zot("jobs", "5f0a", "--json")[1]["job"] == "5f0a1d0e-1111"
    assert zot("jobs", "5f0a1d0e.00000003", "--json")[1]["job"] == "5f0a1d0e-1111.00000003"
    status, _, told = zot("jobs", "5f0")
    assert (status, "5f0a1d0e-1111, 5f0b2222-2222" in told) == (2, True)


def test_one_job_is_shown_in_lines_for_people(zot, end):
    """Each value is a line of its own with its name; nothing is printed as Python would."""
    end("snoozed", error=SNOOZED, stores=["primary", "dr"])
    shown = zot("jobs", "snoozed")[1]
    assert "error        Snooze: dr: its circuit breaker is open" in shown
    assert "before that  Unavailable: dr: away" in shown
    assert "stores=primary, dr" in shown
    assert "{" not in shown


def test_sweeps_that_succeeded_do_not_hide_the_jobs_of_users(zot, end):
    """The table without a filter leaves them out; a filter and the JSON document show them."""
    end("of-a-user", state=JobState.FAILED)
    end("of-beat", state=JobState.SUCCEEDED, kind="sweep.alarms")
    end("of-beat-bad", state=JobState.FAILED, kind="sweep.alarms")
    shown = zot("jobs")[1]
    assert [id_ in shown for id_ in ("of-a-user", "of-beat ", "of-beat-bad")] == [True, False, True]
    assert "of-beat " in zot("jobs", "--kind", "sweep.alarms")[1]
    assert ids(zot("jobs", "--json")[1]) == ["of-a-user", "of-beat", "of-beat-bad"]


def test_a_batch_is_named_by_its_prefix_and_runs_while_it_waits(zot, end, catalogue):
    """A batch has no key: it shows its verb and prefix, and `running` from its start until its end."""
    end("b", kind="batch", verb="verify", key=None, prefix="2026/")
    assert "verify releases/2026/*" in zot("jobs")[1]
    assert "None" not in zot("jobs")[1]


@pytest.mark.parametrize(
    ("page", "shown"),
    [
        (
            {"verb": "verify", "range": {"bucket": "releases", "prefix": "a/", "until": "a/k"}},
            "verify releases/a/* up to a/k",
        ),
        (
            {"verb": "verify", "range": {"bucket": "releases", "prefix": "a/", "after": "a/k", "until": "a/x"}},
            "verify releases/a/* after a/k, up to a/x",
        ),
        ({"verb": "verify", "claim": {"store": "dr"}}, "verify what is due in dr"),
        ({"verb": "replicate", "to": ["dr"], "claim": {"store": "dr"}}, "replicate bad or absent copies of dr"),
        ({"verb": "adopt", "claim": {"store": "dr"}}, "adopt orphans of dr"),
    ],
)
def test_a_page_is_named_by_what_it_works_on(zot, end, page, shown):
    """A page of a batch has a part of a prefix; that of a sweep has copies of a store, which are not all due."""
    end("p", kind="page", key=None, bucket=None, **page)
    assert shown in zot("jobs")[1]


def test_ended_jobs_are_pruned_by_age(zot, end, catalogue):
    """Jobs that ended before the given time are removed and counted; later ones and dead letters stay."""
    end("old", state=JobState.FAILED)
    end("dead")
    assert zot("jobs", "prune", "--older-than", "1h", "--json")[1]["removed"] == 0
    assert catalogue.ledger.get("old")
    assert zot("jobs", "prune", "--older-than", "0", "--json")[1]["removed"] == 1
    assert (catalogue.ledger.get("old"), catalogue.ledger.get("dead").state) == (None, "dead")
    assert zot("jobs", "prune", "--older-than", "soon")[0] == 2


def test_commands_make_no_catalogue(zot, home, monkeypatch):
    """Where there is no catalogue, every command but `rebuild` and the worker says so and makes none."""
    monkeypatch.setenv("ZOT_BROKER", "redis://127.0.0.1:1/0")
    token = ["tokens", "add", "x", "--bucket", "b", "--verb", "read"]
    for command in (
        *(["ls"], ["show", "a/b"], ["stores"], ["jobs"], ["pauses"], ["log", "verify"], ["get", "a/b", "x"]),
        *(["pause", "store", "dr"], ["upload", __file__, "a/b"], ["adopt", "a/b", "--store", "dr"], token),
    ):
        status, _, told = zot(*command)
        assert (status, "no catalogue here" in told) == (2, True), command
    status, told, _ = zot("doctor")
    assert status != 0
    assert "catalogue: no catalogue here" in told
    assert "store dr: filesystem: writes, reads" in told
    assert not (home / "catalogue.sqlite3").exists()
    (home / "empty.sqlite3").touch()
    monkeypatch.setenv("ZOT_CATALOGUE", f"sqlite:///{home}/empty.sqlite3")
    assert zot("ls")[0] == 2
    assert (home / "empty.sqlite3").stat().st_size == 0, "a file without tables is no catalogue"
    with pytest.raises(NoCatalogue):  # one class, whether the file, its tables, or those of a server are missing
        open_session(load_settings())
    monkeypatch.setenv("ZOT_CATALOGUE", f"sqlite:///{home}/disk/c.sqlite3")
    with pytest.raises(NoCatalogue):
        open_session(load_settings())
    status, _, told = zot("ls")
    assert status == 2
    assert f"no catalogue here ({home}/disk/c.sqlite3): there is no directory {home}/disk" in told
    assert "zot-artifacts up" not in told, "it ends with the same error"
    monkeypatch.delenv("ZOT_CATALOGUE")
    Catalogue(load_settings().catalogue_url).close()
    (home / "catalogue.sqlite3").unlink()
    for command in ("ls", "status"):
        status, document, _ = zot(command, "--json")
        assert (status, document["error"]["type"]) == (3, "CatalogueLost"), "a worker would not make another one"
    assert "is gone" in zot("doctor")[1]


def test_doctor_makes_nothing_in_a_directory_of_others(zot, tmp_path, monkeypatch):
    """A wrong ZOT_HOME stays as it is, or absent; stores elsewhere are checked, and those in it would be made."""
    roots = {name: tmp_path / name for name in ("wrong", "nas")}
    roots["nas"].mkdir()
    stores = {name: {"type": "filesystem", "root": str(root / "x")} for name, root in roots.items()}
    (roots["nas"] / "x").mkdir()
    monkeypatch.setenv("ZOT_STORES", json.dumps(stores))
    monkeypatch.setenv("ZOT_PLACEMENT", '["nas"]')
    monkeypatch.setenv("ZOT_HOME", str(roots["wrong"]))
    for there in (False, True):
        if there:
            (roots["wrong"] / "run").mkdir(parents=True)  # as /var has it
        status, told, _ = zot("doctor")
        assert (status, "catalogue: no catalogue here" in told) == (3, True)
        assert "store nas: filesystem: writes, reads" in told
        assert "store wrong" not in told
        assert [path.name for path in roots["wrong"].rglob("*")] == ["run"] * there


def test_a_mistyped_key_is_not_deleted(zot, catalogue):
    """Deleting what the catalogue never had is an error with status 1 that suggests the key that is there.

    A bucket that is not there gets a suggestion, too, and a prefix without an artifact in one that is there none.
    """
    from worker.storage import Digest

    recorded = catalogue.artifacts.record(
        "releases", "app-1.2.tgz", Digest(1, "0" * 64), {}, clock.now(), stores=["dr"]
    ).artifact
    assert recorded.version == 1
    status, _, told = zot("delete", "releases/app-1.3.tgz")
    assert status == 1
    assert "never was" in told
    assert "no artifacts below relases/; did you mean 'releases'?" in zot("ls", "relases/")[2]
    assert "did you mean" not in zot("ls", "releases/2025/")[2]


def test_a_batch_that_waits_for_its_jobs_is_running(zot, catalogue):
    """Between its turns a batch shows as running, with verb, bucket and prefix; one that has not begun is queued."""
    lease = timedelta(seconds=30)
    request = {"verb": "verify", "bucket": "releases", "prefix": "v1/"}
    for id_ in ("begun", "waits"):
        given = {"owner": "here", "writes_to": "x", "parent": None, "now": clock.now(), "lease": lease}
        held = catalogue.ledger.acquire(id_, "batch", request, **given)
        if id_ == "begun":
            due = clock.now() + lease
            catalogue.ledger.continue_later(id_, held.record.fence, progress={"objects_done": 1}, due=due)
            blocker = catalogue.ledger.acquire("blocker", "upload", {"bucket": "b", "key": "k"}, **given)
            assert isinstance(blocker, Leased)
    found = {each["job"]: each["state"] for each in zot("jobs", "--kind", "batch", "--json")[1]["jobs"]}
    assert found == {"begun": "running", "waits": "queued"}
    for id_, state in found.items():
        assert [each["job"] for each in zot("jobs", "--state", state, "--kind", "batch", "--json")[1]["jobs"]] == [id_]
        assert status_of(catalogue.ledger.get(id_)).state == state  # what the gateway and the clients tell
    [line] = [line for line in zot("jobs", "--kind", "batch")[1].splitlines() if "begun" in line]
    assert "verify releases/v1/*" in line
    assert "running" in line
    assert "running" in zot("jobs", "begun")[1]


def test_a_mistyped_name_is_not_resumed(zot, catalogue):
    """A store, queue or job that is none is an error and not `was not paused`."""
    for what, name in (("store", "dx"), ("queue", "transfr"), ("job", "0000")):
        status, _, told = zot("resume", what, name)
        assert (status != Status.GOOD, name in told) == (True, True), what
    assert zot("resume", "queue", "transfer")[0] == Status.GOOD


def test_the_result_of_a_job_is_told_without_pythons_words(zot, catalogue):
    """Neither False nor an empty list is shown to people, and each line of the request has its label."""
    begun = catalogue.ledger.acquire(
        "done", "upload", {"bucket": "releases", "key": "a", "source": "/in/a", "stores": ["dr"]}, owner="here",
        writes_to=None, parent=None, now=clock.now(), lease=timedelta(seconds=30), queue="transfer",
    )  # fmt: skip
    copies = [{"store": "dr", "outcome": "stored", "source": None, "not_kept": []}]
    result = {"bucket": "releases", "key": "a", "unchanged": False, "copies": copies}
    catalogue.ledger.finish("done", begun.record.fence, JobState.SUCCEEDED, now=clock.now(), result=result)
    lines = [line.split(maxsplit=1) for line in zot("jobs", "done")[1].splitlines()]
    assert ["request", "source=/in/a"] in lines
    assert ["unchanged", "no"] in lines
    assert ["copies", "store=dr, outcome=stored"] in lines
