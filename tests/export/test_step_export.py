"""`edge-cl export --split-at … --plastic-head …`: a bundle whose head the device trains itself."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from click.testing import CliRunner  # noqa: E402
from edge_cl_export import command, losses, optimisers  # noqa: E402
from edge_cl_export.freeze import run_graph  # noqa: E402

from edge_cl.budget import MIB, Ledger  # noqa: E402
from edge_cl.bundle import Bundle  # noqa: E402
from edge_cl.errors import BundleError, ConfigError, EdgeCLError  # noqa: E402
from edge_cl.heads.step import StepHead  # noqa: E402
from edge_cl.knowledge import Knowledge  # noqa: E402
from edge_cl.records import SleepPlan  # noqa: E402
from tests.export.test_training import labelled, recordings_file  # noqa: E402

pytestmark = pytest.mark.torch
MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv1d(6, 8, 3, stride=2, padding=1), nn.ReLU())
        self.top = nn.Linear(8, 4)

    def forward(self, window):
        return self.top(self.stem(window.transpose(1, 2)).mean(2))

def build():
    torch.manual_seed(0)
    return Net()
"""


def export_cut(folder: Path, *words: str) -> Any:
    (folder / "cut_model.py").write_text(MODEL)
    options = ["--data", str(recordings_file(folder)), "--train-people", "0-2", "--val-people", "3"]
    return CliRunner().invoke(
        command.export,
        [*options, "--no-variants", "--model", "cut_model:build", *words, "-o", str(folder / "out.ecl")],
    )


def test_a_cut_model_and_a_conv_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--split-at", "stem", "--plastic-head", "edge_cl_export.plastic:ConvBlock"]
    result = export_cut(tmp_path, *words, "--loss", "uer", "--optimiser", "adamw", "--lr", "0.002")
    assert result.exit_code == 0, result.exception
    bundle = Bundle.load(tmp_path / "out.ecl")
    spec = bundle.manifest.plastic
    assert spec is not None and bundle.manifest.head.name == "step"
    assert (spec.feature_shape, spec.loss, spec.optimiser, spec.lr) == ((8, 10), "uer", "adamw", 0.002)
    assert bundle.manifest.feature_size == 80
    device = Knowledge(bundle, Ledger(32 * MIB))
    assert isinstance(device.head, StepHead)
    data = labelled()
    features = run_graph(bundle.member("encoder.onnx"), data.X)
    right = device.head.exam(features, data.y, learned=True).argmax(1) == data.y
    assert right.mean() > 0.9, "the network comes trained on the source"
    for k in range(6):
        device.learn(features[k], "new")
    device.begin_sleep(SleepPlan())
    device.wake()
    assert device.last_sleep is not None and np.isfinite(device.predict(features)).all()


@pytest.mark.parametrize(
    ("words", "error", "says"),
    [
        (["--split-at", "stm"], BundleError, "no such layer; the nearest are stem"),
        (["--split-at", "stem", "--head", "slda"], ConfigError, "--split-at: only for --head step"),
        (["--head", "step", "--head-mb", "3"], ConfigError, "--head-mb"),
        (["--plastic-head", "nowhere:Head"], ConfigError, "--plastic-head 'nowhere:Head' cannot be imported"),
        (
            ["--plastic-head", "edge_cl_export.plastic:ConvBlock"],
            BundleError,
            "a convolution with --split-at",
        ),
    ],
)
def test_what_does_not_fit_is_explained_and_no_bundle_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], error: type[EdgeCLError], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = export_cut(tmp_path, *words)
    assert isinstance(result.exception, error), result.exception
    assert says in str(result.exception)
    assert not (tmp_path / "out.ecl").exists()


def test_tflite_twins_are_made_where_the_converter_is(tmp_path: Path) -> None:
    from edge_cl_export.plastic import Mlp
    from edge_cl_export.step_graph import make_module
    from edge_cl_export.twins import tflite_twins

    settings = optimisers.StepSettings(batch=8)
    module = make_module(Mlp, (6,), 3, settings)
    if find_spec("litert_torch") is None:
        with pytest.raises(ConfigError, match="pip install litert-torch"):
            tflite_twins(module, settings)
        return
    twins = tflite_twins(module, settings)  # compares itself with torch
    assert set(twins) == {"predict.tflite", "step.tflite"} and all(twins.values())


def test_the_commands_choices_are_what_there_is() -> None:
    assert list(command.LOSSES) == list(losses.LOSSES) and list(command.OPTIMISERS) == list(optimisers.SLOTS)
