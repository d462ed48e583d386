"""A plastic head becomes a step in ONNX that does what torch does, or the export says why not."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edge_cl_export import losses, optimisers, step_graph  # noqa: E402
from edge_cl_export.anatomy import plastic_module  # noqa: E402
from edge_cl_export.conv_backward import LEAST_CHANNELS, convolution_backward  # noqa: E402
from edge_cl_export.decompositions import decompositions  # noqa: E402
from edge_cl_export.losses import LOSSES, Outputs  # noqa: E402
from edge_cl_export.optimisers import StepSettings  # noqa: E402
from edge_cl_export.plastic import Adapter, ConvBlock, Mlp  # noqa: E402
from edge_cl_export.split import split  # noqa: E402
from edge_cl_export.step_graph import compile_program  # noqa: E402
from edge_cl_export.step_parity import check_steps  # noqa: E402
from torch import nn  # noqa: E402

from edge_cl.errors import BundleError, ConfigError  # noqa: E402
from tests.programs import untrained_program  # noqa: E402

pytestmark = pytest.mark.torch
SHAPES = {Mlp: (12,), ConvBlock: (8, 5, 5), Adapter: (12,)}


def compiles(factory, loss, optimiser):
    settings = StepSettings(loss=loss, optimiser=optimiser, batch=16)
    program = compile_program(factory, SHAPES[factory], 4, settings)  # it checks itself, with 4 and 5 classes
    module = plastic_module(factory, SHAPES[factory], 7, cosine_scale=losses.COSINE_LAYER.get(loss), seed=3)
    assert check_steps(program, module, settings) < 1e-5, "with 7 classes, too"
    assert program.spec.loss == loss and program.spec.optimiser == optimiser


def test_a_compiled_step_is_torchs_for_any_number_of_classes():
    program = untrained_program()  # it checked itself, with 3 and 4 classes
    module = plastic_module(Mlp, program.spec.feature_shape, 7, seed=3)
    assert check_steps(program, module, StepSettings()) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
@pytest.mark.parametrize("loss", list(LOSSES))
@pytest.mark.parametrize("factory", list(SHAPES))
def test_every_head_loss_and_optimiser_is_torchs(factory, loss, optimiser):
    compiles(factory, loss, optimiser)


def test_a_graph_that_does_something_else_is_refused(monkeypatch):
    other = untrained_program()  # of momentum 0.9
    graphs = iter([other.predict_graph, other.step_graph])
    monkeypatch.setattr(step_graph, "_to_onnx", lambda *_: next(graphs))
    with pytest.raises(BundleError, match=r"differ from torch's by .* of the scale of"):
        compile_program(Mlp, other.spec.feature_shape, 3, StepSettings(momentum=0.89))


# ------------------------------------------------------------------ losses, against what torch has


def outputs(n_classes=4, current=0.0):
    rng = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(8, 5, generator=rng), torch.randn(n_classes, 5, generator=rng)
    y = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1])
    targets = torch.eye(n_classes)[y]
    return y, Outputs(hidden @ weight.T, hidden, weight, targets, torch.full((8,), current))


def test_cross_entropy_is_torchs():
    y, out = outputs()
    expected = nn.functional.cross_entropy(out.logits, y)
    assert LOSSES["cross-entropy"](out).item() == pytest.approx(expected.item(), rel=1e-6)


def test_uer_learns_new_samples_by_angle_and_known_ones_by_angle_and_norm():
    y, new = outputs(current=1.0)
    _, known = outputs(current=0.0)
    cosines = nn.functional.cosine_similarity(new.hidden[:, None], new.weight[None], dim=-1)
    angle = nn.functional.cross_entropy(losses.COSINE_SCALE * cosines, y)
    assert LOSSES["uer"](new).item() == pytest.approx(angle.item(), rel=1e-5)
    assert LOSSES["uer"](known).item() == pytest.approx(
        nn.functional.cross_entropy(known.logits, y).item(), rel=1e-6
    )


def test_pcr_contrasts_each_sample_with_the_proxies_of_the_batch():
    y, out = outputs()
    proxies = out.logits[:, y]  # (i, j): sample i against the class row of sample j
    expected = (proxies.logsumexp(1) - out.logits[torch.arange(8), y]).mean()
    assert LOSSES["pcr"](out).item() == pytest.approx(expected.item(), rel=1e-6)
    moved = out._replace(logits=out.logits + torch.tensor([0, 0, 5.0, 5.0]))
    assert LOSSES["pcr"](moved).item() == pytest.approx(expected.item(), rel=1e-6), "absent classes"


@pytest.mark.parametrize("n_in", [2, LEAST_CHANNELS])
@pytest.mark.parametrize(("stride", "padding", "dilation"), [(1, 1, 1), (2, 0, 1), (2, 1, 2), (3, 2, 1)])
def test_the_gradient_of_a_convolution(stride, padding, dilation, n_in):
    torch.manual_seed(0)
    for n in (1, 2):
        x = torch.randn(3, n_in, *[11, 9][:n], dtype=torch.float64)
        weight = torch.randn(4, n_in, *[3, 2][:n], dtype=torch.float64)
        how = ([stride] * n, [padding] * n, [dilation] * n, False, [0] * n, 1)
        out = torch.ops.aten.convolution(x, weight, None, *how)
        grad = torch.randn_like(out)
        expected = torch.ops.aten.convolution_backward(grad, x, weight, [4], *how, [True] * 3)
        found = convolution_backward(grad, x, weight, [4], *how, [True] * 3)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("affine", [True, False])
def test_group_norm_and_its_gradient(affine):
    torch.manual_seed(0)
    ours = decompositions()
    x, grad = torch.randn(2, 3, 6, 5, dtype=torch.float64) + 4
    weight, bias = torch.randn(2, 6, dtype=torch.float64) if affine else (None, None)
    sizes = (3, 6, 5, 2)
    expected = torch.ops.aten.native_group_norm(x, weight, bias, *sizes, 1e-5)
    found = ours[torch.ops.aten.native_group_norm.default](x, weight, bias, *sizes, 1e-5)
    torch.testing.assert_close(found, expected)
    mask = [True, affine, affine]
    how = (grad, x, *expected[1:], weight, *sizes, mask)
    gradients = ours[torch.ops.aten.native_group_norm_backward.default](*how)
    for k, other in enumerate(torch.ops.aten.native_group_norm_backward(*how)):
        if mask[k]:
            torch.testing.assert_close(gradients[k], other)


# ------------------------------------------------------------------ what cannot be


class Sort(nn.Module):
    """An operator whose gradient has no ONNX form here."""

    def __init__(self, feature_shape, n_classes):
        super().__init__()
        self.inner = nn.Linear(feature_shape[0], 8)
        self.out = nn.Linear(8, n_classes)

    def forward(self, x):
        return self.out(torch.linalg.matrix_exp(self.inner(x)[:, :, None] * torch.ones(1, 1, 8)).mean(2))


def of(*layers):
    """A factory of a sequence: layers given as functions of (n_features, n_classes)."""
    return lambda shape, n_classes: nn.Sequential(*(layer(shape[0], n_classes) for layer in layers))


def linear(n_in, n_classes):
    return nn.Linear(8, n_classes)


def grouped(n_in, n_classes):
    return nn.Sequential(nn.Unflatten(1, (2, 3)), nn.Conv1d(2, 8, 3, groups=2))


@pytest.mark.parametrize(
    ("factory", "says"),
    [
        (Sort, "matrix_exp"),
        (
            of(lambda d, c: nn.Linear(d, 8), lambda d, c: nn.BatchNorm1d(8), linear),
            "1 is a BatchNorm1d in training",
        ),
        (of(lambda d, c: nn.Linear(d, 8), lambda d, c: nn.Dropout(0.5), linear), "1 is a Dropout"),
        (of(lambda d, c: nn.Linear(d, 8)), "no parameter of the plastic head grows"),
        (of(lambda d, c: nn.Linear(d, 2 * c), lambda d, c: nn.Linear(2 * c, c)), "exactly one axis may grow"),
        (of(lambda d, c: nn.Linear(d, c), lambda d, c: nn.Linear(c, c)), "exactly one axis may grow"),
        (of(lambda d, c: nn.Linear(d + 1, 8), linear), r"cannot take features of shape \('n', 6\)"),
        (of(lambda d, c: nn.Conv1d(1, 8, 3, groups=1), linear), "cannot take features"),
        (of(grouped, lambda d, c: nn.Flatten(), linear), r"2 groups \(aten\.convolution_backward\)"),
        (ConvBlock, "ConvBlock needs features of shape"),
        (lambda shape, c: "no module", "returned str"),
    ],
)
def test_a_head_that_cannot_be_compiled_is_explained(factory, says):
    with pytest.raises(BundleError, match=says):
        compile_program(factory, (6,), 3)


@pytest.mark.parametrize("base", [0.9, 0.999])
def test_adams_bias_correction_keeps_its_digits(base):
    t = np.array([1, 2, 3, 50, 300, 301, 5000, 1e6])
    found = optimisers._one_less_power(base, torch.tensor(t, dtype=torch.float32)).numpy()
    np.testing.assert_allclose(found, -np.expm1(t * np.log(base)), rtol=5e-7)


def test_settings_are_checked():
    for wrong in ({"loss": "hinge"}, {"optimiser": "lion"}, {"lr": -1.0}, {"batch": 0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            StepSettings(**wrong)


# ------------------------------------------------------------------ the cut


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv1d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv1d(4, 5, 3, padding=1))
        self.twice = nn.Identity()
        self.top = nn.Linear(5, 2)

    def forward(self, window):
        x = self.features(window.transpose(1, 2))
        return self.top(self.twice(self.twice(x.mean(2))))


def test_a_model_is_cut_at_a_layer_and_the_shape_is_kept(tmp_path: Path):
    from edge_cl_export.freeze import freeze, run_graph

    windows = np.random.default_rng(0).normal(size=(4, 8, 3)).astype(np.float32)
    model = Net()
    encoder, shape = split(model, "features.1", windows)
    assert shape == (4, 8)
    with torch.no_grad():
        expected = model.features[:2](torch.from_numpy(windows).transpose(1, 2)).flatten(1).numpy()
    np.testing.assert_allclose(run_graph(freeze(encoder, windows), windows), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "says"),
    [("feature.1", "nearest are features.1"), ("twice", "calls it 2 times"), ("", "no such layer")],
)
def test_a_layer_that_cannot_be_cut_at_is_explained(layer, says):
    with pytest.raises(BundleError, match=says):
        split(Net(), layer, np.zeros((2, 8, 3), np.float32))
