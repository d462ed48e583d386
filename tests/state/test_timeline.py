"""Which entries count, against a plain list that is kept beside it."""

import time

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_cl.state.entries import Entry
from edge_cl.state.timeline import Back, Taken, Timeline, holds, overlap, ranges_of, union, without

STEP = st.one_of(
    st.just(("learn",)),
    st.just(("learn",)),
    st.just(("learn",)),
    st.tuples(st.just("back"), st.floats(0, 1)),
    st.tuples(st.just("forget"), st.sets(st.floats(0, 1), min_size=1, max_size=4)),
)


def listed(ranges):
    return [seq for a, b in ranges for seq in range(a, b + 1)]


@settings(max_examples=300)
@given(steps=st.lists(STEP, min_size=1, max_size=30))
def test_what_counts_is_as_if_kept_in_a_list(steps):
    revisions, lines, gone = [], [[]], set()
    for seq, step in enumerate(steps, start=1):
        line = lines[-1]
        if step[0] == "learn":
            line = [*line, seq]
        elif step[0] == "back":
            to = int(step[1] * (seq - 1))
            line = lines[to]
            detail = msgspec.json.encode(Back(to=to)).decode()
            revisions.append(Entry(seq=seq, kind="rollback", detail=detail))
        else:
            learned = [s for s in range(1, seq) if steps[s - 1][0] == "learn"]
            taken = sorted({learned[int(share * (len(learned) - 1))] for share in step[1] if learned})
            gone |= set(taken)
            detail = msgspec.json.encode(Taken(ranges=ranges_of(taken))).decode()
            revisions.append(Entry(seq=seq, kind="forget", detail=detail))
        lines.append(line)
    timeline, last = Timeline(revisions), len(steps)
    rare = {entry.seq for entry in revisions}
    gone_at = [
        {s for r in revisions if r.kind == "forget" and r.seq <= seq for s in _taken(r)}
        for seq in range(last + 1)
    ]
    for seq in range(last + 1):
        assert [s for s in listed(timeline.at(seq)) if s not in rare] == [
            s for s in lines[seq] if s not in gone
        ]
        known_then = [s for s in lines[seq] if s not in gone_at[seq]]
        known_now = [s for s in lines[last] if s not in gone]
        begins = lines[last][: len(lines[seq])] == lines[seq]
        clean = not any(s in gone for s in known_then)
        if timeline.leads_to(seq, last):
            assert known_now[: len(known_then)] == known_then, "a snapshot there could not be built upon"
        assert timeline.leads_to(seq, last) or not (begins and clean) or rare
        assert timeline.tainted(seq) == (not clean)


def _taken(entry):
    return listed(msgspec.json.decode(entry.detail, type=Taken).ranges)


@given(
    st.sets(st.integers(1, 60), max_size=30).map(sorted), st.sets(st.integers(1, 60), max_size=30).map(sorted)
)
def test_ranges_are_sets(ours, others):
    a, b = ranges_of(ours), ranges_of(others)
    assert listed(a) == ours
    assert listed(without(a, b)) == [seq for seq in ours if seq not in others]
    assert union([a, b]) == ranges_of(sorted({*ours, *others}))
    assert overlap(a, b) == bool(set(ours) & set(others))
    assert [seq for seq in range(61) if holds(a, seq)] == ours


def test_thousands_of_labels_forgotten_one_by_one_cost_no_more_than_at_once():
    taken = [Taken(ranges=[(2 * k, 2 * k)]) for k in range(1, 6_000)]
    forgets = [
        Entry(seq=20_000 + k, kind="forget", detail=msgspec.json.encode(one).decode())
        for k, one in enumerate(taken)
    ]
    timeline, began = Timeline(forgets), time.process_time()
    counts = timeline.at(30_000)
    assert not holds(counts, 400) and holds(counts, 401)
    assert timeline.leads_to(26_000, 30_000) and not timeline.leads_to(20_100, 30_000)
    assert time.process_time() - began < 1, "asked with every unknown reading, and for every snapshot"
