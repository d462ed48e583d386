"""``edge-cl run`` from outside: what goes in, what comes out, what is kept."""

import json
import signal
import subprocess
from pathlib import Path

import pytest

from edge_cl.bundle import Bundle
from edge_cl.config import load_settings, settings_from
from edge_cl.errors import ConfigError, StateError
from edge_cl.heads import STANDALONE
from edge_cl.learner import Learner
from edge_cl.state import describe
from tests.devices import COMMAND, ENVIRONMENT, Device, answers, edge_cl, jsonl, windows
from tests.worlds import NAMES, World, make_bundle

WRIST = "edge_cl/assets/wrist.ecl"


@pytest.fixture
def bundle(tmp_path):
    make_bundle(tmp_path / "b.ecl")
    return tmp_path / "b.ecl"


def test_nothing_is_written_but_the_state(tmp_path):
    # onnxruntime's telemetry would keep a database in the user's cache folder
    home = tmp_path / "home"
    home.mkdir()
    environment = {name: text for name, text in ENVIRONMENT.items() if not name.startswith("XDG_")}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    (tmp_path / "c.toml").write_text('[encoder]\nruntime = "onnx"\n')
    command = [*COMMAND, "run", str(Path(WRIST).resolve()), "--state", "s", "--config", "c.toml"]
    done = subprocess.run(
        command,
        input=b"",
        cwd=tmp_path,
        env=environment | {"HOME": str(home)},
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0 and b"onnx" in done.stderr, done.stderr
    assert list(home.rglob("*")) == []
    assert {path.name for path in tmp_path.iterdir()} == {"home", "s", "c.toml"}


def test_a_service_without_a_sensor_says_what_to_set(tmp_path, bundle):
    command = [*COMMAND, "run", str(bundle), "--state", str(tmp_path / "s")]
    for stdin, said in ((subprocess.DEVNULL, True), (subprocess.PIPE, False)):
        done = subprocess.run(command, stdin=stdin, env=ENVIRONMENT, capture_output=True, timeout=60)
        assert done.returncode == 0 and (b"set [sensor] name" in done.stderr) == said, done.stderr


def test_a_recording_is_answered_learned_and_kept(tmp_path, bundle):
    state, path = tmp_path / "s", tmp_path / "a.jsonl"
    path.write_bytes(jsonl(windows(300, labelled=True)))
    first = edge_cl("run", bundle, "-i", path, "--state", state)
    assert first.returncode == 0 and "a new start" in first.stderr
    decisions, receipts = answers(first.stdout, "decision"), answers(first.stdout, "receipt")
    assert [d["reading_id"] for d in decisions] == [f"r{k}" for k in range(300)]
    assert all(d["label"] in NAMES and 0 <= d["confidence"] <= 1 for d in decisions)
    assert [r["seq"] for r in receipts] == sorted(r["seq"] for r in receipts) and len(receipts) == 300
    assert {r["status"] for r in receipts} == {"learned"} and {r["source"] for r in receipts} == {"recording"}
    assert [r["label"] for r in receipts if r["new_class"]] == ["climb"]
    sleeps = answers(first.stdout, "sleep")
    assert [s["n_sleep"] for s in sleeps] == [1] and sleeps[0]["cause"] == "256 labels since the last sleep"

    path.write_bytes(jsonl(windows(50, start=300)))
    second = edge_cl("run", bundle, "-i", path, "--state", state)
    assert "0 journal entries replayed" in second.stderr and "snapshot at entry 302" in second.stderr
    _, y = World(seed=4).draw(350, 4)
    right = [
        d["label"] == NAMES[c]
        for d, c in zip(answers(second.stdout, "decision"), y[300:], strict=True)
        if NAMES[c] == "climb"
    ]
    assert sum(right) / len(right) > 0.7, "the class learned in the first run is known in the second"
    status = describe(state)
    assert status is not None and status.n_labels == 300


def test_standard_input_and_quiet(tmp_path, bundle):
    lines = [*windows(3), {"label": "run", "reading_id": "r1", "source": "anna"}, {"label": "walk"}]
    loud = edge_cl("run", bundle, "--state", tmp_path / "a", stdin=jsonl(lines))
    quiet = edge_cl("run", bundle, "--state", tmp_path / "b", "-q", stdin=jsonl(lines))
    assert [r["type"] for r in answers(loud.stdout)] == ["decision"] * 3 + ["receipt"] * 2
    receipts = answers(quiet.stdout)
    assert [(r["reading_id"], r["label"], r["source"]) for r in receipts] == [
        ("r1", "run", "anna"),
        ("r2", "walk", "stream"),
    ]


def test_some_labels_late(tmp_path, bundle):
    done = edge_cl(
        "run", bundle, "--state", tmp_path / "s", "--label-every", 3, "--label-delay", 4,
        stdin=jsonl(windows(12, labelled=True)),
    )  # fmt: skip
    receipts = answers(done.stdout, "receipt")
    assert [r["reading_id"] for r in receipts] == ["r0", "r3", "r6", "r9"]
    said = answers(done.stdout)
    decided = [r["reading_id"] for r in said[: said.index(receipts[0])] if r["type"] == "decision"]
    assert decided[:5] == ["r0", "r1", "r2", "r3", "r4"], "r0's label comes four readings after it"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_with_everything_receipted_kept(tmp_path, bundle, number):
    lines = windows(40, labelled=True)
    with Device(bundle, tmp_path / "s") as device:
        device.send(*lines)
        device.wait_for("receipt", reading_id="r39")
        device.send(*windows(20, start=40, labelled=True))
        device.wait_for("decision", reading_id="r50")
        assert device.stop(number) == 0
        receipted = [r["reading_id"] for r in device.of("receipt")]
        assert "Traceback" not in "".join(device.log)
    status = describe(tmp_path / "s")
    assert status is not None and status.n_labels == len(receipted) >= 40
    with Device(bundle, tmp_path / "s") as device:
        device.send({"label": lines[0]["label"], "reading_id": "r0"})
        receipt = device.wait_for("receipt", reading_id="r0")
        assert receipt["status"] == "duplicate", "the label of the first run is remembered"
        assert device.finish() == 0


def test_kill_9_loses_nothing_that_was_receipted(tmp_path, bundle):
    with Device(bundle, tmp_path / "s") as device:
        device.send(*windows(40, labelled=True))
        device.wait_for("receipt", reading_id="r20")
        device.stop(signal.SIGKILL)
        n_receipted = len(device.of("receipt"))
    again = edge_cl("run", bundle, "--state", tmp_path / "s", stdin=b"")
    assert again.returncode == 0
    status = describe(tmp_path / "s")
    assert status is not None and status.n_labels >= n_receipted >= 21


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[sleep]\nidel_s = 3\n", "unknown key sleep.idel_s; did you mean sleep.idle_s?"),
        ("[sleeps]\n", "unknown section [sleeps]; did you mean sleep?"),
        ("[budget]\nram_mb = -1\n", "budget.ram_mb is -1.0; allowed: above 0"),
        ("[budget\n", "not valid TOML"),
        ("[mqtt]\npassword = 'x'\n", "unknown key mqtt.password"),
        ("[budget]\nram_mb = 0.01\n", "raise the budget"),
    ],
)
def test_wrong_settings_are_explained(tmp_path, bundle, text, found):
    config = tmp_path / "device.toml"
    config.write_text(text)
    done = edge_cl("run", bundle, "--state", tmp_path / "s", "--config", config)
    assert done.returncode == 1 and done.stdout == ""
    assert found in done.stderr and done.stderr.startswith("edge-cl: ") and "Traceback" not in done.stderr


