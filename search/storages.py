"""Where a study's trials are stored: a journal file in its folder, or PostgreSQL. One writer.

The folder remembers which, so that a later command neither begins the study anew nor has to be
told where to look.
"""

import fcntl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from optuna.storages import BaseStorage, JournalStorage

from search.journal import Journal
from search.studies import StudyError
from search.uris import UriError, require_no_password

JOURNAL = "optuna.journal"
_PLACE = "storage"  # file with the URI of a study that is not in a journal


@contextmanager
def open_storage(folder: Path, uri: str | None = None) -> Iterator[BaseStorage]:
    """The study's storage, held by this process alone.

    Args:
        folder: Of the study; its name is the study's.
        uri: Of a PostgreSQL database; None is the journal in the folder.

    Raises:
        StudyError: Another process runs this study, its trials are elsewhere, the folder cannot be
            locked, or the database cannot be used.
    """
    if uri is not None:
        require_postgres(uri)
    _require_place(folder, uri)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StudyError(_in_use(folder, str(folder.parent))) from error
        except OSError as error:
            raise StudyError(
                f"--out must lie on a file system with locks, got {folder.parent}: "
                f"{error.strerror}; choose another one"
            ) from error
        if uri is None:
            yield JournalStorage(Journal(folder / JOURNAL))
        else:
            with ExitStack() as stack:
                yield _enter(stack, folder, uri)


def _enter(stack: ExitStack, folder: Path, uri: str) -> BaseStorage:
    from search.postgres import LockedError, PostgresError, open_postgres

    try:
        storage = stack.enter_context(open_postgres(uri, folder.name))
    except LockedError as error:
        raise StudyError(_in_use(folder, uri)) from error
    except PostgresError as error:
        raise _unusable(uri, error) from error
    (folder / _PLACE).write_text(f"{uri}\n", encoding="utf-8")
    return storage


def check_storage(uri: str) -> None:
    """Refuse within seconds what cannot be used.

    Raises:
        StudyError: It is no URI of PostgreSQL, holds a password, or no database answers.
    """
    from search.postgres import PostgresError, connect

    require_postgres(uri)
    try:
        connect(uri).close()
    except PostgresError as error:
        raise _unusable(uri, error) from error


def require_postgres(uri: str) -> None:
    """Refuse what no study can be stored in.

    Raises:
        StudyError: It is no URI of PostgreSQL, or holds a password.
    """
    try:
        require_no_password(uri, "--storage")
    except UriError as error:
        raise StudyError(str(error)) from error
    if not uri.startswith(("postgresql://", "postgresql+psycopg://")):
        raise StudyError(
            f"--storage must be postgresql://USER@HOST:5432/DATABASE, got {uri!r}; without it the "
            "trials are in a journal file below --out"
        )


def noted_uri(folder: Path) -> str | None:
    """Of the database that holds a study's trials; None if they are in the folder's journal."""
    place = folder / _PLACE
    return place.read_text(encoding="utf-8").strip() if place.is_file() else None


def _require_place(folder: Path, uri: str | None) -> None:
    noted = noted_uri(folder)
    if noted is not None and noted != uri:
        raise StudyError(
            f"study {folder.name!r} has its trials in {noted}: give that as --storage; if they "
            f"have been moved, write the new URI into {folder / _PLACE}"
        )
    if uri is not None and (folder / JOURNAL).exists():
        raise StudyError(
            f"study {folder.name!r} has its trials in {folder / JOURNAL}: leave out --storage, or "
            "choose another --study"
        )


def _unusable(uri: str, error: Exception) -> StudyError:
    return StudyError(
        f"cannot use --storage {uri}: {error}; start the database, give another one, or leave it "
        "out (a journal file below --out needs no server)"
    )


def _in_use(folder: Path, where: str) -> str:
    return (
        f"study {folder.name!r} in {where} is being run by another process: wait for it, or "
        "choose another --study"
    )
