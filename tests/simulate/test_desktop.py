"""A whole device, the real loop and a real broker, on a short story."""

import json
import re
import subprocess
import sys
import threading
import time
from importlib.metadata import version

import msgspec
import numpy as np
import paho.mqtt.client as paho
import pytest
from click.testing import CliRunner

from edge_cl.bundle import Bundle
from edge_cl.cli.simulate import simulate
from edge_cl.config import Settings, SleepSettings
from edge_cl.errors import BundleError, ConfigError, DataError
from edge_cl.simulate import bundles, desktop
from edge_cl.simulate.broker import LocalBroker
from edge_cl.simulate.figures import figures
from edge_cl.simulate.recorded import few_of_each_class, load_scenarios
from edge_cl.simulate.report import write_report
from edge_cl.simulate.scenario import LabelPolicy, demo
from tests.simulate.conftest import summary

SETTINGS = Settings(sleep=SleepSettings(idle_s=0.05, min_labels=8, slice_ms=50))


@pytest.fixture(scope="module")
def story():
    told = demo(4, n_windows=500, policy=LabelPolicy(share=0.5))
    exams = [msgspec.structs.replace(exam, windows=summary(exam.windows)) for exam in told.exams]
    return msgspec.structs.replace(told, windows=summary(told.windows), exams=exams)


@pytest.fixture(scope="module")
def played(wrist_bundle_path, story, tmp_path_factory):
    """One run over the broker in this process, with everything a subscriber received."""
    bundle, state_dir = Bundle.load(wrist_bundle_path), tmp_path_factory.mktemp("state")
    received, progress = [], []
    with LocalBroker() as broker:
        listener = _subscribe(broker.url, received)
        with desktop.connected(broker.url, state_dir) as link:
            run = desktop.run(
                bundle,
                story,
                link,
                settings=SETTINGS,
                state_dir=state_dir,
                on_progress=lambda *now: progress.append(now),
            )
        counts = dict(link.counts)
        _wait(lambda: len(received) >= counts["delivered"])
        listener.disconnect()
        listener.loop_stop()
    return run, counts, received, progress


def _subscribe(url, received):
    ready = threading.Event()
    client = paho.Client(paho.CallbackAPIVersion.VERSION2)
    client.on_message = lambda _c, _u, message: received.append(message)
    client.on_subscribe = lambda *_: ready.set()
    client.connect("127.0.0.1", int(url.rpartition(":")[2]))
    client.subscribe("edgecl/#", qos=1)
    client.loop_start()
    assert ready.wait(15)
    return client


def _wait(happened, timeout_s=15.0):
    deadline = time.monotonic() + timeout_s
    while not happened() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert happened()


def test_the_learning_device_ends_far_ahead_of_the_frozen_one(played):
    run, *_ = played
    half = len(run.frozen) // 2
    truth = np.array(run.scenario.truth)
    learning, frozen = (np.mean(np.array(said)[half:] == truth[half:]) for said in (run.learning, run.frozen))
    assert learning > frozen + 0.1
    assert "washing" in run.learning
    assert "washing" not in run.frozen


def test_every_label_got_a_receipt_and_every_exam_an_answer(played):
    run, *_ = played
    assert len(run.receipts) == len(run.scenario.labels)
    assert {receipt.status for receipt in run.receipts} == {"learned"}
    for exam in run.exams:
        assert len(exam.truth) == len(exam.learning) == len(exam.frozen) > 0


def test_predictions_come_before_labels(wrist_bundle_path, story):
    """With every label arriving right after its window, the first answers equal the frozen ones."""
    told = msgspec.structs.replace(story, labels=LabelPolicy(share=1.0, soon=(0, 1), late=(0, 1)).draw(
        len(story.truth), np.random.default_rng(0)))  # fmt: skip
    run = desktop.run(Bundle.load(wrist_bundle_path), told, _NoLink(), settings=SETTINGS)
    assert run.learning[0] == run.frozen[0]
    first_washing = told.truth.index("washing")
    assert run.learning[first_washing] != "washing"


def test_receipts_reach_a_subscriber(played):
    run, counts, received, _ = played
    receipts = [message for message in received if message.topic.endswith("/receipt")]
    ids = {json.loads(message.payload)["data"]["reading_id"] for message in receipts}
    assert ids == {receipt.reading_id for receipt in run.receipts}
    assert counts["sent"] == counts["delivered"] >= len(run.receipts)
    assert counts["queued"] == counts["dropped"] == 0


