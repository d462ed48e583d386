"""Which extras pip resolves for which Python and processor: ``python -m bench.resolve [--json FILE]``.

Builds the wheel and asks pip's resolver for each platform, wheels only, so that nothing would be compiled on
a board. Prints the table of docs/boards.md: the runtime's version, or ``no``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec

PYTHONS = ("3.11", "3.12", "3.13")
MACHINES = ("x86_64", "aarch64")
GLIBCS = ("2_34", "2_28", "2_27", "2_17")
"""Newest first: Debian 12 has glibc 2.36, Ubuntu 22.04 (JetPack 6) 2.35."""
EXTRAS = {
    "": "numpy", "onnx": "onnxruntime", "litert": "ai-edge-litert", "tflite": "tflite-runtime",
    "signed": "cryptography", "fleet": "sqlalchemy", "simulate": "amqtt",
    "i2c": "smbus2", "serial": "pyserial", "gpio": "gpiozero", "audio": "sounddevice",
    "camera": "opencv-python-headless",
}  # fmt: skip
"""Each with the package whose version the table shows."""


def resolve(wheel: Path, extra: str, python: str, machine: str) -> str:
    """The version of the extra's own package, or ``no`` when pip finds no set of wheels."""
    platforms = [f"manylinux_{glibc}_{machine}" for glibc in GLIBCS] + [f"manylinux2014_{machine}"]
    abi = "cp" + python.replace(".", "")
    command = [
        sys.executable, "-m", "pip", "install", "-q", "--dry-run", "--ignore-installed", "--report", "-",
        "--target", "unused", "--only-binary=:all:", "--python-version", python, "--implementation", "cp",
        *(word for name in platforms for word in ("--platform", name)),
        *(word for name in (abi, "abi3", "none") for word in ("--abi", name)),
        f"{wheel}[{extra}]" if extra else str(wheel),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        return "no"
    found = {
        item["metadata"]["name"].lower(): item["metadata"]["version"]
        for item in json.loads(done.stdout)["install"]
    }
    return str(found.get(EXTRAS[extra], "no"))


def table(wheel: Path) -> dict[str, dict[str, str]]:
    """By extra, the versions by platform as ``3.11 x86_64``."""
    columns = [(python, machine) for machine in MACHINES for python in PYTHONS]
    return {
        extra: {f"{python} {machine}": resolve(wheel, extra, python, machine) for python, machine in columns}
        for extra in EXTRAS
    }


def main() -> None:
    """Resolve and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table to a file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as dist:
        build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", dist, "."]
        subprocess.run(build, check=True, capture_output=True)
        found = table(next(Path(dist).glob("*.whl")))
    columns = list(found[""])
    print("| extra | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for extra, row in found.items():
        named = f"`{extra}`" if extra else "(none)"
        print(f"| {named}: {EXTRAS[extra]} | " + " | ".join(row[column] for column in columns) + " |")
    if arguments.json:
        arguments.json.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")


if __name__ == "__main__":
    main()
