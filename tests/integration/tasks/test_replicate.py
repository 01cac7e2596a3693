"""Replication copies only right bytes, and names the copies that are not."""

import dataclasses
from datetime import timedelta

import pytest
import sqlalchemy as sa

from tasks.replicate import NoGoodSource, replicate
from tasks.upload import upload
from tasks.verify import verify
from worker import clock
from worker.artifacts import chunk_repair
from worker.artifacts.artifact_copies import ReadBackMismatch
from worker.catalogue.tables import copies
from worker.context import Context
from worker.limits.limited_store import LimitedStore
from worker.settings.section_models import ReplicationSettings, VerifySweepSettings
from worker.storage import Stores, Verdict, Verification
from worker.storage.errors import NotFound, Unavailable
from zot_artifact_client.contract import ReplicateRequest, UploadRequest, VerifyRequest


@pytest.fixture
def catalogue(catalogue_url):
    """Run everything here on both kinds of catalogue."""
    return catalogue_url


@pytest.fixture
def uploaded(run, source):
    return run(upload, UploadRequest(bucket="releases", key="app.tgz", source=source(b"release one")))


def request(*to: str) -> ReplicateRequest:
    return ReplicateRequest(bucket="releases", key="app.tgz", to=to)


def rot(path):
    content = bytearray(path.read_bytes())
    content[3] ^= 0x01
    path.write_bytes(content)


@pytest.mark.usefixtures("uploaded")
def test_a_copy_is_brought_to_a_store_that_has_none(run, stored):
    """After a replication the new store has the bytes and their digest, and the result names where they came from."""
    result = run(replicate, request("cold"))
    assert stored("cold").read_bytes() == b"release one"
    assert [(copy.store, copy.outcome, copy.source) for copy in result.copies] == [("cold", "stored", "dr")]


@pytest.mark.usefixtures("uploaded")
def test_what_is_there_already_is_not_written_again(run):
    """Replicating to a store that has its copy changes nothing and says so."""
    run(replicate, request("cold"))
    assert run(replicate, request("cold")).unchanged


@pytest.mark.usefixtures("uploaded")
def test_a_rotten_source_is_never_copied_and_the_next_one_is_tried(run, stored, context: Context):
    """Rot at a source is found while it is read: the copy comes from the other store, and the rot is on record."""
    rot(stored("dr"))

    result = run(replicate, request("cold"))

    assert stored("cold").read_bytes() == b"release one"
    assert result.copies[0].source == "primary"
    artifact = context.catalogue.artifacts.current("releases", "app.tgz")
    assert context.catalogue.artifacts.copies(artifact)["dr"].state == "corrupt"
    assert context.catalogue.verifications.of("releases", "app.tgz")[0]["verdict"] == "corrupt"


@pytest.mark.usefixtures("uploaded")
def test_the_source_is_a_good_copy_and_rather_one_that_was_read(run, stored, context):
    """Copies that a full read has verified come first, and those that were bad at their last read come last."""
    primary = VerifyRequest(bucket="releases", key="app.tgz", stores=("primary",))
    run(verify, primary)
    assert run(replicate, request("cold")).copies[0].source == "primary"
    rot(stored("primary"))
    run(verify, primary)
    stored("cold").unlink()
    assert run(replicate, request("cold")).copies[0].source == "dr"
    reads = [row["store"] for row in context.catalogue.verifications.of("releases", "app.tgz")]
    assert reads.count("primary") == 2, "it was not read once more"


@pytest.mark.usefixtures("uploaded")
def test_without_a_good_source_nothing_is_written_and_each_copy_is_named(run, stored):
    """When every copy is bad the replication fails, says what is wrong with which, and leaves the target empty."""
    rot(stored("dr"))
    stored("primary").unlink()

    with pytest.raises(NoGoodSource, match=r"dr: .*SHA-256.*primary: .*") as error:
        run(replicate, request("cold"))
    assert "\n" not in error.value.message
    assert not stored("cold").exists()


