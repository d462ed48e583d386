"""`edge-cl bench streams` on small synthetic streams."""

import json
import subprocess
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from click.testing import CliRunner

from edge_cl.cli import cli
from edge_cl.errors import ConfigError, DataError
from edge_cl.simulate import bars, peers
from edge_cl.simulate.trials import HEADS
from tests.datasets.test_streams import write_recordings, write_tiny_bundle
from tests.devices import ENVIRONMENT

MEASURES = {"now0", "now50", "ever", "ever_sorted", "us_per_step", "nbytes"}
PEERS = list(peers.PEERS)


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
    assert [line.split()[0] for line in done.output.splitlines()] == ["easy", *HEADS]
    figures = json.loads((tmp_path / "f.json").read_text())
    assert figures["rows"] == 25_000 and figures["seeds"] == 1 and "summary" not in figures
    assert set(figures["streams"]) == {"easy"}, "files without X (n, D) and y are skipped"
    easy = figures["streams"]["easy"]
    assert set(easy) == {"no_change", "heads", "peers"} and easy["peers"] == {}
    assert set(easy["heads"]) == set(HEADS)
    for result in easy["heads"].values():
        assert set(result) == MEASURES | {"range", "seeds"}
        assert result["ever"] > 0.8 and result["us_per_step"] > 0 and result["nbytes"] > 0
    text = (tmp_path / "f.svg").read_text()
    assert ET.fromstring(text).tag.endswith("svg")
    assert "<image" not in text and 'xlink:href="http' not in text, "self-contained"
    for shown in ("easy", *HEADS, *bars.MEASURES.values()):
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


def figures_of(tmp_path, *arguments):
    done = bench(*arguments, "--json", tmp_path / "f.json")
    return done.output, json.loads((tmp_path / "f.json").read_text())


def test_peers_are_measured_beside_the_heads_and_judged(folder, tmp_path):
    pytest.importorskip("river", reason="the extra `bench` is not installed")
    picture = tmp_path / "f.svg"
    output, figures = figures_of(
        tmp_path, "--data", folder, "--head", "dual", "--peers", "--picture", picture, "--rows", 150
    )
    lines = [line.split()[0] for line in output.splitlines()]
    assert lines == ["easy", "dual", *PEERS, *4 * ["best"], "mean", "dual", *PEERS, "dual"]
    assert {"river", "scikit-learn"} <= set(figures["versions"])
    found = figures["streams"]["easy"]
    assert list(found["peers"]) == PEERS
    for name, result in found["peers"].items():
        assert set(result) == MEASURES | {"range", "seeds"}
        assert result["now0"] > 0.5 and result["ever"] > 0.6 and result["nbytes"] > 0, name
    for measure, judged in found["verdict"].items():
        best = max(result[measure] for result in found["peers"].values())
        assert judged["peer"] == best == found["peers"][judged["best_peer"]][measure]
        assert judged["at_or_above"] == (found["heads"]["dual"][measure] >= best)
    won = sum(judged["at_or_above"] for judged in found["verdict"].values())
    assert figures["summary"]["cells"] == 4 and figures["summary"]["at_or_above"] == won
    assert output.splitlines()[-1] == f"dual is at or above the best peer in {won} of 4 cells"
    text = picture.read_text()
    assert all(f">{name}</text>" in text for name in PEERS)


def test_no_two_learners_are_drawn_in_one_colour():
    same = dict.fromkeys(bars.MEASURES, 0.5)
    found = {"no_change": 0.5, "heads": dict.fromkeys(HEADS, same), "peers": dict.fromkeys(PEERS, same)}
    legend = ET.fromstring(bars.bar_picture({"a": found})).findall(".//*[@id='legend_1']/*/*[@style]")
    fills = [shape.get("style") for shape in legend if "fill: #" in shape.get("style")]
    assert len(set(fills)) == len(fills) == len(HEADS) + len(PEERS)


