"""Commands are carried out once, over restarts, and what is known of them is bounded."""

from __future__ import annotations

import secrets
import sqlite3
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from bench.orders_device import PlainOutbox
from edge_cl.commands import Command, CommandResult, ResultStatus, SleepNow
from edge_cl.errors import CommandRefused
from edge_cl.sync.accepted import GRACE_S, MAX_ROWS, Accepted, Repeats


def command(boot_id: str = "a", until_s: float = 100.0, command_id: str = "") -> Command:
    return Command(
        id=command_id or secrets.token_hex(16), to="h/d", boot_id=boot_id, until_s=until_s, do=SleepNow()
    )


def result(asked: Command, status: ResultStatus = "done", message: str = "") -> CommandResult:
    return CommandResult(id=asked.id, ask=asked.ask, status=status, message=message)


def test_an_id_is_known_from_its_acceptance_on_and_after_a_restart(tmp_path: Path) -> None:
    outbox = PlainOutbox(tmp_path / "o.db")
    accepted, asked = Accepted(outbox), command()
    assert accepted.known(asked.id) is None
    accepted.accept(asked, 1.0)
    entry = accepted.known(asked.id)
    assert entry is not None and entry.result is None
    accepted.finish(asked.id, result(asked, message="slept"))
    outbox.commit()

    later = Accepted(PlainOutbox(tmp_path / "o.db")).known(asked.id)
    assert later is not None and later.result == result(asked, message="slept")


def test_nothing_is_durable_before_the_outbox_commits(tmp_path: Path) -> None:
    accepted, asked = Accepted(PlainOutbox(tmp_path / "o.db")), command()
    accepted.accept(asked, 1.0)
    assert Accepted(PlainOutbox(tmp_path / "o.db")).known(asked.id) is None


def test_what_a_restart_interrupted_may_be_asked_for_again(tmp_path: Path) -> None:
    outbox = PlainOutbox(tmp_path / "o.db")
    accepted, done, cut_off = Accepted(outbox), command("a"), command("a")
    for asked in (done, cut_off):
        accepted.accept(asked, 1.0)
    accepted.finish(done.id, result(done))
    assert accepted.interrupted("a") == []
    outbox.commit()

    outbox = PlainOutbox(tmp_path / "o.db")
    accepted = Accepted(outbox)
    assert [entry.id for entry in accepted.interrupted("b")] == [cut_off.id]
    accepted.finish(cut_off.id, result(cut_off, "interrupted"))
    outbox.commit()
    assert Accepted(PlainOutbox(tmp_path / "o.db")).known(cut_off.id) is None
    again = command("b", command_id=cut_off.id)
    assert accepted.known(again.id) is None
    accepted.accept(again, 1.0)
    accepted.finish(again.id, result(again))
    outbox.commit()
    assert Accepted(PlainOutbox(tmp_path / "o.db")).interrupted("c") == []


def test_an_id_is_kept_until_no_life_would_take_it_any_more(tmp_path: Path) -> None:
    """Uptimes add up over lives; the time between them, which nobody knows, does not count."""
    outbox = PlainOutbox(tmp_path / "o.db")
    accepted, asked = Accepted(outbox), command(until_s=1000.0)
    accepted.accept(asked, 600.0)
    accepted.finish(asked.id, result(asked))
    outbox.commit()

    outbox = PlainOutbox(tmp_path / "o.db")
    accepted = Accepted(outbox)
    accepted.forget_expired(400.0 + GRACE_S)
    assert accepted.known(asked.id)
    accepted.forget_expired(401.0 + GRACE_S)
    assert accepted.known(asked.id) is None
    of_this_life = command(until_s=500.0 + GRACE_S)
    accepted.accept(of_this_life, 410.0 + GRACE_S)
    accepted.finish(of_this_life.id, result(of_this_life))
    accepted.forget_expired(500.0 + 2 * GRACE_S)
    assert accepted.known(of_this_life.id)
    accepted.forget_expired(501.0 + 2 * GRACE_S)
    outbox.commit()
    assert len(Accepted(PlainOutbox(tmp_path / "o.db"))) == 0


def test_time_lived_is_kept_though_nothing_is_accepted(tmp_path: Path) -> None:
    outbox = PlainOutbox(tmp_path / "o.db")
    accepted, asked = Accepted(outbox), command(until_s=5000.0)
    accepted.accept(asked, 0.0)
    accepted.finish(asked.id, result(asked))
    for _ in range(6):  # lives of 25 minutes
        for up_s in range(0, 1500, 10):
            accepted.forget_expired(float(up_s))
        outbox.commit()
        outbox = PlainOutbox(tmp_path / "o.db")
        accepted = Accepted(outbox)
    accepted.forget_expired(5000 + GRACE_S - 6 * 1200 + 1)
    assert accepted.known(asked.id) is None


