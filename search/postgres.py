"""Owns everything PostgreSQL: where Optuna's tables lie, who may write them, what an outage does.

Optuna's tables have a schema of their own, because MLflow may have the same database and both call
a table `alembic_version`. Passwords are libpq's business: PGPASSWORD, PGPASSFILE, a service file.
"""

import copy
import hashlib
import logging
import threading
import time
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

from optuna.distributions import BaseDistribution
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage, get_storage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import NullPool, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import SQLAlchemyError

from search.studies import StorageLost

logger = logging.getLogger(__name__)

SCHEMA = "optuna"
PATIENCE_S = 300.0  # how long a search waits for its database before it ends
_PAUSE_S = 0.25  # between two attempts
_DRIVER = "postgresql+psycopg://"
_LOCK_TIMEOUT = "2s"  # the server needs a moment to see that a killed driver is gone
_TABLES_LOCK = 0  # number of the lock that is held while tables are made
_SETTINGS = {
    # Machines that vanish without a word are noticed within about a minute, by both ends; else a
    # dead driver would keep its lock, and a dead server be waited for, for hours.
    "connect_timeout": 5,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
    "options": " ".join(
        f"-c {setting}"
        for setting in (
            f"search_path={SCHEMA}",
            "tcp_keepalives_idle=30",
            "tcp_keepalives_interval=10",
            "tcp_keepalives_count=3",
        )
    ),
}


class PostgresError(ConnectionError):
    """PostgreSQL cannot be used now; the message says why."""


class LockedError(PostgresError):
    """Another process runs this study."""


def connect(uri: str, **settings: Any) -> Any:
    """A connection of psycopg, in autocommit mode.

    Args:
        uri: `postgresql://USER@HOST:PORT/DATABASE`, or whatever libpq takes as a URI.
        settings: Further ones of libpq.

    Raises:
        PostgresError: There is no psycopg, or no database answers.
    """
    try:
        import psycopg
    except ImportError as error:
        raise PostgresError("PostgreSQL needs psycopg: pip install -e '.[postgres]'") from error
    try:
        plain = uri.replace(_DRIVER, "postgresql://", 1)
        return psycopg.connect(plain, autocommit=True, **({"connect_timeout": 5} | settings))
    except psycopg.Error as error:
        raise PostgresError(_first_line(error)) from error


