"""Say how many there are of something."""


def counted(count: int, noun: str) -> str:
    """Return a number with its noun: `1 copy`, `2,000 copies`."""
    if count != 1:
        noun = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{count:,} {noun}"
