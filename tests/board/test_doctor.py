"""`edge-cl doctor` on planted boards, on this machine, and with a real broker."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from click.testing import CliRunner
from edge_cl_device.doctor import broker as broker_checks
from edge_cl_device.doctor.command import doctor
from edge_cl_device.doctor.findings import Finding
from edge_cl_device.doctor.scene import Scene
from edge_cl_device.measurements import packaged_bundle

from edge_cl.config import settings_from
from tests.board.planted import MOUNTS, PLANTED, PYTHON, Planted, Plot, found
from tests.certificates import Authority
from tests.mosquitto import MOSQUITTO, Broker, free_port


def levels(findings: list[Finding]) -> dict[str, str]:
    return {finding.id: finding.level for finding in findings}


def test_a_healthy_board_has_nothing_wrong(tmp_path: Path) -> None:
    findings = Plot(tmp_path).examine()
    assert [f for f in findings if f.level in ("warning", "problem")] == []
    assert len(findings) > 20


@pytest.mark.parametrize("planted", PLANTED, ids=[p.finding for p in PLANTED])
def test_each_planted_fault_is_found_and_says_what_to_do(planted: Planted, tmp_path: Path) -> None:
    (finding,) = found(planted, tmp_path)
    assert finding.means and finding.mend


@pytest.mark.parametrize("planted", PLANTED, ids=[p.finding for p in PLANTED])
def test_a_planted_fault_is_the_only_thing_that_changes(planted: Planted, tmp_path: Path) -> None:
    """Else findings could come from the planting, not from the fault."""
    plot = Plot(tmp_path)
    planted.plant(plot)
    wrong = {f.id for f in plot.examine() if f.level in ("warning", "problem")}
    # a device that needs more than the board has needs more than its limit, too
    also = {"memory-limit"} if planted.finding == "memory" else set()
    assert wrong - also == {planted.finding}


def test_there_are_more_planted_faults_than_were_asked_for() -> None:
    assert len({planted.finding for planted in PLANTED}) >= 12


@pytest.mark.parametrize("sees_system", [True, False])
def test_apt_s_packages_count_where_the_environment_sees_them(tmp_path: Path, sees_system: bool) -> None:
    """`install.sh --with gpio` takes apt's gpiozero, which pip then finds satisfied and does not install."""
    plot = Plot(tmp_path)
    plot.settings["labels"] = [{"name": "button", "options": {"confirm": 17}}]
    plot.write("dev/gpiochip0", "", mode=0o666)
    plot.write("opt/edge-cl/pyvenv.cfg", f"include-system-site-packages = {str(sees_system).lower()}\n")
    plot.write(
        "usr/lib/python3/dist-packages/gpiozero-2.0.egg-info/PKG-INFO",
        "Metadata-Version: 2.1\nName: gpiozero\nVersion: 2.0\n",
    )
    missing = [found.id for found in plot.examine() if found.id == "gpio-library"]
    assert missing == ([] if sees_system else ["gpio-library"])


def test_a_read_only_root_with_a_data_partition_is_no_fault(tmp_path: Path) -> None:
    plot = Plot(tmp_path)
    plot.write("proc/self/mounts", MOUNTS.replace("/ ext4 rw", "/ ext4 ro"))
    plot.write("etc/fstab", "PARTUUID=x-02 / ext4 ro,noatime 0 1\n")
    assert levels(plot.examine())["root-read-only"] == "note"


def test_an_illegal_instruction_is_told_as_such(tmp_path: Path) -> None:
    plot = Plot(tmp_path)
    plot.write(PYTHON, "#!/bin/sh\nkill -4 $$\n", mode=0o755)
    said = {f.id: f for f in plot.examine()}["import-onnxruntime"]
    assert "signal 4" in said.found and "newer processor" in said.means


def test_life_and_spare_blocks_are_judged_apart(tmp_path: Path) -> None:
    plot = Plot(tmp_path)
    card = "sys/class/mmc_host/mmc0/mmc0:0001"
    for life, spare, level in [
        ("0x01 0x01", "0x01", "ok"),
        ("0x09 0x02", "0x01", "warning"),
        ("0x01 0x01", "0x03", "problem"),
        ("0x0b 0x01", "0x01", "problem"),
    ]:
        plot.write(f"{card}/life_time", life)
        plot.write(f"{card}/pre_eol_info", spare)
        assert levels(plot.examine())["card-worn"] == level, (life, spare)


