"""`edge-cl bench streams` on small synthetic streams."""

import json
import subprocess
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from click.testing import CliRunner

from edge_cl import heads
from edge_cl.cli import cli
from edge_cl.errors import ConfigError, DataError
from edge_cl.simulate import bars, peers
from edge_cl.simulate.streams import find_streams, run_stream
from tests.devices import ENVIRONMENT

MEASURES = {"now0", "now50", "ever", "ever_sorted", "us_per_step", "nbytes"}
PEERS = {"river-arf", "river-knn", "river-knn-z", "river-softmax", "river-bayes", "sklearn-sgd"}


def write_stream(path, *, n=200, n_classes=3, seed=0, **more):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % n_classes
    X = 4 * np.eye(n_classes, 6)[y] + rng.standard_normal((n, 6))
    np.savez(path, X=X.astype(np.float32), y=y, **more)


def bench(*arguments):
    return CliRunner().invoke(cli, ["bench", "streams", *map(str, arguments)], catch_exceptions=False)


@pytest.fixture
def folder(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    write_stream(data / "easy.npz")
    np.savez(data / "other.npz", audio=np.zeros(5))
    np.savez(data / "cube.npz", X=np.zeros((4, 2, 2)), y=np.zeros(4))
    return data


def test_every_head_is_printed_and_written(folder, tmp_path):
    done = bench("--data", folder, "--json", tmp_path / "f.json", "--picture", tmp_path / "f.svg")
    assert done.exit_code == 0
    assert [line.split()[0] for line in done.output.splitlines()] == ["easy", *heads.HEADS]
    figures = json.loads((tmp_path / "f.json").read_text())
    assert set(figures) == {"versions", "rows", "streams"}
    assert set(figures["streams"]) == {"easy"}, "files without X (n, D) and y are skipped"
    easy = figures["streams"]["easy"]
    assert set(easy) == {"no_change", "heads", "peers"} and easy["peers"] == {}
    assert set(easy["heads"]) == set(heads.HEADS)
    for result in easy["heads"].values():
        assert set(result) == MEASURES
        assert result["ever"] > 0.8 and result["us_per_step"] > 0 and result["nbytes"] > 0
    text = (tmp_path / "f.svg").read_text()
    assert ET.fromstring(text).tag.endswith("svg")
    assert "<image" not in text and 'xlink:href="http' not in text, "self-contained"
    for shown in ("easy", *heads.HEADS, *bars.MEASURES.values()):
        assert f">{shown}</text>" in text


def test_only_the_heads_asked_for_and_the_first_rows(folder):
    done = bench("--data", folder, "--head", "slda", "--rows", 60)
    lines = done.output.splitlines()
    assert "easy  60 × 6" in lines[0] and [line.split()[0] for line in lines[1:]] == ["slda"]


def test_a_folder_with_nothing_to_measure_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"no \.npz files"):
        bench("--data", tmp_path)
    np.savez(tmp_path / "other.npz", audio=np.zeros(5))
    with pytest.raises(DataError, match=r"none of its 1 \.npz files holds X"):
        bench("--data", tmp_path)


def test_whole_frames_are_held_out(tmp_path):
    write_stream(tmp_path / "cycle.npz", n_classes=5, frame=5)
    write_stream(tmp_path / "rows.npz", n_classes=5)
    cycle, rows = find_streams(tmp_path)
    frames = cycle.held_out.reshape(-1, 5)
    assert (frames.all(axis=1) | ~frames.any(axis=1)).all()
    assert frames[:, 0].mean() == pytest.approx(0.2)
    assert set(cycle.y[cycle.held_out]) == set(range(5))
    assert set(rows.y[rows.held_out]) == {4}, "what `frame` is for: by rows one class would go unlearned"


def test_peers_are_measured_beside_the_heads(folder, tmp_path):
    pytest.importorskip("river", reason="the extra `bench` is not installed")
    done = bench(
        "--data",
        folder,
        "--head",
        "slda",
        "--peers",
        "--json",
        tmp_path / "f.json",
        "--picture",
        tmp_path / "f.svg",
    )
    assert {line.split()[0] for line in done.output.splitlines()} == {"easy", "slda"} | PEERS
    figures = json.loads((tmp_path / "f.json").read_text())
    assert {"river", "scikit-learn"} <= set(figures["versions"])
    found = figures["streams"]["easy"]["peers"]
    assert set(found) == PEERS
    for name, result in found.items():
        assert set(result) == MEASURES
        assert result["now0"] > 0.5 and result["ever"] > 0.6 and result["nbytes"] > 0, name
    text = (tmp_path / "f.svg").read_text()
    assert all(f">{name}</text>" in text for name in PEERS)


def test_a_peer_gets_the_same_figures_twice(folder):
    pytest.importorskip("river", reason="the extra `bench` is not installed")
    (stream,) = find_streams(folder)
    for maker in peers.peers().values():
        one, two = (run_stream(stream, maker) for _ in range(2))
        assert (one.now0, one.now50, one.ever, one.ever_sorted) == (
            two.now0,
            two.now50,
            two.ever,
            two.ever_sorted,
        )


def test_a_peer_that_knows_nothing_answers_nothing():
    pytest.importorskip("river", reason="the extra `bench` is not installed")
    for name, maker in peers.peers().items():
        peer = maker(4, 3)
        before = peer.predict_one(np.ones(4, dtype=np.float32))
        peer.learn_one(np.ones(4, dtype=np.float32), 2)
        after = peer.predict_many(np.ones((2, 4), dtype=np.float32))
        assert before.shape == (3,) and not before.any(), name
        assert after.shape == (2, 3) and after.sum() == 2, name


@pytest.mark.parametrize("missing", ["river.forest", "sklearn.linear_model"])
def test_missing_peers_are_named_before_anything_is_measured(folder, monkeypatch, missing):
    if missing.startswith("sklearn"):
        pytest.importorskip("river", reason="the extra `bench` is not installed")
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ConfigError, match=r"pip install 'edge-cl\[bench\]'"):
        bench("--data", folder, "--peers")


def test_a_missing_matplotlib_is_named_before_anything_is_measured(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r"pip install 'edge-cl\[simulate\]'"):
        bench("--data", folder, "--picture", tmp_path / "f.svg")


def test_without_peers_and_picture_nothing_of_them_is_loaded(folder):
    code = (
        "import sys; from edge_cl.cli import cli\n"
        f"command = ['bench', 'streams', '--data', {str(folder)!r}, '--head', 'slda']\n"
        "cli.main(command, standalone_mode=False)\n"
        "print(*(m for m in ('river', 'sklearn', 'scipy', 'matplotlib') if m in sys.modules), sep='')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=ENVIRONMENT, check=True)
    assert done.stdout.decode().splitlines()[-1] == ""
