"""The stored truth: one writer, every epoch, and the same draws however often it was killed."""

import errno
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import pytest
from optuna.trial import FrozenTrial, TrialState

from search.config import SamplerConfig
from search.space import Space, all_params
from search.storages import JOURNAL, open_storage
from search.studies import Ending, StudyError, TypeStudy
from tests.doubles import level_of, space_file

HOLD_LOCK = """
import fcntl, sys
with open(sys.argv[1], "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    print("held", flush=True)
    sys.stdin.read()
"""
SAMPLERS = [SamplerConfig(name="random"), SamplerConfig(name="tpe", startup_trials=2)]


@contextmanager
def opened(folder: Path, machine_type: str = "fan", **changes: Any) -> Iterator[TypeStudy]:
    """The study of one machine type as a new process finds it."""
    settings: dict[str, Any] = {
        "name": "s",
        "space": Space(space_file().parameters),
        "sampler": SAMPLERS[0],
        "seed": 0,
        "identity": {"study": {"epochs": 3, "seed": 0}, "data": "abc"},
    }
    with open_storage(folder / "s") as storage:
        yield TypeStudy(storage, machine_type=machine_type, **(settings | changes))


def complete(study: TypeStudy, trial: FrozenTrial) -> None:
    level = level_of(all_params(trial))
    study.record_epoch(trial.number, 1, {"val_auc": level}, level)
    study.finish(trial.number, TrialState.COMPLETE, value=level)


def test_a_second_process_is_refused_and_a_killed_one_leaves_no_lock(tmp_path: Path) -> None:
    with opened(tmp_path):
        pass
    command = [sys.executable, "-c", HOLD_LOCK, str(tmp_path / "s" / "lock")]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with holder:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StudyError, match="study 's' in .* is being run by another process"):
            with opened(tmp_path):
                pass
        holder.kill()
    with opened(tmp_path) as study:
        assert study.trials() == []


def test_a_folder_that_cannot_be_locked_is_told_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*args: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(StudyError, match=r"must lie on .* with locks, .*: No locks available;"):
        with opened(tmp_path):
            pass


def test_half_a_line_and_a_stale_lock_of_a_killed_writer_are_mended(tmp_path: Path) -> None:
    with opened(tmp_path) as study:
        complete(study, study.ask())
        study.ask()
    journal = tmp_path / "s" / JOURNAL
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code": 6, "trial_id": 1, "sta')
    journal.with_name(f"{JOURNAL}.lock").symlink_to(journal)

    with opened(tmp_path) as study:
        states = [trial.state for trial in study.trials()]
        assert states == [TrialState.COMPLETE, TrialState.RUNNING]
        complete(study, study.resume(1))
    assert journal.read_bytes().startswith(whole)
    assert [json.loads(line) for line in journal.read_text().splitlines()]
    with opened(tmp_path) as study:
        assert study.count("complete") == 2


def test_other_settings_under_the_same_name_are_refused_by_what_differs(tmp_path: Path) -> None:
    with opened(tmp_path):
        pass
    with opened(tmp_path):  # the same ones are not
        pass
    other: dict[str, Any] = {"study": {"epochs": 5, "seed": 0}, "data": "def"}
    with pytest.raises(StudyError) as caught, opened(tmp_path, identity=other):
        pass
    message = str(caught.value)
    assert "'s/fan'" in message
    assert 'data is "abc" there, "def" here' in message
    assert "study.epochs is 3 there, 5 here" in message
    assert "seed" not in message
    assert "--study" in message
    with opened(tmp_path, machine_type="valve", identity=other):  # is another study
        pass