@pytest.mark.usefixtures("uploaded")
def test_a_repair_keeps_the_bad_bytes_and_replaces_them_with_right_ones(run, stored, context):
    """Replicating over a corrupt copy quarantines its bytes; the store has the recorded bytes then, read in full."""
    rot(stored("dr"))
    bad = stored("dr").read_bytes()
    run(verify, VerifyRequest(bucket="releases", key="app.tgz"))

    result = run(replicate, request("dr"))

    copy = result.copies[0]
    bucket, _, key = copy.quarantined.partition("/")
    assert copy.outcome == "repaired"
    recorded = context.catalogue.artifacts.copies(context.catalogue.artifact("releases", "app.tgz"))["dr"]
    assert (recorded.state, recorded.last_verified_at) == ("verified", recorded.read_at)
    assert stored("dr").read_bytes() == b"release one"
    assert stored("dr", key, bucket).read_bytes() == bad
    assert run(verify, VerifyRequest(bucket="releases", key="app.tgz")).good


@pytest.mark.usefixtures("uploaded")
def test_a_repair_that_finds_no_good_copy_leaves_the_bad_one_in_place(run, stored, context):
    """A corrupt copy is never deleted to make room for one that cannot be had.

    Neither that copy is a source, nor one that was never finished.
    """
    artifacts = context.catalogue.artifacts
    artifacts.ensure_copy(context.catalogue.artifact("releases", "app.tgz"), "cold")
    rot(stored("dr"))
    rot(stored("primary"))
    bad = stored("dr").read_bytes()
    run(verify, VerifyRequest(bucket="releases", key="app.tgz"))

    with pytest.raises(NoGoodSource, match="no copy is right: primary: [^;]*$"):
        run(replicate, request("dr"))
    assert stored("dr").read_bytes() == bad


def test_an_artifact_that_is_not_known_is_named_with_the_nearest_that_is(run, uploaded):
    """A misspelt key fails with the key that was probably meant."""
    with pytest.raises(NotFound, match=r"did you mean 'releases/app\.tgz'"):
        run(replicate, ReplicateRequest(bucket="releases", key="app.tzg", to=("cold",)))


@pytest.fixture
def reread(context: Context) -> Context:
    """The same context, with replicas read back before they are believed in."""
    proof = ReplicationSettings(proof="reread")
    return dataclasses.replace(context, settings=context.settings.model_copy(update={"replication": proof}))


@pytest.mark.usefixtures("uploaded")
def test_a_replica_is_read_back_where_the_settings_ask_for_it(run, reread, monkeypatch):
    """With `proof: reread` the new copy has been verified by the time its job is done; one bad read says nothing."""
    store, bad = reread.stores["cold"], [Verification(Verdict.CORRUPT, detail="once")]
    verify_object = store.verify_object
    monkeypatch.setattr(store, "verify_object", lambda *of, **how: bad.pop() if bad else verify_object(*of, **how))
    run(replicate, request("cold"), context=reread)
    artifact = reread.catalogue.artifacts.current("releases", "app.tgz")
    assert (reread.catalogue.artifacts.copies(artifact)["cold"].state, bad) == ("verified", [])


@pytest.mark.usefixtures("uploaded")
def test_a_store_that_does_not_give_back_what_it_took_is_found_out(run, reread, stored, monkeypatch):
    """With `proof: reread` a replica that rots as it is written fails its job, and is on record as corrupt."""
    store = reread.stores["cold"]
    write = store.write_object

    def write_and_rot(*args, **kwargs):
        written = write(*args, **kwargs)
        rot(stored("cold"))
        return written

    monkeypatch.setattr(store, "write_object", write_and_rot)
    with pytest.raises(ReadBackMismatch, match=r"cold: releases/app\.tgz .* corrupt"):
        run(replicate, request("cold"), context=reread)
    artifact = reread.catalogue.artifacts.current("releases", "app.tgz")
    assert reread.catalogue.artifacts.copies(artifact)["cold"].state == "corrupt"