def test_the_nearest_mount_counts_whatever_their_order(tmp_path: Path) -> None:
    plot = Plot(tmp_path)
    plot.write("proc/self/mounts", "tmpfs /var/lib/edge-cl tmpfs rw 0 0\n/dev/mmcblk0p2 /var ext4 rw 0 0\n")
    assert levels(plot.examine())["state-volatile"] == "problem"
    plot.write("proc/self/mounts", "tmpfs /var/lib tmpfs rw 0 0\n/dev/sda3 /var/lib/edge-cl ext4 rw 0 0\n")
    assert levels(plot.examine())["state-volatile"] == "ok"


def test_under_voltage_earlier_is_a_warning(tmp_path: Path) -> None:
    plot = Plot(tmp_path)
    plot.write("sys/devices/platform/soc/soc:firmware/get_throttled", "50000\n")
    assert levels(plot.examine())["under-voltage"] == "warning"


def test_the_command_exits_with_1_for_a_problem_and_speaks_json(tmp_path: Path) -> None:
    plot = Plot(tmp_path)
    plot.write("etc/edge-cl/config.toml", '[sensor]\nname = "mpu6050"\n')
    options = ["--root", str(tmp_path), "--offline", "--json"]
    healthy = CliRunner().invoke(doctor, options)
    assert healthy.exit_code == 0, healthy.output
    (tmp_path / "dev/i2c-1").unlink()
    ill = CliRunner().invoke(doctor, options)
    assert ill.exit_code == 1
    said = json.loads(ill.output)
    assert said["counts"]["problem"] == 1
    (missing,) = [f for f in said["findings"] if f["level"] == "problem"]
    assert missing["id"] == "i2c-missing" and "raspi-config" in missing["mend"]


AS_NOBODY = """
import os, sys
from click.testing import CliRunner
from edge_cl_device.doctor.command import doctor
CliRunner().invoke(doctor, sys.argv[1:])  # loads everything: this interpreter may be closed to others
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
doctor()
"""


