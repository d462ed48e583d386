"""What a device does when a server, or somebody over MQTT, asks: commands in, results out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import numpy as np

from edge_cl.commands import Adjust, Do, Done, Report, SleepNow, Teach
from edge_cl.config import KeySettings, Settings, settings_from
from edge_cl.device import Device
from edge_cl.errors import EdgeCLError, StateError
from edge_cl.learner import Learner
from edge_cl.records import Label, SleepRequest
from edge_cl.revisions import Forget, Rename, Review, Rollback
from edge_cl.sharing import share
from edge_cl.statistics import Account, to_bytes
from edge_cl.sync.orders import verify_release


class Remote:
    """Carries out orders on a device, on the run loop's thread.

    Parameters
    ----------
    keys
        Who may sign bundles.
    request
        Takes a request to sleep to the run loop.
    """

    def __init__(
        self, device: Device, keys: Mapping[str, KeySettings], request: Callable[[SleepRequest], None]
    ) -> None:
        self._device, self._keys, self._request = device, keys, request

    @property
    def _learner(self) -> Learner:
        return self._device.learner

    def settings(self) -> dict[str, Any]:
        """The settings that may be changed from afar, as they are now."""
        s = self._learner.settings
        return {
            "min_confidence": s.trust.min_confidence,
            "after_labels": s.sleep.after_labels,
            "night": s.sleep.night,
        }

    def obey(self, order_id: str, do: Do, source: str) -> Done:
        """Carry out one order. What cannot be done is ``failed``, with the reason; nothing is raised."""
        try:
            return self._obey(order_id, do, source)
        except EdgeCLError as error:
            return Done("failed", str(error))

    def look_back(self, order_id: str, ask: str) -> Done:
        """What came of an order that an earlier life of the program accepted and did not finish."""
        seq = self._learner.revised_by(order_id)
        if seq:
            return Done("done", f"done before the device restarted, as journal entry {seq:,}")
        if ask == "label":
            return Done(
                "failed", "the device restarted meanwhile; teach it again if `events` shows no receipt for it"
            )
        return Done("interrupted", "the device restarted before it was carried out")

    def adjust(self, named: dict[str, Any]) -> Settings:
        """Use these settings from now on; raises ConfigError, and changes nothing, if they are
        not allowed.
        """
        raw = msgspec.to_builtins(self._learner.settings)
        for name, value in named.items():
            raw["trust" if name == "min_confidence" else "sleep"][name] = value
        settings = settings_from(raw, "set")
        self._device.adjust(settings)
        return settings

    def _obey(self, order_id: str, do: Do, source: str) -> Done:
        if isinstance(do, Teach):
            label = Label(label=do.label, kind=do.kind, reading_id=do.reading_id, source=source)
            receipt = self._device.teach(label)
            learned = receipt.status in ("learned", "held", "duplicate")
            return Done("done" if learned else "failed", receipt.message, msgspec.to_builtins(receipt))
        if isinstance(do, SleepNow):
            self._request(SleepRequest())
            return Done("done", "it sleeps as soon as its conditions allow")
        if isinstance(do, Adjust):
            named = {name: value for name, value in msgspec.structs.asdict(do).items() if value is not None}
            self.adjust(named)
            return Done("done", "used from now on, also after a restart", self.settings())
        if isinstance(do, Report):
            return self._report(do)
        if isinstance(do, (Forget, Rollback, Rename, Review)):
            outcome = self._device.revise(do, source=source, wait=False)
            return Done("done", outcome.message, msgspec.to_builtins(outcome))
        release = verify_release(do, self._keys)
        return Done("done", self._device.upgrade.install(release, id=order_id))

    def _report(self, asked: Report) -> Done:
        if asked.what == "status":
            return Done("done", "", msgspec.to_builtins(self._learner.status()))
        if asked.what == "sleeps":
            reports = self._learner.sleep_reports()
            return Done("done", "", {"sleeps": msgspec.to_builtins(reports)})
        return tell(self._learner)


def tell(learner: Learner) -> Done:
    """The sums over a learner's labels, as far as its settings allow. Raises StateError."""
    learner.settle()
    journal, settings = learner.journal, learner.settings
    if journal is None:
        raise StateError("this device keeps no journal of its labels: give it a state folder")
    found, account = share(
        journal,
        learner.bundle,
        settings.privacy,
        device=f"{settings.device.site}/{settings.device.name}",
        rng=np.random.default_rng(),
    )
    data = {"seq": account.seq, "bundle_id": account.bundle_id, "n_reports": account.n_reports}
    if account.noise:
        words = f"with noise: all {account.n_reports} reports make ε = {_epsilon(account)}"
    else:
        words = f"of {found.counts.sum():,.0f} labels"
        if account.first > 1:
            words += f" after journal entry {account.first - 1:,}; older ones are no longer kept"
    return Done("done", f"sums {words}", data, to_bytes(found, account))


def _epsilon(account: Account) -> str:
    return "unlimited: one had no noise" if account.epsilon is None else f"{account.epsilon:.2f}"
