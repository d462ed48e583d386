"""Streams: every kind of line, every kind of damage, and what the loop gets to see."""

import io
import itertools
import json
import os
import threading

import numpy as np
import pytest

from edge_cl.errors import ConfigError, SensorUnavailable
from edge_cl.manifest import Channel, EncoderSpec, Manifest
from edge_cl.records import Label, Reading
from edge_cl.sensing import stream as stream_module
from edge_cl.sensing.labelling import LabelSchedule, LabelTrack
from edge_cl.sensing.stream import PipeStream, open_stream, paced


@pytest.fixture
def manifest():
    return Manifest(
        format="edge-cl-bundle",
        format_version=1,
        name="test",
        class_names=("rest", "walk"),
        channels=(Channel("ax", "m/s²"), Channel("ay", "m/s²")),
        rate_hz=10.0,
        window_samples=10,
        hop_samples=5,
        feature_size=2,
        encoder=EncoderSpec(kind="identity"),
    )


def sample(k, **more):
    return {"t": k / 10, "x": [float(k), -float(k)], **more}


def write(path, lines):
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def play(path, manifest, **options):
    source = open_stream(path, manifest, **options)
    return source.assembler, list(source)


def readings(events):
    return [event for event in events if isinstance(event, Reading)]


def labels(events):
    return [event for event in events if isinstance(event, Label)]


def test_single_samples_become_windows(tmp_path, manifest):
    path = write(tmp_path / "a.jsonl", [sample(k) for k in range(20)])
    state, events = play(path, manifest, prefix="run")
    assert [reading.id for reading in events] == ["run-0", "run-1", "run-2"]
    assert [reading.t_s for reading in events] == pytest.approx([0.9, 1.4, 1.9])
    np.testing.assert_allclose(events[1].window[:, 0], np.arange(5, 15))
    assert state.n_bad == 0


def test_blocks_give_the_same_windows_as_single_samples(tmp_path, manifest):
    rows = [sample(k, label="walk" if k >= 12 else "rest") for k in range(40)]
    blocks = [
        {"t": [r["t"] for r in part], "x": [r["x"] for r in part], "label": [r["label"] for r in part]}
        for part in (rows[:3], rows[3:30], rows[30:])
    ]
    _, one = play(write(tmp_path / "a.jsonl", rows), manifest, prefix="p")
    _, many = play(write(tmp_path / "b.jsonl", blocks), manifest, prefix="p")
    assert [event.id for event in readings(one)] == [event.id for event in readings(many)]
    assert labels(one) == labels(many)
    for a, b in zip(readings(one), readings(many), strict=True):
        np.testing.assert_array_equal(a.window, b.window)


def test_csv_columns_may_come_in_any_order(tmp_path, manifest):
    rows = [f"{-k},rest,{k / 10},{k}" for k in range(20)]
    _, events = play(write(tmp_path / "a.csv", ["ay,label,t_s,ax", *rows]), manifest)
    np.testing.assert_allclose(readings(events)[0].window[3], [3, -3])
    assert [label.label for label in labels(events)] == ["rest"] * 3


def test_csv_of_another_sensor_is_refused(tmp_path, manifest):
    path = write(tmp_path / "a.csv", ["t_s,ax,gyro", "0,1,2"])
    with pytest.raises(SensorUnavailable, match="header is t_s,ax,gyro; need t_s,ax,ay"):
        play(path, manifest)


