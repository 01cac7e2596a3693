"""Counters and counts that pass by themselves: in Redis, where all workers see them, or in this process alone."""

import time

from redis import Redis

from worker.limits.shared_redis import PREFIX, SharedRedis


class Counters:
    """Counters by name, each of which expires. Redis keeps the time, so no two clocks are compared."""

    def __init__(self, shared: SharedRedis) -> None:
        self._shared = shared
        self._own: dict[str, tuple[int, float]] = {}

    def add(self, name: str, seconds: float) -> int:
        """Count up and return the count; it is gone so many seconds after the first."""

        def alone() -> int:
            count, until = self._alone(name)
            self._own[name] = (count + 1, until or time.monotonic() + seconds)
            return count + 1

        def ask(redis: "Redis") -> int:
            with redis.pipeline() as together:
                together.incr(_key(name))
                together.pexpire(_key(name), _ms(seconds), nx=True)
                return int(together.execute()[0])

        return self._shared.ask(ask, alone)

    def put(self, name: str, seconds: float) -> bool:
        """Put a mark for so many seconds; return False if it is there already."""

        def alone() -> bool:
            if self._alone(name)[0]:
                return False
            self._own[name] = (1, time.monotonic() + seconds)
            return True

        return self._shared.ask(lambda redis: bool(redis.set(_key(name), 1, px=_ms(seconds), nx=True)), alone)

    def look(self, *names: str) -> list[tuple[int, float]]:
        """Return the count of each mark and the seconds it has left; zeros for one that is not there."""

        def ask(redis: "Redis") -> list[tuple[int, float]]:
            with redis.pipeline() as together:
                for name in names:
                    together.get(_key(name))
                    together.pttl(_key(name))
                answers = together.execute()
            return [(int(n or 0), max(0, ms) / 1000) for n, ms in zip(answers[::2], answers[1::2], strict=True)]

        def alone() -> list[tuple[int, float]]:
            now = time.monotonic()
            return [(count, max(0.0, until - now)) for count, until in map(self._alone, names)]

        return self._shared.ask(ask, alone)

    def remove(self, *names: str) -> None:
        """Take marks away, here and there."""
        for name in names:
            self._own.pop(name, None)
        self._shared.ask(lambda redis: redis.delete(*map(_key, names)), lambda: 0)

    def _alone(self, name: str) -> tuple[int, float]:
        count, until = self._own.get(name, (0, 0.0))
        return (count, until) if until > time.monotonic() else (0, 0.0)


def _key(name: str) -> str:
    return f"{PREFIX}:{name}"


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))
