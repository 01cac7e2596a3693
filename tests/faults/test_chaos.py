"""After random jobs and random faults every accepted job has ended, and the catalogue is right."""

from uuid import uuid4

import pytest

from tests.faults.chaos import S3, Fleet
from tests.servers import Ministack

SEEDS = (1,)
"""Those that once found something stay here. `make soak` looks for others."""
SECONDS = 20


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", SEEDS)
def test_what_was_accepted_ends_once_whatever_happens(ministack: Ministack, tmp_path, seed: int) -> None:
    """No job is lost, none happens twice, no copy is other than recorded, nothing is left behind, the log is whole."""
    print(f"seed {seed}")
    with Fleet(tmp_path / "fleet", S3(ministack, f"chaos-{uuid4().hex[:8]}"), seed) as fleet:
        fleet.live(SECONDS)
        fleet.settle()
        fleet.judge()
    assert (fleet.tally.lost, fleet.tally.wrong) == ([], [])
    assert sum(fleet.tally.states.values()) == sum(fleet.tally.jobs.values()) > 0
