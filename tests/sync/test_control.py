"""The control socket, over real Unix sockets."""

from __future__ import annotations

import grp
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import click.testing
import msgspec
import pytest

import edge_cl.state
from edge_cl.cli.device import label as label_command
from edge_cl.cli.device import status as status_command
from edge_cl.errors import DeviceNotRunning, StateError, SyncError
from edge_cl.records import Label, Receipt, Status
from edge_cl.sync import control
from edge_cl.sync.control import SOCKET_NAME, ControlServer, Request, ask

STATUS = Status(
    bundle_name="wrist",
    bundle_id="0123456789abcdef",
    head="dual",
    class_names=["walk", "sit"],
    n_readings=1_234,
    n_labels=56,
    journal_seq=56,
    n_pending=7,
    n_bad_readings=1,
    accuracy_now=0.875,
    held={"head": 4096},
    held_bytes=4096,
    budget_bytes=16 * 1024 * 1024,
    n_sleeps=0,
    last_sleep=None,
    recovered="",
    alarm="",
)


def receipt_for(label: Label) -> Receipt:
    return Receipt(
        reading_id=label.reading_id or "r9",
        label=label.label,
        status="learned",
        source=label.source,
        seq=1,
        confidence_before=0.2,
        confidence_after=0.6,
    )


@contextmanager
def device(path: Path, teach: Callable[[Label], Receipt] = receipt_for) -> Iterator[ControlServer]:
    """A run loop in miniature: polls for labels and answers them."""
    done = threading.Event()
    with ControlServer(path) as server:
        server.sink(STATUS)

        def loop() -> None:
            while not done.wait(0.002):
                for label in server.poll():
                    server.sink(teach(label))

        thread = threading.Thread(target=loop)
        thread.start()
        try:
            yield server
        finally:
            done.set()
            thread.join()


