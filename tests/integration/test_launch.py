"""Trials on a real Ray through the real Tuner, most of them analytic and quick."""

import itertools
import json
import os
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from optuna.trial import FrozenTrial, TrialState

from mimimi_core.clips import find_clips
from mimimi_core.pack import pack_clips
from search.config import Resources, SpaceFile
from search.failures import WORKER_RETRIES
from search.launch import checkpoint_name, run_trials, trial_resources
from search.searcher import Observer
from search.shared_files import SharedFiles, SharedFilesError
from search.storages import open_storage
from search.studies import StudyError, TypeStudy
from search.trainable import TrialRunner
from tests.audio_fixtures import write_dcase2020
from tests.doubles import EVENTS, analytic_trainable, events_of, space_file
from tests.study_fixtures import new_study

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_cluster")]

TYPES = ("fan", "pump", "valve")
EPOCHS = 4
RESOURCES = {"cpu": 1.0, "gpu": 0.0}
ASHA = {"name": "asha", "reduction_factor": 2.0}


@contextmanager
def opened(
    folder: Path, space: SpaceFile, types: tuple[str, ...]
) -> Iterator[dict[str, TypeStudy]]:
    with open_storage(folder) as storage:
        yield {name: new_study(storage, name, space=space) for name in types}


def run(
    folder: Path,
    trainable: Any = None,
    *,
    n_trials: int = 4,
    types: tuple[str, ...] = ("fan",),
    observers: tuple[Observer, ...] = (),
    time_budget_s: float | None = None,
    scheduler: Mapping[str, Any] = ASHA,
    cpus: float = 1.0,
    hours: float | None = None,
) -> tuple[dict[str, list[FrozenTrial]], bool]:
    """Run a study of analytic trials; its trials, and whether it came to its end."""
    space = space_file(n_trials, EPOCHS, scheduler=scheduler, study={"hours": hours})
    with opened(folder, space, types) as studies:
        is_over = run_trials(
            studies,
            space,
            folder=folder,
            packs=dict.fromkeys(types, Path("no pack")),
            resources=RESOURCES | {"cpu": cpus},
            time_budget_s=time_budget_s,
            observers=observers,
            trainable=trainable or analytic_trainable(),
        )
        return {name: list(study.trials()) for name, study in studies.items()}, is_over


@dataclass(frozen=True)
class Outcome:
    folder: Path
    trials: Mapping[str, list[FrozenTrial]]
    events: list[dict[str, Any]]


@pytest.fixture(scope="module")
def mishaps(tmp_path_factory: pytest.TempPathFactory, ray_cluster: str) -> Outcome:
    """Twelve trials over three machine types, some of which misbehave."""
    folder = tmp_path_factory.mktemp("mishaps")
    plan = {
        ("fan", 0): "meet",
        ("pump", 0): "meet",
        ("fan", 3): "poor",
        ("pump", 1): "lose once",
        ("pump", 2): "lose always",
        ("valve", 1): "nan",
        ("valve", 2): "crash",
    }
    trials, is_over = run(folder, analytic_trainable(plan), types=TYPES)
    assert is_over
    return Outcome(folder, trials, events_of(folder))


def test_every_type_gets_its_number_of_trials(mishaps: Outcome) -> None:
    states = {name: Counter(t.state.name for t in ts) for name, ts in mishaps.trials.items()}
    assert states == {
        "fan": {"COMPLETE": 3, "PRUNED": 1},
        "pump": {"COMPLETE": 3, "FAIL": 1},
        "valve": {"COMPLETE": 2, "FAIL": 2},
    }


def test_both_slots_are_busy_at_once_and_never_more(mishaps: Outcome) -> None:
    """Epochs, not trials: one that has lost its worker may wait while two others run."""
    changes = sorted(
        change
        for event in mishaps.events
        for change in ((event["started"], 1), (event["ended"], -1))
    )
    assert max(itertools.accumulate(change for _, change in changes)) == 2


def test_workers_serve_trial_after_trial(mishaps: Outcome) -> None:
    before_losses = [e for e in mishaps.events if e["number"] == 0]
    assert len({event["pid"] for event in before_losses}) == 2
    served = defaultdict(set)
    for event in mishaps.events:
        served[event["pid"]].add((event["machine_type"], event["number"]))
    assert max(len(trials) for trials in served.values()) >= 3


