"""Access tokens of the gateway: who they are for, what they allow, and the hash of each secret."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy import Row

from worker.catalogue.compiled_statements import Prepared
from worker.catalogue.database import Queries
from worker.catalogue.tables import access_tokens

_GET = Prepared(sa.select(access_tokens).where(access_tokens.c.id == sa.bindparam("token")))


@dataclass(frozen=True, slots=True)
class AccessToken:
    """One secret of a token. A token that was rotated has a second one until the first expires.

    Attributes:
        id: the public part, by which the row is found.
        name: of the token, for people and logs.
        sha256: of the secret; the secret itself is not kept.
        buckets: `BUCKET`, `BUCKET/PREFIX`, or `*` for all.
        verbs: what may be done there.
    """

    id: str
    name: str
    sha256: str
    buckets: tuple[str, ...]
    verbs: tuple[str, ...]
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None

    def valid(self, now: datetime) -> bool:
        """Return whether it is neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or self.expires_at > now)


class AccessTokens(Queries):
    """The access tokens, by id and by name."""

    def get(self, id_: str) -> AccessToken | None:
        """Return the secret with this id, also one that is not valid any more; None if there is none."""
        with self._database.read() as connection:
            row = _GET.first(connection, token=id_)
            return _token(row) if row else None

    def all(self) -> list[AccessToken]:
        """Return all secrets, by name and age."""
        query = sa.select(access_tokens).order_by(access_tokens.c.name, access_tokens.c.created_at)
        with self._database.read() as connection:
            return [_token(row) for row in connection.execute(query)]

    def add(self, token: AccessToken) -> bool:
        """Record the first secret of a token; return False, with nothing done, if a valid one has its name."""
        with self._database.write() as connection:
            rows = connection.execute(sa.select(access_tokens).where(access_tokens.c.name == token.name))
            if any(_token(row).valid(token.created_at) for row in rows):
                return False
            connection.execute(sa.insert(access_tokens), asdict(token))
            return True

    def rotate(self, name: str, fresh: AccessToken, *, old_until: datetime) -> Sequence[AccessToken]:
        """Add a secret to a token with what its newest valid one allows, and let the others expire at a moment.

        Returns the secrets that expire; none, with nothing done, if no valid one has this name.
        """
        mine = access_tokens.c.name == name
        with self._database.write() as connection:
            rows = connection.execute(sa.select(access_tokens).where(mine).order_by(access_tokens.c.created_at))
            valid = [token for row in rows if (token := _token(row)).valid(fresh.created_at)]
            if not valid:
                return ()
            newest = valid[-1]
            connection.execute(
                sa.insert(access_tokens),
                asdict(fresh) | {"buckets": newest.buckets, "verbs": newest.verbs, "expires_at": newest.expires_at},
            )
            sooner = sa.or_(access_tokens.c.expires_at.is_(None), access_tokens.c.expires_at > old_until)
            ids = access_tokens.c.id.in_([token.id for token in valid])
            connection.execute(sa.update(access_tokens).where(ids, sooner).values(expires_at=old_until))
            return valid

    def revoke(self, name: str, now: datetime) -> int:
        """Revoke all valid secrets of a token, and return how many that were."""
        mine = (access_tokens.c.name == name, access_tokens.c.revoked_at.is_(None))
        with self._database.write() as connection:
            rows = connection.execute(sa.select(access_tokens).where(*mine))
            ids = [token.id for row in rows if (token := _token(row)).valid(now)]
            changed = sa.update(access_tokens).where(access_tokens.c.id.in_(ids)).values(revoked_at=now)
            return connection.execute(changed).rowcount


def _token(row: Row[tuple[object, ...]]) -> AccessToken:
    return AccessToken(
        id=row.id, name=row.name, sha256=row.sha256, buckets=tuple(row.buckets), verbs=tuple(row.verbs),
        created_at=row.created_at, expires_at=row.expires_at, revoked_at=row.revoked_at,
    )  # fmt: skip
