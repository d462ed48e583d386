"""`edge-cl estimate`: board files, arithmetic, and figures that a real device confirms."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from edge_cl_device import estimate_command as estimate_command_module
from edge_cl_device import measurements
from edge_cl_device.board_files import (
    REFERENCE,
    TIMES,
    Figure,
    board_names,
    load_board,
    save_board,
)
from edge_cl_device.estimate import Estimate, estimate
from edge_cl_device.estimate_command import board_of, estimate_bundle, estimate_command
from edge_cl_device.measurements import Measured, measure_packaged, packaged_bundle
from edge_cl_device.measuring import measure_here

from bench.resident import resident
from edge_cl.bundle import Bundle
from edge_cl.config import Settings, settings_from
from edge_cl.errors import BudgetExceeded, ConfigError
from edge_cl.learner import Learner

BOARDS = ["jetson-orin-nano", "pi-zero-2w", "pi3", "pi4", "pi5"]


@pytest.fixture(scope="module")
def here() -> Measured:
    return measure_packaged()


def estimated(here: Measured, board: str = "pi4", **settings: dict[str, object]) -> Estimate:
    manifest = Bundle.load(packaged_bundle()).manifest
    return estimate(manifest, settings_from(settings), load_board(board), load_board(REFERENCE), here, here)


def test_every_board_says_where_its_figures_are_from() -> None:
    assert set(board_names()) == {*BOARDS, REFERENCE}
    for name in board_names():
        board = load_board(name)
        assert board.hardware.source
        assert all(figure.source for figure in board.figures.values())


def test_what_nobody_measured_is_called_scaled_and_has_a_spread(here: Measured) -> None:
    for name in BOARDS:
        found = estimated(here, name)
        for time in (found.encode, found.predict, found.learn, found.sleep):
            assert time is not None and time.kind == "scaled"
            assert time.least_ms < time.ms < time.most_ms and "x86-64 reference" in time.source


def test_slower_boards_take_longer(here: Measured) -> None:
    took = {name: estimated(here, name).encode for name in BOARDS}
    order = sorted(BOARDS, key=lambda name: took[name].ms if took[name] else 0.0)
    assert order == ["pi5", "jetson-orin-nano", "pi4", "pi3", "pi-zero-2w"]


def test_a_measured_file_goes_before_the_scale(here: Measured, tmp_path: Path) -> None:
    board = load_board("pi4")
    mine = Figure(value=7.5, kind="measured", source="my own Pi")
    path = tmp_path / "my.toml"
    save_board(path, msgspec.structs.replace(board, figures=board.figures | {"predict_ms": mine}))
    manifest = Bundle.load(packaged_bundle()).manifest
    found = estimate(manifest, Settings(), load_board(path), load_board(REFERENCE), here, here)
    assert found.predict is not None
    assert (found.predict.ms, found.predict.most_ms, found.predict.kind) == (7.5, 7.5, "measured")
    assert found.learn is not None and found.learn.kind == "scaled"


def test_a_bundle_that_takes_twice_here_takes_twice_there(here: Measured) -> None:
    manifest = Bundle.load(packaged_bundle()).manifest
    assert here.encode_ms is not None
    slow = msgspec.structs.replace(here, encode_ms=2 * here.encode_ms)
    one, two = (
        estimate(manifest, Settings(), load_board("pi4"), load_board(REFERENCE), measured, here)
        for measured in (here, slow)
    )
    assert one.encode and two.encode
    assert two.encode.ms == pytest.approx(2 * one.encode.ms, rel=0.01)


def test_room_is_what_a_real_learner_has(here: Measured) -> None:
    bundle = Bundle.load(packaged_bundle())
    with Learner.from_bundle(bundle) as learner:
        held = learner.ledger.held()
        memory = learner.knowledge.memory
        n_exemplars = memory.rehearsed.capacity + memory.held_back.capacity
    assert here.ledger == held
    assert here.n_exemplars == n_exemplars
    assert sum(here.ledger.values()) <= Settings().to_budget().ram_bytes


def test_as_many_classes_fit_as_a_real_learner_takes() -> None:
    """Under a small budget: every label brings a class, until one is refused."""
    bundle = Bundle.load(packaged_bundle())
    settings = settings_from({"head": {"name": "slda"}, "budget": {"ram_mb": 1.5}})
    said = measure_here(bundle, settings).most_classes
    with Learner.from_bundle(bundle, settings=settings) as learner:
        knowledge = learner.knowledge
        feature = bundle.prior().exemplars[0].astype("float32")  # type: ignore[union-attr]
        with pytest.raises(BudgetExceeded):
            for k in range(1000):
                knowledge.learn(feature + k, f"class {k}")
        assert len(knowledge.class_names) == said > 6


@pytest.mark.slow
def test_memory_is_what_a_device_holds_that_has_learned_and_slept(here: Measured, tmp_path: Path) -> None:
    """The most that it ever held, sleeps included."""
    found = resident(str(packaged_bundle()), tmp_path / "state", n_windows=1500, seed=0, label_every=2)
    said_mb = estimated(here).memory_mb
    assert found["sleeps"] > 0
    assert found["resident_peak_mb"] == pytest.approx(said_mb, rel=0.06)


def test_what_does_not_fit_is_said(here: Measured) -> None:
    assert estimated(here).verdicts == []
    (said,) = estimated(here, "pi-zero-2w", budget={"ram_mb": 400.0}).verdicts
    assert "budget.ram_mb" in said
    (said,) = estimated(here, budget={"disk_mb": 2.0}).verdicts
    assert "budget.disk_mb" in said
    (said,) = estimated(here, sleep={"cpu_s": 0.01}).verdicts
    assert "sleep.cpu_s" in said


def test_the_command(here: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate_command_module, "measure_packaged", lambda: here)
    run = CliRunner().invoke
    bundle = str(packaged_bundle())
    done = run(estimate_command, [bundle, "--board", "pi-zero-2w"])
    assert done.exit_code == 0, done.output
    assert "nobody has measured such a board" in done.output and "--measure my.toml" in done.output
    said = json.loads(run(estimate_command, [bundle, "--board", "pi5", "--json"]).output)
    assert said["board"] == "Raspberry Pi 5" and said["verdicts"] == [] and said["encode"]["kind"] == "scaled"
    unknown = run(estimate_command, [bundle, "--board", "pi6"])
    assert isinstance(unknown.exception, ConfigError) and "pi-zero-2w" in str(unknown.exception)
    assert run(estimate_command, [bundle]).exit_code == 2
    assert run(estimate_command, [bundle, "--measure", "my.toml"]).exit_code == 2


def test_two_runtimes_are_not_compared(
    here: Measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The packaged bundle in onnxruntime takes what the file says of that, though LiteRT is faster here."""
    assert here.runtime == "litert" and here.encode_ms is not None
    in_onnx = msgspec.structs.replace(here, runtime="onnx", encode_ms=2.4 * here.encode_ms)
    asked: list[str] = []

    def measured(bundle: Path, config: Path | None = None) -> Measured:
        asked.append(config.read_text() if config else "")
        return in_onnx

    monkeypatch.setattr(estimate_command_module, "measure_packaged", lambda: here)
    monkeypatch.setattr(estimate_command_module, "measure", measured)
    monkeypatch.setattr(measurements, "measure", measured)
    config = tmp_path / "config.toml"
    config.write_text('[encoder]\nruntime = "onnx"\n[budget]\nram_mb = 12\n')
    found = estimate_bundle(packaged_bundle(), load_board(REFERENCE), config)
    assert len(asked) == 2 and 'runtime = "onnx"' in asked[1] and "budget" not in asked[1]
    figure = load_board(REFERENCE).figures["onnx_encode_ms"].value
    assert found.encode is not None and found.encode.ms == pytest.approx(figure, rel=0.01)


