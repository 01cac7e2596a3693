"""Cut a body into the parts of a multipart upload. Shared by all stores that have parts."""

from worker.storage.driver import Body
from worker.storage.errors import SizeMismatch

MIB = 1024 * 1024


def plan_parts(size: int, *, min_part: int, max_part: int, max_parts: int, multiple: int = MIB) -> int:
    """Return the size of all parts but the last, so that at most `max_parts` of them hold `size` bytes.

    It is the smallest that is enough and not below `min_part`, rounded up to a `multiple` where `max_part` allows.
    The caller guarantees `0 < min_part <= max_part`.

    Raises:
        SizeMismatch: not even parts of `max_part` bytes are enough.
    """
    if size > max_part * max_parts:
        raise SizeMismatch(f"{size} bytes do not fit into {max_parts} parts of at most {max_part} bytes")
    needed = max(min_part, _divided(size, max_parts))
    return min(_divided(needed, multiple) * multiple, max_part)


def next_part(body: Body, size: int) -> bytearray:
    """Return the next `size` bytes of a body, or fewer at its end; empty only when its end was read and was right.

    Only the part itself is held in memory. Raises what the body raises.
    """
    part = bytearray()
    while len(part) < size and (data := body.read(min(MIB, size - len(part)))):
        part += data
    return part


def _divided(dividend: int, divisor: int) -> int:
    """Divide and round up, without the floats that are wrong for large objects."""
    return -(-dividend // divisor)