def test_it_sleeps_when_the_world_is_quiet(played):
    run, *_ = played
    assert run.sleeps
    pauses = {mark.index for mark in run.scenario.marks if mark.pause}
    assert pauses & {index for index, _ in run.sleeps}


def test_progress_reaches_the_end(played):
    run, _, _, progress = played
    done, learning, frozen = progress[-1]
    assert done == len(run.frozen)
    assert 0 <= frozen <= 1
    assert 0 <= learning <= 1


def test_figures_hold_the_promised_keys(played):
    run, counts, *_ = played
    shown = figures([run], counts=counts, budget_bytes=1000, seed=7)
    truth = np.array(run.scenario.truth)
    assert shown["accuracy"]["now"]["learning"] == pytest.approx(
        np.mean(np.array(run.learning) == truth), abs=1e-4
    )
    assert shown["accuracy"]["now"]["frozen"] == pytest.approx(
        np.mean(np.array(run.frozen) == truth), abs=1e-4
    )
    assert shown["accuracy"]["ever"]["learning"] > shown["accuracy"]["ever"]["frozen"]
    assert shown["memory"] == {
        "held_bytes": run.status.held_bytes,
        "budget_bytes": 1000,
        "by_holder": run.status.held,
    }
    assert shown["messages"]["delivered"] == counts["delivered"]
    assert shown["sleeps"] == len(run.sleeps)
    assert shown["labels_used"] == len(run.receipts)
    assert len(shown["accuracy"]["quarters"]) == 4
    assert shown["seed"] == 7
    json.dumps(shown)


def test_the_report_needs_nothing_from_outside(played, tmp_path):
    run, counts, *_ = played
    about = {"scenario": "demo <1>", "bundle": "b", "seed": 0, "elapsed_s": 1.0}
    shown = figures([run], counts=counts, budget_bytes=10**7, **about)
    write_report(tmp_path / "report.html", [run], shown)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.findall(r'(?:src|href)="(?!#)[^"]*"', page)
    assert "url(http" not in page
    assert page.count("<svg") == 2
    assert "demo &lt;1&gt;" in page
    assert "washing (new)" in page
    assert "#123456" not in page
    assert "$" not in page


class _NoLink:
    def poll(self):
        return []

    def sink(self, answer):
        pass


def _recordings_file(path, rng):
    """Four people, three gestures with one channel each; the new people's channels are offset."""
    signals, y, people = [], [], []
    for who in (*range(4), 10, 11):
        for _cycle in range(5):
            for gesture in range(3):
                quiet = rng.normal(0, 1.0, (104, 3)) + (3.0 if who in (3, 11) else 0.0)
                quiet[:, gesture] += 4
                signals.append(quiet)
                y.append(gesture)
                people.append(who)
    offsets = np.concatenate([[0], np.cumsum([len(s) for s in signals])])
    np.savez(
        path, signal=np.concatenate(signals), y=np.array(y), offsets=offsets, rec_subject=np.array(people),
        rate_hz=200.0, class_names=np.array(["rest", "fist", "open"]), channel_names=np.array(list("abc")),
    )  # fmt: skip
    return path


def test_new_person_gets_a_fresh_device_and_a_few_labels_a_gesture(tmp_path, wrist_bundle_path):
    path = _recordings_file(tmp_path / "emg.npz", np.random.default_rng(0))
    manifest = _manifest_for(path)
    for per_class, per_recording, n_recordings in ((4, 4, 3), (4, 1, 12), (1, 1, 3)):
        people = load_scenarios(
            path, "new-person", manifest, labels_per_class=per_class, labels_per_recording=per_recording
        )
        assert [scenario.name for scenario in people] == ["new-person, person 3", "new-person, person 11"]
        for scenario in people:
            named = [scenario.truth[due.index] for due in scenario.labels]
            assert {name: named.count(name) for name in named} == dict.fromkeys(
                ("rest", "fist", "open"), per_class
            )
            recordings = {scenario.recording[due.index] for due in scenario.labels}
            assert len(recordings) == n_recordings
            for due in scenario.labels:
                same = [k for k, r in enumerate(scenario.recording) if r == scenario.recording[due.index]]
                assert due.after == same[-1]
            assert (np.diff(scenario.t_s) > 0).all()


