"""``edge-cl fleet …`` and the page, as a person and a scraper use them."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from edge_cl_fleet.arrivals import read
from edge_cl_fleet.command import fleet
from edge_cl_fleet.connection import Login
from edge_cl_fleet.disagreement import find_outliers
from edge_cl_fleet.figures import FleetFigures
from edge_cl_fleet.page import PageServer, create_app, render, sparkline
from edge_cl_fleet.store import FleetStore
from edge_cl_fleet.worker import Worker

from edge_cl.errors import ConfigError, FleetError
from edge_cl.records import Summary
from tests.fleet.devices import Board, Radio, status
from tests.mosquitto import Broker, free_port, wait_until


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A store that has heard of three devices."""
    import time

    url = f"sqlite:///{tmp_path}/fleet.db"
    store, now_s = FleetStore(url), time.time()
    arrivals = []
    for n in range(4):
        board = Board(f"dev{n}", boot_id=f"boot{n}")
        label = "run" if n == 3 else "sit"
        summary = Summary(
            from_s=0, to_s=60, n=100, n_abstained=0, confidence=0.9, n_by_label={label: 90, "walk": 10}
        )
        alarm = "<script>alarm</script>\x1b[31m" if n == 1 else ""
        arrivals += [board.says("health", status(accuracy_now=0.5 + k / 10), at_s=now_s) for k in range(4)]
        arrivals += [board.says("summary", summary, at_s=now_s), board.says("receipt", at_s=now_s)]
        arrivals += [board.state(alarm=alarm, at_s=now_s)]
    arrivals.append(Board("dev2", boot_id="boot2").presence(False, at_s=now_s))
    store.insert([word for word in map(read, arrivals) if word is not None])
    store.close()
    return url


def call(url: str, *arguments: str) -> Result:
    return CliRunner().invoke(fleet, arguments, env={"EDGE_CL_STORE": url}, catch_exceptions=False)


def test_devices_and_groups(url: str) -> None:
    assert "3 devices" not in call(url, "group", "kitchen", "dev0", "lab/dev1").output
    lines = call(url, "devices").output.splitlines()
    assert lines[1].split()[:3] == ["lab/dev0", "online", "kitchen"]
    assert lines[3].split()[:2] == ["lab/dev2", "offline"]
    assert "\x1b" not in "".join(lines)
    found = json.loads(call(url, "devices", "--json").output)
    assert [one["group_name"] for one in found] == ["kitchen", "kitchen", "", ""]
    call(url, "group", "-", "dev0")
    assert json.loads(call(url, "show", "dev0", "--json").output)["group_name"] == ""


def test_a_mistyped_store_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(FleetError, match="there is no store"):
        call(f"sqlite:///{tmp_path}/flete.db", "devices")
    assert list(tmp_path.iterdir()) == []


def test_show(url: str) -> None:
    shown = call(url, "show", "dev1").output
    assert "wrist" in shown and "receipt" in shown and "\x1b" not in shown


def test_events(url: str) -> None:
    assert len(call(url, "events").output.splitlines()) == 24
    assert len(call(url, "events", "--kind", "health", "--device", "dev1").output.splitlines()) == 4
    assert len(call(url, "events", "--since", "1h").output.splitlines()) == 24
    assert call(url, "events", "--since", "2099-01-01").output == ""
    lines = call(url, "events", "--kind", "receipt", "--json").output.splitlines()
    assert [json.loads(line)["data"]["label"] for line in lines] == ["walk"] * 4


def test_export_csv(url: str, tmp_path: Path) -> None:
    out = tmp_path / "receipts.csv"
    call(url, "export-csv", "--kind", "receipt", "--out", str(out))
    with out.open(newline="") as stream:
        found = list(csv.DictReader(stream))
    assert [row["device"] for row in found] == ["dev0", "dev1", "dev2", "dev3"]
    assert found[0]["data.label"] == json.loads(found[0]["data"])["label"] == "walk"