def test_peers_alone_and_only_those_asked_for(folder, tmp_path):
    pytest.importorskip("river", reason="the extra `bench` is not installed")
    output, figures = figures_of(tmp_path, "--data", folder, "--no-heads", "--peer", "deep-slda")
    found = figures["streams"]["easy"]
    assert found["heads"] == {} and set(found["peers"]) == {"deep-slda"}
    assert set(found["verdict"]["ever"]) == {"best_peer", "peer"}
    assert figures["summary"]["cells"] == 0 and "at or above" not in output


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--no-heads"], "leaves nothing to measure"),
        (["--no-heads", "--head", "slda", "--peers"], "contradict"),
        (["--json", "nowhere/f.json"], "there is no folder nowhere"),
        (["--picture", "nowhere/f.svg"], "there is no folder nowhere"),
    ],
)
def test_options_that_cannot_be_met_say_so_first(folder, options, says):
    with pytest.raises(ConfigError, match=says):
        bench("--data", folder, *options)


def test_only_the_stream_asked_for(folder):
    write_stream(folder / "second.npz")
    done = bench("--data", folder, "--head", "slda", "--stream", "second")
    assert [line.split()[0] for line in done.output.splitlines()] == ["second", "slda"]


def test_figures_are_written_after_every_stream(folder, tmp_path, monkeypatch):
    write_stream(folder / "second.npz")
    floors = [0.5]
    monkeypatch.setattr("edge_cl.cli.bench.no_change", lambda _: floors.pop())  # fails at the second
    with pytest.raises(IndexError):
        bench("--data", folder, "--head", "slda", "--json", tmp_path / "f.json")
    assert set(json.loads((tmp_path / "f.json").read_text())["streams"]) == {"easy"}


def test_a_bundle_adds_its_features(folder, tmp_path):
    write_recordings(folder)
    bundle = write_tiny_bundle(tmp_path / "a.ecl")
    done = bench("--data", folder, "--bundle", bundle, "--head", "slda")
    lines = done.output.splitlines()
    assert [line.split()[0] for line in lines] == ["easy", "slda", "myo_emg_features", "slda"]
    assert "60 × 4, repeating the last label" in lines[2]


def test_heads_with_a_seed_are_measured_with_each_and_their_mean_is_shown(folder, tmp_path):
    output, figures = figures_of(
        tmp_path, "--data", folder, "--head", "dual", "--head", "slda", "--seeds", 3, "--rows", 60
    )
    dual, slda = (figures["streams"]["easy"]["heads"][name] for name in ("dual", "slda"))
    assert len(dual["seeds"]) == 3 and len(slda["seeds"]) == 1
    now = [result["now0"] for result in dual["seeds"]]
    assert dual["now0"] == pytest.approx(np.mean(now)) and dual["range"]["now0"] == [min(now), max(now)]
    assert slda["range"]["ever"] == [slda["ever"], slda["ever"]]
    assert f"now50 {'█' * round(8 * dual['now50'])}" in output and f"{dual['now50']:6.1%}" in output


def test_wrong_and_missing_labels_reach_the_learners(folder, tmp_path):
    def now0(*options):
        _, figures = figures_of(tmp_path, "--data", folder, "--head", "prototype", *options)
        return figures["streams"]["easy"]["heads"]["prototype"]["now0"]

    assert now0("--label-noise", 1) < 0.2 < now0("--label-every", 4) < now0()


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


def test_options_reach_the_heads_that_have_them(folder, tmp_path):
    sizes = []
    for options in ([], ["--option", "lift=64", "--option", "memory_bytes=0"]):
        done = bench(
            "--data", folder, "--head", "dual-lean", "--head", "slda", "--json", tmp_path / "f.json", *options
        )
        assert done.exit_code == 0
        measured = json.loads((tmp_path / "f.json").read_text())["streams"]["easy"]["heads"]
        sizes.append({name: result["nbytes"] for name, result in measured.items()})
    assert sizes[0]["slda"] == sizes[1]["slda"] and sizes[0]["dual-lean"] > 4 * sizes[1]["dual-lean"]
    with pytest.raises(ConfigError, match="no head has an option 'liff'"):
        bench("--data", folder, "--option", "liff=64")
