"""A microphone: a sound file played through a fake of sounddevice; the real library's absence."""

import math
import sys
import wave
from types import SimpleNamespace

import numpy as np
import pytest
from edge_cl_device import alsa

from edge_cl.errors import ConfigError, SensorUnavailable
from edge_cl.sensing.lines import Interrupted
from edge_cl.sensing.live import LiveStream, Waits
from tests.mosquitto import wait_until
from tests.sensing.sensors import manifest_of

RATE = 8000


class PortAudioError(Exception):
    """As sounddevice has it."""


class Card:
    """Stands in for the module ``sounddevice``: one input that plays a WAV file, as fast as it is read."""

    PortAudioError = PortAudioError

    def __init__(self, path):
        with wave.open(str(path)) as file:
            raw = np.frombuffer(file.readframes(file.getnframes()), "<i2")
            self.sound = (raw / 32768).astype(np.float32).reshape(-1, file.getnchannels())
        self.refuses = ""
        self.overflows = set()
        self.n_looked = self.n_open = 0
        self.now_s = 500.0

    def _terminate(self):
        self.n_looked += 1

    def _initialize(self):
        pass

    def InputStream(self, **asked):  # noqa: N802  the library's name
        if self.refuses:
            raise PortAudioError(self.refuses)
        self.asked, self.at = asked, 0
        self.n_open += 1
        return self

    def start(self):
        pass

    def read(self, n):
        if self.at + n > len(self.sound):
            raise PortAudioError("Device unavailable [PaErrorCode -9985]")
        block, self.at = self.sound[self.at : self.at + n], self.at + n
        lost = self.at // n in self.overflows
        self.now_s += n / RATE + 0.3 * lost
        return block, lost

    def close(self):
        self.n_open -= 1


@pytest.fixture
def card(tmp_path, monkeypatch):
    t = np.arange(round(3.3 * RATE)) / RATE
    tone = np.sin(2 * math.pi * (200 + 80 * t) * t)
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((tone * 32000).astype("<i2").tobytes())
    fake = Card(tmp_path / "a.wav")
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    monkeypatch.setattr(alsa, "time", SimpleNamespace(monotonic=lambda: fake.now_s))
    return fake


def sound_bundle(**more):
    return manifest_of(
        names=("sound",), unit="1", rate_hz=RATE, window_samples=RATE, hop_samples=RATE, **more
    )


def test_a_sound_file_becomes_its_windows(card):
    manifest = sound_bundle()
    live = LiveStream(
        lambda: alsa.Microphone(manifest, {}), manifest, name="alsa", waits=Waits(99, 99), queue_bytes=10**7
    )
    found = []
    events = iter(live)
    wait_until(lambda: [found.append(e) for e in [next(events)] if e] and len(found) == 3, "three windows")
    for k, event in enumerate(found):
        np.testing.assert_allclose(event.window, card.sound[k * RATE : (k + 1) * RATE], atol=2e-3)
    assert card.asked["samplerate"] == RATE and card.asked["channels"] == 1 and card.asked["device"] is None
    wait_until(lambda: "the microphone was lost (Device unavailable" in live.alarm, "the end is noticed")
    live.close()
    assert card.n_open == 0 and live.n_bad == 0


def test_lost_sound_is_counted_and_no_window_spans_it(card):
    microphone = alsa.Microphone(sound_bundle(), {"device": "USB"})
    card.overflows = {3}
    reads = [(microphone.read(), card.now_s) for _ in range(4)]
    assert [type(items[0]) is Interrupted for items, _ in reads] == [False, False, True, False]
    for items, now_s in reads:
        assert items[-1].t_s[-1] == pytest.approx(now_s, abs=1e-6)
    assert microphone.full_scale.tolist() == [1.0] and card.asked["device"] == "USB"
    microphone.close()


def test_the_cards_are_looked_for_each_time(card):
    for _ in range(3):
        alsa.Microphone(sound_bundle(), {}).close()
    assert card.n_looked == 3


@pytest.mark.parametrize(
    ("refuses", "said"),
    [
        ("Invalid sample rate [PaErrorCode -9997]", 'cannot give 8000 Hz .*device = "default"'),
        ("Invalid number of channels [PaErrorCode -9998]", "fewer than the bundle's 1 channels"),
        ("Error querying device -1", "no microphone 'the default' .*arecord -l.*usermod -aG audio"),
    ],
)
def test_why_there_is_no_sound(card, refuses, said):
    card.refuses = refuses
    with pytest.raises(SensorUnavailable, match=said):
        alsa.Microphone(sound_bundle(), {})


def test_another_bundle_and_options(card):
    with pytest.raises(ConfigError, match=r"wants c0 in 'm/s²': take a bundle that was trained on sound"):
        alsa.Microphone(manifest_of(), {})
    with pytest.raises(ConfigError, match="unknown option devise; did you mean device"):
        alsa.Microphone(sound_bundle(), {"devise": 1})


def test_the_real_library_or_what_installs_it(monkeypatch):
    try:
        import sounddevice  # noqa: F401
    except OSError:
        with pytest.raises(ConfigError, match=r"PortAudio.* not found.*: sudo apt install libportaudio2"):
            alsa.Microphone(sound_bundle(), {})
    except ImportError:
        pytest.skip("sounddevice is not installed: pip install 'edge-cl[audio]'")
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(ConfigError, match=r"pip install 'edge-cl\[audio\]'"):
        alsa.Microphone(sound_bundle(), {})
