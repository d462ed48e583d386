"""Windows, confirmations, sending again: no network, and the clock is a number."""

from __future__ import annotations

from itertools import pairwise

import pytest

from edge_cl.sync.delivery import ASKED_AT_ONCE, RANGES_AT_ONCE, RESEND_S, UNCONFIRMED, WINDOW, Delivery
from edge_cl.sync.messages import MAX_MESSAGE_BYTES, Gone, encode
from edge_cl.sync.outbox import Outbox
from edge_cl.sync.outbox_rows import Keep, Row

BIG = 10**9


class Wire:
    """What a broker and a server would have seen."""

    def __init__(self, *, by_server: bool = True, n: int = 0, size: int = 10) -> None:
        self.outbox = Outbox(None, capacity_bytes=BIG)
        self.delivery = Delivery(self.outbox, by_server=by_server)
        self.mid = 0
        for _ in range(n):
            self.outbox.put("receipt", b"x" * size, Keep.ALWAYS)
        self.outbox.commit()

    def send(self, now_s: float = 0.0) -> dict[int, Row]:
        sent = {}
        for row in self.delivery.due(now_s):
            self.mid += 1
            self.delivery.sent(self.mid, row, now_s)
            sent[self.mid] = row
        return sent

    def send_and_acknowledge(self, now_s: float = 0.0) -> list[Row]:
        """Everything that the windows allow, the broker answering at once."""
        rows: list[Row] = []
        while sent := self.send(now_s):
            for mid, row in sent.items():
                self.delivery.acknowledged(mid)
                rows.append(row)
        return rows


def test_no_more_than_the_window_is_with_the_broker() -> None:
    wire = Wire(n=50)
    first = wire.send()
    assert len(first) == WINDOW and wire.send() == {}
    wire.delivery.acknowledged(1)
    assert [row.seq for row in wire.send().values()] == [WINDOW + 1]
    assert wire.delivery.most_in_flight == WINDOW


def test_a_broker_alone_confirms_nothing_where_a_server_must() -> None:
    wire = Wire(n=5)
    rows = wire.send_and_acknowledge()
    assert wire.outbox.n_queued == 5
    wire.delivery.confirmed([rows[3].id, "somebody else's"])
    assert wire.outbox.n_queued == 4 and not wire.outbox.holds(rows[3].seq)


def test_without_a_server_the_broker_confirms() -> None:
    wire = Wire(n=5, by_server=False)
    wire.send_and_acknowledge()
    assert wire.outbox.n_queued == 0


def test_what_the_broker_refuses_stays_and_is_tried_again() -> None:
    wire = Wire(n=1, by_server=False)
    wire.send()
    wire.delivery.acknowledged(1, refused=True)
    assert wire.outbox.n_queued == 1
    assert wire.send(RESEND_S - 1) == {} and len(wire.send(RESEND_S)) == 1


def test_an_unheard_message_is_sent_again_later_and_later() -> None:
    wire = Wire(n=1)
    times, now_s = [], 0.0
    while now_s < 2_000:
        times += [now_s for _ in wire.send_and_acknowledge(now_s)]
        now_s += 1.0
    waits = [b - a for a, b in pairwise(times)]
    assert waits[:5] == [15, 30, 60, 120, 240] and set(waits[5:]) == {300}


def test_a_server_that_came_back_hears_everything_at_once() -> None:
    wire = Wire(n=3)
    wire.send_and_acknowledge(0.0)
    wire.delivery.hurry(2.0)
    assert wire.send(1.0) == {}
    assert [row.seq for row in wire.send(2.0).values()] == [1, 2, 3]


def test_unconfirmed_messages_are_bounded() -> None:
    wire = Wire(n=UNCONFIRMED + 50)
    rows = wire.send_and_acknowledge()
    assert len(rows) == UNCONFIRMED
    wire.delivery.confirmed([row.id for row in rows[:10]])
    assert len(wire.send_and_acknowledge()) == 10


