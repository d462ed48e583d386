"""The demo's story: what comes when, what is labelled, and what stays unseen."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_cl.errors import ConfigError
from edge_cl.records import Label, Reading
from edge_cl.simulate.scenario import LabelPolicy, demo, labels_every, majority


@pytest.fixture(scope="module")
def story():
    return demo(1, n_windows=400)


def test_the_new_class_comes_only_at_the_end(story):
    start = story.marks[-1].index
    assert "washing" not in story.truth[:start]
    assert "washing" in story.truth[start:]
    assert [mark.index for mark in story.marks] == [0, 60, 180, 300]


def test_every_label_comes_after_its_window(story):
    events = list(story.events())
    seen = set()
    for event in events:
        if isinstance(event, Reading):
            seen.add(event.id)
        elif isinstance(event, Label):
            assert event.reading_id in seen
            assert event.label == story.truth[int(event.reading_id)]
    assert sum(isinstance(event, Label) for event in events) == len(story.labels) > 50
    assert len(seen) == len(story.truth)


def test_exams_are_not_in_the_stream(story):
    streamed = {window.tobytes() for window in story.windows}
    assert len(story.exams) == 4
    assert not any(window.tobytes() in streamed for exam in story.exams for window in exam.windows)


def test_pauses_tick_and_the_clock_jumps(story):
    naps = []
    ticks = [event for event in story.events(pause_s=0.02, wait=naps.append) if event is None]
    assert len(ticks) == len(naps) > 3
    jumps = np.flatnonzero(np.diff(story.t_s) > 60) + 1
    assert jumps.tolist() == [60, 180, 300]


def test_a_story_is_reproducible(story):
    again = demo(1, n_windows=400)
    np.testing.assert_array_equal(again.windows, story.windows)
    assert again.labels == story.labels
    assert demo(2, n_windows=400).truth != story.truth


def test_too_short_a_demo_is_refused():
    with pytest.raises(ConfigError, match="asked for 5 windows"):
        demo(n_windows=5)


@given(n=st.integers(0, 3000), seed=st.integers(0, 1000), share=st.floats(0, 1))
def test_label_policy_never_labels_the_future_or_twice(n, seed, share):
    labels = LabelPolicy(share=share).draw(n, np.random.default_rng(seed))
    assert len({label.index for label in labels}) == len(labels)
    assert all(1 <= label.after - label.index <= 120 and label.after < n for label in labels)
    assert labels == sorted(labels)


def test_one_in_five_fifty_late():
    labels = labels_every(200, every=5, delay=50)
    assert [label.index for label in labels] == list(range(0, 150, 5))
    assert {label.after - label.index for label in labels} == {50}


def test_majority_prefers_the_first_on_a_tie():
    assert majority(["b", "a", "a", "b", "c"]) == "b"