def test_another_user_than_root_sees_less_and_is_told_so() -> None:
    """What belongs to the device is closed to others."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another user")
    folder = Path(tempfile.mkdtemp(prefix="edge-cl-doctor-", dir="/var/tmp"))
    try:
        folder.chmod(0o755)
        plot = Plot(folder / "root")
        plot.write("etc/edge-cl/secrets.env", "EDGE_CL_MQTT_PASSWORD=x\n", mode=0o600)
        plot.write("var/lib/edge-cl/bundles/current.ecl", packaged_bundle().read_bytes())
        (plot.root / "var/lib/edge-cl").chmod(0o750)
        options = ["--root", str(plot.root), "--offline", "--json"]
        command = [sys.executable, "-c", AS_NOBODY, *options]
        done = subprocess.run(command, capture_output=True, timeout=60)
    finally:
        shutil.rmtree(folder)
    said = {f["id"]: f for f in json.loads(done.stdout)["findings"]}
    assert said["bundle"]["mend"] == "sudo edge-cl doctor" and said["state-volatile"]["level"] == "ok"


def test_wrong_settings_and_a_damaged_bundle_are_findings_and_stop_nothing(tmp_path: Path) -> None:
    plot = Plot(tmp_path)
    plot.write("etc/edge-cl/config.toml", "[sleep]\nidel_s = 3\n")
    plot.write("var/lib/edge-cl/bundles/current.ecl", "no zip")
    done = CliRunner().invoke(doctor, ["--root", str(tmp_path), "--offline", "--json"])
    said = {f["id"]: f for f in json.loads(done.output)["findings"]}
    assert done.exit_code == 1
    assert "sleep.idle_s" in said["settings"]["found"] and said["bundle"]["level"] == "problem"
    assert "memory" in said and "clock-unset" in said


def test_doctor_runs_on_this_machine(tmp_path: Path) -> None:
    """The command itself, in a process of its own, looking at what is really here."""
    command = "from edge_cl_device.doctor.command import doctor; doctor()"
    options = ["--state", str(tmp_path), "--json", "--offline"]
    done = subprocess.run([sys.executable, "-c", command, *options], capture_output=True, timeout=120)
    said = {f["id"]: f for f in json.loads(done.stdout)["findings"]}
    assert not done.stderr
    assert said["board"]["level"] == "ok" and said["os-32bit"]["level"] == "ok"
    assert said["providers"]["level"] == "ok" and "CPUExecutionProvider" in said["providers"]["found"]
    assert said["import-numpy"]["level"] == "ok"
    assert done.returncode == int(any(f["level"] == "problem" for f in said.values()))


def asked(url: str, **mqtt: str) -> dict[str, Finding]:
    settings = settings_from({"mqtt": {"url": url, **mqtt}})
    return {f.id: f for f in broker_checks.check(Scene(settings=settings))}


@pytest.mark.broker
def test_a_broker_that_is_there(broker: Broker) -> None:
    said = asked(broker.url)
    assert {name: f.level for name, f in said.items()} == {
        "broker-tls": "ok", "broker-name": "ok", "broker-port": "ok", "broker-login": "ok",
    }  # fmt: skip


@pytest.mark.broker
def test_a_broker_that_refuses(stopped_broker: Broker, tmp_path: Path) -> None:
    passwords = tmp_path / "passwords"
    passwords.write_text("")
    conf = stopped_broker._folder / "mosquitto.conf"
    conf.write_text(
        conf.read_text().replace("allow_anonymous true", f"allow_anonymous false\npassword_file {passwords}")
    )
    stopped_broker.start()
    said = asked(stopped_broker.url)["broker-login"]
    assert said.level == "problem" and "EDGE_CL_MQTT_PASSWORD" in said.mend


@pytest.mark.broker
@pytest.mark.parametrize(("days", "level"), [(300, "ok"), (5, "warning")])
def test_tls_and_a_certificate_that_ends(days: int, level: str, tmp_path: Path) -> None:
    if MOSQUITTO is None:
        pytest.skip("mosquitto is not installed; on Debian: apt-get install mosquitto")
    authority = Authority(tmp_path / "ca")
    cert_file, key_file = authority.issue("broker", "broker", days=days)
    broker = Broker(tmp_path, f"certfile {cert_file}", f"keyfile {key_file}")
    broker.start()
    try:
        url = broker.url.replace("mqtt://", "mqtts://")
        said = asked(url, ca_file=str(authority.ca_file))
        stranger = asked(url, ca_file=str(Authority(tmp_path / "other").ca_file))
    finally:
        broker.stop()
    assert said["broker-tls" if level == "ok" else "broker-certificate"].level == level
    assert said["broker-login"].level == "ok"
    assert stranger["broker-tls"].level == "problem" and "broker-login" not in stranger


@pytest.mark.broker
def test_the_password_is_that_of_the_service(
    stopped_broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may read the file that systemd gives to the device; what is in the environment goes before."""
    program = shutil.which("mosquitto_passwd")
    if program is None:
        pytest.skip("mosquitto_passwd is not installed; on Debian: apt-get install mosquitto")
    monkeypatch.delenv("EDGE_CL_MQTT_PASSWORD", raising=False)
    passwords = tmp_path / "passwords"
    subprocess.run([program, "-b", "-c", str(passwords), "porch", "s3cret"], check=True, capture_output=True)
    passwords.chmod(0o644)
    conf = stopped_broker._folder / "mosquitto.conf"
    closed = f"allow_anonymous false\npassword_file {passwords}"
    conf.write_text(conf.read_text().replace("allow_anonymous true", closed))
    stopped_broker.start()
    plot = Plot(tmp_path / "root")
    settings = settings_from({"mqtt": {"url": stopped_broker.url, "username": "porch"}})

    def login() -> Finding:
        found = broker_checks.check(Scene(root=plot.root, settings=settings))
        return next(f for f in found if f.id == "broker-login")

    plot.write("etc/edge-cl/secrets.env", 'EDGE_CL_MQTT_PASSWORD="wrong"\n')
    assert login().level == "problem" and "wrong" not in str(login())
    plot.write("etc/edge-cl/secrets.env", 'EDGE_CL_MQTT_PASSWORD="s3cret"\n')
    assert login().level == "ok"


def test_a_broker_that_is_not_there() -> None:
    said = asked(f"mqtt://127.0.0.1:{free_port()}")
    assert said["broker-port"].level == "problem" and "broker-login" not in said


@pytest.mark.broker
def test_the_command_asks_the_broker(broker: Broker, tmp_path: Path) -> None:
    """The same settings, with a broker that runs and with it stopped."""
    config = tmp_path / "config.toml"
    config.write_text(f'[device]\nname = "porch"\n[mqtt]\nurl = "{broker.url}"\n')
    options = ["--config", str(config), "--state", str(tmp_path), "--json"]

    def said() -> dict[str, str]:
        done = CliRunner().invoke(doctor, options)
        return {f["id"]: f["level"] for f in json.loads(done.output)["findings"]}

    there = said()
    broker.stop()
    gone = said()
    assert there["broker-login"] == "ok" and there["device-name"] == "ok"
    assert gone["broker-port"] == "problem"


def test_a_broker_whose_name_nobody_knows() -> None:
    assert asked("mqtts://broker.invalid")["broker-name"].level == "problem"


def test_a_port_that_is_no_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker_checks, "TIMEOUT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        said = asked(f"mqtt://127.0.0.1:{server.getsockname()[1]}")
    assert said["broker-login"].level == "problem"
