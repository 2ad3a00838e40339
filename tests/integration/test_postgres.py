"""A study in PostgreSQL: what a journal promises holds there too, and an outage costs nothing."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._rdb.storage import _VersionManager
from optuna.trial import FrozenTrial, TrialState

from search import postgres as adapter
from search.postgres import PatientStorage, PostgresError, connect, read_postgres
from search.report_facts import ReportError, read_facts
from search.space import all_params
from search.storages import JOURNAL, check_storage, open_storage
from search.studies import StorageLost, StudyError, TypeStudy
from search.tracking import Tracker, check
from tests import searching
from tests.doubles import level_of
from tests.postgres_server import PASSWORD, Postgres
from tests.study_fixtures import new_study
from tests.unit import test_searcher, test_studies, test_suggestions

pytestmark = pytest.mark.integration

OF_STUDIES = [
    test_studies.test_other_settings_under_the_same_name_are_refused_by_what_differs,
    test_studies.test_trials_machine_types_and_seeds_draw_differently,
    test_studies.test_recording_an_epoch_again_changes_nothing,
    test_studies.test_the_best_trial_is_a_complete_one,
    test_studies.test_facts_about_the_study_outlive_the_process,
]
OF_THE_SEARCHER = [
    test_searcher.test_complete,
    test_searcher.test_stopped_by_the_scheduler,
    test_searcher.test_failed,
    test_searcher.test_out_of_memory,
    test_searcher.test_worker_lost_and_retried,
    test_searcher.test_cut_off_and_taken_up_by_the_next_run,
    test_searcher.test_a_whole_search_leaves_nothing_behind,
]


@pytest.fixture
def opens_here(database: str, postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """The unit tests' own way to open a storage leads to a database for each folder."""
    uris: dict[Path, str] = {}

    def open_here(folder: Path) -> AbstractContextManager[BaseStorage]:
        if folder not in uris:
            uris[folder] = postgres.new_database() if uris else database
        return open_storage(folder, uris[folder])

    for module in (test_studies, searching):
        monkeypatch.setattr(module, "open_storage", open_here)


@pytest.mark.usefixtures("opens_here")
@pytest.mark.parametrize("holds", OF_STUDIES, ids=lambda test: test.__name__)
def test_a_study_is_what_it_is_in_a_journal(holds: Callable[..., None], tmp_path: Path) -> None:
    holds(tmp_path)


@pytest.mark.usefixtures("opens_here")
@pytest.mark.parametrize("sampler", test_studies.SAMPLERS, ids=lambda sampler: sampler.name)
def test_a_killed_study_draws_what_it_would_have_drawn(tmp_path: Path, sampler: Any) -> None:
    test_studies.test_a_study_that_was_killed_draws_what_it_would_have_drawn(tmp_path, sampler)


@pytest.mark.usefixtures("opens_here")
@pytest.mark.parametrize("holds", OF_THE_SEARCHER, ids=lambda test: test.__name__)
def test_the_searcher_books_as_in_a_journal(holds: Callable[..., None], tmp_path: Path) -> None:
    holds(tmp_path, "tpe", "asha")


