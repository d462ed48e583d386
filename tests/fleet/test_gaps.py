"""Missing numbers: found, asked for, not asked for again and again."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest
from edge_cl_fleet.arrivals import Arrival, read
from edge_cl_fleet.gaps import GapDuty, find_missing, subtract
from edge_cl_fleet.store import FleetStore
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_cl.sync import messages
from edge_cl.sync.messages import Gone
from tests.fleet.devices import NOW_S, Board

LATER_S = NOW_S + 60


class Mail:
    """Takes what is published."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes]] = []

    def __call__(self, topic: str, payload: bytes, *, qos: int = 0, expires_s: int = 0) -> bool:
        self.sent.append((topic, payload))
        return True

    def asked(self) -> list[list[tuple[int, int]]]:
        return [messages.decode("resend", payload).seqs for _, payload in self.sent]


def put(store: FleetStore, duty: GapDuty | None, arrivals: list[Arrival]) -> None:
    words = [word for word in map(read, arrivals) if word is not None]
    store.insert(words)
    if duty is not None:
        duty.heard(words)


def numbered(board: Board, *seqs: int, at_s: float = NOW_S) -> list[Arrival]:
    return [board.says("receipt", seq=seq, at_s=at_s) for seq in seqs]


def test_gaps_are_found_when_they_are_old(store: FleetStore) -> None:
    board = Board()
    put(store, None, numbered(board, 1, 2, 5, 6, 9))
    put(store, None, numbered(board, 12, at_s=NOW_S + 50))
    missing = find_missing(store, "lab", "dev1", board.epoch, before_s=NOW_S + 10)
    assert missing == [(3, 4), (7, 8)]
    assert find_missing(store, "lab", "dev1", board.epoch, before_s=NOW_S + 50)[-1] == (10, 11)
    assert find_missing(store, "lab", "dev1", "other", before_s=LATER_S) == []
    assert find_missing(store, "lab", "dev1", board.epoch, before_s=NOW_S + 10, after=4) == [(7, 8)]


def test_what_is_gone_or_came_late_is_not_missing(store: FleetStore) -> None:
    board = Board()
    put(store, None, numbered(board, 1, 10))
    put(store, None, numbered(board, 4, at_s=NOW_S + 50))
    put(store, None, [board.says("gone", Gone(epoch=board.epoch, seqs=[(2, 3), (8, 20)]), seq=11)])
    assert find_missing(store, "lab", "dev1", board.epoch, before_s=NOW_S) == [(5, 7)]


def test_a_device_is_asked_once_a_minute_and_then_more_rarely(store: FleetStore) -> None:
    duty, mail, board = GapDuty(store), Mail(), Board()
    put(store, duty, numbered(board, 1, 2, 5))
    duty.tick(NOW_S + 1, mail)
    assert mail.sent == []  # it may still be on its way
    asked_at_s = []
    for now_s in range(int(NOW_S) + 30, int(NOW_S) + 4000, 5):
        n_before = len(mail.sent)
        duty.tick(now_s, mail)
        if len(mail.sent) > n_before:
            asked_at_s.append(now_s)
    assert mail.asked()[0] == [(3, 4)]
    assert 4 <= len(asked_at_s) <= 8
    assert min(b - a for a, b in itertools.pairwise(asked_at_s)) >= 60


def test_what_comes_is_not_asked_for_again(store: FleetStore) -> None:
    duty, mail, board = GapDuty(store, reorder_s=0.0), Mail(), Board()
    put(store, duty, numbered(board, 1, 2, 5, 8))
    duty.tick(NOW_S + 1, mail)
    put(store, duty, numbered(board, 3, 4))
    duty.tick(NOW_S + 100, mail)
    put(store, duty, numbered(board, 6, 7))
    for n in range(2, 100):
        duty.tick(NOW_S + 100 * n, mail)
    assert mail.asked() == [[(3, 4), (6, 7)], [(6, 7)]]
    put(store, duty, numbered(board, 10, at_s=NOW_S + 20_000))
    duty.tick(NOW_S + 20_100, mail)
    assert mail.asked()[2:] == [[(9, 9)]]


@pytest.mark.parametrize("seed", range(2))
def test_nothing_missing_is_overlooked(tmp_path: Path, seed: int) -> None:
    """Messages in any order, some lost and sent again when asked: in the end all are there."""
    rng = random.Random(seed)
    store = FleetStore(f"sqlite:///{tmp_path}/fleet.db")
    duty, mail, board = GapDuty(store, reorder_s=5.0), Mail(), Board()
    to_send, now_s = list(range(2, 120)), NOW_S
    put(store, duty, numbered(board, 1))
    while to_send or find_missing(store, "lab", "dev1", board.epoch, before_s=now_s):
        assert now_s < NOW_S + 100_000
        now_s += rng.uniform(1, 40) if to_send else 60.0
        some, to_send = to_send[:7], to_send[7:]
        rng.shuffle(some)
        put(store, duty, numbered(board, *(seq for seq in some if rng.random() < 0.6), at_s=now_s))
        if not to_send:
            put(store, duty, numbered(board, 120, at_s=now_s))  # the newest is always known
        mail.sent.clear()
        duty.tick(now_s, mail)
        for ranges in mail.asked():
            again = [seq for first, last in ranges for seq in range(first, last + 1) if rng.random() < 0.7]
            put(store, duty, numbered(board, *again, at_s=now_s))
    assert find_missing(store, "lab", "dev1", board.epoch, before_s=now_s) == []
    store.close()


@settings(max_examples=200)
@given(st.sets(st.integers(0, 30)), st.lists(st.tuples(st.integers(0, 30), st.integers(0, 5)), max_size=6))
def test_subtract_is_that_of_sets(numbers: set[int], cuts: list[tuple[int, int]]) -> None:
    ranges = [(n, n) for n in sorted(numbers)]
    without = sorted((first, first + more) for first, more in cuts)
    left = {n for first, last in subtract(ranges, without) for n in range(first, last + 1)}
    assert left == numbers - {n for first, last in without for n in range(first, last + 1)}
    if numbers:
        whole = (min(numbers), max(numbers))
        left = {n for first, last in subtract([whole], without) for n in range(first, last + 1)}
        assert left == set(range(whole[0], whole[1] + 1)) - {
            n for first, last in without for n in range(first, last + 1)
        }