def test_settings_are_used(tmp_path, bundle):
    config = tmp_path / "device.toml"
    config.write_text("[sleep]\nafter_labels = 40\nidle_s = 0\n[head]\nname = 'slda'\n")
    done = edge_cl(
        "run", bundle, "--state", tmp_path / "s", "--config", config,
        stdin=jsonl(windows(90, labelled=True)),
    )  # fmt: skip
    assert len(answers(done.stdout, "sleep")) == 2
    status = describe(tmp_path / "s")
    assert status is not None and status.head == "slda"


HEAD_OPTIONS = {
    "dual": {"lift": 20, "window": 8, "anchors": 16, "replay": 0.25, "seed": 3},
    "slda": {"shrinkage": 0.05},
    "kalman": {"obs_noise_var": 0.2, "forgetting": "learned", "drift_to": "prior"},
    "prototype": {"sub_prototypes": 2, "fast_gain": 0.1},
    "logistic": {"prior_var": 1},
    "knn": {"k": 3, "memory_bytes": 4096},
}


def head_of(state, bundle, settings):
    with Learner.from_bundle(Bundle.load(bundle), state_dir=state, settings=settings) as device:
        return device.knowledge.head.state()


@pytest.mark.parametrize("name", list(STANDALONE))
def test_every_head_takes_its_options_from_the_settings(tmp_path, bundle, name):
    options = HEAD_OPTIONS[name]
    (tmp_path / "device.toml").write_text(
        f"[head]\nname = '{name}'\n[head.options]\n"
        + "".join(f"{option} = {json.dumps(value)}\n" for option, value in options.items())
    )
    head = head_of(tmp_path / "s", bundle, load_settings(tmp_path / "device.toml"))
    assert head.head == name and options.items() <= head.options.items()
    for option in options:
        wrong = settings_from({"head": {"name": name, "options": {option: "wide"}}})
        with pytest.raises(ConfigError, match=f"{name}|{option}"):
            head_of(tmp_path / "w", bundle, wrong)


