"""Files that all nodes of a search share, packs and checkpoints: in a folder or an object store.

In a folder that every node mounts they are read and written in place. With an object store they are
copied: a pack once to each node (`search.pack_cache`), a checkpoint whenever it is written or read.
The only module that knows pyarrow's file systems.

    files = SharedFiles("s3://bucket/prefix?region=eu-west-1")

Credentials are those that the store's SDK finds by itself: in the environment, in its own files,
from the machine's role. A URI that holds some is refused. Objects are written whole or not at all.
"""

import logging
import os
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

import pyarrow as pa
from pyarrow import fs

from search.pack_cache import PackCacheError, cache_folder, cached_pack, digest_of, require_room

logger = logging.getLogger(__name__)

PATIENCE_S = 300.0  # how long a store that refuses is asked again
_LONGEST_PAUSE_S = 30.0
_PART_BYTES = 16 * 2**20  # of a download; what a break can cost
# Options of a URI that name no secret, those of pyarrow 25. What we add ourselves: small files in
# one request instead of three; Google's client else tries for 15 minutes before it says anything.
_OPTIONS = ("region", "scheme", "endpoint_override", "tls_ca_file_path", "project_id", "enable_tls")
_OWN_OPTIONS = {"s3": "allow_delayed_open=true", "gs": "retry_limit_seconds=30"}
_STORES = ("s3", "gs", "abfs", "abfss")
_Result = TypeVar("_Result")


class SharedFilesError(RuntimeError):
    """The shared storage cannot be used, or has refused for longer than it is waited for."""


