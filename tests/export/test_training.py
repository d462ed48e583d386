from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_cl import heads
from edge_cl.budget import MIB, Ledger
from edge_cl.bundle import Bundle
from edge_cl.errors import BudgetExceeded, ConfigError
from edge_cl.knowledge import Knowledge
from edge_cl.manifest import Channel

torch = pytest.importorskip("torch", reason="needs the export extra")
pytest.importorskip("onnxscript", reason="needs the export extra")
pytestmark = pytest.mark.torch

from click.testing import CliRunner  # noqa: E402
from edge_cl_export import augment  # noqa: E402
from edge_cl_export.command import export  # noqa: E402
from edge_cl_export.encoders import Invariants, SensorEncoder, triplets  # noqa: E402
from edge_cl_export.freeze import run_graph  # noqa: E402
from edge_cl_export.job import people  # noqa: E402
from edge_cl_export.pack import Source, train_and_pack  # noqa: E402
from edge_cl_export.prior import linear_scores, make_prior  # noqa: E402
from edge_cl_export.train import TrainSettings, accuracy, predict, train  # noqa: E402

IMU = [Channel(f"{kind}_{axis}") for kind in ("acc", "gyr") for axis in "xyz"]
VECTORS = triplets(IMU)


def seeded(seed: int = 0) -> Any:
    return torch.Generator().manual_seed(seed)


def labelled(n_per_person: int = 40, people: int = 4, seed: int = 0) -> Source:
    """Three classes told apart by how hard the sensor shakes, always mounted alike."""
    rng = np.random.default_rng(seed)
    n = n_per_person * people
    y = np.arange(n) % 3
    t = np.arange(20) / 20
    wave = np.sin(2 * np.pi * 3 * t + rng.uniform(0, 6, (n, 1)))
    X = rng.normal(0, 0.2, (n, 20, 6))
    X[:, :, 2] += 9.8
    X[:, :, 0] += 2 * y[:, None] * wave
    return Source(
        name="shakes",
        X=X.astype(np.float32),
        y=y.astype(np.int64),
        person=np.repeat(np.arange(people), n_per_person),
        class_names=("still", "gentle", "hard"),
        channels=IMU,
        rate_hz=20.0,
        hop_samples=10,
    )


def test_vectors_are_found_by_name() -> None:
    assert VECTORS == ((0, 1, 2), (3, 4, 5))
    assert triplets([Channel("acc_x"), Channel("acc_y"), Channel("emg_0")]) == ()


def test_the_default_encoder_is_small() -> None:
    encoder = SensorEncoder(6, vectors=VECTORS)
    assert sum(p.numel() for p in encoder.parameters()) < 200_000
    with pytest.raises(ValueError, match="multiple of 4"):
        SensorEncoder(6, feature_size=30)


def test_added_channels_do_not_change_when_the_sensor_is_turned() -> None:
    X = torch.from_numpy(labelled().X)
    turned = augment.rotate(X, VECTORS, generator=seeded(), share=1.0)
    added = Invariants(VECTORS)
    assert not torch.allclose(turned, X, atol=1e-2)
    torch.testing.assert_close(added(turned)[..., 6:], added(X)[..., 6:], atol=2e-3, rtol=1e-3)


