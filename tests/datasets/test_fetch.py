from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from edge_cl.datasets.fetch import RemoteFile, fetch_all, parse_list
from edge_cl.errors import DataError

BODY = bytes(range(256)) * 2000
OTHER = b"second file\n" * 50


@dataclass
class Publisher:
    """A server on loopback whose moods a test sets; `asked` records (path, Range)."""

    files: dict[str, bytes]
    ranges: bool = True
    die_after: list[int] = field(default_factory=list)
    fail_with: list[int] = field(default_factory=list)
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    url: str = ""


class Handler(BaseHTTPRequestHandler):
    publisher: Publisher

    def do_GET(self) -> None:
        publisher = self.publisher
        wanted = self.headers.get("Range")
        publisher.asked.append((self.path, wanted))
        body = publisher.files.get(self.path.lstrip("/"))
        if publisher.fail_with or body is None:
            self.send_error(publisher.fail_with.pop(0) if publisher.fail_with else 404)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and publisher.ranges else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        stop = start + publisher.die_after.pop(0) if publisher.die_after else len(body)
        self.wfile.write(body[start:stop])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    made = Publisher({"a/one.bin": BODY, "two.txt": OTHER})
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"publisher": made}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    made.url = f"http://127.0.0.1:{server.server_port}/"
    yield made
    server.shutdown()
    thread.join()
    server.server_close()


def listed(path: str, body: bytes) -> RemoteFile:
    return RemoteFile(path, len(body), hashlib.sha256(body).hexdigest())


FILES = [listed("a/one.bin", BODY), listed("two.txt", OTHER)]


def fetch(publisher: Publisher, folder: Path, files: list[RemoteFile] = FILES) -> int:
    """Fetch and return the sum of reported bytes."""
    told: list[int] = []
    fetch_all(files, publisher.url, folder, on_bytes=told.append, backoff_s=0)
    return sum(told)


def test_everything_arrives_once_and_is_not_asked_for_again(publisher: Publisher, tmp_path: Path) -> None:
    assert fetch(publisher, tmp_path) == len(BODY) + len(OTHER)
    assert (tmp_path / "a/one.bin").read_bytes() == BODY
    publisher.asked.clear()
    assert fetch(publisher, tmp_path) == len(BODY) + len(OTHER)
    assert publisher.asked == []


def test_a_partial_file_is_continued(publisher: Publisher, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/one.bin.part").write_bytes(BODY[:1000])
    assert fetch(publisher, tmp_path) == len(BODY) + len(OTHER)
    assert publisher.asked[0] == ("/a/one.bin", "bytes=1000-")
    assert (tmp_path / "a/one.bin").read_bytes() == BODY


def test_a_server_that_ignores_ranges_makes_it_start_over(publisher: Publisher, tmp_path: Path) -> None:
    publisher.ranges = False
    (tmp_path / "a").mkdir()
    (tmp_path / "a/one.bin.part").write_bytes(b"!" * 300_000)
    assert fetch(publisher, tmp_path) == len(BODY) + len(OTHER)
    assert (tmp_path / "a/one.bin").read_bytes() == BODY
    assert [path for path, _ in publisher.asked] == ["/a/one.bin", "/two.txt"]


def test_a_server_dying_in_the_middle_is_resumed(publisher: Publisher, tmp_path: Path) -> None:
    publisher.die_after = [100_000, 200_000]
    assert fetch(publisher, tmp_path) == len(BODY) + len(OTHER)
    assert [asked for _, asked in publisher.asked[:3]] == [None, "bytes=100000-", "bytes=300000-"]
    assert (tmp_path / "a/one.bin").read_bytes() == BODY


def test_what_arrived_stays_for_the_next_call(publisher: Publisher, tmp_path: Path) -> None:
    publisher.die_after = [10_000] * 4
    with pytest.raises(DataError, match="again, it continues"):
        fetch(publisher, tmp_path)
    assert (tmp_path / "a/one.bin.part").read_bytes() == BODY[:40_000]
    fetch(publisher, tmp_path)
    assert publisher.asked[4][1] == "bytes=40000-"


def test_a_corrupt_local_file_is_replaced(publisher: Publisher, tmp_path: Path) -> None:
    (tmp_path / "two.txt").write_bytes(OTHER[:-1] + b"!")
    (tmp_path / "a").mkdir()
    (tmp_path / "a/one.bin.part").write_bytes(b"!" + BODY[1:500])
    fetch(publisher, tmp_path)
    assert (tmp_path / "two.txt").read_bytes() == OTHER
    assert (tmp_path / "a/one.bin").read_bytes() == BODY


def test_another_content_than_listed_is_refused(publisher: Publisher, tmp_path: Path) -> None:
    publisher.files["two.txt"] = OTHER[:-1] + b"!"
    with pytest.raises(DataError, match="SHA-256"):
        fetch(publisher, tmp_path, FILES[1:])
    assert not (tmp_path / "two.txt").exists()


def test_a_missing_file_is_reported_at_once(publisher: Publisher, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"404.*--base-url"):
        fetch(publisher, tmp_path, [listed("gone.csv", b"x")])
    assert len(publisher.asked) == 1


def test_a_busy_server_is_asked_again(publisher: Publisher, tmp_path: Path) -> None:
    publisher.fail_with = [503, 429]
    fetch(publisher, tmp_path, FILES[1:])
    assert (tmp_path / "two.txt").read_bytes() == OTHER


def test_only_web_addresses_are_fetched(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="http://"):
        fetch_all(FILES, "file:///etc", tmp_path)


def test_the_list_skips_comments() -> None:
    assert parse_list("# note\nabc 12 DATA/x y.csv\n\n") == [RemoteFile("DATA/x y.csv", 12, "abc")]
