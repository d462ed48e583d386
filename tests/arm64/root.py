"""An arm64 Debian in a folder, run by user-mode emulation: what a board computes, not how fast it does.

``python -m tests.arm64.root FOLDER`` builds one in about half a minute: packages by apt for a foreign
architecture, unpacked over a merged-/usr skeleton, and aarch64 wheels by the host's pip. Needs root, a Debian
host, ``qemu-user-static`` and a kernel that lets binfmt_misc be mounted.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

QEMU = "/usr/bin/qemu-aarch64-static"
BINFMT = Path("/proc/sys/fs/binfmt_misc")
MAGIC = (
    r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00",
    r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff",
)
PACKAGES = [
    "python3", "libc-bin", "base-files", "base-passwd", "dash", "coreutils", "libstdc++6", "libgomp1",
    "libsqlite3-0", "ca-certificates",
]  # fmt: skip
PYTHON_VERSION = "3.11"
PLATFORMS = [f"manylinux_2_{n}_aarch64" for n in (34, 28, 27, 17)] + ["manylinux2014_aarch64"]
CPUS = {"cortex-a53": "0xd03", "cortex-a72": "0xd08", "cortex-a76": "0xd0b"}
"""Models of the emulator and their part numbers: Pi 3 and Zero 2 W, Pi 4, Pi 5."""
CPU_FEATURES = {
    "cortex-a53": "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid",
    "cortex-a72": "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid",
    "cortex-a76": "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm asimddp",
}


class Unavailable(Exception):
    """This machine cannot emulate Arm; the text says why."""


class ArmRoot:
    """A built root.

    Parameters
    ----------
    folder
        Where it is.
    cpu
        Which core is emulated; instructions it lacks end the process, as on the board.
    """

    def __init__(self, folder: Path, cpu: str = "cortex-a72") -> None:
        self.folder, self.cpu = folder, cpu
        (folder / f"cpuinfo-{cpu}").write_text(_cpuinfo(cpu))

    def command(self, arguments: Sequence[str], env: Mapping[str, str] | None = None) -> list[str]:
        """The host's command that runs `arguments` in the root; ends with the process that started it."""
        root = self.folder
        variables = {
            "PATH": "/usr/bin:/bin", "HOME": "/root", "LANG": "C.UTF-8", "QEMU_CPU": self.cpu,
            "OMP_NUM_THREADS": "1", **(env or {}),
        }  # fmt: skip
        prepare = (
            f"mount --bind /dev {root}/dev && mount -t proc proc {root}/proc"
            # the emulator shows the host's, which no Arm runtime can read: onnxruntime crashes on it, as it
            # does on one that promises instructions which the emulated core lacks
            f" && mount --bind {root}/cpuinfo-{self.cpu} {root}/proc/cpuinfo && mount -t tmpfs tmp {root}/tmp"
            f' && mount --bind /sys {root}/sys && {{ chroot {root} "$@"; exit $?; }}'
        )
        words = [f"{name}={value}" for name, value in variables.items()]
        alone = ["unshare", "--mount", "--fork", "--pid", "--kill-child"]
        return [*alone, "sh", "-ec", prepare, "sh", "/usr/bin/env", "-i", *words, *arguments]

    def run(
        self, arguments: Sequence[str], *, env: Mapping[str, str] | None = None, timeout_s: float = 300,
        stdin: bytes = b"", check: bool = True,
    ) -> subprocess.CompletedProcess[bytes]:  # fmt: skip
        """Run to the end; raises `RuntimeError` with the output when it fails and `check` is set."""
        done = subprocess.run(
            self.command(arguments, env), input=stdin, capture_output=True, timeout=timeout_s, check=False
        )
        if check and done.returncode:
            said = (done.stdout[-2000:] + done.stderr[-4000:]).decode("utf-8", "replace")
            raise RuntimeError(f"{' '.join(arguments)} ended with {done.returncode}:\n{said}")
        return done


def build(folder: Path) -> ArmRoot:
    """Make the root, or take the one that is there. Raises `Unavailable`."""
    _require()
    if not (folder / "built").exists():
        shutil.rmtree(folder, ignore_errors=True)
        _unpack(folder)
        (folder / "built").touch()
    return ArmRoot(folder)