def test_a_worker_that_starts_slowly_joins_those_that_are_warm(tmp_path: Path) -> None:
    """Tune takes a warm worker for a trial by killing the one that is started for it."""
    base = analytic_trainable(step_s=0.1)

    class SlowToStart(base):  # type: ignore[misc, valid-type]
        def __init__(self, config: dict[str, Any], **kwargs: Any) -> None:
            checkpoints = Path(config["checkpoint"]).parents[1]
            checkpoints.mkdir(parents=True, exist_ok=True)
            try:
                (checkpoints / "first worker").touch(exist_ok=False)
            except FileExistsError:
                time.sleep(2.0)  # five trials of the other one
            super().__init__(config, **kwargs)

    run(tmp_path / "s", SlowToStart, n_trials=20, scheduler={"name": "none"})
    assert len({event["pid"] for event in events_of(tmp_path / "s")}) == 2


def test_trials_that_pause_go_on_from_their_checkpoint_when_their_turn_comes(
    tmp_path: Path,
) -> None:
    pausing = {"name": "asha_pause", "reduction_factor": 2.0}
    plan = {("fan", 3): "lose once", ("fan", 1): "poor"}
    trials, is_over = run(tmp_path, analytic_trainable(plan), n_trials=8, scheduler=pausing)
    assert is_over
    fan = trials["fan"]
    assert {t.state for t in fan} == {TrialState.COMPLETE, TrialState.PRUNED}
    epochs = [list(t.intermediate_values) for t in fan]
    assert all(told in ([1], [1, 2], [1, 2, 3, 4]) for told in epochs)
    assert epochs[1] == [1]
    assert 3 <= sum(len(told) > 1 for told in epochs) < 8
    assert sum(t.user_attrs.get("attempts", 1) - 1 for t in fan) <= 1  # going on is no attempt
    shown = Counter((e["number"], e["epoch"]) for e in events_of(tmp_path))
    for trial in fan:  # what paused shows its last epoch once more, and trains none again
        for epoch in trial.intermediate_values:
            is_rung = epoch in (1, 2) and epoch < len(trial.intermediate_values)
            lost = trial.user_attrs.get("attempts", 1) - 1
            assert shown[trial.number, epoch] <= 1 + is_rung + lost


def test_asha_stops_a_poor_trial_with_what_it_reported(mishaps: Outcome) -> None:
    trial = mishaps.trials["fan"][3]
    assert trial.state == TrialState.PRUNED
    assert trial.intermediate_values == {1: 0.5}
    assert trial.value == 0.5
    assert trial.user_attrs["reason"] == "stopped by the scheduler after epoch 1"


def test_a_crash_and_a_value_that_is_no_number_are_failures(mishaps: Outcome) -> None:
    nan, crashed = mishaps.trials["valve"][1:3]
    assert nan.user_attrs["reason"] == "non-finite: objective nan in epoch 1"
    assert nan.intermediate_values == {}
    assert crashed.user_attrs["reason"] == "crash: RuntimeError: boom (doubles.py:1)"
    assert list(crashed.intermediate_values) == [1]


def test_a_lost_worker_is_replaced_and_its_trial_continues(mishaps: Outcome) -> None:
    trial = mishaps.trials["pump"][1]
    assert trial.state == TrialState.COMPLETE
    assert list(trial.intermediate_values) == [1, 2, 3, 4]
    assert trial.user_attrs["attempts"] == 2
    own = [e for e in mishaps.events if (e["machine_type"], e["number"]) == ("pump", 1)]
    assert [event["epoch"] for event in own] == [1, 2, 2, 3, 4]  # 2 again, from its checkpoint
    assert len({event["pid"] for event in own}) == 2


def test_a_worker_that_always_dies_is_given_up(mishaps: Outcome) -> None:
    trial = mishaps.trials["pump"][2]
    assert trial.state == TrialState.FAIL
    assert trial.user_attrs["attempts"] == 1 + WORKER_RETRIES
    assert trial.user_attrs["reason"].startswith("worker lost: The actor died unexpectedly")
    assert "Worker exit type: SYSTEM_ERROR" in trial.user_attrs["reason"]
    own = [e for e in mishaps.events if (e["machine_type"], e["number"]) == ("pump", 2)]
    assert len({event["pid"] for event in own}) == 1 + WORKER_RETRIES


