"""Opening the fleet's database: SQLite or PostgreSQL, its schema made or brought up to date, typed errors."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, exc, insert, inspect, select, text
from sqlalchemy.engine import URL, make_url

from edge_cl.errors import ConfigError, FleetError, StoreUnavailable
from edge_cl_fleet.tables import metadata, schema_version

BUSY_S = 30.0
_PATIENCE = {
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}
"""Of PostgreSQL's client: a server that vanished without a word is noticed within a minute, not in hours."""
_LOCK = 0x6564676563  # any number, but the same in every worker


def _first(connection: Connection) -> None:
    metadata.create_all(connection)


MIGRATIONS: list[Callable[[Connection], None]] = [_first]
"""Step i leads from version i to i + 1. A step is never changed once it was released; a new one is added."""


def open_engine(url: str, *, create: bool = True) -> Engine:
    """An engine for ``sqlite:///fleet.db`` or ``postgresql://user@host/name``, its schema up to date.

    Transactions on SQLite begin with the right to write, so that two workers wait for each other instead of
    failing; :func:`reading` gives one for queries.

    Without `create` a file that is not there is not made.

    Raises
    ------
    ConfigError
        For a URL of another kind.
    FleetError
        When the schema is of a newer program.
    StoreUnavailable
        When the database cannot be reached or opened.
    """
    parsed = _parse(url)
    if not create and parsed.get_backend_name() == "sqlite" and not Path(str(parsed.database)).exists():
        raise FleetError(f"there is no store at {parsed.database}; edge-cl fleet serve makes it")
    if parsed.get_backend_name() == "sqlite":
        engine = create_engine(parsed, connect_args={"timeout": BUSY_S, "check_same_thread": False})
        event.listen(engine, "connect", _on_sqlite_connect)
        event.listen(engine, "begin", _on_sqlite_begin)
    else:
        engine = create_engine(parsed, connect_args=_PATIENCE, pool_pre_ping=True)
    try:
        with guarded(engine), engine.begin() as connection:
            _migrate(connection)
    except BaseException:
        engine.dispose()
        raise
    return engine


def reading(engine: Engine) -> Engine:
    """The same engine for transactions that only read: on SQLite they wait for nobody."""
    return engine.execution_options(reads=True)


@contextlib.contextmanager
def guarded(engine: Engine) -> Iterator[None]:
    """Raise what goes wrong with the database as `StoreUnavailable`; it is worth trying again."""
    try:
        yield
    except (exc.OperationalError, exc.InterfaceError, exc.InternalError, exc.TimeoutError) as error:
        raise StoreUnavailable(_explain(engine, error)) from error
    except exc.ProgrammingError as error:
        raise StoreUnavailable(
            f"{_name(engine)} refused: {_reason(error)}; check the user's rights"
        ) from error
    except exc.DatabaseError as error:
        if type(error) is not exc.DatabaseError:
            raise  # a row that the database refuses: for the caller
        raise StoreUnavailable(_explain(engine, error)) from error


def _parse(url: str) -> URL:
    allowed = "write sqlite:///fleet.db or postgresql://user@host/name"
    try:
        parsed = make_url(url)
    except exc.ArgumentError as error:
        raise ConfigError(f"the store's URL cannot be read; {allowed}") from error
    backend = parsed.get_backend_name()
    if backend == "sqlite":
        if parsed.database in (None, "", ":memory:"):
            raise ConfigError(f"the store's URL names no file; {allowed}")
        return parsed
    if backend in ("postgresql", "postgres"):
        return parsed.set(drivername="postgresql+psycopg")
    raise ConfigError(f"the store's URL begins with {parsed.drivername}://; {allowed}")


def _on_sqlite_connect(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions begin where we say
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "cache_size=-65536"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _on_sqlite_begin(connection: Connection) -> None:
    only_reads = connection.get_execution_options().get("reads")
    connection.exec_driver_sql("BEGIN" if only_reads else "BEGIN IMMEDIATE")


def _migrate(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    version = 0
    if inspect(connection).has_table(schema_version.name):
        version = connection.execute(select(schema_version.c.version)).scalar() or 0
    if version > len(MIGRATIONS):
        raise FleetError(
            f"{_name(connection.engine)} has schema version {version}, this edge-cl knows up to "
            f"{len(MIGRATIONS)}; update edge-cl on this server"
        )
    if version == len(MIGRATIONS):
        return
    for step in MIGRATIONS[version:]:
        step(connection)
    connection.execute(schema_version.delete())
    connection.execute(insert(schema_version).values(version=len(MIGRATIONS)))


def _name(engine: Engine) -> str:
    return f"the store {engine.url.render_as_string(hide_password=True)}"


def _reason(error: exc.SQLAlchemyError) -> str:
    original = getattr(error, "orig", None) or error
    return str(original).strip().splitlines()[0] if str(original).strip() else type(original).__name__


def _explain(engine: Engine, error: exc.SQLAlchemyError) -> str:
    reason = _reason(error)
    if "locked" in reason:
        todo = f"another program held it for {BUSY_S:g} s; end it, or use PostgreSQL for many workers"
    elif engine.dialect.name == "sqlite":
        todo = "check that its folder exists, may be written, has room, and that the file is a database"
    else:
        todo = "check that PostgreSQL runs there, and the user, password and name in the URL"
    return f"{_name(engine)} cannot be used ({reason}); {todo}"
