"""A server as its devices see it. Rules S1 to S12."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_cl.commands import Command, CommandResult
from edge_cl.records import Receipt, Status
from edge_cl.sync import messages, signing
from tests.conformance.counterparts import DEVICE, SITE, Ear, Subject
from tests.mosquitto import Broker, wait_until

pytestmark = [pytest.mark.broker, pytest.mark.slow]
OWN = "EDGE_CL_SERVER" not in os.environ
own_only = pytest.mark.skipif(not OWN, reason="looks into edge-cl's own store")


class Board:
    """Says what a device would say."""

    def __init__(self, ear: Ear) -> None:
        self._ear = ear
        self.epoch, self.boot_id = "e" + uuid.uuid4().hex[:15], uuid.uuid4().hex
        self.session, self.seq = 1, 0
        self._began_s = time.monotonic()

    @property
    def up_s(self) -> float:
        return time.monotonic() - self._began_s

    def be_born(self) -> None:
        birth = messages.Presence(online=True, boot_id=self.boot_id, session=self.session)
        self._ear.say("status", messages.encode(birth), retain=True)

    def wrapped(self, data: Any, **changes: Any) -> tuple[str, bytes]:
        """A message with the next number; its id."""
        self.seq += 1
        fields = {
            "id": uuid.uuid4().hex, "epoch": self.epoch, "seq": self.seq, "boot_id": self.boot_id,
            "session": self.session, "up_s": self.up_s, "at_s": time.time(), "age_s": 0.5,
        } | changes  # fmt: skip
        body = data if isinstance(data, bytes) else messages.encode(data)
        return str(fields["id"]), messages.wrap(body, **fields)

    def say(self, kind: str, data: Any, **changes: Any) -> str:
        message_id, payload = self.wrapped(data, **changes)
        self._ear.say(kind, payload)
        return message_id

    def say_state(self) -> None:
        empty: dict[str, Any] = dict.fromkeys(
            ("n_readings", "n_labels", "journal_seq", "n_pending", "n_bad_readings", "held_bytes"), 0
        )
        status = Status(
            bundle_name="b", bundle_id="b1", head="slda", class_names=[], accuracy_now=None, held={},
            n_sleeps=0, budget_bytes=1, last_sleep=None, recovered="", alarm="", **empty,
        )  # fmt: skip
        state = messages.State(
            boot_id=self.boot_id, session=self.session, up_s=self.up_s, status=status, settings={}
        )
        self._ear.say("state", messages.encode(state), retain=True)


def receipt(n: int) -> Receipt:
    return Receipt(reading_id=f"r{n}", label="walk", status="learned", seq=n)


@pytest.fixture(scope="module")
def running(ear: Ear, server: Subject) -> Iterator[Subject]:
    server.start()
    wait_until(lambda: [h for h in ear.heard if h.topic == messages.HELLO], "a hello", 40)
    yield server


@pytest.fixture(scope="module")
def board(ear: Ear, running: Subject) -> Board:
    found = Board(ear)
    found.be_born()
    found.say_state()
    return found


def confirmed(ear: Ear) -> list[str]:
    return [message_id for ack in ear.of("cmd/ack") for message_id in ack.ids]


def wait_confirmed(ear: Ear, *ids: str, times: int = 1) -> None:
    wait_until(lambda: all(confirmed(ear).count(one) >= times for one in ids), "confirmations", 30)


def fleet(folder: Path, *arguments: str) -> Any:
    command = [
        sys.executable,
        "-m",
        "edge_cl",
        "fleet",
        *arguments,
        "--store",
        f"sqlite:///{folder}/fleet.db",
    ]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith(("{", "["))]
    return lines[0] if len(lines) == 1 and isinstance(lines[0], list) else lines


def test_s1_a_message_is_confirmed_each_time(ear: Ear, board: Board) -> None:
    message_id, payload = board.wrapped(receipt(1))
    ear.say("receipt", payload)
    wait_confirmed(ear, message_id)
    ear.say("receipt", payload)
    wait_confirmed(ear, message_id, times=2)


@own_only
def test_s2_an_id_is_stored_once(ear: Ear, board: Board, server_folder: Path) -> None:
    message_id, payload = board.wrapped(receipt(2))
    for _ in range(3):
        ear.say("receipt", payload)
    wait_confirmed(ear, message_id)
    events = fleet(server_folder, "events", "--kind", "receipt")
    assert [event["id"] for event in events].count(message_id) == 1


def test_s3_it_says_hello(ear: Ear, running: Subject) -> None:
    hello = next(heard for heard in ear.heard if heard.topic == messages.HELLO)
    assert messages.decode("hello", hello.payload).worker


def test_s4_missing_numbers_are_asked_for_and_gone_ones_not(ear: Ear, running: Subject) -> None:
    one, other = Board(ear), Board(ear)
    one.say("receipt", receipt(1))
    one.seq += 2
    one.say("gone", messages.Gone(epoch=one.epoch, seqs=[(2, 3)]))
    first = other.say("receipt", receipt(1))
    other.seq += 2
    wait_confirmed(ear, first, other.say("receipt", receipt(4)))
    wait_until(lambda: _asked(ear, other), "it asks for the other's", 95)
    assert _asked(ear, other)[0].seqs == [(2, 3)] and _asked(ear, one) == []


def _asked(ear: Ear, board: Board) -> list[messages.Resend]:
    return [asked for asked in ear.of("cmd/resend") if asked.epoch == board.epoch]


def test_s5_what_it_does_not_know_is_kept(ear: Ear, board: Board) -> None:
    strange = board.say("receipt", b'{"type": "receipt", "of_tomorrow": [1, 2]}')
    unknown = board.say("tomorrow", b'{"type": "tomorrow"}')
    more = board.wrapped(receipt(9))
    ear.say("receipt", more[1][:-1] + b', "extra": {"a": 1}}')
    wait_confirmed(ear, strange, unknown, more[0])


def test_s6_nonsense_ends_nothing(ear: Ear, board: Board) -> None:
    for payload in (b"", b"\xff\xfe", b"{}", b"[" * 5000, b'{"v": "x"}', b"x" * 120_000):
        for kind in ("receipt", "status", "state", "want", "gone", "nothing"):
            ear.say(kind, payload)
    ear.say("edgecl/1/#bad/../receipt".replace("#", ""), b"{}")
    board.be_born()
    wait_confirmed(ear, board.say("receipt", receipt(10)))


@own_only
def test_s7_an_old_will_hides_nothing(ear: Ear, board: Board, server_folder: Path) -> None:
    board.session = 7
    board.be_born()
    for boot_id, session in ((board.boot_id, 6), (uuid.uuid4().hex, 7)):
        will = messages.Presence(online=False, boot_id=boot_id, session=session, reason="lost")
        ear.say("status", messages.encode(will), retain=True)
    wait_confirmed(ear, board.say("receipt", receipt(11)))
    assert _row(server_folder)["online"]
    own = messages.Presence(online=False, boot_id=board.boot_id, session=7, reason="lost")
    ear.say("status", messages.encode(own), retain=True)
    wait_confirmed(ear, board.say("receipt", receipt(12)))
    assert not _row(server_folder)["online"]
    board.session = 8
    board.be_born()


def _row(folder: Path) -> Any:
    return next(row for row in fleet(folder, "devices") if (row["site"], row["device"]) == (SITE, DEVICE))


def test_s8_nothing_is_retained(ear: Ear, board: Board, module_broker: Broker) -> None:
    wait_confirmed(ear, board.say("receipt", receipt(20)))
    late = Ear(module_broker.url)
    late.wait_for("status")
    assert not [h for h in late.heard if h.retained and ("/cmd/" in h.topic or h.topic == messages.HELLO)]
    late.close()


@pytest.fixture(scope="module")
def told(ear: Ear, board: Board, running: Subject, server_folder: Path) -> Iterator[Callable[..., str]]:
    """Orders something; its id. With a worker of its own that has a key."""
    if not OWN:
        pytest.skip("edge-cl's own way to order something")
    key = server_folder / "fleet.key"
    signing.write_key(key, signing.make_key())
    store = f"sqlite:///{server_folder}/fleet.db"
    url = ear._client._host, ear._client._port
    worker = subprocess.Popen(
        [
            sys.executable, "-m", "edge_cl", "fleet", "serve", "--mqtt", f"mqtt://{url[0]}:{url[1]}",
            "--store", f"sqlite:///{server_folder}/fleet.db", "--key", str(key),
        ],
        stderr=subprocess.DEVNULL,
    )  # fmt: skip

    def tell(*arguments: str) -> str:
        before = {row["id"] for row in fleet(server_folder, "commands")}
        command = [sys.executable, "-m", "edge_cl", "fleet", "tell", "--store", store, f"{SITE}/{DEVICE}"]
        subprocess.run([*command, *arguments], check=True, capture_output=True)
        return next(row["id"] for row in fleet(server_folder, "commands") if row["id"] not in before)

    yield tell
    worker.terminate()
    worker.wait(20)


def _orders(ear: Ear, command_id: str) -> list[Command]:
    import msgspec

    found = [msgspec.json.decode(signed.command, type=Command) for signed in ear.of("cmd/do")]
    return [command for command in found if command.id == command_id]


def test_s9_a_command_is_for_this_life(ear: Ear, board: Board, told: Callable[..., str]) -> None:
    board.be_born()
    board.say_state()
    command_id = told("sleep")
    wait_until(lambda: _orders(ear, command_id), "the order", 30)
    order = _orders(ear, command_id)[0]
    assert (order.to, order.boot_id) == (f"{SITE}/{DEVICE}", board.boot_id)
    assert order.until_s <= board.up_s + 86_400


def test_s10_it_is_signed_again_for_the_next_life(ear: Ear, board: Board, told: Callable[..., str]) -> None:
    command_id = told("sleep")
    wait_until(lambda: _orders(ear, command_id), "the order", 30)
    board.boot_id, board.session = uuid.uuid4().hex, board.session + 1
    board.be_born()
    board.say_state()
    wait_until(lambda: _orders(ear, command_id)[-1].boot_id == board.boot_id, "it is signed again", 30)
    wait_confirmed(
        ear, board.say("result", CommandResult(id=command_id, ask="sleep", status="done", message="slept"))
    )
    n_sent = len(_orders(ear, command_id))
    board.boot_id, board.session = uuid.uuid4().hex, board.session + 1
    board.be_born()
    board.say_state()
    later = told("report")
    wait_until(lambda: _orders(ear, later), "a later order", 30)
    assert len(_orders(ear, command_id)) == n_sent


@own_only
def test_s11_chunks_are_sent(ear: Ear, board: Board, server_folder: Path, running: Subject) -> None:
    from edge_cl_fleet.releases import add, make_release, sign_release
    from edge_cl_fleet.store import FleetStore

    from tests.worlds import make_bundle

    path = server_folder / "b.ecl"
    make_bundle(path, "slda")
    release = make_release(path)
    store = FleetStore(f"sqlite:///{server_folder}/fleet.db")
    add(store.engine, release, sign_release(release, signing.make_key(), "release"), path.read_bytes())
    store.close()
    ear.say("want", messages.encode(messages.Want(sha256=release.sha256, first=0, n=1)))
    topic = f"cmd/chunk/{release.sha256[:16]}/0"
    wait_until(lambda: [h for h in ear.heard if h.kind == topic], "a chunk", 30)
    chunk = next(h for h in ear.heard if h.kind == topic).payload
    assert hashlib.sha256(chunk).hexdigest()[:16] == release.chunks[0]


@own_only
def test_s12_several_workers_store_once(
    ear: Ear, board: Board, server_folder: Path, module_broker: Broker, running: Subject
) -> None:
    serve = ["fleet", "serve", "--mqtt", module_broker.url, "--store", f"sqlite:///{server_folder}/fleet.db"]
    n_hellos = sum(heard.topic == messages.HELLO for heard in ear.heard)
    second = subprocess.Popen([sys.executable, "-m", "edge_cl", *serve], stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: sum(h.topic == messages.HELLO for h in ear.heard) > n_hellos, "its hello", 40)
        ids = [board.say("receipt", receipt(100 + n)) for n in range(100)]
        wait_confirmed(ear, *ids)
        stored = [event["id"] for event in fleet(server_folder, "events", "--kind", "receipt")]
        assert all(stored.count(one) == 1 for one in ids)
    finally:
        second.terminate()
        second.wait(20)