def test_a_bundle_for_another_sensor_is_refused(tmp_path, wrist_bundle_path):
    path = _recordings_file(tmp_path / "emg.npz", np.random.default_rng(0))
    with pytest.raises(DataError, match="the bundle expects"):
        load_scenarios(path, "new-person", Bundle.load(wrist_bundle_path).manifest)


def _manifest_for(path):
    from edge_cl.datasets import recordings
    from edge_cl.manifest import EncoderSpec, Manifest

    dataset = recordings.load(path)
    return Manifest(
        format="edge-cl-bundle", format_version=1, name="emg", class_names=dataset.class_names,
        channels=dataset.channels, rate_hz=200.0, window_samples=26, hop_samples=26, feature_size=78,
        encoder=EncoderSpec(kind="identity"),
    )  # fmt: skip


def test_the_cache_is_used_and_a_missing_exporter_is_explained(tmp_path, monkeypatch, wrist_bundle_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    data = tmp_path / "some.npz"
    data.write_bytes(b"12345")
    monkeypatch.setattr(bundles.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BundleError, match=r"edge_cl_export and torch is not installed.*--bundle"):
        bundles.bundle_for(data, "phone-to-watch")
    cached = tmp_path / "edge-cl" / f"some-phone-to-watch-5-{version('edge-cl')}.ecl"
    cached.parent.mkdir()
    cached.write_bytes(wrist_bundle_path.read_bytes())
    assert bundles.bundle_for(data, "phone-to-watch").manifest.name == "stand-in"


def test_missing_data_is_named_before_anything_is_exported(tmp_path):
    arguments = ["--data", str(tmp_path / "none.npz"), "--scenario", "phone-to-watch", "--no-report"]
    result = CliRunner().invoke(simulate, arguments)
    assert isinstance(result.exception, DataError)
    assert "none.npz: no such file" in str(result.exception)


def test_a_folder_that_is_not_there_is_named_before_the_run(tmp_path):
    result = CliRunner().invoke(simulate, ["--report", str(tmp_path / "no" / "report.html")])
    assert isinstance(result.exception, ConfigError)
    assert "make it first" in str(result.exception)


def test_a_bundle_for_another_sensor_cannot_wear_the_simulated_wrist(wrist_bundle_path):
    result = CliRunner().invoke(simulate, ["--bundle", str(wrist_bundle_path), "--no-report"])
    assert isinstance(result.exception, ConfigError)
    assert "another sensor" in str(result.exception)


def test_data_without_scenario_is_refused():
    result = CliRunner().invoke(simulate, ["--data", "x.npz"])
    assert isinstance(result.exception, ConfigError)
    assert "belong together" in str(result.exception)


def test_a_used_state_folder_is_refused(tmp_path):
    (tmp_path / "journal").write_text("old")
    arguments = ["--state", str(tmp_path), "--windows", "100", "--no-report"]
    result = CliRunner().invoke(simulate, arguments)
    assert isinstance(result.exception, ConfigError)
    assert "not empty" in str(result.exception)


def test_the_command_does_not_load_heavy_modules_for_its_help():
    code = (
        "import sys, edge_cl.cli.simulate; "
        "sys.exit(sorted({'matplotlib', 'rich', 'amqtt', 'onnxruntime'} & set(sys.modules)).__len__())"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_few_of_each_class_counts():
    from edge_cl.datasets.windows import Windows

    y = np.repeat([0, 1, 0, 1], 6)
    cut = Windows(
        X=np.zeros((24, 2, 1), np.float32),
        y=y,
        person=np.zeros(24, np.int64),
        recording=np.repeat(np.arange(4), 6),
        t_s=np.arange(24.0),
    )
    assert [(d.after, d.index) for d in few_of_each_class(cut, per_recording=4)] == [
        *[(5, k) for k in (0, 2, 3, 5)],
        *[(11, k) for k in (6, 8, 9, 11)],
    ]
    assert [d.index for d in few_of_each_class(cut, per_recording=1)] == [3, 9, 15, 21]
    assert [d.index for d in few_of_each_class(cut, per_class=1)] == [3, 9]
    assert [d.index for d in few_of_each_class(cut, per_class=1, per_recording=4)] == [3, 9]
