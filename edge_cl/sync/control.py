"""Local control: ``edge-cl status``, ``label`` and ``sleep`` talk to a running device over a Unix socket.

One JSON line each way. Whoever may open the state folder's socket may teach: the folder's owner (mode 0600),
and its group where the folder lets that pass and do nothing else (mode 0710; the socket then has 0660).
"""

from __future__ import annotations

import contextlib
import fcntl
import grp
import os
import socket
import socketserver
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal, Protocol, TypeVar

import msgspec

from edge_cl.errors import DeviceNotRunning, EdgeCLError, StateError, SyncError
from edge_cl.records import Answer, Label, LabelKind, Receipt, SleepReport, SleepRequest, Status
from edge_cl.revisions import HeldLabel, Outcome, Revision
from edge_cl.sync.messages import MAX_INBOUND_BYTES, answers, check_label

if TYPE_CHECKING:  # imported when somebody asks
    from concurrent.futures import Future

SOCKET_NAME = "control.sock"
SOURCE = "local"
MAX_PATH_BYTES = 107
GROUP_MAY_PASS = 0o010
"""A folder whose mode gives others just this lets its group talk to the device."""
READ_S = 5.0
RECEIPT_S = 30.0
STATUS_S = 1.0
REVISE_S = 60.0
"""A revision reads the whole history, and waits for one that is under way."""

A = TypeVar("A")


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a client asks."""

    op: Literal["status", "label", "sleep", "sleeps", "revise", "held", "install", "undo-install"]
    label: str = ""
    kind: LabelKind = "is"
    reading_id: str = ""
    revision: Revision | None = None
    file: str = ""
    """Of a bundle that the device can read."""


class Reply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The answer: a status and its age, a receipt, reports of past sleeps, what came of a revision, labels
    that wait for a review, a message for a person, or what was wrong."""

    status: Status | None = None
    age_s: float = 0.0
    receipt: Receipt | None = None
    sleeps: list[SleepReport] | None = None
    outcome: Outcome | None = None
    held: list[HeldLabel] | None = None
    message: str = ""
    error: str = ""


class Device(Protocol):
    """What a control socket asks of the device behind it, on the run loop's thread."""

    def status(self) -> Status:
        """How it is doing now."""
        ...

    def sleep_reports(self) -> list[SleepReport]:
        """What its last sleeps did, oldest first."""
        ...

    def held_labels(self) -> list[HeldLabel]:
        """Labels that wait for a review, oldest first."""
        ...

    def revise(self, asked: Revision, *, source: str, wait: bool) -> Outcome:
        """Change what counts of the past; raises EdgeCLError. Without `wait` it is learned anew meanwhile."""
        ...

    def install(self, file: str) -> str:
        """Begin to install the bundle in a file; what is done, for a person. Raises EdgeCLError."""
        ...

    def undo_install(self) -> str:
        """End an installation, or go back to the bundle before; as `install`."""
        ...


