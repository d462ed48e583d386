"""Rollouts on both databases: devices answer with real messages, two workers see to it, the clock is told."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from edge_cl_fleet import releases
from edge_cl_fleet.arrivals import read
from edge_cl_fleet.command import fleet as commands_of_fleet
from edge_cl_fleet.connection import Login
from edge_cl_fleet.figures import FleetFigures
from edge_cl_fleet.orders import Orders
from edge_cl_fleet.page import render
from edge_cl_fleet.progress import Progress, members, progress_of
from edge_cl_fleet.queries import find_device, set_group
from edge_cl_fleet.rollouts import Rollouts, Terms
from edge_cl_fleet.store import FleetStore
from edge_cl_fleet.tables import commands
from edge_cl_fleet.waves import deal
from edge_cl_fleet.worker import Worker
from sqlalchemy import select

from edge_cl.commands import Command, CommandResult, Install, Release
from edge_cl.errors import FleetError
from edge_cl.sync import signing
from edge_cl.sync.messages import InstallReport, Signed
from tests.fleet.devices import NOW_S, Board
from tests.upgrade.boards import variant
from tests.worlds import make_bundle

PRIVATE = signing.make_key()
HOUR_S = 3600.0
STEPS = [0.1, 0.5, 1.0]


class Fleet:
    """Ten boards in group "all"; `clock` is the time, orders that are sent reach `orders`."""

    def __init__(self, store: FleetStore, folder: Path) -> None:
        self.store, self.now_s = store, NOW_S
        old = make_bundle(folder / "old.ecl")
        variant(old, folder / "new.ecl", name="newer")
        self.old, self.new = self._add(folder / "old.ecl"), self._add(folder / "new.ecl")
        self.boards = {f"lab/d{i}": Board(f"d{i}", boot_id=f"boot{i}") for i in range(10)}
        self.orders: dict[str, list[Command]] = {name: [] for name in self.boards}
        self.rollouts = Rollouts(store.engine)
        self.duties = [self.rollouts, Orders(store.engine, "fleet", PRIVATE)]
        self.say(*(board.presence() for board in self.boards.values()))
        self.report_running(dict.fromkeys(self.boards, old.bundle_id))
        set_group(store, "all", [find_device(store, name) for name in self.boards])

    def _add(self, file: Path) -> Install:
        release = releases.make_release(file)
        install = releases.sign_release(release, PRIVATE, "fleet")
        releases.add(self.store.engine, release, install, file.read_bytes())
        return install

    def say(self, *arrivals: Any) -> None:
        self.store.insert([word for word in map(read, arrivals) if word is not None])

    def report_running(self, bundle_ids: dict[str, str]) -> None:
        self.say(*(self.boards[name].state(bundle_id=it, at_s=self.now_s) for name, it in bundle_ids.items()))

    def publish(self, topic: str, payload: bytes, *, qos: int = 0, expires_s: int | None = None) -> bool:
        command = msgspec.json.decode(msgspec.json.decode(payload, type=Signed).command, type=Command)
        self.orders[command.to].append(command)
        return True

    def tick(self, after_s: float = 1.0) -> None:
        self.now_s += after_s
        for duty in self.duties:
            duty.tick(self.now_s, self.publish)

    def told(self) -> set[str]:
        """Devices that got an order."""
        return {name for name, orders in self.orders.items() if orders}

    def answer(self, phase: Any, *names: str, trusted: int = 0, old: float = 0.9, new: float = 0.9) -> None:
        """Devices say how far the installation that they were last asked for is."""
        for name in names:
            order = self.orders[name][-1]
            assert isinstance(order.do, Install)
            release = msgspec.json.decode(order.do.release, type=Release)
            report = InstallReport(
                id=order.id, sha256=release.sha256, bundle_id=release.bundle_id, phase=phase,
                n_trusted=trusted, accuracy_old=old if trusted else None,
                accuracy_new=new if trusted else None,
            )  # fmt: skip
            result = CommandResult(id=order.id, ask="install", status="done")
            board = self.boards[name]
            self.say(
                board.says("result", result, at_s=self.now_s), board.says("install", report, at_s=self.now_s)
            )

    def start(self, terms: Terms = Terms(), steps: list[float] = STEPS) -> str:  # noqa: B008
        return self.rollouts.start(self.new, "all", steps, terms, now_s=self.now_s)

    def progress(self, rollout_id: str) -> Progress:
        with self.store.reading.connect() as connection:
            return progress_of(connection, rollout_id, self.now_s)

    def waves(self, rollout_id: str) -> list[set[str]]:
        return [set(wave) for wave in deal(rollout_id, list(self.boards), STEPS)]


@pytest.fixture
def fleet(store: FleetStore, tmp_path: Path) -> Fleet:
    return Fleet(store, tmp_path)


def test_a_wave_begins_when_the_one_before_went_well(fleet: Fleet) -> None:
    rollout_id = fleet.start()
    first, second, third = fleet.waves(rollout_id)
    fleet.tick()
    assert fleet.told() == first
    fleet.answer("fetched", *first)
    fleet.answer("shadow", *first)
    fleet.tick()
    assert fleet.told() == first and fleet.progress(rollout_id).step == 0
    fleet.answer("committed", *first, trusted=30, old=0.8, new=0.9)
    fleet.tick()
    fleet.tick()
    assert fleet.told() == first | second
    fleet.answer("committed", *second)
    fleet.tick()
    fleet.tick()
    assert fleet.told() == first | second | third
    assert all(len(orders) == 1 for orders in fleet.orders.values())
    fleet.answer("committed", *third)
    fleet.tick()
    ended = fleet.progress(rollout_id)
    assert (ended.state, ended.states) == ("done", {"committed": 10})
    assert ended.compared.n_devices == 1 and ended.compared.gained == pytest.approx(0.1)


def test_devices_that_cannot_take_it_end_it_on_the_first_wave(fleet: Fleet) -> None:
    rollout_id = fleet.start()
    first = fleet.waves(rollout_id)[0]
    fleet.tick()
    fleet.answer("failed", *first)
    fleet.tick()
    fleet.tick(HOUR_S)
    ended = fleet.progress(rollout_id)
    assert ended.state == "aborted" and "1 of 1 devices of wave 1" in ended.reason
    assert fleet.told() == first and ended.states == {"failed": 1, "waiting": 9}


def test_an_order_that_is_refused_counts_as_failed(fleet: Fleet) -> None:
    rollout_id = fleet.start()
    (first,) = fleet.waves(rollout_id)[0]
    fleet.tick()
    refusal = CommandResult(id=fleet.orders[first][0].id, ask="", status="refused", message="no such key")
    fleet.say(fleet.boards[first].says("result", refusal, at_s=fleet.now_s))
    fleet.tick()
    assert fleet.progress(rollout_id).state == "aborted"
    found = {one.name: one.reason for one in members(fleet.store, fleet.progress(rollout_id), fleet.now_s)}
    assert found[first] == "no such key"


def test_a_bad_share_ends_the_second_wave_and_what_was_begun_is_called_back(fleet: Fleet) -> None:
    rollout_id = fleet.start(Terms(abort_share=0.5, abort_after=2, undo=True))
    first, second, third = fleet.waves(rollout_id)
    fleet.tick()
    fleet.answer("committed", *first)
    fleet.tick()
    fleet.tick()
    bad, tries, *never = sorted(second)
    fleet.answer("failed", bad)
    fleet.answer("shadow", tries)
    fleet.tick()
    assert fleet.progress(rollout_id).state == "running", "one is too few to say"
    fleet.answer("rolled-back", never[0], trusted=25, old=0.9, new=0.7)
    fleet.tick()
    fleet.tick()
    ended = fleet.progress(rollout_id)
    assert ended.state == "aborted" and "2 of 2 devices of wave 2" in ended.reason
    back = {name for name, orders in fleet.orders.items() if len(orders) == 2}
    assert back == first | {tries, *never[1:]}, "those that took it, try it or fetch it"
    assert all(fleet.orders[name][1].do == fleet.old for name in back)
    assert not fleet.told() & third
    fleet.answer("committed", *first)
    assert fleet.progress(rollout_id).begun[0].states == {"committed": 1}, "of another order"


def test_without_the_bundle_before_devices_decide_by_themselves(fleet: Fleet) -> None:
    fleet.report_running(dict.fromkeys(fleet.boards, "e" * 64))
    rollout_id = fleet.start()
    fleet.tick()
    said = fleet.rollouts.abort(rollout_id, now_s=fleet.now_s)
    assert "0 devices are asked" in said and "1 decide by themselves: eeeeeeeeeeee" in said
    with pytest.raises(FleetError, match="ended already"):
        fleet.rollouts.abort(rollout_id)


def test_an_order_that_was_not_sent_yet_is_never_sent_after_an_abort(fleet: Fleet) -> None:
    rollout_id = fleet.start()
    fleet.rollouts.abort(rollout_id, now_s=fleet.now_s)
    fleet.tick()
    assert fleet.told() == set() and fleet.progress(rollout_id).states == {"waiting": 10}


def test_who_says_nothing_is_not_waited_for_but_counts_when_it_speaks(fleet: Fleet) -> None:
    rollout_id = fleet.start(Terms(patience_s=HOUR_S), [0.3, 1.0])
    fleet.tick()
    first = fleet.told()
    speaks, late, *_ = sorted(first)
    fleet.answer("committed", speaks)
    fleet.tick(HOUR_S - 10)
    fleet.answer("shadow", late)
    fleet.tick(20)
    assert fleet.progress(rollout_id).waves[0].n_silent == 1, "the other one said something"
    fleet.tick(HOUR_S - 30)
    assert fleet.told() == first
    fleet.tick(20)
    fleet.tick()
    assert len(fleet.told()) == 10
    assert fleet.progress(rollout_id).waves[0].n_silent == 2
    fleet.answer("committed", late)
    assert fleet.progress(rollout_id).waves[0].n_committed == 2


def test_a_wave_that_says_nothing_at_all_ends_it(fleet: Fleet) -> None:
    rollout_id = fleet.start()
    fleet.tick(25 * HOUR_S)
    fleet.tick()
    assert "none of the 1 devices" in fleet.progress(rollout_id).reason
    assert len(fleet.told()) <= 1


def test_those_that_run_it_already_are_settled_at_once(fleet: Fleet) -> None:
    new_id = msgspec.json.decode(fleet.new.release, type=Release).bundle_id
    fleet.report_running(dict.fromkeys(list(fleet.boards)[:8], new_id))
    rollout_id = fleet.start()
    assert fleet.progress(rollout_id).n_already == 8
    fleet.tick()
    assert fleet.told() < {"lab/d8", "lab/d9"} and len(fleet.told()) == 1
    fleet.answer("committed", *fleet.told())
    fleet.tick()
    fleet.tick()
    fleet.answer("committed", *fleet.told())
    fleet.report_running(dict.fromkeys(fleet.boards, new_id))
    fleet.tick()
    assert fleet.progress(rollout_id).state == "done"
    assert fleet.progress(fleet.start()).state == "done", "nobody is left"


def test_devices_that_join_later_are_not_included_and_none_is_in_two(fleet: Fleet) -> None:
    rollout_id = fleet.start()
    newcomer = Board("newcomer", boot_id="b")
    fleet.say(newcomer.presence(), newcomer.state())
    set_group(fleet.store, "all", [find_device(fleet.store, "newcomer")])
    assert sum(fleet.progress(rollout_id).states.values()) == 10
    with pytest.raises(FleetError, match="has not ended"):
        fleet.start()
    with pytest.raises(FleetError, match="has no devices"):
        fleet.rollouts.start(fleet.new, "nobody", STEPS)


def test_a_pause_holds_the_next_wave_and_still_judges(fleet: Fleet) -> None:
    rollout_id = fleet.start()
    first, second, _ = fleet.waves(rollout_id)
    fleet.tick()
    fleet.rollouts.pause(rollout_id)
    fleet.answer("committed", *first)
    fleet.tick()
    fleet.tick()
    assert fleet.told() == first
    fleet.rollouts.resume(rollout_id)
    fleet.tick()
    fleet.tick()
    assert fleet.told() == first | second
    fleet.rollouts.pause(rollout_id)
    fleet.answer("rolled-back", *second)
    fleet.tick()
    assert fleet.progress(rollout_id).state == "aborted"
    with pytest.raises(FleetError, match="is not paused"):
        fleet.rollouts.resume(rollout_id)


def test_accuracy_that_falls_ends_it(fleet: Fleet) -> None:
    rollout_id = fleet.start()
    fleet.tick()
    fleet.answer("committed", *fleet.told(), trusted=40, old=0.9, new=0.8)
    fleet.tick()
    assert "fell from 0.90 to 0.80" in fleet.progress(rollout_id).reason


def at_once(*moves: Callable[[], None]) -> None:
    """All of them, each in a thread of its own."""
    barrier = threading.Barrier(len(moves))

    def run(move: Callable[[], None]) -> None:
        barrier.wait()
        move()

    with ThreadPoolExecutor(len(moves)) as pool:
        for done in [pool.submit(run, move) for move in moves]:
            done.result(30)


def test_two_workers_at_once_never_give_an_order_twice(fleet: Fleet) -> None:
    rollout_id = fleet.start()
    second = Rollouts(fleet.store.engine)
    for _ in range(3):
        fleet.tick()
        fleet.answer("committed", *fleet.told())
        at_once(*(lambda it=it: it.move(fleet.now_s) for it in (fleet.rollouts, second) * 3))
    assert sorted(ordered(fleet)) == sorted(fleet.boards)
    assert fleet.progress(rollout_id).state == "done"


def test_two_workers_at_once_end_it_once(fleet: Fleet) -> None:
    rollout_id = fleet.start(Terms(abort_share=0.5, abort_after=1))
    first, second, _ = fleet.waves(rollout_id)
    fleet.tick()
    fleet.answer("committed", *first)
    fleet.tick()
    bad, *others = sorted(second)
    fleet.answer("rolled-back", bad)
    other = Rollouts(fleet.store.engine)
    at_once(*(lambda it=it: it.move(fleet.now_s) for it in (fleet.rollouts, other) * 3))
    assert sorted(ordered(fleet)) == sorted([*first, *second, *others]), "one to install, one to go back"


def ordered(fleet: Fleet) -> list[str]:
    """The device of every order that was given."""
    with fleet.store.reading.connect() as connection:
        return [f"lab/{device}" for device in connection.execute(select(commands.c.device)).scalars()]


def test_what_a_person_and_prometheus_see(fleet: Fleet, store_url: str) -> None:
    rollout_id = fleet.start(Terms(abort_after=3))
    fleet.tick()
    fleet.answer("committed", *fleet.told(), trusted=20, old=0.8, new=0.85)
    fleet.tick()

    def call(*words: str) -> str:
        done = CliRunner().invoke(commands_of_fleet, words, env={"EDGE_CL_STORE": store_url})
        assert done.exit_code == 0, done
        return done.output

    n_new = len(fleet.told()) - 1
    shown = call("show-rollout", rollout_id[:6])
    assert "wave 1: 1 committed" in shown and f"wave 2: {n_new} sent" in shown, shown
    assert "0.800 with the old one, 0.850 with the new" in shown and "20 trusted labels" in shown
    (listed,) = json.loads(call("rollouts", "--json"))
    assert (listed["id"], listed["state"], listed["step"]) == (rollout_id, "running", 1)
    assert "newer" in call("rollouts")
    page = render(fleet.store, "", fleet.now_s)
    assert page.count("<rect") == 3 + 2, "three frames, one wave taken, one under way"
    assert "wave 1: 1 committed" in page and "+5.0 points" in page
    worker = Worker(fleet.store, Login("mqtt://127.0.0.1"))
    figures = FleetFigures(fleet.store, worker).render().decode()
    assert 'edgecl_rollouts{state="running"} 1.0' in figures
    assert f'group="all",rollout="{rollout_id[:8]}",state="sent"}} {n_new}.0' in figures, figures
    call("pause", rollout_id[:6])
    call("resume", rollout_id[:6])
    assert "a person ended it" in call("abort", rollout_id[:6])
    assert "aborted" in call("rollouts")
