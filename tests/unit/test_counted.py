"""Numbers with their nouns."""

import re
from pathlib import Path

from worker.counted import counted

_ROOT = Path(__file__).parents[2]
_NOUNS = "artifact|bucket|chunk|file|finding|job|object|request|store|upload|letter"
_NUMBER = r"(?<!/)\{[^{}A-Z_][^{}]*\}"  # not of 1/{all} objects, which is a part, and not of a constant
_PLURAL = re.compile(rf"{_NUMBER} (?:(?:bad|deleted|good|more|new|open) )?(?:copies|(?:{_NOUNS})s)\b")


def test_one_is_singular():
    """One has the noun as it is; none and many have its plural."""
    assert [counted(count, "copy") for count in (0, 1, 2000)] == ["0 copies", "1 copy", "2,000 copies"]
    assert counted(3, "job") == "3 jobs"


def test_no_message_has_a_fixed_plural_after_its_number():
    """`1 copies were not read` is what such a message says of one."""
    sources = [path for folder in ("worker", "tasks") for path in _ROOT.joinpath(folder).rglob("*.py")]
    assert len(sources) > 300
    found = [
        f"{path.name}: {line.strip()}"
        for path in sources
        for line in path.read_text().splitlines()
        if _PLURAL.search(line)
    ]
    assert found == []
