"""A live sensor: unplugged, hanging, too fast, torn; and what the run loop sees of it."""

import itertools
import logging
import os
import random
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from edge_cl.errors import BadReading, SensorUnavailable
from edge_cl.records import Label, Reading
from edge_cl.sensing import live as live_module
from edge_cl.sensing.lines import Interrupted, Labelled, Samples
from edge_cl.sensing.live import LiveStream, Waits, _Arrived, _Queue, _size
from tests.mosquitto import wait_until
from tests.sensing.sensors import Played, manifest_of, samples

AT_ONCE = Waits(0.0, 0.0)


@pytest.fixture
def sensor():
    return Played()


@pytest.fixture
def stream(sensor):
    live = LiveStream(sensor, manifest_of(), prefix="p", waits=AT_ONCE)
    yield live
    sensor.hang.set()
    live.close()
    assert not live._thread.is_alive() and sensor.n_open == 0


def until(events, condition, timeout_s=15.0):
    """The events until `condition` is met by what came so far."""
    seen = []
    deadline_s = time.monotonic() + timeout_s
    while not condition(seen):
        assert time.monotonic() < deadline_s, f"only {seen[-3:]} came"
        event = next(events)
        if event is not None:
            seen.append(event)
    return seen


def n_files_open():
    return len(list(Path("/proc/self/fd").iterdir()))


def readings(n):
    return lambda seen: sum(isinstance(event, Reading) for event in seen) >= n


def test_blocks_become_windows_and_ticks_come_between(sensor, stream):
    events = iter(stream)
    assert next(events) is None
    sensor.script.extend([[samples(0, 7)], [samples(7, 3)], [samples(10, 5), Label(label="walk")]])
    seen = until(events, lambda seen: len(seen) == 3)
    assert [event.id for event in seen[:2]] == ["p-0", "p-1"] and seen[2] == Label(label="walk")
    np.testing.assert_allclose(seen[1].window[:, 0], np.arange(5, 15))
    assert next(events) is None and not stream.waiting()


def test_ticks_come_while_samples_complete_no_window(sensor, stream):
    class Noisy(Played):
        def read(self):
            time.sleep(0.002)
            return [BadReading("noise")]

    stream._make = Noisy()
    events = iter(stream)
    assert [next(events) for _ in range(3)] == [None] * 3 and stream.n_bad > 0


def test_no_window_spans_the_time_without_the_sensor(sensor, stream, caplog):
    caplog.set_level(logging.WARNING)
    events = iter(stream)
    sensor.script.extend([[samples(0, 14)], OSError(5, "Input/output error"), [samples(14, 13)]])
    seen = until(events, readings(2))
    assert [event.t_s for event in seen] == pytest.approx([0.9, 2.3]), "the second grid begins at 1.4 s"
    np.testing.assert_allclose(seen[1].window[:, 0], np.arange(14, 24))
    said = [record.message for record in caplog.records]
    assert [text.split(" (")[0] for text in said] == ["sensor is gone", "sensor is there again"]
    assert stream.n_unplugged == 1 and stream.alarm == ""


def test_an_absent_sensor_is_said_once_and_is_not_stuck(sensor, stream, caplog):
    sensor.there = False
    events = iter(stream)
    until(events, lambda _: next(events) is None and sensor.n_made > 50)
    assert stream.alarm == "sensor is not there: no such device" and stream.stuck_s() < 1
    assert len(caplog.records) == 1
    sensor.there = True
    sensor.script.append([samples(0, 10)])
    until(events, readings(1))
    assert stream.alarm == "" and len(caplog.records) == 2


def test_waiting_for_a_sensor_is_not_hanging(sensor):
    sensor.there = False
    live = LiveStream(sensor, manifest_of(), waits=Waits(1000.0, 1000.0))
    next(iter(live))
    wait_until(lambda: live.alarm, "it was tried")
    assert live.stuck_s() == 0
    live.close()
    assert not live._thread.is_alive(), "it does not wait to the end"