def test_a_space_may_be_widened(
    tmp_path: Path,
    database: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with open_storage(tmp_path / "s", database) as storage:
        monkeypatch.setattr(test_suggestions, "InMemoryStorage", lambda: storage)
        test_suggestions.TestWidening().test_keeps_the_old_trials(caplog)


@contextmanager
def opened(folder: Path, uri: str, **settings: Any) -> Iterator[TypeStudy]:
    with open_storage(folder / "s", uri) as storage:
        yield new_study(storage, **settings)


def complete(study: TypeStudy, trial: FrozenTrial | None) -> None:
    assert trial is not None
    level = level_of(all_params(trial))
    study.record_epoch(trial.number, 1, {"val_auc": level}, level)
    study.finish(trial.number, TrialState.COMPLETE, value=level)


def test_one_process_at_a_time_wherever_its_folder_is(tmp_path: Path, database: str) -> None:
    with opened(tmp_path, database) as study:
        complete(study, study.ask())
        with pytest.raises(StudyError, match="study 's' in .* is being run by another process"):
            with opened(tmp_path / "other", database):
                pass
        with open_storage(tmp_path / "t", database):  # another study may
            pass
    with opened(tmp_path / "other", database) as study:
        assert study.count("complete") == 1


def test_who_comes_at_once_after_a_killed_driver_is_let_in(tmp_path: Path, database: str) -> None:
    with opened(tmp_path, database):
        with connect(database) as connection:
            owner = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted"
            (process,) = connection.execute(owner).fetchone()
        end = threading.Timer(0.5, end_backend, [database, process])
        end.start()
        with opened(tmp_path / "other", database) as study:
            complete(study, study.ask())
        end.join()


def end_backend(database: str, process: int) -> None:
    with connect(database) as connection:
        connection.execute("SELECT pg_terminate_backend(%s)", [process])


def test_who_reads_while_tables_are_made_makes_none(
    tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stamp = _VersionManager._set_alembic_revision
    makers, readers = [], []

    def read() -> None:
        with read_postgres(database) as storage:
            assert storage.get_all_studies() == []

    def stamp_late(self: _VersionManager, revision: str) -> None:
        makers.append(threading.current_thread())
        if len(makers) == 1:
            reader = threading.Thread(target=read)
            readers.append(reader)
            reader.start()
            reader.join(0.5)  # it would be done by then
        stamp(self, revision)

    monkeypatch.setattr(_VersionManager, "_set_alembic_revision", stamp_late)
    with open_storage(tmp_path / "s", database):
        for reader in readers:
            reader.join()
    assert makers == [threading.current_thread()]


def test_a_restart_of_the_server_loses_nothing(
    tmp_path: Path, database: str, postgres: Postgres
) -> None:
    with opened(tmp_path, database) as study:
        for number in range(24):
            if number in (6, 12, 18):
                restart = threading.Thread(target=postgres.restart)
                restart.start()
            complete(study, study.ask())
        restart.join()
        assert [trial.number for trial in study.trials()] == list(range(24))
        assert study.count("complete") == 24
        with pytest.raises(StudyError, match="run by another process"):  # the lock is back as well
            with opened(tmp_path / "other", database):
                pass
    with opened(tmp_path, database) as study:
        assert study.count("complete") == 24


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_write_that_was_or_was_not_carried_out_is_done_once(
    tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    monkeypatch.setattr(adapter, "_PAUSE_S", 0.0)
    failed = []

    def fail_once(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if name in failed:
                return method(*args, **kwargs)
            failed.append(name)
            if moment == "after":
                method(*args, **kwargs)
            raise PostgresError("the connection was lost")

        return call

    with open_storage(tmp_path / "s", database) as storage:
        assert isinstance(storage, PatientStorage)
        inner = storage._inner
        for name in ("create_new_study", "create_new_trial", "set_trial_state_values"):
            monkeypatch.setattr(inner, name, fail_once(name, getattr(inner, name)))
        for name in ("set_trial_user_attr", "set_trial_intermediate_value", "set_study_user_attr"):
            monkeypatch.setattr(inner, name, fail_once(name, getattr(inner, name)))
        study = new_study(storage)
        complete(study, study.ask())
        failed.clear()
        complete(study, study.ask())
        assert len(failed) == 4
    with opened(tmp_path, database) as study:
        assert [trial.state for trial in study.trials()] == [TrialState.COMPLETE] * 2
        assert [list(trial.intermediate_values) for trial in study.trials()] == [[1], [1]]


def test_a_database_that_stays_away_ends_the_search_with_what_to_do(
    tmp_path: Path, database: str, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "PATIENCE_S", 0.3)
    with opened(tmp_path, database) as study:
        complete(study, study.ask())
        postgres.stop()
        try:
            with pytest.raises(SystemExit, match="repeat the command once it works") as caught:
                study.ask()
        finally:
            postgres.start()
    assert isinstance(caught.value, StorageLost)
    with opened(tmp_path, database) as study:
        assert study.count("complete") == 1


def test_a_database_that_is_read_only_for_a_while_is_waited_for(
    tmp_path: Path, database: str
) -> None:
    guard = f'ALTER DATABASE "{database.rpartition("/")[2]}" SET default_transaction_read_only = '
    end_others = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    with opened(tmp_path, database) as study, connect(database) as connection:
        connection.execute(guard + "on")
        connection.execute(end_others)
        asking = threading.Thread(target=lambda: complete(study, study.ask()), daemon=True)
        asking.start()
        asking.join(1.0)
        assert asking.is_alive()
        connection.execute(guard + "off")
        asking.join(30.0)
        assert study.count("complete") == 1


def test_who_lost_the_lock_writes_no_more(
    tmp_path: Path, database: str, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "PATIENCE_S", 0.3)
    with opened(tmp_path, database) as study:
        postgres.restart()
        with opened(tmp_path / "other", database) as successor:
            with pytest.raises(StorageLost, match="another process runs this study"):
                study.ask()
            complete(successor, successor.ask())
            assert len(successor.trials()) == 1


def test_one_database_holds_trials_and_mlflow(tmp_path: Path, database: str) -> None:
    check(database)
    with opened(tmp_path, database) as study:
        complete(study, study.ask())
        tracker = Tracker(database, tmp_path / "artifacts", "s")
        tracker.log_trial("fan", study.trial(0))
        assert tracker.trial_run("fan", 0)
    check(database)
    with connect(database) as connection:
        tables = connection.execute(
            "SELECT schemaname, count(*) FROM pg_tables WHERE tablename = 'alembic_version' "
            "GROUP BY schemaname"
        ).fetchall()
    assert dict(tables) == {"optuna": 1, "public": 1}


def test_a_report_reads_what_a_journal_would_have_told(tmp_path: Path, database: str) -> None:
    told = []
    for name, uri in (("journal", None), ("database", database)):
        folder = tmp_path / name / "s"
        with open_storage(folder, uri) as storage:
            study = new_study(storage)
            for _ in range(3):
                complete(study, study.ask())
            study.note("outcome", {"winner": 1})
            (facts,) = read_facts(folder)  # also while it is held
            trials = [(t.number, t.state, t.params, t.curve, t.value) for t in facts.trials]
            told.append((facts.machine_type, facts.winner, trials))
    assert told[0] == told[1]
    with open_storage(tmp_path / "database" / "s" / "fan", database) as storage:
        new_study(storage)
    assert len(read_facts(tmp_path / "elsewhere" / "s", database)) == 1  # of the one that is asked
    with pytest.raises(ReportError, match="holds no study yet"):
        read_facts(tmp_path / "elsewhere" / "x", database)


def test_optunas_own_tools_find_the_trials(tmp_path: Path, database: str) -> None:
    with opened(tmp_path, database) as study:
        complete(study, study.ask())
    uri = f"{database}?options=-csearch_path%3Doptuna"  # as docs/cluster.md has it
    storage = RDBStorage(uri)
    assert optuna.get_all_study_names(storage) == ["s/fan"]
    assert len(optuna.load_study(study_name="s/fan", storage=storage).trials) == 1
    storage.engine.dispose()


def test_a_study_stays_where_its_trials_are(tmp_path: Path, database: str) -> None:
    with opened(tmp_path, database):
        pass
    with pytest.raises(StudyError, match="has its trials in postgresql://.*give that as --storage"):
        with open_storage(tmp_path / "s"):
            pass
    other = f"{database}_that_is_another"
    with pytest.raises(StudyError, match="has its trials in postgresql://.*have been moved"):
        with open_storage(tmp_path / "s", other):
            pass
    with open_storage(tmp_path / "t") as storage:
        new_study(storage)
    with pytest.raises(StudyError, match=f"has its trials in .*{JOURNAL}: leave out --storage"):
        with open_storage(tmp_path / "t", database):
            pass


def test_what_cannot_be_used_is_refused_at_once(
    tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ReportError, match="no search has used this database"):
        read_facts(tmp_path / "s", database)
    with pytest.raises(StudyError, match="must be postgresql://.* got 'mysql://h/db'"):
        check_storage("mysql://h/db")
    with pytest.raises(StudyError, match="cannot use --storage .*refused"):
        check_storage("postgresql://tester@127.0.0.1:1/db")
    monkeypatch.setenv("PGPASSWORD", "wrong")
    for use in (check_storage, lambda uri: open_storage(tmp_path / "s", uri).__enter__()):
        with pytest.raises(StudyError, match="password authentication failed") as caught:
            use(database)
        assert "wrong" not in str(caught.value)
        assert PASSWORD not in str(caught.value)


def test_a_role_without_rights_is_refused_in_a_line(tmp_path: Path, database: str) -> None:
    with open_storage(tmp_path / "s", database):
        pass
    guest = database.replace("tester@", "guest@")
    with connect(database) as connection:
        connection.execute(f"CREATE ROLE guest LOGIN PASSWORD '{PASSWORD}'")
        for grant in ("", "GRANT USAGE ON SCHEMA optuna TO guest"):
            connection.execute(grant)
            with pytest.raises(StudyError, match="cannot use --storage .*permission") as told:
                open_storage(tmp_path / "t", guest).__enter__()
            assert "\n" not in str(told.value)
