from __future__ import annotations

import csv
import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from edge_cl.datasets import recordings, spsw_har
from edge_cl.datasets.fetch import RemoteFile
from edge_cl.datasets.places import find
from edge_cl.errors import DataError

HEADER = ",".join(spsw_har.COLUMNS)


def write_csv(folder: Path, name: str, rows: list[str], header: str = HEADER) -> Path:
    path = folder / "DATA" / name[:3] / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def publisher_folder(folder: Path) -> Path:
    write_csv(folder, "s02_10_sp.csv", ["0,0,0,0,0,0,5000,SEATED"])
    write_csv(folder, "s02_09_sw.csv", ["1,-1,9.81,0.1,-0.1,99,7000,WALKING", "1,1,1,1,1,1,7012,TURNING"])
    write_csv(folder, "s02_09_sp.csv", ["0,0,9.81,0,0,0,7001,SEATED"])
    (folder / "DATA" / "executions_info.csv").write_text(
        "execution_id,orientation,first_turn,second_turn\ns02_09,back,l,r\ns02_10,front_inv,l,r\n"
    )
    return folder


def test_csv_files_become_recordings_in_order(tmp_path: Path) -> None:
    out = tmp_path / "spsw_har.npz"
    spsw_har.convert(publisher_folder(tmp_path / "raw"), out)
    data = recordings.load(out)
    assert [(r.tags["execution"], r.tags["device"]) for r in data.recordings] == [
        (9, "smartphone"),
        (9, "smartwatch"),
        (10, "smartphone"),
    ]
    watch = data.recordings[1]
    np.testing.assert_allclose(watch.signal[0, :5], [1, -1, 9.81, 0.1, -0.1], atol=1e-3)
    assert watch.signal[0, 5] == pytest.approx(32767 / 1500, rel=1e-5)
    assert watch.t_s.tolist() == [0, 0.012]
    assert [data.class_names[y] for y in watch.y] == ["WALKING", "TURNING"]
    assert data.recordings[2].tags["phone_orientation"] == "front_inv"
    assert data.recordings[2].tags["start_unix_ms"] == 5000


@pytest.mark.parametrize(
    ("rows", "header"),
    [
        (["0,0,0,0,0,0,1,FLYING"], HEADER),
        (["0,0,0,0,0,0,1"], HEADER),
        (["0,0,zero,0,0,0,1,SEATED"], HEADER),
        ([], HEADER),
        (["0,0,0,0,0,0,1,SEATED"], HEADER.replace("timestamp", "time")),
    ],
)
def test_a_strange_csv_is_named(tmp_path: Path, rows: list[str], header: str) -> None:
    path = write_csv(tmp_path, "s01_01_sp.csv", rows, header)
    with pytest.raises(DataError, match=r"s01_01_sp\.csv"):
        spsw_har.read_recording(path)


def test_the_shipped_list_is_whole() -> None:
    files = spsw_har.remote_files()
    assert len(files) == 448
    assert sum(file.size_bytes for file in files) == 72_783_224
    assert len({file.sha256 for file in files}) == len({file.path for file in files}) == 448


def test_get_fetches_converts_and_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import functools
    import threading
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    from edge_cl.cli import data as command

    raw = publisher_folder(tmp_path / "raw")
    listed = [
        RemoteFile(str(p.relative_to(raw)), p.stat().st_size, hashlib.sha256(p.read_bytes()).hexdigest())
        for p in raw.rglob("*.csv")
    ]
    monkeypatch.setattr(command, "remote_files", lambda: listed)
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(raw))
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *args: None)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        to = tmp_path / "to"
        result = CliRunner().invoke(command.data, ["get", "spsw-har", "--to", str(to), "--base-url", url])
        server.shutdown()
    assert result.exit_code == 0, result.output
    assert len(recordings.load(to / "spsw_har.npz").recordings) == 3
    monkeypatch.setenv("EDGE_CL_DATA", str(to))
    assert find("spsw_har.npz") == to / "spsw_har.npz"
    assert str(to) in CliRunner().invoke(command.data, ["list"]).output


def test_conversion_gives_back_the_known_file(tmp_path: Path) -> None:
    """Real recordings written as the publisher's CSV convert to the very same arrays."""
    known = find("spsw_har.npz")
    if known is None:
        pytest.skip("no spsw_har.npz; set EDGE_CL_DATA or run `edge-cl data get spsw-har`")
    with np.load(known, allow_pickle=False) as loaded:
        real = {key: loaded[key] for key in loaded.files}
    chosen = range(4)
    for k in chosen:
        write_real(tmp_path, real, k)
    info = tmp_path / "DATA" / "executions_info.csv"
    names = {stem(real, k)[:6]: str(real["rec_phone_orientation"][k]) for k in chosen}
    info.write_text("execution_id,orientation\n" + "".join(f"{a},{b}\n" for a, b in names.items()))
    out = tmp_path / "out.npz"
    spsw_har.convert(tmp_path, out)
    n = real["offsets"][len(chosen)]
    with np.load(out, allow_pickle=False) as loaded:
        assert sorted(loaded.files) == sorted(real)
        for key in loaded.files:
            expected = real[key]
            if key == "offsets":
                expected = expected[: len(chosen) + 1]
            elif key.startswith("rec_"):
                expected = expected[: len(chosen)]
            elif len(expected) == real["offsets"][-1]:
                expected = expected[:n]
            np.testing.assert_array_equal(loaded[key], expected, err_msg=key)
            assert loaded[key].dtype.kind == real[key].dtype.kind
            assert key == "rec_phone_orientation" or loaded[key].dtype == real[key].dtype, key


def stem(real: dict[str, np.ndarray], k: int) -> str:
    device = "sp" if real["rec_device"][k] == 0 else "sw"
    return f"s{real['rec_subject'][k]:02d}_{real['rec_execution'][k]:02d}_{device}"


def write_real(folder: Path, real: dict[str, np.ndarray], k: int) -> None:
    a, b = real["offsets"][k : k + 2]
    path = folder / "DATA" / stem(real, k)[:3] / f"{stem(real, k)}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        out = csv.writer(file, lineterminator=os.linesep)
        out.writerow(spsw_har.COLUMNS)
        for i in range(a, b):
            physical = real["signal"][i] * real["scale"].astype(np.float64)
            stamp = int(real["rec_start_unix_ms"][k]) + int(real["t_ms"][i])
            out.writerow([*physical.astype(np.float32), stamp, real["class_names"][real["y"][i]]])
