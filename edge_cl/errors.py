"""Everything that can go wrong, as one tree.

::

    EdgeCLError
    ├── ConfigError          a setting is wrong; names the key, its value and what is allowed
    ├── SensorError          the world did not deliver a usable sample
    │   ├── SensorUnavailable    the source is absent or ended; try again later
    │   └── BadReading           one sample or window is unusable; it is dropped and counted
    ├── BundleError          a bundle file cannot be trusted or understood
    ├── StateError           learned state cannot be read, written or matched
    │   ├── StateCorrupt         a file failed its checksum; an older generation is used
    │   ├── NothingMatches       no label or class is what was asked for
    │   └── StateUnwritable      the disk is full or failing; the device only predicts
    ├── NumericalError       a computation broke down; the head is rebuilt from memory
    ├── BudgetExceeded       something does not fit into the byte budget
    ├── SyncError            the broker refused or cannot be reached; the outbox is kept
    │   ├── DeviceNotRunning     nobody serves the state folder's control socket
    │   └── CommandRefused       an order from afar is not obeyed; its `code` says why
    ├── FleetError           what was asked of the fleet server cannot be done
    │   └── StoreUnavailable     its database cannot be reached, read or written; try again later
    └── DataError            a data set cannot be fetched, checked or understood

Every message says what was wrong, what was found and what to do. A caller's own
mistake (a wrong shape, a wrong type) is a plain ``ValueError`` or ``TypeError``.
"""


class EdgeCLError(Exception):
    """The root: catch this to catch everything edge-cl raises on purpose."""


class ConfigError(EdgeCLError):
    """A setting is wrong."""


class SensorError(EdgeCLError):
    """The world did not deliver a usable sample."""


class SensorUnavailable(SensorError):
    """The source is absent or ended."""


class BadReading(SensorError):
    """One sample or window is unusable; it is dropped and counted."""


class BundleError(EdgeCLError):
    """A bundle file cannot be trusted or understood."""


class StateError(EdgeCLError):
    """Learned state cannot be read, written or matched."""


class StateCorrupt(StateError):
    """A state file failed its checksum."""


class NothingMatches(StateError):
    """No label or class is what was asked for."""


class StateUnwritable(StateError):
    """The disk is full or failing."""


class NumericalError(EdgeCLError):
    """A computation left the finite numbers."""


class BudgetExceeded(EdgeCLError):
    """Something does not fit into the byte budget."""


class SyncError(EdgeCLError):
    """The broker refused or cannot be reached."""


class DeviceNotRunning(SyncError):
    """Nobody serves the state folder's control socket."""


class CommandRefused(SyncError):
    """An order from afar is not obeyed.

    `code` is one word for counters; `command_id` is "" unless the order's signature was good.
    """

    def __init__(self, code: str, message: str, command_id: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.command_id = command_id


class FleetError(EdgeCLError):
    """What was asked of the fleet server cannot be done."""


class StoreUnavailable(FleetError):
    """The fleet's database cannot be reached, read or written at the moment."""


class DataError(EdgeCLError):
    """A data set cannot be fetched, checked or understood."""
