"""What commands print of the result of a job."""

import pytest

from worker.cli.job_outcome import Outcome, print_outcome
from zot_artifact_client import JobState


@pytest.mark.parametrize(
    ("result", "out", "err"),
    [
        ({"claimed": {}, "untrusted": [], "lost": 0}, "there is nothing to repair\n", ""),
        ({"claimed": {"dr": 3}, "lost": 0}, "dr: copies that are being repaired: 3\n", ""),
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


_CLEANED = (
    "dr: stale uploads and files removed: 1; in quarantine: 2.0 KiB\n"
    "dr: unfinished uploads of other programs, which stay: 4\n"
    "staged sources removed: 0\n"
)


@pytest.mark.parametrize(
    ("kind", "result", "out"),
    [
        ("sweep.verify", {"claimed": {"dr": 3}, "pages": {"dr": 1}}, "dr: copies due: 3, pages sent: 1\n"),
        (
            "sweep.replicate",
            {"claimed": {}},
            "no copy that placement wants, or that a job has begun, is missing for longer than sweep.replicate.late\n",
        ),
        ("sweep.replicate", {"claimed": {"dr": 2}}, "dr: missing copies that are being written: 2\n"),
        (
            "sweep.leftovers",
            {"removed": {"dr": 1}, "staged": 0, "foreign": {"dr": 4}, "quarantined": {"dr": 2048}},
            _CLEANED,
        ),
    ],
)
def test_a_sweep_says_what_its_counts_are_of(
    capsys: pytest.CaptureFixture[str], kind: str, result: dict[str, object], out: str
) -> None:
    """Each count has its unit, and a sweep that found nothing to do says so."""
    print_outcome(Outcome("a", kind, JobState.SUCCEEDED, 1, None, result))
    assert capsys.readouterr().out == out


@pytest.mark.parametrize(
    ("state", "told"),
    [
        (
            JobState.DEAD,
            "upload dead: dr: away; once that is repaired, `zot-artifacts jobs retry 5f0a` sends the job again",
        ),
        (JobState.FAILED, "upload failed: dr: away"),
    ],
)
def test_a_dead_letter_names_its_way_out(capsys: pytest.CaptureFixture[str], state: JobState, told: str) -> None:
    """`upload dead` alone did not say that the job can be redriven, nor its id."""
    print_outcome(Outcome("5f0a", "upload", state, 3, {"type": "Unavailable", "message": "dr: away"}, None))
    assert capsys.readouterr().err == f"zot-artifacts: {told}\n"
