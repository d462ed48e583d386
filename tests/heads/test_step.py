"""Head `step`: what its sleep does, what stands still, what it costs, and what it refuses."""

import msgspec
import numpy as np
import pytest

from edge_cl import heads
from edge_cl.budget import MIB, Ledger
from edge_cl.bundle import Bundle, write_bundle
from edge_cl.errors import BundleError, ConfigError, NumericalError
from edge_cl.heads.program import StepProgram
from edge_cl.heads.step import StepHead
from edge_cl.knowledge import Knowledge
from edge_cl.memory.exemplars import Exemplars
from tests.programs import make_head, program, untrained_program
from tests.worlds import D, World, make_bundle


def sleep(head, X, y, n_steps=200, seed=0):
    for _ in head.rehearse(Exemplars.of(X, y, n_steps=n_steps, seed=seed)):
        pass


def network_accuracy(head, X, y):
    return (head.exam(X, y, learned=True).argmax(axis=1) == y).mean()


def cold(n_classes=4, **options):
    return heads.create("step", n_features=D, n_classes=n_classes, program=untrained_program(), **options)


def test_after_one_sleep_it_knows_four_separable_classes():
    head = cold()
    X, y = World().draw(400, 4)
    sleep(head, X, y)
    X, y = World(seed=5).draw(400, 4)
    assert network_accuracy(head, X, y) > 0.95


def test_a_label_counts_at_once_though_the_network_waits_for_sleep():
    head = make_head("step")
    X, y = World(seed=6, shift=3.0).draw(200)
    before = {name: value.copy() for name, value in head.parameters.items()}
    head.learn_many(X, y)
    for name, value in head.parameters.items():
        np.testing.assert_array_equal(value, before[name])
    X, y = World(seed=7, shift=3.0).draw(200)
    assert (head.predict_many(X).argmax(axis=1) == y).mean() > 0.9


def test_it_grows_from_two_to_twelve_classes_one_at_a_time():
    rng = np.random.default_rng(0)
    means = rng.normal(0, 4, (12, D))
    head = cold(n_classes=2)
    X, y = np.zeros((0, D), np.float32), np.zeros(0, np.int64)
    for c in range(12):
        if c >= 2:
            assert head.add_class() == c
        X = np.concatenate([X, (means[c] + rng.normal(0, 1, (40, D))).astype(np.float32)])
        y = np.concatenate([y, np.full(40, c)])
        head.learn_many(X[-5:], y[-5:])
        if c >= 1:
            sleep(head, X, y, n_steps=120)
    assert head.trained.all() and head.parameters["out.weight"].shape == (12, 64)
    T = (means[:, None] + rng.normal(0, 1, (12, 20, D))).reshape(-1, D).astype(np.float32)
    assert network_accuracy(head, T, np.repeat(np.arange(12), 20)) > 0.9


def test_sleep_keeps_old_rows_still_for_the_first_fifth():
    head = cold()
    X, y = World().draw(400, 4)
    sleep(head, X[y < 3], y[y < 3], n_steps=50)
    old = head.parameters["out.weight"].copy()
    hidden = head.parameters["hidden.weight"].copy()
    steps = head.rehearse(Exemplars.of(X, y, n_steps=50))
    for _ in range(10):
        next(steps)
    np.testing.assert_allclose(head.parameters["out.weight"][:3], old[:3], atol=1e-6)
    assert np.abs(head.parameters["out.weight"][3]).max() > 0, "the new one learns"
    assert np.abs(head.parameters["hidden.weight"] - hidden).max() > 1e-4, "and so does the body"
    for _ in steps:
        pass
    assert np.abs(head.parameters["out.weight"][:3] - old[:3]).max() > 1e-4, "then all do"


def test_a_new_class_starts_from_its_own_mean():
    head = cold()
    X, y = World().draw(400, 4)
    sleep(head, X[y < 3], y[y < 3])
    steps = head.rehearse(Exemplars.of(X, y, n_steps=1000))
    next(steps)  # one step at a rising rate moves next to nothing
    hidden = head.program.predict(head.parameters, X[y == 3][:16])[1].mean(axis=0)
    row = head.parameters["out.weight"][3]
    assert row @ hidden / np.linalg.norm(row) / np.linalg.norm(hidden) > 0.98
    assert np.linalg.norm(row) == pytest.approx(
        np.linalg.norm(head.parameters["out.weight"][:3], axis=1).mean(), rel=0.05
    )