def test_lost_samples_begin_a_new_window_however_few(sensor, stream):
    events = iter(stream)
    sensor.script.append([samples(0, 7), Interrupted("one is lost"), samples(8, 10)])
    (reading,) = until(events, readings(1))
    np.testing.assert_allclose(reading.window[:, 0], np.arange(8, 18))
    assert stream.n_bad == 1 and "one is lost; skipped" in stream.assembler.last_problem


def test_what_comes_after_a_dropped_block_begins_anew():
    blocks = _Queue(2 * _size(samples(0, 2)))
    for k in range(3):
        blocks.put(_Arrived([samples(2 * k, 2)], False, None))
    assert blocks.n_dropped == 1
    assert [blocks.take(0).fresh for _ in range(2)] == [True, False] and blocks.take(0) is None


def test_a_sensor_that_says_nothing_is_named(sensor, monkeypatch):
    monkeypatch.setattr(live_module, "SILENT_S", 0.1)
    live = LiveStream(sensor, manifest_of(rate_hz=1000.0))
    events = iter(live)
    wait_until(
        lambda: [next(events)] and "sensor is there but gives nothing for more than 0.1 s" in live.alarm,
        "it is said",
    )
    sensor.script.append([samples(0, 1)])
    wait_until(lambda: [next(events)] and not live.alarm, "it is taken back")
    live.close()


def test_a_read_that_hangs_is_stuck(sensor, stream):
    events = iter(stream)
    sensor.script.extend([[samples(0, 10)], "hang"])
    until(events, readings(1))
    sensor.hangs.wait(10)
    wait_until(lambda: stream.stuck_s() > 0.2, "stuck_s grows")
    assert stream.alarm == ""
    sensor.hang.set()
    wait_until(lambda: stream.stuck_s() < 0.1, "it came back")


def test_waits_double_with_full_jitter_and_end_at_the_longest(sensor, monkeypatch):
    asked = []
    live = LiveStream(sensor, manifest_of(), waits=Waits(0.5, 30.0), rng=random.Random(1))

    def wait(seconds):
        asked.append(seconds)
        if len(asked) == 200:
            live._closing.set()

    monkeypatch.setattr(live._closing, "wait", wait)
    sensor.there = False
    live._work()
    ceilings = [min(0.5 * 2**k, 30.0) for k in range(200)]
    assert all(0 <= waited <= ceiling for waited, ceiling in zip(asked, ceilings, strict=True))
    assert max(asked) > 29 and min(asked[6:]) < 1, "anything between nothing and the ceiling"


def test_a_thousand_unplugs_leak_nothing(sensor, stream):
    class WithFile(Played):
        def __call__(self):
            sensor.n_made += 1
            self.ends = os.pipe()
            return self

        def read(self):
            raise SensorUnavailable("pulled out again")

        def close(self):
            for end in self.ends:
                os.close(end)

    stream._make = WithFile()
    n_threads, n_files = threading.active_count(), n_files_open()
    events = iter(stream)
    until(events, lambda _: stream.n_unplugged >= 1000)
    stream.close()
    assert threading.active_count() <= n_threads and n_files_open() <= n_files


def test_a_slow_loop_costs_the_oldest_blocks_and_no_memory(sensor):
    live = LiveStream(sensor, manifest_of(), prefix="p", queue_bytes=20_000)
    events = iter(live)
    next(events)
    late = Label(label="walk", reading_id="r7")
    sensor.script.extend([[samples(0, 10)], [late, Label(label="meant for the newest")]])
    sensor.script.extend([samples(k, 10)] for k in range(10, 10_000, 10))
    wait_until(lambda: not sensor.script, "all is read")
    assert live._queue._bytes <= 20_000 + 1000 and live.n_dropped > 800
    seen = until(events, lambda _: not live.waiting())
    live.close()
    assert [event for event in seen if isinstance(event, Label)] == [late], (
        "a label that names its reading is kept"
    )
    for reading in seen:
        if isinstance(reading, Reading):
            assert set(np.diff(reading.window[:, 0])) == {1.0}, "no window spans what was dropped"
    assert "the oldest samples are dropped" in live.alarm


