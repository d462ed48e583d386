"""``edge-cl fleet tell``: what is typed becomes an order, and what came of it is shown."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result
from edge_cl_fleet.command import fleet
from edge_cl_fleet.store import FleetStore
from edge_cl_fleet.tables import commands, devices
from sqlalchemy import insert, select, update

from edge_cl.commands import Adjust, Do, Report, SleepNow, Teach
from edge_cl.config import settings_from
from edge_cl.errors import ConfigError, FleetError
from edge_cl.revisions import Forget, Rename, Review, Rollback
from edge_cl.sync import signing
from tests.mosquitto import wait_until


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FleetStore]:
    store = FleetStore(f"sqlite:///{tmp_path}/fleet.db")
    with store.engine.begin() as connection:
        for site, device in (("home", "wrist"), ("home", "door"), ("work", "door")):
            row = {"site": site, "device": device, "first_seen_s": 0, "last_seen_s": 0}
            connection.execute(insert(devices), row)
    yield store
    store.close()


def typed(store: FleetStore, *words: str) -> Result:
    at = {"EDGE_CL_STORE": store.engine.url.render_as_string()}
    return CliRunner().invoke(fleet, [*words], env=at)


def rows(store: FleetStore) -> list[Any]:
    with store.reading.connect() as connection:
        return list(connection.execute(select(commands).order_by(commands.c.created_s)))


@pytest.mark.parametrize(
    ("words", "do", "valid_s"),
    [
        ("label walk", Teach(label="walk"), 60),
        ("label walk --reading r7 --not --valid 2h", Teach(label="walk", reading_id="r7", kind="not"), 7200),
        ("sleep", SleepNow(), 3600),
        ("sleep --valid 90", SleepNow(), 90),
        ("rollback --to 17", Rollback(to=17), 86400),
        ("forget --source mqtt/anna --class walk", Forget(source="mqtt/anna", class_name="walk"), 86400),
        ("rename-class a b --merge", Rename(old="a", new="b", merge=True), 86400),
        ("review reject 3 4", Review(seqs=[3, 4], accept=False), 86400),
        ("report head --valid 7d", Report(what="head"), 7 * 86400),
    ],
)
def test_what_is_typed_becomes_an_order(store: FleetStore, words: str, do: Do, valid_s: float) -> None:
    told = typed(store, "tell", "wrist", *words.split())
    assert told.exit_code == 0 and "home/wrist will be told" in told.output, told
    (row,) = rows(store)
    assert msgspec.json.decode(row.do, type=Do) == do
    assert row.expires_s - row.created_s == pytest.approx(valid_s)


def test_times_are_of_this_computer(store: FleetStore) -> None:
    typed(store, "tell", "wrist", "forget", "--between", "2026-05-31 14:00", "2026-05-31 15:30:30")
    asked = msgspec.json.decode(rows(store)[0].do, type=Forget)
    assert asked.since_s == time.mktime((2026, 5, 31, 14, 0, 0, 0, 0, -1))
    assert asked.until_s is not None and asked.since_s is not None
    assert asked.until_s - asked.since_s == 5430


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("wrist rollback", "give --to or --before"),
        ("wrist forget", "give --reading"),
        ("wrist set", "name a setting"),
        ("wrist set --min-confidence 2", "not in the range"),
        ("wrist sleep --valid 8d", "up to 7 days"),
        ("wrist sleep --valid soon", "up to 7 days"),
        ("none sleep", "no device 'none' has spoken"),
        ("away/wrist sleep", "no device 'away/wrist' has spoken"),
        ("door sleep", "'door' is at several sites; write one of home/door, work/door"),
    ],
)
def test_what_makes_no_sense_is_said(store: FleetStore, words: str, says: str) -> None:
    told = typed(store, "tell", *words.split())
    assert told.exit_code != 0
    assert says in told.output + str(told.exception)
    assert rows(store) == []


def test_a_store_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    told = CliRunner().invoke(fleet, ["commands", "--store", f"sqlite:///{tmp_path}/none/fleet.db"])
    assert isinstance(told.exception, FleetError) and "none/fleet.db" in str(told.exception)


@pytest.mark.parametrize(("status", "code"), [("done", 0), ("refused", 1), ("expired", 1)])
def test_waiting_shows_what_came_of_it(store: FleetStore, status: str, code: int) -> None:
    def answer() -> None:
        wait_until(lambda: rows(store), "the order is given")
        result = '{"type":"result","id":"x","ask":"sleep","status":"done"}'
        with store.engine.begin() as connection:
            came = {"state": status, "message": "slept well", "result": result}
            connection.execute(update(commands).values(came))

    device = threading.Thread(target=answer)
    device.start()
    told = typed(store, "tell", "wrist", "sleep", "--wait", "--json")
    device.join()
    assert told.exit_code == code
    found = json.loads(told.stdout)
    assert (found["state"], found["message"], found["result"]["ask"]) == (status, "slept well", "sleep")
    assert "is away (last seen" in told.stderr and "expires on" in told.stderr


def test_settings_are_desired_and_waited_for(store: FleetStore) -> None:
    assert typed(store, "tell", "wrist", "set", "--night", "22:00-06:00").exit_code == 0

    def report() -> None:
        desired = select(devices.c.desired).where(devices.c.device == "wrist")

        def asked() -> bool:
            with store.reading.connect() as connection:
                return "min_confidence" in str(connection.execute(desired).scalar())

        wait_until(asked, "it is desired")
        reported = '{"min_confidence":0.8,"night":"22:00-06:00","after_labels":9}'
        with store.engine.begin() as connection:
            connection.execute(update(devices).values(settings=reported))

    device = threading.Thread(target=report)
    device.start()
    told = typed(store, "tell", "home/wrist", "set", "--min-confidence", "0.8", "--wait")
    device.join()
    assert told.exit_code == 0, told
    assert '{"night":"22:00-06:00","min_confidence":0.8}' in told.output


def test_settings_that_are_refused_end_the_waiting(store: FleetStore) -> None:
    with store.engine.begin() as connection:
        row = {"id": "0" * 32, "site": "home", "device": "wrist", "ask": "set", "state": "refused"}
        row |= {"do": msgspec.json.encode(Adjust(night="x")).decode(), "message": "no such night"}
        connection.execute(insert(commands), row | {"created_s": 1.0, "expires_s": 2.0})
    told = typed(store, "tell", "wrist", "set", "--night", "x", "--wait")
    assert "home/wrist refused it: no such night" in str(told.exception)


def test_orders_are_listed_newest_first(store: FleetStore) -> None:
    assert "no order was given" in typed(store, "commands").output
    typed(store, "tell", "wrist", "sleep")
    typed(store, "tell", "home/door", "report")
    lines = typed(store, "commands").output.splitlines()
    assert "home/door" in lines[1] and "report" in lines[1] and "waiting" in lines[1]
    assert "home/wrist" in lines[2]
    (only,) = json.loads(typed(store, "commands", "--device", "wrist", "--json").output)
    assert only["do"] == {"ask": "sleep"}


def test_keygen_makes_what_settings_take(tmp_path: Path) -> None:
    file = tmp_path / "fleet.key"
    made = CliRunner().invoke(fleet, ["keygen", str(file)])
    assert made.exit_code == 0
    assert signing.read_key(file) not in made.output
    section = made.output[made.output.index("[commands") :]
    import tomllib

    keys = settings_from(tomllib.loads(section)).commands.keys
    assert keys["fleet"].public == signing.public_of(signing.read_key(file))
    again = CliRunner().invoke(fleet, ["keygen", str(file)])
    assert again.exit_code != 0 and "never overwritten" in str(again.exception)


def test_a_server_does_not_begin_with_a_key_that_others_can_read(tmp_path: Path) -> None:
    file = tmp_path / "fleet.key"
    signing.write_key(file, signing.make_key())
    file.chmod(0o644)
    words = [
        "serve",
        "--mqtt",
        "mqtt://127.0.0.1:1",
        "--store",
        f"sqlite:///{tmp_path}/f.db",
        "--key",
        str(file),
    ]
    served = CliRunner().invoke(fleet, words)
    assert isinstance(served.exception, ConfigError) and "chmod 600" in str(served.exception)
    assert not (tmp_path / "f.db").exists()