def test_a_text_that_looks_like_a_formula_stays_a_text(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/fleet.db"
    store = FleetStore(url)
    word = read(Board().says("note", b'{"text": "=HYPERLINK(1)"}'))
    assert word is not None
    store.insert([word])
    assert "'=HYPERLINK(1)" in call(url, "export-csv", "--kind", "note").output
    store.close()


def test_the_page_escapes_and_shows(url: str) -> None:
    import time

    store = FleetStore(url)
    page = render(store, "all is <lost>", time.time())
    assert "<script>" not in page and "&lt;script&gt;alarm" in page and "all is &lt;lost&gt;" in page
    assert "3 of 4 devices online" in page
    assert page.count("<polyline") == 4
    assert "since the last sleep'>4.2" in page
    assert "lab/dev3<td>answers run in 90%, its group in 0%" in page.replace("</td>", "")
    store.close()


def test_sparklines_stay_in_their_box() -> None:
    assert sparkline([0.5]) == ""
    line = sparkline([0.0, 1.0, 7.0, -3.0] * 100)
    points = line.split("points='")[1].split("'")[0].split()
    assert len(points) <= 120
    assert all(0 <= float(part) <= 100 for point in points for part in point.split(","))


def test_outliers_need_a_group_to_differ_from() -> None:
    shares = {"a": {"sit": 1.0}, "b": {"run": 1.0}}
    assert find_outliers({"a": "", "b": ""}, shares, {}) == []
    groups = dict.fromkeys("abcd", "") | {"e": "other"}
    shares = {one: {"sit": 0.8, "walk": 0.2} for one in "abc"} | {"d": {"walk": 1.0}, "e": {"run": 1.0}}
    accuracies = {"a": 0.9, "b": 0.5, "c": 0.85, "d": None, "e": 0.1}
    assert [one.device for one in find_outliers(groups, shares, accuracies)] == ["d", "b"]


def test_figures_of_devices_and_of_a_store_that_is_away(url: str) -> None:
    store = FleetStore(url)
    figures = FleetFigures(store, Worker(store, Login("mqtt://127.0.0.1:1")))
    text = figures.render().decode()
    assert 'edgecl_device_accuracy{device="dev0",group="",site="lab"} 0.9' in text
    assert 'edgecl_device_drift_points{device="dev0",group="",site="lab"} 4.25' in text
    assert "edgecl_devices_online 3.0" in text and "edgecl_store_up 1.0" in text
    with store.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE devices RENAME TO elsewhere")
    assert "edgecl_store_up 0.0" in figures.render().decode()
    store.close()


def test_an_address_in_use_is_named(url: str) -> None:
    store = FleetStore(url)
    app = create_app(store, Worker(store, Login("mqtt://127.0.0.1:1")))
    first = PageServer(app, "127.0.0.1:0")
    for address in (f"127.0.0.1:{first.port}", "127.0.0.1:http", "127.0.0.1:99999"):
        with pytest.raises(ConfigError, match="--http"):
            PageServer(app, address)
    first.stop()
    store.close()


def test_serve_collects_shows_and_ends_at_sigterm(broker: Broker, tmp_path: Path) -> None:
    port = free_port()
    page = f"http://127.0.0.1:{port}"
    env = os.environ | {
        "EDGE_CL_STORE": f"sqlite:///{tmp_path}/fleet.db",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    command = [sys.executable, "-c", "from edge_cl_fleet.command import fleet; fleet()", "serve"]
    server = subprocess.Popen(
        [*command, "--mqtt", broker.url, "--http", f"127.0.0.1:{port}"], env=env, stderr=subprocess.PIPE
    )
    try:
        wait_until(lambda: _get(f"{page}/healthz") == "ok\n", "it is healthy", 30)
        radio = Radio(broker.port, "edgecl/1/+/+/cmd/ack")
        board = Board()
        radio.sends(board.presence(), board.state(), *[board.says("receipt") for _ in range(10)])
        wait_until(lambda: len(radio.acked()) == 10, "all are confirmed")
        assert "lab/dev1" in _get(page)
        assert 'edgecl_messages_stored_total{kind="receipt"} 10.0' in _get(f"{page}/metrics")
        radio.close()
    finally:
        server.send_signal(signal.SIGTERM)
        _, said = server.communicate(timeout=20)
    assert server.returncode == 0 and b"Traceback" not in said
    assert len(call(env["EDGE_CL_STORE"], "events").output.splitlines()) == 10


def _get(address: str) -> str:
    try:
        with urllib.request.urlopen(address, timeout=20) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""
