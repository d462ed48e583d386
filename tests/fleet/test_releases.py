"""A bundle is added, signed, listed, found; a device that knows the key takes it, chunk by chunk."""

import hashlib

import msgspec
import pytest
from click.testing import CliRunner
from edge_cl_fleet import releases, tables
from edge_cl_fleet.arrivals import Source
from edge_cl_fleet.chunks import ChunkServer
from edge_cl_fleet.command import fleet
from edge_cl_fleet.store import FleetStore
from sqlalchemy import select

from edge_cl import Bundle
from edge_cl.config import settings_from
from edge_cl.errors import BundleError, FleetError
from edge_cl.sync import signing
from edge_cl.sync.messages import CHUNK_BYTES, Want
from edge_cl.sync.orders import CommandRefused, verify_release
from tests.upgrade.boards import Board, variant
from tests.worlds import World


@pytest.fixture
def store(store_url):
    made = FleetStore(store_url)
    yield made
    made.close()


def keys_of(private_hex, *allow):
    raw = {"public": signing.public_of(private_hex), "allow": list(allow)}
    return settings_from({"commands": {"keys": {"maker": raw}}}).commands.keys


def typed(url, *words):
    return CliRunner().invoke(fleet, [str(word) for word in words], env={"EDGE_CL_STORE": url})


def test_a_bundle_goes_from_the_command_line_onto_a_device(store, store_url, tmp_path):
    board = Board(tmp_path).start()
    new = variant(
        Bundle.load(board.home), tmp_path / "new.ecl", name="newer", provenance={"x": "y" * 300_000}
    )
    signing.write_key(tmp_path / "maker", private := signing.make_key())
    added = typed(store_url, "add", tmp_path / "new.ecl", "--key", tmp_path / "maker", "--key-name", "maker")
    assert added.exit_code == 0 and "signed by maker" in added.output, added
    assert "newer" in typed(store_url, "bundles").output
    install = releases.find(store.engine, "newer")
    release = verify_release(install, keys_of(private, "release"))
    assert release.bundle_id == new.bundle_id and len(release.chunks) == 4

    sent = []
    server = ChunkServer(store, lambda topic, body, **_: sent.append((topic, body)) or True)
    board.device.upgrade.want = lambda sha256, first, n: server.answer(
        Source("home", "edge-cl", "want"), Want(sha256=sha256, first=first, n=n)
    )
    board.device.upgrade.install(release, id="c7")
    for _ in range(10):
        board.run([None] * 3)
        for topic, body in sent:
            begins, index = topic.split("/")[-2:]
            board.device.upgrade.chunk(begins, int(index), body)
        sent.clear()
    assert board.phases == ["fetched", "shadow"], board.reports
    board.run(World(seed=5).events(25))
    assert board.phases[-1] == "committed" and board.bundle_id == new.bundle_id
    board.stop()


def test_a_release_that_somebody_changed_or_may_not_sign_is_refused(tmp_path):
    Board(tmp_path)
    private = signing.make_key()
    release = releases.make_release(tmp_path / "home.ecl", includes={"home/a": 7})
    install = releases.sign_release(release, private, "maker")
    assert verify_release(install, keys_of(private, "release")) == release
    with pytest.raises(CommandRefused):
        verify_release(install, keys_of(private, "label"))
    with pytest.raises(CommandRefused):
        verify_release(install, keys_of(signing.make_key(), "release"))
    other = install.release.replace('"home/a":7', '"home/a":8')
    with pytest.raises(CommandRefused):
        verify_release(msgspec.structs.replace(install, release=other), keys_of(private, "release"))


def test_what_is_kept_is_the_file_and_adding_it_again_changes_only_what_is_said(store, tmp_path):
    Board(tmp_path)
    body = (tmp_path / "home.ecl").read_bytes()
    private = signing.make_key()
    for url in ("", "https://example.org/home.ecl"):
        release = releases.make_release(tmp_path / "home.ecl", url=url)
        releases.add(store.engine, release, releases.sign_release(release, private, "maker"), body)
    (found,) = releases.kept(store.engine)
    assert (found.size, found.url) == (len(body), "https://example.org/home.ecl")
    with store.reading.connect() as connection:
        assert bytes(connection.execute(select(tables.bundles.c.body)).scalar_one()) == body
    assert release.sha256 == hashlib.sha256(body).hexdigest() and release.chunk_bytes == CHUNK_BYTES
    assert releases.find(store.engine, found.sha256[:10]).signed_by == "maker"
    with pytest.raises(FleetError, match="found none"):
        releases.find(store.engine, "nothing")


def test_what_is_no_bundle_is_not_added(tmp_path):
    (tmp_path / "b.ecl").write_bytes(b"PK nonsense")
    with pytest.raises(BundleError, match="not a readable bundle"):
        releases.make_release(tmp_path / "b.ecl")