class ControlServer:
    """A source of labels and a sink of answers for the run loop.

    A background thread accepts, one short thread per client waits; labels are handed over by
    `poll` and answered by `sink`, both on the run loop's thread.

    Parameters
    ----------
    path
        The socket.
    device
        Is asked by `poll`. Without it, and while the loop is busy, a client gets the last status that `sink`
        saw, and its age.

    Raises
    ------
    StateError
        When another process serves the same state folder.
    """

    def __init__(
        self,
        path: Path,
        device: Device | None = None,
    ) -> None:
        self._path = path
        self._device = device
        self._asked: deque[Callable[[], None]] = deque()
        self._status: tuple[Status, float] | None = None
        self._arrived: deque[Label | SleepRequest] = deque()
        self._waiting: deque[tuple[Label, Future[Receipt]]] = deque(maxlen=1_000)
        self._lock_file = _lock(path)
        # Holding the lock proves that a socket file found here belongs to a dead process.
        path.unlink(missing_ok=True)
        self._server = _Server(path, self._reply)
        self._closing = False
        self._thread = threading.Thread(target=self._serve, name="edge-cl-control", daemon=True)
        self._thread.start()

    def poll(self) -> list[Label | SleepRequest]:
        """What arrived since the last call; never blocks. Answers who asked for status or history."""
        while self._asked:
            self._asked.popleft()()
        arrived = []
        while self._arrived:
            arrived.append(self._arrived.popleft())
        return arrived

    def sink(self, answer: Answer) -> None:
        """Answer the client that waits for this receipt; remember the newest status."""
        if isinstance(answer, Status):
            self._status = (answer, time.monotonic())
        elif isinstance(answer, Receipt):
            for waiting in list(self._waiting):
                label, future = waiting
                if answers(answer, label):
                    with contextlib.suppress(ValueError):
                        self._waiting.remove(waiting)
                    future.set_result(answer)
                    return

    def close(self) -> None:
        """Stop serving and remove the socket."""
        self._closing = True
        self._server.socket.shutdown(socket.SHUT_RDWR)  # wakes the thread at once
        self._thread.join()
        self._server.server_close()
        self._path.unlink(missing_ok=True)
        self._lock_file.close()

    def __enter__(self) -> ControlServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _serve(self) -> None:
        while not self._closing:
            self._server.handle_request()

    def _reply(self, line: bytes) -> Reply:
        try:
            request = msgspec.json.decode(line, type=Request)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return Reply(error=f'not a request: {error}; send {{"op": "status"}} or {{"op": "label", …}}')
        if request.op == "status":
            return self._status_reply()
        if request.op in ("sleeps", "held", "revise", "install", "undo-install"):
            return self._device_reply(request)
        if request.op == "sleep":
            self._arrived.append(SleepRequest())
            return Reply()
        try:
            check_label(request.label, request.reading_id)
        except SyncError as error:
            return Reply(error=str(error))
        label, kind = request.label, request.kind
        return self._teach(Label(label=label, kind=kind, reading_id=request.reading_id, source=SOURCE))

    def _status_reply(self) -> Reply:
        if self._device is not None:
            with contextlib.suppress(TimeoutError):
                return Reply(status=self._in_the_loop(self._device.status, STATUS_S))
        if self._status is None:
            return Reply(error="the device is starting and has no status yet; ask again in a moment")
        status, at_s = self._status
        return Reply(status=status, age_s=round(time.monotonic() - at_s, 1))

    def _device_reply(self, request: Request) -> Reply:
        device, revision = self._device, request.revision
        if device is None or (request.op == "revise" and revision is None):
            return Reply(error=f"cannot {request.op}: nothing was said of what, or nobody is there to do it")
        try:
            if request.op == "sleeps":
                return Reply(sleeps=self._in_the_loop(device.sleep_reports, STATUS_S))
            if request.op == "held":
                return Reply(held=self._in_the_loop(device.held_labels, REVISE_S))
            if request.op == "install":
                return Reply(message=self._in_the_loop(lambda: device.install(request.file), REVISE_S))
            if request.op == "undo-install":
                return Reply(message=self._in_the_loop(device.undo_install, REVISE_S))
            assert revision is not None
            return Reply(
                outcome=self._in_the_loop(
                    lambda: device.revise(revision, source=SOURCE, wait=False), REVISE_S
                )
            )
        except TimeoutError:
            return Reply(error="the device is busy and may still do it; ask for its status in a moment")
        except EdgeCLError as error:
            return Reply(error=str(error))

    def _in_the_loop(self, ask: Callable[[], A], timeout_s: float) -> A:
        """What `ask()` gives or raises on the run loop's thread, at its next poll."""
        from concurrent.futures import Future

        asked = Future[A]()

        def answer() -> None:
            try:
                asked.set_result(ask())
            except EdgeCLError as error:
                asked.set_exception(error)

        self._asked.append(answer)
        return asked.result(timeout=timeout_s)

    def _teach(self, label: Label) -> Reply:
        from concurrent.futures import Future

        waiting = (label, Future[Receipt]())
        self._waiting.append(waiting)
        self._arrived.append(label)
        try:
            return Reply(receipt=waiting[1].result(timeout=RECEIPT_S))
        except TimeoutError:
            with contextlib.suppress(ValueError):
                self._waiting.remove(waiting)
            return Reply(
                error=f"the device gave no receipt within {RECEIPT_S:.0f} s; it may still learn the label"
            )


