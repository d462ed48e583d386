"""Orders that must not be obeyed: forged, replayed, expired, for others, malformed; by the ten thousand.

Half are made by hypothesis's strategies, half by a fuzzer that damages good orders byte by byte. They go
to a device in a process of its own, whose memory is watched. Good orders go between them and must be carried
out, each once: a device that refuses everything does not pass.
"""

from __future__ import annotations

import argparse
import json
import random
import secrets
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Protocol

import msgspec
from hypothesis import HealthCheck, Phase, given
from hypothesis import seed as hypothesis_seed
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from bench.orders_device import read_settings
from edge_cl.commands import MAX_VALID_S, Adjust, Command, Do, Report, SleepNow, Teach
from edge_cl.sync import signing
from edge_cl.sync.messages import MAX_INBOUND_BYTES, Signed

Order = tuple[bytes, bool]
"""What comes on ``cmd/do``, and whether the broker had kept it."""
GOOD_EVERY = 100
BATCH = 500


class Keys:
    """Private keys: of the fleet (may ask for some), of a labeller, of a release signer, of a stranger."""

    def __init__(self) -> None:
        self.fleet, self.labeller, self.release, self.stranger = (signing.make_key() for _ in range(4))

    def settings(self) -> dict[str, Any]:
        """The section ``[commands]`` of the device that is attacked."""
        allowed = {
            "fleet": (self.fleet, ["label", "sleep", "set", "report"]),
            "labeller": (self.labeller, ["label"]),
            "release": (self.release, ["release"]),
        }
        keys = {
            who: {"public": signing.public_of(key), "allow": allow} for who, (key, allow) in allowed.items()
        }
        return {"unsigned": [], "keys": keys}


class Device(Protocol):
    """The device that is attacked: `bench.sync` has one behind a broker."""

    to: str
    boot_id: str

    def up_s(self) -> float:
        """Its uptime, at most."""

    def deliver(self, payload: bytes, retained: bool) -> None:
        """Publish on its ``cmd/do``."""

    def close(self) -> dict[str, Any]:
        """``executed`` (ids carried out, in order), ``crashes``, ``growth_mb``, ``refused`` (by code)."""


def measure(n: int, device: Device | None = None, keys: Keys | None = None, seed: int = 0) -> dict[str, Any]:
    """Send `n` bad orders; ``bad_commands_executed`` counts what was carried out and should not have been."""
    keys = keys or Keys()
    device = device or PipedDevice(keys)
    source = Orders(keys, device, random.Random(seed))
    sent, started_s = 0, time.monotonic()
    device.deliver(source.good(), False)
    while sent < n:
        batch = list(source.drawn(min(BATCH, n - sent))) + list(source.fuzzed(min(BATCH, n - sent)))
        for payload, retained in batch[: n - sent]:
            if sent % GOOD_EVERY == GOOD_EVERY - 1:
                device.deliver(source.good(), False)
            device.deliver(payload, retained)
            sent += 1
    took_s = time.monotonic() - started_s
    outcome = device.close()
    executed: list[str] = outcome["executed"]
    once = set(executed) & source.good_ids
    return {
        "bad_commands": sent,
        "bad_commands_executed": len(executed) - len(once),
        "good_commands": len(source.good_ids),
        "good_commands_executed": len(once),
        "crashes": outcome["crashes"],
        "growth_mb": outcome["growth_mb"],
        "refused": outcome["refused"],
        "took_s": took_s,
    }


