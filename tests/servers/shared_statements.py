"""Let the catalogues of a test process share what SQLAlchemy compiles: each test has a new catalogue."""

from sqlalchemy import Engine
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.util import LRUCache

_MOST = 5000


def share_compiled_statements() -> None:
    """Let all engines of this process and its forks have one cache of compiled statements.

    SQLAlchemy keeps them by engine, and the dialect of an engine is a part of their key. The worker opens one catalogue
    and compiles a statement once; a test process would compile it for each test.
    """
    cache = LRUCache[object, object](_MOST)
    Engine._compiled_cache = property(lambda _: cache, lambda *_: None)
    for dialect in (PGDialect_psycopg, SQLiteDialect_pysqlite):
        dialect.__eq__ = lambda one, other: type(one) is type(other)
        dialect.__hash__ = lambda one: hash(type(one))