def test_a_missing_file_says_so(tmp_path, manifest):
    with pytest.raises(SensorUnavailable, match="nothing-here"):
        play(tmp_path / "nothing-here.jsonl", manifest)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ('{"t": 0.35, "x": [1.0, ', "truncated"),
        ('{"t": 0.35, "x": [1.0, 2.0, 3.0]}', "shape (1, 3), need (1, 2)"),
        ('{"t": 0.35, "x": [1.0, NaN]}', "not a usable JSON line"),
        ('{"t": 0.35, "x": [1.0, null]}', "got `null`"),
        ('{"t": 0.35, "x": [[1.0, 2.0]]}', "need (1, 2)"),
        ('{"t": [0.35, 0.36], "x": [[1.0, 2.0], [1.0]]}', "unequal length"),
        ('{"t": [0.35, 0.36], "x": [[1.0, 2.0]]}', "need (2, 2)"),
        ('{"t": [0.35], "x": [[1.0, 2.0]], "label": ["a", "b"]}', "2 labels for 1 samples"),
        ('{"x": [1.0, 2.0]}', 'without "t"'),
        ('{"t": 0.35}', "neither x, window nor label"),
        ('{"t": 0.35, "y": [1.0]}', "unknown field `y`"),
        ('{"t": 0.35, "window": [[1.0, 2.0]]}', "need (10, 2)"),
        ('{"window": [' + ",".join(["[1.0, 2.0]"] * 10) + "]}", "last sample's time"),
        ('{"t": 0.35, "window": [' + ",".join(["[1e300, 2.0]"] * 10) + "]}", "not finite"),
        ("walking", "not a usable JSON line"),
        ("[]", "not a usable JSON line"),
        ('{"label": ""}', "neither"),
        ('{"t": 0.35, "x": [1e300, 0.0]}', "not finite at 0.35 s"),
        ('{"t": 0.11, "x": [1.0, 0.0]}', "clock went back from 0.3 s to 0.11 s"),
    ],
)
def test_a_bad_line_is_skipped_counted_and_explained(tmp_path, manifest, caplog, line, found):
    good = [sample(k) for k in range(20)]
    state, events = play(write(tmp_path / "a.jsonl", [*good[:4], line, *good[4:]]), manifest)
    assert state.n_bad == 1
    assert found in state.last_problem
    assert found in caplog.text
    _, expected = play(write(tmp_path / "b.jsonl", good), manifest)
    assert len(events) == 3
    for a, b in zip(events, expected, strict=True):
        np.testing.assert_array_equal(a.window, b.window)


def test_the_line_number_is_named(tmp_path, manifest):
    state, _ = play(write(tmp_path / "a.jsonl", [sample(0), "", "torn {"]), manifest)
    assert state.last_problem.startswith("line 3: ")


def test_bytes_that_are_not_text_and_endless_lines(tmp_path, manifest, monkeypatch):
    monkeypatch.setattr(stream_module, "MAX_LINE_BYTES", 200)
    path = tmp_path / "a.jsonl"
    lines = [json.dumps(sample(k)).encode() for k in range(10)]
    path.write_bytes(b"\n".join([b"\xff\xfe\x00", b"x" * 1000, *lines]))
    state, events = play(path, manifest)
    assert state.n_bad == 2
    assert len(events) == 1


def test_problems_stop_being_logged_but_not_counted(tmp_path, manifest, caplog):
    state, _ = play(write(tmp_path / "a.jsonl", ["torn {"] * 500), manifest)
    assert state.n_bad == 500
    assert len(caplog.records) < 50


def test_ready_windows_and_labels_by_name(tmp_path, manifest):
    window = np.ones((10, 2)).tolist()
    path = write(
        tmp_path / "a.jsonl",
        [
            {"t": 12.3, "window": window, "id": "r7"},
            {"label": "walking", "reading_id": "r7", "source": "anna"},
            {"t": 13, "window": window, "label": "rest"},
            {"label": "sitting"},
        ],
    )
    _, events = play(path, manifest, prefix="p")
    assert events[0].id == "r7"
    assert events[1] == Label(label="walking", reading_id="r7", source="anna")
    assert events[2].id == "p-1"
    assert events[3] == Label(label="rest", reading_id="p-1", source="recording", t_s=13.0)
    assert events[4] == Label(label="sitting", source="stream")


def test_a_line_may_say_what_a_reading_was_not(tmp_path, manifest):
    window = np.ones((10, 2)).tolist()
    lines = [
        {"t": 12.3, "window": window, "id": "r7"},
        {"label": "walking", "reading_id": "r7", "kind": "not"},
        {"t": 13.3, "window": window, "label": "walking", "kind": "not"},
        {"t": 13.4, "x": [1, 2], "label": "walking", "kind": "not"},
        {"label": "walking", "kind": "never"},
    ]
    stream, events = play(write(tmp_path / "a.jsonl", lines), manifest)
    assert events[1:] == [Label(label="walking", reading_id="r7", source="stream", kind="not")]
    assert stream.n_bad == 3, "data say what they were, not what they were not"


def test_a_label_line_comes_after_the_windows_before_it(tmp_path, manifest):
    lines = [*(sample(k) for k in range(10)), {"label": "walk"}, *(sample(k) for k in range(10, 20))]
    _, events = play(write(tmp_path / "a.jsonl", lines), manifest)
    assert [type(event) for event in events] == [Reading, Label, Reading, Reading]