@given(seed=st.integers(0, 2**31))
@settings(max_examples=20)
def test_rotations_keep_lengths_and_handedness(seed: int) -> None:
    turn = augment.rotations(4, seeded(seed))
    torch.testing.assert_close(turn @ turn.transpose(1, 2), torch.eye(3).expand(4, 3, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.linalg.det(turn), torch.ones(4), atol=1e-5, rtol=0)


def test_a_rotation_turns_all_vectors_of_a_window_alike() -> None:
    X = torch.from_numpy(labelled().X).clone()
    X[:, :, 3:] = X[:, :, :3]
    turned = augment.rotate(X, VECTORS, generator=seeded())
    torch.testing.assert_close(turned[:, :, 3:], turned[:, :, :3])
    unchanged = (turned == X).all(-1).all(-1).float().mean()
    assert 0.3 < unchanged < 0.7


def test_stretching_a_ramp_changes_its_slope_about_the_centre() -> None:
    ramp = torch.arange(11.0).reshape(1, 11, 1)
    torch.testing.assert_close(augment.stretch(ramp, torch.tensor([1.0])), ramp)
    half = augment.stretch(ramp, torch.tensor([0.5]))[0, :, 0]
    torch.testing.assert_close(half, 5 + 0.5 * (torch.arange(11.0) - 5))


def test_training_learns_new_people_and_repeats_itself() -> None:
    data, check = labelled(), labelled(people=1, seed=1)
    outputs = []
    for _ in range(2):
        torch.manual_seed(3)
        encoder = SensorEncoder(6, feature_size=16, width=8, vectors=VECTORS)
        encoder.fit_normalisation(torch.from_numpy(data.X))
        report = train(
            encoder,
            (data.X, data.y),
            (check.X, check.y),
            n_classes=3,
            settings=TrainSettings(epochs=8, batch=32, lr=1e-2, vectors=VECTORS),
        )
        outputs.append(predict(encoder, check.X))
    assert report.validation_balanced_accuracy > 0.8
    np.testing.assert_array_equal(outputs[0], outputs[1])


def test_the_best_epoch_is_kept() -> None:
    data, check = labelled(n_per_person=12), labelled(people=1, seed=1)
    seen: list[float] = []
    encoder = SensorEncoder(6, feature_size=8, width=8)
    report = train(
        encoder,
        (data.X, data.y),
        (check.X, check.y),
        n_classes=3,
        settings=TrainSettings(epochs=5, batch=16, lr=0.05),
        progress=lambda done, total, text: seen.append(float(text.split()[1])),
    )
    assert report.validation_balanced_accuracy == pytest.approx(max(seen), abs=6e-4)
    assert report.best_epoch == 1 + int(np.argmax(seen))


def test_balanced_accuracy_weighs_classes_alike() -> None:
    plain, balanced = accuracy(np.zeros(10, int), np.array([0] * 9 + [1]))
    assert (plain, balanced) == (0.9, 0.5)


@given(seed=st.integers(0, 1000), per_class=st.integers(0, 5))
@settings(max_examples=25)
def test_prior_statistics_are_those_of_the_features(seed: int, per_class: int) -> None:
    rng = np.random.default_rng(seed)
    F, y = rng.normal(size=(30, 4)), rng.permutation(np.arange(30) % 3)
    prior = make_prior(F, y, n_classes=4, exemplars=per_class, rng=rng)
    assert prior.class_counts.tolist() == [10, 10, 10, 0]
    np.testing.assert_allclose(prior.class_means[1], F[y == 1].mean(0), rtol=1e-4, atol=1e-6)
    pooled = sum((np.cov(F[y == c].T) * 9 for c in range(3)), np.zeros((4, 4))) / 27
    np.testing.assert_allclose(prior.shared_cov, pooled, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(prior.second_moment, F.T @ F / 30, rtol=1e-4, atol=1e-6)
    assert np.bincount(prior.exemplar_labels, minlength=4).tolist() == [per_class] * 3 + [0]
    # Every exemplar is a feature of its class, rounded to half precision.
    for x, label in zip(prior.exemplars, prior.exemplar_labels, strict=True):
        assert np.abs(F[y == label] - x).max(1).min() < 5e-3


def test_a_bundle_is_whole_and_its_golden_pair_holds(tmp_path: Path) -> None:
    data = labelled()
    made = train_and_pack(
        data,
        tmp_path / "s.ecl",
        validation_people=[3],
        settings=TrainSettings(feature_size=16, epochs=6, batch=32, lr=1e-2, vectors=VECTORS),
        exemplars=7,
    )
    bundle = Bundle.load(tmp_path / "s.ecl")
    assert bundle.bundle_id == made.bundle_id
    manifest = bundle.manifest
    assert (manifest.window_samples, manifest.hop_samples, manifest.feature_size) == (20, 10, 16)
    inputs, features = bundle.golden() or (None, None)
    assert 8 <= len(inputs) <= 16
    np.testing.assert_allclose(run_graph(bundle.member("encoder.onnx"), inputs), features, atol=1e-5)
    prior = bundle.prior()
    assert prior is not None
    assert prior.class_counts.sum() == 160  # everybody, the held-out person too
    assert len(prior.exemplars) == 21
    metrics = manifest.provenance["metrics"]
    assert metrics["validation_people"] == [3]
    # The metric is what a device that never learns would score.
    held_out = data.X[data.person == 3]
    answer = linear_scores(prior, run_graph(bundle.member("encoder.onnx"), held_out)).argmax(1)
    assert metrics["validation_accuracy"] == pytest.approx(
        (answer == data.y[data.person == 3]).mean(), abs=1e-4
    )
    assert metrics["validation_accuracy"] > 0.7


def test_validation_people_must_leave_both_parts_something(tmp_path: Path) -> None:
    for who in ([], [0, 1, 2, 3], [9]):
        with pytest.raises(ValueError, match="validation people"):
            train_and_pack(labelled(), tmp_path / "s.ecl", validation_people=who)


def recordings_file(folder: Path) -> Path:
    data = labelled()
    path = folder / "shakes.npz"
    np.savez(
        path,
        signal=data.X.reshape(-1, 6),
        y=data.y,
        offsets=np.arange(len(data.X) + 1) * 20,
        rate_hz=20.0,
        rec_subject=data.person,
        class_names=np.array(data.class_names),
        channel_names=np.array([channel.name for channel in IMU]),
    )
    return path


def run(*words: str) -> Any:
    return CliRunner().invoke(export, list(words))


def test_the_command_trains_and_tells_how_good_it_is(tmp_path: Path) -> None:
    out = tmp_path / "out.ecl"
    options = ["--data", str(recordings_file(tmp_path)), "--train-people", "0-2", "--val-people", "3"]
    options += ["--no-variants", "-o", str(out)]
    result = run(*options, "--epochs", "1", "--features", "8", "--exemplars", "0")
    assert result.exit_code == 0, result.output
    assert "accuracy, new people" in result.output
    bundle = Bundle.load(out)
    assert bundle.manifest.name == "shakes"
    assert bundle.manifest.provenance["people"] == [0, 1, 2, 3]
    assert str(tmp_path) not in str(bundle.manifest.provenance)
    prior = bundle.prior()
    assert prior is not None
    assert len(prior.exemplars) == 0


def export_own_model(folder: Path, *words: str) -> Any:
    (folder / "own_encoder.py").write_text(
        "from torch import nn\ndef build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(120, 6))\n"
    )
    options = ["--data", str(recordings_file(folder)), "--train-people", "0-2", "--val-people", "3"]
    return run(
        *options, "--no-variants", "--model", "own_encoder:build", *words, "-o", str(folder / "out.ecl")
    )


@pytest.mark.parametrize(
    ("words", "name", "options"),
    [
        ([], "dual", {}),
        (["--head", "slda"], "slda", {}),
        (["--head-mb", "2"], "dual", {**heads.LEAN, "memory_bytes": 0}),
        (["--head", "prototype", "--head-mb", "0.0005"], "prototype", {"sub_prototypes": 2}),
    ],
)
def test_the_head_is_chosen_at_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], name: str, options: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    result = export_own_model(tmp_path, *words)
    assert result.exit_code == 0, result.output
    bundle = Bundle.load(tmp_path / "out.ecl")
    assert (bundle.manifest.head.name, bundle.manifest.head.options) == (name, options)
    if "--head-mb" in words:
        for version in heads.versions(name):
            needed = heads.needed_bytes(name, n_features=6, n_classes=3, **version)
            (line,) = (line for line in result.output.splitlines() if f" {needed:,} bytes " in line)
            assert ("→" in line) == (version == options)
    device = Knowledge(bundle, Ledger(32 * MIB))
    assert device.head.name == name
    assert options.items() <= device.head.state().options.items()


def test_a_head_that_cannot_fit_says_what_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = export_own_model(tmp_path, "--head-mb", "0.1")
    assert isinstance(result.exception, BudgetExceeded)
    assert "what fits: slda" in str(result.exception) and not (tmp_path / "out.ecl").exists()


def test_the_command_takes_your_own_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out.ecl"
    result = export_own_model(tmp_path)
    assert result.exit_code == 0, result.output
    assert Bundle.load(out).manifest.feature_size == 6
    assert Bundle.load(out).manifest.provenance["encoder"] == "own_encoder:build"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--train-people", "0-2"], "--val-people"),
        (["--train-people", "0-2", "--val-people", "2"], r"\[2\] are in"),
        (["--train-people", "0-2", "--val-people", "8"], "its people are"),
        (["--train-people", "0-2", "--val-people", "three"], "numbers and ranges"),
        (["--scenario", "phone-to-watch", "--hop", "3"], "leave those options out"),
        (["--train-people", "0-2", "--val-people", "3", "--onnx", "m.onnx"], "--feature-output"),
        (["--train-people", "0", "--val-people", "3", "--onnx", "m", "--model", "a:b"], "give one of"),
    ],
)
def test_options_that_do_not_fit_are_explained(tmp_path: Path, words: list[str], says: str) -> None:
    result = run("--data", str(recordings_file(tmp_path)), *words, "-o", str(tmp_path / "o.ecl"))
    assert isinstance(result.exception, ConfigError)
    with pytest.raises(ConfigError, match=says):
        raise result.exception


def test_people_are_numbers_and_ranges() -> None:
    assert people("1-3, 7") == {1, 2, 3, 7}
    with pytest.raises(ConfigError):
        people("1-")
