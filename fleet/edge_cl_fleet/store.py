"""The fleet's store, writing: a batch of words becomes rows in one transaction, each message once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, and_, bindparam, case, exc, func, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite

from edge_cl.commands import CommandResult
from edge_cl.sync.messages import Gone, InstallReport
from edge_cl_fleet import tables
from edge_cl_fleet.arrivals import Row, Word
from edge_cl_fleet.database import guarded, open_engine, reading
from edge_cl_fleet.presence import Known, Lives, fold, is_news, row_of, storable

MAX_KNOWN = 100_000
_COLUMNS = ", ".join(Row._fields)
_PLACES = ", ".join("?" * len(Row._fields))
_INSERT_SQLITE = f"INSERT INTO messages ({_COLUMNS}) VALUES ({_PLACES}) ON CONFLICT (id) DO NOTHING"
# One statement whatever the batch's size: it is planned once, and goes over in one piece.
_TYPES = dict.fromkeys(Row._fields, "text") | {"seq": "bigint"} | dict.fromkeys(Row._fields[7:10], "float8")
_INSERT_POSTGRESQL = (
    f"INSERT INTO messages ({_COLUMNS}) SELECT * FROM unnest("
    f"{', '.join(f'%b::{_TYPES[name]}[]' for name in Row._fields)}) ON CONFLICT (id) DO NOTHING"
)
_KNOWN = [tables.devices.c[name] for name in Known.__struct_fields__]
_CHANGED = Known.__struct_fields__[3:]  # not its name, nor when it was first seen
_UPDATE_DEVICE = (
    update(tables.devices)
    .where(tables.devices.c.site == bindparam("at_site"), tables.devices.c.device == bindparam("at_device"))
    .values({name: bindparam(f"new_{name}") for name in _CHANGED})
)
_BEFORE = {
    "fetched": ("waiting", "sent"),
    "shadow": ("waiting", "sent", "fetched"),
    "committed": ("waiting", "sent", "fetched", "shadow"),
    "rolled-back": ("waiting", "sent", "fetched", "shadow", "committed"),
    "failed": ("waiting", "sent", "fetched", "shadow", "committed"),
}
"""Of an installation: the phases that each one may follow; reports may come late and twice."""


class FleetStore:
    """The store at `url`; one per process, its `insert` for one thread.

    `create` makes a file that is not there.

    Attributes
    ----------
    engine
        For transactions that write.
    reading
        For queries.
    n_refused
        Messages that the database would not take; they are confirmed, else they would come for ever.
    """

    def __init__(self, url: str, *, create: bool = True) -> None:
        self.engine = open_engine(url, create=create)
        self.reading = reading(self.engine)
        self.n_refused = 0
        self._known: dict[tuple[str, str], Known] = {}
        self._lives: defaultdict[tuple[str, str], Lives] = defaultdict(Lives)

    def insert(self, words: Sequence[Word]) -> list[str]:
        """Store a batch in one transaction and give the ids of its messages: all are in the store now.

        A message that is there already is left as it is. Raises `StoreUnavailable`: then nothing was stored.
        """
        with guarded(self.engine):
            try:
                with self.engine.begin() as connection:
                    changed = self._write(connection, words)
            except (exc.DataError, exc.IntegrityError, UnicodeError, OverflowError):
                return self._insert_halves(words)
        self._remember(changed)
        return [word.row.id for word in words if word.row is not None]

    def close(self) -> None:
        """Give back all connections."""
        self.engine.dispose()

    def n_devices(self) -> int:
        """How many devices it knows."""
        with guarded(self.engine), self.reading.connect() as connection:
            return connection.execute(select(func.count()).select_from(tables.devices)).scalar_one()

    def _insert_halves(self, words: Sequence[Word]) -> list[str]:
        # One message that the database refuses must not keep back the others, nor itself for ever.
        if len(words) == 1:
            self.n_refused += 1
            return [word.row.id for word in words if word.row is not None]
        middle = len(words) // 2
        return self.insert(words[:middle]) + self.insert(words[middle:])

    def _write(self, connection: Connection, words: Sequence[Word]) -> list[Known]:
        rows = [word.row for word in words if word.row is not None]
        if rows:
            _insert_messages(connection, rows)
        for word in words:
            if isinstance(word.content, Gone):
                _insert_gone(connection, word, word.content)
        _note_results(connection, words)
        # Last, since workers wait here for each other: rows of devices stay locked until the commit.
        return self._update_devices(connection, words)

    def _update_devices(self, connection: Connection, words: Sequence[Word]) -> list[Known]:
        news = self._news(words)
        if not news:
            return []
        _insert_devices(connection, news)
        known = _lock_devices(connection, sorted(news))
        for key, heard in news.items():
            for word in heard:
                fold(known[key], word, self._lives[key])
        connection.execute(_UPDATE_DEVICE, [_update_row(known[key]) for key in sorted(news)])
        return list(known.values())

    def _news(self, words: Iterable[Word]) -> dict[tuple[str, str], list[Word]]:
        news: defaultdict[tuple[str, str], list[Word]] = defaultdict(list)
        for word in words:
            key = (word.source.site, word.source.device)
            known = self._known.get(key)
            if word.boot_id and (known is None or is_news(known, word)):
                news[key].append(word)
        return news

    def _remember(self, changed: Iterable[Known]) -> None:
        if len(self._known) > MAX_KNOWN:
            self._known.clear()
            self._lives.clear()
        for known in changed:
            self._known[known.site, known.device] = known


def _insert_messages(connection: Connection, rows: list[Row]) -> None:
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql(_INSERT_SQLITE, [tuple(row) for row in rows])
    else:
        columns = tuple(list(column) for column in zip(*rows, strict=True))
        connection.exec_driver_sql(_INSERT_POSTGRESQL, columns)


def _insert_devices(connection: Connection, news: dict[tuple[str, str], list[Word]]) -> None:
    rows = []
    for (site, device), words in sorted(news.items()):
        at_s = words[0].arrival.received_s
        rows.append({"site": site, "device": device, "first_seen_s": at_s, "last_seen_s": at_s})
    build = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    connection.execute(build(tables.devices).on_conflict_do_nothing(), rows)


def _lock_devices(connection: Connection, keys: list[tuple[str, str]]) -> dict[tuple[str, str], Known]:
    which = tables.devices.c.site, tables.devices.c.device
    found = {}
    for first in range(0, len(keys), 400):
        query = select(*_KNOWN).where(tuple_(*which).in_(keys[first : first + 400]))
        for row in connection.execute(query.order_by(*which).with_for_update()):
            found[row.site, row.device] = Known(**row._mapping)
    return found


def _update_row(known: Known) -> dict[str, Any]:
    row = row_of(known)
    new = {f"new_{name}": row[name] for name in _CHANGED}
    return new | {"at_site": known.site, "at_device": known.device}


def _insert_gone(connection: Connection, word: Word, gone: Gone) -> None:
    whose = {"site": word.source.site, "device": word.source.device, "epoch": gone.epoch}
    rows = [whose | {"first": first, "last": last} for first, last in gone.seqs]
    if rows:
        build = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
        new = build(tables.gone)
        last = case((new.excluded.last > tables.gone.c.last, new.excluded.last), else_=tables.gone.c.last)
        keys = ["site", "device", "epoch", "first"]
        connection.execute(new.on_conflict_do_update(index_elements=keys, set_={"last": last}), rows)


def _note_results(connection: Connection, words: Iterable[Word]) -> None:
    for word in words:
        if isinstance(word.content, CommandResult):
            _note_result(connection, word, word.content)
        elif isinstance(word.content, InstallReport):
            _note_install(connection, word, word.content)


def _of_command(word: Word, command_id: str) -> Any:
    # Its own commands only: no device may speak for another.
    commands = tables.commands.c
    return and_(
        commands.id == command_id, commands.site == word.source.site, commands.device == word.source.device
    )


def _note_result(connection: Connection, word: Word, result: CommandResult) -> None:
    commands = tables.commands
    assert word.row is not None
    connection.execute(
        update(commands)
        .where(_of_command(word, storable(result.id, 32)), commands.c.state.not_in(("done", "failed")))
        .values(state=result.status, message=storable(result.message), result=word.row.body)
    )


def _share(value: float | None) -> float | None:
    """From 0 to 1: one device's nonsense must not move the mean of many."""
    return None if value is None else min(max(value, 0.0), 1.0)


def _note_install(connection: Connection, word: Word, report: InstallReport) -> None:
    progress = tables.rollout_devices
    rollout_id = select(tables.commands.c.rollout_id).where(_of_command(word, storable(report.id, 32)))
    values: dict[str, Any] = {"state": report.phase, "reason": storable(report.reason)}
    if report.n_trusted > 0:  # else it says nothing new: what the shadow saw stays
        values["n_trusted"] = min(report.n_trusted, 2**31 - 1)
        values["accuracy_old"], values["accuracy_new"] = (
            _share(report.accuracy_old),
            _share(report.accuracy_new),
        )
    connection.execute(
        update(progress)
        .where(
            progress.c.site == word.source.site,
            progress.c.device == word.source.device,
            progress.c.rollout_id == rollout_id.scalar_subquery(),
            progress.c.state.in_(_BEFORE[report.phase]),
        )
        .values(values | {"at_s": word.arrival.received_s})
    )