def test_many_differences_are_counted_and_long_ones_cut(tmp_path: Path) -> None:
    with opened(tmp_path, identity={"choices": ["x" * 200]}):
        pass
    other = {"choices": [], "a": 1, "b": 2, "c": 3, "d": 4}
    with pytest.raises(StudyError) as caught, opened(tmp_path, identity=other):
        pass
    assert "a is nothing there, 1 here" in str(caught.value)
    assert "and 2 more" in str(caught.value)
    with pytest.raises(StudyError) as caught, opened(tmp_path, identity={"choices": []}):
        pass
    assert len(str(caught.value)) < 350


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.name)
def test_a_study_that_was_killed_draws_what_it_would_have_drawn(
    tmp_path: Path, sampler: SamplerConfig
) -> None:
    with opened(tmp_path / "whole", sampler=sampler) as study:
        for _ in range(7):
            complete(study, study.ask())
        expected = [(all_params(t), t.value) for t in study.trials()]

    with opened(tmp_path / "cut", sampler=sampler) as study:
        for _ in range(4):
            complete(study, study.ask())
        cut_off = study.ask()
    with opened(tmp_path / "cut", sampler=sampler) as study:
        resumed = study.resume(4)
        assert all_params(resumed) == all_params(cut_off)
        complete(study, resumed)
        for _ in range(2):
            complete(study, study.ask())
        assert [(all_params(t), t.value) for t in study.trials()] == expected


def test_trials_machine_types_and_seeds_draw_differently(tmp_path: Path) -> None:
    drawn = []
    with opened(tmp_path / "a") as study:
        drawn += [study.ask().params["train.lr"] for _ in range(5)]
    with opened(tmp_path / "a", machine_type="valve") as study:
        drawn += [study.ask().params["train.lr"] for _ in range(5)]
    with opened(tmp_path / "b", seed=1) as study:
        drawn += [study.ask().params["train.lr"] for _ in range(5)]
        seeds = {study.train_seed(number) for number in range(5)}
    assert len(set(drawn)) == 15
    assert len(seeds) == 5


def test_a_trial_is_stored_whole_or_not_at_all(tmp_path: Path) -> None:
    journal = tmp_path / "s" / JOURNAL
    with opened(tmp_path, sampler=SAMPLERS[1]) as study:
        for _ in range(4):
            before = len(journal.read_text().splitlines())
            trial = study.ask()
            assert len(journal.read_text().splitlines()) == before + 1
            assert set(trial.params) >= {"train.lr", "network.attention"}
            assert trial.user_attrs["fixed"] == {"network.depth": 4}
            assert all_params(trial) == {**trial.params, "network.depth": 4}
            complete(study, trial)


def test_recording_an_epoch_again_changes_nothing(tmp_path: Path) -> None:
    with opened(tmp_path) as study:
        number = study.ask().number
        study.record_epoch(number, 1, {"val_auc": 0.6, "val_auc/id_00": 0.5}, 0.6)
        before = study.trial(number)
        study.record_epoch(number, 1, {"val_auc": 0.9}, 0.9)
        after = study.trial(number)
    assert after.intermediate_values == before.intermediate_values == {1: 0.6}
    assert after.user_attrs == before.user_attrs
    stamped = dict(after.user_attrs["epoch/1"])
    assert stamped.pop("timestamp_ms") > 1e12
    assert stamped == {"val_auc": 0.6, "val_auc/id_00": 0.5}


def test_the_best_trial_is_a_complete_one(tmp_path: Path) -> None:
    with opened(tmp_path) as study:
        assert study.best() is None
        for value in (0.6, 0.7, 0.7):
            study.finish(study.ask().number, TrialState.COMPLETE, value=value)
        pruned = study.ask().number
        study.record_epoch(pruned, 1, {}, 0.99)
        study.finish(pruned, TrialState.PRUNED, reason="stopped")
        study.finish(study.ask().number, TrialState.FAIL, reason="crash: x")
        study.ask()
        paused = study.ask().number
        study.record_epoch(paused, 1, {}, 0.98)
        study.pause(paused)
        best = study.best()
        assert best is not None
        assert (best.number, best.value) == (1, 0.7)  # the earlier of two equals
        assert [study.count(ending) for ending in get_args(Ending)] == [3, 1, 1, 1, 1]
        assert study.trial(pruned).user_attrs["reason"] == "stopped"


def test_facts_about_the_study_outlive_the_process(tmp_path: Path) -> None:
    with opened(tmp_path) as study:
        assert study.noted("outcome") is None
        study.note("outcome", {"winner": 3, "version": None})
    with opened(tmp_path) as study:
        assert study.noted("outcome") == {"winner": 3, "version": None}
