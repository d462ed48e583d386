"""``edge-cl run`` as a board has it: a sensor on a serial line, labels over HTTP, a restart."""

import http.client
import json

import pytest

from edge_cl.state import describe
from tests import devices
from tests.device.pty import Cable
from tests.device.registered import install
from tests.devices import Device, jsonl, windows
from tests.mosquitto import free_port, wait_until
from tests.worlds import make_bundle


@pytest.fixture
def cable(tmp_path):
    cable = Cable(tmp_path)
    yield cable
    cable.pull()


@pytest.fixture
def port(tmp_path, monkeypatch, cable):
    """The settings are in config.toml; where labels are taken."""
    monkeypatch.setitem(devices.ENVIRONMENT, "PYTHONPATH", install(tmp_path))
    make_bundle(tmp_path / "b.ecl")
    port = free_port()
    (tmp_path / "config.toml").write_text(
        f'[mqtt]\nstatus_s = 0.1\n[sensor]\nname = "serial"\noptions = {{ port = "{cable.port}" }}\n'
        f'[[labels]]\nname = "http"\noptions = {{ port = {port} }}\n'
    )
    return port


def ask(port, method, path, body=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request(method, path, body and json.dumps(body), {"Content-Type": "application/json"})
    answer = json.loads(connection.getresponse().read())
    connection.close()
    return answer


def status_of(port):
    return ask(port, "GET", "/status")["status"] or {"alarm": "none yet"}


def alarm(port):
    return status_of(port)["alarm"]


def test_a_board_from_its_settings(tmp_path, cable, port):
    options = ("--config", tmp_path / "config.toml")
    lines = windows(40)
    with Device(tmp_path / "b.ecl", tmp_path / "s", *options) as device:
        wait_until(lambda: "serial is there" in "".join(device.log), "it listens")
        cable.send(b"rest of a line\n" + jsonl(lines[:20]))
        device.wait_for("decision", reading_id="r19")
        receipt = ask(port, "POST", "/label", {"label": "climb", "reading_id": "r7", "source": "anna"})
        assert (receipt["status"], receipt["source"], receipt["new_class"]) == ("learned", "http/anna", True)
        assert ask(port, "POST", "/label", {"label": "climb", "reading_id": "r7"})["status"] == "duplicate"
        assert (
            ask(port, "POST", "/label", {"label": "run", "reading_id": "nobody"})["status"]
            == "unknown-reading"
        )
        wait_until(lambda: alarm(port) == "", "all is well")
        cable.pull()
        wait_until(lambda: alarm(port).startswith("serial is not there: "), "the alarm says so")
        cable.plug()
        wait_until(lambda: alarm(port) == "", "it is back", 30)
        cable.send(b"rest of a line\n" + jsonl(lines[20:30]) + b"\xfe noise\n")
        device.wait_for("decision", reading_id="r29")
        wait_until(
            lambda: ask(port, "GET", "/status")["status"]["n_bad_readings"] == 1, "the noise is counted"
        )
        assert device.stop() == 0
        assert "Traceback" not in "".join(device.log)
    status = describe(tmp_path / "s")
    assert status is not None and status.n_labels == 1
    with Device(tmp_path / "b.ecl", tmp_path / "s", *options) as device:
        wait_until(lambda: listens(port), "it listens again")
        receipt = ask(port, "POST", "/label", {"label": "climb", "reading_id": "r7"})
        assert receipt["status"] == "duplicate", "what was learned is remembered"
        assert device.stop() == 0


def listens(port):
    try:
        return ask(port, "GET", "/status")
    except OSError:
        return False


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            '[sensor]\nname = "mpu6050"\noptions = { buss = 1 }',
            "sensor mpu6050: unknown option buss; did you mean bus?",
        ),
        ('[[labels]]\nname = "http"\noptions = { host = "0.0.0.0" }', "allowed without a token: 127.0.0.1"),
    ],
)
def test_wrong_settings_end_it_with_a_word(tmp_path, port, text, said):
    (tmp_path / "config.toml").write_text(text)
    with Device(tmp_path / "b.ecl", tmp_path / "s", "--config", tmp_path / "config.toml") as device:
        assert device.process.wait(20) not in (0, None)
        wait_until(lambda: said in "".join(device.log), f"it says {said}; it said {device.log}")
        assert "Traceback" not in "".join(device.log)


def test_the_command_line_goes_before_the_settings(tmp_path, port):
    with Device(
        tmp_path / "b.ecl", tmp_path / "s", "--config", tmp_path / "config.toml", "-i", "-"
    ) as device:
        device.send(*windows(3))
        device.wait_for("decision", reading_id="r2")
        assert device.finish() == 0
