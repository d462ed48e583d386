from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_cl.datasets import recordings, scenarios
from edge_cl.datasets.recordings import Recording
from edge_cl.datasets.windows import majority, windows
from edge_cl.errors import DataError


def arrays(**changes: Any) -> dict[str, Any]:
    """Two recordings of 30 and 20 samples, 3 channels."""
    made = {
        "signal": np.arange(150, dtype=np.int16).reshape(50, 3),
        "scale": np.array([1, 0.5, 0.1], np.float32),
        "offsets": np.array([0, 30, 50]),
        "y": np.repeat([0, 1, 1], [10, 20, 20]).astype(np.int8),
        "rate_hz": np.array(10),
        "class_names": np.array(["rest", "move"]),
        "rec_subject": np.array([3, 7], np.int8),
        "rec_device": np.array([0, 1], np.int8),
        "device_names": np.array(["phone", "watch"]),
        "channel_names": np.array(["acc_x", "acc_y", "acc_z"]),
    }
    made.update(changes)
    return {key: value for key, value in made.items() if value is not None}


def saved(folder: Path, **changes: Any) -> Path:
    path = folder / "mine.npz"
    np.savez(path, **arrays(**changes))
    return path


def test_recordings_hold_physical_units_people_and_named_tags(tmp_path: Path) -> None:
    data = recordings.load(saved(tmp_path))
    first, second = data.recordings
    np.testing.assert_allclose(second.signal[0], [90, 91 * 0.5, 92 * 0.1], rtol=1e-6)
    assert (first.person, second.person) == (3, 7)
    assert second.tags["device"] == "watch"
    assert data.channels[0].unit == "m/s^2"
    np.testing.assert_allclose(second.t_s, np.arange(20) / 10)
    assert first.y.tolist() == [0] * 10 + [1] * 20


def test_one_label_per_recording_holds_for_all_its_samples(tmp_path: Path) -> None:
    first, second = recordings.load(saved(tmp_path, y=np.array([1, 0]))).recordings
    assert first.y.tolist() == [1] * 30
    assert second.y.tolist() == [0] * 20


def test_times_in_milliseconds_give_the_rate(tmp_path: Path) -> None:
    t_ms = np.concatenate([np.arange(30) * 20, np.arange(20) * 20])
    data = recordings.load(saved(tmp_path, rate_hz=None, t_ms=t_ms))
    assert data.rate_hz == pytest.approx(50)
    assert data.recordings[1].t_s[-1] == pytest.approx(0.38)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"y": None}, "no array 'y'"),
        ({"signal": None}, "no array 'signal' or 'emg'"),
        ({"rate_hz": None}, "'rate_hz'"),
        ({"offsets": np.array([0, 30, 49])}, "offsets"),
        ({"offsets": np.array([0, 0, 50])}, "empty recording"),
        ({"y": np.full(50, 2)}, "0 to 1"),
        ({"y": np.zeros(7, int)}, r"shape \(7,\)"),
        ({"t_ms": np.arange(50)[::-1]}, "backwards"),
        ({"channel_names": np.array(["a"])}, "1 channel_names"),
        ({"rec_device": np.array([0])}, "rec_device"),
        ({"class_names": np.array([{}], dtype=object)}, "pickle"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        recordings.load(saved(tmp_path, **changes))


def test_a_missing_and_a_foreign_file_are_data_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        recordings.load(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("not an archive")
    with pytest.raises(DataError, match="not a readable"):
        recordings.load(tmp_path / "text.npz")


def made(n: int, *, person: int = 0, rate_hz: float = 10.0, y: Any = 0, device: str = "") -> Recording:
    return Recording(
        signal=np.full((n, 2), person, np.float32),
        t_s=np.arange(n) / rate_hz,
        y=np.broadcast_to(np.asarray(y, np.int64), (n,)),
        person=person,
        tags={"device": device},
    )


@given(
    lengths=st.lists(st.integers(2, 60), min_size=1, max_size=6),
    window=st.integers(2, 12),
    hop=st.integers(1, 12),
)
def test_windows_never_cross_recordings(lengths: list[int], window: int, hop: int) -> None:
    parts = [made(n, person=k) for k, n in enumerate(lengths)]
    expected = [0 if n < window else (n - window) // hop + 1 for n in lengths]
    if not sum(expected):
        with pytest.raises(DataError, match="shorter window"):
            windows(parts, rate_hz=10, window_samples=window, hop_samples=hop)
        return
    cut = windows(parts, rate_hz=10, window_samples=window, hop_samples=hop)
    assert np.bincount(cut.recording, minlength=len(lengths)).tolist() == expected
    assert (cut.person[:, None, None] == cut.X).all()


def test_a_window_is_of_the_class_that_most_of_its_samples_have() -> None:
    recording = made(30, y=np.repeat([0, 2, 1], [14, 6, 10]))
    cut = windows([recording], rate_hz=10, window_samples=10, hop_samples=10)
    assert cut.y.tolist() == [0, 2, 1]


def test_a_window_inside_a_gap_takes_the_last_label_before_it() -> None:
    recording = Recording(
        signal=np.zeros((3, 1), np.float32),
        t_s=np.array([0.0, 1.0, 9.0]),
        y=np.array([0, 1, 0]),
        person=0,
    )
    assert majority(recording, np.array([5.0]), 1.0).tolist() == [1]


def test_scenarios_never_share_a_person_between_roles() -> None:
    for scenario in scenarios.SCENARIOS.values():
        roles = (scenario.train_people, scenario.validation_people, scenario.stream_people)
        assert sum(map(len, roles)) == len(frozenset.union(*roles))


def test_a_split_follows_people_and_devices_and_refuses_a_foreign_file(tmp_path: Path) -> None:
    parts = tuple(
        made(5, person=p, device=device) for p in range(1, 24) for device in ("smartphone", "smartwatch")
    )
    data = recordings.load(saved(tmp_path))
    whole = recordings.Dataset(
        name="mine", class_names=data.class_names, channels=data.channels, rate_hz=10, recordings=parts
    )
    scenario = scenarios.get("phone-to-watch")
    dealt = scenarios.split(whole, scenario)
    assert {r.person for r in dealt.stream} == set(range(16, 24))
    assert {r.tags["device"] for r in dealt.train + dealt.validation} == {"smartphone"}
    assert {r.tags["device"] for r in dealt.stream} == {"smartwatch"}
    with pytest.raises(DataError, match=r"spsw_har\.npz"):
        scenarios.split(data, scenario)
    with pytest.raises(DataError, match="phone-to-watch"):
        scenarios.get("unknown")
