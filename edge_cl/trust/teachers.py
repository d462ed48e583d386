"""Who may teach what: every label of a source that is not trusted is checked before it is learned.

Quotas bound how much such a source may teach at all. Beyond that, a label is held for a person to look at

- when it contradicts trusted labels that are hardly ever wrong (`OUTLIER_P`);
- when it makes a new class, or names one that no trusted label has amid readings that have another (`FAR_P`);
- when its source is suspect: together its labels disagree with trusted ones more than those do among each
  other. It is one until they agree again.

With fewer than `LEAST_MEASURED` trusted labels nothing can be contradicted, and only the quotas hold.
What it has taught since the suspicion began is named, so that it can be taken back exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from edge_cl.config import TrustSettings
from edge_cl.records import FloatArray
from edge_cl.trust.accounts import SUSPECT, Account
from edge_cl.trust.reference import CAPACITY, Doubt, Reference

TRUSTED = 1.0
"""Trust of a source that is never checked, and that the others are checked by."""
CHECKED = 0.5
OUTLIER_P = 0.005
"""A label stranger than all but this share of trusted ones is held: of `N_MEASURED`, than every one."""
CONTRADICTS_P = 0.5
"""That it is not of a class is held where the class is less strange than this share of trusted labels."""
FAR_P = 0.1
"""A class without trusted labels is learned where at most this share of trusted labels lay as far off."""
REVIEW = "`edge-cl review` shows it"
MAX_ACCOUNTS = 32
"""Sources with an account of their own; beyond them the newest counts as a newcomer again."""


class Origin(NamedTuple):
    """Where a label comes from: its journal entry, who said it, how far that one is trusted, and when."""

    seq: int = 0
    source: str = ""
    trust: float = TRUSTED
    at_s: float = 0.0


class Said(NamedTuple):
    """A label as the journal has it: feature x (D,), class index y (-1: a new class), who, and when."""

    x: FloatArray
    y: int
    source: str
    trust: float
    at_s: float


class Verdict(NamedTuple):
    """Whether to learn a label, with the reason for a person where not."""

    action: Literal["learn", "hold", "refuse"]
    reason: str = ""


def trust_in(settings: TrustSettings, source: str) -> float:
    """How far the settings trust a source: by its whole name, else by the longest part before a ``/``.

    What comes over MQTT is checked when they do not say; all else came to the device itself.

    >>> trust_in(TrustSettings(sources={"mqtt/anna": 1.0}), "mqtt/anna")
    1.0
    >>> trust_in(TrustSettings(), "mqtt/anna"), trust_in(TrustSettings(), "local")
    (0.5, 1.0)
    """
    name = source
    while name not in settings.sources and "/" in name:
        name = name.rpartition("/")[0]
    return settings.sources.get(name, CHECKED if name == "mqtt" else TRUSTED)


class Teachers:
    """The checks, and what they must remember: a pure function of bundle and journal.

    A name that the settings do not list is a claim that anybody may make. So it is a newcomer until it is
    `proven`, and all newcomers of one channel (``mqtt/*``) share one account besides their own.

    Parameters
    ----------
    n_features
        Length D of a feature vector.
    settings
        Who is trusted, and quotas.
    capacity
        Features of trusted labels that are kept.
    """

    def __init__(
        self, n_features: int, settings: TrustSettings | None = None, capacity: int = CAPACITY
    ) -> None:
        self._settings = settings or TrustSettings()
        self.reference = Reference(n_features, capacity)
        self._accounts: dict[str, Account] = {}

    @property
    def nbytes(self) -> int:
        """Bytes held by arrays."""
        return self.reference.nbytes

    @property
    def suspects(self) -> list[str]:
        """Sources of which nothing is learned until they agree with the trusted ones again."""
        return [name for name, account in self._accounts.items() if account.suspect]

    def judge(self, said: Said, class_names: Sequence[str]) -> Verdict:
        """Whether to learn a label; changes nothing."""
        if said.trust >= TRUSTED:
            return Verdict("learn")
        accounts = self._accounts_of(said.source, said.trust)
        if known := _known_before(said, accounts):
            return known
        doubt = self.reference.doubt(said.x, said.y)
        if doubt is None:
            return Verdict("learn")
        return _verdict(accounts, said, doubt, class_names[doubt.rival])

    def judge_not(self, said: Said, class_names: Sequence[str]) -> Verdict:
        """Whether to learn that a reading is not of a class; changes nothing.

        There is no telling how often honest sources say so, hence no sequential test: what trusted labels are
        clearly for, and all that a suspect says, is held.
        """
        if said.trust >= TRUSTED:
            return Verdict("learn")
        accounts = self._accounts_of(said.source, said.trust)
        if known := _known_before(said, accounts):
            return known
        suspects = [name for name, account in accounts.items() if account.suspect]
        if suspects:
            return Verdict("hold", f"{suspects[0]} contradicts trusted labels too often; {REVIEW}")
        doubt = self.reference.doubt(said.x, said.y) if said.y >= 0 else None
        if doubt is not None and doubt.known and doubt.p > CONTRADICTS_P:
            return Verdict("hold", f"trusted labels nearby say {class_names[said.y]}; {REVIEW}")
        return Verdict("learn")

    def note_not(self, source: str, trust: float, at_s: float) -> None:
        """Journalled: somebody said what a reading is not. Counts for the quotas."""
        if trust < TRUSTED:
            for name, account in self._accounts_of(source, trust).items():
                self._accounts[name] = account
                account.take(at_s)
            self._forget_newcomers()

    def note(self, said: Said, seq: int, *, learned: bool) -> list[int]:
        """Journal entry `seq` was learned or held: remember what later verdicts need.

        Returns the journal numbers of labels learned before that should be held instead: their source has
        just become suspect.
        """
        if said.trust >= TRUSTED:
            self.reference.add(said.x, said.y)
            return []
        self.reference.measure()
        doubt = self.reference.doubt(said.x, said.y)
        back: set[int] = set()
        for name, account in self._accounts_of(said.source, said.trust).items():
            self._accounts[name] = account
            account.take(said.at_s)
            if doubt is not None and doubt.known:
                named = account.judge(doubt.evidence, seq, said.source, learned=learned)
                back |= {k for k, who in named if name == who or self._is_doubted_newcomer(who)}
            elif learned:
                account.remember(seq, said.source)
        self._forget_newcomers()
        return sorted(back)

    def _accounts_of(self, source: str, trust: float) -> dict[str, Account]:
        """The account of a source, and the one it shares while it is a newcomer; made when not there."""
        names = [source]
        if source not in self._settings.sources and "/" in source and not self._is_proven(source):
            names.append(source.partition("/")[0] + "/*")
        per_day = max(trust * self._settings.per_day, 1.0)
        per_minute = max(trust * self._settings.per_minute, 1.0)
        return {
            name: self._accounts.get(name) or Account(per_day, per_minute, shared=_is_shared(name))
            for name in names
        }

    def _is_doubted_newcomer(self, source: str) -> bool:
        """Whether something speaks against it by itself, or it is not known any more."""
        account = self._accounts.get(source)
        return account is None or (account.suspicion > 0 and not account.proven)

    def _is_proven(self, source: str) -> bool:
        account = self._accounts.get(source)
        return account is not None and account.proven

    def _forget_newcomers(self) -> None:
        """So that names cost no memory without end: what is not proven goes first, the oldest first."""
        while len(self._accounts) > MAX_ACCOUNTS:
            listed = [name for name in self._accounts if not _is_shared(name)]
            newcomers = [name for name in listed if not self._accounts[name].proven]
            del self._accounts[(newcomers or listed)[0]]

    def accounts_state(self) -> dict[str, Any]:
        """JSON values that `restore_accounts` takes back; the reference has a state of its own."""
        return {name: account.state() for name, account in self._accounts.items()}

    def restore_accounts(self, accounts: dict[str, Any]) -> None:
        """Take back what `accounts_state` gave."""
        self._accounts = {
            name: Account.restored(state, shared=_is_shared(name)) for name, state in accounts.items()
        }


def _is_shared(name: str) -> bool:
    """Whether an account is the newcomers' of a channel."""
    return name.endswith("/*")


def _known_before(said: Said, accounts: dict[str, Account]) -> Verdict | None:
    """The verdict that no look at the reading can change."""
    for name, account in accounts.items():
        if quota := account.spent(said.at_s):
            size = account.buckets[quota].size
            return Verdict(
                "refuse",
                f"{name} may teach {size:g} labels a {quota}; label later, label at the device, or raise "
                f"trust.per_{quota}",
            )
    if said.trust <= 0:
        return Verdict("hold", f"{said.source} is not trusted at all (trust.sources)")
    return None


def _verdict(accounts: dict[str, Account], said: Said, doubt: Doubt, rival: str) -> Verdict:
    """What the trusted labels' doubt, and what each account had said before, come to."""
    if said.y < 0:
        return Verdict("hold", f"{said.source} is not trusted to make a new class; {REVIEW}")
    if not doubt.known and doubt.p > FAR_P:
        return Verdict("hold", f"no trusted label has this class, those nearby say {rival}; {REVIEW}")
    if doubt.outlier <= OUTLIER_P:
        return Verdict("hold", f"trusted labels nearby say {rival}, and are hardly ever wrong; {REVIEW}")
    own = accounts[said.source].suspicion_after(doubt.evidence)
    for name, account in accounts.items():
        if name != said.source and own == 0:  # the other newcomers' doings are not its own
            continue
        if account.suspect or account.suspicion_after(doubt.evidence) >= SUSPECT:
            return Verdict("hold", f"{name} contradicts trusted labels too often; {REVIEW}")
    return Verdict("learn")
