"""The outbox loses nothing it promised to keep, stays small, and outlives its disk."""

from __future__ import annotations

import contextlib
import resource
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

import edge_cl.sync.outbox as outbox_module
from edge_cl.sync.outbox import UNSAVED_BYTES, Outbox
from edge_cl.sync.outbox_rows import ROW_BYTES, Keep, Row

BIG = 10**9


@contextmanager
def full_disk() -> Iterator[None]:
    """No file of this process can grow: SQLite meets a real write error."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(autouse=True)
def retry_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_module, "RETRY_S", 0.0)


def open_outbox(tmp_path: Path, capacity_bytes: int = BIG) -> Outbox:
    return Outbox(tmp_path / "outbox.db", capacity_bytes=capacity_bytes)


def bodies(rows: list[Row]) -> list[bytes]:
    return [row.body for row in rows]


def test_only_committed_messages_are_handed_out_and_survive(tmp_path: Path) -> None:
    outbox = open_outbox(tmp_path)
    outbox.put("receipt", b"1", Keep.ALWAYS)
    assert outbox.ready(9) == []
    assert outbox.commit()
    outbox.put("receipt", b"2", Keep.ALWAYS)
    assert bodies(outbox.ready(9)) == [b"1"]
    again = open_outbox(tmp_path)
    assert (again.n_queued, again.seq) == (1, 1)
    assert bodies(again.ready(9)) == [b"1"]


def test_a_number_is_never_given_twice(tmp_path: Path) -> None:
    outbox = open_outbox(tmp_path)
    seqs = [outbox.put("receipt", b"x", Keep.ALWAYS) for _ in range(3)]
    outbox.commit()
    for row in outbox.ready(9):
        outbox.done(row)
    outbox.close()
    again = open_outbox(tmp_path)
    assert again.n_queued == 0
    assert again.put("receipt", b"y", Keep.ALWAYS) == max(seqs) + 1


def test_each_message_is_handed_out_once_until_rewind(tmp_path: Path) -> None:
    outbox = open_outbox(tmp_path)
    for body in (b"a", b"b", b"c"):
        outbox.put("receipt", body, Keep.ALWAYS)
    outbox.commit()
    first = outbox.ready(2)
    assert bodies(first) == [b"a", b"b"]
    assert bodies(outbox.ready(9)) == [b"c"]
    outbox.done(first[0])
    outbox.rewind()
    assert bodies(outbox.ready(9)) == [b"b", b"c"]


def test_telemetry_makes_room_for_receipts_oldest_first(tmp_path: Path) -> None:
    outbox = open_outbox(tmp_path, 4 * (ROW_BYTES + 10))
    for n in range(4):
        outbox.put("sleep", b"%10d" % n, Keep.WHILE_ROOM)
        outbox.commit()
    for n in range(3):
        assert outbox.put("receipt", b"R%9d" % n, Keep.ALWAYS)
    outbox.commit()
    rows = outbox.ready(9)
    assert [(row.kind, row.body[-1:]) for row in rows] == [
        ("sleep", b"3"),
        ("receipt", b"0"),
        ("receipt", b"1"),
        ("receipt", b"2"),
    ]
    assert (outbox.n_dropped, outbox.n_refused, outbox.alarm) == (3, 0, "")


def test_room_is_made_without_reading_everything(tmp_path: Path) -> None:
    outbox = open_outbox(tmp_path, capacity_bytes=1_000_000)
    while outbox.held_bytes < 900_000:
        outbox.put("receipt", b"x" * 100, Keep.ALWAYS)
    while not outbox.n_dropped:
        outbox.put("summary", b"x" * 100, Keep.WHILE_ROOM)
    outbox.commit()
    assert outbox._db is not None
    steps: list[int] = []
    outbox._db.set_progress_handler(lambda: steps.append(1), 100)
    outbox.put("summary", b"x" * 100, Keep.WHILE_ROOM)
    assert outbox.n_dropped == 2 and len(steps) < 10, "some thousand rows are not looked at"


def test_older_receipts_outlive_newer_telemetry(tmp_path: Path) -> None:
    outbox = open_outbox(tmp_path, 3 * (ROW_BYTES + 1))
    for body, vital in ((b"1", True), (b"2", False), (b"3", True), (b"4", True)):
        assert outbox.put("any", body, Keep.ALWAYS if vital else Keep.WHILE_ROOM)
        outbox.commit()
    assert bodies(outbox.ready(9)) == [b"1", b"3", b"4"]


def test_when_receipts_fill_it_the_newest_is_refused_with_an_alarm(tmp_path: Path) -> None:
    outbox = open_outbox(tmp_path, 2 * (ROW_BYTES + 1))
    assert outbox.put("receipt", b"1", Keep.ALWAYS)
    assert outbox.put("receipt", b"2", Keep.ALWAYS)
    assert outbox.put("receipt", b"3", Keep.ALWAYS) == 0
    assert outbox.put("sleep", b"4", Keep.WHILE_ROOM) == 0
    outbox.commit()
    assert outbox.n_refused == 2
    assert "outbox is full" in outbox.alarm and "fleet server" in outbox.alarm
    rows = outbox.ready(9)
    assert bodies(rows) == [b"1", b"2"]
    outbox.done(rows[0])
    assert outbox.put("receipt", b"5", Keep.ALWAYS)
    assert outbox.alarm == ""


def test_an_acknowledgement_of_a_dropped_message_changes_no_count(tmp_path: Path) -> None:
    outbox = open_outbox(tmp_path, 2 * (ROW_BYTES + 1))
    outbox.put("sleep", b"1", Keep.WHILE_ROOM)
    outbox.commit()
    (sent,) = outbox.ready(1)
    outbox.put("receipt", b"2", Keep.ALWAYS)
    outbox.put("receipt", b"3", Keep.ALWAYS)
    outbox.commit()
    outbox.done(sent)
    assert (outbox.n_queued, outbox.held_bytes) == (2, 2 * (ROW_BYTES + 1))


def test_files_stay_within_twice_the_capacity(tmp_path: Path) -> None:
    capacity_bytes = 1024 * 1024
    outbox = open_outbox(tmp_path, capacity_bytes)
    largest = 0
    for n in range(6_000):
        outbox.put(
            "receipt" if n % 3 else "sleep", b"x" * (50 + n % 700), Keep.ALWAYS if n % 3 else Keep.WHILE_ROOM
        )
        if n % 100 == 0:
            outbox.commit()
            largest = max(largest, sum(file.stat().st_size for file in tmp_path.iterdir()))
        if n > 4_000 and n % 2:
            for row in outbox.ready(1):
                outbox.done(row)
    assert outbox.n_dropped > 0
    assert largest < 2 * capacity_bytes


def test_a_full_disk_stops_nothing_and_loses_nothing(tmp_path: Path) -> None:
    outbox = open_outbox(tmp_path)
    outbox.put("receipt", b"before", Keep.ALWAYS)
    outbox.commit()
    with full_disk():
        outbox.put("receipt", b"during", Keep.ALWAYS)
        assert not outbox.commit()
        assert outbox.n_disk_errors == 1
        assert "memory" in outbox.alarm and "disk" in outbox.alarm
        rows = outbox.ready(9)
        assert bodies(rows) == [b"before", b"during"]
        outbox.done(rows[0])
    outbox.put("receipt", b"after", Keep.ALWAYS)
    assert outbox.commit()
    assert outbox.alarm == ""
    assert bodies(open_outbox(tmp_path).ready(9)) == [b"during", b"after"]


def test_what_could_not_be_read_is_sent_once_the_disk_is_back(tmp_path: Path) -> None:
    outbox = open_outbox(tmp_path)
    outbox.put("receipt", b"1", Keep.ALWAYS)
    outbox.commit()
    assert outbox._db is not None
    outbox._db.close()  # every use is an error now, as with a card that was pulled out
    outbox.put("receipt", b"2", Keep.ALWAYS)
    assert bodies(outbox.ready(9)) == [b"2"]
    assert "cannot be used" in outbox.alarm
    assert outbox.commit()
    assert bodies(outbox.ready(9)) == [b"1", b"2"]
    assert (outbox.n_queued, outbox.alarm) == (2, "")


def test_memory_is_bounded_while_the_disk_fails(tmp_path: Path) -> None:
    outbox = open_outbox(tmp_path)
    with full_disk():
        accepted = sum(outbox.put("receipt", b"x" * 1000, Keep.ALWAYS) > 0 for _ in range(1_000))
        assert outbox.held_bytes <= UNSAVED_BYTES
    assert 200 < accepted < 300
    assert outbox.n_refused == 1_000 - accepted


def test_a_folder_that_appears_later_is_used(tmp_path: Path) -> None:
    folder = tmp_path / "absent"
    outbox = Outbox(folder / "outbox.db", capacity_bytes=BIG)
    outbox.put("receipt", b"1", Keep.ALWAYS)
    assert not outbox.commit()
    sent = outbox.ready(9)
    assert bodies(sent) == [b"1"]
    folder.mkdir()
    assert outbox.commit()
    outbox.done(sent[0])
    assert outbox.commit()
    again = Outbox(folder / "outbox.db", capacity_bytes=BIG)
    assert again.n_queued == 0
    assert again.seq == outbox.seq


def test_a_file_that_is_locked_at_the_start_is_read_later(tmp_path: Path) -> None:
    before = open_outbox(tmp_path)
    for body in (b"1", b"2"):
        before.put("receipt", body, Keep.ALWAYS)
    before.session = 7
    before.note("receipts.h", "2")
    before.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "outbox.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")  # a copy is being made
        outbox = open_outbox(tmp_path)
        assert "locked" in outbox.alarm
    outbox.put("receipt", b"3", Keep.ALWAYS)
    assert outbox.commit()
    assert (outbox.n_queued, outbox.session, outbox.notes) == (3, 7, {"receipts.h": "2"})
    assert bodies(outbox.ready(9)) == [b"1", b"2", b"3"]


def test_a_damaged_file_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "outbox.db").write_bytes(b"not a database" * 1000)
    outbox = open_outbox(tmp_path)
    assert "outbox.damaged" in outbox.alarm
    assert outbox.put("receipt", b"1", Keep.ALWAYS)
    assert outbox.commit()
    assert (tmp_path / "outbox.damaged").exists()
    assert bodies(open_outbox(tmp_path).ready(9)) == [b"1"]


def test_a_newer_format_is_left_alone(tmp_path: Path) -> None:
    open_outbox(tmp_path).close()
    with sqlite3.connect(tmp_path / "outbox.db") as db:
        db.execute("PRAGMA user_version = 7")
    db.close()
    outbox = open_outbox(tmp_path)
    assert "format 7" in outbox.alarm
    outbox.put("receipt", b"1", Keep.ALWAYS)
    assert not outbox.commit()
    assert bodies(outbox.ready(9)) == [b"1"]


FORMAT_1 = """
CREATE TABLE outbox (
  seq INTEGER PRIMARY KEY, id TEXT NOT NULL, stream TEXT NOT NULL, vital INTEGER NOT NULL, body BLOB NOT NULL
);
CREATE INDEX droppable ON outbox (seq) WHERE vital = 0;
CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO outbox VALUES (4, 'a', 'receipt', 1, 'R'), (6, 'b', 'sleep', 0, 'S');
INSERT INTO meta VALUES ('seq', 9), ('session', 3);
PRAGMA user_version = 1;
"""


def test_what_waits_in_a_file_of_the_first_format_is_kept(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "outbox.db") as db:
        db.executescript(FORMAT_1)
    db.close()
    outbox = open_outbox(tmp_path)
    kept = [(row.seq, row.id, row.kind, row.keep, row.body) for row in outbox.ready(9)]
    assert [row[:4] for row in kept] == [(4, "a", "receipt", Keep.ALWAYS), (6, "b", "sleep", Keep.WHILE_ROOM)]
    assert (outbox.session, outbox.put("receipt", b"x", Keep.ALWAYS), outbox.alarm) == (3, 10, "")
    outbox.note("settings", "{}")
    assert outbox.commit()
    epoch = outbox.epoch
    outbox.close()
    again = open_outbox(tmp_path)
    assert (again.epoch, again.n_queued, again.notes) == (epoch, 3, {"settings": "{}"})


class OutboxModel(RuleBasedStateMachine):
    """Any order of puts, commits, sends, acknowledgements, reconnections, crashes, full disks."""

    CAPACITY = 5 * (ROW_BYTES + 20)

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.generation = 0
        self.box = self._open()
        self.put_bodies: dict[int, tuple[bytes, bool]] = {}
        self.durable: set[int] = set()  # committed receipts that nobody acknowledged
        self.acked: set[int] = set()
        self.inflight: list[Row] = []
        self.last_handed = 0

    def _open(self) -> Outbox:
        (self.folder / str(self.generation)).mkdir(exist_ok=True)
        return Outbox(self.folder / str(self.generation) / "outbox.db", capacity_bytes=self.CAPACITY)

    def teardown(self) -> None:
        self.box.close()
        shutil.rmtree(self.folder)

    @rule(puts=st.lists(st.tuples(st.integers(0, 60), st.booleans()), min_size=1, max_size=4))
    def put(self, puts: list[tuple[int, bool]]) -> None:
        for size, vital in puts:
            self._put(size, vital)

    def _put(self, size: int, vital: bool) -> None:
        body = b"%d" % len(self.put_bodies) + b"." * size
        highest = max(self.put_bodies, default=0)
        seq = self.box.put("receipt" if vital else "sleep", body, Keep.ALWAYS if vital else Keep.WHILE_ROOM)
        if seq:
            assert seq > highest
            self.put_bodies[seq] = (body, vital)

    @rule()
    def commit(self) -> None:
        assert self.box.commit()
        self.durable |= {seq for seq, (_, vital) in self.put_bodies.items() if vital} - self.acked

    @rule(limit=st.integers(1, 5))
    def send(self, limit: int) -> None:
        for row in self.box.ready(limit):
            assert row.seq > self.last_handed
            assert self.put_bodies[row.seq] == (row.body, row.keep == Keep.ALWAYS)
            self.last_handed = row.seq
            self.inflight.append(row)

    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        if self.inflight:
            row = self.inflight.pop(data.draw(st.integers(0, len(self.inflight) - 1)))
            self.box.done(row)
            self.acked.add(row.seq)
            self.durable.discard(row.seq)

    @rule()
    def reconnect(self) -> None:
        self.box.rewind()
        self.inflight, self.last_handed = [], 0

    @rule()
    def disk_full_for_one_commit(self) -> None:
        with full_disk():
            self.box.commit()

    @rule()
    def crash(self) -> None:
        """The files as they are, without whatever was only in memory: what kill -9 leaves."""
        before = self.folder / str(self.generation)
        self.generation += 1
        shutil.copytree(before, self.folder / str(self.generation))
        self.box.close()
        self.box = self._open()
        self.inflight, self.last_handed = [], 0
        kept = {row.seq for row in self.box.ready(1_000)}
        self.box.rewind()
        assert self.durable <= kept
        self.put_bodies = {seq: put for seq, put in self.put_bodies.items() if seq in kept}
        self.acked -= kept  # removed, but not durably: they are sent again

    @rule()
    def everything_promised_is_still_there(self) -> None:
        self.commit()
        self.reconnect()
        handed = {row.seq for row in self.box.ready(1_000)}
        self.box.rewind()
        assert self.durable <= handed
        assert not handed & self.acked
        assert len(handed) == self.box.n_queued

    @invariant()
    def stays_within_its_capacity(self) -> None:
        assert 0 <= self.box.held_bytes <= self.CAPACITY


TestOutboxModel = OutboxModel.TestCase
TestOutboxModel.settings = settings(max_examples=40, stateful_step_count=30)
