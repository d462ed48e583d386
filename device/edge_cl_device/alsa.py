"""A microphone through PortAudio (``sounddevice``): samples from -1 to 1."""

from __future__ import annotations

import time
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from edge_cl.errors import BadReading, ConfigError, SensorUnavailable
from edge_cl.manifest import Manifest
from edge_cl.sensing.drivers import read_options
from edge_cl.sensing.host_clock import HostClock
from edge_cl.sensing.lines import Interrupted, Item, Samples
from edge_cl_device.permission import join

BLOCK_S = 0.05
UNITS = ("", "1", "full scale")


class AlsaOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`device`: part of a name that ``python -m sounddevice`` lists, or a number there; "" is the default."""

    device: str | Annotated[int, Meta(ge=0)] = ""


class Microphone:
    """A `Sensor`; the sound card is asked for the bundle's own rate."""

    def __init__(self, manifest: Manifest, options: dict[str, Any]) -> None:
        asked = read_options("sensor alsa", options, AlsaOptions)
        for channel in manifest.channels:
            if channel.unit not in UNITS:
                raise ConfigError(
                    f"sensor alsa gives sound from -1 to 1; the bundle wants {channel.name} in "
                    f"{channel.unit!r}: take a bundle that was trained on sound, with the unit 1"
                )
        self._audio = _library()
        self.rate_hz = manifest.rate_hz
        self.full_scale = np.ones(manifest.n_channels)
        self._n_block = max(1, round(BLOCK_S * manifest.rate_hz))
        self._restart()
        try:
            self._stream: Any = self._audio.InputStream(
                samplerate=manifest.rate_hz,
                blocksize=self._n_block,
                device=asked.device if asked.device != "" else None,
                channels=manifest.n_channels,
                dtype="float32",
            )
            self._stream.start()
        except (self._audio.PortAudioError, ValueError) as error:
            raise SensorUnavailable(_explain(asked, manifest, error)) from error

    def read(self) -> list[Item | BadReading]:
        """A twentieth of a second of sound; says when some was lost before it."""
        try:
            sound, lost = self._stream.read(self._n_block)
        except self._audio.PortAudioError as error:
            raise SensorUnavailable(f"the microphone was lost ({error})") from error
        now_s = time.monotonic()
        found: list[Item | BadReading] = []
        if lost:
            self._restart()
            found.append(Interrupted("sound was lost (xrun): the board was too busy to take it"))
        numbers = np.arange(self._n, self._n + len(sound), dtype=np.float64)
        self._n += len(sound)
        return [*found, Samples(self._clock.times(numbers, now_s), np.array(sound), [""] * len(sound))]

    def close(self) -> None:
        """Let go of the sound card."""
        try:
            self._stream.close()
        except self._audio.PortAudioError:
            return  # it was pulled out

    def _restart(self) -> None:
        self._clock, self._n = HostClock(1 / self.rate_hz), 0


def _library() -> Any:
    try:
        import sounddevice
    except ImportError as error:
        raise ConfigError("sensor alsa needs sounddevice: pip install 'edge-cl[audio]'") from error
    except OSError as error:
        raise ConfigError(f"sensor alsa needs PortAudio ({error}): sudo apt install libportaudio2") from error
    # PortAudio looks for sound cards once: without this one that was plugged in later is never found
    sounddevice._terminate()
    sounddevice._initialize()
    return sounddevice


def _explain(asked: AlsaOptions, manifest: Manifest, error: Exception) -> str:
    text = str(error)
    if "sample rate" in text.lower():
        return (
            f"the sound card cannot give {manifest.rate_hz:g} Hz ({text}): name one that converts, as in "
            'device = "default" or "pulse"'
        )
    if "channels" in text.lower():
        return f"the sound card has fewer than the bundle's {manifest.n_channels} channels ({text})"
    device = asked.device if asked.device != "" else "the default"
    return (
        f"no microphone {device!r} ({text}): `arecord -l` lists them (option device); when it lists none: "
        f"{join('audio')}"
    )
