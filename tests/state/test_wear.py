"""What is written stays below a day's allowance, and nobody waits while little is written."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edge_cl.state.wear import DAY_S, MOST_COMMIT_S, MOST_GROWN, Wear

COMMIT_BYTES, LABEL_BYTES = 16_000, 800


class Card:
    def __init__(self, daily_bytes, **options):
        self.now_s, self.written = 0.0, 0
        self.wear = Wear(daily_bytes, counter=lambda: self.written, clock=lambda: self.now_s, **options)


def day_of_labels(card, per_s, *, snapshot_bytes=0, seconds=DAY_S):
    """Commits as they come due; returns (bytes, longest wait between two)."""
    waits, grown, n = [], 0, 0
    while card.now_s < seconds:
        wait = max(card.wear.commit_s(0.05), 1 / per_s)
        card.now_s += wait
        labels = round(wait * per_s)
        n, grown = n + labels, grown + labels
        card.written += COMMIT_BYTES + labels * LABEL_BYTES
        if card.wear.snapshot_due(grown, 1000, snapshot_bytes):
            card.written += snapshot_bytes
            grown = 0
        waits.append(wait)
    return card.written, max(waits)


def test_a_person_who_labels_never_waits():
    card = Card(1e9)
    written, longest = day_of_labels(card, 0.2)
    assert longest == 5.0, "as they come"
    assert written < 0.4e9


def test_ten_labels_a_second_all_day_keep_to_the_allowance():
    card = Card(1e9)
    written, longest = day_of_labels(card, 10, snapshot_bytes=2_000_000)
    assert written <= 1.02e9
    assert longest <= MOST_COMMIT_S


def test_without_an_allowance_nothing_waits():
    card = Card(0)
    _, longest = day_of_labels(card, 10, snapshot_bytes=6_000_000, seconds=2000)
    assert longest == 0.1


def test_snapshots_come_at_last_whatever_was_written():
    card = Card(1e9)
    card.written = 10**12
    assert not card.wear.snapshot_due(999, 1000, 10)
    assert not card.wear.snapshot_due(1000, 1000, 10)
    assert card.wear.snapshot_due(MOST_GROWN * 1000, 1000, 10)


@settings(max_examples=100)
@given(
    steps=st.lists(st.tuples(st.floats(0, 3600), st.integers(0, 10**8)), min_size=1, max_size=60),
    least=st.floats(0, 1),
)
@example(steps=[(0.0, 25_000_000), (0.0, 10**8)], least=0.5559504760374189)
def test_waits_are_bounded_and_counts_only_grow(steps, least):
    card = Card(1e9)
    total = 0
    for passed_s, written in steps:
        card.now_s += passed_s
        card.written += written
        total += written
        assert least <= card.wear.commit_s(least) <= max(MOST_COMMIT_S, least)
        assert card.wear.written_bytes == total


def test_a_counter_that_begins_anew_is_no_gift(monkeypatch):
    card = Card(1e9)
    card.written = 5_000
    assert card.wear.written_bytes == 5_000
    card.written = 0
    assert card.wear.written_bytes == 5_000


def test_the_kernel_counts_what_is_written(tmp_path):
    wear = Wear(1e9)
    before = wear.written_bytes
    with (tmp_path / "f").open("wb") as file:
        file.write(b"x" * 2**20)
        file.flush()
    grown = wear.written_bytes - before
    if not grown:
        pytest.skip("this file system is in memory")
    assert 2**20 <= grown < 2**21
