"""Numbers with their nouns."""

from worker.counted import counted


def test_one_is_singular():
    """One has the noun as it is; none and many have its plural."""
    assert [counted(count, "copy") for count in (0, 1, 2000)] == ["0 copies", "1 copy", "2,000 copies"]
    assert counted(3, "job") == "3 jobs"