@pytest.mark.parametrize("name", ["dual", "kalman"])
def test_and_from_the_command_line(tmp_path, bundle, name):
    options = HEAD_OPTIONS[name]
    said = ",".join([name, *(f"{option}={value}" for option, value in options.items())])
    done = edge_cl(
        "run", bundle, "--state", tmp_path / "s", "--head", said, stdin=jsonl(windows(1, labelled=True))
    )
    assert done.returncode == 0, done.stderr
    head = head_of(tmp_path / "s", bundle, settings_from({"head": {"name": name}}))
    assert options.items() <= head.options.items(), "the snapshot has the head that ran"
    option, value = next(iter(options.items()))
    other = settings_from({"head": {"name": name, "options": {option: 2 * value}}})
    with pytest.raises(
        StateError, match=f"learned with {name}'s {option} = {value}, asked for is {2 * value}"
    ):
        head_of(tmp_path / "s", bundle, other)


def test_options_without_a_name_add_to_those_of_the_bundle(tmp_path, bundle):
    given = Bundle.load(bundle).manifest.head
    settings = settings_from({"head": {"options": {"window": 5}}})
    head = head_of(tmp_path / "s", bundle, settings)
    assert head.head == given.name == "dual"
    assert {**given.options, "window": 5}.items() <= head.options.items()


BAD_LINES = [
    ('{"t": 7.5, "window": [[1, 2', "not a usable JSON line"),
    ('{"t": 7.5, "window": [[1, 2, 3]]}', "window has shape (1, 3), need (1, 6)"),
    ('{"t": 7.5, "x": [1, 2, 3]}', "x has shape (1, 3), need (1, 6)"),
    ('{"t": 7.5, "window": [[1, 2, 3, 4, 5, NaN]]}', "not a usable JSON line"),
    ('{"t": 7.5, "window": [[1, 2, 3, 4, 5, 1e300]]}', "not finite"),
    ('{"t": 7.5, "x": [1, 2, 3, 4, 5, -1e300]}', "not finite"),
    ('{"t": 7.5, "window": [[1, 2, 3, 4, 5, 1e30]]}', "feature is not finite, or beyond"),
]


def test_bad_lines_are_skipped_counted_and_named_and_the_device_goes_on(tmp_path, bundle):
    good = windows(20, labelled=True)
    lines = [*good[:10], *(line for line, _ in BAD_LINES), *good[10:]]
    done = edge_cl("run", bundle, "--state", tmp_path / "s", stdin=jsonl(lines))
    clean = edge_cl("run", bundle, "--state", tmp_path / "c", stdin=jsonl(good))
    assert done.returncode == 0 and "Traceback" not in done.stderr
    for kind in ("decision", "receipt"):
        assert answers(done.stdout, kind) == answers(clean.stdout, kind), "no answer changed, no label lost"
    for number, (_, found) in enumerate(BAD_LINES, start=11):
        assert found in done.stderr, f"line {number}"
    assert "line 11: " in done.stderr and "skipped" in done.stderr
    assert describe(tmp_path / "s").n_bad_readings == len(BAD_LINES)


