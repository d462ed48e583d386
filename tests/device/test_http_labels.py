"""Labels over HTTP: a receipt for who may, a reason for who may not."""

import http.client
import json
import socket
import threading

import pytest
from edge_cl_device import http_labels
from edge_cl_device.http_labels import HttpLabels

from edge_cl.errors import ConfigError, SensorUnavailable
from edge_cl.records import Decision, Label, Receipt
from tests.mosquitto import wait_until

JSON = {"Content-Type": "application/json"}
TOKEN = "0123456789abcdef0123"


@pytest.fixture
def page(monkeypatch):
    monkeypatch.delenv(http_labels.TOKEN_VARIABLE, raising=False)
    opened = HttpLabels({"port": 0})
    yield opened
    opened.close()


def ask(page, method, path, body=b"", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", page.port, timeout=20)
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request(method, path, data or None, {**(JSON if data else {}), **headers})
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    return answer.status, json.loads(text)


def receipt(label, status="learned"):
    return Receipt(
        reading_id=label.reading_id or "r9",
        label=label.label,
        kind=label.kind,
        source=label.source,
        status=status,
    )


@pytest.fixture
def loop(page):
    """A run loop that answers every label."""
    stop, heard = threading.Event(), []

    def run():
        while not stop.wait(0.002):
            for label in page.poll():
                heard.append(label)
                page.hear(receipt(label))

    thread = threading.Thread(target=run)
    thread.start()
    yield heard
    stop.set()
    thread.join()


def test_a_label_gets_its_receipt(page, loop):
    code, answer = ask(page, "POST", "/label", {"label": "walking", "reading_id": "r7", "source": "anna"})
    assert code == 200 and answer["type"] == "receipt" and answer["status"] == "learned"
    code, answer = ask(page, "POST", "/label", {"label": "walking", "kind": "not"})
    assert code == 200 and answer["kind"] == "not" and answer["source"] == "http"
    assert loop == [
        Label(label="walking", reading_id="r7", source="http/anna"),
        Label(label="walking", kind="not", source="http"),
    ]


def test_the_status_and_the_newest_decision(page):
    assert ask(page, "GET", "/status") == (200, {"status": None, "age_s": 0.0})
    page.hear(Decision(reading_id="r7", t_s=1.0, label="walking", confidence=0.9))
    _, answer = ask(page, "GET", "/status")
    assert answer["decision"]["reading_id"] == "r7"


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "code", "said"),
    [
        ("POST", "/label", {"label": ""}, {}, 400, "the label is empty"),
        ("POST", "/label", {"lable": "a"}, {}, 400, "unknown field"),
        ("POST", "/label", b"\xff\xfe", {}, 400, "send {"),
        ("POST", "/label", {"label": "a", "source": "*"}, {}, 400, "without it"),
        ("POST", "/label", {"label": "a\nb"}, {}, 400, "printable"),
        ("POST", "/label", b"x" * 5000, {}, 413, "at most 4096"),
        ("POST", "/label", {"label": "a"}, {"Content_Type": "text/plain"}, 415, "application/json"),
        ("POST", "/label", {"label": "a"}, {"Content_Length": "-5"}, 411, "Content-Length"),
        ("POST", "/status", {"label": "a"}, {}, 404, "POST /label"),
        ("GET", "/label", b"", {}, 404, "GET /status"),
        ("GET", "/status", b"", {"Host": "evil.example:8765"}, 403, "only 127.0.0.1"),
    ],
)
def test_what_is_wrong_is_said(page, method, path, body, headers, code, said):
    found, answer = ask(page, method, path, body, **headers)
    assert (found, said in answer["error"]) == (code, True), answer
    assert page.poll() == []


def test_a_token_lets_in_who_has_it(monkeypatch, tmp_path):
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    file.chmod(0o600)
    page = HttpLabels({"port": 0, "host": "0.0.0.0", "token_file": str(file)})
    try:
        assert ask(page, "GET", "/status")[0] == 401
        assert ask(page, "GET", "/status", Authorization="Bearer wrong")[0] == 401
        assert ask(page, "POST", "/label", {"label": "a"}, Authorization=f"Bearer {TOKEN}x")[0] == 401
        good = {"Authorization": f"Bearer {TOKEN}", "Host": "device.lan"}
        assert ask(page, "GET", "/status", **good)[0] == 200
        assert page.poll() == []
    finally:
        page.close()


def test_an_open_door_is_refused(monkeypatch, tmp_path):
    monkeypatch.delenv(http_labels.TOKEN_VARIABLE, raising=False)
    file = tmp_path / "token"
    file.write_text(TOKEN)
    file.chmod(0o644)
    for options, said in [
        ({"host": "0.0.0.0"}, "where others can come in; allowed without a token: 127.0.0.1"),
        ({"token_file": str(file)}, "others may read token_file .*: chmod 600"),
        ({"token_file": str(tmp_path / "none")}, "cannot be read"),
        ({"port": 70000}, "option port is 70000; allowed: int <= 65535"),
        ({"hots": "x"}, "did you mean host"),
    ]:
        with pytest.raises(ConfigError, match=said):
            HttpLabels(options)
    monkeypatch.setenv(http_labels.TOKEN_VARIABLE, "short")
    with pytest.raises(ConfigError, match="has 5 characters; allowed: at least 16"):
        HttpLabels({})


def test_a_port_in_use_is_said(page):
    with pytest.raises(SensorUnavailable, match="in use by another program: set the option port"):
        HttpLabels({"port": page.port})


def test_too_many_at_once_and_those_that_trickle(page, monkeypatch):
    monkeypatch.setattr(http_labels._Handler, "timeout", 120.0)  # ended not only because they were silent
    monkeypatch.setattr(http_labels, "WHOLE_S", 120.0)
    n_threads, address = threading.active_count(), ("127.0.0.1", page.port)
    idle = [socket.create_connection(address, timeout=20) for _ in range(http_labels.MOST_AT_ONCE)]
    wait_until(lambda: threading.active_count() == n_threads + len(idle), "all are being served")
    with socket.create_connection(("127.0.0.1", page.port)) as extra:
        assert b"503" in extra.recv(100)
    for connection in idle:
        connection.sendall(b"GET /sta")
    monkeypatch.setattr(http_labels, "WHOLE_S", 0.0)
    for connection in idle:
        assert connection.recv(100) == b"", "ended"
        connection.close()
    wait_until(lambda: threading.active_count() == n_threads, "no thread is left")
    monkeypatch.setattr(http_labels, "WHOLE_S", 120.0)
    assert ask(page, "GET", "/status")[0] == 200 and page.alarm == ""


def test_no_receipt_in_time_is_said(page, monkeypatch):
    monkeypatch.setattr(http_labels, "RECEIPT_S", 0.05)
    code, answer = ask(page, "POST", "/label", {"label": "a"})
    assert code == 504 and "may still learn" in answer["error"]
    page.hear(receipt(page.poll()[0]))  # late: nobody waits


def test_clients_that_go_away_leave_nothing(page, caplog):
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", page.port)) as client:
            client.sendall(
                b"POST /label HTTP/1.1\r\nContent-Length: 100\r\nContent-Type: application/json\r\n\r\n{"
            )
    wait_until(lambda: not page._server._open, "all are gone")
    assert page.poll() == [] and "Traceback" not in caplog.text
