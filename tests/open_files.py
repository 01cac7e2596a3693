"""The files that a test leaves open."""

from contextlib import suppress
from pathlib import Path


def open_below(*roots: Path) -> list[str]:
    """Return what of these directories this process has open, also what has no name any more.

    Other tests may have left files of their own open, which may be closed at any time.
    """
    found = list[Path]()
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # that of the listing, or closed meanwhile
            found.append(link.readlink())
    return sorted(str(path) for path in found if any(path.is_relative_to(root.resolve()) for root in roots))