class SharedFiles:
    """A folder or the part of an object store below a prefix.

    Args:
        root: Path or URI.
        patience_s: How long a store that refuses is asked again.

    Attributes:
        root: Path or URI, from which another process makes the same object.
    """

    def __init__(self, root: str | Path, patience_s: float = PATIENCE_S) -> None:
        """Connects to nothing yet.

        Raises:
            SharedFilesError: The URI is of no known kind, or holds credentials.
        """
        scheme = _checked_scheme(str(root))
        self._patience_s = patience_s
        self._folder: Path | None = None
        if scheme not in _STORES:
            folder = unquote(urlsplit(str(root)).path) if scheme == "file" else root
            self._folder = Path(folder).absolute()
        self.root = str(self._folder or root)

    def name(self, *parts: str) -> str:
        """What the other methods call a file: its path in a folder, its key in a store."""
        return str(self._folder.joinpath(*parts)) if self._folder else "/".join(parts)

    def probe(self) -> None:
        """Write, read and delete a small file, before any work is spent.

        Raises:
            SharedFilesError: One of them is refused.
        """
        name, content = self.name(f".probe-{uuid.uuid4().hex}"), b"mimimi"
        doing = "write"
        try:
            if self._folder:
                self._folder.mkdir(parents=True, exist_ok=True)
                Path(name).write_bytes(content)
                doing = "read"
                Path(name).read_bytes()
                doing = "delete"
                Path(name).unlink()
                return
            store, key = self._store(name)
            with store.open_output_stream(key) as sink:
                sink.write(content)
            doing = "read"
            with store.open_input_stream(key) as source:
                source.read()
            doing = "delete"
            store.delete_file(key)
        except (OSError, pa.ArrowException) as error:
            raise SharedFilesError(
                f"{self.root} must be storage in which this machine may write, read and delete, "
                f"but it could not {doing} {name}: {_line(error)}. Check name, region and address, "
                "and what the credentials allow that are found in the environment, in the SDK's "
                "files or by the machine's role"
            ) from error

    def share(self, path: Path) -> str:
        """Make a local file readable for every node, unless it is so already; returns its name.

        Raises:
            SharedFilesError: The object store refuses.
        """
        path = path.absolute()
        if self._folder:
            if path.is_relative_to(self._folder):
                return str(path)
            target = self._folder / "packs" / path.name
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
                shutil.copyfile(path, temporary)
                temporary.replace(target)
            return str(target)
        name = f"packs/{path.stem.rpartition('-')[0]}-{digest_of(path)}{path.suffix}"
        size = path.stat().st_size
        if self._patiently(f"look for {name}", lambda: self._info(name).size) != size:
            logger.info("uploading %s, %.2f GB, to %s", path.name, size / 1e9, self.root)
            self._patiently(f"write {name}", lambda: self._upload(path, name))
        return name

    def fetch(self, name: str) -> Path:
        """A file that `share` named, on this node: in place, or its copy.

        Raises:
            SharedFilesError: The store refuses, or the node has no room, lacks the folder, or
                cannot use that of its copies.
        """
        if self._folder:
            self._patiently(f"read {name}", lambda: self._see(name))
            return Path(name)
        copy = PurePosixPath(name)
        digest = copy.stem.rpartition("-")[2]
        try:
            return cached_pack(copy.name, digest, lambda part: self._download(name, part))
        except PackCacheError as error:
            raise SharedFilesError(f"{self.root}: {error}") from error
        except OSError as error:
            raise SharedFilesError(
                f"{self.root}: {socket.gethostname()} must be able to keep a copy of {name} in "
                f"{cache_folder()}, but: {_line(error)}; set XDG_CACHE_HOME on the nodes to a "
                "folder that can be written"
            ) from error

    def require(self, name: str) -> None:
        """Make sure that a file that `share` named can be seen from here.

        Raises:
            SharedFilesError: It cannot.
        """
        look = self._see if self._folder else self._size
        self._patiently(f"look for {name}", lambda: look(name), patience_s=0.0)

    def write(
        self, name: str, save: Callable[[Path], None], patience_s: float | None = None
    ) -> None:
        """Let `save` write a file and make it what every node reads under this name.

        `save` is called again after a refusal, so it must leave nothing half-written.

        Raises:
            SharedFilesError: The store refuses, or a disk is full, for so long.
        """

        def write() -> None:
            if self._folder:
                save(Path(name))
                return
            with tempfile.TemporaryDirectory() as scratch:
                path = Path(scratch, PurePosixPath(name).name)
                save(path)
                self._upload(path, name)

        self._patiently(f"write {name}", write, patience_s)

    def read(self, name: str, load: Callable[[Path], _Result]) -> _Result:
        """What `load` makes of a file as it is now; the path does not exist if nobody wrote it.

        `load` is called again after an OSError, so it must change nothing before it has read.

        Raises:
            SharedFilesError: The storage refuses, or there is no temporary folder, for as long as
                it is waited for.
        """

        def read() -> _Result:
            if self._folder:
                return load(Path(name))
            with tempfile.TemporaryDirectory() as scratch:
                path = Path(scratch, PurePosixPath(name).name)
                self._copy(name, path)
                return load(path)

        return self._patiently(f"read {name}", read)

    def delete(self, name: str) -> None:
        """Delete a folder and all below it; a refusal leaves rubbish and is only logged."""
        if self._folder:
            shutil.rmtree(name, ignore_errors=True)
            return
        try:
            store, key = self._store(name)
            store.delete_dir(key)
        except FileNotFoundError:
            pass
        except (OSError, pa.ArrowException) as error:
            logger.warning("%s: %s could not be deleted: %s", self.root, name, _line(error))

    def _store(self, name: str) -> tuple[fs.FileSystem, str]:
        """The file system and a file's path in it."""
        store, prefix = _connect(self.root)
        return store, f"{prefix.rstrip('/')}/{name}"

    def _info(self, name: str) -> fs.FileInfo:
        store, key = self._store(name)
        return store.get_file_info(key)

    def _upload(self, path: Path, name: str) -> None:
        store, key = self._store(name)
        # Not pyarrow's copy_files: that is silent about a store that refuses the end of a file.
        with path.open("rb") as source, store.open_output_stream(key) as sink:
            shutil.copyfileobj(source, sink, _PART_BYTES)

    def _copy(self, name: str, path: Path) -> None:
        store, key = self._store(name)
        try:
            with store.open_input_stream(key) as source, path.open("wb") as sink:
                shutil.copyfileobj(source, sink, _PART_BYTES)  # a request per piece
        except FileNotFoundError:
            path.unlink(missing_ok=True)

    def _see(self, name: str) -> None:
        """Open a file of the folder; an error says what to do, whichever way the folder is broken.

        A node that joined late may lack the mount, or have one that is stale.
        """
        try:
            with Path(name).open("rb"):
                pass
        except OSError as error:
            raise OSError(
                f"it is not to be had here ({error.strerror}): mount {self._folder} on every node, "
                "or give --storage-path a folder or URI that all can use"
            ) from error

    def _download(self, name: str, part: Path) -> None:
        """Append to `part` what it lacks; each piece is asked for until it comes."""
        size = self._patiently(f"look for {name}", lambda: self._size(name))
        with part.open("ab") as file:
            require_room(part.parent, size - file.tell())
            while (start := file.tell()) < size:
                n_bytes = min(_PART_BYTES, size - start)
                read = partial(self._read, name, start, n_bytes)
                piece = self._patiently(f"read {name} at {start}", read)
                try:
                    file.write(piece)
                except OSError as error:
                    raise PackCacheError(f"{part} cannot be written: {error.strerror}") from error
            file.flush()
            os.fsync(file.fileno())

    def _size(self, name: str) -> int:
        info = self._info(name)
        if info.type != fs.FileType.File:
            raise OSError(f"it is not there ({info.type.name}): repeat the search's command")
        return int(info.size)

    def _read(self, name: str, start: int, n_bytes: int) -> bytes:
        store, key = self._store(name)
        with store.open_input_file(key) as source:
            piece: bytes = source.read_at(n_bytes, start)
        if len(piece) != n_bytes:
            raise OSError(f"{len(piece)} bytes came instead of {n_bytes}")
        return piece

    def _patiently(
        self, doing: str, act: Callable[[], _Result], patience_s: float | None = None
    ) -> _Result:
        """Ask again, with growing pauses, whatever the reason: most pass, and none is certain."""
        patience_s = self._patience_s if patience_s is None else patience_s
        pause_s, deadline = 1.0, time.monotonic() + patience_s
        while True:
            try:
                return act()
            except (OSError, pa.ArrowException) as error:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    raise SharedFilesError(
                        f"{self.root} must let this machine {doing}, but refused for "
                        f"{patience_s:.0f} s: {_line(error)}"
                    ) from error
                logger.warning("%s: cannot %s yet: %s", self.root, doing, _line(error))
            time.sleep(min(pause_s, left_s))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


