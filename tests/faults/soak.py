"""`make soak`: random faults for as long as requested, with a check of everything after each minute."""

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from tests.faults.chaos import S3, Azure, Fleet, Gcs, Tally
from tests.servers import Azurite, FakeGcs, Ministack, Postgres, StrictGcs

SPELL = 60.0
"""Seconds of work and faults between two looks."""


def main() -> int:
    """Run, and return 0 if nothing was lost and nothing was wrong."""
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--cloud", choices=("s3", "gcs", "azure"), default="s3")
    parser.add_argument("--catalogue", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--home", type=Path, help="keep data and logs here; without, they are removed")
    wish = parser.parse_args()
    print(f"seed {wish.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="zot-soak-") as directory:
        home = wish.home or Path(directory)
        with (
            cloud_of(wish.cloud, home / "cloud") as cloud,
            Postgres(home / "postgres") if wish.catalogue == "postgresql" else nullcontext() as postgres,
            Fleet(home / "soak", cloud, wish.seed, postgres) as fleet,
        ):
            begun = time.monotonic()
            while (so_far := (time.monotonic() - begun) / 60) < wish.minutes:
                fleet.live(SPELL)
                fleet.settle()
                fleet.judge()
                tally = fleet.tally
                print(f"{so_far:5.1f} min: {told(tally)}", flush=True)
                if tally.lost or tally.wrong:
                    break
            minutes = (time.monotonic() - begun) / 60
    print(summary(fleet.tally, minutes, wish.seed))
    return 1 if fleet.tally.lost or fleet.tally.wrong else 0


@contextmanager
def cloud_of(kind: str, directory: Path) -> Iterator[S3 | Gcs | Azure]:
    """Run the server of a kind for a `with` block."""
    bucket = f"soak-{os.getpid()}"
    match kind:
        case "gcs":
            with FakeGcs(directory) as server, StrictGcs(server.port) as strict:
                yield Gcs(strict, bucket)
        case "azure":
            with Azurite(directory) as azurite:
                yield Azure(azurite, bucket)
        case _:
            with Ministack(directory) as ministack:
                yield S3(ministack, bucket)


def told(tally: Tally) -> str:
    """Print the state in one line."""
    return (
        f"{sum(tally.jobs.values())} jobs, {sum(tally.faults.values())} faults, "
        f"{len(tally.lost)} lost, {len(tally.wrong)} wrong"
    )


def summary(tally: Tally, minutes: float, seed: int) -> str:
    """Return the faults and the outcomes of the run."""
    lines = [f"{minutes:.0f} minutes, seed {seed}: {told(tally)}"]
    for name, counter in (("jobs", tally.jobs), ("faults", tally.faults), ("ended", tally.states)):
        lines.append(f"{name}: " + ", ".join(f"{count} {what}" for what, count in sorted(counter.items())))
    lines.append(f"most attempts at one job: {max(tally.attempts, default=0)}; not accepted: {tally.refused_to_send}")
    return "\n".join([*lines, *(f"LOST {line}" for line in tally.lost), *(f"WRONG {line}" for line in tally.wrong)])


if __name__ == "__main__":
    sys.exit(main())
