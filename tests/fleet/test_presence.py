"""What is known of a device: late words, stale wills, restarts, and two boards under one name."""

from __future__ import annotations

import pytest
from edge_cl_fleet.arrivals import Arrival, read
from edge_cl_fleet.presence import Known, Lives, fold, is_news

from tests.fleet.devices import NOW_S, Board


def folded(*arrivals: Arrival) -> Known:
    known, lives = Known(site="lab", device="dev1", first_seen_s=NOW_S, last_seen_s=NOW_S), Lives()
    for arrival in arrivals:
        word = read(arrival)
        assert word is not None
        fold(known, word, lives)
    return known


def test_a_birth_a_life_and_a_will() -> None:
    board = Board(session=3)
    assert folded(board.presence()).online
    known = folded(board.presence(), board.state(at_s=NOW_S + 9, up_s=50.0), board.presence(False))
    assert (known.online, known.boot_id, known.session) == (False, "boot1", 3)
    assert (known.up_s, known.up_at_s, known.last_seen_s) == (50.0, NOW_S + 9, NOW_S + 9)
    assert (known.accuracy_now, known.n_labels) == (0.9, 10)


def test_the_late_will_of_an_earlier_connection_hides_nothing() -> None:
    old, new = Board(session=3), Board(session=4)
    assert folded(old.presence(), new.presence(), old.presence(False)).online
    other_life = Board(boot_id="boot0", session=2)
    assert folded(new.presence(), other_life.presence(False)).online


def test_a_late_birth_does_not_undo_its_own_will() -> None:
    board = Board()
    assert not folded(board.presence(False), board.presence()).online
    assert not folded(board.presence(False), board.says("receipt")).online


def test_a_message_is_a_sign_of_life_before_the_birth_arrives() -> None:
    old, new = Board(session=3), Board(session=4)
    assert folded(old.presence(), old.presence(False), new.says("receipt")).online


def test_retained_words_are_no_sign_of_life() -> None:
    board = Board()
    known = folded(board.presence(retained=True), board.state(retained=True, at_s=NOW_S + 99))
    assert (known.online, known.up_s, known.last_seen_s) == (True, None, NOW_S)
    assert known.accuracy_now == 0.9


def test_a_restart_forgets_the_uptime() -> None:
    old, new = Board(), Board(boot_id="boot2", session=2)
    known = folded(old.state(), new.presence())
    assert (known.boot_id, known.up_s, known.cloned_s) == ("boot2", None, None)


def test_a_board_with_a_new_state_folder_is_believed() -> None:
    old, new = Board(session=30), Board(boot_id="boot2", session=1)
    known = folded(old.state(), new.presence(), new.state())
    assert (known.boot_id, known.online, known.cloned_s) == ("boot2", True, None)


def test_late_words_of_an_earlier_life_are_no_clone() -> None:
    old, new = Board(session=3), Board(boot_id="boot2", session=4)
    late = [old.presence(), old.says("receipt"), old.presence(), old.says("receipt")]
    known = folded(old.state(), new.state(), *late, new.says("receipt"))
    assert (known.boot_id, known.cloned_s) == ("boot2", None)


@pytest.mark.parametrize("other_session", [1, 5, 100])
def test_two_boards_under_one_name_are_noticed(other_session: int) -> None:
    arrivals = []
    for n in range(3):
        arrivals.append(Board(boot_id="boot1", session=5 + n).presence(at_s=NOW_S + n))
        arrivals.append(Board(boot_id="boot2", session=other_session + n).presence(at_s=NOW_S + n))
    assert folded(*arrivals).cloned_s is not None


def test_many_restarts_are_no_clone() -> None:
    lives = [Board(boot_id=f"boot{n}", session=n) for n in range(20)]
    assert folded(*(word for board in lives for word in (board.presence(), board.state()))).cloned_s is None


def test_old_health_says_nothing_of_now() -> None:
    from tests.fleet.devices import status

    board = Board()
    late = board.says("health", status(accuracy_now=0.2), age_s=900.0)
    before_the_start = board.says("health", status(accuracy_now=0.2), age_s=None)
    assert folded(board.state(), late, before_the_start).accuracy_now == 0.9
    assert folded(board.state(), board.says("health", status(accuracy_now=0.2))).accuracy_now == 0.2


def test_a_busy_device_s_row_is_not_written_for_every_message() -> None:
    board = Board()
    known = folded(board.state())

    def says_something_new(arrival: Arrival) -> bool:
        word = read(arrival)
        return word is not None and is_news(known, word)

    assert not says_something_new(board.says("receipt", at_s=NOW_S + 1))
    assert says_something_new(board.says("receipt", at_s=NOW_S + 6))
    assert says_something_new(board.presence())
    board.session += 1
    assert says_something_new(board.says("receipt"))
