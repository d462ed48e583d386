"""A bundle that is not exactly what was exported is never loaded, and the message says why."""

import hashlib
import io
import json
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_cl.bundle import Bundle, npz_bytes
from edge_cl.errors import BundleError
from tests.devices import edge_cl
from tests.worlds import make_bundle


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("bundle") / "b.ecl"
    make_bundle(path)
    return path


def members(bundle):
    return {name: bundle.member(name) for name in bundle.manifest.members}


def rewritten(path, to, *, compression=zipfile.ZIP_STORED, drop=(), rehash=(), **change):
    """A copy with members dropped, added or replaced; `rehash` makes the manifest agree with them.

    A callable for `manifest` edits it.
    """
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist() if name not in drop}
    manifest = json.loads(content.pop("manifest.json"))
    edit = change.pop("manifest", None)
    content |= {name.replace("_", "."): data for name, data in change.items()}
    for name in rehash:
        data = content[name]
        manifest["members"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    if edit:
        edit(manifest)
    with zipfile.ZipFile(to, "w", compression) as archive:
        archive.writestr(zipfile.ZipInfo("manifest.json"), json.dumps(manifest))
        for name, data in content.items():
            archive.writestr(name, data)
    return to


def refused(path, *found):
    """Loading fails with a BundleError that names the file and holds these words."""
    with pytest.raises(BundleError) as caught:
        Bundle.load(path)
    for words in found:
        assert words in str(caught.value)
    assert path.name in str(caught.value)


def test_the_bundle_itself_is_fine(path):
    bundle = Bundle.load(path)
    assert set(members(bundle)) == {"prior.npz", "golden.npz"}
    assert Bundle.load(path).bundle_id == bundle.bundle_id


@settings(max_examples=150)
@given(data=st.data())
def test_any_changed_byte_is_noticed_or_changes_nothing(path, tmp_path_factory, data):
    original = path.read_bytes()
    at = data.draw(st.integers(0, len(original) - 1))
    value = data.draw(st.integers(0, 255).filter(lambda v: v != original[at]))
    _check_altered(path, tmp_path_factory, at, value)


def test_every_byte_of_the_archives_own_tables_may_be_altered(path, tmp_path_factory):
    """The central directory is where a zip reader trips; each bit of it."""
    data = path.read_bytes()
    start = data.index(b"PK\x01\x02")
    for at in range(start, len(data)):
        for bit in range(8):
            _check_altered(path, tmp_path_factory, at, data[at] ^ (1 << bit))


def _check_altered(path, tmp_path_factory, at, value):
    altered = bytearray(path.read_bytes())
    altered[at] = value
    target = tmp_path_factory.getbasetemp() / "altered.ecl"
    target.write_bytes(altered)
    try:
        bundle = Bundle.load(target)
    except BundleError:
        return
    whole = Bundle.load(path)
    assert members(bundle) == members(whole) and bundle.manifest == whole.manifest, f"byte {at} → {value}"


def test_a_truncated_file_is_refused_wherever_it_ends(path, tmp_path):
    whole, part = path.read_bytes(), tmp_path / "part.ecl"
    for n in {*range(0, len(whole), max(len(whole) // 100, 1)), *range(len(whole) - 100, len(whole))}:
        part.write_bytes(whole[:n])
        refused(part, "copy it again")


def test_what_is_no_bundle_is_said_to_be_none(path, tmp_path):
    (tmp_path / "a.ecl").write_bytes(b"hello" * 100)
    refused(tmp_path / "a.ecl", "not a readable bundle", "copy it again")
    refused(tmp_path, "not a readable bundle")
    refused(tmp_path / "no.ecl", "no such file; make one with `edge-cl export`")
    with zipfile.ZipFile(tmp_path / "zip.ecl", "w") as archive:
        archive.writestr("readme.txt", "hello")
    refused(tmp_path / "zip.ecl", "no manifest.json inside")


def test_a_newer_format_asks_for_an_upgrade(path, tmp_path):
    def newer(manifest):
        manifest |= {"format_version": 2, "something": "new"}

    refused(rewritten(path, tmp_path / "b.ecl", manifest=newer), "bundle format 2", "upgrade edge-cl")


def test_members_that_are_not_as_the_manifest_says(path, tmp_path):
    to = tmp_path / "b.ecl"
    refused(rewritten(path, to, drop=["prior.npz"]), "prior.npz is in the manifest but not in the file")
    refused(rewritten(path, to, more_txt=b"x"), "members not in the manifest: ['more.txt']", "altered")
    refused(rewritten(path, to, prior_npz=b"short"), "prior.npz has 5 bytes, the manifest says")
    same_size = bytes(len(Bundle.load(path).member("prior.npz")))
    refused(rewritten(path, to, prior_npz=same_size), "prior.npz has SHA-256", "copy it again")
    refused(rewritten(path, to, compression=zipfile.ZIP_DEFLATED), "is compressed")


@pytest.mark.parametrize(
    ("field", "value", "found"),
    [
        ("class_names", ["rest", "rest", "run"], "class"),
        ("class_names", [1, 2, 3], "class_names"),
        ("rate_hz", 0.0, "rate"),
        ("window_samples", 0, "window"),
        ("hop_samples", -1, "hop"),
        ("feature_size", 0, "feature"),
        ("channels", [], "channel"),
        ("format", "another", "format"),
    ],
)
def test_a_manifest_that_makes_no_sense(path, tmp_path, field, value, found):
    target = rewritten(path, tmp_path / "b.ecl", manifest=lambda manifest: manifest.update({field: value}))
    refused(target, found)


def test_a_manifest_that_is_no_json(path, tmp_path):
    with zipfile.ZipFile(tmp_path / "b.ecl", "w") as archive:
        archive.writestr("manifest.json", b"{")
    refused(tmp_path / "b.ecl", "not JSON")


def test_a_prior_of_another_shape(path, tmp_path):
    with np.load(io.BytesIO(Bundle.load(path).member("prior.npz"))) as loaded:
        arrays = dict(loaded)
    for name, wrong, found in [
        ("class_means", np.zeros((3, 5)), "class_means has shape (3, 5), should be (3, 6)"),
        ("shared_cov", np.full((6, 6), np.nan), "shared_cov holds values that are not finite"),
        ("exemplar_labels", np.full(60, 9), "classes outside the manifest"),
    ]:
        data = npz_bytes(**(arrays | {name: wrong}))
        bundle = Bundle.load(rewritten(path, tmp_path / "b.ecl", prior_npz=data, rehash=["prior.npz"]))
        with pytest.raises(BundleError) as caught:
            bundle.prior()
        assert found in str(caught.value)


def test_verify_says_what_it_checked(path):
    done = edge_cl("verify", path)
    assert done.returncode == 0
    assert "all sizes and SHA-256 as in the manifest" in done.stdout
    assert "features equal the exporter's" in done.stdout
    facts = json.loads(edge_cl("verify", path, "--json").stdout)
    assert facts["bundle_id"] == Bundle.load(path).bundle_id and facts["golden_error"] == 0


def test_verify_refuses_without_a_traceback(path, tmp_path):
    (tmp_path / "torn.ecl").write_bytes(path.read_bytes()[:-50])
    with np.load(io.BytesIO(Bundle.load(path).member("golden.npz"))) as loaded:
        golden = npz_bytes(inputs=loaded["inputs"], features=loaded["features"] + 1)
    wrong = rewritten(path, tmp_path / "wrong.ecl", golden_npz=golden, rehash=["golden.npz"])
    for target, found in [
        (tmp_path / "torn.ecl", "copy it again"),
        (wrong, "do not deploy it here"),
        (tmp_path, "not a readable bundle"),
    ]:
        done = edge_cl("verify", target)
        assert done.returncode == 1 and found in done.stderr and "Traceback" not in done.stderr


def test_a_member_that_was_let_go_is_said_to_be_and_no_self_test_passes_without_it(path):
    bundle = Bundle.load(path)
    bundle.let_go(["golden.npz"])
    for ask in (bundle.golden, lambda: bundle.member("golden.npz")):
        with pytest.raises(BundleError, match=r"holds 'golden\.npz' no longer.*load its file again"):
            ask()
    with pytest.raises(BundleError, match="has no member 'other'"):
        bundle.member("other")
    assert bundle.prior() is not None