def test_what_is_under_way_is_never_forgotten(tmp_path: Path) -> None:
    accepted, asked = Accepted(PlainOutbox(tmp_path / "o.db")), command()
    accepted.accept(asked, 1.0)
    accepted.forget_expired(1e9)
    assert accepted.known(asked.id)


def test_the_number_of_commands_is_bounded(tmp_path: Path) -> None:
    outbox = PlainOutbox(tmp_path / "o.db")
    accepted = Accepted(outbox)
    for _ in range(MAX_ROWS):
        asked = command()
        accepted.accept(asked, 1.0)
        accepted.finish(asked.id, result(asked))
    with pytest.raises(CommandRefused, match="4,096") as caught:
        accepted.accept(command(), 1.0)
    assert caught.value.code == "busy"
    accepted.accept(command(until_s=1e4), 101.0 + GRACE_S)
    assert len(accepted) == 1
    outbox.commit()
    assert len(Accepted(PlainOutbox(tmp_path / "o.db"))) == 1


def test_a_file_that_the_outbox_began_anew_is_no_trouble(tmp_path: Path) -> None:
    outbox = PlainOutbox(tmp_path / "o.db")
    accepted, first, second = Accepted(outbox), command(), command()
    accepted.accept(first, 1.0)
    outbox.commit()
    outbox.database = sqlite3.connect(tmp_path / "new.db")
    accepted.finish(first.id, result(first))
    accepted.accept(second, 2.0)
    outbox.commit()
    assert Accepted(PlainOutbox(tmp_path / "new.db")).known(second.id)


def test_without_the_disk_nothing_is_accepted_until_it_is_back(tmp_path: Path) -> None:
    """Whether an id was carried out in an earlier life is not known without it."""
    outbox = PlainOutbox(tmp_path / "o.db")
    asked = command()
    accepted = Accepted(outbox)
    accepted.accept(asked, 1.0)
    outbox.commit()

    outbox = PlainOutbox(tmp_path / "o.db")
    database, outbox.database = outbox.database, None
    accepted = Accepted(outbox)
    with pytest.raises(CommandRefused, match="disk") as caught:
        accepted.accept(command(), 1.0)
    assert caught.value.code == "busy"
    outbox.database = database
    accepted.accept(command(), 1.0)
    assert accepted.known(asked.id)


def test_who_repeats_a_command_gets_few_answers() -> None:
    repeats = Repeats(every_s=45.0, most=3)
    answers = [up_s for up_s in range(100) if repeats.may_answer("a", float(up_s))]
    assert answers == [0, 45, 90]
    assert repeats.may_answer("b", 91.0)


def test_answers_are_remembered_for_so_many_ids() -> None:
    repeats = Repeats(every_s=45.0, most=3)
    for command_id in "abcd":
        assert repeats.may_answer(command_id, 0.0)
    assert not repeats.may_answer("d", 1.0) and not repeats.may_answer("b", 1.0)
    assert repeats.may_answer("a", 1.0)  # forgotten: the oldest


class Restarts(RuleBasedStateMachine):
    """Servers that sign the same ids again and again, and a device that is cut off at any moment."""

    def __init__(self) -> None:
        super().__init__()
        self.path = f"file:{secrets.token_hex(8)}?mode=memory&cache=shared"
        self.keep = sqlite3.connect(self.path, uri=True)
        self.boot = 0
        self.done: list[str] = []
        self.durable: list[str] = []
        self.start()

    def start(self) -> None:
        self.boot += 1
        self.outbox = PlainOutbox.__new__(PlainOutbox)
        self.outbox.database = sqlite3.connect(self.path, uri=True)
        self.outbox._waiting = []
        self.accepted = Accepted(self.outbox)
        for entry in self.accepted.interrupted(str(self.boot)):
            gone = CommandResult(id=entry.id, ask=entry.ask, status="interrupted")
            self.accepted.finish(entry.id, gone)
        self.commit()

    @rule(number=st.integers(0, 4), finish=st.booleans())
    def come(self, number: int, finish: bool) -> None:
        """A command comes; its acceptance is committed before it is carried out."""
        asked = command(str(self.boot), 1e6, f"{number:032x}")
        if self.accepted.known(asked.id) is None:
            self.accepted.accept(asked, 0.0)
            self.commit()
            if finish:
                self.accepted.finish(asked.id, result(asked))
                self.done.append(asked.id)

    @rule()
    def commit(self) -> None:
        self.outbox.commit()
        self.durable = list(self.done)

    @precondition(lambda self: self.boot < 8)
    @rule()
    def cut_off(self) -> None:
        if self.outbox.database is not None:
            self.outbox.database.close()
        self.done = list(self.durable)  # the effect is durable with its result, or neither is
        self.start()

    @invariant()
    def once(self) -> None:
        assert len(self.done) == len(set(self.done))

    def teardown(self) -> None:
        self.keep.close()


TestRestarts = Restarts.TestCase
TestRestarts.settings = settings(max_examples=30, stateful_step_count=30)
