"""A store that cannot be relied on is known before it is needed."""

import dataclasses
import logging
import os

from tasks.sweeps.probe import sweep_probe
from tests.conformance.targets import make_s3_bucket, s3_config
from worker.storage import Stores
from zot_artifact_client.contract import SweepProbeRequest


def test_stores_that_work_have_no_fault_and_keep_nothing_of_the_probe(run, settings):
    """A probe of good stores finds nothing wrong and leaves no object behind."""
    result = run(sweep_probe, SweepProbeRequest())
    assert (set(result.probed), result.faults) == ({"primary", "dr", "cold"}, {})
    assert not list(settings.stores["dr"].root.glob("zot-probe/*"))


def test_a_store_that_is_away_is_named_and_the_others_are_probed(run, settings):
    """One store that cannot be reached is a fault of that store only."""
    settings.stores["dr"].root.rename(settings.stores["dr"].root.with_name("unplugged"))
    result = run(sweep_probe, SweepProbeRequest())
    assert list(result.faults) == ["dr"]
    assert "dr" in result.faults["dr"]


def test_a_store_that_ignores_create_if_absent_is_found_out(run, context, rclone, caplog):
    """A store that lets a second writer win although it was asked not to is called by that name, with the way out."""
    bucket = f"real-{os.urandom(4).hex()}"
    make_s3_bucket(rclone, bucket)
    caplog.set_level(logging.WARNING)
    for conditional in (True, False):
        config = s3_config(rclone, bucket=bucket, conditional_writes=conditional)
        stores = Stores({"cloud": config})
        probed = dataclasses.replace(context, stores=stores)
        result = run(
            lambda request, _, job, probed=probed: sweep_probe(request, probed.for_job(job), job), SweepProbeRequest()
        )
        stores.close()
        if conditional:
            assert "stores.cloud.conditional_writes: false" in result.faults["cloud"]
        else:
            assert not result.faults
            assert "only our own lease" in caplog.text
