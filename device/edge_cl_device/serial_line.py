"""A serial line (USB or UART): JSON lines, CSV rows or binary frames of samples.

Lines are those of :mod:`edge_cl.sensing.lines`, frames those of :mod:`edge_cl_device.frames`. Samples that
bring a time ("t", column t_s) are placed by it, seconds of the sender's own clock; others are counted, and
are as far apart as the bundle's rate says, or `rate_hz`.
"""

from __future__ import annotations

import errno
import time
from typing import Annotated, Any, Literal, Protocol

import msgspec
import numpy as np
from msgspec import Meta

from edge_cl.errors import BadReading, ConfigError, SensorUnavailable
from edge_cl.manifest import Manifest
from edge_cl.records import FloatArray
from edge_cl.sensing.drivers import read_options
from edge_cl.sensing.lines import CsvDecoder, Item, JsonDecoder, Samples
from edge_cl_device.clocks import Clocks, Found
from edge_cl_device.frames import Frame, FrameParser
from edge_cl_device.per_channel import largest, per_channel
from edge_cl_device.permission import group_of, join

TIMEOUT_S = 0.1
MOST_LINE_BYTES = 1024 * 1024


class SerialOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the sender speaks.

    Attributes
    ----------
    port
        ``/dev/serial/by-id/…`` stays the same when another device is plugged in.
    columns
        Of ``csv``: the bundle's channels and perhaps ``t_s`` and ``label``; else the channels in their order.
    rate_hz
        Of samples without a time; 0: the bundle's.
    values, scale
        Of ``frames``: how a value is sent, and by what it (or each channel's) is multiplied.
    full_scale
        Largest magnitude, or each channel's, in the bundle's units: samples there are called saturated. 0:
        unknown, but of ``int16`` never more than its largest number.
    """

    port: str
    baud: Annotated[int, Meta(ge=50, le=12_000_000)] = 115200
    format: Literal["json", "csv", "frames"] = "json"
    columns: list[str] = []
    rate_hz: Annotated[float, Meta(ge=0)] = 0.0
    values: Literal["int16", "float32"] = "int16"
    scale: float | list[float] = 1.0
    full_scale: float | list[float] = 0.0


class SerialLine:
    """A `Sensor`."""

    def __init__(self, manifest: Manifest, options: dict[str, Any]) -> None:
        asked = read_options("sensor serial", options, SerialOptions)
        self.rate_hz = asked.rate_hz
        n_channels = manifest.n_channels
        named = largest(asked.full_scale, n_channels, "sensor serial: option full_scale")
        self.full_scale = named
        clocks = Clocks(asked.rate_hz or manifest.rate_hz)
        self._parser: _Parser
        if asked.format == "frames":
            scale = per_channel(asked.scale, n_channels, "sensor serial: option scale")
            if asked.values == "int16":
                self.full_scale = np.minimum(32768 * np.abs(scale), np.inf if named is None else named)
            self._parser = _Frames(FrameParser(n_channels, asked.values), scale, clocks)
        else:
            self._parser = _Lines(_line_decoder(asked, manifest), clocks)
        self._port = _open(asked)
        self._name = asked.port

    def read(self) -> Found:
        """What has come, after at most a tenth of a second."""
        try:
            data = self._port.read(1)
            data += self._port.read(self._port.in_waiting)
        except OSError as error:
            raise SensorUnavailable(f"{self._name} was lost ({error})") from error
        return self._parser.feed(data, time.monotonic()) if data else []

    def close(self) -> None:
        """Let go of the port."""
        self._port.close()


class _Parser(Protocol):
    def feed(self, data: bytes, now_s: float) -> Found:
        """What these bytes complete."""
        ...


class _LineDecoder(Protocol):
    def decode(self, line: bytes) -> Item | None: ...


class _Lines:
    """Lines of text; what comes before the first end of a line is the rest of one that nobody saw begin."""

    def __init__(self, decoder: _LineDecoder, clocks: Clocks) -> None:
        self._decoder, self._clocks = decoder, clocks
        self._buffer = bytearray()
        self._begun = False

    def feed(self, data: bytes, now_s: float) -> Found:
        *lines, rest = (bytes(self._buffer) + data).split(b"\n")
        self._buffer = bytearray(rest)
        if lines and not self._begun:
            self._begun = True
            del lines[0]
        found = [item for item in map(self._decoded, lines) if item is not None]
        if len(self._buffer) > MOST_LINE_BYTES:
            self._buffer.clear()
            found.append(BadReading(f"a line of more than {MOST_LINE_BYTES:,} bytes; is it baud, or format?"))
        return self._clocks.place(found, now_s)

    def _decoded(self, line: bytes) -> Item | BadReading | None:
        try:
            return self._decoder.decode(line)
        except BadReading as problem:
            return problem


class _Frames:
    """Binary frames."""

    def __init__(self, parser: FrameParser, scale: FloatArray, clocks: Clocks) -> None:
        self._parser, self._scale, self._clocks = parser, scale, clocks

    def feed(self, data: bytes, now_s: float) -> Found:
        found: Found = []
        run: list[Frame] = []
        for item in self._parser.feed(data):
            if isinstance(item, BadReading):
                found.append(item)
                continue
            if run and item.first < run[-1].first + len(run[-1].rows):  # the sender began anew
                found.append(self._block(run, now_s))
                run = []
            run.append(item)
        return [*found, self._block(run, now_s)] if run else found

    def _block(self, run: list[Frame], now_s: float) -> Samples:
        numbers = np.concatenate(
            [frame.first + np.arange(len(frame.rows), dtype=np.float64) for frame in run]
        )
        values = (np.concatenate([frame.rows for frame in run]) * self._scale).astype(np.float32)
        return Samples(self._clocks.count(numbers, now_s), values, [""] * len(values))


class _Rows:
    """CSV rows without a header of their own; one that is sent all the same is passed over."""

    def __init__(self, manifest: Manifest, columns: list[str]) -> None:
        names = columns or [channel.name for channel in manifest.channels]
        self._header = ",".join(names).encode()
        self._untimed = "t_s" not in names
        self._decoder = CsvDecoder(manifest)
        try:
            self._decoder.decode(b"t_s," + self._header if self._untimed else self._header)
        except SensorUnavailable as error:
            raise ConfigError(f"sensor serial: option columns does not fit the bundle: {error}") from error

    def decode(self, line: bytes) -> Item | None:
        line = line.strip()
        if not line or line.replace(b" ", b"") == self._header:
            return None
        return self._decoder.decode(b"nan," + line if self._untimed else line)


def _line_decoder(asked: SerialOptions, manifest: Manifest) -> _LineDecoder:
    if asked.format == "csv":
        return _Rows(manifest, asked.columns)
    return JsonDecoder(manifest, timed=False)


def _open(asked: SerialOptions) -> Any:
    try:
        import serial
    except ImportError as error:
        raise ConfigError("sensor serial needs pyserial: pip install 'edge-cl[serial]'") from error
    import termios  # whose error is no OSError, and comes when the cable is pulled while the port is opened

    try:
        return serial.Serial(asked.port, asked.baud, timeout=TIMEOUT_S, exclusive=True)
    except (OSError, ValueError, termios.error) as error:
        raise SensorUnavailable(_explain(asked.port, error)) from error


def _explain(port: str, error: Exception) -> str:
    number = getattr(error, "errno", None)
    if number == errno.ENOENT:
        return (
            f"there is no {port}: is it plugged in (ls /dev/serial/by-id lists what is)? for a Pi's "
            "own pins: sudo raspi-config nonint do_serial_hw 0, then sudo reboot"
        )
    if number == errno.EPERM:
        return (
            f"the service's unit does not allow {port}: sudo systemctl edit edge-cl, and there [Service] and "
            f"DeviceAllow={port} rw"
        )
    if number == errno.EACCES:
        return f"no permission for {port}: {join(group_of(port, 'dialout'))}"
    if number in (errno.EBUSY, errno.EAGAIN):
        return f"{port} is in use by another program: end it (sudo fuser -v {port} names it)"
    return f"{port}: {error}"
