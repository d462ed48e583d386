"""A file comes in pieces: any order, any loss, any damage, any cut; it is whole or it is not taken."""

import hashlib
import random
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_cl.commands import Release
from edge_cl.release import chunk_hash
from edge_cl.sync.fetch import ASK_AGAIN_S, AT_ONCE, Fetch

CHUNK = 100


def released(body, *, url="", sha256=""):
    chunks = [chunk_hash(body[at : at + CHUNK]) for at in range(0, len(body), CHUNK)]
    sha256 = sha256 or hashlib.sha256(body).hexdigest()
    return Release(
        name="b", bundle_id="0" * 64, sha256=sha256, size=len(body), chunk_bytes=CHUNK, chunks=chunks, url=url
    )


class Server:
    """Answers what is wanted, as unreliably as it is told; and the clock."""

    def __init__(self, body, release=None):
        self.body, self.release = body, release or released(body)
        self.now_s = 0.0
        self.wanted = []

    def fetch(self, path):
        return Fetch(self.release, path, self.want, clock=lambda: self.now_s)

    def want(self, first, n):
        assert 1 <= n <= AT_ONCE
        self.wanted += range(first, first + n)

    def piece(self, index):
        return self.body[index * CHUNK : (index + 1) * CHUNK]

    def serve(self, fetch, spoil=lambda index, piece: [(index, piece)], most=10_000):
        for _ in range(most):
            fetch.step()
            if fetch.state in ("done", "failed"):
                return
            wanted, self.wanted = self.wanted, []
            for index in wanted:
                for sent in spoil(index, self.piece(index)):
                    fetch.chunk(*sent)
            if not wanted and fetch.state == "fetching" and fetch._asked:
                self.now_s += ASK_AGAIN_S


BODY = random.Random(5).randbytes(2345)


def test_a_file_comes_whole(tmp_path):
    server = Server(BODY)
    fetch = server.fetch(tmp_path / "f")
    server.serve(fetch)
    assert fetch.state == "done" and (tmp_path / "f").read_bytes() == BODY
    assert fetch.n_have == 24 and not fetch.n_dropped and server.now_s == 0, "nobody had to wait"


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1))
def test_lost_doubled_shuffled_truncated_and_foreign_chunks_and_restarts(tmp_path_factory, seed):
    rng = random.Random(seed)
    path = tmp_path_factory.mktemp("fetch") / "f"
    server = Server(BODY)

    spoiled = set()

    def spoil(index, piece):
        kind = rng.choice(["lost", "twice", "short", "foreign", "well", "well"])
        if index in spoiled and kind in ("short", "foreign"):
            kind = "well"  # three damaged copies of one chunk would be a failure, and rightly
        if kind in ("short", "foreign"):
            spoiled.add(index)
        return {
            "lost": [],
            "twice": [(index, piece), (index, piece)],
            "short": [(index, piece[:-1])],
            "foreign": [(index, bytes(len(piece))), (index + 1000, piece), (-1, piece)],
            "well": [(index, piece)],
        }[kind]

    for _ in range(200):
        fetch = server.fetch(path)
        server.wanted = []
        server.serve(fetch, spoil, most=rng.randrange(1, 30))
        fetch.close()  # the device stops
        if fetch.state == "done":
            break
    assert fetch.state == "done", fetch.reason
    assert path.read_bytes() == BODY


def test_a_restart_asks_only_for_what_is_missing(tmp_path):
    server = Server(BODY)
    fetch = server.fetch(tmp_path / "f")
    server.serve(fetch, lambda i, piece: [(i, piece)] if i not in (3, 17) else [], most=40)
    fetch.close()
    server.wanted = []
    again = server.fetch(tmp_path / "f")
    for _ in range(40):
        again.step()
    assert again.n_have == 22 and server.wanted == [3, 17]
    server.serve(again)
    assert again.state == "done"


