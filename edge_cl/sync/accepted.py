"""Which commands were accepted, and what came of them: so that an id is carried out once.

It lives in the outbox's database: that a command was carried out, and the result that says so, become
durable together.
"""

from __future__ import annotations

import sqlite3
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from edge_cl.commands import Command, CommandResult, ResultStatus
from edge_cl.errors import CommandRefused

MAX_ROWS = 4096
GRACE_S = 3600.0
"""Kept for so long after its end: the next life's estimate of that moment may be later."""
MAX_MESSAGE_CHARS = 200
CLOCK_EVERY_S = 600.0

_TABLE = """
CREATE TABLE IF NOT EXISTS accepted (
  id TEXT PRIMARY KEY, ask TEXT NOT NULL, boot_id TEXT NOT NULL, until_lived_s REAL NOT NULL,
  status TEXT NOT NULL DEFAULT '', message TEXT NOT NULL DEFAULT ''
) WITHOUT ROWID
"""
_CLOCK = "CREATE TABLE IF NOT EXISTS lived (one INTEGER PRIMARY KEY CHECK (one = 1), s REAL NOT NULL)"


class CommitsTogether(Protocol):
    """What is needed of the outbox."""

    @property
    def database(self) -> sqlite3.Connection | None:
        """Its database, None while the disk fails."""

    def also(self, sql: str, params: Sequence[Any]) -> None:
        """Run a statement in the transaction of the next commit."""


class Entry(msgspec.Struct):
    """A command that was accepted; `status` is "" until it is finished."""

    id: str
    ask: str
    boot_id: str
    until_lived_s: float
    status: ResultStatus | str = ""
    message: str = ""

    @property
    def result(self) -> CommandResult | None:
        """What came of it, without data; None while it is under way."""
        if not self.status:
            return None
        fields = {"id": self.id, "ask": self.ask, "status": self.status, "message": self.message}
        return msgspec.convert(fields | {"type": "result"}, CommandResult)


class Repeats:
    """How often one id is answered: whoever repeats a recorded command must not fill the outbox with answers.

    A server asks again after a minute, so that it is answered each time.
    """

    def __init__(self, *, every_s: float = 45.0, most: int = 1024) -> None:
        self._every_s = every_s
        self._most = most
        self._answered_s: OrderedDict[str, float] = OrderedDict()

    def may_answer(self, command_id: str, up_s: float) -> bool:
        """Whether to answer now; False while the last answer to this id is fresh."""
        last_s = self._answered_s.get(command_id)
        if last_s is not None and up_s < last_s + self._every_s:
            return False
        self._answered_s[command_id] = up_s
        self._answered_s.move_to_end(command_id)
        if len(self._answered_s) > self._most:
            self._answered_s.popitem(last=False)
        return True


class Accepted:
    """The commands accepted in this life and earlier ones that could come again.

    Nothing is durable before the outbox's next commit: a command is carried out after the commit that holds
    its acceptance, and not at all while commits fail. While the database cannot be read, nothing is
    accepted: it might have been carried out before. Time is what the device has lived: the sum of its
    uptimes, which no clock can shift and which never runs ahead of the true time.
    """

    def __init__(self, outbox: CommitsTogether) -> None:
        self._outbox = outbox
        self._entries: dict[str, Entry] = {}
        self._lived_before_s = 0.0
        self._clock_saved_s = 0.0
        self._loaded = False
        self._try_load()

    def __len__(self) -> int:
        return len(self._entries)

    def known(self, command_id: str) -> Entry | None:
        """The entry of a command that came before, or None."""
        return self._entries.get(command_id)

    def accept(self, command: Command, up_s: float) -> None:
        """Note that `command` is to be carried out.

        Raises
        ------
        CommandRefused
            ``busy``: too many that could come again are known, or those of earlier lives cannot be read.
        """
        if command.id in self._entries:
            raise ValueError(f"command {command.id} was accepted before")
        self._make_room(command.id, up_s)
        until_lived_s = self._lived_before_s + command.until_s
        entry = Entry(command.id, command.ask, command.boot_id, until_lived_s)
        self._entries[entry.id] = entry
        values = (entry.id, entry.ask, entry.boot_id, entry.until_lived_s)
        self._also(
            "INSERT OR REPLACE INTO accepted (id, ask, boot_id, until_lived_s) VALUES (?, ?, ?, ?)", values
        )
        self._save_clock(up_s)

    def finish(self, command_id: str, result: CommandResult) -> None:
        """Note what came of a command; of the result, status and message are kept.

        An ``interrupted`` one is forgotten: it was not carried out, and may be asked for again.
        """
        if result.status == "interrupted":
            del self._entries[command_id]
            self._also("DELETE FROM accepted WHERE id = ?", (command_id,))
            return
        entry = self._entries[command_id]
        entry.status, entry.message = result.status, result.message[:MAX_MESSAGE_CHARS]
        self._also(
            "UPDATE accepted SET status = ?, message = ? WHERE id = ?",
            (entry.status, entry.message, entry.id),
        )

    def interrupted(self, boot_id: str) -> list[Entry]:
        """Commands that a life before `boot_id` accepted and did not finish."""
        return [entry for entry in self._entries.values() if not entry.status and entry.boot_id != boot_id]

    def forget_expired(self, up_s: float) -> None:
        """Drop what the gate would refuse by now, whoever signed it anew."""
        lived_s = self._lived_before_s + up_s
        ended = [
            entry.id
            for entry in self._entries.values()
            if entry.status and entry.until_lived_s + GRACE_S < lived_s
        ]
        for command_id in ended:
            del self._entries[command_id]
            self._also("DELETE FROM accepted WHERE id = ?", (command_id,))
        if lived_s >= self._clock_saved_s + CLOCK_EVERY_S and self._entries:
            self._save_clock(up_s)

    def _make_room(self, command_id: str, up_s: float) -> None:
        problem = ""
        if not self._loaded and not self._try_load():
            problem = (
                "the disk does not tell what was carried out before; try later, and see the device's alarm"
            )
        elif len(self._entries) >= MAX_ROWS:
            self.forget_expired(up_s)
            if len(self._entries) >= MAX_ROWS:
                problem = (
                    f"{MAX_ROWS:,} that have not expired are known; try later, or let them expire sooner"
                )
        if problem:
            raise CommandRefused("busy", f"command refused: {problem}", command_id)

    def _save_clock(self, up_s: float) -> None:
        self._clock_saved_s = self._lived_before_s + up_s
        self._outbox.also(_CLOCK, ())
        self._outbox.also("INSERT OR REPLACE INTO lived VALUES (1, ?)", (self._clock_saved_s,))

    def _also(self, sql: str, params: Sequence[Any]) -> None:
        # The outbox may have begun a new file since: each time the table must be there.
        self._outbox.also(_TABLE, ())
        self._outbox.also(sql, params)

    def _try_load(self) -> bool:
        try:
            if self._outbox.database is not None:
                self._load(self._outbox.database)
                self._loaded = True
        except sqlite3.Error:
            self._entries.clear()  # the outbox meets the same error at its next commit, and says so
        return self._loaded

    def _load(self, database: sqlite3.Connection) -> None:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
        columns = "id, ask, boot_id, until_lived_s, status, message"
        if "accepted" in tables:
            for row in database.execute(f"SELECT {columns} FROM accepted"):
                self._entries[row[0]] = Entry(*row)
        if "lived" in tables:
            (self._lived_before_s,) = database.execute("SELECT TOTAL(s) FROM lived").fetchone()
            self._clock_saved_s = self._lived_before_s