class _EndIdleWorker:
    """Kills the worker of the first trial when that is complete: it waits for another one then."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.killed: int | None = None

    def on_trial(self, machine_type: str, trial: FrozenTrial) -> None:
        if trial.state == TrialState.COMPLETE and self.killed is None:
            self.killed = events_of(self._folder)[-1]["pid"]
            os.kill(self.killed, signal.SIGKILL)
            psutil.wait_procs([psutil.Process(self.killed)], timeout=30)


def test_a_trial_given_to_a_worker_that_died_while_idle_gets_another_one(tmp_path: Path) -> None:
    killer = _EndIdleWorker(tmp_path)
    trials, is_over = run(tmp_path, n_trials=2, observers=(killer,), cpus=2.0)
    assert is_over
    assert [trial.state for trial in trials["fan"]] == 2 * [TrialState.COMPLETE]
    second = [event for event in events_of(tmp_path) if event["number"] == 1]
    assert [event["epoch"] for event in second] == [1, 2, 3, 4]
    assert killer.killed not in {event["pid"] for event in second}
    assert trials["fan"][1].user_attrs["attempts"] == 2  # as for any worker that is lost


def test_a_trial_whose_device_breaks_in_every_process_is_given_up(tmp_path: Path) -> None:
    """Its error is raised by hand, on no GPU."""

    class Broken(TrialRunner):
        def _advance(self) -> dict[str, Any]:
            note = {"pid": os.getpid()}
            with (Path(self.config["files"]) / EVENTS).open("a") as file:
                file.write(json.dumps(note) + "\n")
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    trials, is_over = run(tmp_path / "s", Broken, n_trials=1)
    assert is_over
    (trial,) = trials["fan"]
    assert trial.state == TrialState.FAIL
    assert trial.user_attrs["attempts"] == 1 + WORKER_RETRIES
    assert trial.user_attrs["reason"] == (
        "worker lost: AcceleratorError: CUDA error: an illegal memory access was encountered"
    )
    notes = (tmp_path / EVENTS).read_text().splitlines()
    assert len(set(notes)) == len(notes) == 1 + WORKER_RETRIES  # each in a process of its own


@pytest.mark.parametrize(
    ("troubles", "state"),
    [("lost lost lost refused", "COMPLETE"), ("lost refused" + 3 * " lost", "FAIL")],
)
def test_storage_that_refuses_once_is_no_lost_worker(
    tmp_path: Path, troubles: str, state: str
) -> None:
    class Troubled(analytic_trainable()):  # type: ignore[misc]
        def step(self) -> dict[str, Any]:
            self._folder.mkdir(parents=True, exist_ok=True)
            for index, trouble in enumerate(troubles.split()):
                passed = self._folder / f"trouble {index}"
                if not passed.exists():
                    passed.touch()
                    if trouble == "refused":
                        raise SharedFilesError("s3://b refuses")
                    os.kill(os.getpid(), signal.SIGKILL)
            return super().step()

    trials, is_over = run(tmp_path / "s", Troubled, n_trials=1)
    assert is_over
    (trial,) = trials["fan"]
    assert trial.state.name == state
    assert trial.user_attrs["attempts"] == 2 + WORKER_RETRIES


def test_only_trials_that_can_still_win_keep_their_state(mishaps: Outcome) -> None:
    for name, trials in mishaps.trials.items():
        for trial in trials:
            files = SharedFiles(mishaps.folder.parent)
            kept = Path(checkpoint_name(files, mishaps.folder, name, trial.number)).exists()
            assert kept == (trial.state == TrialState.COMPLETE)
    assert not (mishaps.folder / "tune").exists()


def test_a_larger_budget_adds_only_the_difference(tmp_path: Path) -> None:
    first, _ = run(tmp_path, n_trials=2)
    n_events = len(events_of(tmp_path))
    second, _ = run(tmp_path, n_trials=3)
    assert second["fan"][:2] == first["fan"]
    assert [trial.state for trial in second["fan"]] == [TrialState.COMPLETE] * 3
    assert {event["number"] for event in events_of(tmp_path)[n_events:]} == {2}
    third, is_over = run(tmp_path, n_trials=3)
    assert (third, is_over) == (second, True)


def test_a_time_budget_leaves_the_rest_to_the_next_run(tmp_path: Path) -> None:
    trials, is_over = run(tmp_path, analytic_trainable(step_s=0.6), time_budget_s=2.0)
    assert is_over  # as far as it was asked for
    assert {trial.state for trial in trials["fan"]} == {TrialState.RUNNING}
    again, _ = run(tmp_path)
    assert [trial.state for trial in again["fan"]] == [TrialState.COMPLETE] * 4
    known = len(trials["fan"])
    assert 2 <= known <= 3  # one may have waited for a slot
    assert [trial.params for trial in again["fan"][:known]] == [t.params for t in trials["fan"]]
    for trial in again["fan"]:
        assert list(trial.intermediate_values) == [1, 2, 3, 4]


def test_hours_that_are_spent_start_nothing(tmp_path: Path) -> None:
    with opened(tmp_path, space_file(epochs=EPOCHS), ("fan",)) as studies:
        for _ in range(2):
            trial = studies["fan"].ask()
            assert trial
            studies["fan"].record_epoch(trial.number, 1, {"seconds": 1800.0}, 0.5)
        studies["fan"].pause(1)
        before = list(studies["fan"].trials())
    pausing = {"name": "asha_pause"}
    trials, is_over = run(tmp_path, hours=1.0, scheduler=pausing)
    assert trials["fan"] == before
    assert is_over  # as far as it was asked for
    trials, _ = run(tmp_path, hours=1.5, scheduler=pausing)
    assert len(trials["fan"]) == 4
    assert all(trial.state.is_finished() for trial in trials["fan"])


class _Press:
    """Presses Ctrl-C when the first epoch is reported."""

    def __init__(self) -> None:
        self.is_pressed = False

    def on_trial(self, machine_type: str, trial: FrozenTrial) -> None:
        if trial.intermediate_values and not self.is_pressed:
            self.is_pressed = True
            os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_cuts_the_trials_off(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    trials, is_over = run(tmp_path, analytic_trainable(step_s=0.2), observers=(_Press(),))
    assert not is_over
    assert {trial.state for trial in trials["fan"]} == {TrialState.RUNNING}
    assert max(len(trial.intermediate_values) for trial in trials["fan"]) >= 1
    assert signal.getsignal(signal.SIGINT) is before


def test_real_trials_fail_for_the_reason_they_have(tmp_path: Path) -> None:
    """Through `TrialRunner`: some train, some overflow, some have settings that do not fit."""
    clips = find_clips(write_dcase2020(tmp_path / "data", n_test=8))["fan"]
    space = space_file(
        trials=8,
        epochs=2,
        scheduler={"name": "none"},  # it would end some for another reason
        parameters={
            "network.channels": {"kind": "fixed", "value": 2},
            "network.depth": {"kind": "fixed", "value": 3},
            "frontend.n_frames": {"kind": "fixed", "value": 8},
            "frontend.n_fft": {"kind": "fixed", "value": 64},
            "frontend.hop": {"kind": "categorical", "choices": [64, 128]},
            "train.lr": {"kind": "categorical", "choices": [1e-3, 1e30]},
            "train.precision": {"kind": "fixed", "value": "fp32"},
        },
    )
    with opened(tmp_path / "s", space, ("fan",)) as studies:
        run_trials(
            studies,
            space,
            folder=tmp_path / "s",
            packs={"fan": pack_clips(clips, tmp_path)},
            resources={"cpu": 2.0, "gpu": 0.0},  # a single worker, so torch is imported once
        )
        trials = studies["fan"].trials()
    endings = Counter()
    for trial in trials:
        reason = trial.user_attrs.get("reason", "")
        if trial.params["frontend.hop"] == 128:
            endings["infeasible"] += 1
            assert reason.startswith("infeasible: frontend.hop must be <= frontend.n_fft (64)")
        elif trial.params["train.lr"] == 1e30:
            endings["non-finite"] += 1
            assert reason.startswith("non-finite: ")
        else:
            endings["complete"] += 1
            assert list(trial.intermediate_values) == [1, 2]
            assert "val_auc/id_00" in trial.user_attrs["epoch/2"]
        assert trial.state == (TrialState.FAIL if reason else TrialState.COMPLETE)
    assert min(endings[ending] for ending in ("infeasible", "non-finite", "complete")) >= 1


def test_resources_that_no_node_has_are_refused() -> None:
    assert trial_resources(Resources(cpu=2)) == {"cpu": 2.0, "gpu": 0.0}
    with pytest.raises(StudyError, match="must fit into one machine .* got 3 CPU, .* have 2 CPU:"):
        trial_resources(Resources(cpu=3))
    with pytest.raises(StudyError, match=r"got 1 CPU, 0\.5 GPU, but .* have 2 CPU, 0 GPU:"):
        trial_resources(Resources(gpu=0.5))


def test_limits_that_nothing_keeps_end_the_run_with_their_reason(tmp_path: Path) -> None:
    space = space_file(trials=2, sampler={"name": "random"})
    with open_storage(tmp_path) as storage:
        study = new_study(storage, space=space, excesses=lambda params: {"parameters": 1.0})
        with pytest.raises(StudyError, match="200 suggestions in a row break a limit"):
            run_trials(
                {"fan": study},
                space,
                folder=tmp_path,
                packs={"fan": tmp_path / "none.arrow"},
                resources=RESOURCES,
                trainable=analytic_trainable(),
            )
        assert study.trials() == []
