"""The measurements themselves, at a size that only shows that they measure."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from bench import pipeline, recording, refusals, resident, stages, throughput
from edge_cl.bundle import Bundle
from edge_cl.datasets.streams import Stream
from edge_cl.teaching import Teaching
from tests.worlds import World

WRIST = "edge_cl/assets/wrist.ecl"


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    return pipeline.measure(
        WRIST, tmp_path_factory.mktemp("bench"), n_speed=600, n_resident=400, n_starts=1, seed=3
    )


def test_every_promised_figure_is_there_and_plausible(figures):
    assert set(pipeline.TARGETS) <= set(figures)
    assert 0 < figures["windows_per_s_labelled"] < figures["windows_per_s_unlabelled"] < 1e5
    assert figures["start_to_first_prediction_s"] > 0.05
    assert 30 < figures["resident_mb"] <= figures["resident_peak_mb"] < 300
    assert abs(figures["resident_growth_last_half_mb"]) < 20
    assert 1 < figures["ledger_awake_mb"] < figures["ledger_mb"] <= 16
    assert 80 <= figures["labels"] <= 81
    assert figures["ledger_growth_mb"] > 0 and figures["ledger_to_growth_ratio"] > 0


def test_the_split_adds_up_to_the_whole(figures):
    for name in ("labelled", "unlabelled"):
        split = figures[f"us_per_window_{name}"]
        assert {"windowing", "encoder", "head_predict", "encode", "loop"} <= set(split)
        assert all(us >= 0 for us in split.values())
    labelled, unlabelled = figures["us_per_window_labelled"], figures["us_per_window_unlabelled"]
    assert min(labelled[name] for name in ("journal", "learn", "compare_receipt")) > 1
    assert "learn" not in unlabelled and "compare_receipt" not in unlabelled


def test_the_table_and_the_file_hold_them(figures, capsys):
    pipeline.show(figures)
    text = capsys.readouterr().out
    assert all(name in text for name in pipeline.TARGETS)
    assert msgspec.json.decode(msgspec.json.encode(figures | {"versions": pipeline.versions()}))


def test_refusing_wrong_answers_helps_and_no_reading_is_answered_so_again():
    X, y = World(seed=4).draw(refusals.N_TAUGHT + 900)
    X[refusals.N_TAUGHT :] += [4, -4, 4, -4, 4, -4]  # a sensor was moved
    stream = Stream("moved", X, y, np.zeros(len(y), dtype=bool))
    for when in refusals.WHEN:
        found = refusals.study(stream, "slda", when)
        assert found["plain"] < 95 and found["gain"] > 0 and found["mended"] > found["harm"]
        assert found["again"] == found["none"] == 0
    assert refusals.attack(stream, "slda").keys() == {"recall", "all"}


def test_every_window_of_a_labelled_recording_is_receipted(tmp_path):
    found = throughput.throughput(WRIST, str(tmp_path), n_windows=50, labelled=True, seed=0)
    assert found["windows"] == found["receipts"] >= 50
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_a_recording_is_the_same_for_the_same_seed():
    manifest = Bundle.load(WRIST).manifest
    one, two, other = (b"".join(recording.lines(manifest, 5, seed=seed)) for seed in (1, 1, 2))
    assert one == two != other


def test_a_stage_does_not_count_what_it_calls(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(stages.time, "perf_counter", lambda: now[0])
    watch = stages.Stopwatch()
    with watch.stage("outer"):
        now[0] += 1
        with watch.stage("inner"):
            now[0] += 20
        now[0] += 2
    assert watch.seconds == {"outer": 3, "inner": 20}


def test_instruments_are_taken_off_again():
    before = Teaching._compare
    with stages.instrumented():
        assert Teaching._compare is not before
    assert Teaching._compare is before


def test_a_relative_folder_is_meant_from_here(tmp_path, monkeypatch):
    bundle = Path(WRIST).resolve()
    monkeypatch.chdir(tmp_path)
    Path("b").mkdir()
    found = resident.resident(str(bundle), Path("b/s"), n_windows=20, seed=0)
    assert found["resident_mb"] > 0
    assert [path.name for path in Path("b/s").glob("journal*")]


def test_a_device_that_ends_early_is_an_error_not_a_figure(tmp_path):
    with pytest.raises(RuntimeError, match="too early"):
        resident.resident(WRIST, tmp_path / "s", n_windows=20, seed=0, ram_mb=0.01)
