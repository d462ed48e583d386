"""Serial lines: whatever the split, the noise, the cable."""

import binascii
import errno
import grp
import itertools
import json
import math
import os
import sys
import termios

import numpy as np
import pytest
from edge_cl_device import serial_line
from edge_cl_device.frames import Frame, FrameParser, encode_frame
from edge_cl_device.serial_line import SerialLine
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_cl.errors import BadReading, ConfigError, SensorUnavailable
from edge_cl.records import Label
from edge_cl.sensing.lines import Samples
from edge_cl.sensing.live import LiveStream, Waits
from edge_cl.sensing.stream import Assembler, LabelSchedule
from tests.device.pty import Cable
from tests.mosquitto import wait_until
from tests.sensing.sensors import manifest_of

LABEL = Label(label="walk", reading_id="r7", source="stream")
ROWS = np.arange(240, dtype="<i2").reshape(120, 2) - 100


def pieces(data, cuts):
    ends = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(ends)]


def frames_of(data, cuts=(), kind="int16"):
    parser = FrameParser(2, kind)
    return [found for part in pieces(data, cuts) for found in parser.feed(part)]


def sent(n=10, *, first=0):
    return [encode_frame(first + k * 3, ROWS[k * 3 : k * 3 + 3]) for k in range(n)]


def good(found):
    return [(frame.first, frame.rows.tolist()) for frame in found if isinstance(frame, Frame)]


def test_the_checksum_is_the_one_that_firmware_libraries_have():
    assert binascii.crc_hqx(b"123456789", 0xFFFF) == 0x29B1, "the check value of CRC-16/CCITT-FALSE"


@given(st.lists(st.integers(0, 10_000), max_size=30))
def test_frames_do_not_depend_on_the_split(cuts):
    found = frames_of(b"".join(sent()), cuts)
    assert good(found) == [(k * 3, ROWS[k * 3 : k * 3 + 3].tolist()) for k in range(10)]
    assert len(found) == 10


@given(
    st.lists(st.binary(max_size=40), min_size=10, max_size=10), st.lists(st.integers(0, 10_000), max_size=10)
)
def test_noise_between_frames_loses_none(noise, cuts):
    data = b"".join(a + b for a, b in zip(noise, sent(), strict=True))
    found = good(frames_of(data + bytes(4200), cuts))
    assert [first for first, _ in found if first % 3 == 0 and first < 30] == [k * 3 for k in range(10)]


def test_a_false_beginning_with_a_long_length_costs_nothing():
    false = b"\xa5\x5a" + (4096).to_bytes(2, "little") + b"1234"
    parser = FrameParser(2, "int16")
    assert parser.feed(false + b"".join(sent(10))) == [], "it may still be a frame"
    found = [*parser.feed(bytes(4200))]
    assert [frame.first for frame in found if isinstance(frame, Frame)] == [k * 3 for k in range(10)]
    assert isinstance(found[0], BadReading) and "8 bytes that belong to no frame" in str(found[0])


@pytest.mark.parametrize("at", [2, 4, 9, 13, -1])
def test_a_flipped_bit_costs_its_frame_only(at):
    frames = [bytearray(frame) for frame in sent(5)]
    frames[2][at] ^= 0x10
    found = frames_of(b"".join(frames) + bytes(4200))
    assert [first for first, _ in good(found)] == [0, 3, 9, 12]


def test_floats_and_a_counter_that_wraps_or_begins_anew():
    rows = np.array([[1.5, -2.5]], "<f4")
    firsts = [0xFFFFFFFE, 0xFFFFFFFF, 0, 1, 0, 1]
    found = good(frames_of(b"".join(encode_frame(first, rows) for first in firsts), kind="float32"))
    assert found[0][1] == [[1.5, -2.5]]
    assert [first for first, _ in found] == [2**32 - 2, 2**32 - 1, 2**32, 2**32 + 1, 0, 1]


class Port:
    """Stands in for pyserial's; reads give the pieces it was given."""

    def __init__(self, parts=()):
        self.parts = list(parts)
        self.in_waiting = 0

    def read(self, n):
        return self.parts.pop(0) if self.parts and n else b""

    def close(self):
        pass


