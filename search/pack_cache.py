"""A node's own copies of packs: fetched once, whichever of its trials comes first, and checked.

They lie in `mimimi-search` below the user's cache folder (`$XDG_CACHE_HOME`, else `~/.cache`) and
outlive a search. Whoever fetches a pack deletes what nobody has opened for a week; deleting the
folder by hand is always safe, also while a search runs. Knows nothing of where packs come from.
"""

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

logger = logging.getLogger(__name__)

_UNUSED_S = 7 * 86400
_FETCHES = 3  # of a pack whose bytes are not what its digest says
_DIGEST_BYTES = 16
_checked: dict[Path, tuple[int, ...]] = {}  # what this process has read and found whole


class PackCacheError(RuntimeError):
    """A pack cannot be had on this node."""


def cache_folder() -> Path:
    """Where this node keeps its copies."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base, "mimimi-search")


def digest_of(path: Path) -> str:
    """32 hex digits of a file's content."""
    with path.open("rb") as file:
        made = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=_DIGEST_BYTES))
    return made.hexdigest()


def cached_pack(name: str, digest: str, fetch: Callable[[Path], None]) -> Path:
    """This node's copy of a pack, fetched if it is not there or damaged; others wait meanwhile.

    A process reads a copy once to check it, and trusts it until the file changes.

    Args:
        name: Of the copy.
        digest: See `digest_of`.
        fetch: Brings a file to its full length, from wherever an earlier call broke off.

    Raises:
        PackCacheError: What is fetched is not what the digest says.
    """
    folder = cache_folder()
    path, part = folder / name, folder / f"{name}.part"
    if _is_whole(path, digest):
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f".{name}.lock"):
        if _is_whole(path, digest):  # another process was faster
            return path
        if path.exists():
            logger.warning("%s: is damaged and fetched anew", path)
        _sweep(folder)
        for _ in range(_FETCHES):
            fetch(part)
            if digest_of(part) == digest:
                part.replace(path)
                _checked[path] = _identity(path)
                return path
            logger.warning("%s: is not what its digest says and fetched anew", part)
            part.unlink()
    raise PackCacheError(
        f"{name}: its bytes must have the digest in its name, but those of {_FETCHES} downloads "
        "had another one: delete it from the storage and repeat the command, which writes it anew"
    )


def require_room(folder: Path, n_bytes: int) -> None:
    """Refuse a download that the disk cannot hold.

    Raises:
        PackCacheError: There is less room than that.
    """
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise PackCacheError(
            f"{folder} must have room for a pack of {n_bytes / 1e9:.2f} GB, but {free / 1e9:.2f} "
            "GB are free: make room, or set XDG_CACHE_HOME to a larger disk on the nodes"
        )


def _is_whole(path: Path, digest: str) -> bool:
    try:
        identity = _identity(path)
        os.utime(path, ns=(time.time_ns(), identity[1]))  # opened now; unchanged since then
        if _checked.get(path) != identity:
            if digest_of(path) != digest:
                return False
            _checked[path] = identity
    except FileNotFoundError:
        return False
    return True


def _identity(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino


def _sweep(folder: Path) -> None:
    """Delete what nobody has opened for long; who has mapped a file keeps it until the end."""
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # another pack's download was finished meanwhile
            status = path.stat()
            if time.time() - max(status.st_atime, status.st_mtime) > _UNUSED_S:
                path.unlink()
