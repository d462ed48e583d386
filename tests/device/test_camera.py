"""A camera: pictures of a film and of a fake picamera2, cut, averaged, too small."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from edge_cl_device.camera import Camera, Shape, averages, shape_of, window_of

from edge_cl.errors import ConfigError, SensorUnavailable
from edge_cl.sensing.live import LiveStream, Waits
from tests.mosquitto import wait_until
from tests.sensing.sensors import manifest_of

cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed: pip install 'edge-cl[camera]'")


def grey_bundle(rows=24, columns=32):
    return manifest_of(columns, unit="1", window_samples=rows, hop_samples=rows, rate_hz=1000.0 * rows)


def colour_bundle(pixels):
    return manifest_of(3, unit="1", window_samples=pixels, hop_samples=pixels, rate_hz=1000.0 * pixels)


@pytest.fixture
def film(tmp_path):
    """Ten frames of 64 × 48: the left half red, the right half darker each time."""
    path = tmp_path / "film.avi"
    out = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    assert out.isOpened(), "this OpenCV writes no MJPG"
    for k in range(10):
        frame = np.zeros((48, 64, 3), np.uint8)
        frame[:, :32] = (0, 0, 255)
        frame[:, 32:] = 200 - 10 * k
        out.write(frame)
    out.release()
    return str(path)


def played(camera):
    found = []
    with pytest.raises(SensorUnavailable, match="gives no more pictures"):
        while True:
            found += camera.read()
    return found


def test_grey_pictures(film):
    camera = Camera(grey_bundle(), {"device": film, "backend": "v4l2", "fps": 1000, "white": 255})
    found = []
    with pytest.raises(SensorUnavailable, match="gives no more pictures"):
        while True:
            camera._due_s = 0
            found += camera.read()
    camera.close()
    assert len(found) == 10 and found[0].window.shape == (24, 32) and found[0].window.dtype == np.float32
    np.testing.assert_allclose(found[3].window[:, 18:], 170, atol=4)
    np.testing.assert_allclose(found[3].window[:, :14], 0.299 * 255, atol=6)


def test_colour_pictures_have_red_first(film):
    camera = Camera(colour_bundle(144), {"device": film})
    window = camera.read()[0].window.reshape(12, 12, 3)
    np.testing.assert_allclose(window[:, :5].reshape(-1, 3).mean(axis=0), [1, 0, 0], atol=0.04)
    np.testing.assert_allclose(window[:, 7:], 200 / 255, atol=0.02)


def test_pictures_between_are_passed_over(film):
    camera = Camera(grey_bundle(), {"device": film, "fps": 0.01})
    assert len(played(camera)) == 1


def test_a_larger_picture_is_cut_in_the_middle_and_averaged():
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (90, 160, 3)).astype(np.uint8)
    window = window_of(picture, Shape(10, 10, True)).reshape(10, 10, 3)
    middle = picture[:, 35:125].astype(float)
    np.testing.assert_allclose(window, middle.reshape(10, 9, 10, 9, 3).mean(axis=(1, 3)), rtol=1e-4)
    same = window_of(picture, Shape(90, 160, True))
    np.testing.assert_array_equal(same, picture.reshape(-1, 3))


@pytest.mark.parametrize(("n_out", "n_in"), [(1, 1), (3, 7), (64, 480), (28, 31)])
def test_averages_keep_the_mean(n_out, n_in):
    weights = averages(n_out, n_in)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(weights.sum(axis=0), n_out / n_in, rtol=1e-4)


def test_shapes():
    assert shape_of(grey_bundle()) == (24, 32, False)
    assert shape_of(colour_bundle(144)) == (12, 12, True)
    assert shape_of(colour_bundle(6), 2) == (2, 3, True)
    with pytest.raises(ConfigError, match="height is 0; allowed: a divisor of the 6 pixels"):
        shape_of(colour_bundle(6))
    with pytest.raises(ConfigError, match="grey pictures have 24 rows"):
        shape_of(grey_bundle(), 7)


def test_a_smaller_picture_is_refused(film):
    with pytest.raises(ConfigError, match="64 × 48 pixels, the bundle wants 65 × 24: set the option size"):
        Camera(grey_bundle(24, 65), {"device": film}).read()


def test_no_camera_is_said(tmp_path):
    with pytest.raises(SensorUnavailable, match=r"there is no /dev/video63: .*v4l2-ctl --list-devices"):
        Camera(grey_bundle(), {"device": 63, "backend": "v4l2"})
    (tmp_path / "no.avi").write_bytes(b"nothing")
    with pytest.raises(SensorUnavailable, match="cannot be opened"):
        Camera(grey_bundle(), {"device": str(tmp_path / "no.avi")})
    with pytest.raises(ConfigError, match=r"option size is .*; allowed"):
        Camera(grey_bundle(), {"size": [640]})


def test_missing_libraries_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "picamera2", None)
    with pytest.raises(ConfigError, match="apt install python3-picamera2, and a venv made with --system"):
        Camera(grey_bundle(), {"backend": "picamera2"})
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ConfigError, match=r"pip install 'edge-cl\[camera\]'"):
        Camera(grey_bundle(), {})


class Picamera2:
    """As the library's class, with one camera that shows blue."""

    there = True

    def __init__(self, number):
        if not self.there:
            raise RuntimeError("Camera __init__ sequence did not complete.")
        self.number = number

    @staticmethod
    def global_camera_info():
        return [{"Model": "imx708"}] if Picamera2.there else []

    def create_video_configuration(self, main):
        assert main == {"size": (640, 480), "format": "BGR888"}
        return main

    def configure(self, made):
        self.made = made

    def start(self):
        pass

    def capture_array(self, name):
        if not self.there:
            raise RuntimeError("Camera frontend has timed out!")
        picture = np.zeros((480, 640, 3), np.uint8)
        picture[:, :, 2] = 255
        return picture

    def close(self):
        pass


def test_a_pis_own_camera_goes_first_and_is_lost(monkeypatch):
    monkeypatch.setitem(sys.modules, "picamera2", SimpleNamespace(Picamera2=Picamera2))
    monkeypatch.setattr(Picamera2, "there", True)
    manifest = colour_bundle(144)
    live = LiveStream(lambda: Camera(manifest, {}), manifest, name="camera", waits=Waits(0.0, 0.0))
    events = iter(live)
    found = []
    wait_until(lambda: [found.append(e) for e in [next(events)] if e], "a picture")
    assert found[0].window.shape == (144, 3) and found[0].window[0].tolist() == [0, 0, 1]
    monkeypatch.setattr(Picamera2, "there", False)
    wait_until(lambda: live.alarm.startswith("camera is not there"), "it is lost")
    live.close()


def test_a_camera_that_cannot_be_set_up_is_let_go(monkeypatch):
    """One that stays open can never be opened again."""
    closed = []

    class Busy(Picamera2):
        def start(self):
            raise RuntimeError("Failed to start camera: Device or resource busy")

        def close(self):
            closed.append(self)

    monkeypatch.setitem(sys.modules, "picamera2", SimpleNamespace(Picamera2=Busy))
    monkeypatch.setattr(Picamera2, "there", True)
    with pytest.raises(SensorUnavailable, match="busy"):
        Camera(colour_bundle(144), {})
    assert len(closed) == 1