@pytest.mark.usefixtures("uploaded")
def test_a_repair_that_cannot_be_read_back_now_is_read_at_the_next_attempt(run, context, stored, monkeypatch):
    """A store that fails at the read has given no other bytes: the job is tried again, and then reads the new copy."""
    rot(stored("dr"))
    run(verify, VerifyRequest(bucket="releases", key="app.tgz"))
    away = Verification(Verdict.UNREADABLE, detail="it is away")
    with monkeypatch.context() as patched:
        patched.setattr(LimitedStore, "write_object", _then(LimitedStore.write_object, patched, away))
        with pytest.raises(Unavailable, match=r"dr: releases/app\.tgz was written and cannot be read back: it is away"):
            run(replicate, request("dr"))
    assert run(replicate, request("dr")).copies[0].outcome == "already_there"
    copy = context.catalogue.artifacts.copies(context.catalogue.artifact("releases", "app.tgz"))["dr"]
    assert (copy.state, stored("dr").read_bytes()) == ("verified", b"release one")


def _then(write, patched, seen):
    """Return a write after which each read of the store gives this verdict."""

    def wrote(*args, **kwargs):
        placed = write(*args, **kwargs)
        patched.setattr(LimitedStore, "verify_object", lambda *_, **__: seen)
        return placed

    return wrote


@pytest.mark.usefixtures("uploaded")
def test_a_copy_that_is_back_is_a_source_once_it_was_read(run, context, stored):
    """A copy that was missing at its last read is verified, and copied from, where no good copy is left."""
    away = stored("dr").rename(stored("dr").with_name("away"))
    run(verify, VerifyRequest(bucket="releases", key="app.tgz"))
    stored("primary").unlink()
    away.rename(stored("dr"))

    result = run(replicate, request("cold"))

    assert (result.copies[0].source, stored("cold").read_bytes()) == ("dr", b"release one")
    artifact = context.catalogue.artifacts.current("releases", "app.tgz")
    assert context.catalogue.artifacts.copies(artifact)["dr"].state == "verified"


@pytest.mark.usefixtures("uploaded")
def test_a_copy_that_is_still_bad_is_no_source(run, stored, context):
    """A copy that was corrupt at its last read and still is is named, and nothing of it is at the target.

    While it cannot be read, it may be right again: the job is tried later.
    """
    rot(stored("dr"))
    run(verify, VerifyRequest(bucket="releases", key="app.tgz"))
    stored("primary").unlink()
    with pytest.raises(NoGoodSource, match=r"primary: .*dr: corrupt"):
        run(replicate, request("cold"))
    root = context.settings.stores["dr"].root
    away = root.rename(root.with_name("away"))
    with pytest.raises(Unavailable, match="dr: unreadable"):
        run(replicate, request("cold"))
    away.rename(root)
    assert not stored("cold").exists()


@pytest.mark.usefixtures("uploaded")
def test_a_source_that_left_the_configuration_is_passed_over(run, context, stored):
    """A copy in a store that is not configured keeps no job from the copies that can be read."""
    run(verify, VerifyRequest(bucket="releases", key="app.tgz", stores=("dr",)))  # dr would be the first
    configs = {name: config for name, config in context.settings.stores.items() if name != "dr"}
    left = dataclasses.replace(context, stores=Stores(configs))
    result = run(replicate, request("cold"), context=left)
    assert result.copies[0].source == "primary"


@pytest.fixture
def distrustful(context: Context) -> Context:
    """The same context, with every copy read before an upload or replication believes in it."""
    always = context.settings.sweep.verify.model_copy(update={"trust": timedelta()})
    sweep = context.settings.sweep.model_copy(update={"verify": always})
    return dataclasses.replace(context, settings=context.settings.model_copy(update={"sweep": sweep}))