@contextmanager
def open_postgres(uri: str, study: str) -> Iterator[BaseStorage]:
    """Optuna's storage in PostgreSQL, for one study and held by this process alone.

    Args:
        uri: As `connect` takes it.
        study: Name of the whole search.

    Raises:
        PostgresError: The database cannot be used.
        LockedError: Another process runs the study.
    """
    _make_tables(uri)
    import psycopg

    lock = int.from_bytes(hashlib.blake2b(study.encode(), digest_size=8).digest(), signed=True)

    # The only connection holds the study's lock. So whatever is written is written under the lock,
    # also after a restart of the server, which forgets locks, and somebody else may have come.
    def connect_locked() -> Any:
        connection = connect(uri, **_SETTINGS)
        try:
            with connection.transaction():
                connection.execute(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
                connection.execute("SELECT pg_advisory_lock(%s)", [lock])
        except psycopg.errors.LockNotAvailable:
            connection.close()
            raise LockedError("another process runs this study") from None
        connection.autocommit = False
        return connection

    storage = _storage(connect_locked, pool_size=1, max_overflow=0)
    try:
        yield cast(BaseStorage, PatientStorage(storage, PATIENCE_S))
    finally:
        storage.engine.dispose()


@contextmanager
def read_postgres(uri: str) -> Iterator[BaseStorage]:
    """Optuna's storage in PostgreSQL to look at: takes no lock of a study, makes no table.

    Raises:
        PostgresError: The database cannot be used, or no search has used it.
    """
    with _tables_lock(uri) as connection:  # Optuna adds to half-made tables whatever they miss
        (table,) = connection.execute("SELECT to_regclass(%s)", [f"{SCHEMA}.studies"]).fetchone()
        if table is None:
            raise PostgresError("no search has used this database")
        storage = _storage(partial(_connect, uri))
    try:
        yield storage
    finally:
        storage.engine.dispose()


def _connect(uri: str) -> Any:
    connection = connect(uri, **_SETTINGS)
    connection.autocommit = False
    return connection


@contextmanager
def _tables_lock(uri: str) -> Iterator[Any]:
    """A connection that holds the lock of who makes tables; a second process waits for the first.

    Raises:
        PostgresError: The database cannot be used.
    """
    import psycopg

    with connect(uri) as connection:
        try:
            connection.execute("SELECT pg_advisory_lock(%s)", [_TABLES_LOCK])
            yield connection
        except psycopg.Error as error:
            raise PostgresError(_first_line(error)) from error


def _make_tables(uri: str) -> None:
    """Make Optuna's tables where there are none."""
    with _tables_lock(uri) as connection:
        try:
            if connection.execute("SELECT to_regnamespace(%s)", [SCHEMA]).fetchone()[0] is None:
                connection.execute(f"CREATE SCHEMA {SCHEMA}")
            # Without a right to the schema Optuna would only say that there is none.
            connection.execute("SELECT to_regclass(%s)", [f"{SCHEMA}.studies"])
            # Not with the pool of one: Optuna looks at versions over two connections at once.
            engine = {"creator": partial(_connect, uri), "poolclass": NullPool}
            RDBStorage(_DRIVER, engine).engine.dispose()
        except RuntimeError as error:  # of another version of Optuna; it says what to do
            raise PostgresError(str(error)) from error
        except (SQLAlchemyError, StorageInternalError) as error:  # such as rights that are missing
            raise PostgresError(_first_line(_origin(error))) from error


class _Storage(RDBStorage):
    """Optuna's, without its check that a name always means the same choices.

    A space may be widened, which `search.studies` checks, and the journal takes any trial as well.
    """

    def _set_trial_param_without_commit(
        self,
        session: Any,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
        previous_distribution: BaseDistribution | None = None,
    ) -> None:
        super()._set_trial_param_without_commit(
            session, trial_id, param_name, param_value_internal, distribution, distribution
        )


def _storage(creator: Callable[[], Any], **pool: Any) -> RDBStorage:
    storage = _Storage(
        _DRIVER,
        {"creator": creator, **pool},
        skip_table_creation=True,
        skip_compatibility_check=True,
    )
    event.listen(storage.engine, "handle_error", _translate)
    return storage


def _translate(context: ExceptionContext) -> None:
    """Tell what a later attempt may mend from what it cannot.

    Optuna would take the former for an error of its own, and try to create a trial again that may
    be there already.
    """
    import psycopg

    error = context.original_exception
    if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
        context.is_disconnect = True  # a new connection may find it otherwise, or another server
    if context.is_disconnect or isinstance(error, psycopg.OperationalError):
        raise PostgresError(_first_line(error)) from error


def _origin(error: BaseException) -> BaseException:
    """The error that all others were made of."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class PatientStorage:
    """A storage that waits for its database, does everything once, and reads nothing twice.

    That needs that nobody else writes. The reply to a write may be lost although it was carried
    out: attributes and values may be written again, but a trial is looked for before it is created
    or ended again. What was read holds until the next write, because Tune's control loop asks for
    all trials many times a second.

    Args:
        storage: Raises `PostgresError` for what may pass.
        patience_s: How long an outage may last.
    """

    def __init__(self, storage: RDBStorage, patience_s: float) -> None:
        self._inner = get_storage(storage)  # reads a trial that has ended only once
        self._patience_s = patience_s
        self._lock = threading.RLock()  # the live table is drawn by a thread
        self._known: dict[tuple[str, int], Any] = {}
        self._deadline: float | None = None  # while the database is away

    def __reduce__(self) -> tuple[Callable[[], object], tuple[()]]:
        """Let Tune pickle all it holds, for a restoration that no search of ours uses."""
        return object, ()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """All other methods of BaseStorage."""
        if name.startswith("_"):
            raise AttributeError(name)
        method = getattr(self._inner, name)
        call = self._repeat if name.startswith("get_") else self._write
        return lambda *args, **kwargs: call(partial(method, *args, **kwargs))

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """See BaseStorage; not to be changed."""
        get = partial(self._inner.get_trial, trial_id)
        return cast(FrozenTrial, self._read(("trial", trial_id), get))

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """See BaseStorage."""
        get = partial(self._inner.get_all_trials, study_id, deepcopy=False)
        trials = self._read(("study", study_id), get)
        chosen = [trial for trial in trials if states is None or trial.state in states]
        return copy.deepcopy(chosen) if deepcopy else chosen

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """See BaseStorage; the template tells by its start whether it is there."""
        assert template_trial is not None
        create = partial(self._inner.create_new_trial, study_id, template_trial)

        def create_again() -> int:
            for trial in self._inner.get_all_trials(study_id, deepcopy=False):
                if trial.datetime_start == template_trial.datetime_start:
                    return trial._trial_id
            return create()

        return int(self._write(create, create_again))

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """See BaseStorage."""
        end = partial(self._inner.set_trial_state_values, trial_id, state, values)

        def end_again() -> bool:
            return self._inner.get_trial(trial_id).state == state or end()

        return bool(self._write(end, end_again))

    def _read(self, key: tuple[str, int], get: Callable[[], Any]) -> Any:
        with self._lock:
            if key not in self._known:
                self._known[key] = self._repeat(get)
            return self._known[key]

    def _write(self, call: Callable[[], Any], again: Callable[[], Any] | None = None) -> Any:
        with self._lock:
            self._known.clear()
            return self._repeat(call, again)

    def _repeat(self, call: Callable[[], Any], again: Callable[[], Any] | None = None) -> Any:
        """What `call` returns, or what `again` (else `call`) does once the database is back.

        Raises:
            StorageLost: It stayed away.
        """
        with self._lock:
            while True:
                try:
                    result = call()
                except PostgresError as error:
                    call = again or call
                    if self._deadline is None:
                        logger.warning("the database fails, waiting for it: %s", error)
                        self._deadline = time.monotonic() + self._patience_s
                    if time.monotonic() > self._deadline:
                        raise self._lost(error) from error
                    time.sleep(_PAUSE_S)
                else:
                    if self._deadline is not None:
                        logger.warning("the database works again")
                        self._deadline = None
                    return result

    def _lost(self, error: PostgresError) -> StorageLost:
        return StorageLost(
            f"error: the database of --storage has failed for {self._patience_s:.0f} s ({error}): "
            "what it holds is safe; repeat the command once it works, and the trials that were "
            "running go on from their last checkpoint"
        )