def test_what_is_damaged_on_the_disk_is_fetched_again(tmp_path):
    server = Server(BODY)
    (tmp_path / "f").write_bytes(BODY[:500] + b"\x00" * 100 + BODY[600:] + b"and more")
    fetch = server.fetch(tmp_path / "f")
    server.serve(fetch)
    assert fetch.state == "done" and (tmp_path / "f").read_bytes() == BODY


def test_it_asks_for_others_after_a_while_and_not_before(tmp_path):
    server = Server(BODY)
    fetch = server.fetch(tmp_path / "f")
    for _ in range(50):
        fetch.step()
    assert server.wanted == list(range(AT_ONCE))
    server.now_s = ASK_AGAIN_S
    fetch.step()
    assert server.wanted == list(range(2 * AT_ONCE)), "those that never came must not keep the others waiting"


def test_a_chunk_that_comes_damaged_three_times_ends_it(tmp_path):
    server = Server(BODY)
    fetch = server.fetch(tmp_path / "f")
    server.serve(fetch, lambda i, piece: [(i, piece if i != 5 else b"x" * len(piece))])
    assert fetch.state == "failed" and "chunk 5 of 24" in fetch.reason


def test_chunks_that_do_not_make_up_the_file_end_it(tmp_path):
    server = Server(BODY, released(BODY, sha256="ab" * 32))
    fetch = server.fetch(tmp_path / "f")
    server.serve(fetch)
    assert fetch.state == "failed" and "SHA-256" in fetch.reason


def test_a_disk_that_takes_nothing_ends_it(tmp_path):
    server = Server(BODY)
    fetch = server.fetch(tmp_path / "nowhere" / "f")
    server.serve(fetch)
    assert fetch.state == "failed" and "cannot be written" in fetch.reason


# ------------------------------------------------------------------ by URL


class Site(ThreadingHTTPServer):
    """Serves one file and breaks off as often as it is told."""

    daemon_threads = True

    def __init__(self, body):
        self.body, self.breaks, self.ranges, self.status = body, 0, [], None
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/b.ecl"


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        site = self.server
        asked = self.headers.get("Range", "")
        site.ranges.append(asked)
        if site.status:
            self.send_error(site.status)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-") or 0)
        body = site.body[start:]
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if site.breaks:
            site.breaks -= 1
            body = body[: len(body) // 2]
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def site():
    found = Site(BODY * 100)
    yield found
    found.shutdown()
    found.server_close()


def follow(fetch, server):
    for _ in range(3000):
        fetch.step()
        if fetch.state in ("done", "failed"):
            return
        if fetch._download is not None:
            fetch._download._thread.join(10)
        server.now_s += 100
    pytest.fail(f"it came to nothing: {fetch.state}")


def test_a_url_is_read_on_where_it_broke_off(tmp_path, site):
    site.breaks = 2
    server = Server(site.body, released(site.body, url=site.url))
    fetch = server.fetch(tmp_path / "f")
    follow(fetch, server)
    assert fetch.state == "done" and (tmp_path / "f").read_bytes() == site.body
    assert site.ranges[0] == "" and len(site.ranges) == 3 and all(site.ranges[1:]), site.ranges
    assert not server.wanted


def test_a_url_with_more_than_it_should_have_ends_it(tmp_path, site):
    short = BODY * 50
    server = Server(short, released(short, url=site.url))
    fetch = server.fetch(tmp_path / "f")
    follow(fetch, server)
    assert fetch.state == "failed" and "longer than" in fetch.reason


@pytest.mark.parametrize("status", [404, 403])
def test_a_url_that_is_refused_ends_it(tmp_path, site, status):
    site.status = status
    server = Server(BODY, released(BODY, url=site.url))
    fetch = server.fetch(tmp_path / "f")
    follow(fetch, server)
    assert fetch.state == "failed" and str(status) in fetch.reason


def test_no_other_kind_of_url_is_opened(tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(BODY)
    server = Server(BODY, released(BODY, url=secret.as_uri()))
    fetch = server.fetch(tmp_path / "f")
    follow(fetch, server)
    assert fetch.state == "failed" and "not a URL" in fetch.reason