@pytest.mark.parametrize("stop", [1, 7, 60])
def test_a_sleep_that_ends_early_leaves_a_head_that_answers(stop):
    head = make_head("step", n_classes=4)
    X, y = World().draw(300, 4)
    head.learn_many(X, y)
    steps = head.rehearse(Exemplars.of(X, y, n_steps=100))
    for _ in range(stop):
        next(steps)
    twin = head.copy()
    scores = head.predict_many(X)
    np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-4)
    np.testing.assert_array_equal(twin.predict_many(X), scores)
    assert (scores.argmax(axis=1) == y).mean() > 0.9
    steps.close()
    head.learn_one(X[0], int(y[0]))


def test_what_sleep_consolidates_is_not_corrected_twice():
    head = cold()
    X, y = World().draw(200, 4)
    head.learn_many(X, y)
    near = head.fast.near(head.standardise(X))
    before = np.abs(head.fast.predict(near)).mean()
    sleep(head, X, y)
    head.predict_one(X[0])
    near = head.fast.near(head.standardise(X))
    assert np.abs(head.fast.predict(near)).mean() < 0.2 * before


def test_sleep_is_deterministic_and_asking_between_its_steps_changes_nothing():
    X, y = World().draw(200, 3)
    asked, left = (make_head("step") for _ in range(2))
    for head in (asked, left):
        head.learn_many(X[:50], y[:50])
        for _ in head.rehearse(Exemplars.of(X, y, n_steps=30)):
            if head is asked:
                head.predict_many(X[:3])
    for key, value in asked.state().arrays.items():
        np.testing.assert_array_equal(value, left.state().arrays[key], err_msg=key)


def test_what_answers_is_the_bias_corrected_average_of_all_steps():
    head = make_head("step")
    X, y = World().draw(100)
    sleep(head, X, y)
    exemplars = Exemplars.of(X, y, n_steps=15)
    trainer = program().trainer(head.parameters)
    for _ in head.rehearse(exemplars):
        pass
    total = 0.0
    for k in range(15):
        rows = exemplars.sampler.batch(k, 32)
        rising, falling = min(1, k + 1), (1 + np.cos(np.pi * k / 15)) / 2
        trainer.step(X[rows], y[rows], lr=program().spec.lr * rising * falling)
        total = 0.99 * total + 0.01 * trainer.parameters["hidden.weight"].astype(np.float64)
    np.testing.assert_allclose(head.parameters["hidden.weight"], total / (1 - 0.99**15), atol=2e-6)
    assert np.abs(head.parameters["hidden.weight"] - trainer.parameters["hidden.weight"]).max() > 1e-4


def test_nan_ends_the_sleep_and_says_at_which_step():
    head = make_head("step")
    X, y = World().draw(100)
    wild = X.copy()
    wild[:] = np.float32(3e38)
    exemplars = Exemplars.of(X, y, n_steps=20)
    broken = Exemplars(y, lambda rows: wild[rows], exemplars.sampler, 20)
    with np.errstate(all="ignore"), pytest.raises(NumericalError, match="step 1 left the finite numbers"):
        for _ in head.rehearse(broken):
            pass


def test_steps_run_between_two_fixed_sets_of_buffers():
    p = program()
    trainer = p.trainer(p.parameters)
    X, y = World().draw(p.spec.batch)
    seen = []
    for _ in range(6):
        trainer.step(X, y, lr=0.01)
        seen.append({name: value.ctypes.data for name, value in trainer.parameters.items()})
    assert seen[0] == seen[2] == seen[4] and seen[1] == seen[3] == seen[5]
    assert all(seen[0][name] != seen[1][name] for name in seen[0])
    assert trainer.nbytes == p.trainer_bytes(3)
    for name, value in p.parameters.items():
        assert not np.array_equal(trainer.parameters[name], value), name
    np.testing.assert_array_equal(p.parameters["out.weight"], program().parameters["out.weight"])


def test_plasticity_0_freezes_a_row_bit_for_bit():
    p = program()
    trainer = p.trainer(p.parameters)
    X, y = World().draw(p.spec.batch)
    for _ in range(5):
        trainer.step(X, y, lr=0.1, plasticity=np.array([0, 1, 0.5], np.float32))
    for name in ("out.weight", "out.bias"):
        now, then = trainer.parameters[name], p.parameters[name]
        np.testing.assert_array_equal(now[0], then[0])
        assert np.abs(now[1] - then[1]).max() > 1e-4


