"""From the settings to what they name: the stream of a sensor, the sources of labels."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import msgspec

from edge_cl.config import DriverSettings
from edge_cl.errors import ConfigError, SensorUnavailable
from edge_cl.manifest import Manifest
from edge_cl.records import Answer, Label, LabelDriver, SleepRequest
from edge_cl.sensing.drivers import (
    LABEL_SOURCES,
    SENSORS,
    LabelFactory,
    SensorFactory,
    find_driver,
    read_options,
)
from edge_cl.sensing.labelling import LabelSchedule
from edge_cl.sensing.stream import FileStream, PipeStream

if TYPE_CHECKING:
    from edge_cl.sensing.live import LiveStream

BUILT_IN = ("file", "stdin")
AGAIN_S = 10.0
"""Between two attempts to open a source of labels that is not there."""

Stream: TypeAlias = "FileStream | PipeStream | LiveStream"
_log = logging.getLogger(__name__)


class FileOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of the sensor ``file``: a recording, at its own speed or as fast as it can be read."""

    path: str
    realtime: bool = False


class NoOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of the sensor ``stdin``."""


def open_sensor(
    settings: DriverSettings, manifest: Manifest, *, labels: LabelSchedule | None = None, prefix: str = ""
) -> Stream:
    """The stream of the sensor that the settings name; standard input when they name none.

    Raises
    ------
    ConfigError
        For a sensor that is not installed. Wrong options of an installed one are said when it is first read.
    """
    name = settings.name or "stdin"
    if name == "stdin":
        read_options("sensor stdin", settings.options, NoOptions)
        return PipeStream(manifest, labels=labels, prefix=prefix)
    if name == "file":
        file = read_options("sensor file", settings.options, FileOptions)
        return FileStream(file.path, manifest, labels=labels, prefix=prefix, realtime=file.realtime)
    from edge_cl.sensing.live import LiveStream  # nothing that a pipe needs

    factory: SensorFactory = find_driver(SENSORS, name, BUILT_IN)
    make = partial(factory, manifest, settings.options)
    return LiveStream(make, manifest, name=name, labels=labels, prefix=prefix)


class LabelSources:
    """The buttons, pages and the like that give labels: one source for the run loop, one sink.

    Parameters
    ----------
    settings
        Names and options. One that is not there is said in `alarm` and tried again; a wrong option
        raises ConfigError.
    """

    def __init__(
        self, settings: Sequence[DriverSettings], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._sources: list[_Source] = []
        try:
            for number, asked in enumerate(settings, 1):
                if not asked.name:
                    raise ConfigError(
                        f"labels: the {number}. source has no name; name one, as in docs/sensors.md"
                    )
                self._sources.append(_Source(asked))
            for source in self._sources:
                source.open(self._clock())
        except BaseException:
            self.close()
            raise

    def poll(self) -> list[Label | SleepRequest]:
        """What arrived since the last call; never blocks for long."""
        found: list[Label | SleepRequest] = []
        for source in self._sources:
            source.open(self._clock())
            if source.driver is not None:
                found += source.driver.poll()
        return found

    def hear(self, answer: Answer) -> None:
        """Tell every source."""
        for source in self._sources:
            if source.driver is not None:
                source.driver.hear(answer)

    @property
    def alarm(self) -> str:
        """What a person should see to, "" when all is well."""
        return "; ".join(filter(None, [source.alarm for source in self._sources]))

    def close(self) -> None:
        """Let go of all."""
        for source in self._sources:
            if source.driver is not None:
                source.driver.close()


class _Source:
    """One source, there or not."""

    def __init__(self, settings: DriverSettings) -> None:
        self._name, self._options = settings.name, settings.options
        self._factory: LabelFactory = find_driver(LABEL_SOURCES, self._name)
        self.driver: LabelDriver | None = None
        self._absent = ""
        self._at_s = 0.0

    @property
    def alarm(self) -> str:
        return self._absent or (self.driver.alarm if self.driver is not None else "")

    def open(self, now_s: float) -> None:
        """Open it if it is not, and was not tried just now."""
        if self.driver is not None or (self._absent and now_s < self._at_s):
            return
        try:
            self.driver = self._factory(self._options)
        except (SensorUnavailable, OSError) as error:
            if not self._absent:
                _log.warning("labels by %s: %s; trying again", self._name, error)
            self._absent = f"no labels by {self._name}: {error}"
            self._at_s = now_s + AGAIN_S
            return
        self._absent = ""
