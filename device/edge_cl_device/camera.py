"""A camera: every so often a picture, as one ready window.

Where the bundle has three channels the picture is in colour, and a window's samples are its pixels row by
row; else it is grey, samples are its rows and channels its columns. Of a larger picture the middle is cut out
and averaged down.
"""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Protocol

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from edge_cl.errors import BadReading, ConfigError, SensorUnavailable
from edge_cl.manifest import Manifest
from edge_cl.sensing.drivers import read_options
from edge_cl.sensing.lines import Item, Labelled
from edge_cl_device.permission import join

GREY = np.array([0.299, 0.587, 0.114], np.float32)
"""Of red, green, blue, after ITU-R BT.601."""


class CameraOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which camera, and how its pictures are taken.

    Attributes
    ----------
    device
        Number of the camera, or a path as ``/dev/v4l/by-id/…``, or of a film.
    backend
        ``picamera2`` (a Raspberry Pi's own camera), ``v4l2`` (through OpenCV), ``auto``: the first that is
        installed and has a camera.
    size
        Width and height that the camera is asked for.
    fps
        Pictures a second that are answered; 0: as many as the bundle's rate and hop make windows.
    height
        Of a colour picture that is not square.
    white
        The brightest value: 1 or 255, as the bundle was trained.
    """

    device: str | Annotated[int, Meta(ge=0)] = 0
    backend: Literal["auto", "picamera2", "v4l2"] = "auto"
    size: tuple[Annotated[int, Meta(ge=1)], Annotated[int, Meta(ge=1)]] = (640, 480)
    fps: Annotated[float, Meta(ge=0, le=1000)] = 0.0
    height: Annotated[int, Meta(ge=0)] = 0
    white: Literal[1, 255] = 1


class Shape(NamedTuple):
    """Of the pictures that the bundle wants."""

    height: int
    width: int
    colour: bool


class _Eye(Protocol):
    def grab(self) -> None: ...

    def picture(self) -> NDArray[np.uint8]: ...

    def close(self) -> None: ...


class Camera:
    """A `Sensor`."""

    full_scale = None
    rate_hz = 0.0

    def __init__(self, manifest: Manifest, options: dict[str, Any]) -> None:
        asked = read_options("sensor camera", options, CameraOptions)
        self._shape = shape_of(manifest, asked.height)
        self._white = asked.white
        self._every_s = 1 / (asked.fps or manifest.rate_hz / manifest.hop_samples)
        self._due_s = -math.inf
        self._eye: _Eye = _open(asked)

    def read(self) -> list[Item | BadReading]:
        """The next picture when it is time for one; those between are passed over."""
        self._eye.grab()
        now_s = time.monotonic()
        if now_s < self._due_s:
            return []
        self._due_s = max(self._due_s, now_s - self._every_s / 2) + self._every_s
        picture = self._eye.picture()
        found = picture.shape[1::-1]
        if picture.shape[0] < self._shape.height or picture.shape[1] < self._shape.width:
            raise ConfigError(
                f"sensor camera: its pictures have {found[0]} × {found[1]} pixels, the bundle wants "
                f"{self._shape.width} × {self._shape.height}: set the option size to at least that, or take "
                "another camera"
            )
        window = window_of(picture, self._shape) * np.float32(self._white / 255)
        return [Labelled("", now_s, window, "")]

    def close(self) -> None:
        """Let go of the camera."""
        self._eye.close()


def shape_of(manifest: Manifest, height: int = 0) -> Shape:
    """What pictures the bundle's windows are.

    Raises
    ------
    ConfigError
        When a colour picture is neither square nor of this height.
    """
    n = manifest.window_samples
    if manifest.n_channels != 3:
        if height not in (0, n):
            raise ConfigError(
                f"sensor camera: option height is {height}; the bundle's grey pictures have {n} rows"
            )
        return Shape(n, manifest.n_channels, colour=False)
    rows = height or math.isqrt(n)
    if n % rows or (not height and rows * rows != n):
        raise ConfigError(
            f"sensor camera: option height is {height}; allowed: a divisor of the {n} pixels of the bundle's "
            "colour pictures, which are not square"
        )
    return Shape(rows, n // rows, colour=True)


def window_of(picture: NDArray[np.uint8], shape: Shape) -> NDArray[np.float32]:
    """The middle of a picture (height, width, 3), averaged down: (samples, channels), 0 to 255."""
    height, width = picture.shape[:2]
    scale = min(height / shape.height, width / shape.width)
    rows, columns = round(shape.height * scale), round(shape.width * scale)
    top, left = (height - rows) // 2, (width - columns) // 2
    middle = picture[top : top + rows, left : left + columns].astype(np.float32)
    down, across = averages(shape.height, rows), averages(shape.width, columns)
    if not shape.colour:
        return np.asarray(down @ (middle @ GREY) @ across.T, dtype=np.float32)
    small = np.stack([down @ middle[:, :, colour] @ across.T for colour in range(3)], axis=-1)
    return np.asarray(small.reshape(-1, 3), dtype=np.float32)


def averages(n_out: int, n_in: int) -> NDArray[np.float32]:
    """(n_out, n_in) weights by which equal stretches of n_in ≥ n_out values are averaged.

    >>> averages(2, 3).round(2)
    array([[0.67, 0.33, 0.  ],
           [0.  , 0.33, 0.67]], dtype=float32)
    """
    ends = np.arange(n_out + 1) * (n_in / n_out)
    begin, end = ends[:-1, None], ends[1:, None]
    pixel = np.arange(n_in)
    share = np.clip(np.minimum(end, pixel + 1) - np.maximum(begin, pixel), 0, 1)
    return np.asarray(share * (n_out / n_in), np.float32)


class _PiCamera:
    """A Raspberry Pi's own camera."""

    def __init__(self, library: Any, asked: CameraOptions) -> None:
        self._camera: Any = None
        try:
            self._camera = library.Picamera2(asked.device if isinstance(asked.device, int) else 0)
            # picamera2 names the order of bytes in memory: this one is red, green, blue in the array
            made = self._camera.create_video_configuration(main={"size": asked.size, "format": "BGR888"})
            self._camera.configure(made)
            self._camera.start()
        except (RuntimeError, IndexError) as error:
            if self._camera is not None:  # else it stays taken, and no later attempt can succeed
                self._camera.close()
            raise SensorUnavailable(
                f"the camera cannot be used ({error}): rpicam-hello --list-cameras lists those that are "
                "connected; end other programs that use it"
            ) from error
        self._newest: NDArray[np.uint8] = np.zeros((0, 0, 3), np.uint8)

    def grab(self) -> None:
        try:
            self._newest = self._camera.capture_array("main")
        except RuntimeError as error:
            raise SensorUnavailable(f"the camera was lost ({error})") from error

    def picture(self) -> NDArray[np.uint8]:
        return self._newest[:, :, :3]

    def close(self) -> None:
        self._camera.close()


class _Video:
    """Whatever OpenCV opens: a USB camera, a film."""

    def __init__(self, library: Any, asked: CameraOptions) -> None:
        self._name = f"/dev/video{asked.device}" if isinstance(asked.device, int) else asked.device
        if not Path(self._name).exists():  # which OpenCV would log at each attempt
            raise SensorUnavailable(_explain(self._name))
        self._video = library.VideoCapture(asked.device)
        if not self._video.isOpened():
            self._video.release()
            raise SensorUnavailable(_explain(self._name))
        self._video.set(library.CAP_PROP_FRAME_WIDTH, asked.size[0])
        self._video.set(library.CAP_PROP_FRAME_HEIGHT, asked.size[1])
        self._video.set(library.CAP_PROP_BUFFERSIZE, 1)  # else pictures are as old as the queue is long

    def grab(self) -> None:
        if not self._video.grab():
            raise SensorUnavailable(f"{self._name} gives no more pictures")

    def picture(self) -> NDArray[np.uint8]:
        there, picture = self._video.retrieve()
        if not there or picture is None:
            raise SensorUnavailable(f"{self._name} gives no more pictures")
        colours: NDArray[np.uint8] = picture[:, :, ::-1]  # OpenCV has blue first
        return colours

    def close(self) -> None:
        self._video.release()


def _open(asked: CameraOptions) -> _Eye:
    if asked.backend != "v4l2" and (asked.backend == "picamera2" or isinstance(asked.device, int)):
        try:
            import picamera2
        except ImportError as error:
            if asked.backend == "picamera2":
                raise ConfigError(
                    "sensor camera needs picamera2: sudo apt install python3-picamera2, and a venv made with "
                    "--system-site-packages"
                ) from error
        else:
            if asked.backend == "picamera2" or picamera2.Picamera2.global_camera_info():
                return _PiCamera(picamera2, asked)
    try:
        import cv2
    except ImportError as error:
        raise ConfigError(
            "sensor camera needs a library: for a Pi's own camera sudo apt install python3-picamera2 and "
            "a venv made with --system-site-packages, for any other pip install 'edge-cl[camera]'"
        ) from error
    return _Video(cv2, asked)


def _explain(name: str) -> str:
    if not Path(name).exists():
        return f"there is no {name}: is it plugged in? v4l2-ctl --list-devices lists what is (option device)"
    if not os.access(name, os.R_OK | os.W_OK):
        return f"no permission for {name}: {join('video')}"
    return f"{name} cannot be opened: is it in use by another program, or no camera?"
