"""What holds connections of this process, and can be copied but not pickled."""

from typing import NoReturn, Self


class BoundToProcess:
    """A handle on connections and locks of this process; a copy of it is itself."""

    __slots__ = ()

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce__(self) -> NoReturn:
        msg = (
            f"{type(self).__name__} has connections of this process and cannot be pickled: pass on the ids of jobs, "
            "and get each back with `client.job(id, kind)` of a client of the other process"
        )
        raise TypeError(msg)