def install(root: ArmRoot, name: str, requirements: Sequence[str]) -> str:
    """aarch64 wheels into a folder of the root of this name; its path inside, for PYTHONPATH."""
    target = root.folder / "opt" / name
    if not (target / "installed").exists():
        shutil.rmtree(target, ignore_errors=True)
        platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
        _call(
            sys.executable, "-m", "pip", "install", "-q", "--target", str(target), *platforms,
            "--python-version", PYTHON_VERSION, "--implementation", "cp", "--abi", "cp311", "--abi", "abi3",
            "--abi", "none", "--only-binary=:all:", *requirements,
        )  # fmt: skip
        (target / "installed").touch()
    return f"/opt/{name}"


def _require() -> None:
    if os.geteuid():
        raise Unavailable("emulated Arm needs root, for chroot and mounts")
    if not Path(QEMU).exists():
        raise Unavailable(f"{QEMU} is missing: apt-get install qemu-user-static")
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise Unavailable("this is not Debian: there is no apt to fetch arm64 packages with")
    if not (BINFMT / "register").exists():
        found = subprocess.run(
            ["mount", "-t", "binfmt_misc", "binfmt_misc", str(BINFMT)], capture_output=True, check=False
        )
        if found.returncode:
            raise Unavailable(f"binfmt_misc cannot be mounted ({found.stderr.decode().strip()})")
    handlers = [path.read_text() for path in BINFMT.glob("*aarch64")]
    if not any(re.search(r"^flags: .*F", text, re.MULTILINE) for text in handlers):  # F: found from any root
        try:
            (BINFMT / "register").write_text(f":edge-cl-aarch64:M:0:{MAGIC[0]}:{MAGIC[1]}:{QEMU}:F")
        except OSError as error:
            raise Unavailable(f"an emulator cannot be registered ({error.strerror})") from error


def _unpack(folder: Path) -> None:
    for name in ("usr/bin", "usr/lib", "usr/sbin", "dev", "proc", "sys", "tmp", "root", "var", "opt", "etc"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name in ("bin", "lib", "sbin"):
        (folder / name).symlink_to(f"usr/{name}")
    state = folder / "apt"
    for name in ("lists/partial", "archives/partial"):
        (state / name).mkdir(parents=True)
    (state / "status").touch()
    apt = [
        "apt-get", "-q", "-o", "APT::Architecture=arm64", "-o", "APT::Architectures=arm64",
        "-o", f"Dir::State::lists={state}/lists", "-o", f"Dir::State::status={state}/status",
        "-o", f"Dir::Cache::archives={state}/archives", "-o", "Dir::Cache::pkgcache=",
        "-o", "Dir::Cache::srcpkgcache=", "-o", "APT::Sandbox::User=root",
    ]  # fmt: skip
    _call(*apt, "update")
    _call(*apt, "install", "-y", "--no-install-recommends", "--download-only", *PACKAGES)
    for package in sorted((state / "archives").glob("*.deb")):
        unpacked = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE)
        # --keep-directory-symlink: packages that still say /lib follow the link instead of replacing it
        _call("tar", "-x", "-C", str(folder), "--keep-directory-symlink", stdin=unpacked.stdout)
        if unpacked.wait():
            raise Unavailable(f"{package.name} cannot be unpacked")
    shutil.rmtree(state)
    (folder / "proc" / "cpuinfo").touch()
    _call("chroot", str(folder), "/sbin/ldconfig")


def _call(*command: str, stdin: object = None) -> None:
    done = subprocess.run(command, stdin=stdin, capture_output=True, check=False)  # type: ignore[call-overload]
    if done.returncode:
        said = (done.stdout + done.stderr)[-1500:].decode("utf-8", "replace")
        raise Unavailable(f"{' '.join(command[:4])} … ended with {done.returncode}: {said}")


def _cpuinfo(cpu: str) -> str:
    core = (
        f"BogoMIPS\t: 108.00\nFeatures\t: {CPU_FEATURES[cpu]}\nCPU implementer\t: 0x41\n"
        f"CPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: {CPUS[cpu]}\nCPU revision\t: 3\n\n"
    )
    return "".join(f"processor\t: {k}\n{core}" for k in range(4))


if __name__ == "__main__":
    made = build(Path(sys.argv[1]))
    sys.stdout.write(
        made.run(["python3", "-c", "import platform; print(platform.machine())"]).stdout.decode()
    )