def windows_of(parts, manifest, options, monkeypatch):
    """Windows of what is read piece by piece, ten times a second."""
    monkeypatch.setattr(serial_line, "_open", lambda _: Port(parts))
    now = itertools.count(1000)
    monkeypatch.setattr(serial_line.time, "monotonic", lambda: next(now) / 10)
    sensor = SerialLine(manifest, {"port": "x", **options})
    assembler = Assembler(manifest, LabelSchedule(), "p")
    return [event for _ in parts for event in assembler.take(sensor.read())], assembler


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({}, lambda k: json.dumps({"x": [k, -k]})),
        ({}, lambda k: json.dumps({"t": k / 10, "x": [k, -k]})),
        ({"format": "csv"}, lambda k: f"{k},{-k}"),
        ({"format": "csv", "columns": ["c1", "t_s", "c0"]}, lambda k: f"{-k},{k / 10},{k}"),
    ],
)
def test_lines_with_and_without_their_own_time(monkeypatch, options, line):
    data = b"half of a li\n" + b"".join(line(k).encode() + b"\r\n" for k in range(40))
    events, state = windows_of([data], manifest_of(), options, monkeypatch)
    assert len(events) == 7 and state.n_bad == 0
    np.testing.assert_allclose(events[0].window[:, 0], np.arange(10), atol=1e-4)
    assert events[-1].t_s == pytest.approx(100 - 0.0, abs=0.11)


@settings(max_examples=60)
@given(st.lists(st.integers(0, 10_000), max_size=40))
def test_what_is_read_does_not_depend_on_how_bytes_came(cuts):
    lines = [b'{"t": %d.%d, "x": [%d, 1.5]}\n' % (k // 10, k % 10, k) for k in range(60)]
    lines[20:20] = [b'{"label": "walk", "reading_id": "r7"}\n', b"\xff\x00noise\n"]
    data, found = b"\n" + b"".join(lines), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serial_line, "_open", lambda _: Port(pieces(data, cuts)))
        sensor = SerialLine(manifest_of(), {"port": "x"})
        for _ in range(len(cuts) + 1):
            found += sensor.read()
    samples = [item for item in found if isinstance(item, Samples)]
    np.testing.assert_array_equal(np.concatenate([item.values for item in samples])[:, 0], np.arange(60))
    before = sum(len(item.values) for item in found[: found.index(LABEL)] if isinstance(item, Samples))
    assert before == 20 and sum(isinstance(item, BadReading) for item in found) == 1


def test_a_header_and_noise_are_passed_over(monkeypatch):
    text = b"\nc0,c1\n" + b"".join(b"%d,1\n" % k for k in range(10)) + b"7,\xff\xfe\n1,2,3\n\n"
    events, state = windows_of([text], manifest_of(), {"format": "csv"}, monkeypatch)
    assert len(events) == 1 and state.n_bad == 2


def test_a_line_without_end_is_given_up(monkeypatch):
    monkeypatch.setattr(serial_line, "MOST_LINE_BYTES", 1000)
    parts = [b"\n", *[b"x" * 400] * 6, b"\n", *[b'{"x": [1, 2]}\n'] * 10]
    events, state = windows_of(parts, manifest_of(), {}, monkeypatch)
    assert state.n_bad == 2 and len(events) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "the option port is missing"),
        ({"port": "x", "bauds": 9600}, "unknown option bauds; did you mean baud"),
        ({"port": "x", "format": "xml"}, "option format is 'xml'; allowed"),
        (
            {"port": "x", "format": "csv", "columns": ["c0"]},
            "does not fit the bundle: .* need t_s,c0,c1",
        ),
        (
            {"port": "x", "format": "frames", "scale": [1, 2, 3]},
            r"scale is \[1.0, .*\]; allowed: .* 2 of them",
        ),
        ({"port": "x", "full_scale": [4] * 3}, r"full_scale is \[4.0, .*\]; allowed: a number, or 2 of them"),
        ({"port": "x", "full_scale": []}, r"full_scale is \[\]; allowed"),
        ({"port": "x", "full_scale": [4, math.nan]}, r"full_scale is \[4.0, nan\]; allowed"),
    ],
)
def test_wrong_options_are_explained(options, said):
    with pytest.raises(ConfigError, match=said):
        SerialLine(manifest_of(), options)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOENT, "there is no /dev/ttyX: is it plugged in .*do_serial_hw 0"),
        (errno.EACCES, "no permission for /dev/ttyX: sudo usermod -aG dialout "),
        (errno.EPERM, "sudo systemctl edit edge-cl.*DeviceAllow=/dev/ttyX rw"),
        (errno.EBUSY, "in use by another program"),
    ],
)
def test_a_port_that_cannot_be_opened(monkeypatch, number, said):
    import serial

    def refuse(*_, **__):
        raise serial.SerialException(number, "could not open port")

    monkeypatch.setattr(serial, "Serial", refuse)
    with pytest.raises(SensorUnavailable, match=said):
        SerialLine(manifest_of(), {"port": "/dev/ttyX"})


def test_the_group_that_a_port_really_has_is_named(monkeypatch, tmp_path):
    """udev's rules give some USB devices to plugdev, where dialout helps nobody."""
    import serial

    def refuse(*_, **__):
        raise serial.SerialException(errno.EACCES, "could not open port")

    monkeypatch.setattr(serial, "Serial", refuse)
    if os.geteuid() != 0:
        pytest.skip("only root gives a file to another group")
    port = tmp_path / "ttyACM0"
    port.touch()
    os.chown(port, 0, grp.getgrnam("plugdev").gr_gid)
    for mode, group in ((0o660, "plugdev"), (0o600, "dialout")):
        port.chmod(mode)
        with pytest.raises(SensorUnavailable, match=f"usermod -aG {group} "):
            SerialLine(manifest_of(), {"port": str(port)})