def test_a_board_that_was_measured_knows_every_runtime_that_is_there(
    here: Measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate_command_module, "measure_packaged", lambda: here)
    mine = tmp_path / "mine.toml"
    assert CliRunner().invoke(estimate_command, ["--measure", str(mine)]).exit_code == 0
    figures = load_board(mine).figures
    assert {"litert_encode_ms", "onnx_encode_ms", "litert_mb", "onnx_mb"} <= set(figures)
    assert figures["onnx_encode_ms"].value != figures["litert_encode_ms"].value


@pytest.mark.slow
def test_a_machine_measures_itself_and_is_estimated_by_that(tmp_path: Path) -> None:
    """And a device of other settings is measured on its own."""
    mine, config = tmp_path / "mine.toml", tmp_path / "config.toml"
    assert CliRunner().invoke(estimate_command, ["--measure", str(mine)]).exit_code == 0
    config.write_text('[head]\nname = "slda"\n[budget]\nram_mb = 4\n')
    options = [str(packaged_bundle()), "--board", str(mine), "--config", str(config), "--json"]
    said = json.loads(CliRunner().invoke(estimate_command, options).output)
    assert (said["head"], said["encode"]["kind"], said["scaled_by"]) == ("slda", "measured", None)
    assert said["memory"]["budget of what is learned"] == 4.0


def test_measuring_writes_a_file_that_reads_back(here: Measured, tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    board = board_of(here, name='a "quoted" board \\ é')
    save_board(path, board)
    again = load_board(path)
    assert again == board and again.figures["predict_ms"].kind == "measured"
    own = {name for name in TIMES if name in again.figures}
    assert own == {f"{here.runtime}_encode_ms", "predict_ms", "learn_ms", "sleep_s"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format_version": 2}, "format_version"),
        ({"colour": "red"}, "colour"),
        ({"figures": {"speed": {"value": 1.0, "kind": "measured", "source": "x"}}}, "unknown figure 'speed'"),
        ({"figures": {"learn_ms": {"value": -1.0, "kind": "measured", "source": "x"}}}, "above 0"),
        ({"figures": {"learn_ms": {"value": 1.0, "kind": "guessed", "source": "x"}}}, "kind"),
    ],
)
def test_a_wrong_board_file_is_refused(change: dict[str, object], said: str, tmp_path: Path) -> None:
    raw = msgspec.to_builtins(load_board("pi4")) | change
    path = tmp_path / "wrong.toml"
    path.write_text(_toml(raw))
    with pytest.raises(ConfigError, match=said):
        load_board(path)


def _toml(raw: dict[str, object]) -> str:
    """Inline tables: JSON objects with = for the colon."""

    def text(value: object) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{k} = {text(v)}" for k, v in value.items()) + "}"
        return json.dumps(value)

    return "\n".join(f"{key} = {text(value)}" for key, value in raw.items())