def test_status_and_label(tmp_path: Path) -> None:
    path = tmp_path / SOCKET_NAME
    with device(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert ask(path, Request(op="status")).status == STATUS
        receipt = ask(path, Request(op="label", label="walk", reading_id="r1")).receipt
        assert receipt is not None
        assert (receipt.reading_id, receipt.label, receipt.source) == ("r1", "walk", "local")
        newest = ask(path, Request(op="label", label="walk")).receipt
        assert newest is not None and newest.reading_id == "r9"
    assert not path.exists()


def test_receipts_of_other_sources_are_not_taken_for_an_answer(tmp_path: Path) -> None:
    path = tmp_path / SOCKET_NAME
    with ControlServer(path) as server:
        replies: list[object] = []
        client = threading.Thread(
            target=lambda: replies.append(ask(path, Request(op="label", label="walk", reading_id="r1")))
        )
        client.start()
        labels: list[Label] = []
        while not labels:
            labels = server.poll()
        server.sink(Receipt(reading_id="r1", label="walk", status="refused", source="mqtt"))
        server.sink(Receipt(reading_id="r2", label="walk", status="refused", source="local"))
        server.sink(receipt_for(labels[0]))
        client.join(10)
        assert replies == [control.Reply(receipt=receipt_for(labels[0]))]


def test_what_a_reading_was_not_is_handed_over_as_such(tmp_path: Path) -> None:
    path = tmp_path / SOCKET_NAME
    with ControlServer(path) as server:
        replies: list[control.Reply] = []
        request = Request(op="label", label="walk", reading_id="r1", kind="not")
        client = threading.Thread(target=lambda: replies.append(ask(path, request)))
        client.start()
        labels: list[Label] = []
        while not labels:
            labels = server.poll()
        assert labels == [Label(label="walk", reading_id="r1", source="local", kind="not")]
        server.sink(Receipt(reading_id="r1", label="walk", status="learned", source="local"))
        refused = Receipt(reading_id="r1", label="walk", kind="not", status="learned", source="local")
        server.sink(refused)
        client.join(10)
        assert replies == [control.Reply(receipt=refused)]


def test_every_one_of_many_clients_gets_its_own_receipt(tmp_path: Path) -> None:
    path = tmp_path / SOCKET_NAME
    replies: dict[str, str] = {}

    def client(name: str) -> None:
        receipt = ask(path, Request(op="label", label=name, reading_id=f"for-{name}")).receipt
        replies[name] = receipt.reading_id if receipt else "none"

    with device(path):
        threads = [threading.Thread(target=client, args=(f"class-{n}",)) for n in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert replies == {f"class-{n}": f"for-class-{n}" for n in range(20)}


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(DeviceNotRunning, match="no edge-cl runs with the state folder"):
        ask(tmp_path / SOCKET_NAME, Request(op="status"))
    with pytest.raises(DeviceNotRunning):
        ask(tmp_path / "no-such-folder" / SOCKET_NAME, Request(op="status"))


def test_the_socket_of_a_killed_process_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / SOCKET_NAME
    code = (
        "import sys, time, pathlib; from edge_cl.sync.control import ControlServer;"
        "server = ControlServer(pathlib.Path(sys.argv[1])); print('up', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"up\n"
    with pytest.raises(StateError, match="another edge-cl runs"):
        ControlServer(path)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=10)
    process.stdout.close()
    assert path.exists()
    with pytest.raises(DeviceNotRunning):
        ask(path, Request(op="status"))
    with device(path):
        assert ask(path, Request(op="status")).status == STATUS


def test_a_second_server_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    path = tmp_path / SOCKET_NAME
    with device(path):
        with pytest.raises(StateError, match="another edge-cl runs with the state folder"):
            ControlServer(path)
        assert ask(path, Request(op="status")).status == STATUS
    with device(path):
        assert ask(path, Request(op="status")).status == STATUS


@pytest.mark.parametrize(("mode", "socket_mode"), [(0o700, 0o600), (0o755, 0o600), (0o710, 0o660)])
def test_a_folder_of_mode_0710_lets_its_group_talk(tmp_path: Path, mode: int, socket_mode: int) -> None:
    """Even where the process makes all files for itself alone, as the service does."""
    tmp_path.chmod(mode)
    umask = os.umask(0o077)
    try:
        with device(tmp_path / SOCKET_NAME):
            assert stat.S_IMODE((tmp_path / SOCKET_NAME).stat().st_mode) == socket_mode
    finally:
        os.umask(umask)


@pytest.mark.parametrize(
    ("gid", "mode", "joins"), [(1, 0o750, True), (1, 0o710, True), (1, 0o755, False), (0, 0o750, False)]
)
def test_who_may_not_talk_is_told_how_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gid: int, mode: int, joins: bool
) -> None:
    """Never to join root, nor a group that would not be let in."""

    def refuse(self: socket.socket, address: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    if os.geteuid() != 0:
        pytest.skip("only root gives a folder to another group")
    os.chown(tmp_path, -1, gid)
    tmp_path.chmod(mode)
    with pytest.raises(SyncError, match="put sudo before the command") as refused:
        ask(tmp_path / "state" / SOCKET_NAME, Request(op="status"))
    assert ("usermod" in str(refused.value)) == joins
    assert not joins or f"usermod -aG {grp.getgrgid(gid).gr_name} " in str(refused.value)


def test_a_path_too_long_for_a_socket_works_all_the_same(tmp_path: Path) -> None:
    folder = tmp_path / ("a" * 100) / ("b" * 100)
    folder.mkdir(parents=True)
    with device(folder / SOCKET_NAME):
        assert (folder / SOCKET_NAME).is_socket()
        assert ask(folder / SOCKET_NAME, Request(op="status")).status == STATUS


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="cannot create the control socket"):
        ControlServer(tmp_path / "absent" / SOCKET_NAME)


def raw(path: Path, line: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(path))
        client.sendall(line)
        client.shutdown(socket.SHUT_WR)
        return client.makefile("rb").read()


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (b"hello\n", "malformed"),
        (b'{"op": "reboot"}\n', "reboot"),
        (b'{"op": "status", "x": 1}\n', "unknown field"),
        (b'{"op": "label"}\n', "label is empty"),
        (b'{"op": "label", "label": "a\\u0007"}\n', "printable"),
        (b'{"op": "label", "label": "' + b"x" * 300 + b'"}\n', "300 characters"),
        (b"x" * 100_000, "malformed"),
        (b"\xff\n", ""),
    ],
)
def test_nonsense_is_answered_and_harms_nobody(tmp_path: Path, line: bytes, found: str) -> None:
    path = tmp_path / SOCKET_NAME
    with device(path) as server:
        try:
            reply = raw(path, line)
        except (ConnectionResetError, BrokenPipeError):  # the rest of an oversized line is not read
            assert len(line) > 65_536
        else:
            assert found in json.loads(reply)["error"]
        assert ask(path, Request(op="status")).status == STATUS
        assert server.poll() == []


