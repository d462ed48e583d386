"""Labels over HTTP: ``POST /label`` gives a receipt, ``GET /status`` says how the device is doing.

Only this machine is let in unless a token is set; then whoever has it, from wherever `host` can be reached.
There is no TLS: across a network put a proxy with TLS before it, or a tunnel.
"""

from __future__ import annotations

import contextlib
import errno
import hmac
import http
import ipaddress
import logging
import os
import socket
import socketserver
import threading
import time
from collections import deque
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeout
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from edge_cl.errors import ConfigError, SensorUnavailable, SyncError
from edge_cl.records import Answer, Decision, Label, LabelKind, Receipt, Status
from edge_cl.sensing.drivers import read_options
from edge_cl.sync.messages import answers, check_label, check_name

TOKEN_VARIABLE = "EDGE_CL_HTTP_TOKEN"
SOURCE = "http"
LEAST_TOKEN = 16
MOST_BODY_BYTES = 4096
MOST_AT_ONCE = 8
READ_S = 5.0
RECEIPT_S = 10.0
WHOLE_S = 20.0
"""From the first byte to the last a connection may take no longer, however it trickles."""
_log = logging.getLogger(__name__)


class HttpOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where it listens. The token is in the environment variable ``EDGE_CL_HTTP_TOKEN``, or in a file that
    only its owner may read.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8765
    token_file: str = ""


class Asked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of ``POST /label``; `source` is who says it: ``http/<source>``."""

    label: str
    reading_id: str = ""
    kind: LabelKind = "is"
    source: str = ""


class Shown(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The answer to ``GET /status``: the newest status, its age, the newest decision."""

    status: Status | None
    age_s: float
    decision: Decision | None = None


