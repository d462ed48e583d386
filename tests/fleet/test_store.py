"""The store: each message once, one transaction, on SQLite and on PostgreSQL."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from edge_cl_fleet import tables
from edge_cl_fleet.arrivals import Arrival, Word, read
from edge_cl_fleet.database import open_engine
from edge_cl_fleet.queries import find_device, list_devices, list_events, set_group
from edge_cl_fleet.store import FleetStore
from sqlalchemy import insert, select, text, update

from edge_cl.commands import CommandResult
from edge_cl.errors import ConfigError, FleetError, StoreUnavailable, SyncError
from edge_cl.records import Receipt
from edge_cl.sync import messages
from edge_cl.sync.messages import Gone, InstallReport
from tests.fleet.devices import NOW_S, Board, status


def words(*arrivals: Arrival) -> list[Word]:
    return [word for word in map(read, arrivals) if word is not None]


def rows(store: FleetStore, query: Any) -> list[Any]:
    with store.reading.connect() as connection:
        return list(connection.execute(query).all())


def test_a_message_is_stored_once(store: FleetStore) -> None:
    board = Board()
    sent = [board.says("receipt") for _ in range(5)]
    assert store.insert(words(*sent, sent[0])) == store.insert(words(*sent, sent[0]))
    events = list_events(store)
    assert [event.seq for event in events] == [1, 2, 3, 4, 5]
    assert msgspec.json.decode(events[1].data, type=Receipt).reading_id == "r2"
    assert events[0].happened_s == NOW_S - 0.5
    assert store.n_refused == 0


def test_a_newer_device_s_messages_are_kept_as_they_are(store: FleetStore) -> None:
    board = Board()
    dream = board.says("dream", b'{"of": "sheep", "n": 3}')
    odd_health = board.says("health", b'{"type": "status", "mood": "good"}')
    assert len(store.insert(words(dream, odd_health))) == 2
    assert [bytes(event.data) for event in list_events(store, kind="dream")] == [b'{"of": "sheep", "n": 3}']
    assert find_device(store, "dev1").status == {}


@pytest.mark.parametrize(
    "fields",
    [
        {"id": "x" * 33},
        {"id": ""},
        {"id": "a\0b"},
        {"epoch": "e" * 40},
        {"seq": -1},
        {"seq": 2**63},
        {"boot_id": "bé"},
        {"session": 2**64},
    ],
)
def test_what_cannot_be_stored_is_not_read(fields: dict[str, Any]) -> None:
    with pytest.raises(SyncError):
        read(Board().says("receipt", **fields))


def test_text_that_a_database_refuses_is_made_harmless(store: FleetStore) -> None:
    board = Board()
    evil = "x\0y" * 1_000
    sent = [board.state(alarm=evil, n_labels=2**62), board.says("health", status(bundle_id=evil))]
    result = CommandResult(id=evil, ask="sleep", status="done", message=evil)
    assert len(store.insert(words(*sent, board.says("result", result)))) == 2
    assert store.n_refused == 0


def test_one_bad_row_does_not_keep_back_the_others(store: FleetStore) -> None:
    board = Board()
    good = words(*[board.says("receipt") for _ in range(6)])
    assert good[3].row is not None
    bad = good[3]._replace(row=good[3].row._replace(body=None))  # type: ignore[arg-type]
    assert len(store.insert([*good[:3], bad, *good[4:]])) == 6  # confirmed, else it comes for ever
    assert [event.seq for event in list_events(store)] == [1, 2, 3, 5, 6]
    assert store.n_refused == 1


def test_a_result_is_noted_for_the_device_s_own_command_only(store: FleetStore) -> None:
    with store.engine.begin() as connection:
        for command_id, device in (("c1", "dev1"), ("c2", "dev2")):
            whose = {"id": command_id, "site": "lab", "device": device, "ask": "sleep", "do": "{}"}
            times = {"created_s": NOW_S, "expires_s": NOW_S + 60}
            connection.execute(insert(tables.commands).values(state="sent", **whose, **times))
    board = Board("dev1")
    results = [CommandResult(id=one, ask="sleep", status="done", message="slept") for one in ("c1", "c2")]
    late = CommandResult(id="c1", ask="sleep", status="expired")
    store.insert(words(*(board.says("result", one) for one in [*results, late])))
    found = rows(store, select(tables.commands.c.id, tables.commands.c.state).order_by(tables.commands.c.id))
    assert [tuple(row) for row in found] == [("c1", "done"), ("c2", "sent")]


def test_install_reports_move_a_rollout_forward_only(store: FleetStore) -> None:
    with store.engine.begin() as connection:
        bundle = dict.fromkeys(("name", "bundle_id", "release", "signed_by", "signature"), "x")
        connection.execute(insert(tables.bundles).values(sha256="s", added_s=0.0, body=b"", **bundle))
        rollout = {"id": "r", "sha256": "s", "group_name": "", "steps": "[1]", "state": "running"}
        limits = {"abort_share": 0.1, "abort_after": 5, "started_s": 0.0, "patience_s": 1.0, "undo": False}
        connection.execute(insert(tables.rollouts).values(**rollout, **limits))
        whose = {"site": "lab", "device": "dev1", "rollout_id": "r", "state": "sent"}
        command = {"id": "c1", "ask": "install", "do": "{}", "created_s": 0.0, "expires_s": 9e9}
        connection.execute(insert(tables.commands).values(**whose, **command))
        connection.execute(insert(tables.rollout_devices).values(wave=0, **whose))
    board = Board()
    for phase in ("shadow", "fetched", "committed", "shadow"):
        known = {"n_trusted": 20, "accuracy_old": 1e300, "accuracy_new": 0.9} if phase == "committed" else {}
        report = InstallReport(id="c1", sha256="s", bundle_id="b", phase=phase, **known)  # type: ignore[arg-type]
        store.insert(words(board.says("install", report)))
    back = InstallReport(id="c1", sha256="s", bundle_id="b", phase="rolled-back", reason="worse")
    store.insert(words(board.says("install", back)))
    c = tables.rollout_devices.c
    found = rows(store, select(c.state, c.reason, c.n_trusted, c.accuracy_old, c.accuracy_new))
    assert [tuple(row) for row in found] == [("rolled-back", "worse", 20, 1.0, 0.9)]


def test_ranges_that_are_gone_grow(store: FleetStore) -> None:
    board = Board()
    for last in (7, 9, 8):
        store.insert(words(board.says("gone", Gone(epoch="e", seqs=[(5, last), (20, 20)]))))
    found = rows(store, select(tables.gone.c.first, tables.gone.c.last).order_by(tables.gone.c.first))
    assert [tuple(row) for row in found] == [(5, 9), (20, 20)]


def test_devices_are_found_by_name(store: FleetStore) -> None:
    one, other, alone = Board("dev1"), Board("dev1"), Board("dev2")
    other.site = "roof"
    store.insert(words(one.state(), other.state(), alone.presence()))
    assert [device.name for device in list_devices(store)] == ["lab/dev1", "lab/dev2", "roof/dev1"]
    assert find_device(store, "dev2").name == "lab/dev2"
    assert find_device(store, "roof/dev1").settings == {"min_confidence": 0.5}
    with pytest.raises(FleetError, match="roof/dev1"):
        find_device(store, "dev1")
    with pytest.raises(FleetError, match="no device"):
        find_device(store, "dev3")
    set_group(store, "kitchen", [find_device(store, "dev2")])
    assert find_device(store, "dev2").group_name == "kitchen"


def test_events_are_filtered_and_paged(store: FleetStore) -> None:
    boards = [Board("dev1"), Board("dev2")]
    sent = [board.says("receipt", at_s=NOW_S + n) for n in range(10) for board in boards]
    store.insert(words(*sent, boards[0].says("health", status())))
    device = find_device(store, "dev1")
    first = list_events(store, device=device, kind="receipt", since_s=NOW_S + 2, limit=5)
    rest = list_events(store, device=device, kind="receipt", since_s=NOW_S + 2, after=first[-1].n)
    assert [event.seq for event in first + rest] == [3, 4, 5, 6, 7, 8, 9, 10]


def _open_and_insert(url: str, name: str) -> None:
    store = FleetStore(url)
    board = Board(name)
    for _ in range(20):
        store.insert(words(*(board.says("receipt") for _ in range(10)), Board("shared").presence()))
    store.close()


def test_workers_may_start_at_once(store_url: str) -> None:
    """Each makes the schema, or finds it made; both write, none is lost."""
    context = multiprocessing.get_context("spawn")
    both = [context.Process(target=_open_and_insert, args=(store_url, f"dev{n}")) for n in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join(30)
    assert [one.exitcode for one in both] == [0, 0]
    store = FleetStore(store_url)
    assert len(list_events(store)) == 400
    assert store.n_devices() == 3
    store.close()


def test_a_newer_schema_is_refused(store_url: str) -> None:
    engine = open_engine(store_url)
    with engine.begin() as connection:
        connection.execute(update(tables.schema_version).values(version=99))
    engine.dispose()
    with pytest.raises(FleetError, match=r"version 99.*update edge-cl"):
        FleetStore(store_url)


def test_a_database_that_is_not_there_is_named() -> None:
    with pytest.raises(StoreUnavailable, match="folder exists"):
        FleetStore("sqlite:////nowhere/at/all.db")
    with pytest.raises(StoreUnavailable, match="PostgreSQL runs there") as caught:
        FleetStore("postgresql://anna:secret@127.0.0.1:1/fleet")
    assert "secret" not in str(caught.value)
    for url in ("fleet.db", "mysql://x/y", "sqlite://"):
        with pytest.raises(ConfigError, match=r"sqlite:///fleet\.db"):
            FleetStore(url)


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "fleet.db").write_text("hello, this is not a database " * 100)
    with pytest.raises(StoreUnavailable, match="is a database"):
        FleetStore(f"sqlite:///{tmp_path}/fleet.db")


def test_a_locked_database_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_cl_fleet.database.BUSY_S", 0.1)
    store = FleetStore(f"sqlite:///{tmp_path}/fleet.db")
    other = FleetStore(f"sqlite:///{tmp_path}/fleet.db")
    with other.engine.begin() as connection:
        connection.execute(text("SELECT 1"))
        with pytest.raises(StoreUnavailable, match="another program held it"):
            store.insert(words(Board().says("receipt")))
    assert len(store.insert(words(Board().says("receipt")))) == 1


def test_decisions_are_not_kept() -> None:
    assert read(Arrival("edgecl/1/lab/dev1/event", b'{"anything": 1}', NOW_S)) is None


def test_a_want_changes_nothing_of_its_device(store: FleetStore) -> None:
    store.insert(words(Board().state()))
    want = messages.encode(messages.Want(sha256="0" * 64, first=0, n=1))
    assert store.insert(words(Arrival("edgecl/1/lab/dev1/want", want, NOW_S + 99))) == []
    assert find_device(store, "dev1").last_seen_s == NOW_S