def test_a_clock_that_goes_back_is_said_and_the_device_goes_on(tmp_path, bundle):
    samples = [{"t": t, "x": [0.0] * 6} for t in (100.0, 101.0, 100.5, 102.0, 5.0, 6.0, 7.0)]
    done = edge_cl("run", bundle, "--state", tmp_path / "s", stdin=jsonl([*samples, *windows(1)]))
    assert done.returncode == 0
    assert [d["t_s"] for d in answers(done.stdout, "decision")] == [100, 101, 102, 5, 6, 7, 0]
    assert "clock" in done.stderr


def test_labels_nobody_can_place_are_answered(tmp_path, bundle):
    lines = [{"label": "walk"}, *windows(1), {"label": "walk", "reading_id": "never"}, {"label": "run"}]
    done = edge_cl("run", bundle, "--state", tmp_path / "s", stdin=jsonl(lines))
    receipts = answers(done.stdout, "receipt")
    assert [r["status"] for r in receipts] == ["unknown-reading", "unknown-reading", "learned"]
    assert "label after the first one" in receipts[0]["message"]
    assert "'never'" in receipts[1]["message"] and "label newer readings" in receipts[1]["message"]


def test_state_of_another_bundle_is_refused_and_untouched(tmp_path, bundle):
    make_bundle(tmp_path / "other.ecl", "slda")
    state = tmp_path / "s"
    edge_cl("run", bundle, "--state", state, stdin=jsonl(windows(5, labelled=True)))
    done = edge_cl("run", tmp_path / "other.ecl", "--state", state, stdin=jsonl(windows(1)))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "learned with bundle" in done.stderr and "choose another --state folder" in done.stderr
    assert describe(state).n_labels == 5


def test_two_devices_never_share_a_state(tmp_path, bundle):
    with Device(bundle, tmp_path / "s") as device:
        device.send(*windows(1))
        device.wait_for("decision")
        done = edge_cl("run", bundle, "--state", tmp_path / "s")
        assert done.returncode == 1
        assert f"in use by process {device.process.pid}; stop it first" in done.stderr
        device.send(*windows(1, start=1))
        device.wait_for("decision", reading_id="r1")


def test_what_is_not_there_is_named(tmp_path, bundle):
    no_bundle = edge_cl("run", tmp_path / "no.ecl")
    assert no_bundle.returncode == 1 and "no.ecl: no such file; make one with" in no_bundle.stderr
    no_input = edge_cl("run", bundle, "--state", tmp_path / "s", "-i", tmp_path / "no.jsonl")
    assert no_input.returncode == 1 and "no.jsonl: cannot read the recording" in no_input.stderr
    no_head = edge_cl("run", bundle, "--state", tmp_path / "s", "--head", "tail")
    assert no_head.returncode == 1 and "tail" in no_head.stderr and "slda" in no_head.stderr
    for head, found in (("slda,shrink=1", "its options: shrinkage"), ("slda,shrinkage", "NAME,OPTION=VALUE")):
        done = edge_cl("run", bundle, "--state", tmp_path / "s", "--head", head)
        assert done.returncode == 1 and found in done.stderr and "Traceback" not in done.stderr


def test_a_reader_that_goes_away_ends_it_quietly(tmp_path, bundle):
    command = [*COMMAND, "run", str(bundle), "--state", str(tmp_path / "s")]
    device = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT
    )
    device.stdin.write(jsonl(windows(1, labelled=True)))
    device.stdin.flush()
    while b'"receipt"' not in device.stdout.readline():
        pass
    device.stdout.close()
    device.stdin.write(jsonl(windows(5, start=1)))
    device.stdin.flush()
    assert device.wait(timeout=20) == 1
    assert b"Traceback" not in device.stderr.read()
    device.stdin.close()
    device.stderr.close()
    with pytest.raises(StateError, match="journal entries that are safe: 1"):
        describe(tmp_path / "s")