class Refused(Exception):
    """What a client is told instead of an answer."""

    def __init__(self, code: http.HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.code = code


class HttpLabels:
    """A `LabelDriver`: at most eight requests at once, each in a thread of its own."""

    def __init__(self, options: dict[str, Any]) -> None:
        asked = read_options("labels http", options, HttpOptions)
        self._token = _token(asked.token_file)
        self._local = _is_loopback(asked.host)
        if not self._token and not self._local:
            raise ConfigError(
                f"labels http: host is {asked.host!r}, where others can come in; allowed without a token: "
                f"127.0.0.1. Set {TOKEN_VARIABLE} or token_file to let in who has it"
            )
        self._labels: deque[Label] = deque(maxlen=1_000)
        self._waiting: deque[tuple[Label, Future[Receipt]]] = deque()
        self._status: tuple[Status, float] | None = None
        self._decision: Decision | None = None
        try:
            self._server = _Server(asked, self)
        except OSError as error:
            raise SensorUnavailable(_explain(asked, error)) from error
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="edge-cl-http", daemon=True
        )
        self._thread.start()

    @property
    def alarm(self) -> str:
        """Says when nobody listens any more."""
        return "" if self._thread.is_alive() else "labels http: its thread ended; start edge-cl again"

    def poll(self) -> list[Label]:
        """What came since the last call."""
        found = []
        while self._labels:
            found.append(self._labels.popleft())
        return found

    def hear(self, answer: Answer) -> None:
        """Hand a receipt to whom it belongs; remember what is shown."""
        if isinstance(answer, Decision):
            self._decision = answer
        elif isinstance(answer, Status):
            self._status = (answer, time.monotonic())
        elif isinstance(answer, Receipt):
            for waiting in list(self._waiting):
                if answers(answer, waiting[0]):
                    with contextlib.suppress(ValueError):
                        self._waiting.remove(waiting)
                    waiting[1].set_result(answer)
                    return

    def close(self) -> None:
        """Stop listening; who waits for a receipt is told."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        for _, future in list(self._waiting):
            future.cancel()

    # ------------------------------------------------------------------ in the threads of requests

    def check(self, headers: Any) -> None:
        """Raise `Refused` unless whoever asks may."""
        if self._token:
            given = str(headers.get("Authorization", ""))
            if not hmac.compare_digest(given.encode(), f"Bearer {self._token}".encode()):
                raise Refused(http.HTTPStatus.UNAUTHORIZED, "send the header Authorization: Bearer <token>")
            return
        host = urlsplit(f"//{headers.get('Host', '')}").hostname or ""
        if not _is_loopback(host):  # a page elsewhere that a browser on this machine was led to
            raise Refused(
                http.HTTPStatus.FORBIDDEN, "without a token only 127.0.0.1 or localhost may be asked"
            )

    def show(self) -> Shown:
        """What ``GET /status`` answers."""
        status, at_s = self._status or (None, time.monotonic())
        return Shown(status=status, age_s=round(time.monotonic() - at_s, 1), decision=self._decision)

    def teach(self, body: bytes) -> Receipt:
        """Hand a label to the run loop and wait for its receipt."""
        try:
            asked = msgspec.json.decode(body, type=Asked)
            check_label(asked.label, asked.reading_id)
            check_name("source", asked.source)
            if "*" in asked.source:
                raise SyncError("label refused: source holds a *; send a name without it")
        except (msgspec.DecodeError, UnicodeDecodeError, SyncError) as error:
            raise Refused(
                http.HTTPStatus.BAD_REQUEST, f'{error}; send {{"label": "name", "reading_id": "id"}}'
            ) from error
        source = f"{SOURCE}/{asked.source}" if asked.source else SOURCE
        label = Label(label=asked.label, kind=asked.kind, reading_id=asked.reading_id, source=source)
        waiting = (label, Future[Receipt]())
        self._waiting.append(waiting)
        self._labels.append(label)
        try:
            return waiting[1].result(timeout=RECEIPT_S)
        except (FutureTimeout, CancelledError) as error:
            with contextlib.suppress(ValueError):
                self._waiting.remove(waiting)
            raise Refused(
                http.HTTPStatus.GATEWAY_TIMEOUT,
                f"no receipt within {RECEIPT_S:g} s; the device may still learn the label",
            ) from error


class _Server(socketserver.TCPServer):
    """One short thread for each request, never more than `MOST_AT_ONCE`."""

    allow_reuse_address = True
    request_queue_size = 16

    def __init__(self, asked: HttpOptions, labels: HttpLabels) -> None:
        self.labels = labels
        self._free = threading.BoundedSemaphore(MOST_AT_ONCE)
        self._open: dict[socket.socket, float] = {}
        self.address_family = socket.AF_INET6 if ":" in asked.host else socket.AF_INET
        super().__init__((asked.host, asked.port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve it in a thread, or say that too many are there."""
        if not self._free.acquire(blocking=False):
            with contextlib.suppress(OSError):
                request.sendall(b"HTTP/1.0 503 Service Unavailable\r\nRetry-After: 1\r\n\r\n")
            self.shutdown_request(request)
            return
        self._open[request] = time.monotonic()
        threading.Thread(target=self._serve, args=(request, client_address), daemon=True).start()

    def service_actions(self) -> None:
        """End connections that take too long."""
        for request, since_s in list(self._open.items()):
            if time.monotonic() - since_s > WHOLE_S:
                with contextlib.suppress(OSError):
                    request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is not worth a traceback."""
        _log.debug("a request by %s came to nothing", client_address)

    def _serve(self, request: Any, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        except OSError:
            self.handle_error(request, client_address)
        finally:
            self._open.pop(request, None)
            self.shutdown_request(request)
            self._free.release()


class _Handler(BaseHTTPRequestHandler):
    timeout = READ_S
    server_version = "edge-cl"
    sys_version = ""

    def do_GET(self) -> None:
        """``/status``."""
        self._reply(lambda labels: labels.show(), "/status")

    def do_POST(self) -> None:
        """``/label``."""
        self._reply(lambda labels: labels.teach(self._body()), "/label")

    def _reply(self, answer: Any, path: str) -> None:
        assert isinstance(self.server, _Server)
        try:
            self.server.labels.check(self.headers)
            if urlsplit(self.path).path != path:
                raise Refused(http.HTTPStatus.NOT_FOUND, "there are GET /status and POST /label")
            code, body = http.HTTPStatus.OK, msgspec.json.encode(answer(self.server.labels))
        except Refused as error:
            code, body = error.code, msgspec.json.encode({"error": str(error)})
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def _body(self) -> bytes:
        kind = self.headers.get_content_type()
        if kind != "application/json":  # which a page elsewhere cannot send without asking first
            raise Refused(http.HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send Content-Type: application/json")
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            raise Refused(http.HTTPStatus.LENGTH_REQUIRED, "send Content-Length")
        if len(length) > 9 or int(length) > MOST_BODY_BYTES:
            raise Refused(
                http.HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a label has at most {MOST_BODY_BYTES} bytes"
            )
        return self.rfile.read(int(length))

    def log_message(self, format: str, *args: Any) -> None:
        """Into the log, for who looks for it."""
        _log.debug("%s %s", self.client_address[0], format % args)


def _token(file: str) -> str:
    token = os.environ.get(TOKEN_VARIABLE, "").strip()
    where = TOKEN_VARIABLE
    if file:
        where, path = file, Path(file)
        try:
            mode = path.stat().st_mode & 0o077
            token = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"labels http: token_file {file} cannot be read ({error})") from error
        if mode:
            raise ConfigError(f"labels http: others may read token_file {file}: chmod 600 {file}")
    if (token or file) and (len(token) < LEAST_TOKEN or not token.isascii()):
        raise ConfigError(
            f"labels http: the token in {where} has {len(token)} characters; allowed: at least {LEAST_TOKEN} "
            "of ASCII, as `openssl rand -hex 32` makes them"
        )
    return token


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _explain(asked: HttpOptions, error: OSError) -> str:
    where = f"{asked.host} port {asked.port}"
    if error.errno == errno.EADDRINUSE:
        return f"{where} is in use by another program: set the option port to a free one"
    if error.errno == errno.EACCES:
        return f"{where} may not be used: set the option port to 1024 or more"
    return f"cannot listen on {where}: {error}"