def test_majority_label_late_and_for_some_windows(tmp_path, manifest):
    rows = [sample(k, label="rest" if k < 22 else "walk") for k in range(60)]
    schedule = LabelSchedule(delay=2, every=3)
    _, events = play(write(tmp_path / "a.jsonl", rows), manifest, labels=schedule, prefix="p")
    assert len(readings(events)) == 11
    given = [(label.reading_id, label.label) for label in labels(events)]
    assert given == [("p-0", "rest"), ("p-3", "rest"), ("p-6", "walk"), ("p-9", "walk")]
    order = [event.id if isinstance(event, Reading) else "label" for event in events]
    assert order[:4] == ["p-0", "p-1", "p-2", "label"]
    assert order[-1] == "label"


def test_label_track_forgets(manifest):
    track = LabelTrack(1.0)
    for k in range(100_000):
        track.add(k * 100.0, "rest")
    track.add(float("nan"), "rest")
    assert len(track._samples) < 5
    track.add(3.0, "walk")
    assert track.majority(3.5) == "walk"
    assert track.majority(30.0) == ""


def test_schedule_limits():
    with pytest.raises(ConfigError, match="every 0"):
        LabelSchedule(every=0)


def test_a_pipe_ticks_while_nothing_arrives(manifest):
    ours, theirs = os.pipe()
    with open(ours, "rb") as reader, open(theirs, "wb", buffering=0) as writer:  # noqa: PTH123
        events = iter(PipeStream(manifest, file=reader))
        assert next(events) is None
        writer.write(b"".join(json.dumps(sample(k)).encode() + b"\n" for k in range(10)))
        assert isinstance(next(event for event in events if event is not None), Reading)
        assert next(events) is None
        writer.write(b'{"label": "walk"}\n{"label": "torn')
        writer.close()
        rest = [event for event in events if event is not None]
    assert [event.label for event in rest] == ["walk"]


def test_a_pipe_ticks_while_no_line_completes_a_window(manifest):
    ours, theirs = os.pipe()
    stop = threading.Event()

    def babble(writer):
        while not stop.wait(0.002):
            writer.write(b"noise\n")

    with open(ours, "rb") as reader, open(theirs, "wb", buffering=0) as writer:  # noqa: PTH123
        thread = threading.Thread(target=babble, args=(writer,))
        thread.start()
        stream = PipeStream(manifest, file=reader)
        events = iter(stream)
        assert [next(events) for _ in range(3)] == [None] * 3 and stream.n_bad > 0
        stop.set()
        thread.join()


def test_a_pipe_that_ends_ends_the_stream(manifest):
    text = b"".join(json.dumps(sample(k)).encode() + b"\n" for k in range(1000))
    events = list(PipeStream(manifest, file=io.BytesIO(text)))
    assert len(readings(events)) == 199


@pytest.mark.parametrize(("n_padding", "most"), [(0, 64), (3000, 3)])
def test_a_pipe_takes_few_long_lines_at_once(manifest, monkeypatch, n_padding, most):
    """A chunk is held in memory, as lines and as what they hold."""
    padding = b" " * n_padding + b"\n"
    text = b"".join(json.dumps(sample(k)).encode() + padding for k in range(400))
    stream = PipeStream(manifest, file=io.BytesIO(text))
    feed, taken = stream.assembler.feed, []

    def counted(chunk):
        taken.append(len(chunk))
        return feed(chunk)

    monkeypatch.setattr(stream.assembler, "feed", counted)
    assert len(readings(list(stream))) == 79
    assert sum(taken) == 400 and max(taken) <= most


def test_paced_plays_at_the_recordings_speed(tmp_path, manifest):
    path = write(
        tmp_path / "a.jsonl", [sample(k) for k in range(40)] + [sample(10_000 + k) for k in range(10)]
    )
    now = [100.0]
    seen = []

    def wait(seconds):
        now[0] += seconds

    for event in paced(open_stream(path, manifest), clock=lambda: now[0], wait=wait):
        seen.append((now[0], event))
    at = [t - 100 for t, event in seen if event is not None]
    assert at == pytest.approx([0, 0.5, 1, 1.5, 2, 2.5, 3, 3], abs=0.02)
    ticks = [t for t, event in seen if event is None]
    assert max(b - a for a, b in itertools.pairwise(ticks)) <= 0.06


class AtOnce:
    """A thread that has done its work when it was started."""

    def __init__(self, target, **_):
        self.start = target


def test_a_pipe_says_that_something_waits_until_the_last_of_it_is_handed_out(manifest, monkeypatch):
    monkeypatch.setattr(stream_module.threading, "Thread", AtOnce)
    text = b"".join(b'{"label": "a", "reading_id": "r%d"}\n' % k for k in range(3))
    stream = PipeStream(manifest, file=io.BytesIO(text))
    assert [stream.waiting() for _ in stream] == [True, True, False], "though all were taken at once"