def test_a_client_that_leaves_harms_nobody(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / SOCKET_NAME
    with device(path):
        for line in (b"", b'{"op": "status"}\n'):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
                client.sendall(line)
        assert ask(path, Request(op="status")).status == STATUS
    assert "Traceback" not in capfd.readouterr().err


def test_a_device_that_gives_no_receipt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "RECEIPT_S", 0.05)
    with ControlServer(tmp_path / SOCKET_NAME) as server:
        with pytest.raises(SyncError, match="no status yet"):
            ask(tmp_path / SOCKET_NAME, Request(op="status"))
        with pytest.raises(SyncError, match="no receipt within"):
            ask(tmp_path / SOCKET_NAME, Request(op="label", label="walk"))
        (label,) = server.poll()
        server.sink(receipt_for(label))  # too late: nobody waits, nothing breaks


def run_command(command: click.Command, *arguments: str) -> click.testing.Result:
    return click.testing.CliRunner().invoke(command, list(arguments))


def test_the_status_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with device(tmp_path / SOCKET_NAME):
        text = run_command(status_command, "--state", str(tmp_path)).output
        for part in ("running", "wrist (0123456789ab)", "dual", "2: walk, sit", "1,234", "0.875", "4 KB of"):
            assert part in text
        fields = json.loads(run_command(status_command, "--state", str(tmp_path), "--json").output)
        assert (fields["running"], fields["n_labels"]) == (True, 56)
    monkeypatch.setattr(edge_cl.state, "describe", lambda _: STATUS, raising=False)
    text = run_command(status_command, "--state", str(tmp_path)).output
    assert "stopped" in text and "wrist" in text
    monkeypatch.setattr(edge_cl.state, "describe", lambda _: None, raising=False)
    result = run_command(status_command, "--state", str(tmp_path))
    assert result.exit_code == 1 and "no device state in" in result.output


def test_the_label_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_CL_STATE", str(tmp_path))
    with device(tmp_path / SOCKET_NAME):
        result = run_command(label_command, "walk", "--reading", "r1")
        assert result.exit_code == 0
        assert "learned: “walk” for reading r1" in result.output and "0.20 → 0.60" in result.output
        receipt = json.loads(run_command(label_command, "walk", "--json").output)
        assert (receipt["status"], receipt["reading_id"]) == ("learned", "r9")
    result = run_command(label_command, "walk")
    assert isinstance(result.exception, DeviceNotRunning)


def test_a_label_that_was_not_learned_fails_the_command(tmp_path: Path) -> None:
    def refuse(label: Label) -> Receipt:
        return Receipt(
            reading_id=label.reading_id,
            label=label.label,
            status="unknown-reading",
            source=label.source,
            message="its feature is gone; label newer readings",
        )

    with device(tmp_path / SOCKET_NAME, refuse):
        result = run_command(label_command, "walk", "--reading", "old", "--state", str(tmp_path))
    assert result.exit_code == 1
    assert "unknown-reading" in result.output and "its feature is gone" in result.output


def test_the_status_is_of_this_moment_while_the_loop_polls(tmp_path):
    counter = iter(range(100, 200))
    status = STATUS
    path = tmp_path / SOCKET_NAME
    behind = SimpleNamespace(status=lambda: msgspec.structs.replace(status, n_readings=next(counter)))
    with ControlServer(path, behind) as server:
        server.sink(status)
        stop = threading.Event()

        def loop():
            while not stop.is_set():
                server.poll()

        running = threading.Thread(target=loop)
        running.start()
        try:
            first, second = (ask(path, Request(op="status")) for _ in range(2))
        finally:
            stop.set()
            running.join()
        assert (first.status.n_readings, second.status.n_readings) == (100, 101) and first.age_s == 0
        assert ask(path, Request(op="status")).status == status, "a busy loop: the last one seen"