def test_bad_readings_are_counted_and_said(sensor, stream, caplog):
    bad = samples(3, 1)
    bad.values[:] = np.nan
    events = iter(stream)
    sensor.script.extend(
        [[samples(0, 3), BadReading("noise")], BadReading("more noise"), [bad], [samples(3, 7)]]
    )
    until(events, readings(1))
    assert stream.n_bad == 3
    assert "noise; skipped" in caplog.text and "value not finite" in caplog.text


def test_a_mistake_of_the_driver_ends_the_loop_not_only_its_thread(sensor, stream):
    sensor.script.append(KeyError("a driver's own mistake"))
    with pytest.raises(KeyError, match="own mistake"):
        until(iter(stream), lambda _: False)


def test_ready_windows_pass_and_a_picture_that_stands_still_is_said(sensor, stream):
    events = iter(stream)
    rng = np.random.default_rng(0)
    frames = [rng.random((10, 2), dtype=np.float32) for _ in range(20)] + [
        np.full((10, 2), 7, np.float32)
    ] * 12
    sensor.script.extend([Labelled("", float(k), frame, "")] for k, frame in enumerate(frames))
    seen = until(events, readings(20))
    np.testing.assert_array_equal(seen[3].window, frames[3])
    assert stream.alarm == ""
    until(events, readings(12))
    assert "sensor: every channel stays the same for more than 5 s" in stream.alarm


def test_a_sensor_that_runs_fast_is_said_and_its_windows_stay_right(sensor):
    manifest = manifest_of(rate_hz=50.0, window_samples=50, hop_samples=50)
    t = np.arange(0, 30 * 55) / 55
    values = np.stack([np.sin(2 * t), np.cos(3 * t)], axis=1)
    sensor.full_scale = np.array([4.0, 4.0])
    sensor.script.extend(
        [Samples(t[part], values[part], [""] * len(part))] for part in np.split(np.arange(len(t)), 330)
    )
    live = LiveStream(sensor, manifest, name="imu")
    seen = until(iter(live), readings(29))
    for reading in seen:
        grid = reading.t_s - np.arange(49, -1, -1) / 50
        np.testing.assert_allclose(
            reading.window, np.stack([np.sin(2 * grid), np.cos(3 * grid)], axis=1), atol=1e-3
        )
    assert live.alarm.startswith("imu: samples come at 55 Hz, expected 50 Hz")
    live.close()


def test_dead_and_saturated_channels_are_said(sensor):
    t = np.arange(0, 20, 0.02)
    values = np.stack([np.full_like(t, 0.5), np.clip(9 * np.sin(t), -4, 4)], axis=1)
    sensor.full_scale, sensor.rate_hz = np.array([4.0, 4.0]), 50.0
    sensor.script.extend([Samples(t[k : k + 5], values[k : k + 5], [""] * 5)] for k in range(0, len(t), 5))
    live = LiveStream(sensor, manifest_of(), name="imu")
    until(iter(live), lambda _: not sensor.script and not live.waiting())
    assert "imu: channel c0 stays exactly 0.5 for more than 5 s" in live.alarm
    assert "channel c1 is often at the end of its range" in live.alarm and "expected" not in live.alarm
    live.close()


def test_the_wall_clock_may_jump(sensor, stream, monkeypatch):
    monkeypatch.setattr(time, "time", itertools.cycle([0.0, 4e9, -1e9]).__next__)
    events = iter(stream)
    sensor.script.extend([samples(k, 5)] for k in range(0, 100, 5))
    seen = until(events, readings(19))
    assert [event.t_s for event in seen] == pytest.approx([0.9 + 0.5 * k for k in range(19)])
    assert stream.alarm == "" and stream.n_bad == 0


def test_the_windows_do_not_depend_on_how_samples_were_read(sensor):
    rng = np.random.default_rng(3)
    whole = samples(0, 200)
    found = []
    for cuts in ([], range(1, 200), sorted(rng.choice(200, 17, replace=False))):
        live = LiveStream(played := Played(), manifest_of(), prefix="p")
        parts = np.split(np.arange(200), list(cuts))
        played.script.extend(
            [Samples(whole.t_s[part], whole.values[part], [""] * len(part))] for part in parts if len(part)
        )
        found.append(until(iter(live), readings(39)))
        live.close()
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert a.t_s == b.t_s
            np.testing.assert_array_equal(a.window, b.window)