@pytest.mark.parametrize("n_classes", [0, 3, 20])
@pytest.mark.parametrize("window", [1, 64])
def test_bytes_are_known_before(n_classes, window):
    size = {"n_features": D, "n_classes": n_classes, "window": window, "program": program()}
    head = heads.create("step", **size)
    assert heads.needed_bytes("step", **size) == head.nbytes
    before = head.nbytes
    head.add_class()
    assert head.nbytes - before + 8 == head.bytes_per_class
    assert head.rehearse_bytes > program().trainer(head.parameters).nbytes
    for name in heads.STANDALONE:
        assert heads.create(name, n_features=D, n_classes=3).rehearse_bytes == 0


def test_without_a_program_it_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="export with --head step"):
        heads.create("step", n_features=D)
    with pytest.raises(ValueError, match="export with --head step"):
        heads.needed_bytes("step", n_features=D)
    with pytest.raises(ValueError, match="6 features, asked for is 7"):
        heads.create("step", n_features=7, program=program())
    with pytest.raises(ValueError, match="window is 0"):
        make_head("step", window=0)
    with pytest.raises(ValueError, match=r"frobnicate.*its options: window"):
        make_head("step", frobnicate=1)
    with pytest.raises(ConfigError, match="export with --head step"):
        Knowledge(make_bundle(tmp_path / "b.ecl"), Ledger(32 * MIB), head_name="step")
    assert "step" not in heads.STANDALONE and "step" in heads.HEADS


def test_a_state_of_another_network_is_refused():
    head = make_head("step")
    state = head.state()
    arrays = {**state.arrays, "network.hidden.weight": np.zeros((64, D + 1), np.float32)}
    with pytest.raises(ValueError, match=r"hidden\.weight.*different bundles"):
        heads.from_state(msgspec.structs.replace(state, arrays=arrays), program())
    with pytest.raises(ValueError, match="export with --head step"):
        heads.from_state(state)


def rewritten(bundle, path, *, spec=None, **members):
    """The bundle with another plastic spec or members."""
    manifest = bundle.manifest
    kept = {name: bundle.member(name) for name in manifest.members}
    if spec is not None:
        manifest = msgspec.structs.replace(
            manifest, plastic=msgspec.structs.replace(manifest.plastic, **spec)
        )
    kept |= {f"{name}.onnx": data for name, data in members.items()}
    return write_bundle(path, manifest, kept)


def test_a_bundle_carries_the_program(tmp_path):
    bundle = make_bundle(tmp_path / "b.ecl", "step")
    loaded = StepProgram.load(Bundle.load(tmp_path / "b.ecl"))
    X, _ = World().draw(10)
    for found, expected in zip(
        loaded.predict(loaded.parameters, X), program().predict(program().parameters, X), strict=True
    ):
        np.testing.assert_array_equal(found, expected)
    assert StepProgram.load(make_bundle(tmp_path / "old.ecl")) is None
    head = Knowledge(bundle, Ledger(32 * MIB)).head
    assert isinstance(head, StepHead) and head.trained.all()


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"class_weight": "hidden.weight"}, "class weight 'hidden.weight' is not"),
        ({"feature_shape": (2, 4)}, "the manifest's feature_size is 6"),
        ({"batch": 0}, "0 a batch"),
        ({"hidden_size": 65}, r"class weight 'out\.weight' is not a parameter of shape \(3, 65\)"),
        ({"parameters": ()}, "plastic.npz holds"),
        ({"slots": ("mean", "square")}, "step.onnx has the inputs"),
    ],
)
def test_a_bundle_that_does_not_fit_is_refused(tmp_path, spec, says):
    bundle = make_bundle(tmp_path / "b.ecl", "step")
    with pytest.raises(BundleError, match=says):
        StepProgram.load(rewritten(bundle, tmp_path / "c.ecl", spec=spec))


def test_a_broken_graph_is_refused(tmp_path):
    bundle = make_bundle(tmp_path / "b.ecl", "step")
    onnx = pytest.importorskip("onnx")
    graph = onnx.load_from_string(bundle.member("predict.onnx"))
    renamed = {"logits": "hidden", "hidden": "logits"}
    for value in (*graph.graph.output, *graph.graph.node):
        if hasattr(value, "output"):
            value.output[:] = [renamed.get(name, name) for name in value.output]
            value.input[:] = [renamed.get(name, name) for name in value.input]
        else:
            value.name = renamed.get(value.name, value.name)
    with pytest.raises(BundleError, match="the manifest wants"):
        StepProgram.load(rewritten(bundle, tmp_path / "d.ecl", predict=graph.SerializeToString()))
    with pytest.raises(BundleError, match=r"onnxruntime cannot load step\.onnx"):
        StepProgram.load(rewritten(bundle, tmp_path / "c.ecl", step=b"nonsense"))