def test_a_new_connection_begins_with_the_oldest() -> None:
    wire = Wire(n=30)
    rows = wire.send_and_acknowledge()
    wire.delivery.confirmed([row.id for row in rows[1:]])
    wire.delivery.restart()
    assert [row.seq for row in wire.send().values()] == [1]


def test_large_messages_fill_the_window_by_their_bytes() -> None:
    wire = Wire(n=5, size=90_000)
    assert len(wire.send()) == 2
    wire.delivery.acknowledged(1)
    assert len(wire.send()) == 1


def test_numbers_that_will_never_come_are_named() -> None:
    wire = Wire(n=6)
    rows = wire.send_and_acknowledge()
    for row in (rows[1], rows[2], rows[4]):
        wire.delivery.confirmed([row.id])
    assert wire.delivery.resend([(1, 6), (100, 2**62)], 5.0) == [(2, 3), (5, 5)]
    assert [row.seq for row in wire.send(5.0).values()] == [1, 4, 6]


def test_however_many_numbers_are_missing_one_answer_names_them() -> None:
    wire = Wire(n=2)
    wire.outbox.seq = 2 * 10**12  # as after a start at which the disk did not tell the last number
    wire.outbox.put("receipt", b"new", Keep.ALWAYS)
    wire.outbox.commit()
    wire.send_and_acknowledge()
    assert wire.delivery.resend([(2, wire.outbox.seq)], 5.0) == [(3, 2 * 10**12)]
    assert [row.seq for row in wire.send(5.0).values()] == [2, 2 * 10**12 + 1]


def test_what_is_asked_at_once_is_bounded_and_the_rest_is_not_called_gone() -> None:
    wire = Wire(n=ASKED_AT_ONCE + 10)
    assert wire.delivery.resend([(1, ASKED_AT_ONCE + 20)], 0.0) == []
    for row in wire.outbox.ready(ASKED_AT_ONCE + 10)[::2]:
        wire.outbox.done(row)
    wire.outbox.commit()
    gone = wire.delivery.resend([(1, 2**62)], 0.0)
    assert gone[0] == (1, 1) and len(gone) == ASKED_AT_ONCE / 2 + 5
    whole = Gone(epoch=wire.outbox.epoch, seqs=[(2**62, 2**62)] * (ASKED_AT_ONCE + RANGES_AT_ONCE))
    assert len(encode(whole)) < MAX_MESSAGE_BYTES


@pytest.mark.parametrize("asked", [(-(2**70), -(2**70) + 5), (2**70, 2**71), (-(2**70), 2**70), (3, 2)])
def test_numbers_that_no_database_knows_are_not_asked_of_it(asked: tuple[int, int]) -> None:
    wire = Wire(n=3)
    assert wire.delivery.resend([asked], 0.0) == []


def test_nothing_is_due_while_the_broker_has_not_acknowledged_it() -> None:
    wire = Wire(n=2)
    first, second = wire.send()
    wire.delivery.acknowledged(first)
    assert wire.delivery.next_due_s() == RESEND_S
    wire.send(RESEND_S)  # the first again; the second is still on its way
    assert wire.send(2 * RESEND_S) == {} and wire.delivery.next_due_s() is None
    wire.delivery.acknowledged(second)
    assert wire.delivery.next_due_s() == RESEND_S


def test_a_message_dropped_on_its_way_is_forgotten() -> None:
    wire = Wire()
    wire.outbox.put("summary", b"old", Keep.WHILE_ROOM)
    wire.outbox.commit()
    (row,) = wire.send_and_acknowledge()
    wire.outbox.done(row)
    assert wire.send(RESEND_S) == {} and wire.delivery.n_unconfirmed == 0


@pytest.mark.parametrize("by_server", [True, False])
def test_acknowledgements_of_others_change_nothing(by_server: bool) -> None:
    wire = Wire(n=2, by_server=by_server)
    wire.send()
    wire.delivery.acknowledged(77)
    assert wire.delivery.n_in_flight == 2 and wire.outbox.n_queued == 2
