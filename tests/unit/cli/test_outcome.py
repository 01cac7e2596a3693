"""What commands print of the result of a job."""

import pytest

from worker.cli.outcome import Outcome, print_outcome
from zot_artifact_client import JobState


@pytest.mark.parametrize(
    ("result", "out", "err"),
    [
        ({"claimed": {}, "untrusted": [], "lost": 0}, "there is nothing to repair\n", ""),
        ({"claimed": {"dr": 3}, "lost": 0}, "dr: bad copies that are being replaced: 3\n", ""),
        ({"claimed": {}, "lost": 2}, "", "artifacts without a good copy to repair from: 2: `zot-artifacts findings"),
        ({"claimed": {}, "untrusted": ["dr"]}, "", "dr: its repairs are stopped: `zot-artifacts stores trust dr`"),
    ],
)
def test_a_repair_sweep_names_what_it_repairs_and_what_it_cannot(
    capsys: pytest.CaptureFixture[str], result: dict[str, object], out: str, err: str
) -> None:
    """A count of zero is not printed: `lost: 0` beside repaired copies read as if nothing had been found."""
    print_outcome(Outcome("a", "sweep.repair", JobState.SUCCEEDED, 1, None, result))
    printed = capsys.readouterr()
    assert printed.out == out
    assert err in printed.err
    assert bool(printed.err) == bool(err)
