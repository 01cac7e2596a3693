"""Tell a person how a job ended."""

from collections.abc import Callable, Mapping
from typing import Any

from worker.cli.outcome import GOOD_VERDICT, Outcome
from worker.cli.output import complain, out, size, table


def tell(outcome: Outcome) -> None:
    """Print the result on stdout, or on stderr in one line why there is none."""
    if outcome.result is not None:
        _TELL[outcome.kind](outcome.result)
        _tell_more(outcome.job, outcome.result)
    elif outcome.ended:
        complain(f"{outcome.kind} {outcome.state}: {(outcome.error or {}).get('message', 'no cause was recorded')}")
    else:
        cause = f", its last attempt met: {outcome.error['message']}" if outcome.error else ""
        complain(f"job {outcome.job} is still {outcome.state}{cause}; it goes on, `zot-artifacts jobs {outcome.job}`")


def _placed(result: Mapping[str, Any]) -> None:
    there = ", ".join(copy["store"] for copy in result["copies"])
    end = f"\nunchanged: the same bytes are there already, in {there}" if result["unchanged"] else f" stored in {there}"
    out().print(_version(result) + end, markup=False)
    for copy in result["copies"]:
        if copy.get("quarantined"):
            out().print(f"{copy['store']}: what was found there is kept at {copy['quarantined']}", markup=False)


def _verdicts(result: Mapping[str, Any]) -> None:
    out().print(_version(result), markup=False)
    rows = [(copy["store"], copy["verdict"], copy["sha256"]) for copy in result["copies"]]
    out().print(table(("store", "verdict", "sha256"), rows))
    if not rows:
        complain(f"{result['bucket']}/{result['key']} has no copy in any store: upload it again")
    for copy in result["copies"]:
        if copy["verdict"] != GOOD_VERDICT:
            complain(f"{copy['store']}: {result['bucket']}/{result['key']} is {copy['verdict']}: {copy.get('detail')}")


def _deleted(result: Mapping[str, Any]) -> None:
    path = f"{result['bucket']}/{result['key']}"
    if result["unchanged"]:
        out().print(f"{path} is gone already, nothing was deleted", markup=False)
        return
    gone = ", ".join(copy["store"] for copy in result["copies"] if copy["outcome"] == "deleted")
    out().print(f"{path} deleted from {gone}", markup=False)


def _adopted(result: Mapping[str, Any]) -> None:
    how = "known already" if result["unchanged"] else "adopted"
    out().print(f"{_version(result)} {how} in {result['store']}, evidence: {result['evidence']}", markup=False)


def _batch(result: Mapping[str, Any]) -> None:
    counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(result["outcomes"].items())) or "nothing"
    line = f"{result['verb']}: {result['objects']} objects, {size(result['bytes'])}: {counts}"
    out().print(line, markup=False)
    for each in result["failures"]:
        complain(f"{each['bucket']}/{each['key']}: {each['outcome']}: {each['message']}")


def _tell_more(job: str, result: Mapping[str, Any]) -> None:
    """Say where the failures are that a result does not name."""
    left = result.get("failed", 0) - len(result.get("failures", ()))
    if left > 0:
        complain(f"and {left} more: `zot-artifacts jobs --parent {job} --failed` tells of all")


def _version(result: Mapping[str, Any]) -> str:
    path = f"{result['bucket']}/{result['key']}"
    return f"{path} version {result['version']} {size(result['size'])} sha256 {result['sha256']}"


_TELL: dict[str, Callable[[Mapping[str, Any]], None]] = {
    "upload": _placed,
    "replicate": _placed,
    "verify": _verdicts,
    "delete": _deleted,
    "adopt": _adopted,
    "batch": _batch,
}