def rot_unnoticed(context, path, **recorded):
    """Let a copy rot while its store gives the version tag and size that are on record; record more about it."""
    rot(path)
    artifact = context.catalogue.artifacts.current("releases", "app.tgz")
    tag = context.stores["dr"].stat_object("releases", "app.tgz").version
    with context.catalogue._database.write() as connection:
        connection.execute(
            sa.update(copies)
            .where(copies.c.artifact_id == artifact.id, copies.c.store == "dr")
            .values({"tag": tag} | recorded)
        )


@pytest.mark.parametrize("verb", ["upload", "replicate"])
def test_rot_that_no_store_notices_is_found_where_the_last_read_is_long_ago(
    run, source, stored, context, distrustful, uploaded, verb
):
    """What is there already is read where its last full read is older than the trust, and rot is repaired."""
    rot_unnoticed(context, stored("dr"))
    again = UploadRequest(bucket="releases", key="app.tgz", source=source(b"release one"), stores=("dr",))
    work, wish = (upload, again) if verb == "upload" else (replicate, request("dr"))
    assert run(work, wish).unchanged, "the write was just now: within the trust nothing is read"
    result = run(work, wish, context=distrustful)
    assert result.copies[0].outcome == "repaired"
    assert result.copies[0].quarantined
    assert stored("dr").read_bytes() == b"release one"
    assert run(work, wish, context=distrustful).unchanged


@pytest.mark.usefixtures("uploaded")
@pytest.mark.parametrize(
    "there,recorded",
    [
        (b"release one", {"last_verdict": "unreadable"}),
        (b"release one", {"read_at": clock.now() + timedelta(days=1)}),
        (b"release", {}),
        (b"release one", {"tag": "another"}),
    ],
)
def test_a_copy_is_read_whose_last_read_failed_or_is_to_come_or_that_has_another_size_or_tag(
    run, stored, context, there, recorded
):
    """The trust is for the recorded version tag and size, and follows from a full read that is over."""
    stored("dr").write_bytes(there)
    rot_unnoticed(context, stored("dr"), **recorded)
    assert run(replicate, request("dr")).copies[0].outcome == "repaired"


@pytest.mark.usefixtures("uploaded")
def test_a_copy_that_was_cut_is_repaired_as_a_whole(run, stored, monkeypatch):
    """No chunks are read from it, however many it has: that one ends too early says nothing about its bytes."""
    monkeypatch.setattr(chunk_repair, "FEWEST_CHUNKS", 1)
    stored("dr").write_bytes(b"release")
    run(verify, VerifyRequest(bucket="releases", key="app.tgz"))
    assert run(replicate, request("dr")).copies[0].outcome == "repaired"


@pytest.mark.usefixtures("uploaded")
def test_a_copy_that_cannot_be_read_again_is_not_replaced(run, distrustful, stored, monkeypatch):
    """It may be right: the job fails with a transient error, and leaves the copy as it is."""
    before = stored("dr").stat().st_ino
    away = Verification(Verdict.UNREADABLE, detail="it is away")
    monkeypatch.setattr(LimitedStore, "verify_object", lambda *_, **__: away)
    with pytest.raises(Unavailable, match=r"dr: what is at releases/app\.tgz cannot be read: it is away"):
        run(replicate, request("dr"), context=distrustful)
    assert stored("dr").stat().st_ino == before


@pytest.mark.usefixtures("uploaded")
def test_the_trust_is_the_period_of_the_store(context):
    """Without a setting a copy is trusted for the time within which the sweep reads it again."""
    verify_sweep = VerifySweepSettings(period=timedelta(days=30), periods={"dr": timedelta(days=7)})
    assert [verify_sweep.trust_of(store) for store in ("primary", "dr")] == [timedelta(days=30), timedelta(days=7)]
    assert VerifySweepSettings(trust=timedelta(days=1)).trust_of("dr") == timedelta(days=1)