def test_a_cable_that_is_pulled_while_the_port_is_opened(monkeypatch):
    """pyserial sets the line up with calls whose error is no OSError; the sensor is then tried again."""
    import serial

    def vanish(*_):
        raise termios.error(errno.EIO, "Input/output error")

    master, slave = os.openpty()
    monkeypatch.setattr(serial.serialposix.termios, "tcflush", vanish)
    with pytest.raises(SensorUnavailable, match="Input/output error"):
        SerialLine(manifest_of(), {"port": os.ttyname(slave)})
    os.close(master)
    os.close(slave)


def test_a_missing_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "serial", None)
    with pytest.raises(ConfigError, match=r"pip install 'edge-cl\[serial\]'"):
        SerialLine(manifest_of(), {"port": "x"})


@pytest.fixture
def cable(tmp_path):
    cable = Cable(tmp_path)
    yield cable
    cable.pull()


def test_a_real_terminal_in_use_is_not_taken(cable):
    first = SerialLine(manifest_of(), {"port": str(cable.port)})
    with pytest.raises(SensorUnavailable, match="in use by another program"):
        SerialLine(manifest_of(), {"port": str(cable.port)})
    first.close()


def test_frames_over_a_cable_that_is_pulled_fifty_times(cable, monkeypatch):
    monkeypatch.setattr(serial_line, "TIMEOUT_S", 0.01)
    manifest = manifest_of(rate_hz=100.0, window_samples=3, hop_samples=3)
    options = {"port": str(cable.port), "format": "frames", "scale": [0.5, 1]}
    live = LiveStream(lambda: SerialLine(manifest, options), manifest, name="serial", waits=Waits(0.0, 0.005))
    events = iter(live)
    next(events)
    for k in range(50):
        wait_until(lambda: not live.alarm, "the driver has the port")
        noise = bytes([k, 0xA5, 0x5A])
        cable.send(noise + b"".join(sent(4)) + b"\xa5\x5a\x0c")
        seen = []
        while len(seen) < 4:
            event = next(events)
            seen += [event] if event else []
        assert [event.window[0].tolist() for event in seen] == [
            [0.5 * a, b] for a, b in ROWS[0:12:3].tolist()
        ]
        cable.pull()
        wait_until(lambda lost=k + 1: live.n_unplugged >= lost and live.alarm, "it is noticed")
        assert live.stuck_s() < 5
        cable.plug()
    live.close()
    assert live.n_bad == 50, "the noise before the first frame, each time"


def test_text_at_the_end_of_the_range_that_is_named_is_said(cable):
    manifest = manifest_of(rate_hz=100.0)
    options = {"port": str(cable.port), "full_scale": [40, 4]}
    live = LiveStream(lambda: SerialLine(manifest, options), manifest, name="serial")
    events = iter(live)
    lines = b"".join(b'{"x": [%d, %d]}\n' % (k % 7, -4 if k % 3 else k % 5) for k in range(100))

    def saturated():
        cable.send(lines)
        next(events)
        return "serial: channel c1 is often at the end of its range" in live.alarm

    wait_until(saturated, "what saturates is named")
    live.close()


@pytest.mark.parametrize(
    ("options", "full_scale"),
    [
        ({}, None),
        ({"full_scale": -4}, [4, 4]),
        ({"full_scale": [4, 0]}, [4, math.inf]),
        ({"full_scale": [0, 0]}, None),
        ({"format": "frames", "scale": 0.5, "full_scale": [4, 0]}, [4, 16384]),
        ({"format": "frames", "scale": [0.5, -1]}, [16384, 32768]),
        ({"format": "frames", "full_scale": [2, 4]}, [2, 4]),
        ({"format": "frames", "values": "float32"}, None),
    ],
)
def test_what_is_known_of_the_range(monkeypatch, options, full_scale):
    monkeypatch.setattr(serial_line, "_open", lambda _: None)
    known = SerialLine(manifest_of(), {"port": "x", **options}).full_scale
    assert (known if known is None else known.tolist()) == full_scale


def test_only_noise_is_said(cable, monkeypatch):
    monkeypatch.setattr("edge_cl.sensing.live.USELESS_S", 0.2)
    manifest = manifest_of()
    live = LiveStream(lambda: SerialLine(manifest, {"port": str(cable.port)}), manifest, name="serial")
    events = iter(live)
    next(events)

    def useless():
        cable.send(b"\xf0\x0f\n" * 5)
        next(events)
        return "serial: nothing that comes can be used (not a usable JSON line" in live.alarm

    wait_until(useless, "the alarm says so")
    live.close()