class Orders:
    """Makes good orders and bad ones for a device."""

    def __init__(self, keys: Keys, device: Device, rng: random.Random) -> None:
        self.good_ids: set[str] = set()
        self._keys = keys
        self._device = device
        self._rng = rng
        self._sent: list[bytes] = []

    def good(self) -> bytes:
        """One to be carried out, once; it is kept to be replayed and damaged."""
        command = self._command()
        payload = self._sign(msgspec.json.encode(command).decode())
        self.good_ids.add(command.id)
        self._sent = [*self._sent[-99:], payload]
        return payload

    def fuzzed(self, n: int) -> Iterator[Order]:
        """Good orders that came before, damaged or as they were; and some that are wrong in one thing."""
        ways: list[Callable[[], Order]] = [self._damaged] * 6 + [self._replayed, self._wrong, self._bomb]
        for _ in range(n):
            yield self._rng.choice(ways)()

    def drawn(self, n: int) -> list[Order]:
        """Whatever hypothesis thinks of: bytes, JSON, envelopes, and texts and commands that are signed."""
        found: list[Order] = []
        signed = st.builds(self._sign, _texts() | self._commands(), st.sampled_from(["fleet", "labeller"]))
        payloads = st.binary(max_size=300) | _json() | _envelopes() | signed
        strategy = st.tuples(payloads, st.sampled_from([False] * 9 + [True]))
        # Only to draw: nothing fails here, so nothing is shrunk or kept.
        drawing = hypothesis_settings(
            max_examples=n,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        draw = given(strategy)(drawing(lambda order: found.append(order)))
        hypothesis_seed(self._rng.getrandbits(64))(draw)()
        return found

    def _commands(self) -> st.SearchStrategy[str]:
        """Commands, signed by a key that may, that are for another device, another life or another time."""
        up_s = self._device.up_s()
        late = st.floats(max_value=up_s - 1e6) | st.floats(min_value=up_s + 2 * MAX_VALID_S)
        wrong_until = st.tuples(st.just(self._device.to), st.just(self._device.boot_id), late)
        others = st.tuples(st.text(max_size=40), st.text(max_size=40), st.floats())
        do = st.builds(Teach, label=st.text(max_size=20)) | st.builds(Report) | st.just(SleepNow())
        return st.builds(
            lambda where, what: _text(
                Command(id=secrets.token_hex(16), to=where[0], boot_id=where[1], until_s=where[2], do=what)
            ),
            wrong_until | others,
            do,
        )

    def _command(self, **changes: Any) -> Command:
        until_s = self._device.up_s() + self._rng.uniform(3600, MAX_VALID_S / 2)
        do: Do = self._rng.choice([Teach(label="walk"), SleepNow(), Adjust(min_confidence=0.5), Report()])
        command = Command(
            id=secrets.token_hex(16),
            to=self._device.to,
            boot_id=self._device.boot_id,
            until_s=until_s,
            do=do,
        )
        return msgspec.structs.replace(command, **changes)

    def _sign(self, text: str, by: str = "fleet", domain: str = signing.COMMAND, key: str = "") -> bytes:
        try:
            signature = signing.sign(key or getattr(self._keys, by), domain, text)
        except ValueError:  # a text without bytes
            signature = "0" * 128
        try:
            return msgspec.json.encode(Signed(by=by, signature=signature, command=text))
        except ValueError:
            return json.dumps({"v": 1, "by": by, "signature": signature, "command": text}).encode()

    def _replayed(self) -> Order:
        return self._rng.choice(self._sent), self._rng.random() < 0.5

    def _damaged(self) -> Order:
        damaged = bytearray(self._rng.choice(self._sent))
        for _ in range(self._rng.choice([1, 1, 1, 2, 4, 16])):
            self._rng.choice([_flip, _overwrite, _insert, _cut, _double])(damaged, self._rng)
        return bytes(damaged), False

    def _wrong(self) -> Order:
        """Right but for one thing."""
        device, rng = self._device, self._rng
        up_s = device.up_s()
        text = _text(self._command())
        signature_of_another = json.loads(rng.choice(self._sent))["signature"]
        by_nobody = msgspec.json.encode(Signed(by="nobody", signature=signature_of_another, command=text))
        swapped = msgspec.json.encode(Signed(by="fleet", signature=signature_of_another, command=text))
        payload = rng.choice(
            [
                lambda: self._sign(_text(self._command(to="home/other"))),
                lambda: self._sign(_text(self._command(to=f"x{device.to}"))),
                lambda: self._sign(_text(self._command(boot_id=secrets.token_hex(16)))),
                lambda: self._sign(_text(self._command(until_s=up_s - 1e6))),
                lambda: self._sign(_text(self._command(until_s=up_s + 2 * MAX_VALID_S))),
                lambda: self._sign(_text(self._command(do=SleepNow())), by="labeller"),
                lambda: self._sign(text, by="release"),
                lambda: self._sign(text, key=self._keys.stranger),
                lambda: self._sign(text, domain=signing.RELEASE),
                lambda: self._sign(text.replace('"do":{', '"do":{"speed":9,')),
                lambda: self._sign(text.replace('"to":', '"to":"home/other","to":')),
                lambda: self._sign(_text(self._command(id=rng.choice(["", "1", "../x", "A" * 32])))),
                lambda: self._sign(_text(self._command(do=Teach(label=rng.choice(["", "a\nb", "x" * 999]))))),
                lambda: by_nobody,
                lambda: swapped,
            ]
        )()
        return payload, False

    def _bomb(self) -> Order:
        """Made to cost much: deep, long, huge numbers; some signed by the right key."""
        size = self._rng.choice([1_000, 20_000, MAX_INBOUND_BYTES - 500, MAX_INBOUND_BYTES + 1, 1_000_000])
        text = self._rng.choice(
            [
                "[" * size,
                '{"a":' * (size // 5),
                "9" * size,
                '{"v":' + "9" * size + "}",
                '{"v":1e999}',
                '{"v":NaN}',
                '{"by":"' + "x" * size + '"}',
                '{"' + "k" * size + '":1}',
                "\\ud800" * (size // 6),
                _text(self._command())[:-2] + ',"x":' + "[" * size,
                _text(self._command())[:-2] + ',"x":' + "[" * (size // 2) + "]" * (size // 2) + "}}",
            ]
        )
        if self._rng.random() < 0.3:
            return self._sign(text), False
        return text.encode(), False


class PipedDevice:
    """What a device does with what comes on ``cmd/do``, in a process of its own (`bench.orders_device`)."""

    to = "home/wrist"

    def __init__(self, keys: Keys) -> None:
        asked = {"to": self.to, "commands": keys.settings()}
        read_settings(asked)  # a mistake here should not look like one of the device
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.orders_device", json.dumps(asked)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        self.boot_id = self._process.stdout.readline().decode().strip()
        self._started_s = time.monotonic()

    def up_s(self) -> float:
        return time.monotonic() - self._started_s

    def deliver(self, payload: bytes, retained: bool) -> None:
        self._stdin.write(struct.pack("<I?", len(payload), retained) + payload)

    def close(self) -> dict[str, Any]:
        output, _ = self._process.communicate()
        found: dict[str, Any] = json.loads(output)
        return found

    @property
    def _stdin(self) -> IO[bytes]:
        assert self._process.stdin is not None
        return self._process.stdin


def _texts() -> st.SearchStrategy[str]:
    return st.text(max_size=60) | _json().map(lambda found: found.decode("utf-8", "replace"))


def _json() -> st.SearchStrategy[bytes]:
    leaf = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    keys = st.sampled_from(["v", "by", "signature", "command", "id", "to", "boot_id", "until_s", "do", "ask"])
    tree = st.recursive(
        leaf, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner), max_leaves=8
    )
    return tree.map(lambda found: json.dumps(found).encode())


def _envelopes() -> st.SearchStrategy[bytes]:
    hexadecimal = st.binary(min_size=64, max_size=64).map(bytes.hex)
    names = st.sampled_from(["fleet", "labeller", "release"]) | st.text(max_size=20)
    envelope = st.fixed_dictionaries(
        {"v": st.sampled_from([1, 1, 1, 0, 2, -1, "1", None]), "by": names, "signature": hexadecimal}
        | {"command": st.text(max_size=60)}
    )
    return envelope.map(lambda found: json.dumps(found).encode())


def _text(command: Command) -> str:
    return msgspec.json.encode(command).decode()


def _at(data: bytearray, rng: random.Random) -> int:
    return rng.randrange(len(data)) if data else 0


def _flip(data: bytearray, rng: random.Random) -> None:
    if data:
        data[_at(data, rng)] ^= 1 << rng.randrange(8)


def _overwrite(data: bytearray, rng: random.Random) -> None:
    if data:
        data[_at(data, rng)] = rng.choice(b'"\\{}[]:,0129aefE-+. \x00\xff\x80')


def _insert(data: bytearray, rng: random.Random) -> None:
    at = _at(data, rng)
    data[at:at] = rng.choice(
        [b"\x00", b'"', b"\\u0000", b"1e9", b"[[[[", b"\xed\xa0\x80", b" ", rng.randbytes(8)]
    )


def _cut(data: bytearray, rng: random.Random) -> None:
    at = _at(data, rng)
    del data[at : at + rng.choice([1, 2, 8, 64, len(data)])]


def _double(data: bytearray, rng: random.Random) -> None:
    at = _at(data, rng)
    data[at:at] = data[at : at + rng.choice([1, 8, 64, 512])]


def main() -> None:
    """Write what `measure` finds as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="3,000 instead of 100,000")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    figures = json.dumps(measure(3_000 if options.quick else 100_000), indent=2)
    print(figures)
    if options.json:
        options.json.write_text(figures + "\n")


if __name__ == "__main__":
    main()
