"""Feature streams from files, spoken digits, and recordings through a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_cl.bundle import FORMAT, write_bundle
from edge_cl.datasets import spoken_digits
from edge_cl.datasets.streams import Stream, find_streams
from edge_cl.errors import DataError
from edge_cl.manifest import Channel, EncoderSpec, Manifest

PEOPLE = range(8)
PER_PERSON = 6
SAMPLES, WINDOW = 10, 2


def write_features(path: Path, *, n: int = 200, n_classes: int = 3, **more: Any) -> None:
    y = np.arange(n) % n_classes
    np.savez(path, **{"X": np.arange(n * 6, dtype=np.float32).reshape(n, 6), "y": y, **more})


def write_digits(folder: Path, *, takes: int = 6, speakers: int = 2, **changes: Any) -> None:
    """Ten digits a take; digit k is a tone on the upper edge of band k, which is still in it."""
    rng = np.random.default_rng(0)
    clips = []
    for _ in range(speakers * takes):
        for digit in range(10):
            t = np.arange(int(rng.integers(704, 3000))) / 8000
            clips.append((8000 * np.sin(2 * np.pi * 250 * (digit + 1) * t)).astype(np.int16))
    arrays = {
        "audio": np.concatenate(clips),
        "offsets": np.cumsum([0, *map(len, clips)]),
        "y": np.tile(np.arange(10), speakers * takes),
        "speaker": np.repeat(np.arange(speakers), 10 * takes),
        "take": np.tile(np.repeat(np.arange(takes), 10), speakers),
    }
    np.savez(folder / spoken_digits.FILE, **(arrays | changes))


def write_recordings(folder: Path, name: str = "myo_emg") -> None:
    """Six recordings of each person, 5 windows each; every value says whose recording it is."""
    n = len(PEOPLE) * PER_PERSON
    value = np.arange(n, dtype=np.float32)
    np.savez(
        folder / f"{name}.npz",
        signal=np.repeat(value, SAMPLES)[:, None] * np.array([1.0, 10.0], np.float32),
        offsets=np.arange(n + 1) * SAMPLES,
        y=np.arange(n) % 2,
        rate_hz=10,
        class_names=np.array(["open", "close"]),
        rec_subject=np.repeat(PEOPLE, PER_PERSON),
        channel_names=np.array(["a", "b"]),
    )


def write_tiny_bundle(path: Path, **changes: Any) -> Path:
    """No encoder: a window of 2 samples × 2 channels is the feature."""
    given = {
        "class_names": ("open", "close"),
        "channels": (Channel("a"), Channel("b")),
        "provenance": {"data": {"file": "myo_emg.npz"}, "people": [0, 1, 2]},
        **changes,
    }
    manifest = Manifest(
        format=FORMAT,
        format_version=1,
        name="tiny",
        rate_hz=10.0,
        window_samples=WINDOW,
        hop_samples=WINDOW,
        feature_size=WINDOW * 2,
        encoder=EncoderSpec(kind="identity"),
        **given,
    )
    write_bundle(path, manifest, {})
    return path


def only_stream(folder: Path, *bundles: Path, **how: Any) -> Stream:
    (stream,) = find_streams(folder, bundles, **how)
    return stream


def test_whole_frames_are_held_out(tmp_path: Path) -> None:
    write_features(tmp_path / "cycle.npz", n_classes=5, frame=5)
    write_features(tmp_path / "rows.npz", n_classes=5)
    cycle, rows = find_streams(tmp_path)
    frames = cycle.held_out.reshape(-1, 5)
    assert (frames.all(axis=1) | ~frames.any(axis=1)).all()
    assert frames[:, 0].mean() == pytest.approx(0.2)
    assert set(cycle.y[cycle.held_out]) == set(range(5))
    assert set(rows.y[rows.held_out]) == {4}, "what `frame` is for: by rows one class would go unlearned"


def test_skipped_rows_leave_the_others_and_what_is_held_out_as_they_were(tmp_path: Path) -> None:
    write_features(tmp_path / "rows.npz")
    whole, part = only_stream(tmp_path), only_stream(tmp_path, skip=13, rows=50)
    for name in ("X", "y", "held_out"):
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[13:63])


@pytest.mark.parametrize(
    ("changes", "how", "says"),
    [
        ({"y": np.zeros(7, int)}, {}, r"200 integers from 0, found int64 of shape \(7,\)"),
        ({"y": np.full(200, -1)}, {}, "200 integers from 0"),
        ({"y": np.zeros(200)}, {}, "found float64"),
        ({"X": np.full((200, 2), np.nan)}, {}, "not finite"),
        ({}, {"skip": 200}, "0 rows after skipping 200 leave nothing"),
        ({}, {"rows": 4}, "4 rows after skipping 0 leave nothing"),
        ({}, {"only": ["other"]}, r"no stream \['other'\] in .*; found \['mine'\]"),
        ({"X": np.array([[None]] * 200)}, {}, "without pickles"),
    ],
)
def test_an_unusable_stream_says_why(
    tmp_path: Path, changes: dict[str, Any], how: dict[str, Any], says: str
) -> None:
    write_features(tmp_path / "mine.npz", **changes)
    with pytest.raises(DataError, match=says):
        list(find_streams(tmp_path, **how))


def test_a_file_that_is_no_npz_says_so(tmp_path: Path) -> None:
    (tmp_path / "broken.npz").write_bytes(b"PK, but no more")
    with pytest.raises(DataError, match=r"broken\.npz: not a readable"):
        list(find_streams(tmp_path))


def test_spoken_digits_are_a_stream_with_whole_takes_held_out(tmp_path: Path) -> None:
    write_digits(tmp_path)
    stream = only_stream(tmp_path)
    assert stream.name == "fsdd_8x16" and stream.X.shape == (120, 128)
    takes = stream.held_out.reshape(-1, 10)
    assert np.flatnonzero(takes.all(axis=1)).tolist() == [4, 9] and takes.any(axis=1).sum() == 2
    assert set(stream.y[stream.held_out]) == set(range(10))


def test_each_tone_is_loudest_in_its_band_at_all_times(tmp_path: Path) -> None:
    write_digits(tmp_path)
    stream = only_stream(tmp_path)
    loudest = stream.X.reshape(-1, 8, 16).argmax(axis=2)
    np.testing.assert_array_equal(loudest, np.repeat(stream.y[:, None], 8, axis=1))


@pytest.mark.parametrize("n", [1, 300, 704, 20_000])
def test_the_log_spectrum_of_silence_is_the_floor(n: int) -> None:
    found = spoken_digits.log_spectrum(np.zeros(n, np.int16))
    np.testing.assert_allclose(found, np.full(128, np.log(spoken_digits.FLOOR)), rtol=1e-6)


def test_a_spectrum_is_of_its_clip_alone_and_of_its_power(tmp_path: Path) -> None:
    clip = np.random.default_rng(0).integers(-2000, 2000, 5000).astype(np.int16)
    louder = spoken_digits.log_spectrum(4 * clip) - spoken_digits.log_spectrum(clip)
    np.testing.assert_allclose(louder, np.full(128, np.log(16)), atol=1e-3)


def test_spoken_digits_without_their_arrays_say_what_is_missing(tmp_path: Path) -> None:
    np.savez(tmp_path / spoken_digits.FILE, audio=np.zeros(5, np.int16))
    with pytest.raises(DataError, match=r"no array \['offsets', 'speaker', 'take', 'y'\]"):
        list(find_streams(tmp_path))


def test_a_bundle_gives_the_features_of_its_stream_people_recordings_held_out_whole(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    write_recordings(data)
    write_features(data / "other.npz")
    other, stream = find_streams(data, [write_tiny_bundle(tmp_path / "a.ecl")])
    assert (other.name, stream.name) == ("other", "myo_emg_features")
    recording = np.repeat(np.arange(2 * PER_PERSON), SAMPLES // WINDOW)
    of_file = np.repeat([18, 42], PER_PERSON)[recording] + recording % PER_PERSON
    np.testing.assert_array_equal(stream.X, of_file[:, None] * np.array([1, 10, 1, 10], np.float32))
    np.testing.assert_array_equal(stream.y, of_file % 2)
    np.testing.assert_array_equal(stream.held_out, recording % 5 == 4)


def test_a_folder_without_streams_is_enough_for_a_bundle_and_two_of_one_data_set_differ_in_name(
    tmp_path: Path,
) -> None:
    write_recordings(tmp_path)
    one, two = (write_tiny_bundle(tmp_path / f"{name}.ecl") for name in ("one", "two"))
    names = [stream.name for stream in find_streams(tmp_path, [one, two])]
    assert names == ["myo_emg_features_one", "myo_emg_features_two"]
    with pytest.raises(DataError, match="two streams have one name"):
        list(find_streams(tmp_path, [one, one]))


def test_recordings_are_found_in_the_usual_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual, data = tmp_path / "usual", tmp_path / "data"
    usual.mkdir()
    data.mkdir()
    write_features(data / "other.npz")
    bundle = write_tiny_bundle(tmp_path / "a.ecl")
    monkeypatch.setenv("EDGE_CL_DATA", str(usual))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "none"))
    with pytest.raises(DataError, match=r"a\.ecl needs myo_emg\.npz, which is not in"):
        list(find_streams(data, [bundle]))
    write_recordings(usual)
    assert [stream.name for stream in find_streams(data, [bundle])] == ["other", "myo_emg_features"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"channels": (Channel("a"), Channel("c"))}, r"has channels \['a', 'b'\], the bundle expects"),
        ({"class_names": ("open", "shut")}, r"has classes \['open', 'close'\], .* knows \['open', 'shut'\]"),
        (
            {"provenance": {"data": {"file": "myo_emg.npz"}, "people": [2, 3, 7]}},
            r"trained on people \[3, 7\]",
        ),
        ({"provenance": {}}, "made from unnamed data.*--scenario"),
        ({"provenance": {"data": "simulated"}}, "made from unnamed data.*--scenario"),
        ({"provenance": {"data": {"file": "mine.npz"}}}, r"made from mine\.npz.*--scenario"),
    ],
)
def test_a_bundle_of_other_data_says_what_does_not_fit(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    write_recordings(tmp_path)
    with pytest.raises(DataError, match=says):
        list(find_streams(tmp_path, [write_tiny_bundle(tmp_path / "a.ecl", **changes)]))


def test_a_scenario_can_be_named_for_a_bundle_that_does_not(tmp_path: Path) -> None:
    write_recordings(tmp_path)
    bundle = write_tiny_bundle(tmp_path / "a.ecl", provenance={})
    assert only_stream(tmp_path, bundle, scenario="new-person").name == "myo_emg_features"