@cache
def _connect(root: str) -> tuple[fs.FileSystem, str]:
    """A store and the path of a prefix in it; one client per process, which keeps connections."""
    own = _OWN_OPTIONS.get(urlsplit(root).scheme)
    uri = f"{root}{'&' if '?' in root else '?'}{own}" if own else root
    connected: tuple[fs.FileSystem, str] = fs.FileSystem.from_uri(uri)
    return connected


def _checked_scheme(root: str) -> str:
    """The scheme of a URI, "" of a path; what may be a secret is not repeated.

    Raises:
        SharedFilesError: It cannot be used.
    """
    if "://" not in root:
        return ""
    try:
        uri = urlsplit(root)
    except ValueError as error:
        raise SharedFilesError("--storage-path is no URI that can be read") from error
    if uri.scheme not in (*_STORES, "file"):
        raise SharedFilesError(
            f"--storage-path must be a folder or begin with {'://, '.join(_STORES)}:// or "
            f"file:///, got {uri.scheme}://..."
        )
    user, _, password = uri.netloc.rpartition("@")[0].partition(":")
    if password or (user and not uri.scheme.startswith("abfs")):  # abfs://container@account
        raise SharedFilesError(
            "--storage-path must hold no credentials (what stands before @): remove them, and give "
            "them to the nodes by environment variables, the SDK's files or the machine's role"
        )
    if any(option not in _OPTIONS for option, _ in parse_qsl(uri.query, keep_blank_values=True)):
        raise SharedFilesError(
            f"--storage-path: behind ? there may be {', '.join(_OPTIONS)}, which are no "
            "credentials; remove the others"
        )
    return uri.scheme


def _line(error: Any) -> str:
    return " ".join(str(error).split())
