"""Download a data set from its publisher: resumed, retried, and checked file by file."""

from __future__ import annotations

import hashlib
import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_cl.errors import DataError

BLOCK_BYTES = 64 * 1024
TIMEOUT_S = 30.0
RETRIES = 4

OnBytes = Callable[[int], None]
"""Called with the number of bytes just done; negative when a partial file was thrown away."""


@dataclass(frozen=True)
class RemoteFile:
    """One file of the publisher: where it is, and what it must be."""

    path: str
    size_bytes: int
    sha256: str


def parse_list(text: str) -> list[RemoteFile]:
    """Lines of ``sha256 bytes path``; ``#`` begins a comment line."""
    rows = [line.split(maxsplit=2) for line in text.splitlines() if line and not line.startswith("#")]
    return [RemoteFile(path, int(size), sha256) for sha256, size, path in rows]


def fetch_all(
    files: Sequence[RemoteFile],
    base_url: str,
    folder: Path,
    *,
    on_bytes: OnBytes = lambda n: None,
    backoff_s: float = 1.0,
) -> None:
    """Bring every file into `folder`; what is already there and right is left alone.

    Raises
    ------
    DataError
        When a file cannot be had, or is not what the list says, after a few tries. What was
        downloaded stays, so that the same call continues.
    """
    for file in files:
        target = folder / file.path
        if target.is_file() and _is_right(target, file):
            on_bytes(file.size_bytes)
            continue
        _fetch_patiently(file, f"{base_url.rstrip('/')}/{file.path}", target, on_bytes, backoff_s)


def _fetch_patiently(file: RemoteFile, url: str, target: Path, on_bytes: OnBytes, backoff_s: float) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    counted = 0  # bytes of this file that on_bytes has been told of

    def tell(total: int) -> None:
        nonlocal counted
        on_bytes(total - counted)
        counted = total

    for attempt in range(1, RETRIES + 1):
        try:
            _fetch_once(file, url, part, tell)
            part.replace(target)
            return
        except _Retry as problem:
            if attempt == RETRIES:
                raise DataError(
                    f"{url}: {problem} (tried {RETRIES} times); check the connection and run the same "
                    "command again, it continues where it stopped"
                ) from problem
            time.sleep(backoff_s * 2 ** (attempt - 1))


class _Retry(Exception):
    """Worth another try."""


def _fetch_once(file: RemoteFile, url: str, part: Path, tell: Callable[[int], None]) -> None:
    have = part.stat().st_size if part.is_file() else 0
    if have > file.size_bytes:
        part.unlink()
        have = 0
    if have < file.size_bytes:
        _download(file, url, part, have, tell)
    tell(file.size_bytes)
    if not _is_right(part, file):
        found = part.stat().st_size
        part.unlink()
        tell(0)
        raise _Retry(
            f"has {found:,} bytes with another content than the list says "
            f"({file.size_bytes:,} bytes, SHA-256 {file.sha256[:12]}…)"
        )


def _download(file: RemoteFile, url: str, part: Path, have: int, tell: Callable[[int], None]) -> None:
    try:
        with _open(url, have) as response:
            continued = response.status == 206
            got = have if continued else 0
            with part.open("ab" if continued else "wb") as out:
                while got < file.size_bytes and (block := response.read(BLOCK_BYTES)):
                    out.write(block)
                    got += len(block)
                    tell(got)
    except urllib.error.HTTPError as error:
        _judge(error, url, part)
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        raise _Retry(f"connection failed ({error})") from error
    if got < file.size_bytes:
        raise _Retry(f"ended after {got:,} of {file.size_bytes:,} bytes")


def _judge(error: urllib.error.HTTPError, url: str, part: Path) -> None:
    """Which refusals may pass: the server's own trouble, too many requests, a range it did not like."""
    if error.code == 416:
        part.unlink(missing_ok=True)
    if error.code in (408, 416, 429) or error.code >= 500:
        raise _Retry(f"the server answered {error.code} {error.reason}") from error
    raise DataError(
        f"{url}: the server answered {error.code} {error.reason}; check --base-url, the publisher may have "
        "moved the files"
    ) from error


def _open(url: str, have: int) -> Any:
    if not url.startswith(("http://", "https://")):
        raise DataError(f"{url}: only http:// and https:// addresses are fetched")
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    return urllib.request.urlopen(request, timeout=TIMEOUT_S)


def _is_right(path: Path, file: RemoteFile) -> bool:
    if path.stat().st_size != file.size_bytes:
        return False
    with path.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest() == file.sha256