def ask(path: Path, request: Request, *, timeout_s: float = 35.0) -> Reply:
    """Ask the device whose socket is at `path`.

    Raises
    ------
    DeviceNotRunning
        When nobody serves that socket.
    SyncError
        When the device does not answer in time or refuses the request.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(timeout_s)
            with _address(path) as address:
                client.connect(address)
            client.sendall(msgspec.json.encode(request) + b"\n")
            with client.makefile("rb") as stream:
                reply = msgspec.json.decode(stream.readline(), type=Reply)
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError) as error:
        raise DeviceNotRunning(
            f"no edge-cl runs with the state folder {path.parent}; "
            "start it with edge-cl run, or name another with --state"
        ) from error
    except PermissionError as error:
        raise SyncError(
            f"this user may not talk to the device at {path}: put sudo before the command{_or_join(path)}"
        ) from error
    except TimeoutError as error:
        raise SyncError(
            f"the device at {path} did not answer within {timeout_s:g} s; is it suspended?"
        ) from error
    except (OSError, msgspec.DecodeError) as error:
        raise SyncError(f"the device at {path} cannot be asked: {error}") from error
    if reply.error:
        raise SyncError(reply.error)
    return reply


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    request_queue_size = 64
    block_on_close = False

    def __init__(self, path: Path, reply: Callable[[bytes], Reply]) -> None:
        self.reply = reply
        self._socket_path = path
        super().__init__(str(path), _Handler)

    def server_bind(self) -> None:
        # On an unbound socket this sets the mode of the file to come: it is never open to others.
        os.fchmod(self.socket.fileno(), 0o600)
        with _address(self._socket_path) as address:
            self.socket.bind(address)
            if stat.S_IMODE(self._socket_path.parent.stat().st_mode) & 0o077 == GROUP_MAY_PASS:
                Path(address).chmod(0o660)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is not worth a traceback."""


class _Handler(socketserver.StreamRequestHandler):
    timeout = READ_S

    def handle(self) -> None:
        line = self.rfile.readline(MAX_INBOUND_BYTES)
        if line and isinstance(self.server, _Server):
            self.wfile.write(msgspec.json.encode(self.server.reply(line)) + b"\n")


def _lock(path: Path) -> IO[bytes]:
    try:
        lock_file = path.with_suffix(".lock").open("ab")
    except OSError as error:
        raise StateError(f"{path.parent}: cannot create the control socket ({error.strerror})") from error
    try:
        fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock_file.close()
        raise StateError(
            f"another edge-cl runs with the state folder {path.parent}; "
            "stop it, or choose another with --state"
        ) from error
    return lock_file


def _or_join(path: Path) -> str:
    """How to be let in for good, where the folder or what holds it is open to a group and to nobody else."""
    for folder in path.parents:
        with contextlib.suppress(OSError, KeyError):
            found = folder.stat()
            if found.st_gid and found.st_mode & 0o017 == GROUP_MAY_PASS:
                group = grp.getgrgid(found.st_gid).gr_name
                return f"; or, once, sudo usermod -aG {group} $USER, and log in anew"
            return ""
    return ""


@contextlib.contextmanager
def _address(path: Path) -> Iterator[str]:
    """The socket's address; a path too long for one goes through the folder's descriptor."""
    if len(os.fsencode(path)) <= MAX_PATH_BYTES:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
