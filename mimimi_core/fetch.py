"""Owns the download of the DCASE 2020 Task 2 development set from Zenodo. Reads no clip.

Archives are resumed where a break left them, checked against their published md5 and unpacked to
`DIR/dev_data_<type>/<type>/{train,test}/`; what is already there is left alone.

    python -m mimimi_core.fetch --dest DIR --machine-types fan,valve
"""

import argparse
import hashlib
import http.client
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

BASE_URL = "https://zenodo.org/record/3678171/files"
LICENCE = (
    "DCASE 2020 Task 2 development data (MIMII, ToyADMOS): CC BY-NC-SA 4.0, for non-commercial "
    "use, share alike; see https://zenodo.org/record/3678171"
)
MD5 = {
    "fan": "649bdfc06263ae7a838963f43b6641e6",
    "pump": "90e7091ef722b7238a7f1009365779cd",
    "slider": "da24a757719f0d94d5aa2d646bbfdc86",
    "valve": "34d2672f55bb041589ef79c10dc89934",
}

_BLOCK_BYTES = 1 << 20
_TIMEOUT_S = 60.0  # without a byte; a slow download may take hours
_ATTEMPTS = 5  # in a row that brought nothing new
_PAUSE_S = 2.0  # after the first of them, twice as long after the second, and so on


class FetchError(RuntimeError):
    """An archive could not be had; the message says which and what to do."""


def fetch(dest: Path, machine_types: Sequence[str] = tuple(MD5), base_url: str = BASE_URL) -> None:
    """Download and unpack the machine types that `dest` does not hold yet.

    Raises:
        ValueError: A machine type is unknown.
        FetchError: The server fails, its bytes are wrong, or an archive holds paths that leave
            its folder.
    """
    for machine_type in machine_types:
        if machine_type not in MD5:
            raise ValueError(f"machine type must be one of {', '.join(MD5)}, got {machine_type!r}")
    dest.mkdir(parents=True, exist_ok=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        for machine_type in machine_types:
            home = dest / f"dev_data_{machine_type}"
            if home.exists():  # it gets this name only when it is complete
                continue
            url = f"{base_url.rstrip('/')}/{home.name}.zip"
            partial = dest / f".{home.name}.zip.part"
            task = progress.add_task(machine_type, total=None)
            _download(url, partial, progress, task)
            _require_md5(url, partial, MD5[machine_type])
            progress.update(task, description=f"{machine_type}: unpacking")
            _unpack(partial, home, url)
            partial.unlink()
            progress.update(task, description=f"{machine_type}: done")


def _download(url: str, partial: Path, progress: Progress, task: TaskID) -> None:
    """Append what is missing to `partial`, again after each break as long as it grows."""
    failures = 0
    while True:
        before = _size(partial)
        try:
            if _download_rest(url, partial, progress, task):
                return
            reason = "the server closed the connection too early"
        except urllib.error.HTTPError as error:
            with error:
                reason = f"the server answers {error.code} {error.reason}"
            if error.code < 500 and error.code != 429:  # 429: too many requests, so wait
                raise FetchError(f"{url}: {reason}") from error
        except (OSError, http.client.HTTPException) as error:
            reason = str(error) or type(error).__name__
        failures = 0 if _size(partial) > before else failures + 1
        if failures == _ATTEMPTS:
            raise FetchError(
                f"{url}: {reason} ({_ATTEMPTS} times in a row, {_size(partial)} bytes are kept); "
                "repeat the command to resume"
            )
        time.sleep(_PAUSE_S * failures)


def _download_rest(url: str, partial: Path, progress: Progress, task: TaskID) -> bool:
    """One request; True when the file is whole."""
    have = _size(partial)
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # nothing lies past what we have: it is whole, or md5 will tell
            raise
        error.close()
        return True
    with response:
        if response.status != 206:  # the server ignores Range and starts from the beginning
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        progress.update(task, completed=have, total=total)
        with partial.open("ab" if have else "wb") as file:
            while block := response.read(_BLOCK_BYTES):
                file.write(block)
                progress.advance(task, len(block))
    return total is None or _size(partial) >= total


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _require_md5(url: str, partial: Path, expected: str) -> None:
    with partial.open("rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found != expected:
        partial.unlink()
        raise FetchError(
            f"{url}: md5 must be {expected}, got {found}; the file was removed, "
            "repeat the command to fetch it again"
        )


def _unpack(archive: Path, home: Path, url: str) -> None:
    """Unpack beside `home` and rename, so that `home` is there whole or not at all."""
    with tempfile.TemporaryDirectory(dir=home.parent, prefix=".unpacking-") as work:
        unpacked = Path(work, home.name)
        try:
            with zipfile.ZipFile(archive) as members:
                for name in members.namelist():
                    path = PurePosixPath(name.replace("\\", "/"))
                    if path.is_absolute() or ".." in path.parts:
                        raise FetchError(f"{url}: holds {name!r}, which leaves its folder; refused")
                members.extractall(unpacked)
        except zipfile.BadZipFile as error:
            raise FetchError(f"{url}: must be a zip archive: {error}") from error
        unpacked.rename(home)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns 0, 1 when the download failed, or 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m mimimi_core.fetch",
        description="Download the DCASE 2020 Task 2 development set (fan, pump, slider, valve).",
        epilog=LICENCE,
    )
    parser.add_argument("--dest", type=Path, required=True, help="folder to unpack to")
    parser.add_argument("--machine-types", default=",".join(MD5), help="e.g. fan,valve; all")
    parser.add_argument("--base-url", default=BASE_URL, help="a mirror's folder of the archives")
    args = parser.parse_args(argv)
    print(LICENCE)
    try:
        fetch(args.dest, args.machine_types.split(","), args.base_url)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except (FetchError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
